"""The measures as torchmetrics."""

import pickle

import numpy as np
import pytest
import torch
from torchmetrics import MeanMetric

from segbench import metrics
from segbench.measures.base import check_labels, iou, mean_over_classes
from segbench.measures.bf1 import contour_f1
from tests.test_measures import blobs, count

MODULES = [
    (metrics.MeanIoU, {}, "region", iou, ()),
    (metrics.BoundaryIoU, {"ratio": 0.05}, "boundary", iou, ([0.05],)),
    (metrics.BoundaryF1, {"tolerance_px": 2}, "contour", contour_f1, ([], [2])),
    (metrics.BoundaryF1, {"ratio": 0.05}, "contour", contour_f1, ([], [2])),
    (metrics.TrimapIoU, {"widths_px": [1, 4]}, "trimap", iou, ([], [], [1, 4])),
]


def batches(number=3, logits=False):
    rng = np.random.default_rng(7)
    for _ in range(number):
        truth = np.stack([blobs(rng, 24, 32, 4, void=True) for _ in range(2)])
        prediction = np.stack([blobs(rng, 24, 32, 4, void=False) for _ in range(2)])
        preds = torch.from_numpy(prediction)
        if logits:
            preds = torch.nn.functional.one_hot(preds.long(), 5).permute(0, 3, 1, 2).float() * 3
        yield preds, torch.from_numpy(truth)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize(
    ("cls", "options", "array", "score", "protocol"), MODULES, ids=lambda v: getattr(v, "__name__", None)
)
def test_modules_sum_counts_over_all_images(cls, options, array, score, protocol, logits):
    metric = cls(5, **options)
    total = 0
    for preds, target in batches(logits=logits):
        metric.update(preds, target)
        labels = preds.argmax(1).to(torch.uint8) if logits else preds
        for p, t in zip(labels, target, strict=True):
            counts = getattr(count(t.numpy(), p.numpy(), 5, *protocol), array)
            total = total + (counts[0] if array in ("boundary", "contour") else counts)
    np.testing.assert_array_equal(metric.per_class().numpy(), score(total))
    np.testing.assert_array_equal(metric.compute().numpy(), mean_over_classes(score(total)))
    assert metric.per_class()[..., 4].isnan().all()  # class 4 never appears
    assert metric.compute().shape == ((2,) if cls is metrics.TrimapIoU else ())
    again = pickle.loads(pickle.dumps(metric))
    assert torch.equal(again.compute(), metric.compute())
    images = [c for preds, target in batches(logits=logits) for c in metric.count_images(preds, target)]
    assert torch.equal(torch.stack(images).sum(0), metric.counts)
    metric.reset()
    assert metric.compute().isnan().all()  # an epoch without images


@pytest.mark.parametrize(
    ("cls", "options", "array", "score", "protocol"), MODULES, ids=lambda v: getattr(v, "__name__", None)
)
def test_modules_merge_half_finished_epochs(cls, options, array, score, protocol):
    parts = list(batches(4))
    whole, a, b = (cls(5, **options) for _ in range(3))
    for i, (preds, target) in enumerate(parts):
        whole.update(preds, target)
        (a if i < 1 else b).update(preds, target)
    a.merge_state(b)
    assert torch.equal(a.counts, whole.counts)
    assert torch.equal(a.compute(), whole.compute())


def _in_process(rank, file, queue):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    metric = metrics.BoundaryIoU(5, 0.05)
    for i, (preds, target) in enumerate(batches(3)):
        if i % 2 == rank:
            metric.update(preds, target)
    queue.put((rank, float(metric.compute())))
    torch.distributed.destroy_process_group()


def test_modules_sync_across_processes(tmp_path):
    """Two processes with two and one batches get the score of all three."""
    import torch.multiprocessing as mp

    context = mp.get_context("forkserver")
    queue = context.Queue()
    processes = [context.Process(target=_in_process, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for process in processes:
        process.start()
    scores = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    alone = metrics.BoundaryIoU(5, 0.05)
    for preds, target in batches(3):
        alone.update(preds, target)
    assert scores == {0: float(alone.compute()), 1: float(alone.compute())}


def test_other_void_labels():
    preds = torch.tensor([[[0, 1, 1], [0, 0, 1]]])
    target = torch.tensor([[[0, 1, -1], [0, 1, 1]]])
    assert metrics.MeanIoU(2, ignore_index=-1)(preds, target) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert metrics.MeanIoU(2, ignore_index=None)(preds, target.clamp(min=0)) == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert metrics.boundary_iou(preds, target, 2, ignore_index=-1) == pytest.approx(2 / 3)
    assert metrics.mean_iou(preds, target, 2, ignore_index=-1) == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_mean_iou_works_as_its_siblings():
    preds = torch.tensor([[[0, 0, 1], [0, 1, 1]], [[1, 1, 1], [0, 0, 0]]])
    target = torch.tensor([[[0, 0, 1], [0, 0, 255]], [[1, 1, 0], [0, 0, 0]]])
    expected = (6 / 8 + 3 / 5) / 2  # class 0: 6 of 8 pixels, class 1: 3 of 5; the void one counts nowhere
    assert metrics.mean_iou(preds, target, 2) == pytest.approx(expected)
    logits = torch.nn.functional.one_hot(preds, 2).permute(0, 3, 1, 2).float()
    assert metrics.mean_iou(logits, target, 2) == pytest.approx(expected)
    assert metrics.mean_iou(preds, target, num_classes=2, ignore_index=255) == metrics.MeanIoU(2)(preds, target)


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4).long(), r"logits should be \(B, 3, H, W\), not \(1, 4, 4\)"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), r"logits should be \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 4).long(), torch.zeros(1, 4, 5).long(), r"target should be \(B, H, W\) integers as preds"),
        (
            torch.zeros(1, 4, 4).long(),
            torch.full((1, 4, 4), 3),
            r"target holds 3; allowed are 0 to 2, and 255 for void",
        ),
        (torch.full((1, 4, 4), -1), torch.zeros(1, 4, 4).long(), r"preds holds -1; allowed are 0 to 2"),
    ],
)
def test_modules_refuse_what_does_not_fit(preds, target, message):
    with pytest.raises(ValueError, match=message):
        metrics.MeanIoU(3).update(preds, target)


def test_more_pixels_than_float32_can_count():
    """2^24 + 6 pixels of one class: float32 would stop at 2^24."""
    metric = metrics.MeanIoU(2)
    labels = torch.zeros(1, 2, 2**23 + 3, dtype=torch.uint8)
    metric.update(labels, labels)
    assert metric.counts[:, 0].tolist() == [2**24 + 6] * 3


def test_measures_stand_alone():
    """Importable without the rest of segbench, scores without torch."""
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from segbench.measures.biou import BIoU; BIoU().score(np.ones((3, 2), int)); "
        "assert 'torch' not in sys.modules; "
        "own = {n for n in sys.modules if n.startswith('segbench.')}; "
        "assert all(n.startswith('segbench.measures') for n in own), own; "
        "import segbench.metrics; own = {n for n in sys.modules if n.startswith('segbench.')}; "
        "assert all(n.startswith(('segbench.measures', 'segbench.metrics')) for n in own), own"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def together():
    return metrics.SegmentationMetrics([cls(5, **options) for cls, options, *_ in MODULES[:3]])


def test_together_gives_the_same_and_makes_the_truth_s_side_once(monkeypatch):
    alone, several = [cls(5, **options) for cls, options, *_ in MODULES[:3]], together()
    made = []
    monkeypatch.setattr(metrics, "check_labels", lambda *args: made.append(1) or check_labels(*args))
    for preds, target in batches(logits=True):
        several.update(preds, target)
    assert len(made) == 3 * 2  # images
    for preds, target in batches(logits=True):
        for metric in alone:
            metric.update(preds, target)
    assert len(made) == (1 + len(alone)) * 3 * 2
    found = several.compute()
    assert list(found) == ["MeanIoU", "BoundaryIoU", "BoundaryF1"]
    assert [v.item() for v in found.values()] == [m.compute().item() for m in alone]
    of_one = several(*next(iter(batches())))  # forward: of that batch alone, and added
    assert of_one["MeanIoU"].item() == metrics.mean_iou(*next(iter(batches())), 5).item()
    assert all(m._update_count == 4 for m in several.values())
    several.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert several.compute()["MeanIoU"].isnan()


def test_what_cannot_be_counted_together():
    with pytest.raises(ValueError, match="MeanMetric is none of segbench.metrics"):
        metrics.SegmentationMetrics([metrics.MeanIoU(5), MeanMetric()])
    with pytest.raises(ValueError, match="differ in num_classes or ignore_index"):
        metrics.SegmentationMetrics({"a": metrics.MeanIoU(5), "b": metrics.MeanIoU(5, None)})


def test_arrays_and_single_images():
    for preds, target in batches(1, logits=True):
        wanted = metrics.boundary_iou(preds[:1], target[:1], 5)
        assert metrics.boundary_iou(preds[0], target[0], 5) == wanted
        assert metrics.boundary_iou(preds[0].numpy(), target[0].numpy(), 5) == wanted
        assert metrics.boundary_iou(preds.argmax(1)[0].numpy().astype(np.int32), target.numpy()[0], 5) == wanted
        both = together()
        both.update(preds.numpy(), target.numpy())
        assert both.compute()["MeanIoU"] == metrics.mean_iou(preds, target, 5)


def test_logits_that_hold_nan_are_refused():
    preds, target = next(batches(1, logits=True))
    preds[1, 2, 3, 4] = torch.nan
    for metric in (metrics.MeanIoU(5), together()):
        with pytest.raises(ValueError, match="logits hold NaN"):
            metric.update(preds, target)
    preds[1, 2, 3, 4] = -torch.inf  # which is a logit
    assert metrics.mean_iou(preds, target, 5) > 0
