"""Cell nuclei of the 2018 Data Science Bowl (Caicedo et al. 2019), as stage 1 comes: a mask file for each nucleus."""

from pathlib import Path

import cv2
import numpy as np

from segbench.data.base import Dataset, Pixels, check_pair, hash_files, list_folder, read_image, read_labels

LAYOUT = "expected: stage1_train/ID/images/ID.png and stage1_train/ID/masks/*.png, one for each nucleus"


class Nuclei(Dataset):
    """Every fifth image, by name, is evaluated on; the others are trained on.

    Args:
        root: the folder that holds ``stage1_train``.
        border_px: a pixel that is so near to two nuclei is border.
    """

    classes = ("background", "nucleus", "border")
    palette = ((0, 0, 0), (0, 150, 255), (255, 220, 0))

    def __init__(self, split: str, root: Path, border_px: int = 2) -> None:
        super().__init__(split)
        folders = list_folder(root / "stage1_train", LAYOUT)
        self.folders = [folder for i, folder in enumerate(folders) if (i % 5 == 0) == (split == "val")]
        self.ids = [folder.name for folder in self.folders]
        self.near = np.ones((2 * border_px + 1, 2 * border_px + 1), np.uint8)

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        folder = self.folders[index]
        image = read_image(image_path := folder / "images" / f"{folder.name}.png")
        labels, times_near = np.zeros((2, *image.shape[:2]), np.uint8)
        for path in list_folder(folder / "masks", LAYOUT):
            nucleus = (read_labels(path) > 0).astype(np.uint8)
            check_pair(image, nucleus, 2, image_path, path)
            labels |= nucleus
            times_near = cv2.add(times_near, cv2.dilate(nucleus, self.near))  # stops at 255
        labels[times_near > 1] = 2
        return image, labels

    def fingerprint(self) -> str:
        images = [(folder, folder / "images" / f"{folder.name}.png") for folder in self.folders]
        return hash_files(
            [(image.stem, image, mask) for folder, image in images for mask in list_folder(folder / "masks", LAYOUT)]
        )
