"""The state of a run in one place: what is not in here is not in a checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress.checkpoint import Saved
from effcompress.data import Corpus, Stream
from effcompress.distributed.rows import (
    in_first_replica,
    is_sharded,
    own,
    shard_like,
    write_back,
)
from effcompress.distributed.shards import Shards
from effcompress.distributed.world import ALONE, World
from effcompress.errors import RecipeError
from effcompress.estimate.flops import flops_per_token
from effcompress.estimate.memory import PROBE
from effcompress.estimate.schedule import total_tokens
from effcompress.measure.grams import Grams, readers
from effcompress.measure.taps import MaskGradients
from effcompress.model.cache import cache_root
from effcompress.model.load import LoadedModel
from effcompress.network.gates import LearnedGates
from effcompress.network.pruned_model import PrunedModel
from effcompress.network.shape_search import shapes_of
from effcompress.network.shapes import shape, target_of, wanted
from effcompress.precision import Precision, precision_on
from effcompress.recompute import recompute_layers
from effcompress.removal.optimizer import forget
from effcompress.removal.repairs import for_linears, need_second_moments
from effcompress.saliency.average import ScoreAverage
from effcompress.selection.budget import Budget
from effcompress.selection.candidates import candidates_of, positions
from effcompress.spec import LoraSpec, MeasureSpec, Recipe, TargetSpec
from effcompress.train import Objective, next_token, optimizer
from effcompress.train.compiled import CompiledLayers
from effcompress.train.lora import Lora, is_update, plain_name, updates
from effcompress.types import Scores, Widths

COUNTERS = (
    "step",
    "tokens",
    "groups_cut",
    "removed",
    "since_commit",
    "target_reached",
    "left_out",
    "sparse",
    "reference",
    "trained_losses",
    "dominant",
    "shape",
    "passed",
    "written",
    "seconds",
    "operations",
)
"""Counters and flags of a run; plain JSON values."""
VALUES: dict[str, Any] = {
    **{"step": 0, "tokens": 0, "groups_cut?": 0, "removed?": {}, "since_commit?": 0},
    **{"target_reached?": False, "left_out?": 0, "sparse?": [""], "seconds?": 0.0},
    **{"operations?": 0.0},
    **{"reference?": None, "trained_losses?": None, "dominant?": [""], "shape?": {}},
    **{"passed?": None, "written?": [""]},
    "stream": {"seed": 0, "read": {}, "windows": {}, "mixture?": None},
    "depth": {"layers": [0], "absent": [""]},
    "epsilons": [0.0],
    "rotated?": None,
    "selector?": {"stage": 0, "begun": {}, "state": None},
    **{"lora": [""], "log": {}, "corpus": "", "threads": 0, "bytes": 0},
}
"""What the values of a checkpoint are like (``checkpoint.require_like``); ``?``: earlier versions
did not write it.
"""


def device_of(recipe: Recipe) -> torch.device:
    """Returns the device that a recipe asks for. Raises RecipeError for a GPU that is not here."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: cuda, but torch sees no GPU here", fix="Write `device: auto`.")
    return torch.device(recipe.device)


def shards_model(recipe: Recipe, world: World) -> bool:
    """Returns whether parameters are sharded over the processes (FSDP2)."""
    return recipe.distributed.mode == "shard" and world.size > 1


@final
class RunState:
    """Model, optimizer, position in the data, and measurements."""

    def __init__(
        self,
        recipe: Recipe,
        model: LoadedModel,
        corpus: Corpus,
        world: World = ALONE,
        *,
        device: torch.device | None = None,
        probe_BT: Tensor | None = None,
    ) -> None:
        """``device``: default that of the recipe; ``probe_BT``: token ids on which commits prove
        themselves, default the beginning of a calibration sequence.
        """
        self.world, self.recipe, self.corpus = world, recipe, corpus
        self.device = device or device_of(recipe)
        self.tokenizer = model.tokenizer
        self.provenance: dict[str, str] = {}
        """What the run was begun with; a teacher must be the same."""
        self.total_tokens = total_tokens(recipe)
        """Tokens that the run trains on."""
        self.stream: Stream = corpus.stream(recipe.seed)
        prune = recipe.prune
        shard = shards_model(recipe, world)
        self.pruned = PrunedModel(
            # Rows are dealt out from the host's memory: a device need not hold all of them.
            model.module if shard else model.module.to(self.device),
            model.config,
            prune.space if prune and prune.rotate is None else (),
            target=prune.target if prune and prune.rotate is None else None,
        )
        self._layers = self.pruned.family.layers
        self.shards: Shards | None = None
        """Set when parameters are sharded (FSDP2)."""
        if shard:
            how, of = recipe.distributed, (self._layers, world.size, self.device)
            unsharded = how.accumulate == "unsharded"
            self.shards = Shards(self.module, *of, replicas=how.replicas, unsharded=unsharded)
        if recipe.loop and recipe.loop.recompute:
            recompute_layers(self.module)
        self.parent_params = self.pruned.parent.count()
        self.source_shape = shape(self.pruned.parent, self.pruned.config, {})
        of = self.pruned.parent, self.pruned.parent_sets, self.pruned.config
        target = target_of(prune, *of)
        if prune and prune.target.active_params is not None:  # until the search has found another
            target = shapes_of(prune, *of)[0].params
        self.target_params = self.parent_params if target is None else target
        self.shape: dict[str, int] = {}
        """Kind -> units left, once `prune.search` has found them."""
        self.passed: dict[str, dict[str, int]] = {}
        """Size of `export.at` that a cut has passed -> tokens and the schedule's stage then."""
        self.written: list[str] = []
        """Those of which a model has been written."""
        measure = prune.measure if prune else MeasureSpec()
        self.gates: LearnedGates | None = None
        """Until the cut, where the recipe learns masks."""
        if prune and prune.gates:
            learned = prune, self.target_params, recipe.seed, self.device
            self.gates = LearnedGates(self.pruned, *learned)
        self.average = ScoreAverage(self.pruned.ledger.sizes, measure)
        self.optimizer: Optimizer | None = None
        if recipe.loop:
            self.optimizer = optimizer(self.module, recipe.loop)
        self.step = self.tokens = self.groups_cut = self.since_commit = 0
        self.removed: dict[str, int] = {}
        self.positions = positions(self.pruned.parent, self.pruned.parent_sets)
        self.target_reached = False
        self.left_out = 0
        """Steps skipped in a row because loss or gradient was not finite."""
        self.sparse: list[str] = []
        """Weights that `sparsify` has made sparse."""
        self.zeros: dict[str, Tensor] = {}
        """Their zeros as bools, sharded as they are; only where training has to hold them."""
        self.reference: dict[str, float] = {}
        """Domain -> loss that its own is compared with, where the mixture follows losses."""
        self.trained_losses: dict[str, list[float]] = {}
        """Domain -> sum of the losses of its training sequences since the mixture changed last, and
        their number; only where it follows them.
        """
        self.dominant: list[str] = []
        """Domains whose weight the record has warned of."""
        self.seconds = 0.0
        self.operations = 0.0
        """Floating-point operations beside training steps, which no event has recorded yet."""
        if probe_BT is None:
            probe_BT = corpus.calibration(1, recipe.seed)[:, :PROBE]
        self.probe_BT = probe_BT
        self.loss_of: Callable[[nn.Module, int], Tensor] | None = None
        """Loss of a calibration sequence by its number; None: that of the next token."""
        self.source: nn.Module | None = None
        """The source model, where it was given in memory and a refit will read it."""
        self.measurements: Path | None = None
        """Folder in which runs of a comparison share what they measure on the source model."""
        self.grams: Grams | None = None
        self.taps: MaskGradients | None = None
        self._flops: tuple[int, float] | None = None
        self.stage = 0
        """Stage of the schedule, where it counts stages."""
        self.begun: Widths = {}
        """Set -> units when that stage began; empty where no stages are counted: all there were."""
        self.selector_state: Any = None
        """What the selector's `observe` returned last; plain JSON values."""
        self.alike: set[str] = set()
        """Kinds whose mini-groups saliency did not tell apart; the record says so once."""
        self.lora: Lora | None = None
        """Attached in recovery; training then changes its updates alone."""
        self.objective: Objective = next_token
        self._joined: nn.Module | None = None
        self._bf16 = False
        """Whether that wrapper gathers layers in bfloat16."""
        self.compiled = CompiledLayers(cache_root() / "compiled")
        self.mask_scores: Scores = {}
        """Saliency of masks in the current step."""
        self.watch()

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self.pruned.module

    @property
    def train_module(self) -> nn.Module:
        """The module that the training step calls: the model, or its DDP or FSDP2 wrapper."""
        return self._wrapped(bf16=self.recipe.distributed.gather == "bf16")

    def _wrapped(self, *, bf16: bool) -> nn.Module:
        if self.shards and self._joined is not None and bf16 != self._bf16:
            self.unwrap()
        if self._joined is None:
            self._bf16 = bf16
            shards = self.shards
            self._joined = shards.wrap(bf16=bf16) if shards else self.world.replicate(self.module)
        return self._joined

    @property
    def layers(self) -> list[nn.Module]:
        """The model's layers as ``train_module`` calls them; ask for ``train_module`` first."""
        held: Any = self.module.get_submodule(self._layers)
        return [*held]

    @property
    def to_call(self) -> nn.Module:
        """The module for any other pass: the model, or its wrapper where it is sharded, which then
        gathers what the weights are, not what training rounds them to.
        """
        return self._wrapped(bf16=False) if self.shards else self.module

    @property
    def calibrating(self) -> Precision:
        """What passes over calibration text for `prune` compute in."""
        prune = self.recipe.prune
        return "fp32" if prune is None else precision_on(self.device, prune.measure.precision)

    def beside(self, other: nn.Module) -> nn.Module:
        """Returns the module to call of a second model, which has the source model's class: moved
        to the device, or sharded as this one is.
        """
        if self.shards is None:
            return other.to(self.device)
        of = self._layers, self.world.size, self.device
        return Shards(other, *of, replicas=self.recipe.distributed.replicas).wrap()

    @property
    def unwrapped(self) -> nn.Module:
        """The model itself, for passes that take one layer at a time (``measure/blockwise.py``):
        without its FSDP2 wrapper, which is rebuilt on next use.
        """
        if self.shards:
            self.unwrap()
        return self.module

    def unwrap(self) -> None:
        """Drops the DDP or FSDP wrapper before shapes or trained parameters change; it is rebuilt
        on next use.
        """
        self._joined = None
        self.compiled.forget()
        if self.shards:
            self.shards.unwrap()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gathers a sharded model: inside, ``module`` of rank 0 holds all of it."""
        self.unwrap()
        with self.shards.gathered(self.world.main) if self.shards else nullcontext():
            yield

    @property
    def params(self) -> int:
        """Parameters of the model as a function: masked units do not count."""
        return self.pruned.params

    def budget(self) -> Budget:
        """Returns the budget of the model as it is: ``left`` counts what may still go."""
        axes, alive = self.pruned.parent, self.pruned.ledger.widths()
        there = candidates_of(s for s in self.pruned.parent_sets if axes.living(s.name, alive))
        return Budget(axes, there, alive, self.target_params)

    def take_shape(self, units: Mapping[str, int]) -> None:
        """Makes a shape the target."""
        target = TargetSpec(shape=dict(units))
        self.shape = dict(units)
        self.pruned.bound(target)
        size = wanted(target, self.pruned.parent, self.pruned.parent_sets)
        assert size is not None, "a shape has a size"
        self.target_params = size

    @property
    def flops_per_token(self) -> float:
        """Operations of training per token: forward and backward of the model as a function,
        without gradients of weights where low-rank updates are trained, and the teacher's forward.
        """
        if self._flops is None or self._flops[0] != self.params:
            self._flops = (self.params, self._flops_at(self.pruned.ledger.widths()))
        forward = self._flops[1] / 3
        taught = self._flops_at({}) / 3 if self.objective is not next_token else 0.0
        return (3 if self.lora is None else 2) * forward + taught

    def _flops_at(self, widths: Widths) -> float:
        pruned, length = self.pruned, self.recipe.data.sequence_length
        return flops_per_token(pruned.parent, pruned.config, widths, length)

    def attach(self, paths: Sequence[str]) -> None:
        """Attaches low-rank updates to these linear layers and trains them alone."""
        recover = self.recipe.recover
        assert recover is not None
        self.unwrap()
        self.lora = Lora(self.module, paths, recover.lora or LoraSpec())
        self.world.same(updates(self.module).values())
        if self.shards:
            self.shards.shard()
        self.optimizer = optimizer(self.module, recover)

    def merge(self) -> None:
        """Merges low-rank updates into the weights."""
        if self.lora is None:
            return
        self.unwrap()
        self.lora.merge()
        self.lora = None
        self.module.requires_grad_(True)
        assert self.recipe.loop is not None
        self.optimizer = optimizer(self.module, self.recipe.loop)

    def rotated(self) -> None:
        """Takes up the model after its stream was sliced: the target is reached, and an optimizer
        knows its parameters.
        """
        self.target_reached, self._flops = True, None
        self.target_params = self.params
        if self.recipe.loop is not None:
            self.optimizer = optimizer(self.module, self.recipe.loop)

    def watch(self, *, anew: bool = True) -> None:
        """Registers the hooks that measure in training for repairs and the criterion; removes them
        once the target is reached. ``anew``: replaces the second moments of inputs, too.
        """
        prune = self.recipe.prune
        if prune is None or prune.measure.source != "training":
            return
        model, how = (self.module, self.pruned.axes, self.pruned.sets), prune.measure
        for listener in (self.taps, self.grams if anew or self.target_reached else None):
            if listener is not None:
                listener.close()
        if self.target_reached:
            self.grams = self.taps = None
            return
        if for_linears(prune.repair) and anew:
            kept: Any = {"second": need_second_moments(prune.repair), "world": self.world}
            kept["dealt"] = self.shards is not None
            sampled = how.gram_tokens, how.gram_decay
            self.grams = Grams(self.module, readers(*model), *sampled, **kept)
        if "mask_grad" in prune.saliency.needs:
            self.taps = MaskGradients(*model)

    def snapshot(self, log_position: dict[str, int]) -> Saved:
        """Returns the whole state as JSON values and flat tensors, which are not copied.
        Collective: second moments of all processes are added up first.
        """
        if self.grams is not None:
            self.grams.share()
        # Rank 0 holds those of all from here on, so that a resumed run adds up in the same order.
        (together,) = self.world.sums([self.operations])
        self.operations = together if self.world.main else 0.0
        values: dict[str, Any] = {
            **{key: getattr(self, key) for key in COUNTERS},
            "operations": together,
            "stream": self.stream.state_dict(),
            **self.pruned.state(),
            "selector": {
                **{"stage": self.stage, "begun": dict(self.begun)},
                "state": self.selector_state,
            },
            "lora": [] if self.lora is None else self.lora.paths,
            "log": log_position,
        }
        tensors: dict[str, Tensor] = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        for name, p in self.pruned.parameters().items():
            kind = "lora" if is_update(name) else "model"
            tensors[f"{kind}/{plain_name(name)}"] = p.detach()
            if self.optimizer is not None:
                for key, value in self.optimizer.state.get(p, {}).items():
                    tensors[f"optimizer/{key}/{name}"] = value
        tensors |= {f"ledger/{k}": t for k, t in self.pruned.ledger.state_dict().items()}
        tensors |= {f"saliency/{k}": t for k, t in self.average.state_dict().items()}
        tensors |= {f"zeros/{k}": t for k, t in self.zeros.items()}
        if self.gates is not None:
            tensors |= {f"gates/{k}": t for k, t in self.gates.state_dict().items()}
        if self.grams is not None:
            tensors |= {f"inputs/{k}": t for k, t in self.grams.state_dict().items()}
        sharded = {name for name, t in tensors.items() if is_sharded(t)}
        mine = {name for name in sharded if in_first_replica(tensors[name])}
        if self.grams is not None:
            dealt = {f"inputs/{key}" for key in self.grams.dealt}
            mine, sharded = mine | dealt, sharded | dealt
        rows = {name: own(t) for name, t in tensors.items() if name in mine}
        return Saved(values, {n: t for n, t in tensors.items() if n not in sharded}, rows)

    def _restore_selector(self, values: dict[str, Any]) -> None:
        held = values.get("selector")
        if held is None:  # older checkpoints: means over layers, and at first nothing else
            older = values["influence"]
            held = {"stage": 0, "begun": {}, **older, "state": older.get("layers", older) or None}
        self.stage, self.begun = int(held["stage"]), dict(held["begun"])
        self.selector_state = held["state"]

    def _restore_gates(self, tensors: Mapping[str, Tensor]) -> None:
        if self.gates is not None and tensors:
            self.gates.load_state_dict(tensors)
        elif self.gates is not None:  # the cut lies behind
            self.gates.forward.close()
            self.gates = None

    def _restore_optimizer(self, moments: Mapping[str, Tensor]) -> None:
        if self.optimizer is None:
            return
        forget(self.optimizer, self.module)
        params = self.pruned.parameters()
        for key, value in moments.items():
            field, _, name = key.partition("/")
            p = params[name]
            same = value.shape == p.shape
            # Only the fused AdamW keeps its step count beside the parameter.
            if same or (self.recipe.loop and self.recipe.loop.fused):
                value = value.to(p.device)
            self.optimizer.state[p][field] = shard_like(value, p) if same else value

    def restore(self, saved: Saved) -> None:
        """Restores the state of ``snapshot`` bit for bit; shapes come from the checkpoint."""
        values, tensors = saved.values, saved.tensors
        for key in COUNTERS:
            setattr(self, key, values.get(key, getattr(self, key)))  # older ones lack some
        self.operations = values.get("operations", 0.0) if self.world.main else 0.0
        if self.shape:
            self.take_shape(self.shape)
        self.unwrap()
        self.stream.load_state_dict(values["stream"])
        self._restore_selector(values)
        self.pruned.restore(values, saved.part("model/"), saved.part("ledger/"))
        if values.get("rotated"):
            self.rotated()
        if values["lora"]:
            self.attach(values["lora"])
            held = updates(self.module)
            for name, value in saved.part("lora/").items():
                write_back(held[name], value)
        self._restore_optimizer(saved.part("optimizer/"))
        self.average.load_state_dict(saved.part("saliency/"))
        self._restore_gates(saved.part("gates/"))
        params = self.pruned.parameters()
        held = saved.part("zeros/").items()
        self.zeros = {k: shard_like(t.to(self.device), params[k]) for k, t in held}
        self.watch()
        if self.grams is not None:
            self.grams.load_state_dict(saved.part("inputs/"), self.device)
        torch.set_rng_state(tensors["rng/cpu"])
        if self.device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)
