"""What the page of a comparison shows first, what it leaves out, and where its dots are."""

from __future__ import annotations

import html
import importlib.util
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from effcompress.report.comparison.dots import dots
from effcompress.report.comparison.facts import Method
from effcompress.report.comparison.names import differences, shortened, unusual
from effcompress.report.comparison.page import page
from effcompress.report.comparison.pictures import pictures
from effcompress.report.comparison.rows import compare
from effcompress.report.comparison.tables import comma_separated, grid, plain
from effcompress.report.render import render
from tests.report import recorded
from tests.report.made_up import TARGET, failed, method

_spec = importlib.util.spec_from_file_location(
    "page_checks", Path(__file__).parent / "test_report.py"
)
assert _spec is not None and _spec.loader is not None
page_checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(page_checks)


def text(methods: list[Method]) -> str:
    found = compare("x", methods)
    return page(found, pictures(found))


CASES = {
    "one size, single runs": lambda: recorded.one_shot("113M"),
    "several seeds": recorded.in_the_loop,
    "several sizes": lambda: recorded.in_the_loop("100M", "68M") + recorded.one_shot("zeros"),
    "a failure": lambda: [method("a"), failed("b_<i>", "RuntimeError: no <i> way")],
    "failures only": lambda: [failed("a", "no"), failed("b", "no")],
    "one method": lambda: [method("a")],
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_well_formed_and_stands_alone(case: str) -> None:
    said = text(CASES[case]())
    checker = page_checks.Checker()
    checker.feed(said.replace("<wbr>", "").replace("<!DOCTYPE html>", ""))
    assert not checker.open
    for svg in re.findall(r"<svg.*?</svg>(?!\s*</svg>)", said, re.S):
        if svg.count("<svg") == svg.count("</svg>"):
            ET.fromstring(svg)
    assert not {"script", "link", "img", "iframe"} & set(checker.seen) and "url(" not in said
    order = [
        said.find(f"<h2>{h}</h2>") for h in ("Results", "Under which conditions", "The methods")
    ]
    assert -1 not in order and order == sorted(order), "results before conditions"


def test_perplexity_is_the_second_column_everywhere() -> None:
    found = compare("x", recorded.one_shot("113M"))
    assert grid(found).header[:2] == ("method", "perplexity")
    head = re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', page(found, {}))
    assert head[:2] == ["method", "perplexity"]
    assert "arxiv" not in head[: head.index("method", 1)], "domains have a table of their own"


def test_what_is_equal_for_all_is_a_sentence_and_no_column() -> None:
    said = text([method("a", 2.0), method("b", 3.0), failed("c", "no")])
    (sentence,) = re.findall(r'<p class="words equal">(.*?)</p>', said)
    assert "parameters 113.01M (the dense model: 134.52M)" in sentence
    assert "training tokens 1M" in sentence and "runs 3" in sentence
    head = re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', said)
    assert "parameters" not in head and "runs" not in head and "pruning time" in head
    alone = text([method("a", 2.0)])
    assert 'class="words equal"' not in alone, "of one method nothing is equal"


# dots


def test_a_dot_for_every_seed_where_its_value_is() -> None:
    found = compare("x", [method("a", 2.0), method("b", 2.2), method("c", 2.1, seeds=(7,))])
    drawn = dots(found)
    assert drawn is not None and not drawn.log and not drawn.over
    assert [s.row.label for s in drawn.strips] == ["a", "c", "b"], "sorted"
    places: list[tuple[float, float]] = []
    for strip in drawn.strips:
        for dot, facts in zip(strip.seeds, strip.row.done, strict=True):
            value = math.exp(sum(map(math.log, facts.after.values())) / len(facts.after))
            places.append((value, dot.at))
    assert drawn.dense is not None
    places.append((math.sqrt(21.37 * 9.82), drawn.dense.at))
    places += [(float(t.told), t.at) for t in drawn.ticks]
    # All of them lie on one straight line.
    (x0, y0), (x1, y1) = min(places), max(places)
    for value, at in places:
        assert at == pytest.approx(y0 + (value - x0) / (x1 - x0) * (y1 - y0), abs=0.02)
        assert 0 <= at <= 100
    assert [len(s.seeds) for s in drawn.strips] == [3, 1, 3]
    assert [s.mean is None for s in drawn.strips] == [False, True, False], "one run is no mean"


def test_outliers_stand_at_the_edge_and_do_not_rule_the_scale() -> None:
    sane = [method("a", 2.0), method("b", 2.2)]
    drawn = dots(compare("x", [*sane, method("broken", 5e4)]))
    assert drawn is not None and drawn.over and not drawn.log
    last = drawn.strips[-1]
    assert last.row.label == "broken" and last.seeds == () and last.mean is None
    assert last.said.split()[0].replace(",", "").isdigit() and int(last.said[:3]) > 700
    assert "seed 0: 7" in last.over, "its value is told"
    apart = [max(p.at for p in s.seeds) for s in drawn.strips[:2]]
    assert apart[1] - apart[0] > 10, "the others have the scale to themselves"
    said = text([*sane, method("broken", 5e4)])
    assert said.count('class="over"') == 1 and "lies beyond the scale" in said


def test_half_of_the_methods_are_never_outliers() -> None:
    drawn = dots(compare("x", [method("a", 2.0), *(method(f"b{k}", 40 + k) for k in range(4))]))
    assert drawn is not None and drawn.log
    assert sum(bool(s.seeds) for s in drawn.strips) >= 3


def test_a_seed_of_its_own_may_be_the_outlier() -> None:
    (base,) = [method("a", 2.0)]
    bad = method("a", 900.0).attempts[0]
    mixed = replace(base, attempts=(replace(bad, seed=9), *base.attempts[1:]))
    drawn = dots(compare("x", [mixed, method("b", 2.1), method("c", 2.2)]))
    assert drawn is not None
    strip = next(s for s in drawn.strips if s.row.label == "a")
    assert len(strip.seeds) == 2 and strip.over and strip.mean is None


def test_a_method_alone_at_its_size_does_not_set_the_edge() -> None:
    alone = method("tiny", 900.0, params=TARGET // 9, target=TARGET // 9)
    drawn = dots(compare("x", [method("a", 2.0), method("b", 2.2), alone]))
    assert drawn is not None and [s.heading for s in drawn.strips] == [
        "113,000,000 parameters",
        "",
        "12,555,555 parameters",
    ]
    assert drawn.strips[2].over


@pytest.mark.parametrize("case", ["one size, single runs", "several seeds", "several sizes"])
def test_ticks_are_round_few_and_inside(case: str) -> None:
    drawn = dots(compare("x", CASES[case]()))
    assert drawn is not None
    assert 2 <= len(drawn.ticks) <= 6
    assert all(0 <= t.at <= 100 for t in drawn.ticks)
    assert len({t.told for t in drawn.ticks}) == len(drawn.ticks)
    assert all(b.at - a.at > 5 for a, b in zip(drawn.ticks, drawn.ticks[1:], strict=False))


# names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["small_taylor", "small_random"], ["taylor", "random"]),
        (["small_taylor_0", "small_random_0"], ["taylor", "random"]),
        (["taylor-x.y", "random-x.y"], ["taylor", "random"]),
        (["size_68M", "size_100M"], ["68M", "100M"]),
        (["ffn_8", "ffn_16"], ["ffn_8", "ffn_16"]),
        (["one_shot", "one_shot_2"], ["one_shot", "one_shot_2"]),
        (["a", "b"], ["a", "b"]),
        (["alone_here"], ["alone_here"]),
        (["taylor", "taylors"], ["taylor", "taylors"]),
        (["a_b_c", "a-b_d"], ["c", "d"]),
    ],
)
def test_names_keep_what_tells_them_apart(labels: list[str], names: list[str]) -> None:
    assert shortened(labels) == dict(zip(labels, names, strict=True))


def test_files_keep_the_whole_name() -> None:
    found = compare("x", [method("small_taylor"), method("small_random", 3.0)])
    assert [row.label for row in found.rows] == ["dense", "taylor", "random"]
    assert [row["method"] for row in plain(found)["rows"]] == [
        "dense",
        "small_taylor",
        "small_random",
    ]
    assert "\nsmall_taylor,113000000" in comma_separated(found)
    said = page(found, {})
    assert 'title="small_taylor">taylor' in said and "(small_<wbr>taylor)" in said


def test_what_recipes_have_of_their_own() -> None:
    said = {
        "a": {"criterion": "taylor", "schedule": "once", "space": "ffn"},
        "b": {"criterion": "random", "schedule": "once", "space": "ffn"},
        "c": {"criterion": "taylor", "schedule": "evenly", "space": "ffn", "repair": "bias"},
        "d": None,
    }
    same, apart = differences(said)
    assert same == {"space": "ffn"}
    assert apart["a"] == {"criterion": "taylor", "schedule": "once", "repair": "none"}
    assert unusual(apart) == {
        "a": {},
        "b": {"criterion": "random"},
        "c": {"schedule": "evenly", "repair": "bias"},
        "d": {},
    }
    two = differences({"a": {"x": "1"}, "b": {"x": "2"}})[1]
    assert unusual(two) == {"a": {"x": "1"}, "b": {"x": "2"}}, "no majority: each says its own"


def test_options_are_not_broken_and_long_names_may_be() -> None:
    said = text([method("a_name", 1.0, seeds=(0,)), method("b_name_here", 9.0, seeds=(0,))])
    assert 'Give several <span class="option">--seeds</span>' in said
    assert "b_<wbr>name_<wbr>here" in said
    assert html.unescape("&lt;") not in re.findall(r"aria-label=\"([^\"]*)\"", said)[0]


# colours


def luminance(colour: str) -> float:
    """Of WCAG 2.2, from ``#rgb`` or ``#rrggbb``."""
    digits = colour[1:]
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_on_every_ground(mode: int) -> None:
    palette = dict(
        re.findall(
            r"--(\w+): (#\w+)", re.findall(r":root \{(.*?)\}", render("palette.css"), re.S)[mode]
        )
    )
    grounds = {"ground": ("ink", "soft", "after", "good", "bad", "attention", "ffn", "hidden")}
    grounds |= {"paper": ("ink", "soft", "bad"), "warnback": ("ink",), "badback": ("ink",)}
    for ground, tones in grounds.items():
        for tone in tones:
            a, b = sorted((luminance(palette[ground]), luminance(palette[tone])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, f"{tone} on {ground}"
