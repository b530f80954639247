"""Lower a whole graph: groups, layouts, kernels, memory, code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy
import torch
from torch import fx
from tvm_ffi import StructuralKey

from graphc.backends.tvm import memory, weight_formats
from graphc.backends.tvm.codegen import compile_kernels
from graphc.backends.tvm.entry import Call, Location, entry_c
from graphc.backends.tvm.groups import Group, operators, partition, weights_only
from graphc.backends.tvm.halo import fill_halo
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Constant, Kernel, KernelBuilder, Operand, Packed, Value, Workspace
from graphc.backends.tvm.layout import arrange, elements
from graphc.backends.tvm.link import link
from graphc.backends.tvm.operations import TVM_DTYPES, name_of, shape_of, type_of
from graphc.backends.tvm.placement import Placement
from graphc.backends.tvm.sizes import Ranges, simplify
from graphc.backends.tvm.surroundings import Surroundings
from graphc.backends.tvm.templates import select, unsupported, without_tiles
from graphc.backends.tvm.templates.multiply_accumulate import integer
from graphc.backends.tvm.workload import workload
from graphc.errors import Unsupported, UnsupportedOperatorError
from graphc.graph import Graph
from graphc.program import Program
from graphc.target import Target
from graphc.tensor_type import DTYPE_NAMES, Size, TensorType

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel call of the program. `group` is None for the packing of a weight at load."""

    kernel: Kernel
    nodes: tuple[fx.Node, ...]
    path: str
    at_load: bool


def lower(
    graph: Graph,
    target: Target,
    *,
    progress: Progress | None = None,
    tuned: Mapping[str, Mapping[str, int]] | None = None,
) -> Program:
    """Code, packed weights and plan for `target`.

    progress(what, done, total) is called as work advances. tuned: template parameters by workload, where tuning found
    better ones than the templates' defaults. Raises UnsupportedOperatorError with every operator that
    has no lowering, TargetError where linking fails.
    """
    isa = InstructionSet.of(target)
    graph = _with_own_results(graph)
    reject_unsupported(graph, isa)
    groups = partition(graph)
    ranges = Ranges(graph.symbols)
    unsigned = integer(isa).left == "uint8" and not target.has("amx-int8")  # whose tiles read either sign
    places = arrange(graph, groups, ranges.maximum, unsigned)
    around = Surroundings(
        isa, ranges, places, graph.weights, frozenset(weights_only(graph)), weight_formats.looked_up_parts(graph),
        tuned or {},
    )  # fmt: skip
    report = progress or (lambda phase, done, total: None)

    steps: list[Step] = []
    for done, group in enumerate(groups):
        report("kernels", done, len(groups))
        if places[group.output].owner is group.output:
            steps.append(Step(_build(group, around), (*group.absorbed, *group.nodes), group.path, group.at_load))
    steps = _used(steps, places)
    steps = [*(step for step in steps if step.at_load), *_packing(steps, around), *(s for s in steps if not s.at_load)]
    functions, symbols = _symbols([step.kernel for step in steps])
    report("code", 0, 1)
    code = compile_kernels(functions, isa)
    layout = _Memory(graph, steps, places, ranges)
    calls = [
        Call(symbol, step.kernel, tuple(layout.locate(operand) for operand in step.kernel.operands))
        for symbol, step in zip(symbols, steps, strict=True)
    ]
    inputs = [(node.name, type_of(node)) for node in graph.placeholders]
    outputs = [(node.meta.get("copied", node).name, type_of(node)) for node in _results(graph)]
    init_steps = sum(step.at_load for step in steps)
    entry = entry_c(calls, init_steps, inputs, outputs, graph.symbols, layout.bytes_of, target.features)
    report("link", 0, 1)
    binary = link(code, entry, target)
    plan = {
        "target": target.to_json(),
        "inputs": [_tensor_json(name, kind) for name, kind in inputs],
        "outputs": [_tensor_json(name, kind) for name, kind in outputs],
        "symbols": [
            {"name": name, "minimum": known.minimum, "maximum": known.maximum} for name, known in graph.symbols.items()
        ],
        "arena_bytes": layout.bytes_of["arena"],
        "state_bytes": layout.bytes_of["state"],
        "init_steps": init_steps,
        "steps": [_step_json(step, call, layout) for step, call in zip(steps, calls, strict=True)],
    }
    spaces = {
        step.kernel.workload: {name: choice.options for name, choice in step.kernel.choices.items()}
        for step in steps
        if step.kernel.choices and not step.at_load
    }
    return Program(binary, layout.weights, plan, spaces)


def supported(node: fx.Node, target: Target) -> str | None:
    """None where the backend computes this operator, else why it does not and what would help."""
    return unsupported(node, InstructionSet.of(target))


def reject_unsupported(graph: Graph, isa: InstructionSet) -> None:
    """Raise UnsupportedOperatorError with every operator that has no lowering."""
    found = []
    for node in operators(graph):
        reason = unsupported(node, isa)
        if reason is not None:
            found.append(Unsupported(node.name, name_of(node).partition("#")[0], node.meta.get("path", ""), reason))
    for node in graph.placeholders:
        if TVM_DTYPES.get(type_of(node).dtype, "float16") == "float16":  # which only weights are stored in
            found.append(Unsupported(node.name, "input", "", "no kernel takes this type; convert it to f32"))
    if found:
        raise UnsupportedOperatorError(f"the tvm backend ({isa.target.name})", found)


def _results(graph: Graph) -> list[fx.Node]:
    return list(graph.output.args[0])  # type: ignore[arg-type]


def _with_own_results(graph: Graph) -> Graph:
    """A graph in which every result is an operator of its own: inputs, weights and repeated results are copied."""
    graph = graph.clone()
    graph.drop_unused()
    output = graph.output
    results: list[fx.Node] = []
    for node in _results(graph):
        if node.op != "call_function" or node in results:
            with graph.at(output):
                copy = graph.call(torch.ops.aten.clone.default, node)
            copy.meta["copied"] = node
            node = copy
        results.append(node)
    output.args = (tuple(results),)
    return graph


def _build(group: Group, around: Surroundings) -> Kernel:
    template = select(group, around.isa)
    assert template is not None, f"unsupported operators were rejected before: {group}"
    k = KernelBuilder(template.NAME, around, workload(template.NAME, group, around.places, around.ranges))
    if group.at_load:
        k.reason = "computed once at load, from weights alone"
    elif not group.absorbed:
        k.reason = weight_formats.reason(group.nodes) or without_tiles(group, around.isa)
    with k:
        fill_halo(k, group.output)
        template.emit(group, k)
    return k.finish()


def _used(steps: list[Step], places: Mapping[fx.Node, Placement]) -> list[Step]:
    """The steps but those at load whose result no step reads: a kernel may take a weight as it is stored."""
    read: set[fx.Node] = set()
    result = []
    for step in reversed(steps):
        if not step.at_load or places[step.nodes[-1]].owner in read:
            result.append(step)
            for operand in step.kernel.operands:
                if isinstance(operand, Value | Packed) and operand.node is not step.nodes[-1]:
                    read.add(places[operand.node].owner)
    return result[::-1]


def _packing(steps: list[Step], around: Surroundings) -> list[Step]:
    """Init steps that pack what earlier init steps computed."""
    wanted = {operand: step for step in steps for operand in step.kernel.operands if isinstance(operand, Packed)}
    result = []
    for operand, user in wanted.items():
        k = KernelBuilder("packing", around)
        k.reason = f"packed at load for {user.kernel.template}"
        with k:
            operand.emit(k, k.tensor(operand.node), k.packed(operand))
        result.append(Step(k.finish(), (operand.node,), user.path, True))
    return result


def _symbols(kernels: list[Kernel]) -> tuple[dict[str, Any], list[str]]:
    """The functions by symbol, and each kernel's symbol; equal functions share one."""
    known: dict[StructuralKey, str] = {}
    functions: dict[str, Any] = {}
    names = []
    for kernel in kernels:
        name = f"{kernel.template.replace(' ', '_')}_{len(functions)}"
        key = StructuralKey(kernel.function)  # type: ignore[call-arg]
        names.append(known.setdefault(key, name))
        functions.setdefault(names[-1], kernel.function)
    return functions, names


class _Memory:
    """Where every operand lies, and the bytes of the weights section."""

    def __init__(self, graph: Graph, steps: list[Step], places: dict[fx.Node, Any], ranges: Ranges) -> None:
        self._places = places
        self._inputs = {node: number for number, node in enumerate(graph.placeholders)}
        self._outputs = {node: number for number, node in enumerate(_results(graph))}
        self._ranges = ranges
        init_steps = sum(step.at_load for step in steps)
        first: dict[Any, int] = {}
        last: dict[Any, int] = {}
        sizes: dict[Any, int] = {}
        data: dict[Any, bytes] = {}
        for number, step in enumerate(steps):
            for operand in step.kernel.operands:
                key = self._key(operand)
                if isinstance(operand, Constant):
                    data[key] = operand.array.tobytes()
                elif isinstance(operand, Value) and key.op == "get_attr":
                    data[key] = _bytes(graph.weights[str(key.target)])
                elif not isinstance(operand, Value) or key.op == "call_function":
                    first.setdefault(key, number)
                    last[key] = number
                    sizes[key] = operand.bytes if not isinstance(operand, Value) else self._size(key)
        self.weights, self._weight_offsets = _section(data)
        stays = [key for key in sizes if first[key] < init_steps <= last[key]]
        passing = [key for key in sizes if key not in self._outputs and key not in stays]
        state, state_bytes = memory.pack([sizes[key] for key in stays])
        arena, arena_bytes = memory.place([memory.Lifetime(sizes[key], first[key], last[key]) for key in passing])
        self._state = dict(zip(stays, state, strict=True))
        self._arena = dict(zip(passing, arena, strict=True))
        arena_bytes += max(step.kernel.overread for step in steps) if arena_bytes else 0
        self.bytes_of = {"arena": arena_bytes, "state": state_bytes, "weights": len(self.weights)}

    def _key(self, operand: Operand) -> Any:
        return self._places[operand.node].owner if isinstance(operand, Value) else operand

    def _size(self, node: fx.Node) -> int:
        return self._ranges.maximum(elements(self._places[node])) * type_of(node).dtype.itemsize

    def locate(self, operand: Operand) -> Location:
        key = self._key(operand)
        offset: Size = 0
        if isinstance(operand, Value):
            offset = simplify(self._places[operand.node].offset * type_of(operand.node).dtype.itemsize)
        for base, numbers in (("inputs", self._inputs), ("outputs", self._outputs)):
            if key in numbers:
                return Location(f"{base}[{numbers[key]}]", offset)
        for base, offsets in (("weights", self._weight_offsets), ("state", self._state), ("arena", self._arena)):
            if key in offsets:
                return Location(base, simplify(offsets[key] + offset))
        raise AssertionError(f"{operand} lies nowhere")


def _bytes(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return bytes(np.ascontiguousarray(tensor.numpy()).tobytes())


def _section(data: dict[Any, bytes]) -> tuple[bytes, dict[Any, int]]:
    """Tensors one after the other, equal ones once."""
    unique: dict[bytes, int] = {}
    chunks: list[bytes] = []
    end = 0
    offsets: dict[Any, int] = {}
    for key, content in data.items():
        digest = hashlib.sha256(content).digest()
        if digest not in unique:
            unique[digest] = end
            chunks.append(content.ljust(memory.aligned(len(content)), b"\0"))
            end += len(chunks[-1])
        offsets[key] = unique[digest]
    return b"".join(chunks), offsets


def _tensor_json(name: str, kind: TensorType) -> dict[str, Any]:
    return {"name": name, "dtype": DTYPE_NAMES[kind.dtype], "shape": [_size_json(size) for size in kind.shape]}


def _size_json(size: Size) -> int | str:
    return str(size) if isinstance(size, sympy.Expr) else size


def _step_json(step: Step, call: Call, layout: _Memory) -> dict[str, Any]:
    operands = []
    for operand, location in zip(step.kernel.operands, call.locations, strict=True):
        entry: dict[str, Any] = {"in": location.base, "offset": _size_json(location.offset)}
        if isinstance(operand, Value):
            entry |= {"value": operand.node.name, "dtype": DTYPE_NAMES[type_of(operand.node).dtype]}
            entry["shape"] = [_size_json(size) for size in shape_of(operand.node)]
        elif isinstance(operand, Constant):
            entry |= {"constant": operand.note, "bytes": operand.array.nbytes}
        elif isinstance(operand, Workspace):
            entry |= {"workspace": operand.bytes}
        else:
            entry |= {"packed": operand.node.name, "bytes": operand.bytes}
        operands.append(entry)
    tunable: dict[str, Any] = {}
    if step.kernel.choices:
        parameters = {name: choice.value for name, choice in step.kernel.choices.items()}
        tunable = {"workload": step.kernel.workload, "parameters": parameters}
    return tunable | {
        "kernel": call.symbol,
        "template": step.kernel.template,
        "nodes": [node.meta.get("copied", node).name for node in step.nodes],
        "path": step.path,
        "operands": operands,
        "reason": step.kernel.reason,
    }
