"""What a run writes down so that others can be compared with it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from effcompress import load_recipe
from effcompress.checkpoint import Proof
from effcompress.data import digest
from effcompress.errors import RecipeError, RunError
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.flops import flops_per_token
from effcompress.estimate.forecast import plan
from effcompress.model.load import load as load_model
from effcompress.runner import prune as prune_room
from effcompress.runner.folder import RESOLVED, VALUES, check_folder, open_folder, require_equal
from effcompress.runner.run import run
from effcompress.runner.start import corpus_of
from effcompress.train import learning_rate
from tests.runner.test_recover import written
from tests.runner.toys import events, recipe

CALIBRATION = "{source: calibration, sequences: 4}"
QUICK = {"tokens": 1280, "schedule": "{name: continuous, start: 256, groups: 3}"}


@pytest.fixture(autouse=True)
def proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves a process per run; the proof has tests of its own."""
    yes = Proof(0.0, tokens_equal=True, cache_equal=True, seconds=0.0)
    monkeypatch.setattr("effcompress.checkpoint.prove", lambda *_, **__: yes)


def ran(folder: Path, name: str, *sets: str, **changes: object) -> Path:
    out = folder / name
    run(load_recipe(recipe(folder, **{**QUICK, **changes}), sets), output=out)
    return out


def test_tokens_and_weights_are_named_by_their_hashes(tmp_path: Path) -> None:
    out = ran(tmp_path, "out", tokens=256, schedule="once", measure=CALIBRATION)
    loaded = load_recipe(tmp_path / "toy.yaml")
    tokenizer = load_model(loaded.recipe.model).tokenizer
    nothing = {"say": lambda _: None, "notice": lambda _: None}
    corpus = corpus_of(loaded.recipe, tokenizer, offline=True, **nothing)
    (calibration,) = events(out, "calibration")
    ids_NT = corpus.calibration(4, loaded.recipe.seed)
    assert (calibration["sequences"], calibration["tokens"]) == (4, 4 * 32)
    assert calibration["hash"] == digest(ids_NT)
    for evaluation in events(out, "evaluation"):
        hashes = {name: d["hash"] for name, d in evaluation["domains"].items()}
        assert hashes == {n: digest(corpus.heldout(n, 3)) for n in ("letters", "numbers")}
    (begun,) = events(out, "run")
    assert begun["measures"] == "calibration"
    assert {n: d["share"] for n, d in begun["data"].items()} == pytest.approx(
        {"letters": 1 / 3, "numbers": 2 / 3}
    )
    (same,) = events(ran(tmp_path, "same", criterion="magnitude"), "run")
    (other,) = events(ran(tmp_path, "other", "seed=1", criterion="magnitude"), "run")
    assert begun["model_hash"] == same["model_hash"] != other["model_hash"]


@pytest.mark.parametrize(
    ("criterion", "measure", "expected"),
    [
        ("magnitude", CALIBRATION, "nothing"),
        ("taylor", CALIBRATION, "calibration"),
        ("taylor", "{source: training}", "training"),
    ],
)
def test_which_text_decides(tmp_path: Path, criterion: str, measure: str, expected: str) -> None:
    out = ran(tmp_path, "out", criterion=criterion, measure=measure)
    assert events(out, "run")[0]["measures"] == expected
    assert bool(events(out, "calibration")) == (expected == "calibration")


def test_cuts_say_what_they_cost(tmp_path: Path) -> None:
    out = ran(tmp_path, "out")
    for event in (*events(out, "cut"), *events(out, "commit")):
        assert event["seconds"] > 0
        assert event["memory_bytes"] > 1 << 24


def test_operations_are_those_of_the_plan(tmp_path: Path) -> None:
    """In lockstep and by turns, as the plan assumes, the run's operations are the plan's."""
    out = ran(tmp_path, "out")
    steps = events(out, "step")
    planned = plan(load_recipe(tmp_path / "toy.yaml")).data
    assert sum(step["flops"] for step in steps) == pytest.approx(planned["flops"], rel=1e-9)
    falls = [b["flops"] <= a["flops"] for a, b in itertools.pairwise(steps)]
    assert all(falls) and steps[-1]["flops"] < 0.8 * steps[0]["flops"]


def test_operations_of_recovery(tmp_path: Path) -> None:
    """Low-rank updates need no gradients of weights; a teacher adds its forward pass."""
    found = {}
    for method in ("full", "lora", "distill"):
        path = written(tmp_path / method, method)
        out = tmp_path / f"{method}_out"
        run(load_recipe(path, ["recover.tokens=128"]), output=out)
        (step,) = events(out, "step")
        found[method] = step["flops"]
    axes = sized_model(load_recipe(path))
    assert axes is not None
    dense = flops_per_token(axes.axes, axes.config, {}, 32) * 128
    assert found["lora"] == pytest.approx(found["full"] * 2 / 3)
    assert found["distill"] == pytest.approx(found["full"] + dense / 3)
    assert found["full"] < 0.8 * dense


def test_numbers_of_a_step_are_those_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, learning rate, checkpoints, fractions: what the record says of a step is true of it.
    The proof sees 64 tokens of a sequence, or as many as it has.
    """
    proven: list[tuple[int, ...]] = []

    def prove(_folder: object, _module: object, ids_BT: Tensor, **_how: object) -> Proof:
        proven.append(tuple(ids_BT.shape))
        return Proof(0.0, tokens_equal=True, cache_equal=True, seconds=0.0)

    monkeypatch.setattr("effcompress.checkpoint.prove", prove)
    out = ran(tmp_path, "out", "train.learning_rate.warmup=30%", "train.micro_batch_size=2")
    assert proven == [(2, 32)]
    spec = load_recipe(tmp_path / "toy.yaml", ["train.learning_rate.warmup=30%"]).recipe.train
    assert spec is not None
    steps = events(out, "step")
    assert [s["tokens"] for s in steps] == [128 * s["step"] for s in steps]
    for step in steps:
        rate = learning_rate(spec.learning_rate, step["tokens"], 1280, 128)
        assert step["learning_rate"] == pytest.approx(rate)
    assert [e["step"] for e in events(out, "checkpoint")] == [4, 8, 10]
    (begun,), (end,) = events(out, "run"), events(out, "end")
    for kind, fraction in events(out, "cut")[-1]["share_removed"].items():
        names = [n for n in begun["widths"] if n.partition(".")[0] == kind]
        gone = [1 - end["widths"][n] / begun["widths"][n] for n in names]
        assert fraction == pytest.approx(sum(gone) / len(gone)) and 0 < fraction < 1


def test_tensors_are_shortened_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    """Three mini-groups a cut, a commit once five have gathered: behind every second cut."""
    out = ran(tmp_path, "out")
    cuts, commits = ([e["step"] for e in events(out, kind)] for kind in ("cut", "commit"))
    assert commits[:-1] == cuts[1:-1:2] and commits[-1] == cuts[-1]


def test_a_size_far_from_the_target_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing more may go before the target is near, the run fails and says so."""
    real = prune_room.choose
    over = {"exhausted": True}
    monkeypatch.setattr(prune_room, "choose", lambda *a, **k: replace(real(*a, **k), **over))
    with pytest.raises(RunError, match="pruning stopped at"):
        ran(tmp_path, "out")


def test_a_key_that_came_or_went_is_another_recipe(tmp_path: Path) -> None:
    one, two = {"a": "1"}, {"a": "1", "b": "2"}
    require_equal(one, one, tmp_path)
    for before, now in ((one, two), (two, one)):
        with pytest.raises(RecipeError, match="the recipe changed since this run began: b was"):
            require_equal(before, now, tmp_path)


def test_a_key_that_an_earlier_version_did_not_have_is_null_there(tmp_path: Path) -> None:
    require_equal({"a": "1"}, {"a": "1", "b": "null"}, tmp_path)
    require_equal({"a": "1"}, {"a": "1", "distributed.gather": "fp32"}, tmp_path)
    with pytest.raises(RecipeError, match=r"distributed\.gather was absent, is bf16"):
        require_equal({"a": "1"}, {"a": "1", "distributed.gather": "bf16"}, tmp_path)
    with pytest.raises(RecipeError, match="b was 'null'"):
        require_equal({"b": "'null'"}, {"b": "null"}, tmp_path)


def test_resume_compares_values_whatever_text_they_hold(tmp_path: Path) -> None:
    """Also behind what looks like a comment; and in folders of before, which have no JSON."""
    path, out = recipe(tmp_path), tmp_path / "out"
    first = load_recipe(path, ['evaluate.prompt="a: b  # one"'])
    with open_folder(first, out, resume=False):
        pass
    (out / "config.json").write_text("{}")  # as if it had ended
    other = load_recipe(path, ['evaluate.prompt="a: b  # two"'])
    for kept in ((RESOLVED, VALUES), (RESOLVED,)):
        for name in {RESOLVED, VALUES} - set(kept):
            (out / name).unlink()
        assert check_folder(first, out, resume=True)
        with pytest.raises(RecipeError, match=r"evaluate\.prompt was .*# one.*, is .*# two"):
            check_folder(other, out, resume=True)
    (out / VALUES).write_text('{"seed": ')
    with pytest.raises(RecipeError, match="not the values of a recipe"):
        check_folder(first, out, resume=True)
