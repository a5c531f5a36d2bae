"""Which models llama.cpp computes as transformers do, told by their configuration alone."""

from collections.abc import Mapping

from effcompress.model.classes import fields_of
from effcompress.model.gguf.architectures import ARCHITECTURES, Architecture
from effcompress.model.gguf.geometry import (
    first,
    head_dim,
    heads_of,
    hidden_of,
    is_dense,
    is_square,
    layers_of,
    local_rope,
    others,
    rope_kind,
    rope_of,
    rotated_of,
    window_ends,
    windows_fit,
)
from effcompress.model.lineage import STREAM
from effcompress.types import Config

_BEYOND: Mapping[str, str] = {
    "opt": ", which llama.cpp has not",
    "gptj": ", which llama.cpp names and does not compute",
    "codegen": ", which llama.cpp has not",
}


BY_LAYER = ("llama", "mistral", "qwen2")
"""Types whose layers may have widths of their own: llama.cpp's ``deci`` computes them."""


def needs_square(config: Config) -> bool:
    """Whether llama.cpp takes the type only where heads fill the hidden size."""
    known = ARCHITECTURES[str(config["model_type"])]
    return known.square and known.otherwise is None


def needs_depth(config: Config) -> str:
    """Why layers cannot go; empty if they can."""
    known = ARCHITECTURES[str(config["model_type"])]
    if known.latent and not config.get("q_lora_rank"):
        return known.why_not({**config, "num_hidden_layers": 0})
    if known.numbered:
        return (
            f"llama.cpp tells the layers of {config['model_type']} models that have "
            f"{known.numbered} by their numbers, which change when layers go"
        )
    if not known.rotated_by_kind and not known.no_rope:
        return ""
    return (
        f"llama.cpp tells the layers of {config['model_type']} models that have no window or no "
        "rope by their numbers, which change when layers go"
    )


def window_of(config: Config) -> int:
    """Tokens of the windows that llama.cpp has in the same layers, as long as none of them goes; 0
    where it has none.
    """
    kind = str(config["model_type"])
    stated, period = {**(fields_of(kind) or {}), **config}, ARCHITECTURES[kind].period
    window = int(stated.get("sliding_window") or 0)
    there = windows_fit(stated, period) if stated.get("layer_types") else bool(period)
    return window if there else 0


def chosen(config: Config) -> Architecture:
    """Returns how llama.cpp computes the model of a config.json with the sizes that it states.
    Raises KeyError for a type that is not written.
    """
    known = ARCHITECTURES[str(config["model_type"])]
    if known.square and known.otherwise is not None and not is_square(config):
        return known.otherwise
    return known


def why_not(config: Config) -> str:
    """Why the model of this config.json cannot be written; empty if it can."""
    model_type = str(config.get("model_type"))
    if config.get(STREAM):
        return "llama.cpp has no model that changes the basis of its stream in every layer"
    known = ARCHITECTURES.get(model_type)
    if known is None:
        return (
            f"gguf files are not written for '{model_type}' models"
            f"{_BEYOND.get(model_type, '')}; they are for {', '.join(ARCHITECTURES)}"
        )
    found = {**(fields_of(model_type) or {}), **config}
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    if (act := first(found, *names)) is not None and act not in known.activations:
        return (
            f"llama.cpp computes {model_type} models with {known.activations[0]}, not with '{act}'"
        )
    for name, values in known.only.items():
        if name in found and found[name] not in values:
            said = f"{name}: {found[name]}"
            return (
                f"llama.cpp computes {model_type} models only with {name}: {values[0]}, not {said}"
            )
    if is_dense(found):
        return (
            f"llama.cpp opens {model_type} models with experts alone, and here all layers are "
            "dense ones"
        )
    return _why_no_rope(found, chosen(found)) or _why_no_kinds(found, known) or known.why_not(found)


def why_not_sizes(config: Config) -> str:
    """Why the sizes of a config.json cannot be written; empty if they can. To be asked where
    ``why_not`` says nothing.
    """
    known = chosen(config)
    if (said := known.why_not_sizes(config)) or not known.square or is_square(config):
        return said
    heads, width = heads_of(config)[0], head_dim(config)
    return (
        f"llama.cpp takes {config['model_type']} models whose heads fill the hidden size, and here "
        f"{heads} heads of {width} make {heads * width} of {hidden_of(config)}"
    )


def said_of(config: Config) -> str:
    """What a user should know of a file that is written all the same; empty if nothing."""
    period = ARCHITECTURES[str(config["model_type"])].period
    # Without `layer_types` the class has its own, in the layers in which llama.cpp has windows.
    end = 0 if period and not config.get("layer_types") else window_ends(config, period)
    window = (
        f"the file states a context of {end} tokens, which end with the window: llama.cpp has no "
        "windows in these layers"
    )
    return "; ".join(filter(None, (nearly(config), window if end else "")))


def nearly(config: Config) -> str:
    """What llama.cpp computes a little otherwise; empty if it computes what transformers do."""
    if config["model_type"] == "nemotron_h" and (least := config.get("time_step_min")):
        return (
            f"llama.cpp has no least step of a state space (`time_step_min: {least}`), so logits "
            "differ a little where steps are shorter, as those of the published gguf files do"
        )
    rope = rope_of(config)
    if rope_kind(rope) != "yarn" or rope.get("truncate", True):
        return ""
    return (
        "llama.cpp rounds the ends of YaRN's ramp to whole channels, which this model does not "
        "(`truncate: false`), so logits differ a little, as those of the published gguf files do"
    )


def _why_no_rope(config: Config, known: Architecture) -> str:
    model_type, rope = config["model_type"], rope_of(config)
    kinds = ["default", "linear"]
    kinds += ["llama3"] if known.rope_factors else ["yarn"] if known.yarn else []
    if not known.rotates or known.divisors is not None:
        return ""
    if (kind := rope_kind(rope)) not in kinds:
        said = f"{', '.join(kinds[:-1])} and {kinds[-1]} are"
        return f"rope of the kind '{kind}' is not written to gguf for {model_type} models; {said}"
    stated = (rope, config)
    part = next(
        (float(c["partial_rotary_factor"]) for c in stated if c.get("partial_rotary_factor")), 1.0
    )
    if part != 1.0 and not known.partial:
        return f"llama.cpp rotates whole heads of {model_type} models, this one rotates a part"
    if part != 1.0 and (rotated := rotated_of(config)) % 2:
        return f"{rotated} channels of a head rotate, and rope needs an even number"
    return ""


def _why_no_kinds(config: Config, known: Architecture) -> str:
    """Why layers that attend or rotate otherwise than their neighbours do not fit."""
    model_type, kinds = config["model_type"], config.get("layer_types") or []
    if known.local_base and (said := local_rope(config)) != ("default", known.local_base):
        return (
            f"llama.cpp rotates layers with a window of {model_type} models with a base of "
            f"{known.local_base:g}, and here it is {said[0]} rope with {said[1]:g}"
        )
    if odd := sorted({str(k) for k in kinds} - set(known.kinds)):
        return f"llama.cpp has no layers of the kind {odd[0]} in {model_type} models"
    if known.rotated_by_kind and kinds:
        there = [kind == "sliding_attention" for kind in kinds]
        if there != others(len(there), known.period):
            return (
                f"llama.cpp takes each {known.period}th layer of {model_type} models for one "
                "without a window, and here it is another: layers were removed, or it is built so"
            )
    if known.period > layers_of(config):
        return (
            f"llama.cpp ends itself over {model_type} models whose layers all have windows, and it "
            f"has none without in fewer than {known.period}"
        )
    rotates = config.get("no_rope_layers")
    if (
        known.no_rope
        and rotates
        and list(rotates) != [int((i + 1) % known.no_rope != 0) for i in range(len(rotates))]
    ):
        return (
            f"llama.cpp takes each {known.no_rope}th layer of {model_type} models for one without "
            "rope, and here it is another: layers were removed, or the model is built so"
        )
    return ""
