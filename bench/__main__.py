"""Measure, side by side: ./dev bench [names]. Each result is printed and kept in bench/results/<name>.json."""

import importlib
import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
BENCHES = ("scoring", "guidance", "startup", "batch", "reno_loop", "live", "reno_memory", "convert", "search", "training", "evaluation")


def main() -> None:
    """Run the named benches, or all."""
    names = sys.argv[1:] or list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        sys.exit(f"bench: no such bench: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    for name in names:
        print(f"== {name}", flush=True)
        result = importlib.import_module(f".{name}", __package__).run()
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
