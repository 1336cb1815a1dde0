"""Each task is a file and an entry: the file has what the rest asks a task for, and the entry is true."""

import numpy as np
import pytest

from tfx.config.compose import compose
from tfx.config.task_facts import TASKS
from tfx.run.setup import Setup
from tfx.tasks import task_named
from tfx.tasks.batches import scoring_batches, training_batches
from tfx.tasks.contract import Split, Task

SMALL = ["model.width=16", "model.heads=2", "model.ffn_width=16", "dataset.limit.train=30"]
SMALL += ["dataset.limit.valid=8", "dataset.limit.test=8", "dataset.batch_tokens=512", "trainer.budget.steps=1"]


@pytest.fixture(params=list(TASKS))
def parts(request, tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path))
    data = {"seq2seq": "normalize", "lm": "stdlib", "classification": "kinds"}[request.param]
    layers = [] if request.param == "classification" else ["model.decoder_layers=1"]
    return Setup(compose([*layers, f"model={TASKS[request.param].example}", f"dataset={data}", *SMALL])).prepare({})


def test_the_example_model_is_for_the_task_and_its_splits_are_too(parts):
    assert parts.model.architecture.family == parts.data.task
    assert isinstance(task_named(parts.data.task), Task)
    assert all(isinstance(split, Split) for split in parts.data.splits.values())
    split = parts.data.splits[parts.data.test_split]
    assert (split.texts is not None) == TASKS[parts.data.task].decodes


def test_scoring_holds_every_row_once_and_training_only_rows_of_the_split(parts):
    split, context = parts.data.splits["valid"], parts.model.architecture.context
    found = [batch.rows for batch in scoring_batches(split, parts.data.tokenizer, batch_tokens=512, context=context)]
    places = np.concatenate([split.places(rows, context) for rows in found])
    assert sorted(places.tolist()) == list(range(split.scored_rows(context)))
    train = parts.data.splits["train"]
    endless = training_batches(train, parts.data.tokenizer, batch_tokens=512, context=context, seed=1)
    batch = next(endless)
    assert 0 < batch.targets <= batch.positions
    ids = np.unique(np.concatenate([np.unique(part) for part in train.tokens_of_all]))
    special = {parts.data.tokenizer.bos, parts.data.tokenizer.eos, parts.data.tokenizer.pad}
    assert set(batch.target_in_BT.unique().tolist()) <= set(ids.tolist()) | special
