"""Time and money of a run, by the assumptions that docs/cost.md names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effcompress import load_recipe
from effcompress.errors import RecipeError
from effcompress.estimate.check import check
from effcompress.estimate.forecast import Launch, plan
from tests.runner.toys import recipe


def test_hours_are_those_of_an_h100_at_forty_percent(tmp_path: Path) -> None:
    data = plan(load_recipe(recipe(tmp_path))).data
    assert data["assumed"] == {"peak_flops": 989e12, "utilisation": 0.4}
    assert data["h100_hours"] == pytest.approx(data["flops"] / (989e12 * 0.4) / 3600)
    assert data["flops_if_not_pruned"] > data["flops"]  # of the source's widths, not the result's


def test_recomputing_takes_a_third_more_time_and_no_more_operations(tmp_path: Path) -> None:
    path, launch = recipe(tmp_path), Launch(flops_per_second=1e6)
    plain = plan(load_recipe(path), launch).data
    again = plan(load_recipe(path, ["train.recompute=true"]), launch).data
    assert again["flops"] == plain["flops"]
    assert again["seconds"]["all_steps"] == pytest.approx(4 / 3 * plain["seconds"]["all_steps"])


def test_processes_divide_the_batch(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path))
    with pytest.raises(RecipeError, match="3 processes cannot share a batch") as error:
        plan(loaded, Launch(processes=3))
    assert error.value.fix


def test_what_check_says_as_json(tmp_path: Path) -> None:
    """``ends_at`` is the last size, ``reached_at_tokens`` the tokens of the cut that made it."""
    checked = check(load_recipe(recipe(tmp_path)))
    timeline = checked.timeline
    assert timeline is not None and timeline.reached
    last = [p for p in timeline.points if p.params < timeline.points[0].params]
    first = next(p for p in last if p.params == last[-1].params)
    assert checked.data["ends_at"] == last[-1].params
    assert checked.data["reached_at_tokens"] == first.tokens < timeline.points[-1].tokens
    assert checked.data["target_params"] == pytest.approx(checked.data["ends_at"], rel=0.005)


def test_a_refit_holds_a_second_model_both_streams_and_one_fit(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    words = ["train=null", "prune.space=[ffn]", "prune.target={shape: {ffn: 40}}"]
    words += ["prune.criterion=magnitude", "prune.schedule=once", "prune.refit=least_squares"]
    words += ["prune.measure={source: calibration, refit_sequences: 256}"]

    def working(*more: str) -> float:
        found = plan(load_recipe(path, [*words, *more])).data
        return found["memory_bytes"]["cut"]["working"]

    params, hidden, length = 26848, 32, 32
    # attention reads 32 channels, the feed-forward 40 of the 64 that it had
    fit = {sets: 8 * ((sets + 3) * 40**2 + (sets + 4) * 40 * hidden) for sets in (1, 3)}
    streams = 4 * 256 * length * 2 * hidden
    assert working() == 4 * params + streams + fit[3]
    fixed = "prune.refit={name: least_squares, damp: 0.1}"
    assert working(fixed) == 4 * params + streams + fit[1]
    twice = "prune.measure.refit_sequences=512"
    assert working(twice) == working() + streams
    # What the projections of a layer read: of so little text it is less than the weights.
    few = "prune.measure.refit_sequences=4"
    read = 4 * 4 * length * (32 + 40)
    assert working(few, fixed) == 4 * params + streams / 64 + read + fit[1]


MIXTURE = (
    "model.shape={model_type: qwen3_moe, hidden_size: 32, intermediate_size: 64, head_dim: 8, "
    "moe_intermediate_size: 128, num_experts: 16, num_experts_per_tok: 2, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}"
)


def test_experts_that_are_called_once_more_take_memory(tmp_path: Path) -> None:
    """Masks on channels hold another down projection of a layer, those on experts what one of them
    returns, in fp32 and fp64.
    """
    common = [MIXTURE, "prune.criterion=mask_fisher", "data.sequence_length=128", "train=null"]
    common += ["prune.measure={source: calibration}", "prune.schedule={name: once, at: 0}"]
    cut: dict[str, Any] = {}
    targets = {"ffn": "expert_ffn: 100", "expert": "expert: 12", "attention": "attention: 1"}
    for kind, units in targets.items():
        sets = [*common, f"prune.space=[{kind}]", f"prune.target={{shape: {{{units}}}}}"]
        data: Any = plan(load_recipe(recipe(tmp_path), sets)).data
        cut[kind] = data["memory_bytes"]["cut"]
    length, hidden, wide, experts = 128, 32, 128, 16
    assert cut["attention"]["working"] == 0 < cut["attention"]["activations"]
    assert cut["expert"]["working"] == length * hidden * (4 + 8)
    assert cut["ffn"]["working"] == 4 * (experts * hidden * wide + length * wide)
