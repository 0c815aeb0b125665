"""Results of a benchmark's own scorer: run it if a command is given, then read its results into the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from . import EvaluationError
from .benchmarks import Benchmark, benchmark_of, t2i_compbench
from .run_folder import prompts_of, read_run
from .scorers.adapter import command_for, run_scorer
from .scoring import keep_results, official_scorer


def read_official(
    folder: Path, arms: Sequence[str] = (), command: str = "", directory: Path | None = None, results: str = "",
    three_in_one: Path | None = None, log: Callable[[str], None] = lambda line: None,
) -> str:  # fmt: skip
    """Keep the official results of arms as scores of the run; return one line per arm.

    Args:
        arms: default: all of the run.
        command: command line of the scorer with {folder}, run first; "": its results are there.
        directory: working directory of `command`.
        results: results file or folder, with {arm} for the arm's name; "": the arm's folder.
        three_in_one: folder of T2I-CompBench's two lists, to combine the results of its three scorers for complex prompts.

    Raises:
        EvaluationError: the scorer fails, or its results are missing or broken.
    """
    run = read_run(folder)
    benchmark, prompts, images = benchmark_of(run["benchmark"]), prompts_of(run), run["images"]
    lines = []
    for arm in arms or run["arms"]:
        if command:
            run_scorer(command, folder / arm, directory, log)
        source = Path(results.replace("{arm}", arm)) if results else folder / arm
        try:
            if three_in_one:
                scores = t2i_compbench.three_in_one(source, three_in_one, prompts, images)
            else:
                scores = benchmark.results(source, prompts, images)
        except EvaluationError as error:
            raise EvaluationError(f"{error}{_how_to_run(benchmark, folder / arm)}") from error
        keep_results(folder, arm, scores, official_scorer(benchmark, source.name))
        lines.append(f"{arm}: {len(scores)} results of {benchmark.name}'s own scorer read")
    return "\n".join(lines)


def _how_to_run(benchmark: Benchmark, folder: Path) -> str:
    commands = "".join(f"\n  {command_for(command, folder)}" for command in benchmark.scorers)
    return f"\nIn the scorer's repository and environment, one of:{commands}" if commands else ""
