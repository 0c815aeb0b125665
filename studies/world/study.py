"""Measure the shipped Shapes World: ./dev study world writes studies/world/results.json and the table in demo/README.md.

Needs a ComfyUI on the path, as demo.train does. Scenes and noises come from seeds that no training step uses.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...evaluation.statistics import Rate
from ..report import begin, publish, table

HERE = Path(__file__).resolve().parent
CARD = HERE.parent.parent / "demo" / "README.md"


def _cross_table(corner: str, columns: dict[str, dict[str, Rate]]) -> str:
    """One column per name, one row per key of their rates."""
    keys = list(next(iter(columns.values())))
    return table([corner, *columns], [[key, *(rates[key] for rates in columns.values())] for key in keys])


def report(results: dict) -> str:
    """The measured section of the README as markdown."""
    best = results["best of 8"]
    seconds = best.seconds
    ratio = seconds["pixel CLIP"] / seconds["Latent-CLIP"]
    return "\n\n".join([
        "### Judge: true captions accepted, false ones accepted by mistake",
        table(["pictures", "accepted"], [[name, rate] for name, rate in results["judge"].items()]),
        "### Autoencoder: round trips still read as their caption",
        table(["scenes", "read right"], [[name, rate] for name, rate in results["vae"].items()]),
        "### Latent-CLIP and pixel CLIP, equal size, steps, scenes and captions",
        _cross_table("task", results["clips"]),
        "### Generator: judged success of one picture per prompt (euler; cfg 1 for one step, else 3)",
        _cross_table("prompts", results["generator"]),
        "### Best of 8 one-step pictures",
        table(["chosen by", "judged success"], [[name, rate] for name, rate in best.rates.items()]),
        table(["paired by prompt and seed", "exact McNemar p"], [[name, f"{p:.2g}"] for name, p in best.p_values.items()]),
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
    options = begin(__doc__ or "")
    from .. import measures

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
    publish(as_json(results), text, HERE / "results.json", CARD)


if __name__ == "__main__":
    main()
