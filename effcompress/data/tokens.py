"""Tokenises text once, chunk by chunk and only as far as a run needs; continues where the last run
or crash stopped.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effcompress.data.chat import written
from effcompress.data.folder import FORMAT, PARTS, Pass, Piece, TokenFolder
from effcompress.data.sources import Record, Source, address
from effcompress.data.stream import marked
from effcompress.errors import SourceError
from effcompress.types import TextTokenizer

Ids = NDArray[np.int64]
CHUNK_CHARACTERS = 1 << 20
"""Text tokenised between two commits to the cache: under a second of work."""
CHUNK_RECORDS = 8192


@dataclass(frozen=True)
class Talk:
    """Whether the network may be used; ``progress`` gets a phrase and the fraction done, ``notice``
    a sentence for the user.
    """

    offline: bool
    progress: Callable[[str, float], None]
    notice: Callable[[str], None]


class TokenStore:
    """The tokens of one domain: ``train`` and ``heldout``, each in the order of its source.

    Every document is followed by EOS, if the tokenizer has one; that behind an answer is the one
    that stops generation. The cache is always a prefix of the
    source (``folder``), so what a caller reads does not depend on how much was cached before.
    """

    def __init__(
        self,
        cache: Path,
        training: Source,
        validation: Source | None,
        tokenizer: TextTokenizer,
        holdout: float,
    ) -> None:
        self._sources = {"training": training}
        if validation is not None:
            self._sources["validation"] = validation
            holdout = 0.0
        self._tokenizer, self._holdout = tokenizer, holdout
        self._chat = "chat" in training.identity
        if self._chat and tokenizer.template is None:
            raise SourceError(
                "the tokenizer has no chat template to write conversations with",
                where=f"{address(training.domain)}.chat",
                fix="name a tokenizer with one (model.tokenizer), or use `text:` and `prompt:`",
            )
        # Prompt tokens are stored as their bitwise complement (`stream.marked`): a signed type.
        self._prompted = self._chat or "prompt" in training.identity
        # An answer ends with what stops generation, which a separator of documents need not be.
        self._eos = tokenizer.stop_id if self._prompted else tokenizer.eos_id
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        dtype = "<i4" if self._prompted else dtype
        template = {"template": tokenizer.template} if self._chat else {}
        facts = {
            "format": FORMAT,
            "sources": {name: dict(source.identity) for name, source in self._sources.items()},
            "tokenizer": tokenizer.fingerprint,
            "eos": self._eos,
            **template,
            "holdout": holdout,
            "dtype": dtype,
        }
        text = json.dumps(facts, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:32]
        # As the manifest will hold them: of a tuple, JSON makes a list.
        kept = json.loads(text)
        self.folder = TokenFolder(cache / "tokens" / self.key, kept, tuple(self._sources))

    def ensure(self, train: int, heldout: int, talk: Talk) -> None:
        """Tokenises until there are ``train`` and ``heldout`` tokens or the source is exhausted. A
        damaged cache is rebuilt, with a notice.

        Raises ``SourceError`` for text that cannot be read, or if the network is needed and
        ``offline`` forbids it; ``RunError`` if the cache folder cannot be written.
        """
        domain = self._sources["training"].domain
        if problem := self.folder.load():
            talk.notice(f"domain '{domain}': rebuilding {self.folder.path}: {problem}")
        wanted = {"training": {"train": train}, "validation": {"heldout": heldout}}
        if self._holdout > 0:
            wanted["training"]["heldout"] = heldout
        for name in self._sources:
            if self._missing(name, wanted[name]):
                self._advance(name, wanted[name], talk)

    def _missing(self, name: str, wanted: dict[str, int]) -> bool:
        state = self.folder.passes[name]
        return not state.done and any(state.tokens[part] < n for part, n in wanted.items())

    def _advance(self, name: str, wanted: dict[str, int], talk: Talk) -> None:
        source = self._sources[name]
        if source.remote and talk.offline:
            raise SourceError(
                f"hub data set '{source.remote}' is not in the cache as far as this run needs it",
                where=address(source.domain),
                fix="run 'effcompress fetch RECIPE' where there is a network",
            )
        phrase = f"tokenising {source.domain}"
        with closing(source.records(self.folder.passes[name].records)) as records:
            while self._missing(name, wanted):
                state, pieces = self._tokenise(name, _chunk(records))
                self.folder.append(name, state, pieces)
                have = self.folder.passes[name].tokens
                done = min(1.0, *(have[part] / n for part, n in wanted.items() if n))
                talk.progress(phrase, done)
        talk.progress(phrase, 1.0)

    def _tokenise(self, name: str, chunk: list[Record]) -> tuple[Pass, dict[str, Piece]]:
        state = self.folder.passes[name]
        if not chunk:
            return replace(state, done=True), {}
        full = [record for record in chunk if record.text.strip()]
        empty = [record.where for record in chunk if not record.text.strip()]
        holdout = 1.0 if name == "validation" else self._holdout
        sides = [side_of(record, holdout)[0] for record in full]
        arrays = self._marked(full) if self._prompted else self._plain(full)
        # A text that spells the BOS token gives windows with two; counted before EOS is appended.
        bos, eos = self._tokenizer.bos_id, self._eos
        counts = (int(np.count_nonzero(ids == bos)) for ids in arrays)
        inside = 0 if bos is None or self._chat else sum(counts)
        if eos is not None:
            arrays = [np.append(ids, self._ending(ids, eos)) for ids in arrays]
        pieces = {}
        for part in PARTS:
            here = [n for n, side in enumerate(sides) if side == part]
            if here:
                mine = [arrays[n] for n in here]
                hashes = np.array([text_hash(full[n]) for n in here], dtype=np.uint64)
                lengths = np.array([len(ids) for ids in mine])
                pieces[part] = Piece(np.concatenate(mine), lengths, hashes)
        after = replace(
            state,
            records=state.records + len(chunk),
            empty=state.empty + len(empty),
            first_empty=state.first_empty or (empty[0] if empty else ""),
            bos_inside=state.bos_inside + inside,
        )
        return after, pieces

    def _plain(self, records: list[Record]) -> list[Ids]:
        return [self._array(ids) for ids in self._tokenizer.encode([r.text for r in records])]

    def _marked(self, records: list[Record]) -> list[Ids]:
        """Tokens of prompt and text, or of a conversation, taken together as a model reads them; a
        token without a character of a text or answer is marked.
        """
        texts = [(r.prompt + r.text, [(len(r.prompt), len(r.prompt + r.text))]) for r in records]
        if self._chat:
            texts = [written(r.turns, self._tokenizer, r.where) for r in records]
        found = self._tokenizer.offsets([text for text, _ in texts], special=self._chat)
        arrays: list[Ids] = []
        for (ids, offsets), (_, spans) in zip(found, texts, strict=True):
            array, at_T2 = self._array(ids), np.array(offsets, dtype=np.int64).reshape(-1, 2)
            inside = [(at_T2[:, 0] < end) & (at_T2[:, 1] > start) for start, end in spans]
            learned = np.any(inside, axis=0) if inside else np.zeros(len(array), dtype=bool)
            array = np.where(learned, array, marked(array))
            if self._chat and self._tokenizer.adds_bos and ids[:1] == [self._tokenizer.bos_id]:
                array = array[1:]  # the template's own; `data.bos` puts one in front of sequences
            arrays.append(array)
        return arrays

    def _ending(self, ids: Ids, eos: int) -> int:
        """EOS, marked behind a conversation whose answers the template itself ends."""
        learned = ids[ids >= 0]
        ended = self._chat and (not len(learned) or int(learned[-1]) in self._tokenizer.special)
        return ~eos if ended else eos

    def _array(self, ids: list[int]) -> Ids:
        array = np.asarray(ids, dtype=np.int64)
        if array.size and not 0 <= int(array.max()) < self._tokenizer.vocab_size:
            raise SourceError(
                f"the tokenizer gave the id {array.max()}, but says that its vocabulary has "
                f"{self._tokenizer.vocab_size} entries"
            )
        return array

    @property
    def pad(self) -> int:
        """A token for padding: EOS, where there is one."""
        return self._eos or 0

    def where(self, part: str, number: int) -> str:
        """The address of a document of a part; reads the source up to it."""
        name = "validation" if part == "heldout" and "validation" in self._sources else "training"
        holdout = 1.0 if name == "validation" else self._holdout
        with closing(self._sources[name].records(0)) as records:
            full = (record for record in records if record.text.strip())
            mine = (record.where for record in full if side_of(record, holdout)[0] == part)
            return next(islice(mine, number, None))

    def remarks(self) -> list[str]:
        """Notices about the text read so far, one sentence each."""
        found = []
        for name, state in self.folder.passes.items():
            source = self._sources[name]
            if state.empty:
                found.append(
                    f"domain '{source.domain}': {state.empty} of {state.records} {name} records "
                    f"were empty and left out, the first at {state.first_empty}"
                )
            if state.bos_inside:
                found.append(
                    f"domain '{source.domain}': the {name} text spells the BOS token "
                    f"{state.bos_inside} times; windows with it have more than one"
                )
        return found


def _chunk(records: Generator[Record, None, None]) -> list[Record]:
    chunk: list[Record] = []
    size = 0
    for record in islice(records, CHUNK_RECORDS):
        chunk.append(record)
        size += len(record.text)
        if size >= CHUNK_CHARACTERS:
            break
    return chunk


def side_of(record: Record, holdout: float) -> tuple[str, int]:
    """Returns the part that a document belongs to (`heldout` for this fraction of documents), and
    its bytes with the prompt.

    Decided by a hash of its text, so copies of a document are on the same side whatever the order
    and number of files. Raises ``SourceError`` for lone surrogates, which JSON can escape and no
    tokenizer accepts.
    """
    try:
        text = (record.prompt + record.text).encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"the text is not valid Unicode ({error})"
        raise SourceError(what, where=record.where, fix="remove this record") from error
    # A 64-bit hash, uniform on [0, 2^64).
    return "heldout" if _hash(text) < holdout * 2**64 else "train", len(text)


def text_hash(record: Record) -> int:
    """Returns a 64-bit hash of a document that is equal for copies: how much whitespace there is,
    the order of lines, case, and which Unicode form a character has do not count.
    """
    text = unicodedata.normalize("NFKC", f"{record.prompt}{record.text}").casefold()
    lines = sorted(" ".join(line.split()) for line in text.strip().splitlines())
    return _hash("\n".join(lines).encode())


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
