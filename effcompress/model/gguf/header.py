"""What a gguf file states, without its weights: values and the shapes of tensors.

``gguf.GGUFReader`` makes an object of every token of the vocabulary, which takes half a minute for
150,000 of them; ``check`` needs an answer at once. Here arrays of strings are passed over.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError

MAGIC = b"GGUF"
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Kind of a value -> its code in ``struct``; 8 is a string, 9 an array."""
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 20
"""Numbers of an array that are kept."""


@dataclass(frozen=True)
class Header:
    """Values by key, without arrays of strings; tensor -> its shape, the outer dimension first."""

    values: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.values.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value that the architecture states: ``attention.head_count``."""
        return self.values.get(f"{self.architecture}.{key}", default)


class _Bytes:
    """The bytes of a file, read in order."""

    def __init__(self, held: mmap.mmap) -> None:
        self.held, self.at = held, 0

    def take(self, size: int) -> bytes:
        if size > len(self.held) - self.at:
            raise EOFError
        self.at += size
        return self.held[self.at - size : self.at]

    def number(self, code: str) -> Any:
        (found,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return found

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner in (_STRING, _ARRAY):
            for _ in range(count):
                self.value(inner) if inner == _ARRAY else self.skip(self.number("Q"))
            return None
        size = count * struct.calcsize(f"<{_NUMBERS[inner]}")
        if count > _LONGEST:
            return self.skip(size)
        return list(struct.unpack(f"<{count}{_NUMBERS[inner]}", self.take(size)))

    def skip(self, size: int) -> None:
        if size > len(self.held) - self.at:
            raise EOFError
        self.at += size


def read_header(file: Path) -> Header:
    """Reads a file's header. Raises SourceError for another file, and for one that ends early."""
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise SourceError("this is not a gguf file", where=file.name)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held:
            try:
                return _header(_Bytes(held))
            except (EOFError, KeyError, struct.error) as error:
                raise SourceError("this gguf file is damaged", where=file.name) from error


def _header(found: _Bytes) -> Header:
    found.skip(len(MAGIC))
    if found.number("I") not in (2, 3):  # the first one had other numbers, and was replaced in 2023
        raise EOFError
    tensors, count = found.number("Q"), found.number("Q")
    values, shapes = dict[str, Any](), dict[str, tuple[int, ...]]()
    for _ in range(count):
        key = found.text()
        value = found.value(found.number("I"))
        if value is not None:
            values[key] = value
    for _ in range(tensors):
        name = found.text()
        sizes = [found.number("Q") for _ in range(found.number("I"))]
        shapes[name] = tuple(reversed(sizes))
        found.skip(4 + 8)  # how its numbers are stored, and where
    return Header(values, shapes)
