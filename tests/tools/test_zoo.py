"""The zoo reproduces its baselines: in full where that takes under a second or so, else on the first few items."""

import sys

import pytest
import scipy.stats
import sklearn.metrics
import torch

from graphc.tools.zoo import __main__ as command
from graphc.tools.zoo import data, resnet, tokens
from graphc.tools.zoo.benchmarks import retina_images, roc_auc, spearman, story_windows
from graphc.tools.zoo.catalog import MODELS
from graphc.tools.zoo.same_padding import same_padding


def require_data(name: str = "") -> None:
    """Skip where the data folder, or for MiniLM one of its packages, is missing; the reason says what to do."""
    try:
        data.root()
        if name == "minilm":
            tokens.wordpiece(["a"], 8)
    except data.DataNotFoundError as missing:
        pytest.skip(str(missing))


def measure(name: str, benchmark: int = 0, limit: int | None = None) -> dict[str, float]:
    require_data(name)
    entry = MODELS[name]
    model = entry.build()
    with torch.inference_mode():
        return entry.benchmarks[benchmark].protocol(model, limit, entry.batch)


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [
        ("resnet20_jpeg", 1), ("resnet20", 1), ("resnet56", 1), ("resnet8", 1), ("lenet", 0), ("ds_cnn", 0),
        ("ds_cnn", 1), ("mobilenet_v1_025", 0),
    ],
)  # fmt: skip
def test_accuracy_on_all_images_is_the_baseline(name: str, benchmark: int) -> None:
    measured = {metric: round(value, 2) for metric, value in measure(name, benchmark).items()}
    assert measured == MODELS[name].benchmarks[benchmark].baseline


def test_lstm_on_all_streams_is_the_baseline() -> None:
    assert measure("lstm")["bits/char"] == pytest.approx(MODELS["lstm"].baseline, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "limit", "top1", "top5"),
    [("resnet18", 20, 14, 20), ("mobilenet_v2", 20, 16, 20), ("tiny_darknet", 20, 16, 19)],
)
def test_imagenet_correct_counts(name: str, limit: int, top1: int, top5: int) -> None:
    measured = measure(name, limit=limit)
    assert measured["top-1 %"] * limit / 100 == pytest.approx(top1)
    assert measured["top-5 %"] * limit / 100 == pytest.approx(top5)


@pytest.mark.parametrize(("name", "correct"), [("resnet20_jpeg", 167), ("resnet20", 161), ("resnet8", 148)])
def test_cifar10_jpeg_correct_counts_of_200(name: str, correct: int) -> None:
    assert measure(name, limit=200)["top-1 %"] * 2 == pytest.approx(correct)


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("stories260k", 2, {"NLL/token": 1.46498, "perplexity": 4.32746, "bits/char": 1.01317}),
        ("llama_char105", 2, {"NLL/token": 0.77734, "perplexity": 2.17568, "bits/char": 1.12306}),
        ("unet", 1, {"AUC": 0.98399, "Dice": 0.83081, "accuracy": 0.95479}),
        ("srgan", 1, {"PSNR dB": 27.28666}),
        ("minilm", 12, {"Spearman": 0.19401}),
    ],
)
def test_metrics_on_the_first_items(name: str, limit: int, expected: dict[str, float]) -> None:
    assert measure(name, limit=limit) == pytest.approx(expected, abs=2e-5)


def test_stories_have_the_published_numbers_of_tokens() -> None:
    require_data()
    assert int((story_windows(tokens.tok512, 512)[1] >= 0).sum()) == 59_397
    assert int((story_windows(tokens.char105, 256)[1] >= 0).sum()) == 117_386


def test_resnet50_has_torchvisions_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in resnet.resnet50().parameters()) == 25_557_032


@pytest.mark.filterwarnings("ignore")  # torch.export's own deprecations
@pytest.mark.parametrize(
    ("name", "strict"), [("resnet20_jpeg", False), ("ds_cnn", True), ("stories260k", False), ("lstm", False)]
)
def test_networks_export(name: str, strict: bool) -> None:
    require_data(name)
    model, inputs = MODELS[name].build(), MODELS[name].example_inputs()
    exported = torch.export.export(model, inputs, strict=strict).module()
    torch.testing.assert_close(exported(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("stories260k", "llama_char105")])
def test_calibration_has_the_example_inputs_types(name: str) -> None:
    require_data(name)
    entry = MODELS[name]
    batches = list(entry.calibration(count=4, batch=2))
    assert len(batches) == 2
    for batch in batches:
        for value, example in zip(batch, entry.example_inputs(2), strict=True):
            assert (value.shape, value.dtype) == (example.shape, example.dtype)


def test_a_language_model_writes_its_own_calibration() -> None:
    require_data()
    (written,) = next(MODELS["llama_char105"].calibration(count=1))
    (example,) = MODELS["llama_char105"].example_inputs(1)
    assert (written.shape, written.dtype) == (example.shape, example.dtype)
    assert written[0, 0] == tokens.BOS
    logits = MODELS["llama_char105"].build()(written[:, :-1])
    nll = torch.nn.functional.cross_entropy(logits[0], written[0, 1:]).item()
    assert 0.5 < nll < 1.5  # text that the model finds plausible, neither noise (ln 105 = 4.7) nor one repeated token


def test_keyword_calibration_is_not_among_the_unseen_keywords() -> None:
    require_data()
    seen: list[torch.Tensor] = []
    MODELS["ds_cnn"].benchmarks[1].protocol(lambda x: seen.append(x) or torch.zeros(len(x), 12), None, 900)
    calibration = torch.cat([x for (x,) in MODELS["ds_cnn"].calibration(batch=100)])
    distances = torch.cdist(calibration.flatten(1), seen[0].flatten(1))
    assert len(calibration) == 100 and len(seen[0]) == 900 and distances.min() > 0


def test_retina_images_are_padded_right_and_bottom_to_multiples_of_four() -> None:
    require_data()
    images = retina_images("unet_retina/drive_test20.npz", limit=1)
    assert images.shape == (1, 1, 584, 568)
    assert images[..., 565:].abs().max() == 0 and images[..., 0].shape == (1, 1, 584)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(224, 3, 2, (0, 1)), (7, 3, 1, (1, 1)), (49, 10, 2, (4, 5)), (10, 4, 2, (1, 1)), (32, 1, 2, (0, 0))],
)
def test_same_padding(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected


def test_rank_statistics_agree_with_scipy_and_scikit_learn_on_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(7, (2, 200), generator=generator).double()
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a.numpy(), b.numpy()).statistic)
    assert roc_auc(a, b > 3) == pytest.approx(sklearn.metrics.roc_auc_score((b > 3).numpy(), a.numpy()))


def test_evaluate_takes_numpy_outputs_in_a_tuple() -> None:
    require_data()
    model = MODELS["lenet"].build()
    expected = MODELS["lenet"].evaluate(model, limit=100)
    assert MODELS["lenet"].evaluate(lambda x: (model(x).detach().numpy(),), limit=100, batch=1) == expected


def test_missing_data_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("GRAPHC_DATA", str(tmp_path / "absent"))
    with pytest.raises(data.DataNotFoundError, match=r"GRAPHC_DATA is '.*absent', which is not a folder"):
        data.root()
    monkeypatch.setenv("GRAPHC_DATA", str(tmp_path))
    with pytest.raises(data.DataNotFoundError, match=r"'mnist/mnist\.npz' is not in the data folder .*set GRAPHC_DATA"):
        data.array("mnist/mnist.npz", "test_images")


def test_data_folder_is_found_from_a_folder_below_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.delenv("GRAPHC_DATA", raising=False)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "checkout" / "examples").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "checkout" / "examples")
    assert data.root() == tmp_path / "shared" / "data"


def test_command_prints_measured_beside_baseline(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    require_data()
    monkeypatch.setattr(sys, "argv", ["zoo", "lenet", "--limit", "500"])
    monkeypatch.setenv("COLUMNS", "140")
    assert command.main() == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "lenet" in line)
    assert "431,080" in row and "98.47" in row and "98.60" in row


def test_command_refuses_unknown_names(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo", "lenet5"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert "unknown model lenet5; there are: resnet20_jpeg" in capsys.readouterr().err
