"""Where the time of a step goes: torch's profiler over a few steps, as a table and as a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from tfx.processes.place import NO_LAUNCHER, Place
from tfx.system.stderr import silent_stderr

# Steps before those that are measured: the first ones are slower.
_SKIPPED = 5
_MEASURED = 5
_KERNELS = 25
_PREFIX = "tfx: "

Report = Callable[[str, Callable[[Path], Any]], Any]
"""Takes the table, and what writes the trace to a file whose name ends in ``.json.gz``."""


def part(name: str) -> record_function:
    """Names the part of a step that runs inside, for the profiler; without one this costs a microsecond."""
    return record_function(_PREFIX + name)


def exchange(place: Place) -> AbstractContextManager[Any]:
    """The part in which processes send and wait for one another; where there is one process, none."""
    return part("exchange") if place.size > 1 else nullcontext()


class StepProfile:
    """Measures five steps after the first five of a training, on a CPU or with the kernels of a GPU."""

    def __init__(self, device: torch.device, report: Report, place: Place = NO_LAUNCHER) -> None:
        self._device, self._report, self._place = device, report, place
        self._activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profiler: Any = None
        self._steps = 0
        self._start = 0.0

    def stepped(self) -> None:
        """Call this after each step."""
        self._steps += 1
        if self._steps == _SKIPPED:
            with silent_stderr():
                self._profiler = profile(activities=self._activities)
                self._profiler.start()
            self._start = time.perf_counter()
        elif self._steps == _SKIPPED + _MEASURED:
            self.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside, which is no part of a step."""
        if self._profiler is None:
            yield
            return
        with silent_stderr():
            self._profiler.toggle_collection_dynamic(False, self._activities)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start
            with silent_stderr():
                self._profiler.toggle_collection_dynamic(True, self._activities)

    def close(self) -> None:
        """Ends the measurement; reports on as many steps as there were."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - self._start
        with silent_stderr():
            profiler.stop()
        if steps := self._steps - _SKIPPED:
            text = table(profiler.key_averages(), seconds, steps, self._device, self._place)
            self._report(text, lambda path: profiler.export_chrome_trace(str(path)))


def table(events: Any, seconds: float, steps: int, device: torch.device, place: Place = NO_LAUNCHER) -> str:
    """The parts of a step, then the operations that take the most time themselves; ms a step.

    On a GPU the parts are the time of the host, which runs ahead; the operations are those of the GPU.
    """
    on_gpu = device.type == "cuda"
    whole = 1e3 * seconds / steps
    lines = [f"{whole:.2f} ms a step: the mean of {steps} steps, with the profiler's own cost"]
    if place.size > 1:
        lines.append(
            f"in process {place.rank} of {place.size}; its exchange includes the time that it waits for the rest"
        )
    lines.append("")
    parts = {e.key.removeprefix(_PREFIX): e.cpu_time_total / 1e3 / steps for e in events if e.key.startswith(_PREFIX)}
    parts["the rest"] = max(0.0, whole - sum(parts.values()))
    lines.append(f"{'part' + (' (host)' if on_gpu else ''):<60} {'ms':>9} {'share':>7}")
    lines += [f"{name:<60} {ms:>9.2f} {ms / whole:>7.1%}" for name, ms in parts.items()]
    rows = [
        (e.key, (e.self_device_time_total if on_gpu else e.self_cpu_time_total) / 1e3 / steps, e.count / steps)
        for e in events
        if not e.key.startswith(_PREFIX)
    ]
    lines += ["", f"{'operation, without what it calls':<60} {'ms':>9} {'share':>7} {'calls':>7}"]
    for name, ms, calls in sorted(rows, key=lambda row: -row[1])[:_KERNELS]:
        lines.append(f"{name[:60]:<60} {ms:>9.2f} {ms / whole:>7.1%} {calls:>7.1f}")
    return "\n".join(lines) + "\n"
