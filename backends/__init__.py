"""Backends: one folder, one lowering."""

if __name__ != "graphc.backends":
    raise ImportError("import graphc.backends, not backends")
