"""Time that does not depend on what else a machine does."""

from __future__ import annotations

import os


def computed_by_children() -> float:
    """Seconds of processor time of the processes that were started here and have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system
