"""Times of a device without waiting for it: a clock on a CPU, events on a GPU."""

import time

import torch

Moment = float | torch.cuda.Event


def moment(device: torch.device) -> Moment:
    """Now on a CPU; on a GPU when it will be done with all that it has been given so far."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(began: Moment, ended: Moment) -> float:
    """Of two moments of one device, once it has reached the later one."""
    if isinstance(began, float) and isinstance(ended, float):
        return ended - began
    assert isinstance(began, torch.cuda.Event)
    assert isinstance(ended, torch.cuda.Event)
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000


class Watch:
    """Adds up times of a device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._times = device, list[tuple[Moment, Moment]]()

    def start(self) -> None:
        self._began = moment(self.device)

    def stop(self) -> None:
        self._times.append((self._began, moment(self.device)))

    def seconds(self) -> float:
        """In all; waits for the device."""
        return sum(seconds_between(*times) for times in self._times)
