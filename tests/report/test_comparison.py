"""Arithmetic, rows, files and pictures of comparisons, on made-up facts."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from scipy import stats

from effcompress.report import charts
from effcompress.report.comparison.facts import Facts, Method
from effcompress.report.comparison.page import FILES, write
from effcompress.report.comparison.pictures import pictures
from effcompress.report.comparison.rows import compare
from effcompress.report.comparison.spread import (
    Spread,
    geometric_mean,
    holm,
    marks,
    spread,
    welch,
)
from effcompress.report.comparison.tables import brief, comma_separated, markdown, plain
from tests.report.made_up import DENSE, TARGET, failed, method

# spread


def test_mean_and_sample_deviation() -> None:
    found = spread([2.0, None, 4.0, 9.0])
    assert found is not None
    assert (found.mean, found.number) == (5.0, 3)
    assert found.deviation == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert found.error == pytest.approx(found.deviation / math.sqrt(3))
    assert spread([3.0]) == Spread(3.0, None, 1) and spread([None]) is None
    huge = spread([1e304, 3e304])
    assert huge is not None and huge.deviation == pytest.approx(math.sqrt(2) * 1e304)


def test_domains_count_alike() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([1e200, 1e-200]) == pytest.approx(1.0)


SAMPLES = (
    ([27.5, 21.0, 19.0, 23.6, 17.0], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0]),
    ([10.0, 10.1, 10.2], [10.3, 10.5, 10.4]),
    ([1.5, 1.6], [4.0, 9.0, 2.0]),
    ([1e304, 3e304, 2e304], [7.0, 8.0, 9.0]),
    ([5.0, 5.0 + 1e-6, 5.0], [5.1, 5.2, 5.4]),
)


@pytest.mark.parametrize(("one", "other"), SAMPLES)
def test_welch_is_that_of_scipy(one: list[float], other: list[float]) -> None:
    scale = max(one + other) if max(one) > 1e150 else 1.0  # scipy's own squares overflow
    expected = stats.ttest_ind(
        [v / scale for v in one], [v / scale for v in other], equal_var=False
    )
    a, b = spread(one), spread(other)
    assert a is not None and b is not None
    assert welch(a, b) == pytest.approx(expected.pvalue, rel=1e-9)
    assert welch(b, a) == pytest.approx(expected.pvalue, rel=1e-9)


def test_a_tie_is_what_welch_cannot_tell_apart_at_five_percent() -> None:
    """The critical t of 4 degrees of freedom is 2.776 (any printed table), not 2."""
    one = Spread(10.0, 0.3, 3)  # equal deviations: 2 * (3 - 1) degrees of freedom
    combined = math.sqrt(2) * 0.3 / math.sqrt(3)
    assert marks([one, Spread(10.0 + 2.77 * combined, 0.3, 3)]) == ["best", "tied"]
    assert marks([one, Spread(10.0 + 2.78 * combined, 0.3, 3)]) == ["best", ""]
    assert welch(one, Spread(10.0, None, 1)) is None and welch(Spread(9.0, None, 1), one) is None
    exact = Spread(5.0, 0.0, 3)
    assert marks([exact, Spread(5.0, 0.0, 3)]) == ["best", "tied"]
    assert marks([exact, Spread(5.0001, 0.0, 3)]) == ["best", ""]


def test_several_methods_are_harder_to_tell_apart_than_one() -> None:
    """Holm by hand: .01, .04 and .03 become 3 x .01, the larger of 2 x .03 and .04, 2 x .03."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == []
    one, combined = Spread(10.0, 0.3, 3), math.sqrt(2) * 0.3 / math.sqrt(3)
    near = Spread(10.0 + 3.0 * combined, 0.3, 3)  # p = .04
    assert marks([one, near]) == ["best", ""]
    assert marks([one, near, Spread(10.1, 0.3, 3)]) == ["best", "tied", "tied"]
    far = Spread(20.0, 0.3, 3)
    assert marks([one, near, far, far]) == ["best", "", "", ""], "what is far costs nothing"


def test_marks() -> None:
    a, b, c = Spread(10.0, 0.3, 9), Spread(10.2, 0.3, 9), Spread(11.0, 0.3, 9)
    single = Spread(1.0, None, 1)
    assert marks([c, b, None, a, single]) == ["", "tied", "", "best", ""]
    assert marks([a, single]) == ["", ""], "one alone is not best of anything"
    assert marks([single, single]) == ["", ""]


# the whole


def many() -> list[Method]:
    accuracy = {"piqa": 0.5, "arc": 0.25}
    limit = {"tasks_protocol": {"limit": 100}}
    return [
        method(
            "taylor", 1.62, tasks_after=accuracy, tasks_before={"piqa": 0.7, "arc": 0.35}, **limit
        ),
        method("taylor_mixed", 1.615, tasks_after={"piqa": 0.5}, **limit),
        method("magnitude", 3.1, measures="nothing", calibration=frozenset()),
        method("odd | <b>", 1.2, trained=9),
        failed("broken", "RuntimeError: no <i> way", seeds=(0, 1, 2)),
    ]


def test_the_dense_model_is_the_first_row() -> None:
    dense = compare("x", many()).rows[0]
    assert (dense.label, dense.size, dense.mark) == ("dense", None, "")
    assert dense.values["params"].mean == DENSE
    assert dense.values["removed"].mean == 0
    assert dense.values["perplexity"].mean == pytest.approx(math.sqrt(21.37 * 9.82))
    assert dense.values["accuracy"].mean == pytest.approx(0.525)
    nobody = compare("x", [failed("a", "no"), failed("b", "no")])
    assert nobody.rows[0].reason == "no run got as far as measuring it"
    assert nobody.claims[0].startswith("None is called best: fewer than two")


def test_who_measured_another_dense_model_has_a_row_for_it() -> None:
    methods = [
        method("a"),
        method("b"),
        method("c", source="other", source_hash="ff" * 8, dense_params=7),
    ]
    dense = [row for row in compare("x", methods).rows if row.size is None]
    assert [(row.label, row.values["params"].mean) for row in dense] == [
        ("dense", DENSE),
        ("dense (c)", 7),
    ]


def test_rows_are_sorted_and_ties_are_marked() -> None:
    found = compare("x", many())
    said = [(r.label, r.mark) for r in found.rows[1:]]
    assert [label for label, _ in said] == [
        "odd | <b>",
        "taylor_mixed",
        "taylor",
        "magnitude",
        "broken",
    ]
    assert dict(said)["odd | <b>"] == "" and set(dict(said).values()) == {"", "best", "tied"}
    assert dict(said)["magnitude"] == ""
    (claim,) = found.claims
    assert "Not ranked, because of what their footnotes say: odd | <b>." in claim


def test_one_seed_claims_nothing() -> None:
    found = compare("x", [method("a", 1.0, seeds=(0,)), method("b", 9.0, seeds=(0,))])
    assert not any(row.mark for row in found.rows)
    assert found.claims == (
        "None is called best: of single runs the spread is not known. Give several --seeds.",
    )
    text = markdown(found)
    assert "±" not in text and "**1" not in text


def test_accuracy_is_a_mean_over_all_tasks_or_nothing() -> None:
    rows = {r.label: r.values for r in compare("x", many()).rows}
    assert rows["taylor"]["accuracy"].mean == pytest.approx(0.375)
    assert "accuracy" not in rows["taylor_mixed"], "it lacks a task"
    assert rows["taylor_mixed"]["accuracy/piqa"].mean == 0.5


def test_the_seven_conditions() -> None:
    said = dict(compare("x", many()).conditions)
    assert list(said) == [
        "checkpoint",
        "calibration",
        "parameters",
        "layers",
        "recovery",
        "evaluation",
        "seeds",
    ]
    assert said["checkpoint"] == "SmolLM2-135M, hash of the weights cccccccc"
    assert said["parameters"] == "113,000,000, within 0.5 %"
    assert said["layers"] == "all 30 lose something"
    assert said["recovery"].startswith("1,000,000 tokens of prose 50.0 %, code 50.0 %; otherwise")
    assert "window 512, stride 512, bos none" in said["evaluation"]
    assert said["seeds"] == "0, 1, 2"
    few = [*many(), method("skips", layers=frozenset(range(3, 28)))]
    assert dict(compare("x", few).conditions)["layers"] == (
        "all 30 lose something; 25 of 30 in skips"
    )


def test_markdown() -> None:
    text = markdown(compare("x", many()))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    best = [line for line in table if "**" in line]
    assert len(best) == 1 and best[0].startswith("| **taylor")
    assert "failed: RuntimeError: no \\<i\\> way" in text
    assert "\\[a\\] Was trained on 9 tokens instead of 1,000,000." in text


def test_csv_has_base_units_and_deviations() -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(compare("x", many())))))
    one = next(row for row in rows if row["method"] == "taylor")
    assert float(one["params"]) == TARGET + 12_345 and one["size"] == str(TARGET)
    assert float(one["prune_seconds"]) == pytest.approx(20 * 1.62 + 1)
    assert float(one["prune_seconds sd"]) == pytest.approx(1.0)
    assert rows[-1]["reason"] == "RuntimeError: no <i> way" and rows[-1]["perplexity"] == ""
    assert rows[0]["method"] == "dense"


def test_json_has_every_run() -> None:
    data = json.loads(json.dumps(plain(compare("x", many()))))
    taylor = next(row for row in data["rows"] if row["method"] == "taylor")
    assert [run["seed"] for run in taylor["runs"]] == [0, 1, 2]
    assert taylor["runs"][1]["facts"]["calibration"] == [{"hash": f"{1:x}" * 16, "number": 16384}]
    assert taylor["runs"][0]["facts"]["layers"] == [*range(30)]
    assert taylor["values"]["perplexity"]["number"] == 3
    assert data["columns"]["zeroed"]["help"]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    page = write(tmp_path, compare("<one> & two", many()))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    text = page.read_text()
    assert "&lt;one&gt; &amp; two" in text and "<i>" not in text and "<b>odd" not in text
    assert not re.findall(r'(?:src|href)="(?!runs/)[^"]*"', text)
    assert 'href="runs/taylor_0/report.html"' in text
    for word in ("best", "tied", "Welch", "Was trained on 9 tokens"):
        assert word in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ET.fromstring(svg)


def test_zeroed_is_a_column_where_some_are() -> None:
    assert "zeroed" not in brief(compare("x", many())).header
    zeros = method("zeros", params=DENSE, zeroed=DENSE // 2)
    assert "zeroed" in brief(compare("x", [*many(), zeros])).header


# pictures


def test_pictures_are_those_there_are_numbers_for() -> None:
    drawn = pictures(compare("x", many()))
    assert list(drawn) == ["loss", "prune_seconds", "prune_memory"], "one size, equal FLOPs"
    smaller = {"params": TARGET // 2, "target": TARGET // 2, "flops": 4e14}
    several = [*many(), method("half", 3.0, **smaller), method("half_too", 3.5, **smaller)]
    names = ["parameters", "operations", "loss", "prune_seconds", "prune_memory"]
    assert list(pictures(compare("x", several))) == names
    still = {"flops": 0.0, "losses": (), "prune_seconds": None, "prune_memory": None}
    assert pictures(compare("x", [method("a", **still), method("b", 3.0, **still)])) == {}
    assert pictures(compare("x", [failed("a", "no")])) == {}


def test_names_of_points_do_not_lie_on_each_other() -> None:
    half = {"params": TARGET // 2, "target": TARGET // 2}
    methods = [
        method(f"a_long_name_{k}", 2.0 + k / 50, **(half if k > 10 else {})) for k in range(14)
    ]
    svg = pictures(compare("x", methods))["parameters"]
    drawn = []
    place = r'<text text-anchor="(\w+)" transform="translate\((\S+?),(\S+?)\)"[^>]*>'
    for anchor, x, y, name in re.findall(place + r"([^<]*name[^<]*)<", svg):
        wide = len(name) * charts.LETTER
        left = float(x) - (wide if anchor == "end" else 0)
        drawn.append((left, float(y) - 10, left + wide, float(y)))
    assert len(drawn) == 14
    for i, a in enumerate(drawn):
        assert a[0] >= -76 and a[2] <= 940 - 76
        for b in drawn[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_enormous_perplexities_are_drawn_and_written() -> None:
    half = {"params": TARGET // 2, "target": TARGET // 2}
    found = compare("x", [method("a", 1e40), method("b", 2.0), method("c", 2.0, **half)])
    assert "·10" in markdown(found)
    assert "a \u2191 1.5·10⁴¹" in pictures(found)["parameters"], "at the edge, with its value"
    assert "logarithmic" not in pictures(found)["parameters"], "it does not rule the scale"


def test_facts_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Facts().seed = 3  # type: ignore[misc]
