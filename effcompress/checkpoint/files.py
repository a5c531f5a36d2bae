"""Writes a model's tensors into safetensors files, one tensor at a time.

safetensors writes a file from tensors that are all in memory. Here the places of all tensors follow
from their shapes, so each is written where it belongs as soon as it is there, and forgotten. Of
several processes each writes files of its own: a tensor is gathered by the one that writes it.
"""

import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, final

import torch
from torch import Tensor

from effcompress import fault
from effcompress.distributed.world import ALONE, World
from effcompress.types import Shapes

MOST = 5_000_000_000
"""Bytes of tensors in a file: more are split over several, as hosts of models want it."""
INDEX = "model.safetensors.index.json"
_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
_CHUNK = 2**24


@dataclass(frozen=True)
class Piece:
    """Tensors that are made together: their shapes and types by name, and what makes them on one
    rank (None on the others). That is a collective where the model is sharded.
    """

    shapes: Shapes
    dtypes: Mapping[str, torch.dtype]
    made: Callable[[int], Mapping[str, Tensor] | None]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(_bytes(shape, self.dtypes[name]) for name, shape in self.shapes.items())


def write_files(
    folder: Path, pieces: Sequence[Piece], world: World = ALONE, most: int = MOST
) -> dict[str, str]:
    """Writes ``model.safetensors``, or several such files and their index where there are more than
    ``most`` bytes or several processes; returns the hash (SHA-256) of each file on every rank. A
    collective: each rank writes whole files, and holds one piece at a time.

    Raises OSError on every rank when a disk is full or a file does not hold what was written.
    """
    held = _divided(pieces, most, world.size)
    names = _file_names(len(held))
    files = [
        _File(folder / name, parts) if number % world.size == world.rank else None
        for number, (name, parts) in enumerate(zip(names, held, strict=True))
    ]
    try:
        failed = _written(held, files, world)

        def finished() -> dict[str, str]:
            if failed is not None:
                raise failed
            return {file.path.name: file.finished() for file in files if file is not None}

        found = {name: said for each in world.each(finished) for name, said in each.items()}
    finally:
        for file in filter(None, files):
            file.close()
    if world.main and len(held) > 1:
        _write_index(folder, dict(zip(names, held, strict=True)))
    return found


def _written(
    held: Sequence[Sequence[Piece]], files: Sequence["_File | None"], world: World
) -> OSError | None:
    """Makes all pieces and writes this rank's; returns what went wrong. The other ranks go on, and
    this one with them: they gather what all of them hold.
    """
    failed: OSError | None = None
    # A piece of each file in turn: while one rank writes, the next gathers.
    for turn in itertools.zip_longest(*held):
        for number, piece in enumerate(turn):
            if piece is None:
                continue
            made, file = piece.made(number % world.size), files[number]
            try:
                if file is not None and made is not None and failed is None:
                    file.write(made)
                    fault.point("export.tensor")
            except OSError as error:
                failed = error
    return failed


def _divided(pieces: Sequence[Piece], most: int, ranks: int) -> list[list[Piece]]:
    """Divides pieces among files, in order: at least one for each rank, as far as there are."""
    total = sum(piece.size for piece in pieces)
    most = most if ranks == 1 else min(most, -(-total // ranks))
    held, room = list[list[Piece]]([[]]), most
    for piece in pieces:
        if held[-1] and piece.size > room:
            held.append([])
            room = most
        held[-1].append(piece)
        room -= piece.size
    return held


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{k + 1:05d}-of-{count:05d}.safetensors" for k in range(count)]


def _write_index(folder: Path, held: Mapping[str, Sequence[Piece]]) -> None:
    where = {
        tensor: name for name, pieces in held.items() for piece in pieces for tensor in piece.shapes
    }
    size = sum(piece.size for pieces in held.values() for piece in pieces)
    said = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


@final
@dataclass
class _File:
    """One file that is being written."""

    path: Path
    pieces: Sequence[Piece]
    _places: dict[str, tuple[int, int]] = field(default_factory=dict)
    _sums: dict[str, int] = field(default_factory=dict)
    _stream: IO[bytes] | None = None

    def _open(self) -> IO[bytes]:
        """Writes the header: an entry for each tensor, the widest types first, which keeps all
        aligned; padded to 8 bytes.
        """
        tensors = {name: p.dtypes[name] for p in self.pieces for name in p.shapes}
        shapes = {name: shape for p in self.pieces for name, shape in p.shapes.items()}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
            end = begin + _bytes(shapes[name], tensors[name])
            kind = _NAMES[tensors[name]]
            header[name] = {"dtype": kind, "shape": [*shapes[name]], "data_offsets": [begin, end]}
            self._places[name] = begin, end
            begin = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        self._places = {n: (a + len(head), b + len(head)) for n, (a, b) in self._places.items()}
        stream = self.path.open("w+b")
        stream.write(head)
        return stream

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Writes tensors at their places."""
        self._stream = self._stream or self._open()
        for name, tensor in tensors.items():
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            begin, end = self._places[name]
            if len(flat) != end - begin:
                raise OSError(f"{name} has {len(flat)} bytes, not {end - begin}")
            self._stream.seek(begin)
            self._stream.write(flat)
            self._sums[name] = zlib.crc32(flat)

    def finished(self) -> str:
        """Reads the file back, compares every tensor's checksum and returns the file's hash."""
        stream = self._stream = self._stream or self._open()
        if missing := self._places.keys() - self._sums.keys():
            raise OSError(f"{min(missing)} was not written")
        stream.flush()
        fault.point("export.file")
        stream.seek(0)
        said = hashlib.sha256()
        said.update(stream.read(min((a for a, _ in self._places.values()), default=_CHUNK)))
        for name, (begin, end) in sorted(self._places.items(), key=lambda item: item[1]):
            found = 0
            for at in range(begin, end, _CHUNK):
                part = stream.read(min(_CHUNK, end - at))
                said.update(part)
                found = zlib.crc32(part, found)
            if found != self._sums[name]:
                raise OSError(f"{name} reads back as something else")
        return said.hexdigest()

    def close(self) -> None:
        """Closes the file; ``finished`` has said whether it is whole."""
        if self._stream is not None:
            self._stream.close()
