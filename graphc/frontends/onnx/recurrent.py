"""ONNX LSTM, GRU and RNN, by torch's own (which torch.export unrolls over the sequence)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from graphc.frontends.onnx.operator import UnsupportedAttribute, operator


def _weights(w: Tensor, r: Tensor, b: Tensor | None, gates: list[int]) -> list[Tensor]:
    """ONNX's [directions, gates * hidden, ...] as torch's list, direction by direction, with torch's order of gates."""

    def reordered(matrix: Tensor) -> Tensor:
        parts = matrix.chunk(len(gates))
        return torch.cat([parts[gate] for gate in gates])

    result = []
    for direction in range(w.shape[0]):
        result += [reordered(w[direction]), reordered(r[direction])]
        if b is not None:
            result += [reordered(half) for half in b[direction].chunk(2)]
    return result


def _flags(
    direction: str, lengths: Tensor | None, activations: list[str] | None, default: list[str], clip: float | None
) -> bool:
    """Whether the layer is bidirectional; raises for what torch's recurrent layers do not do."""
    count = 2 if direction == "bidirectional" else 1
    if lengths is not None:
        raise UnsupportedAttribute("input 'sequence_lens' is not supported; legal: sequences of one length")
    if activations is not None and [a.lower() for a in activations] != [a.lower() for a in default] * count:
        raise UnsupportedAttribute(f"attribute 'activations' is {activations}; legal: {default * count}")
    if clip:
        raise UnsupportedAttribute(f"attribute 'clip' is {clip}; legal: 0")
    return count == 2


def _initial(state: Tensor | None, x: Tensor, directions: int, hidden: int, layout: int) -> Tensor:
    """The first state as [directions, batch, hidden]; nought where none is given. x: [sequence, batch, input]."""
    if state is None:
        return x.new_zeros([directions, x.shape[1], hidden])
    return state.transpose(0, 1) if layout else state


def _results(y: Tensor, states: tuple[Tensor, ...], directions: int, layout: int) -> tuple[Tensor, ...]:
    """torch's [sequence, batch, directions * hidden] as ONNX's [sequence, directions, batch, hidden] or batch first."""
    y = y.reshape(*y.shape[:2], directions, y.shape[2] // directions)
    if layout:
        return (y.transpose(0, 1), *(state.transpose(0, 1) for state in states))
    return (y.transpose(1, 2), *states)


def _recurrent(function: Any, x: Tensor, state: Any, weights: list[Tensor], biased: bool, both: bool) -> Any:
    return function(x, state, weights, biased, 1, 0.0, False, both, False)


@operator("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    /,
    *,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: Literal["forward", "bidirectional"] = "forward",
    hidden_size: int,
    input_forget: Literal[0] = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    both = _flags(direction, lengths, activations, ["Sigmoid", "Tanh", "Tanh"], clip)
    x = x.transpose(0, 1) if layout else x
    state = [_initial(s, x, w.shape[0], hidden_size, layout) for s in (h, c)]
    y, *states = _recurrent(torch.lstm, x, state, _weights(w, r, b, [0, 2, 3, 1]), b is not None, both)
    return _results(y, tuple(states), w.shape[0], layout)


@operator("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    /,
    *,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: Literal["forward", "bidirectional"] = "forward",
    hidden_size: int,
    layout: int = 0,
    linear_before_reset: Literal[1],
) -> tuple[Tensor, ...]:
    both = _flags(direction, lengths, activations, ["Sigmoid", "Tanh"], clip)
    x = x.transpose(0, 1) if layout else x
    state = _initial(h, x, w.shape[0], hidden_size, layout)
    y, last = _recurrent(torch.gru, x, state, _weights(w, r, b, [1, 0, 2]), b is not None, both)
    return _results(y, (last,), w.shape[0], layout)


@operator("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    /,
    *,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: Literal["forward", "bidirectional"] = "forward",
    hidden_size: int,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    activation = (activations or ["Tanh"])[0]
    function = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}.get(activation.lower())
    if function is None:
        raise UnsupportedAttribute(f"attribute 'activations' is {activations}; legal: Tanh, Relu")
    both = _flags(direction, lengths, activations, [activation], clip)
    x = x.transpose(0, 1) if layout else x
    state = _initial(h, x, w.shape[0], hidden_size, layout)
    y, last = _recurrent(function, x, state, _weights(w, r, b, [0]), b is not None, both)
    return _results(y, (last,), w.shape[0], layout)
