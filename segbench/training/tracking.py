"""Live view of training: Lightning's loggers, one for each run. A tracker that fails never stops a run."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import loggers

from segbench import store
from segbench.errors import Failure, UserError
from segbench.runs import Run

PACKAGES = {"csv": "", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def _csv(run: Run) -> Any:
    return loggers.CSVLogger(run.folder, name="", version="live", flush_logs_every_n_steps=1)


def _tensorboard(run: Run) -> Any:
    return loggers.TensorBoardLogger(run.folder.parent / "tensorboard", name=run.folder.name, version="")


def _wandb(run: Run) -> Any:
    new: dict[str, Any] = {"reinit": "create_new"}  # or the runs of a cohort would all be one
    return loggers.WandbLogger(name=run.name, id=run.folder.name, project=run.config.name, save_dir=run.folder, **new)


def _mlflow(run: Run) -> Any:
    return loggers.MLFlowLogger(run.config.name, run_name=run.name, save_dir=str(run.folder.parent / "mlruns"))


# How a run ended, for Lightning's loggers, of which only MLflow's knows more than success, and as wandb's exit code.
ENDINGS = {"finished": ("success", 0), "failed": ("failed", 1), "stopped": ("KILLED", 255)}

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
    """The loggers of a cohort's runs, each open until `close`; what is open when the cohort fails, failed with it.

    A logger that raises is left out from then on, and the reason stands in ``tracking.txt`` in the run's folder.

    Args:
        names: of `MAKERS`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.runs: dict[str, Run] = {}
        self.loggers: dict[tuple[str, str], Any] = {}
        self.logged: dict[str, int] = {}

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        for key in self.runs:
            self.close(key, "failed")

    def start(self, run: Run) -> None:
        self.runs[run.key], self.logged[run.key] = run, 0
        for name in self.names:
            self._try(run.key, name, lambda name=name: self._start(run, name))  # type: ignore[misc]

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

    def close(self, key: str, ending: str) -> None:
        """End a run's trackers, with one of `ENDINGS`; nothing where they have ended."""
        for name, logger in self._of(key):
            self._try(key, name, lambda name=name, logger=logger: _end(name, logger, ending))  # type: ignore[misc]
            self.loggers.pop((key, name), None)

    def _start(self, run: Run, name: str) -> None:
        logger = MAKERS[name](run)
        self.loggers[run.key, name] = logger
        logger.log_hyperparams({"decoder": run.title, "seed": run.seed, **run.variant, "key": run.key})

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


def _end(name: str, logger: Any, ending: str) -> None:
    status, exit_code = ENDINGS[ending]
    logger.finalize(status)
    if name == "wandb":  # whose logger leaves the run to the end of the process
        logger.experiment.finish(exit_code=exit_code)
