"""A compiled model: one file that runs with neither torch nor TVM.

>>> artifact = graphc.load("model.graphc")
>>> logits = artifact.run(image)
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphc import container, entropy
from graphc.errors import ArtifactError, InputError
from graphc.program import Program
from graphc.runtime.emulator import Emulator
from graphc.runtime.loader import Native
from graphc.structure import Structure
from graphc.target import Target, machine_arch

if TYPE_CHECKING:
    from graphc.report import Report

# How a tensor lies in memory. numpy has no bfloat16: its bits travel as uint16.
_DTYPES = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": np.uint16,
    "i64": np.int64,
    "i32": np.int32,
    "i16": np.int16,
    "i8": np.int8,
    "u8": np.uint8,
    "bool": np.bool_,
}  # fmt: skip


# Of one run: the inputs' shapes, and the outputs' with their dtypes.
_Shapes: TypeAlias = "tuple[list[tuple[int, ...]], list[tuple[tuple[int, ...], np.dtype[Any]]]]"


class Size(int):
    """Bytes of stored weights and code; `weights`, `code` and the whole `file` on their own."""

    weights: int
    code: int
    file: int

    def __new__(cls, weights: int, code: int, file: int) -> Size:
        size = super().__new__(cls, weights + code)
        size.weights, size.code, size.file = weights, code, file
        return size


class Artifact:
    """A compiled model in memory.

    `data` is the content of an artifact file, `threads` how many threads a run takes (None: one for each CPU that this
    process may use). Code for another architecture runs under qemu. Raises ArtifactError for what is no whole artifact.
    """

    def __init__(self, data: bytes | memoryview, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        self._data = memoryview(data)
        self._sections = container.unpack(self._data)
        self.plan: dict[str, Any] = _parse(self._sections["plan"])
        self.manifest: dict[str, Any] = _parse(self._sections["manifest"])
        self.target = Target.from_json(self.plan["target"])
        self.threads = threads or _usable_cpus()
        self._inputs = Structure.from_json(self.manifest["inputs"])
        self._outputs = Structure.from_json(self.manifest["outputs"])
        # What most calls are: tensors one after the other, each an array that can be read as it lies.
        self._num_plain = self._inputs.num_plain
        self._fast = [
            (None if info["dtype"] == "bf16" else np.dtype(_DTYPES[info["dtype"]]), len(info["shape"]))
            for info in self.plan["inputs"]
        ]
        self._sized: tuple[tuple[int, ...], _Shapes] | None = None
        self._lock = threading.Lock()
        self._executor: Native | Emulator | None = None

    @staticmethod
    def build(
        program: Program,
        graph_text: str,
        report: Mapping[str, Any],
        manifest: Mapping[str, Any],
        entropy_coding: bool = False,
    ) -> Artifact:
        """Put an artifact together. `manifest` holds the JSON of the call's Structures under "inputs" and "outputs".

        entropy_coding: store the weights coded where that takes fewer bytes; they are decoded when the code is loaded.
        """
        coded = entropy.encode(program.weights) if entropy_coding else program.weights
        sections = {
            "code": program.code,
            **({"coded_weights": coded} if len(coded) < len(program.weights) else {"weights": program.weights}),
            "plan": _format(program.plan),
            "graph": graph_text.encode(),
            "report": _format(report),
            "manifest": _format(manifest),
        }
        return Artifact(container.pack(sections))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file: the same model, the same bytes."""
        container.write(path, self._data)

    @property
    def data(self) -> memoryview:
        """The content of the file."""
        return self._data

    @property
    def size(self) -> Size:
        stored = self._sections["coded_weights" if self.coded else "weights"]
        return Size(len(stored), len(self._sections["code"]), len(self._data))

    @property
    def kernels(self) -> int:
        """How many kernels the code has; equal ones are one."""
        return len({step["kernel"] for step in self.plan["steps"]})

    @property
    def coded(self) -> bool:
        """Whether the weights are stored entropy-coded; their `size` is then that of the code."""
        return "coded_weights" in self._sections

    @property
    def content(self) -> bytes:
        """What `save` writes."""
        return bytes(self._data)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the file's content."""
        return container.content_hash(self._data)

    @property
    def graph_text(self) -> str:
        """The IR that was compiled, as text."""
        return bytes(self._sections["graph"]).decode()

    def report(self) -> Report:
        """What each layer became, in the model's own names."""
        from graphc.report import Report

        return Report.from_json(_parse(self._sections["report"]))

    def with_report(self, report: Report) -> Artifact:
        """The same model with another report."""
        sections = {name: bytes(section) for name, section in self._sections.items()}
        return Artifact(container.pack(sections | {"report": _format(report.to_json())}), self.threads)

    # -- running ---------------------------------------------------------------------------------

    def run(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run on numpy arrays or torch tensors; returns new numpy arrays in the model's own structure.

        bfloat16 results come as float32, which holds them exactly. Raises InputError that names the input and what
        would be legal. Calls from several threads queue up.
        """
        return self._call(inputs, kwargs)

    def run_many(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Run each item: the tuple of a call's inputs, or the only input."""
        for batch in batches:
            yield self.run(*batch) if isinstance(batch, tuple) else self.run(batch)

    def profile(self, *inputs: Any, **kwargs: Any) -> list[tuple[str, str, float]]:
        """Run once; for each step its kernel's name, the layer it belongs to, and the milliseconds it took."""
        steps = self.plan["steps"][self.plan["init_steps"] :]
        nanoseconds = np.zeros(len(steps), np.uint64)
        self._call(inputs, kwargs, nanoseconds)
        return [(s["kernel"], s["path"], float(ns) / 1e6) for s, ns in zip(steps, nanoseconds, strict=True)]

    def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], nanoseconds: NDArray[np.uint64] | None = None
    ) -> Any:
        leaves = args if len(args) == self._num_plain and not kwargs else self._inputs.flatten_call(args, kwargs)
        arrays = [
            leaf
            if type(leaf) is np.ndarray and leaf.dtype is dtype and leaf.ndim == rank and leaf.flags.c_contiguous
            else _to_array(info, leaf)
            for info, (dtype, rank), leaf in zip(self.plan["inputs"], self._fast, leaves, strict=True)
        ]
        symbols = self._solve(arrays) if self.plan["symbols"] else ()
        with self._lock:
            executor = self._start()
            input_shapes, output_shapes = self._shapes(executor, symbols)
            for info, array, shape in zip(self.plan["inputs"], arrays, input_shapes, strict=True):
                if array.shape != shape:
                    raise InputError(f"input {_describe(info)} must have the shape {shape}, got {array.shape}")
            outputs = [np.empty(shape, dtype) for shape, dtype in output_shapes]
            executor.run(arrays, symbols, outputs, nanoseconds)
        for index, info in enumerate(self.plan["outputs"]):
            if info["dtype"] == "bf16":
                outputs[index] = _from_bfloat16(outputs[index])
        return self._outputs.unflatten(outputs)

    def _shapes(self, executor: Native | Emulator, symbols: tuple[int, ...]) -> _Shapes:
        """The shapes of a run with these dynamic sizes; kept, for the next run is likely to have the same."""
        if self._sized is None or self._sized[0] != symbols:
            infos = [*self.plan["inputs"], *self.plan["outputs"]]
            dims = iter(executor.shapes(symbols, sum(len(info["shape"]) for info in infos)))
            shapes = [tuple(next(dims) for _ in info["shape"]) for info in infos]
            inputs, outputs = shapes[: len(self.plan["inputs"])], shapes[len(self.plan["inputs"]) :]
            dtypes = [np.dtype(_DTYPES[info["dtype"]]) for info in self.plan["outputs"]]
            self._sized = symbols, (inputs, list(zip(outputs, dtypes, strict=True)))
        return self._sized[1]

    def _solve(self, arrays: Sequence[NDArray[Any]]) -> tuple[int, ...]:
        """The dynamic sizes, in the plan's order, read off the inputs whose shapes name them."""
        sizes: dict[str, int] = {}
        for info, array in zip(self.plan["inputs"], arrays, strict=True):
            for size, actual in zip(info["shape"], array.shape, strict=True):
                if isinstance(size, str) and sizes.setdefault(size, actual) != actual:
                    raise InputError(f"input {_describe(info)}: '{size}' is {sizes[size]} elsewhere and {actual} here")
        for symbol in self.plan["symbols"]:
            name, minimum, maximum = symbol["name"], symbol["minimum"], symbol["maximum"]
            if name not in sizes:
                raise ArtifactError(f"no input of the artifact has the dynamic size '{name}' as one of its sizes")
            if not minimum <= sizes[name] <= maximum:
                raise InputError(f"'{name}' must lie between {minimum} and {maximum}, the inputs make it {sizes[name]}")
        return tuple(sizes[symbol["name"]] for symbol in self.plan["symbols"])

    def _start(self) -> Native | Emulator:
        if self._executor is None or not self._executor.alive:
            steps = [step["kernel"] for step in self.plan["steps"]]
            if self.target.arch == machine_arch():
                coded = self._sections.get("coded_weights")
                weights = self._sections["weights"] if coded is None else entropy.decode(coded)
                self._executor = Native(self._sections["code"], weights, steps, self.threads)
            else:
                num_steps = len(steps) - self.plan["init_steps"]
                self._executor = Emulator(self._data, self.target.arch, num_steps, self.threads)
        return self._executor


def load(path: str | os.PathLike[str], threads: int | None = None) -> Artifact:
    """Read an artifact file, verify its hash, and map it. Raises ArtifactError where it is damaged."""
    return Artifact(container.read(path), threads)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parse(section: memoryview) -> Any:
    try:
        return json.loads(bytes(section))
    except ValueError as error:
        raise ArtifactError(f"the artifact holds unreadable JSON: {error}") from None


def _format(value: Mapping[str, Any]) -> bytes:
    """JSON that depends on the value alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _describe(info: Mapping[str, Any]) -> str:
    return f"'{info['name']}' ({info['dtype']}[{', '.join(map(str, info['shape']))}])"


def _to_array(info: Mapping[str, Any], value: Any) -> NDArray[Any]:
    """A dense array of an input's bits. Raises InputError where dtype or rank are others than declared."""
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu()
        given = str(value.dtype).removeprefix("torch.")
        array = _to_bfloat16(value.float().numpy()) if given == "bfloat16" else value.numpy()
    else:
        array = np.asarray(value)
        given = array.dtype.name
        if given == "bfloat16":  # of ml_dtypes
            array = array.view(np.uint16)
    wanted = "bfloat16" if info["dtype"] == "bf16" else np.dtype(_DTYPES[info["dtype"]]).name
    if given != wanted:
        raise InputError(f"input {_describe(info)} must be {wanted}, got {given}")
    if array.ndim != len(info["shape"]):
        raise InputError(f"input {_describe(info)} has {len(info['shape'])} dimensions, got shape {array.shape}")
    return np.asarray(array, order="C")


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of bfloat16 values: the upper halves of the same values in float32."""
    return np.right_shift(np.asarray(values, order="C").view(np.uint32), 16).astype(np.uint16)


def _from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    values = np.empty(bits.shape, np.float32)
    values.view(np.uint32)[...] = bits
    values.view(np.uint32)[...] <<= 16
    return values
