"""Whole runs that make zeros: alone, after pruning, before training; and against full passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from effcompress import load_recipe, run
from effcompress.distributed.world import ALONE
from effcompress.errors import RecipeError, RunError
from effcompress.record.events import Event, Warn, line
from effcompress.registry import REGISTRY, Bound
from effcompress.runner import run as story
from effcompress.runner.sparsify import sparsify_event
from effcompress.spec import SparsifySpec
from tests.conftest import FAMILIES, MIXTURES, tiny, tokens
from tests.runner.toys import events, recipe


def sparse(
    folder: Path, method: str, wanted: str, *, train: bool = False, prune: bool = False
) -> Path:
    """The toy recipe with a section `sparsify`."""
    path = recipe(
        folder,
        schedule="{name: once, at: 0}",
        measure="{source: calibration, sequences: 3}",
        selector="least_salient",
    )
    text = path.read_text()
    parts = [text[: text.index("prune:")]]
    if prune:
        parts.append(text[text.index("prune:") : text.index("train:")])
    parts.append(f"sparsify: {{method: {method}, {wanted}, sequences: 4}}\n")
    if train:
        parts.append(text[text.index("train:") : text.index("evaluate:")])
    parts.append(text[text.index("evaluate:") :])
    path.write_text("".join(parts))
    return path


def linears(module: nn.Module) -> dict[str, Tensor]:
    """Weights of the linear layers in blocks."""
    return {
        f"{path}.weight": child.weight.detach()
        for path, child in module.named_modules()
        if isinstance(child, nn.Linear) and ".layers." in path
    }


def stored(folder: Path) -> dict[str, Tensor]:
    return linears(AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("magnitude", "sparsity: 50%"),
        ("wanda", "sparsity: 0.3"),
        ("wanda", "pattern: 2:4"),
        ("sparsegpt", "sparsity: 50%"),
        ("{name: sparsegpt, mask: wanda}", "pattern: 4:8"),
    ],
)
def test_zeros_alone(tmp_path: Path, method: str, wanted: str) -> None:
    out = tmp_path / "out"
    done = run(load_recipe(sparse(tmp_path, method, wanted)), output=out)
    weights = stored(out)
    assert len(weights) == 14
    share = 0.3 if "0.3" in wanted else 0.5
    for weight in weights.values():
        zeros = int((weight == 0).sum())
        whole = weight.shape[0] * int(share * weight.shape[1] + 1e-9)
        assert zeros == (whole if method == "wanda" else int(share * weight.numel()))
        if "pattern" in wanted:
            kept, of = (2, 4) if "2:4" in wanted else (4, 8)
            assert set((weight != 0).reshape(-1, of).sum(1).tolist()) == {kept}
    (made,), (end,), (saved,) = (events(out, k) for k in ("sparsify", "end", "export"))
    zeroed = sum(int((w == 0).sum()) for w in weights.values())
    assert done.zeroed == end["zeroed"] == made["zeroed"] == zeroed
    assert done.removed == 0 and done.sparse == made["weights"]
    assert [row["layer"] for row in made["layers"]] == [0, 1]
    assert sum(row["zeroed"] for row in made["layers"]) == zeroed
    assert made["seconds"] > 0 and made["memory_bytes"] > 0
    assert saved["form"] == "uniform" and saved["container"] == "llama"
    assert bool(events(out, "calibration")) == (method != "magnitude")
    for text in ((out / "README.md").read_text(), (out / "report.html").read_text()):
        said = text.replace("&nbsp;", " ")
        assert "Parameters removed: 0, weights zeroed:" in said and "of linear layers" in said


def test_the_same_zeros_twice(tmp_path: Path) -> None:
    path = sparse(tmp_path, "sparsegpt", "sparsity: 50%")
    for name in ("one", "two"):
        run(load_recipe(path), output=tmp_path / name)
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_zeros_survive_training_in_weights_and_moments(tmp_path: Path) -> None:
    path = sparse(tmp_path, "wanda", "pattern: 2:4", train=True)
    out = tmp_path / "out"
    done = run(
        load_recipe(path, ["train.weight_decay=0.5", "save.keep=9", "save.keep_after=9"]),
        output=out,
    )
    first, *_, last = sorted((out / "checkpoints").glob("step-*"))
    begun, tensors = (load_file(step / "tensors.safetensors") for step in (first, last))
    trained = stored(out)
    made = {name: begun[f"model/{name}"] for name in trained}
    for name, weight in made.items():
        gone = weight == 0
        assert torch.equal(trained[name] == 0, gone)
        assert not torch.equal(trained[name], weight), "it learned"
        assert set((~gone).reshape(-1, 4).sum(1).tolist()) == {2}
        assert torch.equal(tensors[f"zeros/{name}"], gone)
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not tensors[f"optimizer/{moment}/{name}"][gone].any()
    assert done.zeroed == done.sparse // 2
    assert len(events(out, "step")) == 20
    assert events(out, "checkpoint")[0]["step"] == 0, "made once, kept for --resume"
    before, after = events(out, "evaluation")
    assert after["domains"]["letters"]["loss"] < before["domains"]["letters"]["loss"] - 0.5


@pytest.mark.parametrize("step", [0, 10])
def test_a_run_that_failed_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = sparse(tmp_path, "sparsegpt", "sparsity: 50%", train=True, prune=True)
    run(load_recipe(path), output=tmp_path / "whole")
    real, made = story.train_step, []

    def breaks(state: Any, *rest: Any) -> bool:
        if state.step == step:
            raise RunError("interrupted")
        return real(state, *rest)

    def once(*inputs: Any) -> None:
        made.append(1)
        sparsify_event(*inputs)

    monkeypatch.setattr(story, "sparsify_event", once)
    monkeypatch.setattr(story, "train_step", breaks)
    with pytest.raises(RunError, match="interrupted"):
        run(load_recipe(path), output=tmp_path / "out")
    monkeypatch.setattr(story, "train_step", real)
    run(load_recipe(path), output=tmp_path / "out", resume=True)
    assert made == [1]
    for name in ("model.safetensors", "plans.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    clock = {"seconds", "tokens_per_second", "started", "memory_bytes", "known"}
    records = []
    for name in ("whole", "out"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        records.append([{k: v for k, v in json.loads(x).items() if k not in clock} for x in lines])
    assert records[0] == records[1]


@pytest.mark.fresh_process
def test_pruned_first(tmp_path: Path) -> None:
    path = sparse(tmp_path, "sparsegpt", "sparsity: 50%", prune=True)
    out = tmp_path / "out"
    done = run(load_recipe(path), output=out)
    (begin,), (cut,), (made,) = (events(out, k) for k in ("run", "cut", "sparsify"))
    assert done.params == pytest.approx(0.7 * begin["params"], rel=0.005) == cut["params"]
    assert done.removed == begin["params"] - done.params
    assert done.zeroed == pytest.approx(made["weights"] / 2, abs=made["weights"] * 0.001)
    order = [json.loads(x)["event"] for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert order.index("commit") < order.index("sparsify")
    assert "weights zeroed" in (out / "README.md").read_text()


def test_layers_that_are_skipped_stay_dense(tmp_path: Path) -> None:
    path = sparse(tmp_path, "wanda", "sparsity: 50%, skip_layers: [-1]")
    out = tmp_path / "out"
    run(load_recipe(path), output=out)
    for name, weight in stored(out).items():
        assert bool((weight == 0).any()) == (".layers.0." in name)
    (made,) = events(out, "sparsify")
    assert [bool(row["zeroed"]) for row in made["layers"]] == [True, False]
    assert made["weights"] == made["layers"][0]["weights"] == 2 * made["zeroed"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["sparsify.skip_layers=[0, 1]"], "sparsify.skip_layers: nothing is left"),
        (["sparsify.skip_layers=[5]"], "sparsify.skip_layers: no layer 5"),
        (
            ["sparsify.sparsity=null", "sparsify.pattern=4:8", "model.shape.intermediate_size=68"],
            "the 68 inputs of .* do not divide into groups of 8",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_loaded(
    tmp_path: Path, changes: list[str], said: str
) -> None:
    path = sparse(tmp_path, "wanda", "sparsity: 50%")
    with pytest.raises(RecipeError, match=said):
        run(load_recipe(path, changes), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import Tensor\n\n"
        "from effcompress import sparsifier\n\n\n"
        '@sparsifier("first", paper="new")\n'
        "def first(weight: Tensor, gram: Tensor, sparsity: float, *, less: int = 0) -> Tensor:\n"
        '    """The first inputs of every row."""\n'
        "    assert gram.shape == (weight.shape[1],) * 2\n"
        "    new = weight.clone()\n"
        "    new[:, : round(sparsity * weight.shape[1]) - less] = 0\n"
        "    return new\n"
    )
    path = sparse(tmp_path, "first", "sparsity: 50%")
    path.write_text(path.read_text() + "plugins: [mine.py]\n")
    run(load_recipe(path), output=tmp_path / "out")
    for weight in stored(tmp_path / "out").values():
        half = weight.shape[1] // 2
        assert not weight[:, :half].any() and weight[:, half:].all()


class Text:
    """What an event needs of a corpus."""

    def __init__(self, ids_NT: Tensor) -> None:
        self.ids_NT = ids_NT
        self.sequence_length = ids_NT.shape[1]

    def calibration(self, sequences: int, seed: int) -> Tensor:
        return self.ids_NT[:sequences]

    def calibration_positions(self, sequences: int, seed: int) -> None:
        """Documents are not isolated."""


class Record:
    """Keeps events; says nothing."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, event: Event) -> None:
        self.events.append(json.loads(line(event)))

    def warn(self, text: str) -> None:
        self.event(Warn(text=text))

    def phase(self, name: str, total: int | None = None) -> None: ...

    def progress(self, unit: str, done: int, total: int) -> None: ...


class State:
    """What an event needs of a run."""

    def __init__(self, module: Any, corpus: Any) -> None:
        from effcompress.network.pruned_model import PrunedModel

        self.module = self.unwrapped = module
        self.world = ALONE
        self.shards = self.loss_of = None
        self.operations = 0.0
        self.pruned = PrunedModel(module, module.config.to_dict())
        self.corpus, self.device = corpus, torch.device("cpu")
        self.step, self.params = 0, self.pruned.params
        self.sparse: list[str] = []
        self.zeros: dict[str, Tensor] = {}

        class Recipe:
            prune = train = None
            seed = 0

        self.recipe = Recipe()


def made_sparse(module: nn.Module, ids: Tensor, spec: SparsifySpec) -> Record:
    record = Record()
    sparsify_event(State(module, Text(ids)), spec, record)  # type: ignore[arg-type]
    return record


def spec_of(name: str, **more: Any) -> SparsifySpec:
    plugin = REGISTRY.get("sparsifier", name)
    knobs = {k: v.default for k, v in plugin.knobs.items()}
    wanted = {"sparsity": 0.5} if "pattern" not in more else {}
    return SparsifySpec(method=Bound(plugin, knobs), sequences=4, **wanted, **more)


def read_by(module: nn.Module, path: str, ids: Tensor) -> Tensor:
    """``[T, I]``: what one layer reads in full passes through the model as it is."""
    read = []
    handle = module.get_submodule(path).register_forward_pre_hook(
        lambda _m, args: read.append(args[0].flatten(0, -2).double())
    )
    with torch.no_grad():
        for row in ids:
            module(input_ids=row[None], use_cache=False)
    handle.remove()
    return torch.cat(read)


def wanda_by_hand(module: nn.Module, ids: Tensor, groups: list[list[str]]) -> None:
    """No stream: for each group of layers, full passes through the model as it is by then."""
    for names in groups:
        norms = {name: read_by(module, name, ids).square().mean(0).sqrt() for name in names}
        for name in names:
            weight = module.get_submodule(name).weight.data
            flipped = type(module.get_submodule(name)).__name__ == "Conv1D"
            rows = weight.T if flipped else weight
            for row in rows:
                score = row.abs().double() * norms[name]
                row[score.argsort()[: len(row) // 2]] = 0.0


def of_layers(module: nn.Module, layers: str) -> list[list[str]]:
    """Linear layers of each block."""
    kinds = ("Linear", "Conv1D")
    found: list[list[str]] = []
    for number in range(len(list(module.get_submodule(layers).children()))):
        block = module.get_submodule(f"{layers}.{number}")
        names = [n for n, m in block.named_modules() if type(m).__name__ in kinds]
        found.append([f"{layers}.{number}.{name}" for name in names])
    return found


LAYERS = {"gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers", "gpt2": "transformer.h"}
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "sliding_window_pattern": 2},
}


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_stream_makes_the_zeros_that_full_passes_make(model_type: str, compat: bool) -> None:
    """One pass reads what the dense model does; with ``compat`` every block reads what the sparse
    ones in front of it put out.
    """
    one, two = (tiny("gqa_tied", model_type=model_type, **MORE.get(model_type, {})) for _ in "12")
    ids = tokens(4)
    record = made_sparse(one, ids, spec_of("wanda", compat=compat))
    groups = of_layers(two, LAYERS.get(model_type, "model.layers"))
    wanda_by_hand(two, ids, groups if compat else [[name for names in groups for name in names]])
    held = dict(two.named_parameters())
    for name, p in one.named_parameters():
        assert torch.equal(p, held[name]), name
    warned = [e["text"] for e in record.events if e["event"] == "warning"]
    assert bool(warned) == (model_type in MIXTURES)
    assert all("experts and routers stay dense" in text for text in warned)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_true_sequential_looks_again_before_every_group(model_type: str) -> None:
    one, two = (tiny("gqa_tied", model_type=model_type, **MORE.get(model_type, {})) for _ in "12")
    ids = tokens(4)
    made_sparse(one, ids, spec_of("wanda", true_sequential=True))
    groups = []
    for names in of_layers(two, "model.layers"):
        by_kind = {name.rsplit(".", 1)[-1]: name for name in names}
        for kinds in ("q k v", "o", "gate up", "down"):
            groups.append([by_kind[f"{kind}_proj"] for kind in kinds.split()])
    wanda_by_hand(two, ids, groups)
    held = dict(two.named_parameters())
    for name, p in one.named_parameters():
        assert torch.equal(p, held[name]), name


@pytest.mark.parametrize(
    ("method", "compat", "passes"),
    [
        ("wanda", False, 1),
        ("wanda", True, 2),
        ("wanda", None, 1),
        ("sparsegpt", None, 2),
        ("sparsegpt", False, 1),
    ],
)
def test_how_often_the_text_goes_through_a_block(
    method: str, compat: bool | None, passes: int
) -> None:
    """By default twice where a method updates weights by second moments."""
    module, ids, seen = tiny(), tokens(4), [0]
    path = "model.layers.0.mlp.down_proj"
    module.get_submodule(path).register_forward_hook(
        lambda _m, args, _out: seen.append(args[0].shape[0])
    )
    made_sparse(module, ids, spec_of(method, compat=compat))
    short = 2  # of a few tokens, to see how layers are called
    assert sum(seen) == passes * 4 + short


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_sparsegpt_leaves_less_error_than_the_same_zeros_alone(model_type: str) -> None:
    ids = tokens(4, 24)
    dense, updated = (tiny("gqa_tied", model_type=model_type) for _ in "12")
    made_sparse(updated, ids, spec_of("sparsegpt"))
    alone = tiny("gqa_tied", model_type=model_type)
    held = dict(updated.named_parameters())
    with torch.no_grad():
        for name, p in alone.named_parameters():
            if p.dim() > 1:
                p.mul_(held[name] != 0)
        want = dense(input_ids=ids).logits
        errors = [float((m(input_ids=ids).logits - want).square().sum()) for m in (updated, alone)]
    assert errors[0] < 0.9 * errors[1]


def test_the_state_is_small() -> None:
    """Masks are kept only where training must obey them."""
    module = tiny()
    state = State(module, Text(tokens(2)))
    sparsify_event(state, spec_of("magnitude"), Record())  # type: ignore[arg-type]
    assert len(state.sparse) == 21 and not state.zeros
