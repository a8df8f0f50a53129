"""Methods against each other: one recipe, one budget, the same images and the same noise of certification."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from covkeras import devices, diagnostics, fitting, jobs, moments
from covkeras.files import write_aside
from covkeras.recipes import METHODS, Recipe, scaled
from covkeras.report import Result
from covkeras.runs import RunFolder, claim_record
from covkeras.timing import interleave
from covkeras.validation import check_between, check_choice

BASELINE = "gaussian_augmentation"
# What methods may differ in: how they train. All else belongs to the comparison.
OWN_FIELDS = tuple(
    f.name
    for f in dataclasses.fields(Recipe)
    if not f.name.startswith("certify_")
    and f.name
    not in ("name", "source", "data", "model", "method", "reference", "sigma", "seed", "image_size", "decay_epochs")
)
# The authors' weights at sigma .25, .5 and 1: on MNIST, and on CIFAR-10 and all else.
_WEIGHTS = {
    "consistency": {"mnist": (10.0, 5.0, 5.0), "cifar10": (20.0, 10.0, 10.0)},
    "macer": {"mnist": (16.0, 16.0, 6.0), "cifar10": (12.0, 12.0, 12.0)},
}
# Ours, tried on MNIST at sigma .5 and 1 over 24 epochs: a harder pull at sigma 1 costs accuracy.
_ADJOINT = {"lam": (1.0, 1.0, 0.2), "gamma": (3.0, 3.0, 1.5)}


def published(recipe: Recipe, method: str) -> Recipe:
    """Returns the recipe with a method's own lam and gamma: its authors', for the nearest data and sigma they printed;
    for `adjoint_radius` ours, the cheapest that did well. The recipe's own method keeps the recipe's."""
    if method == recipe.method:
        return recipe
    changes = {"lam": 4.0, "gamma": 8.0, "switch_epoch": 0, "noisy_mean": False}
    if method in _WEIGHTS:
        changes["lam"] = _weight(method, recipe)
    elif method == "covariance_radius":
        # The paper switches lam on halfway; one noise sample in the mean is its published code's way.
        changes |= {"switch_epoch": recipe.epochs // 2, "noisy_mean": True}
    elif method == "adjoint_radius":
        # With Consistency's term, and the radius of every 16th image: 2.1 times a plain step. At a large learning rate
        # a radius loss from the first step on can end in a constant classifier: begin where the recipe says.
        changes |= {name: _nearest(values, recipe) for name, values in _ADJOINT.items()}
        changes |= {"radius_every": 16, "sampled_share": 0.9, "consistency": _weight("consistency", recipe)}
        changes["switch_epoch"] = recipe.switch_epoch
    return recipe.replace(method=method, **changes)


def _weight(method: str, recipe: Recipe) -> float:
    return _nearest(_WEIGHTS[method]["mnist" if recipe.data in ("mnist", "digits") else "cifar10"], recipe)


def _nearest(values: tuple, recipe: Recipe) -> float:
    """Of the values at sigma .25, .5 and 1 the one of the recipe's sigma."""
    return values[int(np.argmin(np.abs(np.array([0.25, 0.5, 1.0]) - recipe.sigma)))]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method of a comparison: its name in tables, and its recipe."""

    label: str
    recipe: Recipe

    @classmethod
    def parse(cls, text: str, recipe: Recipe) -> "Entry":
        """Reads "consistency" or "consistency:lam=5,antithetic=true"; other epochs scale the schedule with them.

        Raises:
            ValueError: an unknown method or field, or a value that the field refuses.
        """
        method, _, rest = text.partition(":")
        check_choice("method", method, METHODS)
        changes = {}
        for part in filter(None, rest.split(",")):
            name, equals, value = part.partition("=")
            name = name.strip().replace("-", "_")
            if not equals or name not in OWN_FIELDS:
                raise ValueError(f"method {text!r} must be METHOD:FIELD=VALUE,..., FIELD one of {list(OWN_FIELDS)}.")
            changes[name] = Recipe.value(name, value)
        own = published(recipe, method)
        own = scaled(own, changes["epochs"]) if "epochs" in changes else own
        return cls(text, own.replace(reference="none", **changes))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Step times of a method, interleaved with Gaussian augmentation's: seconds, and their ratios round by round."""

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one method: its certificates and clean accuracy, seed by seed, and what a step costs."""

    entry: Entry
    results: tuple[Result, ...]
    clean: tuple[float, ...]
    cost: Cost
    epoch_seconds: float


class Comparison:
    """A folder of runs: comparison.json, steps.json (the step times), runs/METHOD-seedN/, report/.

    Methods and seeds may be added later; what is done is not done again.

    Args:
        path: the folder. recipe: what the methods have in common. seconds: of training for each method; 0: the epochs
            of their recipes.
    """

    def __init__(self, path, recipe: Recipe, seconds: float = 0.0, environment: jobs.Environment = jobs.Environment()):
        self.path, self.recipe, self.environment = Path(path), recipe, environment
        self.seconds = check_between("seconds", seconds, 0, float("inf"), "left")
        self.data = fitting.load_training(recipe, environment)
        self.test = environment.load(recipe, "test")

    def claim(self, entries: Sequence[Entry], seeds: Sequence[int]) -> None:
        """Refuses what couldn't be trained or certified, then makes the folder with comparison.json.

        Raises:
            ValueError: the folder holds another comparison, another run, or other files; a batch that the devices can't
                share; seconds where a method has epochs of its own.
        """
        self._check(entries, seeds)
        claim_record(self.path / "comparison.json", {"seconds": self.seconds, "recipe": self.recipe}, "comparison")

    def _check(self, entries: Sequence[Entry], seeds: Sequence[int]) -> None:
        replicas = devices.strategy(self.environment.devices).num_replicas_in_sync
        for entry in entries:
            fitting.check_batch(entry.recipe, replicas)
            entry.recipe.objective()
            self.data.steps_per_epoch(entry.recipe.batch_size)
            if self.seconds and "epochs=" in entry.label:
                raise ValueError(f"method {entry.label!r} sets epochs, and --seconds too. Leave one out.")
            for seed in seeds:
                # With a budget in seconds the epochs are known only when the steps were timed.
                if not self.seconds:
                    self.run_folder(entry, seed).check(entry.recipe.replace(seed=seed))

    def run_folder(self, entry: Entry, seed: int) -> RunFolder:
        return RunFolder(self.path / "runs" / f"{entry.label.replace(':', ',')}-seed{seed}")

    def costs(self, entries: Sequence[Entry], rounds: int = 15) -> dict[str, Cost]:
        """Returns each method's step times, and Gaussian augmentation's, measured in turns; measured once, and kept."""
        file = self.path / "steps.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        trained = {e.label: {f: getattr(e.recipe, f) for f in OWN_FIELDS} for e in entries}
        # A method that a newer covkeras gives other weights is timed again; the baseline's first times stay the unit.
        current = [k for k, v in known.items() if k == BASELINE or v.get("trained") == trained.get(k)]
        missing = [e for e in entries if e.label not in current]
        if missing:
            sides = {BASELINE: Entry.parse(BASELINE, self.recipe)} | {e.label: e for e in missing}
            with jobs.progress_bar(total=2 + rounds, desc="time the steps", unit="round") as bar:
                seconds = interleave({k: self._step(e) for k, e in sides.items()}, rounds, bar.update)
            for label in [BASELINE, *(e.label for e in missing)]:
                if label in current:
                    continue
                ratios = np.array(seconds[label]) / np.array(seconds[BASELINE])
                known[label] = {"seconds": seconds[label], "ratios": ratios.tolist(), "trained": trained.get(label)}
            write_aside(file, lambda aside: aside.write_text(json.dumps(known, indent=1) + "\n"))
        return {label: Cost(tuple(k["seconds"]), tuple(k["ratios"])) for label, k in known.items()}

    def _step(self, entry: Entry):
        """A compiled training step of the method, on one batch of the data."""
        trainer = fitting.build_trainer(entry.recipe, self.data)
        images, labels = next(iter(self.data.batches(entry.recipe.batch_size, augmentation=entry.recipe.augmentation)))
        # Traced by hand: TensorFlow would warn of one function, several trainers' method, that is traced over and over.
        step = tf.function(trainer.train_step).get_concrete_function((images, labels))
        return lambda: step((images, labels))["loss"].numpy()

    def epoch_seconds(self, entry: Entry, costs: dict[str, Cost]) -> float:
        """The steps of an epoch, each Gaussian augmentation's median time times the method's ratio to it: methods that
        were timed on another day, on a machine busy otherwise, compare."""
        step = np.median(costs[BASELINE].seconds) * np.median(costs[entry.label].ratios)
        return float(step) * self.data.steps_per_epoch(entry.recipe.batch_size)

    def budgeted(self, entry: Entry, costs: dict[str, Cost]) -> Entry:
        """Returns the method with the epochs that the comparison's seconds hold, at least one."""
        if not self.seconds:
            return entry
        epochs = max(1, round(self.seconds / self.epoch_seconds(entry, costs)))
        return dataclasses.replace(entry, recipe=scaled(entry.recipe, epochs))

    def run(self, entry: Entry, seed: int) -> tuple[Result, float]:
        """Trains and certifies one method with one seed, or reads what is there.

        Returns:
            Its certificates, and the accuracy of the classifier itself, without noise, on the whole test split.
        """
        recipe, folder = entry.recipe.replace(seed=seed), self.run_folder(entry, seed)
        folder.claim(recipe)
        title = f"{entry.label} seed {seed}"
        classifier = fitting.train(recipe, folder, self.environment, f"train {title}")
        _, labels, certificates = jobs.certify(recipe, folder, classifier, self.environment, f"certify {title}")
        network = moments.MomentNetwork(classifier, recipe.sigma, recipe.r_max)
        images = self.test.head(recipe.certify_images).floats()
        fidelity = diagnostics.fidelity(network, images, certificates, self.data.head(64).floats())
        return Result(entry.label, labels, certificates, fidelity), clean_accuracy(classifier, self.test)


def clean_accuracy(classifier, data, batch_size: int = 500) -> float:
    """The share of images that the classifier itself, without noise, gets right."""
    batches = [slice(i, i + batch_size) for i in range(0, len(data), batch_size)]
    hits = [np.asarray(classifier(data.floats(b), training=False)).argmax(1) == data.labels[b] for b in batches]
    return float(np.concatenate(hits).mean())
