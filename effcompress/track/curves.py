"""Turns events into what trackers show: settings, and named values at an optimizer step."""

from collections.abc import Iterator, Mapping
from typing import Any

from effcompress.record import events
from effcompress.record.events import Event

Setting = str | int | float | bool | None
Value = str | int | float


def settings(recipe: Mapping[str, Any], run: events.Run) -> dict[str, Setting]:
    """Returns the recipe by dotted keys, and facts of the event ``run`` under ``run.``."""
    facts = ("model_hash", "params", "target_params", "total_tokens", "device", "processes")
    return {**dict(_flat(recipe, "")), **{f"run.{name}": getattr(run, name) for name in facts}}


def table(values: Mapping[str, Setting]) -> str:
    """Returns settings as a Markdown table."""
    rows = [
        f"| `{key}` | {str(value).replace('|', chr(92) + '|')} |" for key, value in values.items()
    ]
    return "\n".join(["| key | value |", "|---|---|", *rows])


def curves(event: Event) -> dict[str, Value]:
    """Returns the values of one event by the names of their curves; may be empty."""
    match event:
        case events.Step():
            found: dict[str, Value | None] = {
                "loss": event.loss,
                "objective": event.objective,
                "learning_rate": event.learning_rate,
                "grad_norm": event.grad_norm,
                "parameters": event.params,
                "tokens": event.tokens,
                "tokens_per_second": event.tokens_per_second,
                "flops": event.flops,
            }
            found |= {f"loss/{domain}": loss for domain, loss in event.domain_loss.items()}
            return {name: value for name, value in found.items() if value is not None}
        case events.Mixture():
            return {
                **{f"weight/{domain}": weight for domain, weight in event.weights.items()},
                **{f"held_out/{domain}": loss for domain, loss in event.losses.items()},
            }
        case events.Gates():
            return {
                f"gates/{kind}/{field}": value
                for kind, family in event.families.items()
                for field, value in vars(family).items()
            }
        case events.Cut():
            gone = {f"removed/{kind}": part for kind, part in event.share_removed.items()}
            return {"parameters": event.params, **gone}
        case events.Rotated():
            return {"parameters": event.params, "width": event.width}
        case events.Sparsify():
            return {"zeroed": event.zeroed}
        case events.Evaluation():
            # Two curves: where nothing is trained, both have their only point at step 0.
            scores = event.tasks.scores if event.tasks else {}
            return {
                **{f"perplexity/{d}/{event.when}": s.perplexity for d, s in event.domains.items()},
                **{f"accuracy/{task}/{event.when}": s.value for task, s in scores.items()},
            }
        case events.Warn():
            return {"warning": event.text}
        case events.End():
            return {"status": event.status}
        case _:
            return {}


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
