"""What changes while training: the weight of the robustness loss, and the learning rate."""

import keras


class LamSwitch(keras.callbacks.Callback):
    """Sets the trainer's lam: 0 before `switch_epoch` (from 0), `lam` from it on. A function of the epoch alone, so a
    resumed run finds the right value."""

    def __init__(self, lam: float, switch_epoch: int = 0):
        super().__init__()
        self.value, self.switch_epoch = lam, switch_epoch

    def on_epoch_begin(self, epoch, logs=None):
        begin_epoch(self.model, epoch, self.value, self.switch_epoch)


def begin_epoch(trainer, epoch: int, lam: float, switch_epoch: int) -> None:
    """Sets what depends on the epoch alone: the trainer's epoch and its lam."""
    trainer.lam.assign(lam if epoch >= switch_epoch else 0.0)
    trainer.epoch.assign(epoch)
