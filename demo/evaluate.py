"""Measure the shipped Shapes World: python tools/pack.py demo.evaluate writes demo/results.json and the table in demo/README.md.

Needs a ComfyUI on the path, as demo.train does. Scenes and noises come from seeds that no training step uses.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from .statistics import Rate
from .train import use_cpu

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def _table(columns: list[str], rows: list[list[object]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [columns, ["---"] * len(columns), *rows]]
    return "\n".join(lines)


def _cross_table(corner: str, columns: dict[str, dict[str, Rate]]) -> str:
    """One column per name, one row per key of their rates."""
    keys = list(next(iter(columns.values())))
    return _table([corner, *columns], [[key, *(rates[key] for rates in columns.values())] for key in keys])


def report(results: dict) -> str:
    """The measured section of the README as markdown."""
    best = results["best of 8"]
    seconds = best.seconds
    ratio = seconds["pixel CLIP"] / seconds["Latent-CLIP"]
    return "\n\n".join([
        "### Judge: true captions accepted, false ones accepted by mistake",
        _table(["pictures", "accepted"], [[name, rate] for name, rate in results["judge"].items()]),
        "### Autoencoder: round trips still read as their caption",
        _table(["scenes", "read right"], [[name, rate] for name, rate in results["vae"].items()]),
        "### Latent-CLIP and pixel CLIP, equal size, steps, scenes and captions",
        _cross_table("task", results["clips"]),
        "### Generator: judged success of one picture per prompt (euler; cfg 1 for one step, else 3)",
        _cross_table("prompts", results["generator"]),
        "### Best of 8 one-step pictures",
        _table(["chosen by", "judged success"], [[name, rate] for name, rate in best.rates.items()]),
        _table(["paired by prompt and seed", "exact McNemar p"], [[name, f"{p:.2g}"] for name, p in best.p_values.items()]),
        f"From eight latents to the chosen picture: {1000 * seconds['Latent-CLIP']:.0f} ms by Latent-CLIP (score 8, decode 1), "
        f"{1000 * seconds['pixel CLIP']:.0f} ms by the pixel CLIP (decode 8, score 8): {ratio:.1f} times as long.",
    ])  # fmt: skip


def as_json(value: object) -> object:
    """Rates and records as plain JSON."""
    if isinstance(value, Rate):
        return value.as_json()
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return (
        {key: as_json(item) for key, item in vars(value).items()} if hasattr(value, "__dataclass_fields__") else value
    )


def main() -> None:
    """Measure, print, and write results.json and the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of the full number of samples, for a quick look"
    )
    parser.add_argument("--no-write", action="store_true", help="only print")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    use_cpu()
    from . import measures

    def n(full: int) -> int:
        return max(12, round(full * options.scale))

    with torch.inference_mode():
        world = measures.World()
        results = {
            "judge": measures.measure_judge(n(600)),
            "vae": measures.measure_vae(world, n(300)),
            "clips": measures.measure_clips(world, n(400)),
            "generator": measures.measure_generator(world, n(200)),
            "best of 8": measures.measure_best_of(world, prompts=n(201), seeds=3),
        }
    text = report(results)
    print(text)
    if options.no_write:
        return
    (HERE / "results.json").write_text(json.dumps(as_json(results), indent=2) + "\n")
    card = HERE / "README.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    card.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
