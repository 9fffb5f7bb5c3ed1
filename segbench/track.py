"""Live view of training: Lightning's loggers, one for each run. A tracker that fails never stops a run."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import loggers

from segbench import store
from segbench.errors import Failure, UserError
from segbench.plan import Run

PACKAGES = {"csv": "", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def _csv(run: Run) -> Any:
    return loggers.CSVLogger(run.folder, name="", version="live", flush_logs_every_n_steps=1)


def _tensorboard(run: Run) -> Any:
    return loggers.TensorBoardLogger(run.folder.parent / "tensorboard", name=run.folder.name, version="")


def _wandb(run: Run) -> Any:
    return loggers.WandbLogger(name=run.name, id=run.folder.name, project=run.config.name, save_dir=run.folder)


def _mlflow(run: Run) -> Any:
    return loggers.MLFlowLogger(run.config.name, run_name=run.name, save_dir=str(run.folder.parent / "mlruns"))


MAKERS: dict[str, Callable[[Run], Any]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def require(names: Sequence[str]) -> None:
    """Raise a `UserError` for the first tracker whose package is not installed."""
    for name in names:
        if PACKAGES[name] and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"launch.trackers: '{name}' is not installed; pip install 'segbench[{name}]'")


class Trackers:
    """The loggers of a cohort's runs.

    A logger that raises is left out from then on, and the reason stands in ``tracking.txt`` in the run's folder.

    Args:
        runs: run key -> run.
        names: of `MAKERS`.
    """

    def __init__(self, runs: Mapping[str, Run], names: Sequence[str]) -> None:
        self.runs = dict(runs)
        self.loggers: dict[tuple[str, str], Any] = {}
        self.logged = dict.fromkeys(runs, 0)
        for key, run in self.runs.items():
            for name in names:
                self._try(key, name, lambda run=run, key=key, name=name: self._start(run, key, name))  # type: ignore[misc]

    def update(self, key: str, history: Sequence[Mapping[str, float]]) -> None:
        """Log the rows that a run's history has grown by, after a resume all of them."""
        for row in history[self.logged[key] :]:
            values = {k: v for k, v in row.items() if k != "step"}
            for name, logger in self._of(key):
                self._try(key, name, lambda logger=logger: logger.log_metrics(values, step=int(row["step"])))  # type: ignore[misc] # noqa: B023
        if len(history) > self.logged[key]:
            for name, logger in self._of(key):
                self._try(key, name, logger.save)
        self.logged[key] = len(history)

    def close(self) -> None:
        for key in self.runs:
            for name, logger in self._of(key):
                self._try(key, name, lambda logger=logger: logger.finalize("success"))  # type: ignore[misc]

    def _start(self, run: Run, key: str, name: str) -> None:
        logger = MAKERS[name](run)
        logger.log_hyperparams({"decoder": run.title, "seed": run.seed, **run.variant, "key": run.key})
        self.loggers[key, name] = logger

    def _of(self, key: str) -> list[tuple[str, Any]]:
        return [(name, logger) for (run, name), logger in self.loggers.items() if run == key]

    def _try(self, key: str, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a service that is down, a full disk, a version that does not fit
            self.loggers.pop((key, name), None)
            note: Path = self.runs[key].folder / "tracking.txt"
            with contextlib.suppress(UserError):
                store.write_text(note, f"{name} was left out from here: {Failure.of(error).traceback}\n")
