"""The report's plot of a search (``tune``): the score of each setting that was tried, of each decoder."""

from collections.abc import Iterator

from matplotlib.axes import Axes

from segbench.report.drawing import Look, in_lines, legend, new_figure
from segbench.report.effort import choice_of, fixed_beside
from segbench.report.figures import Plot
from segbench.report.runs import Group, Sweep
from segbench.runs import grid_names
from segbench.tuning import Choice, is_number

MOST_TICKS = 6  # that find room


def trials(sweep: Sweep, group: Group, look: Look, slug: str) -> Iterator[Plot]:
    """A panel for each searched key of numbers: the best score at each of its values, the chosen one filled."""
    choices = {d: choice for d in group.decoders if (choice := choice_of(group, d)) is not None}
    keys = dict.fromkeys(key for choice in choices.values() for key in choice.values)
    numeric = [key for key in keys if all(_is_numeric(choice, key) for choice in choices.values())]
    if fixed_beside(sweep, group) is None or not numeric:
        return
    figure, names = new_figure(0.5 + 2.1 * len(numeric)), grid_names(keys)
    measure = next(iter(choices.values())).measure
    for axes, key in zip(figure.subplots(len(numeric), 1, squeeze=False)[:, 0], numeric, strict=True):
        for decoder, choice in choices.items():
            if key in choice.values:
                _line(axes, look, decoder, choice, key)
        values = [setting[key] for choice in choices.values() for setting, _ in choice.scores if key in setting]
        if min(values) > 0:
            axes.set_xscale("log")
        places = sorted(set(values))
        axes.minorticks_off()
        axes.set_xticks(places[:: -(-len(places) // MOST_TICKS)])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(names[key])
        axes.set_ylabel(in_lines(f"{measure} on the images held out"))
    legend(figure, look, list(choices))
    more = " Of the other searched keys each point has the best." if len(keys) > 1 else ""
    said = (
        f"The mean over the search's seeds; the chosen setting is filled. A setting that diverged has no point.{more}"
    )
    yield Plot(f"{slug}search", "What was tried", said, "", figure)


def _is_numeric(choice: Choice, key: str) -> bool:
    return all(is_number(setting[key]) for setting, _ in choice.scores if key in setting)


def best_at(choice: Choice, key: str) -> dict[float, float]:
    """Each value of a key -> the best score with it."""
    sign = 1 if choice.highest_is_best else -1
    found: dict[float, float] = {}
    for setting, score in choice.scores:
        if score is not None:
            found[setting[key]] = max(found.get(setting[key], score), score, key=lambda value: sign * value)
    return dict(sorted(found.items()))


def _line(axes: Axes, look: Look, decoder: str, choice: Choice, key: str) -> None:
    points, colour, marker = best_at(choice, key), look.colour(decoder), look.marker(decoder)
    drawn = axes.plot(*zip(*points.items(), strict=True), color=colour, linewidth=0.8, marker=marker, mfc="none", ms=4)
    chosen = choice.values[key]
    drawn += axes.plot([chosen], [points[chosen]], color=colour, marker=marker, ms=5.5, linestyle="none")
    for line in drawn:
        look.mark(decoder, line)
