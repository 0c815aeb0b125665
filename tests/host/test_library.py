"""docs/library.md, run as it stands: diffusers' interface over Shapes World, and the library's Latent-CLIP beside the host's."""

import importlib
import json
import re
import runpy
import subprocess
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import latent_clip
from latent_clip.models.shapes_world import load_weights
from latent_clip.tests.unit.test_docs import ROOT

PAGE = ROOT / "docs" / "library.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    weights, config = load_weights("latent_clip")
    path = tmp_path_factory.mktemp("library") / "shapes.safetensors"
    save_file(weights, path, {"config": json.dumps(config), "latent_space": "shapes-world"})
    return path


@pytest.fixture
def diffusers(host_env, monkeypatch):
    """A module with diffusers' names, whose pipeline samples the generator of Shapes World."""
    world = importlib.import_module(f"{host_env.pack.__name__}.host.scorers.shapes_world")
    import comfy.sample

    with torch.inference_mode():
        model, clip = world.load_generator()
        vae = world.load_vae()
    scale = latent_clip.LATENT_SPACES["shapes-world"].scale

    class Pipeline:
        vae = SimpleNamespace(
            config=SimpleNamespace(scaling_factor=scale), dtype=torch.float32,
            decode=lambda raw: SimpleNamespace(sample=2 * vae_decode(raw).movedim(-1, 1) - 1),
        )  # fmt: skip

        @classmethod
        def from_pretrained(cls, name, torch_dtype):
            return cls()

        def to(self, device):
            return self

        def __call__(self, prompt, num_images_per_prompt, num_inference_steps, guidance_scale, output_type):
            assert output_type == "latent"
            with torch.inference_mode():
                noise = torch.randn(num_images_per_prompt, 4, 8, 8, generator=torch.Generator().manual_seed(11))
                one = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
                raw = comfy.sample.sample(
                    model, noise, num_inference_steps, max(1.0, guidance_scale), "euler", "normal", one, one, torch.zeros_like(noise),
                    disable_pbar=True,
                )  # fmt: skip
            return SimpleNamespace(images=raw.clone() * scale)

    def vae_decode(raw):
        with torch.inference_mode():
            return vae.decode(raw).clone()

    module = types.ModuleType("diffusers")
    module.AutoPipelineForText2Image = Pipeline
    monkeypatch.setitem(sys.modules, "diffusers", module)


def here(block: str, weights_file) -> str:
    """A block of the page with this machine's device and file."""
    block = block.replace('"cuda"', '"cpu"').replace("torch.float16", "torch.float32")
    return re.sub(r'"[\w-]+\.safetensors"', repr(str(weights_file)), block)


def test_page_runs_from_top_to_bottom(host_env, diffusers, weights_file, tmp_path):
    from latent_clip.demo.captions import parse
    from latent_clip.demo.judge import judge

    program = tmp_path / "page.py"
    program.write_text("\n".join(here(block, weights_file) for block in BLOCKS), encoding="utf-8")
    names = runpy.run_path(str(program))
    assert names["scores"].shape == (8,) and not names["scores"].requires_grad
    picture = (names["image"].clamp(-1, 1) + 1) / 2
    assert judge(picture, [parse(names["prompt"])]) == [True]
    assert (names["state"].rewards >= names["reward"](7.7 * torch.zeros(2, 4, 64, 64)) - 2).all()
    assert names["noise"].shape == (1, 4, 64, 64) and names["own"].space.name == "shapes-world"


def test_first_program_is_short():
    assert len(BLOCKS[0].splitlines()) <= 14


def test_library_and_host_give_the_same_features(host_env, weights_file):
    world = importlib.import_module(f"{host_env.pack.__name__}.host.scorers.shapes_world")
    own = latent_clip.load(weights_file)
    latents = 7.7 * torch.randn(3, 4, 8, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hosted = world.load_latent_clip()
        assert torch.equal(own.encoder("tiles")(latents), hosted.encoder("tiles")(latents))
        assert torch.equal(own.encode_text(["a red circle"]), hosted.encode_text(["a red circle"]))
        window, look = own.window_encoder("tiles").encode_windows(latents), hosted.window_encoder("tiles").encode_windows(latents)
    assert torch.equal(window.windows, look.windows) and own.logit_scale == hosted.logit_scale


def test_version_is_that_of_the_project():
    assert f'version = "{latent_clip.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert set(latent_clip.LIBRARY) <= set(dir(latent_clip))
    with pytest.raises(AttributeError, match="no attribute 'NODE_CLASS_MAPPINGS'"):
        latent_clip.NODE_CLASS_MAPPINGS  # noqa: B018 - ComfyUI asks for it


def test_importing_the_library_imports_no_torch():
    code = "import sys, latent_clip; assert 'torch' not in sys.modules; latent_clip.LATENT_SPACES; assert 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
