"""What was tried and failed."""

from typing import Any

from results.files import TRIALS, arm, mean, printed, ratio, rows_of, table

# An arm is in `TRIALS` unless its name starts with one of these.
STUDIES = ("techniques/", "small-files/", "small-files-without-decay/", "multi30k-dense/")
PLAIN = "small-files-without-decay/rate1.9/seed1"
SHORT = "decay-rate1.9-1.2m-all-steps"
OWN, OWN2 = "decay-rate1.9-1.2m-own", "decay-rate1.9-2m-own"
THEN3 = "multi30k-dense/6m-then-3m"
DENSE25 = "from-5m-dense-2.5m/seed1"


@table("tried")
def tried() -> str:
    rows: list[list[Any]] = []
    for what, name, beside, other in (
        ("shuffle, a tenth of the sequences", "techniques/shuffle-share0.1-annealed", "none", "techniques/baseline"),
        ("mixup of half of the examples", "techniques/untuned-mixup", "none", "techniques/baseline"),
        ("both, with logits", "techniques/shuffle-mixup-distill-logits", "logits alone", "techniques/distill-logits"),
        (
            "rate 1.9 without decay, logits alone",
            "rate1.9-2m-no-decay-logits",
            "decay and the teacher's outputs",
            PLAIN,
        ),
        ("rate 1.9 without decay", "rate1.9-2m-no-decay-logits-and-outputs", "decay 1", PLAIN),
        ("an average of the weights", "rate1.9-2m-averaged", "none", PLAIN),
        ("soft targets alone (alpha 1)", "rate1.9-2m-soft-targets-alone", "alpha 0.8", PLAIN),
        ("twice the learning rates", "rate1.9-2m-lr2", "the recipe", PLAIN),
        ("half the learning rates, twice the decay", "rate1.9-2m-lr0.5-decay2", "the recipe", PLAIN),
        ("without the teacher's outputs", "rate1.9-2m-no-outputs", "with its outputs", PLAIN),
        ("the dense arm as teacher, 2 M tokens", f"{OWN2}-teacher", "a better teacher", "small-files/rate1.9/seed1"),
        ("its logits on real targets, 1.2 M tokens", f"{OWN}-teacher-logits", "a better teacher", SHORT),
        ("the same with its last hidden states", f"{OWN}-teacher-hidden", "logits", f"{OWN}-teacher-logits"),
        ("a rate that falls from 3.5 to 1.9", "decay-rate1.9-1.2m-ramp", "rate 1.9 from the start", SHORT),
        ("an L1 penalty", "decay-rate1.9-1.2m-l1-penalty", "weight decay", SHORT),
        ("the first version of rate 1.9, 3 M tokens", "rate1.9-3m-first", "dense", THEN3),
        ("the same on the teacher's outputs", "rate1.9-3m-first-outputs", "dense", THEN3),
        ("half the weights pruned, logits, 2 M tokens, no decay", "prune50-2m-no-decay", "dense", "dense-2m-no-decay"),
        ("60 % pruned and 3 bits, 2.5 M tokens", "from-5m-prune60-3bit-2.5m", "dense", DENSE25),
        ("the same with logits of a better teacher", "from-5m-prune60-3bit-logits-2.5m", "dense", DENSE25),
        ("the same on its own outputs", "from-5m-prune60-3bit-outputs-2.5m", "dense", DENSE25),
        ("70 % pruned and 3 bits on its own outputs", "from-5m-prune70-3bit-outputs-2.5m", "dense", DENSE25),
        ("2 bits in groups on its own outputs", "from-5m-2bit-outputs-2.5m", "dense", DENSE25),
        ("4 bits, 1.25 M tokens", "from-5m-4bit-1.25m", "dense", "from-5m-dense-1.25m"),
        ("the same with its own logits", "from-5m-4bit-logits-1.25m", "dense", "from-5m-dense-1.25m"),
        ("the same on its own outputs", "from-5m-4bit-outputs-1.25m", "dense", "from-5m-dense-1.25m"),
        ("half of the weights in blocks pruned", "from-5m-prune50-blocks-1.25m", "dense", "from-5m-dense-1.25m"),
    ):
        found = [arm(place if place.startswith(STUDIES) else f"{TRIALS}/{place}") for place in (name, other)]
        cells = [f"{mean(x, 'valid', 'loss'):.3f}; {mean(x, 'valid'):.2f}, {mean(x, 'test'):.2f}" for x in found]
        rows.append([what, ratio(found[0]), cells[0], beside, cells[1]])
    rows += [[row["tried"], None, row["result"], None, None] for row in printed("tried")["rows"]]
    header = ["tried", "times smaller", "valid loss; valid BLEU, test BLEU", "compared with", "its loss; BLEU"]
    return rows_of(header, rows)
