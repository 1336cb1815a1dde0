"""Decoding step by step with keys and values that are kept: greedy, sampling, beam search."""

from tfx.model.decoding.decoder import Decoder
from tfx.model.decoding.output import Output
from tfx.model.decoding.rules import Ends, Rules, output_limit
from tfx.model.decoding.sampling import Picker, make_picker, sampling_distribution
from tfx.model.decoding.stepwise import Wanted, continue_text, continue_texts, outputs_for, translate

__all__ = [
    "Decoder",
    "Ends",
    "Output",
    "Picker",
    "Rules",
    "Wanted",
    "continue_text",
    "continue_texts",
    "make_picker",
    "output_limit",
    "outputs_for",
    "sampling_distribution",
    "translate",
]
