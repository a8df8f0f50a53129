"""Checkpoints that survive: written aside and renamed, verified when read, exact when resumed."""

import json
import os
import time
import zipfile
from pathlib import Path

import keras
import numpy as np

_META = "__meta__"


class CheckpointFolder:
    """The last `keep` checkpoints of one run: model, optimizer, random state and position in the data.

    A checkpoint is one .npz, each array with its CRC. It appears under its name only when it is whole and on the disk,
    so a kill or a full disk leaves the one before.

    Args:
        path: the folder. digest: identifies the recipe; another's checkpoint is refused.
    """

    def __init__(self, path: str | os.PathLike, digest: str, keep: int = 2):
        self.path, self.digest, self.keep = Path(path), digest, keep

    def save(self, trainer, epoch: int, step: int) -> Path:
        """Saves the state after `step` steps of epoch `epoch` (both from 0).

        Raises:
            OSError: the disk is full or not writable; the checkpoints already there are whole.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        arrays = {f"v{i:04d}": np.asarray(v) for i, v in enumerate(_state(trainer))}
        meta = {"epoch": epoch, "step": step, "digest": self.digest}
        arrays[_META] = np.array(json.dumps(meta))
        name = self.path / f"epoch_{epoch:05d}_step_{step:07d}.npz"
        aside = self.path / f".{name.name}.{os.getpid()}"
        try:
            with aside.open("wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, name)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise OSError(
                error.errno,
                f"checkpoint not written ({error.strerror}); the one before is whole. Free space, then run "
                "the same command to resume",
                str(name),
            ) from error
        for old in self._files()[: -self.keep]:
            old.unlink(missing_ok=True)
        return name

    def restore(self, trainer, report=print) -> tuple[int, int] | None:
        """Restores the newest readable checkpoint into a built trainer; falls back past damaged ones, saying so.

        Returns:
            (epoch, step) to continue from, or None where there is no checkpoint.

        Raises:
            ValueError: a checkpoint of another recipe, or of another model.
        """
        for aside in self.path.glob(".*.npz.*"):
            aside.unlink(missing_ok=True)
        for path in reversed(self._files()):
            try:
                with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                    meta = json.loads(str(file[_META]))
                    values = [file[key] for key in sorted(file.files) if key != _META]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                report(f"checkpoint {path.name} is damaged ({error}); falling back to the one before")
                continue
            if meta["digest"] != self.digest:
                raise ValueError(
                    f"checkpoint {path} belongs to another recipe ({meta['digest']}, not {self.digest}). Use another "
                    "--run-dir, or delete the folder."
                )
            _assign(trainer, values, path)
            return meta["epoch"], meta["step"]
        return None

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("epoch_*_step_*.npz"))


def _state(trainer) -> list:
    """Every variable that a step reads and changes: weights, moving averages, random states, optimizer. Not the
    metrics, which every epoch begins anew (and which several workers could only read together)."""
    metrics = [*trainer.metrics, *trainer.step_metrics.means.values()]
    seen, unique = {id(v) for metric in metrics for v in metric.variables}, []
    for variable in [*trainer.variables, *trainer.optimizer.variables]:
        if id(variable) not in seen:
            seen.add(id(variable))
            unique.append(variable)
    return unique


def _assign(trainer, values, path):
    state = _state(trainer)
    shapes = [tuple(v.shape) for v in state]
    if len(values) == len(state) - 1:
        # Written before the trainer counted its own steps: the optimizer's were the noise's then.
        own, optimizers = (
            next(i for i, v in enumerate(state) if v is counter)
            for counter in (trainer.noise_step, trainer.optimizer.iterations)
        )
        values = [*values[:own], values[optimizers - 1], *values[own:]]
    if shapes != [v.shape for v in values]:
        raise ValueError(f"checkpoint {path} holds another model's {len(values)} arrays. Use another --run-dir.")
    for variable, value in zip(state, values, strict=True):
        variable.assign(value)


class Checkpointing(keras.callbacks.Callback):
    """Saves at the end of every epoch and every `minutes`; stops cleanly, saved, once `stop` says so.

    Args:
        folder: where. steps: of a whole epoch. step: where in it this `fit` begins. stop: () -> bool.
    """

    def __init__(self, folder: CheckpointFolder, steps: int, step: int = 0, minutes: float = 10.0, stop=lambda: False):
        super().__init__()
        self.folder, self.steps, self.minutes, self.stop = folder, steps, minutes, stop
        self.step, self.epoch = step, 0
        self.saved = time.monotonic()
        self.stopped = False

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step == self.steps:
            self.epoch, self.step = self.epoch + 1, 0
        if self.stop():
            self.stopped = self.model.stop_training = True
        # The epoch's end is saved in on_epoch_end, once.
        if self.step and (self.stopped or time.monotonic() - self.saved > 60 * self.minutes):
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        if self.step == 0:
            self._save()

    def _save(self):
        self.folder.save(self.model, self.epoch, self.step)
        self.saved = time.monotonic()
