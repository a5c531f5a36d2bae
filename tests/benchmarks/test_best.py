"""The experiment of the flagship: candidates are recipes, the sweep reads no table's held-out text,
budgets of equal operations and power laws come out as by hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from effcompress.estimate.check import check
from effcompress.estimate.schedule import total_tokens
from tests.benchmarks.test_efficientllm_rows import loaded

CANDIDATES = [
    *("B", "KD and LM throughout", "KD alone throughout", "KD at half weight", "refit at the end"),
    *("refit at the end, damp 1", "pruning 10 % of the tokens", "pruning 20 % of the tokens"),
    *("pruning 45 % of the tokens", "pruning 60 % of the tokens", "a cut every 2 steps"),
    *("a cut every 8 steps", "one cosine", "rate 1e-4", "rate 3e-4", "rate 4e-4"),
    *("rate warmed up again, moments dropped", "heads first", "channels first", "lockstep widths"),
    *("saliency of 33 steps", "saliency of 3 steps", "Taylor"),
    *("second moments of 20 steps more", "update damped by 0.1", "dynamic mixture"),
    *("no weight decay", "batches of one sequence", "once", "once, refit"),
    *("once, refit damp 1, low rate", "once, refit, rate 1e-4", "once, refit, rate 4e-4"),
    *("once, refit to 256 sequences", "once, refit to 32 sequences"),
    "once, refit, batches of one sequence",
    *(
        "once, refit, dynamic mixture",
        "once, refit, mixture by training losses",
        "in 3 rounds, a refit behind each",
        "once, refit, low rate",
        "once, refit, KD and LM",
    ),
]
"""Written out, because the scripts are importable only within a test."""


def test_every_candidate_has_a_reason_and_is_tested() -> None:
    from best_rows import CHANGES, EVERY, FLAGSHIP, LOOP
    from efficientllm_rows import ROWS

    assert [*CHANGES] == CANDIDATES and LOOP in CHANGES and FLAGSHIP in ROWS
    assert all(len(change.reason) > 15 for change in EVERY.values())


OTHER_CUTS = {"heads first", "channels first", "lockstep widths", "once, refit"}
"""Candidates whose size could be out of reach; a forecast takes seconds."""


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_checks_and_reads_no_table(name: str, corpus: Path) -> None:
    from best import RUNGS, TUNED_ON, tuning
    from efficientllm_rows import Job

    made = tuning(corpus)
    command = made.command(Job(name, "100M", RUNGS[0], TUNED_ON, "fp32"))
    assert "validation" not in " ".join(command)
    recipe = loaded(command)
    assert recipe.recipe.seed == TUNED_ON not in (0, 1, 2)
    assert total_tokens(recipe.recipe) == pytest.approx(RUNGS[0], abs=512)
    assert all(d.holdout == 0.15 and not d.validation for d in recipe.recipe.data.domains.values())
    if name in OTHER_CUTS:
        assert check(recipe).data["ends_at"] == pytest.approx(100e6, rel=0.005)


def test_rivals_differ_in_the_rate_alone(corpus: Path) -> None:
    from best import tuning
    from best_rows import RIVALS
    from efficientllm_rows import Job

    for name in RIVALS:
        loop = loaded(tuning(corpus).command(Job(name, "68M", 60_000, 3))).recipe.loop
        assert loop.learning_rate.peak == float(name.rpartition(" ")[2])


def line(row: str, value: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A line of results whose mean perplexity is ``value``."""
    from efficientllm_rows import Job

    own = {"params": 100_000_000, "minutes": 1.0, "book": value, "dense book": 20.0}
    key = {k: more.pop(k) for k in ("tokens", "equal", "size", "precision") if k in more}
    fields: dict[str, Any] = {"size": "100M", "tokens": 60_000, "precision": "fp32", **key}
    return {**Job(row, seed=seed, **fields).line(), **own, **more}


def test_the_better_half_goes_on(corpus: Path, tmp_path: Path) -> None:
    from best import RUNGS, tune
    from efficientllm_rows import Job
    from protocol import Experiment, append

    names = ["B", "once", "Taylor", "one cosine", "rate 1e-4", "rate 3e-4"]
    worth = dict(zip(names, (30.0, 25.0, 40.0, 24.0, 50.0, 29.0), strict=True))
    ran: list[tuple[str, int]] = []

    class Made(Experiment):
        def run(self, job: Job, tokens: int | None = None) -> None:
            ran.append((job.row, job.tokens))
            append(self.results, line(job.row, worth[job.row], 3, tokens=job.tokens))

    made = Made({}, {}, tmp_path / "results.csv", tmp_path / "runs")
    tune(made, names[1:], Job("B", "100M", 60_000, 3, "fp32"), 1)
    by_rung = [sorted(name for name, tokens in ran if tokens == rung) for rung in RUNGS]
    assert by_rung[0] == sorted(names)
    # Three of six, and the loop, which is the fourth; then two of four and the loop.
    assert by_rung[1] == sorted(["one cosine", "once", "rate 3e-4", "B"])
    assert by_rung[2] == sorted(["one cosine", "once", "B"])
    before = len(ran)
    tune(made, names[1:], Job("B", "100M", 60_000, 3, "fp32"), 1)
    assert len(ran) == before, "what is there is not run again"


def test_tokens_of_equal_operations() -> None:
    from protocol import STEP, tokens_for

    # 2e9 operations beside the steps, and 1e6 per token of 61,440.
    own = {"flops": 2e9 + 1e6 * 61_440, "flops_besides": 2e9, "trained": 61_440}
    assert tokens_for(2e9 + 1e6 * 30_720, own) == 30_720
    assert tokens_for(2e9 + 1e6 * (30_720 + 200), own) == 30_720, "whole steps"
    assert tokens_for(1e9, own) == STEP, "at least one"


def test_a_row_at_equal_operations_gets_them(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientllm import run_equal
    from efficientllm_rows import ROWS, Job, NotYet
    from protocol import Experiment, append

    made = Experiment(ROWS, {}, tmp_path / "results.csv", tmp_path / "runs")
    append(made.results, line("B", 30.0, flops=4e13, flops_besides=1e13, trained=60_416))
    append(made.results, line("A", 31.0, flops=2e13, flops_besides=0.0, trained=60_416))
    ran: list[tuple[str, str, int | None]] = []
    monkeypatch.setattr(
        Experiment, "run", lambda _, job, tokens=None: ran.append((job.row, job.equal, tokens))
    )
    run_equal(made, "A", Job("B", "100M", 60_000, 0, "fp32", "flops"))
    # A third of B's steps' operations are left of A's 2e13.
    assert ran == [("B", "flops", round(60_416 / 3 / 512) * 512)]
    run_equal(made, "A", Job("A", "100M", 60_000, 0, "fp32", "flops"))
    assert len(ran) == 1 and made.line_of(Job("A", "100M", 60_000, 0, "fp32", "flops"))
    # Another seed: its operations are not known, those of the first are taken.
    append(made.results, line("A", 31.0, seed=1, flops=2e13, flops_besides=0.0, trained=60_416))
    run_equal(made, "A", Job("B", "100M", 60_000, 1, "fp32", "flops"))
    assert ran[1] == ran[0]
    run_equal(made, "B", Job("A", "100M", 60_000, 1, "fp32", "flops"))
    assert ran[2] == ("A", "flops", 60_416 * 2)
    with pytest.raises(NotYet, match="run it with equal tokens first"):
        run_equal(made, "A", Job("CoFi", "100M", 60_000, 0, "fp32", "flops"))


def test_results_gain_columns_and_keep_lines(tmp_path: Path) -> None:
    from protocol import Experiment, append

    results = tmp_path / "results.csv"
    old = {k: v for k, v in line("A", 31.0).items() if k != "equal"}
    append(results, old)
    append(results, line("A", 30.0, 1, flops=4e13, agreement=0.6))
    made = Experiment({}, {}, results, tmp_path, needed=("flops",))
    first, second = made.lines()
    assert (first["equal"], first["flops"], second["agreement"]) == ("tokens", "", "0.6")
    from efficientllm_rows import Job

    assert made.line_of(Job("A", "100M", 60_000, 0, "fp32")) is None, "it lacks what is needed"
    assert made.line_of(Job("A", "100M", 60_000, 1, "fp32")) == second
    append(results, line("A", 29.0, 0, flops=4e13))
    assert [x["book"] for x in made.lines()] == ["29.0", "30.0"], "the newest of each run counts"


def test_a_run_is_read(tmp_path: Path) -> None:
    from protocol import finished, result

    scores = {"book": {"perplexity": 30.0, "agreement": 0.5, "divergence": 0.75}}
    scores["code"] = {"perplexity": 20.0, "agreement": 0.7, "divergence": 0.25}
    events = [
        {"event": "evaluation", "when": "before", "domains": {"book": {"perplexity": 25.0}}},
        {"event": "cut", "flops": 3e9},
        {"event": "step", "tokens": 512, "flops": 1e9, "seconds": 2.0},
        {"event": "refit", "flops": 5e9},
        {"event": "cut"},  # of an earlier version
        {"event": "step", "tokens": 1024, "flops": 1e9, "seconds": 4.0},
        {"event": "evaluation", "when": "after", "domains": scores},
        {"event": "end", "status": "success", "params": 7, "seconds": 60.0},
    ]
    assert not finished(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert finished(tmp_path)
    found = result(tmp_path)
    assert (found["flops"], found["flops_besides"], found["trained"]) == (10e9, 8e9, 1024)
    assert (found["agreement"], found["divergence"]) == (0.6, 0.5)
    assert (found["minutes"], found["steps_per_second"], found["dense book"]) == (1.0, 0.5, 25.0)


def test_a_power_law_is_found_with_its_error() -> None:
    from growth import fit

    exact = [(t, 9.0 * t**-0.1) for t in (15e3, 60e3, 200e3, 800e3)]
    law = fit(exact)
    assert (law.slope, math.exp(law.intercept)) == pytest.approx((-0.1, 9.0))
    assert law(1e6) == pytest.approx(9.0 * 1e6**-0.1) and law.error == pytest.approx(0, abs=1e-6)
    noisy = [(t, y * (1 + e)) for (t, y), e in zip(exact, (0.02, -0.01, 0.03, -0.02), strict=True)]
    logs = [[math.log(v) for v in values] for values in zip(*noisy, strict=True)]
    expected = stats.linregress(*logs)
    law = fit(noisy)
    assert law.slope == pytest.approx(expected.slope)
    assert law.error == pytest.approx(expected.stderr)
    assert law.covariance is not None
    assert math.sqrt(law.covariance[0][0]) == pytest.approx(expected.intercept_stderr)
    assert fit(exact[:2]).covariance is None
    with pytest.raises(ValueError, match="two budgets"):
        fit([exact[0], exact[0]])


def test_where_two_laws_cross() -> None:
    from growth import crossing, fit

    budgets = (15e3, 60e3, 200e3, 800e3)
    bent = (1.01, 0.99, 1.01, 0.99)
    slow = fit([(t, 9.0 * t**-0.10 * e) for t, e in zip(budgets, bent, strict=True)])
    fast = fit([(t, 30.0 * t**-0.20 * e) for t, e in zip(budgets, bent[::-1], strict=True)])
    found = crossing(slow, fast)
    assert found is not None and found.low is not None and found.high is not None
    assert found.tokens == pytest.approx((30 / 9) ** 10, rel=0.5)
    assert slow(found.tokens) == pytest.approx(fast(found.tokens))
    assert found.low < found.tokens < found.high and found.never == pytest.approx(0, abs=0.01)
    assert found == crossing(slow, fast), "the same draws every time"
    assert crossing(fast, slow) is None, "what falls less steeply does not catch up"


def test_tables_of_results(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import best
    from best_rows import FLAGSHIP
    from protocol import append

    for name in ("RESULTS", "TUNING", "TASKS"):
        monkeypatch.setattr(best, name, tmp_path / f"{name}.csv")
    monkeypatch.setattr(best, "PICTURE", tmp_path / "growth.svg")
    for seed in (0, 1):
        for row, value in ((FLAGSHIP, 27.0 + seed), ("LLM-Pruner once", 30.0), ("FLAP once", 36.0)):
            more = {"agreement": 0.6 + seed / 10, "divergence": 0.5, "trained": 60_416}
            append(best.RESULTS, line(row, value, seed, flops=4e13, flops_besides=0.0, **more))
    append(best.RESULTS, line(FLAGSHIP, 24.0, tokens=200_000, trained=200_192))
    append(best.RESULTS, line("LLM-Pruner once", 28.0, tokens=200_000, trained=200_192))
    append(best.TUNING, line("B", 30.0, 3, tokens=15_000))
    append(best.TUNING, line("one cosine", 27.0, 3, tokens=15_000))
    task = {"row": "B", "task": "piqa", "limit": 200, "metric": "acc"}
    append(best.TASKS, {**task, "value": 0.55, "stderr": 0.035})
    best.print_tables(corpus)
    said = capsys.readouterr().out
    assert "| 100M | tokens | LLM-Pruner once (published) | 0.917 | 0.9 | 2 |" in said
    assert "once (ours)" not in said, "it is not held against itself"
    assert "| one cosine | IDEA-Prune" in said and "27.00 (-10.0%)" in said
    assert "| 100M | one_shot once | 65 ± 7.07 | 0.5 ± 0 | 2 |" in said
    assert "LLM-Pruner once does not pass one_shot once at any budget" in said
    assert "| B | 55.0 ± 3.5 |" in said
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_what_was_begun_is_not_run_over(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import best

    monkeypatch.setattr(best, "RUNS", tmp_path)
    (tmp_path / "best" / "100M_60000_A_0_bf16" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["best.py", str(corpus)])
    with pytest.raises(SystemExit, match="--resume"):
        best.main()
