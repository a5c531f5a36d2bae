"""Which process of a run this is, by the variables of its launcher: ``torchrun`` and others that
set RANK and WORLD_SIZE, or SLURM's ``srun`` by itself. Without torch.
"""

import os
import re
from typing import NamedTuple

from effcompress.errors import RecipeError, short

_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_LAUNCH_NODE_IPADDR")
"""Variables that ``srun`` sets for the tasks of a step. A batch script, which runs once, has the
other variables of a task, too (``SLURM_NTASKS``, ``SLURM_PROCID`` 0), but not these.
"""
_TASKS = 10**6
_PORTS = range(15000, 25000)
"""From which a step takes its port: below those that Linux gives to outgoing connections."""
_TORCHRUN = "Start with `torchrun --nproc-per-node N -m effcompress ...`, or `unset WORLD_SIZE`."
_SRUN = "Start with `srun effcompress ...`; WORLD_SIZE=1 makes every task a process of its own."


class Place(NamedTuple):
    """Rank of a process among ``size``; ``local_rank`` counts those on the same machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    meeting: str = "env://"
    """Where the processes find each other, as torch writes it: ``env://`` is MASTER_ADDR and
    MASTER_PORT, which the launcher sets; ``tcp://host:port`` follows from SLURM's variables.
    """


def launched() -> Place:
    """Returns the place that ``torchrun`` or ``srun`` gave this process; alone without a launcher.

    WORLD_SIZE comes before SLURM's variables, so that ``torchrun`` may be started by ``srun``, one
    for each node. Raises RecipeError where variables are no numbers of processes, one is missing,
    or they contradict each other.
    """
    tasks = _tasks()
    if not os.environ.get("WORLD_SIZE", "").strip():
        return _task(tasks) if tasks > 1 else Place()
    size = _variable("WORLD_SIZE", 1, 1, _TASKS)
    if size == 1:
        return Place()
    rank = _variable("RANK", None, 0, size - 1)
    if tasks > 1:
        _require_agreement(tasks, size, rank)
    if os.environ.get("MASTER_PORT", "").strip():
        _variable("MASTER_PORT", None, 1, 65535)
    return Place(rank, size, _variable("LOCAL_RANK", rank, 0, size - 1))


def keeps_store() -> bool:
    """Returns whether ``torchrun`` itself holds the store in which its processes meet, and keeps it
    when it restarts them.
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def outside_of_tasks() -> int:
    """Returns the number of tasks of a SLURM job where this process is none of them, but a command
    of its batch script; 0 elsewhere.
    """
    written = os.environ.get("SLURM_NTASKS", "").strip()
    alone = not os.environ.get("WORLD_SIZE", "").strip() and _tasks() == 1
    return int(written) if alone and re.fullmatch("[0-9]{2,9}|[2-9]", written) else 0


def _tasks() -> int:
    """Returns how many tasks the step of SLURM has in which this is one; 1 elsewhere."""
    number = os.environ.get("SLURM_PROCID", "").strip()
    if not number or (number == "0" and not any(os.environ.get(name) for name in _STEP)):
        return 1
    size = _variable("SLURM_STEP_NUM_TASKS", 0, 1, _TASKS, _SRUN)
    if size == 1:  # an interactive step of a job with more tasks, too
        return 1
    said = _variable("SLURM_NTASKS", size or 1, 1, _TASKS, _SRUN)
    if size and size != said:
        _contradiction(f"SLURM_NTASKS is {said}", f"SLURM_STEP_NUM_TASKS is {size}")
    return said


def _task(tasks: int) -> Place:
    """Returns the place of a task of SLURM, which no other launcher started."""
    rank = _variable("SLURM_PROCID", None, 0, tasks - 1, _SRUN)
    if (given := os.environ.get("RANK", "").strip()) and given != str(rank):
        _contradiction(f"RANK is '{short(given)}' (and WORLD_SIZE not set)", _slurm(rank, tasks))
    local_rank = _variable("SLURM_LOCALID", None, 0, rank, _SRUN)
    return Place(rank, tasks, local_rank, f"tcp://{_host()}:{_port()}")


def _host() -> str:
    """Returns the address of the machine of rank 0: the first of the step."""
    if given := os.environ.get("MASTER_ADDR", "").strip():
        return given
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((os.environ[name].strip() for name in names if os.environ.get(name)), "")
    if re.fullmatch(r"[\w.-]+", nodes):  # one machine, whose name may not be known to itself
        return "127.0.0.1"
    # Where srun was started may be a login node, so its address comes last.
    if host := first_of(nodes) or os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "").strip():
        return host
    fix = "Set MASTER_ADDR to the name of the machine of task 0."
    raise RecipeError("$SLURM_STEP_NODELIST names no machine", fix=fix)


def first_of(nodes: str) -> str:
    """Returns the first machine of a list as SLURM writes it: ``gpu[03-05,9],cpu`` -> ``gpu03``."""
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", first[0]) if first else ""


def _port() -> int:
    """Returns MASTER_PORT, or a port that follows from job and step, equal in all tasks."""
    if os.environ.get("MASTER_PORT", "").strip():
        return _variable("MASTER_PORT", None, 1, 65535, _SRUN)
    job = _variable("SLURM_JOB_ID", 0, 0, 10**9 - 1, _SRUN)
    step = os.environ.get("SLURM_STEP_ID", "").strip()
    return _PORTS[(job + 101 * (int(step) if step.isdecimal() else 0)) % len(_PORTS)]


def _require_agreement(tasks: int, size: int, rank: int) -> None:
    """Raises RecipeError where RANK and WORLD_SIZE cannot be those of a task, or of a launcher that
    every task started.
    """
    if size % tasks:
        _contradiction(f"WORLD_SIZE is {size}", f"srun started {tasks} tasks")
    number = _variable("SLURM_PROCID", None, 0, tasks - 1, _SRUN)
    if size == tasks and rank != number and "TORCHELASTIC_RUN_ID" not in os.environ:
        _contradiction(f"RANK is {rank}", _slurm(number, tasks))


def _slurm(rank: int, tasks: int) -> str:
    return f"this is task {rank} of {tasks} of SLURM"


def _contradiction(one: str, other: str) -> None:
    fix = "`unset RANK WORLD_SIZE` for `srun effcompress ...`; `srun torchrun ...` sets them."
    raise RecipeError(f"${one}, but {other}", fix=fix)


def _variable(name: str, default: int | None, least: int, most: int, fix: str = _TORCHRUN) -> int:
    written = os.environ.get(name, "").strip()
    if not written and default is not None:
        return default
    number = int(written) if re.fullmatch("[0-9]{1,9}", written) else -1
    if least <= number <= most:
        return number
    others = "SLURM_PROCID" if name.startswith("SLURM") else "WORLD_SIZE"
    has = f"is '{short(written)}'" if written else f"is not set, but {others} is"
    raise RecipeError(f"${name} {has}; it is a number from {least} to {most}", fix=fix)
