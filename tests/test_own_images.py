"""Data sets of one's own: an .npz of arrays, and a folder of image files, a sub-folder a class."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from covkeras import datasets
from covkeras.commands import certify as certify_command
from covkeras.commands import train as train_command
from covkeras.datasets import own
from covkeras.experiments import recipes


def arrays(rng, count=40, shape=(8, 8)):
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 4


NAMES = {
    "keras": "x_{0}/y_{0}",
    "benchmarks": "{0}_x/{0}_y",
    "medmnist": "{0}_images/{0}_labels",
    "sklearn": "X_{0}/y_{0}",
}


@pytest.mark.parametrize("names", NAMES)
def test_arrays_under_their_usual_names(names, tmp_path, rng):
    """Grey images get a channel, labels in a column are labels; a tenth of the training images validates."""
    (images, labels), (tested, known) = arrays(rng), arrays(rng, 12)
    kept = {}
    for part, (x, y) in {"train": (images, labels), "test": (tested, known)}.items():
        kept |= dict(zip(NAMES[names].format(part).split("/"), (x, y[:, None]), strict=True))
    np.savez(tmp_path / "mine.npz", **kept)
    load = lambda split: datasets.load(str(tmp_path / "mine.npz"), split)  # noqa: E731
    order = np.random.RandomState(0).permutation(40)
    assert np.array_equal(load("train").images, images[order[4:], ..., None])
    assert np.array_equal(load("train").labels, labels[order[4:]])
    assert np.array_equal(load("validation").images[..., 0], images[order[:4]])
    assert np.array_equal(load("validation").labels, labels[order[:4]])
    assert np.array_equal(load("train+validation").images[..., 0], images[order])
    data = load("test")
    assert np.array_equal(data.images[..., 0], tested) and np.array_equal(data.labels, known)
    assert data.class_names == ("0", "1", "2", "3") and data.digest != load("train").digest


def test_validation_images_of_its_own_and_class_names(tmp_path, rng):
    (images, labels), (held, others) = arrays(rng), arrays(rng, 10)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_val=held, y_val=others, class_names=list("abcd"))
    load = lambda split: datasets.load(str(tmp_path / "a.npz"), split)  # noqa: E731
    for x, y in (("X_val", "Y_val"), ("x_valid", "y_valid"), ("validation_images", "validation_labels")):
        np.savez(tmp_path / "b.npz", **{"X_train": images, "Y_train": labels, x: held, y: others})
        assert np.array_equal(datasets.load(str(tmp_path / "b.npz"), "validation").images[..., 0], held)
    assert len(load("train")) == 40 and np.array_equal(load("validation").images[..., 0], held)
    assert len(load("train+validation")) == 50 and load("train").class_names == tuple("abcd")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "whole floats"])
def test_the_same_pixels_in_other_numbers(dtype, tmp_path, rng):
    images, labels = arrays(rng)
    images[0, 0, :2] = 0, 255
    floats = dtype in ("float32", "float64", "float16")
    stored = (images / 255).astype(dtype) if floats else images.astype("float32" if dtype == "whole floats" else dtype)
    np.savez(tmp_path / "a.npz", images=stored, labels=labels)
    assert np.array_equal(datasets.load(str(tmp_path / "a.npz"), "test").images[..., 0], images)


def wrong(rng, kind):
    images, labels = arrays(rng)
    one_hot = np.eye(4)[labels]
    return {
        "standardised": ({"images": images / 127.5 - 1, "labels": labels}, ValueError, "must be 8-bit images"),
        "resized": ({"images": rng.random((4, 8, 8)), "labels": labels[:4]}, ValueError, "must be 8-bit images"),
        "channels first": ({"images": images[:, None], "labels": labels}, ValueError, "np.moveaxis"),
        "black and white": ({"images": images // 128, "labels": labels}, ValueError, "times 255"),
        "booleans": ({"images": images > 9, "labels": labels}, ValueError, "must be numbers"),
        "objects": ({"images": images, "labels": np.array([{}] * 40)}, OSError, "can't be read"),
        "one-hot": ({"images": images, "labels": one_hot}, ValueError, r"labels.argmax\(-1\)"),
        "too few labels": ({"images": images, "labels": labels[:-1]}, ValueError, "one for each of 40 images"),
        "broken labels": ({"images": images, "labels": labels + 0.5}, ValueError, "Number the classes from 0"),
        "negative": ({"images": images, "labels": labels - 1}, ValueError, "Number the classes from 0"),
        "no test images": ({"x_train": images, "y_train": labels}, ValueError, "has no test images, it has train"),
        "other names": ({"a": images, "b": labels}, ValueError, "it has the arrays a, b. Name the arrays x_train"),
        "too few names": (
            {"images": images, "labels": labels, "class_names": ["a", "b"]},
            ValueError,
            "got 2 for labels to 3",
        ),
        "flattened": (
            {"images": images.reshape(40, 64), "labels": labels},
            ValueError,
            "Flattened images: images.reshape",
        ),
    }[kind]


KINDS = ["standardised", "resized", "channels first", "black and white", "booleans", "objects", "one-hot"]
KINDS += ["too few labels", "broken labels", "negative", "no test images", "other names", "too few names", "flattened"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_data_set_is_refused_with_the_remedy(kind, tmp_path, rng):
    kept, error, message = wrong(rng, kind)
    np.savez(tmp_path / "a.npz", **kept)
    with pytest.raises(error, match=message):
        datasets.load(str(tmp_path / "a.npz"), "test")


def test_damaged_and_missing_files(tmp_path, rng):
    images, labels = arrays(rng)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:900])
    np.save(tmp_path / "one", images)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("cut.npz", "one.npz"):
        with pytest.raises(OSError, match=r"is no \.npz file, or a damaged one"):
            datasets.load(str(tmp_path / name), "test")
    for name in ("none.npz", "./none", "~/none-such"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            datasets.load(name, "test")


def write(folder: Path, image, kind="png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    Image.fromarray(image).save(folder / f"{number:03d}.{kind}", **({"quality": 95} if kind == "jpg" else {}))


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 3)])
def test_a_folder_of_files_has_pillows_pixels_in_kerass_order(shape, tmp_path, rng):
    for part, count in (("train", 24), ("test", 6)):
        for i in range(count):
            write(tmp_path / part / "cdb"[i % 3], rng.integers(0, 256, shape, dtype=np.uint8), ("png", "jpg")[i % 2])
    (tmp_path / "train" / "a").mkdir()
    data = datasets.load(str(tmp_path), "test")
    assert data.class_names == tuple("abcd")
    with pytest.warns(UserWarning, match=r"has no training images of 1 of its 4 classes \(a\), which can't be learned"):
        assert len(datasets.load(str(tmp_path), "train")) == 22
    below = {
        hashlib.sha256(f.relative_to(tmp_path / "test").as_posix().encode()).hexdigest(): f
        for f in (tmp_path / "test").rglob("*.*")
    }
    files = [below[key] for key in sorted(below)]
    assert [data.class_names[label] for label in data.labels] == [f.parent.name for f in files]
    expected = np.stack([np.asarray(Image.open(f)) for f in files]).reshape(6, 9, 8, -1)
    assert np.array_equal(data.images, expected)
    batches = keras.utils.image_dataset_from_directory(
        tmp_path / "train", image_size=(9, 8), shuffle=False, verbose=0, color_mode="rgb", batch_size=24
    )
    assert tuple(batches.class_names) == data.class_names
    with pytest.warns(UserWarning, match="which can't be learned"):
        ours = datasets.load(str(tmp_path), "train+validation")
    found = {image.tobytes(): int(label) for image, label in zip(ours.images, ours.labels, strict=True)}
    for image, label in zip(*next(iter(batches)), strict=True):
        pixels = np.asarray(image).astype(np.uint8)
        # Keras' JPEG transform is another, off by a few levels.
        off = {f: np.abs(np.frombuffer(f, np.uint8).reshape(9, 8, -1) - pixels.astype(int)).sum() for f in found}
        nearest = min(off, key=off.get)
        assert found[nearest] == label


def test_folders_that_are_refused(tmp_path, rng):
    pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    write(tmp_path / "flat" / "a", pixels)
    assert len(datasets.load(str(tmp_path / "flat"), "test")) == 1
    with pytest.raises(ValueError, match=r"has no train images, it has test\. Put the files into train/CLASS/"):
        datasets.load(str(tmp_path / "flat"), "train")
    (tmp_path / "flat" / "a" / "x.bmp").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.bmp is neither PNG nor JPEG: save it as PNG"):
        datasets.load(str(tmp_path / "flat"), "test")
    (tmp_path / "flat" / "a" / "x.bmp").rename(tmp_path / "flat" / "a" / "x.png")
    with pytest.raises(ValueError, match=r"x.png: image must be a PNG or JPEG file: save it as one\.$"):
        datasets.load(str(tmp_path / "flat"), "test")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    write(tmp_path / "empty" / "test" / "a", pixels)
    with pytest.raises(ValueError, match="no folder of PNG or JPEG files"):
        datasets.load(str(tmp_path / "empty"), "train")
    write(tmp_path / "sizes" / "a", pixels)
    write(tmp_path / "sizes" / "a", np.zeros((9, 12), np.uint8))
    with pytest.raises(ValueError, match="vary in size: give --image-size"):
        datasets.load(str(tmp_path / "sizes"), "test")
    assert datasets.load(str(tmp_path / "sizes"), "test", image_size=6).images.shape == (2, 6, 6, 1)


def _linked(file):
    file.symlink_to("nowhere.png")


def _misnamed(file):
    (file.parent / os.fsdecode(b"\xff.png")).write_bytes(b"")


@pytest.mark.parametrize(
    "make, message",
    [
        (_linked, r"x\.png is a link to nothing, or no file: put the image there"),
        (os.mkfifo, r"x\.png is a link to nothing, or no file"),  # it was waited for, without end
        (_misnamed, r"udcff\.png' must have a name in UTF-8: rename it"),
    ],
)
def test_what_has_an_image_s_name_and_is_none(make, message, tmp_path, rng):
    pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    write(tmp_path / "a", pixels)
    write(tmp_path / "a" / "folder.png", pixels)
    assert len(datasets.load(str(tmp_path), "test")) == 2
    make(tmp_path / "a" / "x.png")
    assert own.signature(str(tmp_path))
    with pytest.raises(ValueError, match=message):
        datasets.load(str(tmp_path), "test")


def test_what_programs_leave_behind_is_no_class_and_no_image(tmp_path, rng):
    """A notebook's .ipynb_checkpoints was a class, and all after it were numbered one too high."""
    for part in ("Train", "Testing"):
        for label in "ab":
            write(tmp_path / part / label, rng.integers(0, 256, (8, 8), dtype=np.uint8))
    for left in (".ipynb_checkpoints", "__MACOSX", "a/.ipynb_checkpoints"):
        write(tmp_path / "Train" / left, rng.integers(0, 256, (8, 8), dtype=np.uint8))
    for file in (".DS_Store", "a/.DS_Store", "a/._0.png", "b/Thumbs.db"):
        (tmp_path / "Train" / file).write_bytes(b"no image")
    for split in ("train+validation", "test"):
        data = datasets.load(str(tmp_path), split)
        assert data.class_names == ("a", "b") and len(data) == 2


@pytest.mark.parametrize("kind", ["webp", "bmp", "gif"])
def test_a_folder_of_other_images_is_one_and_is_told_what_to_do(kind, tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    write(Path("photos/train/a"), rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), kind)
    with pytest.raises(ValueError, match=rf"000\.{kind} is neither PNG nor JPEG: save it as PNG"):
        datasets.load("photos", "train")


def test_a_class_that_is_tested_alone_is_said(tmp_path, rng):
    for folder in ("train/cat", "train/dog", "test/Cat", "test/dog"):
        write(tmp_path / folder, rng.integers(0, 256, (8, 8), dtype=np.uint8))
    with pytest.warns(UserWarning, match=r"no training images of 1 of its 3 classes \(Cat\).* is misspelt"):
        datasets.load(str(tmp_path), "train")
    images, labels = arrays(rng)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels + 1)
    with pytest.warns(UserWarning, match=r"no training images of 1 of its 5 classes \(0\)"):
        datasets.load(str(tmp_path / "a.npz"), "train")


def test_a_damaged_file_is_named_in_one_line(tmp_path, rng):
    write(tmp_path / "a", rng.integers(0, 256, (8, 8), dtype=np.uint8))
    (file,) = (tmp_path / "a").iterdir()
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"^\S+000\.png: image is damaged: save it anew, or take it out"):
        datasets.load(str(tmp_path), "test")


def test_grey_files_beside_coloured_ones_and_for_a_classifier_of_colour(tmp_path, rng):
    grey = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    write(tmp_path / "a", grey)
    data = datasets.load(str(tmp_path), "test")
    assert data.image_shape == (8, 8, 1) and data.with_channels(1) is data
    assert np.array_equal(data.with_channels(3).images[0], np.stack([grey] * 3, -1))
    write(tmp_path / "b", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    mixed = datasets.load(str(tmp_path), "test")
    assert np.array_equal(mixed.images[list(mixed.labels).index(0)], np.stack([grey] * 3, -1))


def test_arrays_in_the_order_of_their_classes_are_said(tmp_path, rng):
    images, labels = arrays(rng)
    np.savez(tmp_path / "a.npz", images=images, labels=np.sort(labels))
    with pytest.warns(UserWarning, match="^the test images of .*a.npz are in the order of their classes"):
        datasets.load(str(tmp_path / "a.npz"), "test")
    shown = {"x_train": images, "y_train": np.sort(labels), "x_val": images, "y_val": np.sort(labels)}
    np.savez(tmp_path / "b.npz", **shown)
    with pytest.warns(UserWarning, match="^the validation images of .*b.npz are in the order of their classes"):
        datasets.load(str(tmp_path / "b.npz"), "validation")


@pytest.mark.parametrize("order", ["descending", "in blocks", "sorted twice", "in runs", "mixed", "alternating"])
def test_runs_of_a_class_are_said_and_chance_is_not(order, tmp_path, rng):
    labels = {
        "descending": np.repeat([3, 2, 1, 0], 6),
        "in blocks": np.repeat([2, 0, 3, 1], 6),
        "sorted twice": np.tile(np.repeat(np.arange(4), 25), 2),
        "in runs": np.repeat(rng.integers(0, 4, 20), 10),
        "mixed": rng.integers(0, 4, 200),
        "alternating": np.tile(np.arange(4), 6),
    }[order]
    np.savez(tmp_path / "a.npz", images=rng.integers(0, 256, (len(labels), 4, 4)).astype(np.uint8), labels=labels)
    said = order not in ("mixed", "alternating")
    with pytest.warns(UserWarning, match="in the order of their classes") if said else contextlib.nullcontext():
        datasets.load(str(tmp_path / "a.npz"), "test")


def test_the_first_training_images_are_of_all_classes_however_they_are_stored(tmp_path, rng):
    """--train-images takes the first, and so do the estimates' gates: of sorted arrays they were all of one class."""
    images = rng.integers(0, 256, (400, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.repeat(np.arange(4), 100))
    data = datasets.load(str(tmp_path / "a.npz"), "train").limited(64)
    assert np.bincount(data.labels).min() >= 8
    assert all(
        (images[100 * label : 100 * label + 100] == image[..., 0]).all((1, 2)).any()
        for image, label in zip(data.images, data.labels, strict=True)
    )


def test_a_name_that_is_known_is_never_a_folder(tmp_path, monkeypatch, rng):
    for name in ("digits", "mnist"):
        write(tmp_path / name / "test" / "a", rng.integers(0, 256, (8, 8), dtype=np.uint8))
    (tmp_path / "fashion_mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "fashion_mnist" / "3.0.1" / "x.tfrecord").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert len(datasets.load("digits", "test")) == 360
    assert recipes.find("digits").replace(data="mnist").data == "mnist"
    assert not any(datasets.is_own(name) for name in ("digits", "mnist", "fashion_mnist", "none"))
    assert datasets.is_own("./digits") and recipes.find("digits").replace(data="./digits").data == str(
        tmp_path / "digits"
    )


def test_own_images_are_trained_on_and_certified(tmp_path, rng, monkeypatch, capsys):
    """The main job on an .npz; a file is resumed with the images it was begun with, and no others."""
    monkeypatch.chdir(tmp_path)
    images, labels = arrays(rng, 80)
    kept = {"x_train": images, "y_train": labels, "x_test": 255 - images, "y_test": labels}
    np.savez("mine.npz", **kept)
    training = ["--smoke", "--data", "mine.npz", "--method", "gaussian_augmentation", "--batch-size", "16"]
    assert train_command.main(training) == 0
    # The same command on other images under the same name would read what was trained on the first.
    np.savez("mine.npz", **kept | {"x_train": images[::-1]})
    assert train_command.main(training) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        error.startswith("error: data ") and "mine.npz has changed since runs/digits-smoke was begun with it" in error
    )
    np.savez("mine.npz", **kept)
    classifier = next(Path("runs").rglob("classifier.keras"))
    options = ["--data", "mine.npz", "--sigma", "0.25", "--n0", "10", "--n", "50", "--alpha", "0.05", "--max", "2"]
    assert certify_command.main([str(classifier), *options, "--out", "out.tsv"]) == 0
    assert len(json.loads(next(Path().glob("out*.json")).read_text())["data_digest"]) == 16
    np.savez("mine.npz", **kept | {"x_test": 255 - images[::-1]})
    capsys.readouterr()
    assert certify_command.main([str(classifier), *options, "--out", "out.tsv"]) != 0
    assert "data_digest" in capsys.readouterr().err
    np.savez("mine.npz", images=images[:3], labels=labels[:3])
    assert certify_command.main([str(classifier), *options, "--out", "new.tsv"]) != 0
    assert "names them all, as class_names" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["arrays", "files"])
@pytest.mark.parametrize("repeated", [0, 1, 7])
def test_test_images_that_are_training_images_too_are_said(kind, repeated, tmp_path, rng):
    images = rng.integers(0, 256, (60, 6, 6), np.uint8)
    train, test = images[:40], np.concatenate([images[40 - repeated : 40], images[40:]])
    if kind == "arrays":
        path = tmp_path / "mine.npz"
        np.savez(path, x_train=train, y_train=np.arange(40) % 2, x_test=test, y_test=np.arange(len(test)) % 2)
    else:
        path = tmp_path / "mine"
        for part, some in (("train", train), ("test", test)):
            for i, image in enumerate(some):
                place = path / part / "ab"[i % 2] / f"{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place)
    match = f"^{repeated} of the {len(test)} test images of .*mine.* are training images, too"
    with pytest.warns(UserWarning, match=match) if repeated else contextlib.nullcontext():
        datasets.load(str(path), "test")
    # A training asks nothing of them.
    datasets.load(str(path), "train")


def test_test_images_are_read_whatever_the_training_images_are(tmp_path, rng):
    place = tmp_path / "mine" / "test" / "a" / "0.png"
    place.parent.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8)).save(place)
    (tmp_path / "mine" / "train" / "a").mkdir(parents=True)
    (tmp_path / "mine" / "train" / "a" / "0.bmp").write_bytes(b"BM")
    arrays = {"x_train": np.array([{}], object), "y_train": np.zeros(1, int), "y_test": np.zeros(3, int)}
    np.savez(tmp_path / "mine.npz", **arrays, x_test=rng.integers(0, 256, (3, 6, 6), np.uint8))
    for name in ("mine", "mine.npz"):
        assert datasets.load(str(tmp_path / name), "test").image_shape == (6, 6, 1)
        with pytest.raises((ValueError, OSError)):
            datasets.load(str(tmp_path / name), "train")
