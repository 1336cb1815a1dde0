"""What a result may depend on besides the config: versions, code, hardware, threads, fingerprints."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from tfx.system.memory import installed_memory
from tfx.system.processors import cores
from tfx.system.threads import how_they_wait

# Of a run that was resumed: what its environment had been in its first steps, where that was another one.
BEFORE = "before_resuming"
_PACKAGES = ("tfx", "torch", "numpy", "hydra-core", "omegaconf", "datasets", "tokenizers", "safetensors", "sacrebleu")


def describe_environment(device: Any, fingerprints: dict[str, str], processes: int = 1) -> dict[str, Any]:
    """Returns the content of `environment.json`. ``device`` is the `torch.device` of the first process of the run."""
    import torch

    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": cores(),
        "memory_bytes": installed_memory(),
        "device": str(device),
    }
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        hardware["cuda"] = torch.version.cuda
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git(Path(__file__).parent),
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "waiting": how_they_wait(),
        "processes": processes,
        "fingerprints": fingerprints,
        "command": sys.argv[1:],
    }


def environment_differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Differences between two environments that may change a result: dotted names, with both values.

    How threads wait changes its speed alone, and what was `BEFORE` stands for itself.
    The names of data files are in the fingerprints of data, but not in a result: if the content is the same, these do
    not differ.
    """
    old, new = (
        flat({name: part for name, part in each.items() if name not in ("command", "waiting", BEFORE)})
        for each in (before, now)
    )
    for each in (old, new):
        each.setdefault("processes", 1)  # an earlier version had one, and did not record it
    names = [*old, *(name for name in new if name not in old)]
    found = {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
    content = [each.get("fingerprints.content") for each in (old, new)]
    if None in content:  # an earlier version did not record it
        found.pop("fingerprints.content", None)
    elif content[0] == content[1] and "fingerprints.corpus" in found:
        for name in ("corpus", "data"):
            found.pop(f"fingerprints.{name}", None)
    return found


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts under their dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that contains ``folder``, if there is one."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
