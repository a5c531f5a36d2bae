"""What the events of a run are to a tracker: settings, and named values at an optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from effcompress.record.sentences import Event

Setting = str | int | float | bool | None
Value = str | int | float

_OF_A_STEP = {
    "loss": "loss",
    "objective": "objective",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "params": "parameters",
    "tokens": "tokens",
    "tokens_per_second": "tokens_per_second",
    "flops": "flops",
}
_OF_A_RUN = ("model_hash", "params", "target_params", "total_tokens", "device", "processes")


def settings(recipe: Mapping[str, Any], run: Event) -> dict[str, Setting]:
    """The recipe by dotted keys, and what only the event ``run`` knows (which weights, how many)
    under ``run.``.
    """
    known = {f"run.{name}": run[name] for name in _OF_A_RUN if name in run}
    return {**dict(_flat(recipe, "")), **known}


def table(values: Mapping[str, Setting]) -> str:
    """Settings as a table in Markdown."""
    rows = [
        f"| `{key}` | {str(value).replace('|', chr(92) + '|')} |" for key, value in values.items()
    ]
    return "\n".join(["| key | value |", "|---|---|", *rows])


def curves(event: Event) -> dict[str, Value]:
    """The values to show of one event, by the names of their curves; may be none."""
    kind = event["event"]
    if kind == "step":
        found = {name: event[key] for key, name in _OF_A_STEP.items() if key in event}
        return found | {f"loss/{domain}": v for domain, v in event["domain_loss"].items()}
    if kind == "cut":
        gone = {f"removed/{name}": share for name, share in event["share_removed"].items()}
        return {"parameters": event["params"], **gone}
    if kind == "sparsify":
        return {"zeroed": event["zeroed"]}
    if kind == "evaluation":
        return dict(_evaluation(event))
    if kind == "warning":
        return {"warning": event["text"]}
    return {"status": event["status"]} if kind == "end" else {}


def _evaluation(event: Event) -> Iterator[tuple[str, Value]]:
    # Two curves: where nothing is trained, both have their only point at step 0.
    for domain, found in event["domains"].items():
        yield f"perplexity/{domain}/{event['when']}", found["perplexity"]
    for task, found in (event.get("tasks") or {}).get("scores", {}).items():
        yield f"accuracy/{task}/{event['when']}", found["value"]


def _flat(value: Any, key: str) -> Iterator[tuple[str, Setting]]:
    if isinstance(value, Mapping):
        pairs = [*value.items()]
    elif isinstance(value, list | tuple):
        pairs = [*enumerate(value)]
    else:
        yield key, value
        return
    for name, inner in pairs:
        yield from _flat(inner, f"{key}.{name}" if key else str(name))
