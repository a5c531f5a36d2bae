"""What can be known of text before it is tokenised: whether the first records of its files can be
read, whether short files hold enough, and how much will be tokenised. Needs no tokenizer, no torch.
"""

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from effcompress.data.chat import ANSWERING
from effcompress.data.folder import PARTS
from effcompress.data.look import stored
from effcompress.data.sources import (
    READERS,
    Fields,
    ReadEnough,
    Record,
    address,
    guarded,
    kind_of,
)
from effcompress.data.tokens import CHUNK_CHARACTERS, side_of
from effcompress.errors import SourceError, short
from effcompress.spec import DataSpec, DomainSpec

READ = 4 << 20
"""Bytes that are read of a domain's files, and again of its validation files."""
TEMPLATE = 1 << 14
"""Tokens that a chat template adds to a conversation, at most."""
SECONDS = 1.0
"""For all domains together; of each, the first record is read."""
TOKEN = 4.0
"""Bytes of text of a token, where it is not counted: English with a vocabulary of 32k or more."""


@dataclass(frozen=True)
class ToTokenise:
    """Of one domain. ``tokens``: at most, about; None where all of a text is read whose length is
    not known. ``signed``: prompts are marked in the token files, which takes 4 bytes a token.
    """

    tokens: int | None
    signed: bool


def to_tokenise(
    spec: DataSpec, train_tokens: int, heldout_sequences: int, *, of_bytes: bool = False
) -> dict[str, ToTokenise]:
    """Returns domain -> tokens that ``prepare`` will have made of it: as many as the run reads, or
    its files hold. ``of_bytes``: a token is a byte, not ``TOKEN`` of them.
    """
    weights = math.fsum(domain.weight for domain in spec.domains.values())
    samples = math.ceil(train_tokens / spec.sequence_length)
    found: dict[str, ToTokenise] = {}
    for name, domain in spec.domains.items():
        fraction = domain.weight / weights
        most = max(fraction, spec.mixture.text) if spec.mixture else fraction
        sequences = math.ceil(most * samples) + 1 + heldout_sequences
        # Whole chunks are tokenised, the last one beyond what is read.
        last = CHUNK_CHARACTERS / (1.0 if of_bytes else TOKEN)
        read = sequences * spec.sequence_length + math.ceil(last)
        bounds = [read] if spec.documents.pack else []
        if (kind := kind_of(name, domain)) in READERS:
            files = (*getattr(domain, kind), *(domain.validation or ()))
            size = sum(stored(path) for path in files)
            bounds.append(math.ceil(size / (1.0 if of_bytes else TOKEN)))
        signed = bool(domain.chat or domain.prompt)
        found[name] = ToTokenise(min(bounds, default=None), signed)
    return found


def preview(spec: DataSpec) -> list[str]:
    """Reads the beginning of every domain's files; returns a line for each domain that has some.

    Raises ``SourceError`` for a record that cannot be read, with ``file:line``, and for a domain
    whose text, read to the end, cannot fill one sequence of training or held-out text.
    """
    lines, until = [], time.monotonic() + SECONDS
    for name, domain in spec.domains.items():
        if (kind := kind_of(name, domain)) not in READERS:
            continue
        look = _Look(kind, Fields.of(domain), until)
        ended = look.at(getattr(domain, kind), 0.0 if domain.validation else domain.holdout)
        ends = dict.fromkeys(PARTS, ended)
        if domain.validation:
            ends["heldout"] = look.at(domain.validation, 1.0)
        for part, size in look.sizes.items():
            least = spec.sequence_length - (spec.bos != "never") if spec.documents.pack else 1
            if ends[part] and size < least:
                raise too_short(name, domain, part, size and f"at most {size:,}", spec)
        if domain.chat and look.roles and ANSWERING not in look.roles:
            raise SourceError(
                f"no message of the first {look.records:,} conversations has the role "
                f"`{ANSWERING}`, whose answers are learned; roles here: {_named(look.roles)}",
                where=address(name),
                fix=f"call the role of those who answer `{ANSWERING}`",
            )
        which = "all" if all(ends.values()) else "the first"
        lines.append(f"domain '{name}': {which} {look.records:,} records can be read")
    return lines


def _named(roles: set[str]) -> str:
    """The first few roles, for an error."""
    return ", ".join(short(role, 20) for role in sorted(roles)[:5])


def conversations(spec: DomainSpec, name: str, count: int) -> list[Record]:
    """Returns the first conversations of a domain's files; none of other domains."""
    if spec.chat is None or (kind := kind_of(name, spec)) not in READERS:
        return []
    fields, found = Fields.of(spec), list[Record]()
    for path in getattr(spec, kind):
        with suppress(ReadEnough):
            for record in guarded(READERS[kind], path, fields, READ):
                found += [record] if record.turns else []
                if len(found) == count:
                    return found
    return found


class _Look:
    """Reads records, and adds up the most tokens that each part can have."""

    def __init__(self, kind: str, fields: Fields, until: float) -> None:
        self.reader, self.fields, self.until = READERS[kind], fields, until
        self.sizes, self.records = dict.fromkeys(PARTS, 0), 0
        self.roles: set[str] = set()

    def at(self, paths: tuple[Path, ...], holdout: float) -> bool:
        """Whether the files were read to their end."""
        left = READ
        try:
            for path in paths:
                for record in guarded(self.reader, path, self.fields, READ):
                    self.records += 1
                    self.roles.update(turn["role"] for turn in record.turns)
                    if not record.text.strip():
                        continue
                    part, size = side_of(record, holdout)
                    # A token stands for at least one byte, except EOS, a space put in front and
                    # what a chat template adds.
                    self.sizes[part] += size + (TEMPLATE if record.turns else 2)
                    left -= size
                    if left < 0 or time.monotonic() > self.until:
                        return False
        except ReadEnough:
            return False
        return True


def too_short(
    name: str, domain: DomainSpec, part: str, tokens: object, spec: DataSpec
) -> SourceError:
    """Returns the error for a part of a domain that fills no sequence; ``tokens``: how many it has,
    0 for none.
    """
    problem = f"there is no {PARTS[part]} text"
    if tokens:
        length = spec.sequence_length
        problem = f"{tokens} {PARTS[part]} tokens do not fill one sequence of {length}"
    fix = "add text"
    if not (domain.validation or domain.validation_split):
        documents = "documents" if not domain.txt else "documents (blank lines separate them)"
        problem += f"; {domain.holdout:.1%} of the {documents} are held out, by hash"
        fix = "add text" if part == "train" else "raise `holdout`, name a `validation` file"
    return SourceError(
        problem, where=address(name), fix=f"{fix}, or make data.sequence_length shorter"
    )
