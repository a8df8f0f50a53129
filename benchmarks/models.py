"""What covkeras makes of the networks people have: keras.applications at their smallest, a transformer, a 1-D network,
a subclassed model.

    python benchmarks/models.py                          all; what is done is not done again
    python benchmarks/models.py MobileNetV2 transformer  some
    python docs/results/build.py                         then makes docs/models.md of it

For each: a compiled training step of each objective (its loss is finite, or what refuses it), its time over Gaussian
augmentation's (median of three in turns), the instant estimate, a certificate, an export, whether every layer has a
moment rule. Weights are random: the figures say what works and what it costs, nothing about robustness.
"""

import argparse
import inspect
import json
import math
import tempfile
import time
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers  # noqa: E402

from covkeras import CertifiedTrainer, MomentNetwork, SmoothedClassifier, export, objectives  # noqa: E402
from covkeras.exporting import Defaults  # noqa: E402
from covkeras.moments.adjoint import adjoint_margin, calibrate_gates  # noqa: E402
from covkeras.runtime.timing import interleave  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "models.json"
SIGMA = 0.25
OBJECTIVES = {
    "gaussian_augmentation": lambda: objectives.GaussianAugmentation(SIGMA),
    "covariance_radius": lambda: objectives.CovarianceRadius(SIGMA, lam=0.1, noisy_mean=True),
    "adjoint_radius": lambda: objectives.AdjointRadius(SIGMA, lam=0.1),
    "macer": lambda: objectives.Macer(SIGMA, num_copies=2),
    "consistency": lambda: objectives.Consistency(SIGMA),
}


def application(name: str, size: int):
    def make():
        kind = getattr(keras.applications, name)
        # Some scale pixels of 0 to 255 inside: left out where they let one, else fed with what they expect.
        scales = "include_preprocessing" in inspect.signature(kind).parameters
        options = {"include_preprocessing": False} if scales else {}
        model = kind(weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None, **options)
        if name != "EfficientNetB0":
            return model
        return keras.Sequential([keras.Input((size, size, 3)), layers.Rescaling(255.0), model])

    return make


def transformer():
    """Patches of 4 x 4, two blocks, pre-norm."""
    x = images = keras.Input((16, 16, 3))
    x = layers.Reshape((16, 32))(layers.Conv2D(32, 4, strides=4)(x))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 16)(y, y)
        y = layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(32)(y)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(images, layers.Dense(10)(x))


def sequence():
    """A 1-D convolution on signals of 64 values and 2 channels."""
    x = signals = keras.Input((64, 2))
    x = layers.MaxPooling1D(2)(layers.Conv1D(16, 5, padding="causal", activation="swish")(x))
    x = layers.GlobalMaxPooling1D()(layers.Conv1D(16, 3, activation="relu")(x))
    return keras.Model(signals, layers.Dense(4)(x))


class Subclassed(keras.Model):
    """A model whose `call` is Python: Keras knows no graph of it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Conv2D(16, 3, strides=2, activation="relu"), layers.Dense(10)

    def call(self, images):
        return self.second(tf.reduce_max(self.first(2.0 * images - 1.0), (1, 2)))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 16, 16, 3), np.float32))
    return model


SIZES = {
    **dict.fromkeys(("ResNet50", "ResNet50V2", "VGG16", "MobileNet", "MobileNetV2", "MobileNetV3Small"), 32),
    **dict.fromkeys(("EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny", "DenseNet121", "NASNetMobile"), 32),
    "Xception": 71,
    "InceptionV3": 75,
    "MobileNetV3Large": 32,
    "VGG19": 32,
}
MODELS = {name: application(name, size) for name, size in SIZES.items()}
MODELS |= {"transformer": transformer, "1-D convolution": sequence, "subclassed": subclassed}


def examine(make, exported: bool = True, rounds: int = 3) -> dict:
    """Returns what a model can do, {column: "yes", a number, or what refused it}."""
    keras.utils.set_random_seed(0)
    model = make()
    network = MomentNetwork(model, SIGMA, unknown="adjoint")
    classifier = network.classifier
    shape, classes = classifier.input_shape[1:], classifier.output_shape[-1]
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (8, *shape)) / np.float32(255)).astype(np.float32)
    found = {"parameters": classifier.count_params(), "pixels": shape[0], "rules": _rules(network)}
    found |= steps(classifier, images, rng.integers(0, classes, 8), rounds)
    margin = adjoint_margin(network, images[:2], calibrate_gates(network, images[:2]))
    found["instant estimate"] = _yes(np.isfinite(margin.radius).all() and (np.asarray(margin.sd) > 0).all())
    smoothed = SmoothedClassifier(model, SIGMA, batch_size=8)
    certificate = smoothed.certify(images[:1], n0=10, n=20, alpha=0.01)
    found["certified"] = _yes(np.isfinite(certificate.radius).all())
    if exported:
        found["exported"] = _exported(smoothed, images[:1], classes)
    return found


def _rules(network) -> str:
    return "no" if network.unknown == "adjoint" else "all"


def _yes(holds) -> str:
    return "yes" if holds else "no"


def steps(classifier, images, labels, rounds: int) -> dict:
    """A compiled step of each objective, and its time over Gaussian augmentation's."""
    found, sides = {}, {}
    start = classifier.get_weights()
    for name, objective in OBJECTIVES.items():
        classifier.set_weights(start)
        try:
            trainer = CertifiedTrainer(classifier, objective())
        except NotImplementedError as error:
            found[name], found["refusal"] = "refused", str(error)
            continue
        trainer.compile(optimizer=keras.optimizers.SGD(1e-3))
        trainer.optimizer.build(trainer.classifier.trainable_variables)
        trainer.begin_epoch(0)
        batch = (tf.constant(images), tf.constant(labels))
        step = tf.function(trainer.train_step, autograph=False).get_concrete_function(batch)
        sides[name] = lambda step=step, batch=batch: float(step(batch)["loss"])
        found[name] = _yes(math.isfinite(sides[name]()))
    if rounds:
        seconds = interleave(sides, rounds)
        plain = np.array(seconds["gaussian_augmentation"])
        found |= {f"{name} cost": float(np.median(np.array(s) / plain)) for name, s in seconds.items()}
    classifier.set_weights(start)
    return found


def _exported(smoothed, images, classes: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        defaults = Defaults(n0=10, n=20, n_predict=20, alpha=0.01, max_samples=1_000)
        path = export(smoothed, Path(folder) / "m" / "1", [str(c) for c in range(classes)], defaults, key=(1, 2))
        served = tf.saved_model.load(str(path)).signatures["logits"](images=tf.constant(images))["logits"]
        return _yes(np.allclose(served, smoothed.classifier(images, training=False), rtol=1e-3, atol=1e-4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--again", action="store_true", help="also those that are done")
    flags = parser.parse_args()
    record = json.loads(OUT.read_text()) if OUT.exists() else {"command": "python benchmarks/models.py", "rows": []}
    done = record["rows"]
    for name in flags.models or MODELS:
        if any(row["model"] == name for row in done) and not flags.again:
            continue
        start = time.perf_counter()
        row = {"model": name, **examine(MODELS[name])}
        keras.backend.clear_session()
        done = sorted([r for r in done if r["model"] != name] + [row], key=lambda r: [*MODELS].index(r["model"]))
        OUT.write_text(json.dumps({**record, "rows": done}, indent=1) + "\n")
        print(f"{name}: {time.perf_counter() - start:.0f} s {row}", flush=True)


if __name__ == "__main__":
    main()
