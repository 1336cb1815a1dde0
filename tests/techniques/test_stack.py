"""The stack: order by declared effects, conflicts, plans, proof, and the same bytes in any typed order."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from tfx.cli import main
from tfx.config.compose import compose
from tfx.errors import UserError
from tfx.techniques.contract import Technique, TechniqueSettings
from tfx.techniques.stack import NoEffectError, Stack, resolve_order

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=32",
    "model.encoder_layers=1",
    "model.decoder_layers=1",
    "trainer.budget.steps=3",
    "dataset.limit.train=200",
    "dataset.limit.valid=10",
    "dataset.limit.test=10",
    "evaluation.latency_inputs=1",
    "evaluation.beam=1",
]


@pytest.fixture
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TFX_CACHE", str(folder))
    return folder


def run(folder: Path, *overrides: str) -> dict:
    assert main(["train", *TINY, *overrides, f"hydra.run.dir={folder}"]) == 0
    return json.loads((folder / "summary.json").read_text())


def test_typed_order_never_changes_a_byte_and_every_technique_changes_some(cache, tmp_path):
    digests = set()
    for order in itertools.islice(itertools.permutations(["shuffle", "mixup", "distill"]), 0, 6, 2):
        folder = tmp_path / "-".join(order)
        summary = run(folder, f"technique=[{','.join(order)}]", "technique.distill.hidden=0.1")
        assert summary["techniques"] == ["shuffle", "mixup", "distill"]
        digests.add(hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1
    for name, without in (
        ("shuffle", "[mixup,distill]"),
        ("mixup", "[shuffle,distill]"),
        ("distill", "[shuffle,mixup]"),
    ):
        hidden = [] if name == "distill" else ["technique.distill.hidden=0.1"]
        run(tmp_path / f"no-{name}", f"technique={without}", *hidden)
        digests.add(hashlib.sha256((tmp_path / f"no-{name}" / "model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 4


def test_a_teacher_is_trained_once_and_its_cost_stands_in_every_run_that_uses_it(cache, tmp_path):
    first = run(tmp_path / "a", "+technique=distill")
    second = run(tmp_path / "b", "+technique=distill", "technique.distill.temperature=2")
    assert first["train"]["teacher_tokens"] > first["train"]["tokens"]
    assert second["train"]["teacher_tokens"] == first["train"]["teacher_tokens"]
    assert second["train"]["teacher_seconds"] == first["train"]["teacher_seconds"]
    assert first["reference"]["sha256"] == second["reference"]["sha256"]
    environment = json.loads((tmp_path / "a" / "environment.json").read_text())
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
def test_what_cannot_work_ends_before_training_with_one_line(overrides, words, cache, tmp_path, capsys):
    assert main(["train", *TINY, *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_a_technique_that_did_nothing_fails_the_run():
    stack = Stack.from_config(compose(["technique=shuffle"]))
    with pytest.raises(NoEffectError, match="shuffle"):
        stack.evidence()
    Stack.from_config(compose(["technique=shuffle", "technique.shuffle.allow_noop=true"])).evidence()


def technique(name: str, **declared: tuple[str, ...]) -> Technique:
    return type(name, (Technique,), {"name": name, **declared})(TechniqueSettings())


def test_order_follows_effects_in_both_directions_and_cycles_are_named():
    a, b, c = technique("a", after=("x",)), technique("b", effects=("x",)), technique("c", before=("x",))
    assert [t.name for t in resolve_order([a, b, c], "transform_batch")] == ["c", "b", "a"]
    d, e = technique("d", after=("y",), effects=("z",)), technique("e", after=("z",), effects=("y",))
    with pytest.raises(UserError, match="'d' and 'e'"):
        resolve_order([d, e], "transform_batch")
