"""Measure the zoo's float baselines: `python -m graphc.tools.zoo [--limit N] [names]`, one row a metric."""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from graphc.errors import GraphcError
from graphc.tools.zoo.catalog import MODELS


def main() -> int:
    """Print the table; 1 where data is missing."""
    parser = argparse.ArgumentParser(prog="python -m graphc.tools.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"models to measure (all): {', '.join(MODELS)}")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each benchmark")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(MODELS)):
        parser.error(f"unknown model {', '.join(unknown)}; there are: {', '.join(MODELS)}")

    console = Console()
    table = Table("model", "parameters", "data", "metric", title="Float baselines")
    for column in ("baseline", "measured", "seconds"):
        table.add_column(column, justify="right")
    try:
        for name in arguments.names or MODELS:
            entry = MODELS[name]
            model = entry.build()
            parameters = f"{sum(parameter.numel() for parameter in model.parameters()):,}"
            for benchmark in entry.benchmarks:
                start = time.perf_counter()
                with console.status(f"{name}: {benchmark.data}"), torch.inference_mode():
                    measured = benchmark.protocol(model, arguments.limit, entry.batch)
                seconds = f"{time.perf_counter() - start:.1f}"
                for metric, value in measured.items():
                    digits = 2 if metric.endswith(("%", "dB")) else 4
                    published = f"{benchmark.baseline[metric]:.{digits}f}"
                    table.add_row(name, parameters, benchmark.data, metric, published, f"{value:.{digits}f}", seconds)
    except GraphcError as error:
        console.print(f"[red]error:[/] {error}")
        return 1
    console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
