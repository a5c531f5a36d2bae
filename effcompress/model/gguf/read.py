"""Converts a gguf file to a Hugging Face folder: fp32 safetensors, configuration, tokenizer."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.gguf.sources import require_readable
from effcompress.model.silence import explained, quietly
from effcompress.model.tokenizer import BOS, EOS, ByteTokenizer, byte_alphabet

QUANTIZER_ATTRIBUTES = ("hf_quantizer", "is_quantized", "quantization_method")


def convert(gguf: Path, folder: Path, *, label: str) -> str:
    """Writes ``gguf``, dequantised to fp32, into the existing ``folder``.

    ``label`` goes into the configuration as the model's name. Returns the type that most of the
    file's weights are stored in (``Q8_0``, ``F16``, ...).

    Raises:
        SourceError: not a gguf file, a damaged one, or one that transformers would read as another
            model, or not at all (see ``sources``).
    """
    require_readable(gguf)
    from gguf import GGUFReader

    fix = "a damaged file, or an architecture that transformers cannot read from gguf"
    with explained("cannot be converted", where=gguf.name, fix=fix), quietly(), _no_bar():
        stated = GGUFReader(gguf)
        sizes: Counter[str] = Counter()
        for tensor in stated.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        # llama.cpp's name of the pre-tokenizer, where the file states it.
        pre = stated.get_field("tokenizer.ggml.pre")
        model, missing = _open(gguf)
        if missing:
            raise SourceError(
                f"the file lacks weights that the architecture has: {missing}", where=gguf.name
            )
        _forget_quantizer(model, label)
        model.save_pretrained(folder)
        if _of_bytes(stated):
            ByteTokenizer().save(folder)
        else:
            _tokenizer(gguf, str(pre.contents()) if pre else "").save_pretrained(folder)
    return max(sizes, key=lambda name: sizes[name], default="unknown")


def general(gguf: Path) -> dict[str, Any]:
    """Returns what a gguf file that ``convert`` can read states of its origin: ``general.*``."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields.items()
    return {key: one.contents() for key, one in fields if key.startswith("general.")}


def _of_bytes(stated: Any) -> bool:
    """Whether the file has the byte tokenizer, which transformers refuses: its one merge joins
    tokens that do not exist.
    """
    from effcompress.model.gguf.vocabulary import NO_MERGES

    merges, tokens = (stated.get_field(f"tokenizer.ggml.{key}") for key in ("merges", "tokens"))
    wanted = [*byte_alphabet(), BOS, EOS]
    return bool(
        merges
        and tokens
        and merges.contents() == [NO_MERGES]
        and tokens.contents()[: len(wanted)] == wanted
    )


@contextmanager
def _no_bar() -> Iterator[None]:
    """Hides the progress bar of transformers' gguf reader; `disable_progress_bar` does not."""
    from transformers import modeling_gguf_pytorch_utils as reader

    tqdm = getattr(reader, "tqdm", None)
    if tqdm is None:
        yield
        return
    reader.tqdm = partial(tqdm, disable=True)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        reader.tqdm = tqdm  # type: ignore[attr-defined]


def _open(gguf: Path) -> tuple[Any, list[str]]:
    import torch
    from transformers import AutoModelForCausalLM

    extra: dict[str, Any] = {}
    try:
        # Newer versions of transformers would keep some architectures quantised.
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:
        pass
    else:
        extra["quantization_config"] = GgufConfig(dequantize=True)
    opened: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=True,
        **extra,
    )
    model, info = opened
    return model, sorted(info["missing_keys"])


def _forget_quantizer(model: Any, label: str) -> None:
    """Removes the marks of quantisation: the weights are dequantised, but `save_pretrained` refuses
    a model that has them.
    """
    for attribute in QUANTIZER_ATTRIBUTES:
        model.__dict__.pop(attribute, None)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # The gguf file's own title, which may be anything.
    config.__dict__.pop("_model_name_or_path", None)
    config._name_or_path = label


def _tokenizer(gguf: Path, pre: str) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    found: Any = AutoTokenizer.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, local_files_only=True
    )
    if pre == "smollm":
        # transformers ignores `tokenizer.ggml.pre`; SmolLM's pre-tokenizer splits digits.
        digits = pre_tokenizers.Digits(individual_digits=True)
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    return found
