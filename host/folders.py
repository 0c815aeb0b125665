"""Where weights live in a ComfyUI installation."""

from pathlib import Path

import folder_paths

from .fingerprints import weights_fingerprint

LATENT_CLIP = "latent_clip"  # Latent-CLIP checkpoints
OPEN_CLIP = "open_clip"  # CLIP checkpoints that read pixels, in open_clip's layout
EXTENSIONS = {".safetensors", ".pt", ".pth", ".bin"}


def register_folders() -> None:
    """Make ComfyUI/models/latent_clip and models/open_clip known; extra_model_paths.yaml may add to them."""
    for name in (LATENT_CLIP, OPEN_CLIP):
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
        paths, extensions = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, set(extensions) | EXTENSIONS)


def list_files(folder: str) -> list[str]:
    """Checkpoint files of one of our folders, as the loader nodes offer them."""
    return folder_paths.get_filename_list(folder)


def find_file(folder: str, name: str) -> str:
    """Full path of a listed file.

    Raises:
        ValueError: it is gone.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ValueError(
            f"{name!r} is not in ComfyUI/models/{folder} any more. Put the file back or choose another one."
        )
    return path


def fingerprint(folder: str, name: str | None) -> str:
    """Of a listed file, for `fingerprint_inputs`; of all of the folder's where the name comes from another node."""
    names = list_files(folder) if name is None else [name]
    return weights_fingerprint(folder_paths.get_full_path(folder, name) or name for name in names)
