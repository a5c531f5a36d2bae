"""Operations beside training steps, held against counts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from effcompress import load_recipe
from effcompress.checkpoint import Proof
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.flops import flops_per_token
from effcompress.runner.resources import Operations
from effcompress.runner.run import run
from tests.runner.toys import events, recipe

LENGTH, TOKENS = 32, 8 * 32
ONCE = {"tokens": 256, "schedule": "{name: once, at: 0}", "selector": "least_salient"}


@pytest.fixture(autouse=True)
def proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves a process per run; the proof has tests of its own."""
    yes = Proof(0.0, tokens_equal=True, cache_equal=True, seconds=0.0)
    monkeypatch.setattr("effcompress.checkpoint.prove", lambda *_, **__: yes)


def ran(folder: Path, *sets: str, **changes: object) -> Path:
    out = folder / "out"
    run(load_recipe(recipe(folder, **{**ONCE, **changes}), sets), output=out)
    return out


def per_token(folder: Path, widths: dict[str, int] | None = None) -> float:
    """Forward and backward operations of the toy, by its widths."""
    model = sized_model(load_recipe(folder / "toy.yaml"))
    assert model is not None
    return flops_per_token(model.axes, model.config, widths or {}, LENGTH)


def test_products_and_factorisations_count_as_textbooks_do() -> None:
    a = torch.eye(6, dtype=torch.float64) * 2
    linear = nn.Linear(5, 3, bias=False)
    for what, expected in [
        (lambda: a @ a[:, :4], 2 * 6 * 6 * 4),
        (lambda: torch.linalg.cholesky(a), 6**3 / 3),
        (lambda: torch.cholesky_solve(a[:, :2], a), 2 * 6 * 6 * 2),
        (lambda: torch.linalg.inv(a), 2 * 6**3),
        (lambda: torch.linalg.eigh(a), 9 * 6**3),
        # Forward, and the gradients of weight and input.
        (lambda: linear(torch.ones(7, 5, requires_grad=True)).sum().backward(), 3 * 2 * 7 * 5 * 3),
        (lambda: torch.zeros(6, 4, dtype=a.dtype).addmm_(a, a[:, :4]), 2 * 6 * 6 * 4),
        (lambda: a + a, 0),
    ]:
        with Operations() as counted:
            what()
        assert counted.total == expected


def test_what_is_alike_counts_without_being_watched() -> None:
    a = torch.eye(6)
    with Operations() as operations:
        for k in range(3):
            before = operations.total
            with operations.like((6, 6)):
                a @ (a @ a if k == 1 else a)  # as much as the first time, whatever it does
            assert operations.total - before == 2 * 6**3
        with operations.like((6, 4)):
            a @ a[:, :4]
        seen = operations.total
        a @ a
    assert seen == 3 * 2 * 6**3 + 2 * 6 * 6 * 4
    assert operations.total == seen + 2 * 6**3, "watched again"


def test_attention_counts_the_half_that_a_causal_mask_leaves() -> None:
    q, k = torch.randn(2, 3, 8, 4), torch.randn(2, 3, 8, 4, requires_grad=True)
    with Operations() as counted:
        out = nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)
    pairs = 2 * 3 * 8 * 8 / 2
    assert counted.total == 2 * 2 * pairs * 4  # scores and values
    with Operations() as counted:
        out.sum().backward()
    assert counted.total == 5 * 2 * pairs * 4  # two of each product, and the scores again


@pytest.mark.parametrize(("criterion", "passes"), [("taylor", 3), ("wanda", 1), ("magnitude", 0)])
def test_a_cut_records_its_calibration(tmp_path: Path, criterion: str, passes: int) -> None:
    out = ran(tmp_path, criterion=criterion, measure="{source: calibration, sequences: 8}")
    cut = events(out, "cut")[0]
    expected = passes * TOKENS * per_token(tmp_path) / 3
    if passes == 1:  # the output matrix is applied to the last token of a sequence alone
        expected -= 2 * (TOKENS - 8) * 32 * 256
    assert cut["flops"] == pytest.approx(expected, rel=0.02, abs=0.01 * per_token(tmp_path))


def test_a_refit_records_passes_moments_and_solves(tmp_path: Path) -> None:
    measure = "{source: calibration, sequences: 8, refit_sequences: 8}"
    sets = ("prune.refit={name: least_squares, damp: 0.1}", "prune.space=[{name: ffn}]")
    out = ran(tmp_path, *sets, measure=measure)
    (refit,) = events(out, "refit")
    widths = events(out, "end")[0]["widths"]
    inputs = [*(32 for _ in range(2)), *(widths[f"ffn.{i}"] for i in range(2))]
    moments = sum(2 * TOKENS * (i * i + 32 * i) for i in inputs)
    solves = sum(i**3 / 3 + 2 * i * i * 32 for i in inputs)
    head = 2 * TOKENS * 32 * 256
    dense = TOKENS * per_token(tmp_path) / 3 - head
    small = TOKENS * per_token(tmp_path, widths) / 3 - head
    # Both models once. What tells how layers are called goes through the whole of both once more,
    # for two sequences.
    least = dense + small + moments + solves
    assert least < refit["flops"] < least + (dense + small + 2 * head) / 2
    (cut,) = events(out, "cut")
    assert cut["flops"] == pytest.approx(TOKENS * per_token(tmp_path), rel=0.02)


def test_moments_that_training_measures_count(tmp_path: Path) -> None:
    """What B costs beside its steps: the second moments of every step, and the solves."""
    sets = ("prune.repair=[obs_update]", "prune.space=[{name: ffn, scope: global}]")
    schedule = "{name: continuous, every: 1, start: 256, groups: 20}"
    measure = "{source: training, gram_tokens: 16}"
    out = ran(tmp_path, *sets, schedule=schedule, measure=measure, tokens=1280)
    cuts = events(out, "cut")
    first = cuts[0]["step"]
    # Layers of 64 channels that read 16 tokens of every step.
    grams = first * 2 * (2 * 16 * 64**2)
    assert grams < cuts[0]["flops"] < grams + 2 * (64**3 + 4 * 64 * 64 * 32)
