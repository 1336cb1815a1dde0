"""The stack: order by declared effects, conflicts, plans, proof, and the same bytes in any typed order."""

import hashlib
import itertools
import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

from tfx.cli import main
from tfx.config.compose import check, compose, to_yaml
from tfx.config.registry import technique_class
from tfx.errors import UserError
from tfx.evaluation import scoring
from tfx.techniques.contract import Technique, TechniqueSettings
from tfx.techniques.stack import NoEffectError, Stack, resolve_order
from tfx.training import step

TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=32", "model.decoder_layers=1", "trainer.budget.steps=3"),
    *("evaluation.latency_inputs=1", "evaluation.beam=1", "evaluation.new_tokens=8"),
]
FAMILIES = {
    "seq2seq": [
        *("dataset=parallel", "dataset.path=.", "model.encoder_layers=1"),
        *("dataset.tokenizer.vocab_size=300", "dataset.batch_tokens=512"),
    ],
    "lm": [
        *("model=gpt_nano", "model.context=16", "dataset=text", "dataset.path=train.en"),
        *("dataset.tokenizer.kind=char", "dataset.batch_tokens=128"),
    ],
}
THREE = ["shuffle", "mixup", "distill"]
TEACHER = ["technique.distill.teacher_budget.steps=3", "technique.distill.hidden=0.1"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stack")
    rng = random.Random(0)
    words = ["one", "two", "three", "four", "five"]
    for split, rows in (("train", 120), ("valid", 8), ("test", 8)):
        lines = [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(rows)]
        (path / f"{split}.en").write_text("\n".join(lines))
        (path / f"{split}.de").write_text("\n".join(line.upper() for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(path / "cache"))
        patch.chdir(path)
        yield path


def run(folder: Path, *overrides: str, family: str = "seq2seq") -> dict:
    assert main(["train", *TINY, *FAMILIES[family], *overrides, f"hydra.run.dir={folder}"]) == 0
    return json.loads((folder / "summary.json").read_text())


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def test_typed_order_never_changes_a_byte_and_every_technique_changes_some(folder):
    digests = set()
    # So few steps that the default share would move nothing.
    settings = {"distill": TEACHER, "shuffle": ["technique.shuffle.share=1"], "mixup": []}
    everything = [word for words in settings.values() for word in words]
    # Each of the three first, in the middle and last; that all orders make one plan is tested below.
    for order in (THREE, THREE[1:] + THREE[:1], THREE[::-1]):
        summary = run(folder / "-".join(order), f"technique=[{','.join(order)}]", *everything)
        assert summary["techniques"] == THREE
        digests.add(digest(folder / "-".join(order)))
    assert len(digests) == 1
    for name in THREE:
        rest = [other for other in THREE if other != name]
        words = [word for other in rest for word in settings[other]]
        run(folder / f"no-{name}", f"technique=[{','.join(rest)}]", *words)
        digests.add(digest(folder / f"no-{name}"))
    assert len(digests) == 4


def test_all_orders_of_five_techniques_compose_to_one_config_and_one_plan():
    five = ["distill", "mixup", "prune", "quantize", "shuffle"]
    config = compose([f"technique=[{','.join(five)}]"])
    # Hydra, which takes its time, keeps them as they are typed; the check after it puts them in order.
    for order in (five[::-1], five[2:] + five[:2]):
        assert to_yaml(compose([f"technique=[{','.join(order)}]"])) == to_yaml(config)
    for order in random.Random(0).sample(list(itertools.permutations(five)), 30):
        typed = OmegaConf.create({**asdict(config), "technique": {name: config.technique[name] for name in order}})
        checked = check(typed, ())
        assert checked == config
        assert list(checked.technique) == list(config.technique)
    techniques = [technique_class(name)(technique_class(name).Settings()) for name in five]
    plans = [Stack(order, config).plan() for order in itertools.permutations(techniques)]
    assert all(plan == plans[0] for plan in plans)


def test_the_plan_says_when_each_hook_acts_in_the_header_and_in_the_summary(folder):
    words = ["technique=[distill,shuffle]", *TEACHER, "technique.distill.sequence_level=true"]
    summary = run(folder / "planned", *words, "technique.shuffle.examples=by_length", "technique.shuffle.end=0.5")
    plan = [
        ("DATA", "prepare_data", "distill", "before training"),
        ("DATA", "order_batches", "shuffle", "first epoch"),
        ("DATA", "transform_batch", "shuffle", "0% to 50%"),
        ("MODEL", "prepare_model", "distill", "before training"),
        ("OBJECTIVE", "objective", "distill", "0% to 100%"),
    ]
    assert [(row["phase"], row["hook"], row["technique"], row["when"]) for row in summary["plan"]] == plan
    log = (folder / "planned" / "train.log").read_text()
    shown = [line.removeprefix("stack").strip() for line in log.splitlines() if line.startswith("stack")]
    assert shown == [f"{phase} {hook}: {technique}, {when}" for phase, hook, technique, when in plan]


def test_a_teacher_is_trained_once_and_its_cost_stands_in_every_run_that_uses_it(folder):
    first = run(folder / "a", "+technique=distill")
    second = run(folder / "b", "+technique=distill", "technique.distill.temperature=2")
    assert first["train"]["teacher_tokens"] > first["train"]["tokens"]
    assert second["train"]["teacher_tokens"] == first["train"]["teacher_tokens"]
    assert second["train"]["teacher_seconds"] == first["train"]["teacher_seconds"]
    assert first["reference"]["sha256"] == second["reference"]["sha256"]
    environment = json.loads((folder / "a" / "environment.json").read_text())
    assert environment["fingerprints"]["teacher of distill"] == first["reference"]["sha256"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["technique=[distill,mixup]", "technique.distill.cache_top_k=4"], ["'distill'", "'mixup'"]),
        (["technique=shuffle", "technique.shuffle.share=0"], ["shuffle", "allow_noop"]),
        (["technique=shuffle", "technique.shuffle.share=2"], ["technique.shuffle.share", "at most 1"]),
        (["technique=shuffle", "technique.shuffle.mode=windw"], ["did you mean 'window'?"]),
        (["technique=shuffle", "+technique.shuffle.shre=1"], ["did you mean 'technique.shuffle.share'?"]),
        (["technique=shufle"], ["did you mean 'shuffle'?"]),
        (["technique=distill", "technique.distill.loss=none"], ["nothing to do"]),
    ],
)
def test_what_cannot_work_ends_before_training_with_one_line(overrides, words, tmp_path, capsys):
    assert main(["train", *TINY, *FAMILIES["seq2seq"], *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_a_technique_that_did_nothing_fails_the_run():
    stack = Stack.from_config(compose(["technique=shuffle"]))
    with pytest.raises(NoEffectError, match="shuffle"):
        stack.evidence()
    Stack.from_config(compose(["technique=shuffle", "technique.shuffle.allow_noop=true"])).evidence()


# --- together, through the command ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def together(request, tmp_path_factory):
    """A family, what sets all three techniques to act on each example of it, and the folder of a run of them."""
    # A folder of its own: of tests that are divided among processes, one may come back to this family later.
    family, place = request.param, tmp_path_factory.mktemp(request.param)
    teacher, plain = place / "teacher", place / "plain"
    run(teacher, "seed=2", family=family)
    words = [f"technique=[{','.join(THREE)}]", "technique.shuffle.share=1", "technique.mixup.share=1"]
    words += ["technique.mixup.alpha=1", "technique.distill.hidden=0.1", f"technique.distill.teacher={teacher}"]
    words += ["technique.shuffle.anneal=none", "technique.shuffle.end=1"]
    words += ["model.dropout=0"]  # a compiled model draws it in another way
    run(plain, *words, "trainer.precision=fp32", family=family)
    return family, words, plain


def acted(summary: dict) -> bool:
    evidence = summary["evidence"]
    return (
        evidence["shuffle"]["tokens_moved"] > 0.1
        and evidence["mixup"]["examples_mixed"] == 1
        and evidence["distill"]["divergence"] > 0
    )


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        # The graph that is compiled is what counts here, not the machine code that is made of it.
        (["trainer.compile=on", "trainer.precision=fp32"], 1e-5),
        (["trainer.precision=bf16"], 1e-2),
        (["trainer.accumulation=2", "trainer.precision=fp32"], None),
    ],
    ids=["compiled", "bf16", "accumulated"],
)
def test_all_three_act_together_compiled_in_bf16_and_over_accumulated_batches(
    together, words, tolerance, tmp_path, monkeypatch
):
    family, three, plain = together
    summary = json.loads((plain / "summary.json").read_text())
    plain_compile, compiled = nn.Module.compile, []

    def eager(module, **options):
        compiled.append(module)
        plain_compile(module, backend="eager", **options)

    monkeypatch.setattr(nn.Module, "compile", eager)
    other = run(tmp_path / "other", *three, *words, family=family)
    assert acted(summary)
    assert acted(other)
    # The student and its teacher; training on one shape has a compiled call of its own.
    assert len({id(module) for module in compiled}) == (2 if "trainer.compile=on" in words else 0)
    if tolerance is None:
        assert digest(tmp_path / "other") != digest(plain)
    else:
        assert other["valid"]["loss"] == pytest.approx(summary["valid"]["loss"], rel=tolerance)


def test_teacher_and_student_see_the_same_batch_and_evaluation_sees_the_files_own(together, tmp_path, monkeypatch):
    family, three, _ = together
    trained, scored = [], []

    def spy(seen, plain):
        def run_batch(model, batch):
            seen.append((model, batch))
            return plain(model, batch)

        return run_batch

    monkeypatch.setattr(step, "run_batch", spy(trained, step.run_batch))
    monkeypatch.setattr(scoring, "run_batch", spy(scored, scoring.run_batch))
    run(tmp_path / "seen", *three, family=family)
    students, teachers = trained[::2], trained[1::2]
    assert len(students) == len(teachers) == 3
    for (student, batch), (other, same) in zip(students, teachers, strict=True):
        assert student is not other
        assert batch is same
        assert batch.mix is not None
    changed, evaluated = [batch for _, batch in students], [batch for _, batch in scored]
    trained.clear(), scored.clear()
    run(tmp_path / "unseen", "technique=[]", family=family)

    def tokens(batch):
        return (batch.target_in_BT if batch.source_BS is None else batch.source_BS).tolist()

    # The same rows in the same steps, with their tokens in another order.
    assert len(trained) == 3
    for batch, (_, plain) in zip(changed, trained, strict=True):
        assert batch.rows.tolist() == plain.rows.tolist()
        assert tokens(batch) != tokens(plain)
    # The teacher, which is the reference, is scored too: so not batch by batch.
    assert not any(batch.mix for batch in evaluated)
    files = {(str(tokens(batch)), str(batch.target_out_BT.tolist())) for _, batch in scored}
    assert {(str(tokens(batch)), str(batch.target_out_BT.tolist())) for batch in evaluated} == files


def test_each_side_mode_and_order_gives_another_model(folder):
    share = "technique.shuffle.share=1"
    settings = [
        *([share, f"technique.shuffle.side={side}"] for side in ("source", "target", "both")),
        *([share, f"technique.shuffle.mode={mode}"] for mode in ("whole", "spans")),
        [share, "technique.shuffle.anneal=none"],
        ["technique.shuffle.share=0", "technique.shuffle.examples=by_length"],
    ]
    digests = set()
    for number, words in enumerate(settings):
        run(folder / f"shuffled-{number}", "technique=shuffle", *words)
        digests.add(digest(folder / f"shuffled-{number}"))
    run(folder / "unshuffled", "technique=[]")
    digests.add(digest(folder / "unshuffled"))
    assert len(digests) == len(settings) + 1


# --- order, needs, proof ------------------------------------------------------------------------------


def technique(name: str, **declared: object) -> Technique:
    return type(name, (Technique,), {"name": name, **declared})(TechniqueSettings())


def test_order_follows_effects_in_both_directions_and_cycles_are_named():
    a, b, c = technique("a", after=("x",)), technique("b", effects=("x",)), technique("c", before=("x",))
    assert [t.name for t in resolve_order([a, b, c], "transform_batch")] == ["c", "b", "a"]
    d, e = technique("d", after=("y",), effects=("z",)), technique("e", after=("z",), effects=("y",))
    waits, leads = technique("aa", after=("z",)), technique("z", before=("z",))
    for stack in itertools.permutations([d, e, waits, leads]):
        with pytest.raises(UserError, match=r"^techniques 'd' and 'e' each"):
            resolve_order(stack, "transform_batch")


def acting(name: str, **declared: object) -> Technique:
    return technique(name, transform_batch=lambda self, batch, moment: batch, **declared)


def test_a_need_that_no_technique_of_the_run_meets_is_refused_with_what_would_meet_it():
    config = compose([])
    needy = acting("needy", needs=("mixes examples",), effects=("mixes examples",))
    Stack([needy, acting("other", effects=("mixes examples",))], config)
    asleep = acting("asleep", effects=("mixes examples",), hooks=lambda self: ())
    asleep.settings.allow_noop = True
    for rest in ([], [acting("other")], [asleep]):
        with pytest.raises(UserError, match=r"'needy' needs another one that mixes examples, .*: add mixup$"):
            Stack([needy, *rest], config)
    with pytest.raises(UserError, match=r"'lost' needs another one that flies, .*: no installed technique"):
        Stack([acting("lost", needs=("flies",))], config)
