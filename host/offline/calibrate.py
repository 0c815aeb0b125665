"""Score folders of pictures and .latent files as the Safety Gate would: the half of `latent-clip calibrate` that needs the host."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...methods.calibration import CalibrationError
from ...models.concepts import ConceptSet, ScorerId
from ...models.file_metadata import vae_of
from ...models.fit import Fit
from ...models.latent_spaces import LatentSpaceError, check_raw_latents
from ...models.pictures import LARGEST_FILE, SUFFIXES, Skipped, read_upright
from ..scorers.vae_check import check_vae

SHAPES_WORLD = "shapes-world"
LONGEST, SHORTEST = 2048, 64  # sides in pixels: larger pictures are reduced, smaller ones left out
UNREADABLE_SHARE = 0.05  # of a folder; more, and it is not the folder that one thinks
OLD_SCALE = 0.18215  # of .latent files without a version, as the host's Load Latent reads them


class UnreadableError(CalibrationError):
    """A file that holds no image to score."""


class CalibrationScorer:
    """A Latent-CLIP, and a VAE for pictures, in the host's care; refused where it is another VAE than the Latent-CLIP reads.

    Attributes:
        vae_info: the file's record of its VAE.
        left_out: why files could not be read, one line each.
    """

    def __init__(self, clip: str, vae: str | None, fit: Fit, views: int, closer: bool = False):
        self.fit, self.views, self.closer = fit, views, closer
        self.clip, self.vae_info = _load_clip(clip)
        self.vae = _load_vae(vae) if vae else None
        if vae and not vae == clip == SHAPES_WORLD:
            check_vae(self.clip.name, self.clip.space, self.vae_info, self.vae, Path(vae).name)
        self.left_out: list[str] = []

    def scorer_id(self) -> ScorerId:
        """Return the settings that the gate must have in common with this calibration."""
        from ...host.scorers.concepts import scorer_id

        return scorer_id(self.clip, self.fit, self.views, self.closer)

    def column(self, folder: Path, concept: ConceptSet) -> list[float]:
        """Log-odds of everything in a folder for a set of one category, as the gate takes them.

        Raises:
            CalibrationError: no image, or too many that cannot be read; names a file.
        """
        from ...host.scorers.concepts import directions
        from ...host.scorers.log_odds import log_odds

        known, encoder, odds = directions(self.clip, concept), self.clip.window_encoder(self.fit, self.closer), []
        files, unreadable = files_of(folder), []
        for path in files:
            try:
                raw = self.latents(path)
            except UnreadableError as error:
                unreadable.append(str(error))
                continue
            odds.append(log_odds(raw, encoder, known, self.views))
        if len(unreadable) > UNREADABLE_SHARE * len(files):
            raise CalibrationError(
                f"{len(unreadable)} of the {len(files)} files of {folder} cannot be read, such as {unreadable[0]} Repair or remove them."
            )
        self.left_out += unreadable
        return torch.cat(odds)[:, 0].tolist()

    def latents(self, path: Path) -> Tensor:
        """Raw latents (B, C, H, W) of one file.

        Raises:
            UnreadableError: it holds none; names the file.
        """
        try:
            raw = read_latent(path) if path.suffix.lower() == ".latent" else self._encode(path)
            raw = check_raw_latents(raw, self.clip.space).float()
        except (LatentSpaceError, OSError) as error:
            raise UnreadableError(f"{path}: {error}") from error
        return raw

    def _encode(self, path: Path) -> Tensor:
        if self.vae is None:
            raise CalibrationError(f"{path} is a picture. Name the VAE of your models with --vae.")
        return self.vae.encode(read_picture(path)[None])


def read_picture(path: Path) -> Tensor:
    """A picture as `embed` and `evaluate` read it, upright: (H, W, 3) in 0..1, no side longer than `LONGEST`.

    Raises:
        UnreadableError: it is damaged, too small, or so large that decoding it could fill the memory.
    """
    import numpy as np

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Skipped("too large a file")
        upright = read_upright(path.read_bytes())
    except (OSError, Skipped) as error:
        raise UnreadableError(f"{path}: {error}.") from error
    upright.thumbnail((LONGEST, LONGEST))
    if min(upright.size) < SHORTEST:
        raise UnreadableError(
            f"{path}: {upright.width} × {upright.height} pixels, expected at least {SHORTEST} a side."
        )
    return torch.from_numpy(np.asarray(upright, dtype=np.float32) / 255)


def read_latent(path: Path) -> Tensor:
    """Read a file as the host's Load Latent does: (B, C, H, W).

    Raises:
        UnreadableError: it holds no latent.
    """
    try:
        tensors = load_file(path)
    except Exception as error:  # also RuntimeError and KeyError of odd headers; one file is left out, whatever is in it
        raise UnreadableError(f"{path}: {error}") from error
    if "latent_tensor" not in tensors:
        raise UnreadableError(f"{path} holds no latent_tensor, expected a file of ComfyUI's Save Latent.")
    return tensors["latent_tensor"].float() * (1 if "latent_format_version_0" in tensors else 1 / OLD_SCALE)


def files_of(folder: Path) -> list[Path]:
    """Latents and pictures of a folder, without hidden files, such as the ._ files that macOS writes beside others.

    Raises:
        CalibrationError: there are none.
    """
    kinds = {".latent", *SUFFIXES}
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in kinds and not path.name.startswith("."))
    if not files:
        found = "no such folder" if not folder.is_dir() else "no .latent, .png, .jpg or .webp in it"
        raise CalibrationError(f"{folder}: {found}.")
    return files


def _load_clip(name: str):
    """Return a Latent-CLIP, and its file's record of its VAE."""
    from ...host.scorers import shapes_world
    from ...host.scorers.latent_clip import LoadedLatentCLIP
    from ...models.checkpoint import read_checkpoint
    from ...models.latent_clip import load_latent_clip

    if name == SHAPES_WORLD:
        return shapes_world.load_latent_clip(), {}
    checkpoint = read_checkpoint(Path(name))
    model = load_latent_clip(checkpoint.config, checkpoint.state_dict)
    clip = LoadedLatentCLIP(model, checkpoint.config, checkpoint.space, checkpoint.name)
    return clip, vae_of(checkpoint.metadata)


def _load_vae(name: str):
    import comfy.utils

    from ...host.scorers import shapes_world

    return shapes_world.load_vae() if name == SHAPES_WORLD else open_vae(comfy.utils.load_torch_file(name))


def open_vae(tensors: dict[str, Tensor], dtype: torch.dtype | None = None):
    """A VAE from the tensors of its file; also a descendant of Shapes World's, whose sizes the host cannot guess."""
    import comfy.sd

    from ...host.scorers import shapes_world

    config = shapes_world.VAE_CONFIG if shapes_world.is_vae(tensors) else None
    return comfy.sd.VAE(sd=tensors, config=config, dtype=dtype)
