"""Cutting in the middle of training: the optimizer goes on as if nothing had happened."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from effcompress.errors import SurgeryError
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.removal.optimizer import check_state
from effcompress.removal.selftest import same_function
from effcompress.types import GroupSet
from tests.conftest import SHAPES, shape, tiny, tokens

PLANS = {
    "ffn": {f"ffn.{i}": [0, 5, 39 - i] for i in range(3)},
    "attention": {f"attention.{i}": [i] for i in range(3)},
    "hidden": {"hidden": [0, 17, 46]},
}
GAIN = [Bound(REGISTRY.get("repair", "norm_gain"))]


class Training:
    """A tiny model with AdamW, and everything a cut needs."""

    def __init__(self, name: str, fused: bool = False, kinds: tuple[str, ...] = ()) -> None:
        self.config = shape(name)
        self.model = tiny(name).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, fused=fused, foreach=not fused
        )
        space = [Bound(REGISTRY.get("space", k)) for k in (*PLANS, *kinds)]
        self.pruned = PrunedModel(self.model, self.config, space)
        self.ledger = self.pruned.ledger

    @property
    def sets(self) -> list[GroupSet]:
        return self.pruned.sets

    def params(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def step(self, seed: int) -> float:
        ids = tokens(seed=seed)
        loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def mask(self, kind: str) -> None:
        self.pruned.mask(PLANS[kind], optimizer=self.optimizer, repairs=GAIN)

    def commit(self) -> None:
        self.pruned.commit(self.optimizer)


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("name", SHAPES)
def test_state_follows_the_survivors_bit_for_bit(name: str, kind: str) -> None:
    run = Training(name)
    for seed in range(3):
        run.step(seed)
    objects = {n: id(p) for n, p in run.params().items()}
    old = {
        n: {k: v.clone() for k, v in run.optimizer.state[p].items()}
        for n, p in run.params().items()
    }
    gone = PLANS[kind]
    keep = {
        (m.param, m.dim): m.index_GB[[g for g in range(s.size) if g not in gone.get(s.name, [])]]
        for s in run.sets
        for m in s.members
    }
    run.mask(kind)
    run.commit()
    for name_, p in run.params().items():
        assert id(p) == objects[name_]
        for key in ("exp_avg", "exp_avg_sq"):
            expected = old[name_][key]
            for dim in range(p.dim()):
                if (name_, dim) in keep:
                    expected = expected.index_select(dim, keep[name_, dim].flatten())
            assert torch.equal(run.optimizer.state[p][key], expected), name_
        assert run.optimizer.state[p]["step"] == 3
    check_state(run.optimizer, run.params())
    assert sum(len(g["params"]) for g in run.optimizer.param_groups) == len(run.params())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", PLANS)
def test_training_changes_every_survivor(kind: str, fused: bool) -> None:
    run = Training("gqa_tied", fused)
    run.step(0)
    run.mask(kind)
    run.commit()
    before = {n: p.detach().clone() for n, p in run.params().items()}
    for p in run.params().values():
        assert p.is_contiguous()  # a fused kernel never meets a narrowed view
    for seed in range(1, 6):
        run.step(seed)
    for name, p in run.params().items():
        assert not torch.equal(p, before[name]), name
    if run.config["tie_word_embeddings"]:
        assert run.model.lm_head.weight is run.model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", PLANS)
def test_masked_units_stay_zero_and_training_is_the_same_as_after_a_commit(kind: str) -> None:
    masked, cut = Training("gqa_untied"), Training("gqa_untied")
    for run in (masked, cut):
        run.step(0)
        run.mask(kind)
    cut.commit()
    for seed in range(1, 6):
        # Norm gains are stored at another scale while masked, which Adam's step does not know:
        # exact for ffn and attention, close for hidden.
        tolerance = 2e-3 if kind == "hidden" else 1e-5
        assert masked.step(seed) == pytest.approx(cut.step(seed), rel=tolerance)
    for s in masked.sets:
        dead = ~masked.ledger.alive[s.name]
        for m in s.members:
            gone = masked.params()[m.param].index_select(m.dim, m.index_GB[dead].flatten())
            assert gone.numel() == 0 or float(gone.detach().abs().max()) == 0.0


def test_what_is_frozen_stays_frozen() -> None:
    run = Training("gqa_tied")
    frozen = run.params()["model.layers.1.mlp.up_proj.weight"].requires_grad_(False)
    trained = {n for n, p in run.params().items() if p.requires_grad}
    run.mask("ffn")
    run.pruned.commit()
    assert frozen.shape[0] == 37 and not frozen.requires_grad
    assert {n for n, p in run.params().items() if p.requires_grad} == trained


def test_cuts_compose() -> None:
    run = Training("gqa_tied")
    ids = tokens()
    for kind in PLANS:
        run.step(0)
        run.mask(kind)
        with same_function(run.model, ids, run.optimizer) as proof:
            run.commit()
        assert proof.max_logit_difference < 1e-4
    widths = run.ledger.widths()
    assert widths["hidden"] == 45 and widths["ffn.2"] == 37 and widths["attention.0"] == 2
    assert run.ledger.original["hidden"].tolist() == [
        c for c in range(48) if c not in PLANS["hidden"]["hidden"]
    ]
    out = run.model.eval().generate(ids[:1], max_new_tokens=4, do_sample=False, use_cache=True)
    assert out.shape == (1, ids.shape[1] + 4)


def test_a_layer_goes_with_its_moments() -> None:
    run = Training("gqa_tied", kinds=("layer", "mlp_block"))
    run.step(0)
    run.pruned.mask({"layer.1": [0], "mlp_block.2": [0]}, optimizer=run.optimizer)
    with same_function(run.model, tokens(), run.optimizer) as proof:
        run.commit()
    assert proof.max_logit_difference < 1e-4
    assert run.model.config.num_hidden_layers == 2
    held = {id(p) for g in run.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in run.params().values()}
    assert len(run.optimizer.state) == len(held)
    before = {n: p.detach().clone() for n, p in run.params().items()}
    assert not any("layers.1.mlp" in name for name in before)
    run.step(1)
    assert all(not torch.equal(p, before[n]) for n, p in run.params().items())


def test_a_living_gradient_is_refused() -> None:
    run = Training("gqa_tied")
    ids = tokens()
    run.model(input_ids=ids, labels=ids).loss.backward()
    with pytest.raises(SurgeryError, match="a gradient is alive"):
        run.mask("ffn")


def test_a_living_loss_is_refused() -> None:
    run = Training("gqa_tied")
    run.mask("ffn")
    ids = tokens()
    loss = run.model(input_ids=ids, labels=ids).loss
    with pytest.raises(SurgeryError, match="cannot be exchanged"):
        run.commit()
    del loss


def test_a_unit_cannot_go_twice_nor_an_unknown_set() -> None:
    run = Training("gqa_tied")
    run.mask("ffn")
    with pytest.raises(SurgeryError, match=r"ffn\.0: mini-group 0 was removed before"):
        run.mask("ffn")
    with pytest.raises(SurgeryError, match="does not have"):
        run.pruned.mask({"ffn.9": [0]})


def test_selftest_catches_a_wrong_cut() -> None:
    run = Training("gqa_tied")
    run.mask("ffn")
    with (
        pytest.raises(SurgeryError, match="logits moved"),
        same_function(run.model, tokens(), run.optimizer),
    ):
        run.ledger.alive["ffn.1"][20] = False  # a unit that was never zeroed
        run.commit()


def test_selftest_catches_broken_ties_and_foreign_optimizers() -> None:
    run = Training("gqa_tied")
    head = run.model.lm_head
    with (
        pytest.raises(SurgeryError, match="tied"),
        same_function(run.model, tokens(), None),
    ):
        head.weight = nn.Parameter(head.weight.detach().clone())
    run = Training("gqa_tied")
    stale = copy.deepcopy(run.model)
    with pytest.raises(SurgeryError, match="not in the optimizer"):
        check_state(torch.optim.AdamW(stale.parameters()), run.params())
