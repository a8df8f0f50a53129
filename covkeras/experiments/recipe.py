"""Recipe: every hyper-parameter of a run. Those of the method are what its objective declares."""

import dataclasses
import hashlib
import importlib
import json
import os
import sys

from covkeras import datasets, objectives
from covkeras.datasets.augmentation import AUGMENTATIONS
from covkeras.runtime import fields
from covkeras.runtime.files import is_keras_file
from covkeras.runtime.validation import check_enough

METHODS = tuple(objectives.METHODS)
# Names alone, so that a recipe, and a command's --help, is there at once; a test holds them against what they name.
MODELS = ("lenet", "lenet_5x5", "preact_resnet18", "narrow_resnet", "resnet110", "resnet50")
DENOISERS = ("dncnn", "unet")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("steps", "cosine")
NOISES = ("lattice", "gaussian")
CERTIFIED_PRECISIONS = ("float32", "bfloat16", "float16", "float64")
TUNERS = ("random", "bayesian", "hyperband", "grid", "ablation")
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def objective_kind(method: str) -> type[objectives.Objective]:
    """Returns the class of a method's objective, found by its name or its import path, "package.module:Class".

    Raises:
        ValueError: an unknown name; a path that leads to no subclass of Objective.
    """
    if method in objectives.METHODS:
        return objectives.METHODS[method]
    module, colon, name = str(method).partition(":")
    if not colon:
        known = ", ".join(METHODS)
        raise ValueError(f"method must be one of {known}, or your own as PACKAGE.MODULE:CLASS, got {method!r}.")
    # As `python -m` does: what lies in the folder that one works in is found, from an installed command too.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"method {method!r} can't be imported ({error}). Start the command in the folder that holds it, or "
            "install it."
        ) from None
    if not (isinstance(found, type) and issubclass(found, objectives.Objective)):
        raise ValueError(f"method {method!r} must be a subclass of covkeras.objectives.Objective, got {found!r}.")
    return found


def _check_method(name, value, why):
    if value != "none" or name == "method":
        objective_kind(value)
    return value


def split_method(text: str) -> tuple[str, str]:
    """Splits "METHOD:FIELD=VALUE,..." into the method, a name or an import path, and what it is given."""
    method, _, rest = text.partition(":")
    if method not in objectives.METHODS and "=" not in (name := rest.partition(":")[0]) and name:
        return f"{method}:{name}", rest.partition(":")[2]
    return method, rest


def _check_reference(name, value, why):
    # What it is given is read where the recipe is known.
    return value if value == "none" else _check_method(name, split_method(value)[0], why) and value


def _check_data(name, value, why):
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}. {why}")
    # Whole, as a model's path.
    return os.path.abspath(os.path.expanduser(value)) if datasets.is_own(value) else value


def _check_model(name, value, why):
    if is_keras_file(value):
        # The whole path: the same command must find it from another folder, or be told that it is another.
        return os.path.abspath(os.path.expanduser(value))
    if value not in MODELS:
        raise ValueError(f"{name} must be one of {', '.join(MODELS)}, or a .keras file, got {value!r}.")
    return value


@dataclasses.dataclass(frozen=True, init=False)
class Recipe:
    """Every hyper-parameter of a run. Checked when made; see the fields' help for their meaning.

    `hyper` holds those of the method, all that its objective declares and the recipe has no field for: `recipe.lam` and
    `Recipe(lam=2.0)` are theirs.
    """

    name: str = fields.text("digits", "the recipe's name")
    source: str = fields.text("", "where its values come from")
    data: str = fields.text(
        "digits", "data set: digits, one of TFDS' names, an .npz, or a folder of image files", _check_data
    )
    model: str = fields.text(
        "lenet",
        f"classifier: {', '.join(MODELS)}; or a .keras file, trained on from its weights in its own precision",
        _check_model,
    )
    denoiser: str = fields.choice("none", "denoiser in front of the classifier", ("none", *DENOISERS))
    method: str = fields.text(
        "covariance_radius", f"what training minimises: {', '.join(METHODS)}, or PACKAGE.MODULE:CLASS", _check_method
    )
    reference: str = fields.text(
        "gaussian_augmentation",
        "method trained beside it for comparison, as METHOD or METHOD:FIELD=VALUE,...; or none",
        _check_reference,
    )
    reference_epochs: float = fields.number(
        1.0,
        "epochs of the reference, times the recipe's own: the same time where its steps cost less",
        0,
        1000,
        "right",
    )
    sigma: float = fields.sigma()
    widen: float = fields.number(
        1.0, "training's noise over the certified; above 1 for large radii, in long trainings", 0, 2, "right", "1:1.25"
    )
    r_max: float = fields.r_max()
    label_noise: float = fields.number(0.0, "rate of pair flips of the training labels, i to i + 1", 0, 1, "left")
    augmentation: str = fields.choice("none", "random changes of the training images", AUGMENTATIONS)
    image_size: int = fields.count(0, "height and width to resize to; 0 = as stored", 0, 4096)
    train_images: int = fields.count(0, "training images to use; 0 = all", 0)
    train_on_validation: bool = fields.switch(
        False, "train on the validation images too, once the hyper-parameters are chosen"
    )
    epochs: int = fields.count(30, "passes over the training images; the recipe's schedule is scaled to other ones")
    batch_size: int = fields.count(64, "images per step, over all devices")
    optimizer: str = fields.choice("sgd", "what takes the steps", OPTIMIZERS)
    learning_rate: float = fields.number(0.01, "learning rate at the start", 0, search="0.001:0.1:log")
    schedule: str = fields.choice(
        "steps", "the learning rate: in steps by --decay-epochs, or down a cosine to zero", SCHEDULES
    )
    warmup_epochs: int = fields.count(0, "epochs in which the learning rate rises from zero", 0)
    decay_epochs: tuple[int, ...] = fields.epochs((), "epochs after which the learning rate is multiplied by --decay")
    decay: float = fields.number(0.1, "factor on the learning rate", 0, 1, "right")
    momentum: float = fields.number(0.9, "momentum of SGD", 0, 1, "left")
    weight_decay: float = fields.number(0.0, "decoupled weight decay", 0, closed="left", search="0.00001:0.01:log")
    precision: str = fields.choice(
        "auto", "arithmetic of the layers; auto = the fastest on this device, recorded", PRECISIONS
    )
    seed: int = fields.count(0, "seed of weights, order, training and certification noise", 0, 2**31 - 1)
    certify_images: int = fields.count(200, "test images to certify")
    certify_every: int = fields.count(1, "take every so many-th image, from the first")
    certify_split: str = fields.choice(
        "test", "whose images: validation where hyper-parameters are chosen", ("test", "validation")
    )
    certify_n0: int = fields.count(100, "samples to choose the class")
    certify_n: int = fields.count(10_000, "samples to bound its probability", high=10_000_000)
    certify_alpha: float = fields.number(0.001, "probability that a certificate is wrong", 0, 1)
    certify_noise: str = fields.choice("lattice", "noise of certification: exact, or float32's", NOISES)
    certify_shared_noise: bool = fields.switch(False, "one stream of noise for all images: faster, correlated errors")
    certify_precision: str = fields.choice(
        "own", "arithmetic of the certified classifier; own = as trained", ("own", *CERTIFIED_PRECISIONS)
    )
    certify_batch: int = fields.count(0, "noisy copies per forward pass; 0 = by the image's size", 0)
    hyper: dict = dataclasses.field(default_factory=dict, hash=False)

    def __init__(self, hyper: dict | None = None, **values):
        own = self.own_fields()
        given = {**(hyper or {}), **{name: value for name, value in values.items() if name not in own}}
        for name, field in own.items():
            object.__setattr__(self, name, fields.check(field, values.get(name, field.default)))
        declared = self.declared()
        if unknown := sorted(set(given) - set(declared)):
            raise ValueError(
                f"recipe has unknown fields {unknown}; {self.method} has {', '.join(declared) or 'none of its own'}, "
                f"and every recipe has {', '.join(own)}."
            )
        checked = {name: fields.check(field, given.get(name, field.default)) for name, field in declared.items()}
        object.__setattr__(self, "hyper", checked)
        check_enough("certify_n", self.certify_n, self.certify_alpha)
        if self.train_on_validation and self.certify_split == "validation":
            raise ValueError(
                "certify_split must be test where train_on_validation is true: the network has seen the validation "
                "images. Leave --train-on-validation out while you choose."
            )

    def __getattr__(self, name):
        hyper = vars(self).get("hyper", {})
        if name in hyper:
            return hyper[name]
        raise AttributeError(f"recipe has no {name!r}; of its method {vars(self).get('method')} it has {list(hyper)}")

    @classmethod
    def own_fields(cls) -> dict[str, fields.Field]:
        """Returns what every recipe has, {name: field}."""
        return {name: field for name, field in fields.fields_of(cls).items() if name != "hyper"}

    def declared(self) -> dict[str, fields.Field]:
        """Returns what the recipe's method declares besides, {name: field}."""
        return own_hyperparameters(self.method)

    def field(self, name: str) -> fields.Field | None:
        """Returns a field of the recipe or of its method by its name."""
        return self.own_fields().get(name) or self.declared().get(name)

    def values(self) -> dict:
        """Returns {name: value}: the recipe's fields, then its method's."""
        return {**self._own_values(), **self.hyper}

    def _own_values(self) -> dict:
        return {name: getattr(self, name) for name in self.own_fields()}

    def replace(self, **changes) -> "Recipe":
        """Returns a copy with other values; of another method, as `with_method`."""
        return self.with_method(**{"method": self.method, **changes})

    def with_method(self, method: str, **changes) -> "Recipe":
        """Returns a copy for another method, with what that one's authors publish for these data and this sigma.

        The recipe's weights are its own method's. Every program changes methods this way, so that a method trains the
        same from each. changes: fields that are told otherwise.
        """
        if method == self.method:
            return Recipe(**{**self.values(), **changes})
        shared = self._own_values()
        shared |= {name: value for name, value in changes.items() if name in shared} | {"method": method}
        switch_epoch = changes.get("switch_epoch", self.hyper.get("switch_epoch", 0))
        kind = objective_kind(method)
        own = kind.published(shared["data"], shared["sigma"], shared["epochs"], switch_epoch)
        return Recipe(**{**shared, **own, **changes})

    def diff(self, other: "Recipe") -> dict[str, tuple]:
        """Returns {field: (here, there)} of the fields that differ; None where one has no such field."""
        here, there = self.values(), other.values()
        pairs = ((name, here.get(name), there.get(name)) for name in {**here, **there})
        return {name: (a, b) for name, a, b in pairs if a != b}

    def digest(self) -> str:
        """Returns 16 hexadecimal digits that identify the values."""
        return digest_of(self.to_json())

    def to_json(self) -> str:
        return json.dumps({**self._own_values(), "hyper": self.hyper}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Reads `to_json`'s text, a part of it, or one of a version in which every recipe had every method's fields.

        Raises:
            ValueError: an unknown field, with those that are known.
        """
        values = json.loads(text)
        values = {**values, **values.pop("hyper", {})}
        method = values.pop("method", cls.method)
        if _of_an_older_version(values):
            values = {k: v for k, v in values.items() if k in cls.own_fields() or k in own_hyperparameters(method)}
        if method == cls.method:
            return cls(method=method, **values)
        # A file that names a method and not its weights means the method's.
        return cls().with_method(method, **values)

    def objective(self, method: str | None = None) -> objectives.Objective:
        """Builds the objective of `method` (by default the recipe's own) from the values it takes, for training: its
        sigma is `widen` times the certified one."""
        recipe = self.with_method(method or self.method)
        kind, values = objective_kind(recipe.method), {**recipe.values(), "sigma": recipe.sigma * recipe.widen}
        return kind(**{name: values[name] for name in kind.hyperparameters()})


def own_hyperparameters(method: str) -> dict[str, fields.Field]:
    """Returns what a method declares that no recipe has without it, {name: field}."""
    own = Recipe.own_fields()
    return {name: field for name, field in objective_kind(method).hyperparameters().items() if name not in own}


def digest_of(text: str) -> str:
    """Returns 16 hexadecimal digits that identify a recipe's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_an_older_version(values: dict) -> bool:
    """Whether a file was written when every recipe had the fields of all methods, which mattered to their own alone."""
    return {"source", "lam", "gamma", "noisy_mean", "certify_alpha"} <= set(values)
