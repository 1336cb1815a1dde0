"""Knowledge distillation: soft targets, hidden states, a teacher's outputs, and its layers as a start."""

from tfx.techniques.distill.technique import Distill

__all__ = ["Distill"]
