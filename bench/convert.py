"""Cost of converting a full-size checkpoint: seconds, and the memory peak of the process.

    ./dev bench convert

Writes a Latent-ViT-B-4-512-plus with random weights in the authors' layout, VAE encoder and AdamW moments included
(2.26 GB, in the system's folder for temporary files), converts it in fresh processes, and deletes it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "convert.json"
ARCHITECTURE = "Latent-ViT-B-4-512-plus"


def run() -> dict:
    """Measure, and return what `bench/results/convert.json` holds."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "epoch_34.pt"
        # by a process of its own: Linux counts a parent's memory into the peak of the processes that it starts
        subprocess.run([sys.executable, ROOT, "-m", "bench.convert", "--make", source], check=True)
        return {
            "device": f"{os.cpu_count()}-core CPU",
            "what": f"{ARCHITECTURE} of random weights in the authors' layout, with VAE encoder and AdamW moments",
            "source_mb": _megabytes(source.stat().st_size),
            "conversions": {dtype: _convert(source, dtype) for dtype in ("fp16", "fp32")},
        }


def make(path: Path) -> None:
    """Write the full-size checkpoint."""
    from ..models.config import published_configs
    from ..tests.original_layout import VAE_WIDTHS, save_original

    save_original(path, published_configs()[ARCHITECTURE], vae_widths=VAE_WIDTHS)


def _convert(source: Path, dtype: str) -> dict:
    target = source.with_suffix(".safetensors")
    command = [sys.executable, str(ROOT), "convert", str(source), str(target), "--dtype", dtype]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    change = re.search(r"cosine: (\S+)", output)
    if status != 0 or not change:
        raise RuntimeError(f"convert failed with status {status}: {output}")
    result = {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mb": _megabytes(usage.ru_maxrss * 1024),
        "target_mb": _megabytes(target.stat().st_size),
        "cosine_change": float(change[1]),
    }
    target.unlink()
    return result


def _megabytes(size: int) -> float:
    return round(size / 1e6, 1)


def main() -> None:
    """Measure, print, and write the result file; with --make PATH only write the checkpoint."""
    if sys.argv[1:2] == ["--make"]:
        make(Path(sys.argv[2]))
        return
    text = json.dumps(run(), indent=2)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
