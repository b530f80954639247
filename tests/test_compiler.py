"""The whole road: compile, run, save, load, report, budget; on networks made here."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

import graphc
from graphc.errors import BudgetError, CalibrationError, GraphcError, TargetError, UnsupportedOperatorError
from graphc.report import Report
from graphc.runtime import emulator
from graphc.target import X86_LEVELS, machine_features


class Residual(nn.Module):
    """Convolutions with batch normalization, a residual sum, a concatenation, pools and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.side = nn.Conv2d(16, 8, 1)
        self.classifier = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        x = nn.functional.max_pool2d(torch.cat([x, self.side(x)], 1), 2)
        return self.classifier(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    made = Residual()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return made.eval()


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, 12, 10, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def int8(model, batches):
    return graphc.compile(model, "host", (batches[0],), calibration=batches)


def reference(model: nn.Module, *inputs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(*inputs).numpy()


def test_float_is_torch(model, batches):
    artifact = graphc.compile(model, "host", (batches[0],))
    for batch in batches:
        np.testing.assert_allclose(artifact.run(batch), reference(model, batch), rtol=1e-4, atol=1e-5)


def test_int8_is_close_to_float_and_equal_to_the_reference(model, batches, int8):
    from graphc.calibration import batches as flat
    from graphc.pipeline import PassContext, pipeline

    graph = graphc.trace(model, (batches[0],))
    compiled = pipeline("int8").run(graph, PassContext(calibration=flat(graph, batches)))
    for batch in batches:
        given, expected = int8.run(batch), reference(model, batch)
        noise, signal = ((given - expected) ** 2).sum(), (expected**2).sum()
        assert 10 * np.log10(signal / noise) > 25
        np.testing.assert_array_equal(given, compiled.run(batch).numpy())


def test_int8_weights_take_a_quarter(model, batches, int8):
    assert int8.size.weights < graphc.compile(model, "host", (batches[0],)).size.weights / 2.5
    assert int(int8.size) == int8.size.weights + int8.size.code


def test_sums_concatenations_and_pools_stay_in_integers(int8):
    graph_text = int8.graph_text
    assert "aten.cat.default" in graph_text and "aten.max_pool2d.default" in graph_text
    for line in graph_text.splitlines():
        if "= aten.cat.default" in line or "= aten.max_pool2d.default" in line:
            assert " : i8[" in line
        if "= aten.add.Tensor" in line:
            assert " : i32[" in line
    assert graph_text.count("graphc.quantize.default") == 1
    assert graph_text.count("graphc.dequantize.default") == 1


def test_same_bytes_twice(model, batches, int8, tmp_path):
    again = graphc.compile(model, "host", (batches[0],), calibration=batches)
    int8.save(tmp_path / "a.graphc")
    again.save(tmp_path / "b.graphc")
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("a.graphc", "b.graphc")}
    assert len(digests) == 1
    other = graphc.compile(model, "host", (batches[0],), calibration=batches[:2])
    assert other.content_hash != int8.content_hash


def test_saved_and_loaded(int8, batches, tmp_path):
    int8.save(tmp_path / "model.graphc")
    assert [path.name for path in tmp_path.iterdir()] == ["model.graphc"]
    np.testing.assert_array_equal(graphc.load(tmp_path / "model.graphc").run(batches[1]), int8.run(batches[1]))


def test_arm64_computes_the_host_bits(model, batches, int8):
    try:
        emulator.find("arm64")
    except TargetError as missing:
        pytest.skip(str(missing))
    arm = graphc.compile(model, "arm64", (batches[0],), calibration=batches)
    for batch in batches[:2]:
        np.testing.assert_array_equal(arm.run(batch), int8.run(batch))


@pytest.mark.parametrize(
    "level", [level for level, needs in X86_LEVELS.items() if set(needs) <= set(machine_features())]
)
def test_instruction_sets_compute_the_same_int8(model, batches, int8, level):
    artifact = graphc.compile(model, f"x86-64:{level}", (batches[0],), calibration=batches)
    np.testing.assert_array_equal(artifact.run(batches[0]), int8.run(batches[0]))


def test_report_speaks_of_the_users_layers(int8):
    report = int8.report()
    rows = {row.name: row for row in report.rows}
    assert {"stem.0", "body.0", "side", "classifier"} <= set(rows)
    assert rows["side"].macs == 4 * 12 * 10 * 8 * 16
    assert rows["side"].format == "int8" and rows["side"].bytes >= 8 * 16
    assert rows["side"].error is not None and rows["side"].error > 20
    assert report.totals["bytes of weights"] == int8.size.weights
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert "classifier" in report.to_text() and "<td>classifier</td>" in report.to_html()


def test_report_of_compressed_weights() -> None:
    """Format, bytes as stored, the operators without the decodings, and why a layer reads a dense weight."""
    network = nn.Sequential(nn.Linear(64, 40, bias=False), nn.ReLU(), nn.Linear(40, 24, bias=False)).eval()
    compress = 'compress{format="linear(bits=4,group=20)",layers=["2"]},compress{format="linear(bits=4,group=32)"}'
    spec = f"canonicalize,{compress},quantize_activations,fuse_operators"
    artifact = graphc.compile(network, "host", (torch.randn(2, 64),), pipeline=spec)
    rows = {row.op: row for row in artifact.report().rows}
    first, second = rows["quantize_dynamic+linear+relu"], rows["linear"]
    assert (first.format, first.bytes, first.reason) == ("int4 g32", 40 * 32 + 40 * 2 * 2 + 1, "")
    assert second.format == "int4 g20"
    assert second.reason == "its weight (int4 g20) is decoded at load: no kernel of this layer reads it as stored"


def test_dump_ir_one_file_a_pass(model, batches, tmp_path):
    from graphc import text

    graphc.compile(model, "host", (batches[0],), dump_ir=tmp_path / "ir", drift=True)
    names = sorted(path.name for path in (tmp_path / "ir").glob("*.txt"))
    assert names[:3] == ["00_input.txt", "01_canonicalize.txt", "02_fold_constants.txt"]
    last = text.read(tmp_path / "ir" / names[-1])
    np.testing.assert_allclose(last.run(batches[0]).detach(), reference(model, batches[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_a_dynamic_batch(model, batches, precision):
    batch = torch.export.Dim("batch", min=1, max=6)
    artifact = graphc.compile(
        model, "host", (batches[0][:1],), calibration=batches if precision == "int8" else None,
        dynamic_shapes=({0: batch},),
    )  # fmt: skip
    fixed = {n: graphc.compile(model, "host", (batches[0][:n],)) for n in (1, 4)}
    for count in (1, 3, 4, 6):
        x = torch.cat(batches)[:count]
        given, expected = artifact.run(x), reference(model, x)
        np.testing.assert_allclose(given, expected, atol=1e-5 if precision == "float" else 0.3)
        if precision == "float" and count in fixed:
            np.testing.assert_allclose(given, fixed[count].run(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(graphc.errors.InputError, match="between 1 and 6"):
        artifact.run(torch.cat(batches)[:7])


def test_budgets_are_measured_and_kept(model, batches, int8):
    roomy = graphc.Budget(size=int(int8.size))
    kept = graphc.compile(model, "host", (batches[0],), calibration=batches, budget=roomy, pipeline="int8")
    assert kept.content_hash == int8.content_hash
    with pytest.raises(BudgetError, match=rf"{int(int8.size):,} bytes"):
        tight = graphc.Budget(size=int(int8.size) - 1)
        graphc.compile(model, "host", (batches[0],), calibration=batches, budget=tight, pipeline="int8")
    labels = [reference(model, batch).argmax(1) for batch in batches]

    def agreement(run) -> float:
        return 100.0 * float(np.mean([run(b).argmax(1) == label for b, label in zip(batches, labels, strict=True)]))

    def worse_when_compiled(run) -> float:
        return float(isinstance(run(batches[0]), np.ndarray)) - 2 * float(np.abs(run(batches[0])).sum() != exact)

    exact = float(np.abs(reference(model, batches[0])).sum())
    fine = graphc.Budget(metric_drop=20.0)
    graphc.compile(model, "host", (batches[0],), calibration=batches, budget=fine, metric=agreement, pipeline="int8")
    with pytest.raises(BudgetError, match="a drop of 2 > 1"):
        graphc.compile(
            model, "host", (batches[0],), calibration=batches, budget=graphc.Budget(metric_drop=1.0),
            metric=worse_when_compiled, pipeline="int8",
        )  # fmt: skip
    with pytest.raises(BudgetError, match="needs metric="):
        graphc.compile(model, "host", (batches[0],), budget=fine)
    with pytest.raises(BudgetError, match="latency"):
        graphc.compile(model, "host", (batches[0],), budget=graphc.Budget(latency=1e-6))


@pytest.mark.parametrize(("size", "count"), [("300 kB", 300_000), ("1.5 MiB", 1_572_864), (12, 12), ("7", 7)])
def test_budget_sizes(size, count):
    assert graphc.Budget(size=size).bytes == count


@pytest.mark.parametrize("bad", [{"size": "1 parsec"}, {"size": -1}, {"metric_drop": float("nan")}, {"latency": -1.0}])
def test_budgets_that_cannot_be_read(bad):
    with pytest.raises(BudgetError):
        graphc.Budget(**bad)


class Unsortable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(x)[0] + torch.topk(x, 4)[0]


def test_unsupported_operators_all_at_once_by_layer():
    with pytest.raises(UnsupportedOperatorError) as caught:
        graphc.compile(nn.Sequential(nn.ReLU(), Unsortable()), "host", (torch.randn(3, 4),))
    assert {item.operator for item in caught.value.found} >= {"aten.sort.default", "aten.topk.default"}
    assert {item.path for item in caught.value.found} == {"1"}


def test_a_crashing_pass_leaves_a_reproducer(model, batches, tmp_path):
    from graphc import reproducer
    from graphc.pipeline import PassFailure

    class Crash(graphc.Pass):
        def run(self, graph, ctx):
            raise ZeroDivisionError("by hand")

    with pytest.raises(PassFailure, match=r"(?s)pass 'crash' failed.*graphc passes --reproduce"):
        graphc.compile(model, "host", (batches[0],), pipeline=[Crash()], dump_ir=tmp_path)
    assert (tmp_path / "crash" / "before.txt").exists()
    with pytest.raises(GraphcError, match="unknown pass 'crash'"):
        reproducer.run(tmp_path / "crash")  # a pass of this test alone, known by no name


@pytest.mark.parametrize(
    ("data", "problem"),
    [([], "empty"), ([torch.full((4, 3, 12, 10), float("nan"))], "NaN"), ([torch.zeros(4, 3, 12, 11)], "must be f32")],
)
def test_calibration_data_of_no_use(model, batches, data, problem):
    with pytest.raises(CalibrationError, match=problem):
        graphc.compile(model, "host", (batches[0],), calibration=data)
