"""From a recipe to a folder with its results: what the programs do, without their command lines.

    recipe, recipes     every hyperparameter of a run; the named ones
    runs, jobs          a run's folder; the certification job; environment, what jobs need besides a recipe
    fitting             the training job; `building` its parts, `weighing` its images, `distributed`, `precision`
    scattered           certification on a Ray cluster
    comparing           methods against each other
    tuning              keras-tuner over any fields of a recipe; `tuning_space` what varies
    exported            a run's export
    result              one method's certificates with its fidelity: what reports are made of

Knows nothing of pages and pictures.
"""
