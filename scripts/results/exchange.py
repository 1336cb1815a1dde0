"""Tables of models that other libraries run: what leaves, whether it is the same there, and what it costs."""

from __future__ import annotations

from results.files import arm, benchmark, rows_of, scores, table


@table("positions")
def positions() -> str:
    """Rotary positions and those that `transformers` has an encoder-decoder for, at the same budget."""
    arms = {name: arm(f"positions/{name}") for name in ("rotary", "sinusoidal")}
    rows = []
    for name, runs in arms.items():
        bleu = [f"{scores(runs, split)[0]:.2f}" for split in ("valid", "test")]
        rows.append([f"`model.positions={name}`", *bleu, f"{scores(runs, 'test', 'loss')[0]:.3f}"])
    return rows_of(["positions", "BLEU, validation", "BLEU, test", "loss, test"], rows)


@table("exports")
def exports() -> str:
    """Comparisons that `tfx export` printed on the whole test set."""
    columns = [("run", "run", ""), ("target", "target", ""), ("log-probabilities differ by at most", "largest", ".1e")]
    columns += [("equal greedy outputs", "equal", ".1%"), ("loss there", "theirs", ".5f"), ("here", "loss", ".5f")]
    columns += [("BLEU by a beam of 5 there", "beam_there", ".2f"), ("here", "beam_here", ".2f")]
    return benchmark("exports", columns)


@table("formats")
def formats() -> str:
    """What `scripts/bench_formats.py` printed."""
    columns = [("format", "format", ""), ("bytes", "bytes", ",.0f"), ("sentences/s in batches", "batches", ".0f")]
    return benchmark("formats", [*columns, ("ms a sentence alone", "alone", ".1f"), ("BLEU", "bleu", ".2f")])
