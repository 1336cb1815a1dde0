"""Teachers through the command: trained first or named, of other shapes and tokenizers, and those that cannot teach."""

import hashlib
import json
from dataclasses import asdict

import pytest

from tfx.cli import main
from tfx.compression import checkpoint
from tfx.config.compose import compose
from tfx.record.directory import RunDirectory
from tfx.run.teacher import teacher_config
from tfx.techniques.stack import Stack

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=32",
    "model.decoder_layers=1",
    "trainer.budget.steps=3",
    "evaluation=greedy",
    "evaluation.latency_inputs=1",
    "evaluation.new_tokens=8",
]
PAIRS = ["model.encoder_layers=1", *(f"dataset.limit.{split}=20" for split in ("train", "valid", "test"))]
CHAR = ["dataset.tokenizer.kind=char"]
# Of the teacher: shorter than most pairs of the data.
CONTEXT = 40


def train(run, *overrides):
    return main(["train", *TINY, *overrides, f"hydra.run.dir={run}"])


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def char(folder):
    """A teacher of characters with a small context, trained until it writes something."""
    words = [f"model.context={CONTEXT}", "trainer.budget.steps=40", "optimizer.lr=0.01"]
    assert train(folder / "char", *PAIRS, *CHAR, *words) == 0
    return folder / "char"


@pytest.fixture(scope="module")
def lm(folder):
    """A teacher that is a language model."""
    assert train(folder / "lm", *lm_words(folder), "model.context=16") == 0
    return folder / "lm"


def lm_words(folder):
    data = ["dataset=text", f"dataset.path={folder / 'text.txt'}", "dataset.batch_tokens=64"]
    return ["model=gpt_nano", *data, *CHAR]


def test_a_teacher_of_another_model_is_trained_first_also_where_the_model_is_the_users_own(folder):
    models = folder / "conf" / "model"
    models.mkdir(parents=True)
    (models / "wider.yaml").write_text("name: wider\nwidth: 32\nheads: 2\nencoder_layers: 1\ndecoder_layers: 2\n")
    words = ["+technique=distill", "technique.distill.teacher_model=wider", "--config-dir", str(folder / "conf")]
    assert train(folder / "own-model", *PAIRS, *words) == 0
    reference = summary_of(folder / "own-model")["reference"]
    teacher, student = (checkpoint.load(path).model.architecture for path in (reference["path"], folder / "own-model"))
    assert (teacher.width, len(teacher.decoder)) == (32, 2)
    assert (student.width, len(student.decoder)) == (16, 1)


@pytest.mark.parametrize("name", ["steps", "tokens", "seconds"])
def test_a_teacher_is_trained_by_the_budget_that_is_named_for_it_else_by_twice_the_runs_own(name):
    words = ["+technique=distill", "trainer.budget.steps=30"]
    for override, expected in (([f"technique.distill.teacher_budget.{name}=7"], {name: 7}), ([], {"steps": 60})):
        config = compose([*words, *override])
        ((_, need),) = Stack.from_config(config).teacher_needs()
        budget = asdict(teacher_config(config, need).trainer.budget)
        assert {unit: value for unit, value in budget.items() if value is not None} == expected


def test_a_teacher_trained_first_knows_the_tokens_of_the_run_that_its_student_starts_from(folder, char, capsys):
    # The data named anew would have a tokenizer of their own.
    words = ["dataset=normalize", *PAIRS, "+technique=distill", "technique.distill.teacher_model=seq2seq_tiny"]
    words += ["technique.distill.teacher_budget.steps=1", "dataset.max_tokens=39"]
    assert train(folder / "same-tokens", f"init_from={char}", *words) == 0
    teacher = checkpoint.load(summary_of(folder / "same-tokens")["reference"]["path"])
    assert teacher.tokenizer.fingerprint == checkpoint.load(char).tokenizer.fingerprint
    (folder / "alone").mkdir()
    alone = folder / "alone" / "model.safetensors"
    alone.write_bytes((char / "model.safetensors").read_bytes())
    # A model file brings its model, so that no setting of one is named.
    own = [word for word in (*TINY, *words) if not word.startswith("model.")]
    assert main(["train", *own, f"init_from={alone}", f"hydra.run.dir={folder / 'no-tokens'}"]) == 2
    assert "no tokenizer.json beside it: name the run's directory" in capsys.readouterr().err
    assert not (folder / "no-tokens").exists()


def test_a_teacher_costs_what_all_the_trainings_cost_that_made_it(folder, char):
    assert train(folder / "further", f"init_from={char}") == 0
    words = ["+technique=distill", "trainer.budget.steps=1"]
    assert train(folder / "taught", f"init_from={folder / 'further'}", *words) == 0
    first, second, taught = (summary_of(run)["train"] for run in (char, folder / "further", folder / "taught"))
    for what in ("tokens", "seconds", "flops"):
        assert taught[f"teacher_{what}"] == pytest.approx(first[what] + second[what])
    assert summary_of(folder / "taught")["reference"]["train"]["steps"] == first["steps"] + second["steps"]


def test_a_teacher_of_another_tokenizer_teaches_by_its_outputs_which_are_made_once(folder, char, monkeypatch, capsys):
    words = ["+technique=distill", f"technique.distill.teacher={char}", "technique.distill.loss=none"]
    words.append("technique.distill.sequence_level=true")
    assert train(folder / "outputs", *PAIRS, *words) == 0
    first = summary_of(folder / "outputs")
    assert first["evidence"]["distill"]["targets_changed"] > 0
    assert "teacher" in first["reference"]["name"]
    # Longer test sentences than the teacher takes are cut for it, and that is said.
    assert f"cut to {CONTEXT - 1} tokens" in " ".join(capsys.readouterr().err.split())

    def again(*_, **__):
        raise AssertionError("decoded a second time")

    monkeypatch.setattr("tfx.techniques.distill.cache.decode_sources", again)
    assert train(folder / "outputs-2", *PAIRS, *words) == 0
    second = summary_of(folder / "outputs-2")
    assert second["test"] == first["test"]
    own = summary_of(char)["train"]["seconds"]
    assert first["train"]["teacher_seconds"] == second["train"]["teacher_seconds"] > own


def test_several_teachers_count_with_their_cost_and_are_known_by_their_files(folder, char, capsys):
    assert train(folder / "second", f"init_from={char}", "seed=7") == 0
    words = [*PAIRS, *CHAR, f"dataset.max_tokens={CONTEXT - 1}", "+technique=distill", "technique.distill.relations=1"]
    words.append(f"technique.distill.teacher=[{char},{folder / 'second'}]")
    assert train(folder / "by-two", *words) == 0
    found = summary_of(folder / "by-two")
    teachers = [RunDirectory(folder / name).training_cost() for name in ("char", "second")]
    assert found["train"]["teacher_tokens"] == sum(cost["tokens"] for cost in teachers)
    assert found["train"]["teacher_flops"] == pytest.approx(sum(cost["flops"] for cost in teachers))
    assert found["evidence"]["distill"]["relation_divergence"] > 0
    assert found["reference"]["path"] == str(char)
    fingerprints = json.loads((folder / "by-two" / "environment.json").read_text())["fingerprints"]
    files = [(folder / name / "model.safetensors").read_bytes() for name in ("char", "second")]
    assert [fingerprints[name] for name in ("teacher of distill", "teacher of distill (2)")] == [
        hashlib.sha256(file).hexdigest() for file in files
    ]
    assert main(["reproduce", str(folder / "by-two"), "--folder", str(folder / "by-two-again")]) == 0
    twice = refusal(folder, capsys, *words[:-1], f"technique.distill.teacher=[{char},{char}]")
    assert "names one teacher twice" in twice
    other = ["dataset.tokenizer.kind=bpe", "dataset.tokenizer.vocab_size=300"]
    assert "another tokenizer" in refusal(folder, capsys, *words, *other)


def test_a_teacher_translates_text_without_references_as_more_data(folder, char):
    (folder / "more.txt").write_text("".join(f"{number} dollars and {number} cents\n" for number in range(12)))
    more = f"dataset.monolingual={folder / 'more.txt'}"
    words = [*PAIRS, "+technique=distill", f"technique.distill.teacher={char}", "technique.distill.sequence_level=true"]
    words += ["technique.distill.loss=none", "dataset.monolingual_share=0.5", "trainer.budget.steps=12"]
    assert train(folder / "more", *words, "dataset.batch_tokens=256", more) == 0
    found = summary_of(folder / "more")
    (own, other) = found["data"]["mix"]
    assert (own["dataset"], other["dataset"]) == ("normalize", "monolingual")
    assert other["tokens"] > 0
    written = found["evidence"]["distill"]["texts_written"]
    assert 0 < written <= 12
    assert found["data"]["train"] == 20 + written
    # What goes on from it without a teacher has no use for such text.
    assert train(folder / "goes-on", f"init_from={folder / 'more'}") == 0


def test_only_the_teacher_says_what_to_make_of_a_language_models_other_text(folder, lm):
    words = [*lm_words(folder), "model.context=16", "+technique=distill", f"technique.distill.teacher={lm}"]
    words += [f"dataset.monolingual={folder / 'text.txt'}", "dataset.monolingual_share=0.5"]
    words += ["technique.distill.alpha=1", "trainer.budget.steps=12"]
    assert train(folder / "lm-more", *words) == 0
    found = summary_of(folder / "lm-more")
    assert 0.1 < found["evidence"]["distill"]["unlabelled_share"] < 0.9
    assert [part["dataset"] for part in found["data"]["mix"]] == ["text", "monolingual"]


def refusal(folder, capsys, *words):
    capsys.readouterr()
    assert train(folder / "refused", *words) == 2
    assert not (folder / "refused").exists()
    return capsys.readouterr().err


def test_a_reference_of_a_smaller_context_is_measured_on_what_it_takes(folder, char, capsys):
    assert train(folder / "referred", *PAIRS, *CHAR, f"reference={char}") == 0
    assert f"cut to {CONTEXT - 1} tokens" in " ".join(capsys.readouterr().err.split())
    assert summary_of(folder / "referred")["reference"]["test"] == summary_of(char)["test"]


MODES = {
    "logits": [],
    "hidden": ["technique.distill.loss=none", "technique.distill.hidden=1"],
    "outputs": ["technique.distill.loss=none", "technique.distill.sequence_level=true"],
    "layers": ["technique.distill.loss=none", "technique.distill.initialise=true"],
}


def test_each_way_to_learn_from_a_teacher_changes_the_model_in_its_own_way(folder, char):
    fitting = [*PAIRS, *CHAR, f"dataset.max_tokens={CONTEXT - 1}"]
    taught = [*fitting, "+technique=distill", f"technique.distill.teacher={char}"]
    digests = set()
    for name, words in {"untaught": fitting, **{name: [*taught, *mode] for name, mode in MODES.items()}}.items():
        assert train(folder / f"by-{name}", *words) == 0
        digests.add(hashlib.sha256((folder / f"by-{name}" / "model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1 + len(MODES)


TAUGHT = ["+technique=distill", "technique.distill.teacher={char}"]
BY_LM = [*PAIRS, "+technique=distill", "technique.distill.teacher={lm}"]
NO_LOSS = "technique.distill.loss=none"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*PAIRS, *TAUGHT], ["technique.distill.loss=forward_kl: the teacher has another tokenizer"]),
        ([*PAIRS, *TAUGHT, NO_LOSS, "technique.distill.hidden=1"], ["technique.distill.hidden=1: the teacher has ano"]),
        ([*PAIRS, *TAUGHT, NO_LOSS, "technique.distill.initialise=true"], ["initialise=true: the teacher has another"]),
        ([*PAIRS, *CHAR, *TAUGHT], ["the teacher", f"takes {CONTEXT}: set dataset.max_tokens={CONTEXT - 1}"]),
        (
            [*PAIRS, *CHAR, *TAUGHT, "model.width=32", NO_LOSS, "technique.distill.initialise=true"],
            ["initialise", "width: 16 is not 32"],
        ),
        (BY_LM, ["technique.distill.loss=forward_kl needs a teacher of the student's own family"]),
        ([*BY_LM, NO_LOSS, "technique.distill.hidden=1"], ["hidden=1 needs a teacher of the student's own family"]),
        ([*BY_LM, NO_LOSS, "technique.distill.sequence_level=true"], ["is a language model", "text to text"]),
        (["{lm_words}", "model.context=24", *BY_LM[-2:]], ["have up to 24 tokens", "takes 16: set model.context=16"]),
        (
            [*PAIRS, *TAUGHT, "technique.distill.teacher_model=seq2seq_small"],
            ["technique.distill.teacher=", "technique.distill.teacher_model=seq2seq_small", "keep one of them"],
        ),
        (
            [*PAIRS, *TAUGHT, "technique.distill.teacher_budget.steps=9"],
            ["technique.distill.teacher=", "is a teacher that exists", "leave the budget out"],
        ),
        (
            ["init_from={char}", "+technique=distill", "technique.distill.teacher_budget.steps=9"],
            ["init_from=", "is a teacher that exists", "leave the budget out"],
        ),
        (
            [*PAIRS, "+technique=distill", "technique.distill.loss=reverse_kl", "technique.distill.cache_top_k=4"],
            ["loss=reverse_kl", "cache_top_k=4"],
        ),
        (
            [*PAIRS, *TAUGHT, NO_LOSS, "technique.distill.hidden=1", "trainer.budget.steps=0"],
            ["'distill' acts only while training, and the budget is zero"],
        ),
        ([*PAIRS, *CHAR, "reference={lm}"], ["reference", "is for another task"]),
        ([*PAIRS, "reference={char}", "dataset.metrics=[]"], ["reference", "another tokenizer"]),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_in_one_line_and_leaves_nothing(
    overrides, words, folder, char, lm, capsys
):
    filled = [word.format(char=char, lm=lm) for word in overrides if word != "{lm_words}"]
    if "{lm_words}" in overrides:
        filled = [*lm_words(folder), *filled]
    capsys.readouterr()
    assert train(folder / "refused", *filled) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error
    assert not (folder / "refused").exists()


def test_no_teacher_is_trained_for_settings_that_do_not_fit_the_model(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path))
    words = ["+technique=[distill,quantize]", "technique.quantize.group=7"]
    assert train(folder / "unfit", *PAIRS, *words) == 2
    assert "technique.quantize.group=7 does not divide" in capsys.readouterr().err
    assert not (tmp_path / "teachers").exists()
    assert not (folder / "unfit").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("teacher=nowhere", "nowhere does not exist"),
        ("teacher_model=seq2seq_smal", "did you mean 'seq2seq_small'?"),
        ("teacher_model=gpt_nano", "for a language model"),
    ],
)
def test_a_dry_run_says_that_a_teacher_cannot_be_had(setting, words, folder, capsys):
    run = ["dry_run=true", "+technique=distill", f"technique.distill.{setting}"]
    assert train(folder / "dry", *PAIRS, *run) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert not (folder / "dry").exists()


def test_an_ablation_refuses_a_teacher_of_another_tokenizer_as_a_run_does(folder, char, capsys):
    words = ["+technique=distill", f"technique.distill.teacher={char}", "trial_steps=4", "hydra.sweep.dir=ablation"]
    capsys.readouterr()
    assert main(["ablate", *TINY, *PAIRS, *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("trying ")]
    assert len(errors) == 1
    assert "arm distill: technique.distill.loss=forward_kl: the teacher has another tokenizer" in errors[0]
    assert not (folder / "ablation").exists()
