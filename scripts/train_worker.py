"""One training of tfx for `bench_train.py`, in a process of its own: the real loop, from the run's own parts.

    python scripts/train_worker.py TASK.json

``TASK.json`` has the overrides of `tfx train`, and ``warm`` steps that do not count. Prints one line of JSON: tokens
and seconds after those, their FLOPs for each token, the last validation loss, and the seconds until it was ``loss``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tfx.system.threads import wait_briefly


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    wait_briefly()
    if "rate" in task:
        print(json.dumps({"flops_per_second": matrix_rate(task["threads"], task["rate"])}))
        return

    from tfx.config.compose import compose
    from tfx.run.setup import Setup
    from tfx.training.loop import Observer, Trainer

    class Watch(Observer):
        """Keeps where the clock stood at each row of metrics."""

        def __init__(self) -> None:
            self.rows: list[tuple[int, int, float]] = []
            self.losses: list[tuple[float, float]] = []

        def stepped(self, row: dict[str, float], **place: Any) -> None:
            self.rows.append((place["step"], place["tokens"], place["seconds"]))

        def validated(self, row: dict[str, float], **place: Any) -> None:
            self.losses.append((place["seconds"], row["loss"]))

    config = compose(task["overrides"])
    parts = Setup(config).prepare({})
    watch = Watch()
    cost = Trainer(config, parts.model, parts.data, parts.device, watch, parts.stack).train()
    after = [row for row in watch.rows if row[0] >= task["warm"]]
    reached = next((seconds for seconds, loss in watch.losses if loss <= task.get("loss", 0.0)), None)
    print(
        json.dumps(
            {
                "tokens": after[-1][1] - after[0][1],
                "seconds": after[-1][2] - after[0][2],
                "flops_per_token": cost.flops * (1 - cost.padding) / cost.tokens,
                "loss": watch.losses[-1][1],
                "seconds_to_loss": reached,
            }
        )
    )


def matrix_rate(threads: int | None, dtype: str) -> float:
    """FLOP/s of products of 2,048 x 2,048 on the device that training would take: the best of 20, or of ten seconds.

    A processor that emulates the type needs half a minute for one.
    """
    import time

    import torch

    from tfx.model.device import choose_device

    if threads:
        torch.set_num_threads(threads)
    device = choose_device("auto")
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    best, begin = float("inf"), time.perf_counter()
    for _ in range(20):
        start = time.perf_counter()
        if start - begin > 10:
            break
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best)


if __name__ == "__main__":
    main()
