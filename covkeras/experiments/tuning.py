"""Search for the recipe with the largest certified radius: a keras-tuner HyperModel over any fields of a recipe."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import keras_tuner as kt
import numpy as np

from covkeras.experiments import fitting, jobs
from covkeras.experiments.inputs import claim_inputs
from covkeras.experiments.recipe import TUNERS
from covkeras.experiments.recipes import Recipe, scaled
from covkeras.experiments.runs import RunFolder, claim_record
from covkeras.experiments.tuning_space import Objective, Range, check_space
from covkeras.runtime.devices import strategy
from covkeras.runtime.interrupts import Interrupted
from covkeras.runtime.validation import check_between, check_choice, check_count


class _Halt(Interrupted, kt.errors.FatalError):
    """A stop that keras-tuner lets through: it takes any other exception for a failed trial."""


class CertifiedHyperModel(kt.HyperModel):
    """Trains a trial's recipe in a run folder of its own and certifies a fixed sample of validation images.

    Every trial has the same seeds: the same weights at the start and, in certification, the same noise, so that trials
    differ by their hyperparameters alone. The folder is named by the recipe's digest: a trial that is run again goes on
    where it stopped. Hyperband's shorter rungs are shorter runs, the schedule scaled to them.

    Args:
        recipe: what the trials have in common. space: what differs. folder: of the search.
        objective: to maximise. environment: where and how.
    """

    def __init__(
        self, recipe: Recipe, space: Sequence[Range], folder, objective=Objective(), environment=jobs.Environment()
    ):
        super().__init__(name="certified")
        self.recipe, self.space, self.folder = recipe, tuple(space), Path(folder)
        check_space(self.space, recipe)
        self.objective, self.environment = objective, environment
        self.data = fitting.load_training(recipe, environment)

    def hyperparameters(self) -> kt.HyperParameters:
        """Returns the whole space, declared up front: workers must agree on it before the first trial."""
        hp = kt.HyperParameters()
        for one in self.space:
            one.declare(hp)
        return hp

    def trial_recipe(self, hp: kt.HyperParameters) -> Recipe:
        """Returns the recipe of a trial's values."""
        values = {one.field: one.declare(hp) for one in self.space}
        # The schedule goes with the epochs.
        base = scaled(self.recipe, values["epochs"]) if "epochs" in values else self.recipe
        recipe = base.replace(**values)
        return scaled(recipe, hp.values["tuner/epochs"]) if "tuner/epochs" in hp.values else recipe

    def build(self, hp):
        with strategy(self.environment.devices).scope():
            return fitting.build_trainer(self.trial_recipe(hp), self.data)

    def fit(self, hp, model, *args, **kwargs) -> dict[str, float]:
        """Returns {objective: value}; a trial whose loss is not finite is marked as failed."""
        return {self.objective.text: self.score(self.trial_recipe(hp), model)}

    def score(self, recipe: Recipe, trainer=None) -> float:
        """Trains and certifies one recipe, or reads what is there, and returns the objective's value."""
        folder = self.run_folder(recipe)
        folder.claim(recipe)
        try:
            classifier = fitting.train(recipe, folder, self.environment, f"train {label(recipe, self.space)}", trainer)
            _, labels, certificates = jobs.certify(
                recipe, folder, classifier, self.environment, "certify", split="validation"
            )
        except fitting.NonFiniteLoss as error:
            raise kt.errors.FailedTrialError(str(error)) from None
        except Interrupted:
            raise _Halt from None
        except OSError as error:
            raise kt.errors.FatalError(str(error)) from error
        return self.objective.value(certificates, labels)

    def run_folder(self, recipe: Recipe) -> RunFolder:
        return RunFolder(self.folder / "runs" / recipe.digest())


def label(recipe: Recipe, space: Sequence[Range]) -> str:
    """Names a trial by what differs: "lam 4, r_max 0.1"."""
    # A baseline of another method has no such field.
    values = ((one.field, recipe.values()[one.field]) for one in space if one.field in recipe.values())
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values)


class CertifiedTuner(kt.Tuner):
    """Runs trials of a CertifiedHyperModel with any keras-tuner oracle; `load_model` gives a trial's classifier."""

    def run_trial(self, trial, *args, **kwargs):
        return self.hypermodel.fit(trial.hyperparameters, self.hypermodel.build(trial.hyperparameters))

    def load_model(self, trial):
        recipe = self.hypermodel.trial_recipe(trial.hyperparameters)
        return fitting.train(recipe, self.hypermodel.run_folder(recipe), self.hypermodel.environment)


class AblationOracle(kt.Oracle):
    """Runs given trials in their order."""

    def __init__(self, designs: list[dict], **kwargs):
        super().__init__(**kwargs)
        self.designs = designs

    def populate_space(self, trial_id):
        place = len(self.start_order)
        if place >= len(self.designs):
            return {"status": kt.engine.trial.TrialStatus.STOPPED, "values": None}
        return {"status": kt.engine.trial.TrialStatus.RUNNING, "values": self.designs[place]}


def designs(hypermodel: CertifiedHyperModel) -> list[dict]:
    """Returns the values of an ablation's trials: one field at a time over its list, the others as in the recipe."""
    values = hypermodel.recipe.values()
    base = {one.field: values.get(one.field, one.values[0]) for one in hypermodel.space}
    made = []
    for one in hypermodel.space:
        for value in one.values:
            if (design := {**base, one.field: value}) not in made:
                made.append(design)
    return made


def check_tuner(hypermodel: CertifiedHyperModel, kind: str, trials: int, seed: int) -> None:
    """Refuses a tuner that can't be made. Raises ValueError: unknown; a grid over intervals; trials, seed."""
    check_choice("tuner", kind, TUNERS)
    check_count("trials", trials)
    check_count("seed", seed, 0, 2**31 - 1)
    if kind in ("grid", "ablation") and any(not one.values for one in hypermodel.space):
        raise ValueError(f"the {kind} tuner takes lists, such as lam=0,0.5,1,4; got an interval.")


def make_tuner(hypermodel: CertifiedHyperModel, kind: str = "bayesian", trials: int = 12, seed: int = 0):
    """Returns the keras-tuner Tuner; the same folder resumes. With KERASTUNER_* set, this process is chief or worker.

    Args:
        hypermodel: what to search. kind: of TUNERS. trials: at most; Hyperband stops after one sweep if that is sooner.
        seed: of the oracle.

    Raises:
        ValueError: an unknown tuner; a grid over intervals; a folder of another search, the differences listed.
    """
    check_tuner(hypermodel, kind, trials, seed)
    claim(hypermodel, kind, seed)
    common = {
        "objective": kt.Objective(hypermodel.objective.text, "max"),
        "hyperparameters": hypermodel.hyperparameters(),
        "allow_new_entries": False,
        "max_consecutive_failed_trials": trials,
        # keras-tuner takes 0 for no seed.
        "seed": seed + 1,
    }
    if kind == "hyperband":
        oracle = kt.oracles.HyperbandOracle(max_epochs=hypermodel.recipe.epochs, factor=3, **common)
        oracle.max_trials = trials
    elif kind == "ablation":
        oracle = AblationOracle(designs(hypermodel), max_trials=trials, **common)
    else:
        oracles = {
            "random": kt.oracles.RandomSearchOracle,
            "bayesian": kt.oracles.BayesianOptimizationOracle,
            "grid": kt.oracles.GridSearchOracle,
        }
        oracle = oracles[kind](max_trials=trials, **common)
    return CertifiedTuner(oracle, hypermodel, directory=str(hypermodel.folder), project_name="trials", overwrite=False)


def set_damage_aside(project: Path, report=print) -> Path | None:
    """Moves keras-tuner's own records aside where a file of theirs is cut, as a full disk leaves them.

    A search can be told again from its runs, which are named by their recipes: the tuner proposes the same trials
    again, and those that are done are read.

    Returns:
        The damaged file's new place, or None.
    """
    for file in [*sorted(project.glob("*.json")), *sorted(project.glob("trial_*/trial.json"))]:
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            aside = next(p for i in range(1_000) if not (p := project.with_name(f"{project.name}.damaged{i}")).exists())
            project.rename(aside)
            damaged = aside / file.relative_to(project)
            report(
                f"{damaged} is damaged ({error}): keras-tuner's records are set aside, in {aside}. The search goes on; "
                "trials that were done are read from their runs."
            )
            return damaged
    return None


def claim(hypermodel: CertifiedHyperModel, kind: str, seed: int) -> None:
    """Writes search.json, or refuses a folder of another search before the first trial."""
    here = {
        "tuner": kind,
        "seed": seed,
        "objective": hypermodel.objective.text,
        "space": [dataclasses.asdict(one) for one in hypermodel.space],
        "recipe": hypermodel.recipe,
    }
    claim_record(hypermodel.folder / "search.json", here, "search")
    claim_inputs(hypermodel.folder, hypermodel.recipe, hypermodel.environment)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One row of a search: name, the recipe, its score (None where it failed), and whether a seed or a baseline."""

    name: str
    recipe: Recipe
    score: float | None
    status: str = "done"


def trials_of(oracle, hypermodel: CertifiedHyperModel) -> list[Trial]:
    """Returns the oracle's trials, the best first, the failed last."""
    rows = []
    for trial in oracle.trials.values():
        recipe = hypermodel.trial_recipe(trial.hyperparameters)
        rows.append(Trial(label(recipe, hypermodel.space), recipe, trial.score, trial.status.lower()))
    return sorted(rows, key=lambda row: (np.inf if row.score is None else -row.score, row.name))


def baselines(recipe: Recipe) -> dict[str, Recipe]:
    """Returns what must stand beside any winner: the method without its robustness loss, and noise alone."""
    plain = {"gaussian_augmentation": recipe.with_method("gaussian_augmentation")}
    return {"lam 0": recipe.replace(lam=0.0), **plain} if "lam" in recipe.hyper else plain


def over_seeds(hypermodel: CertifiedHyperModel, recipe: Recipe, seeds: int) -> np.ndarray:
    """Returns the scores of a recipe trained with the seeds recipe.seed, recipe.seed + 1, ..."""
    check_between("seeds", seeds, 1, 1_000, closed="both")
    return np.array([hypermodel.score(recipe.replace(seed=recipe.seed + i)) for i in range(seeds)])
