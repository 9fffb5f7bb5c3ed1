"""How a run ends: one of a closed set. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from segbench.errors import Failure
from segbench.runs import Cohort, should_halve


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
class TooLarge:
    """Memory ran out, and its config has it tried again in a smaller cohort."""

    failure: Failure


@dataclass(frozen=True)
class Failed:
    """It was tried, and why it failed; ``user_error`` where that is a mistake of the user's."""

    failure: Failure
    user_error: bool = False


@dataclass(frozen=True)
class Lost:
    """Its process ended without a word of it, and why."""

    failure: Failure


Outcome = Done | Busy | Stopped | TooLarge | Failed | Lost


def failed(cohort: Cohort, failure: Failure, user_error: bool = False) -> Failed | TooLarge:
    """The outcome of a run of ``cohort`` that failed."""
    return TooLarge(failure) if should_halve(cohort, failure) else Failed(failure, user_error)


@dataclass(frozen=True)
class Ended:
    """How a cohort ended: run key -> how that run did."""

    outcomes: Mapping[str, Outcome]

    @classmethod
    def alike(cls, cohort: Cohort, outcome: Outcome) -> "Ended":
        """Every run of the cohort ended so."""
        return cls({run.key: outcome for run in cohort.runs})

    @classmethod
    def lost(cls, cohort: Cohort, failure: Failure) -> "Ended":
        """The process of the cohort ended without saying how. Runs that it had finished count as done all the same."""
        return cls.alike(cohort, TooLarge(failure) if should_halve(cohort, failure) else Lost(failure))

    def has(self, kind: type[Outcome]) -> bool:
        """Whether a run ended so."""
        return any(isinstance(outcome, kind) for outcome in self.outcomes.values())
