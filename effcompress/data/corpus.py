"""The corpus of a run: every domain tokenised as far as needed, packed and fingerprinted."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from effcompress.data import sources
from effcompress.data.beginning import too_short
from effcompress.data.folder import PARTS
from effcompress.data.stream import (
    Rows,
    Sequenced,
    Stream,
    next_domain,
    payload,
    rows_of,
    shuffled,
    stacked,
    unmarked,
    window_bos,
    windows_of,
)
from effcompress.data.tokens import Talk, TokenStore
from effcompress.errors import SourceError
from effcompress.spec import DataSpec, DomainSpec
from effcompress.types import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

CHOICE = 8
"""Windows per calibration window that is drawn: with a choice, another seed draws other text."""
ALL = 1 << 62
"""Tokens: more than there are."""
HASHED_AT_ONCE = 1 << 22
"""Tokens, or hashes of documents: bounds memory."""


UNKNOWN, LOOKED_AT = 0.05, 1 << 20
"""Share of unknown tokens that is warned of, and how many tokens of a domain are looked at."""


class DomainSummary(TypedDict):
    """What a run reads of a domain; recorded with the run."""

    source: str
    share: float
    """Fraction of the training samples."""
    documents: int
    tokens: int
    heldout_documents: int
    heldout_tokens: int
    held_out: str
    """How, in words."""
    content: str
    """Hash of the tokens."""


class HubDataset(TypedDict):
    """A data set of the Hugging Face Hub that a recipe reads."""

    domain: str
    hub: str
    config: str | None
    revision: str | None
    splits: list[str]


@dataclass(frozen=True)
class Domain:
    """One domain with its tokens; ``fraction`` of all training samples come from ``train``."""

    name: str
    spec: DomainSpec
    source: str
    fraction: float
    store: TokenStore
    train: Sequenced
    heldout: Sequenced

    def content(self) -> str:
        """Hashes the tokens that this run trains on and is evaluated on."""
        digest = hashlib.sha256()
        for tokens in (self.train.used, self.heldout.used):
            digest.update(f"{len(tokens)} {tokens.dtype.str} ".encode())
            for start in range(0, len(tokens), HASHED_AT_ONCE):
                digest.update(np.ascontiguousarray(tokens[start : start + HASHED_AT_ONCE]).data)
        return digest.hexdigest()[:32]

    def summary(self) -> DomainSummary:
        return {
            "source": self.source,
            "share": self.fraction,
            "documents": self.store.folder.documents("train", len(self.train.used)),
            "tokens": len(self.train.used),
            "heldout_documents": self.store.folder.documents("heldout", len(self.heldout.used)),
            "heldout_tokens": len(self.heldout.used),
            "held_out": sources.how_held_out(self.spec),
            "content": self.content(),
        }


class Corpus:
    """The text of a run, made by ``prepare``. Everything read from it depends on recipe, text and
    tokenizer only, not on what was cached before.
    """

    def __init__(
        self,
        spec: DataSpec,
        domains: Mapping[str, Domain],
        tokenizer: TextTokenizer,
        seed: int,
        talk: Talk,
    ) -> None:
        self._spec, self._domains, self._seed, self._talk = spec, dict(domains), seed, talk
        self._tokenizer = tokenizer.fingerprint
        self.sequence_length = spec.sequence_length
        self.bos = window_bos(spec.bos, tokenizer)
        """The id that every sequence begins with, or None."""
        self.isolated: bool = spec.documents.isolate
        """Whether documents of one sequence do not see each other."""
        self.domains: tuple[str, ...] = tuple(self._domains)
        self._summary: dict[str, DomainSummary] | None = None
        self._told: set[str] = set()

    def stream(self, seed: int | None = None) -> Stream:
        """Returns training batches from the beginning; ``seed`` defaults to that of ``prepare``."""
        return Stream(
            {name: domain.train for name, domain in self._domains.items()},
            {name: domain.fraction for name, domain in self._domains.items()},
            seed=self._seed if seed is None else seed,
            when_dry=self._spec.when_dry,
            notice=self._talk.notice,
        )

    def calibration(self, sequences: int, seed: int | None = None) -> Tensor:
        """Returns ``ids_NT`` (int64): ``sequences`` different windows of training text, mixed by
        weight.

        Tokenises more if the run itself needs less. Raises ``SourceError`` naming a domain that
        has too little text.
        """
        return self._calibration(sequences, seed)[0]

    def calibration_positions(self, sequences: int, seed: int | None = None) -> Tensor | None:
        """Returns the position of each of these tokens in its document; None if documents are not
        isolated.
        """
        return self._calibration(sequences, seed)[2]

    def _calibration(self, sequences: int, seed: int | None) -> tuple[Tensor, Tensor, Any]:
        seed = self._seed if seed is None else seed
        names = list(self._domains)
        fractions = [self._domains[name].fraction for name in names]
        counts = [0] * len(names)
        order: list[tuple[int, int]] = []
        for _ in range(sequences):
            chosen = next_domain(fractions, counts)
            order.append((chosen, counts[chosen]))
            counts[chosen] += 1
        pools = [self._pool(self._domains[name], n) for name, n in zip(names, counts, strict=True)]
        self.warn_of_copies()  # `_pool` may have read on
        rows = []
        for chosen, number in order:
            windows, key = pools[chosen], f"calibration {seed} {names[chosen]}"
            rows.append((windows, shuffled(number, windows.count, key)))
        return stacked(rows, self.sequence_length)

    def warn_of_copies(self) -> None:
        """Warns of held-out documents that are also training text of a domain, as far as both are
        tokenised; of each pair of domains once.
        """
        for source, one in self._domains.items():
            train = one.store.folder.hashes("train")
            for name, domain in self._domains.items():
                heldout = domain.store.folder.hashes("heldout")
                found = np.zeros(len(heldout), dtype=bool)
                for start in range(0, len(train), HASHED_AT_ONCE):
                    found |= np.isin(heldout, train[start : start + HASHED_AT_ONCE])
                if (pair := f"{name} {source}") not in self._told and found.any():
                    self._told.add(pair)
                    self._talk.notice(
                        f"{found.sum():,} of {len(heldout):,} held-out documents of '{name}' are "
                        f"also in the training text of '{source}': their perplexity says nothing "
                        "about new text"
                    )

    def _pool(self, domain: Domain, needed: int) -> Sequenced:
        """The training windows if they suffice, else ``CHOICE`` windows for each one needed."""
        if needed <= domain.train.count:
            return domain.train
        size = payload(self.sequence_length, self.bos)
        domain.store.ensure(CHOICE * needed * size, 0, self._talk)
        windows = _sequences(self._spec, domain.store, "train", self.bos, CHOICE * needed)
        if windows.count < needed:
            raise SourceError(
                f"calibration takes {needed} sequences of {self.sequence_length} tokens from this "
                f"domain, which has text for {windows.count}",
                where=sources.address(domain.name),
                fix="ask for fewer sequences, make them shorter or add text",
            )
        return windows

    def heldout(self, domain: str, sequences: int) -> Tensor:
        """Returns ``ids_NT`` (int64): the first ``sequences`` windows of the held-out text, or as
        many as there are, with a notice. Training text is never among them.
        """
        return self.heldout_trained(domain, sequences)[0]

    def heldout_trained(
        self, domain: str, sequences: int, behind: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The same, and a mask ``[N, T]`` of the tokens that count: no part of a prompt and, where
        documents are isolated, not the first of one. ``behind``: leaves out as many windows in
        front, as far as there are enough behind them.
        """
        return self._heldout(domain, sequences, behind)[:2]

    def heldout_positions(self, domain: str, sequences: int, behind: int = 0) -> Tensor | None:
        """The position of each of these tokens in its document; None if documents are not
        isolated.
        """
        return self._heldout(domain, sequences, behind)[2]

    def _heldout(self, domain: str, sequences: int, behind: int) -> tuple[Tensor, Tensor, Any]:
        one, asked = self._domains[domain], behind + sequences
        size = payload(self.sequence_length, self.bos)
        if asked > one.heldout.count:
            one.store.ensure(0, asked * size, self._talk)
        windows = _sequences(self._spec, one.store, "heldout", self.bos, asked)
        if windows.count < asked and (pair := f"{domain} {behind}") not in self._told:
            self._told.add(pair)
            both = f": {behind} that are evaluated, {sequences} for the mixture" if behind else ""
            self._talk.notice(
                f"domain '{domain}': held-out text ({sources.how_held_out(one.spec)}) for "
                f"{windows.count} of the {asked} sequences asked for{both}"
            )
        end = min(windows.count, asked)
        begin = min(behind, max(0, end - sequences))
        return stacked([(windows, n) for n in range(begin, end)], self.sequence_length)

    def summary(self) -> dict[str, DomainSummary]:
        """Returns sizes, origin and a hash of the tokens used, by domain."""
        if self._summary is None:  # cached: hashing reads all tokens of the run
            self._summary = {name: domain.summary() for name, domain in self._domains.items()}
        return dict(self._summary)

    @property
    def fingerprint(self) -> str:
        """Hash, equal for two runs exactly if they read the same tokens in the same mixture."""
        content = {name: (d["content"], d["share"]) for name, d in self.summary().items()}
        facts = [content, self._tokenizer, self.sequence_length, self.bos, self._spec.when_dry]
        how = self._spec.documents
        facts += ["isolated"] * how.isolate + ["one document per sequence"] * (not how.pack)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def prepare(
    spec: DataSpec,
    tokenizer: TextTokenizer,
    cache: Path,
    *,
    train_tokens: int,
    heldout_sequences: int,
    offline: bool,
    seed: int,
    progress: Callable[[str, float], None],
    notice: Callable[[str], None],
) -> Corpus:
    """Tokenises the text of a run, as far as it is not in ``cache`` yet.

    ``train_tokens`` is all that training will read: steps * batch size * sequence length, BOS
    included. ``heldout_sequences`` is per domain. ``progress`` gets a phrase and the fraction done,
    ``notice`` a sentence for the user.

    Raises ``SourceError`` naming the domain for text that is missing, unreadable, too short or out
    of reach when ``offline``, and ``RunError`` naming the folder if the cache cannot be written.
    """
    fractions = _fractions(spec)
    bos = window_bos(spec.bos, tokenizer)
    talk = Talk(offline, progress, notice)
    samples = math.ceil(train_tokens / spec.sequence_length)
    size = payload(spec.sequence_length, bos)
    domains: dict[str, Domain] = {}
    for name, fraction in fractions.items():
        own = spec.domains[name]
        # A domain is never more than one sample ahead of its fraction (see `next_domain`), but that
        # may become any other where the mixture changes.
        most = max(fraction, spec.mixture.text) if spec.mixture else fraction
        wanted = math.ceil(most * samples) + 1
        source = sources.training_source(name, own)
        validation = sources.validation_source(name, own, source)
        if source.remote and own.revision is None:
            notice(f"domain '{name}': {source.remote} has no `revision`, so its text may change")
        store = TokenStore(cache, source, validation, tokenizer, own.holdout)
        if spec.documents.pack:
            store.ensure(wanted * size, heldout_sequences * size, talk)
        else:  # which documents have a token to learn is known once all are there
            store.ensure(ALL, ALL, talk)
        for remark in store.remarks():
            notice(remark)
        train = _sequences(spec, store, "train", bos, wanted)
        heldout = _sequences(spec, store, "heldout", bos, heldout_sequences)
        asked = {"train": train_tokens, "heldout": heldout_sequences}
        for part, rows in (("train", train), ("heldout", heldout)):
            for remark in _unlearned(name, store, part, rows) if asked[part] else ():
                notice(remark)
            if asked[part] and (said := _unknown(name, tokenizer, part, rows.tokens)):
                notice(said)
            if not rows.count and (part == "train" or asked[part]):
                raise too_short(name, own, part, len(rows.tokens), spec)
        if train.count < (due := math.floor(fraction * samples)):
            then = "it will repeat" if spec.when_dry == "repeat" else "the run will stop there"
            notice(f"domain '{name}': text for {train.count} of {due} sequences; {then}")
        domains[name] = Domain(name, own, source.description, fraction, store, train, heldout)
    corpus = Corpus(spec, domains, tokenizer, seed, talk)
    corpus.warn_of_copies()
    return corpus


def _fractions(spec: DataSpec) -> dict[str, float]:
    if not spec.domains:
        raise SourceError("no domain", where="data.domains", fix="name at least one text source")
    if spec.sequence_length < 2:
        raise SourceError("a sequence needs at least 2 tokens", where="data.sequence_length")
    for name, domain in spec.domains.items():
        if not (domain.weight > 0 and math.isfinite(domain.weight)):
            raise SourceError(
                f"weight {domain.weight} is not above zero",
                where=sources.address(name),
                fix="give the domain a weight, or leave it out of the recipe",
            )
    total = math.fsum(domain.weight for domain in spec.domains.values())
    return {name: domain.weight / total for name, domain in spec.domains.items()}


def _unlearned(name: str, store: TokenStore, part: str, rows: Sequenced) -> Iterator[str]:
    """Yields the warning for sequences of prompts alone, or for documents left out because they
    would be; raises SourceError when there are no others.
    """
    if isinstance(rows, Rows):
        gone = np.setdiff1d(np.arange(len(rows.ends)), rows.numbers)
        blind, of = len(gone), f"{len(rows.ends):,} {PARTS[part]} documents"
        there = f"; the first is at {store.where(part, int(gone[0]))}" if blind else ""
        said = f"have no token to learn within {rows.length} and are left out{there}"
    else:
        blind, of = rows.untrained(), f"{rows.count:,} {PARTS[part]} sequences"
        said = "are of prompts alone, so nothing is predicted in them"
    if not blind:
        return
    if blind < (len(rows.ends) if isinstance(rows, Rows) else rows.count):
        fewer = "a longer data.sequence_length leaves fewer"
        yield f"domain '{name}': {blind:,} of {of} {said}; {fewer}"
        return
    raise SourceError(
        f"all {of} are of prompts alone: no token is to be predicted",
        where=sources.address(name),
        fix="make data.sequence_length longer than the prompts, or shorten `prompt`",
    )


def _unknown(name: str, tokenizer: TextTokenizer, part: str, tokens_T: np.ndarray) -> str:
    """Returns a warning where much of the text is a token for what the vocabulary cannot spell, of
    which nothing can be learned or measured. Raises SourceError where all of it is.
    """
    if tokenizer.unknown_id is None:
        return ""
    ids_T, trained_T = unmarked(np.asarray(tokens_T[:LOOKED_AT], dtype=np.int64))
    ends = [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None]
    text_T = ids_T[trained_T & ~np.isin(ids_T, ends)]
    unknown = int((text_T == tokenizer.unknown_id).sum())
    if not unknown or unknown < UNKNOWN * len(text_T):
        return ""
    if unknown == len(text_T):
        raise SourceError(
            f"all {unknown:,} {PARTS[part]} tokens are the unknown token",
            where=sources.address(name),
            fix="name a tokenizer that knows this script, or another text",
        )
    share = f"{unknown / len(text_T):.0%} of its {PARTS[part]} tokens are the unknown token"
    return f"domain '{name}': {share}: the tokenizer does not know this script"


def _sequences(
    spec: DataSpec, store: TokenStore, part: str, bos: int | None, wanted: int
) -> Sequenced:
    """``wanted`` packed windows, or as many as there are; or all documents, one in each."""
    tokens, ends = store.folder.tokens(part), store.folder.ends(part)
    if not spec.documents.pack:
        return rows_of(tokens, ends, spec.sequence_length, bos, store.pad)
    isolated = ends if spec.documents.isolate else None
    return windows_of(tokens, spec.sequence_length, bos, wanted, isolated)


def needs(spec: DataSpec) -> list[HubDataset]:
    """Lists the hub data sets that a recipe reads. Plain JSON."""
    return [
        {
            "domain": name,
            "hub": str(domain.hub),
            "config": domain.config,
            "revision": domain.revision,
            "splits": [s for s in (domain.split, domain.validation_split) if s],
        }
        for name, domain in spec.domains.items()
        if sources.kind_of(name, domain) == "hub"
    ]
