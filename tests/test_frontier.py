"""SmoothAdv, SmoothMix and CRT against their papers' formulas, in NumPy, where the attack's gradient is known."""

import keras
import numpy as np
import pytest

from covkeras import CertifiedTrainer, objectives
from covkeras.commands.main import main
from covkeras.moments import Context

SIGMA, CLASSES = 0.5, 3


def linear(rng):
    """A linear classifier of 4 x 4 images, and its weights."""
    weights = 3.0 * rng.normal(size=(16, CLASSES)).astype("float32")
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    model.set_weights([weights, np.zeros(CLASSES, "float32")])
    return model, weights.astype(np.float64)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def probabilities(x, noise, weights):
    """F of each copy: (k, batch, classes); x (batch, 16), noise (k, batch, 16)."""
    return softmax((x + SIGMA * noise) @ weights)


def gradient(x, noise, weights, labels):
    """Of -log mean_i F(x + d_i)_y by x: by hand."""
    f = probabilities(x, noise, weights)
    own = np.take_along_axis(f, np.broadcast_to(labels[None, :, None], (*f.shape[:2], 1)), -1)
    inner = weights.T[labels][None] - f @ weights.T
    return -(own * inner).mean(0) / own.mean(0)


def step(x, noise, weights, labels, length):
    g = gradient(x, noise, weights, labels)
    return np.clip(x + length * g / np.linalg.norm(g, axis=1, keepdims=True), 0, 1)


def drawn_back(x, centre, radius):
    size = np.linalg.norm(x - centre, axis=1, keepdims=True)
    return centre + (x - centre) * np.minimum(1.0, radius / np.maximum(size, 1e-30))


@pytest.fixture
def given(rng):
    model, weights = linear(rng)
    images, labels = rng.random((6, 4, 4, 1)).astype("float32"), rng.integers(0, CLASSES, 6)
    noise = rng.standard_normal((5, 6, 4, 4, 1)).astype("float32")
    flat = (images.reshape(6, 16).astype(np.float64), noise.reshape(5, 6, 16).astype(np.float64))
    return model, weights, (images, labels, noise), flat


def nll(f, labels):
    return -np.log(f[:, np.arange(len(labels)), labels])


@pytest.mark.parametrize("epoch", [0, 30])
def test_smooth_adv_is_its_formula(given, epoch):
    model, weights, (images, labels, noise), (x0, d) = given
    objective = objectives.SmoothAdv(SIGMA, eps=0.8, steps=4, num_copies=3).attached(model)
    terms = objective(images, labels, noise[:3], Context(training=True, epoch=epoch))
    radius, x = 0.8 * min(1.0, (epoch + 1) / 10), x0
    for _ in range(4):
        x = np.clip(drawn_back(step(x, d[:3], weights, labels, 2 * radius / 4), x0, radius), 0, 1)
    expected = nll(probabilities(x, d[:3], weights), labels).mean(0)
    np.testing.assert_allclose(terms.classification, expected, rtol=2e-4)
    # It is an attack: the loss is larger than at the images; outside training there is none.
    clean = nll(probabilities(x0, d[:3], weights), labels).mean(0)
    assert (expected > clean).all()
    np.testing.assert_allclose(objective(images, labels, noise[:3], Context()).classification, clean, rtol=1e-4)


@pytest.mark.parametrize("one_step", [True, False])
@pytest.mark.parametrize("epoch", [1, 30])
def test_smooth_mix_is_its_formula(given, one_step, epoch):
    from scipy.stats import norm

    model, weights, (images, labels, noise), (x0, d) = given
    objective = objectives.SmoothMix(SIGMA, length=0.2, steps=3, num_copies=4, one_step=one_step).attached(model)
    assert objective.copies == 5
    terms = objective(images, labels, noise, Context(training=True, epoch=epoch))
    share, x, base, copies = min(1.0, (epoch + 1) / 10), x0, x0, d[:4]
    for i in range(3):
        x = step(x, copies, weights, labels, 0.2)
        if i == 0 and one_step:
            base = np.clip(drawn_back(x, x0, 0.2 * share), 0, 1)
    f = probabilities(base, copies, weights)
    np.testing.assert_allclose(terms.classification, nll(f, labels).mean(0), rtol=2e-4)
    mean, u = f.mean(0), norm.cdf(d[4][:, :1]) / 2
    mixed, target = (1 - u) * base + u * x, (1 - u) * mean + u / CLASSES
    other = probabilities(mixed, copies, weights)
    divergence = (target * (np.log(target) - np.log(other).mean(0))).sum(-1)
    expected = share * (mean.argmax(-1) == labels) * divergence
    np.testing.assert_allclose(terms.robustness, expected, rtol=5e-4, atol=1e-6)
    assert (divergence >= 0).all() and (expected > 0).any()


def test_an_image_without_a_gradient_is_moved_at_random_and_back(rng):
    """A constant classifier: the step goes along the noise, by its length."""
    from covkeras.objectives.ascent import smoothed_loss, stepped

    model, _ = linear(rng)
    model.set_weights([np.zeros((16, CLASSES)), np.zeros(CLASSES)])
    images, noise = np.full((2, 4, 4, 1), 0.5, "float32"), rng.standard_normal((3, 2, 4, 4, 1)).astype("float32")
    loss = smoothed_loss(model, np.zeros(2, int), noise, SIGMA)
    x = np.asarray(stepped(keras.ops.convert_to_tensor(images), loss, 0.1, noise[0]))
    moved = (x - images).reshape(2, 16)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.1, rtol=1e-4)
    along = noise[0].reshape(2, 16)
    np.testing.assert_allclose(moved, 0.1 * along / np.linalg.norm(along, axis=1, keepdims=True), rtol=1e-3, atol=1e-6)


def test_what_the_authors_publish_depends_on_the_data_and_sigma():
    assert objectives.SmoothAdv.published("cifar10", 1.0, 150, 0) == {"eps": 2.0, "num_copies": 2, "warmup": 10}
    published = objectives.SmoothMix.published("cifar10", 0.25, 150, 0)
    assert published == {"length": 0.5, "steps": 4, "num_copies": 2, "one_step": False, "warmup": 10}
    assert objectives.SmoothMix.published("mnist", 0.25, 90, 0)["one_step"]


def test_distillation_is_its_formula(given, rng, tmp_path):
    """The distance of the logits at the same copies; the labels have no say; the teacher stays."""
    model, weights, (images, _, noise), (x0, d) = given
    teacher, other = linear(np.random.default_rng(5))
    teacher.save(tmp_path / "teacher.keras")
    objective = objectives.Distillation(SIGMA, teacher=str(tmp_path / "teacher.keras")).attached(model)
    terms = objective(images, None, noise[:1], Context(training=True))
    expected = np.linalg.norm((x0 + SIGMA * d[0]) @ (weights - other), axis=-1)
    np.testing.assert_allclose(terms.classification, expected, rtol=1e-4)
    trainer = CertifiedTrainer(model, objective)
    trainer.compile(keras.optimizers.Adam(0.1))
    losses = [trainer.train_on_batch(images, return_dict=True)["loss"] for _ in range(200)]
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_array_equal(trainer.objective.known.get_weights()[0], teacher.get_weights()[0])
    for kind in (objectives.Distillation, objectives.CatRs):
        given = kind(SIGMA, teacher=tmp_path / "teacher.keras")
        given.ready()
        assert given.get_config()["teacher"] == str(tmp_path / "teacher.keras")
        with pytest.raises(ValueError, match="teacher must be"):
            kind(SIGMA).ready()
        with pytest.raises(
            ValueError, match=r"teacher must name a \.keras file, got <.*model\.save\('teacher\.keras'\)"
        ):
            kind(SIGMA, teacher=teacher)
    for path, message in (("", "teacher must be a .keras file"), ("nowhere.keras", "teacher must be a .keras file")):
        with pytest.raises(ValueError, match=message):
            objectives.Distillation(SIGMA, teacher=path).attach(model)
    keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]).save(tmp_path / "4.keras")
    with pytest.raises(ValueError, match="must have the classifier's images and classes"):
        objectives.Distillation(SIGMA, teacher=str(tmp_path / "4.keras")).attach(model)


def test_a_teacher_of_other_images_is_refused_before_the_reference_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    linear(np.random.default_rng(5))[0].save("teacher.keras")
    flags = ["--method", "distillation", "--teacher", "teacher.keras", "--run-dir", "run", "--devices", "cpu"]
    assert main(["train", *flags]) == 2
    assert "teacher must have the classifier's images and classes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
