"""Entropy coding of bytes: range asymmetric numeral systems, for the weights that an artifact stores.

Each byte takes about -log2 of its probability in bits (Duda, "Asymmetric numeral systems", 2013); many states take
turns, so that a decoder can be vectorized (Giesen, "Interleaved entropy coders", 2014). Probabilities are frequencies
in tables, found from the data: a block of BLOCK bytes chooses a table, or one for each of 2 or 4 places of a byte, for
in floats the exponent is the last. Codes of weights hardly repeat, which is what zlib and xz look for.

Little endian; graphc/runtime/entropy.h reads the same:

  0    u64      bytes that were coded
  8    u16      lanes, a power of two from 4 to 1024
  10   u16      tables
  12   per table: 32 bytes, a bit for each byte value that occurs; for each of those its frequency, 4096 in all: one
       byte below 128, else 128 + the low 7 bits, and the others
  ..   per block: u8 places (1, 2 or 4), then that many u8 numbers of tables
  ..   u32 state of each lane, then the words (u16) that states take in when they fall below 2^16

Byte i belongs to lane i % lanes; noughts fill the last turn. The same bytes give the same code.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphc.errors import ArtifactError

BLOCK = 1 << 12
_BITS = 12
_TOTAL = 1 << _BITS
_LOW = 1 << 16  # least state
_PLACES = (1, 2, 4)
_MOST_TABLES = 64
_TOGETHER = 4  # blocks whose bytes make a first table
_ROUNDS = 3  # of assigning blocks to tables and fitting these
_RARE = 14.0  # bits of a byte that a table lacks, as long as it may still be fitted
_NEVER = 1e9
_HEADER = struct.Struct("<QHH")

Array = NDArray[Any]


def encode(data: bytes | memoryview) -> bytes:
    """The code of `data`; it may be longer than that where the bytes are random."""
    raw = np.frombuffer(data, np.uint8)
    lanes = 4
    while lanes < 1024 and lanes << 14 < len(raw):
        lanes *= 2
    padded = np.concatenate([raw, np.zeros(-len(raw) % lanes, np.uint8)])
    blocks = [padded[start : start + BLOCK] for start in range(0, len(padded), BLOCK)]
    tables, chosen = _modelled(blocks)
    head = bytearray(_HEADER.pack(len(raw), lanes, len(tables)))
    for table in tables:
        head += np.packbits(table > 0, bitorder="little").tobytes()
        for frequency in map(int, table[table > 0]):
            head += bytes([frequency] if frequency < 128 else [128 | frequency & 127, frequency >> 7])
    for numbers in chosen:
        head += bytes([len(numbers), *numbers])
    stacked = np.stack(tables)
    starts = np.cumsum(stacked, 1) - stacked
    state, words = np.full(lanes, _LOW, np.uint64), []
    for block, numbers in zip(reversed(blocks), reversed(chosen), strict=True):
        own = np.resize(numbers, lanes)
        frequencies, firsts = stacked[own].astype(np.uint64), starts[own].astype(np.uint64)
        place = np.arange(lanes)
        for turn in block.reshape(-1, lanes)[::-1]:
            frequency = frequencies[place, turn]
            full = state >= frequency << np.uint64(32 - _BITS)
            words.append((state[full] & np.uint64(0xFFFF)).astype("<u2")[::-1])
            state[full] >>= np.uint64(16)
            state = (state // frequency << np.uint64(_BITS)) + state % frequency + firsts[place, turn]
    stream = np.concatenate(words)[::-1] if words else np.zeros(0, "<u2")
    return bytes(head) + state.astype("<u4").tobytes() + stream.tobytes()


def decode(code: bytes | memoryview) -> memoryview:
    """The bytes that were coded. Raises ArtifactError for what `encode` does not write."""
    try:
        return _decoded(memoryview(code))
    except (struct.error, ValueError, IndexError) as error:
        raise ArtifactError(f"the artifact's coded weights are damaged: {error}") from None


def decoded_size(code: bytes | memoryview) -> int:
    """Bytes that were coded."""
    return int(_HEADER.unpack_from(code)[0])


def _decoded(code: memoryview) -> memoryview:
    size, lanes, count = _HEADER.unpack_from(code)
    if lanes not in (4, 8, 16, 32, 64, 128, 256, 512, 1024) or count > 256:
        raise ValueError(f"{lanes} lanes and {count} tables")
    at = _HEADER.size
    symbols, frequencies, biases = (np.zeros((count, _TOTAL), np.uint32) for _ in range(3))
    for number in range(count):
        present = np.flatnonzero(np.unpackbits(np.frombuffer(code, np.uint8, 32, at), bitorder="little"))
        at += 32
        own = np.zeros(len(present), np.int64)
        for place in range(len(present)):
            own[place], at = code[at], at + 1
            if own[place] >= 128:
                own[place], at = own[place] & 127 | code[at] << 7, at + 1
        if own.sum() != _TOTAL or not own.all():
            raise ValueError("a table's frequencies do not add up")
        symbols[number] = np.repeat(present, own)
        frequencies[number] = np.repeat(own, own)
        biases[number] = np.arange(_TOTAL) - np.repeat(np.cumsum(own) - own, own)
    turns = -(-size // lanes)
    choices, left = [], turns * lanes
    while left > 0:
        places = code[at]
        numbers = np.frombuffer(code, np.uint8, places, at + 1)
        if places not in _PLACES or numbers.max() >= count:
            raise ValueError("a block's tables are none")
        choices.append((numbers, min(left, BLOCK) // lanes))
        at, left = at + 1 + places, left - BLOCK
    state = np.frombuffer(code, "<u4", lanes, at).astype(np.uint32)
    words = np.frombuffer(code[at + 4 * lanes :], "<u2").astype(np.uint32)
    data, first, cursor = np.empty((turns, lanes), np.uint8), 0, 0
    symbols, frequencies, biases = symbols.ravel(), frequencies.ravel(), biases.ravel()
    for numbers, length in choices:
        base = np.resize(numbers, lanes).astype(np.uint32) << np.uint32(_BITS)
        for turn in range(first, first + length):
            slot = base + (state & np.uint32(_TOTAL - 1))
            data[turn] = symbols[slot]
            state = frequencies[slot] * (state >> np.uint32(_BITS)) + biases[slot]
            low = np.flatnonzero(state < _LOW)
            state[low] = state[low] << np.uint32(16) | words[cursor : cursor + len(low)]
            cursor += len(low)
        first += length
    if cursor != len(words) or (state != _LOW).any():
        raise ValueError("it does not end where it should")
    return data.ravel().data[:size]


# -- probabilities --------------------------------------------------------------------------------


def _modelled(blocks: list[Array]) -> tuple[list[Array], list[list[int]]]:
    """Tables, int64 [256] that sum to 4096, and for each block the tables of its places."""
    counts = [
        {places: [np.bincount(block[i::places], minlength=256) for i in range(places)] for places in _PLACES}
        for block in blocks
    ]
    tables = [_normalized(np.ones(256, np.int64))]  # which every byte fits
    for first in range(0, len(counts), _TOGETHER):  # they may bring tables, where these save more than they take
        near = counts[first : first + _TOGETHER]
        joined: list[list[Array]] = [list(np.sum([block[places] for block in near], 0)) for places in _PLACES]
        for histogram in min(joined, key=lambda places: sum(map(_alone, places))):
            known = (histogram * _costs(np.stack(tables), _RARE)).sum(1).min()
            if known > _alone(histogram) and len(tables) < _MOST_TABLES:
                tables.append(_normalized(histogram))
    for _ in range(_ROUNDS):
        chosen = _chosen(counts, tables, _RARE)
        sums = np.zeros((len(tables), 256), np.int64)
        for block, numbers in zip(counts, chosen, strict=True):
            for histogram, number in zip(block[len(numbers)], numbers, strict=True):
                sums[number] += histogram
        tables = [_normalized(histogram) for histogram in sums if histogram.any()] or tables
    return tables, _chosen(counts, tables, _NEVER)


def _chosen(counts: list[dict[int, list[Array]]], tables: list[Array], unseen: float) -> list[list[int]]:
    """For each block the cheapest tables of the cheapest number of places."""
    costs, result = _costs(np.stack(tables), unseen), []
    for block in counts:
        options = []
        for places, histograms in block.items():
            bits = np.stack([(histogram * costs).sum(1) for histogram in histograms])
            options.append((float(bits.min(1).sum()) + 8 * places, [int(number) for number in bits.argmin(1)]))
        result.append(min(options)[1])
    return result


def _alone(histogram: Array) -> float:
    """Bits that bytes of this histogram take by a table of their own, and this table."""
    table = _normalized(histogram)
    return float((histogram * _costs(table, _NEVER)).sum()) + 8 * (32 + int((table > 0).sum() + (table > 127).sum()))


def _costs(tables: Array, unseen: float) -> Array:
    """Bits of each byte by each table; `unseen` where it has no place there."""
    costs: Array = np.where(tables > 0, _BITS - np.log2(np.maximum(tables, 1)), unseen)
    return costs


def _normalized(histogram: Array) -> Array:
    """Frequencies that sum to 4096, at least 1 where a byte occurs; what rounding leaves goes where it costs least."""
    seen = histogram > 0
    scaled = np.where(seen, np.maximum(1, histogram * _TOTAL // max(1, int(histogram.sum()))), 0)
    while (missing := _TOTAL - int(scaled.sum())) != 0:
        # Of one more or one less, the change of the bits that all bytes take.
        step = 1 if missing > 0 else -1
        legal = seen & (scaled + step > 0)
        gain = np.where(legal, histogram * np.log2(np.maximum(scaled + step, 1) / np.maximum(scaled, 1)), -np.inf)
        order = gain.argsort(kind="stable")[::-1][: min(abs(missing), int(legal.sum()))]
        scaled[order] += step
    return scaled
