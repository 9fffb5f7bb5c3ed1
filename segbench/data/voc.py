"""PASCAL VOC 2012 in its published layout, with SBD's extra masks as trainaug: 21 classes, void = 255."""

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from segbench.data.base import (
    Pair,
    PairedFiles,
    Pixels,
    is_file,
    is_folder,
    list_folder,
    read_labels,
    read_list,
    voc_palette,
)
from segbench.errors import UserError, unknown

LAYOUT = "expected: JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/{train,val,trainval}.txt"
AUG_LAYOUT = (
    "expected: SegmentationClassAug/*.png, or data.sbd=.../benchmark_RELEASE/dataset with img/, cls/*.mat, "
    "train.txt and val.txt"
)


class VOC(PairedFiles):
    """PASCAL VOC 2012 segmentation (Everingham et al. 2010): 20 classes, background, and void = 255 at rims.

    Split ``trainaug`` adds the masks of SBD (Hariharan et al. 2011, Semantic contours from inverse detectors) to the
    training images: 10,582 images, those of val left out. It is read from ``SegmentationClassAug``, a folder of PNGs,
    or from SBD itself; there VOC's own finer mask is taken where it has one.

    Args:
        split: ``train`` (1,464 images), ``val`` (1,449), ``trainval`` (2,913), ``trainaug`` (10,582), or ``test``
            (1,456), whose labels its owners keep.
        root: ``VOCdevkit/VOC2012``, or a folder that holds it.
        sbd: SBD's ``benchmark_RELEASE/dataset``, for trainaug.
        trainaug_images: how many images trainaug must have.

    Raises:
        UserError: a folder, list or file is missing, or trainaug has another number of images.
    """

    splits = ("train", "val", "trainval", "trainaug", "test")
    classes = (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip
    palette = voc_palette(21)

    def __init__(self, split: str, root: Path, sbd: Path | None = None, trainaug_images: int = 10_582) -> None:
        if split not in self.splits:
            raise unknown("split", split, self.splits)
        if not is_folder(root):
            raise UserError(f"data.root: no folder {root}; {LAYOUT}")
        inside = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
        root = next((folder for folder in inside if is_folder(folder / "ImageSets")), root)
        if split == "trainaug":
            pairs, listing, layout = self._trainaug(root, sbd), None, AUG_LAYOUT
            if len(pairs) != trainaug_images:
                raise UserError(f"trainaug has {len(pairs)} images, not {trainaug_images}; {AUG_LAYOUT}")
        else:
            listing, layout = root / "ImageSets" / "Segmentation" / f"{split}.txt", LAYOUT
            pairs = [
                (
                    name,
                    root / "JPEGImages" / f"{name}.jpg",
                    None if split == "test" else root / "SegmentationClass" / f"{name}.png",
                )
                for name in read_list(listing, LAYOUT)
            ]
        super().__init__(split, pairs, layout, listing)

    @staticmethod
    def _trainaug(root: Path, sbd: Path | None) -> list[Pair]:
        lists = root / "ImageSets" / "Segmentation"
        own, val = (set(read_list(lists / f"{name}.txt", LAYOUT)) for name in ("train", "val"))
        folder = root / "SegmentationClassAug"
        if sbd is not None:
            listed = {n for name in ("train", "val") for n in read_list(sbd / f"{name}.txt", AUG_LAYOUT)}
        elif is_folder(folder):
            listed = {path.stem for path in list_folder(folder, AUG_LAYOUT) if path.suffix == ".png"}
        else:
            raise UserError(f"no folder {folder}; {AUG_LAYOUT}")
        pairs: list[Pair] = []
        for name in sorted((own | listed) - val):
            if sbd is None:
                labels = folder / f"{name}.png"
            else:
                labels = root / "SegmentationClass" / f"{name}.png" if name in own else sbd / "cls" / f"{name}.mat"
            image = root / "JPEGImages" / f"{name}.jpg"
            if sbd is not None and not is_file(image):
                image = sbd / "img" / f"{name}.jpg"
            pairs.append((name, image, labels))
        return pairs

    def submission(self, index: int, prediction: Pixels) -> tuple[str, Image.Image]:
        """As the devkit names what is handed in for competition 6: any training data but the test set."""
        name, picture = super().submission(index, prediction)
        return f"results/VOC2012/Segmentation/comp6_{self.split}_cls/{name}", picture

    def decode(self, path: Path) -> Pixels:
        return _read_mat(path) if path.suffix == ".mat" else read_labels(path)


def _read_mat(path: Path) -> Pixels:
    """SBD's ``GTcls.Segmentation``, (H, W) uint8."""
    try:
        return np.asarray(scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0], np.uint8)
    except Exception as error:  # a broken file fails in many ways
        raise UserError(f"{path} is no mask of SBD that can be read: {' '.join(str(error).split())}") from None
