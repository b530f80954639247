"""What SLaB, low rank and the compensation of rounding lose on real weights, as the papers' inequalities.

    python -m graphc.tools.decomposition --output tools/results/decomposition.json    half an hour of one core
    python -m graphc.tools.decomposition compensation --limit 30
    python -m graphc.tools.decomposition --models minilm --layers 3 --columns 600 --bits 8

slab          sparse + rank 1 * signs against Wanda, magnitude, SparseGPT and sparse + low rank at no fewer bytes
compensation  2 and 3 bits: no compensation, a plain one of rank 8, a whitened one, and one of ranks by sensitivity
whitening     the low rank of the weight against that of weight times root of the inputs' moments

Formats are encoded by moments of one half of the calibration data; losses and divergences (KL of the results, in nats)
are those of the other half. A layer's loss is the squared error of its output over the square of its output. Without
--layers, a language model is judged whole too: all its layers at once, and its likelihood on held-back stories, the
first --limit of them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from graphc import formats
from graphc.encoding.compensation import square_root
from graphc.expressions import Product, Sum
from graphc.formats import Format
from graphc.formats.binary import Binary
from graphc.formats.linear import Linear
from graphc.formats.low_rank import DAMPING, LowRank
from graphc.formats.unstructured import Unstructured
from graphc.graph import arguments
from graphc.moments import loss
from graphc.passes.compensate import Compensate
from graphc.passes.quantize import LAYERS
from graphc.pipeline import PassContext
from graphc.progress import Progress
from graphc.tools import statement
from graphc.tools.layer_losses import Figures, Layer, Network, beaten, compared, encoded
from graphc.tools.statement import Known

BUDGETS = (11.0, 8.0, 4.8)  # bits a weight, masks counted
ROUNDS = 20  # of SLaB's alternation, as in the paper
RANKS = (2, 4, 8, 16)  # among which sparse + low rank has its best
RANK = 8  # of compensation


# -- SLaB, section 7 --------------------------------------------------------------------------------


def slab(network: Network, bits: float, show: Progress) -> Figures:
    """bits: of a weight, masks counted."""
    sizes: dict[str, int] = {}  # of SLaB, which the others may not fall below

    def ours(layer: Layer) -> tuple[Tensor, int]:
        rows, columns = layer.shape
        signs, thin = rows * -(-columns // 8), rows + columns + 2 * (rows + 1)
        kept = (bits / 8 * rows * columns - 2 * signs - thin) // (2 * rows)
        form = Sum((Product((LowRank(1, factors="int8"), Binary())), Unstructured(kept / columns)), ROUNDS)
        decoded, sizes[layer.name] = encoded(form, layer, layer.given)
        return decoded, sizes[layer.name]

    def sparse(layer: Layer, moments: Tensor | None, update: bool = False, rank: int = 0) -> tuple[Tensor, int]:
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
    for other in ("wanda", "magnitude", "sparsegpt", "sparse + low rank"):
        rows |= beaten(rows, "slab", other)
    return rows


# -- compensation, section 22 -----------------------------------------------------------------------


def compensation(network: Network, bits: int, show: Progress) -> Figures:
    base = Linear(bits, 32)

    def stored(layer: Layer, moments: Tensor | None, rank: int = RANK) -> tuple[Tensor, int]:
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
        ways["by sensitivity"] = lambda layer: stored(layer, layer.given, ranks[layer.name])
    rows = compared(network, ways, show)
    rows |= beaten(rows, "plain", "none") | beaten(rows, "whitened", "plain")
    if ranks:
        kl = rows["by sensitivity"]["KL"], rows["whitened"]["KL"]
        rows["by sensitivity"]["ranks"] = list(ranks.values())
        rows["by sensitivity < whitened, KL"] = {"holds": kl[0] < kl[1]}
    energies = [_energies(layer, base) for layer in network.layers]
    for place, name in enumerate(("plain", "whitened")):
        rows[name][f"energy of the leading {RANK}"] = sum(energy[place] for energy in energies) / len(energies)
    return rows


def _residual(layer: Layer, base: Format) -> tuple[Tensor, Tensor]:
    """Squared singular values of the rounding error, plain and whitened."""
    error = (layer.weight - encoded(base, layer, None)[0]).double()
    root = square_root(layer.given, DAMPING)
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


def whitening(network: Network, share: float, show: Progress) -> Figures:
    """share: of the layer's parameters."""

    def low(layer: Layer, moments: Tensor | None) -> tuple[Tensor, int]:
        rank = max(1, int(share * math.prod(layer.shape) / sum(layer.shape)))
        return encoded(LowRank(rank), layer, moments)

    rows = compared(
        network,
        {"plain": lambda layer: low(layer, None), "whitened": lambda layer: low(layer, layer.given)},
        show,
    )
    return rows | beaten(rows, "whitened", "plain")


# What is measured, for which values, and what these are.
PARTS: dict[str, tuple[Callable[..., Figures], Sequence[float], str]] = {
    "slab": (slab, BUDGETS, "bits"),
    "compensation": (compensation, (2, 3), "bits"),
    "whitening": (whitening, (0.5, 0.25), "of the parameters"),
}


def measure(name: str, options: argparse.Namespace, known: Known) -> None:
    part, values, unit = PARTS[name]
    for model in options.models:
        titles = {f"{model}, {value} {unit}": value for value in (options.bits if part is slab else values)}
        missing = [title for title in titles if title not in known]
        if missing:
            network = Network(model, options.count, options.layers, options.columns, options.limit, options.progress)
        for title in missing:
            rows = part(network, titles[title], options.progress)
            known.update({f"{title}, {way}": row for way, row in rows.items()})
            known[title] = {"layers": len(network.layers)}  # the last: all rows are there


FIGURES = {name: partial(measure, name) for name in PARTS}


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--models", nargs="+", default=["llama_char105"])
        parser.add_argument("--layers", type=int, help="evenly spaced; none: all, and language models whole")
        parser.add_argument("--bits", type=float, nargs="+", default=list(BUDGETS), help="a weight, of slab")
        parser.add_argument("--columns", type=int, default=1536, help="of the widest layer that is taken")
        parser.add_argument("--count", type=int, default=64, help="items of calibration data, halved")

    shared = ("layers", "columns", "count")
    return statement.main("graphc.tools.decomposition", __doc__, FIGURES, arguments, add, shared)


if __name__ == "__main__":
    sys.exit(main())
