"""What of an image and its labels an evaluation looks at, and at which size it counts. Imports no torch."""

import numpy as np

from segbench.config import EvaluationConfig
from segbench.data.base import Dataset, Pixels
from segbench.errors import UserError

Size = tuple[int, int]  # height and width in pixels


def centre_crop(array: Pixels, protocol: EvaluationConfig, name: str = "the image") -> Pixels:
    """Of (H, W, ...) the centre that ``mode: crop`` asks for, all of it in other modes.

    Where what is cut off is odd, the pixel more is cut off below or to the right.

    Raises:
        UserError: the crop is larger than the array, which is called ``name``.
    """
    if protocol.mode != "crop" or protocol.window is None:
        return array
    check_crop((array.shape[0], array.shape[1]), protocol, name)
    top, left = ((n - w) // 2 for n, w in zip(array.shape, protocol.window, strict=False))
    return array[top : top + protocol.window[0], left : left + protocol.window[1]]


def check_crop(size: Size, protocol: EvaluationConfig, name: str) -> None:
    """Raise a `UserError` where the protocol crops and an image of that size is smaller."""
    window = protocol.window
    if protocol.mode == "crop" and window and (window[0] > size[0] or window[1] > size[1]):
        raise UserError(
            f"evaluation.window: a crop of {window[0]}x{window[1]} is larger than {name}, which has {size[0]}x{size[1]}"
        )


def check_crops(data: Dataset, protocol: EvaluationConfig) -> None:
    """`check_crop` of every image of a split."""
    for index in range(len(data)) if protocol.mode == "crop" else ():
        height, width = data.read(index)[1].shape
        check_crop((height, width), protocol, f"image {data.ids[index]}")


def counted_size(size: Size, protocol: EvaluationConfig) -> Size:
    """The size at which an image (or crop) of ``size`` is counted: its own, shrunk to ``label_size``, or just that."""
    longer, asked = max(size), protocol.label_size
    if isinstance(asked, list):
        return asked[0], asked[1]
    if asked is None or longer <= asked:
        return size
    height, width = (max(1, round(n * asked / longer)) for n in size)
    return height, width


def counted_labels(labels: Pixels, protocol: EvaluationConfig, name: str = "the image") -> Pixels:
    """(H, W) labels as they are counted: cropped as the image is, then shrunk.

    A pixel of resized labels has the class of the pixel in which its centre lies.
    """
    labels = centre_crop(labels, protocol, name)
    size = counted_size((labels.shape[0], labels.shape[1]), protocol)
    if size == labels.shape:
        return labels
    rows, columns = ((2 * np.arange(n) + 1) * full // (2 * n) for n, full in zip(size, labels.shape, strict=True))
    return np.ascontiguousarray(labels[np.ix_(rows, columns)])
