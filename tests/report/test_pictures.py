"""The pictures over tokens as files: what is written on them, and the points beside them."""

from __future__ import annotations

import csv
import importlib.util
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from effcompress.report import charts, write
from effcompress.report.charts import DASHES, PLAIN, Chart, Line, draw, table
from effcompress.report.gather import gather

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).parent / "synthetic.py")
assert _spec is not None and _spec.loader is not None
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
OVER_TOKENS = ("saliency", "removed", "parameters")
STAGES = (("warmup", 0), ("pruning", 20 * 4096), ("continued", 200 * 4096))


def staged():
    """A whole run with stages."""
    run = synthetic.full_run()
    for name, tokens in reversed(STAGES):
        place = next(i for i, e in enumerate(run.metrics) if e.get("tokens", -1) >= tokens)
        stage = {"event": "stage", "name": name, "step": tokens // 4096, "tokens": tokens}
        run.metrics.insert(place, stage)
    return run


def one_kind():
    """Only FFN channels may go, and only their saliency is known."""
    run = synthetic.full_run(40, 20)
    run.metrics[0]["widths"] = {k: v for k, v in synthetic.WIDTHS.items() if k.startswith("ffn")}
    for event in run.metrics:
        if event["event"] == "cut":
            event["saliency"] = {"ffn": 1e-7}
            event["share_removed"] = {"ffn": event["share_removed"]["ffn"]}
    return run


def died():
    """The record ends in the middle of the cuts."""
    run = staged()
    run.metrics = run.metrics[:150]
    return run


def drawn(folder: Path, name: str) -> str:
    return (folder / "pictures" / f"{name}.svg").read_text("utf-8")


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "pictures" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def borders(svg: str) -> int:
    """Lines where a stage begins."""
    found = re.search(r'<g class="[^"]*stages_marks"[^>]*>(.*?)</g>', svg)
    return 0 if found is None else found[1].count("<line")


def words(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


@pytest.mark.parametrize("name", OVER_TOKENS)
def test_a_picture_says_what_it_shows(name, tmp_path):
    write(synthetic.save(tmp_path, staged()))
    said = words(drawn(tmp_path, name))
    assert "tokens trained on" in said
    unit = {"saliency": "saliency per freed parameter", "removed": "fraction removed"}
    assert unit.get(name, "parameters") in said
    assert all(stage in said for stage, _ in STAGES)
    if name != "parameters":
        assert {"attention heads", "FFN channels", "hidden channels"} <= set(said), "a legend"
    assert borders(drawn(tmp_path, name)) == 2, "none where the run begins"


def test_kinds_have_the_same_colour_and_dashes_everywhere(tmp_path):
    write(synthetic.save(tmp_path, staged()))
    for name in ("saliency", "removed"):
        svg = drawn(tmp_path, name)
        tones = re.findall(r'<path [^>]*stroke="var\(--(attention|ffn|hidden)\)"[^>]*>', svg)
        assert sorted(tones) == ["attention"] * 2 + ["ffn"] * 2 + ["hidden"] * 2, "legend and line"
        for tone, dashes in (("attention", "8,4"), ("hidden", "0.1,4.6")):
            paths = re.findall(rf'<path [^>]*stroke="var\(--{tone}\)"[^>]*>', svg)
            assert all(f'stroke-dasharray="{dashes}"' in path for path in paths)
    style = drawn(tmp_path, "saliency").split("</style>")[0]
    assert style.count("--attention:") == 2 and "prefers-color-scheme: dark" in style


def test_the_points_are_those_of_the_record(tmp_path):
    record = gather(synthetic.save(tmp_path, staged()))
    write(tmp_path)
    column = "{} (saliency per freed parameter)"
    found = rows(tmp_path, "saliency")
    assert len(found) == len(record.cuts), "not thinned"
    for row, cut in zip(found, record.cuts, strict=True):
        assert float(row["tokens trained on"]) == cut.tokens
        for kind, name in (("attention", "attention heads"), ("ffn", "FFN channels")):
            assert float(row[column.format(name)]) == pytest.approx(cut.saliency[kind], rel=1e-8)
    last = rows(tmp_path, "removed")[-1]
    share = record.cuts[-1].share_removed["hidden"]
    assert float(last["hidden channels (fraction removed)"]) == pytest.approx(share, rel=1e-8)
    sizes = rows(tmp_path, "parameters")
    assert int(sizes[0]["parameters"]) == record.params_before
    assert int(sizes[-1]["parameters"]) == record.params_after
    svgs = {p.stem for p in (tmp_path / "pictures").glob("*.svg")}
    assert {p.stem for p in (tmp_path / "pictures").glob("*.csv")} <= svgs


CASES = {
    "no cuts": (lambda: synthetic.full_run(40, 0), {"parameters"}),
    "one cut": (lambda: synthetic.full_run(40, 1), set(OVER_TOKENS)),
    "one kind": (one_kind, set(OVER_TOKENS)),
    "died half-way": (died, set(OVER_TOKENS)),
}


@pytest.mark.parametrize("case", CASES)
def test_runs_that_lack_something(case, tmp_path):
    make, expected = CASES[case]
    write(synthetic.save(tmp_path, make()))
    there = {p.stem for p in (tmp_path / "pictures").glob("*.csv")}
    assert there & set(OVER_TOKENS) == expected
    for name in expected:
        assert "tokens trained on" in words(drawn(tmp_path, name))
        assert rows(tmp_path, name)
        ET.fromstring(drawn(tmp_path, name))
    if case == "one cut":
        assert len(rows(tmp_path, "saliency")) == 1
        assert "mark-symbol role-mark" in drawn(tmp_path, "saliency"), "a dot, for want of a line"
        legend = re.search(r'role-legend-symbol"><path [^>]*>', drawn(tmp_path, "saliency"))
        assert legend and " d=" in legend[0] and "A" not in legend[0].split(" d=")[1][:60], (
            "no disc"
        )
    if case == "one kind":
        assert "saliency per freed parameter" in rows(tmp_path, "saliency")[0]
        assert "hidden channels" not in words(drawn(tmp_path, "saliency"))


def test_a_stage_that_did_not_begin_is_not_drawn(tmp_path):
    write(synthetic.save(tmp_path, died()))
    assert borders(drawn(tmp_path, "removed")) == 1


def places(svg: str) -> dict[str, tuple[float, float]]:
    """Text -> where it stands, with the shifts of the groups around it."""
    found: dict[str, tuple[float, float]] = {}

    def walk(element: ET.Element, x: float, y: float) -> None:
        shift = re.match(r"translate\(([^,)]+),([^)]+)\)", element.get("transform", ""))
        x, y = (x + float(shift[1]), y + float(shift[2])) if shift else (x, y)
        if element.tag.endswith("}text"):
            found["".join(element.itertext())] = (x, y)
        for child in element:
            walk(child, x, y)

    walk(ET.fromstring(svg), 0.0, 0.0)
    return found


def test_many_kinds_wrap_the_legend_and_short_stages_do_not_overlap():
    lines = [Line(f"k{i}", [(0, 1.0), (9, 2.0)], "ffn", f"kind number {i}") for i in range(7)]
    stages = (("warmup", 0.0), ("pruning", 0.1), ("continued", 0.2))
    chart = Chart("T", lines, "units", PLAIN, str, x_title="tokens", stages=stages)
    at = places(draw(chart))
    assert len({at[name][1] for name, _ in stages}) == 2, "two heights"
    legend = [at[f"kind number {i}"] for i in range(7)]
    assert len({y for _, y in legend}) >= 3
    assert max(y for _, y in legend) < min(at[name][1] for name, _ in stages)
    assert all(0 <= x < charts.WIDTH - 60 for x, _ in legend)
    ends = sorted(at[f"k{i}"][1] for i in range(7))
    assert all(b - a > charts.LINE - 0.1 for a, b in pairwise(ends)), "names of equal ends"
    assert {e for e, t in at.items() if t[1] > charts.HEIGHT} == set()


def test_a_tooltip_tells_all_values_of_a_place() -> None:
    lines = [
        Line("a", [(1, 0.5), (2, 0.1)], "ffn"),
        Line("<b>", [(2, 7.0)], "hidden"),
        Line("", [(2, 9.0)], "ffn", told=False),
    ]
    svg = draw(Chart("T & U", lines, "units", PLAIN, str, "of <it>", "tokens"))
    titles = [e.text for e in ET.fromstring(svg).iter() if e.tag.endswith("}title")]
    assert titles == ["1 tokens\na: 0.5", "2 tokens\na: 0.1\n<b>: 7.0"]
    assert ET.fromstring(svg).get("aria-label") == "T & U, of <it>"
    assert ET.fromstring(svg).get("role") == "img"


def test_pictures_are_text_and_the_same_each_time() -> None:
    chart = Chart("T", [Line("a", [(1, 0.5), (2, 0.1)], "spare2")], "y", PLAIN, str, x_title="x")
    assert draw(chart) == draw(chart)
    assert DASHES["spare2"] == [4, 5] and 'stroke-dasharray="4,5"' in draw(chart)
    assert {"T", "a", "x", "y", "0.2"} <= set(words(draw(chart)))


def test_a_table_keeps_several_points_of_one_place():
    lines = [
        Line("a", [(1, 0.5), (1, 0.25), (2, 0.1)], "ffn", "A"),
        Line("b", [(2, 7.0)], "hidden", "B"),
    ]
    chart = Chart("T", lines, "units", PLAIN, str, x_title="tokens")
    assert table(chart) == "tokens,A (units),B (units)\n1,0.5,\n1,0.25,\n2,0.1,7\n"
