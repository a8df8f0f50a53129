"""What a program does first: have Keras run on TensorFlow, and keep its chatter quiet. Imports nothing heavy."""

import os
import sys
import tempfile

# Whether it was done in this process.
_quiet = False


def escape_what_cannot_be_printed() -> None:
    """Lets a terminal or a pipe of few characters, such as those of ASCII, get \\xb1 for what it has none for, instead
    of stopping a job at its table."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def quiet_tensorflow(logical_cpus: int = 1) -> None:
    """Imports TensorFlow with its start-up messages held back; a failing import still prints them. Keras will run on
    it, whatever KERAS_BACKEND or ~/.keras/keras.json say for other programs.

    Its messages ignore TF_CPP_MIN_LOG_LEVEL, so the process's stderr itself is set aside while TensorFlow and XLA say,
    once, what they have to say: at the import, at the first look for devices and at the first compilation.

    Args:
        logical_cpus: split the CPU into so many devices, to try several replicas on one machine.
    """
    global _quiet
    if _quiet:
        return
    _quiet = True
    _take_tensorflow()
    _take_no_window()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        # Of flags that it doesn't know XLA says so and ends the process, and what is held back would be lost.
        if not (os.environ.get("XLA_FLAGS") or os.environ.get("TF_XLA_FLAGS")):
            os.dup2(aside.fileno(), 2)
        try:
            import tensorflow as tf

            if logical_cpus > 1:
                parts = [tf.config.LogicalDeviceConfiguration()] * logical_cpus
                tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
            if "TF_CONFIG" in os.environ:
                return  # a cluster must be joined before devices are looked at
            tf.config.list_logical_devices()
            tf.function(lambda: tf.constant(1.0) + 1.0, jit_compile=True)()
        except BaseException:
            aside.seek(0)
            os.write(saved, aside.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _take_tensorflow() -> None:
    if "keras" in sys.modules:
        return  # it has its backend: what can't work on it says so
    told = os.environ.get("KERAS_BACKEND") or "tensorflow"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if told != "tensorflow":
        print(f"KERAS_BACKEND={told} is passed over: covkeras' programs run on TensorFlow", file=sys.stderr)


def _take_no_window() -> None:
    """A notebook hands its MPLBACKEND on to the programs that it starts, and matplotlib, which Keras imports, stops at
    one that is not installed beside it. Pictures are drawn into files, by none."""
    if "ipykernel" not in sys.modules:
        os.environ.pop("MPLBACKEND", None)
