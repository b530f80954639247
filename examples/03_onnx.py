"""ONNX in, ONNX out: compile an ONNX file, and let ONNX Runtime judge what graphc made of it."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, save_model

import graphc
from graphc.exporters.onnx import export

generator = np.random.default_rng(0)
weight = generator.standard_normal((8, 3, 3, 3)).astype(np.float32)
calibration = [generator.standard_normal((1, 3, 16, 16)).astype(np.float32) for _ in range(8)]
x = calibration[0]
model = helper.make_model(
    helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weight"], ["features"], name="stem", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["features"], ["result"], name="activation"),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, (1, 8, 16, 16))],
        [numpy_helper.from_array(weight, "weight")],
    ),
    opset_imports=[helper.make_opsetid("", 18)],
    ir_version=10,
)


def by_onnxruntime(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": x})[0]


with tempfile.TemporaryDirectory() as folder:
    source, exported = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
    save_model(model, source)

    # A watcher sees the graph after every pass; the last one is the graph that is compiled.
    graphs: list[graphc.Graph] = []
    watch = [lambda step, before, after: graphs.append(after)]
    artifact = graphc.compile(source, calibration=calibration, watch=watch)
    export(graphs[-1], exported)

    ours, judged = artifact.run(x), by_onnxruntime(exported)
    print(f"input '{artifact.plan['inputs'][0]['name']}' {x.shape}, result {ours.shape}")
    print(f"ONNX Runtime gives the int8 graph the same bits: {np.array_equal(ours, judged)}")
    lost = np.abs(ours - by_onnxruntime(source)).max() / np.abs(ours).max()
    print(f"int8 differs from the float file by less than 3 % of the largest value: {lost < 0.03}")
