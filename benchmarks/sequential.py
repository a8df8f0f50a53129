"""How many samples it takes to decide a radius: the sequential tests beside Cohen's fixed n, on the same votes.

    python benchmarks/sequential.py CLASSIFIER.keras --data mnist --data-dir DIR --sigma 0.5 --votes votes.npz

All tests look at the same recorded votes of each image (64 samples to choose the class, then --max-n that count, in
blocks of 32; half an hour for 500 images on two cores; stopped, it resumes). A test's decision is compared with that of
the fixed n. The bound of every test holds at the same alpha.

    fixed n                Clopper-Pearson after max_n samples (Cohen)
    staged                 Clopper-Pearson after 1,000, 10,000 and max_n samples, each at alpha / 3 (as Horvath et al.)
    union bound            Clopper-Pearson after each 1.1^K samples, at alpha / (K (K + 1)) (as Voracek compares with)
    betting                Krichevsky and Trofimov's bets (Voracek), and those against the radius stop it
    betting, one-sided     ours: only the bettors on the right side of p0
    + informed             the same, Beta(a, b) by the adjoint radius, as if `weight` samples had shown it
    + give up              one-sided, and an image is given up when its chance to be certified falls below 1 %

differ: images decided otherwise than by the fixed n. hair: how far the share of hits of these lies from p0, at most, in
standard errors of all max_n samples. On the LeNet of MNIST in docs/results/certification.md (noise alone, sigma 0.5, in
bfloat16, 500 images, alpha 0.001, max_n 100,000):

    radius  test                    mean samples  median    95 %  certified  undecided  differ  hair
       0.5  fixed n                       100064  100064  100064      0.968          0       0     -
       0.5  staged                          1326    1056    1056      0.968          1       0     -
       0.5  union bound                      475     160     352      0.968          1       0     -
       0.5  betting                          412     128     288      0.968          1       0     -
       0.5  betting, one-sided               403     128     256      0.968          1       0     -
       0.5  + informed, weight 4             407     128     288      0.968          1       0     -
       0.5  + informed, weight 64            399     128     256      0.968          1       0     -
       0.5  + give up (certify_at)           163     128     224      0.968         13       0     -
         1  fixed n                       100064  100064  100064      0.886          0       0     -
         1  staged                          4026    1056   10048      0.886          2       0     -
         1  union bound                     2724     768    5888      0.882          4       2   4.9
         1  betting                         2334     544    5154      0.882          4       2   4.9
         1  betting, one-sided              1949     416    3923      0.884          3       1   4.4
         1  + informed, weight 4            2275     384    5218      0.882          4       2   4.9
         1  + informed, weight 64           2140     384    4966      0.882          4       2   4.9
         1  + give up (certify_at)          1323     416    2979      0.884         38       1   4.4

So the one-sided bets save a sixth at r = 1, giving up hopeless images a third more; a bet informed by the adjoint
radius saves a hundredth at r = 0.5 and costs a tenth at r = 1, where it is sure of the wrong thing on hard images.
"""

from pathlib import Path

from flags import parser_of

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import scipy.special  # noqa: E402

from covkeras import MomentNetwork, adjoint_margin, calibrate_gates, datasets  # noqa: E402
from covkeras.certification import SmoothedClassifier  # noqa: E402
from covkeras.certification.noise import SEQUENTIAL  # noqa: E402
from covkeras.certification.sequential import (  # noqa: E402
    Decision,
    log_wealth,
    one_sided_log_wealth,
    required_probability,
)
from covkeras.certification.stopping import RadiusTest, informed_bet  # noqa: E402
from covkeras.certification.voting import BLOCK  # noqa: E402
from covkeras.experiments.jobs import progress_bar  # noqa: E402
from covkeras.reports import results as report  # noqa: E402

N0 = 2 * BLOCK


def record(smoothed, data, flags) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hits in each block of each image, (images, blocks) uint8, and the classes; kept in flags.votes."""
    path, blocks = Path(flags.votes), flags.max_n // BLOCK
    hits, labels = np.zeros((0, blocks), np.uint8), np.zeros(0, np.int64)
    if path.exists():
        kept = np.load(path)
        hits, labels = kept["hits"][: len(data), :blocks], kept["labels"][: len(data)]
        if hits.shape[1] < blocks:
            raise ValueError(f"votes hold {hits.shape[1] * BLOCK} samples an image, --max-n wants {flags.max_n}.")
    ballot = smoothed.ballot
    with progress_bar(total=len(data), initial=len(hits), desc="votes", unit="image") as bar:
        for i in range(len(hits), len(data)):
            image = data.floats([i])
            label = ballot.count(image, [i], 0, N0, flags.seed)[0].argmax()
            rows = []
            for first in range(0, blocks, ballot.slots):
                numbers = list(range(first, first + ballot.slots))
                many = [np.repeat(image, ballot.slots, 0), [i] * ballot.slots, [SEQUENTIAL] * ballot.slots]
                rows.append(ballot.count_blocks(*many, numbers, flags.seed)[:, label])
            hits = np.concatenate([hits, np.concatenate(rows)[None, :blocks].astype(np.uint8)])
            labels = np.append(labels, label)
            if i % 10 == 9 or i == len(data) - 1:
                np.savez_compressed(path.with_suffix(".part.npz"), hits=hits, labels=labels)
                path.with_suffix(".part.npz").replace(path)
            bar.update()
    return hits, labels


def looked(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hits and trials after each block, (images, blocks)."""
    total = np.cumsum(hits, 1, dtype=np.int64)
    return total, np.broadcast_to(BLOCK * np.arange(1, hits.shape[1] + 1), total.shape)


def clopper_pearson_above(hits, trials, p0, alpha):
    """Whether the lower bound exceeds p0: P(Binomial(n, p0) >= hits) <= alpha."""
    return scipy.special.betainc(np.maximum(hits, 1), trials - np.maximum(hits, 1) + 1, p0) <= alpha


def clopper_pearson_below(hits, trials, p0, alpha):
    return scipy.special.betaincc(hits + 1, np.maximum(trials - hits, 1e-9), p0) <= alpha


def at_times(hits, trials, p0, times, levels):
    """Tests at the given times only: (above, below), True from where they hold."""
    above, below = np.zeros(hits.shape, bool), np.zeros(hits.shape, bool)
    for time, level in zip(times, levels, strict=True):
        at = min(max(int(time) // BLOCK - 1, 0), hits.shape[1] - 1)
        above[:, at] |= clopper_pearson_above(hits[:, at], trials[:, at], p0, level)
        below[:, at] |= clopper_pearson_below(hits[:, at], trials[:, at], p0, level)
    return above, below


def by_wealth(hits, trials, p0, alpha, bets=None, one_sided=True):
    limit = -np.log(alpha)
    a, b = (0.5, 0.5) if bets is None else bets.T[:, :, None]
    if not one_sided:
        reached, share = log_wealth(hits, trials, p0) >= limit, hits / trials
        return reached & (share > p0), reached & (share < p0)
    above = one_sided_log_wealth(hits, trials, p0, True, (a, b)) >= limit
    return above, one_sided_log_wealth(hits, trials, p0, False) >= limit


def outcome(above, below, trials) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(certified, decided, samples) of the first time that either holds."""
    either = above | below
    first = np.where(either.any(1), either.argmax(1), either.shape[1] - 1)
    row = np.arange(len(first))
    return above[row, first], either.any(1), trials[row, first] + N0


def tests(hits, trials, p0, flags, bets) -> dict:
    alpha, end = flags.alpha, trials[0, -1]
    stages = (1_000, 10_000, end)
    powers = [k for k in range(1, 400) if 1.1**k >= BLOCK and 1.1**k < 1.1 * end]
    fixed = clopper_pearson_above(hits[:, -1], trials[:, -1], p0, alpha)
    union = at_times(hits, trials, p0, [1.1**k for k in powers], [alpha / (k * (k + 1)) for k in powers])
    return {
        "fixed n": (fixed, np.ones(len(fixed), bool), trials[:, -1] + N0),
        "staged": outcome(*at_times(hits, trials, p0, stages, [alpha / 3] * 3), trials),
        "union bound": outcome(*union, trials),
        "betting": outcome(*by_wealth(hits, trials, p0, alpha, one_sided=False), trials),
        "betting, one-sided": outcome(*by_wealth(hits, trials, p0, alpha), trials),
        **{
            f"+ informed, weight {weight:g}": outcome(*by_wealth(hits, trials, p0, alpha, bets[weight]), trials)
            for weight in bets
        },
        "+ give up (certify_at)": giving_up(hits, trials, p0, flags),
    }


def giving_up(hits, trials, p0, flags):
    """What `certify_at` does, block by block: its own rule."""
    rule, columns = RadiusTest(p0, flags.alpha, int(trials[0, -1]), 0.01), trials.shape[1]
    verdicts = [rule(np.zeros(columns, int), h, t) for h, t in zip(hits, trials, strict=True)]
    stops = np.array([[v is not None for v in row] for row in verdicts])
    first = np.where(stops.any(1), stops.argmax(1), columns - 1)
    final = [row[at] for row, at in zip(verdicts, first, strict=True)]
    decided = np.array([v not in (None, Decision.UNDECIDED) for v in final])
    return np.array([v == Decision.ABOVE for v in final]), decided, trials[np.arange(len(first)), first] + N0


def rows_for(radius, hits, flags, guesses) -> list[list[str]]:
    p0 = required_probability(radius, flags.sigma)
    hits, trials = looked(hits)
    bets = {
        w: np.array([informed_bet(guess, flags.sigma, w) for guess in guesses]) for w in flags.weights if len(guesses)
    }
    results, rows = tests(hits, trials, p0, flags, bets), []
    reference = results["fixed n"][0]
    shares = hits[:, -1] / trials[:, -1]
    for name, (certified, decided, samples) in results.items():
        differ = certified != reference
        # How far from p0 such an image's share of hits lies, at most, in standard errors of all its samples.
        error = np.sqrt(p0 * (1 - p0) / trials[0, -1])
        hair = f"{(np.abs(shares - p0) / error)[differ].max():.1f}" if differ.any() else "-"
        quantiles = [f"{np.quantile(samples, q):.0f}" for q in (0.5, 0.95)]
        counts = [f"{certified.mean():.3f}", str(int((~decided).sum())), str(int(differ.sum())), hair]
        rows.append([f"{radius:g}", name, f"{samples.mean():.0f}", *quantiles, *counts])
    return rows


def adjoint_radii(classifier, data, flags) -> np.ndarray:
    """The guesses of the informed bets, in the units of sigma; none where a layer has no moment rule."""
    network = MomentNetwork(classifier, flags.sigma)
    gates = calibrate_gates(network, datasets.load(flags.data, "train", flags.data_dir).head(64).floats())
    parts = [adjoint_margin(network, data.floats(slice(i, i + 64)), gates) for i in range(0, len(data), 64)]
    return np.concatenate([np.asarray(part.radius) for part in parts])


def main() -> None:
    parser = parser_of(__doc__, classifier="a .keras file", images=500)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--weights", type=float, nargs="*", default=[4.0, 16.0, 64.0], help="of the informed bets")
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--max-n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="of the noise (default 1)")
    parser.add_argument("--votes", default="votes.npz", help="file of the recorded votes (default votes.npz)")
    flags = parser.parse_args()
    classifier = keras.models.load_model(flags.classifier, compile=False)
    data = datasets.load(flags.data, "test", flags.data_dir).head(flags.images)
    hits, _ = record(SmoothedClassifier(classifier, flags.sigma), data, flags)
    guesses = adjoint_radii(classifier, data, flags)
    heads = ["radius", "test", "mean samples", "median", "95 %", "certified", "undecided", "differ", "hair"]
    print(report.plain([heads] + [row for radius in flags.radii for row in rows_for(radius, hits, flags, guesses)]))


if __name__ == "__main__":
    main()
