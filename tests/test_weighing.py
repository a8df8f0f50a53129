"""Images drawn by weights that come from votes: the authors' formula, the stream, and a run that is stopped."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from covkeras import objectives
from covkeras.datasets.stream import ImageStream
from covkeras.experiments import fitting, recipes
from covkeras.experiments.jobs import Environment
from covkeras.experiments.runs import RunFolder
from covkeras.runtime.interrupts import Interrupted

SMALL = (
    recipes.find("digits")
    .with_method("sphere_attack")
    .replace(epochs=3, decay_epochs=(), train_images=256, batch_size=64, learning_rate=0.1)
    .replace(discard_epoch=1, discard_below=0.3, weigh_every=1, num_copies=1, steps=1)
)


def test_the_weight_is_the_radius_that_16_votes_certify():
    objective = objectives.SphereAttack(0.5, discard_epoch=6, discard_below=0.4, weigh_every=3)
    assert [objective.copies_to_count(e) for e in range(4, 13)] == [0, 0, 100, 0, 0, 16, 0, 0, 16]
    shares = np.array([0.39, 0.4, 0.8, 1.0, 0.9])
    weights = objective.image_weights(6, shares, np.ones(5))
    hits = np.array([12, 12, 12, 16, 14])
    expected = scipy.stats.norm.ppf(scipy.stats.beta.ppf(0.1, hits, 17 - hits))
    np.testing.assert_allclose(weights, np.where(shares < 0.4, 0, expected), rtol=1e-9)
    # What is left out stays so; what has fallen below later is kept.
    later = objective.image_weights(9, np.array([1.0, 0.1, 1.0, 1.0, 1.0]), weights)
    assert later[0] == 0 and later[1] == pytest.approx(expected[0]) and later[2] == pytest.approx(expected[3])
    plain = dataclasses.replace(objective, weigh_every=0)
    np.testing.assert_array_equal(plain.image_weights(6, shares, np.ones(5)), [0, 1, 1, 1, 1])
    assert [plain.copies_to_count(e) for e in (6, 9)] == [100, 0]
    assert not objectives.Consistency(0.5).copies_to_count(6)
    published = objectives.SphereAttack.published("cifar10", 0.5, 150, 0)
    assert published["discard_epoch"] == 70 and published["discard_below"] == 0.4 and published["weigh_every"] == 10


def test_an_epoch_draws_each_image_as_often_as_its_weight_says(digits, rng):
    few = digits.head(64)
    # Each image is known by its label here.
    few = dataclasses.replace(few, labels=np.arange(64))
    weights = np.where(np.arange(64) % 4 == 3, 0.0, rng.random(64))

    def drawn(weights, **options):
        return np.concatenate([y.numpy() for _, y in few.batches(16, 3, epochs=1, weights=weights, **options)])

    for epoch in range(5):
        labels = np.concatenate(
            [y.numpy() for _, y in few.batches(16, 3, epoch=epoch, epochs=epoch + 1, weights=weights)]
        )
        counts, expected = np.bincount(labels, minlength=64), 64 * weights / weights.sum()
        assert len(labels) == 64 and (np.abs(counts - expected) < 1 + 1e-9).all() and (counts[weights == 0] == 0).all()
        # Not in the images' order.
        assert (np.diff(labels) < 0).sum() > 16
    np.testing.assert_array_equal(np.sort(drawn(np.ones(64))), np.arange(64))
    np.testing.assert_array_equal(drawn(None), drawn(None))
    whole = drawn(weights)
    np.testing.assert_array_equal(drawn(weights, step=2), whole[32:])


def test_a_run_that_weighs_its_images_resumes_to_the_same_weights(tmp_path):
    """Stopped before, at and after the weighings (4 steps an epoch); the weights lie in the folder, and what was left
    out is not drawn."""
    done = {}
    for steps in (10_000, 5):
        folder = RunFolder(tmp_path / str(steps))
        folder.claim(SMALL)
        for _ in range(20):
            left = iter(range(steps))
            try:
                classifier = fitting.train(SMALL, folder, Environment(stop=lambda left=left: next(left, None) is None))
                break
            except Interrupted:
                continue
        done[steps] = classifier.get_weights()
    files = sorted(path.name for path in (folder.path / "weights").iterdir())
    assert files == ["epoch_00001.npy", "epoch_00002.npy"]
    first, second = (np.load(folder.path / "weights" / name) for name in files)
    assert 0 < (first == 0).mean() < 1 and (second[first == 0] == 0).all() and (first != second).any()
    for a, b in zip(done[5], done[10_000], strict=True):
        np.testing.assert_array_equal(a, b)


def test_where_nothing_is_left_it_says_so(tmp_path):
    folder = RunFolder(tmp_path)
    recipe = SMALL.replace(discard_epoch=0, discard_below=0.99, epochs=1)
    folder.claim(recipe)
    with pytest.raises(ValueError, match="no training image is left: at epoch 0 sphere_attack gives each the weight 0"):
        fitting.train(recipe, folder)


def test_several_machines_and_streams_are_refused(tmp_path, monkeypatch):
    from covkeras.experiments import distributed

    with pytest.raises(ValueError, match="weighs its training images, which one machine alone does"):
        distributed.train_across_workers(SMALL, RunFolder(tmp_path), _Alone())
    stream = ImageStream("some", "train", None, "train", 10, 8, ("a", "b"))
    with pytest.raises(ValueError, match="weights need a data set held in memory"):
        stream.batches(2, weights=np.ones(10))


class _Alone:
    num_replicas_in_sync = 1
