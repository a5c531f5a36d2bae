"""How alike two models are as predictors of the next token, on held-out text."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effcompress.distributed.world import ALONE, World, needs_all_ranks
from effcompress.errors import RunError
from effcompress.evaluation.perplexity import batches_of, in_turn
from effcompress.isolation import placed


@dataclass(frozen=True)
class Agreement:
    """Over ``tokens`` predictions: the fraction at which both models hold the same token for the
    most likely one, and the mean KL divergence of the first model's distribution to the second's,
    in nats.
    """

    fraction: float
    divergence: float
    tokens: int


@torch.no_grad()
def agreement(
    source: nn.Module,
    module: nn.Module,
    ids_NT: Tensor,
    batch_size: int,
    counted_NT: Tensor | None = None,
    world: World = ALONE,
    positions_NT: Tensor | None = None,
) -> Agreement:
    """Compares ``module`` with ``source`` on windows ``ids_NT``, of which ``counted_NT`` are
    predictions that count (None: all but that of the first token), as ``perplexity`` does. Among
    equally likely tokens the first counts as the most likely.

    Distributions are computed in fp32 and divergences added in fp64. The ranks of ``world`` take
    batches in turn. Raises RunError where the vocabularies differ, or no token counts.
    """
    modes = [(model, model.training) for model in (source, module)]
    same, total, tokens = 0, 0.0, 0
    batches = batches_of(ids_NT, batch_size, counted_NT, positions_NT)
    together = needs_all_ranks(source) or needs_all_ranks(module)
    for ids_BT, counted_BT, positions_BT in in_turn(batches, world, together=together):
        counted = counted_BT[:, 1:].flatten()
        first_TV, other_TV = (
            _log_probabilities(model.eval(), ids_BT, positions_BT)[counted]
            for model in (source, module)
        )
        if first_TV.shape != other_TV.shape:
            raise RunError(
                f"the source model has {first_TV.shape[-1]} tokens, this one {other_TV.shape[-1]}",
                fix="Take evaluate.agreement out.",
            )
        same += int((first_TV.argmax(-1) == other_TV.argmax(-1)).sum())
        # Where the source gives a token no probability, nothing is added, whatever the other says.
        each_T = torch.nn.functional.kl_div(
            other_TV, first_TV, reduction="none", log_target=True
        ).sum(-1)
        total += float(each_T.double().sum())
        tokens += int(counted.sum())
    for model, training in modes:
        model.train(training)
    all_same, all_total, all_tokens = world.sums([same, total, tokens])
    if not all_tokens:
        raise RunError("no token of the held-out text is predicted, so nothing can be compared")
    return Agreement(all_same / all_tokens, all_total / all_tokens, int(all_tokens))


def _log_probabilities(module: nn.Module, ids_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
    """Returns log-probabilities of the next token, ``[B (T - 1), V]`` in fp32."""
    device = next(module.parameters()).device
    how = placed(module, positions_BT)
    logits = module(input_ids=ids_BT.to(device), use_cache=False, **how).logits[:, :-1]
    return logits.flatten(0, 1).float().log_softmax(-1)
