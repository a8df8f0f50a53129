"""Hyper-parameters declared once: dataclass fields that carry their help, their range and how a search varies them.

A recipe and every objective are made of them; the command line, recipe files, searches and checks read them here.
"""

import dataclasses
import math
import os

from covkeras.runtime.validation import LARGEST, check_between, check_choice, check_count, check_r_max, check_sigma

Field = dataclasses.Field


def number(default, help: str, low=-math.inf, high=math.inf, closed: str = "neither", search: str = "") -> Field:
    """Returns a field for a number in an interval.

    Args:
        default: its value where nothing is said. help: one line, for --help and errors.
        low, high: of the interval. closed: the ends that belong to it (neither, left, right, both).
        search: how a search varies it, "0:8", "0.1:10:log" or "0,1,4"; by default none does unless it is asked to.
    """
    limits = {"low": low, "high": high, "closed": closed}
    return _field(
        float(default), help, search, check=lambda name, value, why: check_between(name, value, why=why, **limits)
    )


def count(default, help: str, low: int = 1, high: int = LARGEST, search: str = "", epoch: bool | str = False) -> Field:
    """Returns a field for a whole number from `low` to `high`.

    epoch: one of a schedule, scaled with the epochs: True where something begins at it, "last" for a number of epochs.
    """
    return _field(int(default), help, search, epoch, lambda name, value, why: check_count(name, value, low, high))


def switch(default: bool, help: str, search: str = "") -> Field:
    """Returns a field for yes or no."""
    return _field(bool(default), help, search, check=_check_switch)


def choice(default: str, help: str, choices, search: str = "") -> Field:
    """Returns a field for one of a few names."""
    return _field(
        default, help, search, check=lambda name, value, why: check_choice(name, value, choices), choices=tuple(choices)
    )


def text(default: str, help: str, check=None) -> Field:
    """Returns a field for text. check: (name, value, why) -> value, or an error; by default any text will do."""
    return _field(default, help, check=check)


def files(default: str, help: str) -> Field:
    """Returns a field for a Keras file, or several separated by commas; paths and lists of them become that text."""
    return _field(default, help, check=_check_files)


def epochs(default: tuple[int, ...], help: str) -> Field:
    """Returns a field for epochs, whole numbers from 1 on, one after the other."""
    return _field(tuple(default), help, check=_check_epochs)


def sigma(default: float = 0.5) -> Field:
    """Returns the field `sigma`, which recipes and objectives share."""
    return _field(default, "noise level in [0, 1] pixel units", check=lambda name, value, why: check_sigma(value))


def r_max(default: float = 0.1, search: str = "") -> Field:
    """Returns the field `r_max`, which recipes and objectives share."""
    return _field(
        default, "bound on the correlation between pixels", search, check=lambda name, value, why: check_r_max(value)
    )


def fields_of(kind) -> dict[str, Field]:
    """Returns a dataclass' fields by their names."""
    return {field.name: field for field in dataclasses.fields(kind)}


def check(field: Field, value):
    """Returns the value, of the field's type and in its range. Raises ValueError naming the field, what came, why."""
    if checked := field.metadata.get("check"):
        what = field.metadata["help"]
        return checked(field.name, value, f"It is {what if what.startswith(('the ', 'a ', 'an ')) else f'the {what}'}.")
    # A field that a dataclass declares with its default alone: its type is all there is to hold.
    kind, what = type(field.default), {str: "text", bool: "true or false", float: "a number", int: "a whole number"}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in what and type(value) is not kind:
        raise ValueError(f"{field.name} must be {what[kind]}, got {value!r}.")
    return value


def read(field: Field, written: str):
    """Returns a field's value from its text, checked. Raises ValueError naming the field."""
    kind, written = type(field.default), written.strip()
    try:
        value = {"true": True, "false": False}[written.lower()] if kind is bool else kind(written)
    except (ValueError, KeyError):
        what = {bool: "true or false", float: "a number", int: "a whole number"}.get(kind, kind.__name__)
        raise ValueError(f"{field.name} must be {what}, got {written!r}.") from None
    return check(field, value)


def help_of(field: Field) -> str:
    return field.metadata.get("help", "")


def describe(field: Field) -> str:
    """Returns its help, and the names it may be."""
    choices = field.metadata.get("choices")
    return help_of(field) + (f" ({', '.join(choices)})" if choices else "")


def _field(default, help, search="", epoch: bool | str = False, check=None, choices=None) -> Field:
    metadata = {"help": help, "search": search, "epoch": epoch, "check": check, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def _check_epochs(name, value, why):
    found = tuple(check_count(name, v) for v in value)
    if list(found) != sorted(set(found)):
        raise ValueError(f"{name} must increase, got {' '.join(map(str, found))}.")
    return found


def _check_files(name, value, why):
    several = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(one, (str, os.PathLike)) for one in several):
        raise ValueError(
            f"{name} must name a .keras file, got {value!r}. {why} A model in memory: model.save('{name}.keras') first."
        )
    return ",".join(map(os.fspath, several))


def _check_switch(name, value, why):
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}.")
    return value
