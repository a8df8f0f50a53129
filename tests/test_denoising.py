"""Denoised smoothing: denoisers of any size, their losses against NumPy, and `covkeras denoise` from end to end."""

import json

import keras
import numpy as np
import pytest
from conftest import small_classifier

from covkeras import CertifiedTrainer, MomentNetwork, SmoothedClassifier, models, objectives, propagate
from covkeras.commands.main import main
from covkeras.experiments import building
from covkeras.experiments.recipe import Recipe
from covkeras.experiments.runs import RunFolder
from covkeras.moments import Context, Gaussian
from covkeras.moments.graph import called_with
from covkeras.reports import denoised

TINY = ["--epochs", "2", "--train-images", "256", "--certify-images", "4", "--certify-n", "100"]


def frozen(**kwargs):
    classifier = small_classifier(classes=10, **kwargs)
    classifier.trainable = False
    return classifier


def small_denoiser(conditioned=False, stir=True):
    """Not the identity, which it is at the start."""
    made = models.unet((8, 8, 1), widths=(4, 8), conditioned=conditioned)
    if stir:
        rng = np.random.default_rng(0)
        made.set_weights([w + 0.05 * rng.normal(size=w.shape) for w in made.get_weights()])
    return made


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (33, 30, 2), (5, 7, 4)])
@pytest.mark.parametrize("build", [models.unet, lambda *a, **k: models.dncnn(*a, depth=3, width=4, **k)])
def test_a_denoiser_takes_any_size_and_starts_as_the_identity(build, shape, conditioned, rng):
    denoiser = build(shape, conditioned=conditioned)
    images = rng.random((2, *shape)).astype("float32")
    given = models.denoisers.with_level(images, np.full((2, 1, 1, 1), 0.3, "float32")) if conditioned else images
    np.testing.assert_array_equal(denoiser(given), images)


def test_dncnn_is_the_published_one():
    """17 convolutions of 64 channels; its 556,096 weights for grey images are the publication's 555,200 and what batch
    normalisation adds."""
    made = models.dncnn((32, 32, 1))
    convolutions = [layer for layer in made.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 17 and {layer.filters for layer in convolutions[:-1]} == {64}
    counted = 9 * 64 + 64 + 15 * 9 * 64 * 64 + 15 * 4 * 64 + 9 * 64 + 1
    assert made.count_params() == counted


@pytest.mark.parametrize("method", ["denoising", "stability"])
@pytest.mark.parametrize("low", [0.0, 0.1])
def test_the_losses_are_their_formulas(method, low, digits):
    """Against NumPy, from the parts' own answers; the labels have no say."""
    classifier, denoiser = frozen(), small_denoiser(low > 0)
    model = models.joined(denoiser, classifier, 0.3 if low else None)
    objective = objectives.METHODS[method](sigma=0.3, sigma_low=low)
    objective.attach(model)
    images = digits.floats(slice(6))
    noise = np.random.default_rng(1).standard_normal((1, *images.shape)).astype("float32")
    terms = objective(images, None, noise, Context(training=True))
    level = np.full((6, 1, 1, 1), 0.3) if not low else (0.1 + 0.2 * (np.arange(6) + 0.5) / 6).reshape(-1, 1, 1, 1)
    noisy = (images + level * noise[0]).astype("float32")
    given = np.concatenate([noisy, np.broadcast_to(level, noisy.shape)], -1).astype("float32") if low else noisy
    after = np.asarray(denoiser(given), np.float64)
    logits = np.asarray(classifier(after.astype("float32")), np.float64)
    if method == "denoising":
        expected = np.square(after - images).mean((1, 2, 3))
    else:
        decided = np.asarray(classifier(images)).argmax(-1)
        expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), decided]
    np.testing.assert_allclose(terms.classification, expected, rtol=2e-5)
    np.testing.assert_allclose(terms.logits, logits, rtol=2e-5, atol=1e-6)


def test_of_surrogates_the_mean_counts_and_the_classifier_gives_no_gradient(digits, tmp_path):
    paths = []
    for i in range(2):
        keras.utils.set_random_seed(i)
        paths.append(tmp_path / f"surrogate{i}.keras")
        small_classifier(classes=10).save(paths[-1])
    denoiser, images = small_denoiser(), digits.floats(slice(6))
    noise = np.random.default_rng(1).standard_normal((1, *images.shape)).astype("float32")
    means = []
    for names in (",".join(map(str, paths)), str(paths[0]), str(paths[1])):
        objective = objectives.Stability(sigma=0.3, surrogates=names)
        objective.attach(models.joined(denoiser, frozen()))
        means.append(np.asarray(objective(images, None, noise, Context()).classification))
    np.testing.assert_allclose(means[0], (means[1] + means[2]) / 2, rtol=1e-5)

    @keras.saving.register_keras_serializable("test")
    class Opaque(keras.layers.Layer):
        """Answers like a service: nothing can be differentiated."""

        def call(self, x):
            import tensorflow as tf

            answer = tf.numpy_function(lambda a: a.reshape(len(a), -1)[:, :10], [x], tf.float32)
            return tf.ensure_shape(answer, (x.shape[0], 10))

    image = keras.Input((8, 8, 1))
    opaque = keras.Model(image, Opaque()(image))
    trainer = CertifiedTrainer(models.joined(denoiser, opaque), objectives.Stability(0.3, surrogates=str(paths[0])))
    trainer.compile("adam")
    before = denoiser.get_weights()
    assert np.isfinite(trainer.train_on_batch(images, return_dict=True)["loss"])
    assert any(not np.array_equal(a, b) for a, b in zip(before, denoiser.get_weights(), strict=True))


def test_it_trains_without_labels_and_leaves_the_classifier_alone(digits):
    """The same weights as with labels, whatever they are."""
    images, results = digits.floats(slice(64)), []
    for labels in (None, digits.labels[:64], (digits.labels[:64] + 1) % 10):
        keras.utils.set_random_seed(0)
        classifier, denoiser = frozen(), small_denoiser()
        before = classifier.get_weights()
        trainer = CertifiedTrainer(models.joined(denoiser, classifier), objectives.Stability(0.3))
        trainer.compile("adam", metrics=["sparse_top_k_categorical_accuracy"])
        history = trainer.fit(images, labels, batch_size=32, epochs=1, verbose=0, shuffle=False).history
        assert ("accuracy" in history) == (labels is not None) == ("sparse_top_k_categorical_accuracy" in history)
        for a, b in zip(before, classifier.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        results.append(denoiser.get_weights())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    labelled = CertifiedTrainer(small_classifier(classes=10), objectives.GaussianAugmentation(0.3))
    labelled.compile("sgd")
    with pytest.raises(ValueError, match="got no labels"):
        labelled.fit(images, verbose=0)


def test_of_images_of_noise_the_best_denoiser_is_found():
    """Images whose pixels are independent N(1/2, s^2): no denoiser has a smaller mean square than the linear one's
    s^2 sigma^2 / (s^2 + sigma^2), and training comes within 15 % of it."""
    rng, s, sigma = np.random.default_rng(0), 0.1, 0.2
    images = np.clip(0.5 + s * rng.standard_normal((1024, 8, 8, 1)), 0, 1).astype("float32")
    denoiser = models.unet((8, 8, 1), widths=(8, 8))
    trainer = CertifiedTrainer(models.joined(denoiser, frozen()), objectives.Denoising(sigma))
    trainer.compile(keras.optimizers.Adam(0.005))
    trainer.fit(images, epochs=12, batch_size=64, verbose=0)
    error = trainer.evaluate(images, verbose=0, return_dict=True)["loss"]
    best = s**2 * sigma**2 / (s**2 + sigma**2)
    # Of 65,536 squared errors the mean is known to half a percent.
    assert 0.98 * best < error < 1.15 * best


@pytest.mark.parametrize("sigma", [None, 0.25])
def test_a_joined_model_is_a_classifier_like_any_other(sigma, digits, tmp_path):
    model = models.joined(small_denoiser(sigma is not None), frozen(), sigma)
    model.save(tmp_path / "joined.keras")
    read = keras.models.load_model(tmp_path / "joined.keras", compile=False)
    images = digits.floats(slice(3))
    np.testing.assert_array_equal(read(images), model(images))
    denoiser, classifier = models.parts_of(read)
    assert len(classifier.outputs[0].shape) == 2 and denoiser.outputs[0].shape == read.inputs[0].shape
    np.testing.assert_allclose(classifier(denoised.denoised_by(read, images)), read(images), rtol=1e-5, atol=1e-6)
    here, there = (SmoothedClassifier(m, 0.25).certify(images, 32, 200, 0.01) for m in (model, read))
    np.testing.assert_array_equal(here.radius, there.radius)
    mean, cov = MomentNetwork(read, 0.25)(images)
    assert np.isfinite(mean).all() and np.isfinite(cov).all()


def test_slices_keep_their_part_of_the_pair(rng):
    """Of channels the covariance's too; of places it stays: against sampling, 10^5 draws, false alarm below 1e-6."""
    image = keras.Input((4, 4, 3))
    node, one = (t._keras_history.operation._inbound_nodes[0] for t in (image[:, 1:3, ..., 1:], image[..., 0]))
    root = rng.normal(size=(3, 3)).astype("float32")
    mean = rng.random((1, 4, 4, 3)).astype("float32")
    call, *_ = called_with(node)
    got = propagate(call, Gaussian(mean, root @ root.T))
    np.testing.assert_array_equal(got.mean, mean[:, 1:3, :, 1:])
    drawn = rng.standard_normal((100_000, 3)) @ root.T
    error = np.cov(drawn[:, 1:].T) - np.asarray(got.cov)
    # A covariance's sd is at most sqrt(2) var / sqrt(n): six of them.
    assert np.abs(error).max() < 6 * np.sqrt(2 / 100_000) * np.diag(root @ root.T).max()
    with pytest.raises(NotImplementedError, match="takes one channel alone"):
        propagate(called_with(one)[0], Gaussian(mean, root @ root.T))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: models.joined(small_denoiser(), models.lenet((16, 16, 1))),
            r"must take the denoiser's images, \(8, 8",
        ),
        (lambda: models.joined(models.lenet((8, 8, 1)), frozen()), "denoiser must map images"),
        (lambda: models.joined(small_denoiser(), frozen(), 0.3), "sigma must be given for a conditioned denoiser"),
        (lambda: models.joined(small_denoiser(True), frozen()), "sigma must be given for a conditioned denoiser"),
        (lambda: models.parts_of(frozen()), "has no denoiser in front"),
        (lambda: objectives.Stability(0.3, sigma_low=0.4), "sigma_low must be below sigma"),
        (lambda: objectives.Stability(0.3).attach(frozen()), "has no denoiser in front"),
        (
            lambda: objectives.Denoising(0.3).attach(models.joined(small_denoiser(), small_classifier(classes=10))),
            "behind the denoiser must be frozen",
        ),
        (
            lambda: objectives.Denoising(0.3, sigma_low=0.1).attach(models.joined(small_denoiser(), frozen())),
            "told the",
        ),
        (
            lambda: building.check_parts(Recipe(method="stability", model="x.keras")),
            "denoiser must be one of dncnn, unet",
        ),
        (
            lambda: building.check_parts(Recipe(method="stability", denoiser="unet")),
            "model must be a trained classifier",
        ),
        (lambda: Recipe(model="vgg"), "model must be one of lenet, .*, or a .keras file, got 'vgg'"),
        (lambda: models.dncnn((8, 8, 1), depth=2), "depth"),
        (lambda: models.unet((8, 8)), "input_shape must be"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier of digits trained without noise, as users bring it: 0 to 255, a softmax at its end."""
    from covkeras import datasets

    data = datasets.load("digits", "train")
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
    )
    model.compile(keras.optimizers.Adam(0.001), "sparse_categorical_crossentropy")
    model.fit(data.floats() * 255, data.labels, epochs=5, verbose=0)
    file = tmp_path_factory.mktemp("trained") / "mine.keras"
    model.save(file)
    return file


def test_the_command_from_end_to_end(trained, tmp_path, capsys):
    flags = ["denoise", str(trained), "--data", "digits", *TINY, "--run-dir", str(tmp_path / "run")]
    assert main(flags) == 2 and "ends in probabilities" in capsys.readouterr().err
    flags += ["--input-range", "0", "255", "--ends-in", "softmax", "--sigma-low", "0.1"]
    assert main(flags) == 0, capsys.readouterr().err
    run = RunFolder(tmp_path / "run")
    rows = json.loads((run.report / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["without a denoiser", "stability"]
    page = (run.report / "index.html").read_text()
    assert "What the classifier is given" in page and (run.report / "denoised.png").stat().st_size > 5_000
    assert (run.export / "denoised" / "1" / "saved_model.pb").exists()
    # The classifier in it is the one that was brought.
    given, (_, kept) = keras.models.load_model(trained), models.parts_of(keras.models.load_model(run.classifier_file))
    images = np.random.default_rng(0).random((4, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(np.exp(kept(images)), given(images * 255), rtol=1e-4, atol=1e-7)
    # Told the level it serves another, with certificates of its own.
    version = tmp_path / "exports" / "1"
    assert main(["export", "--run", str(run.path), "--out", str(version), "--sigmas", "0.12"]) == 0
    assert json.loads((version / "assets.extra" / "metadata.json").read_text())["sigmas"] == [0.25, 0.12]
    # The same command has nothing left to do; another classifier is another run.
    before = run.classifier_file.stat().st_mtime_ns
    assert main(flags) == 0 and run.classifier_file.stat().st_mtime_ns == before
    other = keras.models.load_model(trained)
    other.set_weights([w + 0.1 for w in other.get_weights()])
    other.save(tmp_path / "other.keras")
    assert main([*flags[:1], str(tmp_path / "other.keras"), *flags[2:]]) == 2
    assert "was begun with another classifier" in capsys.readouterr().err


def test_what_can_not_be_denoised_is_refused_with_the_remedy(tmp_path, capsys):
    """A SavedModel, a classifier of other images, no denoiser, a cluster: before anything is written."""
    small_classifier(classes=10).save(tmp_path / "mine.keras")
    small_classifier(classes=10).export(tmp_path / "exported", verbose=False)
    run = ["--run-dir", str(tmp_path / "run")]
    for flags, message in (
        ([str(tmp_path / "exported")], "is no Keras model, and can't be saved with a denoiser in front"),
        ([str(tmp_path / "mine.keras"), "--denoiser", "none"], "denoiser must be dncnn or unet"),
        ([str(tmp_path / "mine.keras"), "--sigma-low", "0.3"], "sigma_low must be below sigma"),
        ([str(tmp_path / "mine.keras"), "--surrogates", "nowhere.keras"], "but nowhere.keras is no file"),
    ):
        assert main(["denoise", *flags, "--data", "digits", *TINY, *run]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_classifier_is_trained_on_from_its_file(tmp_path, digits):
    """`train --model mine.keras`: from its weights, by any method, with or without a denoiser."""
    classifier = small_classifier(classes=10)
    classifier.save(tmp_path / "mine.keras")
    recipe = Recipe(model=str(tmp_path / "mine.keras"), precision="float32")
    built = building.build_classifier(recipe, digits)
    for a, b in zip(classifier.get_weights(), built.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    both = building.build_classifier(recipe.replace(denoiser="unet"), digits)
    assert both.get_layer("unet").trainable_variables and models.parts_of(both)[1].trainable_variables
    alone = building.build_classifier(recipe.replace(denoiser="unet").with_method("stability"), digits)
    assert not models.parts_of(alone)[1].trainable_variables
    with pytest.raises(ValueError, match="must have an output for each of digits's 10 classes, got 4"):
        small_classifier(classes=4).save(tmp_path / "four.keras")
        building.build_classifier(recipe.replace(model=str(tmp_path / "four.keras")), digits)
    with pytest.raises(FileNotFoundError, match=r"Name the classifier's .keras file"):
        building.check_parts(recipe.replace(model="nowhere.keras"))
    run = [
        "train",
        "--model",
        str(tmp_path / "mine.keras"),
        *TINY,
        "--decay-epochs",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert main([*run, "--method", "gaussian_augmentation", "--optimizer", "adam"]) == 0
