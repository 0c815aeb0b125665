"""The table of latent spaces against the latent formats of every ComfyUI that is here, which need torch and nothing else."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latent_clip.models.checkpoint import CheckpointError, read_checkpoint
from latent_clip.models.latent_spaces import (
    LATENT_SPACES,
    NO_LATENT_IMAGES,
    LatentSpace,
    LatentSpaceError,
    check_raw_latents,
    common_space,
    space_of_channels,
    space_of_format,
    what_format_is,
)
from latent_clip.tests.checkpoints import TINY_CONFIG, tiny_latent_clip

HOSTS = sorted((Path(__file__).resolve().parents[2] / ".cache" / "comfyui").glob("*/comfy/latent_formats.py"))
# Known to us, and without a Latent-CLIP space of their own: refused by name.
WITHOUT_A_SPACE = {
    "SD_X4", "SC_Prior", "SC_B", "Mochi", "Cosmos1CV8x8x8", "HunyuanImage21Refiner", "HunyuanVideo15", "SeedVR2", "CogVideoX",
    "CogVideoX1_5", "MiniMaxH3Video", "MiniMaxH3AV",
}  # fmt: skip


def formats_of(path: Path) -> dict[str, type]:
    spec = importlib.util.spec_from_file_location(f"latent_formats_{path.parts[-3].replace('.', '_')}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    return {name: found[name] for name in found if name != "LatentFormat" and issubclass(found[name], module.LatentFormat)}


@pytest.mark.skipif(not HOSTS, reason="no ComfyUI has been fetched")
@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.parts[-3])
def test_every_format_of_a_host_is_a_space_or_known_to_be_none(path):
    known = WITHOUT_A_SPACE.union(*NO_LATENT_IMAGES.values())
    unknown = [name for name in formats_of(path) if space_of_format(name) is None and name not in known]
    assert not unknown, "new formats: give them a space in models/latent_spaces.py, or say here that they have none"


@pytest.mark.skipif(not HOSTS, reason="no ComfyUI has been fetched")
@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.parts[-3])
def test_numbers_of_a_space_are_those_of_its_format(path):
    formats, seen = formats_of(path), set()
    for space in LATENT_SPACES.values():
        for name in space.formats[:1]:  # the others share its VAE and give the model other numbers
            if name not in formats:
                continue
            host = formats[name]()
            frames = (3,) if space.video else ()
            raw = 4 * torch.randn(2, space.channels, *frames, 4, 4, generator=torch.Generator().manual_seed(0))
            assert (host.latent_channels, host.spacial_downscale_ratio) == (space.channels, space.downscale), name
            assert host.latent_dimensions == (3 if space.video else 2), name
            torch.testing.assert_close(space.to_model(raw), host.process_in(raw), msg=lambda text, n=name: f"{n}: {text}")
            torch.testing.assert_close(space.to_raw(space.to_model(raw)), raw, atol=1e-4, rtol=1e-4)
            seen.add(space.name)
    assert {"sdxl", "sd1", "sd3", "flux", "flux2", "wan21", "wan22", "hunyuan-image", "hunyuan-video", "ltxv"} <= seen


def test_no_format_belongs_to_two_spaces():
    names = [name for space in LATENT_SPACES.values() for name in space.formats]
    assert len(names) == len(set(names))
    assert not {*names} & WITHOUT_A_SPACE.union(*NO_LATENT_IMAGES.values())


def test_format_is_told_in_words():
    assert what_format_is("Wan21") == "Wan21 latents (the wan21 space)"
    assert what_format_is("StableAudio1") == "StableAudio1 (sound)"
    assert what_format_is("OfTomorrow") == "OfTomorrow latents (a space without a Latent-CLIP)"


@pytest.mark.parametrize(
    ("name", "shape", "got"),
    [
        ("wan21", (1, 48, 1, 8, 8), r"the wan22 space \(48 channels\)"),
        ("flux", (1, 16, 1, 8, 8), "a video latent"),
        ("flux2", (1, 16, 8, 8), r"the flux or sd3 space \(16 channels\)"),
        ("wan21", (1, 16, 0, 8, 8), "an empty latent batch"),
    ],
)
def test_latents_of_another_space_are_refused_with_the_pixel_judge_as_remedy(name, shape, got):
    with pytest.raises(LatentSpaceError, match=f"Got .*{got}.*expected .*the {name} space") as raised:
        check_raw_latents(torch.zeros(shape), LATENT_SPACES[name])
    assert "Connect at least one" in str(raised.value) or "Load Pixel Judge" in str(raised.value)


@pytest.mark.parametrize(("name", "frames"), [("wan21", 1), ("wan21", 5), ("ltx2", 2)])
def test_clips_of_a_video_space_pass(name, frames):
    latents = torch.zeros(1, LATENT_SPACES[name].channels, frames, 4, 4)
    assert check_raw_latents(latents, LATENT_SPACES[name]) is latents


def test_unnamed_space_takes_images_and_clips_and_knows_a_preview_only():
    wan, flux2, odd = space_of_channels(16, 8, video=True), space_of_channels(128, 16), space_of_channels(5, 8)
    assert (wan.formats, flux2.formats, odd.formats) == (("Wan21",), ("Flux2",), ())
    for shape in ((1, 16, 4, 4), (1, 16, 3, 4, 4)):
        check_raw_latents(torch.zeros(shape), wan)
    assert common_space([wan, LATENT_SPACES["wan21"]]).name == "wan21"


def save_for(path: Path, space: str, channels: int, with_config: bool = True) -> None:
    """A tiny Latent-CLIP for a space, its grid 8 × 8 cells."""
    vision = TINY_CONFIG["vision_cfg"] | {
        "image_size": 8 * LATENT_SPACES[space].downscale,
        "latent_factor": LATENT_SPACES[space].downscale,
        "latent_n_channels": channels,
    }
    config = TINY_CONFIG | {"vision_cfg": vision}
    metadata = {"latent_space": space} | ({"config": json.dumps(config)} if with_config else {})
    save_file(tiny_latent_clip(config=config).state_dict(), path, metadata)


@pytest.mark.parametrize("with_config", [True, False], ids=["config", "shapes"])
def test_file_says_which_space_it_reads(tmp_path, with_config):
    save_for(tmp_path / "flux2.safetensors", "flux2", 128, with_config)
    checkpoint = read_checkpoint(tmp_path / "flux2.safetensors")
    assert checkpoint.space is LATENT_SPACES["flux2"]
    assert checkpoint.config["vision_cfg"]["image_size"] == 128 and checkpoint.config["vision_cfg"]["latent_factor"] == 16


def test_shapes_never_choose_a_space(tmp_path):
    vision = TINY_CONFIG["vision_cfg"] | {"latent_n_channels": 16}
    save_file(tiny_latent_clip(config=TINY_CONFIG | {"vision_cfg": vision}).state_dict(), tmp_path / "silent.safetensors")
    with pytest.raises(CheckpointError, match="takes 16 channels, but sdxl latents have 4"):
        read_checkpoint(tmp_path / "silent.safetensors")


def test_space_of_tomorrow_is_refused_by_name(tmp_path):
    save_file(tiny_latent_clip().state_dict(), tmp_path / "new.safetensors", {"latent_space": "flux9"})
    with pytest.raises(CheckpointError, match="unknown latent space 'flux9'"):
        read_checkpoint(tmp_path / "new.safetensors")


def test_video_space_that_a_file_brings_along_is_read_back(tmp_path):
    from latent_clip.models.file_metadata import SPACE_RECORD
    from latent_clip.models.own_spaces import space_as_dict, space_of_dict

    own = LatentSpace("mine", 4, 8, (1.0, 2.0, 3.0, 4.0), (0.5,) * 4, "my own VAE", video=True)
    record = json.loads(json.dumps(space_as_dict(own)))
    assert space_of_dict(record) == own
    save_file(tiny_latent_clip().state_dict(), tmp_path / "mine.safetensors", {"latent_space": "mine", SPACE_RECORD: json.dumps(record)})
    assert read_checkpoint(tmp_path / "mine.safetensors").space == own
    with pytest.raises(ValueError, match="Got 3 numbers as the scale of a latent space of 4 channels"):
        space_of_dict({**record, "scale": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="a number, or one for each channel"):
        space_of_dict({**record, "shift": "none"})
