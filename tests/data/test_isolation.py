"""Documents of one sequence that do not see each other compute what each computes alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokenizer import ByteTokenizer
from torch import Tensor, nn
from torch.nn import functional

from effcompress import load_recipe, run
from effcompress.data.stream import Windows
from effcompress.errors import RunError
from effcompress.evaluation import perplexity
from effcompress.isolation import placed, require_isolation
from effcompress.measure.blockwise import blockwise
from effcompress.measure.stats import collect
from effcompress.model.families import family_of
from effcompress.recompute import recompute_layers
from effcompress.registry import REGISTRY, Bound
from effcompress.spec import DocumentsSpec, DomainSpec, TrainSpec
from effcompress.train import backward
from effcompress.types import Batch
from tests.conftest import MIXTURES, tiny, tokens, unrounded, with_exact_norms
from tests.measure.test_blockwise import CASES, WINDOWS
from tests.runner.toys import events, recipe

LENGTHS = ((5, 7), (12,), (1, 9, 2))
"""Of the documents in each of three rows."""


def packed(seed: int = 1) -> tuple[Tensor, Tensor]:
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    return tokens(len(LENGTHS), 12, seed), positions


def pieces(ids: Tensor) -> list[tuple[int, int, Tensor]]:
    """(row, start, ids of one document)."""
    found = []
    for row, lengths in enumerate(LENGTHS):
        starts = np.cumsum([0, *lengths])[:-1]
        found += [(row, s, ids[row, s : s + n]) for s, n in zip(starts, lengths, strict=True)]
    return found


def precise(model_type: str, attention: str = "sdpa") -> nn.Module:
    module: Any = tiny("gqa_tied", model_type=model_type, **WINDOWS.get(model_type, {}))
    module = with_exact_norms(module)
    if model_type in MIXTURES:  # grouped kernels take no fp64
        module.set_experts_implementation("eager")
    module.set_attn_implementation(attention)
    return module.double()


@torch.no_grad()
@pytest.mark.parametrize(("model_type", "attention"), [c for c in CASES if c[0] != "gpt_oss"])
def test_logits_are_those_of_each_document_alone(
    model_type: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unrounded(monkeypatch)
    module, (ids, positions) = precise(model_type, attention), packed()
    together = module(input_ids=ids, use_cache=False, **placed(module, positions)).logits
    for row, start, document in pieces(ids):
        alone = module(input_ids=document[None], use_cache=False).logits[0]
        apart = (together[row, start : start + len(document)] - alone).abs().max()
        assert float(apart) < 1e-9
    seen = module(input_ids=ids, use_cache=False).logits
    assert float((seen - together)[0, 5:].abs().max()) > 1e-3  # or this would show nothing
    require_isolation(module)


def test_a_class_that_makes_its_masks_without_positions_is_refused() -> None:
    with pytest.raises(RunError, match=r"GptOss.*: documents of one sequence see each other"):
        require_isolation(precise("gpt_oss", "eager"))


def test_a_class_without_positions_is_refused_by_name() -> None:
    class Deaf(nn.Module):
        def __init__(self, inner: nn.Module, *, listens: bool) -> None:
            super().__init__()
            self.inner, self.listens = inner, listens

        def forward(self, input_ids: Tensor, use_cache: bool, **named: Tensor) -> Any:
            if named and not self.listens:
                raise TypeError("unexpected keyword argument")
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    for listens in (True, False):
        module = Deaf(tiny(), listens=listens).train()
        with pytest.raises(RunError, match="Deaf: documents of one sequence see each other") as e:
            require_isolation(module)
        assert "data.documents.isolate" in str(e.value) and module.training


def batch_of(ids: Tensor, positions: Tensor | None) -> Batch:
    trained = torch.ones(ids.shape, dtype=torch.bool)
    if positions is not None:
        trained[:, 1:] = positions[:, 1:] > 0
    rows = len(ids)
    return Batch(ids, ("a",) * rows, (("a", 0),) * rows, trained, positions)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "opt"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_the_documents(model_type: str, recompute: bool) -> None:
    module, (ids, positions) = precise(model_type), packed()
    total = torch.zeros(())
    for row, lengths in enumerate(LENGTHS):
        own = [piece for at, _, piece in pieces(ids) if at == row]
        losses = [
            functional.cross_entropy(
                module(input_ids=d[None]).logits[0, :-1], d[1:], reduction="sum"
            )
            for d in own
            if len(d) > 1
        ]
        total = total + sum(losses) / sum(n - 1 for n in lengths) / len(LENGTHS)
    total.backward()
    wanted = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    if recompute:
        recompute_layers(module)
    module.train()
    spec = TrainSpec(tokens=1, batch_size=3, micro_batch_size=2)
    found = backward(module, batch_of(ids, positions), spec)
    assert found.loss == pytest.approx(float(total.detach()), rel=1e-6)
    for name, p in module.named_parameters():
        if name in wanted:
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-6)


def test_perplexity_is_that_of_the_documents() -> None:
    module, (ids, positions) = precise("llama"), packed()
    counted = batch_of(ids, positions).trained_BT
    found = perplexity(module, ids, 2, counted, positions_NT=positions)
    with torch.no_grad():
        each = torch.cat(
            [
                functional.cross_entropy(
                    module(input_ids=d[None]).logits[0, :-1], d[1:], reduction="none"
                )
                for _, _, d in pieces(ids)
            ]
        )
    assert found.tokens == len(each) == 36 - 6
    assert found.loss == pytest.approx(float(each.mean()), rel=1e-6)


def test_calibration_gradients_and_blocks() -> None:
    module, (ids, positions) = precise("gemma3_text"), packed()
    fisher = Bound(REGISTRY.get("hessian", "fisher_diag"))
    stats = collect(module, ids, {"grad"}, fisher, positions_NT=positions)
    name = "model.layers.1.mlp.down_proj.weight"
    wanted = torch.zeros(module.get_parameter(name).shape, dtype=torch.float64)
    for row, lengths in enumerate(LENGTHS):
        for at, _, d in pieces(ids):
            if at == row and len(d) > 1:
                loss = functional.cross_entropy(
                    module(input_ids=d[None]).logits[0, :-1], d[1:], reduction="sum"
                )
                (grad,) = torch.autograd.grad(loss, module.get_parameter(name))
                wanted += grad / sum(n - 1 for n in lengths) / len(LENGTHS)
    found = stats.rows(name, 0, stats.shape(name)[0])["grad"]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
    seen: list[Tensor] = []
    last = module.get_submodule("model.layers.2")
    handle = last.register_forward_hook(lambda _m, _a, out: seen.append(out))
    for block in blockwise(module, family_of(module.config.to_dict()).layer, ids, positions):
        seen.clear()
        block.run()
    with torch.no_grad():
        module(input_ids=ids, position_ids=positions, use_cache=False)
    handle.remove()
    torch.testing.assert_close(torch.cat(seen[:3]), seen[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bos", [None, 9])
def test_positions_restart_at_documents_and_at_windows(bos: int | None) -> None:
    """A window may begin in the middle of a document, or with one; BOS is in front of either."""
    size = 8 - (bos is not None)
    ends = np.array([3, size, size + 1, 2 * size + 2, 4 * size], dtype=np.uint64)
    windows = Windows(np.arange(4 * size, dtype=np.uint16), 8, bos, 4, ends)
    for number in range(4):
        begins = {int(e) for e in ends}
        expected, at = [], 0
        for column in range(8):
            text = number * size + column - (bos is not None)
            if column > (bos is not None) and text in begins:
                at = 0
            expected.append(at)
            at += 1
        found = windows.positions(number)
        assert found is not None and found.tolist() == expected


def test_documents_end_where_the_cache_says(make: Any, jsonl: Any) -> None:
    """Not where an id is EOS: here no text is separated by one."""
    tokenizer = ByteTokenizer()
    tokenizer.eos_id = None
    documents = ["a" * 5, "b" * 40, "c" * 14, "d" * 200]
    spec = DomainSpec(jsonl=(jsonl("a.jsonl", documents),), holdout=0.0)
    corpus = make({"d": spec}, tokenizer, documents=DocumentsSpec(isolate=True), train_tokens=64)
    batch = corpus.stream(0).next(6)
    for ids, positions, trained in zip(
        batch.ids_BT, batch.positions_BT, batch.trained_BT, strict=True
    ):
        expected = torch.zeros(32, dtype=torch.int64)
        for at in range(1, 32):
            expected[at] = expected[at - 1] + 1 if ids[at] == ids[at - 1] else 0
        assert positions.equal(expected)
        assert trained[1:].equal(expected[1:] > 0)
    assert (batch.positions_BT[:, 1:] == 0).any()
    assert corpus.calibration(2).shape == corpus.calibration_positions(2).shape
    assert make({"d": spec}, tokenizer).calibration_positions(2) is None


def test_a_run_isolates_everywhere(tmp_path: Path) -> None:
    """Evaluation, calibration, training and recovery of one run, with recomputation; its dense
    perplexity is that of the documents.
    """
    path = recipe(tmp_path)
    settings = ["prune.measure={source: calibration, sequences: 4}", "prune.criterion=taylor"]
    settings += ["train.recompute=true", "data.documents={isolate: true}"]
    settings += ["prune.schedule={name: once, at: 512}", "train.tokens=1024"]
    settings += ["data.sequence_length=64"]
    run(load_recipe(path, settings), output=tmp_path / "on")
    run(load_recipe(path, settings[:3] + settings[4:]), output=tmp_path / "off")
    scores = {}
    for name in ("on", "off"):
        before, _ = events(tmp_path / name, "evaluation")
        scores[name] = before["domains"]["numbers"]
        assert ("documents" in before["protocol"]) == (name == "on")
        assert events(tmp_path / name, "cut")
    assert scores["on"]["hash"] == scores["off"]["hash"]
    assert scores["on"]["tokens"] <= scores["off"]["tokens"]
    assert not math.isclose(scores["on"]["loss"], scores["off"]["loss"], rel_tol=1e-6)
