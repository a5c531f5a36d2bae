"""Calls transformers quietly, and turns its errors into ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError, first_line


@contextmanager
def quietly() -> Iterator[None]:
    """Hides progress bars and log messages below errors; restores both settings afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def explained(what: str, *, where: str, fix: str | None = None) -> Iterator[None]:
    """Raises SourceError for any other error inside (safetensors, tokenizers and architectures
    raise different ones): ``what``, then the error's class and the first line of its text.
    """
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        first = first_line(error)
        said = f"{what}: {type(error).__name__}: {first}"
        raise SourceError(said, where=where, fix=fix) from error


def read_weights(
    model_class: Any, folder: Path, *, of: tuple[str, ...] = ("",), **how: Any
) -> tuple[Any, str, list[str]]:
    """Returns the folder's model in fp32 and the first kind of keys in which weights and class
    differ, with these keys; an empty kind if they agree. Weights may be superfluous whose names
    begin with none of ``of``.
    """
    import torch

    module, info = model_class.from_pretrained(
        str(folder),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the caller reports them, with the others
        local_files_only=True,
        use_safetensors=True,
        **how,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        named = (str(k[0] if isinstance(k, tuple) else k) for k in info[kind])
        if keys := sorted(k for k in named if kind != "unexpected_keys" or k.startswith(of)):
            return module, kind.replace("_", " "), keys
    return module, "", []
