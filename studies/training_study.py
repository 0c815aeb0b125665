"""Does making one's own Latent-CLIP work? ./dev study training writes docs/training-study.md.

On Shapes World: a tower distilled for another VAE from pictures alone, one that reads half-finished images, why colours are
swapped, and the joint fine-tune of VAE and Latent-CLIP; and emoji by artists whom no tower has seen. Everything is seeded; shards,
checkpoints and finished parts are kept in .cache/shapes_world/training_study/ and .cache/shapes_world/emoji/, so that a stopped
run goes on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..evaluation.statistics import Rate
from .report import Kept, begin, difference, publish, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCUMENT = ROOT / "studies/training.json", ROOT / "docs/training-study.md"
SCENES, PROMPTS, OF = 400, 150, 8
EARLY_PROMPTS, EARLY_OF = 40, 12
QUARTER = 1  # the second of eight steps


# ------------------------------------------------------------------------------------------------- another VAE


def second_vae(kept: Kept, world) -> dict:
    """Round trip of the second VAE, tasks of every tower, best of eight."""
    from ..demo.judge import judge
    from ..demo.scenes import render
    from ..models.shapes_world import load_pixel_clip
    from . import second_reno
    from . import second_vae as study
    from .measures import clip_verdicts, sample_corpus

    vae = study.second_vae()
    made = kept.get("second VAE: distilled", lambda: _distil(study, vae, load_pixel_clip()))
    towers = study.towers(vae, world, study.FOLDER_OF / Path(made["file"]).name)

    def round_trip() -> list[bool]:
        scenes = sample_corpus("training study vae", 200, held_out=None, single=0.5)
        pictures = torch.cat([(vae.decode(part) + 1) / 2 for part in study.encode(vae, render(scenes)).split(50)])
        captions = [scene.captions()["single" if len(scene.shapes) == 1 else "relation"][0] for scene in scenes]
        return judge(pictures.clamp(0, 1), captions)

    tasks = {
        name: kept.get(f"second VAE: tasks, {name}", lambda pair=pair: clip_verdicts(
            pair[0], lambda scenes: pair[1](render(scenes)), SCENES, "training study"))
        for name, pair in towers.items()
    }  # fmt: skip
    return {
        "made": made,
        "round trip": kept.get("second VAE: round trip", round_trip),
        "tasks": tasks,
        "best": kept.get("second VAE: best of eight", lambda: best_of_eight(world, towers)),
        "reno": second_reno.measure(kept, world, vae),
    }


def _distil(study, vae, teacher) -> dict:
    held_out = study.make_shards(vae, "held_out16", study.HELD_OUT, teacher)
    path, seconds = study.distil(study.make_shards(vae, "pictures16", study.PICTURES, teacher), held_out)
    return {"file": str(path), "seconds": seconds}


def best_of_eight(world, towers: dict) -> dict[str, list[bool]]:
    """Whether the picture that each tower chooses of eight shows its prompt; the same pictures for all."""
    from ..demo.judge import judge
    from .measures import noise_for, sample_prompts

    captions = [
        c
        for name in ("single", "and", "relation")
        for c in sample_prompts(f"training study {name}", PROMPTS // 3, name)
    ]
    many = [caption for caption in captions for _ in range(OF)]
    latents = world.generate([str(c) for c in many], noise_for(7300, len(many)), 1, 1.0)
    pictures = world.decode(latents)
    right = torch.tensor(judge(pictures, many)).view(-1, OF)
    texts, found = [str(c) for c in captions], {"first": right[:, 0].tolist(), "any": right.any(1).tolist()}

    def chosen(features: Tensor, text: Tensor) -> list[bool]:
        best = (features.unflatten(0, (-1, OF)) @ text[..., None])[..., 0].argmax(1)
        return right[torch.arange(len(right)), best].tolist()

    for name, (text, image) in towers.items():
        found[name] = chosen(image(pictures), text(texts))
    found["shipped Latent-CLIP"] = chosen(world.latent_features(latents), world.latent_clip.encode_text(texts))
    return found


def second_vae_report(results: dict) -> str:
    """The section as markdown."""
    from . import second_reno

    tasks, best = results["tasks"], results["best"]
    rows = [
        [task, *(Rate.of(tasks[name][task]) for name in tasks), difference(tasks["distilled"][task], tasks["teacher"][task]),
         difference(tasks["distilled"][task], tasks["closed form"][task])]
        for task in tasks["teacher"]
    ]  # fmt: skip
    chosen = [
        [name, Rate.of(verdicts), difference(verdicts, best["teacher"])]
        for name, verdicts in best.items()
        if name != "any"
    ]
    return "\n\n".join([
        "## Another VAE",
        f"The second VAE's round trip is read right in {Rate.of(results['round trip'])}. The tower was distilled in "
        f"{results['made']['seconds'] / 60:.1f} processor minutes, the encoding of 10,000 pictures apart.",
        table(["task", *tasks, "distilled − teacher", "distilled − closed form"], rows),
        "Best of eight one-step pictures of the shipped generator, decoded by its own VAE and encoded by the second; judged success:",
        table(["chosen by", "judged success", "− teacher"], chosen),
        f"At least one of the eight is right in {Rate.of(best['any'])}.",
        second_reno.report(results["reno"]),
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------- half-finished images


def half_finished(kept: Kept, world) -> dict:
    """The noise-aware tower, and what it is used for."""
    from ..demo.scenes import render
    from . import half_finished_report
    from .measures import clip_verdicts

    def tasks(tower) -> dict[str, list[bool]]:
        def features(scenes) -> Tensor:
            return torch.nn.functional.normalize(tower(world.encode(render(scenes))), dim=-1)

        return clip_verdicts(world.latent_clip.encode_text, features, SCENES, "training study")

    return half_finished_report.measure(kept, world, tasks)


def half_finished_report(results: dict) -> str:
    """The section as markdown."""
    from .half_finished_report import report

    return report(results)


# ------------------------------------------------------------------------------------------------ colours swapped


def colours(kept: Kept, world) -> dict:
    """The arms that tell training from resolution, with results kept apart."""
    from .colours_report import measure

    return measure(world)


def colours_report(results: dict) -> str:
    """The section as markdown."""
    from .colours_report import report

    return report(results)


# ------------------------------------------------------------------------------------------- the joint fine-tune


def joint(kept: Kept, world) -> dict:
    """The joint fine-tune of the shipped VAE and Latent-CLIP, on several leashes."""
    from .joint_report import measure

    return measure(kept, world)


def joint_report(results: dict) -> str:
    """The section as markdown."""
    from .joint_report import report

    return report(results)


# --------------------------------------------------------------------------------------------------------- emoji


def emoji(kept: Kept, world) -> dict:
    """Verdicts of every contestant about artists whom they have never seen."""
    from . import emoji as study

    return study.study(kept, world)


def emoji_report(results: dict) -> str:
    """The section as markdown."""
    from . import emoji as study

    return study.report(results)


def main() -> None:
    """Measure what is not measured yet, and write the page."""
    switches = {f"--only-{name}": f"only {about}" for name, about, *_ in SECTIONS}
    options = begin(__doc__ or "", switches | {"--final-artist": "read the final artist's emoji, which is done once"})
    if options.final_artist:
        from .emoji import read_final_artist

        with torch.no_grad():
            read_final_artist()
    from . import measures

    world = measures.World()
    only = [name for name, *_ in SECTIONS if getattr(options, f"only_{name.replace('-', '_')}")]
    texts, tasks = [], {}
    for name, _, measure, report in SECTIONS:
        if only and name not in only:
            continue
        kept = Kept(f"training_study_{name}", (SCENES, PROMPTS, OF, EARLY_PROMPTS, EARLY_OF))
        with torch.no_grad():
            results = measure(kept, world)
        tasks[name] = _rates(results["tasks"])
        texts.append(report(results))
        print(texts[-1], flush=True)
    if not (options.no_write or only):
        publish(tasks, "\n\n".join(texts), RESULTS, DOCUMENT)


SECTIONS = (
    ("second-vae", "the tower for another VAE", second_vae, second_vae_report),
    ("half-finished", "the tower that reads half-finished images", half_finished, half_finished_report),
    ("colours", "why Latent-CLIP swaps colours and the pixel CLIP reverses relations", colours, colours_report),
    ("joint", "the joint fine-tune of VAE and Latent-CLIP", joint, joint_report),
    ("emoji", "emoji by artists whom no tower has seen", emoji, emoji_report),
)


def _rates(tasks: dict) -> dict:
    return {name: {task: Rate.of(right).as_json() for task, right in by.items()} for name, by in tasks.items()}


if __name__ == "__main__":
    main()
