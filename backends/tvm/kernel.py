"""A kernel under construction: its operands, its buffers, and the loops that its template opens.

A kernel is one TIR PrimFunc, `int32_t kernel(void *operand0, ..., int64_t symbol0, ...)`, which returns 0. Operands
appear in the order of first use. Every buffer is flat; a tensor operand is addressed by logical index through strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import sympy
import tvm
from torch import fx
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from graphc.backends.tvm import sizes
from graphc.backends.tvm.operations import dtype_of, shape_of
from graphc.backends.tvm.placement import Halo
from graphc.backends.tvm.surroundings import Surroundings
from graphc.tensor_type import Size

Expr: TypeAlias = Any  # tvm.ir.Expr; TVM ships no types
Index: TypeAlias = "Sequence[Expr]"


# The declared length of a flat buffer: how far a kernel may go is the memory plan's business.
UNBOUNDED = 1 << 40
# How far ahead an operand that is read once is fetched: within a page mostly, since a page that is not in the
# translation buffer yet costs more than its lines.
AHEAD_BYTES = 1 << 11


@dataclass(frozen=True)
class Value:
    """Operand: the value of a node, where its placement says."""

    node: fx.Node


@dataclass(frozen=True, eq=False)
class Constant:
    """Operand: an array that a template packed at compile time; it goes into the weights section."""

    array: np.ndarray[Any, Any]
    note: str


@dataclass(frozen=True)
class Packed:
    """Operand: a weight that is computed at load, packed at load as well. Equal keys share one packed copy."""

    node: fx.Node
    key: tuple[Any, ...]
    bytes: int
    emit: Callable[[KernelBuilder, TensorView, tirx.Buffer], None] = field(compare=False)
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Workspace:
    """Operand: scratch memory in the arena that lives for this step only."""

    bytes: int


Operand: TypeAlias = "Value | Constant | Packed | Workspace"


@dataclass(frozen=True)
class Choice:
    """A template parameter: the value that was taken, and the legal ones."""

    value: int
    options: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Kernel:
    """A finished kernel: the function, what to pass to it (operands, then symbols), and who wrote it, with which
    parameters. `tiles`: it uses AMX tiles, configured as model.c does; `overread`: bytes that it may read
    behind the arena."""

    function: tirx.PrimFunc
    operands: tuple[Operand, ...]
    symbols: tuple[str, ...]
    template: str
    reason: str = ""
    workload: str = ""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    tiles: bool = False
    overread: int = 0


@dataclass(frozen=True, eq=False)
class TensorView:
    """A tensor operand inside a kernel: a flat buffer and the strides of the logical dimensions.

    Truth values are stored as uint8, int8 values as they are or as uint8, 128 more: the buffer's type tells.
    origin: where in the buffer the first element lies.
    """

    buffer: tirx.Buffer
    shape: tuple[Size, ...]
    strides: tuple[Expr, ...]
    dtype: str
    origin: Size = 0

    def offset(self, index: Index) -> Expr:
        result = integer(int(self.origin))
        for position, stride in zip(index, self.strides, strict=True):
            result = result + position * stride
        return result

    def load(self, index: Index) -> Expr:
        return self.load_at(self.offset(index))

    def load_at(self, offset: Expr) -> Expr:
        """The element at a position in the buffer."""
        value = self.buffer[offset]
        if self.dtype == "bool":
            return tirx.NE(value, T.uint8(0))
        return value if self.is_stored_as_is else T.reinterpret("int8", T.bitwise_xor(value, T.uint8(0x80)))

    def store(self, index: Index, value: Expr) -> None:
        self.store_at(self.offset(index), value)

    def store_at(self, offset: Expr, value: Expr) -> None:
        if self.dtype == "bool":
            value = T.Select(value, T.uint8(1), T.uint8(0))
        elif not self.is_stored_as_is and isinstance(value, tirx.IntImm):  # LLVM's builder reinterprets no literal 0
            value = T.uint8(value.value % 256 ^ 0x80)
        elif not self.is_stored_as_is:
            value = T.bitwise_xor(T.reinterpret("uint8", value), T.uint8(0x80))
        T.buffer_store(self.buffer, value, [offset])

    @property
    def is_stored_as_is(self) -> bool:
        return str(self.buffer.ty.dtype) == self.dtype


# Sizes are not negative: truncated division is the floor, and one instruction.
_RULES: dict[str, Callable[[Expr, Expr], Expr]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "//": T.truncdiv,
    "%": T.truncmod,
    "max": T.max,
    "min": T.min,
}


def integer(value: int) -> Expr:
    """An index: every index is 64 bits wide."""
    return T.int64(value)


def vector(buffer: tirx.Buffer, start: Expr, lanes: int) -> Expr:
    """`lanes` neighbouring elements of a flat buffer."""
    return buffer[T.ramp(start, integer(1), lanes)]


def store_vector(buffer: tirx.Buffer, start: Expr, lanes: int, value: Expr) -> None:
    T.buffer_store(buffer, value, [T.ramp(start, integer(1), lanes)])


class KernelBuilder:
    """Open with `with`; operands and buffers may be asked for at any point of the body."""

    def __init__(self, template: str, around: Surroundings, workload: str = "") -> None:
        self.template = template
        self.workload = workload
        self.isa = around.isa
        self.ranges = around.ranges
        self.reason = ""
        self.tiles = False
        self._overread = 0
        self.around = around
        self._tuned = around.tuned.get(workload, {})
        self._choices: dict[str, Choice] = {}
        self._operands: list[Operand] = []
        self._parameters: list[tirx.Var] = []
        self._buffers: list[tirx.Buffer] = []
        self._views: dict[fx.Node, TensorView] = {}
        self._constants: dict[tuple[Any, ...], tirx.Buffer] = {}
        self._symbols: dict[str, tirx.Var] = {}
        self._sizes: dict[Size, tuple[tirx.Var, Expr]] = {}
        self._frames = ExitStack()

    def __enter__(self) -> KernelBuilder:
        self._builder = self._frames.enter_context(IRBuilder())
        self._frames.enter_context(T.prim_func())
        T.func_name("kernel")
        return self

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is None:
            T.Return(T.int32(0))
        self._frames.__exit__(*exception)

    def finish(self) -> Kernel:
        """The kernel, after the `with` block."""
        declared = [
            tirx.DeclBuffer(buffer, data=data) for buffer, data in zip(self._buffers, self._parameters, strict=True)
        ]
        computed = [tirx.Bind(name, value) for name, value in self._sizes.values() if not isinstance(value, tirx.Var)]
        body = self._builder.get().body
        function = tirx.PrimFunc(
            [*self._parameters, *self._symbols.values()],
            tirx.SeqStmt([*declared, *computed, body]) if declared or computed else body,
            tvm.ir.PrimType("int32"),
        )
        return Kernel(
            function,
            tuple(self._operands),
            tuple(self._symbols),
            self.template,
            self.reason,
            self.workload,
            self._choices,
            self.tiles,
            self._overread,
        )

    # -- sizes -----------------------------------------------------------------------------------

    def size(self, size: Size) -> Expr:
        """A size as an index expression; symbols become parameters, what is computed from them a variable."""
        if isinstance(size, int):
            return integer(size)
        if size not in self._sizes:
            variable = tirx.Var(f"size{len(self._sizes)}", "int64")
            self._sizes[size] = (variable, sizes.fold(size, self._leaf, lambda name, args: _RULES[name](*args)))
        variable, value = self._sizes[size]
        return value if isinstance(value, tirx.Var) else variable

    def _leaf(self, item: int | sympy.Symbol) -> Expr:
        if isinstance(item, int):
            return integer(item)
        return self._symbols.setdefault(item.name, tirx.Var(item.name, "int64"))

    # -- operands --------------------------------------------------------------------------------

    def _parameter(self, operand: Operand, dtype: str) -> tirx.Buffer:
        name = f"operand{len(self._operands)}"
        data = tirx.Var(f"{name}_data", tvm.ir.PointerType(tvm.ir.PrimType(dtype)))
        buffer = tirx.decl_buffer((UNBOUNDED,), dtype, name=name, data=data)
        self._operands.append(operand)
        self._parameters.append(data)
        self._buffers.append(buffer)
        return buffer

    def tensor(self, node: fx.Node) -> TensorView:
        """The value of a node, to read or to write."""
        if node not in self._views:
            dtype = dtype_of(node)
            place = self.around.places[node]
            buffer = self._parameter(Value(node), "uint8" if dtype == "bool" or place.flipped else dtype)
            strides = tuple(self.size(stride) for stride in place.strides)
            self._views[node] = TensorView(buffer, shape_of(node), strides, dtype)
        return self._views[node]

    def strides(self, node: fx.Node) -> tuple[Size, ...]:
        """How the node's value lies in memory, in elements a logical dimension."""
        return self.around.places[node].strides

    def halo(self, node: fx.Node) -> Halo | None:
        """What lies around the node's value in memory."""
        return self.around.places[node].halo

    def at_load(self, node: fx.Node) -> bool:
        """Whether the value is known before the first run: a weight, or computed from weights alone."""
        return node in self.around.at_load

    def packs_at_load(self, node: fx.Node, size: int, code: int = 1024) -> bool:
        """Whether the artifact holds this weight as it is, and a packing of `size` bytes is made at load: an embedding
        reads it where it lies, or the packing is larger by an eighth and by the `code` that makes it, in bytes."""
        stored = int(sizes.product(shape_of(node))) * np.dtype(dtype_of(node)).itemsize
        return node in self.around.looked_up or size > stored + max(stored // 8, code)

    def may_overread(self, node: fx.Node, size: int) -> bool:
        """Whether `size` bytes behind the value can be read (nobody says what they hold): it lies in the arena."""
        owner = self.around.places[node].owner
        stays = owner in self.around.at_load or any(user.op == "output" for user in owner.users)
        return size == 0 or (owner.op == "call_function" and not stays)

    def overread(self, size: int) -> None:
        """Have room for `size` bytes behind the arena."""
        self._overread = max(self._overread, size)

    def constant(self, array: np.ndarray[Any, Any], note: str) -> tirx.Buffer:
        """A flat buffer with the elements of `array`, packed at compile time; one for all that have the same note."""
        key = (note, array.shape, str(array.dtype))
        if key not in self._constants:
            self._constants[key] = self._parameter(Constant(np.ascontiguousarray(array), note), str(array.dtype))
        return self._constants[key]

    def packed(self, operand: Packed) -> tirx.Buffer:
        """A flat buffer that an init step fills (the init step itself asks for it in the same way)."""
        return self._parameter(operand, operand.dtype)

    def workspace(self, elements: Size, dtype: str) -> tirx.Buffer:
        """A flat scratch buffer, large enough at the symbols' maxima, with 64 bytes of slack to read beyond."""
        width = np.dtype(dtype).itemsize
        return self._parameter(Workspace(self.ranges.maximum(elements) * width + 64), dtype)

    def local(self, elements: int, dtype: str) -> tirx.Buffer:
        """A flat buffer on the stack, or in registers where every index is constant."""
        return T.alloc_buffer((elements,), dtype, scope="local")

    def prefetch(self, buffer: tirx.Buffer, offset: Expr) -> None:
        """Ask for the cache line of an element, which may lie beyond the buffer, in the second-level cache."""
        read, level, data = T.int32(0), T.int32(2), T.int32(1)
        name = T.llvm_lookup_intrinsic_id("llvm.prefetch")
        T.evaluate(T.call_llvm_intrin("void", name, T.address_of(buffer[offset]), read, level, data))

    def aligned(self, elements: int, dtype: str) -> tirx.Buffer:
        """A flat buffer on the stack that begins at a cache line."""
        slack = 64 // np.dtype(dtype).itemsize
        last = T.address_of(self.local(elements + slack, dtype)[integer(slack - 1)])
        mask = T.llvm_lookup_intrinsic_id("llvm.ptrmask")
        data = T.Bind(T.call_llvm_pure_intrin(mask, last, integer(-64), dtype="handle"))
        return T.decl_buffer((elements,), dtype, data=data, scope="local")

    def parameter(self, name: str, default: int, options: Sequence[int]) -> int:
        """A free choice of the template, such as the rows of a tile: `default`, unless tuning found better."""
        if default not in options:
            raise ValueError(f"{self.template}: the default {name}={default} is none of {tuple(options)}")
        value = self._tuned.get(name, default)
        if value not in options:  # found for an earlier form of the template
            value = default
        self._choices[name] = Choice(value, tuple(options))
        return value

    # -- loops -----------------------------------------------------------------------------------

    @contextmanager
    def loop(self, extent: Expr | int, parallel: bool = False) -> Iterator[Expr]:
        """A loop from 0 to `extent`; one that runs once is no loop."""
        if isinstance(extent, int):
            extent = integer(extent)
        if getattr(extent, "value", None) == 1:
            yield integer(0)
            return
        with (T.parallel if parallel else T.serial)(integer(0), extent) as position:
            yield position

    @contextmanager
    def vectorized(self, lanes: int) -> Iterator[Expr]:
        """The lanes of a vector."""
        if lanes == 1:
            yield integer(0)
            return
        with T.vectorized(integer(0), integer(lanes)) as lane:
            yield lane
