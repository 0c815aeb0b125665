"""Fair timing on a noisy machine: the contestants take turns, and medians are compared."""

import os
import statistics
import time
from collections.abc import Callable

import torch


def alternate(
    contestants: dict[str, Callable[[], object]],
    rounds: int,
    at_least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each, run in turn A B A B after one uncounted round each.

    Args:
        at_least: seconds that a turn lasts: a short contestant runs again until then, and its turn counts as their median.
            One call of a millisecond after a minute of another contestant would measure cold caches.
        clock: time.process_time counts this process alone, where a CPU is shared with others.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            calls: list[float] = []
            while not calls or sum(calls) < at_least:
                began = clock()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                calls.append(clock() - began)
            if turn:
                seconds[name].append(statistics.median(calls))
    return {name: statistics.median(values) for name, values in seconds.items()}


def device_name() -> str:
    """Name of the device that the figures were measured on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()}-core CPU"


def use_cpu_host() -> None:
    """Set ComfyUI to the CPU, before it looks for a GPU, if there is none."""
    if not torch.cuda.is_available():
        from comfy.cli_args import args

        args.cpu = True
