"""Pruning: single weights by magnitude, and whole heads, units and layers."""

from tfx.techniques.prune.technique import Prune

__all__ = ["Prune"]
