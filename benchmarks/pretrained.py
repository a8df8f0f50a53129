"""Certifies a network that somebody else trained and published, without training it: a face detector's classifier.

    pip install mtcnn scikit-image        (for this benchmark alone)
    python benchmarks/pretrained.py --out pretrained.json

R-Net of the package mtcnn (weights inside it; Zhang et al. 2016): 24 x 24 colour images from -1 to 1, two outputs, the
class' softmax one of them: face or not. `covkeras.adapt` makes it a classifier of [0, 1] pixels. Images: scikit-image's
lfw_subset (in its wheel), 100 faces and 100 other patches; every second one is tested. Denoisers are trained on crops
of scikit-image's photographs and on the other half, without labels. 2,000 samples, alpha 0.001; the figures stand in
docs/results/denoising.md.
"""

import argparse
import json
import time
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

import covkeras as ck  # noqa: E402
from covkeras.reports.pages import plain  # noqa: E402

SIZE, RADII = 24, (0.0, 0.25, 0.5, 0.75)
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def classifier() -> keras.Model:
    """R-Net with its weights, as a Keras model of [0, 1] pixels to logits."""
    from mtcnn.network.rnet import RNet
    from mtcnn.utils.tensorflow import load_weights

    net = RNet()
    net.build()
    net.set_weights(load_weights("rnet.lz4"))
    image = keras.Input((SIZE, SIZE, 3))
    return ck.adapt(keras.Model(image, net(image)[1]), input_range=(-1, 1), ends_in="softmax")


def on_grid(images) -> np.ndarray:
    return (np.round(np.asarray(images) * 255) / 255).astype(np.float32)


def faces() -> tuple[np.ndarray, np.ndarray]:
    """200 images (24, 24, 3) on the 8-bit grid; 1 is a face."""
    import skimage.data

    grey = np.load(Path(skimage.data.__file__).parent / "lfw_subset.npy")[:, :SIZE, :SIZE]
    return on_grid(np.repeat(grey[..., None], 3, -1)), np.repeat([1, 0], 100)


def crops(count: int, seed: int = 0) -> np.ndarray:
    """Patches of photographs, of many sizes, as (count, 24, 24, 3)."""
    import skimage.data
    import skimage.transform

    rng, found = np.random.default_rng(seed), []
    photographs = [getattr(skimage.data, name)()[..., :3] / 255.0 for name in PHOTOGRAPHS]
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        size = int(rng.integers(SIZE, 200))
        top, left = (int(rng.integers(0, s - size)) for s in photograph.shape[:2])
        patch = photograph[top : top + size, left : left + size]
        patch = skimage.transform.resize(patch, (SIZE, SIZE), anti_aliasing=True)
        found.append(patch if i % 2 else np.repeat(patch.mean(-1, keepdims=True), 3, -1))
    return on_grid(found)


def denoised(net, objective, images, epochs: int) -> keras.Model:
    net.trainable = False
    keras.utils.set_random_seed(0)
    model = ck.models.joined(ck.models.unet((SIZE, SIZE, 3)), net)
    trainer = ck.CertifiedTrainer(model, objective)
    steps = epochs * (len(images) // 64)
    trainer.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.001, steps)))
    trainer.fit(images, epochs=epochs, batch_size=64, verbose=0)
    return model


def row_of(name: str, model, images, labels, sigma: float, seconds: float) -> dict:
    found = ck.SmoothedClassifier(model, sigma, shared_noise=True).certify(images, n0=100, n=2_000)
    accuracy = ck.certified_accuracy(found, labels, RADII)
    row = {"sigma": sigma, "way": name, "ACR": ck.average_certified_radius(found, labels)}
    row |= {f"acc at {r:g}": float(a) for r, a in zip(RADII, accuracy, strict=True)}
    return row | {"abstained": float((found.label == -1).mean()), "images": len(labels), "training seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.12, 0.25, 0.5])
    parser.add_argument("--crops", type=int, default=6_000, help="to train denoisers on (default: 6,000)")
    parser.add_argument("--epochs", type=int, default=10, help="default: 10")
    parser.add_argument("--out", type=Path, help="a .json file for the figures")
    flags = parser.parse_args()
    net, (images, labels) = classifier(), faces()
    clean = float((np.asarray(net(images)).argmax(-1) == labels).mean())
    print(f"accuracy on the clean images: {clean:.3f}")
    training, test = np.concatenate([crops(flags.crops), images[::2]]), slice(1, None, 2)
    rows = []
    for sigma in flags.sigmas:
        rows.append(row_of("as it is", net, images[test], labels[test], sigma, 0.0))
        for objective in (ck.objectives.Denoising(sigma), ck.objectives.Stability(sigma)):
            start = time.monotonic()
            model = denoised(net, objective, training, flags.epochs)
            seconds = time.monotonic() - start
            rows.append(row_of(objective.name, model, images[test], labels[test], sigma, seconds))
        print(
            plain(
                [list(rows[0]), *[[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]]
            )
        )
    if flags.out:
        record = {"command": "python benchmarks/pretrained.py", "clean accuracy": clean, "rows": rows}
        flags.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
