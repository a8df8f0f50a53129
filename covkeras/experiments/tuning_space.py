"""What a search varies and what it maximises: ranges of a recipe's fields, and the objective."""

import dataclasses
import math
from collections.abc import Sequence

import keras_tuner as kt

from covkeras.certification.certificates import average_certified_radius, certified_accuracy
from covkeras.experiments.recipe import METHODS, Recipe, objective_kind, own_hyperparameters
from covkeras.experiments.recipes import check_schedule, scaled
from covkeras.runtime import fields

_NOT_SEARCHED = ("name", "source", "data", "reference", "reference_epochs", "decay_epochs", "seed")


def searchable(recipe: Recipe) -> dict[str, fields.Field]:
    """Returns what a search may vary, {name: field}: the recipe's fields, its method's, and those of other methods,
    which a search over methods may name."""
    others = [own_hyperparameters(method) for method in METHODS]
    # Last what the method declares: the range of a field that recipes have too, such as r_max, is the method's.
    declared = objective_kind(recipe.method).hyperparameters()
    every = {name: field for one in [*others, recipe.own_fields(), declared] for name, field in one.items()}
    return {n: field for n, field in every.items() if n not in _NOT_SEARCHED and not n.startswith("certify_")}


@dataclasses.dataclass(frozen=True)
class Range:
    """What a recipe's field may be in a search: an interval, or a list of values.

    field: its name. low, high: of the interval; whole numbers for a field of whole numbers. log: whether it is searched
    by its logarithm. values: the list instead.
    """

    field: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    values: tuple = ()

    @classmethod
    def parse(cls, text: str, recipe: Recipe = Recipe()) -> "Range":
        """Reads "lam=0:8", "learning_rate=0.001:0.1:log" or "r_max=0,0.1,0.2"; "lam" alone is the range it declares.

        Raises:
            ValueError: an unknown field, an empty or inverted range, a value that the field refuses.
        """
        name, equals, rest = text.partition("=")
        name = name.strip().replace("-", "_")
        known = searchable(recipe)
        if name not in known:
            raise ValueError(f"search {text!r} must be FIELD=LOW:HIGH or FIELD=A,B,C, FIELD one of {list(known)}.")
        field = known[name]
        rest = rest if equals else field.metadata.get("search", "")
        if not equals and not rest:
            raise ValueError(f"search {text!r} must be FIELD=LOW:HIGH or FIELD=A,B,C: {name} declares no range.")
        if "," in rest or ":" not in rest:
            values = tuple(fields.read(field, v) for v in rest.split(",") if v.strip())
            if not values or len(set(values)) < len(values):
                raise ValueError(f"search {text!r} must list different values, such as {name}=1,2.")
            return cls(name, values=values)
        low, high, *scale = rest.split(":")
        if scale not in ([], ["log"]) or type(field.default) not in (float, int):
            raise ValueError(f"search {text!r} must be FIELD=LOW:HIGH[:log] of numbers, or a list FIELD=A,B,C.")
        low, high = fields.read(field, low), fields.read(field, high)
        if low >= high or (scale and low <= 0):
            raise ValueError(f"search {text!r} must have LOW below HIGH{', both above 0 for log' if scale else ''}.")
        return cls(name, low, high, bool(scale))

    def declare(self, hp: kt.HyperParameters):
        """Registers the range with keras-tuner and returns the field's value in this trial."""
        # As it was read: whole numbers for a field of whole numbers.
        kind = type(self.values[0] if self.values else self.low)
        if self.values:
            # keras-tuner makes 0 and 1 of booleans.
            return kind(hp.Choice(self.field, list(self.values), ordered=kind in (float, int)))
        number = hp.Int if kind is int else hp.Float
        return number(self.field, self.low, self.high, sampling="log" if self.log else "linear")


def declared_space(recipe: Recipe) -> list[Range]:
    """Returns the ranges that the recipe's method declares for a search.

    Raises:
        ValueError: it declares none.
    """
    declared = objective_kind(recipe.method).hyperparameters().items()
    names = [name for name, field in declared if field.metadata.get("search")]
    if not names:
        raise ValueError(f"method {recipe.method} declares nothing to search: give --search, such as learning_rate.")
    return [Range.parse(name, recipe) for name in names]


def check_space(space: Sequence[Range], recipe: Recipe) -> None:
    """Refuses a range of what a method of the search doesn't have, or of epochs that never come. Raises ValueError."""
    methods = next((one.values for one in space if one.field == "method"), (recipe.method,))
    for one in space:
        for method in methods:
            if one.field not in recipe.own_fields() and one.field not in own_hyperparameters(method):
                known = ", ".join(own_hyperparameters(method)) or "nothing of its own"
                raise ValueError(f"search {one.field!r} must be a field of the method {method}, which has {known}.")
    ends = {one.field: one.values or (one.low, one.high) for one in space}
    shortest = scaled(recipe, min(ends["epochs"])) if "epochs" in ends else recipe
    for method in methods:
        late = {
            n: max(v) for n, v in ends.items() if (f := own_hyperparameters(method).get(n)) and f.metadata.get("epoch")
        }
        check_schedule(shortest.with_method(method, **late))


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a search maximises, on validation images: "acr", or "accuracy@R", the certified accuracy at radius R."""

    text: str = "acr"

    def __post_init__(self):
        kind, _, radius = self.text.partition("@")
        try:
            valid = self.text == "acr" or (kind == "accuracy" and 0 <= float(radius) < math.inf)
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"objective must be acr or accuracy@RADIUS, such as accuracy@0.5, got {self.text!r}.")

    def value(self, certificates, labels) -> float:
        if self.text == "acr":
            return average_certified_radius(certificates, labels)
        return float(certified_accuracy(certificates, labels, [float(self.text.partition("@")[2])])[0])
