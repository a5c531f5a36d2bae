"""The card as the hub reads it, and what of this machine is in no page."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_eval_result
from huggingface_hub.repocard import metadata_load

from effcompress.report import write, write_card
from effcompress.report.card import card, is_own_card
from effcompress.report.gather import EXPORTS, gather
from effcompress.report.paths import (
    label_without_folders,
    recipe_without_folders,
    without_folders,
)

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).parent / "synthetic.py")
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
FACTS = {"base_model": "someone/parent", "license": "other", "license_name": "llama3.2",
         "license_link": "https://example.org/l", "languages": ["en", "de"]}  # fmt: skip


def a_run(**changes):
    run = synthetic.full_run(40, 20)
    run.metrics[0] |= changes
    return run


def test_the_hub_reads_the_front_matter(tmp_path):
    run = a_run(facts=FACTS)
    run.metrics[0]["data"]["prose"]["hub"] = "someone/text"
    folder = synthetic.save(tmp_path, run)
    data = ModelCard.load(write_card(folder)).data
    assert data.license == "other" and data.license_name == "llama3.2"
    assert data.license_link == "https://example.org/l" and data.language == ["en", "de"]
    assert data.base_model == "someone/parent" and data["base_model_relation"] == "finetune"
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    assert data.datasets == ["someone/text"] and "pruning-aware-training" in data.tags
    after = next(e for e in run.metrics if e.get("when") == "after")
    found = {one.dataset_name: one for one in data.eval_results}
    assert found.keys() == {"prose, held out", "code, held out"}
    prose = found["prose, held out"]
    assert (prose.dataset_type, prose.metric_type) == ("someone/text", "perplexity")
    wanted = after["domains"]["prose"]["perplexity"]
    assert prose.metric_value == pytest.approx(wanted, abs=1e-4)
    # A round trip through the hub's own writer gives the same index.
    again = metadata_eval_result(
        model_pretty_name=data.model_name,
        task_pretty_name=None,
        task_id="text-generation",
        metrics_pretty_name="perplexity per token",
        metrics_id="perplexity",
        metrics_value=prose.metric_value,
        dataset_pretty_name="prose, held out",
        dataset_id="someone/text",
    )
    (theirs,) = again["model-index"][0]["results"]
    ours = metadata_load(folder / "README.md")["model-index"][0]["results"][0]
    assert theirs["metrics"][0].pop("verified") is False
    assert ours["metrics"] == theirs["metrics"] and ours["dataset"] == theirs["dataset"]


def test_tasks_are_in_the_index(tmp_path):
    run = a_run()
    after = next(e for e in run.metrics if e.get("when") == "after")
    score = {"metric": "acc_norm", "value": 0.41237, "stderr": 0.01, "examples": 100, "of": 100,
             "split": "validation"}  # fmt: skip
    after["tasks"] = {"scores": {"hellaswag": score}, "mean": None, "protocol": {"harness": "x"}}
    data = ModelCard(card(synthetic.save(tmp_path, run))).data
    (solved,) = [one for one in data.eval_results if one.metric_type == "accuracy"]
    assert (solved.dataset_name, solved.metric_name) == ("hellaswag", "acc_norm")
    assert solved.metric_value == 0.4124 and solved.dataset_split == "validation"


def test_what_the_source_does_not_say_is_not_in_the_card(tmp_path):
    run = synthetic.full_run(40, 20)
    run.metrics = [e for e in run.metrics if e["event"] != "evaluation"]
    data = ModelCard(card(synthetic.save(tmp_path, run))).data.to_dict()
    absent = {"license", "base_model", "base_model_relation", "datasets", "language", "model-index"}
    assert not absent & data.keys()


def test_the_example_fits_the_form(tmp_path):
    run = a_run()
    export = next(e for e in run.metrics if e["event"] == "export")
    plain = card(synthetic.save(tmp_path / "a", run), at="someone/tiny")
    assert 'from_pretrained("someone/tiny")' in plain and "custom_code" not in plain
    export["form"] = "exact"
    own = card(synthetic.save(tmp_path / "b", run), at="someone/tiny")
    assert 'from_pretrained("someone/tiny", trust_remote_code=True)' in own
    assert "- custom_code\n" in own


HERE = "/home/jane doe/work"


def test_no_folder_of_this_machine_is_in_page_or_card(tmp_path):
    run = a_run(model=f"{HERE}/models/tiny")
    run.metrics.append({"event": "warning", "text": f"cannot read '{HERE}/x/y.txt', /srv/jane/z"})
    folder = synthetic.save(tmp_path, run)
    (folder / "recipe.resolved.yaml").write_text(
        f"name: x\nmodel:\n  folder: {HERE}/models/tiny  # x.yaml:3\n  gguf: null\n"
        f"data:\n  domains:\n    a:\n      jsonl:\n      - \"{HERE}/text/a.jsonl\"  # x.yaml:9\n"
        "plugins:\n- /srv/jane/mine.py\n"
    )  # fmt: skip
    for text in (write(folder).read_text("utf-8"), write_card(folder).read_text("utf-8")):
        assert "jane" not in text and "tiny" in text
    assert "a.jsonl" in gather(folder).recipe and "mine.py" in gather(folder).recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/a/b/c.jsonl", "c.jsonl"),
        ("in '/a b/c d/e.txt' it", "in 'e.txt' it"),
        ("~/text/a.jsonl and ~jane/b/c", "a.jsonl and c"),
        (r"C:\Users\jane\m.gguf", "m.gguf"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("runs/quickstart/x", "runs/quickstart/x"),
        ("and/or, 12 tokens/s, 1 / 2", "and/or, 12 tokens/s, 1 / 2"),
        ("a-model==1.0/sub/x.gguf", "a-model==1.0/sub/x.gguf"),
        ("[/a/b/c, /d/e/f]", "[c, f]"),
        ("/a/b/c:12: no such file", "c:12: no such file"),
        ("2:4 and /tmp", "2:4 and /tmp"),
    ],
)
def test_only_the_last_part_of_a_path_stays(text, said):
    assert without_folders(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/home/jane doe/tiny", "tiny"),
        ("the text model of /home/jane doe/tiny", "the text model of tiny"),
        ("random weights, shape of /a b/c with x 3, seed 0", "random weights, shape of c with x 3, "
         "seed 0"),
        ("a-model==1.0/sub/x.gguf (Q4_0 weights, dequantised)",
         "a-model==1.0/sub/x.gguf (Q4_0 weights, dequantised)"),
        ("someone/tiny@abc", "someone/tiny@abc"),
    ],
)  # fmt: skip
def test_a_source_has_one_path(text, said):
    assert label_without_folders(text) == said


def test_a_recipe_may_have_spaces_in_its_paths():
    text = "model:\n  folder: /home/jane doe/models/tiny  # a.yaml:3\n  tokenizer: bytes # /x\n"
    said = "model:\n  folder: tiny  # a.yaml:3\n  tokenizer: bytes # /x\n"
    assert recipe_without_folders(text) == said


def test_a_card_that_was_edited_is_known(tmp_path):
    folder = synthetic.save(tmp_path, a_run())
    assert not is_own_card(folder)
    path = write_card(folder)
    assert is_own_card(folder)
    path.write_text(path.read_text() + "\nMine.\n")
    assert not is_own_card(folder)


def test_quantised_files_are_told_once_each(tmp_path):
    folder = synthetic.save(tmp_path, a_run())
    before = {"prose": {"perplexity": 20.0, "loss": 3.0, "tokens": 9, "sequences": 1}}
    lines = []
    for output, value in (("a-Q4_0.gguf", 24.0), ("a-Q4_0.gguf", 22.0), ("a.gguf", None)):
        after = {"prose": {**before["prose"], "perplexity": value}} if value else {}
        lines.append({"event": "exported", "form": "gguf", "output": output, "bytes": 1000,
                      "numbers": "Q4_0", "before": before, "after": after})  # fmt: skip
    (folder / EXPORTS).write_text("".join(json.dumps(x) + "\n" for x in lines))
    said = "a-Q4_0.gguf: Q4_0, 1.00 kB; perplexity 20.00 \u2192 22.00 (+10.0 %) on prose"
    text = card(folder)
    assert f"## Quantised\n\n- {said}\n" in text and text.count("Q4_0.gguf") == 1
    page = write(folder).read_text("utf-8")
    assert "Quantised: a-Q4_0.gguf" in page
