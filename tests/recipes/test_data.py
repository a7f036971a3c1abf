"""The split of the digits, and the order in which a run sees them."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from sklearn.datasets import load_digits

from eggroll.recipes.data import digits, minibatches

PINNED = [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]  # the labels of the first test images


def raw_images() -> tuple[np.ndarray, np.ndarray]:
    """Training and test images on scikit-learn's scale of 0 to 16, from what the recipe makes of them."""
    data, raw = digits(), load_digits().images
    # Standardising is x -> (x - a) / b; the extremes of all pixels are 0 and 16.
    low = min(data.train_images.min(), data.test_images.min())
    high = max(data.train_images.max(), data.test_images.max())
    back = [(images - low) / (high - low) * raw.max() for images in (data.train_images, data.test_images)]
    for images in back:
        np.testing.assert_allclose(images, np.round(images), atol=1e-4)
    train, test = (np.round(images).astype(int).reshape(len(images), -1) for images in back)
    return train, test


def test_the_two_parts_are_disjoint_and_complete() -> None:
    train, test = raw_images()
    every = sorted(map(tuple, load_digits().images.astype(int).reshape(-1, 64)))
    assert len(set(every)) == len(every)  # so that equal images are the same image
    assert not set(map(tuple, train)) & set(map(tuple, test))
    assert sorted([*map(tuple, train), *map(tuple, test)]) == every


def test_labels_stay_with_their_images() -> None:
    raw, data = load_digits(), digits()
    label_of = dict(zip(map(tuple, raw.images.astype(int).reshape(-1, 64)), raw.target.tolist(), strict=True))
    train, test = raw_images()
    assert [label_of[tuple(image)] for image in train] == data.train_labels.tolist()
    assert [label_of[tuple(image)] for image in test] == data.test_labels.tolist()


def test_every_class_has_a_fifth_of_its_images_in_the_test_part() -> None:
    data = digits()
    test, train = np.bincount(data.test_labels, minlength=10), np.bincount(data.train_labels, minlength=10)
    np.testing.assert_array_less(np.abs(test - 0.2 * (test + train)), 1.0)


def test_the_split_never_changes() -> None:
    first = digits()
    np.random.seed(1)
    second = digits()
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
    assert first.test_labels[:12].tolist() == PINNED


def test_pixels_are_standardised_by_the_training_images_alone() -> None:
    data = digits()
    train, test = raw_images()
    assert data.train_images.dtype == data.test_images.dtype == np.float32
    np.testing.assert_allclose(data.train_images.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_images.std(), 1, atol=1e-5)
    expected = (test - train.mean()) / train.std()
    np.testing.assert_allclose(data.test_images.reshape(len(test), -1), expected, atol=1e-5)


def test_minibatches_repeat_with_their_seed() -> None:
    def order(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in islice(minibatches(50, 16, seed), 8)]

    assert order(3) == order(3)
    assert order(3) != order(4)


@pytest.mark.parametrize("batch_size", [1, 7, 10])
def test_every_pass_sees_every_example_once(batch_size: int) -> None:
    batches = list(islice(minibatches(10, batch_size, 0), 30 // batch_size + 1))
    assert {len(batch) for batch in batches} == {batch_size}
    seen = np.concatenate(batches)
    passes = [seen[start : start + 10].tolist() for start in (0, 10)]
    assert [sorted(one) for one in passes] == [list(range(10))] * 2
    assert passes[0] != passes[1]


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_minibatch_that_the_data_cannot_fill(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"got batch_size={batch_size}; 1 to 10"):
        minibatches(10, batch_size, 0)
