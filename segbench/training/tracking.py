"""Live view of training: Lightning's loggers, one for each run. A tracker that fails never stops a run."""

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pytorch_lightning import loggers

from segbench import store
from segbench.errors import Failure, UserError
from segbench.runs import Run

MAKERS: dict[str, Callable[[Run], Any]] = {
    "csv": lambda run: loggers.CSVLogger(run.folder, name="", version="live", flush_logs_every_n_steps=1),
    "tensorboard": lambda run: loggers.TensorBoardLogger(run.folder.parent / "tensorboard", run.folder.name, ""),
    "wandb": lambda run: loggers.WandbLogger(  # a run of its own, or those of a cohort would all be one
        run.name, run.folder, id=run.folder.name, project=run.config.name, reinit="create_new"
    ),
    "mlflow": lambda run: loggers.MLFlowLogger(run.config.name, run.name, save_dir=str(run.folder.parent / "mlruns")),
}
# How a run ended, for Lightning's loggers, of which only MLflow's knows more than success, and as wandb's exit code.
ENDINGS = {"finished": ("success", 0), "failed": ("failed", 1), "stopped": ("KILLED", 255)}


def require(names: Sequence[str]) -> None:
    """Raise a `UserError` for the first tracker whose package is not installed."""
    for name in names:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise UserError(f"launch.trackers: '{name}' is not installed; pip install 'segbench[{name}]'")


class Trackers:
    """The loggers of a cohort's runs, each open until `close`; ``names`` are of `MAKERS`.

    A logger that raises is left out from then on, and the reason stands in ``tracking.txt`` in the run's folder.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.runs: dict[str, Run] = {}
        self.loggers: defaultdict[str, dict[str, Any]] = defaultdict(dict)  # run key -> name -> its logger
        self.logged: dict[str, int] = {}

    def start(self, run: Run) -> None:
        self.runs[run.key], self.logged[run.key] = run, 0
        for name in self.names:
            with self._or_left_out(run.key, name):
                logger = self.loggers[run.key][name] = MAKERS[name](run)
                logger.log_hyperparams({"decoder": run.title, "seed": run.seed, **run.variant, "key": run.key})

    def update(self, key: str, history: Sequence[Mapping[str, float]]) -> None:
        """Log the rows that a run's history has grown by, after a resume all of them."""
        new, self.logged[key] = history[self.logged[key] :], len(history)
        for name, logger in list(self.loggers[key].items()) if new else ():
            with self._or_left_out(key, name):
                for row in new:
                    logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))
                logger.save()

    def close(self, key: str, ending: str) -> None:
        """End a run's trackers, with one of `ENDINGS`; nothing where they have ended."""
        status, exit_code = ENDINGS[ending]
        for name, logger in self.loggers.pop(key, {}).items():
            with self._or_left_out(key, name):
                logger.finalize(status)
                if name == "wandb":  # whose logger leaves the run to the end of the process
                    logger.experiment.finish(exit_code=exit_code)

    @contextmanager
    def _or_left_out(self, key: str, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a service that is down, a full disk, a version that does not fit
            self.loggers[key].pop(name, None)
            with suppress(UserError):
                text = f"{name} was left out from here: {Failure.of(error).traceback}\n"
                store.write_text(self.runs[key].folder / "tracking.txt", text)
