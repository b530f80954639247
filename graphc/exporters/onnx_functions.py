"""The graphc:: operators in standard ONNX: model-local functions, in ONNX's own text form.

ONNX Runtime inlines such functions when it loads a model, so they cost nothing there, and a reader of the model sees
one node for one operator. Quantize and dequantize need none: they leave as QuantizeLinear and DequantizeLinear.

Exactness. `rescale` shifts to the right by (a - a mod 2^n) / 2^n in int64, where ONNX's integer Mod has the divisor's
sign: that floors for negative numbers too. Integer products run on uint8 with zero points: ONNX Runtime's convolution
takes no int8 input, and its uint8 x int8 kernels saturate intermediate 16-bit sums on CPUs without VNNI.
"""

from __future__ import annotations

import onnx

DOMAIN = "graphc"
VERSION = 1
OPSET = 18

# What takes an input to uint8: `lift` is 128 for an int8 input and 0 for a uint8 one.
_INPUT = """
            lift = Constant <value_int: int = @lift> ()
            zero = Constant <value_int: int = @x_zero> ()
            x_wide = Cast <to = 7> (x)
            x_lifted = Add (x_wide, lift)
            x_uint8 = Cast <to = 2> (x_lifted)
            zero_lifted = Add (zero, lift)
            zero_uint8 = Cast <to = 2> (zero_lifted)"""
_WEIGHT = """
            weight_zero = Constant <value_int = 128> ()
            weight_wide = Cast <to = 7> (weight)
            weight_lifted = Add (weight_wide, weight_zero)
            weight_uint8 = Cast <to = 2> (weight_lifted)
            weight_zero_uint8 = Cast <to = 2> (weight_zero)"""

# `channels` is the shape in which parameters of channels (multipliers, shifts, biases) broadcast.
_TEXTS = {
    "rescale": """
        rescale <channels, input_zero, output_zero, qmin, qmax, to> (x, multiplier, shift) => (y) {
            wide = Cast <to = 7> (x)
            from = Constant <value_int: int = @input_zero> ()
            centred = Sub (wide, from)
            channels = Constant <value_ints: ints = @channels> ()
            multipliers = Reshape (multiplier, channels)
            factor = Cast <to = 7> (multipliers)
            product = Mul (centred, factor)
            shifts = Reshape (shift, channels)
            places = Cast <to = 7> (shifts)
            two = Constant <value_int = 2> ()
            divisor = Pow (two, places)
            half = Div (divisor, two)
            raised = Add (product, half)
            remainder = Mod (raised, divisor)
            multiple = Sub (raised, remainder)
            quotient = Div (multiple, divisor)
            onto = Constant <value_int: int = @output_zero> ()
            moved = Add (quotient, onto)
            low = Constant <value_int: int = @qmin> ()
            high = Constant <value_int: int = @qmax> ()
            clamped = Clip (moved, low, high)
            y = Cast <to: int = @to> (clamped)
        }""",
    "integer_convolution": f"""
        integer_convolution <x_zero, lift, channels, strides, pads, dilations, group> (x, weight, bias) => (y)
        {{{_INPUT}{_WEIGHT}
            sums = ConvInteger <strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations,
                             group: int = @group> (x_uint8, weight_uint8, zero_uint8, weight_zero_uint8)
            channels = Constant <value_ints: ints = @channels> ()
            biases = Reshape (bias, channels)
            y = Add (sums, biases)
        }}""",
    "integer_linear": f"""
        integer_linear <x_zero, lift> (x, weight, bias) => (y) {{{_INPUT}{_WEIGHT}
            columns = Transpose <perm = [1, 0]> (weight_uint8)
            sums = MatMulInteger (x_uint8, columns, zero_uint8, weight_zero_uint8)
            y = Add (sums, bias)
        }}""",
    "integer_sum_pool2d": f"""
        integer_sum_pool2d <x_zero, lift, strides, pads, group> (x, ones) => (y) {{{_INPUT}
            y = ConvInteger <strides: ints = @strides, pads: ints = @pads, group: int = @group>
                            (x_uint8, ones, zero_uint8)
        }}""",
    # The two bytes in which number i may lie are those at i * bits / 8 and after it.
    "unpack": """
        unpack <bits, count, last, radix> (packed) => (codes) {
            zero = Constant <value_int = 0> ()
            one = Constant <value_int = 1> ()
            two = Constant <value_int = 2> ()
            eight = Constant <value_int = 8> ()
            wide = Constant <value_int = 256> ()
            width = Constant <value_int: int = @bits> ()
            end = Constant <value_int: int = @count> ()
            final = Constant <value_int: int = @last> ()
            modulus = Constant <value_int: int = @radix> ()
            position = Range (zero, end, one)
            first = Mul (position, width)
            byte = Div (first, eight)
            after = Add (byte, one)
            next = Min (after, final)
            place = Mod (first, eight)
            bytes = Cast <to = 7> (packed)
            low = Gather <axis = -1> (bytes, byte)
            high = Gather <axis = -1> (bytes, next)
            raised = Mul (high, wide)
            window = Add (low, raised)
            divisor = Pow (two, place)
            shifted = Div (window, divisor)
            code = Mod (shifted, modulus)
            codes = Cast <to = 2> (code)
        }""",
    # `split` is the shape with groups apart, `joined` the one with groups together, each of the rank of its input.
    "dequantize_groups": """
        dequantize_groups <split, joined> (q, scale, zero_point) => (x) {
            split = Constant <value_ints: ints = @split> ()
            joined = Constant <value_ints: ints = @joined> ()
            last = Constant <value_ints = [-1]> ()
            grouped = Reshape (q, split)
            wide = Cast <to = 6> (grouped)
            zero_wide = Cast <to = 6> (zero_point)
            zeros = Unsqueeze (zero_wide, last)
            steps = Sub (wide, zeros)
            real = Cast <to = 1> (steps)
            scale_real = Cast <to = 1> (scale)
            scales = Unsqueeze (scale_real, last)
            product = Mul (real, scales)
            x = Reshape (product, joined)
        }""",
    "quantize_dynamic": """
        quantize_dynamic <split, joined> (x) => (q, scale) {
            split = Constant <value_ints: ints = @split> ()
            joined = Constant <value_ints: ints = @joined> ()
            last = Constant <value_ints = [-1]> ()
            grouped = Reshape (x, split)
            magnitude = Abs (grouped)
            largest = ReduceMax <keepdims = 1> (magnitude, last)
            top = Constant <value_float = 127.0> ()
            none = Constant <value_float = 0.0> ()
            one = Constant <value_float = 1.0> ()
            quotient = Div (largest, top)
            nought = Equal (quotient, none)
            scales = Where (nought, one, quotient)
            steps = Div (grouped, scales)
            rounded = Round (steps)
            codes = Cast <to = 3> (rounded)
            q = Reshape (codes, joined)
            scale = Squeeze (scales, last)
        }""",
    # `joined` merges the last two dimensions, `split` parts the last one. `first` is where each piece's own codebook
    # starts among all codewords, `words` the shape of these; `columns` exchanges a codebook's last two dimensions.
    "lookup": """
        lookup <joined, first, words> (indices, codebook) => (x) {
            wide = Cast <to = 7> (indices)
            first = Constant <value_ints: ints = @first> ()
            places = Add (wide, first)
            real = Cast <to = 1> (codebook)
            shape = Constant <value_ints: ints = @words> ()
            flat = Reshape (real, shape)
            words = Gather <axis = 0> (flat, places)
            joined = Constant <value_ints: ints = @joined> ()
            x = Reshape (words, joined)
        }""",
    "partial_products": """
        partial_products <split, columns, joined> (x, codebook) => (tables) {
            split = Constant <value_ints: ints = @split> ()
            pieces = Reshape (x, split)
            real = Cast <to = 1> (codebook)
            columns = Transpose <perm: ints = @columns> (real)
            products = MatMul (pieces, columns)
            joined = Constant <value_ints: ints = @joined> ()
            tables = Reshape (products, joined)
        }""",
    "gather_sum": """
        gather_sum (tables, indices) => (y) {
            wide = Cast <to = 7> (indices)
            columns = Transpose <perm = [1, 0]> (wide)
            outer = Shape <end = -2> (tables)
            inner = Shape (columns)
            shape = Concat <axis = 0> (outer, inner)
            repeated = Expand (columns, shape)
            found = GatherElements <axis = -1> (tables, repeated)
            axes = Constant <value_ints = [-2]> ()
            y = ReduceSum <keepdims = 0> (found, axes)
        }""",
    "expand_2_4": """
        expand_2_4 <split, joined> (values, positions) => (x) {
            split = Constant <value_ints: ints = @split> ()
            joined = Constant <value_ints: ints = @joined> ()
            last = Constant <value_ints = [-1]> ()
            before = Constant <value_ints = [-2]> ()
            places = Constant <value_ints = [0, 1, 2, 3]> ()
            none = Constant <value_float = 0.0> ()
            wide = Cast <to = 7> (positions)
            given = Unsqueeze (wide, last)
            here = Equal (given, places)
            real = Cast <to = 1> (values)
            kept = Unsqueeze (real, last)
            spread = Where (here, kept, none)
            pairs = Reshape (spread, split)
            fours = ReduceSum <keepdims = 0> (pairs, before)
            x = Reshape (fours, joined)
        }""",
    "expand_blocks": """
        expand_blocks <grid, shape> (values, mask) => (x) {
            grid = Constant <value_ints: ints = @grid> ()
            shape = Constant <value_ints: ints = @shape> ()
            empty = ConstantOfShape (grid)
            kept = NonZero (mask)
            places = Transpose <perm = [1, 0]> (kept)
            real = Cast <to = 1> (values)
            blocks = ScatterND (empty, places, real)
            ordered = Transpose <perm = [0, 2, 1, 3]> (blocks)
            x = Reshape (ordered, shape)
        }""",
    "expand_gaps": """
        expand_gaps <flat, shape> (values, gaps) => (x) {
            flat = Constant <value_ints: ints = @flat> ()
            shape = Constant <value_ints: ints = @shape> ()
            one = Constant <value_int = 1> ()
            axis = Constant <value_int = 0> ()
            wide = Cast <to = 7> (gaps)
            steps = Add (wide, one)
            ends = CumSum (steps, axis)
            places = Sub (ends, one)
            real = Cast <to = 1> (values)
            empty = ConstantOfShape (flat)
            dense = ScatterElements <axis = 0> (empty, places, real)
            x = Reshape (dense, shape)
        }""",
}


NAMES = tuple(_TEXTS)


def function(name: str) -> onnx.FunctionProto:
    """The ONNX function of a graphc operator, one of NAMES."""
    return onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]> {_TEXTS[name]}')
