"""What a recipe is to run on: processors, their memory and speed, and the hours that there are."""

import re
from dataclasses import dataclass

from effcompress.errors import SourceError, did_you_mean
from effcompress.estimate.flops import UTILISATION
from effcompress.processes import memory_available

GPUS = {
    "B200": (180e9, 2250e12),
    "H200": (141e9, 989e12),
    "H100": (80e9, 989e12),
    "A100": (80e9, 312e12),
    "A100-40GB": (40e9, 312e12),
    "L40S": (48e9, 362e12),
    "A6000": (48e9, 155e12),
    "RTX 5090": (32e9, 209e12),
    "RTX 4090": (24e9, 165e12),
    "RTX 3090": (24e9, 71e12),
}
"""Name -> bytes of memory, and dense bf16 operations per second with fp32 accumulation (vendors'
data sheets).
"""
_BUDGET = re.compile(
    r"\s*(?:(?P<n>\d{1,5})\s*[x*]\s*)?(?P<gpu>[A-Za-z][\w -]*?)\s*"
    r"(?:,\s*(?P<time>\d+(?:\.\d+)?)\s*(?P<unit>h|hours?|d|days?|min|minutes?))?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Machine:
    """``memory`` in bytes, of one processor. ``peak``: operations per second of one; 0 where that
    is not known. ``seconds``: the time that the budget grants; 0 where it states none.
    """

    name: str
    number: int
    memory: float
    peak: float = 0.0
    seconds: float = 0.0

    @property
    def operations(self) -> float:
        """Operations in all, at the utilisation that `plan` assumes."""
        return self.number * self.peak * self.seconds * UTILISATION

    @property
    def said(self) -> str:
        """In words."""
        several = f"{self.number} x " if self.number > 1 else ""
        return f"{several}{self.name} ({self.memory / 1e9:.0f} GB)"


def this_machine() -> Machine:
    """Returns the processor and the free memory here. Whether a GPU is there is not asked, because
    that would import torch.
    """
    return Machine("this machine's processor", 1, memory_available())


def machine_of(budget: str) -> Machine:
    """Reads ``8 x H100, 24 h`` or ``RTX 4090``. Raises SourceError where it says something else."""
    found = _BUDGET.fullmatch(budget)
    example = 'E.g. --budget "8 x H100, 24 h", or --tokens 1B.'
    if found is None:
        raise SourceError(f"'{budget}' is no budget", where="--budget", fix=example)
    known = {_plain(name): name for name in GPUS}
    if (name := known.get(_plain(found["gpu"]))) is None:
        fix = did_you_mean(found["gpu"], GPUS)
        raise SourceError(f"no GPU called '{found['gpu']}' is known", where="--budget", fix=fix)
    scale = {"h": 3600, "d": 86400, "m": 60}[(found["unit"] or "h")[0].lower()]
    memory, peak = GPUS[name]
    number = int(found["n"] or 1)
    if number < 1:
        raise SourceError("a budget needs one processor at least", where="--budget", fix=example)
    return Machine(name, number, memory, peak, float(found["time"] or 0) * scale)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]|nvidia|geforce", "", name.lower())
