"""Numbers, sizes and durations as people read them: one home for all commands and pages."""

import math
from decimal import Decimal

MINUS, DOT = "\u2212", "\u00b7"
_UP = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def count(value: float) -> str:
    """``134.5M``, ``30k``, ``512``: one decimal at most."""
    # 999,960 is 1M, not 1000k: a unit begins where one decimal rounds up to it.
    size, unit = next(((s, u) for s, u in UNITS if abs(value) >= s * 0.9995), (1.0, ""))
    return signed(f"{value / size:.{1 if unit else 0}f}".removesuffix(".0")) + unit


def percent(fraction: float, *, sign: bool = False) -> str:
    """``8.1 %``, with a plus or a true minus if ``sign``."""
    digits = 0 if abs(fraction) >= 9.995 else 2 if 0 < abs(fraction) < 0.001 else 1
    return signed(f"{fraction * 100:{'+' if sign else ''}.{digits}f}") + " %"


def points(fraction: float) -> str:
    """A difference of fractions in percentage points: ``+1.2``."""
    return signed(f"{fraction * 100:+.1f}")


def power(value: float) -> str:
    """``2.3·10⁻⁷``."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    lead = f"{value / 10**exponent:.1f}".removesuffix(".0")
    tens = f"10{str(exponent).translate(_UP)}"
    return tens if lead == "1" else signed(f"{lead}{DOT}{tens}")


def number(value: float) -> str:
    """A round number, as beside a scale: ``20``, ``22.5``, ``5,000``, ``2·10⁶``."""
    return power(value) if abs(value) >= 1e6 else f"{value:,.10g}"


def decimal(value: float) -> str:
    """A perplexity or a loss: ``21.37``, ``1,204``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{1 if value >= 100 else 2}f}"


def small(value: float) -> str:
    """A learning rate or a saliency."""
    return f"{value:.2g}" if value == 0 or abs(value) >= 0.01 else power(value)


def exact_count(value: float) -> str:
    """``134.5M``, ``1.235T``: four significant digits, for tables that compare near sizes."""
    size, unit = next(((s, u) for s, u in UNITS[:-1] if abs(value) >= s), (1.0, ""))
    return signed(f"{value / size:.4g}" if unit else f"{value:.0f}") + unit


def short_count(value: int) -> str:
    """A whole number as recipes write it, not rounded: ``469M``, ``1.1B``, ``134.5M``, ``7``."""
    scale, unit = next(((int(s), u) for s, u in UNITS if value >= s), (1, ""))
    return f"{(Decimal(value) / scale).normalize():f}{unit}"


def size(number: float) -> str:
    """Bytes in three digits: ``2.69 GB``, ``323 MB``; ``-`` for none (1 GB is 1e9 bytes)."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= scale:
            digits = max(0, 2 - int(math.log10(number / scale)))
            return f"{number / scale:.{digits}f} {unit}"
    return f"{number:.0f} B" if number else "-"


def duration(seconds: float) -> str:
    """``0.25 s``, ``42 s``, ``12 min 22 s``, ``3 h 5 min``, ``14.2 days``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    if whole < 2 * 86400:
        minutes = whole % 3600 // 60
        return f"{whole // 3600} h" + (f" {minutes} min" if minutes else "")
    return f"{seconds / 86400:.3g} days"


def clock_time(seconds: float) -> str:
    """``1:05``, ``2:03:09`` or ``3 days``: for lines that are redrawn."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def with_error(fraction: float, stderr: float | None, *, width: int = 0) -> str:
    """A fraction and its standard error in percent, ``55.0 ± 11.1``, padded to ``width``."""
    error = "" if stderr is None else f" \u00b1 {stderr * 100:{width}.1f}"
    return f"{fraction * 100:.1f}{error}"


def signed(text: str) -> str:
    """With a true minus sign."""
    return text.replace("-", MINUS)
