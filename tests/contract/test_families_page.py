"""docs/families.md is the page that the tests write, for the families and kinds they run."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import FAMILIES
from tests.contract.test_mask_equals_removal import CASES
from tests.contract.zoo import sources
from tests.families_page import COLUMN, EXPORTS, GGUF, HEAD, KINDS, NAMES, gguf_rows

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_the_page_is_current() -> None:
    text = PAGE.read_text()
    assert text.startswith(HEAD) and EXPORTS in text
    kinds = {family: {kind for name, kind, _ in CASES if name == family} for family in FAMILIES}
    for family, source in sources().items():
        kinds[family] = {COLUMN.get(kind, kind) for kind in source.kinds}
    assert text.endswith(GGUF + "\n".join(gguf_rows()) + "\n")
    assert set(NAMES) == set(kinds)
    first = text[: text.index(EXPORTS)]
    rows = {line.split("|")[1].strip(" `"): line for line in first.splitlines() if "| `" in line}
    for family, wanted in kinds.items():
        *cells, own = [cell.strip() for cell in rows[family].split("|")[3:-1]]
        filled = {kind for kind, cell in zip(KINDS, cells, strict=True) if cell}
        assert filled == wanted & KINDS.keys(), family
        assert bool(own) == bool(wanted - KINDS.keys()), family
