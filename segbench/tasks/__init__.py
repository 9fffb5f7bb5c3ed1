"""What decoders are trained for: one task, one file. `segbench.tasks.base` holds the contract."""

from segbench.config import PluginConfig
from segbench.errors import UserError, brief
from segbench.registry import TASKS, check_params
from segbench.tasks.base import Task


def make_task(config: PluginConfig) -> Task:
    """The task that a sweep names.

    Raises:
        UserError: it cannot be loaded, a parameter does not fit, or its constructor raises.
    """
    cls = TASKS.load(config.name)
    params = check_params(TASKS, config.name, cls, config.params)
    try:
        task: Task = cls(**params)
    except Exception as error:  # a plug-in can raise anything
        raise UserError(f"task '{config.name}': {brief(error)}") from error
    return task
