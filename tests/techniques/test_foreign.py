"""A technique from another package: the guide's own example, installed and run by processes of their own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from tfx.cli import main
from tfx.config import registry
from tfx.config.choices import choices
from tfx.config.compose import compose
from tfx.config.describe import technique_settings
from tfx.errors import UserError
from tfx.model.batch import Batch
from tfx.techniques.contract import Instant

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "technique.md"


YAML = "my_package/conf/technique/drop_tokens.yaml"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Lays the guide's example out as an installed distribution: a package, and metadata with its entry point."""
    text = GUIDE.read_text(encoding="utf-8")
    code = re.search(r"```python\n# my_package/techniques.py\n(.*?)```", text, re.S).group(1)
    entry = re.search(r"```toml\n\[project.entry-points.\"tfx.techniques\"\]\n(.*?)```", text, re.S).group(1)
    values = re.search(r"```yaml\n(# replaces .*?)```", text, re.S).group(1)
    site = tmp_path_factory.mktemp("site")
    package, info = site / "my_package", site / "my_package-1.0.dist-info"
    (site / YAML).parent.mkdir(parents=True)
    (site / YAML).write_text(values)
    (package / "__init__.py").touch()
    (package / "techniques.py").write_text(code)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tfx.techniques]\n" + entry.replace('"', ""))
    return site


def tfx(site, here, *arguments):
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": path, "TFX_CACHE": str(here / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "tfx", *arguments]
    return subprocess.run(command, env=variables, cwd=here, capture_output=True, text=True, check=False)


@pytest.mark.whole_process  # which finds an installed package
def test_the_readmes_technique_is_listed_trained_and_proved(site, tmp_path):
    listed = json.loads(tfx(site, tmp_path, "list", "technique", "--json").stdout)["technique"]["drop_tokens"]
    assert listed.splitlines()[0] == "replaces input tokens by padding, as noise"
    assert [line.partition(":")[0] for line in listed.splitlines()[1:]] == ["cost", "paper"]
    tiny = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]
    limits = [f"dataset.limit.{split}=20" for split in ("train", "valid", "test")]
    words = [
        "+technique=[drop_tokens,shuffle]",
        "technique.drop_tokens.end=0.9",
        "trainer.budget.steps=2",
        "technique.shuffle.share=1",
    ]
    done = tfx(site, tmp_path, "train", *tiny, *limits, *words, "hydra.run.dir=run", "evaluation.latency_inputs=1")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["techniques"] == ["drop_tokens", "shuffle"]
    assert summary["evidence"]["drop_tokens"]["share_dropped"] > 0.1
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["technique"]["drop_tokens"]
    # The YAML's, the user's, and the class's, in this order.
    assert settings == {"share": 0.2, "end": 0.9, "start": 0.0, "allow_noop": False}


TASKS = {
    "seq2seq": ["model.encoder_layers=1"],
    "lm": ["model=gpt_nano", "dataset=stdlib", "model.context=16", "dataset.tokenizer.kind=char"],
}


@pytest.mark.parametrize("task", TASKS)
def test_the_readmes_technique_resumes_to_the_same_bits_on_both_tasks(task, package, tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    tiny = ["model.decoder_layers=1", "model.width=16", "model.heads=2", "model.ffn_width=32", "evaluation=greedy"]
    tiny += [f"dataset.limit.{split}=20" for split in ("train", "valid", "test")] + ["evaluation.latency_inputs=1"]
    words = [*TASKS[task], *tiny, "technique=drop_tokens", "trainer.budget.steps=6", "trainer.accumulation=2"]
    words += ["trainer.save.every_steps=2", "trainer.save.keep=9", "dataset.batch_tokens=64", "trainer.precision=fp32"]
    words += ["technique.drop_tokens.start=0.3", "technique.drop_tokens.end=0.9"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", *words, f"hydra.run.dir={whole}"]) == 0
    shutil.copytree(whole, cut)
    for file in [*cut.glob("*.safetensors"), cut / "summary.json", *sorted((cut / "state").glob("step-*"))[1:]]:
        file.unlink()
    assert main(["resume", str(cut)]) == 0
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    evidence = [json.loads((run / "summary.json").read_text())["evidence"] for run in (whole, cut)]
    assert evidence[0] == evidence[1]
    assert 0.1 < evidence[0]["drop_tokens"]["share_dropped"] < 0.3


class NoWaiting(TorchDispatchMode):
    """Fails where a number is fetched from a tensor: on a GPU that waits for all that was asked of it before."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["drop_tokens", "shuffle", "mixup"])
@pytest.mark.parametrize("task", TASKS)
def test_transforming_a_batch_waits_for_no_device_and_stays_on_it(name, task, package):
    kind = registry.technique_class(name)
    technique = kind(kind.Settings(**({"share": 1.0} if name == "shuffle" else {})))
    tokens = torch.arange(4, 28).view(4, 6)
    tokens[1:, 4:] = 0
    source = tokens if task == "seq2seq" else None
    mask = tokens > 0 if task == "seq2seq" else None
    rows = np.arange(4)
    batch = Batch(tokens, tokens, source, mask, rows, tokens=24, positions=24, targets=24, special=(0, 1, 2))
    # What is made without the batch's device would be made on another one.
    with torch.device("meta"), NoWaiting():
        changed = technique.transform_batch(batch, Instant(seed=1, step=3, batch=0, progress=0.25))
    for field in ("target_in_BT", "source_BS"):
        value = getattr(changed, field)
        assert value is None or value.device.type == "cpu"
    assert changed is not batch


def check_drop_tokens(task):
    """Outside of its time the guide's technique leaves a batch alone; inside, it pads out words only."""
    kind = registry.technique_class("drop_tokens")
    technique = kind(kind.Settings(share=0.5, start=0.3, end=0.9))
    tokens = torch.arange(144).view(4, 36) % 9
    other = torch.full_like(tokens, 8)
    source, target = (tokens, other) if task == "seq2seq" else (None, tokens)
    batch = Batch(target, other, source, None, np.arange(4), tokens=144, positions=144, targets=144, special=(3, 1, 2))
    for progress in (0.0, 0.29, 0.9, 1.0):
        assert technique.transform_batch(batch, Instant(seed=1, step=3, batch=0, progress=progress)) is batch
    changed = technique.transform_batch(batch, Instant(seed=1, step=3, batch=0, progress=0.3))
    after = changed.target_in_BT if source is None else changed.source_BS
    moved = after != tokens
    assert set(after[moved].tolist()) == {3}
    assert set(tokens[moved].tolist()) == {0, 4, 5, 6, 7, 8}
    assert technique.evidence() == {"share_dropped": pytest.approx(int(moved.sum()) / 96)}
    assert torch.equal(changed.target_out_BT, other)
    assert source is None or torch.equal(changed.target_in_BT, target)


@pytest.mark.parametrize("task", TASKS)
def test_the_readmes_technique_drops_words_in_its_time(task, package):
    check_drop_tokens(task)


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("if not self.active(moment.progress):", "if False:"),
        ("for token in batch.special:", "for token in batch.special[1:]:"),
        ("for token in batch.special:", "for token in batch.special[:2]:"),
        ("tokens.masked_fill(drop, batch.special[0])", "tokens.masked_fill(drop, batch.special[1])"),
        ("< self.settings.share) & ~special", "< self.settings.share)"),
        ('"target_in_BT" if batch.source_BS is None else "source_BS"', '"target_out_BT"'),
    ],
)
def test_what_is_easily_forgotten_in_a_technique_is_found(line, broken, package):
    path = package / "my_package" / "techniques.py"
    code = path.read_text()
    assert code.count(line) == 1
    path.write_text(code.replace(line, broken))
    with pytest.raises(AssertionError):
        check_drop_tokens("seq2seq")


# --- where something is wrong, without a process for each ---------------------------------------------


@pytest.fixture
def package(site, tmp_path, monkeypatch):
    """A copy of the guide's package that is found in this process, and what it holds can be broken."""
    copy = shutil.copytree(site, tmp_path / "site")
    monkeypatch.syspath_prepend(copy)
    registry.entry_points.cache_clear()
    yield copy
    registry.entry_points.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(overrides)
    return str(caught.value)


def test_its_settings_are_checked_like_any_others(package):
    words = ["technique=drop_tokens"]
    assert "technique.drop_tokens.share=1 is out of range" in refused(*words, "technique.drop_tokens.share=1")
    assert "did you mean 'technique.drop_tokens.share'?" in refused(*words, "+technique.drop_tokens.shre=1")
    assert "did you mean 'drop_tokens'?" in refused("technique=drop_token")
    explained = {key: (default, doc) for key, default, doc in technique_settings("drop_tokens")}
    assert explained["technique.drop_tokens.share"][0] == 0.2
    assert "at least 0 and below 1" in explained["technique.drop_tokens.share"][1]


def test_without_a_yaml_the_class_says_the_settings_and_the_list_where_it_comes_from(package):
    (package / YAML).unlink()
    assert compose(["technique=drop_tokens", "technique.drop_tokens.end=0.5"]).technique["drop_tokens"]["share"] == 0.1
    assert choices("technique")["drop_tokens"] == "from my_package.techniques:DropTokens"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"drop_tokens: [1, 2\n", r"drop_tokens\.yaml is not readable YAML, repair it: "),
        (b"drop_tokens: {share: \xff}\n", r"drop_tokens\.yaml is not UTF-8"),
        (b"drop_tokens: " + b"[" * 3000, r"drop_tokens\.yaml is not readable YAML"),
        (b"- 1\n", r"drop_tokens\.yaml must hold .* 'drop_tokens:'"),
        (b"other: {share: 0.1}\n", r"drop_tokens\.yaml must hold .* 'drop_tokens:'"),
        (b"drop_tokens: 3\n", r"drop_tokens\.yaml must hold .* 'drop_tokens:'"),
        (b"drop_tokens: {shre: 3}\n", r"did you mean 'technique\.drop_tokens\.share'"),
    ],
    ids=range(7),
)
def test_a_broken_yaml_is_one_line_for_runs_that_choose_it_and_nothing_for_others(package, content, says):
    (package / YAML).write_bytes(content)
    message = refused("technique=[drop_tokens,shuffle]", "technique.drop_tokens.start=0.5")
    assert re.search(says, message)
    assert "\n" not in message
    assert compose(["technique=shuffle"]).technique.keys() == {"shuffle"}
    assert "drop_tokens" in choices("technique")


@pytest.mark.parametrize("content", ["import nothing_of_this_name", "def f(:", "1 / 0", ""])
def test_a_module_that_cannot_be_loaded_is_one_line_for_runs_that_choose_it(package, content):
    (package / YAML).unlink()
    (package / "my_package" / "techniques.py").write_text(content)
    message = refused("technique=drop_tokens", "technique.drop_tokens.share=0.5")
    assert message.startswith("technique 'drop_tokens' (my_package.techniques:DropTokens) cannot be loaded")
    assert compose(["technique=shuffle"]).technique.keys() == {"shuffle"}


def test_listing_and_composing_import_nothing_of_a_package_that_is_not_chosen(package):
    (package / "my_package" / "__init__.py").write_text("1 / 0")
    assert "drop_tokens" in choices("technique")
    compose(["technique=shuffle"])
    assert "my_package" not in sys.modules


def test_a_broken_yaml_ends_the_command_with_status_2(package, tmp_path):
    (package / YAML).write_text("a: [\n")
    done = tfx(package, tmp_path, "train", "technique=drop_tokens")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"tfx: {package / YAML} is not readable YAML")
