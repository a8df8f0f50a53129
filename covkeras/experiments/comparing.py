"""Methods against each other: one recipe, one budget, the same images and the same noise of certification."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covkeras.experiments import fitting, jobs
from covkeras.experiments.building import check_parts
from covkeras.experiments.inputs import claim_inputs
from covkeras.experiments.recipe import split_method
from covkeras.experiments.recipes import Recipe, check_schedule, scaled
from covkeras.experiments.result import Result
from covkeras.experiments.runs import RunFolder, claim_record
from covkeras.runtime import fields
from covkeras.runtime.files import write_text_aside
from covkeras.runtime.timing import interleave
from covkeras.runtime.validation import check_between

BASELINE = "gaussian_augmentation"
# What belongs to the comparison; methods may differ in all else: how they train.
_SHARED = (
    "name",
    "source",
    "data",
    "model",
    "method",
    "reference",
    "reference_epochs",
    "sigma",
    "seed",
    "image_size",
    "decay_epochs",
    "train_on_validation",
)


ASKED = "asked.json"


def asked(path: Path) -> dict[str, list]:
    """Returns the methods and seeds that a comparison's folder was asked for, {"methods": [...], "seeds": [...]}.

    Raises:
        ValueError: the record is damaged.
    """
    file = Path(path) / ASKED
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"methods": [], "seeds": []}
        return {"methods": [str(m) for m in found["methods"]], "seeds": [int(s) for s in found["seeds"]]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it, and name --methods and --seeds again.") from None


def own_fields(recipe: Recipe) -> tuple[str, ...]:
    """Returns the names of what a method of a comparison may be given: how it trains, and what it declares."""
    return tuple(name for name in recipe.values() if name not in _SHARED and not name.startswith("certify_"))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method of a comparison: its name in tables, and its recipe."""

    label: str
    recipe: Recipe

    @classmethod
    def parse(cls, text: str, recipe: Recipe) -> "Entry":
        """Reads "consistency", "consistency:lam=5,antithetic=true" or "package.module:Class:lam=5".

        Other epochs scale the schedule with them. The recipe's own method
        keeps the recipe's weights, another one has its authors'.

        Raises:
            ValueError: an unknown method or field, or a value that the field refuses.
        """
        method, rest = split_method(text)
        own = recipe.with_method(method)
        changes = {}
        for part in filter(None, rest.split(",")):
            name, equals, value = part.partition("=")
            name = name.strip().replace("-", "_")
            if not equals or name not in own_fields(own):
                known = list(own_fields(own))
                raise ValueError(f"method {text!r} must be METHOD:FIELD=VALUE,..., FIELD one of {known}.")
            changes[name] = fields.read(own.field(name), value)
        own = scaled(own, changes["epochs"]) if "epochs" in changes else own
        return cls(text, check_schedule(own.replace(reference="none", **changes)))


def _holds(record: dict | None, values: dict | None) -> bool:
    return bool(record and values) and values.items() <= record.items()


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
    seeds: tuple[int, ...] = ()


def run_name(label: str, seed: int) -> str:
    """A run's folder below runs/: one, whatever paths, such as a teacher's, the label holds."""
    name = label.translate(str.maketrans({":": ",", "/": "_", "\\": "_"}))
    return f"{name}-seed{seed}"


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
        claim_inputs(self.path, self.recipe, self.environment)

    def ask(self, methods: Sequence[str], seeds: Sequence[int]) -> None:
        """Adds to what the folder is asked for, in asked.json: `--continue` does what of it is missing."""
        known = asked(self.path)
        both = {
            name: [*known[name], *(value for value in values if value not in known[name])]
            for name, values in (("methods", methods), ("seeds", seeds))
        }
        if both != known:
            write_text_aside(self.path / ASKED, json.dumps(both, indent=1) + "\n")

    def _check(self, entries: Sequence[Entry], seeds: Sequence[int]) -> None:
        for entry in entries:
            fitting.check_devices(entry.recipe, self.environment)
            check_parts(entry.recipe)
            self.data.steps_per_epoch(entry.recipe.batch_size)
            if self.seconds and "epochs=" in entry.label:
                raise ValueError(f"method {entry.label!r} sets epochs, and --seconds too. Leave one out.")
            for seed in seeds:
                # With a budget in seconds the epochs are known only when the steps were timed.
                if not self.seconds:
                    self.run_folder(entry, seed).check(entry.recipe.replace(seed=seed))

    def run_folder(self, entry: Entry, seed: int) -> RunFolder:
        return RunFolder(self.path / "runs" / run_name(entry.label, seed))

    def costs(self, entries: Sequence[Entry], rounds: int = 15) -> dict[str, Cost]:
        """Returns each method's step times, and Gaussian augmentation's, measured in turns; measured once, and kept."""
        file = self.path / "steps.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        trained = {e.label: {f: e.recipe.values()[f] for f in own_fields(e.recipe)} for e in entries}
        # A method that a newer covkeras gives other weights is timed again; the baseline's first times stay the unit.
        # An older record holds the fields of all methods.
        current = [k for k, v in known.items() if k == BASELINE or _holds(v.get("trained"), trained.get(k))]
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
            write_text_aside(file, json.dumps(known, indent=1) + "\n")
        return {label: Cost(tuple(k["seconds"]), tuple(k["ratios"])) for label, k in known.items()}

    def _step(self, entry: Entry):
        return fitting.step_of(entry.recipe, self.data)

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
        certified = jobs.certify(recipe, folder, classifier, self.environment, f"certify {title}")
        data, chosen = self.environment.load_certified(recipe)
        fidelity = jobs.estimates(recipe, classifier, data.floats(chosen), certified[2], self.data.head(64))
        return jobs.result_of(entry.label, recipe, certified, fidelity), fitting.clean_accuracy(classifier, self.test)
