"""AMX: which layers use it, how many instructions they take, and the emulator that stands in for it."""

import ctypes
import subprocess
import sys

import pytest
import torch
from torch import nn

import graphc.operators  # noqa: F401  (registers torch.ops.graphc)
from graphc.errors import TargetError
from graphc.frontends import trace
from graphc.graph import Graph
from graphc.pipeline import PassContext, pipeline
from graphc.runtime import loader
from graphc.structure import Structure
from graphc.target import machine_features
from graphc.tensor_type import SymbolRange, TensorType, symbol
from graphc.tools.zoo.catalog import MODELS

quantized = torch.ops.graphc


def linear(rows: int | SymbolRange, depth: int, columns: int) -> Graph:
    graph = Graph("linear", Structure.of(((0,), {})), Structure.of(0))
    if isinstance(rows, SymbolRange):
        graph.symbols["rows"] = rows
    size = rows if isinstance(rows, int) else symbol("rows")
    x = graph.add_input("x", TensorType((size, depth), torch.int8))
    w = graph.add_weight("w", torch.randint(-128, 128, (columns, depth), dtype=torch.int8))
    b = graph.add_weight("b", torch.randint(-999, 999, (columns,), dtype=torch.int32))
    graph.set_output([graph.call(quantized.integer_linear.default, x, w, b, -7)])
    return graph


def activations(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


@pytest.mark.parametrize(
    "rows, depth, columns, products",
    [
        (64, 128, 64, (64 // 16) * (128 // 64) * (64 // 16)),
        (48, 64, 48, 3 * 1 * 3),  # halves of blocks and of panels
        (49, 100, 10, 4 * 2 * 1),  # rows, depth and columns that fill no tile
        (7, 64, 32, 1 * 1 * 2),  # half a block, of copied rows
        (80, 640, 1700, 5 * 10 * 107),  # a right operand beyond the second-level cache
        (64, 1024, 256, 4 * 16 * 16),  # rows and panels that do not fit the first-level cache together
    ],
)
def test_tiles_are_multiplied_no_more_often_than_the_shape_needs(check, amx, rows, depth, columns, products):
    amx.counts()
    check(linear(rows, depth, columns), [activations(rows, depth)], target="x86-64:amx")
    counts = amx.counts()
    assert counts["tdpbssd"] == products
    assert counts["tileloadd"] <= 1.5 * products + 4


@pytest.mark.parametrize(
    "channels, size, filters, taps, stride, products",
    [
        (64, 56, 64, 3, 1, 200 * 9 * 4),  # 55 * 57 + 56 pixels
        (64, 14, 64, 1, 1, 13 * 1 * 4),  # 196 pixels as they lie
        (64, 15, 32, 3, 2, 5 * 9 * 2),  # 7 * 9 + 8 pixels of each phase
        (3, 64, 32, 7, 2, 32 * 2 * 7 * 2),  # 32 rows of 32 pixels, a run of 21 bytes for each row of the kernel
    ],
)
def test_images_are_read_with_few_multiplications(check, amx, channels, size, filters, taps, stride, products):
    graph = Graph("convolution", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((1, channels, size, size), torch.int8))
    w = graph.add_weight("w", torch.randint(-128, 128, (filters, channels, taps, taps), dtype=torch.int8))
    geometry = [stride] * 2, [taps // 2] * 2, [1, 1], 1
    graph.set_output([graph.call(quantized.integer_convolution.default, x, w, None, 3, *geometry)])
    amx.counts()
    check(graph, [activations(1, channels, size, size)], target="x86-64:amx")
    assert amx.counts()["tdpbssd"] == products


@pytest.mark.parametrize("size", [8, 13])
def test_results_with_padding_around_them(check, size):
    """A stride of one-pixel kernels, residual sums and batches, all between images that are stored with padding."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 64, 3, 1, 1), nn.Conv2d(64, 72, 1, 2)
            self.c, self.d = nn.Conv2d(72, 72, 3, 1, 1), nn.Conv2d(72, 24, 3, 2, 1)

        def forward(self, x):
            x = torch.relu(self.b(self.a(x)))
            return self.d(torch.relu(x + self.c(x)))

    inputs = (torch.randn(2, 3, size, size),)
    graph = pipeline("int8").run(trace(Blocks().eval(), inputs), PassContext(calibration=[inputs]), ())
    check(graph, inputs, target="x86-64:amx", rtol=0, atol=0)


def test_bfloat16_is_multiplied_by_tiles(check, amx):
    """Sums that fill tiles, that do not, and whose neighbours in memory are no numbers."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(32, 40, 3, 2, 1), nn.Conv2d(40, 64, 1)
            self.c, self.d = nn.Conv2d(64, 32, (2, 3), padding=(0, 1)), nn.Linear(40, 50)

        def forward(self, x, y):
            x = torch.relu(self.a(x))
            return self.c(torch.relu(self.b(x))), self.d(y.relu())

    inputs = torch.randn(2, 32, 9, 11), torch.randn(19, 40)
    graph = pipeline("bfloat16,fuse_operators").run(trace(Layers().eval(), inputs), PassContext())
    amx.counts()
    check(graph, inputs, target="x86-64:amx", rtol=1e-4, atol=1e-4)
    # Tiles of rows x of columns x steps. Of 40 channels a tile would read 24 that belong to others: left to vectors.
    a, c, d = 2 * 3 * 3 * 9, 2 * 2 * 2 * 12, 2 * 4 * 2
    assert amx.counts()["tdpbf16ps"] == a + c + d


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18", "mobilenet_v2"])
def test_networks_are_equal_to_the_reference(check, amx, data, name):
    entry = MODELS[name]
    inputs = entry.example_inputs()
    context = PassContext(calibration=[inputs])
    graph = pipeline("int8").run(trace(entry.build(), inputs), context, ())
    amx.counts()
    check(graph, inputs, target="x86-64:amx", rtol=0, atol=0)
    assert amx.counts()["tdpbssd"] > 1000


@pytest.mark.parametrize("least", [1, 16])
def test_rows_of_dynamic_number(check, least):
    graph = linear(SymbolRange(least, 70), 96, 40)
    check(graph, *[[activations(rows, 96)] for rows in (least, 17, 32, 70)], target="x86-64:amx")


def test_few_rows_are_left_to_vectors(compiled):
    few, more = (compiled(linear(rows, 64, 64), "x86-64:amx").plan["steps"][0] for rows in (4, 5))
    assert (few["template"], few["reason"]) == ("matrix product", "not by AMX: 4 rows fill no tile")
    assert (more["template"], more["reason"]) == ("matrix product by AMX", "")


PROGRAM = """
#include <immintrin.h>
#include <stdint.h>

__attribute__((target("amx-int8,amx-bf16,amx-tile")))
void multiply(const uint8_t *configuration, const void *a, long stride, const void *b, void *c, int kind) {
  _tile_loadconfig(configuration);
  _tile_zero(0);
  _tile_loadd(1, a, stride);
  _tile_stream_loadd(2, b, 64);
  switch (kind) {
    case 0: _tile_dpbssd(0, 1, 2); break;
    case 1: _tile_dpbsud(0, 1, 2); break;
    case 2: _tile_dpbusd(0, 1, 2); break;
    case 3: _tile_dpbuud(0, 1, 2); break;
    case 4: _tile_dpbf16ps(0, 1, 2); break;
  }
  _tile_stored(0, c, 64);
  _tile_storeconfig((void *)configuration);
  _tile_release();
}
"""


@pytest.fixture(scope="module")
def multiply(tmp_path_factory):
    """multiply(configuration, a, stride, b, c, kind) in C, by the compiler's own intrinsics."""
    folder = tmp_path_factory.mktemp("amx")
    source, library = folder / "multiply.c", folder / "multiply.so"
    source.write_text(PROGRAM)
    command = [sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(library)).multiply
    pointer = ctypes.c_void_p
    function.argtypes = [pointer, pointer, ctypes.c_long, pointer, pointer, ctypes.c_int]
    return lambda configuration, a, stride, b, c, kind: function(
        configuration.data_ptr(), a.data_ptr(), stride, b.data_ptr(), c.data_ptr(), kind
    )


def configuration(rows: int, depth: int, columns: int) -> torch.Tensor:
    """Three tiles: sums, left operand of `depth` groups of four bytes, right operand."""
    settings = torch.zeros(64, dtype=torch.uint8)
    settings[0] = 1
    settings[48:51] = torch.tensor([rows, rows, depth])
    settings[16:22:2] = torch.tensor([4 * columns, 4 * depth, 4 * columns])
    return settings


@pytest.mark.parametrize("kind, left, right", [(0, 1, 1), (1, 1, 0), (2, 0, 1), (3, 0, 0)])
def test_the_emulator_multiplies_integers_of_either_sign(amx, multiply, kind, left, right):
    types = (torch.uint8, torch.int8)
    rows, depth, columns = 5, 7, 9
    a = torch.randint(0, 256, (16, 80)).to(types[left])
    b = torch.randint(0, 256, (16, 16, 4)).to(types[right])
    c = torch.full((16, 16), 77, dtype=torch.int32)
    settings = configuration(rows, depth, columns)
    before = settings.clone()
    multiply(settings, a, 80, b, c, kind)
    known = a[:rows, : 4 * depth].double() @ b[:depth, :columns].permute(0, 2, 1).reshape(-1, columns).double()
    assert torch.equal(c[:rows, :columns], known.int())
    assert bool((c[rows:] == 77).all() and (c[:, columns:] == 77).all())
    assert torch.equal(settings, before)


def test_the_emulator_multiplies_bfloat16(amx, multiply):
    a, b = torch.randn(16, 32).bfloat16(), torch.randn(16, 16, 2).bfloat16()
    c = torch.zeros(16, 16)
    multiply(configuration(16, 16, 16), a, 64, b, c, 4)
    torch.testing.assert_close(c, a.float() @ b.permute(0, 2, 1).reshape(32, 16).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "damage, complaint",
    [
        ((0, 2), "palette"),
        ((5, 1), "reserved"),
        ((49, 17), "16 rows"),
        ((60, 1), "rows without columns"),
        ((49, 4), "shapes do not fit"),
        ((50, 0), "rows without columns"),
    ],
)
def test_the_emulator_tells_of_misuse(amx, multiply, damage, complaint):
    settings = configuration(5, 7, 9)
    place, value = damage
    settings[place] = value
    buffers = [torch.zeros(2048, dtype=torch.uint8) for _ in range(3)]
    multiply(settings, buffers[0], 64, buffers[1], buffers[2], 0)
    assert complaint in amx.misuse()


def test_tiles_are_configured_in_every_thread_and_given_back(check, amx):
    amx.counts()
    check(linear(640, 64, 64), [activations(640, 64)], target="x86-64:amx")
    counts = amx.counts()
    assert counts["ldtilecfg"] >= 2  # this thread at load, then at each run; a worker
    assert counts["tilerelease"] >= 1


def test_code_for_amx_does_not_start_where_nothing_computes_it(compiled, monkeypatch):
    if "amx-tile" in machine_features():
        pytest.skip("this CPU lacks nothing")
    monkeypatch.setattr(loader, "EMULATED_FEATURES", set())
    artifact = compiled(linear(64, 64, 64), "x86-64:amx")
    with pytest.raises(TargetError, match="amx-tile"):
        artifact.run(activations(64, 64))


def test_a_module_without_products_has_no_tiles(compiled, amx):
    graph = Graph("sum", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((8,), torch.float32))
    graph.set_output([graph.call(torch.ops.aten.add.Tensor, x, x)])
    amx.counts()
    compiled(graph, "x86-64:amx").run(torch.ones(8))
    assert amx.counts() == {}
