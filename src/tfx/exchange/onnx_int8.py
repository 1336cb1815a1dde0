"""Matrices of an ONNX graph in 8 bits, written as quantize and dequantize operators (QDQ).

Each output of a matrix has its own scale. Where the run's weights lie on such a grid, the graph holds its codes and
scales, and no weight changes; others are rounded here to the nearest of 255 levels. The inputs of products get one
scale and zero point at each call, from their minimum and maximum. onnxruntime joins the operators of a product into one
on integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfx.compression.checkpoint import LoadedModel
from tfx.compression.grid import Grid
from tfx.compression.int8 import fits_int8

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]


def quantize(model: Any, loaded: LoadedModel) -> None:
    """Replaces the matrices of a `ModelProto` by codes, in place."""
    _Rewriter(model.graph, loaded.model.architecture.vocab_size, _own_codes(loaded)).rewrite()


def own_matrices(loaded: LoadedModel) -> int:
    """How many matrices of a model leave with the codes of its own file."""
    return sum(map(fits_int8, loaded.grids.values()))


def _own_codes(loaded: LoadedModel) -> dict[bytes, tuple[Codes, Floats]]:
    """Codes and scales of the matrices that are in 8 bits already, by the hash of their values."""
    found = {}
    for grid in loaded.grids.values():
        if fits_int8(grid):
            found[_hash(grid.values().numpy())] = _codes_of(grid)
    return found


def _codes_of(grid: Grid) -> tuple[Codes, Floats]:
    assert grid.scale is not None
    codes = grid.codes_RC.numpy().astype(np.int16) - 128
    scale = grid.scale.float().expand(len(codes), 1).flatten().numpy()
    return codes.astype(np.int8), scale


def rounded(matrix_RC: Floats) -> tuple[Codes, Floats]:
    """Codes (R, C) from -127 to 127 and scales (R,); a row of zeros has the scale 1."""
    largest = np.abs(matrix_RC).max(1)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(matrix_RC / scale[:, None]).astype(np.int8), scale


def _hash(matrix: Floats) -> bytes:
    return sha256(np.ascontiguousarray(matrix, np.float32).tobytes()).digest()


class _Rewriter:
    """One graph. A matrix that several nodes read is stored once."""

    def __init__(self, graph: Any, vocab_size: int, own: Mapping[bytes, tuple[Codes, Floats]]) -> None:
        from onnx import numpy_helper

        self._graph, self._vocab_size, self._own = graph, vocab_size, own
        self._matrices = {
            item.name: numpy_helper.to_array(item)
            for item in graph.initializer
            if len(item.dims) == 2 and item.data_type == 1  # of floats
        }
        self._transposed = {
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "Transpose" and node.input[0] in self._matrices
        }
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []
        self._made: dict[str, str] = {}

    def rewrite(self) -> None:
        """Rewrites products by a matrix, and the lookups of rows of one."""
        for node in list(self._graph.node):
            name = node.input[1] if len(node.input) > 1 else ""
            if node.op_type == "Gather" and self._is_embedding(node.input[0]):
                self._look_up(node)
            elif node.op_type in ("MatMul", "Gemm") and (name in self._matrices or name in self._transposed):
                self._multiply(node, name)
            else:
                self._nodes.append(node)
        used = {name for node in self._nodes for name in node.input} | {value.name for value in self._graph.output}
        self._nodes = [node for node in self._nodes if node.op_type != "Transpose" or node.output[0] in used]
        used = {name for node in self._nodes for name in node.input}
        kept = [item for item in self._graph.initializer if item.name in used]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend([*kept, *self._tensors])

    def _is_embedding(self, name: str) -> bool:
        """Whether a matrix has a row for each token; a table of positions is small, and stays."""
        return name in self._matrices and len(self._matrices[name]) == self._vocab_size

    def _multiply(self, node: Any, name: str) -> None:
        """Its input and its matrix, each dequantized from 8 bits right before the product."""
        source = self._transposed.get(name, name)
        swapped = any(item.name == "transB" and item.i for item in node.attribute)
        # Rows of codes are outputs of the product.
        by_rows = source != name or swapped
        codes, scale = self._codes(source, by_rows)
        zero = self._zeros(source)
        weight = f"{source}.dequantized{'.t' if source != name else ''}"
        if weight not in self._made:
            self._made[weight] = weight
            if source != name:
                self._add("Transpose", [codes], [f"{codes}.t"], perm=[1, 0])
                codes = f"{codes}.t"
            self._add("DequantizeLinear", [codes, scale, zero], [weight], axis=0 if swapped else 1)
        node.input[1] = weight
        node.input[0] = self._input(node.input[0])
        self._nodes.append(node)

    def _input(self, name: str) -> str:
        """The input of a product through 8 bits; those of one input share its codes."""
        if name not in self._made:
            parts = [f"{name}.{part}" for part in ("codes", "scale", "zero")]
            self._add("DynamicQuantizeLinear", [name], parts)
            self._add("DequantizeLinear", parts, [f"{name}.dequantized"])
            self._made[name] = f"{name}.dequantized"
        return self._made[name]

    def _look_up(self, node: Any) -> None:
        """Looks codes and scales up, not the rows of a table that would be dequantized as a whole."""
        codes, scale = self._codes(node.input[0], True)
        output = node.output[0]
        self._add("Gather", [codes, node.input[1]], [f"{output}.codes"], axis=0)
        self._add("Gather", [scale, node.input[1]], [f"{output}.scale"], axis=0)
        self._add("Cast", [f"{output}.codes"], [f"{output}.float"], to=1)
        self._add("Unsqueeze", [f"{output}.scale", self._axes()], [f"{output}.column"])
        self._add("Mul", [f"{output}.float", f"{output}.column"], [output])

    def _axes(self) -> str:
        if "axes" not in self._made:
            self._made["axes"] = self._store("last_axis", np.asarray([-1], np.int64))
        return self._made["axes"]

    def _zeros(self, name: str) -> str:
        """The name of a zero for each scale.

        The standard has them by default. onnxruntime 1.32 fails without them in a `Gemm` on a processor that
        has no instructions for sums of products of bytes, where it makes unsigned codes of signed ones.
        """
        key = f"{name}.zero"
        if key not in self._made:
            scale = next(item for item in self._tensors if item.name == f"{name}.scale")
            self._made[key] = self._store(key, np.zeros(scale.dims[0], np.int8))
        return self._made[key]

    def _codes(self, name: str, by_rows: bool) -> tuple[str, str]:
        """The names of a matrix's codes, laid out as the matrix is, and of its scales."""
        key = f"{name}.codes"
        if key not in self._made:
            matrix = self._matrices[name] if by_rows else np.ascontiguousarray(self._matrices[name].T)
            codes, scale = self._own.get(_hash(matrix)) or rounded(matrix)
            self._store(key, codes if by_rows else np.ascontiguousarray(codes.T))
            self._store(f"{name}.scale", scale)
            self._made[key] = key
        return key, f"{name}.scale"

    def _store(self, name: str, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self._tensors.append(numpy_helper.from_array(array, name))
        return name

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, outputs, name=f"{outputs[0]}/{kind}", **attributes))
