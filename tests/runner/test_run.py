"""Whole runs on toys: pruned while training, proven, recorded; one-shot; per layer; plugins."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from effcompress import load_recipe, run
from effcompress.errors import RecipeError, RunError
from effcompress.model.load import load as load_model
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.runner.preflight import preflight
from effcompress.runner.start import corpus_of
from tests.model.test_suitability import multimodal
from tests.runner.toys import events, plans, recipe

ALONE = [
    "train=null",
    "prune.measure={source: calibration, sequences: 4}",
    "prune.schedule=once",
    "prune.selector=least_salient",
]
SHORT = {"tokens": 512, "schedule": "{name: once, at: 256}"}


def ffn_units(out: Path) -> dict[str, list[int]]:
    """FFN channels that a run removed."""
    gone: dict[str, list[int]] = {}
    for line in plans(out):
        for name, units in line["plan"].items():
            gone[name] = sorted([*gone.get(name, []), *units])
    assert gone and all(name.startswith("ffn.") for name in gone)
    return gone


def ffn_scores(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Score of every FFN channel from a value for each weight, by parameter."""
    found = {}
    for name, down in values.items():
        if name.endswith("down_proj.weight"):
            gate, up = (values[name.replace("down", part)].sum(1) for part in ("gate", "up"))
            found[f"ffn.{name.split('.')[2]}"] = gate + up + down.sum(0)
    return found


def least(score_G: torch.Tensor, count: int) -> list[int]:
    return sorted(score_G.argsort()[:count].tolist())


@pytest.mark.fresh_process
def test_prunes_while_training_and_proves_the_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(load_recipe(recipe(tmp_path)), output=out)
    (begin,), (end,), (proof,) = (events(out, k) for k in ("run", "end", "proof"))
    assert end["status"] == "success" and end["params"] == found.params
    assert found.params == pytest.approx(0.7 * begin["params"], rel=0.005)
    assert proof["max_logit_difference"] <= 1e-5 and proof["tokens_equal"] and proof["cache_equal"]
    cut = events(out, "cut")
    kinds = {kind for c in cut for kind in c["removed"]}
    assert kinds == {"attention", "ffn", "hidden"}
    assert cut[0]["tokens"] == 256 and len(cut) > 3  # one after another, not at once
    assert all(c["max_logit_difference"] < 1e-3 for c in events(out, "commit"))
    before, after = events(out, "evaluation")
    assert set(before["domains"]) == set(after["domains"]) == {"letters", "numbers"}
    assert before["protocol"] == after["protocol"]
    # It learned, pruning and all.
    assert after["domains"]["letters"]["loss"] < before["domains"]["letters"]["loss"] - 0.5

    model = AutoModelForCausalLM.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == found.params
    assert len(AutoTokenizer.from_pretrained(out)) == 258
    for name in ("recipe.yaml", "recipe.resolved.yaml", "plans.jsonl", "report.html", "README.md"):
        assert (out / name).stat().st_size > 100, name
    cuts = [json.loads(line) for line in (out / "plans.jsonl").read_text().splitlines()]
    removed = {name: 0 for p in cuts for name in p["plan"]}
    for p in cuts:
        for name, units in p["plan"].items():
            removed[name] += len(units)
            assert len(p["scores"][name]) == len(units)
    assert {n: begin["widths"][n] - k for n, k in removed.items()} == {
        n: end["widths"][n] for n in removed
    }


def test_same_result_twice(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    for name in ("one", "two"):
        run(load_recipe(path), output=tmp_path / name)
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "taylor_second", "taylor_mixed"])
def test_one_shot_without_training(tmp_path: Path, criterion: str) -> None:
    """Of all kinds, down to the size; and of FFN channels alone, exactly those of which one
    backward for each calibration sequence says that they matter least.
    """
    path = recipe(
        tmp_path,
        criterion=criterion,
        selector="least_salient",
        schedule="once",
        measure="{source: calibration, sequences: 4}",
        kv=4,
        tied="false",
    )
    text = path.read_text()
    start, stop = text.index("train:"), text.index("evaluate:")
    path.write_text(text[:start] + text[stop:])
    found = run(load_recipe(path), output=tmp_path / "out")
    (begin,) = events(tmp_path / "out", "run")
    assert found.params == pytest.approx(0.7 * begin["params"], rel=0.005)
    assert len(events(tmp_path / "out", "cut")) == 1
    assert events(tmp_path / "out", "step") == []
    loaded = load_recipe(path, ["prune.space=[ffn]"])
    run(loaded, output=tmp_path / "ffn")
    source = load_model(loaded.recipe.model, seed=0, offline=True)
    model = source.module.double()
    corpus = corpus_of(loaded.recipe, source.tokenizer, offline=True, say=print, notice=print)
    ids_NT = corpus.calibration(4, 0)
    grads: dict[str, list[torch.Tensor]] = {}
    for ids_T in ids_NT:
        model.zero_grad()
        model(input_ids=ids_T[None], labels=ids_T[None]).loss.backward()
        for name, p in model.named_parameters():
            grads.setdefault(name, []).append(p.grad.clone())

    values: dict[str, dict[str, torch.Tensor]] = {}
    for name, p in model.named_parameters():
        w, each = p.detach(), torch.stack(grads[name])
        first, second = w * each.mean(0), w.square() * each.square().mean(0) / 2
        one = {"magnitude": w.abs(), "taylor": first.abs(), "taylor_second": second}
        one["taylor_mixed"] = (first - second).abs()
        for formula, value in one.items():
            values.setdefault(formula, {})[name] = value
    gone = ffn_units(tmp_path / "ffn")
    wanted = {
        formula: {n: least(score, len(gone[n])) for n, score in ffn_scores(by_name).items()}
        for formula, by_name in values.items()
    }
    assert gone == wanted[criterion]
    # The toy tells them apart, all but the mixed one, whose second term is small here.
    for formula in {"magnitude", "taylor", "taylor_second"} - {criterion}:
        assert gone != wanted[formula] or criterion == "taylor_mixed"


def test_random_saliency_in_a_loop_follows_the_seed(tmp_path: Path) -> None:
    path = recipe(tmp_path, criterion="random")
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(load_recipe(path, [f"seed={seed}"]), output=tmp_path / name)
        found.append((tmp_path / name / "plans.jsonl").read_text())
    assert found[0] == found[1] != found[2]


@pytest.mark.fresh_process
def test_per_layer_widths_are_padded_into_a_stock_class(tmp_path: Path) -> None:
    path = recipe(tmp_path, scope="per_layer", selector="least_salient", kv=4)
    out = tmp_path / "out"
    found = run(load_recipe(path), output=out)
    (export,), (end,) = events(out, "export"), events(out, "end")
    widths = {w for n, w in end["widths"].items() if n.startswith("ffn")}
    assert len(widths) == 2, "the toy's layers should differ; the test says nothing otherwise"
    assert export["parameters"] > found.params and "padded" in export["why"]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == export["parameters"]


def test_a_criterion_of_the_users_own(tmp_path: Path) -> None:
    """What goes is what it says, by the knob of the recipe: with a sign, the largest weights."""
    plugin = (
        "from torch import Tensor\n"
        "\n"
        "from effcompress import criterion\n"
        "\n"
        "\n"
        '@criterion("by_size")\n'
        "def by_size(weight: Tensor, *, sign: float = 1.0) -> Tensor:\n"
        '    """Small weights first, or large ones."""\n'
        "    return sign * weight.abs()\n"
    )
    assert len(plugin.splitlines()) <= 12
    (tmp_path / "mine.py").write_text(plugin)
    path = recipe(tmp_path, extra="plugins: [mine.py]\n", criterion="by_size")
    for sign in (1.0, -1.0):
        sets = [*ALONE, "prune.space=[ffn]", f"prune.criterion={{name: by_size, sign: {sign}}}"]
        loaded, out = load_recipe(path, sets), tmp_path / f"out{sign}"
        run(loaded, output=out)
        gone = ffn_units(out)
        model = load_model(loaded.recipe.model, seed=0, offline=True).module
        params = dict(model.named_parameters())
        score = ffn_scores({name: sign * p.detach().abs() for name, p in params.items()})
        assert gone == {name: least(value, len(gone[name])) for name, value in score.items()}
        resolved = (out / "recipe.resolved.yaml").read_text()
        assert "by_size" in resolved and f"sign: {sign}" in resolved


def test_training_without_pruning(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    text = path.read_text()
    path.write_text(text[: text.index("prune:")] + text[text.index("train:") :])
    found = run(load_recipe(path), output=tmp_path / "out")
    assert found.params == events(tmp_path / "out", "run")[0]["params"]
    assert events(tmp_path / "out", "cut") == []


def test_tokens_run_out_before_the_target(tmp_path: Path) -> None:
    # In proportion the schedule stops short; only large mini-groups alone would have got there.
    path = recipe(tmp_path, schedule="{name: continuous, every: 2, start: 256, groups: 1}")
    found = run(load_recipe(path), output=tmp_path / "out")
    (begin,) = events(tmp_path / "out", "run")
    assert found.params == pytest.approx(0.7 * begin["params"], rel=0.005)
    assert any("cutting them now" in w["text"] for w in events(tmp_path / "out", "warning"))


def test_a_folder_with_a_run_is_never_overwritten(tmp_path: Path) -> None:
    path = recipe(tmp_path, **SHORT)
    run(load_recipe(path), output=tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(RecipeError, match="holds a run already"):
        run(load_recipe(path), output=tmp_path / "out")
    with pytest.raises(RecipeError, match=r"train\.tokens was 512, is 1024"):
        run(load_recipe(path, ["train.tokens=1024"]), output=tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_a_failed_run_says_so_and_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcompress.runner import run as story

    path, out = recipe(tmp_path), tmp_path / "out"
    real = story.prune_event

    def breaks(state, *rest):
        if state.step == 9:
            raise RunError("the roof is on fire")
        real(state, *rest)

    monkeypatch.setattr(story, "prune_event", breaks)
    with pytest.raises(RunError):
        run(load_recipe(path), output=out)
    assert events(out, "end")[-1]["status"] == "failed"
    assert "roof" in (out / "report.html").read_text()
    monkeypatch.undo()
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    run(load_recipe(path), output=out, resume=True)
    run(load_recipe(path), output=tmp_path / "whole")
    for name in ("model.safetensors", "plans.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [e["status"] for e in events(out, "end")] == ["success"]


def test_a_run_whose_proof_fails_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcompress.checkpoint import proof

    monkeypatch.setattr(proof, "TOLERANCE", -1.0)
    monkeypatch.setattr(proof, "rounding", lambda *_: -1.0)
    with pytest.raises(RunError, match="not the trained one"):
        run(load_recipe(recipe(tmp_path, **SHORT)), output=tmp_path / "out")
    assert events(tmp_path / "out", "end")[-1]["status"] == "failed"


def test_memory_of_saliency_keeps_no_graph(tmp_path: Path) -> None:
    import gc

    def graphs() -> dict[int, torch.Tensor]:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # touching every object touches deprecated ones
            found = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.grad_fn]
        return {id(o): o for o in found}

    before = graphs()  # a test that failed earlier may hold some
    run(load_recipe(recipe(tmp_path)), output=tmp_path / "out")
    assert graphs().keys() <= before.keys()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    path = recipe(tmp_path, **SHORT)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("precious")
    for resume in (False, True):
        with pytest.raises(RecipeError, match="is no run of effcompress"):
            run(load_recipe(path), output=mine, resume=resume)
    assert [f.name for f in mine.iterdir()] == ["README.md"]
    with pytest.raises(RecipeError, match="a file, not a folder"):
        run(load_recipe(path), output=mine / "README.md")


def test_a_run_that_died_early_may_be_begun_anew(tmp_path: Path) -> None:
    path, out = recipe(tmp_path, **SHORT), tmp_path / "out"
    out.mkdir()
    (out / "recipe.resolved.yaml").write_text("name: something else\n")
    (out / "metrics.jsonl").write_text('{"event": "run"')
    assert run(load_recipe(path), output=out).params > 0


def test_a_schedule_may_wait_at_a_size(tmp_path: Path) -> None:
    """A decision to cut nothing is not the end: sizes that come down slowly have many of those."""
    (tmp_path / "linear.py").write_text(
        "from effcompress import Due, schedule\n\n\n"
        '@schedule("linear")\n'
        "def linear(\n"
        "    tokens: int, total_tokens: int, start_params: int, target_params: int\n"
        ") -> Due:\n"
        '    """A straight line from the first token to three quarters."""\n'
        "    share = min(1.0, tokens / (0.75 * total_tokens))\n"
        "    return Due(params=round(start_params + share * (target_params - start_params)))\n"
    )
    path = recipe(tmp_path, extra="plugins: [linear.py]\n", schedule="linear")
    found = run(load_recipe(path), output=tmp_path / "out")
    (begin,) = events(tmp_path / "out", "run")
    assert found.params == pytest.approx(0.7 * begin["params"], rel=0.005)
    assert not events(tmp_path / "out", "warning")


def test_weights_alone_need_no_measurement(tmp_path: Path) -> None:
    path = recipe(tmp_path, criterion="magnitude", schedule="once", selector="least_salient")
    text = path.read_text()
    path.write_text(text[: text.index("train:")] + text[text.index("evaluate:") :])
    found = run(load_recipe(path), output=tmp_path / "out")
    assert found.params == pytest.approx(
        0.7 * events(tmp_path / "out", "run")[0]["params"], rel=0.005
    )


def test_a_shape_that_no_class_accepts_is_padded(tmp_path: Path) -> None:
    """Llama with biases has no other container: odd hidden sizes get zero channels."""
    path = recipe(tmp_path, **{**SHORT, "kv": 4})
    sets = [
        "prune.space=[hidden]",
        "prune.target={params: 26437}",
        "model.shape.attention_bias=true",
    ]
    out = tmp_path / "out"
    found = run(load_recipe(path, sets), output=out)
    (export,), (end,), (proof,) = (events(out, k) for k in ("export", "end", "proof"))
    assert end["widths"]["hidden"] % 4, "the toy's hidden size should be odd; change the target"
    assert "became" in export["why"] and export["parameters"] > found.params
    assert proof["max_logit_difference"] <= 1e-5


def test_generation_settings_do_not_disturb_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effcompress.runner import state

    class Fussy(state.RunState):
        def __init__(self, *inputs) -> None:
            super().__init__(*inputs)
            self.module.generation_config.repetition_penalty = 1.3
            self.module.generation_config.no_repeat_ngram_size = 2

    from effcompress.runner import run as story

    monkeypatch.setattr(story, "RunState", Fussy)
    run(load_recipe(recipe(tmp_path, **SHORT)), output=tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert kept["repetition_penalty"] == 1.3


@pytest.mark.parametrize(
    "changes",
    [
        {"criterion": "random"},
        {"criterion": "taylor_mixed", "scope": "per_layer", "kv": 4, "tied": "false"},
        {"measure": "{source: calibration, sequences: 3}"},
    ],
    ids=["random", "per_layer", "calibration"],
)
def test_a_run_that_failed_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    from effcompress.runner import run as story

    path = recipe(tmp_path, **{"selector": "least_salient", **changes})
    sets = ["data.when_dry=repeat", "train.tokens=3840", "prune.schedule.groups=2"]
    run(load_recipe(path, sets), output=tmp_path / "whole")
    real = story.train_step

    def breaks(state, *rest):
        if state.step == 10:
            raise RunError("interrupted")
        return real(state, *rest)

    monkeypatch.setattr(story, "train_step", breaks)
    with pytest.raises(RunError, match="interrupted"):
        run(load_recipe(path, sets), output=tmp_path / "out")
    monkeypatch.setattr(story, "train_step", real)
    run(load_recipe(path, sets), output=tmp_path / "out", resume=True)
    for name in ("model.safetensors", "plans.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    texts = [[w["text"] for w in events(tmp_path / n, "warning")] for n in ("whole", "out")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "model_type", ["mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3"]
)
def test_every_declared_family_is_pruned_and_proven(tmp_path: Path, model_type: str) -> None:
    path = recipe(tmp_path, **SHORT)
    out = tmp_path / "out"
    sets = [f"model.shape.model_type={model_type}", "model.shape.pad_token_id=null"]
    run(load_recipe(path, sets), output=out)
    (export,), (proof,), (cut,) = (events(out, k) for k in ("export", "proof", "cut"))
    assert export["container"] == model_type and export["why"] == ""
    assert proof["max_logit_difference"] <= 1e-5
    assert set(cut["removed"]) == {"attention", "ffn", "hidden"}


def test_of_a_multimodal_model_the_text_model_is_pruned_and_exported(tmp_path: Path) -> None:
    """Its folder is that of an ordinary causal language model, its tokenizer the source's."""
    both = multimodal("llava", tmp_path / "both")
    ByteTokenizer().save(tmp_path / "both")
    sets = [f"model={{folder: {tmp_path / 'both'}}}", "train=null", "prune.criterion=magnitude"]
    sets += ["prune.measure={source: calibration}", "prune.schedule={name: once, at: 0}"]
    sets += ["prune.space=[{name: ffn, scope: lockstep}]", "prune.target={shape: {ffn: 12}}"]
    loaded = load_recipe(recipe(tmp_path), sets)
    said = preflight(loaded, offline=True).lines
    assert "model: of 'llava' the text model (llama), which is exported by itself" in said
    done = run(loaded, output=tmp_path / "out")
    config = json.loads((done.folder / "config.json").read_text())
    assert config["model_type"] == "llama" and config["intermediate_size"] == 12
    module = AutoModelForCausalLM.from_pretrained(str(done.folder))
    assert sum(p.numel() for p in module.parameters()) == done.params
    whole = both.model.language_model.layers[0].self_attn.q_proj.weight
    assert torch.equal(module.model.layers[0].self_attn.q_proj.weight, whole)
    assert len(AutoTokenizer.from_pretrained(str(done.folder))) == 258
    assert "the text model of " in (done.folder / "metrics.jsonl").read_text()
