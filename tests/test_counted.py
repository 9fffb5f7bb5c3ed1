"""At which size, and of which part, an image is counted: crops, resized images, labels of another size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as transforms

from segbench.config import EvaluationConfig
from segbench.errors import UserError
from segbench.training.counted import counted_labels
from segbench.training.prediction import predict, predict_counted
from tests.conftest import segbench
from tests.test_predict import Blur, encoder


@pytest.mark.parametrize("size", [(70, 100), (100, 70), (7, 7), (300, 11), (2, 99)])
@pytest.mark.parametrize("most", [1, 5, 33, 64, 99, 500])
def test_labels_are_shrunk_to_the_pixel_in_which_the_centre_lies(size, most):
    labels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    found = counted_labels(labels, EvaluationConfig(label_size=most))
    if most >= max(size):
        assert found is labels
        return
    height, width = (max(1, round(n * most / max(size))) for n in size)
    assert max(height, width) == most
    expected = np.empty((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            expected[y, x] = labels[int((y + 0.5) * size[0] / height), int((x + 0.5) * size[1] / width)]
    assert np.array_equal(found, expected)


def image(height=21, width=34):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def scores(pixels, **protocol):
    [(_, found)] = predict(encoder(), {"": Blur()}, pixels, EvaluationConfig(**protocol))
    assert found.error is None
    assert np.array_equal(found.labels, found.scores.argmax(0).numpy())
    return found.scores


def test_logits_are_brought_to_the_size_of_shrunk_labels():
    logits = scores(image())
    expected = F.interpolate(logits[None], (10, 16), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(scores(image(), label_size=16), expected, rtol=0, atol=0)
    torch.testing.assert_close(scores(image(), label_size=34), logits, rtol=0, atol=0)


@pytest.mark.parametrize("window", [(21, 34), (20, 34), (8, 11), (1, 1)])
def test_a_crop_is_what_is_predicted_of_the_centre_alone(window):
    top, left = (21 - window[0]) // 2, (34 - window[1]) // 2
    centre = np.s_[top : top + window[0], left : left + window[1]]
    found = scores(image(), mode="crop", window=window)
    torch.testing.assert_close(found, scores(image()[centre]), rtol=0, atol=0)
    labels = np.random.default_rng(1).integers(0, 4, (21, 34), np.uint8)
    assert np.array_equal(counted_labels(labels, EvaluationConfig(mode="crop", window=window)), labels[centre])


@pytest.mark.parametrize(("length", "size"), [(14, (14, 23)), (42, (42, 68)), (21, (21, 34))])
def test_an_image_is_resized_before_the_model_and_the_logits_back(length, size):
    """Against torchvision, whose bilinear filter is antialiased; 34 * 14 / 21 is 22.7."""
    resized = transforms.resize(encoder().normalise(torch.from_numpy(image()).permute(2, 0, 1)[None]), list(size))
    with torch.no_grad():
        logits = Blur()([resized], None)
    expected = F.interpolate(logits, (21, 34), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(scores(image(), resize=length), expected, rtol=0, atol=1e-5)
    turned = scores(image().swapaxes(0, 1).copy(), resize=length)
    assert turned.shape == (4, 34, 21)


def test_both_sides_may_be_given():
    """As protocols that squeeze images and labels to a square; labels are then enlarged too."""
    square = transforms.resize(encoder().normalise(torch.from_numpy(image()).permute(2, 0, 1)[None]), [16, 16])
    with torch.no_grad():
        logits = Blur()([square], None)
    expected = F.interpolate(logits, (30, 24), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(scores(image(), resize=[16, 16], label_size=[30, 24]), expected, rtol=0, atol=1e-5)
    labels = np.random.default_rng(0).integers(0, 4, (21, 34), np.uint8)
    found = counted_labels(labels, EvaluationConfig(label_size=[30, 24]))
    assert found.tolist() == [
        [labels[int((y + 0.5) * 21 / 30), int((x + 0.5) * 34 / 24)] for x in range(24)] for y in range(30)
    ]
    assert EvaluationConfig(resize=[16, 16], label_size=[30, 24]).title == "resized to 16x16, labels at 30x24"


def test_crop_then_resize_then_labels():
    labels = np.zeros((21, 34), np.uint8)
    protocol = EvaluationConfig(mode="crop", window=[12, 20], resize=30, label_size=10, flip=True, scales=[1.0, 0.5])
    seen = []

    class Looks(Blur):
        def forward(self, features, image):
            seen.append(tuple(image.shape[-2:]))
            return super().forward(features, image)

    truth, found = predict_counted(encoder(), {"": Looks()}, image(), labels, protocol)
    [(_, made)] = found
    assert truth.shape == made.labels.shape == (6, 10)
    assert seen == [(30, 50)] * 2 + [(15, 25)] * 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "crop"}, "mode: crop needs a window"),
        ({"mode": "crop", "window": 8, "stride": 4}, "stride is for mode: slide; mode: crop has one window"),
        ({"label_size": 0}, "label_size should be greater than 0"),
        ({"resize": 1.5}, "resize should be a whole number"),
    ],
)
def test_impossible_evaluations_are_named(make_config, values, message):
    with pytest.raises(UserError, match=f"evaluation.*{message}"):
        make_config(evaluation=values)


def test_titles():
    assert EvaluationConfig(mode="crop", window=[40, 60], label_size=30).title == "centre crop 40x60, labels at 30 px"
    assert EvaluationConfig(resize=512, fit="resize").title == "resized to fit, shorter side to 512 px"


def test_a_crop_larger_than_an_image_is_named_before_anything_starts(write_sweep):
    done = segbench("sweep", write_sweep(evaluation={"mode": "crop", "window": [64, 65]}))
    assert done.returncode == 2
    assert "evaluation.window: a crop of 64x65 is larger than image val-00000, which has 64x64" in done.stderr
    with pytest.raises(UserError, match="a crop of 22x3 is larger than the image, which has 21x34"):
        scores(image(), mode="crop", window=[22, 3])
