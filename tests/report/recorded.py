"""Measured comparisons of ``docs/results`` as facts of runs, for the tests of the page."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from effcompress.report.comparison.facts import Attempt, Facts, Method, Tokens

RESULTS = Path(__file__).parents[2] / "docs" / "results"
DOMAINS = ("arxiv", "book", "code", "math", "reference", "web", "wiki")
DENSE = 134_515_008
PROTOCOL = {"window": 512, "stride": 512, "bos": "none", "dtype": "float32"}


def one_shot(*sizes: str) -> list[Method]:
    """One-shot methods at the sizes (``113M``, ``94M``, ``121M``, ``zeros``); default: 113M."""
    wanted = sizes or ("113M",)

    def chosen(row: Mapping[str, str]) -> bool:
        return row["size"] in wanted and not row["seed"]

    several = len(wanted) > 1
    return _methods(
        "one_shot.csv", chosen, lambda r: f"{r['row']}_{r['size']}" * several or r["row"]
    )


def in_the_loop(*sizes: str) -> list[Method]:
    """Pruning during training: 60,000 tokens in bfloat16, up to three seeds; default: 100M."""
    wanted = sizes or ("100M",)
    every = {"tokens": "60000", "precision": "bf16"}

    def chosen(row: Mapping[str, str]) -> bool:
        return row["size"] in wanted and all(row[key] == value for key, value in every.items())

    def label(row: Mapping[str, str]) -> str:
        words = "_".join(re.findall(r"[\w-]+", row["row"].replace("'s", "").lower()))
        return f"small_{words}_{row['size']}"

    return _methods("efficientllm.csv", chosen, label)


def _methods(
    file: str,
    chosen: Callable[[Mapping[str, str]], bool],
    label: Callable[[Mapping[str, str]], str],
) -> list[Method]:
    found: dict[str, Method] = {}
    with (RESULTS / file).open(encoding="utf-8", newline="") as rows:
        for row in filter(chosen, csv.DictReader(rows)):
            name, facts = label(row), _facts(row)
            method = found.setdefault(name, Method(name, ()))
            known = {attempt.seed for attempt in method.attempts}
            if facts.seed not in known:
                one = Attempt(facts.seed, f"runs/{name}_{facts.seed}", facts, target=facts.target)
                found[name] = replace(method, attempts=(*method.attempts, one))
    return list(found.values())


def _facts(row: Mapping[str, str]) -> Facts:
    number = {
        key: float(value) for key, value in row.items() if re.fullmatch(r"[\d.]+", value or "")
    }
    size = re.fullmatch(r"(\d+)M", row["size"])
    minutes = number.get("minutes")
    trained = int(number.get("tokens", 0))
    target = int(size[1]) * 1_000_000 if size and row["row"] != "dense, trained" else None
    return Facts(
        source="SmolLM2-135M-Instruct",
        source_hash="5f1d0c2ab994",
        seed=int(number.get("seed", 0)),
        dense_params=DENSE,
        params=int(number["params"]),
        target=target,
        zeroed=int(number.get("zeroed", 0)),
        measures="training" if trained else "calibration",
        calibration=frozenset() if trained else frozenset({Tokens("77ab01cd2310", 16384)}),
        trained=trained,
        protocol=PROTOCOL,
        heldout={name: Tokens(name, 8192) for name in DOMAINS},
        before={name: number[f"dense {name}"] for name in DOMAINS},
        after={name: number[name] for name in DOMAINS},
        prune_seconds=number.get("prune_seconds"),
        prune_memory=int(number["prune_memory"]) if "prune_memory" in number else None,
        seconds=60 * minutes if minutes else None,
        flops=6.0 * number["params"] * trained,
        layers=frozenset(range(30)),
        all_layers=30,
        environment={"device": "cpu", "threads": row.get("threads") or "1"},
        method={"criterion": row["row"], "target": f"params: {row['size']}"},
    )
