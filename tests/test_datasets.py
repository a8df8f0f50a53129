import numpy as np
import pytest

from covkeras import datasets


def test_digits_are_split_once_and_for_all():
    parts = [datasets.load("digits", split) for split in datasets.SPLITS]
    assert [len(p) for p in parts] == [1197, 240, 360]
    images = np.concatenate([p.images for p in parts]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    # Stored on the 8-bit grid, each within half a step of scikit-learn's sixteenths.
    assert images.dtype == np.uint8
    stored = np.sort(np.round(images / 255 * 16).sum(1).astype(int))
    assert np.array_equal(stored, np.sort(load_digits().data.sum(1).astype(int)))
    assert parts[2].labels[:8].tolist() == datasets.load("digits", "test").labels[:8].tolist()
    floats = parts[0].floats()
    assert floats.dtype == np.float32 and floats.min() == 0 and floats.max() == 1


def collect(data, count, **start):
    stream = data.batches(100, seed=3, **start)
    return [(x.numpy(), y.numpy()) for x, y in stream.take(count)]


def test_batches_continue_from_any_step(digits):
    whole = collect(digits, 24)  # 11 steps an epoch
    for epoch, step in ((0, 4), (1, 0), (1, 5)):
        rest = collect(digits, 3, epoch=epoch, step=step)
        for (x, y), (a, b) in zip(whole[11 * epoch + step :], rest, strict=False):
            assert np.array_equal(x, a) and np.array_equal(y, b)


def test_an_epoch_is_a_permutation_and_epochs_differ(digits):
    batches = collect(digits, 22)
    first, second = (np.concatenate([x for x, _ in batches[i : i + 11]]).reshape(1100, -1) for i in (0, 11))
    keys = {row.tobytes() for row in digits.floats().reshape(len(digits), -1)}
    assert {row.tobytes() for row in first} <= keys
    assert not np.array_equal(first, second)
    labels = dict(zip((r.tobytes() for r in digits.floats()), digits.labels, strict=True))
    assert all(labels[x.tobytes()] == y for x, y in zip(batches[0][0], batches[0][1], strict=True))


def test_unknown_names_and_sizes_are_refused(digits):
    with pytest.raises(ValueError, match="data set must be one of digits"):
        datasets.load("digit")
    with pytest.raises(ValueError, match="data set must be one of digits"):
        datasets.load("")
    for size in (-1, 2**40, 8.0):
        with pytest.raises(ValueError, match="image_size must be a whole number"):
            datasets.load("digits", "test", image_size=size)
    with pytest.raises(ValueError, match="split must be one of train, validation, test"):
        datasets.load("digits", "dev")
    with pytest.raises(ValueError, match="batch_size must be at most 1197"):
        digits.steps_per_epoch(1198)


def test_digits_are_resized_as_own_images_are(digits, tmp_path):
    """Where they were 8 x 8 whatever was asked for."""
    test = datasets.load("digits", "test")
    np.savez(tmp_path / "mine.npz", x_test=test.images, y_test=test.labels)
    larger = datasets.load("digits", "test", image_size=12)
    assert larger.images.shape == (360, 12, 12, 1) and np.array_equal(larger.labels, test.labels)
    np.testing.assert_array_equal(
        larger.images, datasets.load(str(tmp_path / "mine.npz"), "test", image_size=12).images
    )
    np.testing.assert_array_equal(datasets.load("digits", "test", image_size=8).images, test.images)
