"""What measures add to the evaluation of a finished sweep: the same weights, with and without them, in turns.

The time, of one thread on the processor, is that of a cohort: the encoder once, every decoder, and what is counted.
Prints each pair, and then the milliseconds per image and decoder of each measure alone.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segbench.columns import load_measures, make_measure
from segbench.export import load_run
from segbench.measures.base import CountMeasure
from segbench.training.evaluation import Evaluation, count_image

DIAGNOSES = ("ceiling", "distance_error", "phase_error", "thin", "calibration", "cldice", "checkerboard", "kernel")
DIAGNOSES += ("equivariance", "spectrum", "shift")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="runs/<sweep>")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, such as data.root")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--with", dest="more", nargs="*", default=[], help="measures beside the standard ones")
    args = parser.parse_args()
    runs = {}
    for result in sorted(args.folder.glob("*/result.json")):
        runs[result.parent.name] = load_run(result.parent, None, args.overrides, next(iter(runs.values()), None))
    torch.set_num_threads(1)
    first = next(iter(runs.values()))
    measures = [*load_measures(first.config.measures), *(make_measure(name, {}) for name in args.more)]
    counted = [m for m in measures if isinstance(m, CountMeasure)]
    before = [m for m in counted if m.kind not in DIAGNOSES]
    places = np.linspace(0, len(first.dataset) - 1, args.images).astype(int).tolist()
    images = [(first.dataset.ids[i], *first.dataset.read(i)) for i in places]
    print(f"{len(runs)} decoders, {len(images)} images; without: {', '.join(m.name for m in before)}")
    print(f"with: {', '.join(m.name for m in counted if m not in before)}")

    def seconds(chosen: Sequence[CountMeasure]) -> float:
        results = {name: Evaluation(chosen, len(first.dataset.classes)) for name in runs}
        start = time.process_time()
        for image in images:
            decoders = {name: run.decoder for name, run in runs.items()}
            classes = first.dataset.classes
            count_image(results, first.encoder, decoders, image, classes, first.config.evaluation)
        assert not any(r.broken or r.failure for r in results.values()), [r.broken for r in results.values()]
        return time.process_time() - start

    seconds(counted)
    pairs = []
    for i in range(args.pairs):
        order = (before, counted) if i % 2 == 0 else (counted, before)
        found = [seconds(chosen) for chosen in order][:: 1 if i % 2 == 0 else -1]
        pairs.append(found)
        print(f"without {found[0]:.2f} s, with {found[1]:.2f} s: {100 * (found[1] / found[0] - 1):+.1f} %")
    print(f"median {100 * (np.median([b / a for a, b in pairs]) - 1):+.1f} %")
    for measure in counted:
        if measure not in before:
            added = [seconds([*before, measure]) - seconds(before) for _ in range(args.pairs)]
            print(f"{measure.name}: {1000 * np.median(added) / len(images) / len(runs):.2f} ms per image and decoder")


if __name__ == "__main__":
    main()
