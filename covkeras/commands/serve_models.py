"""The local server's models: loaded from their folders, evaluated; TensorFlow's errors by REST's and gRPC's names."""

import dataclasses
import json
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

# TensorFlow's errors as REST and gRPC have them.
STATUSES = {
    tf.errors.InvalidArgumentError: (400, grpc.StatusCode.INVALID_ARGUMENT),
    tf.errors.NotFoundError: (404, grpc.StatusCode.NOT_FOUND),
    tf.errors.ResourceExhaustedError: (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
}


@dataclasses.dataclass(frozen=True)
class Version:
    """A loaded version: its folder, what its files looked like then, and the model."""

    path: Path
    stamp: tuple
    model: object


class Models:
    """The loaded versions of the models under a folder: all there are, the latest being the default."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded: dict[str, dict[int, Version]] = {}
        self._told: dict[Path, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Loads what is new or was replaced, unloads what is gone. What can't be loaded, such as a folder that is still
        being copied, is said once and tried again; what was served before goes on."""
        found = self._found()
        for name, version in [(n, v) for n, versions in self.loaded.items() for v in versions]:
            if (name, version) not in found:
                self._replace(name, version, None)
                print(f"unloaded {name} version {version}: its folder is gone", flush=True)
        for (name, version), path in sorted(found.items()):
            self._load(name, version, path)

    def _found(self) -> dict[tuple[str, int], Path]:
        """(name, version) -> its folder. 02 is version 2, unless there is a 2."""
        found = {}
        for path in sorted(self.folder.glob("*/*"), key=lambda p: (-len(p.name), p.name)):
            name, version = path.parent.name, path.name
            if version.isascii() and version.isdigit() and (path / "saved_model.pb").exists():
                found[name, int(version)] = path
        return found

    def _load(self, name: str, version: int, path: Path) -> None:
        before = self.loaded.get(name, {}).get(version)
        try:
            stamp = tuple(sorted((str(f), s.st_size, s.st_mtime_ns) for f in path.rglob("*") for s in [f.stat()]))
            if before and before.stamp == stamp:
                return
            made = Version(path, stamp, tf.saved_model.load(str(path)))
        except Exception as error:  # whatever a damaged file brings up: the others are served on
            text = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            if self._told.get(path) != text:
                kept = "; the one before is served on" if before else ""
                print(f"{name} version {version} can't be loaded yet ({text}){kept}; trying again", flush=True)
            self._told[path] = text
            return
        self._told.pop(path, None)
        self._replace(name, version, made)
        print(f"{'reloaded' if before else 'loaded'} {name} version {version}", flush=True)

    def _replace(self, name: str, version: int, made: Version | None) -> None:
        # A new dictionary, so that a request in work sees one or the other.
        versions = {v: m for v, m in self.loaded.get(name, {}).items() if v != version}
        versions |= {} if made is None else {version: made}
        others = {n: vs for n, vs in self.loaded.items() if n != name}
        self.loaded = others | ({name: versions} if versions else {})

    def find(self, name: str, version: int | None, label: str | None = None) -> tuple[int, Version]:
        """Returns (version, Version). Raises NotFoundError, or of a label InvalidArgumentError, in TF-Serving's words:
        labels are given in its models.config, which this server has none of."""
        if label:
            raise invalid(f"Unrecognized servable version label: {label}")
        versions = self.loaded.get(name, {})
        chosen = max(versions, default=None) if version is None else version
        if chosen not in versions:
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise tf.errors.NotFoundError(None, None, f"Servable not found for request: {asked}")
        return chosen, versions[chosen]

    def versions(self, name: str, version: int | None) -> list[int]:
        """Returns the versions a status speaks of, the latest first. Raises NotFoundError in TF-Serving's words."""
        known = self.loaded.get(name, {})
        if not known:
            raise tf.errors.NotFoundError(None, None, f"Could not find any versions of model {name}")
        if version is not None and version not in known:
            raise tf.errors.NotFoundError(None, None, f"Could not find version {version} of model {name}")
        return sorted(known, reverse=True) if version is None else [version]

    def about(self, name: str) -> dict:
        """What the page shows of a model's latest version."""
        version, made = self.find(name, None)
        path = made.path / "assets.extra" / "metadata.json"
        return {"version": version, **(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})}

    def signature_defs(self, name: str, version: int | None, label: str | None = None):
        """Returns (version, the SavedModel's signature name -> SignatureDef)."""
        version, made = self.find(name, version, label)
        saved = saved_model_pb2.SavedModel.FromString((made.path / "saved_model.pb").read_bytes())
        return version, saved.meta_graphs[0].signature_def

    def run(self, name: str, version: int | None, signature: str, inputs: dict, label=None, only=()):
        """Evaluates a signature on named arrays, returns (version, the named outputs). Raises tf.errors.OpError.

        only: the outputs wanted; all by default.
        """
        version, made = self.find(name, version, label)
        signature = signature or "serving_default"
        if signature not in made.model.signatures:
            raise invalid(f'Serving signature name: "{signature}" not found in signature def')
        function = made.model.signatures[signature]
        specs = function.structured_input_signature[1]
        if set(inputs) != set(specs):
            raise invalid(f"input keys {sorted(inputs)} are not those of {signature}: {sorted(specs)}")
        for output in only:
            if output not in function.structured_outputs:
                known = ",".join(sorted(function.structured_outputs))
                raise invalid(
                    f"output tensor alias not found in signature: {output} Outputs expected to be in the set "
                    f"{{{known}}}."
                )
        tensors = {name: tensor_of(name, value, specs[name]) for name, value in inputs.items()}
        batches = {t.shape[0] for t in tensors.values()}
        if len(batches) != 1:
            raise invalid(f"inputs must share the batch axis, got sizes {sorted(batches)}")
        return version, {k: v.numpy() for k, v in function(**tensors).items() if not only or k in only}


def invalid(message: str) -> tf.errors.InvalidArgumentError:
    return tf.errors.InvalidArgumentError(None, None, message)


def tensor_of(name: str, value, spec: tf.TensorSpec) -> tf.Tensor:
    """An input as the signature wants it. A tensor (an array) must have its type; JSON's values must be of its kind:
    whole numbers for integers, numbers for floats, nothing cast."""
    if isinstance(value, np.ndarray):
        string = spec.dtype == tf.string and value.dtype == object
        if not string and value.dtype != spec.dtype.as_numpy_dtype:
            raise invalid(f"input {name!r} must be {spec.dtype.name}, but {value.dtype} is provided")
        array = value
    else:
        kind = bytes if spec.dtype == tf.string else int if spec.dtype.is_integer else (int, float)
        try:
            wrong = first_of_another_kind(value, (bytes, str) if kind is bytes else kind)
        except RecursionError:
            raise invalid(f"input {name!r}: lists are nested too deep") from None
        if wrong is not None:
            expected = {bytes: "strings", int: "whole numbers"}.get(kind, "numbers")
            raise invalid(f"input {name!r} is not a {spec.dtype.name} array: {expected} are expected, got {wrong[0]!r}")
        try:
            array = np.asarray(value, object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise invalid(f"input {name!r} is not a {spec.dtype.name} array: {error}") from None
    if not spec.shape.is_compatible_with(array.shape):
        raise invalid(f"input {name!r} must have shape {spec.shape}, got {list(array.shape)}")
    return tf.constant(array, spec.dtype)


def first_of_another_kind(value, kinds) -> tuple | None:
    """(the first value that is not of the kinds,) in nested lists, or None. True and false are no numbers."""
    if isinstance(value, list):
        return next((found for v in value if (found := first_of_another_kind(v, kinds))), None)
    return None if isinstance(value, kinds) and not isinstance(value, bool) else (value,)


def message_of(error: tf.errors.OpError) -> str:
    """The op's message: the assertion's own text, without where in the graph it is."""
    lines = [line.strip().removeprefix("assertion failed: ") for line in (error.message or "").splitlines()]
    kept = [s for s in lines if s and not s.startswith(("Graph execution", "Detected at", "<stack", "[[{{"))]
    asserted = [s[1:-1].replace("] [", " ") for s in kept if s.startswith("[") and s.endswith("]")]
    return "\n".join(asserted or kept).split(" [Op:")[0].strip()
