"""Numbers as people read them."""

from __future__ import annotations

import math

MINUS, TIMES, DOT = "\u2212", "\u00d7", "\u00b7"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_UP = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: float) -> str:
    """``134.5M``, ``30k``, ``512``: one decimal at most."""
    size, unit = next(((s, u) for s, u in UNITS if abs(value) >= s * 0.9995), (1.0, ""))
    return _signed(f"{value / size:.1f}".removesuffix(".0")) + unit


def power(value: float) -> str:
    """``2.3·10⁻⁷``."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    lead = f"{value / 10**exponent:.1f}".removesuffix(".0")
    tens = f"10{str(exponent).translate(_UP)}"
    return tens if lead == "1" else _signed(f"{lead}{DOT}{tens}")


def percent(share: float, *, sign: bool = False) -> str:
    """``8.1 %``, with a plus or a true minus if ``sign``."""
    digits = 0 if abs(share) >= 9.995 else 2 if 0 < abs(share) < 0.001 else 1
    return _signed(f"{share * 100:{'+' if sign else ''}.{digits}f}") + " %"


def points(share: float) -> str:
    """A difference of shares in percentage points: ``+1.2``."""
    return _signed(f"{share * 100:+.1f}")


def with_error(share: float, stderr: float | None) -> str:
    """A share and its standard error, in percent: ``55.0 \u00b1 11.1``."""
    return f"{share * 100:.1f}" + ("" if stderr is None else f" \u00b1 {stderr * 100:.1f}")


def decimal(value: float) -> str:
    """A perplexity or a loss: ``21.37``, ``1,204``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{1 if value >= 100 else 2}f}"


def small(value: float) -> str:
    """A learning rate or a saliency."""
    return f"{value:.2g}" if value == 0 or abs(value) >= 0.01 else power(value)


def duration(seconds: float) -> str:
    """``42 s``, ``12 min 22 s``, ``3 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: float) -> str:
    """Bytes: ``229 MB``."""
    for step, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= step:
            return f"{number / step:.{1 if number < 10 * step else 0}f} {unit}"
    return f"{number:.0f} B"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
