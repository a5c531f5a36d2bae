"""An endless, resumable sequence of training batches, mixed from the domains by weight.

Sample ``n`` is a pure function of the seed and a few counters, so the position is a few integers
and a resumed run reads bit for bit what the uninterrupted one would have read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from effcompress.data.pack import Windows, shuffled, unmarked
from effcompress.errors import RunError
from effcompress.types import Batch


def next_domain(shares: Sequence[float], counts: Sequence[int]) -> int:
    """Which domain gives the next sample, after ``counts`` samples of each.

    Tijdeman's rule for sharing out a chair: after any number n of samples, a domain with share w
    has given w * n of them, to within less than one sample.

    ``shares`` are positive and sum to 1.
    """
    if len(shares) == 1:
        return 0
    slack = 1 / (2 * len(shares) - 2)
    n = sum(counts) + 1
    due = [share * n - count for share, count in zip(shares, counts, strict=True)]
    # The due ones sum to 1, so some are above the slack; the tolerance is for rounding only.
    ready = [d for d, value in enumerate(due) if value >= slack - 1e-9]
    return min(ready, key=lambda d: ((1 - slack - due[d]) / shares[d], d))


class Stream:
    """Batches of packed sequences. Made by ``Corpus.stream``.

    The windows of a domain are visited in a permutation that depends on seed and domain, another
    one each time the domain is read again.
    """

    def __init__(
        self,
        windows: Mapping[str, Windows],
        shares: Mapping[str, float],
        *,
        seed: int,
        when_dry: Literal["repeat", "stop"],
        notice: Callable[[str], None],
    ) -> None:
        self._windows, self._shares = dict(windows), shares
        self._names = list(self._windows)
        self._seed, self._when_dry, self._notice = seed, when_dry, notice
        self._counts = dict.fromkeys(self._names, 0)

    def next(self, batch_size: int) -> Batch:
        """The next ``ids_BT`` (int64, B = ``batch_size``) and where its rows come from.

        Raises ``RunError`` naming a domain that has run out, if ``when_dry`` is stop; the position
        then stays where it was before the call.
        """
        before = dict(self._counts)
        try:
            drawn = [self._draw() for _ in range(batch_size)]
        except RunError:
            self._counts = before
            raise
        ids_BT, trained_BT = unmarked(np.stack([ids for _, _, ids in drawn]))
        samples = tuple((name, number) for name, number, _ in drawn)
        return Batch(
            torch.from_numpy(ids_BT),
            tuple(name for name, _ in samples),
            samples,
            None if trained_BT.all() else torch.from_numpy(trained_BT),
        )

    def _draw(self) -> tuple[str, int, np.ndarray[Any, np.dtype[np.int64]]]:
        shares = [self._shares[name] for name in self._names]
        name = self._names[next_domain(shares, [self._counts[n] for n in self._names])]
        number, windows = self._counts[name], self._windows[name]
        epoch, position = divmod(number, windows.count)
        if epoch and not position:
            self._dry(name, epoch)
        self._counts[name] += 1
        key = f"train {self._seed} {name} {epoch}"
        return name, number, windows.take(shuffled(position, windows.count, key))

    def _dry(self, name: str, epoch: int) -> None:
        tokens = self._windows[name].count * self._windows[name].length
        if self._when_dry == "repeat":
            times = "once" if epoch == 1 else f"{epoch} times"
            self._notice(
                f"domain '{name}': all {tokens:,} tokens of this run were read {times}; "
                "reading them again in another order"
            )
            return
        raise RunError(
            f"domain '{name}' has run out of text after {tokens:,} tokens",
            where=f"data.domains.{name}",
            fix="add text, lower its weight or train.tokens, or set data.when_dry to repeat",
        )

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain JSON: samples read per domain, and what that position means."""
        return {
            "seed": self._seed,
            "samples": sum(self._counts.values()),
            "read": dict(self._counts),
            "windows": {name: windows.count for name, windows in self._windows.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position. Raises ``RunError`` if it was taken on other data or with another seed,
        where it would mean other text.
        """
        here = self.state_dict()
        for key in ("seed", "windows"):
            if state[key] != here[key]:
                raise RunError(
                    f"the saved position in the data does not fit this run: {key} was "
                    f"{state[key]}, is {here[key]}",
                    fix="resume with the recipe and the text of the saved run, or start anew",
                )
        self._counts = {name: int(state["read"][name]) for name in self._names}
