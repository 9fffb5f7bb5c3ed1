"""How a run ends: one of a closed set. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from segbench.errors import Failure
from segbench.runs import Cohort


@dataclass(frozen=True)
class Done:
    """Its result is written."""


@dataclass(frozen=True)
class Busy:
    """Another process works on it, or has done it meanwhile."""


@dataclass(frozen=True)
class Stopped:
    """It was asked to stop; the next call goes on from its last checkpoint."""


@dataclass(frozen=True)
class Failed:
    """It was tried, and why it failed."""

    failure: Failure


@dataclass(frozen=True)
class Lost:
    """Its process ended without a word of it, and why. A result that it had written counts all the same."""

    failure: Failure


Outcome = Done | Busy | Stopped | Failed | Lost


@dataclass(frozen=True)
class Ended:
    """How a cohort ended: run key -> how that run did."""

    outcomes: Mapping[str, Outcome]

    @classmethod
    def alike(cls, cohort: Cohort, outcome: Outcome) -> "Ended":
        """Every run of the cohort ended so."""
        return cls({run.key: outcome for run in cohort.runs})
