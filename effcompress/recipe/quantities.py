"""Counts (``469M``), fractions (``85%``) and bytes (``180MB``) as recipes write them."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

COUNT_PATTERN = r"^(0|[1-9][0-9]{0,17})(\.[0-9]{1,9})?[kKMBT]?$"
COUNT_WORDS = "a whole number such as 2000, 1.5k, 469M or 72B"
FRACTION_PATTERN = r"^(100(\.0{1,9})?|[0-9]{1,2}(\.[0-9]{1,17})?)%$"
FRACTION_WORDS = "a fraction from 0 to 1, or 0% to 100%"
BYTES_PATTERN = r"^[1-9][0-9]{0,17}(\.[0-9]{1,9})?([kMGT]i?B|B)?$"
BYTES_WORDS = "a number of bytes such as 180MB, 1.5GB or 64MiB"
AUTO_PATTERN = r"^auto$"
AUTO_WORDS = "a number from 0, or auto"

_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LOOSE_COUNT = re.compile(
    r"([0-9][0-9_, ]{,30}(?:\.[0-9]{1,9})?)\s?([kmbgt]?)(?:i?b|illions?|rillions?|housands?)?"
    r"(?: ?(?:tokens|parameters|params|steps))?",
    re.IGNORECASE,
)
_LOOSE_FRACTION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s?(?:%|percent|pct)", re.IGNORECASE)


def count(written: int | float | str) -> int:
    """Reads ``1.5k`` as 1500. Raises ValueError when it is no whole number or has another unit."""
    if not isinstance(written, str):
        if written != int(written):
            raise ValueError(f"{written} is not whole")
        return int(written)
    if not re.search(COUNT_PATTERN, written):
        raise ValueError(f"'{written}' is not {COUNT_WORDS}")
    unit = written[-1] if written[-1].isalpha() else ""
    number = Decimal(written.removesuffix(unit)) * _FACTORS[unit]
    if number != int(number):
        raise ValueError(f"'{written}' is {number.normalize():f}, which is not whole")
    return int(number)


def fraction(written: int | float | str) -> float:
    """Reads ``85%`` as 0.85. Raises ValueError when it is outside 0 to 1 or no number."""
    if isinstance(written, str):
        if not re.search(FRACTION_PATTERN, written):
            raise ValueError(f"'{written}' is not {FRACTION_WORDS}")
        return float(Decimal(written.removesuffix("%")) / 100)
    if not 0 <= written <= 1:
        raise ValueError(f"{written} is not {FRACTION_WORDS}")
    return float(written)


def bytes_of(written: int | float | str) -> int:
    """Reads ``180MB`` as 180,000,000 and ``64MiB`` as 67,108,864. Raises ValueError when it is no
    whole number of bytes or has another unit.
    """
    if not isinstance(written, str):
        return count(written)
    if not re.search(BYTES_PATTERN, written):
        raise ValueError(f"'{written}' is not {BYTES_WORDS}")
    unit = written.lstrip("0123456789.").removesuffix("B")
    step = 1024 if unit.endswith("i") else 1000
    number = Decimal(written.rstrip("kMGTiB")) * step ** " kMGT".index(unit[:1] or " ")
    if number != int(number):
        raise ValueError(f"'{written}' is {number.normalize():f} bytes, which is not whole")
    return int(number)


def nearest_bytes(text: str) -> str | None:
    """Guesses what ``180 mb`` or ``180M`` was meant to be: ``180MB``; None without a guess."""
    found = re.fullmatch(
        r"([1-9][0-9]*(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?(?:ytes?)?", text.strip().lower()
    )
    if not found:
        return None
    unit = {"k": "k"}.get(found[2], found[2].upper())
    guess = f"{found[1]}{unit}{found[3]}B"
    return guess if re.search(BYTES_PATTERN, guess) else None


def nearest_count(text: str) -> str | None:
    """Guesses what ``469 MB`` was meant to be: ``469M``; None without a guess."""
    found = _LOOSE_COUNT.fullmatch(text.strip())
    if not found:
        return None
    unit = {"g": "B", "k": "k"}.get(found[2].lower(), found[2].upper())
    guess = (re.sub(r"[_, ]", "", found[1]).lstrip("0") or "0") + unit
    return guess if re.search(COUNT_PATTERN, guess) else None


def nearest_fraction(value: int | float | str) -> str | None:
    """Guesses what ``85``, ``85 %`` or ``0,85`` was meant to be: ``85%``; None without a guess."""
    if not isinstance(value, str):
        return f"{value:g}%" if 2 <= value <= 100 else None
    found = _LOOSE_FRACTION.fullmatch(value.strip())
    guess = f"{found[1]}%" if found else value.strip().replace(",", ".")
    if found:
        return guess if re.search(FRACTION_PATTERN, guess) else None
    try:
        return guess if guess != value and 0 <= float(guess) <= 1 else None
    except ValueError:
        return None


def number_or_auto(written: int | float | str) -> float | str:
    """Reads a number, or ``auto`` as it is. Raises ValueError for other text."""
    if isinstance(written, str):
        if written != "auto":
            raise ValueError(f"'{written}' is not {AUTO_WORDS}")
        return written
    return float(written)


def nearest_auto(text: str) -> str | None:
    """Guesses that ``Auto`` or ``automatic`` was meant to be ``auto``."""
    return "auto" if text.strip().lower().startswith("auto") else None


class Quantity(NamedTuple):
    """How a tagged number is written; ``nearest`` guesses what a wrong text was meant to be."""

    pattern: str
    words: str
    read: Callable[[Any], float | str]
    nearest: Callable[[Any], str | None]
    example: str


_COUNT = Quantity(COUNT_PATTERN, COUNT_WORDS, count, nearest_count, "469M")
_PERCENT = (FRACTION_PATTERN, FRACTION_WORDS, fraction, nearest_fraction, "85% or 0.85")
_BYTES = (BYTES_PATTERN, BYTES_WORDS, bytes_of, nearest_bytes, "180MB")
_AUTO = (AUTO_PATTERN, AUTO_WORDS, number_or_auto, nearest_auto, "0.3 or auto")
QUANTITIES = {
    "count": _COUNT,
    "fraction": Quantity(*_PERCENT),
    "bytes": Quantity(*_BYTES),
    "number from 0, or auto": Quantity(*_AUTO),
}
"""Tag of an annotation -> how its values are written."""
