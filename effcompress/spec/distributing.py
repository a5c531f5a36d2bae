"""Several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcompress.spec.key import key


@dataclass(frozen=True, kw_only=True)
class DistributedSpec:
    """What each of several processes holds; how many there are is the launcher's affair."""

    mode: Literal["replicate", "shard"] = key(
        "replicate: every process has the whole model (DDP); shard: its share of weights, "
        "gradients and moments, and a layer whole only while it computes (FSDP2)",
        "replicate",
    )
