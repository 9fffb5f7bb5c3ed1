"""How far a sweep is: bars in a terminal, elsewhere a line a minute. Imports no torch."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segbench.runs import Cohort
from segbench.sweep.status import duration, progress

LINE_S = 60.0  # between two lines where there is no terminal


class Display:
    """Of cohorts that run, while it is entered."""

    def __init__(self, console: Console, cohorts: Sequence[Cohort]) -> None:
        bars = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}", justify="right")
        columns = *bars, TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()
        self.console, self.progress = (
            console,
            Progress(*columns, console=console, transient=True, get_time=time.monotonic),
        )
        self.progress.speed_estimate_period = 300
        self.steps = {id(c): c.runs[0].config.recipe.steps - c.start_step for c in cohorts}
        self.images = {id(c): c.runs[0].facts.eval_images for c in cohorts}
        # One unit of the whole is a training step; an image of the evaluation costs about a fifth of one.
        total = sum(self.steps.values()) + sum(self.images.values()) / 5
        self.whole = self.progress.add_task("whole sweep", total=total, done="0 %")
        self.tasks: dict[int, TaskID] = {}
        self.units: dict[int, float] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, of: TracebackType | None) -> None:
        self.progress.stop()

    def update(self, cohort: Cohort, phase: str, done: int, of: int) -> None:
        """``done`` of so many steps or images."""
        place, said = id(cohort), progress(phase, done, of)
        if place not in self.tasks:
            self.tasks[place] = self.progress.add_task("", total=of, completed=done, done=said)
        title = escape(f"{cohort.name}: {phase}")
        self.progress.update(self.tasks[place], description=title, total=of, completed=done, done=said)
        self.units[place] = done - cohort.start_step if phase == "train" else self.steps[place] + done / 5
        self._move()

    def end(self, cohort: Cohort) -> None:
        """It has ended."""
        place = id(cohort)
        if place in self.tasks:
            self.progress.remove_task(self.tasks.pop(place))
        self.units[place] = self.steps[place] + self.images[place] / 5
        self._move()

    def _move(self) -> None:
        whole = next(task for task in self.progress.tasks if task.id == self.whole)
        share = f"{100 * sum(self.units.values()) / (whole.total or 1):.0f} %"
        self.progress.update(self.whole, completed=sum(self.units.values()), done=share)
        if self.console.is_terminal or time.monotonic() < self._said + LINE_S:
            return
        self._said = time.monotonic()
        left = "" if whole.time_remaining is None else f", about {duration(whole.time_remaining)} to go"
        at_work = [f"{task.description}, {task.fields['done']}" for task in self.progress.tasks if task is not whole]
        line = "; ".join([f"{share} after {duration(whole.elapsed or 0.0)}{left}", *at_work])
        self.console.print(f"{time.strftime('%H:%M')} {line}", highlight=False, soft_wrap=True)
