"""Folders of weights in a ComfyUI installation, and fingerprints that make the host run a node again.

The host's cache goes by a node's inputs alone, and a file's name stays the same when its content changes.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ...models.strict_json import MAX_BYTES

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
    """Fingerprint of a listed file, for `fingerprint_inputs`; of the folder if the name comes from another node."""
    names = list_files(folder) if name is None else [name]
    return weights_fingerprint(folder_paths.get_full_path(folder, name) or name for name in names)


def weights_fingerprint(paths: Iterable[str | Path]) -> str:
    """Sizes, times (content and inode) and inodes of weights and of the `.json` beside each: nothing is read."""
    return "\n".join(_state(path) for weights in paths for path in (Path(weights), Path(weights).with_suffix(".json")))


def text_fingerprint(paths: Iterable[str | Path]) -> str:
    """Digests of small files."""
    return "\n".join(_digest(Path(path)) for path in paths)


def _state(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as error:
        return f"{path} {type(error).__name__}"
    # a file that was moved here may have kept its time, and one that was overwritten may have been given its old time back
    return f"{path} {found.st_size} {found.st_mtime_ns} {found.st_ino} {found.st_ctime_ns}"


def _digest(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            return _state(path)
        return f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    except OSError as error:
        return f"{path} {type(error).__name__}"
