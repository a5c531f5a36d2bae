"""Windows, their order, the mixture, and resuming."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from byte_tokenizer import ByteTokenizer
from hypothesis import given
from hypothesis import strategies as st

from effcompress.data.stream import Windows, next_domain, shuffled, windows_of
from effcompress.errors import RunError, SourceError
from effcompress.spec import DomainSpec


@given(st.integers(1, 700), st.text(max_size=8))
def test_a_shuffle_is_a_permutation(count, key):
    assert sorted(shuffled(i, count, key) for i in range(count)) == list(range(count))


def test_shuffles_mix_and_differ_by_key():
    one = [shuffled(i, 1000, "a") for i in range(1000)]
    two = [shuffled(i, 1000, "b") for i in range(1000)]
    assert sum(x == y for x, y in zip(one, two, strict=True)) < 15
    assert abs(np.corrcoef(one, range(1000))[0, 1]) < 0.12
    first = Counter(shuffled(0, 5, str(key)) for key in range(2000))
    assert all(320 < n < 480 for n in first.values())


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=7))
def test_every_domain_has_its_share_at_all_times(weights):
    shares = [weight / sum(weights) for weight in weights]
    counts = [0] * len(shares)
    for n in range(1, 300):
        counts[next_domain(shares, counts)] += 1
        assert all(abs(c - s * n) < 1.0 + 1e-6 for c, s in zip(counts, shares, strict=True))


@pytest.mark.parametrize("bos", [None, 1])
def test_windows_tile_the_text(bos):
    text = np.arange(3, 103, dtype="<u2")
    windows = windows_of(text, 8, bos, 99)
    taken = [windows.take(n) for n in range(windows.count)]
    assert {len(ids) for ids in taken} == {8}
    inner = [ids if bos is None else ids[1:] for ids in taken]
    assert np.concatenate(inner).tolist() == text[: len(windows.used)].tolist()
    assert len(text) - len(windows.used) < 8


@pytest.mark.parametrize(
    ("policy", "adds_bos", "expected"),
    [
        ("auto", True, 1),
        ("auto", False, 0),
        ("always", False, 1),
        ("always", True, 1),
        ("never", True, 0),
    ],
)
def test_one_bos_policy_for_everything(make, jsonl, texts, policy, adds_bos, expected):
    documents = ["<s> spelled out", *texts(100)]
    domain = {"d": DomainSpec(jsonl=(jsonl("a.jsonl", documents),), holdout=0.2)}
    corpus = make(domain, ByteTokenizer(adds_bos=adds_bos), bos=policy)
    for ids in (corpus.stream(0).next(40).ids_BT, corpus.calibration(9), corpus.heldout("d", 2)):
        assert ids.shape[1] == 32
        assert ((ids == 1).sum(1) == expected).all()
        assert ((ids[:, 0] == 1) == bool(expected)).all()


def test_bos_always_needs_a_bos(make, jsonl, texts):
    tokenizer = ByteTokenizer()
    tokenizer.bos_id = None
    with pytest.raises(SourceError, match=r"data\.bos: the tokenizer has no BOS"):
        make({"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(9)),))}, tokenizer, bos="always")


@pytest.fixture
def three(jsonl, texts):
    return {
        "a": DomainSpec(jsonl=(jsonl("a.jsonl", texts(40, "a")),), weight=5.0),
        "b": DomainSpec(jsonl=(jsonl("b.jsonl", texts(30, "b")),), weight=2.0),
        "c": DomainSpec(jsonl=(jsonl("c.jsonl", texts(20, "c")),), weight=0.5),
    }


def test_an_epoch_reads_every_window_once_each_time_in_another_order(make, three):
    corpus = make({"a": three["a"]}, train_tokens=10**6)
    n = corpus.summary()["a"]["tokens"] // 32
    stream = corpus.stream(3)
    epochs = [[tuple(row.tolist()) for row in stream.next(n).ids_BT] for _ in range(3)]
    assert len(set(epochs[0])) == n
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = [tuple(row.tolist()) for row in corpus.stream(4).next(n).ids_BT]
    assert set(other) == set(epochs[0])
    assert other != epochs[0]


def test_the_mixture_and_its_labels(make, three):
    corpus = make(three, train_tokens=32 * 75)
    batch = corpus.stream(0).next(75)
    counts = Counter(batch.domains)
    assert counts == {"a": 50, "b": 20, "c": 5}
    assert [name for name, _ in batch.samples] == list(batch.domains)
    for name in three:
        numbers = [number for domain, number in batch.samples if domain == name]
        assert numbers == list(range(counts[name]))
    assert make.notices == []  # prepared for 75 sequences: none of the domains runs dry


def test_resuming_anywhere_is_bit_identical(make, three):
    rng = random.Random(5)
    sizes = [rng.randrange(1, 9) for _ in range(40)]
    stream = make(three).stream(7)
    states, batches = [], []
    for size in sizes:
        states.append(json.dumps(stream.state_dict()))
        batches.append(stream.next(size))
    for start in rng.sample(range(len(sizes)), 10):
        resumed = make(three).stream(7)
        resumed.load_state_dict(json.loads(states[start]))
        for size, batch in zip(sizes[start:], batches[start:], strict=True):
            again = resumed.next(size)
            assert again.ids_BT.equal(batch.ids_BT)
            assert again.samples == batch.samples


def test_a_position_of_other_data_is_refused(make, three):
    state = make(three).stream(7).state_dict()
    with pytest.raises(RunError, match="seed was 7, is 8"):
        make(three).stream(8).load_state_dict(state)
    with pytest.raises(RunError, match="windows was"):
        make({"a": three["a"]}).stream(7).load_state_dict(state)


def test_dry_domain_repeats_with_one_notice_per_epoch(make, three):
    corpus = make({"c": three["c"]}, train_tokens=10**6)
    n = corpus.summary()["c"]["tokens"] // 32
    assert any("domain 'c': text for" in notice for notice in make.notices)
    make.notices.clear()
    stream = corpus.stream(0)
    for _ in range(3 * n):
        stream.next(1)
    assert len(make.notices) == 2
    assert all("domain 'c'" in notice and f"{n * 32:,} tokens" in notice for notice in make.notices)


def test_dry_domain_stops(make, three):
    corpus = make(three, train_tokens=10**6, when_dry="stop")
    n = corpus.summary()["a"]["tokens"] // 32
    stream = corpus.stream(0)
    with pytest.raises(RunError) as caught:
        for _ in range(4 * n):
            before = stream.state_dict()
            stream.next(4)
    message = str(caught.value)
    assert "domain 'a' has run out" in message
    assert f"{n * 32:,} tokens" in message
    assert "when_dry" in message
    assert stream.state_dict() == before


def test_too_short_a_domain_is_named(make, jsonl):
    domain = DomainSpec(jsonl=(jsonl("a.jsonl", ["too short"]),), holdout=0.0)
    with pytest.raises(SourceError, match=r"data\.domains\.d: 10 training tokens do not fill"):
        make({"d": domain})


def test_held_out_documents_are_never_trained_on(make, jsonl, texts):
    documents = [text.ljust(63, ".") for text in texts(200, words=4)]  # one window each, with EOS
    domain = DomainSpec(jsonl=(jsonl("a.jsonl", documents * 2),), holdout=0.25)
    corpus = make({"d": domain}, train_tokens=10**6, sequence_length=64, heldout_sequences=500)
    n = corpus.summary()["d"]["tokens"] // 64
    train = {tuple(row.tolist()) for row in corpus.stream(0).next(n).ids_BT}
    held = {tuple(row.tolist()) for row in corpus.heldout("d", 500)}
    assert not train & held
    assert len(train) + len(held) == 200
    assert 25 < len(held) < 75
    assert any(f"for {2 * len(held)} of the 500" in notice for notice in make.notices)


def test_validation_files_are_the_held_out_text(make, jsonl, texts):
    valid = jsonl("v.jsonl", texts(20, "valid"))
    domain = DomainSpec(jsonl=(jsonl("a.jsonl", texts(100)),), validation=(valid,))
    corpus = make({"d": domain}, train_tokens=10**6)
    summary = corpus.summary()["d"]
    assert summary["documents"] == 100
    assert summary["held_out"] == "files: v.jsonl"
    assert ByteTokenizer().decode(corpus.heldout("d", 2)[0].tolist()).startswith("valid0 ")


def test_held_out_text_grows_on_demand_and_may_be_missing(make, jsonl, texts):
    domain = {"d": DomainSpec(jsonl=(jsonl("a.jsonl", texts(300)),), holdout=0.3)}
    corpus = make(domain, train_tokens=500, heldout_sequences=1)
    assert corpus.heldout("d", 30).shape == (30, 32)
    assert corpus.heldout("d", 30)[:1].equal(corpus.heldout("d", 1))
    none = make({"d": DomainSpec(jsonl=domain["d"].jsonl, holdout=0.0)}, train_tokens=500)
    assert none.heldout("d", 4).shape == (0, 32)
    assert any("for 0 of the 4" in notice for notice in make.notices)


def test_calibration_is_training_text_mixed_by_weight(make, three):
    corpus = make(three, train_tokens=32 * 75)
    ids = corpus.calibration(15, 1)
    assert ids.shape == (15, 32)
    assert ids.equal(make(three, train_tokens=32 * 75).calibration(15, 1))
    assert not ids.equal(corpus.calibration(15, 2))
    assert len({tuple(row.tolist()) for row in ids}) == 15
    windows = {tuple(row.tolist()) for row in corpus.stream(0).next(75).ids_BT}
    assert sum(tuple(row.tolist()) in windows for row in ids) >= 12  # one window of slack a domain


def test_calibration_without_training(make, three):
    corpus = make(three, train_tokens=0)
    assert corpus.calibration(30).shape == (30, 32)
    one, other = ({tuple(row.tolist()) for row in corpus.calibration(9, seed)} for seed in (1, 2))
    assert len(one) == 9 and len(one & other) < 9, "another seed draws other text"
    with pytest.raises(SourceError, match=r"data\.domains\.a: calibration takes"):
        corpus.calibration(5000)


def test_windows_refuse_numbers_outside():
    with pytest.raises(AssertionError):
        Windows(np.zeros(8, dtype="<u2"), 4, None, 2).take(2)


@pytest.mark.parametrize("train_tokens", [0, 10**6])
def test_calibration_is_never_held_out_text(make, jsonl, texts, train_tokens):
    documents = [text.ljust(63, ".") for text in texts(200, words=4)]  # one window each, with EOS
    domain = DomainSpec(jsonl=(jsonl("a.jsonl", documents),), holdout=0.4)
    corpus = make({"d": domain}, train_tokens=train_tokens, sequence_length=64)
    held = {tuple(row.tolist()) for row in corpus.heldout("d", 500)}
    drawn = {tuple(row.tolist()) for row in corpus.calibration(40)}
    assert len(held) > 50 and len(drawn) == 40
    assert not drawn & held


def test_the_seed_of_the_run_is_the_default(make, three):
    run, other = make(three, seed=5), make(three, seed=6)
    assert run.stream().next(20).ids_BT.equal(other.stream(5).next(20).ids_BT)
    assert not run.stream().next(20).ids_BT.equal(other.stream().next(20).ids_BT)
    assert run.calibration(9).equal(other.calibration(9, 5))
    assert not run.calibration(9).equal(other.calibration(9))


def test_domains_are_shuffled_independently(make, jsonl, texts):
    one, two = (DomainSpec(jsonl=(jsonl(f"{tag}.jsonl", texts(60, tag)),)) for tag in "xy")
    corpus = make({"x": one, "y": two}, train_tokens=32 * 80)
    order: dict[str, list[int]] = {"x": [], "y": []}
    for name, domain in corpus._domains.items():
        place = {tuple(domain.train.take(n).tolist()): n for n in range(domain.train.count)}
        batch = corpus.stream(0).next(60)
        rows = zip(batch.ids_BT, batch.domains, strict=True)
        order[name] = [place[tuple(ids.tolist())] for ids, whose in rows if whose == name]
    assert len(order["x"]) == len(order["y"]) == 30
    assert order["x"] != order["y"]


def test_a_fingerprint_depends_on_everything_that_is_read(make, three):
    def of(domains=three, **options):
        return make(domains, **{"train_tokens": 32 * 40, **options}).fingerprint

    heavier = {**three, "c": DomainSpec(jsonl=three["c"].jsonl, weight=0.6)}
    same = of()
    assert same == of() == of(seed=9)
    found = {same, of(sequence_length=16), of(bos="always"), of(when_dry="stop"), of(heavier)}
    held = {name: replace(domain, holdout=0.5) for name, domain in three.items()}
    found |= {of(held), of(held, heldout_sequences=1), of({"a": three["a"], "b": three["b"]})}
    assert len(found) == 8
    # All text is read, so that the hash of the tokens is the same: only the mixture differs.
    assert of(train_tokens=10**6) != of(heavier, train_tokens=10**6)
