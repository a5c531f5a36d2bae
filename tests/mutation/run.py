"""Applies harmful changes one at a time and reports which of them the tests notice.

    python -m tests.mutation.run [--room removal] [--only 12] [--jobs 2] [--table mutants.md]

Each mutant of ``tests/mutation/mutants.py`` is written into a copy of the checkout, its tests run
there (``pytest -x``, with a time limit), and the file is put back. Exits with 1 if fewer than 95 %
are noticed, or if a mutant survives without an explanation; with 2 if a mutant no longer applies
or its tests fail without it. By hand and nightly, not in CI: about half an hour on one core.

The process imports torch and transformers once and forks for every mutant, which saves about five
seconds each.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("effcompress", "plugins", "tests", "recipes", "docs", "benchmarks")
SECONDS = 180
"""Time limit of one mutant's tests."""
WANTED = 0.95
PYTEST = ("-x", "-q", "--tb=short", "-rfE", "-p", "no:cacheprovider")
PYTEST += ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # what is warm already
WARM = ("numpy", "torch", "safetensors.torch", "transformers", "datasets", "pytest")


@dataclass
class Outcome:
    """``verdict``: noticed, survived, does not apply, timeout, broken (the tests cannot be
    collected), or fails anyway (without the mutant too).
    """

    number: int
    mutant: Mutant
    verdict: str
    seconds: float = 0.0
    by: str = ""


@dataclass
class Copy:
    """One copy of the checkout, with at most one mutant in it."""

    folder: Path
    side: Path
    """Holds the plugins under the name of their package in the wheel."""

    def write(self, file: str, text: str) -> None:
        """Replaces one source file and drops its bytecode, which is keyed by time and size."""
        path = self.folder / file
        path.write_text(text, encoding="utf-8")
        for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            cached.unlink()


@dataclass
class Running:
    """A forked child that runs the tests of one mutant."""

    pid: int
    number: int
    copy: Copy
    before: str
    """The file without the mutant."""
    output: Path
    started: float = field(default_factory=time.monotonic)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the selected mutants; returns the exit code."""
    options = _options(arguments)
    chosen = [
        (number, mutant)
        for number, mutant in enumerate(MUTANTS)
        if (not options.room or mutant.room in options.room)
        and (not options.only or number in options.only)
        and (not options.file or options.file in mutant.file)
    ]
    for name in WARM:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        copies = [_copy(Path(name) / str(i)) for i in range(options.jobs)]
        if not options.no_baseline and not _passes(copies[0], chosen):
            return 2
        outcomes = _all(chosen, copies, options.timeout)
    return _report(outcomes, options.table)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.run", description=__doc__)
    parser.add_argument("--room", action="append", help="only this room; may be repeated")
    parser.add_argument("--only", action="append", type=int, help="only the mutant of this number")
    parser.add_argument("--file", help="only mutants of files whose path contains this")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at the same time")
    parser.add_argument("--timeout", type=float, default=SECONDS, help="seconds per mutant")
    parser.add_argument("--table", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass")
    return parser.parse_args(arguments)


def _copy(folder: Path) -> Copy:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "runs", ".git")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, folder / file.name)
    side = folder / ".side"
    side.mkdir()
    (side / "effcompress_plugins").symlink_to(folder / "plugins")
    return Copy(folder, side)


def _passes(copy: Copy, chosen: Sequence[tuple[int, Mutant]]) -> bool:
    """Whether the tests that have to notice pass without any mutant."""
    tests = sorted({test for _, mutant in chosen for test in mutant.tests})
    output = copy.folder / "output"
    started = time.monotonic()
    pid = _fork(copy, tests, output)
    _, status = os.waitpid(pid, 0)
    good = os.waitstatus_to_exitcode(status) == 0
    print(f"without mutants: {time.monotonic() - started:.0f} s, {len(tests)} tests", flush=True)
    if not good:
        print(output.read_text(encoding="utf-8", errors="replace")[-4000:])
        print("These tests must pass before they can notice anything.")
    return good


def _all(
    chosen: Sequence[tuple[int, Mutant]], copies: Sequence[Copy], limit: float
) -> list[Outcome]:
    waiting, free = list(chosen), list(copies)
    running: list[Running] = []
    done: list[Outcome] = []
    while waiting or running:
        while waiting and free:
            number, mutant = waiting.pop(0)
            copy = free.pop()
            text = (copy.folder / mutant.file).read_text(encoding="utf-8")
            if text.count(mutant.old) != 1:
                free.append(copy)
                _say(done, Outcome(number, mutant, "does not apply"))
                continue
            copy.write(mutant.file, text.replace(mutant.old, mutant.new))
            output = copy.folder / "output"
            pid = _fork(copy, mutant.tests, output)
            running.append(Running(pid, number, copy, text, output))
        time.sleep(0.05)
        for child in list(running):
            mutant = MUTANTS[child.number]
            verdict = _verdict(child, limit)
            if verdict is None:
                continue
            running.remove(child)
            child.copy.write(mutant.file, child.before)
            free.append(child.copy)
            seconds = time.monotonic() - child.started
            _say(done, Outcome(child.number, mutant, verdict, seconds, _failed(child.output)))
    return sorted(done, key=lambda outcome: outcome.number)


def _fork(copy: Copy, tests: Sequence[str], output: Path) -> int:
    """Starts pytest in a child that has imported the libraries and nothing of the project."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()  # a group of its own, so that a time limit ends its processes too
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 3
    try:
        os.chdir(copy.folder)
        path = [str(copy.folder), str(copy.side)]
        sys.path[:] = [*path, *(p for p in sys.path if p not in ("", str(ROOT)))]
        outer = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        # The environment's own side folder stays: it may carry the entry points.
        kept = [p for p in outer if p != str(ROOT)]
        os.environ["PYTHONPATH"] = os.pathsep.join([*path, *kept])
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False
        for module in [m for m in sys.modules if m.partition(".")[0] in ("tests", "effcompress")]:
            del sys.modules[module]
        pytest = importlib.import_module("pytest")
        found = pytest.main([*PYTEST, *tests])
        code = int(found)
    except Exception:  # noqa: BLE001  pytest itself failed: its output tells why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _verdict(child: Running, limit: float) -> str | None:
    """None while the child still runs."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if not pid:
        if time.monotonic() - child.started < limit:
            return None
        for process in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # launchers put workers in groups of their own
                process.kill()
        os.killpg(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        return "timeout"
    code = os.waitstatus_to_exitcode(status)
    # 2 and above: nothing was collected, or an import fails; that is no mutant to learn from.
    return {0: "survived", 1: "noticed"}.get(code, "broken")


def _failed(output: Path) -> str:
    """The first test that failed."""
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    for line in text.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" ", 1)[1].split(" - ")[0]
    return ""


def _say(done: list[Outcome], outcome: Outcome) -> None:
    done.append(outcome)
    mutant = outcome.mutant
    print(
        f"{outcome.number:4} {outcome.verdict:14} {outcome.seconds:5.1f} s  {mutant.file}: "
        f"{mutant.why}  {outcome.by}",
        flush=True,
    )


def _report(outcomes: Sequence[Outcome], table: Path | None) -> int:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
    noticed = counts.get("noticed", 0)
    fraction = noticed / max(len(outcomes), 1)
    words = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))
    print(f"{len(outcomes)} mutants: {words}; {fraction:.1%} noticed")
    silent = [o for o in outcomes if o.verdict == "survived" and not o.mutant.survives]
    for outcome in silent:
        print(f"not noticed and not explained: {outcome.number} {outcome.mutant.file}")
    if table is not None:
        rows = ["| number | file | change | verdict | seconds | by, or why it survives |"]
        rows.append("|---|---|---|---|---|---|")
        for o in outcomes:
            note = (o.mutant.survives if o.verdict == "survived" else o.by).replace("|", "\\|")
            rows.append(
                f"| {o.number} | {o.mutant.file} | {o.mutant.why} | {o.verdict} | "
                f"{o.seconds:.0f} | {note} |"
            )
        table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    if counts.get("does not apply") or counts.get("broken"):
        return 2
    return 1 if silent or fraction < WANTED else 0


if __name__ == "__main__":
    sys.exit(main())
