"""Mixtures of experts, latent attention."""

from __future__ import annotations

from typing import Any

from tests.contract.zoo import DEPTH, Source

ROUTED = ("attention", "query", "hidden", "expert", "expert_ffn", *DEPTH)
MIXED = ("ffn", *ROUTED)
LATENT = tuple(kind for kind in MIXED if kind != "query")
OF_EXPERTS: dict[str, Any] = {
    # Two groups of four experts, of which a router chooses one.
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
    **{"moe_intermediate_size": 32, "n_shared_experts": 2, "first_k_dense_replace": 1},
    "routed_scaling_factor": 1.5,
}
MLA: dict[str, Any] = {
    **{"q_lora_rank": 20, "kv_lora_rank": 28, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4},
    **{"v_head_dim": 6, "num_key_value_heads": 6, "head_dim": 4},
}
WITHOUT_RANK = {"q_lora_rank": None, "tie_word_embeddings": True}
BIASES = {"attention_bias": True, "tie_word_embeddings": True}
NORMALISED = {"norm_topk_prob": True}
SHARED_STAYS = ("expert_ffn",)
SOURCES = {
    "deepseek_v3": Source(
        "DeepSeek-V3, R1",
        {**OF_EXPERTS, **MLA},
        kinds=LATENT,
        uncut=SHARED_STAYS,
        others=(WITHOUT_RANK, BIASES, {**WITHOUT_RANK, **BIASES}),
    ),
    "deepseek_v2": Source(
        "DeepSeek-V2",
        {**OF_EXPERTS, **MLA, "topk_method": "group_limited_greedy"},
        kinds=LATENT,
        uncut=SHARED_STAYS,
        others=(WITHOUT_RANK, BIASES, {"mlp_bias": True}),
    ),
    "glm4_moe_lite": Source(
        "GLM-4.7-Flash",
        {**OF_EXPERTS, **MLA, "mlp_layer_types": ["dense", "sparse", "sparse"]},
        kinds=LATENT,
        uncut=SHARED_STAYS,
        others=(WITHOUT_RANK, BIASES),
    ),
    "dots1": Source(
        "dots.llm1",
        {**OF_EXPERTS, **NORMALISED},
        kinds=MIXED,
        uncut=SHARED_STAYS,
        others=(BIASES,),
    ),
    "qwen2_moe": Source(
        "Qwen1.5-MoE, Qwen2-MoE",
        {
            **{"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
            **{"shared_expert_intermediate_size": 20, "mlp_only_layers": [1]},
        },
        kinds=(*MIXED, "shared_ffn"),
        others=({"qkv_bias": False}, {"decoder_sparse_step": 2, "tie_word_embeddings": True}),
    ),
    "olmoe": Source(
        "OLMoE",
        # The class wants heads that fill the hidden size: one of eight goes with eight channels.
        {
            **{"num_experts": 5, "num_experts_per_tok": 2, "num_key_value_heads": 6},
            **{"head_dim": 8, "intermediate_size": 24},
        },
        kinds=tuple(kind for kind in ROUTED if kind != "query"),
        others=(BIASES, {"num_key_value_heads": 3}),
    ),
    "ernie4_5_moe": Source(
        "ERNIE 4.5 (mixtures)",
        {
            **{"moe_num_experts": 5, "moe_k": 2, "moe_num_shared_experts": 2},
            **{"moe_intermediate_size": 32, "moe_layer_start_index": 1, "use_bias": True},
        },
        kinds=MIXED,
        uncut=SHARED_STAYS,
        others=(
            {"use_bias": False, "moe_num_shared_experts": 0},
            {"moe_layer_start_index": 0, "moe_layer_end_index": 1, "tie_word_embeddings": False},
            {"moe_layer_interval": 2},
        ),
    ),
    "exaone_moe": Source(
        "EXAONE (mixtures)",
        {
            **{"num_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
            **{"moe_intermediate_size": 32, "num_shared_experts": 2},
            **{"mlp_layer_types": ["dense", "sparse", "sparse"], "sliding_window": 8},
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        kinds=MIXED,
        uncut=SHARED_STAYS,
        others=({"tie_word_embeddings": True},),
    ),
    "minimax_m2": Source(
        "MiniMax-M2",
        {"num_local_experts": 5, "num_experts_per_tok": 2},
        kinds=ROUTED,
        others=({"tie_word_embeddings": True},),
    ),
    "llama4_text": Source(
        "Llama 4 (text)",
        {
            **{"intermediate_size": 28, "intermediate_size_mlp": 40, "moe_layers": [0, 2]},
            **{"num_local_experts": 5, "num_experts_per_tok": 2, "no_rope_layers": [1, 0, 1]},
            **{"attention_chunk_size": 8, "floor_scale": 4},
        },
        kinds=MIXED,
        uncut=SHARED_STAYS,
        others=(BIASES, {"moe_layers": None, "interleave_moe_layer_step": 2}),
    ),
    "minicpm3": Source(
        "MiniCPM3",
        # Six heads and five divide the hidden size, as the class wants it.
        {**MLA, "hidden_size": 60, "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 20},
        kinds=("ffn", "attention", *DEPTH),
        others=(
            {**WITHOUT_RANK, "attention_bias": True},
            {"mlp_bias": True, "tie_word_embeddings": False},
            {"scale_depth": None},
        ),
    ),
    "granitemoe": Source(
        "Granite 3 (mixtures)",
        {
            **{"num_local_experts": 5, "num_experts_per_tok": 2, "embedding_multiplier": 3.0},
            **{"residual_multiplier": 0.7, "attention_multiplier": 0.4, "logits_scaling": 2.5},
        },
        kinds=ROUTED,
        others=(BIASES,),
    ),
    "granitemoeshared": Source(
        "Granite 3 (mixtures with a shared expert)",
        {
            **{"num_local_experts": 5, "num_experts_per_tok": 2, "embedding_multiplier": 3.0},
            **{"residual_multiplier": 0.7, "attention_multiplier": 0.4, "logits_scaling": 2.5},
            "shared_intermediate_size": 20,
        },
        kinds=(*ROUTED, "shared_ffn"),
        others=(BIASES, {"shared_intermediate_size": 0}),
    ),
}
