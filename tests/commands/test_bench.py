"""``effcompress bench``: every form of a folder writes on, and the answer has all its numbers. No
test looks at how fast anything was.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from effcompress import load_recipe, processes
from effcompress.cli.arguments import show
from effcompress.commands import bench as bench_room
from effcompress.commands import memory_probe as footprint_room
from effcompress.commands.bench import Side, Workload, bench
from effcompress.commands.memory_probe import Job, footprint
from effcompress.errors import RecipeError, RunError, SourceError
from effcompress.evaluation.speed import Timing, write_on
from effcompress.export.forms import Name, form
from effcompress.export.write import save
from effcompress.model.load import load
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.network.pruned_model import PrunedModel
from effcompress.recipe import resolved
from effcompress.runner.folder import RESOLVED
from effcompress.spec import ModelSpec
from tests.conftest import tokens
from tests.export.test_forms import cut
from tests.runner.toys import recipe as toy

SMALL = Workload(batches=(1, 3), prompt=6, new=4, repeats=2)


@pytest.mark.parametrize("name", ["uniform", "padded", "exact"])
@pytest.mark.parametrize("change", ["width", "both"])
def test_a_folder_of_any_form_writes_what_the_pruned_model_writes(
    name: Name, change: str, tmp_path: Path
) -> None:
    pruned = cut("llama", change, name)
    made, prompt = form(pruned, name), tokens(2, 7, vocab=258)
    save(made.skeleton, made.tensors, ByteTokenizer().save, tmp_path, made.files)
    opened = load(ModelSpec(folder=tmp_path)).module
    expected = prompt
    with torch.no_grad():
        for _ in range(5):  # without a cache, in the model that was cut in memory
            logits = pruned.module.eval()(input_ids=expected, use_cache=False).logits[:, -1]
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    assert write_on(opened.eval(), prompt, 5, lambda: 0.0)[0].tolist() == expected[:, 7:].tolist()


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Stands for the process that measures memory."""
    jobs: list[Job] = []

    def answer(job: Job) -> dict[int, int | None]:
        jobs.append(job)
        return {batch: 10**6 * len(jobs) for batch in job.batches}

    monkeypatch.setattr(bench_room, "footprint", answer)
    return jobs


def finished(folder: Path) -> Path:
    """What a run of the toy recipe would leave, as far as `bench` reads it."""
    loaded, out = load_recipe(toy(folder)), folder / "out"
    source = load(loaded.recipe.model)
    pruned = PrunedModel(source.module, source.config, loaded.recipe.prune.space)
    pruned.mask({s.name: [0, 1] for s in pruned.sets if s.kind == "ffn"})
    pruned.commit()
    made = form(pruned, "auto")
    out.mkdir()
    save(made.skeleton, made.tensors, ByteTokenizer().save, out, made.files)
    (out / RESOLVED).write_text(resolved(loaded))
    return out


def test_a_run_beside_its_source(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_process: list[Job],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = finished(tmp_path)
    threads = torch.get_num_threads()
    found = bench(out, SMALL)
    assert torch.get_num_threads() == threads
    dense, pruned = found.data["sides"]["dense"], found.data["sides"]["pruned"]
    assert pruned["params"] < dense["params"] and dense["bytes"] is None
    assert pruned["bytes"] == (out / "model.safetensors").stat().st_size
    assert (dense["peak_memory"], pruned["peak_memory"]) == (
        {1: 10**6, 3: 10**6},
        {1: 2 * 10**6, 3: 2 * 10**6},
    )
    assert [(s["batch"], s["phase"]) for s in found.data["speeds"]] == [
        (batch, phase) for batch in (1, 3) for phase in ("prefill", "decode")
    ]
    for one in found.data["speeds"]:
        for spread in (*one["rates"].values(), one["speed_up"]):
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert [job.spec.folder for job in no_process] == [None, out]
    capsys.readouterr()
    show(found, as_json=False)
    drawn = capsys.readouterr().out
    assert max(map(len, drawn.splitlines())) <= 80
    assert "times as fast" in drawn and "peak memory at batch 3, MB" in drawn


def test_a_recipe_alone_and_beside_another(tmp_path: Path, no_process: list[Job]) -> None:
    path = toy(tmp_path)
    alone = bench(load_recipe(path), SMALL)
    assert [*alone.data["sides"]] == ["dense"]
    assert all(one["speed_up"] is None for one in alone.data["speeds"])
    other = load_recipe(path, ["name=other", "model.shape.intermediate_size=128"])
    both = bench(load_recipe(path), SMALL, against=other)
    assert [*both.data["sides"]] == ["other", "toy"]
    same = bench(load_recipe(path), SMALL, against=load_recipe(path))
    assert [*same.data["sides"]] == ["toy (1)", "toy (2)"]


def test_too_many_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"100 \+ 64 tokens do not fit.* has 128 positions"):
        bench(load_recipe(toy(tmp_path)), Workload(prompt=100))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no finished run"):
        bench(tmp_path, SMALL)


def job(tmp_path: Path, **changes: object) -> Job:
    spec = load_recipe(toy(tmp_path)).recipe.model
    how = {"seed": 0, "batches": (1, 64), "prompt": 100, "new": 4, "threads": 1}
    return Job(**{"spec": spec, "device": "cpu", "dtype": "float32", **how, **changes})


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = footprint(job(tmp_path))
    assert [*found] == [1, 64]
    small, large = found.values()
    if small is not None and large is not None:  # what the system does not tell stays empty
        # Attention over 64 x 100 tokens alone: scores of 4 heads, activations of 2 layers.
        assert large - small > 10**6 and small > 26_848 * 4


def test_a_process_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho Traceback >&2\necho 'MemoryError: too big' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(footprint_room.sys, "executable", str(fake))
    with pytest.raises(RunError, match="memory failed: MemoryError: too big"):
        footprint(job(tmp_path))


def test_prompts_hold_tokens_that_every_model_has() -> None:
    small, large = (SimpleNamespace(config=SimpleNamespace(vocab_size=n)) for n in (7, 300))
    sides = [Side("a", "", m, None) for m in (large, small)]  # type: ignore[arg-type]
    ids_BT = bench_room._prompt(sides, 3, Workload(prompt=50), seed=0)
    assert ids_BT.shape == (3, 50) and set(ids_BT.flatten().tolist()) == set(range(7))


def test_rates_by_hand() -> None:
    """Two rows of 6 tokens read in 2 s; the first new token belongs to reading, 3 are left."""
    rounds = {"dense": [Timing(2.0, 4.0)], "pruned": [Timing(1.0, 2.0)]}
    read, wrote = bench_room._speeds(SMALL, {2: rounds})
    assert (read.phase, wrote.phase) == ("prefill", "decode")
    assert read.rates["dense"].median == 2 * 6 / 2.0
    assert wrote.rates["dense"].median == 2 * 3 / 4.0
    for one in (read, wrote):
        assert one.speed_up is not None and one.speed_up.median == 2.0


def test_the_peak_is_the_weights_and_what_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "high_water", lambda: 5000)
    assert footprint_room._peak("cpu", 4200, 300) == 300 + 800
    assert footprint_room._peak("cpu", None, 300) is None


LEVELS = [
    "prune.criterion=magnitude",
    "prune.space=[{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}]",
    "prune.selector=null",
    "prune.allocation={name: dynamic_program, shrink: 0.5}",
    "prune.measure={source: calibration, sequences: 2}",
    "prune.schedule={name: once, at: 0}",
    "prune.target={speedup: 1.2}",
    "prune.workload={length: 6, rounds: 1}",
]


def test_a_table_of_times_of_every_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    loaded = load_recipe(toy(tmp_path), LEVELS)
    answer = bench_room.latency_table(loaded)
    first, second = answer.sheets
    assert [row[0] for row in first.rows] == ["2", "1"]
    assert [row[0] for row in second.rows] == ["64", "32", "16", "8", "4", "2", "1"]
    assert first.rows[0][2] == second.rows[0][2] == "1.00"
    assert answer.notes[-1] == "measured now, and kept in the cache"
    assert bench_room.latency_table(loaded).notes[-1] == "from the cache"
    with pytest.raises(RecipeError, match=r"takes prune\.allocation and prune\.workload"):
        bench_room.latency_table(load_recipe(toy(tmp_path)))
