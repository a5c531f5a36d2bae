"""Comparisons from recipes to page: a dozen toy methods, interrupted, changed, killed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from effcompress.checkpoint import Proof
from effcompress.compare import processes as jobs_file
from effcompress.compare.compare import compare
from effcompress.errors import EffcompressError, RecipeError, SourceError
from effcompress.record.events import Warn
from effcompress.registry import REGISTRY
from effcompress.report.comparison.page import FILES
from effcompress.report.comparison.rows import Comparison
from tests.runner.many import LAYERS, METHODS, TARGET, TOTAL, recipes

NINE = [name for name in METHODS if name != "deadly"]


def forgetful(patch: pytest.MonkeyPatch) -> None:
    """Plugin files that are loaded from now on are forgotten with ``patch``."""
    REGISTRY.load_builtins()
    known = {kind: dict(plugins) for kind, plugins in REGISTRY._plugins.items()}
    patch.setattr(REGISTRY, "_plugins", known)
    patch.setattr(REGISTRY, "_loaded", set(REGISTRY._loaded))


@pytest.fixture(autouse=True)
def own_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful(monkeypatch)


class Watch:
    """A progress that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def checking(self, number: int) -> None:
        """Nothing."""

    def begin(self, jobs: Any, done: Any) -> None:
        self.said.append(("begin", len(jobs), len(done)))

    def started(self, job: Any) -> None:
        self.said.append(("started", job.label, job.seed))

    def event(self, job: Any, event: Any) -> None:
        self.said.append(("event", job.label, event.event))

    def ended(self, job: Any, seconds: float, reason: str) -> None:
        self.said.append(("ended", job.label, job.seed, reason))

    def beat(self) -> None:
        """Nothing."""

    def close(self) -> None:
        self.said.append(("close",))

    def started_labels(self) -> list[tuple[str, int]]:
        return [(one[1], one[2]) for one in self.said if one[0] == "started"]


@pytest.fixture(scope="module")
def unproven() -> Iterator[None]:
    """Saves a process per run; the proof has tests of its own."""
    yes = Proof(0.0, tokens_equal=True, cache_equal=True, seconds=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("effcompress.checkpoint.prove", lambda *_, **__: yes)
        yield


def here(paths: list[Path], output: Path, watch: Watch | None = None, **more: Any) -> Comparison:
    """A comparison in this process."""
    _, found = compare(paths, progress=watch or Watch(), output=output, at_once=0, **more)
    return found


@pytest.fixture(scope="module")
def dozen(
    tmp_path_factory: pytest.TempPathFactory, unproven: None
) -> tuple[Path, list[Path], Comparison]:
    folder = tmp_path_factory.mktemp("dozen")
    paths = recipes(folder, *NINE)
    with pytest.MonkeyPatch.context() as patch:
        forgetful(patch)
        patch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = here(paths, folder / "out", seeds=(0, 1, 2))
    return folder, paths, found


def test_a_dozen_methods_under_the_same_conditions(dozen) -> None:
    _, _, found = dozen
    rows = {row.label: row for row in found.rows}
    assert sorted(rows) == sorted(["dense", *NINE])
    done = [row for row in found.rows if row.size is not None and row.label != "broken"]
    assert len(done) >= 9 and len(found.sizes) == 1
    for row in done:
        assert [a.seed for a in row.attempts] == [0, 1, 2] and len(row.done) == 3
        assert row.values["params"].mean == pytest.approx(TARGET, rel=0.005)
        assert row.values["removed"].mean == TOTAL - row.values["params"].mean
        assert row.values["trained"].mean == 512 and row.values["flops"].mean > 1e6
        assert row.values["prune_seconds"].mean > 0 and row.values["prune_memory"].mean > 1e8
        assert row.values["perplexity"].number == 3
    hashes = [
        {a.seed: {t.hash for t in a.facts.calibration} for a in row.attempts}
        for row in done
        if row.done[0].measures == "calibration"
    ]
    assert len(hashes) == 6 and all(one == hashes[0] for one in hashes)
    assert len(set.union(*hashes[0].values())) == 3, "every seed draws other text"
    assert rows["efficientllm_a"].calibration == "training"
    assert rows["magnitude_l1"].calibration == "nothing"
    assert rows["taylor"].calibration == "128"


def test_flags_and_conditions_of_the_dozen(dozen) -> None:
    _, _, found = dozen
    assert not [row.label for row in found.rows if row.unfair], found.notes
    said = dict(found.conditions)
    assert said["checkpoint"].startswith("model, hash of the weights")
    assert said["layers"].endswith(f"1 of {LAYERS} in layers")
    assert said["calibration"].startswith("128 tokens, hash ")
    assert said["recovery"] == "512 tokens of letters 50.0 %, numbers 50.0 %"
    assert "letters 93 tokens" in said["evaluation"] and said["seeds"] == "0, 1, 2"
    assert len([row for row in found.rows if row.mark == "best"]) == 1
    assert "lowest perplexity" in found.claims[0]


def test_the_dense_model_is_what_the_runs_measured(dozen) -> None:
    folder, _, found = dozen
    dense = found.rows[0]
    lines = (folder / "out/runs/taylor_0/metrics.jsonl").read_text().splitlines()
    before = next(e for e in map(json.loads, lines) if e.get("when") == "before")
    scores = [d["perplexity"] for d in before["domains"].values()]
    assert dense.values["perplexity"].mean == pytest.approx(math.sqrt(math.prod(scores)))
    assert dense.values["params"].mean == TOTAL


def test_what_fails_leaves_its_reason(dozen) -> None:
    folder, _, found = dozen
    broken = next(row for row in found.rows if row.label == "broken")
    assert "it breaks on purpose" in broken.reason and broken.size == 0
    assert "it breaks on purpose" in (folder / "out/comparison.html").read_text()
    assert all((folder / "out" / name).is_file() for name in FILES)


def test_what_ran_does_not_run_again(dozen) -> None:
    folder, paths, found = dozen
    watch = Watch()
    again = here(paths[3:5], folder / "out", watch, seeds=(0, 1, 2))
    assert watch.said == [("begin", 6, 6), ("close",)]
    for row in again.rows[1:]:
        before = next(r for r in found.rows if r.label == row.label)
        assert row.values == before.values


def test_folders_of_runs_take_part(dozen, tmp_path: Path) -> None:
    folder, paths, _ = dozen
    runs = folder / "out/runs"
    given = [runs / "taylor_0", runs / "layers_0", runs / "taylor_1"]
    found = here([*given, paths[0]], tmp_path / "out", seeds=(0,))
    rows = {row.label: row for row in found.rows}
    assert sorted(rows) == ["dense", "layers_0", "random", "taylor_0"]
    assert [a.seed for a in rows["taylor_0"].attempts] == [0, 1], "one recipe, two seeds"
    assert rows["taylor_0"].attempts[0].folder == "taylor_0"
    assert str(folder) not in (tmp_path / "out/comparison.json").read_text()


def test_a_changed_recipe_is_noticed(dozen) -> None:
    folder, paths, _ = dozen
    watch = Watch()
    with pytest.raises(RecipeError) as raised:
        here(paths[3:5], folder / "out", watch, seeds=(0,), overrides=["train.batch_size=4"])
    assert "train.batch_size was 2, is 4" in raised.value.what
    assert raised.value.where == str(folder / "out/runs/taylor_0")
    assert watch.said == []


def test_an_interrupted_comparison_continues(
    tmp_path: Path, unproven: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcompress.runner import run as story

    paths = recipes(tmp_path, "taylor", "random")
    real, count = story.train_step, iter(range(1000))

    def step(*args: object, **more: object) -> bool:
        if next(count) == 13:  # in the second of four runs, which take 8 steps each
            raise KeyboardInterrupt
        return real(*args, **more)

    sets = ["save.every=2"]
    with monkeypatch.context() as patch:
        patch.setattr(story, "train_step", step)
        with pytest.raises(KeyboardInterrupt):
            here(paths, tmp_path / "out", seeds=(0, 1), overrides=sets)
    partial = json.loads((tmp_path / "out/comparison.json").read_text())
    reasons = {row["method"]: [r["reason"] for r in row["runs"]] for row in partial["rows"][1:]}
    assert reasons["taylor"][0] == "" and reasons["random"][0] == "KeyboardInterrupt()"
    assert "metrics.jsonl is missing" in reasons["taylor"][1]
    first = (tmp_path / "out/runs/taylor_0/metrics.jsonl").read_bytes()
    watch = Watch()
    found = here(paths, tmp_path / "out", watch, seeds=(0, 1), overrides=sets)
    assert watch.started_labels() == [("random", 0), ("taylor", 1), ("random", 1)]
    assert (tmp_path / "out/runs/taylor_0/metrics.jsonl").read_bytes() == first
    assert all(len(row.done) == 2 for row in found.rows[1:])
    whole = here(paths[1:], tmp_path / "whole", seeds=(0, 1), overrides=sets)
    resumed, plain = (next(r for r in c.rows if r.label == "random") for c in (found, whole))
    assert resumed.values["perplexity"] == plain.values["perplexity"]
    assert resumed.values["flops"] == plain.values["flops"]


def test_nothing_runs_before_all_is_checked(tmp_path: Path) -> None:
    paths = recipes(tmp_path, "random", "taylor")
    paths[1].write_text(paths[1].read_text().replace("taylor}", "tailor}"))
    watch = Watch()
    with pytest.raises(EffcompressError, match="tailor"):
        here(paths, tmp_path / "out", watch)
    small = {"overrides": ["prune.target.params=10"]}
    with pytest.raises(RecipeError, match="cannot be reached"):
        here(paths[:1], tmp_path / "out", watch, **small)
    assert watch.said == [] and not (tmp_path / "out").exists()


def test_targets_that_cannot_be_meant(tmp_path: Path) -> None:
    (path,) = recipes(tmp_path, "random")
    with pytest.raises(RecipeError, match="named twice"):
        here([path, tmp_path / "." / "random.yaml"], tmp_path / "out")
    with pytest.raises(SourceError, match="holds no run"):
        here([path, tmp_path], tmp_path / "out")
    with pytest.raises(RecipeError, match="no comparison"):
        here([path], tmp_path / "model")
    with pytest.raises(RecipeError, match="not a folder"):
        here([path], path)


def test_a_process_that_dies_takes_nothing_along(tmp_path: Path) -> None:
    """Real processes, both at a time: one is killed, one ends well."""
    paths = recipes(tmp_path, "deadly", "random")
    watch = Watch()
    _, found = compare(paths, progress=watch, output=tmp_path / "out", at_once=2)
    rows = {row.label: row for row in found.rows}
    assert rows["deadly"].reason == "killed by SIGKILL (often: not enough memory)"
    assert rows["deadly"].size == rows["random"].size == 0
    assert rows["random"].values["params"].mean == pytest.approx(TARGET, rel=0.005)
    assert ("ended", "random", 0, "") in watch.said and watch.said[-1] == ("close",)
    assert ("event", "random", "step") in watch.said
    assert "success" in (tmp_path / "out/logs/random_0.log").read_text()


def test_processes_end_with_the_comparison(tmp_path: Path, monkeypatch) -> None:
    (path,) = recipes(tmp_path, "random")
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(jobs_file, "command", lambda *_, **__: sleeper)
    begun: list[Any] = []
    real = jobs_file._start

    def start(*args: Any) -> Any:
        begun.append(real(*args))
        return begun[-1]

    class Impatient(Watch):
        def beat(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs_file, "_start", start)
    with pytest.raises(KeyboardInterrupt):
        compare([path], progress=Impatient(), output=tmp_path / "out")
    assert begun[0].process.poll() is not None
    assert (tmp_path / "out/comparison.html").is_file()


@pytest.mark.parametrize(
    ("at_once", "stated", "threads"),
    [(1, None, "8"), (2, None, "4"), (5, None, "4"), (2, "3", "3")],
)
def test_processes_at_the_same_time_divide_the_cores(
    tmp_path: Path, monkeypatch, at_once: int, stated: str | None, threads: str
) -> None:
    """Two jobs on eight cores; with `--jobs 5` they are still two. What the user set stays."""
    printing = "import os; print(os.environ.get('OMP_NUM_THREADS', 8))"
    monkeypatch.setattr(jobs_file, "command", lambda *_, **__: [sys.executable, "-c", printing])
    monkeypatch.setattr(jobs_file, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if stated is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    (path,) = recipes(tmp_path, "random")
    out = tmp_path / "out"
    compare([path], progress=Watch(), seeds=[1, 2], output=out, at_once=at_once)
    assert [log.read_text().strip() for log in (out / "logs").iterdir()] == [threads, threads]


def test_a_recipe_that_changes_meanwhile_is_noticed(tmp_path: Path, unproven, monkeypatch) -> None:
    (path,) = recipes(tmp_path, "random")
    out = tmp_path / "out"
    here([path], tmp_path / "before")
    (tmp_path / "before/runs").rename(tmp_path / "runs")

    class Meddler(Watch):
        """While it runs, its folder becomes that of another recipe."""

        def started(self, job: Any) -> None:
            (tmp_path / "runs/random_0").rename(job.folder)
            resolved = job.folder / "recipe.resolved.yaml"
            resolved.write_text(resolved.read_text().replace("sequences: 3 ", "sequences: 4 "))

    (out / "runs").mkdir(parents=True)
    monkeypatch.setattr(jobs_file, "command", lambda *_, **__: [sys.executable, "-c", ""])
    _, found = compare([path], progress=Meddler(), output=out)
    assert "evaluate.sequences was 4, is 3" in found.rows[-1].reason


def test_commands_are_those_that_one_would_type(tmp_path: Path, monkeypatch) -> None:
    from effcompress.compare.entries import enter, place

    (path,) = recipes(tmp_path, "random")
    entries = enter([path], [0, 7], ["train.tokens=1k"], offline=False)
    jobs = place(entries, tmp_path / "out")[0].jobs
    monkeypatch.setattr(sys, "path", ["/elsewhere"])
    said = jobs_file.command(jobs[1], offline=True)
    folder = str(tmp_path / "out/runs/random_7")
    assert said[1:7] == ["-P", "-m", "effcompress", "run", str(path), "--output"]
    assert said[7:] == [
        folder,
        "--resume",
        "--offline",
        "--set",
        "train.tokens=1k",
        "--set",
        "seed=7",
    ]
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    assert "-P" not in jobs_file.command(jobs[0], offline=False)


@pytest.mark.parametrize(
    ("printed", "code", "reason"),
    [
        ("== loading\nerror: x.yaml:3: no such thing\n  did you mean 'y'?\n", 2,
         "x.yaml:3: no such thing did you mean 'y'?"),
        ("Traceback (most recent call last):\n  File x\nValueError: seven\n\n", 1,
         "ValueError: seven"),
        ("", 1, "exit code 1"),
        ("anything", -11, "killed by SIGSEGV"),
        ("anything", 0, ""),
        ("stopped", 0, "stopped by a signal; the same command goes on"),
    ],
)  # fmt: skip
def test_the_reason_of_a_process(tmp_path: Path, printed: str, code: int, reason: str) -> None:
    log = tmp_path / "x.log"
    log.write_text(printed)
    status = "success" if printed == "anything" else "stopped"
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"event": "end", "status": status, "seconds": 1}) + "\n"
    )
    (tmp_path / "config.json").touch()
    job: Any = type("Job", (), {"log": log, "folder": tmp_path})
    one: Any = type("Running", (), {"job": job, "output": log.open("rb")})
    assert jobs_file._reason(one, code) == reason


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = jobs_file.Tail(path)
    assert list(tail.read()) == []
    line = '{"event": "warning", "text": "'
    one, two, three = (f'{line}{n}"}}' for n in (1, 2, 3))
    path.write_text(f"{one}\n{two}\n{three[:9]}")
    assert [*tail.read()] == [Warn(text="1"), Warn(text="2")]
    with path.open("a") as file:
        file.write(f"{three[9:]}\n")
    assert [*tail.read()] == [Warn(text="3")] and [*tail.read()] == []
    path.write_text(f"{one}\nnot json\n")
    assert [*tail.read()] == [Warn(text="1")], "a record that goes back is read again"


def test_ctrl_c_reaches_the_comparison_alone(tmp_path: Path, monkeypatch) -> None:
    """The terminal sends it to a whole process group. The comparison then tells its runs to stop: a
    run that is told twice ends without a checkpoint.
    """
    words = [sys.executable, "-c", "import os; print(os.getpgrp())"]
    monkeypatch.setattr(jobs_file, "command", lambda *_, **__: words)
    job: Any = SimpleNamespace(folder=tmp_path, log=tmp_path / "logs" / "one.log")
    one = jobs_file._start(job, {}, False, tmp_path)
    assert one.process.wait() == 0
    one.output.close()
    assert int(job.log.read_text()) == one.process.pid != os.getpgrp()
