"""What changes while training: the weight of the robustness loss, the learning rate."""

import keras


class LamSwitch(keras.callbacks.Callback):
    """Tells the trainer which epoch begins: lam is 0 before the objective's `switch_epoch` (from 0). A function of the
    epoch alone, so a resumed run finds the right value."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.begin_epoch(epoch)


@keras.saving.register_keras_serializable("covkeras")
class WarmedUp(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate, or a schedule of them, that rises in proportion over its first steps.

    rate: a number or a schedule of Keras'. steps: until it is reached.
    """

    def __init__(self, rate, steps: int):
        super().__init__()
        self.rate, self.steps = rate, int(steps)

    def __call__(self, step):
        rate = self.rate(step) if callable(self.rate) else self.rate
        return rate * keras.ops.minimum((keras.ops.cast(step, "float32") + 1.0) / self.steps, 1.0)

    def get_config(self) -> dict:
        rate = keras.saving.serialize_keras_object(self.rate) if callable(self.rate) else self.rate
        return {"rate": rate, "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        rate = config["rate"]
        return cls(keras.saving.deserialize_keras_object(rate) if isinstance(rate, dict) else rate, config["steps"])
