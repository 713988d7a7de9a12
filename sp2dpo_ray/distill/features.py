"""What the light predictor sees of a pair: counts of each response, overlaps, hashed word pairs.

In: Arrow columns of texts. Out: numbers, one row a pair. Invariant: all work is done by columns
(Arrow splits words, numpy counts), and a row depends on its own texts alone, so that batches of any
size give the same.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from sp2dpo_ray.distill.texts import Texts

FEATURES_VERSION = 1
GRAM_BITS = 17  # of hashed words and word pairs
SET_BITS = 12  # of the sets that overlaps are counted in
NOVEL_BITS = 20  # of the words that training has seen
PAIRS_AT_ONCE = 2_000
Floats = NDArray[np.float32]

# groups of bytes, none in two of them
BYTES: dict[str, bytes] = {
    "digits": b"0123456789",
    "capitals": bytes(range(65, 91)),
    "points": b".",
    "questions": b"?",
    "exclamations": b"!",
    "commas": b",;:",
    "lines": b"\n",
    "ticks": b"`",
    "marks": b"*#|>",
    "brackets": b"()[]{}",
    "operators": b"=+/<\\$%",
    "not_ascii": bytes(range(128, 256)),
}
# words that tell how a response speaks, counted among the lower-cased tokens
WORDS: dict[str, frozenset[str]] = {
    "refusal": frozenset({"sorry", "sorry,", "cannot", "can't", "unable", "apologize"}),
    "hedge": frozenset({"might", "may", "perhaps", "possibly", "likely", "could", "generally"}),
    "first_person": frozenset({"i", "i'm", "me", "my", "i'd", "i'll"}),
    "second_person": frozenset({"you", "your", "you're"}),
    "reason": frozenset({"because", "therefore", "therefore,", "thus", "since", "hence", "so"}),
    "steps": frozenset({"first", "first,", "second", "second,", "then", "next,", "finally,"}),
    "negation": frozenset({"not", "no", "never", "don't", "doesn't", "isn't", "won't"}),
    "bullets": frozenset({"-", "*", "\u2022", "1.", "2.", "3.", "4.", "5.", "1)", "2)", "3)"}),
    "caution": frozenset({"however", "however,", "illegal", "harmful", "dangerous", "safety"}),
}  # fmt: skip
RESPONSE = ("log_bytes", "log_words", "word_length", "distinct", "of_prompt", *BYTES, *WORDS)
COMMON = (
    "prompt_log_bytes",
    "prompt_questions",
    "prompt_lines",
    "prompt_digits",
    "overlap",
    "same_start",
)


@dataclass(frozen=True, slots=True)
class Features:
    """common: (N, len(COMMON)). first, second: (N, len(RESPONSE)) of the chosen and the rejected
    response, first_grams and second_grams, sparse (N, 2 ** GRAM_BITS), their hashed words and word
    pairs. words: places of all distinct words among 2 ** NOVEL_BITS. unknown: (N,) share
    of the responses' words that training has not seen."""

    common: Floats
    first: Floats
    second: Floats
    first_grams: sp.csr_matrix
    second_grams: sp.csr_matrix
    words: NDArray[np.uint32]
    unknown: Floats

    def __len__(self) -> int:
        return len(self.common)

    def dense(self, scores: Floats, *, swapped: bool = False) -> Floats:
        """What the trees see: common, both responses, their difference, and `scores` (N, S), which
        change their sign with the order."""
        first, second = (self.second, self.first) if swapped else (self.first, self.second)
        signed = -scores if swapped else scores
        return np.hstack([self.common, first, second, first - second, signed])

    def scores(self, coefficients: Floats) -> Floats:
        """What the grams say for the first response against the second; coefficients
        (2 ** GRAM_BITS, S), result (N, S)."""
        return np.asarray(self.first_grams @ coefficients - self.second_grams @ coefficients)


def features_of(texts: Texts, known: NDArray[np.bool_] | None = None) -> Features:
    """known: (2 ** NOVEL_BITS,) marks of the words that training has seen; None: all are known."""
    pieces = [
        _piece(texts.slice(start, PAIRS_AT_ONCE), known)
        for start in range(0, max(len(texts), 1), PAIRS_AT_ONCE)
    ]
    if len(pieces) == 1:
        return pieces[0]
    numbers = [np.concatenate([getattr(piece, name) for piece in pieces])
               for name in ("common", "first", "second")]  # fmt: skip
    return Features(
        *numbers,
        *(
            sp.vstack([getattr(piece, name) for piece in pieces], "csr")
            for name in ("first_grams", "second_grams")
        ),
        np.unique(np.concatenate([piece.words for piece in pieces])),
        np.concatenate([piece.unknown for piece in pieces]),
    )


def known_words(features: Features) -> NDArray[np.bool_]:
    """Marks of all words of these features."""
    marks = np.zeros(1 << NOVEL_BITS, bool)
    marks[features.words] = True
    return marks


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of N texts, one after the other: of each its text, hash and group in WORDS (-1:
    none); of each text its number of words; the hashes of the distinct words."""

    row: NDArray[np.int64]
    hash: NDArray[np.uint32]
    group: NDArray[np.int8]
    count: NDArray[np.int64]
    distinct: NDArray[np.uint32]


GROUP_OF_BYTE = np.zeros(256, np.uint8)  # 0: none
for _place, _group in enumerate(BYTES.values(), start=1):
    GROUP_OF_BYTE[list(_group)] = _place
GROUP_OF = {word: place for place, group in enumerate(WORDS.values()) for word in group}


def _words(texts: pa.Array) -> _Words:
    lists = pc.ascii_split_whitespace(pc.ascii_lower(texts))
    coded = lists.flatten().dictionary_encode()
    names = coded.dictionary.to_pylist()
    hashes = np.fromiter(map(zlib.crc32, map(str.encode, names)), np.uint32, len(names))
    groups = np.fromiter((GROUP_OF.get(name, -1) for name in names), np.int8, len(names))
    place = coded.indices.to_numpy()
    count = np.diff(lists.offsets.to_numpy())
    return _Words(
        np.repeat(np.arange(len(texts)), count), hashes[place], groups[place], count, hashes
    )


def _piece(texts: Texts, known: NDArray[np.bool_] | None) -> Features:
    # one pass over all three columns: texts 0 to n are prompts, then chosen, then rejected
    n = len(texts)
    column = pa.concat_arrays([texts.prompt, texts.chosen, texts.rejected])
    words, (marks, length) = _words(column), _bytes(column)
    sets = np.zeros((3 * n, 1 << SET_BITS), bool)
    sets[words.row, words.hash >> np.uint32(32 - SET_BITS)] = True
    bits = np.packbits(sets, axis=1).view(np.uint64)
    prompt, first, second = bits[:n], bits[n : 2 * n], bits[2 * n :]
    starts = _first_words(words)
    common = np.column_stack(
        [
            np.log1p(length[:n]),
            *(np.log1p(marks[:n, list(BYTES).index(name)])
              for name in ("questions", "lines", "digits")),
            _sizes(first & second) / np.maximum(_sizes(first | second), 1),
            starts[n : 2 * n] == starts[2 * n :],
        ]
    ).astype(np.float32)  # fmt: skip
    grams = _grams(words, n)
    responses = _responses(words, marks, length, bits, np.tile(prompt, (3, 1)))
    return Features(
        common,
        responses[n : 2 * n],
        responses[2 * n :],
        grams[:n],
        grams[n:],
        np.unique(words.distinct >> np.uint32(32 - NOVEL_BITS)),
        _unknown(words, n, known),
    )


def _bytes(texts: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How often each group of BYTES stands in each text, and the texts' lengths."""
    _, offsets, data = texts.cast(pa.large_binary()).buffers()
    offset = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    raw = np.frombuffer(data, np.uint8)[offset[0] : offset[-1]] if data else np.zeros(0, np.uint8)
    # few bytes are of a group, and only those are looked at one by one
    group = GROUP_OF_BYTE[raw]
    place = np.flatnonzero(group)
    row = np.searchsorted(offset[1:] - offset[0], place, side="right")
    width = len(BYTES) + 1
    table = np.bincount(row * width + group[place], minlength=width * len(texts))
    return table.reshape(len(texts), width)[:, 1:].astype(np.float64), np.diff(offset)


def _sizes(bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.bitwise_count(bits).sum(axis=1, dtype=np.int64)


def _responses(
    words: _Words, marks: NDArray[np.float64], length: NDArray[np.int64],
    bits: NDArray[np.uint64], prompt: NDArray[np.uint64],
) -> Floats:  # fmt: skip
    """RESPONSE of every text."""
    least = np.maximum(words.count, 1)
    told = words.group >= 0
    size = len(words.count) * len(WORDS)
    groups = np.bincount(words.row[told] * len(WORDS) + words.group[told], minlength=size)
    distinct = _sizes(bits)
    return np.column_stack(
        [
            np.log1p(length),
            np.log1p(words.count),
            length / least,
            distinct / np.minimum(least, 1 << SET_BITS),
            _sizes(bits & prompt) / np.maximum(distinct, 1),
            np.log1p(marks),
            groups.reshape(-1, len(WORDS)) / least[:, None],
        ]
    ).astype(np.float32)


def _first_words(words: _Words) -> NDArray[np.int64]:
    """The hash of each text's first word; -1 for a text without one."""
    found = np.full(len(words.count), -1, np.int64)
    there = words.count > 0
    found[there] = words.hash[(np.cumsum(words.count) - words.count)[there]]
    return found


def _grams(words: _Words, n: int) -> sp.csr_matrix:
    """Hashed words and pairs of neighbours of the 2 n responses, each of length 1 as far as no two
    fall together; duplicate entries of a row stand for their sum."""
    begin = int(words.count[:n].sum())
    row, hashes = words.row[begin:] - n, words.hash[begin:]
    near = row[1:] == row[:-1]
    pairs = ((hashes[:-1] * np.uint32(0x9E3779B1)) ^ hashes[1:])[near]
    pair_row = row[:-1][near]
    count = words.count[n:]
    num_pairs = np.maximum(count - 1, 0)
    ends = np.concatenate([[0], np.cumsum(count + num_pairs)])
    column = np.empty(ends[-1], np.int32)
    shift = np.uint32(32 - GRAM_BITS)
    # of each response the words, then the pairs: rows lie together and need no sorting
    column[np.arange(len(hashes)) + (np.cumsum(num_pairs) - num_pairs)[row]] = hashes >> shift
    column[np.arange(len(pairs)) + np.cumsum(count)[pair_row]] = pairs >> shift
    weight = (1 / np.sqrt(np.maximum(count + num_pairs, 1))).astype(np.float32)
    return sp.csr_matrix(
        (np.repeat(weight, np.diff(ends)), column, ends), shape=(2 * n, 1 << GRAM_BITS)
    )


def _unknown(words: _Words, n: int, known: NDArray[np.bool_] | None) -> Floats:
    if known is None:
        return np.zeros(n, np.float32)
    odd = ~known[words.hash >> np.uint32(32 - NOVEL_BITS)]
    new = np.bincount(words.row[odd], minlength=3 * n)
    return (
        (new[n : 2 * n] + new[2 * n :])
        / np.maximum(words.count[n : 2 * n] + words.count[2 * n :], 1)
    ).astype(np.float32)
