"""Measures saliency and moments of the layers' inputs for a cut: from training's own passes, or
from extra passes over calibration text.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from effcompress.checkpoint import read_measurement, write_measurement
from effcompress.data import digest
from effcompress.distributed.world import ALONE
from effcompress.errors import SourceError
from effcompress.estimate.calibration import reads_in_turn
from effcompress.evaluation import perplexity
from effcompress.injectable import ABLATED, BACKWARD
from effcompress.measure.experts import ExpertStatistics, OfExperts
from effcompress.measure.grams import Grams, expert_readers, readers
from effcompress.measure.statistics import InputStatistics, LayerStatistics
from effcompress.measure.stats import TrainingStats, collect, from_training
from effcompress.measure.taps import MaskGradients, Take
from effcompress.model.cache import atomically
from effcompress.network.masked import MaskedForward
from effcompress.precision import Asked, precision_on
from effcompress.recipe import plain
from effcompress.record.events import Calibration
from effcompress.record.log import Log
from effcompress.registry import Bound, Plugin
from effcompress.removal.ledger import Ledger
from effcompress.removal.repairs import for_experts, for_linears, need_second_moments
from effcompress.runner.evaluation import software
from effcompress.runner.resources import Spent, counted, peak
from effcompress.runner.source_model import WEIGHTS
from effcompress.runner.state import RunState
from effcompress.saliency.average import in_original_order
from effcompress.saliency.inputs import score_inputs
from effcompress.saliency.score import require_finite, score, score_masks
from effcompress.selection.levels import ranked
from effcompress.spec import PruneSpec
from effcompress.types import DEPTH, Scores


@dataclass(frozen=True)
class Measured:
    """``scores`` by set, the second moments of what linear layers read (where a repair asks for
    them), and statistics of the stream (statistic -> layer or block -> value).
    """

    scores: Scores
    inputs: Grams | None = None
    of_layers: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    outputs: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Mean of what experts return, where a repair asks for it (axis -> ``[E, hidden]``)."""
    earlier: Spent | None = None
    """What it took the run that measured this, where another did."""


ALL_TOKENS = 1 << 62
"""Tokens per pass of a measurement that samples none."""


def calibration_text(
    state: RunState, sequences: int, log: Log, *, draw: int = 0, asked: Asked | None = None
) -> tuple[Tensor, Tensor | None]:
    """Returns calibration text as ``text_of``, and records which tokens it has and what passes over
    it compute in; ``asked``: the precision of the recipe's section (None: that of `prune`).
    """
    prune = state.recipe.prune
    if asked is None:
        asked = "fp32" if prune is None else prune.measure.precision
    ids_NT, positions_NT = text_of(state, sequences, draw=draw)
    flat = getattr(ids_NT, "flat", ids_NT)  # of a script's batches, which may differ in length
    count, tokens = len(ids_NT), flat.numel()
    precision = precision_on(state.device, asked)
    if asked == "auto":
        does = "multiplies" if precision == "bf16" else "does not multiply"
        log.note(f"calibration in {precision}: this device {does} bf16 natively")
    how: Any = {"step": state.step, "precision": precision}
    log.event(Calibration(sequences=count, tokens=tokens, hash=digest(flat), **how))
    return ids_NT, positions_NT


def text_of(state: RunState, sequences: int, *, draw: int = 0) -> tuple[Tensor, Tensor | None]:
    """Returns calibration text ``ids_NT`` and ``positions_NT`` (None: documents are not isolated).
    ``draw``: added to the seed; another number draws other text.
    """
    of = sequences, state.recipe.seed + draw
    return state.corpus.calibration(*of), state.corpus.calibration_positions(*of)


def calibrated(state: RunState, prune: PruneSpec, log: Log) -> Measured:
    """Measures on all tokens of the calibration text; ``scores`` are in physical order."""
    module = state.to_call  # first: hooks belong on the layers that a wrapper calls
    with closing(_Listeners(state, prune)) as listeners:
        needs = BACKWARD.intersection(prune.saliency.needs)
        if needs or listeners.contexts or ABLATED.intersection(prune.saliency.needs):
            ids_NT, positions_NT = calibration_text(state, prune.measure.sequences, log)
        else:  # a criterion of weights alone
            ids_NT, positions_NT = state.probe_BT[:0], None
        how: Any = {"tell": partial(log.progress, "calibration sequence"), "world": state.world}
        how |= {"loss_of": state.loss_of, "positions_NT": positions_NT}
        how |= {"in_turn": listeners.in_turn, "precision": state.calibrating}
        with counted(state, alike=not listeners.in_turn):
            stats = collect(module, ids_NT, needs, prune.hessian, listeners.contexts, **how)
    sets, criterion = ranked(state.pruned.sets, prune), prune.saliency
    of_layers = listeners.layers.read() if listeners.layers else {}
    if ABLATED.intersection(prune.saliency.needs):
        some = slice(prune.measure.ablation_sequences)
        text = ids_NT[some], None if positions_NT is None else positions_NT[some]
        with counted(state):
            of_layers |= {"loss_increase": loss_increases(state, *text, log)}
    if listeners.masks is not None:
        scores = listeners.world.total(listeners.found)
        require_finite(scores, criterion)
    elif criterion.plugin.reads_forward:
        of_experts = listeners.experts.read() if listeners.experts else {}
        warn_unrouted(of_experts, state.pruned.ledger, log)
        read, grams = listeners.read, listeners.grams
        with counted(state, alike=True):
            scores = score_inputs(sets, criterion, read, of_layers, of_experts, grams)
    else:
        with counted(state, alike=state.shards is None):  # else of this process's rows
            scores = score(sets, criterion, stats, prune.reduce)
    outputs = listeners.experts.means() if listeners.experts else {}
    return Measured(scores, listeners.grams, of_layers, outputs)


def calibrated_once(state: RunState, prune: PruneSpec, log: Log) -> Measured:
    """Returns ``calibrated``, or what an earlier run of the comparison found on the same model and
    text by the same code. Time, memory and operations of that count for this run as for that one.

    A file that cannot be read or written costs a measurement, never a run.
    """
    of = _measurement(state, prune)
    if state.measurements is None or of is None:
        return calibrated(state, prune, log)
    name = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
    path = state.measurements / f"{name[:32]}.safetensors"
    if (found := _known(state, prune, path)) is not None:
        calibration_text(state, prune.measure.sequences, log)
        log.note("saliency is what an earlier run of this comparison measured")
        return found
    started, before = time.monotonic(), state.operations
    found = calibrated(state, prune, log)
    _keep(state, found, path, time.monotonic() - started, state.operations - before)
    return found


_LARGEST = 2**26
"""Bytes of scores and means that are kept; matrices of second moments are not."""


def _measurement(state: RunState, prune: PruneSpec) -> dict[str, object] | None:
    """Returns all that a measurement depends on; None where it is not one of the source model by
    one process alone, reads no text, or needs what is not kept: matrices, statistics of experts,
    a script's loss.
    """
    plugin, repairs = prune.saliency.plugin, prune.repair
    assert prune.selector is not None, "recipe.load fills in the default selector"
    of_layers = {**plugin.of_layers, **prune.selector.plugin.of_layers}
    asked = bool((BACKWARD | ABLATED).intersection(plugin.needs))
    reads_text = asked or plugin.reads_inputs or bool(of_layers) or bool(for_linears(repairs))
    untouched = state.step == state.tokens == 0 and state.params == state.parent_params
    alone = state.world.size == 1 and state.loss_of is None and WEIGHTS in state.provenance
    matrices = plugin.cumulative or need_second_moments(repairs)
    experts = plugin.reads_experts or bool(for_experts(repairs))
    if not (reads_text and untouched and alone) or matrices or experts:
        return None
    statistics = [*plugin.statistics.values(), *of_layers.values()]
    hessian = [] if prune.hessian is None else [prune.hessian.plugin]
    ids_NT, positions_NT = text_of(state, prune.measure.sequences)
    return {
        "model": {k: v for k, v in state.provenance.items() if k.startswith("model")},
        "config": plain(state.pruned.config),
        "dtype": str(next(state.module.parameters()).dtype),
        "device": str(state.device),
        "threads": torch.get_num_threads(),
        "precision": state.calibrating,
        "tokens": [digest(t) for t in (ids_NT, positions_NT) if t is not None],
        "sets": {s.name: [s.kind, s.size] for s in ranked(state.pruned.sets, prune)},
        "spaces": plain(prune.space),
        "criterion": plain(prune.saliency),
        "hessian": plain(prune.hessian),
        "reduce": plain(prune.reduce),
        "ablation": prune.measure.ablation_sequences,
        "statistics": sorted({s.name for s in statistics}),
        "means": bool(for_linears(repairs)),
        "plugins": _files([plugin, *statistics, *hessian]),
        **software(),
    }


def _files(plugins: list[Plugin]) -> dict[str, str]:
    """Returns a hash of each file that the plugins are in."""
    paths = sorted({Path(plugin.where.rpartition(":")[0]) for plugin in plugins})
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


_SCORE, _MEAN = "score/", "inputs/"


def _keep(state: RunState, found: Measured, path: Path, seconds: float, flops: float) -> None:
    tensors = {f"{_SCORE}{name}": value for name, value in found.scores.items()}
    if found.inputs is not None:
        moments = found.inputs.state_dict().items()
        tensors |= {f"{_MEAN}{name}": value for name, value in moments}
    if sum(tensor.nbytes for tensor in tensors.values()) > _LARGEST:
        return
    took = {"seconds": seconds, "memory": peak(state.device), "flops": flops}
    with suppress(OSError, SourceError), atomically(path) as work:
        write_measurement(work, tensors, {"of_layers": found.of_layers, **took})


def _known(state: RunState, prune: PruneSpec, path: Path) -> Measured | None:
    if (read := read_measurement(path)) is None:
        return None
    tensors, values = read

    def under(prefix: str) -> dict[str, Tensor]:
        inside = ((k, v.to(state.device)) for k, v in tensors.items() if k.startswith(prefix))
        return {key.removeprefix(prefix): value for key, value in inside}

    with closing(_Listeners(state, prune)) as listeners:
        if listeners.grams is not None:
            listeners.grams.load_state_dict(under(_MEAN), state.device)
    state.operations += values["flops"]
    earlier = Spent(values["seconds"], values["memory"])
    how: Mapping[str, Any] = {"of_layers": values["of_layers"], "earlier": earlier}
    return Measured(under(_SCORE), listeners.grams, **how)


def loss_increases(
    state: RunState, ids_NT: Tensor, positions_NT: Tensor | None, log: Log
) -> dict[str, float]:
    """Returns layer or block -> by how many nats per token the loss on this text rises without it;
    no weight is changed. The processes take sequences in turn.
    """
    names = [s.name for s in state.pruned.sets if s.kind in DEPTH]
    number, tell = count(1), partial(log.progress, "loss without a layer or block")
    forward = MaskedForward(state.pruned, names)

    def loss() -> float:
        given: Any = {"world": state.world, "positions_NT": positions_NT}
        given["precision"] = state.calibrating
        tell(next(number), len(names) + 1)
        return perplexity(state.to_call, ids_NT, 1, **given).loss

    try:
        whole = loss()
        found: dict[str, float] = {}
        for name in names:
            with forward.using({name: torch.zeros(1, device=state.device)}):
                found[name] = loss() - whole
    finally:
        forward.close()
    return found


def warn_unrouted(of_experts: OfExperts, ledger: Ledger, log: Log) -> None:
    """Warns of living experts that no token of the calibration text was sent to: their statistics
    are 0, so that most criteria take them first.
    """
    idle = [
        (name, unit)
        for name, found in of_experts.items()
        for unit in ((found["routed"] == 0) & ledger.alive[name]).nonzero().flatten().tolist()
    ]
    if idle:
        name, position = idle[0]
        first = int(ledger.original[name][position])
        log.warn(
            f"no token of the calibration text was sent to {len(idle)} of the experts (the first: "
            f"number {first} of {name}), so nothing is known of them and their saliency is 0; "
            "raise prune.measure.sequences"
        )


@final
class _Listeners:
    """The hooks of one calibration, and the processes among which sequences are divided."""

    def __init__(self, state: RunState, prune: PruneSpec) -> None:
        module, axes, sets = state.module, state.pruned.axes, ranked(state.pruned.sets, prune)
        assert prune.selector is not None, "recipe.load fills in the default selector"
        plugin = prune.saliency.plugin
        of_layers = {**plugin.of_layers, **prune.selector.plugin.of_layers}
        self.found: Scores = {}
        self.in_turn = reads_in_turn(prune, state.world.size, sharded=state.shards is not None)
        self.world = state.world if self.in_turn else ALONE
        self.grams = self.masks = self.layers = self.experts = None
        self.contexts: list[AbstractContextManager[None]] = []
        params = readers(module, axes, sets)
        experts = {} if plugin.cumulative else expert_readers(axes, sets)
        of = module, params, plugin.needs, plugin.of_inputs
        self.read = InputStatistics(*of, experts if plugin.reads_inputs else {})
        if plugin.reads_inputs:
            self.contexts.append(self.read.listening())
        if for_linears(prune.repair) or plugin.cumulative:
            second = plugin.cumulative or need_second_moments(prune.repair)
            how: Any = {"second": second, "world": self.world}
            self.grams = Grams(module, params, tokens=ALL_TOKENS, decay=1.0, **how)
            self.contexts.append(self.grams.listening())
        if "mask_grad" in plugin.needs:
            self.masks = MaskGradients(module, axes, sets)
            self.contexts.append(self.masks.handing_to(adds(self.found, prune.saliency)))
        if of_layers:
            self.layers = LayerStatistics(module, axes, of_layers, self.world)
            self.contexts.append(self.layers.listening())
        means = bool(for_experts(prune.repair))
        if plugin.reads_experts or means:
            names = [s.name for s in sets if s.kind == "expert"]
            them = names, plugin.of_experts, self.world
            self.experts = ExpertStatistics(module, axes, *them, means=means)
            self.contexts.append(self.experts.listening())

    def close(self) -> None:
        """Removes the hooks."""
        for listener in (self.read, self.grams, self.masks, self.layers, self.experts):
            if listener is not None:
                listener.close()


def adds(scores: Scores, criterion: Bound) -> Take:
    """Returns a function that scores a micro-batch's mask gradients and adds them to ``scores``."""

    def take(name: str, mask_grad_TG: Tensor) -> None:
        score_G = score_masks(criterion, mask_grad_TG)
        scores[name] = scores[name] + score_G if name in scores else score_G

    return take


def averages(prune: PruneSpec) -> bool:
    """Whether saliency is averaged over steps: it needs gradients, and training's are used. That of
    weights and the optimizer's moments alone is computed when a cut is due.
    """
    needs = from_training(prune.saliency.needs, prune.hessian)
    return prune.measure.source == "training" and bool({"grad", "mask_grad"} & needs)


def ready(state: RunState, prune: PruneSpec) -> bool:
    """Whether criterion and repairs have what they need from training: an averaged saliency, second
    moments of inputs, moments of the optimizer.
    """
    if prune.measure.source != "training":
        return True
    observed = state.grams is None or bool(state.grams.means)
    scored = not averages(prune) or state.average.weight > 0.0
    return observed and scored and _has_moments(state, prune)


def _has_moments(state: RunState, prune: PruneSpec) -> bool:
    needed = "second_moment" in from_training(prune.saliency.needs, prune.hessian)
    return not needed or (state.optimizer is not None and bool(state.optimizer.state))


@contextmanager
def listening(state: RunState) -> Iterator[None]:
    """Until the target is reached: measures the inputs of layers for repairs and mask gradients for
    the criterion, in the passes inside.
    """
    state.mask_scores = {}
    with ExitStack() as stack:
        if not state.target_reached:
            if state.grams is not None:
                stack.enter_context(state.grams.listening())
            if state.taps is not None and state.recipe.prune is not None:
                take = adds(state.mask_scores, state.recipe.prune.saliency)
                stack.enter_context(state.taps.handing_to(take))
        yield


def observe(state: RunState, prune: PruneSpec) -> None:
    """Adds the saliency of this step's gradients to the mean, without an extra pass."""
    if state.target_reached or not averages(prune) or not _has_moments(state, prune):
        return
    if state.taps is not None:
        scores = state.world.total(state.mask_scores)
        require_finite(scores, prune.saliency)
    else:
        scores = _scores(state, prune)
    state.average.update(scores, state.pruned.ledger.original)


def _scores(state: RunState, prune: PruneSpec) -> Scores:
    """Scores the weights by this step's gradients and the optimizer's moments."""
    needs, how = prune.saliency.needs, (prune.hessian, state.optimizer, state.world)
    stats = TrainingStats(state.module, needs, *how)
    return score(state.pruned.sets, prune.saliency, stats, prune.reduce)


def measured(state: RunState, prune: PruneSpec, log: Log) -> Measured:
    """Returns saliency in original order, and moments: averaged over training, or measured now."""
    ledger = state.pruned.ledger
    if averages(prune):
        return Measured(ledger.original_order(state.average.read()), state.grams)
    if state.gates is not None:
        learned = state.gates.scores(prune.saliency)
        # Kinds that lose nothing have no gates.
        now = Measured({s.name: torch.zeros(s.size) for s in state.pruned.sets} | learned)
    elif prune.measure.source == "training":
        now = Measured(_scores(state, prune), state.grams)
    else:
        now = calibrated_once(state, prune, log)
    scores = in_original_order(now.scores, ledger.original, ledger.sizes)
    return replace(now, scores=ledger.original_order(scores))
