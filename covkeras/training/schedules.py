"""What changes while training: the weight of the robustness loss."""

import keras


class LamSwitch(keras.callbacks.Callback):
    """Tells the trainer which epoch begins: lam is 0 before the objective's `switch_epoch` (from 0). A function of the
    epoch alone, so a resumed run finds the right value."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.begin_epoch(epoch)
