"""Tiny models whose every size is different, so that no two axes can be mixed up by accident."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils

from effcompress.checkpoint import proof
from effcompress.model.classes import ALWAYS, fields_of
from effcompress.registry import REGISTRY
from tests import proving

# The same examples every time; all of the slow properties' with `--hypothesis-profile full`, others
# with `explore`.
settings.register_profile("same", derandomize=True, max_examples=50)
settings.register_profile("full", derandomize=True, max_examples=100)
settings.register_profile("explore", max_examples=100)
settings.load_profile("same")


def examples(full: int) -> settings:
    """For slow properties: ``full`` examples in the profiles `full` and `explore`, else a third."""
    all_of_them = settings.default.max_examples >= 100
    return settings(max_examples=full if all_of_them else max(1, full // 3), deadline=None)


GROUPED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "glm4_moe",
)
"""Families that may share a KV head among queries."""
MIXTURES = {"mixtral": (0, 1, 2), "qwen3_moe": (0, 2), "gpt_oss": (0, 1, 2), "glm4_moe": (1, 2)}
"""Family -> layers of the toy that are a mixture of experts."""
PLAIN = ("gpt_neox", "opt", "gpt2")
FAMILIES = (*GROUPED, *PLAIN)
OWN: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 28,
        "mlp_only_layers": [1],
    },
    "gpt_oss": {
        **{"num_local_experts": 5, "num_experts_per_tok": 2, "attention_bias": True},
        **{"sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    # Two groups of four experts, of which the router chooses one.
    "glm4_moe": {
        **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
        **{"moe_intermediate_size": 28, "n_shared_experts": 1, "first_k_dense_replace": 1},
        **{"use_qk_norm": True, "routed_scaling_factor": 1.5},
    },
    # What blocks add to the stream is multiplied; norms behind the blocks are switched off.
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "hyperclovax": {"residual_multiplier": 0.5, "use_post_norm": False},
    "gpt_neox": {"hidden_dropout": 0.0},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 48, "dropout": 0.0},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_inner": 40, "n_positions": 128}
    | {f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")},
}
_GPT2_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHAPES: dict[str, dict[str, Any]] = {
    "gqa_tied": {"num_attention_heads": 6, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "gqa_untied": {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "tie_word_embeddings": False,
    },
    "mha_tied": {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "mha_untied": {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}


# A test module may import a plugin file by its name, whose criterion names a statistic of its own
# further down: that works once all plugins are loaded by the registry.
REGISTRY.load_builtins()


@pytest.fixture(autouse=True)
def plugin_files_go_with_their_test() -> Iterator[None]:
    """What recipes of a test load is not there for the next, whatever the order of tests."""
    before = {kind: set(known) for kind, known in REGISTRY._plugins.items()}
    loaded = set(REGISTRY._loaded)
    yield
    for kind, known in REGISTRY._plugins.items():
        for name in known.keys() - before[kind]:
            del known[name]
    REGISTRY._loaded &= loaded | {"builtins"}


@pytest.fixture(scope="session", autouse=True)
def proofs_in_this_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports are proven in the process of the tests, unless a test is marked ``fresh_process``."""
    # Where transformers copies the classes of exported folders: not the user's cache.
    modules = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
        patch.setattr(proof, "in_fresh_process", proving.in_this_process)
        yield


@pytest.fixture(autouse=True)
def marked_ones_in_a_fresh_process(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("fresh_process") is None:
        yield
        return
    with proving.fresh_process():
        yield


@pytest.fixture(autouse=True)
def records_are_closed() -> Iterator[None]:
    """A record that a test leaves open has a heartbeat that goes on during the tests after it."""
    before = {id(thread) for thread in threading.enumerate()}
    yield
    left = [t for t in threading.enumerate() if t.name == "heartbeat" and id(t) not in before]
    assert not left, "this test leaves a record open: close its Log"


def shape(name: str, **more: Any) -> dict[str, Any]:
    """Configuration fields of a tiny Llama: hidden 48, FFN 40, 3 layers, heads of 8."""
    fields = {
        "model_type": "llama",
        "vocab_size": 61,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "attention_bias": False,
        "mlp_bias": False,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **SHAPES[name],
    }
    model_type = more.get("model_type", "llama")
    if model_type in PLAIN:
        fields |= {"num_attention_heads": 6}
        gone = {"num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"}
        gone |= {*_GPT2_NAMES, "max_position_embeddings"} if model_type == "gpt2" else set()
        gone |= {"intermediate_size"} if model_type == "opt" else set()
        fields = {key: value for key, value in fields.items() if key not in gone}
    return fields | OWN.get(model_type, {}) | more


def stated(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that a recipe may state under `model.shape`: those that its class has."""
    known = {"model_type", *(fields_of(config["model_type"]) or ()), *ALWAYS}
    return {key: value for key, value in config.items() if key in known}


def tiny(name: str = "gqa_tied", dtype: torch.dtype = torch.float32, **more: Any) -> nn.Module:
    """A random tiny model; gains and biases are random too, so that forgetting one shows."""
    fields = shape(name, **more)
    config = AutoConfig.for_model(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for p in model.parameters():
            if p.dim() == 1:
                p.data.uniform_(0.5, 1.5)
            else:
                p.data.normal_(0, 0.2)
        for name, b in model.named_buffers():
            if "correction_bias" in name:  # of a router's selection
                b.data.uniform_(-0.1, 0.1)
    return model.to(dtype).eval()


def tokens(batch: int = 2, length: int = 12, seed: int = 1, vocab: int = 61) -> torch.Tensor:
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


class ExactRMSNorm(nn.Module):
    """RMSNorm in the dtype of its input: the library's computes in fp32 and hides differences."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight
        # Gemma stores the gain less one, and calls its epsilon differently.
        self.offset = 0.0 if hasattr(norm, "variance_epsilon") else 1.0
        self.attribute = "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps"
        setattr(self, self.attribute, getattr(norm, self.attribute))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.square().mean(-1, keepdim=True)
        return (self.weight + self.offset) * x * torch.rsqrt(mean + getattr(self, self.attribute))


def with_exact_norms(
    model: nn.Module, make: Callable[[nn.Module], nn.Module] = ExactRMSNorm
) -> nn.Module:
    """Exchange every RMSNorm; parameters keep their names."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, make(child))
    return model


def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Routers of the library round to fp32 on their way; that would hide differences."""
    softmax, float_, type_ = torch.nn.functional.softmax, torch.Tensor.float, torch.Tensor.type

    def plain(x: torch.Tensor, dim: int = -1, dtype: Any = None, **more: Any) -> torch.Tensor:
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **more)

    def kept(x: torch.Tensor, *args: Any) -> Any:
        narrow = x.dtype == torch.float64 and args == (torch.float32,)
        return x if narrow else type_(x, *args)

    monkeypatch.setattr(torch.nn.functional, "softmax", plain)
    monkeypatch.setattr(
        torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else float_(x)
    )
    monkeypatch.setattr(torch.Tensor, "type", kept)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch.compile made, for all tests of this process: each kernel is compiled once."""
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture
def clone() -> Callable[[nn.Module], nn.Module]:
    return copy.deepcopy


def pytest_addoption(parser: pytest.Parser) -> None:
    said = "write docs/families.md from the tests' results; rows of families that do not run stay"
    parser.addoption("--write-families", help=said)


SLOWEST = ("distributed", "real/test_smollm2", "test_compiled", "test_resume", "test_forms")
"""Files that take long begin first: none of them is to run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        found = (n for n, part in enumerate(SLOWEST) if part in item.nodeid)
        return next(found, len(SLOWEST))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if path := config.getoption("--write-families"):
        from tests.families_page import page

        passed = terminalreporter.stats.get("passed", [])
        file = Path(path)
        before = file.read_text() if file.exists() else ""
        file.write_text(page((dict(report.user_properties) for report in passed), before))
