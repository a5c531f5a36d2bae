"""The state of a run around a model that a script holds: the same functions then measure, choose
and cut as in a run. What the script asks for is read as the sections of a recipe, so that names,
knobs and contradictions are checked by the same rules.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress import groups
from effcompress.errors import CoverageError, RecipeError
from effcompress.estimate.feasibility import SizedModel, require_fit
from effcompress.estimate.memory import PROBE
from effcompress.estimate.schedule import WITHOUT_TEXT, reads_text
from effcompress.export.forms import exact_fields
from effcompress.export.write import proof_tokens
from effcompress.in_memory.batches import Batches, Loss, batches_of, loss_of
from effcompress.injectable import ABLATED
from effcompress.model.held import config_of_held, remember
from effcompress.model.load import LoadedModel
from effcompress.network.pruned_model import PrunedModel, uniform_widths
from effcompress.network.shapes import shape
from effcompress.recipe import load_mapping
from effcompress.recipe.source_map import Key
from effcompress.record import events
from effcompress.record.events import Event
from effcompress.registry import REGISTRY, Bound
from effcompress.removal.optimizer import check_state, require_no_gradient
from effcompress.runner.source_model import repairable
from effcompress.runner.state import RunState
from effcompress.spec import PruneSpec, Recipe
from effcompress.types import AxisMap, Cut

USUAL = ("attention", "ffn", "hidden")
"""What is cut where a script names no space, as far as the model has it."""
Space = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""Kinds of mini-groups, as under `prune.space` of a recipe: a name, or a mapping with its knobs."""
Named = str | Mapping[str, Any]
"""A plugin: its name, or a mapping with its `name` and its knobs."""


@dataclass
class Notes:
    """In the place of a run's record: keeps cuts and warnings, and hands texts to ``logging``."""

    cuts: list[Cut] = field(default_factory=list[Cut])
    warnings: list[str] = field(default_factory=list[str])

    def event(self, event: Event) -> None:
        """Keeps warnings; all other events are of a record."""
        if isinstance(event, events.Warn):
            self.warn(event.text)

    def plan(self, cut: Cut) -> None:
        """Keeps a cut."""
        self.cuts.append(cut)

    def warn(self, text: str) -> None:
        """Keeps and logs a warning."""
        self.warnings.append(text)
        _LOGGER.warning(text)

    def note(self, text: str) -> None:
        """Logs a remark."""
        _LOGGER.info(text)

    def phase(self, name: str, total_tokens: int | None = None) -> None:
        """Logs what begins."""
        _LOGGER.info(name)

    def progress(self, unit: str, done: int, total: int) -> None:
        """Logs how far a measurement is."""
        _LOGGER.debug("%s %d of %d", unit, done + 1, total)


_LOGGER = logging.getLogger("effcompress")


@dataclass(frozen=True)
class Size:
    """A model's size: parameters, configuration fields of its shape (a list where layers differ),
    and units on every axis that can be cut (``ffn.3``).
    """

    params: int
    shape: Mapping[str, Any]
    widths: Mapping[str, int]


@dataclass(frozen=True)
class Session:
    """What ``open_session`` returns."""

    state: RunState
    prune: PruneSpec
    log: Any

    @property
    def size(self) -> Size:
        """The size of the model as it is now."""
        return size_of(self.state.pruned)

    def close(self) -> None:
        """Removes the hooks, and keeps with the module what its own configuration cannot say."""
        state = self.state
        for listener in (state.taps, state.grams):
            if listener is not None:
                listener.close()
        keep(state.pruned)


def size_of(pruned: PrunedModel) -> Size:
    """Returns the size of a model as it is now."""
    widths = pruned.widths
    return Size(pruned.params, shape(pruned.parent, pruned.config, widths), widths)


def keep(pruned: PrunedModel) -> None:
    """Keeps with a module what its configuration cannot say of a cut, and writes the epsilon of its
    norms into the configuration where all have the same.
    """
    remember(pruned.module, exact_fields(pruned))
    name, found = pruned.family.epsilon_field, {norm.epsilon for norm in pruned.norms()}
    uniform = (
        uniform_widths(pruned.axes, pruned.config) is not None and not pruned.family.scales_stream
    )
    if name and uniform and len(found) == 1:
        setattr(pruned.module.config, name, found.pop())


def open_session(
    call: str,
    model: Any,
    batches: Any,
    prune: Mapping[str, Any],
    *,
    stages: Mapping[str, int] | None = None,
    optimizer: Optimizer | None = None,
    loss: Loss | None = None,
    space: Sequence[Bound] = (),
    feasible: bool = True,
) -> Session:
    """Returns the state of a run that has loaded ``model`` and read ``batches`` (None: there are
    none).

    ``call``: the function that a script called, for errors. ``prune``: the values of that section
    of a recipe; None stands for its default. ``stages``: of training by the script, in optimizer
    steps. ``space``: in place of the section's. ``feasible``: whether the target must be in reach.

    Raises SourceError for a model or batches that cannot be used, RecipeError for what contradicts
    itself or cannot be met, SurgeryError for an optimizer of another model or live gradients.
    """
    config = config_of_held(model)
    table: Tensor = model.get_input_embeddings().weight
    rows = None if batches is None else batches_of(batches, table.shape[0], config)
    given = {name: value for name, value in prune.items() if value is not None}
    if "space" not in given:
        names = [*(given["target"].get("shape") or {})]
        given["space"] = _spaces_of(names) if names else usual_space(model, config)
    elif isinstance(given["space"], str | Mapping):
        given["space"] = [given["space"]]
    if stages is None:
        count = len(rows.rows) if rows is not None else 1
        measure = {"source": "calibration", "sequences": count, **given.get("measure", {})}
        if given.get("refit") is not None:
            measure = {"refit_sequences": count, **measure}
        given["measure"] = measure
    values = values_of(config, given, stages)
    loaded = load_mapping(values, address_of(call), in_steps)
    recipe, spec = loaded.recipe, loaded.recipe.prune
    assert spec is not None
    if space:
        spec = replace(spec, space=tuple(space))
        recipe = replace(recipe, prune=spec)
    _require_batches(call, model, spec, rows)
    for name, p in model.named_parameters() if stages is None else ():
        require_no_gradient(p, name)
    source = copy.deepcopy(model) if spec.refit is not None else None
    log: Any = Notes()
    before = {id(p) for p in model.parameters()}
    held: Any = LoadedModel(model, None, config, "a model in memory", "")  # type: ignore[arg-type]
    held = repairable(held, spec, log.note)
    text: Any = rows or Batches(())
    probe_BT = random_tokens(model, config) if rows is None else rows.probe(PROBE)
    state = RunState(recipe, held, text, device=table.device, probe_BT=probe_BT)
    state.source = source
    state.loss_of = loss_of(rows, loss) if rows is not None else None
    state.optimizer = optimizer
    if optimizer is not None:
        _take_optimizer(state, optimizer, before)
    if feasible:
        pruned = state.pruned
        start, target = pruned.parent.count(), state.target_params
        sized = SizedModel(pruned.config, pruned.parent, pruned.parent_sets, start, target)
        require_fit(loaded, spec, sized)
    return Session(state, spec, log)


def usual_space(model: nn.Module, config: Mapping[str, Any]) -> list[str]:
    """Returns the spaces of ``USUAL`` in which this model has mini-groups."""
    axes = PrunedModel(model, config).parent
    return [name for name in USUAL if _has(axes, name)]


def _has(axes: AxisMap, name: str) -> bool:
    try:
        return bool(groups.find(axes, [Bound(REGISTRY.get("space", name), _defaults(name))]))
    except CoverageError:
        return False


def _defaults(name: str) -> dict[str, Any]:
    return {k.name: k.default for k in REGISTRY.get("space", name).knobs.values()}


def _spaces_of(kinds: Sequence[str]) -> list[Any]:
    """Returns the spaces that cut these kinds."""
    inside = {"expert_ffn": "ffn", "shared_ffn": "ffn", "linear_head": "mixer"}
    inside["conv_channel"] = inside["ssm_channel"] = "mixer"
    query = {"name": "attention", "unit": "q_per_group"}
    named = dict.fromkeys(inside.get(kind, kind) for kind in kinds)
    return [query if name == "query" else name for name in named]


def values_of(
    config: Mapping[str, Any], prune: Mapping[str, Any], stages: Mapping[str, int] | None
) -> dict[str, Any]:
    """Returns a recipe. Its model and its text are never opened: those of the script are there."""
    values: dict[str, Any] = {
        "model": {"random": True, "shape": {"model_type": str(config.get("model_type"))}},
        "data": {"domains": {"batches": {"stdlib": "prose"}}},
        "prune": dict(prune),
    }
    if stages is not None:
        values["train"] = {"stages": dict(stages), "batch_size": 1}
    return values


def in_steps(recipe: Recipe) -> Recipe:
    """Returns the recipe with one token per step: schedules then count optimizer steps."""
    return replace(recipe, data=replace(recipe.data, sequence_length=1))


def address_of(call: str) -> Any:
    """Returns what an error names in place of a key of the recipe: the argument of the call."""

    def of(key: Key) -> str:
        if key[:1] == ("prune",) and len(key) > 1:
            inner = key[2] if key[1] in ("target", "measure") and len(key) > 2 else key[1]
            return f"{call}({inner}=...)"
        return f"{call}(steps=...)" if key[:1] == ("train",) else f"{call}(...)"

    return of


def _require_batches(call: str, model: nn.Module, prune: PruneSpec, rows: Batches | None) -> None:
    """Raises RecipeError where text is read and there is none, where it has to be of one length,
    and where gradients are measured and nothing has any.
    """
    calibrates = prune.measure.source == "calibration"
    reads = calibrates and (reads_text(prune) or prune.refit is not None)
    if reads and rows is None:
        plugins = [prune.saliency, *prune.repair, *filter(None, (prune.refit, prune.selector))]
        names = ", ".join(f"{b.plugin.kind} '{b.name}'" for b in plugins if _reads(b))
        raise RecipeError(
            f"{names or 'the criterion'} measures on text, and there are no batches",
            where=f"{call}(batches=...)",
            fix="Give batches of input_ids, e.g. batches=[tokenizer(text, return_tensors='pt')].",
        )
    ablates = bool(ABLATED.intersection(prune.saliency.needs))
    stacked = prune.measure.propagate or prune.refit or prune.allocation or ablates
    if rows is not None and stacked and not rows.equal:
        raise RecipeError(
            "layers are run one by one here, on sequences of one length, and these differ",
            where=f"{call}(batches=...)",
            fix="Cut them to one length.",
        )
    backward = {"grad", "hess", "mask_grad"}.intersection(prune.saliency.needs)
    if backward and not any(p.requires_grad for p in model.parameters()):
        raise RecipeError(
            f"criterion '{prune.saliency.name}' takes gradients, and no parameter has one",
            where=f"{call}(model)",
            fix="Call model.requires_grad_(True), or use a criterion of weights or inputs.",
        )


def _reads(bound: Bound) -> bool:
    return bound.plugin.kind != "selector" and bool({*bound.needs} - WITHOUT_TEXT)


def random_tokens(model: Any, config: Mapping[str, Any], sequences: int = 1) -> Tensor:
    """Returns token ids ``[sequences, T]`` of the model, the same every time, of a length that an
    export is proven on.
    """
    vocab = model.get_input_embeddings().weight.shape[0]
    shape = (sequences, min(PROBE, proof_tokens(config)))
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(0))


def _take_optimizer(state: RunState, optimizer: Optimizer, before: set[int]) -> None:
    """Gives an optimizer the biases that were added for a repair, and checks that it is this
    model's, and between two steps.
    """
    params = state.pruned.parameters()
    if added := [p for p in params.values() if id(p) not in before]:
        optimizer.add_param_group({"params": added, "weight_decay": 0.0})
    check_state(optimizer, params)
