"""How the processes of a run share a training: which rows each one runs, and how their gradients become one step.

Each global batch is divided by rows. Techniques change the whole batch before, with the draws of a run of one process,
so the number of processes changes nothing but the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tfx.model.batch import slices
from tfx.processes.group import Group


class Sharing:
    """Data parallelism: each step's gradients are summed over all processes, whose weights so stay the same.

    Gradients are summed once a step, in buckets, after the last backward pass, and not by torch's
    `DistributedDataParallel`. That wrapper sums while a backward pass runs, which is faster by the time that the
    messages take, but takes each pass for the whole step and each parameter for one that gets its gradient there. Here
    a step has several passes (accumulation, pieces that fit the memory), the weights may be seen through a mask and a
    grid, so that their gradients exist only at the end, and a process that runs out of memory in a pass repeats it:
    under the wrapper the others would wait for it for ever.
    """

    def __init__(self, group: Group) -> None:
        self.group = group

    def own(self, count: int, pieces: int) -> list[slice]:
        """Of so many rows those that this process runs, in pieces; none if there are more processes than rows."""
        return slices(range(self.group.rank, count, self.group.size), pieces)

    def all_fit(self, fits: bool, parameters: Sequence[Tensor]) -> bool:
        """Whether the step fitted the memory of every process. A gradient that some process has, all have then."""
        if self.group.size == 1:
            return fits
        exceeds, *present = self.group.greatest(float(not fits), *(float(p.grad is not None) for p in parameters))
        if exceeds:
            return False
        for parameter, is_present in zip(parameters, present, strict=True):
            if is_present and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return True

    def combine(self, parameters: Sequence[Tensor], sums: Mapping[str, Tensor], complete: bool) -> dict[str, Tensor]:
        """Adds up gradients, in place, and named sums over all processes. ``complete``: each process has all names."""
        if self.group.size == 1:
            return dict(sums)
        names = list(sums) if complete else self.group.first(list(sums))
        device = parameters[0].device
        exact = torch.float32 if device.type == "mps" else torch.float64
        zero = torch.zeros((), device=device)
        totals_N = torch.stack([sums.get(name, zero).detach().to(exact) for name in names])
        self.group.add_up([totals_N, *(p.grad for p in parameters if p.grad is not None)])
        return dict(zip(names, totals_N.unbind(), strict=True))
