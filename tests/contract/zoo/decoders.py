"""Decoders with root-mean-square norms, without experts."""

from __future__ import annotations

from typing import Any

from tests.contract.zoo import DEPTH, Source

WINDOWS: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
}
"""Layers of both sorts; the texts of the tests are longer than the window."""
BIAS, TIED, FREE = {"attention_bias": True}, {"tie_word_embeddings": True}, {"mlp_bias": True}
MULTIPLIED: dict[str, Any] = {
    **{"embedding_multiplier": 3.0, "residual_multiplier": 0.7},
    **{"attention_multiplier": 0.4, "logits_scaling": 0.5},
}
YARN: dict[str, Any] = {
    **{"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0},
    **{"original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.1},
}
"""Queries are scaled by their position from the eighth on."""
SQUARE = {("uniform", change): "no stock class accepts" for change in ("width", "both")}
"""Classes in which heads fill the hidden size: both would have to lose equally many channels."""
SOURCES = {
    "ministral": Source("Ministral", WINDOWS, others=(TIED,)),
    "ministral3": Source("Ministral 3", {"rope_parameters": YARN}, others=(TIED,)),
    "granite": Source("Granite 3", MULTIPLIED, others=(BIAS, TIED, FREE)),
    "granite_swa": Source(
        "Granite with windows",
        # The middle layer has no positions.
        {**MULTIPLIED, **WINDOWS, "layer_rope_theta": [1e4, 0, 1e5]},
        others=(BIAS, FREE, {"tie_word_embeddings": False}),
    ),
    "iquestcoder": Source("IQuest-Coder", others=(BIAS, FREE, TIED)),
    "internlm3": Source("InternLM 3", others=({"qkv_bias": True, "bias": True}, TIED)),
    "seed_oss": Source(
        "Seed-OSS", FREE, others=({"attention_bias": False}, {"attention_out_bias": True}, TIED)
    ),
    "cwm": Source("CWM", WINDOWS, others=(FREE, TIED)),
    "ernie4_5": Source("ERNIE 4.5", others=({"use_bias": True}, {"tie_word_embeddings": False})),
    "hyperclovax": Source(
        "HyperCLOVA X", MULTIPLIED, others=(BIAS, FREE, {"use_post_norm": False})
    ),
    "hunyuan_v1_dense": Source("Hunyuan", BIAS, others=({"attention_bias": False}, TIED)),
    "exaone4": Source("EXAONE 4", WINDOWS, others=(TIED,)),
    "olmo3": Source("OLMo 3", WINDOWS, others=(BIAS, TIED)),
    "glm": Source("GLM-4", others=({"attention_bias": False}, TIED)),
    "glm4": Source("GLM-4-0414", others=({"attention_bias": False}, TIED)),
    "arcee": Source("AFM (Arcee)", FREE, others=({"mlp_bias": False}, BIAS, TIED)),
    "gemma": Source("Gemma", others=(BIAS, {"tie_word_embeddings": False})),
    "vaultgemma": Source("VaultGemma", WINDOWS, others=(BIAS, {"tie_word_embeddings": False})),
    "nanochat": Source(
        "nanochat",
        # Its norms have no gain that could make up for fewer channels.
        kinds=("ffn", "attention", "query", *DEPTH),
        others=(BIAS, TIED),
    ),
    "bitnet": Source(
        "BitNet",
        {"head_dim": 8, **BIAS},
        kinds=("ffn", "attention", "hidden", *DEPTH),  # a masked query slot is seen by a norm
        refused=SQUARE,
        others=({"attention_bias": False}, TIED),
    ),
    "helium": Source(
        "Helium",
        {"head_dim": 8, **BIAS},
        refused=SQUARE,
        others=(FREE, TIED),
    ),
}
