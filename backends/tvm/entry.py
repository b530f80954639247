"""The generated entry.c: one C function a step, which hands a kernel its operands, and the table of the program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.backends.tvm.kernel import Kernel
from graphc.backends.tvm.sizes import c_text
from graphc.tensor_type import DTYPE_NAMES, Size, SymbolRange, TensorType


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
) -> str:
    """The text of entry.c. `bytes_of`: sizes of weights, state and arena."""
    known = list(symbols)
    sizes = [size for _, kind in (*inputs, *outputs) for size in kind.shape]
    lines = [
        '#include "model.h"',
        "",
        "/* Kernels: operands, then dynamic sizes. */",
        *_declarations(calls),
        "",
        "/* Steps. */",
        *_steps(calls, known),
        "",
        *_table("graphc_step", "steps", [f"{quote(call.symbol)}, step_{i}" for i, call in enumerate(calls)]),
        *_table("graphc_tensor_info", "inputs", [_tensor(*item) for item in inputs]),
        *_table("graphc_tensor_info", "outputs", [_tensor(*item) for item in outputs]),
        *_table(
            "graphc_symbol",
            "symbol_table",
            [f"{quote(name)}, {size.minimum}, {size.maximum}" for name, size in symbols.items()],
        ),
        "static void shapes(const int64_t *symbols, int64_t *dims) {",
        *(f"  dims[{place}] = {c_text(size, known)};" for place, size in enumerate(sizes)),
        "  (void)symbols;",
        "  (void)dims;",
        "}",
        "",
        f"static const char *const features[] = {{{', '.join([*map(quote, features), '0'])}}};",
        "",
        "const graphc_program graphc_the_program = {",
        "  .abi = GRAPHC_ABI,",
        *(f"  .{region}_bytes = {bytes_of[region]}," for region in ("arena", "state", "weights")),
        f"  .num_inputs = {len(inputs)}, .num_outputs = {len(outputs)}, .num_symbols = {len(symbols)},",
        f"  .num_init_steps = {init_steps}, .num_steps = {len(calls)},",
        "  .inputs = inputs, .outputs = outputs, .symbols = symbol_table, .steps = steps,",
        "  .shapes = shapes, .features = features,",
        f"  .tiles = {int(any(call.kernel.tiles for call in calls))},",
        "};",
        "",
    ]
    return "\n".join(lines)


def _declarations(calls: Sequence[Call]) -> list[str]:
    declared = {call.symbol: call.kernel for call in calls}
    return [
        f"GRAPHC_KERNEL int32_t {symbol}({', '.join(['void *'] * len(k.operands) + ['int64_t'] * len(k.symbols))});"
        for symbol, k in declared.items()
    ]


def _steps(calls: Sequence[Call], symbols: Sequence[str]) -> list[str]:
    lines = []
    for number, call in enumerate(calls):
        passed = [_pointer(location, symbols) for location in call.locations]
        passed += [f"frame->symbols[{symbols.index(name)}]" for name in call.kernel.symbols]
        lines += [f"static int32_t step_{number}(const graphc_frame *frame) {{"]
        lines += [f"  return {call.symbol}({', '.join(passed)});", "}"]
    return lines


def _pointer(location: Location, symbols: Sequence[str]) -> str:
    base = f"frame->{location.base}"
    if location.offset == 0:
        return f"(void *){base}"
    cast = "" if location.base in ("state", "arena") else "(uint8_t *)"
    return f"{cast}{base} + {c_text(location.offset, symbols, 'frame->symbols')}"


def _tensor(name: str, kind: TensorType) -> str:
    return f"{quote(name)}, GRAPHC_{DTYPE_NAMES[kind.dtype].upper()}, {len(kind.shape)}"


def _table(kind: str, name: str, rows: Sequence[str]) -> list[str]:
    """A static array, closed by a row of noughts: C has no empty arrays."""
    return [f"static const {kind} {name}[] = {{", *(f"  {{{row}}}," for row in rows), "  {0},", "};", ""]
