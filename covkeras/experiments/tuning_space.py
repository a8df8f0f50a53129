"""What a search varies and what it maximises: ranges of a recipe's fields, and the objective."""

import dataclasses
import math

import keras_tuner as kt

from covkeras.certification.certificates import average_certified_radius, certified_accuracy
from covkeras.experiments.recipes import Recipe

_FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
_NOT_SEARCHED = ("name", "source", "data", "reference", "decay_epochs", "seed")


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
    def parse(cls, text: str) -> "Range":
        """Reads "lam=0:8", "learning_rate=0.001:0.1:log" or "r_max=0,0.1,0.2".

        Raises:
            ValueError: an unknown field, an empty or inverted range, a value that the field refuses.
        """
        name, equals, rest = text.partition("=")
        name = name.strip().replace("-", "_")
        searchable = [f for f in _FIELDS if f not in _NOT_SEARCHED and not f.startswith("certify_")]
        if not equals or name not in searchable:
            raise ValueError(f"search {text!r} must be FIELD=LOW:HIGH or FIELD=A,B,C, FIELD one of {searchable}.")
        if "," in rest or ":" not in rest:
            values = tuple(Recipe.value(name, v) for v in rest.split(",") if v.strip())
            if not values or len(set(values)) < len(values):
                raise ValueError(f"search {text!r} must list different values, such as {name}=1,2.")
            return cls(name, values=values)
        low, high, *scale = rest.split(":")
        if scale not in ([], ["log"]) or _FIELDS[name].type not in (float, int):
            raise ValueError(f"search {text!r} must be FIELD=LOW:HIGH[:log] of numbers, or a list FIELD=A,B,C.")
        low, high = Recipe.value(name, low), Recipe.value(name, high)
        if low >= high or (scale and low <= 0):
            raise ValueError(f"search {text!r} must have LOW below HIGH{', both above 0 for log' if scale else ''}.")
        return cls(name, low, high, bool(scale))

    def declare(self, hp: kt.HyperParameters):
        """Registers the range with keras-tuner and returns the field's value in this trial."""
        kind = _FIELDS[self.field].type
        if self.values:
            # keras-tuner makes 0 and 1 of booleans.
            return kind(hp.Choice(self.field, list(self.values), ordered=kind in (float, int)))
        number = hp.Int if kind is int else hp.Float
        return number(self.field, self.low, self.high, sampling="log" if self.log else "linear")


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
