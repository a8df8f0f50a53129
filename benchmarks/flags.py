"""What several benchmarks are asked: which classifier, which images, how much noise."""

import argparse


def parser_of(doc: str, classifier: str = "", sigma: float = 0.5, images: int = 0) -> argparse.ArgumentParser:
    """Returns a parser with --data and --data-dir, and what else is named.

    Args:
        doc: the benchmark's docstring. classifier: the help of the file it takes, "" for none. sigma, images: defaults;
            0 for none of it.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if classifier:
        parser.add_argument("classifier", help=classifier)
    parser.add_argument("--data", default="digits", help="data set (default: digits)")
    parser.add_argument("--data-dir", help="folder of prepared TFDS data sets")
    if sigma:
        parser.add_argument("--sigma", type=float, default=sigma, help=f"noise level (default: {sigma:g})")
    if images:
        parser.add_argument("--images", type=int, default=images, help=f"test images (default: {images})")
    return parser
