"""The zoo's models by name: the network with its weights, calibration data, benchmarks and their float baselines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphc.tools.zoo import (
    benchmarks,
    calibration,
    cifar_resnet,
    darknet,
    data,
    lenet,
    llama,
    lstm,
    minilm,
    mlperf_tiny,
    mobilenet_v2,
    resnet,
    srgan,
    tokens,
    unet,
)
from graphc.tools.zoo.benchmarks import Benchmark, Preprocess, Protocol, Run, classification
from graphc.tools.zoo.calibration import Calibrate, Inputs, from_images, from_jpeg


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    `build()` gives the module with its weights, in evaluation mode. `calibrate(count, batch)` yields batches of inputs
    that the benchmarks do not score; `example(batch)` gives one batch where calibration data is slow to make. `batch`
    and `calibration_size` are the defaults of the methods below.
    """

    build: Callable[[], nn.Module]
    calibrate: Calibrate
    benchmarks: tuple[Benchmark, ...]
    batch: int
    calibration_size: int = 256
    example: Callable[[int], Inputs] | None = None

    @property
    def metric(self) -> str:
        """The name of the main metric, such as "top-1 %"."""
        return next(iter(self.benchmarks[0].baseline))

    @property
    def baseline(self) -> float:
        """The float network's main metric on all of the data."""
        return self.benchmarks[0].baseline[self.metric]

    def example_inputs(self, batch: int = 1) -> Inputs:
        """One batch of real inputs, to trace and to compare with."""
        return self.example(batch) if self.example else next(self.calibrate(batch, batch))

    def calibration(self, count: int | None = None, batch: int | None = None) -> Iterator[Inputs]:
        """Batches of inputs for calibration, `count` items in all."""
        return self.calibrate(count or self.calibration_size, batch or self.batch)

    def evaluate(self, run: Run, limit: int | None = None, batch: int | None = None) -> float:
        """The main metric of `run(*inputs) -> outputs` on the first `limit` items (None: all) of the main benchmark."""
        return self.benchmarks[0].protocol(run, limit, batch or self.batch)[self.metric]


def _normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocess:
    """x / 255, minus the channel means, over the channel deviations."""
    means, deviations = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    return lambda images: (images / 255 - means) / deviations


_imagenet_norm = _normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_mnist_norm = _normalize((0.1307,), (0.3081,))


def _unit(images: Tensor) -> Tensor:
    """[0, 255] -> [0, 1]"""
    return images / 255


def _signed_unit(images: Tensor) -> Tensor:
    """[0, 255] -> [-1, 1]"""
    return images / 127.5 - 1


def _keyword_features(features: Tensor) -> Tensor:
    """int8 -> MFCC features in their own unit"""
    return (features.float() - 83) * 0.5847029


def _builder(
    network: Callable[[], nn.Module], weights: str, rename: Callable[[str], str | None] = str
) -> Callable[[], nn.Module]:
    return lambda: data.load_weights(network(), data.path(weights), rename)


def _cifar10(preprocess: Preprocess, jpeg: float, exact: float) -> tuple[Benchmark, Benchmark]:
    """CIFAR-10's two test sets, with the baselines in % on the 10,000 JPEG and on the 200 exact images."""
    return (
        Benchmark("CIFAR-10 JPEG test, 10,000", _jpeg_top("cifar10/jpeg_test.npz", preprocess), {"top-1 %": jpeg}),
        Benchmark("CIFAR-10 exact test, 200", _raw_top("cifar10/exact_test200.npz", preprocess), {"top-1 %": exact}),
    )


def _jpeg_top(name: str, preprocess: Preprocess, topk: tuple[int, ...] = (1,)) -> Protocol:
    return classification(lambda limit: (data.jpeg_images(name, limit), data.labels(name, limit)), preprocess, topk)


def _raw_top(name: str, preprocess: Preprocess, images: str = "images", labels: str = "labels") -> Protocol:
    return classification(
        lambda limit: (data.raw_images(name, images, limit), data.labels(name, limit, labels)), preprocess
    )


def _cifar_resnet(network: Callable[[], nn.Module], weights: str, jpeg: float, exact: float) -> Entry:
    return Entry(
        _builder(network, f"cifar10_models/{weights}.safetensors"),
        from_jpeg("cifar10/jpeg_train.npz", _imagenet_norm),
        _cifar10(_imagenet_norm, jpeg, exact),
        batch=100,
    )


def _imagenet(build: Callable[[], nn.Module], preprocess: Preprocess, top1: float, top5: float) -> Entry:
    protocol = _jpeg_top("imagenet_eval/nips2017_224.npz", preprocess, topk=(1, 5))
    return Entry(
        build,
        from_jpeg(calibration.IMAGENET, preprocess),
        (Benchmark("NIPS 2017, 600", protocol, {"top-1 %": top1, "top-5 %": top5}),),
        batch=50,
    )


def _language_model(
    network: Callable[[], nn.Module], weights: str, encode: Callable[[str], list[int]], context: int, nll: float,
    perplexity: float, bits: float,
) -> Entry:  # fmt: skip
    build = _builder(network, f"lm_stories/{weights}.safetensors")
    baseline = {"NLL/token": nll, "perplexity": perplexity, "bits/char": bits}
    benchmark = Benchmark("TinyStories, 118", benchmarks.story_likelihood(encode, context), baseline)
    return Entry(
        build,
        calibration.own_stories(build, context),
        (benchmark,),
        batch=4,
        calibration_size=2,
        example=lambda batch: (benchmarks.story_windows(encode, context, batch)[0][:batch],),
    )


_KEYWORDS = "mlperf_tiny/kws_1000.npz"


def _calibration_keywords(count: int) -> Tensor:
    """Every tenth of the 1,000 speech features, the only ones there are."""
    return data.raw_images(_KEYWORDS, "features")[::10][:count]


def _unseen_keywords(limit: int | None) -> tuple[Tensor, Tensor]:
    """The 900 speech features that calibration leaves alone, and their labels."""
    features, labels = data.raw_images(_KEYWORDS, "features"), data.labels(_KEYWORDS)
    unseen = torch.arange(len(labels)) % 10 != 0
    return features[unseen][:limit], labels[unseen][:limit]


def _minilm() -> nn.Module:
    return data.load_weights(minilm.MiniLM(), data.minilm_file("model.safetensors"), minilm.rename)


def _sentences(title: str, name: str, baseline: float) -> Benchmark:
    return Benchmark(title, benchmarks.sentence_similarity(name, _SENTENCE_LENGTH), {"Spearman": baseline})


_SENTENCE_LENGTH = 128
_LSTM_STEPS = 32
_lstm = _builder(lstm.CharacterLSTM, "lstm_char/lstm_bronte.safetensors")

MODELS: dict[str, Entry] = {
    "resnet20_jpeg": _cifar_resnet(cifar_resnet.resnet20, "resnet20_jpeg", jpeg=87.01, exact=88.0),
    "resnet20": _cifar_resnet(cifar_resnet.resnet20, "resnet20", jpeg=81.03, exact=90.0),
    "resnet56": _cifar_resnet(cifar_resnet.resnet56, "resnet56", jpeg=83.20, exact=91.0),
    "resnet18": _imagenet(
        _builder(resnet.resnet18, "imagenet_models/resnet18.safetensors"), _imagenet_norm, top1=77.00, top5=94.50
    ),
    "mobilenet_v2": _imagenet(
        _builder(mobilenet_v2.MobileNetV2, "imagenet_models/mobilenetv2.safetensors"),
        _signed_unit, top1=84.17, top5=97.50,
    ),
    "tiny_darknet": _imagenet(
        _builder(darknet.TinyDarknet, "imagenet_models/tiny_darknet.safetensors", darknet.rename),
        _unit, top1=69.83, top5=90.00,
    ),
    "stories260k": _language_model(
        llama.stories260k, "stories260k", tokens.tok512, context=512, nll=1.5582, perplexity=4.750, bits=1.1386
    ),
    "llama_char105": _language_model(
        llama.llama_char105, "llama_char105", tokens.char105, context=256, nll=0.9102, perplexity=2.485, bits=1.3145
    ),
    "lstm": Entry(
        _lstm,
        calibration.own_novel(_lstm, _LSTM_STEPS),
        (
            Benchmark(
                "Charlotte Bronte, 32 streams",
                benchmarks.novel_likelihood(32, _LSTM_STEPS, lstm.LAYERS, lstm.HIDDEN),
                {"bits/char": 1.9436},
            ),
        ),
        batch=32,
    ),
    "minilm": Entry(
        _minilm,
        calibration.story_sentences(_SENTENCE_LENGTH),
        (
            _sentences("STS 2013, 1,500 pairs", "sts2013", 0.8060),
            _sentences("STS 2014, 3,750 pairs", "sts2014", 0.7560),
            _sentences("SICK test, 4,927 pairs", "sick_test", 0.7715),
        ),
        batch=32,
    ),
    "unet": Entry(
        _builder(unet.UNet, "unet_retina/unet_retina.safetensors"),
        from_images(lambda count: benchmarks.retina_images("unet_retina/drive_train20.npz", count), torch.clone),
        (
            Benchmark(
                "DRIVE test, 20",
                benchmarks.vessel_segmentation("unet_retina/drive_test20.npz"),
                {"AUC": 0.9773, "Dice": 0.8176, "accuracy": 0.9558},
            ),
        ),
        batch=1,
        calibration_size=20,
    ),
    "ds_cnn": Entry(
        _builder(mlperf_tiny.ds_cnn, "mlperf_tiny/kws_dscnn.safetensors", mlperf_tiny.rename),
        from_images(_calibration_keywords, _keyword_features),
        (
            Benchmark("Speech Commands, 1,000", _raw_top(_KEYWORDS, _keyword_features, "features"), {"top-1 %": 91.3}),
            Benchmark(
                "Speech Commands, 900 unseen",
                classification(_unseen_keywords, _keyword_features),
                {"top-1 %": 91.11},
            ),
        ),
        batch=100,
        calibration_size=100,
    ),
    "mobilenet_v1_025": Entry(
        _builder(mlperf_tiny.mobilenet_v1_025, "mlperf_tiny/vww_mobilenetv1_025.safetensors", mlperf_tiny.rename),
        from_images(lambda count: data.resize(data.jpeg_images(calibration.IMAGENET, count), 96), _unit),
        (Benchmark("COCO crops, 600", _raw_top("mlperf_tiny/vww_600.npz", _unit), {"top-1 %": 83.83}),),
        batch=100,
    ),
    "resnet8": Entry(
        _builder(mlperf_tiny.ResNet8, "mlperf_tiny/ic_resnet8.safetensors", mlperf_tiny.rename),
        from_jpeg("cifar10/jpeg_train.npz", Tensor.float),
        _cifar10(Tensor.float, jpeg=75.48, exact=85.5),
        batch=100,
    ),
    "srgan": Entry(
        _builder(srgan.Generator, "image_models/srgan_x2.safetensors"),
        from_images(calibration.imagenet_mosaics, _unit),
        (Benchmark("Kodak, 24", benchmarks.super_resolution(), {"PSNR dB": 30.67}),),
        batch=1,
        calibration_size=8,
    ),
    "lenet": Entry(
        _builder(lenet.LeNet, "mnist/lenet.safetensors"),
        from_images(lambda count: data.raw_images("mnist/mnist.npz", "train_images", count), _mnist_norm),
        (
            Benchmark(
                "MNIST test, 3,000",
                _raw_top("mnist/mnist.npz", _mnist_norm, "test_images", "test_labels"),
                {"top-1 %": 98.47},
            ),
        ),
        batch=100,
    ),
}  # fmt: skip
