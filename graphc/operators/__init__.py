"""The graphc:: operators: each with its meaning in torch (the reference) and its shape rule.

Importing this package registers them under `torch.ops.graphc`. `inference` finds the type of any operator's result.
"""

import torch

from graphc.operators.integer import integer_convolution, integer_linear, integer_sum_pool2d
from graphc.operators.quantization import dequantize, quantize, rescale
from graphc.operators.weights import dequantize_groups, quantize_dynamic, unpack

__all__ = [
    "dequantize",
    "dequantize_groups",
    "integer_convolution",
    "integer_linear",
    "integer_sum_pool2d",
    "quantize",
    "quantize_dynamic",
    "rescale",
    "unpack",
]

# What decodes compressed weights: never computed at compile time, so that they stay small.
DECODINGS = frozenset(
    {
        torch.ops.graphc.dequantize.default,
        torch.ops.graphc.unpack.default,
        torch.ops.graphc.dequantize_groups.default,
    }
)
