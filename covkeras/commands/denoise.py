"""Certifies a classifier as it is, without training it: trains a denoiser in front of it.

Denoised smoothing (Salman et al., NeurIPS 2020): classifier(denoiser(x + noise)) is certified like any classifier, and
its radius is the joined model's. The classifier stays as it is; no label is used. The report shows images before and
after, and the classifier's own certificates, without a denoiser, beside the joined model's.
"""

import argparse
import sys
from pathlib import Path

from covkeras.commands import cli, train
from covkeras.experiments.environment import Environment
from covkeras.experiments.runs import RunFolder
from covkeras.runtime.files import user_path, write_aside
from covkeras.runtime.later import Later

adapting, classifiers = Later("covkeras.runtime.adapting"), Later("covkeras.runtime.classifiers")
distributed = Later("covkeras.experiments.distributed")
fitting = Later("covkeras.experiments.fitting")
keras = Later("keras")
precision = Later("covkeras.experiments.precision")
records = Later("covkeras.certification.records")

ALONE = "without a denoiser"
EXAMPLES = """examples:
  covkeras denoise mine.keras --data cifar10 --data-dir DIR --sigma 0.25
  covkeras denoise mine.keras --data digits --denoiser dncnn --method denoising
  covkeras denoise mine.keras --data mnist --data-dir DIR --input-range 0 255 --ends-in softmax
  covkeras denoise mine.keras --data mnist --data-dir DIR --surrogates a.keras,b.keras
  covkeras denoise mine.keras --data mnist --data-dir DIR --method consistency     both are trained, with labels

--method stability keeps the classifier's own decisions, denoising the images; any other method trains denoiser and
classifier together. With --surrogates the classifier is asked for answers alone. The run folder is as covkeras train's:
classifier.keras is the joined model, export/ its SavedModel; the same command resumes it.
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument("classifier", metavar="FILE", type=user_path, help="the classifier, a .keras file")
    parser.add_argument(
        "--run-dir", "--out", type=user_path, metavar="DIR", help="the run's folder (default: runs/denoised-FILE)"
    )
    cli.add_classifier_flags(parser)
    cli.add_environment_flags(parser)
    cli.add_recipe_flags(parser, arguments)
    parser.set_defaults(recipe="denoised")
    return parser.parse_args(arguments)


def load(flags):
    """The classifier, images in [0, 1] to logits, frozen. Raises ValueError: no Keras model, or no classifier."""
    classifier = classifiers.with_a_graph(cli.load_classifier(flags.classifier, flags))
    if adapting.foreign_layers(classifier):
        raise ValueError(
            f"{flags.classifier} is no Keras model, and can't be saved with a denoiser in front. Train the denoiser "
            "against Keras classifiers of the same images, and join them in Python: "
            "covkeras.models.joined(denoiser, covkeras.adapt(folder))."
        )
    classifiers.check_classifier(classifier)
    return classifier


def keep(classifier, file: Path) -> None:
    """Writes the classifier into the run, which then does not depend on the file it came from.

    Raises:
        ValueError: the run was begun with another one.
    """
    if not file.exists():
        write_aside(file, classifier.save)
    elif records.classifier_digest(keras.models.load_model(file, compile=False)) != records.classifier_digest(
        classifier
    ):
        raise ValueError(f"{file.parent} was begun with another classifier. Choose another --run-dir.")


def work(recipe, folder: RunFolder, classifier, environment: Environment) -> None:
    data, (test, chosen) = environment.load(recipe, "train"), environment.load_certified(recipe)
    data, test = (classifiers.fitted(part, classifier) for part in (data, test))
    data.steps_per_epoch(recipe.batch_size)
    fitting.check_devices(recipe, environment)
    # Refuses what its method does.
    recipe.objective()
    alone, place = recipe.replace(denoiser="none"), RunFolder(folder.path / "alone")
    folder.claim(recipe)
    keep(classifier, Path(recipe.model))
    place.claim(alone)
    joined = fitting.train(recipe, folder, environment, f"train {recipe.method}")
    runs = {ALONE: (alone, place), recipe.method: (recipe, folder)}
    with folder.held():
        trained = {ALONE: classifier, recipe.method: joined}
        train.finish(recipe, folder, runs, trained, data, test.floats(chosen), environment)


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        folder = RunFolder(flags.run_dir or Path("runs") / f"denoised-{Path(flags.classifier).stem}")
        recipe = cli.recipe_from(flags).replace(reference="none", model=str(folder.path / "classifier_alone.keras"))
        if flags.show:
            return cli.show(flags, recipe)
        if distributed.cluster()[1] > 1:
            raise ValueError(
                "covkeras denoise runs on one machine. On several: covkeras train --model FILE --denoiser unet "
                "--method stability --reference none."
            )
        if recipe.denoiser == "none":
            raise ValueError(
                "denoiser must be dncnn or unet, got 'none'. To train the classifier alone: covkeras train."
            )
        environment = cli.environment_from(flags, stop)
        recipe = precision.settled(recipe, folder.recorded(), on=environment.devices)
        work(recipe, folder, load(flags), environment)

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
