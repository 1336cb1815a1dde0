"""Settings of the model and of its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from tfx.config.schema.fields import setting
from tfx.config.task_facts import TASKS


@dataclass
class ModelConfig:
    """The Transformer's architecture."""

    name: str = setting("custom", "name shown in tables")
    family: str = setting(
        "seq2seq",
        "encoder-decoder, decoder-only, an encoder with a layer for labels on top, or an encoder alone, from which "
        "such a classifier starts",
        choices=(*TASKS, "encoder"),
        paper="Vaswani 2017, arXiv 1706.03762; Radford 2019; Devlin 2019, arXiv 1810.04805",
    )
    encoder_layers: int = setting(4, "encoder blocks (0 for a language model)", minimum=0, maximum=1000)
    decoder_layers: int = setting(4, "decoder blocks (0 for classification)", minimum=0, maximum=1000)
    passes: int = setting(
        1,
        "how many times the blocks of a stack run, one after the other: depth without more weights",
        minimum=1,
        maximum=100,
        paper="Dehghani 2019, arXiv 1807.03819; Lan 2020, arXiv 1909.11942; Takase & Kiyono 2021, arXiv 2104.06022",
    )
    width: int = setting(128, "model width d", minimum=2, maximum=65536)
    heads: int = setting(4, "attention heads", minimum=1, maximum=1024)
    kv_heads: int | None = setting(
        None,
        "key/value heads; null: as many as heads",
        minimum=1,
        maximum=1024,
        paper="grouped-query attention, Ainslie 2023, arXiv 2305.13245",
    )
    ffn_width: int = setting(256, "feed-forward width", minimum=1, maximum=1048576)
    context: int = setting(256, "longest sequence that the model takes", minimum=2, maximum=1048576, unit="tokens")
    positions: str = setting(
        "sinusoidal",
        "position information",
        choices=("sinusoidal", "learned", "rotary", "alibi", "relative"),
        paper="Vaswani 2017; Gehring 2017; Su 2021, arXiv 2104.09864; Press 2021, arXiv 2108.12409; "
        "Raffel 2020, arXiv 1910.10683",
    )
    rotary_base: float = setting(
        10000.0, "rotary: base of the wavelengths", above=1, paper="Su 2021; Xiong 2023, arXiv 2309.16039"
    )
    rotary_scaling: str = setting(
        "none",
        "rotary: how a longer context than trained is reached; linear: positions divided by the factor; "
        "llama3: only the long wavelengths",
        choices=("none", "linear", "llama3"),
        paper="Chen 2023, arXiv 2306.15595; Grattafiori 2024, arXiv 2407.21783",
    )
    rotary_factor: float = setting(1.0, "rotary scaling: the factor", minimum=1)
    rotary_low: float = setting(
        1.0, "llama3: wavelengths that fit less often into the trained context are scaled", above=0, unit="times"
    )
    rotary_high: float = setting(
        4.0, "llama3: wavelengths that fit more often into the trained context are kept", above=0, unit="times"
    )
    rotary_context: int = setting(
        8192, "llama3: the context that the model was trained with", minimum=2, maximum=1048576, unit="tokens"
    )
    relative_buckets: int = setting(
        32, "relative: number of distances told apart, half of them exact", minimum=4, maximum=4096
    )
    relative_distance: int = setting(
        128, "relative: larger distances are one", minimum=4, maximum=1048576, unit="tokens"
    )
    norm_position: str = setting(
        "pre", "norm before or after each sub-layer", choices=("pre", "post"), paper="Xiong 2020, arXiv 2002.04745"
    )
    norm: str = setting(
        "layernorm",
        "kind of norm",
        choices=("layernorm", "rmsnorm"),
        paper="Ba 2016, arXiv 1607.06450; Zhang 2019, arXiv 1910.07467",
    )
    norm_eps: float | None = setting(
        None, "added to the variance in each norm; null: 1e-5 (layernorm) or 1e-6 (rmsnorm)", above=0, maximum=1
    )
    activation: str = setting(
        "relu",
        "feed-forward activation; swiglu and geglu gate; _tanh: with the approximate GELU",
        choices=("relu", "gelu", "gelu_tanh", "silu", "relu2", "swiglu", "geglu", "geglu_tanh"),
        paper="Hendrycks 2016, arXiv 1606.08415; Shazeer 2020, arXiv 2002.05202; So 2021, arXiv 2109.08668",
    )
    qk_norm: bool = setting(False, "RMS-normalise queries and keys of each head", paper="Henry 2020, arXiv 2010.04245")
    bias: bool = setting(True, "biases in linear layers and norms")
    attention_bias: bool | None = setting(None, "biases in the projections of attention; null: as bias")
    ffn_bias: bool | None = setting(None, "biases in the feed-forward layers; null: as bias")
    output_bias: bool = setting(False, "a bias for each logit")
    tied_embeddings: str = setting(
        "all",
        "which embeddings share one matrix: source, target and output (all); target and output (output); "
        "source and target (inputs); none",
        choices=("all", "output", "inputs", "none"),
        paper="Press 2017, arXiv 1608.05859",
    )
    embedding_scale: bool = setting(
        True, "embeddings are multiplied by the square root of the width", paper="Vaswani 2017, section 3.4"
    )
    embedding_norm: bool = setting(
        False, "a norm of the sum of embeddings and positions", paper="Devlin 2019, arXiv 1810.04805"
    )
    token_types: int = setting(
        0,
        "kinds of tokens with an embedding of their own, such as first and second sentence; 0: no such embedding",
        minimum=0,
        maximum=1024,
        paper="Devlin 2019, arXiv 1810.04805",
    )
    convolution: int = setting(
        0,
        "encoders: how many neighbouring tokens a convolution before the first block reads, an odd number; 0: there is "
        "none",
        minimum=0,
        maximum=31,
        paper="Kim 2014, arXiv 1408.5882; Mohamed 2019, arXiv 1904.11660",
    )
    pooling: str = setting(
        "mean",
        "classification: how the states of a text become one: that of the first token, their mean, their maximum, or a "
        "mean with learned weights",
        choices=("first", "mean", "max", "attention"),
        paper="Devlin 2019, arXiv 1810.04805; Kim 2014, arXiv 1408.5882; Lin 2017, arXiv 1703.03130",
    )
    pooler: bool = setting(
        False,
        "classification: a dense layer with tanh between pooling and the layer for labels",
        paper="Devlin 2019, arXiv 1810.04805",
    )
    dropout: float = setting(
        0.1, "dropout of embeddings and of each sub-layer's output", minimum=0, below=1, paper="Srivastava 2014"
    )
    attention_dropout: float = setting(0.0, "dropout of attention weights", minimum=0, below=1)
    ffn_dropout: float = setting(0.0, "dropout after the feed-forward activation", minimum=0, below=1)
    token_dropout: float = setting(
        0.0, "share of input tokens whose embedding is zeroed", minimum=0, below=1, paper="Gal 2016, arXiv 1512.05287"
    )
    layer_dropout: float = setting(
        0.0, "share of blocks skipped per step", minimum=0, below=1, paper="LayerDrop, Fan 2020, arXiv 1909.11556"
    )


@dataclass
class TokenizerConfig:
    """The tokenizer, trained on the training split only."""

    kind: str = setting(
        "bpe",
        "byte-level BPE, unigram, or single characters",
        choices=("bpe", "unigram", "char"),
        paper="Sennrich 2016, arXiv 1508.07909; Kudo 2018, arXiv 1804.10959",
    )
    vocab_size: int = setting(
        8000, "entries, special tokens included (char: the largest number)", minimum=8, maximum=1000000
    )
    split_digits: bool = setting(False, "every digit is a separate token")
    lowercase: bool = setting(False, "texts are read in lower case, and outputs written in it: for classification")
    rows: int = setting(
        1_000_000,
        "most rows of the training split that it is trained on: of more, evenly spaced ones; of a stream, the first",
        minimum=1,
    )
    path: str | None = setting(
        None, "a tokenizer.json, or a model folder of transformers, to use unchanged instead of training one", path=True
    )


# The rates of a model; unlike its architecture they may change from run to run.
RATES = ("dropout", "attention_dropout", "ffn_dropout", "token_dropout", "layer_dropout")
