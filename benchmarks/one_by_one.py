"""A sweep against what one would write by hand: the same decoders, trained and scored one after the other.

By hand is a plain program: pytorch-lightning, albumentations, torchmetrics' mIoU, and Boundary IoU class by class with
the published `mask_to_boundary`, at ratios 0.02 and 0.005. Of segbench it takes the networks alone: the encoder and the
decoders. Both have the recipe of configs/camvid.yaml, as many steps, the same first weights and number of threads, read
images in their own process, and evaluate every image of the split whole. Each draws its own crops, and by hand weights
decay without exception and void has a boundary; so the scores, printed side by side, are alike and not equal.

Prints the wall times of both, which take turns, and their ratio. Each is a process, from its start to its end, imports
included: the sweep in a new folder, with its checks, all its measures and its table. The ratio is of all that differs,
not of the shared encoder and batches alone: on a CPU segbench also keeps images in channels-last order, in which
convolutions are faster, and by hand they are as DataLoader gives them. `key=value` is for the sweep alone.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # before the import: it would ask the package registry

import albumentations as A
import cv2
import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from albumentations.pytorch import ToTensorV2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

import segbench
from segbench.build import look_up
from segbench.config import DecoderConfig, EncoderConfig
from segbench.encoders import build_encoder

CONFIG = Path(__file__).parent.parent / "configs" / "camvid.yaml"
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CLASSES, VOID = 11, 255
BATCH, LR, WARMUP, SCALE, FLIP = 8, 3e-3, 20, (0.5, 2.0), 0.5  # of configs/camvid.yaml; warm-up up to half the steps
SCORES = ("miou", "biou@0.02", "biou@0.005")  # as segbench calls them


class CamVid(Dataset):
    """Images and labels of a split, read from their files and transformed."""

    def __init__(self, root: Path, split: str, transform: A.Compose) -> None:
        lines = (root / f"{split}.txt").read_text().splitlines()
        self.names = [Path(line.split()[0]).name for line in lines]
        self.images, self.labels, self.transform = root / split, root / f"{split}annot", transform

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = cv2.cvtColor(cv2.imread(str(self.images / self.names[index])), cv2.COLOR_BGR2RGB)
        mask = cv2.imread(str(self.labels / self.names[index]), cv2.IMREAD_UNCHANGED)
        mask[mask == CLASSES] = VOID
        out = self.transform(image=image, mask=mask)
        return out["image"], out["mask"].long()


def mask_to_boundary(mask: np.ndarray, ratio: float) -> np.ndarray:
    """The pixels of a mask near its outline or the image's border, as in the code published with Boundary IoU."""
    height, width = mask.shape
    dilation = max(1, round(ratio * math.hypot(height, width)))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=dilation)
    return mask - eroded[1 : height + 1, 1 : width + 1]


class BoundaryIoU(Metric):
    """Mean over classes of the IoU of the masks' boundaries, counted over all images."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.add_state("intersection", torch.zeros(CLASSES, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("union", torch.zeros(CLASSES, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        for pred, truth in zip(preds.cpu().numpy(), target.cpu().numpy(), strict=True):
            for c in range(CLASSES):
                a = mask_to_boundary(((pred == c) & (truth != VOID)).astype(np.uint8), self.ratio)
                b = mask_to_boundary((truth == c).astype(np.uint8), self.ratio)
                self.intersection[c] += int((a & b).sum())
                self.union[c] += int((a | b).sum())

    def compute(self) -> Tensor:
        present = self.union > 0
        return (self.intersection[present] / self.union[present]).mean()


class Segmenter(pl.LightningModule):
    """A decoder on a frozen encoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, stride: int, steps: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder.eval().requires_grad_(False), decoder
        self.stride, self.steps = stride, steps
        self.miou = MulticlassJaccardIndex(CLASSES, ignore_index=VOID)  # leaves out classes that are nowhere
        self.wide, self.narrow = BoundaryIoU(0.02), BoundaryIoU(0.005)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        with torch.no_grad():
            features = self.encoder(images)
        return self.decoder(features, images)[..., :height, :width]  # logits of the images' size

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, masks = batch
        return F.cross_entropy(self(images), masks, ignore_index=VOID)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, masks = batch
        preds = self(images).argmax(1)
        for name, metric in zip(SCORES, (self.miou, self.wide, self.narrow), strict=True):
            metric.update(preds, masks)
            self.log(name, metric, on_epoch=True)

    def configure_optimizers(self) -> dict[str, Any]:
        warmup = min(WARMUP, self.steps // 2)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup))) / 2

        optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=LR)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def by_hand(args: argparse.Namespace) -> dict[str, Any]:
    """Train and validate decoder by decoder: the seconds that each took, and scores in percent by name."""
    torch.set_num_threads(THREADS)
    encoder = build_encoder(EncoderConfig(name=args.encoder, trainable=True))  # whose layers are as torch has them
    to_tensor = [A.Normalize(encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()), ToTensorV2()]
    augment = [
        A.RandomScale((SCALE[0] - 1, SCALE[1] - 1), p=1),
        A.PadIfNeeded(args.crop, args.crop, border_mode=cv2.BORDER_CONSTANT, fill=128, fill_mask=VOID),
        A.RandomCrop(args.crop, args.crop),
        A.HorizontalFlip(p=FLIP),
    ]
    train = CamVid(args.data, "train", A.Compose(augment + to_tensor))
    val = CamVid(args.data, "val", A.Compose(to_tensor))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    seconds, scores = [], {}
    for name in args.decoders.split(",")[: args.by_hand_decoders]:
        start = time.perf_counter()
        pl.seed_everything(0)
        blueprint = look_up(DecoderConfig(name=name), skeleton=args.skeleton)
        decoder = blueprint.build(encoder.channels, encoder.strides, CLASSES, seed=0)
        model = Segmenter(encoder, decoder, max(encoder.strides), args.steps)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(max_steps=args.steps, accelerator="cpu", default_root_dir=folder, **quiet)
            trainer.fit(model, DataLoader(train, BATCH, shuffle=True, drop_last=True))
            [found] = trainer.validate(model, DataLoader(val), verbose=False)
        scores[name] = {key: 100 * value for key, value in found.items()}
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "scores": scores}


def wall(*command: str) -> float:
    """Seconds that a Python process takes; what it prints is shown where it fails."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def time_sweep(args: argparse.Namespace, scratch: Path) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of `segbench sweep`, and its scores."""
    recipe = (
        f"steps={args.steps} batch_size={BATCH} crop={args.crop} scale=[{SCALE[0]},{SCALE[1]}] flip={FLIP} lr={LR} "
        f"warmup_steps={min(WARMUP, args.steps // 2)}"
    )
    fixed = [
        *(f"recipe.{setting}" for setting in recipe.split()),
        *f"name=sweep seeds=[0] launch.jobs=1 launch.threads={THREADS} encoder.name={args.encoder}".split(),
        *(f"data.root={args.data}", f"runs_dir={scratch}", f"decoders=[{args.decoders}]", f"skeleton={args.skeleton}"),
    ]
    seconds = wall("-m", "segbench.cli", "sweep", str(CONFIG), *fixed, *args.overrides)
    rows = segbench.load(scratch / "sweep")  # one for each class
    means = rows.groupby(["decoder", "metric"])["value"].mean()
    return seconds, {name: {key: means[name, key] for key in SCORES} for name in args.decoders.split(",")}


def time_by_hand(args: argparse.Namespace, scratch: Path) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of the program by hand, for all decoders, and its scores of those that it trained."""
    found = scratch / "by_hand.json"
    seconds = wall(__file__, *sys.argv[1:], "--write", str(found))
    made = json.loads(found.read_text())
    missing = len(args.decoders.split(",")) - len(made["seconds"])
    return seconds + missing * statistics.mean(made["seconds"]), made["scores"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True, help="the folder camvid")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--skeleton", default="pyramid")
    parser.add_argument("--decoders", default="bilinear,nearest,bilinear_conv,deconv,subpixel")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--by-hand-decoders", type=int, help="time only so many by hand, the first, and scale up")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # be the program by hand, and write its result
    parser.add_argument("overrides", nargs="*", help="key=value for the sweep alone")
    args = parser.parse_intermixed_args()
    if args.write:
        args.write.write_text(json.dumps(by_hand(args)))
        return

    from segbench.machine import environment  # not in the program by hand, nor is pandas

    number, own = len(args.decoders.split(",")), " ".join(args.overrides) or "nothing"
    print(f"{environment(THREADS, 'cpu')['cpu']}, {THREADS} threads; for the sweep alone: {own}")
    print(f"CamVid, {args.encoder}, {args.skeleton}, {args.steps} steps, crop {args.crop}, {number} decoders")
    for path in args.data.glob("*/*.png"):
        path.read_bytes()  # so that neither is the one that waits for the disk
    ratios = []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            together, ours = time_sweep(args, Path(scratch))
            alone, theirs = time_by_hand(args, Path(scratch))
        ratios.append(alone / together)
        hand = "by hand" if len(theirs) == number else f"by hand (the first {len(theirs)} of {number}, scaled up)"
        print(f"sweep {together:.1f} s, {hand} {alone:.1f} s, ratio {ratios[-1]:.2f}", flush=True)
        for name, scores in theirs.items():
            both = (f"{key} {ours[name][key]:.2f} and {scores[key]:.2f}" for key in SCORES)
            print(f"  {name}, sweep and by hand: {', '.join(both)}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
