"""Loading and exporting by shards: what one process reads and writes, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.distributed.world import ALONE
from effcompress.model.tokenizer import ByteTokenizer
from tests import warm
from tests.distributed import files_worker
from tests.distributed.test_two_processes import listed, logits
from tests.runner.toys import events, recipe

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this

SHARD = ["distributed.mode=shard"]
PER_LAYER = "prune.space=[{name: ffn, scope: per_layer}]"
FORMS = {
    "uniform": ["prune.space=[{name: ffn}, hidden]"],
    "exact": [PER_LAYER],
    "padded": [PER_LAYER],
}
MIXTURE: dict[str, Any] = {
    **{"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2},
    "moe_intermediate_size": 16,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)


def source(folder: Path, dtype: torch.dtype, size: str, **changes: Any) -> Path:
    fields = {"model_type": "llama", "vocab_size": 258, "hidden_size": 32, "intermediate_size": 61}
    fields |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields |= {"head_dim": 8, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
    built: Any = AutoConfig.for_model(**{**fields, "max_position_embeddings": 128, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: Any = AutoModelForCausalLM.from_config(built)
    model.to(dtype).save_pretrained(folder, max_shard_size=size)
    ByteTokenizer().save(folder)
    return folder


def together(jobs: list[dict[str, Any]], folder: Path, processes: int) -> None:
    path = listed(jobs, folder)
    code, said = warm.together(files_worker.main, path, folder=folder, processes=processes)
    assert code == 0, said


def test_every_process_reads_its_rows(tmp_path: Path) -> None:
    """Tied and untied, fp32 and bf16, one file and several, experts, random weights; two processes
    and four.
    """
    folders = {
        "untied": source(tmp_path / "a", torch.float32, "1GB", tie_word_embeddings=False),
        "tied": source(tmp_path / "b", torch.float32, "20KB", tie_word_embeddings=True),
        "bf16": source(tmp_path / "c", torch.bfloat16, "30KB"),
        "experts": source(tmp_path / "d", torch.float32, "30KB", **MIXTURE),
    }
    path = recipe(tmp_path)
    cases = {name: [f"model={{folder: {at}}}"] for name, at in folders.items()}
    cases |= {"random": [], "another seed": ["seed=3"]}
    jobs = {
        n: [
            {"recipe": path, "output": tmp_path / f"{n}-{kind}", "set": [*sets, *SHARD]}
            for kind, sets in cases.items()
        ]
        for n in (1, 2, 4)
    }
    for job in jobs[1]:
        files_worker.one(json.loads(json.dumps(job, default=str)), ALONE)
    for n in (2, 4):
        together(jobs[n], tmp_path, n)
        for kind in cases:
            one, said = torch.load(tmp_path / f"1-{kind}" / "source.pt")
            several, told = torch.load(tmp_path / f"{n}-{kind}" / "source.pt")
            assert told == said and one.keys() == several.keys(), kind
            for name, tensor in one.items():
                assert torch.equal(several[name], tensor), (n, kind, name)
    drawn = [torch.load(tmp_path / f"1-{kind}" / "source.pt")[0] for kind in [*cases][-2:]]
    assert not torch.equal(*(held["model.embed_tokens.weight"] for held in drawn))


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_every_process_writes_whole_tensors(tmp_path: Path) -> None:
    """The files of two and of four processes hold what one process writes, in all forms; plain
    transformers computes the same of them.
    """
    path = recipe(tmp_path, tied="false")
    jobs = {
        n: [
            {"recipe": path, "output": tmp_path / f"{n}-{form}", "form": form, "set": [*s, *SHARD]}
            for form, s in FORMS.items()
        ]
        for n in (1, 2, 4)
    }
    for job in jobs[1]:
        files_worker.one(json.loads(json.dumps(job, default=str)), ALONE)
    for n in (2, 4):
        together(jobs[n], tmp_path, n)
        for form in FORMS:
            one, several = (tmp_path / f"{k}-{form}" for k in (1, n))
            assert [f.name for f in one.glob("out/model*.safetensors")] == ["model.safetensors"]
            index = json.loads((several / "out/model.safetensors.index.json").read_text())
            files = sorted(f.name for f in (several / "out").glob("model-*.safetensors"))
            assert files == sorted({*index["weight_map"].values()}) and len(files) >= n
            held = {k: load_file(several / "out" / f) for k, f in enumerate(files)}
            assert {name: files[k] for k in held for name in held[k]} == index["weight_map"]
            whole, parts = weights(one / "out"), weights(several / "out")
            assert whole.keys() == parts.keys()
            for name, tensor in whole.items():
                assert torch.equal(parts[name], tensor), (n, form, name)
            said = events(several, "export")[0]
            assert sorted(said["hashes"]) == files and said["form"] == form
            assert events(several, "proof")[0]["tokens_equal"]
            if form != "exact":
                assert torch.equal(logits(one / "out"), logits(several / "out"))
            for name in ("config.json", "generation_config.json", "tokenizer.json"):
                texts = [(at / "out" / name) for at in (one, several)]
                assert len({t.read_text() if t.exists() else "" for t in texts}) == 1, name


def test_a_run_killed_while_it_exports(tmp_path: Path) -> None:
    """No file of a model is in its folder; a resumed run writes all of them."""
    path = recipe(tmp_path, tokens=256, schedule="{name: continuous, every: 1, groups: 40}")
    folder = tmp_path / "out"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    job = ["-m", "effcompress", "run", str(path), "--output", str(folder)]
    job += ["--set", *SHARD, "--set", "evaluate.new_tokens=1"]

    def launched(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *start, *job, *more],
            env={
                **os.environ,
                **{"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=800,
        )

    killed = launched(EFFCOMPRESS_FAULT="export.tensor:4:kill")
    assert killed.returncode != 0
    assert [*(folder / "checkpoints").glob("step-*")], killed.stderr[-2000:]
    assert not [f.name for f in folder.iterdir() if f.name.startswith(("model", "config"))]
    assert [*folder.glob(".exporting-*/model-*")]  # it was writing
    done = launched("--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "config.json").exists() and len([*folder.glob("model-*.safetensors")]) >= 2
    assert not [*folder.glob(".exporting-*")]
    assert logits(folder).isfinite().all()


def test_a_full_disk_on_one_process(tmp_path: Path) -> None:
    """All stop with its error, and the folder is as it was."""
    path = recipe(tmp_path, tied="false")
    job = {"recipe": path, "output": tmp_path / "x", "form": "uniform", "full": True, "set": SHARD}
    jobs = listed([job], tmp_path)
    code, said = warm.together(files_worker.main, jobs, folder=tmp_path, processes=2)
    assert code != 0 and "No space left on device" in said, said
    assert not [*(tmp_path / "x" / "out").iterdir()]
