"""The commands of docs/own_model.md, typed one after the other beside a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from effcompress.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "own_model.md").read_text("utf-8")
STEPS = PAGE.split("## Step by step")[1].split("## The rules")[0]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", STEPS, flags=re.DOTALL)
    for line in block.splitlines()
]
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa "
SMALL = {"init": ["--tokenizer", "bytes", "--tokens", "4000"]}
"""What the small model needs beside the words of the page: it has no tokenizer, and no hour."""


def typed(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = shlex.split(line)[1:]
    with pytest.raises(SystemExit) as ended:
        main([*words, *SMALL.get(words[0], [])])
    said = capsys.readouterr()
    assert ended.value.code == 0, f"{line}: {said.err}"
    return said.out


def test_the_steps(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape: Any = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 96}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(home / "my-model")
    for domain in ("web", "code"):
        (home / "texts" / domain).mkdir(parents=True)
        rows = [{"text": f"{domain} {i} {WORDS * 4}"} for i in range(250)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (home / "texts" / domain / "part.jsonl").write_text(text)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", STEPS, flags=re.DOTALL)
    (home / "random.yaml").write_text(yaml)
    verbs = [shlex.split(line)[1] for line in COMMANDS]
    assert verbs == ["init", "check", "plan", "run", "run", "compare"]
    for line in COMMANDS:
        typed(line, capsys)
    for named in ("runs/mine/report.html", "comparisons/mine/comparison.html", "mine.yaml"):
        assert named in STEPS and (home / named).is_file()
    assert "finished" in typed("effcompress status runs/mine", capsys)
    assert "# " in (home / "mine.yaml").read_text()
