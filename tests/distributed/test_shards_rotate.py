"""A residual stream that is rotated and sliced while parameters are sharded: what one process
gives, trained on, stopped and resumed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from effcompress import load_recipe, run
from tests.distributed.test_two_processes import losses, together
from tests.runner.test_rotate import TRAIN, weights, written
from tests.runner.toys import events

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this

SHARD = ["distributed.mode=shard"]
SPLIT = "{name: slicegpt, tie: split}"
REFIT = ["prune.refit=least_squares", "prune.measure.refit_sequences=8"]
CENTRED = """\
    {model_type: gpt_neox, vocab_size: 259, hidden_size: 32, intermediate_size: 64,
     num_hidden_layers: 2, num_attention_heads: 4, max_position_embeddings: 128}
"""
"""LayerNorm, biases, and both blocks read one tensor."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)


def test_a_sharded_model_is_sliced(tmp_path: Path) -> None:
    """By both kinds of embedding, with a refit, and where processes outnumber the sequences of one
    (six sequences for four processes: each reads all).
    """
    for name in ("kept", "split", "centred"):
        (tmp_path / name).mkdir()
    paths = {
        "kept": written(tmp_path / "kept", more=TRAIN),
        "split": written(tmp_path / "split", rotate=SPLIT, more=TRAIN),
        "centred": written(tmp_path / "centred", rotate=SPLIT, more=TRAIN),
    }
    text = paths["centred"].read_text()
    begin, end = text.index("    {model_type"), text.index("  tokenizer:")
    paths["centred"].write_text(text[:begin] + CENTRED + text[end:])
    cases = {**{name: (path, []) for name, path in paths.items()}, "refit": (paths["kept"], REFIT)}
    for name, (path, sets) in cases.items():
        run(load_recipe(path, sets), output=tmp_path / f"one_{name}")
    jobs = [
        {"recipe": path, "output": tmp_path / f"{way}_{name}", "set": [*sets, *mode]}
        for way, mode in {"shares": SHARD, "replicas": []}.items()
        for name, (path, sets) in cases.items()
    ]
    stopped = {**jobs[1], "output": tmp_path / "stopped"}
    jobs += [{**stopped, "asked": 2}, {**stopped, "resume": True}]
    code, said = together(jobs, tmp_path)
    assert code == 1, said  # the one that was asked to stop
    four = {**jobs[1], "output": tmp_path / "four_split"}
    four["set"] = [*SHARD, "distributed.replicas=2"]
    code, said = together([four], tmp_path, processes=4)
    assert code == 0, said
    others = {name: [tmp_path / f"shares_{name}"] for name in cases}
    others["split"] += [tmp_path / "four_split", tmp_path / "stopped"]
    for name, folders in others.items():
        one = tmp_path / f"one_{name}"
        (alone,) = events(one, "rotated")
        for folder in folders:
            (found,) = events(folder, "rotated")
            assert found["params"] == alone["params"]
            energies = [[place["energy"] for place in e["places"]] for e in (alone, found)]
            assert energies[1] == pytest.approx(energies[0], abs=1e-5), name
            assert losses(folder)[0] == pytest.approx(losses(one)[0], abs=1e-4), name
            before, after = weights(one), weights(folder)
            assert {n: p.shape for n, p in before.items()} == {n: p.shape for n, p in after.items()}
            (proof,) = events(folder, "proof")
            assert proof["tokens_equal"] and proof["cache_equal"]
    # Of nearly equal directions rounding decides which basis they get, which AdamW notices. Two
    # processes find the same bases, whether parameters are sharded or not.
    for name in cases:
        replicas = losses(tmp_path / f"replicas_{name}")
        assert losses(tmp_path / f"shares_{name}") == pytest.approx(replicas, abs=1e-4), name
    whole, halves = weights(tmp_path / "shares_split"), weights(tmp_path / "stopped")
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
