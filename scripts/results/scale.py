"""What more data and more processes cost and bring: what `scripts/bench_scale.py` printed."""

from __future__ import annotations

from results.dense import SPEED
from results.files import TABLES, benchmark

TABLES["training-processes"] = lambda: benchmark("training-processes", SPEED)
TABLES["preparing"] = lambda: benchmark(
    "preparing", [("pairs", "pairs", ",d"), ("CPU time a pair, µs", "cpu_us", "d"), ("memory, MB", "pss_mb", "d")]
)
TABLES["local-steps-gpt-nano"] = lambda: benchmark(
    "local-steps-gpt-nano",
    [
        ("seed", "seed", "d"),
        ("one process", "one", ".3f"),
        ("two, `trainer.parallel=local trainer.local.steps=8`", "two", ".3f"),
        ("difference, %", "percent", "+.1f"),
    ],
)


TABLES["local-settings"] = lambda: benchmark(
    "local-settings",
    [
        ("parameters", "parameters", "s"),
        ("`trainer.local.steps`", "steps", "d"),
        ("`average_moments`", "average_moments", "s"),
        ("`outer_lr`", "outer_lr", "g"),
        ("`outer_momentum`", "outer_momentum", "g"),
        ("loss", "loss", ".3f"),
        ("difference to one process, %", "percent", "+.1f"),
    ],
)
