"""One classifier, one noise: how many votes differ with the batch, threads, oneDNN, processor, exported graph?

    python benchmarks/floats.py CLASSIFIER.keras --data mnist --data-dir DIR --sigma 0.5 --out floats.json

A certificate speaks of the deterministic classifier that ran. Each row is a process of its own, which votes on the same
--samples noisy copies (10^6: of --images test images as many each) in one precision; "differ" counts its votes that
are not those of the precision's first row, "closest" is the largest gap between the two largest logits of such a copy,
over their size. Older processors are oneDNN's, told to use their instructions (ONEDNN_MAX_CPU_ISA); "samples" is 0
where these can't do the arithmetic. Times are of
the whole process, in turns. The figures and what follows from them: docs/results/certification.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from flags import parser_of

BLOCK = 1_000
# Name -> the environment, and what the worker does otherwise.
VARIANTS = {
    "batch 500": ({}, {}),
    "batch 40": ({}, {"batch": 40}),
    "one thread": ({"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}, {}),
    "without oneDNN": ({"TF_ENABLE_ONEDNN_OPTS": "0"}, {}),
    "AVX2 (2013)": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, {}),
    "AVX-512 (2017)": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, {}),
    "exported graph": ({}, {"exported": True}),
}
PRECISIONS = ("float32", "bfloat16", "float64")


def worker(flags) -> None:
    """Writes votes (samples,) int8 and the gaps (samples,) float32 of one variant."""
    from covkeras.runtime import startup

    startup.quiet_tensorflow()
    import keras
    import tensorflow as tf

    import covkeras as ck
    from covkeras import datasets

    _, options = VARIANTS[flags.worker]
    classifier = keras.models.load_model(flags.classifier, compile=False)
    smoothed = ck.SmoothedClassifier(classifier, flags.sigma, precision=flags.precision)
    images = datasets.load(flags.data, "test", flags.data_dir).head(flags.images).floats()
    model, size = smoothed.classifier, options.get("batch", 500)
    shape = (size, *smoothed.image_shape)

    def logits(copies):
        return model(copies, training=False)

    call = tf.function(logits, autograph=False).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    folder = tempfile.TemporaryDirectory()
    if options.get("exported"):
        # TensorFlow's own loader, in its place.
        module = tf.Module()
        module.held = [v.value for v in model.variables]
        module.call = tf.function(logits, autograph=False, input_signature=[tf.TensorSpec((None, *shape[1:]))])
        tf.saved_model.save(module, folder.name)
        loaded = tf.saved_model.load(folder.name)
        call = loaded.call

    @tf.function(autograph=False)
    def draw(image, index, block):
        noise, _ = smoothed.noise.draw(0, index, phase=1, block=block, shape=(BLOCK, *smoothed.image_shape))
        return smoothed.noise.add(image, noise)

    votes, gaps = [], []
    for index, image in enumerate(images):
        for block in range(flags.samples // flags.images // BLOCK):
            copies = draw(tf.constant(image), tf.constant(index, tf.int64), tf.constant(block, tf.int64))
            for first in range(0, BLOCK, size):
                answer = np.asarray(tf.cast(call(copies[first : first + size]), tf.float64))
                two = np.sort(answer, -1)[:, -2:]
                votes.append(answer.argmax(-1).astype(np.int8))
                gaps.append(((two[:, 1] - two[:, 0]) / np.abs(two).max(-1)).astype(np.float32))
    np.savez(flags.out, votes=np.concatenate(votes), gaps=np.concatenate(gaps))


def run(flags, name: str, precision: str, folder: Path) -> tuple[dict, float]:
    environment, _ = VARIANTS[name]
    out, start = folder / "votes.npz", time.monotonic()
    command = [
        sys.executable,
        __file__,
        flags.classifier,
        "--worker",
        name,
        "--precision",
        precision,
        "--out",
        str(out),
    ]
    for flag in ("data", "sigma", "samples", "images"):
        command += [f"--{flag}", str(getattr(flags, flag))]
    command += ["--data-dir", flags.data_dir] if flags.data_dir else []
    out.unlink(missing_ok=True)
    # Where an older processor's instructions can't do the arithmetic, oneDNN says so and ends.
    subprocess.run(command, check=False, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    if not out.exists():
        return None, time.monotonic() - start
    with np.load(out) as found:
        return dict(found), time.monotonic() - start


def main() -> None:
    parser = parser_of(__doc__, classifier="a .keras file", images=20)
    parser.add_argument("--samples", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=[*VARIANTS], metavar="NAME")
    parser.add_argument("--out", required=True, help="a .json file for the figures")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        return worker(flags)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in flags.precisions:
            first = None
            for name in dict.fromkeys([next(iter(VARIANTS)), *flags.variants]):
                found, seconds = run(flags, name, precision, Path(folder))
                first = first or found
                if found is None:
                    rows.append({"precision": precision, "variant": name, "samples": 0, "seconds": seconds})
                    continue
                differ = found["votes"] != first["votes"]
                closest = float(first["gaps"][differ].max(initial=0.0))
                counts = {"samples": len(differ), "differ": int(differ.sum()), "closest": closest, "seconds": seconds}
                rows.append({"precision": precision, "variant": name, **counts})
                print(rows[-1], flush=True)
                record = {"command": "python benchmarks/floats.py", "rows": rows}
                Path(flags.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
