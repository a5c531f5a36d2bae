"""Generates one greedy continuation of a prompt, an example of text beside the perplexity."""

from typing import Any

import torch

from effcompress.errors import RunError, first_line
from effcompress.types import TextTokenizer

_FAULTS = (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)
"""What classes raise that cannot generate: with a cache without a layer of attention, for example.
Errors of memory are others.
"""
REPETITION_PENALTY = 1.2
"""Small models repeat themselves under plain greedy decoding, pruned or not (arXiv:1909.05858)."""


@torch.no_grad()
def continuation(
    module: Any, tokenizer: TextTokenizer, prompt: str, new_tokens: int, bos: bool
) -> str:
    """Returns the greedy continuation of ``prompt``, with a repetition penalty.

    Raises RunError where the class of the model cannot generate.
    """
    ids = tokenizer.encode([prompt])[0]
    if bos and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    if not ids:  # an empty prompt, or one that the tokenizer cannot spell
        ids = [next((i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None), 0)]
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    ids_1T = torch.tensor([ids], device=device)
    try:
        out_1T = module.generate(
            ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            max_new_tokens=new_tokens,
            do_sample=False,
            repetition_penalty=REPETITION_PENALTY,
            use_cache=True,
            pad_token_id=tokenizer.eos_id if tokenizer.eos_id is not None else 0,
        )
    except _FAULTS as error:
        said = first_line(error)
        raise RunError(
            f"the class of this model fails when it generates: {type(error).__name__}: {said}",
            where=type(module).__name__,
            fix="Exports are proven by generating, too: name a model that does, or another version "
            "of transformers.",
        ) from error
    module.train(training)
    return tokenizer.decode(out_1T[0, len(ids) :].tolist())
