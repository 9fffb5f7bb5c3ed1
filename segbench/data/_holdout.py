"""Which training images are held out, so that a search is scored on images that no setting was trained on."""

import hashlib
import re
from collections.abc import Sequence

from segbench.config_effort import HoldoutConfig
from segbench.errors import UserError

FEWEST = 2  # images that are held out, and that are left to train on


def held_out(ids: Sequence[str], holdout: HoldoutConfig) -> list[int]:
    """Places in ``ids`` of those that are held out, in their order.

    Images, or whole groups, are taken in the order of a hash of their names, as long as that brings the number nearer
    to the share: the same ones whatever the order of the files, and few others where files come or go.

    Raises:
        UserError: an id that the group's expression does not fit, or that leaves too few images on one of the sides.
    """
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(ids):
        groups.setdefault(_group(name, holdout.group), []).append(place)
    wanted, taken = holdout.share * len(ids), list[int]()
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(taken) + len(groups[name]) / 2 <= wanted:
            taken += groups[name]
    if len(taken) < FEWEST or len(ids) - len(taken) < FEWEST:
        of = f"{len(ids)} training images" + (
            f" in {len(groups)} group{'s' * (len(groups) > 1)}" if holdout.group else ""
        )
        raise UserError(
            f"holdout: {holdout.share:g} of {of} leaves {len(taken)} held out and {len(ids) - len(taken)} to train on; "
            f"{FEWEST} of each are the fewest: change the share" + (" or the group" if holdout.group else "")
        )
    return sorted(taken)


def _group(name: str, expression: str | None) -> str:
    if expression is None:
        return name
    if (found := re.search(expression, name)) is None:
        raise UserError(f"holdout.group: '{expression}' finds nothing in the id '{name}'")
    return next((part for part in found.groups() if part is not None), found[0])
