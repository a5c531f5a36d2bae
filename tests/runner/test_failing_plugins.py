"""A plugin of any kind that raises, or returns something that its kind does not: three lines with
the plugin's file and line, wherever in a run it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from effcompress.cli import main
from tests.runner.toys import recipe

CALIBRATED = {
    "prune.measure": "{source: calibration, sequences: 2}",
    "prune.schedule": "{name: once, at: 0}",
}
DECIDES = "@schedule('bad', check={0})\ndef s(step: int):\n    return Due(params=1)\n"
PLAYED = "@selector('bad', observe={0})\ndef s(score_K: Tensor):\n    return score_K\n"
ZEROS = "@sparsifier('bad', check={0})\ndef s(weight: Tensor):\n    return weight\n"
OPENS = "@gate('bad', check={0})\ndef g(logit: Tensor, uniform: Tensor):\n    return logit, logit\n"
GATED = {
    "prune.criterion": "learned_gates",
    "prune.gates": "{gate: bad, constraint: lagrangian}",
    "prune.space": "[ffn]",
    "prune.schedule": "at_end",
    "prune.target": "{shape: {ffn: 32}}",
    "train.tokens": "null",
    "train.stages": "{pruning: 1024, continued: 512}",
}
SPARSE = "{method: bad, sparsity: 50%}"
STATED = "@criterion('bad')\ndef c(weight: Tensor, stat: Tensor):\n    return weight\n"

Settings = Mapping[str, str]
KINDS: dict[str, tuple[str, str, Settings]] = {
    "criterion": ("@criterion('bad')", "weight: Tensor", {"prune.criterion": "bad"}),
    "criterion of masks": (
        "@criterion('bad')",
        "mask_grad: Tensor",
        {
            **{"prune.criterion": "bad", "prune.space": "[attention, ffn]"},
            "prune.schedule": "{name: continuous, every: 1, groups: 3}",
        },
    ),
    "criterion of inputs": (
        "@criterion('bad')",
        "weight: Tensor, input_norm: Tensor",
        {"prune.criterion": "bad", "prune.space": "[attention, ffn]", **CALIBRATED},
    ),
    "criterion of layers": (
        "@criterion('bad')",
        "layer: int",
        {
            **{"prune.criterion": "bad", "prune.space": "[{name: layer, minimum: 1}]"},
            **{**CALIBRATED, "prune.target": "{keep: 65.4%}"},
        },
    ),
    "statistic": (
        STATED + "\n@statistic('stat')",
        "x: Tensor",
        {"prune.criterion": "bad", "prune.space": "[attention, ffn]", **CALIBRATED},
    ),
    "reduction": (
        "@reduction('bad')",
        "sums_MG: Tensor",
        {"prune.reduce": "{members: bad}"},
    ),
    "hessian": (
        "@hessian('bad')",
        "weight: Tensor, grad: Tensor",
        {"prune.criterion": "taylor_second", "prune.hessian": "bad"},
    ),
    "hessian of calibration": (
        "@hessian('bad')",
        "weight: Tensor, grad: Tensor",
        {"prune.criterion": "taylor_second", "prune.hessian": "bad", **CALIBRATED},
    ),
    "space": ("@space('bad')", "axes: AxisMap", {"prune.space": "[bad]"}),
    "schedule": ("@schedule('bad')", "step: int", {"prune.schedule": "bad"}),
    "schedule's check": (DECIDES, "total_tokens: int", {**CALIBRATED, "prune.schedule": "bad"}),
    "selector": ("@selector('bad')", "score_K: Tensor", {"prune.selector": "bad"}),
    "selector's observe": (PLAYED, "widths: dict", {"prune.selector": "bad"}),
    "repair of norms": (
        "@repair('bad')",
        "gain: Tensor, epsilon: float, before: int, after: int",
        {"prune.repair": "[bad]"},
    ),
    "repair of layers": (
        "@repair('bad')",
        "weight: Tensor, gram: Tensor, gone: Tensor",
        {"prune.repair": "[bad]"},
    ),
    "refit": (
        "@refit('bad')",
        "weight: Tensor, gram: Tensor",
        {"prune.refit": "bad", **CALIBRATED},
    ),
    "gate": ("@gate('bad')", "logit: Tensor, uniform: Tensor", GATED),
    "gate's check": (OPENS, "limit: float", {**GATED, "prune.target": "{shape: {ffn: 32}}"}),
    "constraint": (
        "@constraint('bad')",
        "expected: Tensor, target: Tensor",
        {**GATED, "prune.gates": "{gate: hard_concrete, constraint: bad}"},
    ),
    "mixture": (
        "@mixture('bad')",
        "weights: Tensor, losses: Tensor",
        {"data.mixture": "{name: bad, every: 1, reference: {letters: 4.5, numbers: 3.5}}"},
    ),
    "sparsifier": ("@sparsifier('bad')", "weight: Tensor", {"sparsify": SPARSE, **CALIBRATED}),
    "sparsifier's check": (ZEROS, "sparsity: float", {"sparsify": SPARSE, **CALIBRATED}),
}
HEAD = "from torch import Tensor\nimport effcompress\nfrom effcompress import *\n"
ANSWERS = {
    "raises": ("{}['nothing']", "fails: KeyError: 'nothing'"),
    "returns": ("return object()", "return"),
    "yields": ("yield object()", "return"),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_plugin_that_fails_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, answer: str
) -> None:
    torch.set_num_threads(1)
    above, parameters, settings = KINDS[kind]
    body, said = ANSWERS[answer]
    asked = f"def bad({parameters}):\n    {body}\n"
    if "{0}" in above:
        text = f"{HEAD}\n{asked}\n{above.format('bad')}"
    else:
        text = f"{HEAD}\n{above}\n{asked}"
    file = tmp_path / "mine.py"
    file.write_text(text)
    extra = [f"plugins=[{file}]", *(f"{key}={value}" for key, value in settings.items())]
    options = [part for one in extra for part in ("--set", one)]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe(tmp_path)), "--output", str(tmp_path / "out"), *options])
    lines = capsys.readouterr().err.splitlines()
    shown = "\n".join(lines)
    at = text.splitlines().index(f"    {body}") + 1 if answer == "raises" else None
    wrong = f"{file}:{at}: " if at else f"{file}:"
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert ended.value.code == 2, shown
    assert wrong in error and "'bad'" in error.replace("'stat'", "'bad'") and said in error, shown
    assert len(lines) - lines.index(error) <= 3 and "Traceback" not in shown, shown
