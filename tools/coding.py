"""What entropy coding takes off the weights of an artifact, beside zlib and xz, and what it adds to loading.

    python -m graphc.tools.coding --output tools/results/coding.json                minutes
    python -m graphc.tools.coding --networks lenet --ways int8                      seconds

Networks of the zoo with post-training formats; bytes are the weights section of the artifact, tables counted. zlib at
level 9 and xz at preset 9 compress the same section as a whole.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
import zlib
from pathlib import Path
from typing import Any

from rich.console import Console

import graphc
from graphc import container, entropy
from graphc.calibration import batches
from graphc.compiler import lower
from graphc.pipeline import CLEAN, FINISH, PRESETS, PassContext, Pipeline
from graphc.progress import silent
from graphc.target import Target
from graphc.tools.zoo.catalog import MODELS

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
        "network": network,
        "weights": way,
        "bytes": len(plain),
        "coded": len(coded),
        "zlib": len(zlib.compress(plain, 9)),
        "xz": len(lzma.compress(plain, preset=9)),
        "seconds to code": round(encoded - start, 2),
        "seconds to decode": round(time.process_time() - encoded, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet20_jpeg", "llama_char105", "resnet18"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--output", type=Path, help="where the figures go, after each row")
    options = parser.parse_args()
    rows = []
    for network in options.networks:
        for way in options.ways:
            rows.append(measure(network, way))
            if options.output is not None:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                container.write(options.output, (json.dumps(rows, indent=1) + "\n").encode())
    if options.output is None:
        Console().print_json(json.dumps(rows))


if __name__ == "__main__":
    main()
