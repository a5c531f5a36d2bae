"""Isolated documents in packed sequences: attention does not leave a document.

Where positions restart, transformers starts another document: it adds a block-diagonal mask to each
mask that it makes (causal, sliding). That holds without a cache and without a mask of the caller's.
"""

from typing import Any

import torch
from torch import Tensor, nn

from effcompress.errors import RunError

LEAK = 1e-2
"""Largest effect of other documents, relative to that without isolation."""


MASKED = ("opt",)
"""Model types whose class takes positions, but makes its mask without them."""


def placed(module: nn.Module, positions_BT: Tensor | None) -> dict[str, Any]:
    """Returns the keyword arguments of a forward pass of ``module`` by which documents are
    isolated; none for None.
    """
    if positions_BT is None:
        return {}
    p = next(module.parameters())
    how: dict[str, Any] = {"position_ids": positions_BT.to(p.device)}
    config = getattr(getattr(module, "module", module), "config", None)  # DDP holds it as `module`
    if str(getattr(config, "model_type", "")).removeprefix("pruned_") in MASKED:
        document_BT = (how["position_ids"] == 0).cumsum(1)
        same_BTT = (document_BT[:, :, None] == document_BT[:, None, :]).tril()
        mask_BTT = torch.zeros(same_BTT.shape, dtype=p.dtype, device=p.device)
        how["attention_mask"] = mask_BTT.masked_fill(~same_BTT, torch.finfo(p.dtype).min)[:, None]
    return how


@torch.no_grad()
def require_isolation(module: nn.Module) -> None:
    """Raises RunError naming the model's class if a document that is isolated in a sequence does
    not compute what it computes alone.
    """
    training = module.training
    module.eval()
    ids_1T = torch.arange(12, device=next(module.parameters()).device)[None] % 7 + 1

    def logits_of(ids: Tensor, **how: Tensor) -> Tensor:
        return module(input_ids=ids, use_cache=False, **how).logits[0, -7:].double()

    alone = logits_of(ids_1T[:, 5:])
    try:
        positions_1T = torch.cat([torch.arange(5), torch.arange(7)])[None]
        isolated = logits_of(ids_1T, **placed(module, positions_1T))
    except TypeError:  # no such argument
        isolated = torch.full_like(alone, torch.inf)
    leak, without = ((x - alone).abs().max() for x in (isolated, logits_of(ids_1T)))
    module.train(training)
    if not leak <= LEAK * without:
        raise RunError(
            "documents of one sequence see each other in this class",
            where=type(module).__name__,
            fix="Take data.documents.isolate out.",
        )
