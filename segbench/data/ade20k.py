"""ADE20K in the layout of its scene parsing release: 150 classes, stored as 1 to 150, and 0 for void."""

from pathlib import Path

import numpy as np
from PIL import Image

from segbench.data.base import (
    LabelOutOfRange,
    PairedFiles,
    Pixels,
    is_folder,
    list_folder,
    read_labels,
    read_list,
    voc_palette,
)
from segbench.errors import UserError, unknown

LAYOUT = "expected, as in ADEChallengeData2016: images/{training,validation}, annotations/..., objectInfo150.txt"
FOLDERS = {"train": "training", "val": "validation"}


class ADE20K(PairedFiles):
    """ADE20K, SceneParsing release (Zhou et al. 2017, Scene parsing through ADE20K dataset).

    150 classes, each by its first name in the release's own ``objectInfo150.txt``. The files hold 1 to 150, and 0 for
    what is none of them, which is void here. The release names no colours; those of VOC for labels 1 to 150 are taken.

    Args:
        split: ``train`` (20,210 images) or ``val`` (2,000).
        root: ``ADEChallengeData2016``, or the folder that holds it.

    Raises:
        UserError: a folder, ``objectInfo150.txt`` or an annotation is missing, or the split has no image.
    """

    palette = voc_palette(151)[1:]

    def __init__(self, split: str, root: Path) -> None:
        if split not in FOLDERS:
            raise unknown("split", split, FOLDERS)
        root = root / "ADEChallengeData2016" if is_folder(root / "ADEChallengeData2016") else root
        images = [p for p in list_folder(root / "images" / FOLDERS[split], LAYOUT) if p.suffix == ".jpg"]
        self.classes = _class_names(root / "objectInfo150.txt")
        masks = root / "annotations" / FOLDERS[split]
        pairs = [(path.stem, path, masks / f"{path.stem}.png") for path in images]
        super().__init__(split, pairs, LAYOUT)

    def submission(self, index: int, prediction: Pixels) -> tuple[str, Image.Image]:
        """As the release stores its annotations: 1 to 150."""
        return f"{self.ids[index]}.png", Image.fromarray(prediction + np.uint8(1), "L")

    def decode(self, path: Path) -> Pixels:
        labels = read_labels(path)
        highest = int(labels.max(initial=0))
        if highest > len(self.classes):
            raise LabelOutOfRange(f"{path} holds label {highest}; allowed are 1 to {len(self.classes)}, and 0 for void")
        return labels - np.uint8(1)  # 0 wraps round to 255, which is void


def _class_names(path: Path) -> tuple[str, ...]:
    """The first name of each line; its columns are Idx, Ratio, Train, Val and Name, parted by tabs."""
    rows = [line.split("\t") for line in read_list(path, LAYOUT)[1:]]
    if any(len(row) != 5 for row in rows) or [row[0].strip() for row in rows] != [str(i) for i in range(1, 151)]:
        raise UserError(f"{path} should list the classes 1 to 150 in five columns parted by tabs")
    return tuple(row[4].replace(";", ",").partition(",")[0].strip() for row in rows)
