"""Generates one greedy continuation of a prompt, an example of text beside the perplexity."""

from typing import Any

import torch

from effcompress.types import TextTokenizer

REPETITION_PENALTY = 1.2
"""Small models repeat themselves under plain greedy decoding, pruned or not (arXiv:1909.05858)."""


@torch.no_grad()
def continuation(
    module: Any, tokenizer: TextTokenizer, prompt: str, new_tokens: int, bos: bool
) -> str:
    """Returns the greedy continuation of ``prompt``, with a repetition penalty."""
    ids = tokenizer.encode([prompt])[0]
    if bos and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    ids_1T = torch.tensor([ids], device=device)
    out_1T = module.generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=new_tokens,
        do_sample=False,
        repetition_penalty=REPETITION_PENALTY,
        use_cache=True,
        pad_token_id=tokenizer.eos_id if tokenizer.eos_id is not None else 0,
    )
    module.train(training)
    return tokenizer.decode(out_1T[0, len(ids) :].tolist())
