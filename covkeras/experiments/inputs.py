"""What a run reads from paths: images of one's own, a model, a teacher; noted when it begins, refused when changed."""

import hashlib
import json
import os
from pathlib import Path

from covkeras import datasets
from covkeras.experiments.environment import Environment, training_split
from covkeras.experiments.recipes import Recipe
from covkeras.runtime.files import is_keras_file, write_text_aside


def inputs_of(recipe: Recipe, environment: Environment) -> dict[str, str]:
    """Returns {field: digest of the content} of the recipe's fields that are paths of what is there."""
    found = {}
    for name, value in recipe.values().items():
        path = os.path.expanduser(value) if isinstance(value, str) else ""
        if is_keras_file(path) and os.path.isfile(path):
            with open(path, "rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if datasets.is_own(recipe.data):
        found["data"] = environment.load(recipe, training_split(recipe)).digest
    return found


def claim_inputs(folder: Path, recipe: Recipe, environment: Environment) -> None:
    """Notes in the folder what the recipe's inputs are, once; the recipe itself knows their paths alone.

    Raises:
        ValueError: one is not what it was when the folder was begun.
    """
    record, digests = Path(folder) / "inputs.json", inputs_of(recipe, environment)
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    for name, digest in digests.items():
        if known.get(name, digest) != digest:
            raise ValueError(
                f"{name} {recipe.values()[name]} has changed since {folder} was begun with it. Restore it, or choose "
                "another folder."
            )
    if digests.keys() - known.keys():
        write_text_aside(record, json.dumps(known | digests, indent=1) + "\n")
