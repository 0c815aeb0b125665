"""Convert a Latent-CLIP checkpoint to a small safetensors file: the two towers, without the VAE encoder and the optimizer.

    latent-clip convert epoch_34.pt latent-clip-b-4-plus.safetensors --dtype fp16

The result is read back and compared with the source before it gets its name, so a file that is there is a good one. A target that
is there already is left as it is, unless --force is given; nothing else is written.
"""

import argparse
import sys
import time
from pathlib import Path

from safetensors import SafetensorError

from ..models.checkpoint import CheckpointError
from ..models.convert import DTYPES, Conversion, convert
from ..models.files import check_new

ERRORS = (ValueError, OSError, SafetensorError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command line."""
    parser.add_argument("source", type=Path, help="epoch_34.pt of the authors, or an earlier result")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: fp32, exact; fp16 is half the size")
    parser.add_argument("--force", action="store_true", help="replace the target if it is there")


def run(options: argparse.Namespace) -> str:
    """Write the target; return the report."""
    start = time.perf_counter()
    _check_target(options.source, options.target, options.force)
    result = convert(options.source, options.target, options.dtype)
    return report(result, options.target, options.dtype, time.perf_counter() - start)


def peak_memory() -> str:
    """Largest resident size of this process so far; "unknown" on Windows."""
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def megabytes(size: int) -> str:
    """Format a size in MB of 10⁶ bytes, as file managers do; kB for the tiny files of tests."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e3:.0f} kB"


def report(result: Conversion, target: Path, dtype: str, seconds: float) -> str:
    """Format the report."""
    left_out = result.source_size - result.kept_size
    return "\n".join(
        [
            f"{result.name} → {target.name}",
            f"  kept      {result.kept} tensors of the two towers, {megabytes(result.kept_size)}",
            f"  left out  {result.dropped} tensors of the VAE encoder, and the optimizer state if any, {megabytes(left_out)}",
            f"  size      {megabytes(result.source_size)} → {megabytes(result.target_size)} in {dtype}",
            f"  checked   largest change of an image-text cosine: {result.cosine_change:.1e}",
            f"  cost      {seconds:.1f} s, at most {peak_memory()} of memory",
        ]
    )


def _check_target(source: Path, target: Path, force: bool) -> None:
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target.name}: the target must end in .safetensors.")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target.parent}: no such folder. Make it first.")
    if target.exists() and source.exists() and target.samefile(source):
        raise CheckpointError(f"{target.name}: source and target are the same file.")
    check_new(target, force)
