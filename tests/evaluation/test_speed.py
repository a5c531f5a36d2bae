"""Who is timed when, and what the numbers are made of; no test looks at a real clock."""

from __future__ import annotations

import itertools

import pytest
import torch

from effcompress.evaluation.speed import Timing, race, rate, speed_up, write_on
from tests.conftest import tiny, tokens


def test_everybody_in_every_round_and_the_first_does_not_count() -> None:
    sides = {"dense": tiny(), "pruned": tiny()}
    seen: list[tuple[str, tuple[int, ...], bool]] = []
    for name, module in sides.items():
        module.train().register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen.append(
                (name, tuple(kwargs["input_ids"].shape), "past_key_values" in kwargs)
            ),
            with_kwargs=True,
        )
    ticks = itertools.count()
    found = race(sides, tokens(2, 5), 3, 2, clock=lambda: float(next(ticks)))
    one = [((2, 5), False), ((2, 1), True), ((2, 1), True)]
    turn = [(name, *call) for name in ("dense", "pruned") for call in one]
    assert seen == turn * 3
    assert {name: len(timings) for name, timings in found.items()} == {"dense": 2, "pruned": 2}
    assert not any(module.training for module in sides.values())


def test_the_clock_is_read_around_the_prompt_and_around_the_rest() -> None:
    model, times = tiny(), iter([1.0, 4.0, 9.0])
    ids, timing = write_on(model, tokens(1, 6), 4, lambda: next(times))
    assert timing == Timing(prefill=3.0, decode=5.0)
    assert ids.shape == (1, 4)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "opt", "mixtral"])
def test_it_writes_what_generate_writes(model_type: str) -> None:
    model, prompt = tiny(model_type=model_type).eval(), tokens(3, 7)
    expected = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=9,
        min_new_tokens=9,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert write_on(model, prompt, 9, lambda: 0.0)[0].tolist() == expected[:, 7:].tolist()


def test_rates_and_ratios_by_hand() -> None:
    dense = [Timing(2.0, 4.0), Timing(4.0, 8.0), Timing(1.0, 2.0)]
    pruned = [Timing(1.0, 2.0), Timing(1.0, 8.0), Timing(1.0, 4.0)]
    spread = rate(dense, "prefill", 8)
    assert (spread.median, spread.low, spread.high) == (4.0, 2.0, 8.0)
    # Round by round 2, 4 and 1 times as fast: a slow round slows both.
    ratio = speed_up(pruned, dense, "prefill")
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.0, 4.0)
    ratio = speed_up(pruned, dense, "decode")
    assert (ratio.median, ratio.low, ratio.high) == (1.0, 0.5, 2.0)
