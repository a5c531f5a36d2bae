"""Which software loads which form of a model, and why it does not load another. Imports no torch.

``transformers`` and ``llama.cpp`` are tried: every run proves its folder with the first, the tests
open gguf files with the second. What is said of vLLM and SGLang was read in their sources and was
not tried:

- vLLM has classes of its own for some architectures (``vllm/model_executor/models/registry.py`` at
  0002bff) and takes others through its Transformers backend. That builds the class with
  ``AutoModel.from_config`` and gives all layers one number of heads
  (``models/transformers/base.py`` at 03bf3c9, ``create_attention_instances``); an ``exact`` folder
  names only ``AutoModelForCausalLM`` in its ``auto_map``, and its layers may differ.
- The number of GPUs of tensor parallelism divides the query heads, and divides the KV heads or is a
  multiple of them (``vllm/model_executor/models/llama.py`` at 0035bdf; SGLang's classes are built
  alike).
- FlashAttention takes heads of a multiple of 8 channels, up to 256
  (``vllm/v1/attention/backends/flash_attn.py``: ``supports_head_size``).
- SGLang: classes by ``docs/supported_models/generative_models.md`` at 00d6a71; for others its
  Transformers fallback, which also asks for ``AutoModel`` in ``auto_map``
  (``srt/model_loader/utils.py``: ``resolve_transformers_arch``).
- llama.cpp reads gguf files only (``model/gguf/``).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from effcompress.estimate.exports import Made, made_as
from effcompress.estimate.feasibility import SizedModel
from effcompress.model.gguf.offered import why_not
from effcompress.recipe import LoadedRecipe
from effcompress.types import Config, Widths

Software = Literal["transformers", "vllm", "sglang", "llama.cpp"]
FORMS = ("uniform", "padded", "exact", "gguf")
NAMES: Mapping[Software, str] = {
    "transformers": "transformers",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llama.cpp": "llama.cpp",
}
TRIED: frozenset[Software] = frozenset(("transformers", "llama.cpp"))
START: Mapping[Software, str] = {
    "transformers": 'AutoModelForCausalLM.from_pretrained("{}")',
    "vllm": "vllm serve {}",
    "sglang": "python -m sglang.launch_server --model-path {}",
    "llama.cpp": "llama-server -m {}",
}
"""How the software is started with what was exported."""
_VLLM = (
    "arcee bamba bloom cohere cohere2 cwm deepseek_v2 deepseek_v3 dots1 ernie4_5 ernie4_5_moe",
    "exaone4 falcon gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss",
    "gptj granite granitemoe granitemoehybrid granitemoeshared hunyuan_v1_dense internlm3 lfm2",
    "lfm2_moe llama llama4_text minicpm3 minimax_m2 mistral mixtral nemotron olmo olmo2 olmo3",
    "olmoe opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next seed_oss stablelm starcoder2",
)
_SGLANG = (
    "arcee cohere deepseek_v2 deepseek_v3 ernie4_5 ernie4_5_moe gemma gemma2 gemma3_text gpt_oss",
    "granite granitemoe llama llama4_text minicpm3 mistral mixtral olmoe phi phi3 qwen2 qwen2_moe",
    "qwen3 qwen3_moe qwen3_next stablelm starcoder2",
)
_OWN: Mapping[Software, frozenset[str]] = {
    "vllm": frozenset(" ".join(_VLLM).split()),
    "sglang": frozenset(" ".join(_SGLANG).split()),
}
"""Architectures for which the software has a class of its own."""
_ONE_SHAPE = "a backend for custom classes that builds all layers with one number of heads"
_ANOTHER = "a backend in which layers differ"
_GPUS = (1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Loading:
    """Whether a software loads a form of an architecture, and why, or why not."""

    software: Software
    form: str
    loads: bool
    why: str = ""

    @property
    def said(self) -> str:
        """``yes``, ``no``, or, where it should load by what is known, ``not tried``."""
        return "no" if not self.loads else "yes" if self.software in TRIED else "not tried"


def loading(config: Config, software: Software, form: str) -> Loading:
    """Returns whether ``software`` loads the form ``form`` of the architecture of a config.json."""
    why = ""
    if software == "llama.cpp":
        why = why_not(config) if form == "gguf" else "llama.cpp reads gguf files, and no folders"
    elif form == "gguf":
        why = f"{NAMES[software]} is given a folder; gguf files are for llama.cpp"
    elif form == "exact" and software != "transformers":
        why = f"{NAMES[software]} has {_ONE_SHAPE}"
    if why:
        return Loading(software, form, False, why)
    kind = str(config.get("model_type"))
    if form == "exact":
        return Loading(software, form, True, "with the class in the folder (trust_remote_code)")
    if software in _OWN and kind not in _OWN[software]:
        fallback = f"no class of its own for '{kind}': through its Transformers backend"
        return Loading(software, form, True, fallback)
    return Loading(software, form, True)


@dataclass(frozen=True)
class Serving:
    """What can be made of a recipe's result, and what loads it."""

    made: Mapping[str, Made]
    loadings: tuple[Loading, ...]
    gpus: tuple[int, ...] | None = None
    """Numbers of GPUs of tensor parallelism; None where the heads are not known yet."""
    heads: tuple[int, int] = (0, 0)

    def lines(self) -> Iterator[str]:
        """Yields what each software loads, and what is not made or loaded, with the reason."""
        said = dict[str, list[str]]()
        for software, name in NAMES.items():
            said.setdefault(self._of(software), []).append(name)
        for text, names in said.items():
            verb = "load" if len(names) > 1 else "loads"
            yield f"serving: {' and '.join(names)} {verb} {text}"
        for form, made in self.made.items():
            if made.possible is None:
                yield f"serving: {form} only if it comes out so: {made.why}"
            elif not made.possible:
                yield f"serving: no {form}: {made.why}"
        if self.gpus is not None:
            query, kv = self.heads
            many = ", ".join(map(str, self.gpus))
            yield f"serving: tensor parallel on {many} GPUs ({query} heads, {kv} KV heads)"

    def _of(self, software: Software) -> str:
        """Returns the forms that a software loads, and why not `exact`, in words."""
        mine = [one for one in self.loadings if one.software == software]
        taken = [one for one in mine if one.loads and self.made[one.form].possible is not False]
        text = ", ".join(one.form for one in taken) or "nothing of it"
        text += "" if software in TRIED or not taken else " (not tried)"
        text += "".join(f"; {one.why}" for one in taken[:1] if one.why and one.form != "exact")
        if software in _OWN:
            text += f"; no exact, for want of {_ANOTHER}"
        return text

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yields a row per form: whether it can be made, and what loads it."""
        words = {True: "yes", False: "no", None: "if it comes out so"}
        for form, made in self.made.items():
            mine = {one.software: one.said for one in self.loadings if one.form == form}
            said = [mine[name] if made.possible is not False else "-" for name in NAMES]
            yield (form, words[made.possible], *said)


def serving(loaded: LoadedRecipe, found: SizedModel) -> Serving:
    """Returns what can be made of the recipe's result, and what loads it."""
    made = {form: made_as(loaded, found, form) for form in FORMS[:-1]}
    flaw = why_not(found.config)
    made["gguf"] = Made(not flaw, flaw)
    every = tuple(loading(found.config, one, form) for one in NAMES for form in FORMS)
    heads = _heads(loaded, found)
    if heads is None:
        return Serving(made, every)
    query, kv = heads
    fit = (n for n in _GPUS if query % n == 0 and (kv % n == 0 or n % kv == 0))
    return Serving(made, every, tuple(fit), heads)


def _heads(loaded: LoadedRecipe, found: SizedModel) -> tuple[int, int] | None:
    """Returns query heads and KV heads in the end; None where a cut decides on them, or layers have
    no such heads.
    """
    prune = loaded.recipe.prune
    stated: Widths = (prune.target.shape if prune is not None else None) or {}
    sizes = dict[str, int]()
    for kind in ("attention", "query"):
        widths = {found.axes.widths[name] for name in found.axes.axes(kind)}
        cut = any(s.kind == kind for s in found.sets)
        if (cut and kind not in stated) or len(widths) > 1:
            return None
        if widths:
            sizes[kind] = stated.get(kind, widths.pop())
    if "attention" not in sizes or sizes["attention"] < 1:
        return None
    return sizes["attention"] * sizes.get("query", 1), sizes["attention"]
