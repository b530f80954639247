"""Text to token ids, one function per vocabulary."""

import json
import re
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from graphc.tools.zoo import data

BOS = 1


@cache
def _char105() -> dict[str, int]:
    pieces: list[str] = json.loads(data.path("lm_stories/char105_vocab.json").read_text(encoding="utf-8"))
    return {piece: index for index, piece in enumerate(pieces)}


def char105(text: str) -> list[int]:
    """BOS, then one id per character; unknown characters, newline among them, are id 0."""
    vocabulary = _char105()
    characters = re.sub(" +", " ", " " + text).replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
    return [BOS, *(vocabulary.get(character, 0) for character in characters)]


@cache
def _tok512() -> dict[bytes, tuple[float, int]]:
    tokens = json.loads(data.path("lm_stories/tok512.json").read_text(encoding="utf-8"))
    return {bytes(token["bytes"]): (token["score"], token["id"]) for token in tokens}


@cache
def _tok512_word(word: str) -> tuple[int, ...]:
    vocabulary = _tok512()
    pieces: list[bytes] = []
    for character in word:
        encoded = character.encode()
        pieces += [encoded] if encoded in vocabulary else [bytes([byte]) for byte in encoded]
    while True:
        merges = [
            (vocabulary[left + right][0], -position)
            for position, (left, right) in enumerate(pairwise(pieces))
            if left + right in vocabulary
        ]
        if not merges:
            # A byte without a token of its own has the id byte + 3.
            return tuple(vocabulary[piece][1] if piece in vocabulary else piece[0] + 3 for piece in pieces)
        position = -max(merges)[1]
        pieces[position : position + 2] = [pieces[position] + pieces[position + 1]]


def tok512(text: str) -> list[int]:
    """BOS, then the byte-pair tokens of `text` with a space before it (SentencePiece's scores, as llama2.c merges)."""
    # No token has a space inside, so no merge crosses the start of a word.
    words = re.findall(" ?[^ ]*", " " + text)
    return [BOS, *(token for word in words for token in _tok512_word(word))]


def wordpiece(sentences: list[str], length: int) -> tuple[Tensor, Tensor]:
    """MiniLM's ids and mask, both int64 [N, length]: lower-case WordPiece, [CLS] ... [SEP], cut or padded."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise data.DataNotFoundError(
            "MiniLM's text is read with the tokenizers package: pip install tokenizers"
        ) from error
    tokenizer = Tokenizer.from_file(str(data.minilm_file("tokenizer.json")))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encodings = tokenizer.encode_batch(sentences)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])
