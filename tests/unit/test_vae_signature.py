"""Which VAE this is, told from its encoder's weights: rounding leaves it, training does not."""

import json
import math

import pytest
import torch
from torch import nn

from latent_clip.models.file_metadata import vae_of
from latent_clip.models.vae_signature import TOLERANCE, difference, is_another, signature_of


@pytest.fixture(scope="module")
def vae():
    """A state_dict with an encoder of thirty layers, of which one is large."""
    torch.manual_seed(0)
    encoder = nn.Sequential(*(nn.Conv2d(24, 24, 3) for _ in range(29)), nn.Conv2d(128, 256, 3))
    return {
        **{f"encoder.down.{name}": tensor.detach() for name, tensor in encoder.state_dict().items()},
        "quant_conv.weight": torch.randn(8, 8, 1, 1), "decoder.conv_in.weight": torch.randn(8, 4, 3, 3),
        "post_quant_conv.weight": torch.randn(4, 4, 1, 1),
    }  # fmt: skip


def told(state):
    return {"signature": signature_of(state)}


def apart(one, other):
    return difference(told(one), told(other))


def moved(state, share, names=("encoder", "quant")):
    """Weights with noise of that share of their length, as a little training moves them."""
    return {
        name: t + share * t.std() * torch.randn(t.shape, generator=torch.Generator().manual_seed(place)) if name.startswith(names) else t
        for place, (name, t) in enumerate(state.items())
    }  # fmt: skip


def test_rounding_and_another_decoder_leave_it_the_same(vae):
    half, brain = ({name: t.to(dtype) for name, t in vae.items()} for dtype in (torch.float16, torch.bfloat16))
    assert 0 < apart(vae, half) < TOLERANCE / 8 and TOLERANCE / 8 < apart(vae, brain) < TOLERANCE
    assert not is_another(apart(half, brain)) and not is_another(apart(brain, vae))
    assert apart(vae, {**vae, "decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}) == 0
    assert apart(vae, {name.replace("down.", "down._orig_mod."): t for name, t in vae.items()}) == 0  # torch.compile
    linear = {name: t[..., 0, 0] if t.shape[-1:] == (1,) else t for name, t in vae.items()}  # 1×1 convolutions as other layouts have them
    assert apart(vae, linear) == 0


@pytest.mark.parametrize("share", [0.005, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_little_training_makes_it_another(vae, share, dtype):
    tuned = {name: t.to(dtype) for name, t in moved(vae, share).items()}
    assert is_another(apart(vae, tuned)) and is_another(apart(tuned, vae))
    assert apart(vae, tuned) == pytest.approx(1.5 * share, rel=0.5)  # of thirty layers the one that differs most


def test_training_of_one_layer_is_seen(vae):
    assert is_another(apart(vae, moved(vae, 0.02, ("encoder.down.29",))))


def test_it_is_the_same_on_every_machine(vae):
    """Numbers that were written down: nothing random, and no order of names, is in it."""
    values = torch.arange(1, 13, dtype=torch.float32).view(3, 4)
    assert signature_of({"encoder.a": values}) == {
        "encoder.a": [-0.62757, 0.23534, -0.94136, -0.70602, 0.31379, -0.54913, 1.0198, 0.23534]
    }


def test_what_cannot_be_compared_is_none(vae):
    assert signature_of({"decoder.conv_in.weight": torch.ones(2, 2), "post_quant_conv.weight": torch.ones(2, 2)}) is None
    assert difference({}, told(vae)) is None and difference({"sha256": "a"}, {"sha256": "b"}) is None
    assert difference({"sha256": "a"}, {"sha256": "a"}) == 0 and difference({"sha256": ""}, {"sha256": ""}) is None
    assert not is_another(None) and is_another(math.inf)


def test_another_kind_of_encoder_is_another(vae):
    assert apart(vae, {name.replace("encoder", "taesd_encoder"): t for name, t in vae.items()}) == math.inf
    for broken in (torch.zeros_like, lambda t: torch.full_like(t, math.nan)):  # an encoder that nothing was loaded into
        assert is_another(apart(vae, {name: broken(t) for name, t in vae.items()}))


def test_file_tells_it(vae):
    record = {"name": "a.safetensors", "sha256": "ab", **told(vae)}
    assert difference(vae_of({"vae": json.dumps(record)}), told(vae)) == 0
    for other in ("[]", "3", "{}", '{"signature": {}}'):
        assert not vae_of({"vae": other}).get("signature")
    assert not vae_of({}).get("signature")


@pytest.mark.parametrize("numbers", ["[null]", "1", "[]", "[1e200,1,1,1,1,1,1,1]", "[NaN,1,1,1,1,1,1,1]", f"[1{'0' * 400},1,1,1,1,1,1,1]"])
def test_damaged_signature_is_refused(numbers):
    with pytest.raises(ValueError, match=r"(?i)vae"):
        vae_of({"vae": f'{{"signature": {{"encoder.conv_in.weight": {numbers}}}}}'})
    with pytest.raises(ValueError, match="VAE"):
        vae_of({"vae": '{"signature": [1]}'})


def test_numbers_whose_squares_overflow_are_far_apart():
    assert difference({"signature": {"a": [1e200] * 8}}, {"signature": {"a": [0.1] * 8}}) == pytest.approx(1e200)
    assert difference({"signature": {"a": []}}, {"signature": {"a": []}}) == math.inf
