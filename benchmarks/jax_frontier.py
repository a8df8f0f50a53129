"""The methods' frontier on one GPU: every method of a protocol trained and voted on through Keras' JAX backend.

    KERAS_BACKEND=jax python benchmarks/jax_frontier.py mnist --data IMAGES.npz --out FOLDER --seconds 400
    python benchmarks/jax_votes.py FOLDER                  where TensorFlow is: certificates, tables

Each chain of trainings is a process of its own, so that one compiles while others run. A chain of "ours" chooses on
held-out images the length of the step, then lam and the switches (and Consistency's lam), and then trains what was
chosen with three seeds. Whatever is finished is in the folder when the time is over.

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


@dataclasses.dataclass
class Job:
    """One training and its votes. start, taught: a label whose weights it begins with, or learns from."""

    label: str
    method: str
    sigma: float
    seed: int = 0
    changes: dict = dataclasses.field(default_factory=dict)
    start: str = ""
    taught: str = ""
    choice: bool = False
    n: int = 0
    images: int = 1_000
    kept: bool = False


def recipe_of(protocol: str, job: Job):
    from covkeras.experiments.recipes import find, scaled

    recipe = find(f"{protocol}_protocol").replace(sigma=job.sigma, seed=job.seed, precision="float32")
    if protocol == "mnist":
        recipe = recipe.replace(epochs=24, decay_epochs=(8, 16))
    recipe = recipe.replace(train_on_validation=False) if job.choice else recipe
    own = recipe.with_method(job.method)
    changes = dict(job.changes)
    if "epochs" in changes:
        own = scaled(own, changes.pop("epochs"))
    return own.replace(**changes)


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
        free = set(recipe.objective().get_config()) & {
            k for k, v in recipe.objective().get_config().items() if isinstance(v, float)
        }
        fixed = {k: v for k, v in recipe.hyper.items() if k not in free}
        if "radius" in job.method:
            fixed = {**recipe.hyper, "sigma": recipe.sigma}
        key = json.dumps([job.method, recipe.epochs, len(labels), fixed], sort_keys=True, default=str)
        if key not in self.fits:
            self.fits[key] = jt.Fit(recipe, shape, classes, len(labels) // recipe.batch_size)
        fit = self.fits[key]
        start = self.known(job.start) if job.start else None
        values, accuracy = fit.run(recipe, images, labels, start, teacher)
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


def ours(chain: Chain, sigma: float, seeds, n: int, lengths) -> None:
    """Baselines, the choice on held-out images, and what was chosen with every seed."""
    plain = "gaussian_augmentation"
    chain.run(Job(f"gaussian_{sigma}_0", plain, sigma, n=n, kept=True))
    best = {}
    for method in ("stepped_consistency", "consistency"):
        lam = recipe_of(chain.protocol, Job("", method, sigma)).lam
        grid = [{"lam": lam, "eps": e} for e in lengths] if method.startswith("stepped") else [{"lam": lam}]
        tried = {}

        def attempt(changes, method=method, tried=tried):
            label = f"choice_{method}_{sigma}_" + "_".join(f"{k}{v}" for k, v in changes.items())
            if time.time() < chain.stop and json.dumps(changes) not in tried:
                tried[json.dumps(changes)] = chain.run(Job(label, method, sigma, changes=changes, choice=True))
            return json.loads(max(tried, key=tried.get))

        for changes in grid:
            top = attempt(changes)
        for factor in (2.0, 0.5):
            top = attempt({**top, "lam": lam * factor})
        if method.startswith("stepped"):
            for switch in ("only_right", "one_noise"):
                top = attempt({**top, switch: True})
        best[method] = top
        chain.run(Job(f"{method}_{sigma}_0", method, sigma, 0, top, n=n, kept=True))
    (chain.out / f"best_{sigma}.json").write_text(json.dumps(best))
    published = recipe_of(chain.protocol, Job("", "consistency", sigma)).lam
    if best["consistency"]["lam"] != published:
        chain.run(Job(f"consistency_published_{sigma}_0", "consistency", sigma, 0, {"lam": published}, n=n))
    epochs = max(1, round(recipe_of(chain.protocol, Job("", plain, sigma)).epochs / 10))
    for method, changes in best.items():
        tuned = {**changes, "epochs": epochs}
        chain.run(Job(f"tuned_{method}_{sigma}_0", method, sigma, 0, tuned, start=f"gaussian_{sigma}_0", n=n))
    for seed in seeds:
        chain.run(Job(f"gaussian_{sigma}_{seed}", plain, sigma, seed, n=n))
        for method, changes in best.items():
            chain.run(Job(f"{method}_{sigma}_{seed}", method, sigma, seed, changes, n=n))


def finals(chain: Chain, sigma: float, chosen: dict, n: int, seeds, begin=(), first=1_000) -> None:
    """What was chosen, {method: changes}, with seed 0 and then the others; begin: methods before them, seed 0 alone."""
    for method in begin:
        guarded(chain, Job(f"{method}_{sigma}_0", method, sigma, n=n))
    for seed in seeds:
        for method, changes in chosen.items():
            if time.time() < chain.stop:
                images = first if seed == 0 else 500
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


PLAIN, OURS = "gaussian_augmentation", "stepped_consistency"
CHAINS = {
    "mnist": {
        "final_0.5": lambda c: finals(
            c, 0.5, {"consistency": {}, OURS: {"lam": 5.0, "eps": 1.0}, PLAIN: {}}, 20_000, (0, 1, 2)
        ),
        "final_1.0": lambda c: finals(
            c, 1.0, {"consistency": {}, OURS: {"lam": 5.0, "eps": 0.5}, PLAIN: {}}, 20_000, (0, 1, 2)
        ),
        "final_0.25": lambda c: finals(
            c, 0.25, {"consistency": {}, OURS: {"lam": 10.0, "eps": 0.5}, PLAIN: {}}, 20_000, (0, 1, 2)
        ),
        "rivals": lambda c: [
            rivals(c, 0.5, ("smooth_mix", "sphere_attack"), 20_000),
            rivals(c, 1.0, ("smooth_mix",), 20_000),
            rivals(c, 0.5, ("smooth_adv", "macer", "covariance_radius"), 20_000),
        ],
    },
    "cifar10": {
        "final_0.5": lambda c: finals(
            c, 0.5, {PLAIN: {}, "consistency": {}, OURS: {"lam": 10.0, "eps": 1.0}}, 10_000, (0, 1)
        ),
        "rivals_0.5": lambda c: rivals(c, 0.5, ("cat_rs", "covariance_radius", "macer"), 10_000),
        "other_0.5": lambda c: [
            guarded(c, Job(f"{OURS}_half_0.5_0", OURS, 0.5, changes={"lam": 10.0, "eps": 0.5}, n=10_000)),
            rivals(c, 0.5, ("adjoint_radius", "smooth_mix"), 10_000),
        ],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=tuple(CHAINS))
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
        return CHAINS[asked.protocol][asked.chain](chain)
    teacher(asked)
    names = asked.chains or list(CHAINS[asked.protocol])
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
