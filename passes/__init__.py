"""Passes: one file, one pass; the file's name is the pass's name."""

if __name__ != "graphc.passes":
    raise ImportError("import graphc.passes, not passes")
