"""Decoders with root-mean-square norms, without experts."""

from __future__ import annotations

from tests.contract.zoo import Source

WINDOWS = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
}
"""Layers of both sorts; the texts of the tests are longer than the window."""
BIASES = ({"attention_bias": True}, {"tie_word_embeddings": True})
SOURCES = {
    "granite": Source(
        "Granite 3",
        {
            **{"embedding_multiplier": 3.0, "residual_multiplier": 0.7},
            **{"attention_multiplier": 0.4, "logits_scaling": 2.5},
        },
        others=(*BIASES, {"mlp_bias": True}),
    ),
    "olmo3": Source("OLMo 3", WINDOWS, others=BIASES),
}
