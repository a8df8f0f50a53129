"""Training a classifier on an objective, through Keras' own `fit`.

    trainer       CertifiedTrainer: the custom train_step, on one device or many
    step_metrics  the means that it keeps of its steps
    batches       what a step is given: images, labels and weights as Keras users bring them, checked
    given_metrics the user's Keras metrics: those of probabilities are refused
    schedules     what changes with the epoch: lam
    checkpoints   survive a kill and a full disk, and resume to the bit

Knows objectives and moments; nothing of recipes, folders or programs.
"""
