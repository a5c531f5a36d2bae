"""What happened, in a line each: the sentences that a live panel and plain lines share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effcompress.record.kind_labels import of

Event = Mapping[str, Any]


def count(value: float) -> str:
    """``134.5M``, ``30k``, ``512``."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.1f}".removesuffix(".0") + unit
    return f"{value:.0f}"


def clock_time(seconds: float) -> str:
    """``1:05`` or ``2:03:09``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def removed(kinds: Mapping[str, int]) -> str:
    """``FFN 2, hidden 1``."""
    return ", ".join(f"{of(kind).short} {n}" for kind, n in kinds.items() if n) or "nothing"


def zeroed(event: Event) -> str:
    """``weights zeroed: 53.1M (50.0 % of linear layers, 39.5 % of all)``."""
    layers = event["zeroed"] / max(1, event["weights"])
    every = event["zeroed"] / max(1, event["params"])
    shares = f"{layers:.1%} of linear layers, {every:.1%} of all".replace("%", " %")
    return f"weights zeroed: {count(event['zeroed'])} ({shares})"


def sentence(event: Event) -> str | None:
    """The events that deserve a line of their own, as that line."""
    kind = event["event"]
    if kind == "run":
        target = event.get("target_params")
        goal = f" -> {count(target)}" if target else ""
        return (
            f"{event['name']}: {event['model']}, {count(event['params'])}{goal} parameters, "
            f"{count(event.get('total_tokens') or 0)} tokens, seed {event['seed']}, "
            f"{event['device']}"
        )
    if kind == "evaluation":
        scores = ", ".join(f"{n} {d['perplexity']:.2f}" for n, d in event["domains"].items())
        mean = (event.get("tasks") or {}).get("mean")
        solved = f"; {mean['value']:.1%} right, mean of {mean['of']}" if mean else ""
        return f"perplexity {event['when']}: {scores}{solved}"
    if kind == "export":
        kind_of = f"{event['container']} model, {event.get('form', 'uniform')}"
        return f"saved as a {kind_of}, {count(event['parameters'])} parameters"
    if kind == "proof":
        difference = event["max_logit_difference"]
        return f"reloaded by itself: largest difference of a logit {difference:.1e}"
    if kind == "approximate":
        moved, sets = event["max_logit_difference"], ", ".join(event["sets"][:3])
        return f"not exact: removing {sets} rescales what stays; logits move by {moved:.1e} more"
    if kind == "compiled":
        return f"layers compiled, {event['graphs']} graphs so far"
    if kind == "sparsify":
        wanted = event["pattern"] or f"{event['sparsity']:.4g}"
        return f"{event['method']} {wanted}: parameters removed: 0, {zeroed(event)}"
    if kind == "warning":
        return f"warning: {event['text']}"
    if kind == "end":
        why = f": {event['reason']}" if event.get("reason") else ""
        size = f", {count(event['params'])} parameters" if event.get("params") else ""
        size += f", {count(event['zeroed'])} of them zero" if event.get("zeroed") else ""
        return f"{event['status']} after {clock_time(event['seconds'])}{size}{why}"
    return None
