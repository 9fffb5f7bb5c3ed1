"""Data sets: one file each, behind `segbench.data.base.Dataset`. Imports no torch."""

from typing import TYPE_CHECKING

from segbench.errors import UserError, brief

if TYPE_CHECKING:
    from segbench.config import DataConfig
    from segbench.data.base import Dataset


def open_data(config: "DataConfig", which: str) -> "Dataset":
    """The split that is called ``train`` or ``val`` in the config, or its part where some of it is held out.

    Raises:
        UserError: unknown data set, split or parameter, or whatever is wrong with the files.
    """
    from segbench.data._holdout import held_out
    from segbench.data.base import Part
    from segbench.registry import DATASETS, check_params

    cls = DATASETS.load(config.name)
    params = check_params(DATASETS, config.name, cls, config.params)
    split = config.val_split if which == "val" and config.holdout is None else config.train_split
    try:
        dataset: Dataset = cls(split, **params)
    except UserError:
        raise
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"data set '{config.name}': {brief(error)}") from error
    if twice := sorted({name for name in dataset.classes if list(dataset.classes).count(name) > 1}):
        raise UserError(f"data set '{config.name}' has two classes called '{twice[0]}'; tables tell them apart by name")
    if not len(dataset):
        raise UserError(f"data set '{config.name}': split '{split}' is empty")
    if config.holdout is None:
        return dataset
    held = held_out(dataset.ids, config.holdout)
    kept = held if which == "val" else sorted(set(range(len(dataset))) - set(held))
    return Part(dataset, kept, config.split(which))
