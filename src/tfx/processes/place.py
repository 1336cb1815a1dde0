"""Which process of a run this one is: a launcher says so in the environment."""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from tfx.errors import UserError

# Ports from which processes of one job choose theirs, by the number of the job: below those that the system gives out.
_PORTS = range(20_000, 30_000)


@dataclass(frozen=True)
class Place:
    """One process among all of a run: its ``rank``, and that on its own machine.

    ``address`` and ``port`` are where the first process waits for the others.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int

    # How often torchrun has started the processes again (``--max-restarts``).
    restarts: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it is the process that writes the run directory and the console."""
        return self.rank == 0


NO_LAUNCHER = Place(0, 1, 0, 1, "", 0)


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process, as torchrun (or `launch`), srun or submitit set it; `NO_LAUNCHER` where none did.

    Raises `UserError` where the launcher started several processes and left out what they need.
    """
    if "WORLD_SIZE" in environment and "RANK" in environment:
        return _of_torchrun(environment)
    if "SUBMITIT_LOCAL_NTASKS" in environment:
        return _of_submitit(environment)
    # A batch script has the counts of its job too, and is one process: only srun sets those of a step.
    if "SLURM_STEP_NUM_TASKS" in environment:
        return _of_slurm(environment)
    return NO_LAUNCHER


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    size = int(environment["WORLD_SIZE"])
    if size == 1:
        return NO_LAUNCHER
    missing = [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE={size} says that there are several processes, and {' and '.join(missing)} is not set: start "
            "them with torchrun, srun or trainer.devices=N"
        )
    return Place(
        rank=int(environment["RANK"]),
        size=size,
        local_rank=int(environment["LOCAL_RANK"]),
        local_size=int(environment.get("LOCAL_WORLD_SIZE", size)),
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
        restarts=int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)),
    )


def _of_submitit(environment: Mapping[str, str]) -> Place:
    """A job of submitit's local executor: all its processes are on this machine."""
    size = int(environment["SUBMITIT_LOCAL_NTASKS"])
    if size == 1:
        return NO_LAUNCHER
    rank = int(environment["SUBMITIT_LOCAL_GLOBALID"])
    local_rank = int(environment.get("SUBMITIT_LOCAL_LOCALID", rank))
    return Place(rank, size, local_rank, size, "127.0.0.1", _port(environment, "SUBMITIT_LOCAL_JOB_ID"))


def _of_slurm(environment: Mapping[str, str]) -> Place:
    size = int(environment["SLURM_STEP_NUM_TASKS"])
    if size == 1:
        return NO_LAUNCHER
    return Place(
        rank=int(environment["SLURM_PROCID"]),
        size=size,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=_tasks_here(environment, size),
        address=environment.get("MASTER_ADDR") or _first_host(environment),
        port=_port(environment, "SLURM_JOB_ID"),
    )


def _tasks_here(environment: Mapping[str, str], size: int) -> int:
    """How many of the processes are on this node, by a list such as ``8(x2),4``: two nodes with 8 each, one with 4."""
    found: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        found += [int(tasks)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return found[node] if node < len(found) else size


def _port(environment: Mapping[str, str], job: str) -> int:
    given = environment.get("MASTER_PORT")
    if given is not None:
        return int(given)
    key = f"{environment.get(job, '')}.{environment.get('SLURM_STEP_ID', '')}"
    return _PORTS[zlib.crc32(key.encode()) % len(_PORTS)]


def _first_host(environment: Mapping[str, str]) -> str:
    """The host of the first process: the first name of a list such as ``node[07-09,12],other``."""
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    if "[" not in hosts:
        return hosts.partition(",")[0]
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"the first host of SLURM's list {hosts} is not known, because scontrol failed ({error}): "
            "set MASTER_ADDR to its name"
        ) from error
    return shown.split()[0]
