"""From a domain of the recipe to the source of its training text and of its held-out text."""

from __future__ import annotations

from effcompress.data.documents import Fields, Source, address
from effcompress.data.files import files_source
from effcompress.data.hub import hub_source
from effcompress.data.stdlib import stdlib_source
from effcompress.errors import SourceError
from effcompress.spec import DomainSpec

KINDS = ("jsonl", "txt", "parquet", "hub", "stdlib")


def kind_of(domain: str, spec: DomainSpec) -> str:
    """Which of the five kinds the domain is. Raises ``SourceError`` if it is none or several, or
    names held-out text that its kind cannot have.
    """
    given = [kind for kind in KINDS if getattr(spec, kind)]
    where = address(domain)
    if len(given) != 1:
        problem = "names no source" if not given else f"names several: {', '.join(given)}"
        raise SourceError(problem, where=where, fix=f"exactly one of {', '.join(KINDS)}")
    kind = given[0]
    if spec.validation and kind in ("hub", "stdlib"):
        instead = "validation_split" if kind == "hub" else "holdout"
        raise SourceError(
            f"`validation` names files, but the domain is {kind}", where=where, fix=f"use {instead}"
        )
    if spec.validation_split and kind != "hub":
        raise SourceError("`validation_split` needs a hub data set", where=where)
    if not 0 <= spec.holdout < 1:
        raise SourceError(f"holdout is {spec.holdout}; it must be from 0 to below 1", where=where)
    return kind


def training_source(domain: str, spec: DomainSpec) -> Source:
    """The text to train on; with a held-out share still in it unless `validation` is given."""
    kind = kind_of(domain, spec)
    if kind == "hub":
        return hub_source(domain, spec, spec.split)
    if spec.stdlib:
        return stdlib_source(domain, spec.stdlib)
    return files_source(domain, kind, getattr(spec, kind), Fields(spec.text, spec.prompt))


def validation_source(domain: str, spec: DomainSpec, training: Source) -> Source | None:
    """The held-out text the recipe names, or None if a share of the documents is to be held out.

    Raises ``SourceError`` if it is also training text.
    """
    kind = kind_of(domain, spec)
    if spec.validation_split:
        if spec.validation_split == spec.split:
            raise SourceError(
                f"split '{spec.split}' is both training and held-out text", where=address(domain)
            )
        return hub_source(domain, spec, spec.validation_split)
    if not spec.validation:
        return None
    source = files_source(domain, kind, spec.validation, Fields(spec.text, spec.prompt))
    both = set(source.identity["sha256"]) & set(training.identity["sha256"])
    if both:
        raise SourceError(
            "a `validation` file has the same content as a training file", where=address(domain)
        )
    return source


def how_held_out(spec: DomainSpec) -> str:
    """One phrase for reports."""
    if spec.validation_split:
        return f"split {spec.validation_split}"
    if spec.validation:
        return "files: " + ", ".join(path.name for path in spec.validation)
    return f"{spec.holdout:.3%} of the documents, by hash of their text"
