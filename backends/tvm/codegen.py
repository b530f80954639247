"""From TIR functions to an object file, by TVM's LLVM code generator."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import tvm
from tvm import tirx
from tvm.tirx.build import codegen_build

from graphc.backends.tvm import brain_float
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.errors import GraphcError


def compile_kernels(kernels: Mapping[str, tirx.PrimFunc], isa: InstructionSet) -> bytes:
    """An ELF object that defines each kernel as a plain C function under its name.

    Its one undefined symbol is the weak pointer `__TVMBackendParallelLaunch`.
    """
    target = tvm.target.Target(isa.llvm())
    module = tvm.IRModule(
        {name: function.with_attrs({"global_symbol": name, "tirx.noalias": True}) for name, function in kernels.items()}
    )
    module = tirx.transform.BindTarget(target.with_host(target))(module)
    module = tirx.transform.VectorizeLoop(True)(module)
    for name, function in module.functions_items():
        # A call that TVM does not vectorize leaves a variable outside of its loop, and would compute nonsense.
        if tirx.analysis.undefined_vars(function.body, function.params):
            raise GraphcError(f"kernel {name.name_hint} cannot be vectorized; please report the model")
    with target:
        module = tirx.transform.LowerIntrin()(module)
    module = _with_definitions(module, brain_float.llvm_functions(isa))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.o"
        codegen_build(module, target).write_to_file(str(path))
        return path.read_bytes()


def _with_definitions(module: tvm.IRModule, definitions: str) -> tvm.IRModule:
    """The module with functions in LLVM's IR beside its own: the first kernel brings them."""
    name = module.get_global_vars()[0]
    function = module[name]
    brought = tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", tvm.ir.StringImm(definitions), function.body)
    module.update_func(name, function.with_body(brought))
    return module
