"""The invariants of a Graph, checked after capture, after parsing and after every pass."""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

from graphc.errors import VerificationError
from graphc.graph import Graph, is_item
from graphc.operators.inference import infer
from graphc.tensor_type import TensorType, symbol


def verify(graph: Graph) -> None:
    """Raise VerificationError, which quotes the node, unless

    - every operator is a functional ATen or graphc overload (no in-place operators, no Python functions), its
      arguments given by place wherever the schema allows,
    - every value is defined before it is used, and names are unique,
    - every recorded type is what the operator's shape rule says, every weight's what its tensor says,
    - every symbol in a type is declared, with a range from 1, and is a dimension of an input,
    - fused groups are convex (no path leaves a group and comes back) and have one result that is used outside.
    """
    seen: set[fx.Node] = set()
    names: set[str] = set()
    for node in graph:
        for used in node.all_input_nodes:
            if used not in seen:
                raise _wrong(node, f"uses %{used.name} before it is defined")
        if node.name in names:
            raise _wrong(node, "has the name of an earlier node")
        seen.add(node)
        names.add(node.name)
        if node.op == "output":
            results = node.args[0]
            if node is not graph.output:
                raise _wrong(node, "is not the last node")
            tensors = isinstance(results, tuple) and all(
                isinstance(result, fx.Node) and isinstance(result.meta["type"], TensorType) for result in results
            )
            if not tensors or len(results) != graph.outputs.size:  # type: ignore[arg-type]
                raise _wrong(node, f"must return the {graph.outputs.size} tensors of the graph's structure")
            continue
        _check_type(graph, node)
    if graph.output.op != "output":
        raise VerificationError(f"graph '{graph.name}' does not end with its output")
    if len(graph.placeholders) != graph.inputs.size:
        raise VerificationError(f"graph '{graph.name}' has other inputs than its structure says")
    for name, known in graph.symbols.items():
        if not 1 <= known.minimum <= known.maximum:
            raise VerificationError(f"size '{name}' cannot lie in [{known.minimum}, {known.maximum}]")
        if not any(symbol(name) in node.meta["type"].shape for node in graph.placeholders):
            raise VerificationError(f"size '{name}' is no dimension of an input by itself, so that no call tells it")
    _check_groups(graph)


def _check_type(graph: Graph, node: fx.Node) -> None:
    recorded = node.meta.get("type")
    if recorded is None:
        raise _wrong(node, "has no type")
    for kind in recorded if isinstance(recorded, tuple) else (recorded,):
        for size in kind.shape:
            for known in () if isinstance(size, int) else size.free_symbols:
                if str(known) not in graph.symbols:
                    raise _wrong(node, f"has the undeclared size '{known}'")
    if node.op == "get_attr":
        tensor = graph.weights.get(str(node.target))
        if tensor is None:
            raise _wrong(node, f"reads the weight '{node.target}', which the graph does not have")
        expected: object = TensorType.of(tensor)
    elif node.op == "call_function":
        if isinstance(node.target, OpOverload):
            if node.target._schema.is_mutable:
                raise _wrong(node, f"calls {node.target}, which writes to its argument")
            for argument in node.target._schema.arguments if node.kwargs else ():
                if argument.name in node.kwargs and not argument.kwarg_only:
                    raise _wrong(node, f"gives '{argument.name}' by keyword, which {node.target} takes by place")
        elif not is_item(node):
            raise _wrong(node, f"calls {node.target}, which is no operator")
        expected = infer(node, graph.symbols)
    elif node.op == "placeholder":
        return
    else:
        raise _wrong(node, f"is a '{node.op}', which the IR does not have")
    if recorded != expected:
        raise _wrong(node, f"is recorded as {_text(recorded)}, but its operator gives {_text(expected)}")


def _check_groups(graph: Graph) -> None:
    """A group must be able to run at once: no member may depend on a member through a node outside, and one value
    alone is seen outside."""
    results: dict[int, fx.Node] = {}
    outside_of: dict[fx.Node, set[int]] = {}
    for node in graph:
        group = node.meta.get("group")
        reached: set[int] = set()
        for used in node.all_input_nodes:
            reached |= outside_of.get(used, set())
            theirs = used.meta.get("group")
            if theirs is not None and theirs != group:
                reached.add(theirs)
        if group is not None and group in reached:
            raise _wrong(node, f"is in group {group}, but depends on that group through a node outside it")
        if group is not None and any(user.meta.get("group") != group for user in node.users):
            other = results.setdefault(group, node)
            if other is not node:
                raise _wrong(node, f"is used outside of group {group}, as is %{other.name}: a group has one result")
        outside_of[node] = reached


def _wrong(node: fx.Node, problem: str) -> VerificationError:
    where = f" (layer '{node.meta['path']}')" if node.meta.get("path") else ""
    return VerificationError(f"%{node.name}{where} {problem}")


def _text(kind: object) -> str:
    return f"({', '.join(map(str, kind))})" if isinstance(kind, tuple) else str(kind)
