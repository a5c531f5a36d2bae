"""docs/families.md out of what the tests saw: what can be cut from each family, how exactly, and in
which forms the result can be had. Written by

    pytest tests/contract/test_mask_equals_removal.py tests/contract/test_more_families.py \
        tests/export/test_forms.py tests/groups/test_traced_families.py \
        --write-families docs/families.md
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from effcompress.model.gguf.architectures import ARCHITECTURES
from effcompress.model.gguf.offered import BY_LAYER
from tests.contract.zoo import sources

NAMES = {
    "llama": "Llama 1 to 3, SmolLM",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "phi3": "Phi-3",
    "olmo2": "OLMo 2",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3-MoE",
    "gpt_oss": "gpt-oss",
    "glm4_moe": "GLM-4.5",
    "gpt_neox": "GPT-NeoX, Pythia",
    "opt": "OPT",
    "gpt2": "GPT-2",
    **{model_type: source.title for model_type, source in sources().items()},
}
KINDS = {
    "ffn": "FFN channel",
    "attention": "KV group or head",
    "query": "query slot",
    "hidden": "hidden channel",
    "expert": "expert",
    "layer": "layer",
    "attention_block": "attention block",
    "mlp_block": "FFN block",
}
FORMS = ("uniform", "padded", "exact")
COLUMN = {"expert_ffn": "ffn"}
"""Kind -> the kind in whose column it is shown; kinds without a column are named in the last."""
HEAD = """\
# Families

Generated from the results of the tests, not written by hand:

```bash
pytest tests/contract/test_mask_equals_removal.py tests/contract/test_more_families.py \\
    tests/export/test_forms.py tests/groups/test_traced_families.py \\
    --write-families docs/families.md
```

## What can be cut

Tiny random models in fp64; every kind is cut with equal and with different numbers per layer. A
cell is the largest difference of a logit between the model with the mini-groups masked and the
model with them removed. Down to GPT-2 the masked model is an independent reference, written by
hand; below, heads and FFN channels are held to a model whose projections do not read them. After
the removal, backward and generation with and without KV cache are tested with eager and sdpa
attention. Empty: the family has no such mini-group. `*`: masked and removed agree, but the removal
changes more than the removed units' own contribution, because a norm averages over all heads or
channels; the run reports by how much. Classes that are built in several ways have a row for each.

"""
EXPORTS = """
## What the result can be saved as

Loaded in a fresh process with transformers alone, in fp32: the largest difference of a logit for
pruned width, pruned depth and both; greedy tokens are equal with and without KV cache. `uniform`:
stock class, all layers of equal widths. `padded`: stock class, padded with zeros where layers are
narrower or removed. `exact`: the pruned shapes, in a class inside the folder. In the last two
columns widths differ between layers and the hidden size is odd. LayerNorm families cannot be
padded along the hidden size, because zeros would change the mean.

"""
TRACED = """
## Traced, among others

Architectures without a declaration, as tiny random models with layers of every kind: what was
proven and cut. Differences are relative to the largest logit: in fp64 between masked and removed,
with different numbers per layer (the library's norms and routers compute in fp32), and in fp32
between the model and its exports in transformers, which generate the same with and without KV
cache; `uniform` with equal numbers in every layer. Where a class gives some layers a width that it
derives from others (shared experts), `uniform` and `padded` keep that width. An attention block is
all that mixes tokens in a layer. Within a layer, linear attention, state spaces and routed experts
stay as they are; `effcompress inspect` says why for a model.

"""

GGUF = """
## What llama.cpp computes

`effcompress export RUN --as gguf`, or `export: {gguf: F16}` in the recipe, whose `check` then says
before training whether the file can be had. Every row was compared with llama.cpp itself, as a tiny
random model and token by token (`tests/model/test_gguf_architectures.py`): logits of about 10
differ by less than 3e-4, where a GELU is involved by less than 2e-3 from a model with llama.cpp's
own GELU, which is a table of 16-bit numbers. `filled`: llama.cpp takes only models whose heads fill
the hidden size (heads x width of a head = hidden). `by number`: layers without a window, without
rope or with full attention are told by their number, so that no layer can go. Windows that
llama.cpp has not, or has in other layers, end the context that the file states.

"""


def gguf_rows() -> list[str]:
    """Returns the lines of the table of llama.cpp's architectures."""
    lines = ["| type | llama.cpp's architecture | only |", "|---|---|---|"]
    for model_type, known in ARCHITECTURES.items():
        names = (
            [known.name, "`deci` where layers differ"] if model_type in BY_LAYER else [known.name]
        )
        if known.otherwise is not None:
            names.insert(1, f"`{known.otherwise.name}` where heads do not fill the hidden size")
        only = ["filled"] if known.square and known.otherwise is None else []
        numbered = known.rotated_by_kind or known.no_rope or known.numbered
        only += ["by number"] if numbered else []
        names[0] = f"`{names[0]}`"
        lines.append(f"| `{model_type}` | {', '.join(names)} | {', '.join(only)} |")
    return lines


def page(results: Iterable[Mapping[str, Any]], before: str = "") -> str:
    """Markdown. ``results`` are the properties that the tests recorded; families that did not run
    keep their rows of the page as it was ``before``.
    """
    cuts: dict[tuple[str, str], float] = defaultdict(float)
    marks: set[tuple[str, str]] = set()
    forms: dict[tuple[str, str], list[tuple[str, Any]]] = defaultdict(list)
    traced: dict[str, dict[str, Any]] = defaultdict(dict)
    for found in results:
        if "traced" in found:
            seen = traced[found["traced"]]
            apart = max(part.get("apart", 0.0) for part in (seen, found))
            seen |= {**found, "apart": apart}
        if "kind" in found:
            kind: str = found["kind"]
            key = (found["family"], COLUMN.get(kind, kind))
            cuts[key] = max(cuts[key], found["difference"])
            marks |= {key} if found["approximate"] else set()
        for family, change, name, difference in found.get("forms", ()):
            forms[family, name].append((change, difference))
    kept = _rows(before)
    lines = [f"| `model_type` | | {' | '.join(KINDS.values())} | others |"]
    lines.append("|---" * (3 + len(KINDS)) + "|")
    for family, title in NAMES.items():
        if not any(f == family for f, _ in cuts) and family in kept[0]:
            lines.append(kept[0][family])
            continue
        cells = [_cut(cuts.get((family, k)), (family, k) in marks) for k in KINDS]
        own = [k for f, k in cuts if f == family and k not in KINDS]
        cells.append(", ".join(f"{_words(k)} {_cut(cuts[family, k], False)}" for k in own))
        lines.append(f"| `{family}` | {title} | {' | '.join(cells)} |")
    told = ["| `model_type` | uniform | padded | exact |", "|---|---|---|---|"]
    for family in NAMES:
        if not any(f == family for f, _ in forms) and family in kept[1]:
            told.append(kept[1][family])
            continue
        cells = [_form(forms[family, name]) for name in FORMS]
        told.append(f"| `{family}` | {' | '.join(cells)} |")
    last = _joined(_traced(traced, kept[2]))
    written = _joined(gguf_rows())
    return f"{HEAD}{_joined(lines)}{EXPORTS}{_joined(told)}{TRACED}{last}{GGUF}{written}"


def _rows(text: str) -> list[dict[str, str]]:
    """The rows of the three tables of a page, by family."""
    tables = re.split(r"\n\|[-|]+\|\n", text)[1:]
    found = [dict(re.findall(r"^(?=\| `(\w+)`)(.*)$", table, re.MULTILINE)) for table in tables]
    return found or [{}, {}, {}]


def _traced(found: Mapping[str, Mapping[str, Any]], kept: Mapping[str, str]) -> list[str]:
    rows = {} if found else dict(kept)
    for model_type, seen in found.items():
        if not {"kinds", *FORMS} <= seen.keys():  # not all of its tests ran, or passed
            rows |= {model_type: kept[model_type]} if model_type in kept else {}
            continue
        kinds = (*seen["kinds"], *seen.get("depth", ()))
        cut = ", ".join(KINDS[kind] for kind in KINDS if kind in kinds)
        each = " | ".join(_power(seen[part]) for part in ("apart", *FORMS))
        rows[model_type] = f"| `{model_type}` | {cut} | {each} |"
    head = [f"| `model_type` | cut | masked and removed | {' | '.join(FORMS)} |", "|---" * 6 + "|"]
    return [*head, *(rows[model_type] for model_type in sorted(rows))]


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _cut(difference: float | None, mark: bool) -> str:
    return "" if difference is None else f"{_power(difference)}{'*' if mark else ''}"


def _form(found: list[tuple[str, Any]]) -> str:
    possible = [d for _, d in found if not isinstance(d, str)]
    refused = [change for change, d in found if isinstance(d, str)]
    said = _power(max(possible)) if possible else ""
    if not refused:
        return said
    return f"{said}; not {' nor '.join(refused)}".removeprefix("; ")


def _power(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"
