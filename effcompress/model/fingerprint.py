"""Which weights a run starts from: a hash that two runs can compare."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from effcompress.distributed import whole


def fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits: equal exactly if all parameters have the same names, shapes, types and
    values. A bias of zeros is as good as none: repairs make room for theirs that way. What the
    configuration alone decides (a rotary base, say) is not part of it. Reads every weight once.
    """
    said = hashlib.sha256()
    for name, p in module.named_parameters():
        value = whole(p.detach())
        if name.endswith(".bias") and not value.any():
            continue
        said.update(f"{name} {p.dtype} {tuple(p.shape)} ".encode())
        flat = value.cpu().contiguous().reshape(-1)
        said.update(flat.view(torch.uint8).numpy().data)
    return said.hexdigest()[:16]
