"""Families whose norms subtract the mean."""

from __future__ import annotations

from tests.contract.zoo import DEPTH, Source

WINDOWS = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
}
"""Layers of both sorts, of which one rotates queries and keys; texts are longer than the window."""
BIASES = ({"attention_bias": True}, {"tie_word_embeddings": False})
HALVES = {
    **{"num_attention_heads": 12, "num_key_value_heads": 6, "partial_rotary_factor": 0.5},
    "use_qkv_bias": True,
}
"""A KV head with its queries is as wide as the hidden channels that go with it."""
NO_ZEROS = {("padded", change): "no stock class accepts" for change in ("width", "both")}
"""Zeros would move the mean, and the class derives the width of a head from the hidden size."""
UNGROUPED = ("num_key_value_heads", "head_dim", "intermediate_size")
OWN_NAMES = (
    *(*UNGROUPED, "hidden_size", "num_hidden_layers", "num_attention_heads"),
    "max_position_embeddings",
)
GPT = {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_inner": 40, "n_positions": 128}
SOURCES = {
    "phi": Source(
        "Phi 1 to 2", others=({"qk_layernorm": True, "head_dim": 8}, {"tie_word_embeddings": True})
    ),
    "starcoder2": Source(
        "StarCoder 2", others=({"use_bias": False}, {"tie_word_embeddings": False})
    ),
    "stablelm": Source("StableLM", HALVES, refused=NO_ZEROS, without=("head_dim",)),
    "stablelm_parallel": Source(
        "StableLM 2 (12B)",
        {**HALVES, "model_type": "stablelm", "use_parallel_residual": True},
        stated={"use_parallel_residual": True},
        refused=NO_ZEROS,
        without=("head_dim",),
    ),
    "cohere": Source("Command R", {"use_qk_norm": True, "logit_scale": 0.3}, others=BIASES),
    "cohere2": Source("Command R7B", {**WINDOWS, "logit_scale": 0.3}, others=BIASES),
    "nemotron": Source(
        "Nemotron 3 and 4", stated={"num_key_value_heads": 8}, others=({"mlp_bias": True}, *BIASES)
    ),
    "olmo": Source("OLMo", {"clip_qkv": 0.8}, others=BIASES),
    # 7B: one KV head for all queries, one norm.
    "falcon": Source(
        "Falcon 7B",
        {"ffn_hidden_size": 40},
        without=UNGROUPED,
        kinds=("ffn", "query", "hidden", *DEPTH),
        uncut=("hidden",),
        others=({"bias": True}, {"tie_word_embeddings": False}),
        refused=NO_ZEROS,
    ),
    # A KV head stands behind its queries; biases; a norm in front of each block.
    "falcon_group": Source(
        "Falcon 40B, 180B",
        {
            **{"model_type": "falcon", "ffn_hidden_size": 40, "new_decoder_architecture": True},
            **{"num_attention_heads": 12, "num_kv_heads": 6, "bias": True},
        },
        without=UNGROUPED,
        stated={
            **{"new_decoder_architecture": True, "num_kv_heads": 8, "num_attention_heads": 64},
            "hidden_size": 4096,
        },
        kinds=("ffn", "attention", "hidden", *DEPTH),
        others=({"tie_word_embeddings": False},),
        refused=NO_ZEROS,
    ),
    # Biases of the scores follow from the number of heads.
    "falcon_rw": Source(
        "Falcon RW",
        {
            **{"model_type": "falcon", "ffn_hidden_size": 40, "multi_query": False},
            **{"alibi": True, "parallel_attn": False, "bias": True},
        },
        without=UNGROUPED,
        stated={"multi_query": False, "alibi": True, "parallel_attn": False},
        kinds=("ffn", "hidden", *DEPTH),
        uncut=("hidden",),
        refused=NO_ZEROS,
    ),
    "bloom": Source(
        "BLOOM",
        {"n_layer": 3, "n_head": 6},
        without=(*UNGROUPED, "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
        kinds=("ffn", "hidden", *DEPTH),
        others=({"tie_word_embeddings": False},),
        refused=NO_ZEROS | {("uniform", change): "no stock class" for change in ("width", "both")},
    ),
    "gpt_bigcode": Source(
        "StarCoder",
        GPT,
        without=OWN_NAMES,
        kinds=("ffn", "query", "hidden", *DEPTH),
        uncut=("hidden",),
        refused=NO_ZEROS,
    ),
    "gpt_bigcode_by_head": Source(
        "GPT-BigCode without shared heads",
        {**GPT, "model_type": "gpt_bigcode", "multi_query": False},
        without=OWN_NAMES,
        stated={"multi_query": False},
        kinds=("ffn", "attention", "hidden", *DEPTH),
        refused=NO_ZEROS,
    ),
    "gptj": Source(
        "GPT-J",
        {**GPT, "rotary_dim": 4},
        without=OWN_NAMES,
        kinds=("ffn", "attention", "hidden", *DEPTH),
        others=({"tie_word_embeddings": True},),
        refused=NO_ZEROS,
    ),
    # A unit of attention is four heads.
    "codegen": Source(
        "CodeGen",
        {**GPT, "n_head": 24, "rotary_dim": 2},
        without=OWN_NAMES,
        kinds=("ffn", "attention", "hidden", *DEPTH),
        refused=NO_ZEROS,
    ),
}
