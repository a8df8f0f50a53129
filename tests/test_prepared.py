"""Data through TFDS: its mock data for every data set of the recipes, real records where they are at hand."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import DATA_DIR, call_program

from covkeras import datasets
from covkeras.datasets.augmentation import augment
from covkeras.experiments import recipes
from covkeras.experiments.runs import RunFolder

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


def prepare(builder, splits: dict[str, int], shapes, rng) -> None:
    """Has a builder of TFDS write its folder of random images, as `tfds build` would of downloaded ones."""

    def examples(count):
        label = builder.info.features["label"]
        for i in range(count):
            image = rng.integers(0, 256, (*shapes[i % len(shapes)], 3), np.uint8)
            yield (
                str(i),
                {"image": image, "label": i % label.num_classes}
                | {name: f"{i}.jpg" for name in builder.info.features if name not in ("image", "label")},
            )

    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    generators = lambda self, manager: {split: examples(count) for split, count in splits.items()}  # noqa: E731
    with mock.patch.object(type(builder), "_split_generators", generators):
        builder.download_and_prepare(download_config=config)


FOLDERS = {
    "svhn": ("svhn_cropped", {"train": 40, "test": 3}, [(32, 32)], 0, 10),
    "imagenet": ("imagenet2012", {"train": 120, "validation": 3}, [(300, 400), (97, 64), (224, 224)], 72, 1000),
    "places365": ("places365_small", {"train": 120, "validation": 3}, [(256, 256)], 72, 365),
}


# Small ones, for the sake of time; by night the recipe's own, at its own 224 pixels.
MODELS = {"svhn": ("--model", "lenet"), "places365": ("--model", "lenet"), "imagenet": ("--model", "narrow_resnet")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "own"),
    [*((name, False) for name in FOLDERS), pytest.param("imagenet", True, marks=pytest.mark.nightly)],
)
def test_it_trains_certifies_and_exports_from_a_folder_in_their_format(name, own, tmp_path, rng):
    """Two steps, one certificate, one export, from images of varying shapes, by the program."""
    tfds_name, splits, shapes, size, classes = FOLDERS[name]
    size, model = (224, ()) if own else (size, MODELS[name])
    prepare(tfds.builder(tfds_name, data_dir=tmp_path / "data"), splits, shapes, rng)
    program = Path(__file__).parent.parent / "training" / "run.py"
    done = call_program(
        program,
        *["--recipe", name, "--data-dir", tmp_path / "data", "--run-dir", tmp_path / "run", "--reference", "none"],
        *["--train-images", 8, "--batch-size", 4, "--epochs", 1, "--decay-epochs", "--switch-epoch", 0],
        *["--image-size", size, "--certify-images", 1, "--certify-n", 20, "--certify-n0", 4, "--certify-alpha", 0.1],
        *["--certify-batch", 8, "--precision", "float32", *model],
    )
    assert done.returncode == 0, done.stderr
    history = RunFolder(tmp_path / "run").history()
    assert len(history) == 1 and np.isfinite(float(history[0]["loss"]))
    assert len((tmp_path / "run" / "certificates.tsv").read_text().splitlines()) == 2
    served = tf.saved_model.load(str(tmp_path / "run" / "export" / name / "1"))
    side = size or 32
    logits = served.signatures["logits"](images=tf.zeros((1, side, side, 3)))["logits"]
    assert logits.shape == (1, classes)


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
