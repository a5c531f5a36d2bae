"""Documents of a Hugging Face data set, streamed: nothing is downloaded that is not read."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from effcompress.data.documents import Fields, Record, Source, address, record_of
from effcompress.errors import SourceError
from effcompress.spec import DomainSpec


def hub_source(domain: str, spec: DomainSpec, split: str) -> Source:
    """The documents of one split, in the order of the data set. Touches no network until read.

    Reading raises ``SourceError`` naming the data set if it cannot be opened or breaks off, and
    one naming the row if the text field is missing.
    """
    hub = spec.hub
    assert hub is not None
    identity = {
        "kind": "hub",
        "hub": hub,
        "revision": spec.revision,
        "config": spec.config,
        "split": split,
        "text": spec.text,
    }
    if spec.prompt is not None:
        identity["prompt"] = spec.prompt
    fields = Fields(spec.text, spec.prompt)

    def records(skip: int) -> Generator[Record, None, None]:
        where = f"{hub}[{split}]"
        rows = _rows(domain, hub, spec.config, split, spec.revision, skip)
        for number, row in enumerate(rows, start=skip + 1):
            at = f"{where}:row {number}"
            yield record_of(row, fields, at)

    pinned = f"@{spec.revision}" if spec.revision else ""
    name = f"{hub}{pinned}" + (f" ({spec.config})" if spec.config else "")
    return Source(domain, f"hub: {name}, split {split}", identity, records, remote=hub)


def _rows(
    domain: str, hub: str, config: str | None, split: str, revision: str | None, skip: int
) -> Iterator[dict[str, Any]]:
    try:
        yield from open_stream(hub, config, split, revision, skip)
    except Exception as error:  # the libraries behind the hub share no base class of errors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise SourceError(
            f"hub data set '{hub}' (split '{split}') cannot be read: {reason}",
            where=address(domain),
            fix="check hub, config, split and revision, and the network; run again to go on",
        ) from error


def open_stream(
    hub: str, config: str | None, split: str, revision: str | None, skip: int
) -> Iterator[dict[str, Any]]:
    """Rows of a hub data set after the first ``skip``: the one place that asks the network."""
    import datasets

    stream = datasets.load_dataset(hub, name=config, split=split, revision=revision, streaming=True)
    return iter(stream.skip(skip) if skip else stream)  # pyright: ignore[reportArgumentType]
