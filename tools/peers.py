"""Quantization after training beside NNCF, torchao, Neural Compressor: `python -m graphc.tools.peers [NETWORK ...]`.

W8A8, W4A8  all convolutions and linear layers, the first and the last too; a scale for each output channel, activations
            in 8 bits. NNCF: `quantize`, mixed preset, with its fast and with its accurate bias correction; for 4 bits
            it wants its NPU as target, and runs on this CPU all the same. torchao: PT2E, quantizer for x86. Neural
            Compressor: `StaticQuantConfig`, 8 bits only
W8          weights only, a scale for each output channel. NNCF: `compress_weights`
W8g, W4     weights only, a float16 scale for each group of input channels. NNCF: as before, which keeps convolutions in
            8 bits; linear layers with scale estimation and GPTQ. torchao: `IntxWeightOnlyConfig`, whose groups are of
            one tap; its HQQ takes no convolutions

torchao's Int8..., Int4WeightOnly, GPTQ and AWQ configurations and all of Neural Compressor's for weights alone quantize
linear layers only: 0.2 % of the weights of ResNet-20, 4 % of ResNet-18's.

Each row has top-1; the difference in points to float on the same images, and that of the last graphc row of the same
bits to it, with their standard errors; the CPU's seconds to quantize; and bytes, all that the network stores: the
weights of graphc's artifact for this machine; of the file that OpenVINO writes for NNCF's; of torchao's codes at their
width (it stores 4 bits in a byte), scales, biases and what stays in float. All calibrate on the same images. The full
run:

    python -m graphc.tools.peers resnet20_jpeg --output tools/results/peers.json
    python -m graphc.tools.peers resnet18 mobilenet_v2 --iterations 20 --output tools/results/peers.json
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import graphc
from graphc.pipeline import FINISH, PassContext, Pipeline
from graphc.tools import low_bits, statement
from graphc.tools.assignment import against
from graphc.tools.statement import Known
from graphc.tools.zoo import data

# The labels of the images that are scored, and the input channels that share a scale in W4.
NETWORKS = {
    "resnet20_jpeg": ("cifar10/jpeg_test.npz", 16),
    "resnet18": ("imagenet_eval/nips2017_224.npz", 32),
    "mobilenet_v2": ("imagenet_eval/nips2017_224.npz", 32),
}
CALIBRATION = 300  # images
Made = tuple[Callable[[Tensor], Tensor], Callable[[], int]]  # images to logits; bytes


class Study(low_bits.Study):
    """One network, and how each library quantizes it."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        settings = {"batch": None, "equalize": False, "calibration": CALIBRATION, "limit": options.limit, "seed": 0}
        super().__init__(name, argparse.Namespace(**settings, iterations=options.iterations))
        labels, self.group = NETWORKS[name]
        self.labels = data.labels(labels, options.limit)
        self.images = [batch[0].contiguous() for batch in self.calibration]

    def hits(self, predicted: Tensor) -> str:
        return "".join(str(int(hit)) for hit in predicted == self.labels)

    def graphc(self, spec: str) -> Made:
        spec = spec.replace("GROUP", str(self.group)).replace("ITERATIONS", str(self.options.iterations))
        context = PassContext(calibration=self.calibration, seed=self.options.seed)
        graph = Pipeline(f"{spec},eliminate_common_subexpressions,drop_unused").run(self.original, context)
        return graph.run, lambda: graphc.compile(graph, pipeline=FINISH).size.weights

    def nncf(self, quantize: Callable[[Any, Any], Any]) -> Made:
        """quantize(OpenVINO's model, the data set)."""
        import nncf
        import openvino

        logging.getLogger("nncf").setLevel(logging.ERROR)
        shape = list(self.images[0].shape)
        model = openvino.convert_model(self.entry.build(), example_input=self.images[0], input=shape)
        quantized = quantize(model, nncf.Dataset([x.numpy() for x in self.images]))
        with TemporaryDirectory() as folder:
            openvino.save_model(quantized, f"{folder}/model.xml", compress_to_fp16=False)
            stored = Path(folder, "model.bin").stat().st_size
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(quantized, "CPU", settings)
        return lambda x: torch.from_numpy(compiled(x.contiguous().numpy())[0].copy()), lambda: stored

    def nncf_quantize(self, bits: int, fast: bool) -> Made:
        import nncf
        from nncf.quantization import advanced_parameters as advanced

        parameters = advanced.AdvancedQuantizationParameters(
            overflow_fix=advanced.OverflowFix.DISABLE,  # it would halve the range of the first layer
            weights_quantization_params=advanced.QuantizationParameters(num_bits=bits),
            activations_quantization_params=advanced.QuantizationParameters(num_bits=8),
        )
        quantize = partial(
            nncf.quantize,
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU if bits == 8 else nncf.TargetDevice.NPU,
            subset_size=len(self.images),
            fast_bias_correction=fast,
            advanced_parameters=parameters,
        )
        return self.nncf(quantize)

    def nncf_compress(self, bits: int) -> Made:
        import nncf

        mode = nncf.CompressWeightsMode.INT8_SYM if bits == 8 else nncf.CompressWeightsMode.INT4_SYM
        narrow = {"group_size": self.group, "all_layers": True, "scale_estimation": True, "gptq": True}
        return self.nncf(
            lambda model, samples: nncf.compress_weights(
                model, mode=mode, **({} if bits == 8 else narrow | {"dataset": samples})
            )
        )

    def torchao_exported(self, bits: int) -> Made:
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        settings = x86.get_default_x86_inductor_quantization_config()
        narrow = replace(settings.weight, quant_min=-(1 << bits - 1), quant_max=(1 << bits - 1) - 1)
        quantizer = x86.X86InductorQuantizer().set_global(replace(settings, weight=narrow))
        prepared = prepare_pt2e(torch.export.export(self.entry.build(), (self.images[0],)).module(), quantizer)
        self._observe(prepared)
        model = move_exported_model_to_eval(convert_pt2e(prepared))
        return model, lambda: _read_bytes(model, bits)

    def neural_compressor(self) -> Made:
        from neural_compressor.torch.export import export
        from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

        prepared = prepare(export(self.entry.build(), example_inputs=(self.images[0],)), StaticQuantConfig())
        self._observe(prepared)
        model = convert(prepared)
        return model, lambda: _read_bytes(model, 8)

    def _observe(self, prepared: nn.Module) -> None:
        with torch.no_grad():
            for x in self.images:
                prepared(x)

    def torchao_weights(self, bits: int) -> Made:
        from torch.fx.experimental.optimization import fuse  # here, for it warns
        from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_

        def takes(module: nn.Module, _: str, divided: bool) -> bool:
            if not isinstance(module, nn.Conv2d | nn.Linear):
                return False
            weight: Any = module.weight
            return bool((weight.shape[1] % self.group == 0) == divided)

        model, kind = fuse(self.entry.build()), getattr(torch, f"int{bits}")
        for granularity, divided in ((PerGroup(self.group), True), (PerAxis(0), False)):
            configuration = IntxWeightOnlyConfig(kind, granularity, scale_dtype=torch.float16)
            quantize_(model, configuration, partial(takes, divided=divided))
        stored: list[Any] = list(model.parameters())
        parts = ((x.qdata, x.scale) if hasattr(x, "qdata") else (x,) for x in stored)
        return model, lambda: _bytes((part for several in parts for part in several), bits)


def _read_bytes(model: Any, bits: int) -> int:
    """Of what an exported module reads. Weights that it quantizes as it runs count as what they are quantized to."""
    stored = dict(model.named_parameters()) | dict(model.named_buffers())
    found: dict[str, Tensor] = {}
    for node in model.graph.nodes:
        if node.op == "get_attr" and node.users:
            tensor = stored[node.target] if node.target in stored else getattr(model, node.target)
            coded = all(
                str(user.target).startswith("quantized_decomposed.quantize") and user.args[0] is node
                for user in node.users
            )
            found[node.target] = tensor.to(torch.int8) if coded else tensor
    return _bytes(found.values(), bits)


def _bytes(tensors: Iterable[Tensor], bits: int) -> int:
    """Codes take `bits` each; zero points (int64) nothing, being nought for symmetric weights."""
    widths = {torch.int8: bits, torch.int64: 0}
    return sum(-(-x.numel() * widths.get(x.dtype, 8 * x.element_size()) // 8) for x in tensors)


_GROUPS = (
    'compress{format="linear(bits=BITS,group=GROUP,range=mse,rounding=gptq)",unfit=keep,data=true},'
    'compress{format="linear(bits=BITS,range=mse,rounding=gptq)",data=true}'
)
# Each row's package, and how it is made; a bits' graphc rows come before the peers that are held against the last one.
ROWS: dict[str, tuple[str, Callable[[Study], Made]]] = {
    "W8A8 graphc quantize": ("graphc", partial(Study.graphc, spec="quantize,integer_arithmetic")),
    "W8A8 NNCF quantize, fast": ("nncf", partial(Study.nncf_quantize, bits=8, fast=True)),
    "W8A8 NNCF quantize, accurate": ("nncf", partial(Study.nncf_quantize, bits=8, fast=False)),
    "W8A8 torchao PT2E": ("torchao", partial(Study.torchao_exported, bits=8)),
    "W8A8 Neural Compressor static": ("neural-compressor", Study.neural_compressor),
    "W4A8 graphc quantize": (
        "graphc", partial(Study.graphc, spec="quantize{bits=4,edge_bits=4},integer_arithmetic"),
    ),
    "W4A8 graphc reconstruct": (
        "graphc",
        partial(Study.graphc, spec="reconstruct{bits=4,edge_bits=4,iterations=ITERATIONS},integer_arithmetic"),
    ),
    "W4A8 NNCF quantize, fast": ("nncf", partial(Study.nncf_quantize, bits=4, fast=True)),
    "W4A8 NNCF quantize, accurate": ("nncf", partial(Study.nncf_quantize, bits=4, fast=False)),
    "W4A8 torchao PT2E": ("torchao", partial(Study.torchao_exported, bits=4)),
    "W8 graphc compress": ("graphc", partial(Study.graphc, spec="compress")),
    "W8 NNCF compress_weights": ("nncf", partial(Study.nncf_compress, bits=8)),
    "W8g graphc compress": ("graphc", partial(Study.graphc, spec=_GROUPS.replace("BITS", "8"))),
    "W8g torchao Intx": ("torchao", partial(Study.torchao_weights, bits=8)),
    "W4 graphc compress": ("graphc", partial(Study.graphc, spec=_GROUPS.replace("BITS", "4"))),
    "W4 NNCF compress_weights": ("nncf", partial(Study.nncf_compress, bits=4)),
    "W4 torchao Intx": ("torchao", partial(Study.torchao_weights, bits=4)),
}  # fmt: skip


def installed(package: str) -> str | None:
    """The version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def row(study: Study, package: str, make: Callable[[Study], Made]) -> dict[str, Any]:
    """One quantized network; its hits are packed 8 in a byte, in hexadecimal."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run, stored = make(study)
        seconds = time.process_time() - start
        top1, predicted = study.judge(run)
    hits = study.hits(predicted)
    return {
        "top-1 %": round(top1, 3),
        "to float": against([hits], [study.hits(study.judged[1])]),
        "bytes": stored(),
        "CPU s": round(seconds, 1),
        "version": installed(package),
        "hits": np.packbits(np.array(list(hits), dtype=np.uint8)).tobytes().hex(),
    }


def network(name: str, options: argparse.Namespace, known: Known) -> None:
    study = Study(name, options)
    top1, predicted = study.judged
    known["images"], known["float top-1 %"] = len(predicted), round(top1, 3)
    own: dict[str, str] = {}  # hits, by bits
    for title, (package, make) in ROWS.items():
        if installed(package) is None:
            print(f"{title}: absent; pip install {package}", file=sys.stderr)
            continue
        found = known.once(f"{title} | hits", row, study, package, make)
        packed = np.frombuffer(bytes.fromhex(found["hits"]), np.uint8)
        hits = "".join(map(str, np.unpackbits(packed, count=len(predicted))))
        shown = {key: value for key, value in found.items() if key != "hits"}
        bits = title.partition(" ")[0]
        if package == "graphc":
            own[bits] = hits
        elif bits in own:
            shown["graphc to it"] = against([own[bits]], [hits])
        known[title] = shown


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--iterations", type=int, default=100, help="of each block that reconstruct learns")

    figures = {name: partial(network, name) for name in NETWORKS}
    return statement.main("graphc.tools.peers", __doc__, figures, arguments, add, ("iterations",))


if __name__ == "__main__":
    sys.exit(main())
