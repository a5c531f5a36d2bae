"""The public names are a decision: adding or dropping one means editing this list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import effcompress

NAMES = [
    "Axis",
    "AxisMap",
    "Count",
    "CoverageError",
    "Due",
    "EffcompressError",
    "Evaluated",
    "GroupSet",
    "Groups",
    "Member",
    "MiniGroups",
    "NotNegative",
    "Pattern",
    "Plan",
    "Positive",
    "PluginError",
    "PruneResult",
    "Pruner",
    "RecipeError",
    "Report",
    "RunError",
    "SavedModel",
    "Scores",
    "Size",
    "Family",
    "Fraction",
    "Sublayer",
    "SourceError",
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

COMMANDS = ["bench", "check", "compare", "eval", "export", "fetch", "init", "inspect", "new"]
COMMANDS += ["plan", "plugins", "push", "report", "run", "schema", "status"]


def test_public_names() -> None:
    assert sorted(effcompress.__all__) == sorted(NAMES)
    for name in NAMES:
        assert getattr(effcompress, name) is not None


def test_run_is_a_function_even_after_its_module_was_imported() -> None:
    import effcompress.runner.run

    assert callable(effcompress.run)


def test_commands() -> None:
    from typer.main import get_command

    from effcompress.cli import app

    assert sorted(get_command(app).commands) == COMMANDS


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, effcompress, effcompress.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_recipe_is_priced_without_torch() -> None:
    """It takes seconds to import, and a recipe that is refused should not wait for it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom effcompress.recipe import load\n"
        "from effcompress.estimate.forecast import plan\n"
        "from effcompress.runner.preflight import preflight\n"
        "for name in ('quickstart.yaml', 'baselines/wanda_50.yaml'):\n"
        "    loaded = load(Path(sys.argv[1], name), ())\n"
        "    preflight(loaded, offline=False)\n    plan(loaded)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    recipes = Path(__file__).parents[2] / "recipes"
    assert subprocess.run([sys.executable, "-c", code, str(recipes)]).returncode == 0
