"""Loads or draws a model of which a process keeps its rows alone.

The module ends up on the meta device, with whole shapes; the rows of its parameters lie beside it,
by name. One parameter at a time is whole in memory: a checkpoint's tensors are read one after the
other, by transformers itself (renamed, converted, merged as in any load), and each is reduced to
rows as it is put into the module. Random weights are drawn whole, in the same order and from the
same state of the generator as ever, and reduced when the next parameter is drawn.

What is not a parameter (buffers) stays whole, and so does a parameter that no file has.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

RowsOf = Callable[[int], slice]
"""Number of rows -> those that this process keeps (``distributed/rows.py``)."""
SMALL = 2**16
"""Bytes of parameters that are drawn together: reducing each would take longer than it saves."""
_LOADED = "_is_hf_initialized"
"""Attribute that transformers sets on what it has read, so that it is not initialised anew."""
_SYNCHRONOUS = "HF_DEACTIVATE_ASYNC_LOAD"
"""Variable without which transformers reads ahead in threads, the whole model at once."""
_OVERWRITE = {"normal_", "uniform_", "zero_", "fill_", "copy_", "exponential_", "random_"}
_ELEMENTWISE = {"mul_", "add_", "sub_", "div_", "clamp_", "erfinv_", "log_", "exp_", "neg_"}
"""Operations in place whose result in a row needs no other row."""


class NotByRows(Exception):
    """A class that initialises its parameters in a way that needs all rows of an earlier one."""


@final
@dataclass
class Reading:
    """What was read so far: parameter on the meta device -> rows, hash of the whole."""

    rows_of: RowsOf
    found: dict[int, tuple[nn.Parameter, Tensor, bytes]] = field(default_factory=dict)
    _vocabulary: set[torch.Size] = field(default_factory=set)

    def take(self, module: nn.Module, _name: str, p: nn.Parameter | None) -> nn.Parameter | None:
        """Reduces a parameter that transformers has read to its rows (a registration hook)."""
        if p is not None and isinstance(module, nn.Embedding):
            self._vocabulary.add(p.shape)
        if p is None or p.is_meta or p.dim() == 0 or not getattr(p, _LOADED, False):
            return None
        said = _hash(p) if p.shape in self._vocabulary else b""
        empty = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        setattr(empty, _LOADED, True)
        self.found[id(empty)] = (empty, _rows(p, self.rows_of), said)
        return empty

    def rows(self, module: Any) -> dict[str, Tensor]:
        """Returns the rows by name, after tying what is tied."""
        self._tie(module)
        named = module.named_parameters()
        return {name: self.found[id(p)][1] for name, p in named if id(p) in self.found}

    def _tie(self, module: Any) -> None:
        """Ties parameters that a file has twice, with the same values: transformers compares them,
        but has nothing to compare where both are on the meta device.
        """
        for target, source in (getattr(module, "all_tied_weights_keys", None) or {}).items():
            kept, other = (module.get_parameter(name) for name in (source, target))
            if kept is other or not {id(kept), id(other)} <= self.found.keys():
                continue
            if self.found[id(kept)][2] == self.found[id(other)][2] != b"":
                path, _, name = target.rpartition(".")
                setattr(module.get_submodule(path), name, kept)


@contextmanager
def reading(rows_of: RowsOf) -> Iterator[Reading]:
    """Reduces every parameter to rows as transformers loads it, inside."""
    before = os.environ.get(_SYNCHRONOUS)
    found = Reading(rows_of)
    take: Any = found.take  # its stated type returns nothing
    hook = register_module_parameter_registration_hook(take)
    os.environ[_SYNCHRONOUS] = "1"
    try:
        yield found
    finally:
        hook.remove()
        if before is None:
            del os.environ[_SYNCHRONOUS]
        else:
            os.environ[_SYNCHRONOUS] = before


def drawn(build: Callable[[], Any], rows_of: RowsOf) -> tuple[Any, dict[str, Tensor]]:
    """Returns the model that ``build`` makes with random weights, on the meta device, and its rows:
    those of the same weights that ``build`` alone would draw.

    Raises NotByRows where a parameter's values depend on other rows of one that was drawn before.
    """
    with _Drawing(rows_of) as drawing:
        hook = register_module_parameter_registration_hook(drawing.register)
        try:
            module = build()
        finally:
            hook.remove()
    return module, reduced(module, rows_of, drawing.rows_of_parameter)


def reduced(
    module: nn.Module, rows_of: RowsOf, rows: Callable[[nn.Parameter], Tensor] | None = None
) -> dict[str, Tensor]:
    """Puts the parameters of a module on the meta device, in place; returns their rows by name,
    as ``rows`` says or those of the values.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            places.setdefault(id(p), []).append((part, name))
    found = dict[str, Tensor]()
    for name, p in [*module.named_parameters()]:
        if p.dim() == 0:
            continue
        found[name] = rows(p) if rows else _rows(p, rows_of)
        empty = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for part, inner in places[id(p)]:
            part.register_parameter(inner, empty)
    return found


@torch.no_grad()
def _rows(p: Tensor, rows_of: RowsOf) -> Tensor:
    """Returns rows in fp32 and in memory of their own: a view would hold the file's."""
    kept = p.detach()[rows_of(p.shape[0])]
    return kept.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _hash(p: Tensor) -> bytes:
    flat = p.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data).digest()


@final
@dataclass
class _Drawn:
    """One parameter that is drawn: whole, or rows alone while its memory is given back."""

    values: Tensor
    bytes: int
    rows: Tensor | None = None
    """Those of this process, while ``values`` have no memory."""
    partial: bool = False
    """Only the rows of this process have their values."""


@final
class _Drawing(TorchDispatchMode):
    """Gives back the memory of a parameter's other rows as soon as another one is written."""

    def __init__(self, rows_of: RowsOf) -> None:
        super().__init__()
        self._rows_of = rows_of
        self._held: dict[StorageWeakRef, _Drawn] = {}
        self._whole: list[_Drawn] = []
        """Those that are in memory now."""

    def register(self, _module: nn.Module, _name: str, p: nn.Parameter | None) -> None:
        """Takes up a parameter when its module gets it."""
        if p is None or p.is_meta or p.dim() == 0 or p.nbytes < SMALL:
            return
        key = StorageWeakRef(p.untyped_storage())
        if key not in self._held:
            if p.nbytes != p.untyped_storage().nbytes() or not p.untyped_storage().resizable():
                raise NotByRows
            self._held[key] = _Drawn(p.detach(), p.nbytes)
            self._whole.append(self._held[key])

    def rows_of_parameter(self, p: nn.Parameter) -> Tensor:
        """Returns the rows of a parameter that was drawn."""
        held = self._held.get(StorageWeakRef(p.untyped_storage()))
        return _rows(p, self._rows_of) if held is None else self._reduced(held)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._held and not _only_views(func):
            touched = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            found = [(t, self._held.get(StorageWeakRef(t.untyped_storage()))) for t in touched]
            if held := {id(h): (t, h) for t, h in found if h is not None}:
                self._make_room({*held})
                for t, one in held.values():
                    self._bring(one, func, t, first=bool(args) and args[0] is t)
        return func(*args, **kwargs)

    def _make_room(self, stay: set[int]) -> None:
        for one in self._whole:
            if id(one) not in stay:
                self._reduced(one)
        self._whole = [one for one in self._whole if id(one) in stay]

    def _reduced(self, one: _Drawn) -> Tensor:
        """Keeps the rows and gives the memory back."""
        if one.rows is None:
            one.rows = _rows(one.values, self._rows_of)
            one.values.untyped_storage().resize_(0)
        return one.rows

    def _bring(self, one: _Drawn, func: Any, t: Tensor, *, first: bool) -> None:
        """Gives a parameter memory for an operation that needs no rows but its own."""
        name = func._schema.name.partition("::")[2]
        over = first and name in _OVERWRITE and t.numel() * t.element_size() == one.bytes
        if one.rows is not None:
            one.values.untyped_storage().resize_(one.bytes)
            if not over:
                one.values[self._rows_of(len(one.values))] = one.rows.to(one.values.dtype)
            one.rows, one.partial = None, True
            self._whole.append(one)
        if over:
            one.partial = False
        elif one.partial and not (first and name in {*_ELEMENTWISE, *_OVERWRITE}):
            raise NotByRows


def _only_views(func: Any) -> bool:
    """Whether an operation returns a view, or nothing but a new tensor, and reads no values."""
    schema = func._schema
    if schema.name.partition("::")[2] in ("empty_like", "new_empty", "detach"):
        return True
    writes = any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)
    return not writes and any(r.alias_info is not None for r in schema.returns)
