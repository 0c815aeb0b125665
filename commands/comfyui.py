"""Import path of ComfyUI for commands that need its code: a folder given by the user, or the ComfyUI around this pack."""

import sys
from pathlib import Path

import torch

INSTALLED_IN = Path(__file__).resolve().parents[3]  # ComfyUI, if this pack is in its custom_nodes


def find_host(folder: Path | None, cpu: bool) -> None:
    """Put ComfyUI on the import path; run it on the CPU if asked, or without a GPU.

    Raises:
        ValueError: no ComfyUI in `folder`, or around this pack.
    """
    if folder is None and (INSTALLED_IN / "comfy" / "sd.py").is_file():
        folder = INSTALLED_IN
    if folder is not None:
        if not (folder / "comfy" / "sd.py").is_file():
            raise ValueError(f"{folder}: no ComfyUI there. Name the folder that holds its main.py.")
        sys.path.insert(0, str(folder.resolve()))
    try:
        from comfy.cli_args import args
    except ImportError as error:
        raise ValueError("No ComfyUI is around this pack. Name its folder with --comfyui.") from error
    if cpu or not torch.cuda.is_available():
        args.cpu = True
