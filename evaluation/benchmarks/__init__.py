"""Registry of the benchmarks, one file each: readers of its prompts and results, its picture paths and its figures.

Formats are those of the benchmark's own repository: its scorer runs on our folders, and we read its results. A new benchmark is a file
with a `BENCHMARK` here and an entry in `BENCHMARKS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from .. import EvaluationError
from . import bias, generated, geneval, i2p, prompts, t2i_compbench
from .base import Benchmark, Prompt, Score, Summary, complete

__all__ = ["BENCHMARKS", "Benchmark", "Prompt", "Score", "Summary", "benchmark_of", "complete"]

BENCHMARKS: Mapping[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK for module in (geneval, t2i_compbench, i2p, bias, prompts, generated)
}


def benchmark_of(name: str) -> Benchmark:
    """Return the benchmark with this name.

    Raises:
        EvaluationError: there is none.
    """
    if name not in BENCHMARKS:
        raise EvaluationError(f"Got the benchmark {name!r}, expected one of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]
