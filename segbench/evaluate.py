"""Finished runs under several evaluations: the same weights, predicted and counted in other ways, in one table."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from segbench import store
from segbench.config import EvaluationConfig
from segbench.data.base import Part
from segbench.errors import UserError, brief
from segbench.export import Trained, load_run
from segbench.loading.pipeline import Workers, evaluation_images
from segbench.measures.base import CountMeasure, Ints
from segbench.report.evaluations import Counted, Key, Runs, table_of
from segbench.report.metrics import available
from segbench.report.table import Table
from segbench.runs import spelled_variant
from segbench.training.counted import check_crop
from segbench.training.evaluation import Evaluation, count_image
from segbench.training.prediction import computed
from segbench.vary import Asked, fitting, title


def evaluate(
    results: Sequence[store.Result], asked: Asked, unfinished: Sequence[str], after_image: Callable[[int, int], None]
) -> Table:
    """Predict the evaluation split with the weights of finished runs under their own evaluation and others.

    Args:
        results: of runs that go together, as `finished_runs` gives them.
        unfinished: runs that a note names.
        after_image: called with the number of images done and their total.

    Raises:
        UserError: weights, data or encoder that cannot be used, a crop that is larger than an image, or an encoder that
            fails.
    """
    runs = _load(results, asked)
    measures = [
        m.measure for m in available(results) if m.measure.verdict_place is not None and all(map(m.there, results))
    ]
    sizes = _sizes(runs, asked.config.evaluation)
    own = asked.config.evaluation
    others = asked.varied or fitting(asked.config, sizes, results[0].row["evaluation"]["pad_to_multiple_of"])
    evaluations = [own]
    evaluations += [e for i, e in enumerate(others) if e != own and e not in others[:i]]
    for evaluation in evaluations:
        for name, size in zip(runs.data.ids, sizes.tolist(), strict=True):
            check_crop((size[0], size[1]), evaluation, f"image {name}")
    counted = _count(runs, evaluations, measures, after_image)
    return table_of(runs, evaluations, counted, measures, unfinished)


def _load(results: Sequence[store.Result], asked: Asked) -> Runs:
    sweeps = {r.folder.parent.resolve() for r in results}
    found: dict[Key, store.Result] = {}
    for r in results:
        name = " ".join([r.row["decoder"], *spelled_variant(r.row["variant"])])
        key = (f"{r.folder.resolve().parent.name}: {name}" if len(sweeps) > 1 else name, r.row["seed"])
        if key in found:
            raise UserError(f"{found[key].folder} and {r.folder} are both {key[0]}, seed {key[1]}; give one of them")
        found[key] = r
    trained: dict[Key, Trained] = {}
    first: Trained | None = None
    for key, result in found.items():
        trained[key] = load_run(result.folder, None, ["baseline=null", *asked.overrides], first)
        first = first or trained[key]
    assert first is not None
    data = first.dataset
    if not data.labelled:
        raise UserError(f"split '{data.split}' has no labels to count by; `segbench export` predicts it")
    number = len(data)
    places = np.linspace(0, number - 1, min(asked.images or number, number)).astype(int).tolist()
    return Runs(found, trained, Part(data, places), places)


def _sizes(runs: Runs, own: EvaluationConfig) -> Ints:
    """(N, 2) height and width of the images in pixels: as they were counted, where that says it; else by reading."""
    counted = runs.any_trained.counted
    if counted is not None and own.mode != "crop" and own.label_size is None:
        return counted.counts["sizes"][list(runs.places)]
    return np.array([runs.data.read(i)[1].shape for i in range(len(runs.data))])


def _count(
    runs: Runs,
    evaluations: Sequence[EvaluationConfig],
    measures: Sequence[CountMeasure],
    after_image: Callable[[int, int], None],
) -> Counted:
    """Image by image. What an encoder makes of one serves all decoders, and all evaluations that look at it alike."""
    results: Counted = [
        {key: Evaluation(measures, len(runs.data.classes)) for key in runs.trained} for _ in evaluations
    ]
    alike: dict[str, list[int]] = {}
    for i, evaluation in enumerate(evaluations):
        alike.setdefault(evaluation.model_dump_json(exclude={"every", "label_size"}), []).append(i)
    sharing: dict[int, dict[str, Key]] = {}
    for key, run in runs.trained.items():
        sharing.setdefault(id(run.encoder), {})[repr(key)] = key
    for index, pixels, labels in evaluation_images(runs.data, Workers(0, 0)):
        image = runs.data.ids[index], np.ascontiguousarray(pixels), labels
        for keys in sharing.values():
            decoders = {name: runs.trained[key].decoder for name, key in keys.items()}
            encoder = runs.trained[next(iter(keys.values()))].encoder
            for group in alike.values():
                features: dict[str, list[Tensor]] = {}
                keep = functools.partial(_once, features) if len(group) > 1 else computed
                for i in group:
                    own = {name: results[i][key] for name, key in keys.items()}
                    try:
                        count_image(own, encoder, decoders, image, runs.data.classes, evaluations[i], keep=keep)
                    except UserError:
                        raise
                    except Exception as error:  # an encoder that does not take such a size, or memory
                        why = f"'{title(evaluations[i])}' fails on image {image[0]}"
                        raise UserError(f"evaluation {why}: {brief(error)}") from error
        after_image(index + 1, len(runs.data))
    return results


def _once(features: dict[str, list[Tensor]], name: str, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    if name not in features:
        features[name] = compute()
    return features[name]
