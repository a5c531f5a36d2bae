"""One optimizer step after another."""

from effcompress.train.optimizer import learning_rate, optimizer
from effcompress.train.step import Losses, backward, update

__all__ = ["Losses", "backward", "learning_rate", "optimizer", "update"]
