"""How near a sweep comes to what its parts take alone, and what a further decoder or seed costs it.

The limit is reading and augmenting, the encoder once, and each decoder's own kernels (forward, loss, backward,
optimizer; of an evaluated image from features to labels), each timed alone in this process, with the threads that the
sweep has, and scaled to the sweep's steps and images. Scoring is no part of it and is printed beside. Against it stands
the wall time of `segbench sweep` in a new folder, its start, checks and table included.

Then the same sweep with further decoders, and with a further seed: seconds more, against those decoders' own kernels,
and against all that a seed takes. Sweeps take turns; one cohort at a time. Features that are kept (`recipe.views`,
`launch.features`) are no part of this.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from segbench.build import look_up
from segbench.config import DecoderConfig, SweepConfig
from segbench.config_file import load_config
from segbench.data import open_data
from segbench.data.base import VOID
from segbench.encoders import build_encoder
from segbench.loading.pipeline import Workers, evaluation_images, train_loader
from segbench.machine import environment
from segbench.training.clock import moment, seconds_between
from segbench.training.lockstep import parameter_groups
from segbench.training.memory import keep_freed
from segbench.training.prediction import pad_to_stride, predict

STEPS, IMAGES, WARM_UP = 12, 12, 3  # that are timed


class Parts:
    """Seconds of each part of a sweep of one seed, timed alone."""

    def __init__(self, config: SweepConfig, device: str) -> None:
        data = {which: open_data(config.data, which) for which in ("train", "val")}
        self.config, self.images, self.classes = config, len(data["val"]), len(data["train"].classes)
        self.device = torch.device(device)
        self.encoder = build_encoder(config.encoder).to(device)
        batches = iter(train_loader(data["train"], config.recipe, 0, 0, 0))
        evaluated = evaluation_images(data["val"], Workers(0, 0))
        kept = [next(batches) for _ in range(2)]
        self.read_step_s = self.each(lambda: next(batches), min(STEPS, config.recipe.steps - 2))
        images = list(itertools.islice(evaluated, 3))
        self.read_image_s = self.each(lambda: next(evaluated), min(IMAGES, self.images - 3))
        self.batch, self.pixels = kept[0], [np.ascontiguousarray(pixels) for _, pixels, _ in images]
        self.encode_step_s = self.each(self._encode, STEPS)
        self.encode_image_s = self.each(
            lambda: list(predict(self.encoder, {}, self.pixels[0], config.evaluation)), IMAGES
        )

    def each(self, work: Callable[[], object], times: int) -> float:
        """Median seconds; the device has then done what it was given."""
        taken = []
        for _ in range(times):
            began = moment(self.device)
            work()
            taken.append(seconds_between(began, moment(self.device)))
        return statistics.median(taken[min(WARM_UP, times - 1) :])

    def _encode(self) -> list[torch.Tensor]:
        images = self.batch.images.to(self.device)
        with self._precision():
            self.image = pad_to_stride(self.encoder.normalise(images), max(self.encoder.strides))
            return self.encoder(self.image)

    def _precision(self) -> torch.autocast:
        half = self.config.trainer.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def kernels(self, decoder: DecoderConfig) -> tuple[float, float]:
        """Seconds of a decoder's own training step, and of an evaluated image."""
        config, encoder = self.config, self.encoder
        blueprint = look_up(decoder, config.decoder_defaults, config.skeleton)
        module = blueprint.build(encoder.channels, encoder.strides, self.classes, 0).to(self.device)
        optimizer = torch.optim.AdamW(parameter_groups(module, config.recipe.weight_decay), lr=config.recipe.lr)
        features, labels = self._encode(), self.batch.labels.long().to(self.device)

        def step() -> None:
            with self._precision():
                logits = module(list(features), self.image)[..., : labels.shape[-2], : labels.shape[-1]]
                loss = F.cross_entropy(logits.float(), labels, ignore_index=VOID)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        step_s = self.each(step, STEPS)
        module.eval()
        taken = []
        for pixels in itertools.islice(itertools.cycle(self.pixels), IMAGES):
            ((_, made),) = predict(encoder, {"": module}, pixels, config.evaluation)
            taken.append(made.seconds)
        return step_s, statistics.median(taken[WARM_UP:])

    def of_decoder(self, decoder: DecoderConfig) -> float:
        step_s, image_s = self.kernels(decoder)
        return self.config.recipe.steps * step_s + self.images * image_s

    @property
    def shared(self) -> dict[str, float]:
        steps, images = self.config.recipe.steps, self.images
        return {
            "reading": steps * self.read_step_s + images * self.read_image_s,
            "encoder": steps * self.encode_step_s + images * self.encode_image_s,
        }


def sweep_s(config: str, overrides: list[str], decoders: list[str], seeds: int) -> tuple[float, float]:
    """Wall seconds of a sweep in a new folder, and of them those in which it scored predictions."""
    with tempfile.TemporaryDirectory() as scratch:
        fixed = [
            f"runs_dir={scratch}",
            f"decoders=[{','.join(decoders)}]",
            f"seeds={list(range(seeds))}",
            "baseline=null",
        ]
        command = [sys.executable, "-m", "segbench.cli", "sweep", config, *overrides, *fixed, "launch.jobs=1"]
        start = time.perf_counter()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the sweep failed: {done.stderr.strip()}")
        taken = time.perf_counter() - start
        rows = [json.loads(path.read_text()) for path in Path(scratch).glob("*/*/result.json")]
    return taken, sum(row["images"] * row["eval_count_ms_per_image"] for row in rows) / 1000


def measured(title: str, values: list[float]) -> str:
    return f"{title} {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/default.yaml")
    parser.add_argument("--decoders", default="bilinear,bilinear_conv,deconv,subpixel")
    parser.add_argument(
        "--further", default="carafe,nearest_conv", help="decoders that the growth is measured by; '' leaves it out"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_intermixed_args()
    decoders, further = args.decoders.split(","), list(filter(None, args.further.split(",")))
    config = load_config(args.config, args.overrides)
    if config.recipe.views or config.launch.features:
        sys.exit("the limit is that of a sweep without recipe.views and launch.features")
    threads = config.launch.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    keep_freed()
    device = "cuda" if config.trainer.accelerator in ("gpu", "cuda") else "cpu"
    about = environment(threads, device)
    print(f"{about['gpu'] or about['cpu']}, {threads} threads; {args.config} {' '.join(args.overrides)}")
    shares, by_decoder, by_seed = [], [], []
    for _ in range(args.repeats):
        parts = Parts(config, device)
        own = {name: parts.of_decoder(DecoderConfig(name=name)) for name in [*decoders, *further]}
        shared, mine, more = parts.shared, sum(own[n] for n in decoders), sum(own[n] for n in further)
        overrides = [*args.overrides, f"launch.threads={threads}"]
        plain, scoring = sweep_s(args.config, overrides, decoders, 1)
        limit = sum(shared.values()) + mine
        shares.append(limit / plain)
        said = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in shared.items())
        print(
            f"limit {limit:.1f} s ({said}, decoders {mine:.1f} s), sweep {plain:.1f} s, {scoring:.1f} s scoring",
            flush=True,
        )
        if further:
            wide, _ = sweep_s(args.config, overrides, [*decoders, *further], 1)
            twice, _ = sweep_s(args.config, overrides, decoders, 2)
            by_decoder.append((wide - plain) / more)
            by_seed.append((twice - plain) / limit)
            grown = f"{len(further)} more decoders {wide - plain:.1f} s, their kernels {more:.1f} s"
            print(f"  {grown}; a further seed {twice - plain:.1f} s", flush=True)
    print(measured("share of the limit", shares))
    if further:
        print(measured("a further decoder, in its own kernels", by_decoder))
        print(measured("a further seed, in its parts", by_seed))


if __name__ == "__main__":
    main()
