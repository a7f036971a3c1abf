"""The handwritten digits that scikit-learn ships, split once and for all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from eggroll.extras import needed_for

with needed_for("the handwritten digits"):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

CLASSES = 10
TEST_SHARE = 0.2
SPLIT_SEED = 0  # the split never changes, so that accuracies of different runs compare


class Digits(NamedTuple):
    """Images `[n, 8, 8]` float32, standardised over all training pixels; labels `[n]` int32 from 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def digits() -> Digits:
    """Loads 1437 images to train on and 360 to test on, each class in the same proportion in both.

    Returns:
        The data; the same split at every call.

    Example:
        >>> data = digits()
        >>> data.train_images.shape, data.test_labels.shape
        ((1437, 8, 8), (360,))
    """
    raw: Any = load_digits()  # scikit-learn has no types for what depends on its options
    labels = raw.target.astype(np.int32)
    parts: Any = train_test_split(raw.images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED)
    train, test, train_labels, test_labels = parts
    mean, std = train.mean(), train.std()
    train, test = ((images - mean) / std for images in (train, test))
    return Digits(train.astype(np.float32), train_labels, test.astype(np.float32), test_labels)


def minibatches(examples: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of one minibatch after another, without end; every pass over the data is shuffled anew.

    Args:
        examples: number of examples.
        batch_size: indices in a minibatch, 1 to `examples`.
        seed: decides the order.

    Yields:
        `[batch_size]` int64 indices. A minibatch may span two passes, so none is smaller.

    Raises:
        ValueError: a batch size that the data cannot fill.

    Example:
        >>> batches = minibatches(6, 4, seed=0)
        >>> first, second = next(batches), next(batches)
        >>> sorted([*first.tolist(), *second[:2].tolist()])
        [0, 1, 2, 3, 4, 5]
    """
    if not 1 <= batch_size <= examples:
        raise ValueError(f"got batch_size={batch_size}; 1 to {examples}, the number of examples, is required.")
    return _minibatches(examples, batch_size, np.random.default_rng(seed))


def _minibatches(examples: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    left = np.empty(0, np.int64)
    while True:
        if len(left) < batch_size:
            left = np.concatenate([left, rng.permutation(examples)])
        yield left[:batch_size]
        left = left[batch_size:]
