"""Makes int8 weights out of fp32 ones: several times as fast on a CPU with int8 dot products, and not quite the same.

Static quantisation with a scale for each channel of the weights, after Jacob et al. (Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference, 2018), by ONNX Runtime's own tool. Only convolutions are
quantised, for they take the time; their activation (SiLU) and what is joined between them stay fp32, since their ranges
differ too much for one scale of 8 bits. The first convolution, the last ones and the decoding of boxes stay fp32 too:
boxes have to be exact to a pixel in 640.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dangerous_driving.camera.frame import Image
from dangerous_driving.detection.cpu import CpuEngine
from dangerous_driving.errors import ConfigError

#: Fewer pictures do not show the range of every channel.
MIN_PICTURES = 8


def quantize_onnx(engine: CpuEngine, weights: Path, pictures: Sequence[Image], out: Path) -> Path:
    """Write int8 weights.

    Args:
        engine: with the fp32 weights.
        weights: their file.
        pictures: of the cameras that they will be used on, or like them: day and night, empty and busy.
        out: where to.

    Raises:
        ConfigError: the package ``onnx`` is not installed, or there are too few pictures.
    """
    if len(pictures) < MIN_PICTURES:
        raise ConfigError("--pictures", f"{len(pictures)} is too few", f"give at least {MIN_PICTURES}, better 100")
    try:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ConfigError(
            "weights quantize",
            f"{error.name} is not installed",
            "install the extra: python -m pip install -e '.[quantize]' in the checkout",
        ) from error

    class Pictures(quantization.CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self._inputs: Iterator[dict[str, Any]] = (
                {engine.layout.input_name: engine.input_of(picture)} for picture in pictures
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared, made = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        # not the symbolic shapes: the inference of those needs sympy, and nothing here needs them
        quant_pre_process(str(weights), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantization.quantize_static(
            str(prepared),
            str(made),
            Pictures(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[*_first_convolutions(graph), *_head(graph)],
        )
        network = onnx.load(made)
        # the tool drops what the file says of itself
        known = {entry.key for entry in network.metadata_props}
        for key, value in engine.metadata.items():
            if key not in known:
                network.metadata_props.add(key=key, value=value)
        draft = out.with_suffix(".onnx.new")
        onnx.save(network, draft)
        draft.replace(out)
    return out


def _first_convolutions(graph: Any) -> list[str]:
    inputs = {item.name for item in graph.input}
    return [node.name for node in graph.node if node.op_type == "Conv" and inputs & set(node.input)]


def _head(graph: Any) -> list[str]:
    """Everything from the last convolutions of more than one channel on (the box decoding has one of one)."""
    producers = {output: node for node in graph.node for output in node.output}
    channels = {item.name: item.dims[0] for item in graph.initializer if len(item.dims) > 1}
    found: list[str] = []
    waiting = [item.name for item in graph.output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in found:
            continue
        found.append(node.name)
        if not (node.op_type == "Conv" and channels.get(node.input[1], 0) > 1):
            waiting.extend(node.input)
    return found
