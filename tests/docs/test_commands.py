"""Every command line of the README and of docs/ works: those that train are composed and planned, others run."""

import io
import re
import shlex
import shutil
from itertools import product
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tfx.cli import COMMANDS, main
from tfx.commands import resume
from tfx.compression.checkpoint import FileBytes, LoadedModel, save
from tfx.config.command_line import split_flags
from tfx.config.compose import compose
from tfx.config.grammar import of_job, where_chosen
from tfx.config.schema import Budget, EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data import normalize, stdlib
from tfx.data.tokenizer import Tokenizer
from tfx.evaluation.engines import opening
from tfx.exchange.target import Target
from tfx.exchange.to_transformers import write_folder
from tfx.experiments import trial
from tfx.experiments.design import Rates
from tfx.experiments.search import latency, size
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, count_parameters
from tfx.run import export_check as export
from tfx.run.export_texts import TextComparison

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """Page and line of each command: in blocks of shell, and between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").split("\n")]
        lines += re.findall(r"`(tfx [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.S))
        for line in lines:
            words = " ".join(line.split())
            if words.startswith("tfx ") and words.split()[1] in COMMANDS:
                found.append((page.name, words))
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the commands name: data, a run, a folder of configs, sentences."""
    here = tmp_path_factory.mktemp("docs")
    to = here / "path" / "to"
    for folder in ("multi30k", "pairs", "tinyshakespeare", "conf/dataset", "trec", "encoder"):
        (to / folder).mkdir(parents=True)
    for split in ("train", "val", "test"):
        for side in ("en", "de"):
            for folder in ("multi30k", "pairs"):
                text = "".join(f"{side} sentence {number} of {split}\n" for number in range(40))
                (to / folder / f"{split}.{side}").write_text(text)
    (to / "tinyshakespeare" / "input.txt").write_text("To be, or not to be: that is the question.\n" * 400)
    for split in ("train", "valid", "test"):
        rows = "".join(f"NUM\tNUM:{n % 2}\thow many {n} ?\nLOC\tLOC:{n % 2}\twhere is {n} ?\n" for n in range(20))
        (to / "trec" / f"{split}.tsv").write_text("label\tfine\ttext\n" + rows)
    rows = "".join(f"what is {number}?\tit is {number}\n" for number in range(40))
    (to / "questions.tsv").write_text("question\tanswer\n" + rows)
    (to / "conf" / "dataset" / "mine.yaml").write_text(f"name: mine\nformat: parallel\npath: {to / 'pairs'}\n")
    with open(to / "conf" / "dataset" / "mine.yaml", "a") as file:
        file.write("source: en\ntarget: de\n")
    (here / "sentences.txt").write_text("a first line\na second one\n")
    (here / "sentences.en").write_text("a first line\na second one\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(here / "cache"))
        patch.chdir(here)
        # A part of the embedded data, or each plan would prepare all of it.
        pairs = {split: rows[:60] for split, rows in normalize.generate(1).items()}
        texts = {split: rows[:3] for split, rows in stdlib.read().items()}
        kinds = {split: rows[:60] for split, rows in normalize.kinds(1, 300, 60, 60).items()}
        patch.setattr(normalize, "kinds", lambda seed: kinds)
        patch.setattr(normalize, "generate", lambda seed: pairs)
        patch.setattr(stdlib, "read", lambda: texts)
        tiny = ["model.width=64", "model.heads=2", "model.ffn_width=64", "model.encoder_layers=1"]
        tiny += ["model.decoder_layers=1", "evaluation=greedy", "evaluation.latency_inputs=1", "trainer.budget.steps=2"]
        data = ["dataset=multi30k", "dataset.path=path/to/multi30k", "dataset.tokenizer.vocab_size=300"]
        run = here / "outputs" / "RUN"
        assert main(["train", *data, *tiny, f"hydra.run.dir={run}"]) == 0
        for name in ("RUN", "BETTER_RUN", "TEACHER", "flag_1", "TUNED", "STUDENT", "SMALL"):
            (here / name).symlink_to(run)
        (to / "model").mkdir()
        write_folder(_small_model(MODEL), to / "model", "float32")
        encoder = _small_model(ENCODER)
        write_folder(encoder, to / "encoder", "float32")
        save(here / "encoder.safetensors", encoder.model, encoder.tokenizer, encoder.generation)
        assert main(["import", str(to / "model"), "--output", str(here / "model.safetensors")]) == 0
        (here / "docs").symlink_to(ROOT / "docs")
        (here / "runs").mkdir()
        (here / "runs" / "multi30k1200").symlink_to(run)
        yield here


MODEL = {"family": "lm", "encoder_layers": 0, "decoder_layers": 1}
ENCODER = {"family": "encoder", "encoder_layers": 1, "decoder_layers": 0, "norm_position": "post"}
ENCODER |= {"embedding_norm": True, "embedding_scale": False, "token_types": 2, "norm_eps": 1e-12}


def _small_model(settings: dict) -> LoadedModel:
    config = ModelConfig(width=64, heads=2, ffn_width=64, positions="learned", **settings)
    tokenizer = Tokenizer.train(TokenizerConfig(vocab_size=270), ["a few words"], word_initial_space=False)
    model = Transformer(Architecture.from_config(config, tokenizer.vocab_size))
    return LoadedModel(model, tokenizer, EvaluationConfig(), Path("ours"), [])


def words_of(line: str) -> list[str]:
    """The arguments of a command: without what only a shell reads, and without what a reader is to fill in."""
    line = re.split(r"\s#\s|\s[|<>]\s", f"{line} ")[0]
    words = [word.replace("outputs/*/*", "RUN") for word in shlex.split(line)[1:]]
    values = {index for index, word in enumerate(words) if "…" in word}
    options = {index - 1 for index in values if words[index - 1].startswith("--")}
    return [word for index, word in enumerate(words) if index not in values | options]


def _exported(*arguments):
    return TextComparison(inputs=1, tokens=1, largest=0, mean=0, loss=0, theirs=0, equal=1, scores={}, beams={})


def _two_bits(config, tokenizer, outputs=None, origin=None):
    weights = count_parameters(Architecture.from_config(config.model, tokenizer.vocab_size)) // 4
    return FileBytes(weights + 4000, weights, 1000, 3000)


def combinations(overrides: list[str]) -> list[list[str]]:
    """What a sweep composes: every combination of the values that are named; Hydra's own keys are its launcher's."""
    choices = []
    for word in overrides:
        override = OverridesParser.create().parse_override(word)
        if override.key_or_group.startswith("hydra"):
            continue
        if not override.is_sweep_override() or not override.is_choice_sweep():
            choices.append([] if override.is_sweep_override() else [word])
        else:
            choices.append([f"{override.input_line.partition('=')[0]}={v}" for v in override.sweep_string_iterator()])
    return [list(found) for found in product(*filter(None, choices))]


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value[:100])
def test_a_command_of_the_documentation_works(page, line, place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a first line\n\n")))
    command, *words = words_of(line)
    if command == "train" and "-m" in words:
        overrides, _ = split_flags(words)
        found = combinations(where_chosen(overrides))
        for each in found:
            compose(of_job(each)[0])
        assert found
        return
    # The folders that commands of a page give each other are there before their run is.
    words = [word for word in words if not word.startswith("hydra.run.dir=")]
    if command in ("train", "ablate", "search") and "--help" not in words:
        words += [] if "dry_run=true" in words else ["dry_run=true"]
    if command in ("ablate", "search"):  # their trials train: here they cost what they cost
        rates = Rates(seconds=1e-4, flops=1e6, steps=1e-3)
        known = {"distill": trial.TeacherTrial(Budget(), rates)}
        monkeypatch.setattr(
            trial,
            "try_configs",
            lambda configs, steps, environment: {
                name: trial.Trial(rates, True, known if "distill" in config.technique else {})
                for name, config in configs.items()
            },
        )
        monkeypatch.setattr(trial, "seconds_on_top", lambda words, environment: 1.0)
    if command == "search":  # no file is written for sizes: those of 2 bits per weight stand for them
        monkeypatch.setattr(size, "untrained_bytes", _two_bits)
        monkeypatch.setattr(latency, "untrained_latency_ms", lambda *arguments: 1.0)
    if command == "import":
        words[words.index("--output") + 1] = str(tmp_path / "model.safetensors")
    if command == "export":  # tests/exchange has the libraries
        monkeypatch.setattr(Target, "require", lambda target, what: None)
        monkeypatch.setattr(export, "export", _exported)
    if any("engine" in word for word in words):
        monkeypatch.setattr(opening, "open_engine", lambda loaded, config: None)
    if command == "resume":
        monkeypatch.setattr(resume, "resume", lambda *arguments, **options: None)
    if command == "reproduce" and not words:
        words = ["RUN"]
    if command == "resume" and not words:
        words = ["RUN"]
    if command == "report":
        words = [*(words or ["outputs"]), "--html", str(place / "page.html")]
    assert main([command, *words]) == 0, capsys.readouterr().err
    shutil.rmtree(place / "outputs" / "RUN-reproduced", ignore_errors=True)
    shutil.rmtree(place / "RUN-reproduced", ignore_errors=True)


def test_the_pages_have_commands_to_try():
    found = commands()
    assert len(found) > 40
    assert {page for page, _ in found} >= {"README.md", "RESULTS.md"}
