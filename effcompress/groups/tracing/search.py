"""Searches for axes of an undeclared architecture that can be proven. Runs in a process of its own
(``trace.py``), because torch-pruning may not return.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import nn

from effcompress.errors import CoverageError
from effcompress.groups.tracing.anatomy import Anatomy, Norm, anatomy_of, norms_of
from effcompress.groups.tracing.draft import Draft, Product, declaration, value
from effcompress.groups.tracing.graph import Trace, trace
from effcompress.groups.tracing.propose import (
    ATTENTION,
    FFN,
    HIDDEN,
    QUERY,
    Candidate,
    Irregular,
    assemble,
    candidates,
)
from effcompress.groups.tracing.verify import Unproven, cover, prove, rebuild
from effcompress.types import AxisMap, Config, axis_kind, in_layer

KINDS = (HIDDEN, ATTENTION, QUERY, FFN)
_DEFAULTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")
_ACROSS = "a norm goes across its units: without some of them the others are scaled anew"
# The engine sets the size attributes of these classes from their tensors.
_FOLLOW_TENSORS = (nn.Linear, nn.Embedding, nn.LayerNorm)
_QUERIES: Product = ("attention", "query")
_HEADS: tuple[Product, ...] = (("attention", "query", "head"), ("attention", "head"))


class Failure(TypedDict):
    """An error, to be raised in the parent."""

    kind: str
    what: str
    where: str | None
    fix: str | None


class Report(TypedDict, total=False):
    """What the subprocess reports: one or two of these keys per line."""

    at: str
    """Path of the module being queried."""
    declaration: str
    """Source text of a declaration to start from."""
    draft: str
    """The result, as ``Draft.to_json`` writes it."""
    error: Failure


Tell = Callable[[Report], None]


class Build(Protocol):
    """Builds a random model: sizes as given, small, or small with other numbers."""

    def __call__(
        self, config: Config, size: Literal["given", "small", "other"], /
    ) -> nn.Module: ...


@dataclass(frozen=True)
class Probe:
    """A random model and its anatomy."""

    module: nn.Module
    config: dict[str, Any]
    anatomy: Anatomy

    def fits(self, draft: Draft) -> Sized:
        """Resolves the draft's axes on this model. Raises CoverageError."""
        mine = draft.with_heads(self.anatomy.head_dim or 1)
        return Sized(self, cover(mine, self.config, self.module), mine.positions_per_unit)


@dataclass(frozen=True)
class Sized:
    """A model with the draft's axes and positions per unit resolved on it."""

    probe: Probe
    axes: AxisMap
    per_unit: Mapping[str, int]

    def holds(self, product: Product) -> int:
        """Value of a product of sizes in this model, in the first layer."""
        return value(product, in_layer(self.axes.widths, 0), self.per_unit)


def propose(config: Config, build: Build, tell: Tell = lambda _: None) -> Draft:
    """Returns a draft in which every axis kind that can be cut has been proven.

    Raises CoverageError when there is none; SourceError when the model cannot be built.
    """
    small, other = (_probe(build, config, size) for size in ("small", "other"))
    given = _probe(build, config, "given")
    draft = assemble((), frozenset(), small.anatomy)
    tell({"declaration": declaration(draft)})
    vocab = small.anatomy.sizes["vocab"]
    ids_BT = torch.randint(0, vocab, (2, 9), generator=torch.Generator().manual_seed(1))
    traced = trace(small.module, ids_BT, lambda path: tell({"at": path}))
    try:
        draft = Search(small, other, traced, ids_BT, build).run()
        sized = given.fits(draft)
    except CoverageError as error:  # layers that are not alike, for example
        error.fix = paste(declaration(draft))
        raise
    if not {ATTENTION, FFN} & set(draft.kinds) - set(draft.kept):
        raise _refused(draft)
    stated = {draft.aliases.get(name, name) for name in (*_DEFAULTS, *draft.fields)}
    return replace(
        draft.with_heads(given.anatomy.head_dim or 1),
        widths=dict(sized.axes.widths),
        defaults={n: held for n in sorted(stated) if (held := given.config.get(n)) is not None},
    )


class Search:
    """Tries what each coupling may be, and keeps what proves itself."""

    def __init__(
        self, small: Probe, other: Probe, traced: Trace, ids_BT: torch.Tensor, build: Build
    ) -> None:
        self.small, self.other, self.traced, self.ids_BT = small, other, traced, ids_BT
        self.build = lambda config: build(config, "given")
        self.exact = copy.deepcopy(small.module).double()
        self.norms = list(norms_of(small.module))

    def run(self) -> Draft:
        """The best draft: everything that cannot be cut is in ``kept``, with reasons."""
        # Modules that could not be traced, each in the first layer it is in.
        first: dict[str, str] = {}
        for path in self.traced.silent:
            first.setdefault(self.small.anatomy.pattern(path), path)
        left_out = {path: self.traced.silent[path] for path in first.values()}
        chosen: list[Candidate] = []
        for alternatives in candidates(
            self.traced.coupled, self.traced.matrices, self.small.anatomy
        ):
            taken = {candidate.kind for candidate in chosen}
            reasons: dict[str, str] = {}
            for candidate in alternatives:
                if candidate.kind not in taken and not (why := self._fault(candidate)):
                    chosen.append(candidate)
                    break
                reasons[candidate.kind] = why if candidate.kind not in taken else "a second one"
            else:
                # Named by the first matrix that carries it.
                carried = next(iter(alternatives[0].sets.values()))[0]
                shapes = self.small.anatomy.shapes
                place = min(param for param, _ in carried if len(shapes[param]) > 1)
                left_out[place] = "; ".join(f"as {kind}: {why}" for kind, why in reasons.items())
        draft = self._complete(self._assembled(chosen))
        faults = {kind: self._unproven(draft, kind) for kind in KINDS if kind in draft.kinds}
        proven = [kind for kind, why in faults.items() if not why]
        absent = {kind for kind in KINDS if kind != QUERY} - faults.keys()
        left_out |= dict.fromkeys(sorted(absent), "nothing that could be followed is one")
        return replace(
            draft,
            kept=tuple(kind for kind in draft.kinds if kind not in proven),
            left_out=left_out | {kind: why for kind, why in faults.items() if why},
            approximate={k: why for k, why in draft.approximate.items() if k in proven},
        )

    def _assembled(self, chosen: Sequence[Candidate]) -> Draft:
        return assemble(chosen, self.traced.matrices, self.small.anatomy)

    def _fault(self, candidate: Candidate) -> str:
        """Why a candidate fails on its own; empty if it does not. The residual stream need only be
        expressible as an axis: it is proven together with the others.
        """
        try:
            draft = self._complete(self._assembled([candidate]))
        except (Irregular, CoverageError) as error:
            return str(error)
        if candidate.kind == HIDDEN or not (why := self._unproven(draft, candidate.kind)):
            return ""
        # A single KV head cannot be cut, but its query heads may be.
        return why if QUERY not in draft.kinds or self._unproven(draft, QUERY) else ""

    def _unproven(self, draft: Draft, kind: str) -> str:
        try:
            prove(draft, self.small.config, self.exact, kind, self.ids_BT)
            rebuild(draft, self.small.config, self.exact, kind, self.ids_BT, self.build)
        except (Unproven, CoverageError) as error:
            return str(error)
        return ""

    def _complete(self, draft: Draft) -> Draft:
        """Adds the sizes that modules and configuration keep, and the norms that cuts concern."""
        models = [probe.fits(draft) for probe in (self.small, self.other)]
        draft = replace(draft, fields=_fields(draft, models), attributes=_attributes(draft, models))
        over = dict(_averages(draft, self.norms, self.small.anatomy))
        if not over:
            return draft
        norm = next(n for n in self.norms if self.small.anatomy.pattern(n.gain) in over)
        final = [p for p, kinds in over.items() if "{i}" not in p and kinds == (HIDDEN,)]
        return replace(
            draft,
            norms=tuple(over),
            centred=norm.centred,
            gain_offset=norm.offset,
            epsilon_attribute=norm.attribute,
            epsilon_field=_epsilon_field(self.small.config, norm.epsilon),
            final_norm=final[-1] if final else "",
            approximate={k: _ACROSS for kinds in over.values() for k in kinds if k != HIDDEN},
        )


# Configuration fields and module attributes that hold sizes are those that equal a product of
# widths in two models of different sizes, so that a coincidence in one of them does not count.


def _fields(draft: Draft, models: Sequence[Sized]) -> dict[str, Product]:
    """Configuration field -> the product of sizes that it holds in every model."""
    found: dict[str, Product] = {}
    for product in _products(draft):
        sizes = [model.holds(product) for model in models]
        if set(sizes) == {1}:
            continue  # a size of 1 would match too many fields
        for name in models[0].probe.config:
            held = [model.probe.config.get(name) for model in models]
            if held == sizes and not any(isinstance(size, bool) for size in held):
                found.setdefault(name, product)
    shared: Any = models[0].probe.module.config
    derived = isinstance(getattr(type(shared), "head_dim", None), property)
    if found and "head" in draft.positions_per_unit and not derived:
        # Stated, since classes derive it as hidden size / heads, which pruning makes wrong.
        found.setdefault("head_dim", ("head",))
    return found


def _attributes(draft: Draft, models: Sequence[Sized]) -> dict[str, dict[str, Product]]:
    """Module of a layer -> attribute -> the product of sizes that it holds in every model."""
    found: dict[str, dict[str, Product]] = {}
    path = draft.layer.replace("{i}", "0")
    layers = [model.probe.module.get_submodule(path) for model in models]
    for path, child in layers[0].named_modules():
        if isinstance(child, _FOLLOW_TENSORS) or not path:
            continue
        alike = [layer.get_submodule(path) for layer in layers]
        products = list(_products(draft, across=_attends(draft, path)))
        for name, held in vars(child).items():
            if not isinstance(held, int) or isinstance(held, bool) or name.startswith("_"):
                continue
            sizes = [getattr(other, name, None) for other in alike]
            for product in products:
                if sizes == [model.holds(product) for model in models]:
                    found.setdefault(path, {}).setdefault(name, product)
    return found


def _epsilon_field(config: Config, epsilon: float) -> str:
    """The configuration field that holds the norms' epsilon; empty when there is none."""
    return next((n for n, held in config.items() if "eps" in n and held == epsilon), "")


def _attends(draft: Draft, path: str) -> bool:
    inside = f"{draft.layer}.{path}."
    return any(a.param.startswith(inside) and a.name.startswith("attention") for a in draft.axes)


def _products(draft: Draft, *, across: bool = False) -> Iterator[Product]:
    """Yields the products to look for, in order, of axis kinds that can be cut.

    The hidden size often equals heads times head width. Within attention, such a number is taken
    for the heads (``across``), elsewhere for the hidden size.
    """
    kinds = [kind for kind in draft.kinds if kind in KINDS]
    single: list[Product] = [(kind,) for kind in kinds]
    for product in (*(_HEADS if across else ()), *single, _QUERIES):
        if all(name in kinds or name in draft.positions_per_unit for name in product):
            yield product


def _averages(
    draft: Draft, norms: Sequence[Norm], anatomy: Anatomy
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields norms over axes that can be cut: pattern of the gain, axis kinds. A family has one
    sort of norm, so others than the first are skipped; the proofs fail where one of those matters.
    """
    kinds = {
        axis.param: tuple(axis_kind(part) for part in axis.name.split("/"))
        for axis in draft.axes
        if axis.dim == 0
    }
    first: Norm | None = None
    for norm in norms:
        pattern = anatomy.pattern(norm.gain)
        over = kinds.get(pattern, ())
        if not set(over) & set(KINDS) or (norm.centred and (over != (HIDDEN,) or not norm.stock)):
            continue
        first = first or norm
        same = (first.centred, first.offset, first.attribute)
        if (norm.centred, norm.offset, norm.attribute) == same:
            yield pattern, over


def _probe(build: Build, config: Config, size: Literal["given", "small", "other"]) -> Probe:
    torch.manual_seed(0)
    with torch.device("meta" if size == "given" else "cpu"):
        module = build(config, size)
    if size != "given":
        # Fresh biases of 0 and gains of 1 would hide mistakes.
        with torch.no_grad():
            for p in module.parameters():
                p.uniform_(0.5, 1.5) if p.dim() == 1 else p.normal_(0, 0.2)
    made: Any = module
    return Probe(module, made.config.to_dict(), anatomy_of(module))


def _refused(draft: Draft) -> CoverageError:
    """The error that names the first module that could not be traced, or a matrix without proof."""
    where = next(iter(draft.left_out), "")
    if not where or where in KINDS:
        inside = (axis.param for axis in draft.axes if axis.dim == 1 and "{i}" in axis.param)
        where = next(inside, draft.layer).replace("{i}", "0")
    first = draft.left_out.get(where, "nothing leads through it")
    return CoverageError(
        f"tracing '{draft.model_type}' proves neither heads nor feed-forward channels: {first}",
        where=where,
        fix=paste(declaration(draft)),
    )


def paste(text: str) -> str:
    """The advice to declare the family, with source text to start from."""
    return f"Declare it in effcompress/model/families; this is a start:\n{text}"
