"""`dataset.document_mask`: a text is scored and trained on as if it stood alone, whatever shares its window."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from tfx.config.compose import compose
from tfx.config.schema import DatasetConfig, TokenizerConfig
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.evaluation.scoring import score_loss
from tfx.model.transformer import run_batch
from tfx.run.setup import Setup
from tfx.tasks import task_named
from tfx.tasks.batches import training_batches
from tfx.tasks.prepare import prepare_data

ROWS = [f"{'abcdefg'[i % 7] * (1 + i % 5)} {i * i % 37}" for i in range(60)]
SMALL = ["model=gpt_nano", "model.width=16", "model.heads=2", "model.ffn_width=16", "model.decoder_layers=1"]
SMALL += ["model.context=24", "dataset.batch_tokens=96", "trainer.precision=fp32"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    for name, rows in (("train", ROWS), ("valid", ROWS[:20])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return tmp_path


def words(folder, *more: str) -> list[str]:
    data = ["dataset=json", "dataset.task=lm", "dataset.metrics=[]", f"dataset.path={folder}"]
    return [*data, "dataset.tokenizer.kind=char", *SMALL, *more]


def texts_alone(parts) -> float:
    """The loss of the validation texts, each of them in a sequence of its own: all but the token that begins it."""
    tokenizer, model = parts.data.tokenizer, parts.model.eval()
    total, targets = 0.0, 0
    for place, row in enumerate(ROWS[:20]):
        ids = [*([tokenizer.eos] if place else []), *tokenizer.encode([row])[0], tokenizer.eos]
        logits = model.project(model(torch.tensor([ids[:-1]]))[0])
        total += functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        targets += len(ids) - 1
    return total / targets


def test_the_loss_of_a_split_is_that_of_its_texts_one_by_one(folder):
    """In a window that holds the whole split. One that begins inside a text has no more of it than without the mask."""
    parts = Setup(compose(words(folder, "dataset.document_mask=true", "model.context=400"))).prepare()
    options = {"batch_tokens": 400, "device": torch.device("cpu")}
    score = score_loss(parts.model, parts.data.splits["valid"], parts.data.tokenizer, **options)
    assert len(score.nll) == 1
    assert score.metrics["loss"] == pytest.approx(texts_alone(parts), abs=1e-5)
    joined = Setup(compose(words(folder, "model.context=400"))).prepare()
    plain = score_loss(joined.model, joined.data.splits["valid"], joined.data.tokenizer, **options)
    assert abs(plain.metrics["loss"] - score.metrics["loss"]) > 1e-3
    # The same targets and bytes: bits per byte can be compared.
    assert (plain.total_targets, plain.text_bytes) == (score.total_targets, score.text_bytes)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_training_window_shows_no_text_another_one(folder, streaming):
    more = ["dataset.document_mask=true", f"dataset.streaming={str(streaming).lower()}", "dataset.buffer=30"]
    parts = Setup(compose(words(folder, *more))).prepare()
    tokenizer, model = parts.data.tokenizer, parts.model.eval()
    options = {"batch_tokens": 96, "context": 24, "seed": 1}
    batch = next(training_batches(parts.data.splits["train"], tokenizer, **options))
    hidden = run_batch(model, batch)
    for row, states in zip(batch.target_in_BT, hidden, strict=True):
        begins = [0, *(np.flatnonzero(row[1:].numpy() == tokenizer.eos) + 1).tolist(), len(row)]
        pieces = [row[first:last] for first, last in pairwise(begins)]
        assert len(pieces) > 1
        alone = torch.cat([model(piece.unsqueeze(0))[0] for piece in pieces])
        torch.testing.assert_close(states, alone, atol=1e-5, rtol=0)


def test_corpora_of_a_mixture_take_it_from_the_run_unless_they_say_otherwise(folder):
    entries = f"[{{dataset: json, task: lm, path: {folder}}}, {{dataset: json, task: lm, path: {folder}, name: b"
    base = [word for word in words(folder) if not word.startswith("dataset.path")] + ["dataset.document_mask=true"]
    config = compose([*base, f"dataset.mix={entries}, document_mask: false}}]"])
    assert [entry["document_mask"] for entry in config.dataset.mix] == [True, False]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["dataset.join=' '"], "'json' is one text"),
        (["technique=distill", "technique.distill.on_policy=0.5", "technique.distill.teacher_model=gpt_nano"], "leave"),
    ],
)
def test_what_does_not_go_with_it_is_refused(folder, more, told):
    with pytest.raises(UserError, match=told) as raised:
        Setup(compose(words(folder, "dataset.document_mask=true", *more))).prepare()
    assert "dataset.document_mask" in str(raised.value)


def test_in_the_tokens_of_a_teacher_documents_begin_with_its_own_token(folder):
    """So whatever spells the texts anew, by other tokens or other pieces, has no places to carry along."""
    config = DatasetConfig(task="lm", format="json", path=str(folder), tokenizer=TokenizerConfig(kind="char"))
    config.document_mask = True
    data = prepare_data(config, context=24)
    other = Tokenizer.train(TokenizerConfig(kind="bpe", vocab_size=300), ROWS, word_initial_space=False)
    other.eos, other.bos = other.bos, other.eos
    batch = next(training_batches(data.splits["train"], data.tokenizer, batch_tokens=96, context=24, seed=1))
    told = task_named("lm").retold(batch, data.tokenizer, other, 24).batch
    assert told.document_start == other.eos != batch.document_start
    assert (told.target_in_BT == told.document_start).sum() > len(told.rows)


def test_text_to_text_has_no_use_for_it():
    with pytest.raises(UserError, match=r"dataset\.document_mask is for a language model"):
        compose(["dataset.document_mask=true"])


def test_a_model_that_begins_its_texts_itself_begins_documents_there(folder):
    config = DatasetConfig(task="lm", format="json", path=str(folder), tokenizer=TokenizerConfig(kind="char"))
    config.document_mask = True
    data = prepare_data(config, context=24)
    assert data.splits["train"].document_start == data.tokenizer.eos

    class Roles:
        begins_texts, never = True, ()

        def to_dict(self):
            return {"begins_texts": True}

    data.tokenizer.roles = Roles()
    again = prepare_data(config, context=24, tokenizer=data.tokenizer)
    assert again.splits["train"].document_start == data.tokenizer.bos
    tokens = again.splits["train"].tokens
    assert (tokens[np.flatnonzero(tokens == data.tokenizer.eos)[:-1] + 1] == data.tokenizer.bos).all()
