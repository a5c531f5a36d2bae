"""The plugins of docs/plugins.md do what the page says, in a run of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from effcompress import RecipeError, load_recipe, run
from effcompress.estimate.check import check
from effcompress.registry import REGISTRY
from tests.runner.toys import events, recipe

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
CALIBRATION = "prune.measure={source: calibration, sequences: 4}"


def example(folder: Path, name: str) -> str:
    """``--set`` words for the block that registers ``name``, saved beside the recipe."""
    (block,) = [b for b in BLOCKS if f'("{name}"' in b]
    assert len([line for line in block.splitlines() if line.strip()]) <= 25, "a short file"
    (folder / f"{name}.py").write_text(block)
    return f"plugins=[{folder / name}.py]"


def test_a_statistic_with_its_criterion(tmp_path: Path) -> None:
    path = recipe(tmp_path, scope="per_layer")
    words = [example(tmp_path, "peak"), CALIBRATION, "prune.criterion=peak_weighted"]
    words += ["prune.space=[{name: ffn, scope: per_layer}]", "prune.target={keep: 85%}"]
    words += ["prune.schedule=once", "train=null"]
    done = run(load_recipe(path, words), output=tmp_path / "out")
    assert done.removed > 0
    plugin = REGISTRY.get("criterion", "peak_weighted")
    assert [*plugin.of_inputs] == ["peak"] and not plugin.of_layers


def test_a_selector_with_state(tmp_path: Path) -> None:
    path = recipe(tmp_path, scope="per_layer")
    words = [example(tmp_path, "calm_layers_first"), CALIBRATION, "prune.criterion=magnitude"]
    words += ["prune.selector=calm_layers_first", "prune.target={keep: 85%}"]
    words += [
        "prune.space=[{name: ffn, scope: per_layer}]",
        "prune.schedule={name: once, rounds: 3}",
    ]
    out = tmp_path / "out"
    run(load_recipe(path, [*words, "train=null"]), output=out)
    assert len(events(out, "cut")) == 3
    assert len(events(out, "calibration")) == 3, "influence is measured for every cut"


def test_a_schedule_with_a_check(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    words = [example(tmp_path, "halves"), "prune.schedule={name: halves, every: 4}"]
    assert check(load_recipe(path, words)).timeline is not None
    refused = [words[0], "prune.schedule={name: halves, every: 500}"]
    with pytest.raises(RecipeError, match="no cut in the pruning stage") as error:
        load_recipe(path, refused)
    assert error.value.fix == "Write a smaller `every`."


def test_a_mixture(tmp_path: Path) -> None:
    words = [example(tmp_path, "towards_the_worst"), "prune=null", "train.tokens=512"]
    words += ["data.mixture={name: towards_the_worst, every: 1, sequences: 2}"]
    out = tmp_path / "out"
    run(load_recipe(recipe(tmp_path), words), output=out)
    first, *later = [e["weights"] for e in events(out, "mixture")]
    assert len(later) == 3
    for name in first:
        known = {first[name] * 0.9, first[name] * 0.9 + 0.1}
        assert min(abs(later[0][name] - value) for value in known) < 1e-12


AT_START = '''
from effcompress import Due, schedule

@schedule("{name}", paper="new")
def cuts(tokens: int, params: int, target_params: int) -> Due | None:
    """Cuts {what}."""
    {body}
'''


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ("return Due(params=target_params) if tokens == 0 and params > target_params else None", 1),
        ("return Due(groups=100, again=True) if tokens == 0 else None", 1),
        ("return Due(params=max(target_params, params - 9000), again=True)", 1),
        ("return Due(params=target_params) if tokens > 500 else None", 0),
        ("return Due(groups=1)", 0),
        ("return None", 0),
    ],
)
def test_recovery_takes_any_schedule_that_cuts_at_the_start(
    body: str, fits: int, tmp_path: Path
) -> None:
    path = recipe(tmp_path)
    name = "cuts_own"
    (tmp_path / "own.py").write_text(AT_START.format(name=name, what=body[:20], body=body))
    words = [f"plugins=[{tmp_path}/own.py]", f"prune.schedule={name}", "train=null"]
    words += ["recover={method: full, tokens: 512, batch_size: 4}", CALIBRATION]
    if fits:
        check(load_recipe(path, words))
    else:
        with pytest.raises(RecipeError, match="cuts later"):
            load_recipe(path, words)


def test_a_gate_with_its_constraint(tmp_path: Path) -> None:
    path = recipe(tmp_path, criterion="learned_gates", schedule="at_end", tokens=1280)
    words = [example(tmp_path, "straight"), "prune.space=[ffn]", "prune.target={shape: {ffn: 40}}"]
    words += ["prune.gates={gate: straight, constraint: square, start: 2}"]
    out = tmp_path / "out"
    run(load_recipe(path, words), output=out)
    (absorbed,) = events(out, "absorbed")
    assert absorbed["kept"] == 2 * 40
    assert absorbed["loss_masked"] == pytest.approx(absorbed["loss_cut"], abs=1e-5)
    assert absorbed["low"] == 0, "these gates are 0 or 1"


def test_a_refit_that_tries_values(tmp_path: Path) -> None:
    """The example's fit is the plugin's, written in another way; a number holds nothing out."""
    from effcompress_plugins.refit import least_squares

    path = recipe(tmp_path)
    words = [example(tmp_path, "ridge"), CALIBRATION, "prune.criterion=magnitude", "train=null"]
    words += ["prune.space=[ffn]", "prune.target={keep: 85%}", "prune.schedule=once"]
    words += ["prune.measure.refit_sequences=8", "export.form=exact"]
    for name, refit, held in (("auto", "ridge", 2), ("fixed", "{name: ridge, damp: 0.1}", 0)):
        run(load_recipe(path, [*words, f"prune.refit={refit}"]), output=tmp_path / name)
        (found,) = events(tmp_path / name, "refit")
        chosen = {how["knobs"]["damp"] for how in found["fits"].values() if how["knobs"]}
        assert found["held_out"] == held and chosen <= {0.01, 0.1, 1.0}
    draw = torch.Generator().manual_seed(0)
    x, t, weight = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (30, 30, 6))
    given = weight, x.T @ x / 30, t.T @ x / 30
    ridge = REGISTRY.get("refit", "ridge").function
    torch.testing.assert_close(ridge(*given, damp=0.3), least_squares(*given, damp=0.3))
