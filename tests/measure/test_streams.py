"""Two models side by side: against the streams that the classes themselves carry."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from effcompress_plugins.refit import least_squares, least_squares_bias
from torch import Tensor

from effcompress import load_recipe
from effcompress.errors import RecipeError, RunError
from effcompress.estimate.check import check
from effcompress.measure import streams
from effcompress.measure.moments import Moments, Parts
from effcompress.measure.streams import follow
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from tests.conftest import FAMILIES, MIXTURES, shape, stated, tiny, tokens
from tests.runner.toys import recipe as toy

NORMS_BEHIND = ("gemma2", "gemma3_text", "olmo2")
OTHERS = [name for name in FAMILIES if name not in NORMS_BEHIND]


def made(model_type: str, *spaces: str) -> tuple[PrunedModel, torch.nn.Module]:
    name = "mha_tied" if model_type in ("gpt_neox", "opt", "gpt2") else "gqa_tied"
    model = tiny(name, model_type=model_type)
    space = [Bound(REGISTRY.get("space", s)) for s in spaces]
    return PrunedModel(model, model.config.to_dict(), space), copy.deepcopy(model)


def led(
    small: PrunedModel, large: torch.nn.Module, ids: Tensor, change: object = None
) -> dict[str, Moments]:
    found: dict[str, Moments] = {}

    def keep(name: str, parts: Parts) -> None:
        found[name] = parts.all
        if change is not None:
            change(small.parameters()[name], parts.all)  # type: ignore[operator]

    channels = small.ledger.original.get("hidden")
    steps = follow(large, small.module, small.axes, small.parent, ids, channels, keep)
    assert len(list(steps)) == len(small.depth.layers)
    return found


@pytest.mark.parametrize("model_type", [*OTHERS, "granite"])
def test_the_same_model_has_nothing_to_learn(model_type: str) -> None:
    """What a projection should put out is what it puts out: cross = W gram."""
    small, large = made(model_type, "ffn")
    found = led(small, large, tokens(3, seed=1))
    assert len(found) >= (3 if model_type in MIXTURES else 6)
    for name, moments in found.items():
        weight = small.parameters()[name].detach().double()
        weight = weight.T if model_type == "gpt2" else weight
        scale = float(moments.cross.abs().max())
        torch.testing.assert_close(weight @ moments.gram, moments.cross, rtol=0, atol=2e-5 * scale)
        torch.testing.assert_close(
            weight @ moments.mean, moments.target_mean, rtol=0, atol=2e-5 * scale + 1e-6
        )


@pytest.mark.parametrize("model_type", NORMS_BEHIND)
def test_a_norm_behind_the_projection_is_refused(model_type: str) -> None:
    small, large = made(model_type, "ffn")
    with pytest.raises(RunError, match="not the output of one linear layer"):
        led(small, large, tokens(2, seed=1))


@pytest.mark.parametrize("model_type", [*FAMILIES, "opt, norms behind"])
def test_check_refuses_a_refit_where_a_run_would(model_type: str, tmp_path: Path) -> None:
    name, _, behind = model_type.partition(", ")
    more = {"model_type": name, "vocab_size": 258}
    more |= {"do_layer_norm_before": False} if behind else {}
    config, model = shape("gqa_tied", **more), tiny("gqa_tied", **more)
    small = PrunedModel(copy.deepcopy(model), config, [Bound(REGISTRY.get("space", "attention"))])
    try:
        led(small, model, tokens(1, seed=1))
    except RunError as error:
        assert "not the output of one linear layer" in error.what
        refused = True
    else:
        refused = False
    assert refused == small.family.norms_behind(config)
    path = toy(tmp_path, measure="{source: calibration}", schedule="{name: once, at: 0}")
    sets = [f"model.shape={json.dumps(stated(config))}", "prune.refit=least_squares"]
    sets += ["prune.space=[hidden]", "prune.target.shape={hidden: 40}", "prune.target.keep=null"]
    said = ""
    try:
        check(load_recipe(path, sets))
    except RecipeError as error:
        said = str(error)
    assert ("norms lie behind the projections" in said) == refused, said
    assert refused or not said, said


def states(model: torch.nn.Module, ids: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(model(input_ids=ids, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("spaces", [("ffn",), ("ffn", "hidden"), ("layer",)])
def test_the_stream_comes_back(spaces: tuple[str, ...]) -> None:
    """Refit on the text itself: the stream in front of the last layers is nearer to the source's,
    and each weight is the ridge regression that an independent solver finds.
    """
    small, large = made("llama", *spaces)
    plan = {s.name: [*range(0, s.size, 3)] for s in small.sets if s.kind != "layer"}
    if "layer" in spaces:
        plan = {"layer.1": [0]}
    small.mask(plan, repairs=[Bound(REGISTRY.get("repair", "norm_gain"))])
    small.commit()
    ids = tokens(12, seed=2)
    kept = small.ledger.original.get("hidden")

    def distance() -> float:
        own, theirs = states(small.module, ids), states(large, ids)
        last = len(small.depth.layers) - 1
        target = theirs[small.depth.layers[last]]
        return float((own[last] - (target if kept is None else target[..., kept])).norm())

    before = distance()

    def change(weight: Tensor, m: Moments) -> None:
        old = weight.detach().clone().double()
        new = least_squares(old, m.gram, m.cross, damp=0.02)
        size = 0.02 * float(m.gram.diagonal().mean())
        eye = torch.eye(len(m.gram), dtype=torch.float64)
        wanted = torch.linalg.solve(m.gram + size * eye, (m.cross + size * old).T).T
        assert float((new - wanted).norm() / wanted.norm()) < 1e-8
        weight.data.copy_(new)

    led(small, large, ids, change)
    assert distance() < 0.8 * before


def test_an_intercept_is_not_punished() -> None:
    make = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=make, dtype=torch.float64) + 2.0
    weight = torch.randn(3, 5, generator=make, dtype=torch.float64)
    t = x @ torch.randn(5, 3, generator=make, dtype=torch.float64) + 7.0
    n = len(x)
    new, more = least_squares_bias(weight, x.T @ x / n, t.T @ x / n, x.mean(0), t.mean(0), damp=0.1)
    centred = x - x.mean(0)
    size = 0.1 * float(centred.square().mean())
    ridge = size * torch.eye(6, dtype=torch.float64)
    ridge[-1, -1] = 0.0
    design = torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], 1)
    prior = torch.cat([weight, torch.zeros(3, 1, dtype=torch.float64)], 1)
    wanted = torch.linalg.solve(design.T @ design / n + ridge, design.T @ t / n + ridge @ prior.T).T
    torch.testing.assert_close(torch.cat([new, more[:, None]], 1), wanted)


def test_no_part_of_a_layer_runs_twice() -> None:
    """Of the pruned model's layers: one pass for all fits, beside one to see how a layer adds to
    the stream, whatever is fitted in them; and what it hands on is what the layer computes.
    """
    small, large = made("llama", "ffn")
    small.mask({s.name: [*range(0, s.size, 3)] for s in small.sets})
    small.commit()
    ids = tokens(5, seed=2)
    runs: dict[str, int] = {}
    for name, module in small.module.named_modules():
        if name.endswith(("q_proj", "up_proj")):
            runs[name] = 0
            module.register_forward_hook(
                lambda *_, name=name: runs.__setitem__(name, runs[name] + 1)
            )

    def change(weight: Tensor, m: Moments) -> None:
        weight.data.copy_(least_squares(weight.detach().double(), m.gram, m.cross, damp=0.1))

    found = led(small, large, ids, change)
    # One short pass for each of two texts, and the one that shows how the first layer is made.
    probes = {name: 2 + name.startswith("model.layers.0.") for name in runs}
    assert runs == {name: 5 + probes[name] for name in runs}
    # What the last layer's projection read in the fit is what it reads in the fitted model.
    name = [name for name in found if "down_proj" in name][-1]
    read: list[Tensor] = []
    linear = small.module.get_submodule(name.removesuffix(".weight"))
    linear.register_forward_pre_hook(lambda _m, args: read.append(args[0][0].double()))
    with torch.no_grad():
        for row in ids:
            small.module(input_ids=row[None], use_cache=False)
    x = torch.cat(read)
    torch.testing.assert_close(found[name].gram, x.T @ x / len(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", OTHERS)
def test_what_is_kept_changes_nothing(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against layers that are run anew before every fit."""
    weights: list[dict[str, Tensor]] = []
    for kept in (True, False):
        small, large = made(model_type, "ffn")
        plan = {s.name: [*range(0, s.size, 3)] for s in small.sets}
        small.mask(plan)
        if not kept:
            monkeypatch.setattr(streams._Again, "keeps", lambda *_: None)

        def change(weight: Tensor, m: Moments) -> None:
            turned = weight.shape != m.cross.shape or model_type == "gpt2"
            old = (weight.T if turned else weight).detach().double()
            new = least_squares(old, m.gram, m.cross, damp=0.1)
            weight.data.copy_(new.T if turned else new)

        led(small, large, tokens(4, seed=2), change)
        weights.append({name: p.detach().clone() for name, p in small.parameters().items()})
    for name, kept_p in weights[0].items():
        torch.testing.assert_close(kept_p, weights[1][name], rtol=1e-3, atol=1e-4)
