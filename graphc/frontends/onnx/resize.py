"""ONNX Resize and Upsample: torch's interpolation where it has the same coordinates, else one axis at a time."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphc.frontends.onnx.operator import Known, UnsupportedAttribute, Value, operator

Mode: TypeAlias = Literal["nearest", "linear", "cubic"]
Coordinates: TypeAlias = Literal[
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"
]
Nearest: TypeAlias = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


@operator("Upsample")
def upsample(
    x: Tensor, factors: Known | None = None, /, *, mode: Literal["nearest", "linear"] = "nearest", scales: Any = None
) -> Tensor:
    return resize(x, factors if scales is None else np.array(scales), mode=mode, opset=10)


@operator("Resize")
def resize(
    x: Tensor,
    roi: Value | None = None,
    scales: Known | None = None,
    sizes: Known | None = None,
    /,
    *,
    antialias: Literal[0] = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: Coordinates = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: Literal["stretch"] = "stretch",
    mode: Mode = "nearest",
    nearest_mode: Nearest = "round_prefer_floor",
    opset: int,
) -> Tensor:
    """Resize `axes` (default all) by `scales` or to `sizes`. Before operator set 11 the second input was the scales,
    and coordinates were asymmetric, rounded down."""
    if opset < 11:
        scales, coordinate_transformation_mode, nearest_mode = np.asarray(roi), "asymmetric", "floor"
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    target: list[Any] = list(x.shape)
    factor: list[float | None] = [None] * x.dim()
    for position, axis in enumerate(along):
        if scales is not None and scales.size:
            factor[axis] = float(scales[position])
            target[axis] = _scaled(x.shape[axis], float(scales[position]))
        elif sizes is not None:
            target[axis] = sizes[position]
    native = _native(
        x, target, factor, mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, exclude_outside
    )
    if native is not None:
        return native
    for axis in range(x.dim()):
        if target[axis] is x.shape[axis] or (target[axis] == x.shape[axis] and factor[axis] in (None, 1.0)):
            continue
        before, after = x.shape[axis], target[axis]
        if not isinstance(before, int) or not isinstance(after, int | np.integer):
            raise UnsupportedAttribute(
                f"'{mode}' with '{coordinate_transformation_mode}' coordinates needs a fixed size of dimension {axis}"
            )
        where = source_coordinates(before, int(after), factor[axis], coordinate_transformation_mode)
        taps = source_taps(where, before, mode, nearest_mode, cubic_coeff_a, bool(exclude_outside))
        shape = [-1 if i == axis else 1 for i in range(x.dim())]
        parts = [x.index_select(axis, torch.tensor(indices.tolist())) for indices, _ in taps]
        x = (
            parts[0]
            if mode == "nearest"
            else sum_of(
                [
                    part * torch.tensor(weights.tolist()).reshape(shape)
                    for part, (_, weights) in zip(parts, taps, strict=True)
                ]
            )
        )
    return x


def _scaled(size: Any, scale: float) -> Any:
    """floor(size * scale), kept an integer expression for symbolic sizes."""
    if isinstance(size, int):
        return math.floor(size * scale)
    return size * int(scale) if scale.is_integer() else torch.sym_int(size * scale)


def sum_of(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _native(
    x: Tensor,
    target: list[Any],
    factor: list[float | None],
    mode: Mode,
    coordinates: Coordinates,
    nearest: Nearest,
    cubic: float,
    exclude_outside: int,
) -> Tensor | None:
    """torch's own interpolation where it means the same, else None."""
    rank = x.dim() - 2
    if not 1 <= rank <= 3 or (target[0] is not x.shape[0] and target[0] != x.shape[0]) or target[1] != x.shape[1]:
        return None
    whole = all(scale is not None and scale.is_integer() for scale in factor[2:])
    if mode == "nearest":
        agrees = (coordinates == "asymmetric" and nearest == "floor") or (
            whole and nearest.startswith("round") and coordinates in ("half_pixel", "pytorch_half_pixel")
        )
        name, corners = "nearest", None
    else:
        agrees = coordinates == "align_corners" or coordinates.endswith("half_pixel")
        agrees &= coordinates != "pytorch_half_pixel" or all(size != 1 for size in target[2:])
        agrees &= mode == "linear" or (rank == 2 and cubic == -0.75 and not exclude_outside)
        name, corners = (
            "bicubic" if mode == "cubic" else ("linear", "bilinear", "trilinear")[rank - 1],
            coordinates == "align_corners",
        )
    if not agrees:
        return None
    exact = corners or all(
        scale is None or scale.is_integer() or size * scale == out
        for size, scale, out in zip(x.shape[2:], factor[2:], target[2:], strict=True)
    )
    size = [int(out) if isinstance(out, np.integer) else out for out in target[2:]] if exact else None
    scales = None if exact else [1.0 if scale is None else scale for scale in factor[2:]]
    return F.interpolate(x, size, scales, name, corners, recompute_scale_factor=None if exact else False)


def source_coordinates(before: int, after: int, scale: float | None, coordinates: Coordinates) -> np.ndarray[Any, Any]:
    """Where each of `after` positions lies among `before`, by the formulas of the ONNX operator, in float32."""
    ratio = np.float32(after / before if scale is None else scale)
    position = np.arange(after, dtype=np.float32)
    if coordinates == "align_corners":
        return position * np.float32((before - 1) / (after - 1)) if after > 1 else position * 0
    if coordinates == "asymmetric":
        return position / ratio
    if coordinates == "pytorch_half_pixel" and after == 1:
        return position * 0
    centred = (position + np.float32(0.5)) / ratio - np.float32(0.5)
    if coordinates == "half_pixel_symmetric":
        return np.float32(before / 2 * (1 - after / (float(ratio) * before))) + centred
    return centred


def source_taps(
    where: np.ndarray[Any, Any], before: int, mode: Mode, nearest: Nearest, cubic: float, exclude_outside: bool
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Indices and weights of the elements that each position is made of."""
    if mode == "nearest":
        rounded = {
            "floor": np.floor(where),
            "ceil": np.ceil(where),
            "round_prefer_floor": np.ceil(where - np.float32(0.5)),
            "round_prefer_ceil": np.floor(where + np.float32(0.5)),
        }[nearest]
        return [(np.clip(rounded, 0, before - 1).astype(np.int64), np.ones_like(where))]
    base = np.floor(where)
    offset = where - base
    if mode == "linear":
        weights = [(0, 1 - offset), (1, offset)]
    else:
        weights = [(tap, _cubic(np.abs(offset - tap), cubic)) for tap in (-1, 0, 1, 2)]
    indices = [base + tap for tap, _ in weights]
    values = [weight for _, weight in weights]
    if exclude_outside:
        values = [v * ((i >= 0) & (i < before)) for i, v in zip(indices, values, strict=True)]
        total = np.sum(values, axis=0)
        values = [v / total for v in values]
    return [
        (np.clip(i, 0, before - 1).astype(np.int64), v.astype(np.float32)) for i, v in zip(indices, values, strict=True)
    ]


def _cubic(distance: np.ndarray[Any, Any], a: float) -> np.ndarray[Any, Any]:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29(6), 1981)."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
