"""Events as one line of text each, shared by the live panel and the plain lines."""

from collections.abc import Mapping

from effcompress.record import events
from effcompress.record.events import Event
from effcompress.record.kind_labels import of
from effcompress.record.readable import clock_time, count


def removed(kinds: Mapping[str, int]) -> str:
    """``FFN 2, hidden 1``."""
    return ", ".join(f"{of(kind).short} {n}" for kind, n in kinds.items() if n) or "nothing"


def sentence(event: Event) -> str | None:  # noqa: C901  a case for each event
    """The line to print for an event; None if it is only counted (steps, cuts), or for reports."""
    match event:
        case events.Run():
            goal = f" -> {count(event.target_params)}" if event.target_params else ""
            return (
                f"{event.name}: {event.model}, {count(event.params)}{goal} parameters, "
                f"{count(event.total_tokens or 0)} tokens, seed {event.seed}, {event.device}"
            )
        case events.Evaluation():
            scores = ", ".join(f"{name} {d.perplexity:.2f}" for name, d in event.domains.items())
            mean = event.tasks.mean if event.tasks else None
            solved = f"; {mean.value:.1%} right, mean of {mean.of}" if mean else ""
            return f"perplexity {event.when}: {scores}{solved}"
        case events.Export():
            size = count(event.parameters)
            return f"saved as a {event.container} model, {event.form}, {size} parameters"
        case events.Proof():
            difference = event.max_logit_difference
            return f"reloaded by itself: largest difference of a logit {difference:.1e}"
        case events.Approximate():
            moved, sets = event.max_logit_difference, ", ".join(event.sets[:3])
            return (
                f"not exact: removing {sets} rescales what stays; logits move by {moved:.1e} more"
            )
        case events.Absorbed():
            return (
                f"gates absorbed into the weights: loss {event.loss_open:.3f} with all open, "
                f"{event.loss_masked:.3f} under them, {event.loss_cut:.3f} of the cut model; "
                f"{event.low:,} of {event.kept:,} kept gates are below 0.1"
            )
        case events.Rotated():
            kept = min((p.energy for p in event.places), default=1.0)
            return (
                f"residual stream sliced from {event.channels} to {event.width} channels; at least "
                f"{100 * kept:.2f} % of its energy stays"
            )
        case events.Search():
            best = min(event.tried, key=lambda shape: shape.loss)
            units = ", ".join(f"{of(kind).short} {n}" for kind, n in event.chosen.items())
            return (
                f"shape: {units}; {count(best.params)} parameters, loss {best.loss:.3f}, the "
                f"lowest of {len(event.tried)} shapes"
            )
        case events.Compiled():
            return f"layers compiled, {event.graphs} graphs so far"
        case events.Sparsify():
            wanted = event.pattern or f"{event.sparsity:.4g}"
            fractions = (
                f"{event.zeroed / max(1, event.weights):.1%} of linear layers, "
                f"{event.zeroed / max(1, event.params):.1%} of all"
            ).replace("%", " %")
            zeroed = f"weights zeroed: {count(event.zeroed)} ({fractions})"
            return f"{event.method} {wanted}: parameters removed: 0, {zeroed}"
        case events.Warn():
            return f"warning: {event.text}"
        case events.End():
            why = f": {event.reason}" if event.reason else ""
            size = f", {count(event.params)} parameters" if event.params else ""
            size += f", {count(event.zeroed)} of them zero" if event.zeroed else ""
            return f"{event.status} after {clock_time(event.seconds)}{size}{why}"
    return None
