"""Decoders of state spaces alone."""

from __future__ import annotations

from tests.contract.zoo import Source

WITHOUT = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
WITHOUT += ("max_position_embeddings",)
BIASES = ({"use_bias": True, "use_conv_bias": False}, {"tie_word_embeddings": True})
CHANNELS = {"state_size": 5, "time_step_rank": 4, "layer_norm_epsilon": 1e-3}
"""The class takes twice the stream's width for the channels of a mixer."""
SOURCES = {
    "mamba2": Source(
        "Mamba-2",
        {
            **{"num_heads": 6, "head_dim": 16, "n_groups": 3, "state_size": 5, "chunk_size": 8},
            **{"layer_norm_epsilon": 1e-3},
        },
        without=WITHOUT,
        kinds=("hidden", "layer", "ssm_group", "ssm_head"),
        uncut=("hidden", "ssm_group", "ssm_head"),
        unpadded=("ssm_head",),
        others=BIASES,
    ),
    "mamba": Source(
        "Mamba",
        CHANNELS,
        without=WITHOUT,
        kinds=("hidden", "layer", "ssm_channel"),
        uncut=("hidden", "ssm_channel"),
        others=(*BIASES, {"time_step_rank": "auto", "tie_word_embeddings": False}),
    ),
    "falcon_mamba": Source(
        "Falcon-Mamba",
        CHANNELS,
        without=WITHOUT,
        kinds=("hidden", "layer", "ssm_channel"),
        uncut=("hidden", "ssm_channel"),
        others=(*BIASES, {"time_step_rank": "auto", "tie_word_embeddings": False}),
    ),
}
