"""The graphc:: operators: each with its meaning in torch (the reference) and its shape rule.

Importing this package registers them under `torch.ops.graphc`. `inference` finds the type of any operator's result.
"""

from graphc.operators.integer import integer_convolution, integer_linear, integer_sum_pool2d
from graphc.operators.quantization import dequantize, quantize, rescale

__all__ = ["dequantize", "integer_convolution", "integer_linear", "integer_sum_pool2d", "quantize", "rescale"]
