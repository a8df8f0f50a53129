"""How far the sequential tests are from the least that any test could do: simulated on the images of a published log.

    python benchmarks/limit.py LOG.tsv [LOG.tsv ...] --sigma 0.5 --radii 0.5 1 --record

A log tells each image's p nearly (from its radius at n = 100,000). A sequential test of p > p0 that knows p, errs with
probability alpha and never fails to decide draws log(1/alpha) / KL(p || p0) samples in the mean, or more (Wald);
log(1/alpha) / log(1/p0) where p = 1. Here covkeras' own code
decides simulated votes of these p: `certify_at` as it was (64 samples choose the class, blocks of 32) and as it is (the
class of the image itself, blocks of 16, another class where that fails; one image in --strange has another class
without noise), as it would be with blocks of 4, and with a look after each sample; one radius, and all radii at once
(`certify_grid`). Printed for certified images and for those refused at level alpha: samples over that limit, in the
mean over the images and the median. Most images below a radius are given up before, when their chance to be certified
by max_n is small: "without" are both, and "refused beyond 1.25" is what refusing at 1.25 times the limit would save of
all samples. Figures: docs/results/certification.md.
"""

import argparse
import json
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import numpy as np  # noqa: E402
import scipy.special  # noqa: E402

from covkeras.certification import sampling, stopping, voting  # noqa: E402
from covkeras.certification.logs import read_certificates  # noqa: E402
from covkeras.certification.sequential import Decision, required_probability  # noqa: E402
from covkeras.reports.pages import plain  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "limit.json"
NAMES = {
    "locuslab_cifar10_resnet110_sigma_0.50": "CIFAR-10, ResNet-110",
    "locuslab_imagenet_resnet50_sigma_0.50": "ImageNet, ResNet-50",
}
ALPHA, MAX_N, LOG_N = 0.001, 100_000, 100_000
# The name, the samples that choose the class, and those of a block.
TESTS = (("as it was", 64, 32), ("certify_at", 0, 16), ("blocks of 4", 0, 4), ("each sample", 0, 1))


class Urns:
    """A ballot whose images are urns of votes; 512 copies a batch, as on MNIST."""

    replicas = 1

    def __init__(self, shares, seed: int = 0):
        self.shares, self.rng, self.slots = shares, np.random.default_rng(seed), 512 // voting.BLOCK
        self.num_classes = shares.shape[1]

    def count_blocks(self, images, indices, phases, blocks, seed):
        return self.rng.multinomial(sampling.BLOCK, self.shares[indices])


def probabilities(path: str, sigma: float) -> np.ndarray:
    """Each image's p, from the bound that its radius tells; where it abstained, somewhere below 1/2."""
    _, _, certificates = read_certificates(path)
    low = scipy.special.ndtr(certificates.radius / sigma)
    # The votes whose bound at alpha is `low`, by bisection.
    few, many = np.zeros(len(low)), np.full(len(low), float(LOG_N))
    for _ in range(40):
        k = (few + many) / 2
        above = scipy.special.betainc(np.maximum(k, 1), LOG_N - k + 1, low) <= ALPHA
        few, many = np.where(above, few, k), np.where(above, k, many)
    p = np.minimum(many / LOG_N, 1 - 1e-6)
    uncertain = np.random.default_rng(0).uniform(0.3, 0.5, len(p))
    return np.where(certificates.label >= 0, p, uncertain)


def limit(p: np.ndarray, p0: float) -> np.ndarray:
    """The samples that no test can do without, in the mean."""
    divergence = p * np.log(p / p0) + (1 - p) * np.log((1 - p) / (1 - p0))
    return np.log(1 / ALPHA) / divergence


def run(p, rule, n0: int, block: int, strange: int):
    """(verdicts, samples) of all images by covkeras' own sampling."""
    voting.BLOCK = sampling.BLOCK = block
    shares = np.stack([p, 1 - p], 1)
    own = (np.arange(len(p)) % strange == strange - 1).astype(int) if n0 == 0 else None
    images = np.zeros((len(p), 1, 1, 1), np.float32)
    urns, indices = Urns(shares), np.arange(len(p))
    each = sampling.sample_until(urns, images, indices, seed=0, n0=n0, max_n=MAX_N, rule=rule, labels=own)
    verdicts, samples = np.empty(len(p), object), np.zeros(len(p))
    for image in each:
        # What a batch held beyond the verdict is another image's time, not this one's need.
        verdicts[image.position] = image.verdict
        samples[image.position] = image.spent + image.trials + (n0 if n0 else 0)
    return verdicts, samples


def rows_of(name: str, p, sigma: float, radii, strange: int) -> list[dict]:
    rows, p0s = [], [required_probability(r, sigma) for r in radii]
    for radius, p0 in zip(radii, p0s, strict=True):
        least = limit(p, p0)
        for test, n0, block in TESTS:
            rule = stopping.RadiusTest(p0, ALPHA, MAX_N, 0.01, twice=n0 == 0)
            verdicts, samples = run(p, rule, n0, block, strange)
            kinds = {"certified": Decision.ABOVE, "refused": Decision.NOT_ABOVE, "given up": Decision.UNDECIDED}
            row = {"log": name, "radius": f"{radius:g}", "test": test, "samples": samples.mean()}
            for kind, verdict in kinds.items():
                these = verdicts == verdict
                row[kind] = int(these.sum())
                if kind != "given up" and these.any():
                    row[f"{kind} over"] = float((samples / least)[these].mean())
                    row[f"{kind} median"] = float(np.median((samples / least)[these]))
            # What is refused or given up claims nothing: how soon it ends is all that matters, not at which level.
            without = verdicts != Decision.ABOVE
            if without.any():
                row["without over"] = float((samples / least)[without].mean())
                row["without median"] = float(np.median((samples / least)[without]))
            spent = samples[verdicts == Decision.NOT_ABOVE] - 1.25 * least[verdicts == Decision.NOT_ABOVE]
            row["refused beyond 1.25"] = float(np.maximum(spent, 0).sum() / samples.sum())
            rows.append(row)
    rule = stopping.RadiiTest(p0s, ALPHA, MAX_N, 0.01, twice=True)
    verdicts, samples = run(p, rule, 0, 16, strange)
    at = np.array([v if v is not None else 0 for v in verdicts])
    exact = (p[:, None] >= np.array(p0s)).sum(1)
    away = float(np.mean([abs((at >= k).mean() - (exact >= k).mean()) for k in range(1, len(p0s) + 1)]))
    listed = f"{radii[0]:g} to {radii[-1]:g}"
    return [
        *rows,
        {"log": name, "radius": listed, "test": "certify_grid", "samples": samples.mean(), "curve off by": away},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", help="certification logs at n = 100,000, alpha 0.001")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    parser.add_argument("--strange", type=int, default=50, help="one image in so many has another class (default: 50)")
    parser.add_argument("--repeat", type=int, default=4, help="simulations of each image (default: 4)")
    parser.add_argument("--record", action="store_true", help=f"write {OUT.name}")
    flags = parser.parse_args()
    rows = []
    for path in flags.logs:
        p = np.repeat(probabilities(path, flags.sigma), flags.repeat)
        rows += rows_of(NAMES.get(Path(path).stem, Path(path).stem), p, flags.sigma, flags.radii, flags.strange)
    heads = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{v:.4g}" if isinstance(v := row.get(h, "-"), float) else str(v) for h in heads] for row in rows]
    print(plain([heads, *cells]))
    if flags.record:
        record = {"command": "python benchmarks/limit.py LOGS --record", "machine": "simulated votes", "rows": rows}
        OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
