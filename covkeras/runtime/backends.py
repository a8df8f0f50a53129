"""Keras' backend: TensorFlow for whatever trains, certifies or serves. Imports nothing heavy."""

import os
import sys


def run_on_tensorflow() -> None:
    """Has a program's Keras run on TensorFlow, whatever KERAS_BACKEND or ~/.keras/keras.json say for other programs."""
    told = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if "keras" in sys.modules:
        return  # it has its backend: what can't work on it says so
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if told != "tensorflow":
        print(f"KERAS_BACKEND={told} is passed over: covkeras' programs run on TensorFlow", file=sys.stderr)


def check_on_tensorflow(what: str) -> None:
    """Refuses a job that is TensorFlow's where Keras computes with another backend."""
    import keras

    backend = keras.config.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            f"{what} runs on Keras' tensorflow backend, but Keras was imported with {backend!r}. Set the environment "
            "variable KERAS_BACKEND=tensorflow before keras is imported; a classifier saved as a .keras file loads on "
            "either."
        )
