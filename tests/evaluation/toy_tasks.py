"""Arrow files in the form in which the carrying package has the eight tasks, made up here."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from effcompress.spec import CARRIED

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath")


def _choices(rng: random.Random) -> list[str]:
    """Answers of different lengths, so that dividing by the length matters."""
    return [" ".join(rng.choices(WORDS, k=count)) for count in rng.sample(range(1, 5), 4)]


def _arc(rng: random.Random) -> dict[str, Any]:
    choices = {"text": _choices(rng), "label": ["A", "B", "C", "D"]}
    return {"id": "x", "question": _said(rng), "choices": choices, "answerKey": rng.choice("ABCD")}


def _said(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=4))


def _boolq(rng: random.Random) -> dict[str, Any]:
    return {"question": _said(rng), "answer": rng.random() < 0.5, "passage": _said(rng)}


def _hellaswag(rng: random.Random) -> dict[str, Any]:
    return {
        "ind": 0,
        "activity_label": "Walking",
        "ctx_a": _said(rng),
        "ctx_b": "then",
        "ctx": "",
        "endings": _choices(rng),
        "source_id": "",
        "split": "val",
        "split_type": "",
        "label": str(rng.randrange(4)),
    }


def _openbookqa(rng: random.Random) -> dict[str, Any]:
    arc = _arc(rng)
    return {"id": "x", "question_stem": arc.pop("question"), **arc}


def _piqa(rng: random.Random) -> dict[str, Any]:
    one, two = _choices(rng)[:2]
    return {"goal": _said(rng), "sol1": one, "sol2": two, "label": rng.randrange(2)}


def _winogrande(rng: random.Random) -> dict[str, Any]:
    one, two = rng.sample(WORDS, 2)
    sentence = f"{_said(rng)} _ {_said(rng)}."
    return {"sentence": sentence, "option1": one, "option2": two, "answer": rng.choice("12")}


def _sciq(rng: random.Random) -> dict[str, Any]:
    names = ("distractor1", "distractor2", "distractor3", "correct_answer")
    answers = dict(zip(names, _choices(rng), strict=True))
    return {"question": _said(rng), **answers, "support": _said(rng)}


MAKERS = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "boolq": _boolq,
    "hellaswag": _hellaswag,
    "openbookqa": _openbookqa,
    "piqa": _piqa,
    "winogrande": _winogrande,
    "sciq": _sciq,
}


def documents(name: str, count: int = 12) -> list[dict[str, Any]]:
    """The same every time."""
    rng = random.Random(f"toy {name}")
    return [MAKERS[name](rng) for _ in range(count)]


def write(folder: Path, count: int = 12) -> dict[str, Path]:
    """One Arrow file per task."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: folder / f"{name}.arrow" for name in MAKERS}
    for name, path in found.items():
        table = pa.Table.from_pylist(documents(name, count))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    return found


def wheel(folder: Path, *, leave_out: str = "") -> Path:
    """What pip would have downloaded."""
    path = folder / "toy_tasks-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, file in write(folder / "parts").items():
            if name != leave_out:
                archive.write(file, CARRIED[name])
    return path
