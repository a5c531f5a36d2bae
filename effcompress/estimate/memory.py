"""Computes the peak memory of a run, by phase and by what holds it, from a recipe alone.

Counted are bytes that the run allocates; Python, torch and the tokenizer come on top (see
``docs/scale.md``, which also has measurements). For each phase the moment of its peak:

- loading: the weights, and the memory-mapped file that they are read from; where they are sharded,
  this process's rows and one whole parameter;
- evaluation: logits of one batch in fp32, their copy and their log-softmax; no gradients;
- backward: the larger of two moments. At its beginning: all activations that the forward kept and
  the gradients of earlier micro-batches. At its end: all gradients, those of a tied embedding two
  or three times;
- update: AdamW with ``foreach`` materialises the roots of all second moments at once, fused none;
- cut: statistics, repairs, and the commit's new tensor and logits;
- sizes: while a model of ``export.at`` is made, what the run holds, and a second run beside it;
- checkpoint: the file is read back through a memory map, whose pages count as resident;
- export: tensors are written one after the other, in a padded form the larger copy of one. Where
  they are sharded, each is gathered by the process that writes it, and the proof's forward pass
  gathers a layer at a time; a gguf file is made of the whole model on rank 0.

Saliency is computed from weights and gradients in chunks of rows, so it costs one number per
mini-group and the index tensors. DDP holds every gradient a second time, in its buckets. Where
parameters are sharded (FSDP2), two layers and everything outside the layers are gathered at a time;
Gram matrices of training are those of the process that holds the most bytes of them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from effcompress.distributed.deal import Deal
from effcompress.estimate.activations import LOGITS, Activations, activations, copied
from effcompress.estimate.feasibility import SizedModel
from effcompress.estimate.flops import multiplied
from effcompress.estimate.schedule import loops_of
from effcompress.injectable import BACKWARD
from effcompress.registry import Bound
from effcompress.removal.repairs import for_experts, for_linears, need_second_moments
from effcompress.spec import LoopSpec, LoraSpec, PruneSpec, Recipe
from effcompress.types import AxisMap, GroupSet, Widths, axis_layer

FP32, FP64 = 4, 8
PROBE = 48
"""Length of the sequences on which a commit proves that the function stayed the same."""
TESTED = 8
"""Tokens of these that a commit is tested on where every token meets all weights: in models without
experts, to each of which a router sends only a few.
"""


@dataclass(frozen=True)
class Held:
    """Bytes of one process at one moment, by what they hold. ``teacher``: its weights; ``copies``:
    weights cast to the compute dtype; ``gathered``: unsharded parameters; ``saving``: the host copy
    that is written in the background; ``working``: temporaries (roots of moments, memory maps,
    solves).
    """

    weights: float = 0.0
    teacher: float = 0.0
    gradients: float = 0.0
    moments: float = 0.0
    copies: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    grams: float = 0.0
    saliency: float = 0.0
    buckets: float = 0.0
    gathered: float = 0.0
    saving: float = 0.0
    working: float = 0.0

    @property
    def total(self) -> float:
        """Bytes of all parts together."""
        return sum(vars(self).values())

    def beside(self, other: "Held") -> "Held":
        """Returns the bytes of both together, part by part."""
        return Held(**{part: value + vars(other)[part] for part, value in vars(self).items()})


@dataclass(frozen=True)
class Passed:
    """A size of ``export.at``: the widths of the run in front of the cut that passes it, and those
    of the model of that size.
    """

    before: Widths
    there: Widths


def memory(
    found: SizedModel,
    recipe: Recipe,
    final: Widths,
    processes: int = 1,
    shards: int = 1,
    sizes: Sequence[Passed] = (),
) -> dict[str, Held]:
    """Returns phase -> bytes of one of ``processes``; ``final`` are the widths at the end of the
    run.

    ``shards``: over how many processes weights (of a teacher, too), gradients and moments are
    sharded (1: replicated). ``sizes``: of which the run writes a model on its way.
    """
    need = _Need(found, recipe, {**found.axes.widths, **final}, processes, shards)
    phases = dict(need.phases())
    if sizes:
        beside = (need.beside(passed) for passed in sizes)
        phases["sizes"] = max(beside, key=lambda held: held.total)
    return phases


def taught(recipe: Recipe) -> int:
    """Returns the bytes of one weight of the teacher; 0 where a recipe has none
    (``runner/recovery.py``).
    """
    taught = recipe.teacher
    return 0 if taught is None else {"bf16": 2, "fp32": 4}[taught.teacher]


def trained(found: SizedModel, recipe: Recipe, widths: Widths) -> int:
    """Returns the number of parameters in the optimizer: all, or those of the LoRA updates."""
    factors = factors_of(found, recipe, widths)
    return sum(rows * columns for rows, columns in factors) or found.axes.count(widths)


def factors_of(found: SizedModel, recipe: Recipe, widths: Widths) -> list[tuple[int, int]]:
    """Returns the shapes of the LoRA updates of every linear layer within the layers, ``A`` [rank,
    inputs] and ``B`` [outputs, rank]; none where all weights are trained.
    """
    recover, axes = recipe.recover, found.axes
    if recover is None or recover.method != "lora":
        return []
    rank, wide = (recover.lora or LoraSpec()).rank, {**axes.widths, **widths}
    shapes: list[tuple[int, int]] = []
    for param in multiplied(axes):
        if len(axes.shapes[param]) == 2 and axes.gates[param] and axes.numel(param, wide):
            inputs = axes.family.inputs
            read, written = (axes.length(param, dim, wide) for dim in (inputs, 1 - inputs))
            shapes += [(rank, read), (written, rank)]
    return shapes


@dataclass(frozen=True)
class _Need:
    found: SizedModel
    recipe: Recipe
    final: Widths
    processes: int
    shards: int

    def phases(self) -> Iterator[tuple[str, Held]]:
        """Yields the phases in the order of a run."""
        recipe, prune, loop = self.recipe, self.recipe.prune, self.recipe.loop
        axes = self.found.axes
        once = prune is not None and recipe.train is None
        there = self.final if recipe.recover is not None else axes.widths
        yield "loading", self._loading()
        yield "evaluation", self._evaluation()
        if prune is not None and once:
            yield "cut", self._event(prune, axes.widths)
        if loop is not None:
            yield "backward", self._backward(loop, there)
            yield "update", self._update(loop, there)
        if prune is not None and not once:
            yield "cut", self._event(prune, axes.widths)
        for continued in loops_of(recipe)[1:]:
            yield "continued", self._backward(continued, self.final)
        kept = self._standing(there, training=True)
        again = kept.total - kept.teacher - kept.buckets - kept.saving
        yield "checkpoint", replace(kept, working=again)
        last = self._standing(self.final)
        if self.shards > 1:
            at_a_time = max(self._whole(self.final), self._largest(self.final))
            if recipe.export.gguf is not None:
                at_a_time = last.weights * self.shards
            last = replace(last, gathered=at_a_time)
        yield "export", replace(last, working=self._padding())

    def beside(self, passed: Passed) -> Held:
        """Returns the peak while a model of a size is made: what the run holds then, and the most
        that a run straight to that size holds from there on (``runner/branches.py``).
        """
        recipe, loop = self.recipe, self.recipe.loop
        run = self._standing(passed.before, training=True)
        there = {**passed.before, **passed.there}
        own = replace(self, final=there)
        # Behind its cut a size measures nothing any more.
        left = own._standing(there, training=bool(recipe.export.continued))
        left = replace(left, grams=0.0)
        held = [own._loading(), replace(left, working=left.total - left.teacher - left.buckets)]
        if recipe.prune is not None:
            held.append(own._event(recipe.prune, passed.before))
        if loop is not None and recipe.export.continued:
            steps = own._backward(loop, there), own._update(loop, there)
            held += (replace(step, grams=0.0) for step in steps)
        return run.beside(max(held, key=lambda one: one.total))

    def _loading(self) -> Held:
        """Returns the weights and the mapped pages; of several shards, the rows of one process and
        a parameter that is read, drawn or hashed whole.
        """
        held = Held(weights=FP32 * self.found.start / self.shards, working=self._file())
        if self.shards == 1:
            return held
        return replace(held, gathered=self._largest(self.found.axes.widths))

    def _largest(self, wide: Widths) -> float:
        """Returns the bytes of the largest parameter."""
        axes, full = self.found.axes, {**self.found.axes.widths, **wide}
        return FP32 * max(axes.numel(p, full) for p in axes.shapes)

    def _file(self) -> float:
        """Returns the bytes of the memory-mapped weights, in the dtype that the file stores. A
        process of several reads its own rows where that is fp32, else all, which are converted.
        """
        if self.recipe.model.random:
            return 0.0
        config = self.found.config
        stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
        return 2 * self.found.start if "16" in stored else 4 * self.found.start / self.shards

    def _evaluation(self) -> Held:
        """Returns the larger of the evaluations before (dense, no moments) and after (smaller, and
        beside the source model where predictions are compared).
        """
        spec, axes = self.recipe.evaluate, self.found.axes
        tokens = spec.batch_size * self.recipe.data.sequence_length
        logits = LOGITS * axes.widths["vocab"] * tokens
        dense, left = Held(weights=FP32 * axes.count() / self.shards), self._standing(self.final)
        if spec.agreement:  # two models, and the log-probabilities of both
            left = replace(left, weights=left.weights + dense.weights)
            gathered = max(self._whole(axes.widths), self._whole(self.final))
            return replace(left, logits=2 * logits, gathered=gathered)
        return max(
            replace(dense, logits=logits, gathered=self._whole(axes.widths)),
            replace(left, logits=logits, gathered=self._whole(self.final)),
            key=lambda held: held.total,
        )

    def _standing(self, wide: Widths, *, training: bool = False) -> Held:
        """Returns what lasts between steps: weights, moments, buckets, running statistics."""
        prune, weights = self.recipe.prune, FP32 * self.found.axes.count(wide) / self.shards
        learned = FP32 * trained(self.found, self.recipe, wide) / self.shards
        loop = self.recipe.loop is not None
        teacher = taught(self.recipe) * self.found.axes.count() / self.shards
        rides = training and prune is not None and prune.measure.source == "training"
        held = Held(
            weights=weights,
            teacher=teacher if training else 0.0,
            moments=2 * learned if loop else 0.0,
            buckets=learned if loop and self.processes > 1 and self.shards == 1 else 0.0,
            grams=self._grams(wide) if rides else 0.0,
            saliency=self._saliency() if prune is not None else 0.0,
        )
        aside = held.total - held.teacher - held.buckets if self.recipe.save.background else 0.0
        return replace(held, saving=aside if training and loop else 0.0)

    def _whole(self, wide: Widths, *, half: bool = False) -> float:
        """Returns the bytes that are unsharded at a time in a forward pass; ``half``: layers are
        gathered in bf16.
        """
        outside, layers = at_once(self.found.axes, wide)
        each = 2 if half else FP32
        return FP32 * outside + each * layers if self.shards > 1 else 0.0

    def _grams(self, wide: Widths) -> float:
        prune = self.recipe.prune
        whole = prune is not None and prune.saliency.plugin.cumulative
        if prune is None or not (for_linears(prune.repair) or whole):
            return 0.0
        second = whole or need_second_moments(prune.repair)
        listed = grams_of(self.found.axes, self.found.sets, wide)
        means = sum(FP32 * g.inputs for g in listed)
        if not (second and self._dealt):
            return means + second * sum(FP32 * g.inputs**2 for g in listed)
        holders, held = deal_of(self.found, self.processes), Counter[int]()
        for g in listed:
            held[holders[g.weight]] += FP32 * g.inputs**2
        return means + max(held.values(), default=0)

    @property
    def _dealt(self) -> bool:
        """Whether Gram matrices are dealt out over the processes."""
        prune = self.recipe.prune
        return self.shards > 1 and prune is not None and prune.measure.source == "training"

    def _on_the_way(self, wide: Widths, tokens: int) -> float:
        """Returns the bytes of sampled tokens that wait for their holders (at most those of the
        largest matrix), and of those that arrive at one at a time.
        """
        prune = self.recipe.prune
        if prune is None or not self._dealt or not need_second_moments(prune.repair):
            return 0.0
        inputs = [g.inputs for g in grams_of(self.found.axes, self.found.sets, wide)]
        taken = sampled(tokens, prune.measure.gram_tokens)
        waiting = sum(min(taken, i) * i for i in inputs)
        largest = max((i**2 for i in inputs), default=0)
        arriving = max((min(taken, i, max(1, i // self.processes)) * i for i in inputs), default=0)
        return FP32 * (min(waiting, largest) + self.processes * arriving)

    def _saliency(self) -> float:
        """Returns the running mean, the scores of a step and of a window, the index tensors."""
        prune = self.recipe.prune
        assert prune is not None
        window = prune.measure.window if prune.measure.average == "window" else 0
        sets = self.found.sets
        return FP32 * sum(s.size for s in sets) * (2 + window) + index_bytes(sets)

    def _kept(self, wide: Widths, *, bf16: bool, recompute: bool = False) -> Activations:
        of = (self.found.axes, self.found.config, wide, self.recipe.data.sequence_length)
        return activations(*of, bf16=bf16, recompute=recompute)

    def _backward(self, loop: LoopSpec, wide: Widths) -> Held:
        axes, bf16 = self.found.axes, loop.precision == "bf16"
        own = max(1, loop.batch_size // self.processes)
        rows = min(loop.micro_batch_size or own, own)
        tokens = rows * self.recipe.data.sequence_length
        kept = self._kept(wide, bf16=bf16, recompute=loop.recompute)
        standing = self._standing(wide, training=True)
        gradients = FP32 * trained(self.found, self.recipe, wide) / self.shards
        brief = self.shards > 1 and loop.recompute  # resharded after each layer, casts included
        how, several = self.recipe.distributed, rows < own
        half = self.shards > 1 and how.gather == "bf16"  # no casts: what is gathered is read as is
        casts = copied(axes, wide, outside=half)
        whole, gathered = self._whole(wide), self._whole(wide, half=half)
        standing = replace(standing, grams=standing.grams + self._on_the_way(wide, tokens))
        if several and self.shards > 1 and how.accumulate == "unsharded":
            gradients *= self.shards
        begins = replace(
            standing,
            gradients=gradients if several else 0.0,
            copies=0.0 if brief or not bf16 else 2 * casts,
            activations=tokens * (kept.layers + self._of_masks(wide, 2 if bf16 else 4)),
            logits=tokens * kept.logits,
            gathered=gathered,
        )
        ends = replace(
            standing,
            gradients=gradients,
            working=self._embedding(wide, bf16, rows < own) * self.shards,
            gathered=gathered + whole,  # a gathered layer's gradients are unsharded, too
        )
        asked = replace(begins, activations=0.0, logits=0.0, copies=0.0)
        if self.shards > 1:  # the teacher's layers are unsharded in its forward, before the model's
            unsharded = taught(self.recipe) * sum(at_once(axes, axes.widths))
            asked = replace(asked, gathered=unsharded)
        return max(begins, ends, asked, key=lambda held: held.total)

    def _of_masks(self, wide: Widths, value: int) -> float:
        """Returns bytes per token that mask gradients add. Masks on the residual stream keep what
        every block adds to it and two running sums; masks on a layer's input keep nothing more.
        """
        prune, axes = self.recipe.prune, self.found.axes
        if prune is None or prune.rotate or "mask_grad" not in prune.saliency.needs:
            return 0.0
        if not any(s.kind == "hidden" for s in self.found.sets):
            return 0.0
        blocks = 1 + 2 * len(axes.depth.layers)
        return {**axes.widths, **wide}["hidden"] * (blocks * value + 2 * FP32)

    def _embedding(self, wide: Widths, bf16: bool, carried: bool) -> float:
        """Returns the extra gradients of a tied embedding: those of its two uses exist beside their
        sum, and once more when they are added to those of earlier micro-batches (``carried``).
        """
        axes, full = self.found.axes, {**self.found.axes.widths, **wide}
        at_vocab = [p for p in axes.shapes if "vocab" in str(axes.by_param[p])]
        matrices = [p for p in at_vocab if len(axes.shapes[p]) == 2]
        times = (1 if bf16 else 2) * (len(matrices) == 1) + carried
        return FP32 * axes.numel(matrices[0], full) * times / self.shards

    def _update(self, loop: LoopSpec, wide: Widths) -> Held:
        learned = FP32 * trained(self.found, self.recipe, wide) / self.shards
        standing = self._standing(wide, training=True)
        return replace(standing, gradients=learned, working=0.0 if loop.fused else learned)

    def _event(self, prune: PruneSpec, wide: Widths) -> Held:
        """Returns the peak of a cut of a model of these widths: measure, then repair, then commit,
        never two at once.
        """
        axes = self.found.axes
        # A teacher is loaded behind the cut.
        standing = replace(self._standing(wide, training=True), teacher=0.0)
        if self.recipe.train is None:
            standing = replace(standing, moments=0.0, buckets=0.0)
        if prune.rotate is not None:
            standing = replace(standing, gathered=self._turn(), working=self._rotation(prune))
            return replace(standing, moments=0.0, buckets=0.0)
        if prune.measure.source == "calibration":
            standing = replace(standing, grams=self._grams(wide))
        # A second model of the source model's shape, to time beside.
        again = FP32 * axes.count() if prune.target.timed else 0.0
        working = max(again, self._solves(prune, wide), self._commit(wide))
        held = [replace(standing, gathered=self._whole(wide), working=working)]
        if prune.refit is not None:
            # Before the target is reached, Gram matrices stay.
            beside = standing if prune.refit_at == "commits" else replace(standing, grams=0.0)
            working = self._refitted(prune, prune.refit)
            held.append(replace(beside, working=working, gathered=self._by_layer()))
            if self.shards > 1:  # the source model is read by rows once more
                again = self._loading()
                read = {"working": again.weights + again.working, "gathered": again.gathered}
                held.append(replace(beside, **read))
        if prune.measure.source == "calibration":
            asked = prune.measure.precision  # auto: whichever takes more
            for bf16 in {"fp32": (False,), "bf16": (True,), "auto": (False, True)}[asked]:
                held += self._calibrated(prune, standing, wide, bf16=bf16)
        if prune.search is not None:
            held.append(self._tried(standing))
        return max(held, key=lambda one: one.total)

    def _tried(self, standing: Held) -> Held:
        """Returns a forward pass of a masked shape, beside copies of weights and Gram matrices."""
        copied = FP32 * self.found.axes.count() + standing.grams
        kept = self._kept(self.found.axes.widths, bf16=False)
        logits = self.recipe.data.sequence_length * kept.logits
        return replace(standing, working=copied, logits=logits)

    def _rotation(self, prune: PruneSpec) -> float:
        """Returns the bytes beside the weights while the stream is rotated: the stream of every
        calibration sequence twice in fp32, and in fp64 the second moment with its eigenvectors, the
        solver's copies and three bases, and the weights of one layer twice. With a refit, the
        source model's stream and the moments of the residual addition, too.
        """
        axes, refit = self.found.axes, prune.refit
        outer, layers = axes.widths["outer"], max(1, len(axes.depth.layers))
        sequences, times, fit = prune.measure.sequences, 2, 0.0
        if refit is not None:
            sequences, times = max(sequences, prune.measure.refit_sequences), 3
            fit = _fit_bytes(refit, axes.widths["hidden"] + outer, outer)
        tokens = sequences * self.recipe.data.sequence_length
        streams = times * FP32 * tokens * outer / self.processes
        return streams + fit + 2 * FP32 * (8 * outer**2 + 2 * axes.count() / layers)

    def _refitted(self, prune: PruneSpec, refit: Bound) -> float:
        """Returns the bytes beside the pruned model while it is refitted: the source model, in fp32
        both models' streams of all sequences and what the projections of a layer read (where that
        is less than this process's rows of the pruned model), and the largest fit. Refits at
        commits are of wider models; the first is nearly as wide as the source.
        """
        axes = self.found.axes
        final = axes.widths if prune.refit_at == "commits" else self.final
        tokens = prune.measure.refit_sequences * self.recipe.data.sequence_length / self.processes
        wide = axes.widths["hidden"] + final["hidden"]
        fits, kept = [0.0], Counter[int | None]()
        for layer, inputs, outputs in projections(axes, final):
            fits.append(_fit_bytes(refit, inputs, outputs))
            if tokens * inputs <= axes.count(final) / self.shards:
                kept[layer] += inputs
        read = max(kept.values(), default=0)
        return FP32 * (axes.count() / self.shards + tokens * (wide + read)) + max(fits)

    def _by_layer(self) -> float:
        """Returns the bytes that are unsharded while two models are taken layer by layer: a layer
        of each and, when the source model begins, everything outside its layers.
        """
        if self.shards == 1:
            return 0.0
        outside, large = layer_sizes(self.found.axes, self.found.axes.widths)
        _, small = layer_sizes(self.found.axes, self.final)
        return FP32 * (outside + max(large, default=0) + max(small, default=0))

    def _turn(self) -> float:
        """Returns the bytes that are unsharded while the stream is rotated: a layer of the source
        model, everything outside its layers, and what the sliced one has beside that (its output
        matrix, where the source's is the embedding).
        """
        if self.shards == 1 or self.found.source is None:
            return 0.0
        source, axes = self.found.source.axes, self.found.axes
        outside, layers = layer_sizes(source, source.widths)
        more = {p for p in axes.shapes if not axes.gates[p]}.difference(source.shapes)
        outside += sum(axes.numel(p, axes.widths) for p in more)
        return FP32 * (outside + max(layers, default=0))

    def _calibrated(
        self, prune: PruneSpec, standing: Held, wide: Widths, *, bf16: bool
    ) -> tuple[Held, Held]:
        """Returns the backward of one calibration sequence: when it begins, when it ends. The means
        over the sequences are there all the time, and so are casts of the weights.
        """
        tokens, needs = self.recipe.data.sequence_length, set(prune.saliency.needs)
        axes = self.found.axes
        kept = self._kept(wide, bf16=bf16)
        standing = replace(standing, copies=2 * copied(axes, wide) if bf16 else 0.0)
        means = FP32 * axes.count(wide) * len(needs & {"grad", "hess"}) / self.shards
        whole, experts = self._whole(wide), self._of_experts(prune, wide)
        begins = replace(standing, gradients=means, logits=tokens * kept.logits, gathered=whole)
        begins = replace(begins, working=experts)
        if not BACKWARD & needs:
            return begins, replace(standing, gradients=means)
        tied = self._embedding(wide, bf16, False) * self.shards
        own = FP32 * axes.count(wide) / self.shards
        ends = replace(standing, gradients=means + own, working=tied + experts, gathered=2 * whole)
        return replace(begins, activations=tokens * kept.layers), ends

    def _of_experts(self, prune: PruneSpec, wide: Widths) -> float:
        """Returns the bytes of calling experts of a layer once more (``measure/routes.py``): what
        one of them returns, in fp32 and fp64; the means of all, where a repair takes them; and,
        where channels are measured, another down projection with the channels of one expert.
        """
        axes, plugin = self.found.axes, prune.saliency.plugin
        full, tokens = {**axes.widths, **wide}, self.recipe.data.sequence_length
        experts = {s.name for s in self.found.sets if s.kind == "expert"}
        apart, means = "mask_grad" in prune.saliency.needs, bool(for_experts(prune.repair))
        returned = (FP32 + FP64) * tokens * full["hidden"]
        held = returned if experts and (apart or plugin.reads_experts or means) else 0.0
        held += means * FP64 * full["hidden"] * sum(full[name] for name in experts)
        if not apart and not plugin.reads_inputs:
            return held
        read = [
            FP32 * (axes.numel(side.param, full) + tokens * full[s.name])
            for s in self.found.sets
            for side in s.sides
            if s.kind == "expert_ffn" and side.dim == axes.family.expert_inputs
            if axes.stacked(side.param)
        ]
        return max([held, *read])

    def _solves(self, prune: PruneSpec, wide: Widths) -> float:
        """Returns the temporaries of a repair with second moments, the largest over all inputs: 20
        bytes per ``I^2`` (the mean in fp32, the damped matrix and its factor in fp64), and 32 per
        ``I O`` (the stacked weight in fp32 and fp64, its change and the result).
        """
        if not need_second_moments(prune.repair) and not prune.saliency.plugin.cumulative:
            return 0.0
        listed = grams_of(self.found.axes, self.found.sets, wide)
        return max((20 * g.inputs**2 + 32 * g.inputs * g.outputs for g in listed), default=0.0)

    def _commit(self, wide: Widths) -> float:
        """Returns the larger of three sets of logits (before, after, difference) and one tensor."""
        axes = self.found.axes
        tokens = PROBE if axes.axes("expert") else TESTED
        return max(FP32 * 3 * tokens * axes.widths["vocab"], self._largest(wide))

    def _padding(self) -> float:
        """Returns the copy of one tensor of a padded form, in which every layer is as wide as the
        widest.
        """
        form, axes, sets = self.recipe.export.form, self.found.axes, self.found.sets
        lockstep = all(s.scope == "lockstep" for s in sets)
        if form in ("uniform", "exact") or (form == "auto" and lockstep):
            return 0.0
        widest = dict(self.final)
        for names in (axes.axes(kind) for kind in {s.kind for s in sets}):
            widest |= dict.fromkeys(names, max((self.final[n] for n in names), default=0))
        return self._largest(widest)


def projections(axes: AxisMap, widths: Widths) -> Iterator[tuple[int | None, int, int]]:
    """Yields layer, inputs and outputs of the linear layers within the layers that write into the
    residual stream.
    """
    wide, inputs = {**axes.widths, **widths}, axes.family.inputs
    for param in {side.param for side in axes.by_axis["hidden"] if side.dim == 1 - inputs}:
        if len(axes.shapes[param]) == 2 and axes.gates[param] and axes.numel(param, wide):
            read = sum(s.length(wide) for s in axes.by_param[param] if s.dim == inputs)
            yield axis_layer(axes.gates[param][0]), read, axes.numel(param, wide) // read


def _fit_bytes(refit: Bound, inputs: int, outputs: int) -> float:
    """Returns the bytes of one fit, in fp64: its moments (with a held-out part three times: of each
    part and of all), and in the solve three matrices of the gram's shape and four of the weight's.
    """
    sets = 3 if refit.candidates else 1
    return 8 * ((sets + 3) * inputs**2 + (sets + 4) * inputs * outputs)


def at_once(axes: AxisMap, widths: Widths) -> tuple[int, int]:
    """Returns the elements that are unsharded at a time in a pass: everything outside the layers,
    and the two largest layers, since FSDP2 prefetches the next while one computes.
    """
    outside, layers = layer_sizes(axes, widths)
    return outside, sum(sorted(layers)[-2:])


def layer_sizes(axes: AxisMap, widths: Widths) -> tuple[int, list[int]]:
    """Returns the elements outside the layers, and of each layer."""
    wide = {**axes.widths, **widths}
    sizes = Counter[str]()
    for param in axes.shapes:
        sizes[next(iter(axes.gates[param]), "")] += axes.numel(param, wide)
    return sizes.pop("", 0), [*sizes.values()]


@dataclass(frozen=True)
class Gram:
    """One Gram matrix: [inputs, inputs], read by ``outputs`` rows in total. The inputs lie on
    ``axes``; ``weight`` is the first of the ``weights`` that read them.
    """

    weight: str
    axes: frozenset[str]
    inputs: int
    outputs: int
    weights: tuple[str, ...] = ()


def grams_of(axes: AxisMap, sets: list[GroupSet], widths: Widths) -> list[Gram]:
    """Returns one Gram matrix for each distinct input of linear layers that lose some inputs (the
    rule of ``measure/grams.py``), without those of layers that are gone.
    """
    wide, inputs = {**axes.widths, **widths}, axes.family.inputs
    shrinking = {side.param for s in sets for side in s.sides if side.dim == inputs}
    prefix = axes.family.layer.partition("{i}")[0]
    found: dict[tuple[str, tuple[tuple[str, ...], ...]], Gram] = {}
    for param in axes.shapes:
        plain = len(axes.shapes[param]) == 2 and param.endswith(".weight")
        if param not in shrinking or not plain or not param.startswith(prefix):
            continue
        if not axes.numel(param, wide):
            continue
        read = [s for s in axes.by_param[param] if s.dim == inputs]
        size = sum(s.length(wide) for s in read)
        rows = axes.numel(param, wide) // size
        names = frozenset(name for s in read for name in s.names)
        key = (param.rsplit(".", 2)[0], tuple(s.names for s in read))
        gram = found.get(key, Gram(param, names, size, 0))
        found[key] = replace(gram, outputs=gram.outputs + rows, weights=(*gram.weights, param))
    return list(found.values())


def deal_of(found: SizedModel, processes: int) -> dict[str, int]:
    """Returns the rank that holds each Gram matrix where they are dealt out, by the first weight
    that reads its input: in the order of the model's passes, at the sizes of the source.
    """
    before = found.axes.family.layer.partition("{i}")[0]

    def layer(gram: Gram) -> int:
        return int(gram.weight.removeprefix(before).partition(".")[0])

    listed = sorted(grams_of(found.axes, found.sets, {}), key=layer)
    return Deal(processes).all((g.weight, FP32 * g.inputs**2) for g in listed)


def sampled(tokens: int, limit: int) -> int:
    """Returns how many of a pass's ``tokens`` a Gram matrix takes (``measure/grams.py``)."""
    return tokens if tokens // limit <= 1 else limit


def index_bytes(sets: list[GroupSet]) -> int:
    """Returns the bytes of the int64 index tensors of all mini-groups; equal sides share one."""
    return sum(
        8 * outer * s.size * inner
        for s in sets
        for _, outer, inner in {(side.start, side.outer, side.inner) for side in s.sides}
    )
