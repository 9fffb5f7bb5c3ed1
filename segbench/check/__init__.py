"""Does an upsampler or decoder keep its contract? The same checks serve a plug-in and the tests of built-in ones."""

import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segbench import store
from segbench.check import output, practice, state
from segbench.check.base import Broken, Builder, Note, Setting, builder
from segbench.config import SweepConfig
from segbench.errors import UserError, located
from segbench.training.isolation import Desk, turn

__all__ = ["CHECKS", "Broken", "Builder", "Note", "Setting", "builder", "check_decoder"]

CHECKS: dict[str, Callable[[Builder], str]] = {
    "logits of the right shape at odd sizes": output.shapes,
    "any list of strides": output.strides,
    "any ratio that it takes": output.ratios,
    "finite output": output.finite,
    "logits, not probabilities": output.unbounded,
    "keeps its place": output.place,
    "starts as it says": output.starts,
    "all of it is registered": state.registered,
    "gradient to every parameter": state.gradients,
    "its weights are all of it": state.saved,
    "keeps nothing of an image": state.forgetful,
    "two eval passes equal": state.repeatable,
    "a function of the seed": state.seeded,
    "independent of the batch in eval mode": state.batch_independent,
    "features and image left as they are": state.leaves_inputs_alone,
    "trains": practice.trains,
    "bf16 autocast": practice.bf16,
    "exports": practice.exportable,
    "cost": practice.cost,
    "ONNX": practice.onnx,
}


def check_decoder(
    name: str,
    params: Mapping[str, Any],
    say: Callable[[str], None],
    skeleton: str | None = None,
    config: SweepConfig | None = None,
) -> int:
    """Run every check on a decoder, or on an upsampler in a skeleton; say by lines what passed and what is wrong.

    What changes grad mode, threads and the like fails the check in which it does; what is printed is summed up.

    Args:
        params: its parameters; with a config, beside those that its entry of that name has.
        skeleton: by name; default: the config's, or ``pyramid``.
        config: of a sweep, of which encoder, classes, recipe and decoders' defaults are taken.

    Returns:
        0 where nothing failed, else 1.

    Raises:
        UserError: it cannot be loaded or built at all, or the config's encoder or data cannot.
    """
    setting = Setting.of(config) if config else Setting()
    entry = next((d for d in config.decoders if name in (d.name, d.title)), None) if config else None
    if entry:
        name, params = entry.name, {**entry.params, **params}
    if skeleton:
        setting = setting.on(skeleton)
    failed, again, seen, interrupt = 0, list[str](), set[str](), signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            desk = Desk(Path(scratch))
            with turn("build", desk=desk) as done:
                build = builder(name, params, setting)
                build()
            if isinstance(done.error, UserError):
                raise done.error
            if done.error:
                raise UserError(f"{name} cannot be built: {located(done.error)}")
            for title, check in CHECKS.items():
                if failed and check is practice.onnx:
                    continue  # what breaks its contract can crash torch's converter, and the process with it
                detail = ""
                with turn("check", title, desk=desk) as done:
                    detail = check(build)
                error = done.error
                verdict = "FAIL" if error else "note" if isinstance(detail, Note) else "pass"
                if error:
                    failed += 1
                    detail = str(error) if isinstance(error, Broken) else located(error)
                    cause = detail.partition("; then: ")[0]
                    if cause in seen:
                        again.append(title)
                        continue
                    seen.add(cause)
                say(f"{verdict}  {title}: {detail}")
            if again:
                say(f"FAIL  for the same reason: {', '.join(again)}")
            first, _, rest = (Path(scratch) / store.OUTPUT).read_text("utf-8", "replace").partition("\n")
            if first:
                more = f" ... and {rest.count(chr(10))} more lines" if rest else ""
                say(f"note  it prints: {''.join(c for c in first[:200] if c.isprintable())}{more}")
            desk.close()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    say(f"{name}: {'keeps the contract' if not failed else f'{failed} of {len(CHECKS)} checks failed'}")
    return 1 if failed else 0
