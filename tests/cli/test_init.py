"""``effcompress init``: from a model and a text to a recipe that passes `check`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from effcompress import load_recipe, run
from effcompress.cli import main
from effcompress.commands.init import drafts_of
from effcompress.commands.machine import GPUS, machine_of
from effcompress.errors import SourceError
from effcompress.estimate.lengths import lengths_of, sequence_of, total_of
from effcompress.runner.preflight import preflight

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa "
USUAL = ["--model", "model", "--tokenizer", "bytes", "--text", "mine.jsonl"]
RECIPES = Path(__file__).parents[2] / "recipes"
METHODS = sorted(drafts_of().keys() - {"base", "once"})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small model and texts of every format, which is the current one."""
    shape: Any = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
    }
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(tmp_path / "model")
    rows = [{"id": str(i), "content": f"{i} {WORDS * 4}"} for i in range(300)]
    lines(tmp_path / "mine.jsonl", rows)
    for domain in ("web", "code"):
        (tmp_path / "texts" / domain).mkdir(parents=True)
        for part, many in (("train", 250), ("validation", 20)):
            given = [{"text": f"{part} {domain} {i} {WORDS * 4}"} for i in range(many)]
            lines(tmp_path / "texts" / domain / f"{part}.jsonl", given)
    (tmp_path / "book.txt").write_text("\n\n".join(f"{i} {WORDS * 9}" for i in range(90)))
    columns = {"n": [*range(300)], "body": [f"{i} {WORDS * 4}" for i in range(300)]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def init(*more: str, text: str = "mine.jsonl", keep: str = "70%", out: str = "model.yaml") -> Path:
    base = ["init", "--model", "model", "--tokenizer", "bytes", "--text", text, "--keep", keep]
    with pytest.raises(SystemExit) as ended:
        main([*base, *more])
    assert ended.value.code == 0
    return Path(out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["init", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_two_commands_and_no_editing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = init("--tokens", "8000")
    said = capsys.readouterr().out
    assert "Next: effcompress run model.yaml" in said and "training FLOPs" in said
    recipe = load_recipe(path).recipe
    assert recipe.data.domains["mine"].text == "content" and recipe.prune
    assert recipe.data.domains["mine"].jsonl[0].resolve() == home / "mine.jsonl"
    done = run(load_recipe(path), output=home / "out")
    assert done.params == pytest.approx(0.7 * sum_of(home), rel=0.005)


def sum_of(home: Path) -> int:
    return sum(p.numel() for p in LlamaForCausalLM.from_pretrained(home / "model").parameters())


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("method", "tokens"),
    # EfficientLLM prunes while it trains.
    [(m, "20k") for m in METHODS] + [(m, "0") for m in METHODS if "efficientllm" not in m],
)
def test_every_draft_passes_check(method: str, tokens: str) -> None:
    path = init("--method", method, "--tokens", tokens)
    preflight(load_recipe(path), offline=True)
    numbers = [x for x in path.read_text().splitlines() if re.search(r"(peak|batch_size): \d", x)]
    assert all("#" in line for line in numbers if not line.startswith("evaluate"))


def source_of_quickstart(folder: Path, shape: Any) -> None:
    """The folder of a model of the shape that the quickstart states; its weights are a hole in a
    file, of which `init` and `check` read the header.
    """
    config = LlamaConfig(**{k: v for k, v in shape.items() if k != "model_type"})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    header, end = dict[str, Any](), 0
    for name, tensor in model.named_parameters():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": [*tensor.shape], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.usefixtures("home")
def test_the_quickstart_is_what_best_recommends() -> None:
    """Model, size, tokens and text formats of recipes/quickstart.yaml: `init` makes its choices."""
    quick = load_recipe(RECIPES / "quickstart.yaml").recipe
    assert quick.prune and quick.train and quick.model.shape
    source_of_quickstart(Path("model"), quick.model.shape)
    path = init("--tokens", str(quick.train.tokens), text="texts", keep="90.13%")
    mine = load_recipe(path).recipe
    assert mine.prune and mine.train and mine.recover is None
    for field in ("criterion", "schedule", "repair", "refit"):
        assert getattr(mine.prune, field) == getattr(quick.prune, field), field
    assert mine.prune.measure.source == quick.prune.measure.source == "calibration"
    for field in ("tokens", "stages", "learning_rate", "weight_decay"):
        assert getattr(mine.train, field) == getattr(quick.train, field), field
    said = path.read_text()
    assert "# The method (provisional): with fewer than 50,000 tokens, a cut at once" in said
    assert "lower, as fewer than 50,000 tokens follow" in said


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("tokens", "same", "said"),
    [
        ("0", "one_shot", "without training, a cut at once and a refit: one_shot"),
        ("49999", "once_and_train", "a refit, then training: once_and_train"),
        ("50k", "once_and_train", "(provisional): a cut at once, a refit, then training"),
    ],
)
def test_best_follows_the_tokens(tokens: str, same: str, said: str) -> None:
    best = init("--tokens", tokens, "--output", "best.yaml", out="best.yaml")
    assert said in best.read_text() and "docs/own_model.md" in best.read_text()
    named = init("--tokens", tokens, "--method", same, "--output", "named.yaml", out="named.yaml")
    one, other = load_recipe(best).recipe, load_recipe(named).recipe
    assert (one.prune, one.train, one.recover) == (other.prune, other.train, other.recover)
    assert "The method (provisional)" not in named.read_text()


def of_kind(home: Path, kind: str) -> None:
    """Puts a small model of another type in place of the Llama."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    if kind == "bloom":
        heads = {"n_head": 4, "n_layer": 2}
    shape = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2}
    config = AutoConfig.for_model(kind, **shape, **heads, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(home / "model")


@pytest.mark.parametrize(
    ("kind", "method", "space", "repair"),
    [
        ("qwen3", "flap", ["attention", "ffn"], []),
        ("bloom", "flap", ["ffn"], ["bias_mean"]),
        ("bloom", "llm_pruner", ["ffn"], []),
    ],
)
def test_published_methods_fit_the_class(
    kind: str, method: str, space: list[str], repair: list[str], home: Path
) -> None:
    of_kind(home, kind)
    path = init("--tokens", "20k", "--method", method, keep="85%")
    found = load_recipe(path).recipe.prune
    assert found and [s.name for s in found.space] == space
    assert [r.name for r in found.repair] == repair
    assert ("those are lost here" in path.read_text()) == (kind == "qwen3")


@pytest.mark.parametrize(
    ("kind", "tokens", "refit", "said"),
    [
        ("qwen3", "0", "least_squares", "this class has no place for biases"),
        ("qwen3", "60k", "least_squares", "this class has no place for biases"),
        ("qwen3", "20k", "least_squares", "damped because training follows"),
        ("gemma2", "0", None, "No refit follows: norms lie behind the projections"),
        ("gemma2", "20k", None, "No refit follows: norms lie behind the projections"),
        ("gemma2", "60k", None, "where a refit is not possible, cuts while it trains"),
        ("bloom", "60k", "least_squares_bias", "held-out calibration text"),
    ],
)
def test_best_fits_the_class(
    kind: str, tokens: str, refit: str | None, said: str, home: Path
) -> None:
    """Classes without places for biases, with norms behind projections, with heads that stay."""
    of_kind(home, kind)
    path = init("--tokens", tokens, keep="85%")
    found = load_recipe(path).recipe
    assert found.prune and said in path.read_text()
    assert (found.prune.refit.name if found.prune.refit else None) == refit
    assert ("attention" in [s.name for s in found.prune.space]) == (kind != "bloom")
    rule = next(
        line for line in path.read_text().splitlines() if "The method (provisional)" in line
    )
    assert ("a refit" in rule) == (refit is not None or "not possible" in rule)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("book.txt", 'book: {txt: ["book.txt"], holdout: "15%"}'),
        ("t.parquet", 't: {parquet: ["t.parquet"], text: "body"}'),
        ("hub:some/corpus:en", 'corpus: {hub: "some/corpus", config: "en"}'),
        ("own=mine.jsonl", 'own: {jsonl: ["mine.jsonl"], text: "content"}   # about'),
        ("texts", 'validation: ["texts/code/validation.jsonl"]}'),
    ],
)
def test_texts_are_looked_at(text: str, said: str) -> None:
    assert said in init("--tokens", "20k", text=text).read_text()


def test_conversations_are_seen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talks = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i} {WORDS}"}]
        for i in range(300)
    ]
    lines(home / "talk.jsonl", [{"id": i, "messages": turns} for i, turns in enumerate(talks)])
    said = refused(capsys, *USUAL[:4], "--text", "talk.jsonl", "--keep", "70%")
    assert "data.domains.talk.chat: the tokenizer has no chat template" in said
    assert not Path("model.yaml").exists()


def test_what_cannot_be(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "say how small" in refused(capsys, *USUAL)
    assert "say how small" in refused(capsys, *USUAL, "--keep", "70%", "--params", "10k")
    assert "no draft 'bset'" in refused(capsys, *USUAL, "--keep", "70%", "--method", "bset")
    assert "'best'" in refused(capsys, *USUAL, "--keep", "70%", "--method", "bset")
    assert "no such file" in refused(capsys, *USUAL[:4], "--text", "gone.jsonl", "--keep", "70%")
    assert "no such folder" in refused(capsys, "--model", "./gone", *USUAL[2:], "--keep", "70%")
    assert "H100" in refused(capsys, *USUAL, "--keep", "70%", "--budget", "8 x H1000, 2 h")
    assert "'7x' is not" in refused(capsys, *USUAL, "--keep", "7x")
    assert "always remain" in refused(capsys, *USUAL, "--keep", "1%")
    lines(home / "odd.jsonl", [{"n": 1}])
    assert "no field holds text; there are: n" in refused(
        capsys, *USUAL[:4], "--text", "odd.jsonl", "--keep", "70%"
    )
    (home / "broken.jsonl.gz").write_bytes(b"no gzip")
    broken = refused(capsys, *USUAL[:4], "--text", "broken.jsonl.gz", "--keep", "70%")
    assert "broken.jsonl.gz" in broken and "Traceback" not in broken
    assert not Path("model.yaml").exists()
    Path("model.yaml").write_text("mine")
    assert "exists already" in refused(capsys, *USUAL, "--keep", "70%")
    assert Path("model.yaml").read_text() == "mine"


def test_budgets() -> None:
    found = machine_of("8 x H100, 24 h")
    assert (found.number, found.memory, found.seconds) == (8, 80e9, 86400)
    assert found.operations == pytest.approx(8 * 989e12 * 86400 * 0.4)
    assert machine_of("2*NVIDIA GeForce RTX 4090, 1.5 days").seconds == 129600
    assert machine_of("a100-40gb").memory == 40e9 and machine_of("A100").seconds == 0
    assert all(machine_of(name).name == name for name in GPUS)
    for bad in ("", "8 x", "0 x H100", "many H100"):
        with pytest.raises(SourceError):
            machine_of(bad)


def test_lengths_by_hand() -> None:
    assert sequence_of(None, 300)[0] == 512 and sequence_of(100, 300)[0] == 64
    assert sequence_of(8192, 9000) == (
        2048,
        "documents have about 9k tokens; longer ones are split",
    )
    assert sequence_of(None, 3)[0] == 128
    assert total_of(5000, 1e9, 1e3, 10)[0] == 5000
    assert total_of(None, 0, 1e6, 10**9) == (10**6, "one pass over the text")
    assert total_of(None, 1e12, 1e6, 10**9) == (4 * 10**6, "4 passes over the text")
    assert total_of(None, 3e6, 1e6, 10**9)[0] == 3 * 10**6
    assert total_of(None, 0, float("inf"), 10**6)[0] == 20 * 10**6
    small = lengths_of((256, ""), (60_000, ""), 135_000_000, 1)
    assert (small.batch, small.rate, small.steps) == (1, 2e-4, 234)  # 3834 / 7.5 = 511 tokens
    few = lengths_of((256, ""), (49_999, ""), 135_000_000, 1)
    assert few.few and not small.few and few.rate == pytest.approx(7e-5)
    assert small.stages(0.7) == (6000, 18000, 36000) and small.stages(0.5)[1] == 24000
    large = lengths_of((2048, ""), (10**9, ""), 1_700_000_000, 8)
    assert (large.batch, large.rate, large.steps) == (256, 1e-4, 1907)
