"""tfx: train Transformers efficiently, and know what each technique bought."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfx.compression.checkpoint import LoadedModel, load

__all__ = ["LoadedModel", "load"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `tfx --help` must not wait for torch.
    if name in __all__:
        from tfx.compression import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module 'tfx' has no attribute '{name}'")
