"""Configs that Hydra or YAML would answer with a traceback, or never."""

import re
from pathlib import Path

import pytest

from tfx.config import command_line, compose
from tfx.errors import UserError


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> str:
    """The message with which a job that does nothing is refused."""
    with pytest.raises(UserError) as caught:
        command_line.run_with_hydra(lambda config, typed, directory: None, list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def choice(tmp_path: Path, content: str | bytes, group: str = "model") -> list[str]:
    folder = tmp_path / "conf" / group
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return ["--config-dir", str(tmp_path / "conf"), f"{group}=bad"]


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("width: [1, 2\nheads: 3\n", r"not YAML: .*line 2"),
        ("width: !!python/object/apply:os.system ['touch owned']\n", "constructor"),
        (b"width: \xff\n", r"bad\.yaml is not UTF-8 \(byte 7\)"),
        (LAUGHS, r"bad\.yaml: its aliases .* expand"),
        ("width: &a [*a]\n", "aliases"),
        ("width: " + "[" * 3000 + "]" * 3000, "recursion"),
        ("defaults:\n  - [[a]]\n", "defaults"),
        ("- 1\n", "."),
        ("width: ${\n", "."),
    ],
    ids=range(9),
)
def test_a_broken_file_of_the_users_folder_is_one_line_and_leaves_nothing(content, says, tmp_path, here):
    assert re.search(says, run(*choice(tmp_path, content)))
    assert not list(here.iterdir())


def test_an_environment_that_cannot_be_set_leaves_no_folder(tmp_path, here):
    content = "# @package _global_\nhydra:\n  job:\n    env_set: {A: [1]}\n"
    run(*choice(tmp_path, content, "experiment"))
    assert not list(here.iterdir())


@pytest.mark.parametrize("folder", ["x" * 300, "/dev/null/run", "/proc/nope/run"])
def test_a_run_directory_that_cannot_be_made_is_one_line(folder, here):
    assert folder.removesuffix("/run") in run(f"hydra.run.dir={folder}")


@pytest.mark.parametrize("folder", ["", "."])
def test_the_folder_that_one_stands_in_is_not_removed_though_it_is_empty(folder, here):
    run(f"hydra.run.dir={folder}", "seed=-1")
    assert here.is_dir()


def test_aliases_that_stay_small_are_allowed(tmp_path, here):
    content = "encoder_layers: &n 2\ndecoder_layers: *n\n"
    command_line.run_with_hydra(lambda config, typed, directory: None, choice(tmp_path, content))


@pytest.mark.parametrize(
    "override",
    ["seed=${seed}", "seed=${nope}", "trainer.log_every=${oc.env:TFX_NOPE}", "model.width=[${oc.decode:'['}]"],
)
def test_an_interpolation_that_cannot_be_resolved_is_one_line_of_ours_alone(override, here, capfd):
    run(override)
    assert capfd.readouterr().err == ""


def test_a_bug_in_a_job_is_not_the_users_fault(here):
    def job(config, typed, directory):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        command_line.run_with_hydra(job, [])


def test_overrides_are_given_to_the_job_as_they_were_typed(here):
    seen = []
    command_line.run_with_hydra(lambda config, typed, directory: seen.extend(typed), ["trainer.log_every=${seed}"])
    assert seen == ["trainer.log_every=${seed}"]


@pytest.mark.parametrize(
    "override",
    ["trainer.budget.seconds=inf", "optimizer.clip_norm=inf", "trainer.log_every=" + "9" * 30, "seed=-" + "9" * 400],
)
def test_numbers_without_a_bound_of_their_own_are_finite_and_fit_64_bits(override):
    with pytest.raises(UserError, match="out of range"):
        compose.compose([override])


@pytest.mark.parametrize("content", ["- 1\n", "a: [\n", "\0", "a: " + "[" * 3000, "seed: &a [*a]\n", "seed: x\n"])
def test_a_saved_config_that_is_broken_is_named(content, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        compose.load(path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("dataset=nope", "dataset 'nope' is unknown"),
        ("evaluation.beam=[", r"evaluation\.beam=\[ cannot be read "),
        ("evaluation.beam=!!python/object/apply:os.system ['touch owned']", "cannot be read"),
        ("evaluation.beam=&a [*a]", "cannot be read"),
        ("seed=${seed}", "seed: Recursive interpolation"),
        ("dataset.splits=3", "SplitConfig"),
        ("a.b=1", "key 'a' is unknown"),
    ],
)
def test_a_change_to_a_saved_config_that_cannot_be_is_one_line(override, says, here):
    with pytest.raises(UserError, match=says):
        compose.change(compose.compose([]), ["evaluation.beam=3", override])
    assert not list(here.iterdir())


@pytest.mark.parametrize("override", ["model=seq2seq_tyni", "+technique=distil"])
def test_a_choice_that_is_missing_is_no_missing_file(override, here):
    assert "did you mean" in run(override)


def test_a_setting_of_a_technique_that_is_not_chosen_says_how_to_choose_it(here):
    for others in ([], ["+technique=prune"]):
        said = run("technique.factorize.parameters=0.5", *others)
        assert "technique 'factorize' has settings here but is not chosen: add +technique=factorize, " in said
    assert "technique 'factorise' is unknown: did you mean 'factorize'" in run("technique.factorise.parameters=0.5")
    assert "key 'technique.prune.sparsty' is unknown" in run("+technique=prune", "technique.prune.sparsty=0.5")


def test_a_message_stays_short_and_keeps_its_end():
    text = str(UserError("x" * 50_000 + ": set it lower"))
    assert len(text) < 1100
    assert text.endswith("set it lower")


def test_a_group_in_a_list_of_words_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("dataset:\n  splits:\n    valid:\n    - a\n    - val: x\n")
    with pytest.raises(UserError, match=r"dataset\.splits\.valid=.* list of single values"):
        compose.load(path)
