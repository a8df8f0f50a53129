"""Training images a second: covkeras' step beside the bare step of the same network in TensorFlow and in PyTorch.

    pip install torch          (the CPU build; for this benchmark alone)
    python benchmarks/frameworks.py --record

CIFAR-10's protocol: `narrow_resnet`, batch 128, batch normalisation, Gaussian augmentation, SGD with momentum. All
sides in turn in one process, with a thread a core; medians of --rounds, in float32 and in bfloat16 (TensorFlow's mixed
policy, PyTorch's autocast):

    covkeras             CertifiedTrainer.train_step: noise, checks, metrics and all
    with its pipeline    the same fed by the data set's own stream: shuffled, cropped, flipped
    TensorFlow           forward, backward and update alone, compiled by tf.function, on images with their noise
    PyTorch              the same, as its users run it (eager, channels last)
    matrix units         what one large product of matrices reaches here, over the network's multiplications

The figures stand in docs/results/costs.md.
"""

import argparse
import json
import math
import os
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from covkeras import models, objectives  # noqa: E402
from covkeras.datasets import ImageData  # noqa: E402
from covkeras.reports.pages import plain  # noqa: E402
from covkeras.runtime.timing import interleave  # noqa: E402
from covkeras.training.trainer import CertifiedTrainer  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "frameworks.json"
BATCH, SIGMA = 128, 0.5
WIDTHS = (32, 64, 128)


def data() -> ImageData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50 * BATCH, 32, 32, 3)).astype(np.uint8)
    return ImageData("random", "train", images, rng.integers(0, 10, len(images)), tuple("0123456789"))


def network(policy: str):
    keras.config.set_dtype_policy(policy)
    try:
        return models.narrow_resnet()
    finally:
        keras.config.set_dtype_policy("float32")


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def covkeras_step(policy: str, stream=None):
    trainer = CertifiedTrainer(network(policy), objectives.GaussianAugmentation(SIGMA))
    trainer.compile(optimizer=sgd())
    trainer.optimizer.build(trainer.classifier.trainable_variables)
    rng = np.random.default_rng(0)
    batch = tf.constant(rng.random((BATCH, 32, 32, 3), np.float32)), tf.constant(rng.integers(0, 10, BATCH))
    step = tf.function(trainer.train_step, autograph=False).get_concrete_function(batch)
    if stream is None:
        return lambda: step(batch)["loss"].numpy()
    batches = iter(stream.batches(BATCH, augmentation="crop_flip"))
    return lambda: step(next(batches))["loss"].numpy()


def tensorflow_step(policy: str):
    model, optimizer = network(policy), sgd()
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    images, labels = tf.constant(rng.random((BATCH, 32, 32, 3), np.float32)), tf.constant(rng.integers(0, 10, BATCH))

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return lambda: step().numpy()


def pytorch_step(policy: str):
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)

    class Block(nn.Module):
        """norm-relu-conv-norm-relu-conv plus a shortcut: `narrow_resnet`'s."""

        def __init__(self, before, width, stride):
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(width)
            self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            new = stride > 1 or before != width
            self.project = nn.Conv2d(before, width, 1, stride, bias=False) if new else None

        def forward(self, x):
            y = functional.relu(self.norm1(x))
            shortcut = self.project(y) if self.project is not None else x
            return shortcut + self.conv2(functional.relu(self.norm2(self.conv1(y))))

    widths = (WIDTHS[0], *WIDTHS)
    blocks = [Block(widths[i], widths[i + 1], 2 if i else 1) for i in range(3)]
    head = (nn.BatchNorm2d(WIDTHS[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
    model = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 2, 2, bias=False), *blocks, *head)
    model = model.to(memory_format=torch.channels_last).train()
    ours = sum(int(np.prod(w.shape)) for w in network("float32").trainable_variables)
    assert sum(p.numel() for p in model.parameters()) == ours, "not the same network"
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images = torch.rand(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=policy != "float32"):
            logits = model(4 * images - 2)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def product(policy: str, size: int = 4096):
    """One large product of matrices, and its multiplications."""
    kind = tf.float32 if policy == "float32" else tf.bfloat16
    a = tf.cast(tf.random.normal((size, size)), kind)
    run = tf.function(lambda: tf.matmul(a, a), autograph=False)
    return (lambda: run()[0, 0].numpy()), size**3


def multiplications() -> int:
    """Of one image's forward pass."""
    total = 0
    for layer in models.narrow_resnet().layers:
        if isinstance(layer, keras.layers.Conv2D):
            total += math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="default: 21")
    parser.add_argument("--without-torch", action="store_true")
    parser.add_argument("--record", action="store_true", help=f"write {OUT.name}")
    flags = parser.parse_args()
    rows, stream = [], data()
    for policy in ("float32", "mixed_bfloat16"):
        whole, count = product(policy)
        sides = {
            "covkeras": covkeras_step(policy),
            "with its pipeline": covkeras_step(policy, stream),
            "TensorFlow": tensorflow_step(policy),
            **({} if flags.without_torch else {"PyTorch": pytorch_step(policy)}),
            "matrix units": whole,
        }
        seconds = {name: float(np.median(s)) for name, s in interleave(sides, flags.rounds).items()}
        # Forward once, backward twice.
        seconds["matrix units"] *= 3 * BATCH * multiplications() / count
        for name, value in seconds.items():
            row = {"precision": policy, "side": name, "images/s": BATCH / value}
            rows.append(row | {"over covkeras": seconds["covkeras"] / value})
    print(plain([list(rows[0]), *[[f"{v:.3g}" if isinstance(v, float) else v for v in r.values()] for r in rows]]))
    if flags.record:
        OUT.write_text(
            json.dumps({"command": "python benchmarks/frameworks.py --record", "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
