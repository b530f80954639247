"""Quantize, then learn from the calibration data how to round: layer by layer (AdaRound) or block by block (BRECQ).

The result is what `quantize` with the same options gives, but for the integers of the weights, each of which is one of the
two that surround w / s, and the step sizes of the activations. How they are learned, and the sources: see
graphc.training.reconstruction.

before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : f32[4, 8]
  %x = input : f32[2, 8]
  %y = aten.linear.default(%x, %w, None) : f32[2, 4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 8]
  %x_scale = weight "x.scale" #0000000000000000 : f32[]
  %x_zero_point = weight "x.zero_point" #0000000000000000 : i32[]
  %x_int8 = graphc.quantize.default(%x, %x_scale, %x_zero_point, None, -128, 127) : i8[2, 8]
  %x_decoded = graphc.dequantize.default(%x_int8, %x_scale, %x_zero_point, None) : f32[2, 8]
  %w_int8 = weight "w.int8" #0000000000000000 : i8[4, 8]
  %w_scale = weight "w.scale" #0000000000000000 : f32[4]
  %w_zero_point = weight "w.zero_point" #0000000000000000 : i32[4]
  %y_weight = graphc.dequantize.default(%w_int8, %w_scale, %w_zero_point, 0) : f32[4, 8]
  %y = aten.linear.default(%x_decoded, %y_weight, None) : f32[2, 4]
  return %y
}
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.calibration import fitting_threads
from graphc.graph import Graph
from graphc.passes.quantize import Quantize
from graphc.pipeline import PassContext
from graphc.training.reconstruction import Reconstruction, reconstruct


@dataclass(frozen=True)
class Reconstruct(Reconstruction, Quantize):
    """`quantize` with learned roundings: the options of both, those of `quantize` first."""

    fidelity = "lossy"
    bias_correction: bool = False

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        quantized = super().run(graph, ctx)
        if quantized is graph:
            return graph
        with fitting_threads(graph):
            return reconstruct(graph, quantized, ctx.calibration, self, ctx.seed, ctx.progress)
