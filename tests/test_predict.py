import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segbench.config import EvaluationConfig
from segbench.encoders.base import Encoder, Level
from segbench.errors import UserError
from segbench.training.prediction import encode, pad_to_stride, predict, window_places

K = 4


class Identity(nn.Module):
    def forward(self, image):
        return [image]


class Blur(nn.Module):
    """3x3 convolution with zero padding: what a window shows decides what its edge gets."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, K, 3, padding=1)

    def forward(self, features, image):
        return self.conv(features[0])


class Pixelwise(Blur):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, K, 1)


def encoder(stride=1):
    return Encoder(Identity(), [Level(0, stride, 3)], ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))


@pytest.fixture
def pixels():
    """(1, 3, 21, 34), in memory as an image that was read."""
    image = np.random.default_rng(0).integers(0, 256, (21, 34, 3), np.uint8)
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def run(decoder, pixels, **protocol):
    image = pixels[0].permute(1, 2, 0).numpy()
    [(_, found)] = predict(encoder(), {"it": decoder}, image, EvaluationConfig(**protocol))
    if found.error is not None:
        raise found.error
    assert found.labels.tolist() == found.scores.argmax(0).tolist()
    return found.scores


def test_whole_is_the_decoder_itself(pixels):
    decoder = Blur()
    with torch.no_grad():
        expected = decoder([encoder().normalise(pixels)], None)[0]
    torch.testing.assert_close(run(decoder, pixels), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "window", "stride", "rows", "columns"),
    [
        ((10, 10), 10, 5, [(0, 10)], [(0, 10)]),
        ((8, 30), 10, 7, [(0, 8)], [(0, 10), (7, 17), (14, 24), (20, 30)]),
        ((11, 10), 10, 10, [(0, 10), (1, 11)], [(0, 10)]),
        ((5, 9), (3, 4), (3, 4), [(0, 3), (2, 5)], [(0, 4), (4, 8), (5, 9)]),
    ],
)
def test_windows_by_hand(size, window, stride, rows, columns):
    found = window_places(size, EvaluationConfig(mode="slide", window=window, stride=stride))
    expected = [(slice(*r), slice(*c)) for r in rows for c in columns]
    assert found == expected


def test_slide_averages_the_logits_of_overlapping_windows(pixels):
    decoder = Blur()
    found = run(decoder, pixels, mode="slide", window=[8, 12], stride=[5, 7])
    image = encoder().normalise(pixels)
    total, times = np.zeros((K, 21, 34)), np.zeros((21, 34))
    for top in (0, 5, 10, 13):
        for left in (0, 7, 14, 21, 22):
            with torch.no_grad():
                part = decoder([image[..., top : top + 8, left : left + 12]], None)[0].numpy()
            total[:, top : top + 8, left : left + 12] += part
            times[top : top + 8, left : left + 12] += 1
    assert times.min() == 1
    np.testing.assert_allclose(found.numpy(), total / times, atol=1e-5)
    assert not np.allclose(found.numpy(), run(decoder, pixels).numpy(), atol=1e-3)


def test_slide_of_a_pixelwise_decoder_is_whole(pixels):
    decoder = Pixelwise()
    for window in (7, 16, 100):
        found = run(decoder, pixels, mode="slide", window=window)
        torch.testing.assert_close(found, run(decoder, pixels), rtol=0, atol=1e-5)


def test_flip_and_scales_average_probabilities(pixels):
    decoder = Blur()
    found = run(decoder, pixels, flip=True, scales=[1.0, 0.5])
    image = encoder().normalise(pixels)
    parts = []
    with torch.no_grad():
        for size in ((21, 34), (10, 17)):  # round(10.5) is 10
            scaled = F.interpolate(image, size, mode="bilinear", align_corners=False)
            for mirror in (False, True):
                logits = decoder([scaled.flip(3) if mirror else scaled], None)
                logits = F.interpolate(
                    logits.flip(3) if mirror else logits, (21, 34), mode="bilinear", align_corners=False
                )
                parts.append(logits.softmax(1)[0])
    torch.testing.assert_close(found, torch.stack(parts).mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sum(0), torch.ones(21, 34))


def test_padding_modes():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad_to_stride(image, 4)[0, 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 0], [0] * 4, [0] * 4]
    assert pad_to_stride(image, 4, "replicate")[0, 0].tolist() == [[0, 1, 2, 2]] + [[3, 4, 5, 5]] * 3


def test_windows_are_padded_each_by_itself(pixels):
    protocol = EvaluationConfig(mode="slide", window=13, padding="replicate")
    whole = encoder().normalise(pixels)
    windows = encode(encoder(stride=8), whole, protocol)
    assert len(windows) == 8
    for window in windows:
        assert window.image.shape[-2:] == (16, 16)
        assert (window.image[..., 13:, :] == window.image[..., 12:13, :]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "slide"}, "mode: slide needs a window"),
        ({"window": 64}, "window and stride are for mode: slide"),
        ({"mode": "slide", "window": 64, "stride": 65}, "stride .65, 65. is larger than window"),
        ({"scales": []}, "1 or more values"),
        ({"scales": [1.0, 1.0]}, "holds one twice"),
        ({"scales": [0]}, "greater than 0"),
        ({"mode": "sliding"}, "'whole', 'slide' or 'crop'"),
    ],
)
def test_impossible_protocols_are_named(make_config, values, message):
    with pytest.raises(UserError, match=f"evaluation.*{message}"):
        make_config(evaluation=values)


def test_the_title_names_what_is_not_default():
    assert EvaluationConfig().title == ""
    protocol = EvaluationConfig(mode="slide", window=512, flip=True, scales=[0.75, 1.0], padding="replicate")
    assert protocol.title == "slide 512x512 by 342x342, flip, scales 0.75 1, replicate padding"


def test_the_protocol_is_in_row_key_and_title(make_config):
    from segbench.report.table import make_table
    from tests.test_sweep import sweep

    tables = {}
    for name, values in {"plain": {}, "augmented": {"mode": "slide", "window": 48, "flip": True}}.items():
        config = make_config(name=name, decoders=["bilinear"], evaluation=values)
        results, code, out = sweep(config)
        assert code == 0, out
        tables[name] = results["bilinear", 0].row, make_table(results["bilinear", 0].folder.parent)
    plain, augmented = tables["plain"][0], tables["augmented"][0]
    assert plain["key"] != augmented["key"]
    assert augmented["evaluation"] | {"window": [48, 48], "stride": [32, 32], "flip": True} == augmented["evaluation"]
    for row in (plain, augmented):
        assert row["evaluation"]["pad_to_multiple_of"] == 32
        assert row["evaluation"]["padding"] == "mean"
        assert "align_corners=False" in row["evaluation"]["interpolation"]
        assert "labels' size" in row["evaluation"]["logits"]
    assert tables["plain"][1].title.endswith("4 steps")
    assert tables["augmented"][1].title.endswith("4 steps, slide 48x48 by 32x32, flip")


class Spoils(Blur):
    def forward(self, features, image):
        features[0].mul_(2)
        return super().forward(features, image)


class Raises(Blur):
    def forward(self, features, image):
        raise OSError("nothing to see")


def test_decoders_share_the_features_and_nothing_else(pixels):
    """One that raises or spoils them changes nothing for those before and behind it, in no view."""
    protocol = EvaluationConfig(mode="slide", window=[8, 12], flip=True, scales=[1.0, 0.5])
    image = pixels[0].permute(1, 2, 0).numpy()
    crowd = {"before": Blur(), "raises": Raises(), "spoils": Spoils(), "behind": Pixelwise()}
    found = dict(predict(encoder(), crowd, image, protocol))
    assert list(found) == list(crowd)
    for key in ("before", "behind"):
        [(_, alone)] = predict(encoder(), {key: crowd[key]}, image, protocol)
        assert torch.equal(found[key].scores, alone.scores)
    assert isinstance(found["raises"].error, OSError)
    assert str(found["spoils"].error).startswith("Spoils changes features[0] in place")
    assert found["spoils"].scores is None


def test_the_windows_of_one_view_are_in_memory_at_a_time(pixels):
    """Features that are alive while a decoder runs: those of its view, not of all."""
    import gc
    import weakref

    made = []

    class Counted(Identity):
        def forward(self, image):
            features = image.clone()
            made.append(weakref.ref(features))
            return [features]

    alive = []

    class Looks(Blur):
        def forward(self, features, image):
            gc.collect()
            alive.append(sum(ref() is not None for ref in made))
            return super().forward(features, image)

    own = Encoder(Counted(), [Level(0, 1, 3)], ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))
    image = pixels[0].permute(1, 2, 0).numpy()
    [(_, found)] = predict(own, {"it": Looks()}, image, EvaluationConfig(mode="slide", window=12, flip=True))
    assert found.error is None
    assert len(made) == 2 * 12
    assert max(alive) == 12


@pytest.mark.parametrize(("worst", "fails"), [(math.nan, True), (math.inf, True), (-math.inf, True), (3e38, False)])
def test_scores_that_are_not_finite_fail_and_huge_ones_do_not(pixels, worst, fails):
    """Two logits of 3e38 add up to infinity, and are finite."""

    class Huge(nn.Module):
        def forward(self, features, image):
            logits = torch.zeros(1, 3, *image.shape[-2:])
            logits[0, 1, 2, :2] = worst
            return logits

    if fails:
        with pytest.raises(FloatingPointError, match="scores of the image are not finite"):
            run(Huge(), pixels)
    else:
        assert run(Huge(), pixels).argmax(0)[2, :3].tolist() == [1, 1, 0]
