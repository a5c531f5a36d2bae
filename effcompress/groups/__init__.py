"""Coupled structures: named axes of a model, resolved to groups of index tensors."""

from effcompress.groups.axes import (
    from_config,
    from_shapes,
    from_widths,
    full_depth,
    shapes_at,
    stock_widths,
)
from effcompress.groups.find import axes_of, find, left
from effcompress.groups.stream import of_stream

__all__ = [
    "axes_of",
    "find",
    "from_config",
    "from_shapes",
    "from_widths",
    "full_depth",
    "left",
    "of_stream",
    "shapes_at",
    "stock_widths",
]
