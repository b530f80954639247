"""The geometry of convolutions: which elements of the input each result meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from graphc.backends.tvm.operations import arguments, name_of, narrow_operands, rank_of, shape_of
from graphc.backends.tvm.sizes import simplify
from graphc.tensor_type import Size

CONVOLUTIONS = ("aten.convolution.default", "graphc.integer_convolution.default")


@dataclass(frozen=True)
class Geometry:
    """A convolution of one or two dimensions, the first of size 1 where there is one. Sizes in elements."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    zero: int  # the value of x that means nought
    groups: int
    batch: Size
    channels: int
    image: tuple[Size, Size]
    result: tuple[Size, Size]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]  # of the result over the padded image
    spread: tuple[int, int]  # of the input in the padded image: a transposed convolution's stride
    before: tuple[int, int]  # padding above and to the left
    dilation: tuple[int, int]

    @staticmethod
    def of(node: fx.Node) -> Geometry:
        args = arguments(node)
        floating = name_of(node) == "aten.convolution.default"
        x = args["input"] if floating else args["x"]
        flat = rank_of(x) == 3

        def pair(values: Any, fill: Any) -> tuple[Any, Any]:
            values = list(values) * (1 if flat or len(values) == 2 else 2)
            return (fill, values[0]) if flat else (values[0], values[1])

        stride, padding = pair(args["stride"], 1), pair(args["padding"], 0)
        dilation, kernel = pair(args["dilation"], 1), pair(shape_of(args["weight"])[2:], 1)
        transposed = floating and args["transposed"]
        before = tuple(d * (t - 1) - p if transposed else p for d, t, p in zip(dilation, kernel, padding, strict=True))
        weight, joined = args["weight"], args["groups"] == 1 and dilation[1] == 1
        if shape_of(x)[1] // args["groups"] * (kernel[1] if joined else 1) % 2 == 0:  # pairs of bfloat16 to multiply
            x, weight = narrow_operands(x, weight)
        return Geometry(
            x,
            weight,
            args["bias"],
            0 if floating else args["x_zero"],
            args["groups"],
            shape_of(x)[0],
            shape_of(x)[1],
            pair(shape_of(x)[2:], 1),
            pair(shape_of(node)[2:], 1),
            shape_of(node)[1],
            kernel,
            (1, 1) if transposed else stride,
            stride if transposed else (1, 1),
            before,
            dilation,
        )

    @property
    def padded(self) -> tuple[Size, Size]:
        """The part of the padded image that the kernel visits."""
        height, width = (
            simplify((size - 1) * step + (taps - 1) * dilation + 1)
            for size, step, taps, dilation in zip(self.result, self.stride, self.kernel, self.dilation, strict=True)
        )
        return height, width

    @property
    def needs_padding(self) -> bool:
        return self.before != (0, 0) or self.spread != (1, 1) or not self._inside

    @property
    def _inside(self) -> bool:
        """Whether the kernel never leaves the input: padding may stand behind it only."""
        return all(
            not isinstance(size, int) or not isinstance(visited, int) or visited <= size
            for size, visited in zip(self.image, self.padded, strict=True)
        )
