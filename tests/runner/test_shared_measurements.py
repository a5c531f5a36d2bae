"""Runs of a comparison measure a source model once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from effcompress.checkpoint import Proof
from effcompress.compare.compare import MEASUREMENTS
from effcompress.recipe import load
from effcompress.runner import measuring
from effcompress.runner.run import run
from tests.compare.test_compare import here
from tests.runner.many import TARGET, recipes
from tests.runner.toys import events, repeatable, weight_files

SMALLER = f"prune.target.params={TARGET - 2000}"
FLAP = ["prune.criterion=flap", "prune.repair=[bias_mean]"]
METHODS: dict[str, list[str]] = {
    "taylor": [],
    "mask_fisher": ["prune.criterion=mask_fisher"],
    "flap": FLAP,
    "layers": ["prune.criterion=block_influence", "prune.space=[layer]"],
    "ablation": ["prune.criterion=two_ssp", "prune.space=[layer]"],
}


@pytest.fixture(autouse=True)
def proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves a process per run; the proof has tests of its own."""
    yes = Proof(0.0, tokens_equal=True, cache_equal=True, seconds=0.0)
    monkeypatch.setattr("effcompress.checkpoint.prove", lambda *_, **__: yes)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per measurement."""
    found: list[int] = []

    def counted(*given, **options):
        found.append(len(given[1]))
        return collect(*given, **options)

    collect: Callable[..., object] = measuring.collect
    monkeypatch.setattr(measuring, "collect", counted)
    return found


def cut(path: Path, out: Path, *sets: str, shared: Path | None = None) -> Path:
    every = ["prune.schedule={name: once, at: 0}", "train=null", *sets]
    return run(load(path, every), output=out, measurements=shared).folder


@pytest.mark.parametrize("method", METHODS)
def test_the_same_model_as_alone(tmp_path: Path, passes: list[int], method: str) -> None:
    (path,), shared = recipes(tmp_path, "taylor"), tmp_path / "shared"
    smaller = [*METHODS[method], SMALLER]
    if "prune.space=[layer]" in smaller:
        smaller[-1] = "prune.target={shape: {layer: 2}, params: null}"
    alone = cut(path, tmp_path / "alone", *smaller)
    first = cut(path, tmp_path / "first", *METHODS[method], shared=shared)
    assert len(passes) == 2
    second = cut(path, tmp_path / "second", *smaller, shared=shared)
    assert len(passes) == 2
    for name in weight_files(alone):
        one, two = load_file(alone / name), load_file(second / name)
        assert one.keys() == two.keys()
        assert all(one[key].equal(two[key]) for key in one)
    for kind in ("cut", "calibration"):
        assert repeatable(events(alone, kind)) == repeatable(events(second, kind))
    # What the first run spent on measuring counts for the second.
    assert events(second, "cut")[0]["flops"] > 0
    (kept,) = shared.iterdir()
    read = measuring.read_measurement(kept)
    assert read is not None
    assert 0 < read[1]["seconds"] < events(second, "cut")[0]["seconds"]
    assert read[1]["seconds"] < events(first, "cut")[0]["seconds"]


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "prune.measure.sequences=3",
        "prune.criterion=taylor_second",
        "prune.criterion={name: taylor, signed: true}",
        "prune.reduce={compat: true}",
        "prune.space=[ffn]",
        "data.documents={isolate: true}",
    ],
)
def test_what_a_measurement_depends_on_is_measured_anew(
    tmp_path: Path, passes: list[int], change: str
) -> None:
    (path,), shared = recipes(tmp_path, "taylor"), tmp_path / "shared"
    cut(path, tmp_path / "first", shared=shared)
    cut(path, tmp_path / "other", change, shared=shared)
    assert len(passes) == 2
    assert len([*shared.iterdir()]) == 2


def test_another_version_of_a_plugin_measures_anew(tmp_path: Path, passes: list[int]) -> None:
    (path,), shared = recipes(tmp_path, "taylor"), tmp_path / "shared"
    own = tmp_path / "own.py"
    text = (
        "from effcompress import criterion\n\n"
        '@criterion("own_%s")\ndef own(grad):\n    return grad.abs()\n'
    )
    own.write_text(text % "one")
    sets = [f"plugins=[{own}]", "prune.criterion=own_one"]
    cut(path, tmp_path / "first", *sets, shared=shared)
    cut(path, tmp_path / "again", *sets, SMALLER, shared=shared)
    assert len(passes) == 1
    own.write_text(own.read_text() + "# changed\n")
    cut(path, tmp_path / "other", *sets, SMALLER, shared=shared)
    assert len(passes) == 2


@pytest.mark.parametrize("damage", [b"", b"not tensors", None])
def test_a_damaged_file_costs_a_measurement(
    tmp_path: Path, passes: list[int], damage: bytes | None
) -> None:
    (path,), shared = recipes(tmp_path, "taylor"), tmp_path / "shared"
    cut(path, tmp_path / "first", shared=shared)
    (kept,) = shared.iterdir()
    kept.write_bytes(kept.read_bytes()[:-5] if damage is None else damage)
    cut(path, tmp_path / "again", SMALLER, shared=shared)
    assert len(passes) == 2
    cut(path, tmp_path / "third", SMALLER, shared=shared)
    assert len(passes) == 2


def test_a_folder_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (path,) = recipes(tmp_path, "taylor")
    (tmp_path / "shared").write_text("in the way")
    assert cut(path, tmp_path / "first", shared=tmp_path / "shared").is_dir()


@pytest.mark.parametrize("criterion", ["magnitude", "depth_order", "ziplm"])
def test_what_reads_no_text_or_keeps_matrices_is_not_shared(tmp_path: Path, criterion: str) -> None:
    (path,) = recipes(tmp_path, "taylor")
    sets = [f"prune.criterion={criterion}"]
    if criterion == "depth_order":
        sets += ["prune.space=[layer]"]
    if criterion == "ziplm":
        sets += ["prune.repair=[obs_update]", "prune.space=[{name: ffn, scope: per_layer}]"]
    cut(path, tmp_path / "first", *sets, shared=tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_a_comparison_measures_once(tmp_path: Path, passes: list[int]) -> None:
    (path,) = recipes(tmp_path, "taylor")
    other = path.with_name("smaller.yaml")
    other.write_text(path.read_text() + "seed: 0\n")
    here([path, other], tmp_path / "out", overrides=["prune.schedule={name: once, at: 0}"])
    assert len(passes) == 1
    assert len([*(tmp_path / "out" / MEASUREMENTS).iterdir()]) == 1


def test_a_statistic_that_a_knob_asks_for_is_measured_then(
    tmp_path: Path, passes: list[int]
) -> None:
    """FLAP as its authors' code computes it needs one more than FLAP as published."""
    (path,), shared = recipes(tmp_path, "taylor"), tmp_path / "shared"
    compat = ["prune.criterion={name: flap, compat: true}", *FLAP[1:]]
    asked = [load(path, sets).recipe.prune for sets in (FLAP, compat)]
    assert [[*prune.saliency.plugin.of_inputs] for prune in asked if prune] == [
        [],
        ["input_fluctuation"],
    ]
    cut(path, tmp_path / "published", *FLAP, shared=shared)
    cut(path, tmp_path / "code", *compat, shared=shared)
    assert len(passes) == 2
    cut(path, tmp_path / "again", *compat, SMALLER, shared=shared)
    assert len(passes) == 2
