"""Word alignments: the attention that they stand on, and how tokens become words."""

from __future__ import annotations

import pytest
import torch

from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise
from tfx.tasks import alignment
from tfx.tasks.alignment import source_attention, word_alignment

SIZES = {"width": 16, "heads": 2, "ffn_width": 16, "context": 16, "dropout": 0.0, "encoder_layers": 1}


class Words:
    """Stands in for a tokenizer: token 10 w + i is the i-th piece of word w."""

    bos, eos = 1, 2

    def decode(self, ids):
        return "".join((" " if token % 10 == 0 else "") + "x" for token in ids).strip()


@pytest.mark.parametrize(("layers", "read"), [(1, 0), (2, 0), (3, 1)])
def test_the_weights_are_the_mean_of_the_heads_of_the_second_layer_from_the_top(layers, read):
    config = ModelConfig(decoder_layers=layers, positions="learned", **SIZES)
    model = Transformer(Architecture.from_config(config, 9)).eval()
    initialise(model, 3)
    source, target = [4, 5, 6, 2], [1, 7, 8, 3]
    cross = model.decoder.blocks[read].cross
    seen = []
    handle = cross.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[:2]))
    with torch.no_grad():
        model(torch.tensor([target[:-1]]), torch.tensor([source]))
        handle.remove()
        x, memory = seen[0]
        q, k = (layer(y)[0].view(-1, 2, 8).transpose(0, 1) for layer, y in ((cross.q, x), (cross.k, memory)))
        expected = (q @ k.mT / 8**0.5).softmax(-1).mean(0)
    torch.testing.assert_close(source_attention(model, source, target), expected)


def test_a_word_is_aligned_with_the_word_that_gets_the_most_attention(monkeypatch):
    source, output = [10, 11, 20, 30, 31], [10, 20, 21]
    weights = torch.tensor(
        [
            # The pieces of the first source word count together; the end token counts for nothing.
            [0.20, 0.20, 0.30, 0.00, 0.00, 0.30],
            [0.10, 0.10, 0.10, 0.30, 0.25, 0.15],
            [0.10, 0.00, 0.50, 0.10, 0.10, 0.20],
        ]
    )
    # 0.40 of the first word; of the second one 0.3, 0.6 and 0.75 from both of its pieces.
    monkeypatch.setattr(alignment, "source_attention", lambda model, source, target: weights)
    assert word_alignment(None, Words(), source, output) == [(0, 0), (2, 1)]
    assert word_alignment(None, Words(), source, []) == []
    assert word_alignment(None, Words(), [], output) == []
