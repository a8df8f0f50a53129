"""Data through TFDS: its mock data for every data set of the recipes, real records where they are at hand."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import DATA_DIR

from covkeras import datasets
from covkeras.datasets.augmentation import augment
from covkeras.experiments import fitting, jobs, recipes

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def mocked():
    from covkeras.datasets import prepared

    prepared._read.cache_clear()
    with tfds.testing.mock_data(num_examples=60):
        yield
    prepared._read.cache_clear()


@pytest.mark.parametrize("name", datasets.NAMES[1:])
def test_every_data_set_is_read(name, mocked, tmp_path):
    recipe = recipes.find(name)
    train, validation, test = (datasets.load(name, s, tmp_path, recipe.image_size) for s in datasets.SPLITS)
    size = 224 if name in ("imagenet", "places365") else {"mnist": 28}.get(name, 32)
    assert train.image_shape == validation.image_shape == (size, size, 1 if name == "mnist" else 3)
    assert len(train.class_names) == {"imagenet": 1000, "places365": 365}.get(name, 10)
    images, labels = next(iter(train.batches(8, seed=1, epochs=1, augmentation=recipe.augmentation)))
    assert images.shape == (8, *train.image_shape) and images.dtype == tf.float32 and labels.dtype == tf.int64
    assert float(tf.reduce_min(images)) >= 0 and float(tf.reduce_max(images)) <= 1
    head = test.head(5)
    assert len(head) == 5 and head.floats().max() <= 1 and head.images.dtype == np.uint8


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_streams_continue_from_any_step(name, mocked, tmp_path):
    recipe = recipes.find(name)
    train = datasets.load(name, "train", tmp_path, recipe.image_size)
    steps = train.steps_per_epoch(20)

    def collect(count, epoch=0, step=0):
        stream = train.batches(20, 3, epoch, step, 2, recipe.augmentation)
        return [(x.numpy(), y.numpy()) for x, y in stream.take(count)]

    whole = collect(2 * steps)
    for epoch, step in ((0, 1), (1, 0), (1, 1)):
        for (x, y), (a, b) in zip(whole[epoch * steps + step :], collect(2, epoch, step), strict=False):
            assert np.array_equal(x, a) and np.array_equal(y, b)
    assert not np.array_equal(whole[0][1], whole[steps][1]) or not np.array_equal(whole[0][0], whole[steps][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet", "places365"])
def test_a_step_at_224(name, mocked, tmp_path):
    """PreActResNet-18 at 224 x 224 trains and its moments flow."""
    recipe = recipes.smoke(recipes.find(name)).replace(epochs=1, decay_epochs=(), train_images=4, switch_epoch=0)
    data = fitting.load_training(recipe, jobs.Environment(data_dir=str(tmp_path)))
    trainer = fitting.build_trainer(recipe, data)
    stream = data.batches(4, epochs=1, augmentation=recipe.augmentation)
    history = trainer.fit(stream, steps_per_epoch=1, verbose=0, shuffle=False).history
    assert np.isfinite(history["loss"][0]) and trainer.classifier.output_shape[-1] == len(data.class_names)


def test_an_unprepared_data_set_names_its_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"isn't prepared in .* tfds build svhn_cropped --data_dir="):
        datasets.load("svhn", "train", tmp_path)
    with pytest.raises(ValueError, match="TFDS knows none of that name"):
        datasets.load("no_such_data_set", "train", tmp_path)
    with pytest.raises(ValueError, match="is no image classification data set"):
        datasets.load("coco/2014", "train", tmp_path)


@pytest.mark.real_data
def test_a_truncated_record_file_is_named(tmp_path):
    shutil.copytree(f"{DATA_DIR}/mnist", tmp_path / "mnist", copy_function=shutil.copyfile)
    record = next((tmp_path / "mnist").glob("*/mnist-test.tfrecord*"))
    record.write_bytes(record.read_bytes()[:1_000_000])
    with pytest.raises(OSError, match=r"a record file of 'mnist' in .* is damaged"):
        datasets.load("mnist", "test", tmp_path)


@pytest.mark.real_data
def test_real_images_are_split_and_in_order():
    train, validation, test = (datasets.load("mnist", s, DATA_DIR) for s in datasets.SPLITS)
    assert [len(d) for d in (train, validation, test)] == [55_000, 5_000, 10_000]
    counts = np.bincount(np.concatenate([train.labels, validation.labels]))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.array_equal(test.head(3).images, test.images[:3])


def test_crops_and_flips_are_parts_of_the_image(rng):
    images = rng.random((50, 8, 8, 2)).astype("float32")
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)])
    for augmentation in ("crop", "crop_flip"):
        result = augment(tf.constant(images), augmentation, tf.constant([1, 2], tf.int64)).numpy()
        kinds = set()
        for i in range(50):
            places = [
                (y, x, flip)
                for y in range(9)
                for x in range(9)
                for flip in (False, True)
                if np.array_equal(
                    result[i], padded[i, y : y + 8, x : x + 8][:, ::-1] if flip else padded[i, y : y + 8, x : x + 8]
                )
            ]
            assert places
            kinds.add(places[0])
        assert len(kinds) > 25 and any(k[2] for k in kinds) == (augmentation == "crop_flip")


def test_an_augmentation_that_memory_does_not_have_is_refused(digits):
    with pytest.raises(ValueError, match="augmentation must be none, crop or crop_flip"):
        digits.batches(8, augmentation="resized_crop_flip")
