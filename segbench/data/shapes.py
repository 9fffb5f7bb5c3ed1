"""Drawn scenes of discs, rings, polygons, stars, strokes and lines: built in, no files. Figures: docs/shapes.md."""

import colorsys
import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segbench.data.base import Dataset, Pixels
from segbench.errors import UserError

Points = npt.NDArray[np.float64]  # (n, 2) x, y in pixels; (0, 0) is the top left corner of the image
SUPERSAMPLING = 8  # sub-pixels a side on which coverage is counted
SPLITS = {"train": 0, "val": 1}
MOST = 1_000_000  # scenes of a split
VERSION = 2  # raise when a drawing changes


@dataclass(frozen=True)
class Look:
    """A family of colours and textures: what things of one or two classes are painted with.

    Attributes:
        hue: mean and standard deviation, in turns of the colour circle.
        saturation, value: ranges, uniform, from 0 to 1.
        waves: plane waves of random direction that make the texture: 1 gives stripes, many give blobs.
        period: range of their wavelengths in pixels.
    """

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]
    waves: int
    period: tuple[float, float]


GROUND = Look((0.15, 0.5), (0.0, 0.45), (0.3, 0.95), waves=8, period=(8, 40))
ROUND = Look((0.0, 0.06), (0.4, 1.0), (0.3, 1.0), waves=1, period=(4, 9))
CORNERED = Look((0.2, 0.06), (0.4, 1.0), (0.3, 1.0), waves=6, period=(5, 12))
SPIKY = Look((0.43, 0.06), (0.4, 1.0), (0.3, 1.0), waves=2, period=(5, 10))
THIN = Look((0.7, 0.06), (0.4, 1.0), (0.3, 1.0), waves=1, period=(40, 120))
LOOKS = (GROUND, ROUND, CORNERED, ROUND, SPIKY, THIN, THIN)  # by label
DISC, POLYGON, RING, STAR, STROKE, LINE = range(1, 7)
WIDTHS_PX = {STROKE: (3.0, 5.0), LINE: (1.0, 2.0)}


class Shapes(Dataset):
    """Scenes in which things are easy to recognise and hard to place, to tell upsamplers apart within minutes.

    Easy to recognise: each class is painted from a `Look`, a family of colours and textures; the ground has one too.
    The families are wide and come near each other, so that a single pixel often says too little. Hard to place: half of
    the things are thin, outlines are real-valued, and two pairs of classes share everything but what has to be placed:

    - ``disc`` and ``ring`` have one look and one distribution of outlines; a ring's hole is open;
    - ``stroke`` and ``line`` have one look and one distribution of paths; a stroke is 3 to 5 px wide, a line 1 to 2 px.

    A pixel's coverage is counted on 8x8 sub-pixels, its colour blended by coverage; its label is the topmost thing that
    covers at least half of it. A scene is a function of (seed, split, index) and the size.

    Args:
        split: ``train`` or ``val``; their scenes are drawn from different random streams.
        size: (height, width) in pixels, or one number for a square.
        train: number of training scenes.
        val: number of evaluation scenes.
        seed: of the scenes; has nothing to do with the seeds of a sweep.
    """

    from_files = False
    classes = ("background", "disc", "polygon", "ring", "star", "stroke", "line")
    palette = (
        (40, 40, 40),
        (230, 25, 75),
        (60, 180, 75),
        (255, 225, 25),
        (0, 130, 200),
        (245, 130, 48),
        (145, 30, 180),
    )

    def __init__(
        self, split: str, size: int | tuple[int, int] = 192, train: int = 256, val: int = 48, seed: int = 0
    ) -> None:
        super().__init__(split)
        self.size = (size, size) if isinstance(size, int) else size
        if not (min(self.size) >= 8 and max(self.size) <= 8192 and min(train, val) >= 1 and max(train, val) <= MOST):
            raise UserError(
                f"shapes: size should be 8 to 8192 px, train and val 1 to {MOST:,}, not {size}, {train:,}, {val:,}"
            )
        self.seed = seed
        self.ids = [f"{split}-{i:05d}" for i in range(train if split == "train" else val)]
        self._drawn: dict[int, tuple[Pixels, Pixels]] = {}

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        if index not in self._drawn:
            rng = np.random.default_rng([self.seed, SPLITS[self.split], index])
            self._drawn[index] = draw_scene(rng, *self.size)
        return self._drawn[index]

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((VERSION, self.size, len(self), self.seed, self.split)).encode()).hexdigest()


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[Pixels, Pixels]:
    """One scene: image (height, width, 3) uint8 RGB and labels (height, width) uint8, 0 to 6."""
    image = np.zeros((height, width, 3))
    image += _paint(rng, GROUND, image[..., 0], (0, 0), beneath=None)
    labels = np.zeros((height, width), np.uint8)
    for kind in draw_kinds(rng, max(3, round(rng.uniform(0.8, 1.2) * 20 * np.sqrt(height * width) / 192))):
        draw_thing(rng, image, labels, kind)
    noise = rng.normal(0, rng.uniform(1, 5), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), labels


def draw_kinds(rng: np.random.Generator, number: int) -> list[int]:
    """Labels of ``number`` things from bottom to top; of every eight four are thin, and these lie on top."""
    eight = [DISC, POLYGON, RING, STAR, STROKE, STROKE, LINE, LINE]
    kinds = np.concatenate([rng.permutation(eight) for _ in range(0, number, 8)])[:number]
    return sorted((int(kind) for kind in kinds), key=lambda kind: kind in WIDTHS_PX)


def draw_thing(rng: np.random.Generator, image: Points, labels: Pixels, kind: int) -> None:
    """Draw one thing of class ``kind`` at a random place onto both arrays."""
    height, width = labels.shape
    centre = rng.uniform(0, 1, 2) * (width, height)
    radius = rng.uniform(0.05, 0.14) * np.sqrt(height * width)
    alpha, (top, left) = coverage(_outlines(rng, kind, centre, radius), height, width)
    if not alpha.size:
        return
    window = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    paint = _paint(rng, LOOKS[kind], alpha, (top, left), image[window].mean((0, 1)))
    image[window] += alpha[..., None] * (paint - image[window])
    labels[window][alpha >= 0.5] = kind


def coverage(outlines: list[Points], height: int, width: int) -> tuple[Points, tuple[int, int]]:
    """Share of each pixel inside the outlines, over their bounding box, and that box's top and left.

    Inside is where outlines go round a point other than zero times: outlines of one sense are united, one of the other
    sense cuts a hole. A sub-pixel counts by its centre.
    """
    points = np.concatenate(outlines)
    left, top = (int(v) for v in np.clip(np.floor(points.min(0)), 0, (width, height)))
    right, bottom = (int(v) for v in np.clip(np.ceil(points.max(0)), 0, (width, height)))
    if right <= left or bottom <= top:
        return np.zeros((0, 0)), (0, 0)
    rows, columns = (bottom - top) * SUPERSAMPLING, (right - left) * SUPERSAMPLING
    start = (points - (left, top)) * SUPERSAMPLING - 0.5  # a sub-pixel's centre has whole coordinates
    sizes = np.array([len(outline) for outline in outlines])
    following = np.arange(1, len(points) + 1)
    following[sizes.cumsum() - 1] -= sizes
    end = start[following]
    # Each edge crosses the rows first <= row < last; left of a crossing to the right of it the count of turns changes.
    first, last = np.clip(np.ceil(np.sort([start[:, 1], end[:, 1]], 0)), 0, rows).astype(int)
    edge = np.repeat(np.arange(len(start)), last - first)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
    slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
    column = np.ceil(start[edge, 0] + (row - start[edge, 1]) * slope)
    turns = np.zeros((rows, columns + 1), np.int16)
    sense = np.where(end[edge, 1] > start[edge, 1], 1, -1).astype(np.int16)
    np.add.at(turns, (row, np.clip(column, 0, columns).astype(int)), sense)
    inside = (np.cumsum(turns, 1, np.int16)[:, :-1] != 0).astype(np.uint8) * 255
    return cv2.resize(inside, (right - left, bottom - top), interpolation=cv2.INTER_AREA) / 255, (top, left)


def _outlines(rng: np.random.Generator, kind: int, centre: Points, radius: float) -> list[Points]:
    if kind in (DISC, RING):
        outer, hole = _ellipse(rng, centre, radius), rng.uniform(0.4, 0.75)
        return [outer] if kind == DISC else [outer, (centre + (outer - centre) * hole)[::-1]]
    if kind == POLYGON:
        corners = int(rng.integers(3, 6))
        turns = (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) / corners
        return [_polar(radius * rng.uniform(0.9, 1.2, corners), rng.uniform() + turns, centre)]
    if kind == STAR:
        tips = int(rng.integers(5, 9))
        radii = np.where(np.arange(2 * tips) % 2 == 0, 1.25, rng.uniform(0.4, 0.6)) * radius
        return [_polar(radii, rng.uniform() + np.arange(2 * tips) / (2 * tips), centre)]
    return pen(_path(rng, centre, radius), rng.uniform(*WIDTHS_PX[kind]))


def _polar(radii: Points, turns: Points, centre: Points) -> Points:
    angles = 2 * np.pi * turns
    return centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _ellipse(rng: np.random.Generator, centre: Points, radius: float) -> Points:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    squeeze, turn = rng.uniform(0.75, 1), rng.uniform(0, np.pi)
    x, y = radius * np.cos(t), radius * squeeze * np.sin(t)
    return centre + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)


def _path(rng: np.random.Generator, centre: Points, radius: float) -> Points:
    """A smooth curve (Catmull-Rom spline) through two to four points about a straight line; through two, the line."""
    number, angle, half = int(rng.integers(2, 5)), rng.uniform(0, 2 * np.pi), radius * rng.uniform(1, 3)
    along, across = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * half
    sway = rng.uniform(-0.6, 0.6, number)
    points = centre + np.linspace(-1, 1, number)[:, None] * along + sway[:, None] * across
    p = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*parts, points[-1:]])


def pen(path: Points, width_px: float) -> list[Points]:
    """Outlines, all of one sense, of a path drawn with a round pen: a box for each segment, a disc for each joint."""
    t = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    dot = np.stack([np.cos(t), np.sin(t)], 1) * width_px / 2
    a, b = path[:-1], path[1:]
    along = (b - a) / (np.linalg.norm(b - a, axis=1, keepdims=True) + 1e-9) * width_px / 2
    across = along[:, ::-1] * (-1, 1)
    return [*(path[:, None] + dot), *np.stack([a - across, b - across, b + across, a + across], 1)]


def _paint(
    rng: np.random.Generator, look: Look, like: Points, corner: tuple[int, int], beneath: Points | None
) -> Points:
    """(h, w, 3) of ``look`` for an (h, w) window at ``corner`` (top, left), in colours that stand out from ``beneath``.

    What is drawn from ``rng`` depends on neither the window nor the class, so that classes of one look cannot differ.
    """
    hues = rng.normal(*look.hue, 3) % 1
    colours = (
        np.array([colorsys.hsv_to_rgb(h, rng.uniform(*look.saturation), rng.uniform(*look.value)) for h in hues]) * 255
    )
    colour = colours[0 if beneath is None else np.linalg.norm(colours - beneath, axis=1).argmax()]
    y, x = np.ogrid[: like.shape[0], : like.shape[1]]
    pattern = np.zeros(like.shape)
    for _ in range(look.waves):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        rate = 2 * np.pi / rng.uniform(*look.period)
        pattern += np.sin((x + corner[1]) * (rate * np.cos(angle)) + ((y + corner[0]) * (rate * np.sin(angle)) + phase))
    strength = rng.uniform(15, 40) + rng.normal(0, 12, 3)  # mostly light and dark, a little colour
    return np.asarray(colour + pattern[..., None] * np.sqrt(1 / look.waves) * strength)
