"""`trainer.profile`: a table and a trace of a few steps."""

from __future__ import annotations

import gzip
import json
import time
from types import SimpleNamespace

import pytest
import torch

from tfx.config.compose import compose
from tfx.processes.group import Group
from tfx.processes.place import Place
from tfx.run.setup import build_model, read_inputs
from tfx.techniques.stack import Stack
from tfx.training.loop import Observer, Trainer
from tfx.training.profile import StepProfile, part, table

CPU = torch.device("cpu")
TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("dataset.limit.train=40", "dataset.limit.valid=5", "dataset.limit.test=5", "dataset.batch_tokens=64"),
    *("trainer.device=cpu", "trainer.validate_every=1", "trainer.profile=true"),
]


class Watch(Observer):
    def __init__(self, folder):
        self.folder, self.tables = folder, []

    def profiled(self, table, write_trace):
        self.tables.append(table)
        write_trace(self.folder / "trace.json.gz")


def shares(text):
    """The share of each part, by name, from the first block of a table."""
    block = text.split("\n\n")[1].splitlines()[1:]
    return {line[:60].strip(): float(line.split()[-1].rstrip("%")) / 100 for line in block}


@pytest.mark.parametrize(("steps", "expected"), [(12, 5), (7, 2), (5, 0)])
def test_a_training_reports_once_where_its_steps_time_goes(steps, expected, tmp_path, capfd):
    config = compose([*TINY, f"trainer.budget.steps={steps}"])
    _, data = read_inputs(config)
    watch = Watch(tmp_path)
    Trainer(config, build_model(config, data, CPU, None), data, CPU, watch, Stack.from_config(config)).train()
    assert len(watch.tables) == bool(expected)
    said = capfd.readouterr().err  # the profiler's own words are not for the console
    assert not [line for line in said.splitlines() if "rofiler" in line or "Toggling" in line]
    if not expected:
        return
    (text,) = watch.tables
    assert f"the mean of {expected} steps" in text
    found = shares(text)
    assert set(found) == {"batches", "forward and loss", "backward", "optimizer", "averaging", "the rest"}
    assert sum(found.values()) == pytest.approx(1.0, abs=0.01)
    assert "aten::" in text
    names = {event.get("name") for event in json.loads(gzip.open(tmp_path / "trace.json.gz").read())["traceEvents"]}
    assert {"tfx: backward", "tfx: optimizer"} <= names


def test_of_several_processes_it_says_which_one_and_names_their_exchange(tmp_path):
    config = compose([*TINY, "trainer.budget.steps=7"])
    _, data = read_inputs(config)
    watch, group = Watch(tmp_path), Group(Place(1, 2, 1, 2, "", 0))
    trainer = Trainer(
        config, build_model(config, data, CPU, None), data, CPU, watch, Stack.from_config(config), group=group
    )
    trainer._validate = lambda: False
    trainer.train()
    (text,) = watch.tables
    assert "in process 1 of 2" in text
    assert "exchange" in shares(text)


def test_parts_have_the_time_that_they_take(tmp_path):
    watch = Watch(tmp_path)
    profile = StepProfile(CPU, watch.profiled)
    for _ in range(10):
        with part("long"):
            time.sleep(0.03)
        with part("short"):
            time.sleep(0.01)
        profile.stepped()
    found = shares(watch.tables[0])
    assert found["long"] > 2 * found["short"] > 0.2


def test_what_is_no_part_of_a_step_is_left_out(tmp_path):
    watch = Watch(tmp_path)
    profile = StepProfile(CPU, watch.profiled)
    for step in range(10):
        with part("long"):
            time.sleep(0.01)
        if step % 2:
            with profile.paused():
                torch.linalg.qr(torch.ones(3, 3))
                time.sleep(0.1)
        profile.stepped()
    (text,) = watch.tables
    assert shares(text)["long"] > 0.5
    assert "qr" not in text


def test_on_a_gpu_operations_are_listed_by_the_gpus_time():
    def event(key, host, gpu):
        return SimpleNamespace(
            key=key, cpu_time_total=host, self_cpu_time_total=host, self_device_time_total=gpu, count=4
        )

    events = [event("tfx: forward", 3000.0, 0.0), event("launch", 9000.0, 0.0), event("gemm", 1.0, 8000.0)]
    lines = table(events, 0.01, 2, torch.device("cuda")).splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("gemm", "launch"))] == ["gemm", "launch"]
    assert next(line for line in lines if line.startswith("gemm")).split() == ["gemm", "4.00", "80.0%", "2.0"]
