"""Pruning: single weights by one of several scores, and whole heads, units and layers."""

from tfx.techniques.prune.technique import Prune

__all__ = ["Prune"]
