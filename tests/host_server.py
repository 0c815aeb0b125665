"""The ComfyUI that tests talk to: a real server process in a temporary base directory."""

import json
import re
from pathlib import Path

import torch

from ..tools.comfy_server import PACK_FOLDER, PACK_ROOT, ComfyServer, make_base
from ..tools.ui_to_api import ui_to_api
from .checkpoints import save_latent_clip, save_pixel_clip

TEST_PACK = Path(__file__).parent / "host" / "test_pack"
TINY_SDXL = "tiny_sdxl.safetensors"


class TestServer(ComfyServer):
    """ComfyServer plus the test pack: `run`, `object_info`, `log` and ways to put files in and look at results.

    Attributes:
        models_dir, input_dir, output_dir: the server's own folders, empty at the start but for the tiny SDXL.
    """

    __test__ = False  # not a test class, whatever pytest thinks of the name

    def __init__(self, tree: Path, base: Path):
        make_base(base, {PACK_FOLDER: PACK_ROOT, "test_pack": TEST_PACK})
        super().__init__(tree, base)
        # On a first visit the page opens its template browser over everything, and loads a large default workflow.
        settings = base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))
        self.models_dir, self.input_dir, self.output_dir = base / "models", base / "input", base / "output"

    @property
    def version(self) -> tuple[int, ...]:
        """Of this ComfyUI."""
        return tuple(int(part) for part in self.get("/system_stats")["system"]["comfyui_version"].split("."))

    def save_input(self, name: str, latent: dict) -> None:
        """Write a LATENT for the TestLoadLatent node."""
        torch.save(latent, self.input_dir / f"{name}.pt")

    def dump(self, name: str = "dump") -> list:
        """Read what a TestDump node saw: the list of values on its wire (one value unless it was a list output)."""
        return torch.load(self.output_dir / f"{name}.pt", weights_only=False)

    def tiny_sdxl_as(self, file_name: str) -> None:
        """Offer the tiny SDXL under the checkpoint name that a shipped workflow asks for."""
        target = self.models_dir / "checkpoints" / file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(self.models_dir / "checkpoints" / TINY_SDXL)

    def offer_workflow_files(self) -> None:
        """Put tiny files under the names that the shipped workflows ask for."""
        text = "".join(path.read_text() for path in (PACK_ROOT / "workflows").glob("*.json"))
        for name in set(re.findall(r'"(sd_xl[\w.]+\.safetensors)"', text)):
            self.tiny_sdxl_as(name)
        folder = self.models_dir / "latent_clip"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("latent-clip-b-8", "latent-clip-b-4-plus"):
            save_latent_clip(folder / f"{name}.safetensors")
        pixels = self.models_dir / "open_clip"
        pixels.mkdir(parents=True, exist_ok=True)
        for name in set(re.findall(r'"(CLIP-[\w.-]+\.bin)"', text)):
            save_pixel_clip(pixels / name)
        self.run({"files": {"class_type": "TestStockFiles", "inputs": {}}})

    def workflow_to_prompt(self, path: Path) -> dict:
        """Convert a UI-format workflow file into the prompt that the page would queue."""
        return ui_to_api(json.loads(path.read_text()), self.object_info())


def text_to_image(width: int = 64, height: int = 64, batch_size: int = 1, steps: int = 2, seed: int = 0) -> dict:
    """The stock text-to-image prompt on the tiny SDXL: nodes ckpt, pos, neg, empty, ks, dec and save."""

    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return {
        "ckpt": node("CheckpointLoaderSimple", ckpt_name=TINY_SDXL),
        "pos": node("CLIPTextEncode", clip=["ckpt", 1], text="a red circle"),
        "neg": node("CLIPTextEncode", clip=["ckpt", 1], text=""),
        "empty": node("EmptyLatentImage", width=width, height=height, batch_size=batch_size),
        "ks": node(
            "KSampler", model=["ckpt", 0], positive=["pos", 0], negative=["neg", 0], latent_image=["empty", 0],
            seed=seed, steps=steps, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "dec": node("VAEDecode", samples=["ks", 0], vae=["ckpt", 2]),
        "save": node("SaveImage", images=["dec", 0], filename_prefix="tiny"),
    }  # fmt: skip
