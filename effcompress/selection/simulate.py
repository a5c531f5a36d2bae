"""A budget cut down as a run would, with something else in saliency's place."""

from __future__ import annotations

from collections.abc import Callable

from effcompress.selection.budget import Budget


def simulate(
    budget: Budget,
    groups: int | None = None,
    prefer: Callable[[Budget, int], float] = Budget.removed,
    params: int | None = None,
) -> dict[str, int]:
    """Cut as a run without saliency would: always the line that ``prefer`` ranks lowest (by
    default the one that has lost the smallest share).

    ``groups`` limits how many mini-groups go, ``params`` says at which size to stop before the
    target. Returns kind -> mini-groups removed.
    """
    removed: dict[str, int] = {}
    while groups is None or sum(removed.values()) < groups:
        choices = budget.open()
        if not choices or budget.satisfies(params):
            break
        k = min(choices, key=lambda k: (prefer(budget, k), budget.share(k)))
        budget.take(k)
        kind = budget.candidates[k].kind
        removed[kind] = removed.get(kind, 0) + 1
    return removed
