"""What a step of the methods that follow the gradient by the image costs on the field's LeNet (5 x 5 kernels, grey
images, batch 256), in plain steps: with that gradient in blocks of pixels (`moments.image_gradients`) and as TensorFlow
has it.

    python benchmarks/image_gradient.py
    taskset -c 0 python benchmarks/image_gradient.py --record

All sides run in turn in one process, each over Gaussian augmentation's step; a figure is the median of the ratios
within a round, without and with. The gradient's own share was found with TensorFlow's profiler: .36 of a plain step.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from training_step import step  # noqa: E402

from covkeras import models, objectives  # noqa: E402
from covkeras.moments import image_gradients  # noqa: E402
from covkeras.reports import results as report  # noqa: E402
from covkeras.runtime.timing import interleave  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "image_gradient.json"
BATCH = 256
PLAIN = "noise alone"


def measure(precision: str, rounds: int, folder: Path) -> list[dict]:
    """One row a method."""
    keras.config.set_dtype_policy(precision)
    images = tf.random.stateless_uniform((BATCH, 28, 28, 1), [0, 0])
    labels = tf.random.stateless_uniform((BATCH,), [0, 1], 0, 10, tf.int64)
    teacher = folder / f"{precision}.keras"
    models.lenet_5x5().save(teacher)
    methods = {
        "consistency": objectives.Consistency(0.5),
        "stepped_consistency": objectives.SteppedConsistency(0.5),
        "stepped_consistency:detached=false": objectives.SteppedConsistency(0.5, detached=False),
        "sphere_attack": objectives.SphereAttack(0.5),
        "smooth_adv": objectives.SmoothAdv(0.5),
        "cat_rs": objectives.CatRs(0.5, teacher=str(teacher)),
    }
    sides = {PLAIN: step(models.lenet_5x5, objectives.GaussianAugmentation(0.5), images, labels)}
    smallest = image_gradients.SMALLEST
    for name, objective in methods.items():
        # What is traced is what is timed.
        image_gradients.SMALLEST = 1000
        sides[name, "before"] = step(models.lenet_5x5, objective, images, labels)
        image_gradients.SMALLEST = smallest
        sides[name, "after"] = step(models.lenet_5x5, objective, images, labels)
    seconds = {side: np.array(values) for side, values in interleave(sides, rounds).items()}
    cores = len(os.sched_getaffinity(0))
    where = {"precision": precision, "on": "one core" if cores == 1 else f"{cores} cores", "rounds": rounds}
    return [
        {"method": name}
        | where
        | {when: float(np.median(seconds[name, when] / seconds[PLAIN])) for when in ("before", "after")}
        | {"after / before": float(np.median(seconds[name, "after"] / seconds[name, "before"]))}
        for name in methods
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds (default 11)")
    parser.add_argument("--record", action="store_true", help=f"write the rows of so many cores of {OUT.name}")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in ("float32", "mixed_bfloat16") for row in measure(name, flags.rounds, Path(folder))]
    print(
        report.plain(
            [list(rows[0]), *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows)]
        )
    )
    if flags.record:
        known = json.loads(OUT.read_text(encoding="utf-8"))["rows"] if OUT.exists() else []
        rows = [row for row in known if row["on"] != rows[0]["on"]] + rows
        machine = "AVX-512 with its bfloat16, no AMX"
        record = {"command": "python benchmarks/image_gradient.py --record", "machine": machine, "rows": rows}
        OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
