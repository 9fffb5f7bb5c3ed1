"""Cityscapes in its published layout: 19 classes of street scenes, 2048x1024, everything else void."""

from pathlib import Path

import numpy as np
from PIL import Image

from segbench.data.base import (
    VOID,
    LabelOutOfRange,
    Pair,
    PairedFiles,
    Pixels,
    is_file,
    is_folder,
    list_folder,
    read_labels,
    relabel,
)
from segbench.errors import UserError, unknown

LAYOUT = "expected: leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_labelIds.png"
# id -> train id of the 19 classes that are evaluated, from the official table (cityscapesscripts.helpers.labels).
TRAIN_IDS = dict(
    zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True)
)
IDS = range(34)


class Cityscapes(PairedFiles):
    """Cityscapes (Cordts et al. 2016, https://arxiv.org/abs/1604.01685), the 19 classes of its pixel-level task.

    Reads ``labelIds`` and maps them to train ids; where there is a ``labelTrainIds`` file, that.

    Args:
        split: ``train`` (2,975 images), ``val`` (500), ``test`` (1,525), whose labels its owners keep, or with
            ``coarse`` also ``train_extra`` (19,998).
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        coarse: read the coarse annotations in ``gtCoarse`` instead.

    Raises:
        UserError: a folder or a label file is missing, or the split has no image.
    """

    splits = ("train", "val", "test", "train_extra")
    classes = (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )  # fmt: skip
    palette = (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
        (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    )  # fmt: skip

    def __init__(self, split: str, root: Path, coarse: bool = False) -> None:
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        images = root / "leftImg8bit" / split
        kind = "gtCoarse" if coarse else "gtFine"
        pairs: list[Pair] = []
        cities = [city for city in list_folder(images, LAYOUT) if is_folder(city)]
        for image in (path for city in cities for path in list_folder(city, LAYOUT)):
            if not image.name.endswith("_leftImg8bit.png"):
                continue
            name = image.name.removesuffix("_leftImg8bit.png")
            stem = root / kind / split / image.parent.name / f"{name}_{kind}"
            ready = stem.with_name(f"{stem.name}_labelTrainIds.png")
            labels = ready if is_file(ready) else stem.with_name(f"{stem.name}_labelIds.png")
            pairs.append((name, image, None if split == "test" else labels))
        if not pairs:
            raise UserError(f"{images} holds no images: split '{split}' is empty; {LAYOUT}")
        super().__init__(split, pairs, LAYOUT)

    def submission(self, index: int, prediction: Pixels) -> tuple[str, Image.Image]:
        """Label ids, not train ids, in a file that begins with city, sequence and frame, as the server asks."""
        return f"{self.ids[index]}_pred_labelIds.png", Image.fromarray(_TO_ID[prediction], "L")

    def decode(self, path: Path) -> Pixels:
        labels = read_labels(path)
        if path.name.endswith("_labelTrainIds.png"):
            return labels
        highest = int(labels.max(initial=0))
        if highest not in IDS:
            raise LabelOutOfRange(f"{path} holds label {highest}; allowed are the ids 0 to {IDS[-1]}")
        return relabel(labels, _TO_TRAIN_ID)


_TO_TRAIN_ID = np.full(256, VOID, np.uint8)
_TO_TRAIN_ID[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
_TO_ID = np.array(list(TRAIN_IDS), np.uint8)
