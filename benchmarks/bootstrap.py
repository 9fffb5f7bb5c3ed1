"""The bootstrap's speed on one core, and with --coverage what the intervals cover in simulated sweeps.

Speed: 10,000 resamples of 5 decoders x 3 seeds x 1,449 images x 21 classes (PASCAL VOC's size), then everything else
that a table needs. Coverage: sweeps drawn from a finite population of images and seeds, whose true scores are therefore
known exactly; beside `segbench.report.stats` stand three textbook ways, on the same sweeps.
"""

import argparse
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats as distributions

from segbench.measures.base import iou
from segbench.measures.bf1 import contour_f1
from segbench.report import ranking, stats

DECODERS, SEEDS, IMAGES, CLASSES, RESAMPLES = 5, 3, 1449, 21, 10_000
PRESENCE = np.array([1, 0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.06])  # share of the images that hold each class
AREA = np.array([6, 4, 3, 2, 2, 1.5, 1.5, 1, 1, 1])  # typical, relative
CHOSEN = COMMON, RARE, MEAN = 5, 9, 10  # classes in 30 % and 6 % of the images; the mean
PIXELS = 40_000


@dataclass(frozen=True)
class Population:
    """All images and all seeds that there are.

    Attributes:
        counts: (2, seeds, images, 3, K): two decoders' intersection, predicted, truth.
        truth: (2, seeds, K + 1): their IoU on all images, the last is the mean.
        truth_f1: (2, seeds, K + 1): their boundary F1.
    """

    counts: np.ndarray
    truth: np.ndarray
    truth_f1: np.ndarray


def population(seed_sd: float, images: int = 4000, seeds: int = 200) -> Population:
    """Two decoders trained with every seed on the same batches.

    The logit of a class's recall is the sum of: the class; the image and the image's class (shared by all runs: they
    pair them); the decoder; the decoder's own taste in images; a seed effect of size ``seed_sd``, 30 % of its variance
    shared by the decoders; and an effect of image x run through six features of the image. Missed pixels go to the
    classes of the image and, one in seven, to any class, so that absent classes are predicted too.
    """
    rng = np.random.default_rng(0)
    k = len(PRESENCE)
    area = rng.lognormal(0, 1, (images, k)) * AREA * (rng.random((images, k)) < PRESENCE)
    true = np.floor(PIXELS * area / area.sum(1, keepdims=True)).astype(np.int64)
    hard = np.linspace(2.5, 0.3, k) + rng.normal(0, 0.6, (images, 1)) + rng.normal(0, 0.8, (images, k))
    features = rng.normal(0, 1, (images, k, 6)) / np.sqrt(6)
    lost_to = 0.85 * true / true.sum(1, keepdims=True) + 0.15 * rng.dirichlet(np.full(k, 0.3), images)
    shared = rng.normal(0, 1, (seeds, k)) + rng.normal(0, 1, (seeds, 1))
    counts = np.empty((2, seeds, images, 3, k), np.int32)
    for d in range(2):
        own = rng.normal(0, 1, (seeds, k)) + rng.normal(0, 1, (seeds, 1))
        effect = seed_sd * (np.sqrt(0.3) * shared + np.sqrt(0.7) * own) / np.sqrt(2)
        loading = rng.normal(0, 0.4, (seeds, k, 6))
        liking = d * (rng.normal(0, 0.3, (images, k)) + np.linspace(0, 0.3, k))
        for s in range(seeds):
            logit = hard + liking + effect[s] + np.einsum("ikf,kf->ik", features, loading[s])
            right = np.floor(true / (1 + np.exp(-logit))).astype(np.int64)
            wrong = np.floor((true - right).sum(1, keepdims=True) * lost_to).astype(np.int64)
            counts[d, s] = np.stack([right, right + wrong, true], 1)
    total = counts.sum(2, dtype=np.int64)
    total_f1 = np.stack([[contours(run).sum(0) for run in runs] for runs in counts])
    return Population(counts, _with_mean(iou(total)), _with_mean(contour_f1(total_f1)))


def contours(counts: np.ndarray) -> np.ndarray:
    """Contour counts (..., 4, K) that go with region counts (..., 3, K): lengths as roots of areas."""
    right, predicted, true = np.moveaxis(counts.astype(np.float64), -2, 0)
    lines = [4 * np.sqrt(area) for area in (predicted, true)]
    shares = [np.sqrt(right / np.maximum(area, 1)) for area in (predicted, true)]
    parts = lines[0] * shares[0], lines[0], lines[1] * shares[1], lines[1]
    return np.floor(np.stack(parts, -2)).astype(np.int64)


def sweeps(people: Population, seeds: int, images: int, number: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Counts (3, S, N, 3, K) of two decoders and of the first again with other seeds; true IoU and F1 (3, K + 1).

    The truth of one seed is that of the models trained with it, else that of the recipes.
    """
    rng = np.random.default_rng(1)
    for _ in range(number):
        drawn = rng.integers(0, people.counts.shape[2], images)
        runs = rng.integers(0, people.counts.shape[1], (2, seeds))
        chosen = [(0, runs[0]), (1, runs[0]), (0, runs[1])]
        counts = np.stack([people.counts[d][np.ix_(s, drawn)] for d, s in chosen])
        truths = [
            np.stack([t[d, s if seeds == 1 else slice(None)].mean(0) for d, s in chosen])
            for t in (people.truth, people.truth_f1)
        ]
        yield counts, *truths


def chosen(measured: stats.Measured) -> stats.Measured:
    """Without the classes that are not asked about."""
    return stats.Measured(measured.values[..., CHOSEN], measured.influence[..., CHOSEN])


def covered(cell: stats.Interval, truth: float) -> bool:
    return cell.low <= truth <= cell.high


def simulate(seed_sd: float, seeds: int, images: int, number: int) -> dict[str, list[bool]]:
    """Per question, for each sweep whether the interval held the truth."""
    people = population(seed_sd)
    hits: dict[str, list[bool]] = {}
    for counts, truth, truth_f1 in sweeps(people, seeds, images, number):
        measured = chosen(stats.measure(counts))
        found = dict(zip(CHOSEN, stats.intervals(measured)[0], strict=True))
        gaps = {d: dict(zip(CHOSEN, row, strict=True)) for d, row in stats.differences(measured, 0).items()}
        f1 = chosen(stats.measure(contours(counts[:2]), contour_f1))
        answers = {
            "mIoU": covered(found[MEAN], truth[0, MEAN]),
            "class 30 %": covered(found[COMMON], truth[0, COMMON]),
            "class 6 %": covered(found[RARE], truth[0, RARE]),
            "mean F1": covered(stats.intervals(f1)[0][-1], truth_f1[0, MEAN]),
            "Δ mIoU": covered(gaps[1][MEAN], truth[1, MEAN] - truth[0, MEAN]),
            "Δ class 30 %": covered(gaps[1][COMMON], truth[1, COMMON] - truth[0, COMMON]),
            "Δ mean F1": covered(stats.differences(f1, 0)[1][-1], truth_f1[1, MEAN] - truth_f1[0, MEAN]),
            "itself": gaps[2][MEAN].p >= stats.ALPHA,
            **plain(counts[:2], truth, measured.values[:2, :, -1], [found[MEAN].spread, gaps[1][MEAN].spread]),
        }
        for name, answer in answers.items():
            hits.setdefault(name, []).append(bool(answer))
    return hits


def plain(counts: np.ndarray, truth: np.ndarray, values: np.ndarray, spreads: list[stats.Spread]) -> dict[str, bool]:
    """The same for mIoU and its difference by textbook ways.

    Percentiles: bootstrap that draws images, and seeds, with replacement. Bootstrap variance: as `stats`, with the
    bootstrap's image variances in place of the jackknife's.
    """
    drawn = ranking.bootstrap(counts, resamples=1000)[..., MEAN]  # (R, 2, S)
    seeds = values.shape[1]
    picked = np.random.default_rng(0).integers(0, seeds, (len(drawn), seeds))  # the same for both decoders
    answers = {}
    weights = {"mIoU": np.array([1, 0]), "Δ mIoU": np.array([-1, 1])}
    for (name, weight), spread in zip(weights.items(), spreads, strict=True):
        scores, target, images = weight @ values, weight @ truth[:2, MEAN], np.einsum("rds,d->rs", drawn, weight)
        error = abs(scores.mean() - target)
        low, high = np.quantile(np.take_along_axis(images, picked, 1).mean(1), [0.025, 0.975])
        answers[f"{name}, percentiles"] = low <= target <= high
        half = distributions.t.ppf(0.975, seeds - 1) * scores.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
        answers[f"{name}, t over seeds"] = error <= half
        of_mean, of_one = images.mean(1).var(), images.var(0).mean()
        shared = (seeds * of_mean - of_one) / (seeds - 1) if seeds > 1 else of_mean
        se, df = replace(spread, shared_images=shared).at(seeds, spread.images)
        answers[f"{name}, bootstrap variance"] = error <= distributions.t.ppf(0.975, df) * se
    return answers


def normal_theory(seeds: int, share: float, df: Callable[[float, int], float]) -> float:
    """Exact coverage for normal scores, ``share`` of the variance of the mean being the seeds', the images' known."""
    middles = (np.arange(20_000) + 0.5) / 20_000
    seed_part = share * distributions.chi2.ppf(middles, seeds - 1) / (seeds - 1)
    variance = seed_part + 1 - share
    limits = distributions.t.ppf(0.975, np.minimum(df(seed_part / variance, seeds - 1), 1e6)) * np.sqrt(variance)
    return float(np.mean(1 - 2 * distributions.norm.sf(limits)))


def coverage(noises: list[float], number: int, jobs: int) -> None:
    """Markdown tables of the coverage in percent."""
    settings = [(sd, s, n) for sd, n, s in itertools.product(noises, (40, 100, 500), (1, 3, 10))]
    print(f"{number} simulated sweeps each; standard error {100 * np.sqrt(0.05 * 0.95 / number):.1f}\n")
    with ProcessPoolExecutor(jobs) as pool:
        results = pool.map(simulate, *zip(*settings, strict=True), itertools.repeat(number))
        for i, ((sd, s, n), hits) in enumerate(zip(settings, results, strict=True)):
            if i == 0:
                print("| seed noise | images | seeds | " + " | ".join(hits) + " |")
                print("|" + " --- |" * (3 + len(hits)))
            cells = [f"{100 * np.mean(h):.1f}" for h in hits.values()]
            print(f"| {sd} | {n} | {s} | " + " | ".join(cells) + " |", flush=True)
    shares = np.array([0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1])
    print("\nNormal theory, by the seeds' share of the variance: harmonic df (Satterthwaite)\n")
    print("| seeds | " + " | ".join(f"{share:g}" for share in shares) + " |\n|" + " --- |" * (1 + len(shares)))
    for s in (2, 3, 5, 10):
        ours = [normal_theory(s, x, lambda r, k: k / np.maximum(r, 1e-9)) for x in shares]
        other = [normal_theory(s, x, lambda r, k: k / np.maximum(r, 1e-9) ** 2) for x in shares]
        print(
            f"| {s} | " + " | ".join(f"{100 * a:.1f} ({100 * b:.1f})" for a, b in zip(ours, other, strict=True)) + " |"
        )


def speed(repeats: int) -> None:
    """Seconds of the bootstrap, and of all other statistics of one score; cores in use on average."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 200_000, (1, 1, IMAGES, CLASSES)) * (rng.random((1, 1, IMAGES, CLASSES)) < 0.15)
    true = np.broadcast_to(true, (DECODERS, SEEDS, IMAGES, CLASSES))
    right = rng.integers(0, true + 1)
    counts = np.stack([right, right + rng.integers(0, 5000, true.shape), true], -2)
    taken: dict[str, list[float]] = {"bootstrap": [], "measure, intervals, differences, ranks": []}
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        drawn = ranking.bootstrap(counts, resamples=RESAMPLES)
        middle = time.perf_counter()
        measured = stats.measure(counts)
        stats.intervals(measured), stats.differences(measured, 0), ranking.ranks(measured, drawn)
        for name, seconds in zip(taken, (middle - start, time.perf_counter() - middle), strict=True):
            taken[name].append(seconds)
    cores = (time.process_time() - begin_cpu) / (time.perf_counter() - begin)
    print(f"{RESAMPLES} resamples, {DECODERS} decoders x {SEEDS} seeds x {IMAGES} images x {CLASSES} classes")
    print(f"cores in use: {cores:.2f} (one: OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1)")
    for name, seconds in taken.items():
        low, mid, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"{name}: {low:.2f} / {mid:.2f} / {high:.2f} s (min / median / max of {repeats})")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def _with_mean(per_class: np.ndarray) -> np.ndarray:
    return np.concatenate([per_class, per_class.mean(-1, keepdims=True)], -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coverage", action="store_true", help="simulate sweeps instead of measuring time")
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps of each setting")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.02, 0.1, 0.3], help="seed effects, in the logit")
    parser.add_argument("--jobs", type=int, default=2, help="processes for the simulation")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of the measurement of time")
    args = parser.parse_args()
    if args.coverage:
        coverage(args.noise, args.sweeps, args.jobs)
    else:
        speed(args.repeats)
