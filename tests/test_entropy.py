"""Entropy coding: what is decoded is what was coded, near the entropy, and nothing damaged is taken for whole."""

from __future__ import annotations

import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import graphc
from graphc import entropy
from graphc.errors import ArtifactError

RNG = np.random.default_rng(0)
NORMAL = np.clip(np.round(RNG.normal(0, 30, 40_000)), -127, 127).astype(np.int8).tobytes()
NIBBLES = np.clip(np.round(RNG.normal(8, 2.2, (2, 20_000))), 0, 15).astype(np.uint8)
PACKED = (NIBBLES[0] | NIBBLES[1] << 4).tobytes()
FLOATS = RNG.normal(0, 0.1, 6_000).astype(np.float32).tobytes()
CASES = {
    "nothing": b"",
    **{f"{size} random": RNG.integers(0, 256, size, np.uint8).tobytes() for size in (1, 3, 4, 5, 16_384, 70_001)},
    "noughts": bytes(50_000),
    "integers": NORMAL,
    "packed": PACKED,
    "floats": FLOATS,
    "sixteen": RNG.integers(0, 16, 30_001, np.uint8).tobytes(),
    "everything": NORMAL + FLOATS + bytes(3_000) + PACKED,
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name):
    code = entropy.encode(CASES[name])
    assert bytes(entropy.decode(code)) == CASES[name]
    assert entropy.decoded_size(code) == len(CASES[name])
    assert entropy.encode(memoryview(CASES[name])) == code


@pytest.mark.parametrize("name", ["integers", "packed"])
def test_near_the_entropy_of_single_bytes(name):
    counts = np.bincount(np.frombuffer(CASES[name], np.uint8), minlength=256)
    least = (counts * np.log2(counts.sum() / np.maximum(counts, 1))).sum() / 8
    assert len(entropy.encode(CASES[name])) < 1.01 * least + 700  # a table, states


def test_smaller_than_zlib_where_nothing_repeats():
    for name in ("integers", "packed", "floats", "sixteen", "everything"):
        assert len(entropy.encode(CASES[name])) < len(zlib.compress(CASES[name], 9)), name


def test_places_of_floats_have_tables_of_their_own():
    assert len(entropy.encode(FLOATS)) < 0.9 * len(FLOATS)


def damaged(code: bytes) -> bytes:
    """Cut off, or with a bit that is wrong among tables, choices and states, or with a wrong size."""
    bad = bytearray(code[: RNG.integers(1, len(code))] if RNG.random() < 0.3 else code)
    bad[RNG.integers(min(len(bad), 3000))] ^= 1 << int(RNG.integers(8))
    return bytes(bad)


def test_damage_is_refused():
    """The hash of the file finds it first; but whoever puts that right must not get far either."""
    code, refused = entropy.encode(CASES["everything"]), 0
    for _ in range(60):
        try:
            entropy.decode(damaged(code))
        except ArtifactError:
            refused += 1
    assert refused == 60


@pytest.fixture(scope="module")
def compiled() -> tuple[graphc.Artifact, graphc.Artifact, torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Linear(128, 16)).eval()
    for layer in (model[0], model[2]):
        torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 256)
    plain, coded = (
        graphc.compile(model, example_inputs=(x,), pipeline="compress,fuse_operators", entropy_coding=coding)
        for coding in (False, True)
    )
    return plain, coded, x


def test_a_coded_artifact_is_smaller_and_computes_the_same(compiled, tmp_path: Path):
    plain, coded, x = compiled
    assert (plain.coded, coded.coded) == (False, True)
    assert coded.size.weights < 0.97 * plain.size.weights
    assert coded.size.file < plain.size.file
    totals = coded.report().totals
    assert totals["bytes of weights"] == coded.size.weights
    assert totals["bytes of weights, decoded"] == plain.size.weights
    coded.save(tmp_path / "coded.graphc")
    loaded = graphc.load(tmp_path / "coded.graphc")
    np.testing.assert_array_equal(loaded.run(x), plain.run(x))
    assert loaded.content == coded.with_report(coded.report()).content
    content = bytearray(coded.content)
    content[coded.content.index(b"coded_weights") + 4000] ^= 1
    (tmp_path / "coded.graphc").write_bytes(content)
    with pytest.raises(ArtifactError, match="does not match its hash"):
        graphc.load(tmp_path / "coded.graphc")


def test_what_coding_would_not_make_smaller_stays_as_it_is():
    """torch starts a layer with uniform weights: in int8 all bytes occur alike."""
    x, passes = torch.zeros(1, 256), 'compress{format="linear(scale=f32)"},fuse_operators'
    model = torch.nn.Linear(256, 128).eval()
    artifact = graphc.compile(model, example_inputs=(x,), pipeline=passes, entropy_coding=True)
    assert not artifact.coded
    assert "bytes of weights, decoded" not in artifact.report().totals


def test_from_c(compiled, tmp_path: Path):
    """The C runtime decodes to the same bytes, for every case, and runs the artifact to the same results."""
    from graphc.runtime import zig

    source = tmp_path / "decode.c"
    source.write_text(
        """#include <stdio.h>
#include "entropy.h"
static uint8_t code[1 << 20];
int main(void) {
  size_t size = fread(code, 1, sizeof code, stdin);
  uint64_t coded = entropy_size(code, size);
  uint8_t *data = coded > 1 << 20 ? NULL : malloc(coded + 1);
  if (!data || entropy_decode(code, size, data, coded)) return 1;
  return fwrite(data, 1, coded, stdout) != coded;
}
"""
    )
    program = tmp_path / "decode"
    zig._zig("cc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", f"-I{zig.SOURCES}",
             str(source), "-o", str(program))  # fmt: skip
    for name, data in CASES.items():
        code = entropy.encode(data)
        assert subprocess.run([program], input=code, capture_output=True, check=True).stdout == data, name
        for bad in (code[:-1], *(damaged(code) for _ in range(4))):
            status = subprocess.run([program], input=bad, capture_output=True, check=False).returncode
            assert status in (0, 1) if bad != code[:-1] else status == 1, name
    runner = tmp_path / "runner"
    sources = [str(zig.SOURCES / name) for name in ("runner.c", "graphc.c")]
    zig._zig("cc", "-std=gnu11", "-O1", *sources, "-o", str(runner))
    plain, coded, x = compiled
    coded.save(tmp_path / "coded.graphc")
    done = subprocess.run(
        [runner, tmp_path / "coded.graphc", "1"], input=b"r" + x.numpy().tobytes(), capture_output=True
    )
    result = plain.run(x)
    assert done.stdout.endswith(result.tobytes()), done.stderr
