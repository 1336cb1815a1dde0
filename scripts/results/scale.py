"""What more data and more processes cost and bring: what `scripts/bench_scale.py` printed."""

from __future__ import annotations

from results.dense import SPEED
from results.files import TABLES, benchmark, printed, rows_of, table

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


@table("local-steps")
def local_steps() -> str:
    """Losses by seed, and how far the second seed's and the first one's are from those of one process."""
    first, *_ = rows = printed("local-steps")["rows"]
    seeds = ("seed1", "seed2")
    cells = [
        [
            row["what"],
            *(None if row[seed] is None else f"{row[seed]:.3f}" for seed in seeds),
            ", ".join(f"{row[seed] / first[seed] - 1:+.1%}" for seed in seeds if row[seed] is not None),
        ]
        for row in rows[1:]
    ]
    base = [first["what"], *(f"{first[seed]:.3f}" for seed in seeds), None]
    return rows_of(["processes", "seed 1", "seed 2", "difference to one process"], [base, *cells])
