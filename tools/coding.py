"""What entropy coding takes off the weights of an artifact, beside zlib and xz, and what it adds to loading.

    python -m graphc.tools.coding --output tools/results/coding.json                minutes
    python -m graphc.tools.coding lenet --limit 2                                   seconds

Networks of the zoo with post-training formats; bytes are the weights section of the artifact, tables counted. zlib at
level 9 and xz at preset 9 compress the same section as a whole.
"""

from __future__ import annotations

import argparse
import lzma
import sys
import time
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import graphc
from graphc import entropy
from graphc.calibration import batches
from graphc.compiler import lower
from graphc.pipeline import CLEAN, FINISH, PRESETS, PassContext, Pipeline
from graphc.progress import silent
from graphc.target import Target
from graphc.tools import statement
from graphc.tools.statement import Known
from graphc.tools.zoo.catalog import MODELS

NETWORKS = ("resnet20_jpeg", "llama_char105", "resnet18", "lenet")
FORMATS = {
    "int4 g32": "linear(bits=4,group=32)",
    "int3 g32": "linear(bits=3,group=32)",
    "vector, 2 bits": "vector(d=4)",
    "vector, 1 bit": "vector(d=4,codewords=16)",
    "sparse 0.3": "unstructured(density=0.3)",
}
WAYS = ("float", "int8", *FORMATS)


def measure(network: str, way: str) -> dict[str, Any]:
    entry = MODELS[network]
    graph = graphc.trace(entry.build(), entry.example_inputs(1))
    data = batches(graph, entry.calibration(64, 1)) if way == "int8" else []
    passes = PRESETS.get(way) or f'{CLEAN},compress{{format="{FORMATS[way]}",unfit=keep}},{FINISH}'
    plain = lower(
        Pipeline(passes).run(graph, PassContext(calibration=data)), Target.parse("x86-64:vnni"), silent
    ).weights
    start = time.process_time()
    coded = entropy.encode(plain)
    encoded = time.process_time()
    assert bytes(entropy.decode(coded)) == plain
    return {
        "bytes": len(plain),
        "coded": len(coded),
        "zlib": len(zlib.compress(plain, 9)),
        "xz": len(lzma.compress(plain, preset=9)),
        "seconds to code": round(encoded - start, 2),
        "seconds to decode": round(time.process_time() - encoded, 2),
    }


def network(name: str, options: argparse.Namespace, known: Known) -> None:
    for way in WAYS[: options.limit]:
        known.once(way, measure, name, way)


FIGURES = {name: partial(network, name) for name in NETWORKS}


def main(arguments: Sequence[str] | None = None) -> int:
    return statement.main("graphc.tools.coding", __doc__, FIGURES, arguments)


if __name__ == "__main__":
    sys.exit(main())
