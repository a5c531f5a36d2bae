"""Ranks by the variables of a launcher: torchrun's, SLURM's, both, and what cannot be meant."""

from __future__ import annotations

import pytest

from effcompress.errors import RecipeError
from effcompress.launcher import Place, first_of, launched, outside_of_tasks

TASK = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}
"""Of the last of two tasks on the second of two machines."""
BATCH = {
    "SLURM_JOB_ID": "1234",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
}
"""Of a batch script, which runs once on the first machine of the job."""
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}


def place(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Place:
    for name in {*TASK, *TORCHRUN, "MASTER_ADDR", "MASTER_PORT"}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return launched()


def test_a_task_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    port = 15000 + 1234 + 2 * 101
    assert place(monkeypatch, TASK) == Place(3, 4, 1, f"tcp://gpu03:{port}")
    first = {**TASK, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert place(monkeypatch, first) == Place(0, 4, 0, f"tcp://gpu03:{port}")


def test_the_meeting_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {k: v for k, v in TASK.items() if not k.endswith("NODELIST")}
    port = place(monkeypatch, TASK).meeting.rpartition(":")[2]
    assert place(monkeypatch, without).meeting == f"tcp://10.0.0.1:{port}"
    one = {**TASK, "SLURM_STEP_NODELIST": "node7.cluster.edu"}
    assert place(monkeypatch, one).meeting == f"tcp://127.0.0.1:{port}", "they are on one machine"
    chosen = {**TASK, "MASTER_ADDR": "ib3", "MASTER_PORT": "29400"}
    assert place(monkeypatch, chosen).meeting == "tcp://ib3:29400"
    other = {**TASK, "SLURM_JOB_ID": "1235"}
    assert place(monkeypatch, other).meeting != place(monkeypatch, TASK).meeting


@pytest.mark.parametrize(
    "variables",
    [
        {},
        BATCH,
        {**BATCH, "SLURM_NTASKS": "1"},
        {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {**TASK, "WORLD_SIZE": "1"},
        {k: v for k, v in BATCH.items() if k != "SLURM_PROCID"},  # salloc
    ],
)
def test_a_shell_and_a_single_task_are_alone(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place(monkeypatch, variables) == Place()


def test_torchrun_within_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch script, and one for each machine: two tasks of four processes."""
    expected = Place(5, 8, 1)
    assert place(monkeypatch, TORCHRUN) == expected
    assert place(monkeypatch, {**BATCH, **TORCHRUN}) == expected
    two = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    assert place(monkeypatch, {**TASK, **two, **TORCHRUN}) == expected
    # Ranks are torchrun's to give: with one process per task, too.
    one = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
    assert place(monkeypatch, {**TASK, **TORCHRUN, **one}) == Place(2, 4, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SLURM_PROCID": "4"}, r"SLURM_PROCID is '4'; it is a number from 0 to 3"),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x'"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID is not set, but SLURM_PROCID is"),
        ({"SLURM_LOCALID": "4"}, "SLURM_LOCALID is '4'"),
        ({"SLURM_NTASKS": "8"}, "SLURM_NTASKS is 8, but SLURM_STEP_NUM_TASKS is 4"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS is 'many'"),
        ({"RANK": "0"}, "RANK is '0' .* task 3 of 4"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, "RANK is 0, but this is task 3 of 4 of SLURM"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but srun started 4 tasks"),
        ({"RANK": "0", "WORLD_SIZE": "6"}, "WORLD_SIZE is 6, but srun started 4 tasks"),
        ({"WORLD_SIZE": "4"}, "RANK is not set, but WORLD_SIZE is"),
        ({"MASTER_PORT": "ssh"}, "MASTER_PORT is 'ssh'"),
    ],
)
def test_contradictions_are_refused(
    change: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=said) as refused:
        place(monkeypatch, {**TASK, **change})
    assert refused.value.exit_code == 2 and refused.value.fix


def test_no_machine_to_meet_on(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {k: v for k, v in TASK.items() if "NODE" not in k}
    with pytest.raises(RecipeError, match="names no machine") as refused:
        place(monkeypatch, nowhere)
    assert "MASTER_ADDR" in (refused.value.fix or "")
    assert place(monkeypatch, {**nowhere, "MASTER_ADDR": "a"}).meeting.startswith("tcp://a:")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("a,b", "a"),
        ("rack[2-3]node[011-020]", "rack2node011"),
        ("n[1,3]-ib", "n1-ib"),
        ("n7.site.edu", "n7.site.edu"),
        ("", ""),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_of(nodes) == first


def test_a_batch_script_is_told_of_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, expected in (
        (BATCH, 4),
        ({**BATCH, "SLURM_NTASKS": "1"}, 0),
        (TASK, 0),
        ({**BATCH, "WORLD_SIZE": "1"}, 0),
        ({}, 0),
    ):
        place(monkeypatch, variables)
        assert outside_of_tasks() == expected
