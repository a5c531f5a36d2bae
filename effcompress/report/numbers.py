"""Numbers of pages and charts: percentages, powers of ten, decimals. Counts, sizes and durations
come from ``record/readable.py``.
"""

from __future__ import annotations

import math

from effcompress.record.readable import MINUS as MINUS
from effcompress.record.readable import UNITS as UNITS
from effcompress.record.readable import count as count
from effcompress.record.readable import duration as duration
from effcompress.record.readable import signed
from effcompress.record.readable import size as size
from effcompress.record.readable import with_error as with_error

TIMES, DOT = "\u00d7", "\u00b7"
_UP = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float) -> str:
    """``2.3·10⁻⁷``."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    lead = f"{value / 10**exponent:.1f}".removesuffix(".0")
    tens = f"10{str(exponent).translate(_UP)}"
    return tens if lead == "1" else signed(f"{lead}{DOT}{tens}")


def percent(fraction: float, *, sign: bool = False) -> str:
    """``8.1 %``, with a plus or a true minus if ``sign``."""
    digits = 0 if abs(fraction) >= 9.995 else 2 if 0 < abs(fraction) < 0.001 else 1
    return signed(f"{fraction * 100:{'+' if sign else ''}.{digits}f}") + " %"


def points(fraction: float) -> str:
    """A difference of fractions in percentage points: ``+1.2``."""
    return signed(f"{fraction * 100:+.1f}")


def decimal(value: float) -> str:
    """A perplexity or a loss: ``21.37``, ``1,204``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{1 if value >= 100 else 2}f}"


def small(value: float) -> str:
    """A learning rate or a saliency."""
    return f"{value:.2g}" if value == 0 or abs(value) >= 0.01 else power(value)
