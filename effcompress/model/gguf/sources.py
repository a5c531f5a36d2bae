"""Which gguf files transformers read as the model that llama.cpp computes, told by their header.

transformers read some of what a file states and take the defaults of their class for the rest, in
silence (``transformers/integrations/gguf.py`` and ``modeling_gguf_pytorch_utils.py`` of 5.23). So a
file is refused where what they do not read differs from that default. Each row of ``READERS`` and
each rule was found by reading tiny files back (``tests/model/test_gguf_sources.py``).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.gguf.header import Header, read_header


@dataclass(frozen=True)
class Reader:
    """What transformers take of files of an architecture."""

    width: str | int | None = None
    """Where they take the width of a head from: a key, a number; else ``hidden / heads``."""
    rotated: float = 1.0
    """Fraction of a head that rope rotates, whatever the file states."""
    base: float | None = None
    """Rope's base that they take in any case; None: that of the file."""
    taken: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Keys that they do not read -> the values that they take."""
    unread: str = ""
    """Pattern of the tensors that they pass over."""
    window: bool = False
    """They read the window."""
    scaled: tuple[int, int] | None = None
    """Products of queries and keys are divided by the root of this number. llama.cpp takes the
    head's width, but the hidden size over the heads in models of so many layers.
    """


_GEMMA_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_BIASES = r"blk\.\d+\..*\.bias"
_HEAD_NORMS = r"blk\.\d+\.attn_[qk]_norm\..*"
READERS: Mapping[str, Reader] = {
    "llama": Reader(width="rope.dimension_count", unread=_BIASES),
    "qwen2": Reader(unread=_HEAD_NORMS),
    "qwen3": Reader(width=128, unread=_BIASES),
    "qwen2moe": Reader(),
    "qwen3moe": Reader(width="attention.key_length", unread=_BIASES),
    "phi3": Reader(unread=_BIASES),
    "nemotron": Reader(rotated=0.5),
    "gemma2": Reader("attention.key_length", taken=_GEMMA_CAPS, window=True, scaled=(256, 46)),
    "gemma3": Reader("attention.key_length", window=True, scaled=(256, 62)),
    "starcoder2": Reader(base=1e4),
    "stablelm": Reader(rotated=0.25, base=1e4, unread=_HEAD_NORMS),
    "gpt2": Reader(),
}
"""llama.cpp's name of an architecture -> what transformers take of its files."""
_NO_READER = "transformers have no reader of gguf files of the architecture '{}'"
_NOT_COMPARED = "what transformers read of '{}' files was not compared with what llama.cpp computes"
_LEFT_OUT: Mapping[str, str] = {
    "falcon": "transformers take one KV head and a feed-forward of 4 x hidden for every '{}' file",
    "gpt-oss": "transformers do not read experts and sinks of '{}' files",
    **dict.fromkeys(
        ("bloom", "deci", "gemma4", "lfm2", "mamba", "minimax-m2", "qwen35", "qwen35moe"),
        _NOT_COMPARED,
    ),
}
"""Architectures that transformers have a reader of -> why it is not used."""
FIX = "name the Hugging Face folder of the model instead (its safetensors)"
_SHAPES = re.compile(r"rope_(freqs|factors_\w+)\.weight|blk\.\d+\.rope_(freqs|factors_\w+)\.weight")


def require_readable(file: Path) -> None:
    """Raises SourceError for a file that transformers would read as another model, or not at all.
    Imports neither of them.
    """
    if flaw := why_unreadable(read_header(file)):
        raise SourceError(flaw, where=file.name, fix=FIX)


def why_unreadable(header: Header) -> str:
    """Why transformers do not read a file as the model that it is; empty if they do."""
    kind = header.architecture
    if (known := READERS.get(kind)) is None:
        return (
            f"{_LEFT_OUT.get(kind, _NO_READER).format(kind)}; files of {', '.join(READERS)} are "
            "read"
        )
    return next(_differences(header, known), "")


def _differences(header: Header, known: Reader) -> Iterator[str]:
    kind = header.architecture
    for name in header.tensors:
        if _SHAPES.fullmatch(name):
            yield f"transformers do not read {name}, the divisors of rope, of a {kind} file"
        if known.unread and re.fullmatch(known.unread, name):
            yield f"transformers do not read {name} of a {kind} file"
    scaling = header.get("rope.scaling.type", "none")
    if scaling != "none":
        yield f"transformers do not read rope.scaling.type: {scaling} of a {kind} file"
    yield from (
        _told(header, key, taken)
        for key, taken in _taken(header, known)
        if _other(header, key, taken)
    )
    window, context = header.get("attention.sliding_window"), header.get("context_length", 0)
    if window and not known.window and window < context:
        yield f"transformers do not read attention.sliding_window: {window} of a {kind} file"
    if known.scaled and (scale := _scale(header, known, known.scaled[1])) != known.scaled[0]:
        yield (
            f"transformers divide what heads compare by the root of {known.scaled[0]} in every "
            f"{kind} file, and this model by that of {scale:g}"
        )


def _taken(header: Header, known: Reader) -> Iterator[tuple[str, Any]]:
    """Yields the keys that transformers do not read, and what they take instead."""
    width = _width(header, known)
    yield "attention.key_length", width
    yield "attention.value_length", width
    yield "rope.dimension_count", int(width * known.rotated)
    if known.base is not None:
        yield "rope.freq_base", known.base
    yield from known.taken.items()


def _other(header: Header, key: str, taken: Any) -> bool:
    """Whether the file states another value."""
    return header.get(key, taken) != taken


def _told(header: Header, key: str, taken: Any) -> str:
    kind = header.architecture
    stated = header.get(key)
    return f"transformers take {key}: {taken:g} for every {kind} file, and this states {stated:g}"


def _square(header: Header) -> float:
    """Channels of a head where heads fill the hidden size."""
    return header.get("embedding_length", 0) / (header.get("attention.head_count") or 1)


def _width(header: Header, known: Reader) -> int:
    if isinstance(known.width, str):
        return int(header.get(known.width) or _square(header))
    return known.width or int(_square(header))


def _scale(header: Header, known: Reader, big: int) -> float:
    """llama.cpp tells the largest model of the type by its number of layers."""
    return _square(header) if header.get("block_count") == big else _width(header, known)
