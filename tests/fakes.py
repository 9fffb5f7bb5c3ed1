"""Sweeps as cohorts leave them, made from drawn counts, and a page read back; for the tests of the report."""

import json
from html.parser import HTMLParser

import numpy as np

from segbench import store
from segbench.report.analysis import Analysis
from segbench.report.metrics import available
from segbench.report.runs import read_sweep
from tests.conftest import described_measures

CLASSES = ["sky", "road", "pole", "never"]
METRICS = ["miou", "biou@0.02", "accuracy", "bf1@3", "trimap@1", "trimap@2", "trimap@4"]
HOSTILE = [
    "<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</script><script>document.title='x'</script>",
    "$x_{a}$ _b", "_under", "long " * 12 + "w" * 200,
]  # fmt: skip


def counts_of(effect, seed, images, classes, noise, own):
    """Counts of images that are hard or easy for every decoder alike; the last class is in none of them."""
    shared, rng = np.random.default_rng(5), np.random.default_rng([seed, own])
    truth = shared.integers(200, 900, (images, classes))
    quality = (
        shared.uniform(0.3, 0.6, (images, classes)) + effect + rng.normal(0, noise) + rng.normal(0, 0.004, truth.shape)
    )
    truth[:, -1] = 0
    right = np.round(truth * quality.clip(0.01, 0.99)).astype(np.int64)
    region = np.stack([right, truth - right // 4, truth], 1)  # (N, 3, K)
    boundary = np.stack([right // 3, (truth - right // 4) // 2, truth // 2], 1)
    contour = np.stack([right // 5, truth // 4, right // 6, truth // 4], 1)
    trimap = {f"trimap@{width}": region // w for width, w in ((1, 8), (2, 4), (4, 2))}
    sizes = np.full((images, 2), [150, 200])  # 0.02 of the diagonal are 5 px
    confusion = np.zeros((classes, classes), np.int64)
    own = {"biou@0.02": boundary, "bf1@3": contour, **trimap}
    return {"region": region, "confusion": confusion, "sizes": sizes, **own}


def write_run(folder, decoder, seed, counts, number, classes, **changes):
    """A finished run as a cohort leaves it, without weights."""
    run = folder / f"run{number}-s{seed}"
    row = {
        "result_version": store.RESULT_VERSION, "key": f"k{number}{seed}", "variant": {}, "data_fingerprints": ["d"],
        "decoder": decoder, "seed": seed, "data": "shapes", "images": len(counts["region"]), "classes": list(classes),
        "evaluation": {"flip": False}, "broken": {}, "measures": described_measures(*METRICS),
        "encoder": "tiny", "encoder_hash": "e", "features_hash": "f", "steps": 40,
        "encoder_trainable": False, "last_loss": 0.5, "evaluation_title": "", "train_shared_s": 1.0,
        "values": {
            "params": 1e6 * (number + 1), "macs": 1e9 * (3 - number % 3), "train": 3.0 + seed, "eval": 4.0 + number,
            "memory": 1e9,
        },
        "eval_encoder_ms_per_image": 2.0, "finished": "2026-01-02T03:04:05+00:00", **changes,
    }  # fmt: skip
    run.mkdir(parents=True)
    np.savez(run / "counts.npz", ids=np.array([f"image{i}" for i in range(len(counts["region"]))]), **counts)
    lines = [f"{s},{2 / (s + 1) + 0.01 * seed},0.1," for s in range(1, 41)] + ["20,,,31.0"]
    (run / "history.csv").write_text("step,loss,lr,val_miou\n" + "\n".join(lines) + "\n")
    store.write_json(run / "environment.json", {"cpu": f"CPU {seed % 2}", "threads": 1, "versions": {"torch": "2.7"}})
    store.write_result(run, row)
    return {"key": row["key"], "decoder": decoder, "seed": seed, "variant": row["variant"], "folder": run.name}


def fake_sweep(path, effects, seeds=(0, 1, 2), images=12, noise=0.002, classes=CLASSES, baseline="bilinear", **changes):
    """A sweep's folder; ``effects``: decoder -> how much better it is, in IoU or so."""
    runs = []
    for number, (decoder, effect) in enumerate(effects.items()):
        for seed in seeds:
            counts = counts_of(effect, seed, images, len(classes), noise, number)
            runs.append(write_run(path, decoder, seed, counts, number, classes, **changes))
    config = {"name": "fake", "seeds": list(seeds), "baseline": baseline, "data": {"root": "/<data>"}}
    called = {"command": "segbench sweep 'my file.yaml' seeds=[0,1,2]", "commit": "0123abc"}
    store.write_json(path / "sweep.json", {"config": config, "runs": runs, "called": called})
    return path


EFFECTS = {"bilinear": 0.0, "nearest": 0.001, "deconv": 0.15, "subpixel": -0.1}


class Reader(HTMLParser):
    """Elements, the JSON data, and the text of each table's cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.data, self.words = [], [], "", []
        self._script = self._cell = None
        self.feed(text)
        self.json = json.loads(self.data)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "script":
            self._script = attrs.get("type", "code")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables and self.tables[-1]:
            self._cell = {"value": attrs.get("data-v"), "text": ""}
            self.tables[-1][-1].append(self._cell)

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None
        elif tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self._script == "application/json":
            self.data += data
        elif self._cell is not None:
            self._cell["text"] += data
        elif self._script is None:
            self.words.append(data)


def analyses(folder, group=0):
    sweep = read_sweep(folder, True)
    chosen = sweep.groups[group]
    return {m.name: Analysis(chosen, m) for m in available(list(chosen.results.values()))}


def iou_by_hand(counts):
    """(3, K) -> percent by class, absent ones left out as NaN; written out anew."""
    found = []
    for right, predicted, truth in counts.T.tolist():
        union = predicted + truth - right
        found.append(100 * right / union if union else np.nan)
    return np.array(found)


def f1_by_hand(counts):
    found = []
    for near, predicted, hit, truth in counts.T.tolist():
        precision, recall = (near / predicted, hit / truth) if truth else (np.nan, np.nan)
        found.append(100 * 2 * precision * recall / (precision + recall))
    return np.array(found)


def by_hand(folder, name):
    """decoder -> (S, K) percent, from the files alone."""
    scores = {}
    for path in sorted(folder.glob("*/counts.npz"), key=lambda p: p.parent.name):
        row = json.loads((path.parent / "result.json").read_text())
        counts = np.load(path)
        if name == "accuracy":
            total = counts["region"].sum(0)
            values = np.array([100 * total[0].sum() / total[2].sum()])
        elif name == "miou":
            values = iou_by_hand(counts["region"].sum(0))
        elif name == "bf1@3":
            values = f1_by_hand(counts[name].sum(0))
        else:
            values = iou_by_hand(counts[name].sum(0))
        scores.setdefault(row["decoder"], []).append(values)
    return {d: np.array(v) for d, v in scores.items()}


def table_of(read, first):
    """Row name -> cells of the table whose first heading is ``first``."""
    table = next(t for t in read.tables if any(row and row[0]["text"].strip() == first for row in t))
    start = next(i for i, row in enumerate(table) if row[0]["text"].strip() == first)
    return [c["text"].strip() for c in table[start]], {row[0]["text"].strip(): row[1:] for row in table[start + 1 :]}
