"""What tells methods apart: short names, and the keys of their recipes that differ."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile

Keys = Mapping[str, str]
"""Key of a recipe -> what it says."""
ABSENT = "none"


def shortened(labels: Sequence[str]) -> dict[str, str]:
    """Returns label -> name without the words that all labels begin or end with, as long as every
    name still has a letter: ``small_taylor``, ``small_random`` -> ``taylor``, ``random``.
    """
    parts = [re.split(r"([_\-. ]+)", label) for label in labels]
    if len(set(labels)) < 2:
        return {label: label for label in labels}
    first = _common(parts)
    last = _common([p[::-1] for p in parts])
    for drop, stop in ((first, last), (first, 0), (0, last)):
        names = ["".join(p[2 * drop : len(p) - 2 * stop]) for p in parts]
        apart = len(set(names)) == len(set(labels))
        if apart and all(re.search(r"[^\W\d_]", name) for name in names):
            return dict(zip(labels, names, strict=True))
    return {label: label for label in labels}


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many words all begin with, whatever separates them."""
    words = zip(*(p[::2] for p in parts), strict=False)
    return sum(1 for _ in takewhile(lambda some: len(set(some)) == 1, words))


def differences(said: Mapping[str, Keys | None]) -> tuple[Keys, dict[str, Keys]]:
    """Splits what recipes say into keys that are the same for all, and label -> keys that are not.
    ``said``: label -> keys, None where they are not known. An absent key says ``none``.
    """
    known = [keys for keys in said.values() if keys]
    if not known:
        return {}, {label: {} for label in said}
    every = list(dict.fromkeys(key for keys in known for key in keys))
    same = {
        key: known[0][key]
        for key in every
        if len(known) > 1 and len({keys.get(key) for keys in known}) == 1
    }
    return same, {
        label: {key: keys.get(key, ABSENT) for key in every if key not in same} if keys else {}
        for label, keys in said.items()
    }


def unusual(apart: Mapping[str, Keys]) -> dict[str, Keys]:
    """Returns label -> the keys in which it differs from more than half of the others; all of its
    keys where no such value exists. ``apart`` is what ``differences`` gives by label.
    """
    methods = [keys for keys in apart.values() if keys]
    usual: dict[str, str] = {}
    for key in dict.fromkeys(k for keys in methods for k in keys):
        value, votes = Counter(keys[key] for keys in methods).most_common(1)[0]
        if 2 * votes > len(methods):
            usual[key] = value
    return {
        label: {key: value for key, value in keys.items() if usual.get(key) != value}
        for label, keys in apart.items()
    }
