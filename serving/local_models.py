"""The local server's models: loaded from their folders, evaluated; TensorFlow's errors by REST's and gRPC's names."""

import json
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf

# TensorFlow's errors as REST and gRPC have them.
STATUSES = {
    tf.errors.InvalidArgumentError: (400, grpc.StatusCode.INVALID_ARGUMENT),
    tf.errors.NotFoundError: (404, grpc.StatusCode.NOT_FOUND),
    tf.errors.ResourceExhaustedError: (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
}


class Models:
    """The loaded versions of the models under a folder: all there are, the latest being the default."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded: dict[str, dict[int, tf.Module]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Loads versions that are new. A version's folder appears whole: the export renames it."""
        for path in sorted(self.folder.glob("*/*/saved_model.pb")):
            version, name = path.parent.name, path.parent.parent.name
            if version.isdigit() and int(version) not in self.loaded.get(name, {}):
                model = tf.saved_model.load(str(path.parent))
                self.loaded[name] = {**self.loaded.get(name, {}), int(version): model}
                print(f"loaded {name} version {version}", flush=True)

    def find(self, name: str, version: int | None):
        """Returns (version, model). Raises NotFoundError in TF-Serving's words."""
        versions = self.loaded.get(name, {})
        chosen = max(versions, default=None) if version is None else version
        if chosen not in versions:
            asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise tf.errors.NotFoundError(None, None, f"Servable not found for request: {asked}")
        return chosen, versions[chosen]

    def about(self, name: str) -> dict:
        version, _ = self.find(name, None)
        path = self.folder / name / str(version) / "assets.extra" / "metadata.json"
        return {"version": version, **(json.loads(path.read_text()) if path.exists() else {})}

    def run(self, name: str, version: int | None, signature: str, inputs: dict) -> tuple[int, dict]:
        """Evaluates a signature on named arrays. Raises tf.errors.OpError."""
        version, model = self.find(name, version)
        signature = signature or "serving_default"
        if signature not in model.signatures:
            raise invalid(f'Serving signature name: "{signature}" not found in signature def')
        function = model.signatures[signature]
        specs = function.structured_input_signature[1]
        if set(inputs) != set(specs):
            raise invalid(f"input keys {sorted(inputs)} are not those of {signature}: {sorted(specs)}")
        tensors = {name: tensor_of(name, value, specs[name]) for name, value in inputs.items()}
        batches = {t.shape[0] for t in tensors.values()}
        if len(batches) != 1:
            raise invalid(f"inputs must share the batch axis, got sizes {sorted(batches)}")
        return version, {k: v.numpy() for k, v in function(**tensors).items()}


def invalid(message: str) -> tf.errors.InvalidArgumentError:
    return tf.errors.InvalidArgumentError(None, None, message)


def tensor_of(name: str, value, spec: tf.TensorSpec) -> tf.Tensor:
    """An input as the signature wants it."""
    try:
        array = np.asarray(value, object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid(f"input {name!r} is not a {spec.dtype.name} array: {error}") from None
    if not spec.shape.is_compatible_with(array.shape):
        raise invalid(f"input {name!r} must have shape {spec.shape}, got {list(array.shape)}")
    return tf.constant(array, spec.dtype)


def message_of(error: tf.errors.OpError) -> str:
    """The op's message: the assertion's own text, without where in the graph it is."""
    lines = [line.strip() for line in (error.message or "").splitlines()]
    kept = [s for s in lines if s and not s.startswith(("Graph execution", "Detected at", "<stack", "[[{{"))]
    asserted = [s.strip("[]") for s in kept if s.startswith("[") and s.endswith("]")]
    return "\n".join(asserted or kept).split(" [Op:")[0].strip()
