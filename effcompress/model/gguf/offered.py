"""Which models llama.cpp computes as transformers do, told by their configuration alone."""

from effcompress.model.lineage import STREAM
from effcompress.types import Config

MODEL_TYPES = ("llama", "mistral")


def why_not(config: Config) -> str:
    """Why the model of this config.json cannot be written; empty if it can."""
    model_type = config.get("model_type")
    if config.get(STREAM):
        return "llama.cpp has no model that changes the basis of its stream in every layer"
    if model_type not in MODEL_TYPES:
        known = " and ".join(MODEL_TYPES)
        return f"gguf files are written for {known} models, not for '{model_type}'"
    if (act := config.get("hidden_act") or "silu") not in ("silu", "swish"):
        return f"llama.cpp computes {model_type} models with silu, not with '{act}'"
    rope = rope_of(config)
    if (kind := rope_kind(rope)) not in ("default", "linear", "llama3"):
        return f"rope of the kind '{kind}' is not written to gguf; default, linear and llama3 are"
    rotated = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if rotated != 1.0:
        return f"llama.cpp rotates whole heads of {model_type} models, this one rotates a part"
    return ""


def rope_of(config: Config) -> Config:
    """The rope section, which older files call ``rope_scaling``; empty when there is none."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def rope_kind(rope: Config) -> str:
    """``default``, ``linear``, ``llama3``, ..."""
    return str(rope.get("rope_type") or rope.get("type") or "default")
