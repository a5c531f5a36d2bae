"""Made-up facts of runs, for the tests of comparisons."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

from effcompress.report.comparison.facts import Attempt, Facts, Method, Tokens

PROTOCOL = {
    "window": 512,
    "stride": 512,
    "bos": "none",
    "dtype": "float32",
    "batch_size": 2,
    "tokenizer": "5f1d0c2ab994",
    "continuation": "greedy, repetition penalty 1.2",
}
HELDOUT = {"prose": Tokens("aa" * 8, 8176), "code": Tokens("bb" * 8, 8176)}
DENSE, TARGET = 134_515_008, 113_000_000
DENSE_SCORES = {"prose": 21.37, "code": 9.82}


def facts(seed: int = 0, quality: float = 2.0, **changes: Any) -> Facts:
    """A run that multiplies the perplexity of the dense model by ``quality``."""
    noise = random.Random(f"{seed} {quality}").gauss(0, 0.01)
    after = {name: p * quality * math.exp(noise) for name, p in DENSE_SCORES.items()}
    plain = Facts(
        source="SmolLM2-135M",
        source_hash="cc" * 8,
        seed=seed,
        dense_params=DENSE,
        params=TARGET + 12_345,
        target=TARGET,
        measures="calibration",
        calibration=frozenset({Tokens(f"{seed:x}" * 16, 16384)}),
        trained=1_000_000,
        shares={"prose": 0.5, "code": 0.5},
        text={"prose": "dd" * 16, "code": "ee" * 16},
        protocol=PROTOCOL,
        heldout=HELDOUT,
        before=DENSE_SCORES,
        after=after,
        flops=8.1e14,
        prune_seconds=20.0 * quality + seed,
        prune_memory=int(1.5e9 * quality),
        seconds=300.0 + seed,
        losses=tuple(
            (4096 * k, 2.7 + math.log(quality) * math.exp(-k / 40)) for k in range(1, 245)
        ),
        layers=frozenset(range(30)),
        all_layers=30,
        environment={"device": "cpu", "threads": "2", "torch": "2.13.0"},
        method={"criterion": "taylor", "schedule": "once"},
    )
    return dataclasses.replace(plain, **changes)


def method(label: str, quality: float = 2.0, seeds: tuple[int, ...] = (0, 1, 2), **changes: Any):
    """A method with a finished run for each seed."""
    return Method(
        label,
        tuple(
            Attempt(
                s,
                f"runs/{label}_{s}",
                facts(s, quality, **changes),
                target=changes.get("target", TARGET),
            )
            for s in seeds
        ),
    )


def failed(label: str, reason: str, seeds: tuple[int, ...] = (0, 1, 2)) -> Method:
    """A method of which every run failed before it measured anything."""
    return Method(
        label, tuple(Attempt(s, f"runs/{label}_{s}", None, reason, TARGET) for s in seeds)
    )
