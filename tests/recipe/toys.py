"""Plugins and recipes for tests: nothing here depends on the built-in plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from effcompress.registry import Registry
from effcompress.spec import Count, Fraction, NotNegative
from effcompress.types import Due

RECIPE = """\
name: toy
model: {hub: org/toy}
data:
  domains:
    web: {jsonl: web.jsonl, weight: 2}
    notes:
      txt: [a.txt, b.txt]
prune:
  target: {keep: 85%}
  space:
    - ffn
    - {name: attention, scope: lockstep, minimum: 2}
  criterion: {name: taylor, order: first}
  schedule: {name: continuous, every: 4}
train:
  tokens: 1.5k
  learning_rate:
    peak: 3e-4
"""


def _weight(weight: Any) -> None:
    """The weight."""


def _taylor(weight: Any, grad: Any, *, order: Literal["first", "second"] = "first") -> None:
    """First or second order.

    Second line.
    """


def _second(weight: Any, hess: Any, *, alpha: Fraction = 0.5) -> None:
    """Uses the Hessian."""


def _picky(weight: Any, *, factor: float) -> None:
    """Has a knob without default."""


def _inputs(weight: Any, input_norm: Any) -> None:
    """Reads what layers read."""


def _adam(second_moment: Any) -> None:
    """Reads the optimizer."""


def _refit(weight: Any, gram: Any, cross: Any) -> None:
    """Fits anew."""


def _refit_biased(weight: Any, gram: Any, cross: Any, mean: Any) -> None:
    """Fits anew, with a bias."""


def _refit_tuned(weight: Any, gram: Any, cross: Any, *, damp: NotNegative = 0.3) -> None:
    """Fits anew, with a knob that may be chosen on held-out text."""


def _turn(moment: Any, kept: Any) -> None:
    """Turns."""


def _fisher(grad: Any) -> None:
    """Squares."""


def _ffn(axes: Any, *, scope: Literal["lockstep", "per_layer"] = "per_layer", minimum: int = 1):
    """Channels."""


def _hidden(axes: Any, *, minimum: int = 1, until: Fraction = 1.0) -> None:
    """Residual channels."""


def _once(tokens: int, target_params: int, *, at: Count = 0) -> Due | None:
    """All at once."""
    return Due(params=target_params) if tokens >= at else None


def _continuous(
    tokens: int, *, every: int = 8, start: Count = 0, end: Count | None = None, groups: int = 1
) -> None:
    """Little by little."""


def _often(*, every: int) -> tuple[str, str] | None:
    return (f"every {every} steps is never", "Write less.") if every > 1000 else None


def _least_salient(score_K: Any, *, normalise: bool = False) -> None:
    """The least."""


def _total(sums_MG: Any) -> None:
    """Adds up."""


def _norm_gain(gain: Any) -> None:
    """Keeps the output."""


def _follows(weights: Any, losses: Any, reference: Any, *, eta: float = 1.0) -> None:
    """Follows losses."""


def _smallest(weight: Any, sparsity: float) -> None:
    """The smallest."""


def _wanda(weight: Any, input_norm: Any, *, alpha_search: bool = False) -> None:
    """By inputs."""


def _rows_or_pattern(pattern: Any, *, alpha_search: bool) -> tuple[str, str] | None:
    return ("alpha_search and a pattern", "Keep one.") if pattern and alpha_search else None


def _learned(logit: Any) -> Any:
    return logit


def _half(logit: Any, uniform: Any) -> Any:
    return logit, logit


def _unbound(expected: Any) -> Any:
    return expected


def _at_end(tokens: int, prune_until: int, target_params: int) -> Any:
    return Due(params=target_params) if tokens >= prune_until else None


def _levels(error_ML: Any, cost_ML: Any, budget: float, *, buckets: int = 10) -> None:
    """Levels."""


def _halves(params: int, target_params: int) -> Any:
    """Half of what is left, again and again."""
    return Due(params=(params + target_params) // 2, again=True) if params > target_params else None


def registry() -> Registry:
    """A registry of its own with toy plugins under the built-in names."""
    toys = Registry()
    for kind, name, function in (
        ("criterion", "magnitude", _weight),
        ("criterion", "taylor", _taylor),
        ("criterion", "second", _second),
        ("criterion", "picky", _picky),
        ("criterion", "inputs", _inputs),
        ("criterion", "learned", _learned),
        ("gate", "half", _half),
        ("constraint", "none", _unbound),
        ("schedule", "when_done", _at_end),
        ("hessian", "fisher_diag", _fisher),
        ("hessian", "adam", _adam),
        ("refit", "anew", _refit),
        ("refit", "anew_biased", _refit_biased),
        ("rotation", "turn", _turn),
        ("space", "ffn", _ffn),
        ("space", "attention", _ffn),
        ("space", "hidden", _hidden),
        ("schedule", "once", _once),
        ("selector", "least_salient", _least_salient),
        ("reduction", "sum", _total),
        ("repair", "norm_gain", _norm_gain),
        ("repair", "bias", _weight_free),
        ("repair", "constant", _constant),
        ("sparsifier", "magnitude", _smallest),
        ("mixture", "dynamic", _follows),
        ("allocation", "program", _levels),
        ("schedule", "halves", _halves),
    ):
        # Two kinds may share a name; here two names share a function, which `add` allows.
        toys.add(kind, name, function, "a paper")
    toys.add("refit", "tuned", _refit_tuned, "a paper", tries={"damp": (0.1, 1)})
    toys.add("schedule", "continuous", _continuous, "a paper", _often)
    toys.add("sparsifier", "wanda", _wanda, "a paper", _rows_or_pattern)
    return toys


def _constant(output_mean: Any) -> None:
    """What an expert returns, in its place."""


def _weight_free(epsilon: float) -> None:
    """Another repair."""


def write(folder: Path, text: str = RECIPE, name: str = "recipe.yaml") -> Path:
    """A recipe file, and beside it every input file that RECIPE names."""
    for file in ("web.jsonl", "a.txt", "b.txt"):
        (folder / file).write_text("text\n", encoding="utf-8")
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
