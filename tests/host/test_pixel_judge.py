"""The pixel judge on VAEs of every family that the host decodes pictures with: what it sees, its way back, and memory that is short."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from latent_clip.tests.checkpoints import words
from latent_clip.tests.tiny_vaes import FAMILIES, SIDE, raw_latents, tiny_vae

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def pack(host_env):
    """The pack's modules as the host loaded them, a pixel CLIP, and encoders by family."""
    names = (
        "host.scorers.shapes_world",
        "host.scorers.pixel_clip",
        "host.scorers.decoding",
        "host.memory.gradients",
        "host.scorers.scoring",
        "methods.features",
    )
    modules = {name.split(".")[-1]: importlib.import_module(f"{host_env.pack.__name__}.{name}") for name in names}
    with torch.inference_mode():
        clip = modules["shapes_world"].load_pixel_clip()
    encoders = {}

    def encoder(family: str):
        if family not in encoders:
            encoders[family] = modules["pixel_clip"].pixel_encoder(clip, tiny_vae(family))
        return encoders[family]

    return SimpleNamespace(**modules, clip=clip, encoder=encoder)


def judged(pack, encoder, raw: torch.Tensor) -> torch.Tensor:
    """As a node does it."""
    with torch.inference_mode():
        return pack.scoring.encode(encoder, raw)


def gradient(pack, encoder, raw: torch.Tensor) -> torch.Tensor:
    with pack.gradients.gradients([patcher.model for patcher in encoder.patchers]):
        leaf = raw.clone().requires_grad_()
        return torch.autograd.grad(encoder(leaf)[:, :8].sum(), leaf)[0]


def expected_features(pack, encoder, raw: torch.Tensor) -> torch.Tensor:
    """Of what VAE Decode shows."""
    with torch.inference_mode():
        pixels = encoder.vae.decode(raw.unsqueeze(2) if encoder.vae.latent_dim == 3 else raw)
        pixels = pixels.movedim(-1, 1) if pixels.ndim == 4 else pixels[:, 0].movedim(-1, 1)
        clip = pack.clip
        return pack.features.encode_pixels(clip.image.model, pixels, clip.image_size, clip.mean, clip.std)


@every_family
def test_judge_sees_what_vae_decode_shows(pack, family):
    encoder = pack.encoder(family)
    raw = raw_latents(encoder.vae)
    features = judged(pack, encoder, raw)
    torch.testing.assert_close(features, expected_features(pack, encoder, raw), atol=1e-5, rtol=0)
    assert encoder.space.channels == raw.shape[1] and encoder.space.downscale == (16 if family == "flux2" else 8)
    with torch.inference_mode():
        look = encoder.encode_windows(raw)
    torch.testing.assert_close(look.average, features, atol=1e-5, rtol=0)
    assert look.windows.shape[:2] == (2, 1)


@every_family
def test_the_gradient_is_that_of_finite_differences(pack, family):
    encoder = pack.encoder(family)
    assert_slope_is_that_of_finite_differences(pack, encoder, raw_latents(encoder.vae, 1))


def assert_slope_is_that_of_finite_differences(pack, encoder, raw: torch.Tensor) -> None:
    """Along the gradient itself, where the slope is its length."""
    found = gradient(pack, encoder, raw)
    direction = found / found.norm()
    step = 1e-2
    with torch.inference_mode():
        ends = [float(encoder(raw + way * step * direction)[:, :8].sum()) for way in (1, -1)]
    assert float(found.norm()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05)
    assert found.norm() > 1e-3


@every_family
def test_short_of_memory_the_gradient_is_the_same_and_less_is_kept(pack, monkeypatch, family):
    encoder = pack.encoder(family)
    raw = raw_latents(encoder.vae)
    whole, kept = saved_bytes(lambda: gradient(pack, encoder, raw))
    monkeypatch.setattr(encoder.decoder.__class__, "fits", lambda self, latents: False)
    parts, kept_of_parts = saved_bytes(lambda: gradient(pack, encoder, raw))
    assert (parts - whole).norm() < 1e-3 * whole.norm()
    assert kept_of_parts < kept / 2


def saved_bytes(run):
    """What `run` returns, and bytes that autograd keeps for the way back at once, as far as nothing is computed again."""
    largest, now = 0, 0

    def pack_tensor(tensor):
        nonlocal largest, now
        now += tensor.numel() * tensor.element_size()
        largest = max(largest, now)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
        return run(), largest


@pytest.mark.parametrize("family", ["kl", "wan", "flux2"])
@pytest.mark.parametrize("backward", [False, True])
def test_picture_that_has_no_room_is_decoded_in_tiles(pack, monkeypatch, family, backward):
    """As the host does it; the decoder says out of memory for anything larger than a tile."""
    encoder = pack.encoder(family)
    network, decode = encoder.vae.first_stage_model, encoder.vae.first_stage_model.decode
    sizes = []
    monkeypatch.setattr(pack.decoding, "TILE", dict.fromkeys((2, 3), 4 * encoder.space.downscale))

    def short(latents):
        if latents.shape[-1] * latents.shape[-2] > 16 or len(latents) > 1:
            raise torch.OutOfMemoryError("x")
        sizes.append(tuple(latents.shape[-2:]))
        return decode(latents)

    raw = raw_latents(encoder.vae, 1)
    expected = expected_features(pack, encoder, raw)
    monkeypatch.setattr(network, "decode", short)
    if backward:
        monkeypatch.setattr(pack.decoding, "PROBE", 4)  # the try at the way back is not what has no room
        assert_slope_is_that_of_finite_differences(pack, encoder, raw)
    else:
        assert (judged(pack, encoder, raw) * expected).sum(dim=1).min() > 0.8
    assert len(sizes) > 3


def test_frame_of_a_video_is_judged_by_the_pictures_that_it_adds(pack):
    """A latent of three frames is nine pictures to Wan's decoder: one, and four for each further frame."""
    encoder = pack.encoder("wan")
    raw = raw_latents(encoder.vae, batch=1, frames=3)
    with torch.inference_mode():
        pixels = encoder.vae.decode(raw)[0].movedim(-1, 1)
        clip = pack.clip
        frames = pack.features.encode_pixels(clip.image.model, pixels, clip.image_size, clip.mean, clip.std)
        average, look = encoder(raw), encoder.encode_windows(raw)
    added = [[0] * 4, [1, 2, 3, 4], [5, 6, 7, 8]]
    assert len(frames) == 9 and look.windows.shape[:2] == (3, 4)
    torch.testing.assert_close(average, pack.features.average_unit(frames[torch.tensor(added)]), atol=1e-5, rtol=0)
    torch.testing.assert_close(look.average, average)
    torch.testing.assert_close(look.windows, frames[torch.tensor(added)], atol=1e-5, rtol=0)
    assert encoder.memory_per_item(raw.shape) >= encoder.memory_per_item(raw[:, :, 0].shape) > 0


def test_frames_through_an_image_vae_are_pictures_of_their_own(pack):
    encoder = pack.encoder("kl")
    raw = raw_latents(encoder.vae, batch=2, frames=2)
    with torch.inference_mode():
        each = [encoder(raw[:, :, frame]) for frame in range(2)]
        torch.testing.assert_close(encoder(raw), torch.stack(each, 1).flatten(0, 1), atol=1e-5, rtol=0)
    assert encoder.memory_per_item(raw.shape) == 2 * encoder.memory_per_item(raw[:, :, 0].shape)


@pytest.mark.parametrize("cut", ["no_grad", "rounded", "in place"])
def test_decoder_without_a_way_back_scores_and_is_refused_where_one_is_needed(pack, monkeypatch, cut):
    encoder = pack.pixel_clip.pixel_encoder(pack.clip, tiny_vae("taesd"))
    network = encoder.vae.first_stage_model
    decode = network.decode

    def cut_off(latents):
        if cut == "no_grad":
            with torch.no_grad():
                return decode(latents)
        if cut == "rounded":
            return decode(latents.detach())
        squares = decode(latents).exp()
        kept = squares * squares
        squares.add_(1)
        return kept

    monkeypatch.setattr(network, "decode", cut_off)
    raw = raw_latents(encoder.vae)
    assert judged(pack, encoder, raw).isfinite().all()
    with pytest.raises(ValueError, match=r"Got a VAE \(TAESD\) whose decoder has no gradient.*use a latent reward"):
        gradient(pack, encoder, raw)


SIGLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"},
    "text_cfg": {
        "context_length": 8, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "width": 16, "heads": 2, "layers": 1,
        "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    },
}  # fmt: skip
SQUASHED = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def siglip(host_env):
    """A SigLIP as it lies in models/open_clip: weights, config and tokenizer; small, with a tower of timm."""
    import folder_paths
    from open_clip.model import CustomTextCLIP

    folder = Path(folder_paths.get_folder_paths("open_clip")[0])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = CustomTextCLIP(**SIGLIP, init_logit_bias=-10.0).train(False).requires_grad_(False)
    save_file(model.state_dict(), folder / "siglip.safetensors")
    (folder / "siglip.json").write_text(json.dumps({"model_cfg": SIGLIP, "preprocess_cfg": SQUASHED}))
    words(folder / "siglip.tokenizer.json")
    return model


def test_siglip_gives_the_log_odds_of_its_sigmoid(pack, siglip):
    with torch.inference_mode():
        clip = pack.pixel_clip.load_pixel_clip_file("siglip.safetensors", "fp32")
        vae = tiny_vae("kl")
        reward = pack.pixel_clip.pixel_reward(clip, vae, "odds", "A red cat!")
        raw = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(3))
        pixels = vae.decode(raw).movedim(-1, 1)
        squashed = torch.nn.functional.interpolate(pixels, (160, 160), mode="bicubic", antialias=True)
        image = siglip.encode_image((squashed - 0.5) / 0.5, normalize=True)
        text = siglip.encode_text(torch.tensor([[3, 4, 5, 1, 1, 1, 1, 1]]), normalize=True)
        expected = siglip.logit_scale.exp() * (image @ text.T)[:, 0] + siglip.logit_bias
        found = pack.scoring.score_frames(reward, raw)["odds"]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert clip.text.remarks("a red cat") == [] and clip.text.remarks("a " * 8) == ["cut to 8 tokens"]


def test_vaes_that_make_no_pictures_are_refused(pack):
    import comfy.sd

    with torch.inference_mode():
        nothing = comfy.sd.VAE(sd={"unknown": torch.zeros(1)})
    with pytest.raises(ValueError, match="Got a VAE without weights"):
        pack.pixel_clip.pixel_encoder(pack.clip, nothing)
    sound = tiny_vae("taesd")
    sound.latent_dim, sound.output_channels = 1, 2
    with pytest.raises(
        ValueError, match="1-dimensional latents and 2 output channels, expected one for images or video"
    ):
        pack.pixel_clip.pixel_encoder(pack.clip, sound)


def test_opacity_of_a_layered_picture_is_left_out(pack, monkeypatch):
    vae = tiny_vae("taesd")
    decode = vae.first_stage_model.decode
    monkeypatch.setattr(vae.first_stage_model, "decode", lambda x: torch.cat([decode(x), decode(x)[:, :1]], dim=1))
    monkeypatch.setattr(vae, "output_channels", 4)
    encoder, plain = pack.pixel_clip.pixel_encoder(pack.clip, vae), pack.encoder("taesd")
    raw = raw_latents(vae)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(raw), plain(raw))
        assert encoder.decoder(raw).shape == (2, 1, 3, 8 * SIDE, 8 * SIDE)
