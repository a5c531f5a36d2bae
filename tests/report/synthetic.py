"""A made-up run with the shape of a real one, for the tests of the report and of the view."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

LAYERS = 30
RECIPE = """\
name: quickstart
model:
  wheel: some-model==1.0
prune:
  target:
    keep: 0.85
  space:
    - ffn
    - attention
    - hidden
  criterion: taylor2
  hessian:
    fisher:
      decay: 0.9
  measure:
    source: training
  schedule:
    evenly:
      until: 0.7
train:
  tokens: 1200000
"""
WIDTHS = {
    "hidden": 576,
    **{f"attention.{i}": 3 for i in range(LAYERS)},
    **{f"ffn.{i}": 1536 for i in range(LAYERS)},
}


def count(widths: dict[str, int]) -> int:
    """Parameters of a Llama with tied embeddings, heads of 64, three queries to a key."""
    hidden = widths["hidden"]
    layers = sum(
        hidden * (512 * widths[f"attention.{i}"] + 3 * widths[f"ffn.{i}"] + 2)
        for i in range(LAYERS)
    )
    return hidden * 49152 + layers + hidden


def run_event(**changes: Any) -> dict[str, Any]:
    """The first event of a run."""
    return {
        "event": "run",
        "name": "quickstart",
        "seed": 0,
        "effcompress": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "started": "2026-01-02T03:04:05+00:00",
        "model": "SmolLM-135M",
        "params": 134_515_008,
        "target_params": 114_337_757,
        "total_tokens": 1_200_000,
        "widths": WIDTHS,
        "device": "cpu",
        "threads": 2,
        "data": {
            "prose": {"documents": 812, "tokens": 1_934_211, "hash": "9f2c11d04b7a"},
            "code": {"documents": 1290, "tokens": 3_120_877, "hash": "77ab01cd2310"},
        },
        **changes,
    }


def evaluation(when: str, params: int, worse: float = 1.0, **changes: Any) -> dict[str, Any]:
    """One evaluation; ``worse`` multiplies the perplexities."""
    text = {
        "before": " a history of questions. <b>From the first & oldest</b> tables of the stars",
        "after": " the history of the people who asked, and of what they had the means to measure",
    }[when]
    domains = {
        name: {
            "perplexity": base * worse,
            "loss": math.log(base * worse),
            "tokens": 8192,
            "sequences": 16,
        }
        for name, base in (("prose", 21.37), ("code", 9.82))
    }
    return {
        "event": "evaluation",
        "when": when,
        "params": params,
        "domains": domains,
        "generation": {"prompt": "The history of science is", "text": text},
        "protocol": {
            "window": 512,
            "stride": 512,
            "bos": "one per window",
            "unit": "token",
            "split": "held out",
            "dtype": "float32",
            "batch_size": 2,
            "tokenizer": "5f1d0c2ab994",
        },
        "seconds": 14.2,
        **changes,
    }


class Writer:
    """Simulates a run step by step."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.widths = dict(WIDTHS)
        self.params = run_event()["params"]
        self.metrics: list[dict[str, Any]] = [run_event()]
        self.plans: list[dict[str, Any]] = []

    def step(self, step: int, steps: int, tokens: int, loss: float) -> None:
        share = step / steps
        trapeze = min(1, share / 0.05, (1 - share) / 0.2 + 1e-3)
        noise = self.random.gauss(0, 0.06)
        self.metrics.append(
            {
                "event": "step",
                "step": step,
                "tokens": tokens,
                "loss": loss + noise,
                "learning_rate": 2e-4 * trapeze,
                "grad_norm": 1.2,
                "params": self.params,
                "tokens_per_second": 2900 * (134.5e6 / self.params) + self.random.gauss(0, 60),
                "seconds": 2.8 * step,
                "domain_loss": {"prose": loss + noise + 0.4, "code": loss + noise - 0.4},
            }
        )

    def cut(self, step: int, tokens: int, share: float) -> None:
        kinds = [("ffn", 24), ("attention", 1), ("hidden", 1)]
        kind, number = self.random.choices(kinds, (40, 2, 4))[0]
        axes = [n for n in self.widths if n.split(".")[0] == kind]
        # Later layers lose more: a shape worth looking at.
        axis = self.random.choices(axes, [1 + 3 * i / len(axes) for i in range(len(axes))])[0]
        number = min(number, self.widths[axis] - 1)
        if not number:
            return
        start = self.widths[axis]
        self.widths[axis] -= number
        self.params = count(self.widths)
        saliency = {k: 2e-8 * b * math.exp(5 * share) * self.random.lognormvariate(0, 0.1)
                    for k, b in (("attention", 40), ("ffn", 1), ("hidden", 9))}  # fmt: skip
        self.plans.append(
            {
                "step": step,
                "tokens": tokens,
                "plan": {axis: list(range(start - number, start))},
                "saliency": saliency,
                "removed": {kind: number},
                "scores": {axis: [saliency[kind]] * number},
                "params": self.params,
            }
        )
        self.metrics.append(
            {
                "event": "cut",
                "step": step,
                "tokens": tokens,
                "params": self.params,
                "removed": {kind: number},
                "share_removed": {k: self.lost(k) for k in ("attention", "ffn", "hidden")},
                "saliency": saliency,
            }
        )

    def lost(self, kind: str) -> float:
        names = [n for n in WIDTHS if n.split(".")[0] == kind]
        return 1 - sum(self.widths[n] for n in names) / sum(WIDTHS[n] for n in names)

    def finish(self, worse: float = 1.09) -> None:
        self.metrics += [
            {"event": "commit", "step": 9, "params": self.params, "seconds": 0.4,
             "max_logit_difference": 3.1e-6},
            {"event": "checkpoint", "step": 100, "seconds": 2.0, "bytes": 1_400_000_000},
            {"event": "warning", "text": "domain <code> ran out of text and is read again"},
            evaluation("after", self.params, worse),
            {"event": "export", "container": "mistral", "parameters": self.params,
             "why": "a Llama configuration ties the head size to hidden / heads",
             "bytes": self.params * 2},
            {"event": "proof", "max_logit_difference": 4.8e-6, "tokens_equal": True,
             "cache_equal": True, "seconds": 9.1},
            {"event": "end", "status": "success", "seconds": 742.0, "params": self.params,
             "widths": self.widths},
        ]  # fmt: skip


def full_run(steps: int = 292, cuts: int = 220, *, train: bool = True) -> Writer:
    """Evaluate, prune while training, evaluate, export, prove. ``train=False``: one-shot."""
    run = Writer()
    run.metrics.append(evaluation("before", run.params))
    tokens, done, loss = 4096, 0, 2.75
    if not train:
        for i in range(cuts):
            run.cut(0, 0, i / cuts)
    for step in range(1, steps + 1 if train else 1):
        due = min(cuts, round(cuts * step / (0.7 * steps)))
        loss += (2.62 - loss) * 0.02 + (due - done) * 0.004
        while done < due:
            run.cut(step, step * tokens, step / steps)
            done += 1
        run.step(step, steps, step * tokens, loss)
    run.metrics[0]["target_params"] = run.params - 40_000 if cuts else None
    run.metrics[0]["total_tokens"] = steps * tokens if train else 0
    run.finish()
    return run


def save(folder: Path, run: Writer) -> Path:
    """Write the files of a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics", run.metrics), ("plans", run.plans)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "recipe.resolved.yaml").write_text(RECIPE, encoding="utf-8")
    return folder
