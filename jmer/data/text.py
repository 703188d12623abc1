"""Transcripts as vectors: words counted, weighed by how rare they are, and seen through their main directions.

Latent semantic analysis (Deerwester et al., JASIS 1990), for corpora that come without embeddings: nothing is
downloaded, and all that is learned is learned from the turns that train. What words mean to each other is known
from that corpus alone, and their order is lost.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Words(NamedTuple):
    """What was learned: the weight of every word, [v], and the directions, [v d], of unit length.

    A word without a weight (0) does not count.
    """

    weight: Float[np.ndarray, 'v']
    directions: Float[np.ndarray, 'v d']


def fit(turns: Sequence[Int[np.ndarray, '_']], width: int) -> Words:
    """Weights and the `width` main directions of turns, which are word numbers: give it training turns only.

    The weight of a word is 1 + log((1 + turns) / (1 + turns that hold it)). Directions are the right singular
    vectors of `weighed` counts, by falling singular value; the component that is largest is positive. Where the
    turns span fewer than `width` directions, the last ones are zero.
    """
    present = counts(turns, 1 + int(np.concatenate(turns).max(initial=0))) > 0
    held = present.sum(0)
    weight = np.where(held > 0, 1 + np.log((1 + len(turns)) / (1 + held)), 0)
    x = weighed(turns, weight)
    squares, vectors = np.linalg.eigh(x.T @ x)
    squares, vectors = squares[::-1][:width], vectors[:, ::-1][:, :width]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    spanned = squares > 1e-9 * squares[0]
    directions = np.where(spanned, vectors * np.sign(largest), 0)
    return Words(weight, np.pad(directions, ((0, 0), (0, width - directions.shape[1]))))


def vectors(turns: Sequence[Int[np.ndarray, '_']], words: Words) -> Float[np.ndarray, 'turns d']:
    """Turns along the directions of `fit`; a turn of unknown words alone is zero."""
    return (weighed(turns, words.weight) @ words.directions).astype(np.float32)


def weighed(turns: Sequence[Int[np.ndarray, '_']], weight: Float[np.ndarray, 'v']) -> Float[np.ndarray, 'turns v']:
    """1 + log of how often a turn holds a word, times the word's weight, brought to unit length."""
    found = counts(turns, len(weight))
    x = np.where(found > 0, 1 + np.log(np.maximum(found, 1)), 0) * weight[None]
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def counts(turns: Sequence[Int[np.ndarray, '_']], size: int) -> Int[np.ndarray, 'turns v']:
    """How often each turn holds each word; words from `size` on do not count."""
    return np.stack([np.bincount(turn[turn < size], minlength=size) for turn in turns])
