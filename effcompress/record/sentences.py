"""Events as one line of text each, shared by the live panel and the plain lines."""

from collections.abc import Mapping, Sequence
from statistics import mode

from effcompress.record import events
from effcompress.record.events import Event
from effcompress.record.kind_labels import of
from effcompress.record.readable import clock_time, count, size


def removed(kinds: Mapping[str, int]) -> str:
    """``FFN 2, hidden 1``."""
    return ", ".join(f"{of(kind).short} {n}" for kind, n in kinds.items() if n) or "nothing"


def cost(value: float, unit: str) -> str:
    """``12.3 ms``, ``180 MB`` or ``94.00M parameters``, by the unit of an allocation."""
    if unit == "seconds":
        return f"{value * 1e3:.4g} ms"
    return size(value) if unit == "bytes" else f"{count(round(value))} parameters"


def workload(event: events.Latency) -> str:
    """``a prefill of 1 x 512 tokens``."""
    each = "a prefill of" if event.phase == "prefill" else "a token behind"
    return f"{each} {event.batch} x {event.length} tokens"


def times(event: events.Latency) -> str:
    """Asked, predicted and measured times, and the speed-up."""
    asked, predicted, measured = (
        f"{value * 1e3:.4g} ms" for value in (event.asked, event.predicted, event.measured)
    )
    return (
        f"asked {asked}, predicted {predicted}, measured {measured}, {event.speed_up:.3f} times as "
        f"fast as the source model ({event.dense * 1e3:.4g} ms)"
    )


def chosen(fits: Sequence[events.Fitted]) -> str:
    """``; error on held-out text 0.41 -> 0.22 (mean), damp 0.03 to 1, mostly 0.3; 2 left as they
    were``: of fits whose knobs were chosen on held-out text. Empty for others.
    """
    errors = [(f.error_before, f.error_after) for f in fits]
    known = [(b, a) for b, a in errors if b is not None and a is not None]
    if not known:
        return ""
    before, after = (sum(each) / len(known) for each in zip(*known, strict=True))
    said = f"; error on held-out text {before:.3g} -> {after:.3g} (mean)"
    by_knob: dict[str, list[float]] = {}
    for name, value in (pair for f in fits for pair in (f.knobs or {}).items()):
        by_knob.setdefault(name, []).append(value)
    for name, values in by_knob.items():
        least, most = min(values), max(values)
        spread = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        often = "" if least == most else f", most often {mode(sorted(values)):g}"
        said += f", {name} {spread}{often}"
    left = sum(f.knobs is None for f in fits)
    return f"{said}; {left} left as they were" if left else said


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
            held = count(event.parameters)
            return f"saved as a {event.container} model, {event.form}, {held} parameters"
        case events.Gguf():
            return f"saved as {event.file}, {event.dtype}, {event.bytes:,} bytes"
        case events.Proof():
            difference = event.max_logit_difference
            how = f" layer by layer, {event.generated} tokens generated" if event.by_layers else ""
            return f"reloaded by itself{how}: largest difference of a logit {difference:.1e}"
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
        case events.Allocation():
            sizes = [cost(value, event.unit) for value in (event.asked, event.predicted)]
            known = "" if event.loss is None else f", KL {event.loss:.4f} nats per token"
            return (
                f"{event.method}: {len(event.widths)} blocks, asked {sizes[0]}, predicted "
                f"{sizes[1]}{known}"
            )
        case events.Latency():
            return f"time of {workload(event)}: {times(event)}"
        case events.Rotated():
            kept = min((p.energy for p in event.places), default=1.0)
            return (
                f"residual stream sliced from {event.channels} to {event.width} channels; at least "
                f"{100 * kept:.2f} % of its energy stays{chosen(event.fits)}"
            )
        case events.Refit():
            read = "" if event.sequences is None else f" to {event.sequences} sequences"
            return f"{event.weights} projections fitted{read}{chosen([*event.fits.values()])}"
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
        case events.Size():
            scores = ", ".join(f"{name} {value:.2f}" for name, value in event.perplexity.items())
            return f"{event.name}: {count(event.params)} parameters, {event.folder}; {scores}"
        case events.Warn():
            return f"warning: {event.text}"
        case events.End():
            # Not the reason: the error itself, which says more, is printed below.
            left = f", {count(event.params)} parameters" if event.params else ""
            left += f", {count(event.zeroed)} of them zero" if event.zeroed else ""
            return f"{event.status} after {clock_time(event.seconds)}{left}"
    return None
