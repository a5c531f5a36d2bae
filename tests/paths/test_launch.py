"""The batch file of docs/launch.md, with stand-ins for ``srun`` and ``scontrol``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from effcompress.cli import main
from tests.runner.toys import events, recipe

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this
PAGE = (Path(__file__).parents[2] / "docs" / "launch.md").read_text()
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"$@"\n'
SCONTROL = '#!/bin/bash\necho "$@" >> "$REQUEUED"\n'
COMMAND = '#!/bin/bash\nexec "{python}" -m effcompress "$@"\n'


def batch_file() -> str:
    (found,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE, flags=re.DOTALL)
    return found


def test_the_batch_file_goes_on_until_the_run_has_finished(tmp_path: Path) -> None:
    path, out, tools = recipe(tmp_path), tmp_path / "out", tmp_path / "bin"
    tools.mkdir()
    commands = {"srun": SRUN, "scontrol": SCONTROL, "effcompress": COMMAND}
    for name, text in commands.items():
        (tools / name).write_text(text.format(python=sys.executable) if "{" in text else text)
        (tools / name).chmod(0o755)
    script = re.sub("(?m)^recipe=.*", f"recipe={path}", batch_file())
    script = re.sub("(?m)^run=.*", f"run={out}", script)
    assert str(path) in script and str(out) in script
    queue = tmp_path / "requeued"
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "EFFCOMPRESS_CACHE": str(tmp_path / "cache"),
        "REQUEUED": str(queue),
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "1",
    }

    def start(**more: str) -> subprocess.CompletedProcess[str]:
        words = ["bash", "-s"]
        every = environment | more
        return subprocess.run(
            words, input=script, env=every, capture_output=True, text=True, timeout=800
        )

    stopped = start(EFFCOMPRESS_FAULT="step:6:terminate")
    assert stopped.returncode == 75, stopped.stderr
    assert queue.read_text() == "requeue 77\n"
    again = start()
    assert again.returncode == 0, again.stderr
    assert [e["status"] for e in events(out, "end")] == ["success"]
    once_more = start()
    assert once_more.returncode == 0 and once_more.stdout.startswith("finished")
    assert queue.read_text() == "requeue 77\n", "what has finished is not queued again"


def test_its_grace_is_less_than_its_warning() -> None:
    script = batch_file()
    warning = int(re.findall(r"--signal=TERM@(\d+)", script)[0])
    grace = int(re.findall(r"EFFCOMPRESS_GRACE=(\d+)", script)[0])
    assert grace + 60 <= warning
    for line in script.splitlines():  # SLURM reads no comments behind options
        assert not line.startswith("#SBATCH") or line.count("#") == 1


def test_a_single_process_of_a_job_with_tasks_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("")  # refused behind the note, before anything is loaded
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe(tmp_path)), "--output", str(out)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "note: SLURM has 8 tasks for this job" in said
    assert "srun effcompress run" in said
