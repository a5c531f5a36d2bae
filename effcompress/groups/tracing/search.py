"""Searches for axes of an undeclared architecture that can be proven. Runs in a process of its own
(``trace.py``), because torch-pruning may not return.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from effcompress.errors import CoverageError
from effcompress.groups.tracing.anatomy import (
    OTHER_HEADS,
    Anatomy,
    Norm,
    epsilons_of,
    norms_of,
)
from effcompress.groups.tracing.depth import (
    Silent,
    Subject,
    blocks_of,
    caches,
    prove_all_gone,
    prove_block,
    prove_identity,
    prove_layers,
)
from effcompress.groups.tracing.draft import Draft, family_from
from effcompress.groups.tracing.graph import Trace, trace
from effcompress.groups.tracing.probe import LAYERS, Build, Probe, Tell, probe, tokens_for
from effcompress.groups.tracing.propose import (
    ATTENTION,
    FFN,
    HIDDEN,
    KINDS,
    QUERY,
    Candidate,
    Irregular,
    assemble,
    candidates,
    channels_by_size,
    heads_by_size,
    returns,
    stream_by_size,
)
from effcompress.groups.tracing.stated import attributes_of, epsilon_field, fields_of
from effcompress.groups.tracing.template import Model, template
from effcompress.groups.tracing.verify import Unproven, prove, rebuild, takes_scale
from effcompress.types import UNTOUCHED_EXPERTS, Axis, Config, axis_kind

_DEFAULTS = ("hidden_size", LAYERS, "num_attention_heads", "tie_word_embeddings")
_ACROSS = "a norm goes across its units: without some of them the others are scaled anew"


def written(draft: Draft, raw: Config, probes: Sequence[Probe]) -> str:
    """Returns the draft as the text of a plugin file. ``raw``: the configuration as its file has
    it; ``probes``: small models, and the one that was asked for.
    """
    sized = [one.fits(draft) for one in probes]
    models = [Model(s.probe.anatomy, s.probe.config, s.axes, s.per_unit) for s in sized]
    return template(draft, raw, models)


def _same_looks(probes: Sequence[Probe]) -> None:
    """Raises CoverageError naming a parameter where the small models lack a kind of layers."""
    *small, given = probes
    for i, look in enumerate(given.anatomy.looks):
        for other in small:
            if look in other.anatomy.looks:
                continue
            layer = given.anatomy.layer.replace("{i}", str(i))
            alike = {part for known in other.anatomy.looks for part in known.split()}
            here = [part for part in look.split() if part != OTHER_HEADS]
            more = [part.partition(":")[0] for part in here if part not in alike]
            raise CoverageError(
                "no layer of the small model that is traced has this parameter"
                if more
                else "no layer of the small model that is traced has these parameters",
                where=".".join([layer, *more[:1]]),
                fix="Declare it in a plugin file (`@family`, docs/plugins.md).",
            )


def propose(config: Config, build: Build, silent: Silent, tell: Tell = lambda _: None) -> Draft:
    """Returns a draft in which every axis kind that can be cut has been proven. ``silent`` makes
    what stands for a block that is gone.

    Raises CoverageError when there is none; SourceError when the model cannot be built.
    """
    small, other = (probe(build, config, size) for size in ("small", "other"))
    given = probe(build, config, "given")
    _same_looks([small, other, given])
    probes = small, other, given
    draft = assemble((), frozenset(), small.anatomy)
    tell({"declaration": written(draft, config, probes)})
    ids_BT = tokens_for(small)
    traced = trace(small.module, ids_BT, lambda path: tell({"at": path}))
    draft = Search(small, other, traced, ids_BT, build, silent).run()
    sized = given.fits(draft)
    tell({"declaration": written(draft, config, probes)})
    if not {ATTENTION, FFN} & set(draft.kinds) - set(draft.kept) and draft.no_depth:
        raise _refused(draft)
    stated = {draft.aliases.get(name, name) for name in (*_DEFAULTS, *draft.fields)}
    return replace(
        draft.on(given.anatomy),
        widths=dict(sized.axes.widths),
        defaults={n: held for n in sorted(stated) if (held := given.config.get(n)) is not None},
    )


class Search:
    """Tries what each coupling may be, and keeps what proves itself."""

    def __init__(
        self,
        small: Probe,
        other: Probe,
        traced: Trace,
        ids_BT: torch.Tensor,
        build: Build,
        silent: Silent,
    ) -> None:
        self.small, self.other, self.traced, self.ids_BT = small, other, traced, ids_BT
        self.build, self.silent = lambda config: build(config, "given"), silent
        self.exact = copy.deepcopy(small.module).double()
        self.norms = list(norms_of(small.module))
        self.caches = caches(self.exact, ids_BT)

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
            found, reasons = self._first_of(alternatives, chosen)
            if found is not None:
                chosen.append(found)
                continue
            # Named by the first matrix that carries it.
            carried = next(iter(alternatives[0].sets.values()))[0]
            shapes = self.small.anatomy.shapes
            place = min(param for param, _ in carried if len(shapes[param]) > 1)
            left_out[place] = "; ".join(f"as {kind}: {why}" for kind, why in reasons.items())
        for guess in (channels_by_size, heads_by_size):
            known = [place for one in chosen for held in one.sets.values() for place in held[0]]
            for candidate in guess(self.small.anatomy, known):
                taken = {(one.kind, layer) for one in chosen for layer in one.sets}
                if taken.isdisjoint((candidate.kind, layer) for layer in candidate.sets):
                    chosen += [] if self._fault(candidate) else [candidate]
        if HIDDEN not in {one.kind for one in chosen}:
            known = [place for one in chosen for held in one.sets.values() for place in held[0]]
            candidate = stream_by_size(self.small.anatomy, known)
            chosen += [] if self._fault(candidate) else [candidate]
        draft = self._with_depth(self._complete(self._assembled(chosen)))
        faults = {kind: self._unproven(draft, kind) for kind in KINDS if kind in draft.kinds}
        proven = [kind for kind, why in faults.items() if not why]
        absent = {kind for kind in KINDS if kind != QUERY} - faults.keys()
        left_out = {
            path: why for path, why in left_out.items() if not _cut_in_full(draft, path, proven)
        }
        left_out |= dict.fromkeys(sorted(absent), "nothing that could be followed is one")
        left_out |= _experts(self.small, FFN in proven)
        draft = replace(draft, scales_stream=HIDDEN in proven and self._takes_scale(draft))
        return replace(
            draft,
            kept=tuple(kind for kind in draft.kinds if kind not in proven),
            left_out=left_out | {kind: why for kind, why in faults.items() if why},
            approximate={k: why for k, why in draft.approximate.items() if k in proven},
        )

    def _first_of(
        self, alternatives: Sequence[Candidate], chosen: Sequence[Candidate]
    ) -> tuple[Candidate | None, dict[str, str]]:
        """The first alternative that proves itself, or why there is none."""
        taken = {(one.kind, layer) for one in chosen for layer in one.sets}
        reasons: dict[str, str] = {}
        for candidate in alternatives:
            if why := self._fault(candidate):
                reasons[candidate.kind] = why
            elif taken.isdisjoint((candidate.kind, layer) for layer in candidate.sets):
                return candidate, {}
            else:  # what holds of channels holds of rows of them, too: these are no heads
                return None, {**reasons, candidate.kind: "a second one"}
        return None, reasons

    def _with_depth(self, draft: Draft) -> Draft:
        """Adds what is proven of depth: layers, and blocks if a layer without them is none."""
        blocks = blocks_of(self.exact, self.small.anatomy, self.ids_BT)
        draft = replace(draft, no_depth="")
        if why := self._stuck(draft, prove_layers):
            return replace(draft, no_depth=f"layers do not go by themselves ({why})")
        for kind, layers in enumerate(self._subject(draft).kinds):
            if self._stuck(draft, partial(prove_all_gone, layers=layers)):
                draft = replace(draft, stays=(*draft.stays, kind))
        if self._stuck(replace(draft, sublayers=blocks), prove_identity):
            return draft
        for kind, part in blocks.items():
            more = replace(draft, sublayers={**draft.sublayers, kind: part})
            draft = draft if self._stuck(more, partial(prove_block, kind=kind)) else more
        return draft

    def _stuck(self, draft: Draft, proof: Callable[[Subject], None]) -> str:
        """Why a proof of depth fails; empty if it does not."""
        try:
            proof(self._subject(draft))
        except (Unproven, CoverageError) as error:
            return str(error)
        return ""

    def _subject(self, draft: Draft) -> Subject:
        config, looks = self.small.config, self.small.anatomy.looks
        of = self.exact, looks, self.ids_BT, self.build, self.silent, self.caches
        return Subject(family_from(draft), config, *of)

    def _assembled(self, chosen: Sequence[Candidate]) -> Draft:
        return assemble(chosen, self.traced.matrices, self.small.anatomy)

    def _fault(self, candidate: Candidate) -> str:
        """Why a candidate fails on its own; empty if it does not. The residual stream need only be
        expressible as an axis: it is proven together with the others.
        """
        if candidate.kind != HIDDEN and not returns(candidate, self.small.anatomy):
            return "it does not lead back to the residual stream"
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
            subject = family_from(draft), self.small.config, self.exact, kind, self.ids_BT
            prove(*subject)
            rebuild(*subject, self.build)
        except (Unproven, CoverageError) as error:
            return str(error)
        return ""

    def _complete(self, draft: Draft) -> Draft:
        """Adds the sizes that modules and configuration keep, and the norms that cuts concern."""
        models = [probe.fits(draft) for probe in (self.small, self.other)]
        attributes, held = attributes_of(draft, models)
        fields = fields_of(draft, models)
        draft = replace(draft, fields=fields, attributes=attributes, held=held)
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
            epsilon_field=epsilon_field(self.small.config, norm.epsilon),
            final_norm=final[-1] if final else "",
            approximate={k: _ACROSS for kinds in over.values() for k in kinds if k != HIDDEN},
        )

    def _takes_scale(self, draft: Draft) -> bool:
        """Whether norms over axes that are never cut share the epsilon of those over the stream,
        and another scale of the stream can take the place of another epsilon.
        """
        if draft.centred or not draft.epsilon_field:
            return False
        found, pattern = epsilons_of(self.small.module), self.small.anatomy.pattern
        others = {epsilon for gain, epsilon in found.items() if pattern(gain) not in draft.norms}
        if self.small.config[draft.epsilon_field] not in others:
            return False
        try:
            return takes_scale(family_from(draft), self.small.config, self.exact, self.ids_BT)
        except Unproven:
            return False


def _cut_in_full(draft: Draft, path: str, proven: Sequence[str]) -> bool:
    """Whether a module or parameter that tracing could not follow is cut all the same, because
    another coupling or a guess was proven: only tokens and positions are left of it.
    """
    number = path.removeprefix(draft.layer.partition("{i}")[0]).partition(".")[0]
    pattern = path.replace(f".{number}.", ".{i}.", 1) if number.isdigit() else path
    names = {n for a in draft.axes if f"{a.param}.".startswith(f"{pattern}.") for n in _of(a)}
    return names <= {*proven, "vocab", "positions"}


def _of(axis: Axis) -> Iterator[str]:
    return (axis_kind(name) for name in axis.name.split("/"))


def _experts(probe: Probe, ffn: bool) -> dict[str, str]:
    """What is said of routed experts (parameters with one matrix per expert), where there are any:
    the plain name `ffn` is then that of another feed-forward.
    """
    for name, p in probe.module.named_parameters():
        path = name.rpartition(".")[0]
        convolution = isinstance(probe.module.get_submodule(path), nn.Conv1d)
        if p.dim() == 3 and not convolution and probe.anatomy.layer_of(name) is not None:
            where = probe.anatomy.pattern(f"{path}.")[:-1]
            said = f"all {where} stay as they are, since tracing follows no routing"
            more = "; `ffn` is the dense or shared feed-forward beside them alone"
            return {UNTOUCHED_EXPERTS: said + (more if ffn else "")}
    return {}


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


def _refused(draft: Draft) -> CoverageError:
    """The error that names the first module that could not be traced, or a matrix without proof."""
    where = next(iter(draft.left_out), "")
    if not where or where in KINDS:
        inside = (axis.param for axis in draft.axes if axis.dim == 1 and "{i}" in axis.param)
        where = next(inside, draft.layer).replace("{i}", "0")
    first = draft.left_out.get(where, "nothing leads through it")
    return CoverageError(
        f"tracing '{draft.model_type}' proves neither heads nor feed-forward channels nor depth "
        f"({draft.no_depth}): {first}",
        where=where,
    )


def paste(text: str) -> str:
    """The advice to declare the family, with the text of a file to start from."""
    return f"Declare it in a plugin file (docs/plugins.md); this is a start:\n{text}"
