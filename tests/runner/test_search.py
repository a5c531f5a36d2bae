"""A run that looks for its shape, against every shape cut and evaluated by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from effcompress import fault, load_recipe, run
from effcompress.data import digest
from effcompress.errors import RecipeError
from effcompress.estimate.check import check
from effcompress.estimate.forecast import plan
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.runner import run as story
from effcompress.runner.search import OTHER_DRAW
from effcompress.runner.start import corpus_of
from tests import warm
from tests.distributed import worker
from tests.runner.toys import events, plans, recipe, repeatable

SETS = (
    "model.shape.num_hidden_layers=4",
    "prune.target={keep: 70%}",
    "prune.space=[hidden, ffn, layer]",
    "prune.search={grid: {hidden: 8, ffn: 8}, max_width: 0.5, max_depth: 0.5, top: 4, "
    "sequences: 3}",
    "prune.criterion=minitron",
    "prune.selector=least_salient",
    "prune.schedule={name: once, at: 0}",
    "prune.measure={source: calibration, sequences: 4}",
    "prune.repair=[norm_gain]",
    "train.tokens=512",
    "train.batch_size=2",
    "save.every=1",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    run(load_recipe(recipe(folder), [*SETS]), output=folder / "out")
    return folder


def test_the_shape_of_the_lowest_loss_is_taken(done: Path) -> None:
    (search,) = events(done / "out", "search")
    tried = search["tried"]
    sizes = [shape["params"] for shape in tried]
    assert sizes == sorted(sizes, reverse=True)
    (begun,) = events(done / "out", "run")
    assert 0 < max(sizes) <= begun["target_params"]
    assert search["chosen"] == min(tried, key=lambda shape: shape["loss"])["units"]
    (end,) = events(done / "out", "end")
    assert end["params"] == min(tried, key=lambda shape: shape["loss"])["params"]
    config = json.loads((done / "out" / "config.json").read_text())
    shape = search["chosen"]
    assert config["hidden_size"] == shape["hidden"]
    assert config["intermediate_size"] == shape["ffn"]
    assert config["num_hidden_layers"] == shape["layer"]
    assert len({json.dumps(shape["units"]) for shape in tried}) == 4


def test_the_record_names_the_text_of_the_search(done: Path) -> None:
    ranked, tried = events(done / "out", "calibration")
    assert (ranked["sequences"], tried["sequences"]) == (4, 3)
    loaded = load_recipe(done / "toy.yaml", [*SETS]).recipe
    corpus = corpus_of(loaded, ByteTokenizer(), offline=True, say=print, notice=print)
    assert tried["hash"] == digest(corpus.calibration(3, loaded.seed + OTHER_DRAW))


def test_a_loss_is_that_of_the_model_cut_to_this_shape(done: Path, tmp_path: Path) -> None:
    """Each shape is cut by a run of its own, and its export evaluated by hand in fp64."""
    sets = [*(s for s in SETS if "train" not in s and "save" not in s), "train=null"]
    loaded = load_recipe(done / "toy.yaml", sets).recipe
    run(load_recipe(done / "toy.yaml", sets), output=tmp_path / "search")
    (search,) = events(tmp_path / "search", "search")
    corpus = corpus_of(loaded, ByteTokenizer(), offline=True, say=print, notice=print)
    ids = corpus.calibration(3, loaded.seed + OTHER_DRAW)
    for number, shape in enumerate(search["tried"]):
        target = f"prune.target={{shape: {json.dumps(shape['units'])}}}"
        out = tmp_path / str(number)
        how = [*sets, "prune.search=null", target]
        run(load_recipe(done / "toy.yaml", how), output=out)
        (ended,) = events(out, "end")
        assert ended["params"] == shape["params"]
        module = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64).eval()
        with torch.no_grad():
            logp = module(input_ids=ids).logits[:, :-1].log_softmax(-1)
        loss = -logp.gather(-1, ids[:, 1:, None]).mean()
        assert shape["loss"] == pytest.approx(float(loss), abs=2e-5)


def test_it_resumes_with_the_shape_it_found(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    loaded = load_recipe(done / "toy.yaml", [*SETS])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(loaded, output=whole)
    steps = iter(range(100))

    def stop(name: str) -> None:
        if name == "step" and next(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(fault, "point", stop)
        with pytest.raises(KeyboardInterrupt):
            run(loaded, output=broken)
    run(loaded, output=broken, resume=True)
    for kind in ("search", "cut", "step", "evaluation"):
        assert repeatable(events(whole, kind)) == repeatable(events(broken, kind)), kind
    shutil.rmtree(whole / "checkpoints")


def test_two_processes_take_the_same(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "two"
    jobs = [{"recipe": done / "toy.yaml", "output": out, "set": [*SETS], "bare": True}]
    listed = tmp_path / "jobs.json"
    listed.write_text(json.dumps(jobs, default=str))
    code, said = warm.together(worker.main, listed, folder=tmp_path, processes=2)
    assert code == 0, said
    assert plans(out) == plans(done / "out")
    (one,), (two,) = (events(where, "search") for where in (done / "out", out))
    assert one["chosen"] == two["chosen"]


def test_check_and_plan_name_the_shapes(done: Path) -> None:
    loaded = load_recipe(done / "toy.yaml", [*SETS])
    (search,) = events(done / "out", "search")
    sizes = [shape["params"] for shape in search["tried"]]
    said = "\n".join(check(loaded).lines)
    assert f"search: 4 shapes of {sizes[0]:,} to {sizes[-1]:,} parameters" in said
    answer = plan(loaded)
    assert [shape["params"] for shape in answer.data["tried"]] == sizes
    assert [dict(shape["units"]) for shape in answer.data["tried"]] == [
        shape["units"] for shape in search["tried"]
    ]
    assert answer.sheets[0].title == "Shapes that are tried"


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["prune.target={keep: 20%}"], "the smallest shape of the grid (hidden 16, ffn 32, layer"),
        (["prune.search={grid: {hiddn: 8}}"], "prune.search.grid names 'hiddn'"),
        (
            ["prune.search=null", "prune.target={shape: {hidden: 99, ffn: 8, layer: 1}}"],
            "--set prune.target.shape: prune.target.shape: 99 units of 'hidden'",
        ),
    ],
)
def test_no_such_shape(done: Path, sets: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(load_recipe(done / "toy.yaml", [*SETS, *sets]))
    assert said in str(caught.value)
    assert "--set prune." in str(caught.value.where)


def test_the_report_lists_the_shapes(done: Path) -> None:
    page = (done / "out" / "report.html").read_text()
    (search,) = events(done / "out", "search")
    assert "Shapes that were tried" in page
    for shape in search["tried"]:
        assert f"{shape['loss']:.4f}" in page
    assert page.count("<td>taken</td>") == 1


ACTIVE = (
    "model.shape.model_type=mixtral",
    "model.shape.num_local_experts=4",
    "model.shape.num_experts_per_tok=2",
    "prune.target={active_params: 26k}",
    "prune.space=[hidden, ffn, expert]",
    "prune.search={grid: {hidden: 8, expert_ffn: 8}, max_width: 0.5, top: 3, sequences: 2}",
    "prune.criterion=taylor",
    "export.form=exact",
)


def test_what_a_token_meets_is_limited(tmp_path: Path) -> None:
    """The class is asked: its experts less those that a token is not sent to."""
    sets = [s for s in SETS if s.partition("=")[0] not in {a.partition("=")[0] for a in ACTIVE}]
    loaded = load_recipe(recipe(tmp_path), [*sets, *ACTIVE])
    assert "active" in plan(loaded).sheets[0].columns
    run(loaded, output=tmp_path / "out")
    (search,) = events(tmp_path / "out", "search")
    assert 20_000 < max(shape["active"] for shape in search["tried"]) <= 26_000
    taken = next(s for s in search["tried"] if s["units"] == search["chosen"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert sum(p.numel() for p in model.parameters()) == taken["params"]
    experts = [p for n, p in model.named_parameters() if ".experts." in n]
    idle = sum(p.numel() * (len(p) - 2) // len(p) for p in experts)
    assert taken["params"] - idle == taken["active"]
    said = (tmp_path / "out" / "report.html").read_text()
    assert ">active<" in said.replace("\n", "").replace(" ", "")


def test_without_a_grid_that_is_small_enough(tmp_path: Path) -> None:
    sets = [s for s in SETS if s.partition("=")[0] not in {a.partition("=")[0] for a in ACTIVE}]
    loaded = load_recipe(recipe(tmp_path), [*sets, *ACTIVE, "prune.target={active_params: 5k}"])
    with pytest.raises(RecipeError, match=r"has \d+,\d+ active parameters; the target is 5,000"):
        check(loaded)
