"""What ImageNet's 50,000 validation images cost on 8 and 64 GPUs: a plan, from a published log's times.

    python benchmarks/cluster.py LOG.tsv --sigma 0.5 --record

LOG.tsv: a certification log with the time of every image (n = 100,000 samples). It gives the votes a second of the GPU
that wrote it, how much the times of single images vary, and nearly each image's p (from its radius): from it covkeras'
own sequential tests draw the samples an image needs for a whole grid of radii (`certify_grid`), by simulation.
--votes-per-second takes another GPU's.

The cluster is simulated as `--on ray` works: blocks of images are taken by whoever is idle. A GPU is slow with
probability --slow, --factor times; each dies once in --lifetime hours in the mean (exponential), is back after --back
hours, and its block begins anew. Printed: hours, and hours over those of the same GPUs at work without a pause, for
blocks of several sizes and for one fixed share a GPU, as a job array has it. Figures: docs/results/certification.md.
"""

import argparse
import heapq
import json
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import numpy as np  # noqa: E402
from limit import ALPHA, LOG_N, MAX_N, probabilities, run  # noqa: E402

from covkeras.certification import stopping  # noqa: E402
from covkeras.certification.logs import read_certificates  # noqa: E402
from covkeras.certification.sequential import required_probability  # noqa: E402
from covkeras.reports.pages import plain  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "cluster.json"
IMAGES, GPUS, BLOCKS = 50_000, (8, 64), (16, 64, 256)
RADII = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def makespan(seconds, speeds, block: int, lifetime: float, back: float, rng) -> float:
    """Returns when the last image is done.

    seconds: (images,), on a GPU of speed 1. speeds: (GPUs,). block: images of a task. lifetime: mean seconds to a GPU's
    death; back: seconds until it works again.
    """
    waiting = np.add.reduceat(seconds, np.arange(0, len(seconds), block))[::-1].tolist()
    # What happens next: (when, GPU, None or the block that it loses), a GPU that is free or dies.
    events: list[tuple[float, int, float | None]] = [(0.0, gpu, None) for gpu in range(len(speeds))]
    idle, last = [], 0.0
    while events:
        now, gpu, lost = heapq.heappop(events)
        if lost is None:
            idle.append(gpu)
        else:
            waiting.append(lost)
            heapq.heappush(events, (now + back, gpu, None))
        while waiting and idle:
            taken, gpu = waiting.pop(), idle.pop()
            end, death = now + taken / speeds[gpu], now + rng.exponential(lifetime)
            heapq.heappush(events, (end, gpu, None) if end < death else (death, gpu, taken))
            last = max(last, end if end < death else 0.0)
    return last


def samples_of(path: str, sigma: float) -> np.ndarray:
    """The samples that `certify_grid` draws for each of the log's images, four simulations of each."""
    p = np.repeat(probabilities(path, sigma), 4)
    p0s = [required_probability(radius, sigma) for radius in RADII]
    _, samples = run(p, stopping.RadiiTest(p0s, ALPHA, MAX_N, 0.01, twice=True), 0, 16, len(p) + 1)
    return samples


def rows_of(kind: str, samples, seconds, flags) -> list[dict]:
    """samples, seconds: (some,), an image's on one GPU, of which all images' are drawn."""
    rows, hour = [], 3600.0
    for gpus in GPUS:
        for block in (*BLOCKS, -(-IMAGES // gpus)):
            hours, over = [], []
            for run_of in range(flags.runs):
                rng = np.random.default_rng(run_of)
                all_seconds = rng.choice(seconds, IMAGES)
                speeds = np.where(rng.random(gpus) < flags.slow, 1.0 / flags.factor, 1.0)
                end = makespan(all_seconds, speeds, block, flags.lifetime * hour, flags.back * hour, rng)
                hours.append(end / hour)
                over.append(end * speeds.sum() / all_seconds.sum())
            rows.append(
                {
                    "certificates": kind,
                    "samples an image": float(np.mean(samples)),
                    "GPUs": gpus,
                    "images a block": "a share each" if block == -(-IMAGES // gpus) else str(block),
                    "hours": float(np.median(hours)),
                    "GPU hours": float(np.median(hours)) * gpus,
                    "over no pause": float(np.median(over)),
                    "worst over": float(np.max(over)),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", help="a certification log with times, n = 100,000")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--votes-per-second", type=float, help="of a GPU (default: of the log's)")
    parser.add_argument("--slow", type=float, default=0.05, help="share of slow GPUs (default: 0.05)")
    parser.add_argument("--factor", type=float, default=2.0, help="how many times slower (default: 2)")
    parser.add_argument("--lifetime", type=float, default=500.0, help="hours to a GPU's death (default: 500)")
    parser.add_argument("--back", type=float, default=0.5, help="hours until it is back (default: 0.5)")
    parser.add_argument("--runs", type=int, default=20, help="simulations, of which the median (default: 20)")
    parser.add_argument("--record", action="store_true", help=f"write {OUT.name}")
    flags = parser.parse_args()
    _, _, certificates = read_certificates(flags.log)
    times = certificates.seconds
    rate = flags.votes_per_second or LOG_N / float(np.median(times))
    spread = times / np.median(times)
    drawn, rng = samples_of(flags.log, flags.sigma), np.random.default_rng(0)
    print(f"{rate:.0f} votes a second and GPU; {drawn.mean():.0f} samples an image for {len(RADII)} radii", end="; ")
    print(f"one image's time varies by {spread.std():.1%}")
    rows = rows_of("n = 100,000", LOG_N, spread * LOG_N / rate, flags)
    rows += rows_of("certify_grid", drawn, drawn * rng.choice(spread, len(drawn)) / rate, flags)
    heads = list(rows[0])
    print(plain([heads, *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]))
    if flags.record:
        given = {name: getattr(flags, name) for name in ("slow", "factor", "lifetime", "back", "runs")}
        rows = [{**row, "votes a second": rate} for row in rows]
        record = {"command": "python benchmarks/cluster.py LOG --record", "machine": "simulated", **given, "rows": rows}
        OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
