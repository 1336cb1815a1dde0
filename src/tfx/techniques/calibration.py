"""A slice of the training data, run through the model block by block, for methods that need the inputs of layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tfx.evaluation.out_of_memory import in_memory
from tfx.evaluation.scoring import score_loss
from tfx.model.batch import Batch
from tfx.model.label_loss import task_loss
from tfx.model.linear import Linear
from tfx.model.loss import projected_losses
from tfx.model.modes import scoring, uncompiled
from tfx.model.parameter_roles import is_within
from tfx.model.transformer import Transformer, run_batch
from tfx.record.seeds import derive_seed
from tfx.tasks.batches import training_batches

if TYPE_CHECKING:
    from tfx.config.schema import Root
    from tfx.data.tokenizer import Tokenizer
    from tfx.tasks.contract import Split
    from tfx.tasks.prepare import PreparedData


class _AllSeenError(Exception):
    """Leaves a forward pass."""


@dataclass(frozen=True)
class Validation:
    """The validation split, for what is chosen on it once the weights are what they will be."""

    split: Split
    tokenizer: Tokenizer
    batch_tokens: int


class Calibration:
    """Calibration batches of one model: ``batches(n)`` gives n of them, on its device. And its validation loss."""

    def __init__(
        self,
        model: Transformer,
        batches: Callable[[int], list[Batch]],
        validation_loss: Callable[[], float] | None = None,
        validation: Validation | None = None,
    ) -> None:
        self._model, self._make, self._score = model, batches, validation_loss
        self.validation = validation
        self._batches: list[Batch] = []

    @classmethod
    def on(cls, model: Transformer, data: PreparedData, config: Root, device: torch.device) -> Calibration:
        """On a slice of the training data, chosen by the run's seed, and the validation split."""

        def validation_loss() -> float:
            return score_loss(
                model,
                data.splits["valid"],
                data.tokenizer,
                batch_tokens=config.evaluation.batch_tokens,
                device=device,
            ).metrics["loss"]

        batches = partial(calibration_batches, data, config, model.architecture.context, device)
        validation = Validation(data.splits["valid"], data.tokenizer, config.evaluation.batch_tokens)
        return cls(model, batches, validation_loss, validation)

    def validation_loss(self) -> float:
        """The loss of the model as it is now, on validation data, in nats a target."""
        assert self._score is not None, "nothing to validate on was given"
        return self._score()

    def request(self, count: int) -> None:
        """Prepares this number of batches, once."""
        if len(self._batches) != count:
            self._batches = self._make(count)

    def inputs(self, names: Container[str], *, at_once: bool = False) -> Iterator[dict[str, Tensor]]:
        """The second moments (C, C) of what the named matrices are multiplied with, by name, in fp64.

        They come in groups, in the order of the forward pass: embeddings, a convolution, the layers of each block,
        other matrices.
        What is measured depends on the groups before: quantize a group before asking for the next. Or ask for all
        ``at_once``, as long as nothing has changed.

        A row of an embedding is looked up whole, so its moments are the identity. Where it is the output matrix too,
        its hidden states' moments count as much as the identity, with the same trace.
        """
        groups = [{name: module for name, module in group.items() if f"{name}.weight" in names}
                  for group in (self._embeddings(), self._convolution(), *self._blocks(), self._others())]  # fmt: skip
        if at_once:
            groups = [{name: module for group in groups for name, module in group.items()}]
        output = self._model.output
        for group in groups:
            tied = [name for name, module in group.items() if module is not output and module.weight is output.weight]
            measured = {name: module for name, module in group.items() if isinstance(module, nn.Linear)}
            moments = self.second_moments(measured | ({"output": output} if tied else {}))
            for name, module in group.items():
                if isinstance(module, nn.Embedding):
                    moments[name] = torch.eye(module.embedding_dim, dtype=torch.float64)
                if name in tied:
                    moments[name] = moments["output"] + moments["output"].diagonal().mean() * moments[name]
            yield {f"{name}.weight": moments[name] for name in group}

    def _blocks(self) -> Iterator[dict[str, nn.Module]]:
        for stack in ("encoder", "decoder"):
            for number, block in enumerate(getattr(getattr(self._model, stack), "blocks", ())):
                prefix = f"{stack}.blocks.{number}"
                yield {
                    f"{prefix}.{name}": module for name, module in block.named_modules() if isinstance(module, Linear)
                }

    def _embeddings(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self._model.named_modules() if isinstance(module, nn.Embedding)}

    def _convolution(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self._linear() if name.startswith("convolution.")}

    def _others(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self._linear() if not is_within(name)}

    def _linear(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Linear):
                yield name, module

    @torch.no_grad()
    def second_moments(self, layers: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
        """The mean of x x^T over the inputs x of each linear layer, (C, C) in fp64; padding is left out.

        A layer that no batch reaches has the identity. A batch that does not fit is cut, with a warning.
        """
        if not layers:
            return {}
        model = self._model
        sums = {
            name: layer.weight.new_zeros(int(layer.in_features), int(layer.in_features), dtype=torch.float64)
            for name, layer in layers.items()
        }
        counts = dict.fromkeys(layers, 0)
        # Of the batch that runs now.
        found: dict[str, tuple[Tensor, int]] = {}
        current: list[Batch] = []

        def add(name: str, x_BTC: Tensor) -> None:
            real_BT = _real(current[0], name)
            x_NC = x_BTC.flatten(0, -2) if real_BT is None or x_BTC.ndim == 2 else x_BTC[real_BT]
            # Products in fp32, as in the layer itself, summed in fp64 where the layer is.
            product_CC = (x_NC.t() @ x_NC).double()
            before, count = found.get(name, (0.0, 0))
            found[name] = before + product_CC, count + len(x_NC)

        seen: Counter[str] = Counter()

        def watch(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                add(name, inputs[0])
                seen[name] += 1
                if len(seen) == len(layers) and min(seen.values()) == model.architecture.passes:
                    raise _AllSeenError

            return hook

        # The output matrix is no part of the forward pass: losses multiply with it in slices.
        outputs = [name for name, layer in layers.items() if layer is model.output]
        handles = [
            layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items() if name not in outputs
        ]

        def measure(batch: Batch, positions: int) -> None:
            found.clear()
            for piece in batch.split(-(-batch.positions // positions)):
                current[:] = [piece]
                seen.clear()
                with suppress(_AllSeenError):  # what comes after the last layer is not needed
                    hidden_BTD = run_batch(model, piece)
                    for name in outputs:
                        add(name, hidden_BTD)

        try:
            with scoring(model), uncompiled(model):
                for batch in self._batches:
                    in_memory(batch.positions, partial(measure, batch))
                    for name, (total_CC, count) in found.items():
                        sums[name] += total_CC
                        counts[name] += count
        finally:
            for handle in handles:
                handle.remove()
        return {
            name: sums[name].cpu() / counts[name] if counts[name] else torch.eye(len(sums[name]), dtype=torch.float64)
            for name in layers
        }

    def squared_gradients(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The mean square of the gradient of each named weight, over its non-zero entries and the batches.

        It comes as the share of each row, (R,) in fp64: their sum is the mean. The loss is that of the task, without
        smoothing, over the batches that have targets. Where it is a negative log-likelihood, this is, up to a factor
        common to all weights, the mean of the diagonal of the empirical Fisher information. A batch that does not fit
        is cut, with a warning.
        """
        parameters = dict(self._model.named_parameters())
        batches = [batch for batch in self._batches if batch.is_labelled]
        weights = {name: parameters[name] for name in names}
        sums = {name: torch.zeros(len(weight), dtype=torch.float64) for name, weight in weights.items()}
        with scoring(self._model):
            for batch in batches:
                gradients = in_memory(batch.positions, partial(self._gradients, batch, list(weights.values())))
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    kept = weight != 0
                    square_R = (gradient * kept).double().square().sum(1) / kept.sum().clamp(min=1)
                    sums[name] += square_R.cpu() / batch.targets
        return {name: total / max(1, len(batches)) for name, total in sums.items()}

    @torch.enable_grad()
    def _gradients(self, batch: Batch, weights: list[nn.Parameter], positions: int) -> list[Tensor]:
        """Gradients of the summed loss of a batch, which runs in pieces of about this many positions."""
        sums = [torch.zeros_like(weight) for weight in weights]
        for piece in batch.split(-(-batch.positions // positions)):
            hidden_ND = run_batch(self._model, piece).flatten(0, 1)
            task = task_loss(self._model.architecture, piece, piece.targets_and_weights(), None, 0.0)
            loss, _ = projected_losses(*self._model.output_factors(hidden_ND), [(task, 1.0)], dtype=torch.float32)
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient
        return sums


def in_order(groups: Iterable[Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Names and moments of `Calibration.inputs` one by one: all of a group come before the next one is measured."""
    for group in groups:
        yield from group.items()


def calibration_batches(
    data: PreparedData, config: Root, context: int, device: torch.device, count: int
) -> list[Batch]:
    """A slice of the training data, chosen by the run's seed, on the device."""
    endless = training_batches(
        data.splits["train"],
        data.tokenizer,
        batch_tokens=config.dataset.batch_size,
        context=context,
        seed=derive_seed(config.seed, "calibration"),
    )
    return [batch.to(device) for batch in islice(endless, count)]


def _real(batch: Batch, name: str) -> Tensor | None:
    """Where the inputs of a layer are not padding. For what reads the source or its states, the source decides."""
    reads_source = name.startswith(("encoder.", "convolution.")) or name.endswith("pooling.score")
    if reads_source or ".cross.k" in name or ".cross.v" in name:
        return batch.source_mask_BS
    return batch.target_out_BT >= 0
