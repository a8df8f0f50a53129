"""A run is one folder: recipe.json, classifier.keras, checkpoints/, history.csv, certificates.tsv, report/, export/."""

import csv
import json
import os
from pathlib import Path

from covkeras.experiments.recipe import Recipe, digest_of
from covkeras.runtime.files import held, is_taken, write_aside, write_text_aside


class RunFolder:
    """The folder of one run; every file but the append-only ones is written aside and renamed.

    Args:
        path: the folder; made when `claim` is called.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.json"

    @property
    def classifier_file(self) -> Path:
        return self.path / "classifier.keras"

    @property
    def certificates_file(self) -> Path:
        return self.path / "certificates.tsv"

    @property
    def history_file(self) -> Path:
        return self.path / "history.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def export(self) -> Path:
        return self.path / "export"

    def held(self):
        """Context manager: the folder is this process's alone. Raises InUse where another one works in it."""
        return held(self.path)

    def check(self, recipe: Recipe) -> None:
        """Refuses, before anything is written, a folder that can't be used for the recipe.

        Raises:
            ValueError: it holds another recipe (the differences are listed), or files that are no run.
            PermissionError: it can't be written.
        """
        nearest = self.path
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(f"run folder {self.path} can't be written (at {nearest}). Choose another --run-dir.")
        if self.recipe_file.exists():
            found = self.recipe()
            differences = [f"{k}: {there!r} there, {here!r} here" for k, (here, there) in recipe.diff(found).items()]
            if differences:
                raise ValueError(
                    f"run folder {self.path} holds another recipe ({'; '.join(differences)}). Choose "
                    "another --run-dir, or delete the folder."
                )
        elif is_taken(self.path):
            raise ValueError(f"run folder {self.path} is not empty and holds no recipe.json. Choose another --run-dir.")

    def claim(self, recipe: Recipe) -> None:
        """`check`, then makes the folder with its recipe.json."""
        self.check(recipe)
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.recipe_file.exists():
            write_text_aside(self.recipe_file, recipe.to_json())

    def recipe(self) -> Recipe:
        return Recipe.from_json(self.recipe_file.read_text(encoding="utf-8"))

    def digest(self) -> str:
        """Returns what identifies the recipe that was recorded, as it was written: a newer version may write it in
        another way, and its checkpoints stay the run's."""
        return digest_of(self.recipe_file.read_text(encoding="utf-8"))

    def recorded(self) -> Recipe | None:
        """The recipe of a folder that was begun, else None."""
        return self.recipe() if self.recipe_file.exists() else None

    def history(self) -> list[dict[str, str]]:
        """Returns the rows of history.csv, one per epoch; a row that a full disk cut off is none."""
        if not self.history_file.exists():
            return []
        with self.history_file.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]

    def keep_history(self, epochs: int) -> None:
        """Drops the rows from epoch `epochs` on: a resumed run writes them again."""
        rows = [row for row in self.history() if int(row["epoch"]) < epochs]
        if rows:
            write_aside(self.history_file, lambda aside: _write_rows(aside, rows))
        else:
            self.history_file.unlink(missing_ok=True)

    def append_history(self, row: dict) -> None:
        """Appends one epoch's row."""
        first = not self.history_file.exists()
        with self.history_file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if first:
                writer.writeheader()
            writer.writerow(row)


def recorded_recipe(file: Path) -> Recipe | None:
    """The recipe in a folder's record of `claim_record`, None where there is none.

    Raises:
        ValueError: the record is damaged.
    """
    if not file.exists():
        return None
    try:
        return Recipe.from_json(json.dumps(json.loads(file.read_text(encoding="utf-8"))["recipe"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}). Restore it, or choose another --out.") from None


def claim_record(file: Path, here: dict, kind: str) -> None:
    """Writes what a folder of many runs is for, or refuses a folder that is for something else.

    Args:
        file: the record, in the folder. here: what it must say; "recipe" is a Recipe. kind: of the folder, for errors.

    Raises:
        ValueError: the record says something else (the differences are listed), or the folder holds other files.
    """
    values = {**here, "recipe": json.loads(here["recipe"].to_json())}
    if file.exists():
        there = json.loads(file.read_text(encoding="utf-8"))
        # A recipe of an older version lacks fields, which then had their defaults.
        found = Recipe.from_json(json.dumps(there.pop("recipe")))
        pairs = {k: (json.loads(json.dumps(v)), there.get(k)) for k, v in here.items() if k != "recipe"}
        differences = {k: pair for k, pair in pairs.items() if pair[0] != pair[1]} | here["recipe"].diff(found)
        if differences:
            listed = "; ".join(f"{k}: {other!r} there, {own!r} here" for k, (own, other) in differences.items())
            raise ValueError(f"{file.parent} holds another {kind} ({listed}). Choose another --out.")
    elif is_taken(file.parent):
        raise ValueError(f"{file.parent} is not empty and holds no {file.name}. Choose another --out.")
    else:
        write_text_aside(file, json.dumps(values, indent=2) + "\n")


def _write_rows(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
