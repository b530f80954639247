"""Lowering through TVM to native code for x86-64 and arm64."""

from graphc.backends.tvm.lowering import lower, supported

__all__ = ["lower", "supported"]
