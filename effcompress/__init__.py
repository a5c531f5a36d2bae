"""effcompress makes small language models out of big ones. These names are the public interface."""

import importlib
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
    from effcompress.in_memory.prune import prune
    from effcompress.in_memory.pruner import Pruner
    from effcompress.in_memory.result import Groups, MiniGroups, PruneResult
    from effcompress.in_memory.save import SavedModel, save
    from effcompress.in_memory.session import Size
    from effcompress.in_memory.steps import choose, cut, mini_groups, scores
    from effcompress.recipe import load as load_recipe
    from effcompress.runner.run import Evaluated, Report, run

__version__ = "0.2.0"

__all__ = [
    "Axis",
    "AxisMap",
    "Count",
    "CoverageError",
    "Due",
    "EffcompressError",
    "Evaluated",
    "Family",
    "Fraction",
    "GroupSet",
    "Groups",
    "Member",
    "MiniGroups",
    "NotNegative",
    "Pattern",
    "Plan",
    "PluginError",
    "Positive",
    "PruneResult",
    "Pruner",
    "RecipeError",
    "Report",
    "RunError",
    "SavedModel",
    "Scores",
    "Size",
    "SourceError",
    "Sublayer",
    "SurgeryError",
    "__version__",
    "allocation",
    "choose",
    "constraint",
    "criterion",
    "cut",
    "damped_cholesky",
    "family",
    "gate",
    "hessian",
    "least_error",
    "load_recipe",
    "lowest",
    "mini_groups",
    "mixture",
    "prune",
    "reduction",
    "refit",
    "repair",
    "rotation",
    "run",
    "save",
    "schedule",
    "scores",
    "selector",
    "space",
    "sparsifier",
    "statistic",
]


_LATE = {
    "Groups": "in_memory.result",
    "MiniGroups": "in_memory.result",
    "Evaluated": "runner.run",
    "PruneResult": "in_memory.result",
    "Pruner": "in_memory.pruner",
    "Report": "runner.run",
    "SavedModel": "in_memory.save",
    "Size": "in_memory.session",
    "choose": "in_memory.steps",
    "cut": "in_memory.steps",
    "load_recipe": "recipe.load",
    "mini_groups": "in_memory.steps",
    "prune": "in_memory.prune",
    "run": "runner.run",
    "save": "in_memory.save",
    "scores": "in_memory.steps",
}
"""Name -> its module. Late, so that `import effcompress` in a plugin file does not load torch."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'effcompress' has no attribute '{name}'")
    module = importlib.import_module(f"effcompress.{_LATE[name]}")
    return getattr(module, "load" if name == "load_recipe" else name)
