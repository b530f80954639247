"""What each operator that is no anchor gives at one index; one file a family. Importing this fills the tables."""

from graphc.backends.tvm.index_functions import (
    activations,
    arithmetic,
    codewords,
    creation,
    gathers,
    integers,
    moves,
    resampling,
    rescaling,
    truth,
    views,
    weights,
)

__all__ = [
    "activations",
    "arithmetic",
    "codewords",
    "creation",
    "gathers",
    "integers",
    "moves",
    "resampling",
    "rescaling",
    "truth",
    "views",
    "weights",
]
