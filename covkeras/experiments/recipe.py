"""Recipe: every hyperparameter of a run, with its range."""

import dataclasses
import hashlib
import json
import math

from covkeras.datasets.augmentation import AUGMENTATIONS
from covkeras.runtime.validation import check_between, check_choice, check_count, check_enough

# Names alone, so that a recipe, and a command's --help, is there at once; a test holds them against what they name.
MODELS = ("lenet", "lenet_5x5", "preact_resnet18")
METHODS = (
    *("gaussian_augmentation", "covariance_radius", "adjoint_radius", "macer", "consistency"),
    *("cross_entropy", "truncated_lq"),
)
RADIUS_LOSSES, CLASSIFY_ON, GATES = ("hinge", "probit"), ("copy", "mean"), ("calibrated", "propagated")
NOISES = ("lattice", "gaussian")
CERTIFIED_PRECISIONS = ("float32", "bfloat16", "float16")
TUNERS = ("random", "bayesian", "hyperband", "grid", "ablation")
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def objective_kind(method: str):
    """Returns the class of a method's objective."""
    from covkeras import objectives

    return objectives.METHODS[check_choice("method", method, METHODS)]


def _field(default, help_text: str, **limits):
    return dataclasses.field(default=default, metadata={"help": help_text, **limits})


def _number(default, help_text, low, high=math.inf, closed="neither"):
    return _field(default, help_text, low=low, high=high, closed=closed)


def _count(default, help_text, low=1, high=None):
    return _field(default, help_text, low=low, high=high)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every hyperparameter of a run. Checked when made; see the fields' help for their meaning."""

    name: str = _field("digits", "the recipe's name")
    source: str = _field("", "where its values come from")
    data: str = _field("digits", "data set")
    model: str = _field("lenet", "classifier", choices=MODELS)
    method: str = _field("covariance_radius", "what training minimises", choices=METHODS)
    reference: str = _field(
        "gaussian_augmentation", "method trained beside it for comparison", choices=(*METHODS, "none")
    )
    sigma: float = _number(0.5, "noise level in [0, 1] pixel units", 0)
    lam: float = _number(4.0, "weight of the robustness loss", 0, closed="left")
    gamma: float = _number(
        8.0,
        "hinge offset: a radius for covariance_radius, sd for adjoint_radius, a difference of quantiles for macer",
        0,
    )
    r_max: float = _number(0.1, "bound on the correlation between pixels", 0, 1, closed="left")
    switch_epoch: int = _count(0, "epoch (from 0) at which lam is switched on", 0)
    num_copies: int = _count(0, "noisy copies of macer (0 = 16) and consistency (0 = 2)", 0)
    eta: float = _number(0.5, "weight of consistency's entropy", 0, closed="left")
    antithetic: bool = _field(False, "the two copies of consistency are x + eps and x - eps")
    radius_loss: str = _field("hinge", "adjoint_radius's loss of the radius", choices=RADIUS_LOSSES)
    classify_on: str = _field(
        "copy",
        "adjoint_radius's cross-entropy: a noisy copy, or the propagated mean",
        choices=CLASSIFY_ON,
    )
    gates: str = _field(
        "calibrated",
        "adjoint_radius's gates: measured on the copy at hand, or propagated",
        choices=GATES,
    )
    sampled_share: float = _number(0.0, "share of the noise adjoint_radius samples, not propagates", 0, 1, "both")
    radius_every: int = _count(1, "adjoint_radius estimates the radius of every k-th image of a batch")
    consistency: float = _number(0.0, "weight of Consistency's divergence within adjoint_radius", 0, closed="left")
    noisy_mean: bool = _field(False, "add one noise sample to the input's mean (published code, not the paper)")
    stop_covariance_gradient: bool = _field(False, "take the covariance as a constant (published code, not the paper)")
    relu_inflation: float = _number(
        0.0, "times I added to the covariance at every ReLU (published code: .1)", 0, closed="left"
    )
    covariance_bound: bool = _field(
        False, "+2|S_12| for -2 S_12 in the margin's variance (published code, not the paper)"
    )
    sigma_free_hinge: bool = _field(False, "hinge on radius / sigma (published code, not the paper)")
    drop_share: float = _number(
        0.0, "share of images whose classification loss is dropped (noisy labels)", 0, 1, "left"
    )
    drop_epoch: int = _count(0, "epoch (from 0) from which it is dropped, or L_q truncated", 0)
    drop_smallest: bool = _field(False, "drop the images with the smallest propagated radius, not the largest")
    label_noise: float = _number(0.0, "rate of pair flips of the training labels, i to i + 1", 0, 1, "left")
    lq: float = _number(0.7, "q of the truncated L_q loss", 0, 1, "right")
    lq_floor: float = _number(0.5, "probability below which L_q is truncated", 0, 1, "left")
    augmentation: str = _field("none", "random changes of the training images", choices=AUGMENTATIONS)
    image_size: int = _count(0, "height and width to resize to; 0 = as stored", 0)
    train_images: int = _count(0, "training images to use; 0 = all", 0)
    epochs: int = _count(30, "passes over the training images")
    batch_size: int = _count(64, "images per step, over all devices")
    learning_rate: float = _number(0.01, "of SGD, at the start", 0)
    decay_epochs: tuple[int, ...] = _field((), "epochs after which the learning rate is multiplied by --decay")
    decay: float = _number(0.1, "factor on the learning rate", 0, 1, closed="right")
    momentum: float = _number(0.9, "of SGD", 0, 1, closed="left")
    weight_decay: float = _number(0.0, "of SGD, decoupled", 0, closed="left")
    precision: str = _field(
        "auto", "arithmetic of the layers; auto = the fastest on this device, recorded", choices=PRECISIONS
    )
    seed: int = _count(0, "of weights, order, training and certification noise", 0, 2**31 - 1)
    certify_images: int = _count(200, "test images to certify")
    certify_n0: int = _count(100, "samples to choose the class")
    certify_n: int = _count(10_000, "samples to bound its probability", high=10_000_000)
    certify_alpha: float = _number(0.001, "probability that a certificate is wrong", 0, 1)
    certify_noise: str = _field("lattice", "noise of certification: exact, or float32's", choices=NOISES)
    certify_shared_noise: bool = _field(False, "one stream of noise for all images: faster, correlated errors")
    certify_precision: str = _field(
        "own", "arithmetic of the certified classifier; own = as trained", choices=("own", *CERTIFIED_PRECISIONS)
    )
    certify_batch: int = _count(0, "noisy copies per forward pass; 0 = by the image's size", 0)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        check_enough("certify_n", self.certify_n, self.certify_alpha)

    def replace(self, **changes) -> "Recipe":
        """Returns a copy with other values."""
        return dataclasses.replace(self, **changes)

    def with_method(self, method: str, **changes) -> "Recipe":
        """Returns a copy for another method, with what that one's authors publish for these data and this sigma.

        The recipe's weights are its own method's. Every program changes methods this way, so that a method trains the
        same from each. changes: fields that are told otherwise.
        """
        other = self.replace(**changes)
        if method == self.method:
            return other
        own = objective_kind(method).published(other.data, other.sigma, other.epochs, other.switch_epoch)
        # What a method publishes nothing about is as it was before there was a method to tune.
        own = {"lam": 4.0, "gamma": 8.0, "switch_epoch": 0, "noisy_mean": False, **own} if own else {}
        return self.replace(**{"method": method, **own, **changes})

    def diff(self, other: "Recipe") -> dict[str, tuple]:
        """Returns {field: (here, there)} of the fields that differ."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return {name: (here, there) for name, here, there in pairs if here != there}

    def digest(self) -> str:
        """Returns 16 hexadecimal digits that identify the values."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def value(cls, name: str, text: str):
        """Returns a field's value from its text, checked. Raises ValueError."""
        kind = cls.__dataclass_fields__[name].type
        try:
            value = {"true": True, "false": False}[text.strip().lower()] if kind is bool else kind(text.strip())
        except (ValueError, KeyError):
            raise ValueError(f"{name} must be {kind.__name__}, got {text!r}.") from None
        cls(**{name: value})
        return value

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Reads `to_json`'s text. Raises ValueError naming an unknown field, with those that are known."""
        values = json.loads(text)
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"recipe has unknown fields {unknown}; known are {', '.join(known)}.")
        # A file that names a method and not its weights means the method's.
        return cls().with_method(**{"method": cls.method, **values})

    def objective(self, method: str | None = None):
        """Builds the objective of `method` (by default the recipe's own) from the fields it takes."""
        method = method or self.method
        kind = objective_kind(method)
        return kind(**{name: getattr(self, name) for name in kind.hyperparameters()})


def _checked(field: dataclasses.Field, value):
    """The value, of the field's type and in its range; else an error that names both."""
    limits, name = field.metadata, field.name
    if "choices" in limits:
        return check_choice(name, value, limits["choices"])
    if field.type is float:
        return check_between(
            name, value, limits["low"], limits["high"], limits["closed"], f"It is the {limits['help']}."
        )
    if field.type is int:
        return check_count(name, value, limits["low"], limits["high"])
    if field.type is bool and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    if field.type is str and not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}.")
    if name == "decay_epochs":
        return tuple(check_count("decay_epochs", v) for v in value)
    return value
