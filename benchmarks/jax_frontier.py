"""The methods' frontier on one GPU: every method of a protocol trained and voted on through Keras' JAX backend.

    python benchmarks/jax_votes.py --make-images mnist --data-dir DIR --data IMAGES.npz          where TensorFlow is
    KERAS_BACKEND=jax python benchmarks/jax_frontier.py mnist --data IMAGES.npz --out FOLDER --seconds 400
    python benchmarks/jax_votes.py FOLDER --data IMAGES.npz --out OUT.json                       certificates, tables

Each chain of trainings (`chains_of`) is a process of its own, so that one compiles while others run. Whatever is
finished is in the folder when the time is over: begin with `--chains choice_0.5 ...`, put what was chosen into CHOSEN,
and go on. In frontier.json and cifar10_gpu.json stands what 14 minutes of an H200 gave, four to seven chains at a time.

IMAGES.npz: train_x, train_y, validation_x, validation_y, test_x, test_y, uint8.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np

CHOICE_N = 2_000
PLAIN, OURS = "gaussian_augmentation", "stepped_consistency"
PROTOCOLS = ("mnist", "cifar10")


@dataclasses.dataclass
class Job:
    """One training and its votes. taught: a label whose weights it learns from."""

    label: str
    method: str
    sigma: float
    seed: int = 0
    changes: dict = dataclasses.field(default_factory=dict)
    taught: str = ""
    choice: bool = False
    n: int = 0
    images: int = 1_000
    kept: bool = False


def recipe_of(protocol: str, job: Job):
    from covkeras.experiments.recipes import find

    recipe = find(f"{protocol}_protocol").replace(sigma=job.sigma, seed=job.seed, precision="float32")
    if protocol == "mnist":
        recipe = recipe.replace(epochs=24, decay_epochs=(8, 16))
    recipe = recipe.replace(train_on_validation=False) if job.choice else recipe
    return recipe.with_method(job.method).replace(**job.changes)


class Chain:
    """Trainings one after the other, with what they share: images, compiled epochs, weights."""

    def __init__(self, protocol: str, name: str, data, out: Path, stop: float):
        import jax.numpy as jnp

        self.protocol, self.name, self.out, self.stop = protocol, name, out, stop
        self.images = {k: jnp.asarray(data[f"{k}_x"]) for k in ("train", "validation", "test")}
        self.labels = {k: data[f"{k}_y"].astype("int32") for k in self.images}
        self.joined = None
        self.fits, self.votes, self.weights = {}, {}, {}

    def training(self, recipe):
        import jax.numpy as jnp

        if not recipe.train_on_validation:
            return self.images["train"], jnp.asarray(self.labels["train"])
        if self.joined is None:
            parts = ("train", "validation")
            self.joined = (
                jnp.concatenate([self.images[k] for k in parts]),
                jnp.asarray(np.concatenate([self.labels[k] for k in parts])),
            )
        return self.joined

    def known(self, label: str):
        """Weights of a label, of this chain or another one's, for which it waits."""
        path = self.out / "weights" / f"{label}.npz"
        while not path.exists():
            if time.time() > self.stop:
                raise TimeoutError(f"{label} is not there")
            time.sleep(0.5)
        found = np.load(path)
        return [[found[k] for k in sorted(found.files) if k.startswith(part)] for part in ("t", "o")]

    def run(self, job: Job) -> float:
        """Trains, votes, keeps; returns the ACR on the held-out images for a choice, else on the test images."""
        import jax
        import jax_training as jt

        begun = time.time()
        recipe = recipe_of(self.protocol, job)
        teacher = ()
        if job.taught:
            values = self.known(job.taught)
            recipe = recipe.replace(teacher=str(self.out / "teacher.keras"))
            teacher = [*values[0], *values[1]]
        images, labels = self.training(recipe)
        shape, classes = images.shape[1:], int(self.labels["train"].max()) + 1
        free = jt.Fit.traced(recipe.objective())
        fixed = {k: v for k, v in recipe.hyper.items() if k not in free}
        if "radius" in job.method:
            fixed = {**recipe.hyper, "sigma": recipe.sigma}
        key = json.dumps([job.method, recipe.epochs, len(labels), fixed], sort_keys=True, default=str)
        if key not in self.fits:
            self.fits[key] = jt.Fit(recipe, shape, classes, len(labels) // recipe.batch_size)
        fit = self.fits[key]
        values, accuracy = fit.run(recipe, images, labels, teacher)
        jax.block_until_ready(values)
        trained = time.time()
        self.keep(job.label, values, job.kept)
        found = {}
        for split in ("validation",) if job.choice else ("test", "validation"):
            if split == "validation" and recipe.train_on_validation:
                continue
            n = CHOICE_N if split == "validation" else job.n
            found[split] = self.judged(fit.classifier, values, split, job, n)
        row = {**dataclasses.asdict(job), **found, "epochs": recipe.epochs, "batch": recipe.batch_size}
        row |= {"hyper": {k: v for k, v in recipe.hyper.items() if k != "teacher"}, "accuracy": accuracy}
        row |= {"train_s": round(trained - begun, 2), "vote_s": round(time.time() - trained, 2), "chain": self.name}
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(f"{time.strftime('%X')} {self.name} {job.label} {row['train_s']} s {row['vote_s']} s {found}", flush=True)
        return found["validation" if job.choice else "test"]

    def judged(self, classifier, values, split: str, job: Job, n: int) -> float:
        import jax
        import jax_training as jt

        every = max(1, len(self.labels[split]) // job.images)
        images = self.images[split][::every].astype("float32") / 255.0
        right = self.labels[split][::every]
        key, sigma = jax.random.key(jt.VOTING), jax.numpy.float32(job.sigma)
        keys = jax.random.split(key)
        chosen = np.asarray(jt.votes(classifier, values, images, sigma, keys[0], 1, 100, 100))
        counts = np.asarray(jt.votes(classifier, values, images, sigma, keys[1], n // 100, 100, 100))
        self.votes[f"{job.label}|{split}"] = np.stack([chosen, counts]).astype("int32")
        np.savez_compressed(self.out / f"votes_{self.name}.npz", **self.votes)
        return average_radius(chosen, counts, right, float(sigma), n)

    def keep(self, label: str, values, kept: bool) -> None:
        arrays = {f"t{i:04d}": np.asarray(v) for i, v in enumerate(values[0])}
        arrays |= {f"o{i:04d}": np.asarray(v) for i, v in enumerate(values[1])}
        folder = self.out / "weights"
        folder.mkdir(exist_ok=True)
        aside = folder / f".{label}.npz"
        np.savez(aside, **arrays)
        os.replace(aside, folder / f"{label}.npz")
        if kept:
            self.weights[label] = arrays
            everything = {f"{name}|{k}": v for name, a in self.weights.items() for k, v in a.items()}
            np.savez(self.out / f"weights_{self.name}.npz", **everything)


def average_radius(chosen, counts, labels, sigma: float, n: int, alpha: float = 0.001) -> float:
    """The average certified radius, to choose by; the tables' are computed by the library from the votes."""
    from scipy import special

    rows, won = np.arange(len(labels)), chosen.argmax(1)
    hits = counts[rows, won]
    low = special.betaincinv(np.maximum(hits, 1), n - hits + 1, alpha)
    radius = np.where((won == labels) & (low > 0.5), sigma * special.ndtri(low), 0.0)
    return float(radius.mean())


def choose(chain: Chain, sigma: float, lengths) -> None:
    """Ours on the held-out images: the length of the step at Consistency's lam, and then twice and half that lam."""
    lam, tried = recipe_of(chain.protocol, Job("", "consistency", sigma)).lam, {}
    for eps, factor in [*((eps, 1.0) for eps in lengths), (None, 2.0), (None, 0.5)]:
        if eps is None:
            eps = max(tried, key=tried.get)
        changes = {"lam": lam * factor, "eps": eps, "detached": False}
        found = chain.run(Job(f"choice_{sigma}_{eps}_{factor}", OURS, sigma, changes=changes, choice=True))
        if factor == 1.0:
            tried[eps] = found


def finals(chain: Chain, sigma: float, chosen: dict, n: int, seeds) -> None:
    """What was chosen, {method: changes}: seed 0 on 1,000 test images, the others on 500."""
    for seed in seeds:
        for method, changes in chosen.items():
            if time.time() < chain.stop:
                images = 1_000 if seed == 0 else 500
                job = Job(f"{method}_{sigma}_{seed}", method, sigma, seed, changes, n=n, images=images, kept=seed == 0)
                guarded(chain, job)


def rivals(chain: Chain, sigma: float, methods, n: int, seed: int = 0) -> None:
    for method in methods:
        taught = {"cat_rs": f"gaussian_augmentation_{sigma}_0", "distillation": f"consistency_{sigma}_0"}.get(
            method, ""
        )
        job = Job(f"{method}_{sigma}_{seed}", method, sigma, seed, taught=taught, n=n, kept=seed == 0)
        if time.time() < chain.stop:
            guarded(chain, job)


def guarded(chain: Chain, job: Job) -> None:
    """Runs a job; a failure is told, and the next one has its turn."""
    try:
        chain.run(job)
    except Exception:
        traceback.print_exc()


# What was chosen for ours with both copies' gradients (detached=False), {sigma: (lam, eps)}, and in which order the
# others are trained.
CHOSEN = {"mnist": {0.25: (10.0, 0.5), 0.5: (5.0, 1.0), 1.0: (5.0, 0.5)}, "cifar10": {0.5: (10.0, 1.0)}}
LENGTHS = {0.25: (1.0, 0.5, 0.25, 1.5, 2.0), 0.5: (1.0, 0.5, 1.5, 2.0, 3.0), 1.0: (1.0, 0.5, 1.5, 2.0, 3.0)}
RIVALS = {
    "mnist": {
        0.25: ("cat_rs", "smooth_mix", "sphere_attack", "smooth_adv", "macer"),
        0.5: ("cat_rs", "smooth_mix", "sphere_attack", "smooth_adv", "macer", "covariance_radius", "distillation"),
        1.0: ("cat_rs", "smooth_mix", "sphere_attack", "smooth_adv", "macer"),
    },
    "cifar10": {0.5: ("cat_rs", "adjoint_radius", "covariance_radius", "macer", "smooth_mix", "sphere_attack")},
}


def chains_of(protocol: str) -> dict:
    """{name: what the chain does}: "choice_0.5", "final_0.5" and "rivals_0.5", a sigma each."""
    n, seeds = (20_000, (0, 1, 2)) if protocol == "mnist" else (10_000, (0, 1))
    found = {}
    for sigma, (lam, eps) in CHOSEN[protocol].items():
        methods = {PLAIN: {}, "consistency": {}, OURS: {"lam": lam, "eps": eps, "detached": False}}
        found[f"final_{sigma}"] = lambda c, s=sigma, m=methods: finals(c, s, m, n, seeds)
        found[f"rivals_{sigma}"] = lambda c, s=sigma: rivals(c, s, RIVALS[protocol][s], n)
        if protocol == "mnist":
            found[f"choice_{sigma}"] = lambda c, s=sigma: choose(c, s, LENGTHS[s])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seconds", type=float, default=400.0, help="after which no training begins")
    parser.add_argument("--chains", nargs="+", help="some of them")
    parser.add_argument("--chain", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    stop = time.time() + asked.seconds
    if asked.chain:
        chain = Chain(asked.protocol, asked.chain, np.load(asked.data), asked.out, stop)
        return chains_of(asked.protocol)[asked.chain](chain)
    teacher(asked)
    names = asked.chains or list(chains_of(asked.protocol))
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / len(names):.2f}")
    command = [sys.executable, __file__, asked.protocol, "--data", asked.data, "--out", str(asked.out)]
    running = [subprocess.Popen([*command, "--seconds", str(stop - time.time()), "--chain", name]) for name in names]
    while time.time() < stop and any(p.poll() is None for p in running):
        time.sleep(1)
    for process in running:
        process.kill()


def teacher(asked) -> None:
    """A network of the protocol, as a file: its weights are replaced by the teacher's in each job."""
    code = (
        "import sys, keras; sys.path.insert(0, sys.argv[1])\n"
        "from jax_frontier import Job, recipe_of\nfrom jax_training import build\n"
        "shape = (28, 28, 1) if sys.argv[2] == 'mnist' else (32, 32, 3)\n"
        "build(recipe_of(sys.argv[2], Job('', 'consistency', 0.5)), shape, 10).save(sys.argv[3])\n"
    )
    here, path = str(Path(__file__).parent), str(asked.out / "teacher.keras")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, here, asked.protocol, path], check=True, env=environment)


if __name__ == "__main__":
    main()
