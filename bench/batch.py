"""Scoring many latents: is the time linear, and the memory flat? Latent-ViT-B-8-512 of random weights, through the host's chunks."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (125, 250, 500, 1000)


def run() -> dict:
    """Seconds and the process's memory peak for growing batches, each in a fresh process."""
    rows = []
    for count in COUNTS:
        command = [sys.executable, ROOT, "-m", "bench.batch", str(count)]
        rows.append(
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        )
    per_latent = [row["seconds"] / row["latents"] for row in rows]
    return {
        "device": f"{os.cpu_count()}-core CPU",
        "batches": rows,
        "slowest_over_fastest_per_latent": round(max(per_latent) / min(per_latent), 3),
        "peak_growth_mb_beyond_the_latents": round(
            rows[-1]["peak_memory_mb"] - rows[0]["peak_memory_mb"] - _latents_mb(COUNTS[-1] - COUNTS[0]), 1
        ),
    }


def _latents_mb(count: int) -> float:
    return count * 4 * 64 * 64 * 4 / 1e6


def score(count: int) -> dict:
    """Score `count` latents in this process."""
    from .timing import use_cpu_host

    use_cpu_host()
    import torch

    from ..host.scorers.latent_clip import LoadedLatentCLIP
    from ..host.scorers.scoring import encode
    from ..models.config import published_configs
    from ..models.latent_clip import LatentCLIP
    from ..models.latent_spaces import LATENT_SPACES

    with torch.inference_mode():
        config = published_configs()["Latent-ViT-B-8-512"]
        encoder = LoadedLatentCLIP(LatentCLIP(config), config, LATENT_SPACES["sdxl"], "random").encoder("tiles")
        latents = torch.randn(count, 4, 64, 64) * 7.7
        encode(encoder, latents[:64])
        began = time.perf_counter()
        encode(encoder, latents)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"latents": count, "seconds": round(seconds, 2), "peak_memory_mb": round(peak, 1)}


if __name__ == "__main__":
    print(json.dumps(score(int(sys.argv[1]))))
