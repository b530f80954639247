"""The graphc:: operators: each with its meaning in torch (the reference) and its shape rule.

Importing this package registers them under `torch.ops.graphc`. `inference` finds the type of any operator's result.
"""

import torch

from graphc.operators.integer import integer_convolution, integer_linear, integer_sum_pool2d
from graphc.operators.quantization import dequantize, quantize, rescale
from graphc.operators.sparsity import expand_2_4, expand_blocks, expand_gaps
from graphc.operators.tables import gather_sum, lookup, partial_products
from graphc.operators.weights import dequantize_groups, quantize_dynamic, unpack

__all__ = [
    "dequantize",
    "dequantize_groups",
    "expand_2_4",
    "expand_blocks",
    "expand_gaps",
    "gather_sum",
    "integer_convolution",
    "integer_linear",
    "integer_sum_pool2d",
    "lookup",
    "partial_products",
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
        torch.ops.graphc.lookup.default,
        torch.ops.graphc.expand_2_4.default,
        torch.ops.graphc.expand_blocks.default,
        torch.ops.graphc.expand_gaps.default,
    }
)
