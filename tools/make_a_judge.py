"""Train a Latent-CLIP from pictures, in minutes: ./dev make-a-judge

What docs/make-your-own.md does with real pictures, on Shapes World: writes pictures with captions, runs `latent-clip embed`, `train`
and `card` on them as anybody would, and lets the finished file name pictures that it has not seen. Everything lands in output/judge/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "output" / "judge"


def draw_pictures(folder: Path, seed: str, count: int) -> None:
    """PNGs of scenes with a caption beside each, unless they are there."""
    from PIL import Image

    from ..demo.corpus import sample_corpus
    from ..demo.scenes import render

    folder.mkdir(parents=True, exist_ok=True)
    scenes = sample_corpus(f"make a judge {seed}", count, single=1.0)
    for start in range(0, count, 100):
        for number, (scene, picture) in enumerate(
            zip(scenes[start : start + 100], render(scenes[start : start + 100])), start
        ):
            path = folder / f"{number:05}.png"
            if not path.exists():
                Image.fromarray((picture.movedim(0, -1) * 255).round().byte().numpy()).save(path)
                path.with_suffix(".txt").write_text(str(scene.captions()["single"][0]), encoding="utf-8")


def run(title: str, arguments: list[str]) -> None:
    """One command, as it is typed."""
    print(f"\n== {title}\nlatent-clip {' '.join(arguments)}", flush=True)
    began = time.perf_counter()
    if code := subprocess.call([sys.executable, str(ROOT), *arguments]):
        sys.exit(code)
    print(f"   {time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
    """Run every step that is not done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=60_000, help="how many are seen in training")
    options = parser.parse_args()
    host = os.environ["COMFYUI_PATH"]
    print(f"== pictures with captions in {FOLDER}", flush=True)
    draw_pictures(FOLDER / "pictures", "train", options.pictures)
    draw_pictures(FOLDER / "new-pictures", "test", 300)
    vae = [
        "--vae",
        "shapes-world",
        "--teacher",
        "shapes-world",
        "--side",
        "64",
        "--cpu",
        "--comfyui",
        host,
        "--batch",
        "50",
    ]
    for name in ("pictures", "new-pictures"):
        run(f"shards of latents from {name}", ["embed", str(FOLDER / name), str(FOLDER / f"{name}-shards"), *vae])
    judge = FOLDER / "my-judge.safetensors"
    run("a tower for these latents, taught by the pixel CLIP", [
        "train", "--train-data", str(FOLDER / "pictures-shards"), "--val-data", str(FOLDER / "new-pictures-shards"),
        "--output", str(judge), "--start", "shapes-world", "--distil", "1", "--patch-size", "1", "--batch-size", "64",
        "--train-num-samples", str(options.samples), "--patch-samples", str(options.samples // 8), "--lr", "1e-3", "--wd", "0.05",
        "--warmup", "30", "--ema", "0.99", "--precision", "fp32", "--workers", "0", "--device", "cpu",
    ])  # fmt: skip
    run("its card", ["card", str(judge), "--output", str(FOLDER / "README.md"), "--force"])
    print(f"\n{judge} is ready: put it into ComfyUI/models/latent_clip. What it is and can do: {FOLDER / 'README.md'}")


if __name__ == "__main__":
    main()
