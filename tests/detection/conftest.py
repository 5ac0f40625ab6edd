"""Tiny real ONNX files, written byte by byte (the onnx package is no dependency)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

WriteOnnx = Callable[..., Path]

FLOAT, INT64 = 1, 7  # of onnx.TensorProto.DataType

NAMES = ("person", "bicycle", "car", "train")


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | str | bytes) -> bytes:
    """One protobuf field: a varint, or something with a length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def value_info(name: str, shape: Sequence[int | str], kind: int = FLOAT) -> bytes:
    dims = b"".join(field(1, field(1, side) if isinstance(side, int) else field(2, side)) for side in shape)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))


def tensor(name: str, values: NDArray[np.float32 | np.int64]) -> bytes:
    kind = INT64 if values.dtype == np.int64 else FLOAT
    dims = b"".join(field(1, side) for side in values.shape)
    return dims + field(2, kind) + field(8, name) + field(9, values.tobytes())


def node(operation: str, inputs: Sequence[str], output: str) -> bytes:
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, operation)


def model(graph: bytes, metadata: Mapping[str, str]) -> bytes:
    properties = b"".join(field(14, field(1, key) + field(2, value)) for key, value in metadata.items())
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)) + properties


@pytest.fixture
def write_onnx(tmp_path: Path) -> WriteOnnx:
    """Writes a network that answers every picture with the given boxes, whatever it shows.

    ``answer`` is one picture's: (4 + classes) x n, or n x 6 end to end.
    """

    def write(
        answer: NDArray[np.float32],
        *,
        name: str = "tiny.onnx",
        shape: Sequence[int | str] = ("batch", 3, 64, 64),
        metadata: Mapping[str, str] | None = None,
        class_names: Sequence[str] = NAMES,
    ) -> Path:
        if metadata is None:
            metadata = {"task": "detect", "names": str(dict(enumerate(class_names)))}
        # the answer, repeated for each picture of the batch
        nodes = [
            node("Shape", ["images"], "sides"),
            node("Gather", ["sides", "first"], "batch"),
            node("Concat", ["batch", "rest"], "target"),
            node("Expand", ["answer", "target"], "output0"),
        ]
        nodes[2] += field(5, field(1, "axis") + field(3, 0) + field(20, 2))
        graph = b"".join(field(1, each) for each in nodes) + field(2, "tiny")
        graph += field(5, tensor("answer", answer[None].astype(np.float32)))
        graph += field(5, tensor("first", np.array([0], np.int64)))
        graph += field(5, tensor("rest", np.array(answer.shape, np.int64)))
        graph += field(11, value_info("images", shape))
        graph += field(12, value_info("output0", (shape[0], *answer.shape)))
        path = tmp_path / name
        path.write_bytes(model(graph, metadata))
        return path

    return write
