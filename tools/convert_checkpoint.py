"""Make a small safetensors file of a Latent-CLIP checkpoint: the two towers, without the VAE encoder and the optimizer.

    python tools/convert_checkpoint.py epoch_34.pt latent-clip-b-4-plus.safetensors --dtype fp16

The result is read back and compared with the source before it gets its name, so a file that is there is a good one.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: start again as a module of the pack, so that relative imports work
    import pack

    sys.argv.insert(1, "tools.convert_checkpoint")
    pack.main()

import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..models.checkpoint import Checkpoint, CheckpointError, read_checkpoint, safetensors_metadata
from ..models.config import latent_grid
from ..models.latent_clip import load_latent_clip

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST_CHANGE = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2}  # of a cosine
PROMPTS = ["a photo of a cat", "two red squares left of a blue circle", "a castle at dusk, oil on canvas", "text"]


@dataclass(frozen=True)
class Conversion:
    """What was kept and what it cost. Sizes are in bytes; `dropped` counts VAE tensors."""

    name: str
    kept: int
    dropped: int
    kept_size: int
    source_size: int
    target_size: int
    cosine_change: float


def convert(source: Path, target: Path, dtype: str = "fp32") -> Conversion:
    """Write `target` and verify it.

    Args:
        source: a checkpoint of either layout.
        target: .safetensors, replaced only by a verified result.
        dtype: fp32, fp16 or bf16; the logit scale stays float32.

    Raises:
        CheckpointError: the source is no Latent-CLIP, or scores change too much in this dtype.
    """
    checkpoint = read_checkpoint(source)
    expected = probe(checkpoint)
    state_dict = {key: _cast(key, tensor, DTYPES[dtype]) for key, tensor in checkpoint.state_dict.items()}
    kept_size = sum(tensor.nbytes for tensor in checkpoint.state_dict.values())
    kept, dropped, name = len(state_dict), checkpoint.dropped, checkpoint.name
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        save_file(state_dict, unfinished, safetensors_metadata(checkpoint, source))
        del checkpoint, state_dict  # their memory is needed for the check
        change = (probe(read_checkpoint(unfinished)) - expected).abs().max().item()
        if not change <= LARGEST_CHANGE[dtype]:
            raise CheckpointError(f"{source.name}: in {dtype} its scores change by {change:.1e}. Use --dtype fp32.")
        size = unfinished.stat().st_size
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return Conversion(name, kept, dropped, kept_size, source.stat().st_size, size, change)


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(torch.float32 if key == "logit_scale" else dtype).contiguous()


@torch.inference_mode()
def probe(checkpoint: Checkpoint) -> Tensor:
    """Cosines between a few seeded raw latents and prompts, computed in float32: (4, 4)."""
    model = load_latent_clip(checkpoint.config, {key: tensor.float() for key, tensor in checkpoint.state_dict.items()})
    grid, text = latent_grid(checkpoint.config), checkpoint.config["text_cfg"]
    noise = torch.randn(4, checkpoint.space.channels, grid, grid, generator=torch.Generator().manual_seed(0))
    tokens = SimpleTokenizer(context_length=text["context_length"])(PROMPTS).clamp(max=text["vocab_size"] - 1)
    images = model.encode_image(noise / checkpoint.space.scale + checkpoint.space.shift)
    return F.normalize(images, dim=-1) @ F.normalize(model.encode_text(tokens), dim=-1).T


def peak_memory() -> str:
    """Largest resident size of this process so far, where the system tells it."""
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def megabytes(size: int) -> str:
    """In MB of 10⁶ bytes, as file managers show it; kB for the tiny files of tests."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e3:.0f} kB"


def report(result: Conversion, target: Path, dtype: str, seconds: float) -> str:
    """A few lines for the terminal."""
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


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 if the file was written."""
    parser = argparse.ArgumentParser(
        "convert_checkpoint.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="epoch_34.pt of the authors, or an earlier result")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: fp32, exact; fp16 is half the size")
    parser.add_argument("--force", action="store_true", help="replace the target if it is there")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        _check_target(options.source, options.target, options.force)
        result = convert(options.source, options.target, options.dtype)
    except (CheckpointError, OSError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(result, options.target, options.dtype, time.perf_counter() - start))
    return 0


def _check_target(source: Path, target: Path, force: bool) -> None:
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target.name}: the target must end in .safetensors.")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target.parent}: no such folder. Make it first.")
    if target.exists() and source.exists() and target.samefile(source):
        raise CheckpointError(f"{target.name}: source and target are the same file.")
    if target.exists() and not force:
        raise CheckpointError(f"{target.name}: is there already. Use --force to replace it.")


if __name__ == "__main__":
    sys.exit(main())
