"""Losses, one optimizer step, LoRA, and compiled layers."""

from effcompress.train.loss import Objective, RowLoss, next_token
from effcompress.train.step import Losses, backward, learning_rate, optimizer, update

__all__ = [
    "Losses",
    "Objective",
    "RowLoss",
    "backward",
    "learning_rate",
    "next_token",
    "optimizer",
    "update",
]
