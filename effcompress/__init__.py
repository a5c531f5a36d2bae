"""effcompress makes small language models out of big ones. These names are the public interface."""

from typing import TYPE_CHECKING, Any

from effcompress.algebra import damped_cholesky
from effcompress.errors import (
    CoverageError,
    EffcompressError,
    PluginError,
    RecipeError,
    RunError,
    SourceError,
    SurgeryError,
)
from effcompress.registry import (
    allocation,
    constraint,
    criterion,
    family,
    gate,
    hessian,
    mixture,
    reduction,
    refit,
    repair,
    rotation,
    schedule,
    selector,
    space,
    sparsifier,
    statistic,
)
from effcompress.selection.knapsack import least_error
from effcompress.sparsity.magnitude import lowest
from effcompress.spec import Count, Fraction, NotNegative, Pattern, Positive
from effcompress.types import (
    Axis,
    AxisMap,
    Due,
    Family,
    GroupSet,
    Member,
    Plan,
    Scores,
    Sublayer,
)

if TYPE_CHECKING:
    from effcompress.recipe import load as load_recipe
    from effcompress.runner.run import Report, run

__version__ = "0.2.0"

__all__ = [
    "Axis",
    "AxisMap",
    "Count",
    "CoverageError",
    "Due",
    "EffcompressError",
    "Family",
    "Fraction",
    "GroupSet",
    "Member",
    "NotNegative",
    "Pattern",
    "Plan",
    "PluginError",
    "Positive",
    "RecipeError",
    "Report",
    "RunError",
    "Scores",
    "SourceError",
    "Sublayer",
    "SurgeryError",
    "__version__",
    "allocation",
    "constraint",
    "criterion",
    "damped_cholesky",
    "family",
    "gate",
    "hessian",
    "least_error",
    "load_recipe",
    "lowest",
    "mixture",
    "reduction",
    "refit",
    "repair",
    "rotation",
    "run",
    "schedule",
    "selector",
    "space",
    "sparsifier",
    "statistic",
]


def __getattr__(name: str) -> Any:
    # Late, so that `import effcompress` in a plugin file does not load the whole runner.
    if name in ("run", "Report"):
        from effcompress.runner import run as story

        return getattr(story, name)
    if name == "load_recipe":
        from effcompress import recipe

        return recipe.load
    raise AttributeError(f"module 'effcompress' has no attribute '{name}'")
