"""What two settings for CPUs save: linear layers as convolutions, and freed memory that is kept, in huge pages.

Prints the time of a frozen ViT's pass with its linear layers as torch has them and as segbench computes them; and of a
decoder's training step with glibc's own way to hand memory out, and with `segbench.training.memory`, each in a process
of its own, with the page faults of a step and the peak memory. Medians, and their range over processes that take turns.
Then, in this process, eight images of one size through encoder and decoders, one by one and as a batch.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F

from segbench.build import look_up
from segbench.config import DecoderConfig, EncoderConfig
from segbench.decoders.base import fake_inputs
from segbench.encoders import build_encoder
from segbench.machine import environment
from segbench.training.memory import in_huge_pages, keep_freed

STEPS, WARM_UP = 12, 10
LOGITS = {"8x11x256x256": (256, 11), "8x21x512x512": (512, 21)}
CHANNELS, STRIDES = (24, 40, 112, 320), (4, 8, 16, 32)


def median_ms(work: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        work()
    taken = []
    for _ in range(STEPS):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def encoder_ms(ours: bool) -> float:
    """Of one image of 224x224 through ViT-S/14 with random weights."""
    encoder = build_encoder(EncoderConfig(name="vit_small_patch14_dinov2", weights="none", trainable=not ours)).eval()
    image = encoder.normalise(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    with torch.no_grad():
        return median_ms(lambda: encoder(image))


def step(logits: str) -> tuple[float, float, float]:
    """Milliseconds and page faults of a training step, and peak MiB of the process."""
    crop, classes = LOGITS[logits]
    decoder = look_up(DecoderConfig(name="bilinear")).build(CHANNELS, STRIDES, classes, 0)
    features, image = fake_inputs(CHANNELS, STRIDES, (crop, crop), 8)
    labels, optimizer = torch.zeros(8, crop, crop, dtype=torch.long), torch.optim.AdamW(decoder.parameters())

    def work() -> None:
        loss = F.cross_entropy(decoder(list(features), image), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    took = median_ms(work)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return took, (after.ru_minflt - before) / (STEPS + WARM_UP), after.ru_maxrss / 1024


def batch_ratios(name: str, weights: str, size: tuple[int, int], repeats: int) -> list[float]:
    """How many times as long eight images take one by one as in a batch, from encoder to labels of four decoders."""
    encoder = build_encoder(EncoderConfig(name=name, weights=weights))
    decoders = [
        look_up(DecoderConfig(name=n)).build(encoder.channels, encoder.strides, 11, 0).eval()
        for n in ("bilinear", "bilinear_conv", "deconv", "subpixel")
    ]
    images = encoder.normalise(torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8))

    def evaluate(part: torch.Tensor) -> None:
        features = encoder(part)
        for decoder in decoders:
            decoder(features, part).max(1)

    ratios = []
    with torch.no_grad():
        evaluate(images)
        for _ in range(repeats):
            start = time.perf_counter()
            for part in images.split(1):
                evaluate(part)
            middle = time.perf_counter()
            evaluate(images)
            ratios.append((middle - start) / (time.perf_counter() - middle))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ours", choices=["no", "yes"], help=argparse.SUPPRESS)  # be a process, and print its figures
    args = parser.parse_args()
    if args.ours:
        ours = args.ours == "yes"
        if ours:
            keep_freed()
        print(json.dumps({"encoder": [encoder_ms(ours)], **{logits: step(logits) for logits in LOGITS}}))
        return
    print(f"{environment(torch.get_num_threads(), 'cpu')['cpu']}, {torch.get_num_threads()} threads")
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for _ in range(args.repeats):
        for ours in ("no", "yes"):
            if ours == "yes":
                in_huge_pages()
            else:
                os.environ.pop("GLIBC_TUNABLES", None)
            done = subprocess.run(
                [sys.executable, __file__, "--ours", ours], check=True, capture_output=True, text=True
            )
            for what, figures in json.loads(done.stdout).items():
                found[what, ours].append(figures)
    for what in ("encoder", *LOGITS):
        plain, ours = (
            [statistics.median(column) for column in zip(*found[what, o], strict=True)] for o in ("no", "yes")
        )
        ratios = [a[0] / b[0] for a, b in zip(found[what, "no"], found[what, "yes"], strict=True)]
        more = (
            f"; page faults {plain[1]:.0f} and {ours[1]:.0f}, peak {plain[2]:.0f} and {ours[2]:.0f} MiB"
            if plain[1:]
            else ""
        )
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{what}: {plain[0]:.1f} ms plainly, {ours[0]:.1f} ms here, ratio {ratio}{more}")
    keep_freed()
    for name, weights, size in (
        ("tf_efficientnet_lite0", "imagenet", (384, 480)),
        ("vit_small_patch14_dinov2", "none", (364, 490)),
    ):
        ratios = batch_ratios(name, weights, size, 2 * args.repeats)
        said = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name}, eight images one by one, to a batch of them: {said}")


if __name__ == "__main__":
    main()
