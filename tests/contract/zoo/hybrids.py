"""Decoders whose layers differ in kind."""

from __future__ import annotations

from tests.contract.zoo import DENSE, Source

LINEAR = {
    **{"linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 7},
    **{"linear_value_head_dim": 5, "num_hidden_layers": 4},
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
"""Two layers of each kind; a key head of linear attention has two value heads."""
ROUTED = {
    **{"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "shared_expert_intermediate_size": 20,
}
EXPERTS = ("expert", "expert_ffn", "shared_ffn")
BIASES = ({"attention_bias": True}, {"tie_word_embeddings": True})
MAMBA = {
    **{"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 5},
    **{"mamba_expand": 2, "num_hidden_layers": 4, "mamba_chunk_size": 8},
}
SSM = ("ssm_group", "ssm_head")
FALCON = {
    **{"mamba_n_heads": 6, "mamba_d_head": 8, "mamba_n_groups": 3, "mamba_d_state": 5},
    **{"mamba_d_ssm": 48, "mamba_chunk_size": 8, "rms_norm_eps": 1e-3},
    **{"ssm_multipliers": [0.5, 1.5, 0.75, 1.25, 2.1], "key_multiplier": 0.7},
    **{"attention_in_multiplier": 1.3, "ssm_in_multiplier": 0.6, "ssm_out_multiplier": 1.2},
    **{"embedding_multiplier": 2.5, "lm_head_multiplier": 0.4, "mlp_multipliers": [0.9, 1.1]},
}
"""Attention and a state space in every layer, and all factors of the class."""
FALCON_BIASES = (
    {"attention_bias": True, "mlp_bias": True, "projectors_bias": True},
    {"mamba_proj_bias": True, "mamba_conv_bias": False, "tie_word_embeddings": True},
    {"mamba_d_ssm": None, "mamba_d_head": 16, "mamba_n_heads": 6},
)
MIXERS = ["linear_attention", "mlp", "full_attention", "moe"]
SOURCES = {
    "qwen3_5_text": Source(
        "Qwen3.5 (text)",
        LINEAR,
        kinds=(*DENSE, "linear_head"),
        others=(*BIASES, {"layer_types": None}),
    ),
    "qwen3_next": Source(
        "Qwen3-Next",
        {**LINEAR, **ROUTED, "mlp_only_layers": [1]},
        kinds=(*DENSE, *EXPERTS, "linear_head"),
        others=(*BIASES, {"num_experts": 0}, {"layer_types": None, "decoder_sparse_step": 2}),
    ),
    "qwen3_5_moe_text": Source(
        "Qwen3.5-MoE (text)",
        {**LINEAR, **ROUTED},
        without=("intermediate_size",),
        kinds=(*DENSE[1:], *EXPERTS, "linear_head"),
        others=(*BIASES, {"layer_types": None}),
    ),
    "lfm2": Source(
        "LFM2",
        {
            **{"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
            **{"block_auto_adjust_ff_dim": False},
        },
        kinds=(*DENSE, "conv_channel"),
        others=(
            {"conv_bias": True, "tie_word_embeddings": False},
            {"block_auto_adjust_ff_dim": True, "block_multiple_of": 16},
            {"layer_types": None, "full_attn_idxs": [1, 2]},
        ),
    ),
    "lfm2_moe": Source(
        "LFM2-MoE",
        {
            **{"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
            **{"num_dense_layers": 1, "num_experts": 5, "num_experts_per_tok": 2},
            "moe_intermediate_size": 24,
        },
        kinds=(*DENSE, "conv_channel", "expert", "expert_ffn"),
        stated={"layer_types": ["conv", "full_attention"] * 2},  # the class has no default
        others=({"use_expert_bias": False, "conv_bias": True},),
    ),
    "gemma4_text": Source(
        "Gemma 4 (text)",
        {
            **{"num_hidden_layers": 5, "num_kv_shared_layers": 2, "global_head_dim": 16},
            **{"hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 258},
            **{"layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"]},
            "sliding_window": 8,
        },
        others=(
            {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_bias": True},
            {"attention_k_eq_v": True, "num_global_key_value_heads": 2},
            {"layer_types": None, "num_hidden_layers": 8, "use_double_wide_mlp": True},
        ),
    ),
    "gemma3n_text": Source(
        "Gemma 3n (text)",
        {
            **{"num_hidden_layers": 5, "num_kv_shared_layers": 2, "sliding_window": 8},
            **{"layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"]},
            **{"hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 258},
            **{"altup_num_inputs": 3, "laurel_rank": 9},
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0, 0.0],
        },
        kinds=("ffn", "attention", "query", "attention_block", "mlp_block"),
        others=(
            {"intermediate_size": [40, 40, 32, 40, 40], "attention_bias": True},
            {"activation_sparsity_pattern": None, "layer_types": None, "num_hidden_layers": 12},
        ),
        stated={"num_kv_shared_layers": 0},
    ),
    "granitemoehybrid": Source(
        "Granite 4 (hybrid)",
        {
            **{**MAMBA, "layer_types": ["linear_attention", "full_attention"] * 2},
            **{"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 24},
            **{"shared_intermediate_size": 20, "residual_multiplier": 0.7},
        },
        kinds=(*DENSE[1:], *EXPERTS, *SSM),
        uncut=("hidden", *SSM),
        unpadded=("ssm_head",),
        others=(*BIASES, {"num_local_experts": 0}, {"mamba_proj_bias": True}),
    ),
    "nemotron_h": Source(
        "Nemotron-H",
        {
            **{"layers_block_type": [*MIXERS, *MIXERS], "mamba_num_heads": 6, "mamba_head_dim": 16},
            **{"n_groups": 3, "ssm_state_size": 5, "chunk_size": 8, "n_routed_experts": 5},
            **{"moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 20},
        },
        without=("num_hidden_layers",),
        kinds=("ffn", "attention", "query", "hidden", *EXPERTS, *SSM, "layer"),
        others=(
            {"mlp_bias": True, "use_bias": True, "use_conv_bias": False},
            {"layers_block_type": None, "hybrid_override_pattern": "M-M*E"},
            {"moe_latent_size": 16},
        ),
    ),
    "falcon_h1": Source(
        "Falcon-H1",
        FALCON,
        kinds=("ffn", "attention", "query", "hidden", "layer", "mlp_block", *SSM),
        stated={"mamba_d_head": 8},
        others=FALCON_BIASES,
    ),
    "falcon_h1_normed": Source(
        "Falcon-H1, gated norm",
        {**FALCON, "model_type": "falcon_h1", "mamba_rms_norm": True},
        kinds=("ffn", "attention", "query", "hidden", "layer", "mlp_block", *SSM),
        unpadded=("ssm_head",),
        stated={"mamba_d_head": 8, "mamba_rms_norm": True},
        others=FALCON_BIASES,
    ),
    "bamba": Source(
        "Bamba",
        {**MAMBA, "attn_layer_indices": [1, 3]},
        kinds=(*DENSE, *SSM),
        uncut=("hidden", *SSM),
        unpadded=("ssm_head",),
        others=(*BIASES, {"mlp_bias": True, "mamba_conv_bias": False}),
    ),
}
