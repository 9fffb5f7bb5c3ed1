"""Drawn scenes of discs, polygons, rings, stars, strokes and thin lines: built in, no files, 7 classes."""

import hashlib
import itertools

import cv2
import numpy as np
import numpy.typing as npt

from segbench.data.base import Dataset, Pixels
from segbench.errors import UserError

Points = npt.NDArray[np.float64]  # (n, 2) x, y in pixels; (0, 0) is the top left corner of the image
Part = list[Points]  # outlines, filled by the even-odd rule; a shape is the union of its parts
SUPERSAMPLING = 8  # sub-pixels a side on which coverage is counted
SPLITS = {"train": 0, "val": 1}
VERSION = 1  # raise when a drawing changes


class Shapes(Dataset):
    """Anti-aliased shapes with exact sub-pixel outlines over textures that do not give the class away.

    A function of (seed, split, index) and the size. Outlines are real-valued polygons; a pixel's coverage is counted on
    8x8 sub-pixels, its colour blended by coverage, its label the topmost shape that covers at least half of it. Thin
    structures are half of what is drawn (strokes of 2 to 5 px, lines of 1 to 4 px): there upsampling shows. Every shape
    and the background take colours and texture from one distribution, whatever their class; only contrast with what
    lies beneath is assured.

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
        if min(self.size) < 8 or min(train, val) < 1:
            raise UserError(
                f"shapes: size should be at least 8 px, train and val at least 1, not {size}, {train}, {val}"
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
    image = _texture(rng, height, width, _colour(rng))
    labels = np.zeros((height, width), np.uint8)
    number = max(3, round(rng.uniform(0.8, 1.2) * 14 * np.sqrt(height * width) / 192))
    kinds = np.concatenate([rng.permutation([1, 2, 3, 4, 5, 5, 6, 6]) for _ in range(0, number, 8)])[:number]
    for kind in sorted(kinds, key=lambda k: k >= 5):  # the thin ones on top
        _draw(rng, image, labels, int(kind))
    noise = rng.normal(0, rng.uniform(1, 5), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), labels


def _draw(rng: np.random.Generator, image: Points, labels: Pixels, kind: int) -> None:
    height, width = labels.shape
    centre = rng.uniform(0, 1, 2) * (width, height)
    radius = rng.uniform(0.05, 0.14) * np.sqrt(height * width)
    alpha, (top, left) = _coverage(_PARTS[kind](rng, centre, radius), height, width)
    if not alpha.size:
        return
    window = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    beneath = image[window][alpha > 0]
    colour = _colour(rng, beneath.mean(0) if len(beneath) else None)
    texture = _texture(rng, alpha.shape[0], alpha.shape[1], colour)
    image[window] += alpha[..., None] * (texture - image[window])
    labels[window][alpha >= 0.5] = kind


def _coverage(parts: list[Part], height: int, width: int) -> tuple[Points, tuple[int, int]]:
    """Share of each pixel that the parts cover, over their bounding box, and that box's top and left."""
    points = np.concatenate([outline for part in parts for outline in part])
    left, top = (int(v) for v in np.clip(np.floor(points.min(0)) - 1, 0, (width, height)))
    right, bottom = (int(v) for v in np.clip(np.ceil(points.max(0)) + 1, 0, (width, height)))
    if right <= left or bottom <= top:
        return np.zeros((0, 0)), (0, 0)
    fine = np.zeros(((bottom - top) * SUPERSAMPLING, (right - left) * SUPERSAMPLING), np.uint8)
    shift = 8  # fillPoly takes fixed-point corners; a sub-pixel's centre has whole coordinates
    for part in parts:
        corners = [np.round(((o - (left, top)) * SUPERSAMPLING - 0.5) * 2**shift).astype(np.int32) for o in part]
        cv2.fillPoly(fine, corners, 255, shift=shift)
    share = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)  # means over 8x8, to 1/255
    return share / 255, (top, left)


def _polar(radii: Points, angles: Points, centre: Points) -> Points:
    return centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _ellipse(rng: np.random.Generator, centre: Points, radius: float) -> Points:
    t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    squeeze, turn = rng.uniform(0.75, 1), rng.uniform(0, np.pi)
    x, y = radius * np.cos(t), radius * squeeze * np.sin(t)
    return centre + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)


def _disc(rng: np.random.Generator, centre: Points, radius: float) -> list[Part]:
    return [[_ellipse(rng, centre, radius)]]


def _polygon(rng: np.random.Generator, centre: Points, radius: float) -> list[Part]:
    corners = int(rng.integers(3, 6))
    angles = rng.uniform(0, 2 * np.pi) + (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) * 2 * np.pi / corners
    return [[_polar(radius * rng.uniform(0.9, 1.2, corners), angles, centre)]]


def _ring(rng: np.random.Generator, centre: Points, radius: float) -> list[Part]:
    outer = _ellipse(rng, centre, radius * 1.1)
    return [[outer, centre + (outer - centre) * rng.uniform(0.45, 0.8)]]


def _star(rng: np.random.Generator, centre: Points, radius: float) -> list[Part]:
    tips = int(rng.integers(5, 9))
    radii = np.where(np.arange(2 * tips) % 2 == 0, 1.25, rng.uniform(0.4, 0.6)) * radius
    return [[_polar(radii, rng.uniform(0, 2 * np.pi) + np.arange(2 * tips) * np.pi / tips, centre)]]


def _stroke(rng: np.random.Generator, centre: Points, radius: float) -> list[Part]:
    """A glyph: a smooth curve through random points, drawn with a round pen."""
    return _pen(_curve(centre + rng.uniform(-1.2, 1.2, (int(rng.integers(3, 6)), 2)) * radius), rng.uniform(2, 5))


def _line(rng: np.random.Generator, centre: Points, radius: float) -> list[Part]:
    angle, half = rng.uniform(0, np.pi), radius * rng.uniform(1.5, 4)
    along = half * np.array([np.cos(angle), np.sin(angle)])
    return _pen(np.stack([centre - along, centre + along]), rng.uniform(1, 4))


def _curve(points: Points) -> Points:
    """Catmull-Rom spline through ``points``."""
    p = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.concatenate([*parts, points[-1:]])


def _pen(path: Points, width: float) -> list[Part]:
    """A path drawn with a round pen of ``width`` px: a box for each segment, a disc for each joint."""
    t = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    dot = np.stack([np.cos(t), np.sin(t)], 1) * width / 2
    parts: list[Part] = [[point + dot] for point in path]
    for a, b in itertools.pairwise(path):
        along = (b - a) / (np.linalg.norm(b - a) + 1e-9) * width / 2
        across = np.array([-along[1], along[0]])
        parts.append([np.stack([a + across, b + across, b - across, a - across])])
    return parts


_PARTS = {1: _disc, 2: _polygon, 3: _ring, 4: _star, 5: _stroke, 6: _line}


def _colour(rng: np.random.Generator, beneath: Points | None = None, contrast: float = 70) -> Points:
    """An RGB colour, at least ``contrast`` away (Euclidean, of 255 a channel) from the colour beneath it."""
    while True:
        colour = rng.uniform(20, 235, 3)
        if beneath is None or np.linalg.norm(colour - beneath) >= contrast:
            return colour


def _texture(rng: np.random.Generator, height: int, width: int, colour: Points) -> Points:
    """(height, width, 3): ``colour`` varied by stripes, blobs or a gradient, all from one distribution."""
    strength = rng.uniform(8, 30) * rng.normal(0, 1, 3)
    kind = int(rng.integers(3))
    if kind == 0:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
        y, x = np.mgrid[:height, :width]
        pattern = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + rng.uniform(0, 6.3))
    elif kind == 1:
        cell = rng.uniform(3, 16)
        coarse = rng.normal(0, 1, (int(height / cell) + 2, int(width / cell) + 2))
        pattern = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:height, :width]
        pattern = (x * np.cos(angle) + y * np.sin(angle)) / max(height, width) * 3 - 1
    return colour + pattern[..., None] * strength
