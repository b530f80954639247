"""The generated entry.c: one C function a step, which hands a kernel its operands, and the table of the program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphc.backends.tvm.kernel import Kernel
from graphc.backends.tvm.sizes import c_text
from graphc.tensor_type import Size, SymbolRange, TensorType


@dataclass(frozen=True)
class Location:
    """Where an operand starts: `base` is weights, state, arena, inputs[i] or outputs[i]; `offset` in bytes."""

    base: str
    offset: Size


@dataclass(frozen=True)
class Call:
    """One step: a kernel by its symbol, and where its operands lie."""

    symbol: str
    kernel: Kernel
    locations: tuple[Location, ...]


def quote(text: str) -> str:
    """A C string literal."""
    return json.dumps(text)


def entry_c(
    calls: Sequence[Call],
    init_steps: int,
    inputs: Sequence[tuple[str, TensorType]],
    outputs: Sequence[tuple[str, TensorType]],
    symbols: dict[str, SymbolRange],
    bytes_of: dict[str, int],
    features: Sequence[str],
    names: dict[Any, str],
) -> str:
    """The text of entry.c. `bytes_of`: sizes of weights, state and arena; `names`: graphc's names of torch's dtypes."""
    known = list(symbols)
    lines = ['#include "model.h"', "", "/* Kernels: operands, then dynamic sizes. */"]
    declared = {call.symbol: call.kernel for call in calls}
    for symbol, kernel in declared.items():
        types = ["void *"] * len(kernel.operands) + ["int64_t"] * len(kernel.symbols)
        lines.append(f"GRAPHC_KERNEL int32_t {symbol}({', '.join(types) or 'void'});")
    lines += ["", "/* Steps. */"]
    for number, call in enumerate(calls):
        passed = [_pointer(location, known) for location in call.locations]
        passed += [f"frame->symbols[{known.index(name)}]" for name in call.kernel.symbols]
        uses = (
            "const int64_t *symbols = frame->symbols; "
            if any("symbols[" in p and "->" not in p for p in passed)
            else ""
        )
        lines.append(f"static int32_t step_{number}(const graphc_frame *frame) {{")
        lines.append(f"  {uses}(void)frame;" if not passed else f"  {uses}return {call.symbol}({', '.join(passed)});")
        if not passed:
            lines.append(f"  return {call.symbol}();")
        lines.append("}")
    lines += ["", "static const graphc_step steps[] = {"]
    lines += [f"  {{{quote(call.symbol)}, step_{number}}}," for number, call in enumerate(calls)]
    lines += ["  {0, 0},", "};", ""]
    for title, tensors in (("inputs", inputs), ("outputs", outputs)):
        lines.append(f"static const graphc_tensor_info {title}[] = {{")
        for name, kind in tensors:
            lines.append(f"  {{{quote(name)}, GRAPHC_{names[kind.dtype].upper()}, {len(kind.shape)}}},")
        lines += ["  {0, 0, 0},", "};", ""]
    lines.append("static const graphc_symbol symbol_table[] = {")
    lines += [f"  {{{quote(name)}, {known.minimum}, {known.maximum}}}," for name, known in symbols.items()]
    lines += ["  {0, 0, 0},", "};", ""]
    lines.append("static void shapes(const int64_t *symbols, int64_t *dims) {")
    sizes = [size for _, kind in (*inputs, *outputs) for size in kind.shape]
    lines += [f"  dims[{place}] = {c_text(size, known)};" for place, size in enumerate(sizes)]
    lines += ["  (void)symbols;", "  (void)dims;", "}", ""]
    lines.append(f"static const char *const features[] = {{{', '.join([*map(quote, features), '0'])}}};")
    lines += [
        "",
        "const graphc_program graphc_the_program = {",
        "  .abi = GRAPHC_ABI,",
        *(f"  .{region}_bytes = {bytes_of[region]}," for region in ("arena", "state", "weights")),
        f"  .num_inputs = {len(inputs)}, .num_outputs = {len(outputs)}, .num_symbols = {len(symbols)},",
        f"  .num_init_steps = {init_steps}, .num_steps = {len(calls)},",
        "  .inputs = inputs, .outputs = outputs, .symbols = symbol_table, .steps = steps,",
        "  .shapes = shapes, .features = features,",
        "};",
        "",
    ]
    return "\n".join(lines)


def _pointer(location: Location, symbols: Sequence[str]) -> str:
    offset = c_text(location.offset, symbols)
    base = f"frame->{location.base}"
    cast = "(uint8_t *)" if location.base not in ("state", "arena") else ""
    return f"{cast}{base} + {offset}" if offset != "0" else f"(void *){base}"
