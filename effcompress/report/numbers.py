"""Numbers of charts and tables: tick labels, percentages, powers of ten. Counts, sizes and
durations come from ``record/readable.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from effcompress.record.readable import MINUS as MINUS
from effcompress.record.readable import UNITS, signed
from effcompress.record.readable import count as count
from effcompress.record.readable import duration as duration
from effcompress.record.readable import size as size
from effcompress.record.readable import with_error as with_error

TIMES, DOT = "\u00d7", "\u00b7"
_UP = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def counts(values: Sequence[float]) -> list[str]:
    """Labels for the ticks of one axis: one unit, as many decimals as tell them apart."""
    top = max((abs(v) for v in values), default=0.0)
    size, unit = next(((s, u) for s, u in UNITS if top >= s), (1.0, ""))
    return [label + unit if value else "0" for label, value in _apart(values, size)]


def plain(values: Sequence[float]) -> list[str]:
    """Tick labels without a unit."""
    return [label for label, _ in _apart(values, 1.0)]


def percents(values: Sequence[float]) -> list[str]:
    """Tick labels for shares."""
    return [f"{label} %" for label, _ in _apart(values, 0.01)]


def powers(values: Sequence[float]) -> list[str]:
    """Tick labels of a logarithmic axis: ``10⁻⁷`` or ``2·10⁻⁷``."""
    return [power(value) for value in values]


def rates(values: Sequence[float]) -> list[str]:
    """Tick labels of learning rates: one power of ten for the whole axis."""
    exponent = math.floor(math.log10(max((abs(v) for v in values), default=1.0) or 1.0) + 1e-9)
    tens = f"{DOT}10{str(exponent).translate(_UP)}"
    return [label + tens if value else "0" for label, value in _apart(values, 10.0**exponent)]


def power(value: float) -> str:
    """``2.3·10⁻⁷``."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    lead = f"{value / 10**exponent:.1f}".removesuffix(".0")
    tens = f"10{str(exponent).translate(_UP)}"
    return tens if lead == "1" else signed(f"{lead}{DOT}{tens}")


def percent(share: float, *, sign: bool = False) -> str:
    """``8.1 %``, with a plus or a true minus if ``sign``."""
    digits = 0 if abs(share) >= 9.995 else 2 if 0 < abs(share) < 0.001 else 1
    return signed(f"{share * 100:{'+' if sign else ''}.{digits}f}") + " %"


def points(share: float) -> str:
    """A difference of shares in percentage points: ``+1.2``."""
    return signed(f"{share * 100:+.1f}")


def decimal(value: float) -> str:
    """A perplexity or a loss: ``21.37``, ``1,204``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{1 if value >= 100 else 2}f}"


def small(value: float) -> str:
    """A learning rate or a saliency."""
    return f"{value:.2g}" if value == 0 or abs(value) >= 0.01 else power(value)


def _apart(values: Sequence[float], size: float) -> list[tuple[str, float]]:
    for digits in range(13):
        labels = [signed(f"{v / size:.{digits}f}") for v in values]
        close = all(
            abs(round(v / size, digits) - v / size) <= 1e-6 * max(1e-9, abs(v / size))
            for v in values
        )
        if close and len(set(labels)) == len(set(values)):
            return list(zip(labels, values, strict=True))
    return [(signed(f"{v / size:.12g}"), v) for v in values]
