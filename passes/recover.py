"""Let what compression stored learn from the calibration data, until the graph answers as the original does.

    min  sum over results of |y' - y|^2 / |y|^2

over all that is stored: floats, and the weights in full precision that codes follow (graphc.training.recovery), but for
the places of what sparse formats keep. The original is the graph before the first lossy pass of the run (`ctx.original`); formats and
bytes stay as they are. What was learned is dropped where it does not lessen the error on the data.

compress{format="linear(bits=2)"},recover{steps=20}
tolerance = 2
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
  %w_codes = weight "w.codes" #0000000000000000 : u8[4, 2]
  %w_scale = weight "w.scale" #0000000000000000 : f16[4, 1]
  %w_zero_point = weight "w.zero_point" #0000000000000000 : u8[]
  %unpack_default = graphc.unpack.default(%w_codes, 2, 8) : u8[4, 8]
  %dequantize_groups_default = graphc.dequantize_groups.default(%unpack_default, %w_scale, %w_zero_point, 8) : f32[4, 8]
  %y = aten.linear.default(%x, %dequantize_groups_default, None) : f32[2, 4]
  return %y
}
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.analysis.outputs import change
from graphc.calibration import fitting_threads
from graphc.errors import CalibrationError, TrainingError
from graphc.graph import Graph
from graphc.pipeline import Pass, PassContext
from graphc.training.loop import Training
from graphc.training.recovery import recover


@dataclass(frozen=True)
class Recover(Pass):
    """Train for `steps` batches of the calibration data, which take turns; `learning_rate` is Adam's at its top.

    Nothing is done where no lossy pass ran before. Raises CalibrationError without data, TrainingError where an operator
    of the compressed graph has no gradient, such as a quantized activation.
    """

    fidelity = "lossy"
    steps: int = 100
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise TrainingError(f"recover: steps={self.steps} must be a number from 0")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        original = ctx.original
        if original is None or original is graph or not self.steps:
            return graph
        if not ctx.calibration:
            raise CalibrationError("recover learns from calibration data: graphc.compile(..., calibration=batches)")
        training = Training(self.steps, self.learning_rate, warmup=self.steps // 10, seed=ctx.seed, what="recovering")
        batches = ctx.calibration
        with fitting_threads(graph):
            learned = recover(
                original, graph, lambda step: batches[step % len(batches)], training, progress=ctx.progress
            )
        before, after = (change(original, each, batches).noise for each in (graph, learned))
        return learned if after < before else graph
