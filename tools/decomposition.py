"""What SLaB, low rank and the compensation of rounding lose on real weights, as the papers' inequalities.

    python -m graphc.tools.decomposition                     everything on the decoder: half an hour of one core
    python -m graphc.tools.decomposition compensation --limit 30
    python -m graphc.tools.decomposition --models minilm --layers 3 --columns 600 --bits 8

slab          sparse + rank 1 * signs against Wanda, magnitude, SparseGPT and sparse + low rank at no fewer bytes
compensation  2 and 3 bits: no compensation, a plain one of rank 8, a whitened one, and one of ranks by sensitivity
whitening     the low rank of the weight against that of weight times root of the inputs' moments

Formats are encoded by moments of one half of the calibration data; losses and divergences (KL of the results, in nats)
are those of the other half. A layer's loss is the squared error of its output over the square of its output. Without
--layers, a language model is judged whole too: all its layers at once, and its likelihood on held-back stories.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from graphc import container, formats
from graphc.encoding.compensation import damped
from graphc.expressions import Product, Sum
from graphc.formats import Format
from graphc.formats.binary import Binary
from graphc.formats.linear import Linear
from graphc.formats.low_rank import LowRank
from graphc.formats.unstructured import Unstructured
from graphc.graph import arguments
from graphc.moments import loss
from graphc.passes.compensate import Compensate
from graphc.passes.compress import LAYERS
from graphc.pipeline import PassContext
from graphc.progress import Progress, terminal
from graphc.tools.layer_losses import Figures, Layer, Network, beaten, compared, encoded

BUDGETS = (11.0, 8.0, 4.8)  # bits a weight, masks counted
ROUNDS = 20  # of SLaB's alternation, as in the paper
RANKS = (2, 4, 8, 16)  # among which sparse + low rank has its best
RANK = 8  # of compensation


# -- SLaB, section 7 --------------------------------------------------------------------------------


def slab(network: Network, show: Progress, budgets: Sequence[float] = BUDGETS) -> Figures:
    result = {}
    for bits in budgets:
        sizes: dict[str, int] = {}  # of SLaB, which the others may not fall below

        def ours(layer: Layer, bits: float = bits, sizes: dict[str, int] = sizes) -> tuple[Tensor, int]:
            rows, columns = layer.shape
            signs, thin = rows * -(-columns // 8), rows + columns + 2 * (rows + 1)
            kept = (bits / 8 * rows * columns - 2 * signs - thin) // (2 * rows)
            form = Sum((Product((LowRank(1, factors="int8"), Binary())), Unstructured(kept / columns)), ROUNDS)
            decoded, sizes[layer.name] = encoded(form, layer, layer.given)
            return decoded, sizes[layer.name]

        def sparse(
            layer: Layer, moments: Tensor | None, update: bool = False, rank: int = 0, sizes: dict[str, int] = sizes
        ) -> tuple[Tensor, int]:
            """The least density at which it takes no fewer bytes than SLaB."""
            rows, columns = layer.shape
            thin = rank * (rows + columns) + 2 * (rows + rank) if rank else 0
            kept = math.ceil((sizes[layer.name] - rows * -(-columns // 8) - thin) / (2 * rows))
            for count in range(max(1, kept), columns + 1):
                form: Format = Unstructured(count / columns, update=update)
                if rank:
                    form = Sum((form, LowRank(rank, factors="int8")), ROUNDS)
                    cheap = Sum(form.terms)
                    if cheap.bytes(cheap.encode(layer.weight, moments)) < sizes[layer.name]:
                        continue
                decoded, size = encoded(form, layer, moments)
                if size >= sizes[layer.name]:
                    return decoded, size
            return layer.weight, layer.weight.nbytes

        def both(layer: Layer) -> tuple[Tensor, int]:
            """Of several ranks the best for the moments that are given."""
            ranks = [rank for rank in RANKS if rank < min(layer.shape) // 8]
            found = [sparse(layer, layer.given, rank=rank) for rank in ranks]
            return min(found, key=lambda item: loss(layer.weight - item[0], layer.given))

        rows = compared(
            network,
            {
                "slab": ours,
                "magnitude": lambda layer: sparse(layer, None),
                "wanda": lambda layer: sparse(layer, layer.given),
                "sparsegpt": lambda layer: sparse(layer, layer.given, update=True),
                "sparse + low rank": both,
                "int4 g32, for comparison": lambda layer: encoded(Linear(4, 32), layer, layer.given),
            },
            show,
        )
        checks: Figures = {}
        for other in ("wanda", "magnitude", "sparsegpt", "sparse + low rank"):
            checks |= beaten(rows, "slab", other)
        result[f"{bits} bits"] = {"rows": rows, "checks": checks}
    return result


# -- compensation, section 22 -----------------------------------------------------------------------


def compensation(network: Network, show: Progress) -> Figures:
    result = {}
    for bits in (2, 3):
        base = Linear(bits, 32)

        def stored(layer: Layer, moments: Tensor | None, rank: int = RANK, base: Linear = base) -> tuple[Tensor, int]:
            decoded, size = encoded(base, layer, None)
            if rank == 0:
                return decoded, size
            error = Layer(layer.name, layer.weight - decoded, layer.given, layer.judged)
            low, more = encoded(LowRank(rank, factors="int8"), error, moments)
            return decoded + low, size + more

        ranks = _allocated(network, base) if network.whole else {}
        ways: dict[str, Callable[[Layer], tuple[Tensor, int]]] = {
            "none": lambda layer: stored(layer, None, 0),
            "plain": lambda layer: stored(layer, None),
            "whitened": lambda layer: stored(layer, layer.given),
        }
        if ranks:
            ways["by sensitivity"] = lambda layer: stored(layer, layer.given, ranks[layer.name])  # noqa: B023
        rows = compared(network, ways, show)
        checks = beaten(rows, "plain", "none") | beaten(rows, "whitened", "plain")
        if ranks:
            kl = rows["by sensitivity"]["KL"], rows["whitened"]["KL"]
            checks["by sensitivity < whitened, KL"] = {"holds": kl[0] < kl[1]}
        energies = [_energies(layer, base) for layer in network.layers]
        result[f"{bits} bits"] = {
            "rows": rows,
            "checks": checks,
            "ranks": ranks,
            f"energy of the leading {RANK}, mean": {
                name: sum(energy[place] for energy in energies) / len(energies)
                for place, name in enumerate(("plain", "whitened"))
            },
        }
    return result


def _residual(layer: Layer, base: Format) -> tuple[Tensor, Tensor]:
    """Squared singular values of the rounding error, plain and whitened."""
    error = (layer.weight - encoded(base, layer, None)[0]).double()
    root = torch.linalg.cholesky(damped(layer.given, 1e-5))
    return torch.linalg.svdvals(error).square(), torch.linalg.svdvals(error @ root).square()


def _energies(layer: Layer, base: Format) -> list[float]:
    return [float(values[:RANK].sum() / values.sum()) for values in _residual(layer, base)]


def _allocated(network: Network, base: Format) -> dict[str, int]:
    """Ranks by the pass `compensate`, in the bytes of RANK everywhere."""
    ctx = PassContext(calibration=network.given)
    result = Compensate(str(base), RANK).run(network.graph, ctx)
    weights = {node.name: str(arguments(node)[1].target) for node in network.graph.calls if node.target in LAYERS}
    ranks = dict.fromkeys(weights.values(), 0)
    for node in result.calls:
        found = formats.recognize(arguments(node)[1]) if node.target in LAYERS else None
        for term in found.format.terms if found is not None and isinstance(found.format, Sum) else ():
            if isinstance(term, LowRank):
                ranks[weights[node.name]] = term.rank
    return ranks


# -- whitening ---------------------------------------------------------------------------------------


def whitening(network: Network, show: Progress) -> Figures:
    result = {}
    for share in (0.5, 0.25):

        def low(layer: Layer, moments: Tensor | None, share: float = share) -> tuple[Tensor, int]:
            rank = max(1, int(share * math.prod(layer.shape) / sum(layer.shape)))
            return encoded(LowRank(rank), layer, moments)

        rows = compared(
            network,
            {"plain": lambda layer: low(layer, None), "whitened": lambda layer: low(layer, layer.given)},
            show,
        )
        result[f"{share} of the parameters"] = {"rows": rows, "checks": beaten(rows, "whitened", "plain")}
    return result


PARTS = {"slab": slab, "compensation": compensation, "whitening": whitening}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--models", nargs="+", default=["llama_char105"])
    parser.add_argument("--layers", type=int, help="of a model, evenly spaced; none: all, and language models whole")
    parser.add_argument("--bits", type=float, nargs="+", default=BUDGETS, help="a weight, of slab and the others")
    parser.add_argument("--columns", type=int, default=1536, help="of the widest layer that is taken")
    parser.add_argument("--count", type=int, default=64, help="items of calibration data, halved")
    parser.add_argument("--limit", type=int, help="stories of the likelihood; none: all")
    parser.add_argument("--output", type=Path, help="where the figures go, after each part")
    options = parser.parse_args()
    parts = PARTS | {"slab": partial(slab, budgets=options.bits)}
    found: Figures = {name: getattr(options, name) for name in ("count", "limit", "layers", "columns")}
    found |= {"seed": 0, "torch": torch.__version__}
    with terminal() as show:
        for model in options.models:
            network = Network(model, options.count, options.layers, options.columns, options.limit, show)
            for part in options.parts or PARTS:
                found.setdefault(part, {})[model] = parts[part](network, show)
                if options.output is not None:
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    container.write(options.output, (json.dumps(found, indent=1) + "\n").encode())
    if options.output is None:
        Console().print_json(json.dumps(found))


if __name__ == "__main__":
    main()
