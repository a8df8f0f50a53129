"""Are the moments true on networks that are not LeNets? Three, trained with noise on 20,000 images of CIFAR-10.

    python benchmarks/fidelity.py --data-dir DIR        resumes; what is done is not done again
    python docs/results/build.py                        then makes docs/results/fidelity.md of it

Each network is trained with Gaussian augmentation, certified on 200 test images (every 50th, n = 2,000, alpha .001),
and its propagated and adjoint radii are held against the certified ones (rank correlation, median of their ratio).
Its propagated logits are held against 20,000 noisy copies of each of 20 images: how far the mean of the top two
classes' margin is off, in standard deviations of the margin; the propagated over the sampled standard deviation of
that margin, and of a logit; the correlation of the two covariances' entries off the diagonal. What it costs to take
the branches of an Add as independent: the root of its inputs' summed variances over its output's, sampled, at each Add.
"""

import argparse
import json
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

from covkeras import MomentNetwork, SmoothedClassifier, datasets, diagnostics, models, objectives  # noqa: E402
from covkeras.experiments import fitting, recipes  # noqa: E402
from covkeras.training.trainer import CertifiedTrainer  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "fidelity_networks.json"
SHAPE, SAMPLES, EXAMPLES = (32, 32, 3), 20_000, 20


def inverted_residuals():
    """As MobileNetV2: expand, depthwise, project; ReLU6 and batch normalisation."""

    def normalised(x, activate=True):
        x = layers.BatchNormalization()(x)
        return layers.ReLU(max_value=6.0)(x) if activate else x

    images = keras.Input(SHAPE)
    x = layers.Rescaling(4.0, offset=-2.0)(images)
    x = normalised(layers.Conv2D(24, 3, 2, padding="same", use_bias=False)(x))
    for width, stride in ((24, 1), (48, 2), (48, 1), (96, 2), (96, 1)):
        y = normalised(layers.Conv2D(3 * x.shape[-1], 1, use_bias=False)(x))
        y = normalised(layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(y))
        y = normalised(layers.Conv2D(width, 1, use_bias=False)(y), activate=False)
        x = layers.Add()([x, y]) if y.shape == x.shape else y
    x = layers.GlobalAveragePooling2D()(normalised(layers.Conv2D(192, 1, use_bias=False)(x)))
    return keras.Model(images, layers.Dense(10, dtype="float32")(x), name="inverted_residuals")


def gelu_layernorm():
    """As ConvNeXt: depthwise 5 x 5, layer normalisation, a wide GELU; patches of 2 x 2 at the start."""
    images = keras.Input(SHAPE)
    x = layers.Rescaling(4.0, offset=-2.0)(images)
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(32, 2, 2)(x))
    for width, blocks in ((32, 1), (64, 2), (128, 2)):
        if width > 32:
            x = layers.Conv2D(width, 2, 2)(layers.LayerNormalization(epsilon=1e-6)(x))
        for _ in range(blocks):
            y = layers.LayerNormalization(epsilon=1e-6)(layers.DepthwiseConv2D(5, padding="same")(x))
            y = layers.Dense(width)(layers.Dense(3 * width, activation="gelu")(y))
            x = layers.Add()([x, y])
    x = layers.LayerNormalization(epsilon=1e-6)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, layers.Dense(10, dtype="float32")(x), name="gelu_layernorm")


NETWORKS = {
    "inverted residuals, ReLU6, BatchNormalization": (inverted_residuals, 0.1),
    "GELU, LayerNormalization": (gelu_layernorm, 0.02),
    "pre-activation residual, BatchNormalization": (models.narrow_resnet, 0.1),
}


def trained(make, rate: float, sigma: float, data, epochs: int, file: Path):
    """The network after so many epochs of noise, or what an earlier start left in `file`. In float32, for depthwise
    convolutions and norms have no bfloat16 units."""
    if file.exists():
        return keras.models.load_model(file, compile=False)
    keras.utils.set_random_seed(0)
    classifier = make()
    recipe = recipes.find("cifar10_protocol").replace(epochs=epochs, learning_rate=rate)
    steps = data.steps_per_epoch(128)
    trainer = CertifiedTrainer(classifier, objectives.GaussianAugmentation(sigma))
    trainer.compile(optimizer=fitting.build_optimizer(recipe, steps))
    batches = data.batches(128, epochs=epochs, augmentation="crop_flip")
    trainer.fit(batches, epochs=epochs, steps_per_epoch=steps, verbose=2, shuffle=False)
    classifier.save(file)
    return classifier


def moments_held_against_samples(network, images) -> dict[str, float]:
    """Medians over the images of what the docstring of this file names."""
    logits = network(images)
    propagated, cov = np.asarray(logits.mean), np.asarray(logits.cov)
    off = ~np.eye(len(cov), dtype=bool)
    rows = []
    for image, mean in zip(images, propagated, strict=True):
        rng = np.random.default_rng(7)
        parts = [network.sigma * rng.standard_normal((1_000, *SHAPE), np.float32) for _ in range(SAMPLES // 1_000)]
        sampled = np.concatenate([np.asarray(network.classifier(image + part, training=False)) for part in parts])
        truth, spread = sampled.mean(0), np.cov(sampled.T)
        first, second = np.argsort(truth)[:-3:-1]
        direction = np.zeros(len(truth))
        direction[first], direction[second] = 1.0, -1.0
        sd = np.sqrt(direction @ spread @ direction)
        rows.append(
            {
                "margin's mean off, in sd": abs(direction @ (mean - truth)) / sd,
                "margin's sd over sampled": np.sqrt(direction @ cov @ direction) / sd,
                "logit's sd over sampled": np.median(np.sqrt(np.diag(cov) / np.diag(spread))),
                "correlation of covariances": np.corrcoef(cov[off], spread[off])[0, 1],
            }
        )
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}


def adds_held_against_samples(classifier, sigma: float, images) -> dict[str, float]:
    """sqrt((Var a + Var b) / Var (a + b)) of each Add, of 1,000 noisy copies, in the mean over units and images:
    1 where the branches are uncorrelated, below it where they move together."""
    adds = [layer for layer in classifier.layers if isinstance(layer, layers.Add)]
    parts = keras.Model(classifier.input, [[*layer.input, layer.output] for layer in adds])
    apart, together = np.zeros(len(adds)), np.zeros(len(adds))
    for image in images:
        noise = sigma * np.random.default_rng(11).standard_normal((1_000, *SHAPE), np.float32)
        for i, (*branches, whole) in enumerate(parts(image + noise, training=False)):
            apart[i] += sum(np.asarray(branch).var(0).mean() for branch in branches)
            together[i] += np.asarray(whole).var(0).mean()
    ratios = np.sqrt(apart / together)
    return {"adds": len(adds), "add's sd over sampled": float(np.median(ratios))} | {
        f"{name} add's sd over sampled": float(value)
        for name, value in (("least", ratios.min()), ("most", ratios.max()))
    }


def measure(name: str, sigma: float, flags) -> dict:
    make, rate = NETWORKS[name]
    load = {split: datasets.load("cifar10", split, flags.data_dir) for split in ("train", "test")}
    data = load["train"].head(20_000)
    flags.weights.mkdir(parents=True, exist_ok=True)
    file = flags.weights / f"{make.__name__}-{sigma}.keras"
    classifier = trained(make, rate, sigma, data, flags.epochs, file)
    indices = np.arange(0, 10_000, 50)
    images, labels = load["test"].floats(indices), load["test"].labels[indices]
    certificates = SmoothedClassifier(classifier, sigma).certify(images, n=2_000, alpha=0.001, indices=indices)
    network = MomentNetwork(classifier, sigma, r_max=0.1)
    found = diagnostics.fidelity(network, images, certificates, load["train"].floats(slice(0, 64)))
    row = {"network": name, "sigma": sigma, "parameters": classifier.count_params(), "epochs": flags.epochs}
    row["certified accuracy at 0"] = float(((certificates.label == labels) & (certificates.radius > 0)).mean())
    for one in found:
        short = one.name.replace(" (r_max 0.1)", "").replace("gates from the propagated covariance", "own gates")
        row |= {f"{short} rank": one.rank_correlation, f"{short} ratio": one.median_ratio}
    row["images"] = int(found[0].compared.sum())
    examples = images[:: len(images) // EXAMPLES]
    return (
        row | moments_held_against_samples(network, examples) | adds_held_against_samples(classifier, sigma, examples)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="the folder of prepared TFDS data sets")
    parser.add_argument("--epochs", type=int, default=8, help="of training (default 8)")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.25], help="noise levels (default 0.25)")
    parser.add_argument("--weights", type=Path, default=Path("fidelity_networks"), help="folder of trained networks")
    flags = parser.parse_args()
    record = {"command": "python benchmarks/fidelity.py --data-dir DIR", "rows": []}
    if OUT.exists():
        record = json.loads(OUT.read_text())
    record["machine"] = "two cores, float32"
    for sigma in flags.sigmas:
        for name in NETWORKS:
            if any((row["network"], row["sigma"]) == (name, sigma) for row in record["rows"]):
                continue
            row = measure(name, sigma, flags)
            print(json.dumps(row), flush=True)
            record["rows"].append(row)
            OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
