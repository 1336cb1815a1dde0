"""Quantization: weights on a grid of few levels, by rounding, by error feedback, or by clustering."""

from tfx.techniques.quantize.technique import Quantize

__all__ = ["Quantize"]
