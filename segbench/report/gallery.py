"""Images to look at: chosen by a stated rule from the stored counts, predicted anew, made small enough for a page."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segbench import store
from segbench.config import EvaluationConfig
from segbench.data.base import VOID
from segbench.errors import UserError, brief
from segbench.measures.base import LabelMap, iou, mean_over_classes
from segbench.measures.biou import band_width
from segbench.report.runs import Group
from segbench.training.counted import centre_crop, counted_labels

if TYPE_CHECKING:
    from segbench.data.base import Dataset
    from segbench.export import Trained

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

NUMBER = 6
RANDOM_SEED = 0
RATIO = 0.02  # of the boundary band that is shown and by whose IoU images are chosen, to the diagonal
THIN_SHARE = 1 / 3  # of the classes are called thin
ROUNDING = 1e-4  # of the pixels may change sides with the processor or the number of threads
WRONG, RIGHT, NOWHERE = 1, 2, 3  # in an error map; 0 is outside the band
ERROR_COLOURS = ((0, 0, 0, 0), (255, 45, 120, 255), (255, 255, 255, 90), (128, 128, 128, 200))
VOID_COLOUR = (235, 235, 235)


@dataclass(frozen=True)
class Choice:
    """An image of the evaluation split, by its place in the counts, and why it was chosen."""

    place: int
    why: str


@dataclass(frozen=True)
class Tile:
    """What one decoder makes of an image: pictures as data URIs, Boundary IoU of this image in percent or None."""

    decoder: str
    score: float | None
    prediction: str
    errors: str


@dataclass(frozen=True)
class Shown:
    """One image of the gallery.

    Attributes:
        why: the reason for which it was chosen.
        focus: (x, y) in 0 to 1, the place at which the decoders differ most.
    """

    id: str
    why: str
    width: int
    height: int
    focus: tuple[float, float]
    image: str
    truth: str
    tiles: list[Tile]

    @property
    def size(self) -> int:
        return len(self.image) + len(self.truth) + sum(len(t.prediction) + len(t.errors) for t in self.tiles)


@dataclass
class Gallery:
    """Images to show, and in words what is left out and why."""

    images: list[Shown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rule: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)  # class, colour
    seed: int = 0

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"images": [asdict(image) for image in self.images]}


def per_image(group: Group) -> Floats:
    """(D, N) mean over seeds of each image's Boundary IoU (IoU where it was not counted); NaN: all void."""
    return np.stack([np.mean([_scores(r) for r in group.of(d)], axis=0) for d in group.whole])


def _scores(run: store.Result) -> Floats:
    """(N,) in 0 to 1."""
    return mean_over_classes(iou(_boundary(run)))


def _boundary(run: store.Result) -> npt.NDArray[np.int64]:
    return run.counts.get(f"biou@{RATIO:g}", run.counts["region"])


def choose(group: Group, number: int = NUMBER) -> tuple[list[Choice], str]:
    """The images to show, each once, and the rule in words. Made from the stored counts alone."""
    scores = per_image(group)
    there = np.flatnonzero(~np.isnan(scores).any(0))
    names, thin_order = _thin(group, there)
    spread = scores.max(0) - scores.min(0) if len(scores) else np.zeros(0)
    mean = scores.mean(0)
    rank = {int(i): n for n, i in enumerate(there[np.argsort(mean[there], kind="stable")])}
    orders: dict[str, list[int]] = {
        "largest disagreement": sorted(there, key=lambda i: -spread[i]),
        "median image": sorted(there, key=lambda i: abs(rank[i] - (len(there) - 1) // 2)),
        "hardest thin structures": thin_order,
        "random": list(np.random.default_rng(RANDOM_SEED).permutation(there)),
    }
    slots = ["largest disagreement", "largest disagreement", "median image", "hardest thin structures"]
    slots = (slots + ["random"] * number)[:number]
    chosen: list[Choice] = []
    for why in slots:
        taken = {c.place for c in chosen}
        left = [int(i) for i in orders[why] if i not in taken]
        if left:
            chosen.append(Choice(left[0], why))
    rule = (
        f"Chosen by the Boundary IoU {RATIO:g} of each image, averaged over seeds: the two in which the decoders lie "
        "farthest apart (largest disagreement); the one whose mean over decoders is the median, the lower of two "
        "(median image); the "
        f"one with the lowest IoU of thin classes ({', '.join(names) or 'none'}) among those that hold as many of "
        "their pixels as half of the images do (hardest thin structures; thin: the third of the classes with the "
        "largest share of their pixels in the boundary band); the rest at random with seed "
        f"{RANDOM_SEED}. Each image is shown once."
    )
    return chosen, rule


def _thin(group: Group, there: npt.NDArray[np.int64]) -> tuple[list[str], list[int]]:
    """Names of the thin classes, and the images that hold enough of them, the lowest IoU first."""
    run = group.of(group.whole[0])[0]
    truth, band = run.counts["region"][:, 2], _boundary(run)[:, 2]  # (N, K) pixels of the truth
    share = np.divide(band.sum(0), truth.sum(0), out=np.full(truth.shape[1], -1.0), where=truth.sum(0) > 0)
    present = np.flatnonzero(share >= 0)
    thin = sorted(present, key=lambda c: -share[c])[: max(1, int(len(present) * THIN_SHARE))]
    if not thin:
        return [], []
    pixels = truth[:, thin].sum(1)
    enough = [i for i in there if pixels[i] > 0 and pixels[i] >= np.median(pixels[there])]
    runs = [r for d in group.whole for r in group.of(d)]
    scores = np.mean([mean_over_classes(iou(r.counts["region"][:, :, thin])) for r in runs], axis=0)
    classes = run.row["classes"]
    return [classes[c] for c in sorted(thin)], sorted(enough, key=lambda i: scores[i])


def make_gallery(
    group: Group,
    budget: int,
    overrides: Sequence[str] = (),
    progress: Callable[[str], None] = lambda what: None,
) -> Gallery:
    """The gallery of a group's first seed: whatever data and weights can still be read.

    Args:
        budget: characters of data URIs at most; images are added until it is spent.
        overrides: ``key=value`` for what may differ here, such as ``data.root``.
        progress: called with what is being done.
    """
    if not group.whole:
        return Gallery(notes=["No decoder has all its seeds, so there is nothing to choose images by."])
    if any("region" not in r.counts for r in group.results.values()):
        return Gallery(notes=["Pictures are shown of segmentations alone."])
    chosen, rule = choose(group)
    gallery = Gallery(rule=rule, seed=group.seeds[0])
    found = _predict(group, [c.place for c in chosen], overrides, gallery.notes, progress)
    if found is None:
        return gallery
    dataset = found.dataset
    gallery.legend = [(n, _hex(c)) for n, c in zip(dataset.classes, dataset.palette, strict=True)]
    gallery.legend.append(("void", _hex(VOID_COLOUR)))
    for n, choice in enumerate(chosen):
        shown = _show(choice, found, group)
        if shown.size > budget:
            gallery.notes.append(
                f"{len(chosen) - n} of {len(chosen)} images are left out: the page would be too large."
            )
            break
        budget -= shown.size
        gallery.images.append(shown)
    return gallery


@dataclass
class _Found:
    """What could still be read and predicted: place -> image, labels; decoder -> place -> predicted classes."""

    dataset: "Dataset"
    images: dict[int, tuple[Pixels, Pixels]]
    predicted: dict[str, dict[int, Pixels]]


def _predict(
    group: Group, places: Sequence[int], overrides: Sequence[str], notes: list[str], progress: Callable[[str], None]
) -> _Found | None:
    """The first seed's predictions of the images at ``places``; ``notes`` are added to where something is missing."""
    from segbench.export import Trained, load_run

    # What the runs' own configs say of the device and the baseline need not hold here, for one run alone.
    changes = ["trainer.accelerator=auto", "baseline=null", *overrides]
    loaded: dict[str, Trained] = {}
    for d in group.whole:
        progress(d)
        try:
            loaded[d] = load_run(group.results[d, group.seeds[0]].folder, None, changes)
        except Exception as error:  # a plug-in can raise anything; the page says what
            notes.append(f"{d} cannot be shown: {_reason(error)}.")
    if not loaded:
        return None
    found = _Found(next(iter(loaded.values())).dataset, {}, {d: {} for d in loaded})
    counted = group.results[next(iter(loaded)), group.seeds[0]]
    for place in places:
        progress(str(counted.ids[place]))
        try:
            found.images[place] = _read(found.dataset, counted, place, next(iter(loaded.values())).config.evaluation)
            _predict_image(found, place, loaded)
        except Exception as error:  # a file that has gone, or a plug-in
            notes.append(f"The images cannot be shown: {_reason(error)}.")
            return None
    for d in loaded:
        note_changes(d, group.results[d, group.seeds[0]], found.images, found.predicted[d], notes)
    return found


def _read(dataset: "Dataset", counted: store.Result, place: int, protocol: EvaluationConfig) -> tuple[Pixels, Pixels]:
    """The part of the image that is predicted, and its labels as they were counted."""
    name = str(counted.ids[place])
    if name not in dataset.ids:
        raise UserError(f"the data hold no image '{name}' any more")
    image, labels = dataset.read(list(dataset.ids).index(name))
    image, labels = centre_crop(image, protocol), counted_labels(labels, protocol)
    if (labels != VOID).sum() != counted.counts["region"][place, 2].sum():
        raise UserError(f"image '{name}' has other labels than those that were counted")
    return image, labels


def _predict_image(found: _Found, place: int, loaded: "dict[str, Trained]") -> None:
    """One pass of a frozen encoder for all decoders."""
    from segbench.training.prediction import predict

    pixels = np.ascontiguousarray(found.images[place][0])
    own = any(run.encoder.trainable for run in loaded.values())
    groups = [{d: run} for d, run in loaded.items()] if own else [loaded]
    for group in groups:
        first = next(iter(group.values()))
        decoders = {d: run.decoder for d, run in group.items()}
        for d, made in predict(first.encoder, decoders, pixels, first.config.evaluation):
            if made.error is not None:
                raise made.error
            found.predicted[d][place] = made.labels


def note_changes(
    decoder: str,
    run: store.Result,
    images: dict[int, tuple[Pixels, Pixels]],
    predicted: dict[int, Pixels],
    notes: list[str],
) -> None:
    """Say where more than a rounding of the predictions differs from what was counted."""
    right = sum(int((labels == predicted[i]).sum()) for i, (_, labels) in images.items())
    counted = sum(int(run.counts["region"][i, 0].sum()) for i in images)
    pixels = sum(labels.size for _, labels in images.values())
    if abs(right - counted) > ROUNDING * pixels:
        notes.append(
            f"{decoder}: predicted anew, {right} pixels of these images are right; when they were counted it was "
            f"{counted} (another processor, library version or class)."
        )


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else brief(error)


def _show(choice: Choice, found: _Found, group: Group) -> Shown:
    image, labels = found.images[choice.place]
    height, width = labels.shape
    band = LabelMap(np.ascontiguousarray(labels), len(found.dataset.classes)).band(
        band_width(RATIO, height, width), border=True
    )
    tiles = []
    for d, made in found.predicted.items():
        score = 100 * float(_scores(group.results[d, group.seeds[0]])[choice.place])
        errors = error_uri(error_map(labels, made[choice.place], band))
        prediction = label_uri(made[choice.place], found.dataset.palette)
        tiles.append(Tile(d, None if np.isnan(score) else score, prediction, errors))
    name = str(next(iter(group.results.values())).ids[choice.place])
    focus = focus_point(np.stack([made[choice.place] for made in found.predicted.values()]), labels)
    truth = label_uri(labels, found.dataset.palette)
    return Shown(name, choice.why, width, height, focus, photo_uri(image), truth, tiles)


def error_map(labels: Pixels, prediction: Pixels, band: npt.NDArray[np.bool_]) -> Pixels:
    """(H, W) uint8: `WRONG` or `RIGHT` in the truth's boundary band, `NOWHERE` on void, 0 elsewhere."""
    wrong = labels != prediction
    return np.where(labels == VOID, NOWHERE, np.where(band, np.where(wrong, WRONG, RIGHT), 0)).astype(np.uint8)


def focus_point(predicted: Pixels, labels: Pixels) -> tuple[float, float]:
    """(x, y) in 0 to 1 of the square, a fifth of the image wide, in which (D, H, W) predictions differ most."""
    differ = ((predicted != predicted[0]).any(0) & (labels != VOID)).astype(np.float32)
    side = max(3, max(differ.shape) // 5)
    sums = cv2.boxFilter(differ, -1, (side, side), normalize=False, borderType=cv2.BORDER_CONSTANT)
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return round((int(x) + 0.5) / sums.shape[1], 4), round((int(y) + 0.5) / sums.shape[0], 4)


def photo_uri(image: Pixels) -> str:
    return _uri(Image.fromarray(image), "webp", quality=88, method=4)


def label_uri(labels: Pixels, palette: Sequence[Sequence[int]]) -> str:
    """A palette PNG: what is no class is void."""
    colours = [VOID_COLOUR] * 256
    colours[: len(palette)] = [(int(c[0]), int(c[1]), int(c[2])) for c in palette]
    return _uri(_paletted(labels, colours), "png", optimize=True)


def error_uri(errors: Pixels) -> str:
    picture = _paletted(errors, [c[:3] for c in ERROR_COLOURS])
    return _uri(picture, "png", optimize=True, transparency=bytes(c[3] for c in ERROR_COLOURS))


def _paletted(values: Pixels, colours: Sequence[Sequence[int]]) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(values), "L")
    picture.putpalette([channel for colour in colours for channel in colour])  # the mode becomes P
    return picture


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _hex(colour: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(int(c) for c in colour))
