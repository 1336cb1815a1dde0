"""What a user types is what the run gets, keeps, and reads back."""

from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.cli import main
from tfx.config import compose
from tfx.config.grammar import literal, of_job, quoted, where_chosen
from tfx.config.hydra_driver import in_place
from tfx.errors import UserError

TEXTS = ["1e5", "true", "null.csv", "0x10", "a b", " lead", "a,b", "[v2] (x).csv", "{q}: {c}", "it's", 'say "hi"']
TEXTS += [
    "a\\",
    "a\\'",
    "50%",
    "#x",
    "a: b",
    "~t",
    "-1",
    "ü/名前.csv",
    "a\nb",
    "=",
    "$x",
    "range(1,3)",
    "glob(*)",
    "`a`",
    "a,",
    "007",
    "no",
    "on",
    "2026-01-01",
    "$HOME",
    "a${b",
    "@x",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_the_config_is_what_was_typed_and_what_is_read_back(text, tmp_path):
    config = compose.compose([f"dataset.name={text}", f"dataset.source={text}"])
    assert (config.dataset.name, config.dataset.source) == (text, text)
    file = tmp_path / "config.yaml"
    file.write_text(compose.to_yaml(config), encoding="utf-8")
    assert compose.load(file) == config
    assert compose.change(config, [f"dataset.target={text}"]).dataset.target == text
    assert compose.change(config, []) == config


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00\x85\u2028\u2029"), min_size=1))
@settings(deadline=None, max_examples=200)
def test_any_text_in_quotes_is_read_as_itself(text):
    assert OverridesParser.create().parse_override(f"dataset.path={quoted(text)}").value() == text


def test_an_interpolation_is_resolved_and_its_escape_is_not():
    assert compose.compose(["dataset.name=s${seed}"]).dataset.name == "s1"
    assert compose.compose(["dataset.name=s\\${seed}"]).dataset.name == "s${seed}"
    with pytest.raises(UserError, match=r"key 'b' not found; for a text with \$\{ in it, write \\\$\{"):
        compose.compose(["dataset.name=a${b}"])


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("dataset.name='a b'", "dataset.name='a b'"),  # quoted already
        ("reference=null", "reference=null"),
        ("seed=3", "seed=3"),
        ("model=gpt_nano", "model=gpt_nano"),
        ("dataset.metrics=[bleu,1e5]", "dataset.metrics=['bleu','1e5']"),
        ("technique.quantize.skip=[a.*,true]", "technique.quantize.skip=['a.*','true']"),
        ("hydra.run.dir=/tmp/a,b", "hydra.run.dir='/tmp/a,b'"),
    ],
)
def test_only_texts_are_quoted(word, read):
    assert literal(word) == read


def test_a_sweep_keeps_its_choices():
    assert literal("dataset.name=a,b", sweep=True) == "dataset.name=a,b"
    assert literal("dataset.name=choice(a,b)", sweep=True) == "dataset.name=choice(a,b)"
    assert literal("dataset.name=1e5", sweep=True) == "dataset.name='1e5'"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1,2"], "tfx: seed=1,2 names several values: sweep over them with `tfx train -m seed=1,2`"),
        (
            ["dataset.source={a}", "{b}"],
            "tfx: '{b}' is not an override: write key=value; if it belongs to the word before it, quote both: "
            "'dataset.source={a} {b}'",
        ),
        (["model.width={a"], "if its value is one text, type \"model.width='{a'\""),
        (["-m", "model.width={a", "seed=1,2"], "tfx: model.width={a cannot be read"),
    ],
)
def test_what_hydra_cannot_read_is_one_line_with_the_form_to_type(words, message, capsys):
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("dataset/mine.yml", ["--config-dir", ".", "dataset=mine"]),
        ("own.yml", ["--config-dir", ".", "--config-name", "own"]),
        ("own.yml", ["--config-dir", ".", "--config-name", "own.yml"]),
        ("own.yml", ["--config-path", "{here}", "--config-name", "own"]),
        ("experiment/mine.yml", ["hydra.searchpath=[file://{here}]", "experiment=mine"]),
        ("experiment/mine.yml", ["hydra.searchpath=[{here}]", "experiment=mine"]),
        ("dataset/multi30k.yml", ["--config-dir", "."]),  # there is another of that name
    ],
)
def test_a_yaml_file_of_another_ending_is_named(file, words, here, capsys):
    (here / file).parent.mkdir(exist_ok=True)
    (here / file).write_text("name: mine\n")
    assert main(["train", "dry_run=true", *(word.format(here=here) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"{file} is not read because of its ending: rename it to {Path(file).stem}.yaml\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name=???", "name=??? has no value"),
        ("tags=[a,???]", "tags=??? has no value"),
        ("tags=a", 'tags is a list, even with one value: type "tags=[a]"'),
        ("dataset.metrics=bleu", 'type "dataset.metrics=[bleu]"'),
        ("tags=a,b", "a list of them is \"tags=['a','b']\""),
        ("tags=[x,{a}]", "if its items are texts, type \"tags=['x','{a}']\""),
        ("tags=null", "tags cannot be null: leave it out for its default"),
        ("name =a", "'name =a' cannot be read: leave out the spaces around 'name'"),
        ("seed=1e3", "seed is a whole number: write 1000"),
        ("~name", "settings cannot be removed"),
        ("~model.width", "settings cannot be removed"),
        ("--name=a", "unrecognized arguments: --name=a; a setting has no dashes"),
        ("--info=nope", "invalid choice: 'nope'"),
    ],
)
def test_a_word_that_means_nothing_is_one_line_that_says_what_to_type(word, message, capsys):
    assert main(["train", "dry_run=true", word]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("word", ["technique=null", "+technique=none", "technique=None", "technique=[]"])
def test_no_technique_is_the_empty_list(word):
    assert compose.compose([word]).technique == {}


def test_two_lists_of_techniques_are_refused(capsys):
    assert main(["train", "+technique=quantize", "+technique=prune"]) == 2
    assert "the last list would count alone: write one, '+technique=[a,b]'" in capsys.readouterr().err
    assert list(compose.compose(["+technique=quantize", "+technique=[quantize,prune]"]).technique)  # nothing is lost


@pytest.mark.parametrize("word", ["technique=[quantize,", "dataset.mix=[{dataset:"])
def test_a_word_that_a_space_has_cut_is_to_be_quoted(word, capsys):
    assert main(["train", word, "prune]"]) == 2
    assert f"a shell ends a word at a space, so quote all of it: '{word} …'" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["tfx", "basic"])
def test_a_sweep_over_techniques_has_their_settings_where_they_are_chosen(launcher, here, capsys):
    words = [
        *("model.width=16", "model.heads=2", "model.ffn_width=32", "dataset.limit.train=20", "dataset.limit.valid=5"),
        *("dataset.limit.test=5", "trainer.budget.steps=1", "evaluation=greedy", "evaluation.latency_inputs=1"),
        *("technique=[],[quantize]", "technique.quantize.bits=5", "technique.quantize.granularity=channel"),
    ]
    assert main(["train", "-m", *words, f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"]) == 0
    bits = [yaml.safe_load((here / f"sweep/{job}/config.yaml").read_text())["technique"] for job in (0, 1)]
    assert bits[0] == {}
    assert bits[1]["quantize"]["bits"] == 5
    typed = yaml.safe_load((here / "sweep/1/overrides.yaml").read_text())
    assert "technique.quantize.bits=5" in typed
    assert not [word for word in typed if word.startswith("+")]


def test_a_setting_of_a_technique_is_for_the_jobs_of_a_sweep_that_choose_it():
    words = ["technique=[],[quantize],[quantize,prune]", "technique.quantize.bits=4", "technique.prune.sparsity=0.3"]
    placed = where_chosen(words)
    assert placed[1:] == ["++technique.quantize.bits=4", "++technique.prune.sparsity=0.3"]
    assert where_chosen(["technique=[quantize],[quantize,prune]", f"+{words[1]}"])[1] == placed[1]
    whole = "technique.quantize={bits:4}"
    assert where_chosen([words[0], whole])[1] == f"++{whole}"
    assert of_job(["technique=[]", f"++{whole}"]) == (["technique=[]"], {"quantize"})
    assert where_chosen(["technique=[],[prune]", words[1]])[1] == words[1]  # which no job chooses: an error
    for chosen in ([], ["quantize"], ["quantize", "prune"]):
        own, idle = of_job([f"technique=[{','.join(chosen)}]", *placed[1:]])
        assert sorted(idle) == sorted({"quantize", "prune"} - set(chosen))
        assert not [word for word in own if word.startswith("+")]
        found = compose.compose(own).technique
        assert sorted(found) == sorted(chosen)
        assert not chosen or found["quantize"]["bits"] == 4


@pytest.mark.parametrize(
    ("typed", "placed"),
    [
        ("technique=none,quantize", "technique=[],[quantize]"),
        ("technique=[quantize,prune],null", "technique=[quantize,prune],[]"),
        ("technique=None", "technique=[]"),
        ("technique=[quantize],prune", "technique=[quantize],prune"),  # nothing to replace
    ],
)
def test_none_and_null_are_the_empty_list_among_others_too(typed, placed):
    assert in_place([typed]) == [placed]


@pytest.mark.parametrize("word", ["technique=[[]]", "technique=[[],[quantize]]"])
def test_a_list_of_lists_is_answered_with_how_a_sweep_is_typed(word):
    with pytest.raises(UserError, match=r"is a list of lists: type several for a sweep"):
        in_place([word])


def test_an_unknown_technique_in_a_list_is_answered_with_the_known_one():
    with pytest.raises(UserError, match="technique 'quantise' is unknown: did you mean 'quantize'"):
        compose.compose(["technique=[prune,quantise]"])
