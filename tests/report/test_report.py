"""The page and the card hold whatever a run did or did not do."""

from __future__ import annotations

import html
import html.parser
import importlib.util
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from effcompress.errors import RunError
from effcompress.record.status_file import StatusFile
from effcompress.report import write, write_card
from effcompress.report.card import card, hub
from effcompress.report.gather import gather
from effcompress.report.render import PARTIAL, replace
from effcompress.report.words import method

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).parent / "synthetic.py")
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
VOID = {"meta", "img", "link"}


class Checker(html.parser.HTMLParser):
    """Every tag that opens also closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def only(run, *kinds):
    run.metrics = [event for event in run.metrics if event["event"] not in kinds]
    return run


def failed():
    run = only(synthetic.full_run(40, 20), "end", "proof", "export")
    run.metrics.append({"event": "end", "status": "failed", "seconds": 3.0,
                        "reason": "the <target> was missed"})  # fmt: skip
    return run


def recovered():
    """All cuts before the first step: one-shot pruning, then recovery."""
    run = synthetic.full_run(40, 20)
    for event in run.metrics:
        if event["event"] == "cut":
            event["tokens"] = event["step"] = 0
        if event["event"] == "step":
            event["params"] = run.params
    return run


def first(number):
    run = synthetic.full_run(40, 20)
    run.metrics = run.metrics[:number]
    return run


def worse():
    run = synthetic.full_run(40, 20)
    for event in run.metrics:
        if event["event"] == "cut":
            event["saliency"] = {"attention": 0.0, "experts": 1e-9}
            event["share_removed"]["experts"] = 0.1
    return run


def several():
    """Two sizes on the way, the second trained on."""
    run = synthetic.full_run(40, 20)
    for number, (size, more) in enumerate(((130_000_000, 0), (120_000_000, 4000))):
        run.metrics.insert(-4, {
            "event": "size", "name": f"{size // 10**6}M", "asked": size, "params": size - 1234,
            "step": 10 * number + 5, "tokens": 30_000 * number + 15_000, "continued": more,
            "perplexity": {"prose": 22.5 + number, "code": 10.25 + number},
            "folder": f"at/{size // 10**6}M", "seconds": 12.5,
        })  # fmt: skip
    return run


CASES = {
    "whole": synthetic.full_run,
    "sizes": several,
    "no cuts": lambda: synthetic.full_run(40, 0),
    "one-shot": lambda: synthetic.full_run(train=False),
    "one-shot, one cut": lambda: synthetic.full_run(cuts=1, train=False),
    "recovery": recovered,
    "single step": lambda: synthetic.full_run(1, 1),
    "two steps": lambda: synthetic.full_run(2, 1),
    "nothing after": lambda: (
        only(synthetic.full_run(40, 20), "end", "proof", "export") and first(60)
    ),
    "no evaluation": lambda: only(synthetic.full_run(40, 20), "evaluation"),
    "failed": failed,
    "only begun": lambda: first(1),
    "empty": lambda: first(0),
    "other kinds": worse,
    "zeros": lambda: sparse(),
    "long": lambda: synthetic.full_run(6000, 4000),
}


@pytest.mark.parametrize("case", CASES)
def test_page_and_pictures_are_well_formed(case, tmp_path):
    path = write(synthetic.save(tmp_path, CASES[case]()))
    text = path.read_text("utf-8")
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
    for picture in (tmp_path / "pictures").glob("*.svg"):
        ET.fromstring(picture.read_text("utf-8"))
    links = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert links <= {"http://www.w3.org/2000/svg"}
    assert not {"script", "link", "img", "iframe"} & set(checker.seen)
    assert "url(" not in text and "nan" not in re.sub(r"[a-z]{2,}nan|nan[a-z]", "", text)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "left a temporary file"
    assert len(text) < 400_000
    assert card(tmp_path).startswith("---\nlibrary_name: transformers\n")


def sparse():
    """Zeros by Wanda, nothing cut, nothing trained."""
    run = only(synthetic.full_run(0, 0, train=False))
    made = {"event": "sparsify", "step": 0, "method": "wanda", "sparsity": 0.5, "pattern": "2:4",
            "params": 134_515_008, "weights": 106_168_320, "zeroed": 53_084_160,
            "layers": [{"layer": n, "weights": 3_538_944, "zeroed": 1_769_472 * (n > 0)}
                       for n in range(31)],
            "seconds": 75.0, "memory_bytes": 2_100_000_000}  # fmt: skip
    run.metrics.insert(2, made)
    return run


def test_quality_over_size(tmp_path):
    """Dense, every size and the result, as a table, as a picture and as its points."""
    folder = synthetic.save(tmp_path, several())
    text = write(folder).read_text("utf-8")
    table = text[text.index("Models of several sizes") :]
    rows = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], re.DOTALL)
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]
    assert cells[0] == ["size", "parameters", "prose", "code", "tokens", "folder"]
    assert [row[0] for row in cells[1:]] == ["dense", "130M", "120M", "final"]
    assert cells[2] == ["130M", "129,998,766", "22.50", "10.25", "15k", "at/130M"]
    assert cells[3][4:] == ["45k + 4k", "at/120M"]
    points = (folder / "pictures" / "sizes.csv").read_text().splitlines()
    assert points[0] == "parameters,prose (perplexity),code (perplexity)"
    params = [int(line.split(",")[0]) for line in points[1:]]
    assert len(params) == 4 and params == sorted(params) and params[-1] == 134_515_008
    assert "119998766,23.5,11.25" in points
    assert "Quality over size" in text
    assert "Models of several sizes" not in write(
        synthetic.save(tmp_path / "one", synthetic.full_run(40, 20))
    ).read_text("utf-8")


def test_zeros_are_not_sold_as_fewer_parameters(tmp_path):
    folder = synthetic.save(tmp_path, sparse())
    said = "Parameters removed: 0, weights zeroed: 53.1M (50.0 % of linear layers, 39.5 % of all)"
    text, body = write(folder).read_text("utf-8").replace("\u00a0", " "), card(folder)
    for page in (text, body):
        assert said in page and "smaller" not in page
    assert "Weights zeroed" in text and "wanda, 2:4" in text
    assert "1 min 15 s, 2.10 GB at the peak" in text
    names = {p.stem for p in (folder / "pictures").glob("*.svg")}
    assert names == {"zeros", "perplexity"}, "shapes did not change"
    assert "layer 0: 3,538,944 of 3,538,944 (100.0 % kept)" in text
    assert "layer 30: 1,769,472 of 3,538,944 (50.0 % kept)" in text
    assert "- sparse\n" in body and "| of them zero, in linear layers |  | 53,084,160 |  |" in body


def test_the_headline_holds_what_came_out(tmp_path):
    text = write(synthetic.save(tmp_path / "runs/quickstart", synthetic.full_run()))
    folder, text = text.parent, text.read_text("utf-8").replace("\u00a0", " ")
    assert str(tmp_path) not in text
    assert "11.1 % smaller: 134.5M → 119.5M parameters." in text
    assert "Perplexity rose by 9.0 % on prose and by 9.0 % on code." in text
    for word in (
        "Proven",
        "1.2M tokens",
        "12 min 22 s",
        "Mistral",
        "from_pretrained(&#34;runs/quickstart&#34;",
    ):
        assert word in text
    names = {p.stem for p in (folder / "pictures").glob("*.svg")}
    assert names == {"parameters", "perplexity", "removed", "saliency", "loss", "left", "speed",
                     "shape_attention", "shape_ffn", "learning_rate"}  # fmt: skip


def test_text_is_escaped(tmp_path):
    run = synthetic.full_run(10, 5)
    run.metrics[0]["name"] = "<script>alert(1)</script>"
    folder = synthetic.save(tmp_path, run)
    (folder / "recipe.resolved.yaml").write_text("name: <img src=x>\n")
    text = write(folder).read_text("utf-8")
    assert "<script" not in text and "<img" not in text and "<b>From" not in text
    assert "&lt;b&gt;From the first &amp; oldest" in text
    assert "domain &lt;code&gt; ran out" in text and "domain &lt;code&gt;" in card(folder)


def test_failed_and_unfinished_runs_say_so_first(tmp_path):
    text = write(synthetic.save(tmp_path / "a", failed())).read_text("utf-8")
    body = text.split("<main>")[1]
    said = '<div class="banner failed"><p>This run failed: the &lt;target&gt; was'
    assert body.lstrip().startswith(said)
    text = write(synthetic.save(tmp_path / "b", first(30))).read_text("utf-8")
    assert "This run is not finished: its record ends at step" in text
    assert "> **This run is not finished" in card(tmp_path / "b")


def test_a_page_made_while_the_run_goes_on_says_what_it_does_and_for_how_long(tmp_path):
    folder = synthetic.save(tmp_path, only(synthetic.full_run(40, 20), "end", "proof"))
    now = StatusFile(folder, 20.0)
    now.phase("proving the export in a fresh process")
    now.expect(90.5)
    text = write(folder).read_text("utf-8")
    assert (
        "When this page was made: proving the export in a fresh process, about 1:30 left." in text
    )
    now.close()
    assert "When this page was made" not in write(folder).read_text("utf-8")


def stopped():
    run = only(synthetic.full_run(40, 20), "end", "proof", "export")
    reason = "by SIGTERM after step 40; a checkpoint was written\n  typed: --resume"
    run.metrics.append({"event": "end", "status": "stopped", "seconds": 3.0, "reason": reason})
    run.metrics[0]["target_params"] = run.params // 2
    return run


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (stopped, "This continues it, typed in the folder that holds runs/:"),
        (
            failed,
            "Once its cause is mended, this continues it, typed in the folder that holds runs/:",
        ),
        (lambda: first(30), "This continues it"),
        (synthetic.full_run, None),
    ],
)
def test_a_run_that_ended_early_says_what_continues_it(case, words, tmp_path):
    folder = synthetic.save(tmp_path / "runs" / "a run", case())
    text = html.unescape(re.sub(r"<[^>]+>", "", write(folder).read_text("utf-8")))
    command = "effcompress run 'runs/a run/recipe.resolved.yaml' --output 'runs/a run' --resume"
    assert (command in text) == (words is not None) == ("continues it" in text)
    assert words is None or words in text
    (folder / "recipe.resolved.yaml").unlink()
    assert "--resume" not in write(folder).read_text("utf-8"), "nothing to continue with"


def test_a_stopped_run_has_missed_nothing_yet(tmp_path):
    text = write(synthetic.save(tmp_path, stopped())).read_text("utf-8")
    assert "missed by" not in text and "No model has been saved yet." in text


def test_the_proof_says_how_long_it_took(tmp_path):
    text = write(synthetic.save(tmp_path, synthetic.full_run(10, 5))).read_text("utf-8")
    assert "A fresh process loaded it and compared it in 9.1 s: the same tokens" in text


def test_cards_fill_their_rows(tmp_path):
    text = write(synthetic.save(tmp_path, synthetic.full_run())).read_text("utf-8")
    assert "--beside: 4" in text or "--beside: 3" in text
    assert text.index(">Parameters</h3>") < text.index(">Perplexity</h3>")
    row = re.search(r"<li><span>prose</span>(.*?)</li>", text, re.S)
    assert row and "21.37 → " in row[1] and "+9.0" in row[1]


def test_different_protocols_are_not_compared_in_silence(tmp_path):
    run = synthetic.full_run(10, 5)
    after = next(e for e in run.metrics if e.get("when") == "after")
    after["protocol"]["window"] = 1024
    folder = synthetic.save(tmp_path, run)
    assert "do not compare" in write(folder).read_text("utf-8")
    assert "must not be compared" in card(folder)


def test_padding_is_not_sold_as_compression(tmp_path):
    run = synthetic.full_run(10, 5)
    export = next(e for e in run.metrics if e["event"] == "export")
    export["parameters"] = run.params + 1_000_000
    folder = synthetic.save(tmp_path, run)
    for text in (write(folder).read_text("utf-8"), card(folder)):
        assert "1M of them are zeros that fill up what is narrower or gone" in text


def test_gather_forgives_a_half_line_at_the_end_only(tmp_path):
    folder = synthetic.save(tmp_path, first(30))
    path = folder / "metrics.jsonl"
    whole = gather(folder)
    path.write_text(path.read_text() + '{"event": "st')
    assert gather(folder) == whole
    path.write_text('{"event"\n' + path.read_text())
    with pytest.raises(RunError, match=r"metrics\.jsonl:1: not JSON"):
        gather(folder)
    with pytest.raises(RunError, match="holds no run"):
        gather(tmp_path / "elsewhere")
    path.write_text('{"event": "step", "loss": 1}\n')
    with pytest.raises(RunError, match="not one that this version reads"):
        gather(folder)


def test_widths_of_an_unfinished_run_come_from_its_plans(tmp_path):
    run = only(synthetic.full_run(), "end")
    assert gather(synthetic.save(tmp_path, run)).widths == run.widths


def test_the_card_has_front_matter_and_everything_people_ask_for(tmp_path):
    folder = synthetic.save(tmp_path / "run", synthetic.full_run())
    (tmp_path / "model").mkdir()
    path = write_card(folder, into=tmp_path / "model", base_model="someone/some-model")
    assert path == tmp_path / "model" / "README.md"
    text = path.read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    assert "base_model: someone/some-model\n" in front and "- pruned" in front
    for word in (
        "| parameters | 134,515,008 | 119,5",
        "| perplexity, prose | 21.37 | 23.29 | +9.0 % |",
        "AutoModelForCausalLM.from_pretrained",
        "- criterion: `taylor2`",
        "seed 0",
        "## Limits",
        "windows of 512 tokens that do not overlap",
    ):
        assert word in body


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (synthetic.RECIPE, {"target": "keep: 0.85", "space": "ffn, attention, hidden"}),
        ("prune:\n  criterion: {taylor2: {p: 2}}  # x\n", {"criterion": "taylor2: {p: 2"}),
        ("prune:\n  space:\n  - ffn\n  - hidden\n  hessian: null\n", {"space": "ffn, hidden"}),
        ("prune: null\ntrain:\n  target: x\n", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_the_method_is_quoted_from_the_recipe(recipe, said):
    found = method(recipe)
    assert {key: found.get(key) for key in said} == said
    assert said or not found


def test_the_method_of_zeros_is_quoted_too():
    recipe = "prune: null\nsparsify:\n  method:\n    name: wanda\n    per: row\n  pattern: 2:4\n"
    assert method(recipe, "sparsify") == {"method": "name: wanda, per: row", "pattern": "2:4"}


def test_the_hub_id_is_found():
    assert hub("name: x\nmodel:\n  revision: null\n  hub: a/b  # note\n") == "a/b"
    assert hub("model:\n  hub: null\n") is None
    assert hub("model:\n  wheel: a\ndata:\n  hub: c/d\n") is None
    assert hub("model:\n  hub: a/b\n  random: true  # note\n") is None, "none of its weights"
    assert hub("model:\n  hub: a/b\n  random: false") == "a/b"


def test_reports_are_rebuilt_the_same(tmp_path):
    folder = synthetic.save(tmp_path, synthetic.full_run(20, 10))
    once = write(folder).read_bytes()
    assert write(folder).read_bytes() == once
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["event"] == "run"


def test_recovery_is_told() -> None:
    recipe = "prune:\n  criterion: taylor\nrecover:\n  tokens: 1000\n  method: lora\n"
    assert method(recipe) == {"criterion": "taylor"}
    assert method(recipe, "recover") == {"method": "lora", "tokens": "1000"}


def test_a_proof_is_whole_or_none(tmp_path):
    """Of several commits the largest difference counts; tokens or cache alone prove nothing."""
    lines = [synthetic.run_event()]
    for moved in (1e-6, 3e-5, 2e-6):
        lines.append({"event": "commit", "step": 1, "params": 9, "max_logit_difference": moved})
    for tokens, cache in ((True, True), (True, False), (False, True)):
        proof = {"max_logit_difference": 0.0, "tokens_equal": tokens, "cache_equal": cache}
        text = "".join(json.dumps(x) + "\n" for x in [*lines, {"event": "proof", **proof}])
        (tmp_path / "metrics.jsonl").write_text(text)
        record = gather(tmp_path)
        assert record.proof is not None and record.proof.holds == (tokens and cache)
        assert record.commit_difference == 3e-5


def test_the_change_of_the_size_is_a_part_of_what_there_was(tmp_path):
    folder = synthetic.save(tmp_path / "run", synthetic.full_run())
    found = re.search(r"\| parameters \| ([\d,]+) \| ([\d,]+) \| \u2212([\d.]+) % \|", card(folder))
    before, after, change = (float(n.replace(",", "")) for n in found.groups())
    assert change == pytest.approx(100 * (1 - after / before), abs=0.06)
    assert change < 100 * (before / after - 1) - 0.5, "the toy tells both bases apart"


@pytest.mark.parametrize("name", ["page.html", "table.md", "data.csv"])
def test_a_file_holds_nothing_that_a_terminal_obeys(tmp_path: Path, name: str) -> None:
    replace(tmp_path / name, "a\x1b[31m\x00\x9b\ud800\u2028b\tc\n")
    assert (tmp_path / name).read_bytes().decode() == "a\ufffd[31m" + "\ufffd" * 4 + "b\tc\n"


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path, monkeypatch) -> None:
    def full(*_given: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "page.html").write_text("before")
    (tmp_path / f"{PARTIAL}-{2**22 + 1}-x").touch()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        replace(tmp_path / "page.html", "after")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("page.html", "before")]
