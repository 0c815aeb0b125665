"""The guard of services on a table of graphs by families; tests/host/test_require_gate.py holds the same table against the real host."""

import json
import subprocess
import sys

import pytest

from latent_clip.methods.require_gate import GateModel, Refused, require_gate
from latent_clip.methods.require_gate.lists import BEFORE, BEFORE_FAMILIES, NEUTRAL, NEUTRAL_FAMILIES
from latent_clip.tests.guard_graphs import HONEST, INFO, MODELS, REFUSED, SETTINGS, base, behind, decode, gate, node

MOST_NAMED = ("Node ", "There is no", "The prompt", "The node id")


def check(prompt, **arguments) -> None:
    require_gate(prompt, INFO, **{"models": MODELS, "settings": SETTINGS} | arguments)


@pytest.mark.parametrize("name", HONEST)
def test_honest_graphs_are_accepted(name):
    check(HONEST[name])


@pytest.mark.parametrize("name", REFUSED)
def test_ways_past_the_gate_are_refused_with_their_node(name):
    prompt, says = REFUSED[name]
    with pytest.raises(Refused, match=says) as caught:
        check(prompt)
    assert str(caught.value).startswith(MOST_NAMED)
    assert len(str(caught.value)) < 600, "a client's text does not fill a message"


def test_there_are_enough_ways_of_every_family():
    assert len(REFUSED) >= 100
    wanted = "arithmetic nesting crops masks painters previews expansion subgraphs saved models malformed"
    assert set(wanted.split()) <= {name.split(":")[0] for name in REFUSED}


# The caller's arguments


@pytest.mark.parametrize("method", ["latent2rgb", "taesd", "auto", "NONE", ["none"], 1, True])
def test_extra_data_that_switches_previews_on(method):
    with pytest.raises(Refused, match="preview_method"):
        check(base(), extra_data={"preview_method": method})


@pytest.mark.parametrize(
    "extra", [None, {}, {"preview_method": "none"}, {"preview_method": "default"}, {"extra_pnginfo": {"workflow": {}}}]
)
def test_extra_data_that_does_not(extra):
    check(base(), extra_data=extra)


@pytest.mark.parametrize("extra", [[], "x", 5])
def test_extra_data_that_is_none(extra):
    with pytest.raises(Refused, match="extra_data"):
        check(base(), extra_data=extra)


def test_class_that_the_caller_knows():
    loop = base(x=node("OtherPackLoop", latent=["ks", 0]), g=gate(["x", 0]))
    check(loop, allowed_before=["OtherPackLoop"])
    check(loop, allowed_after=["OtherPackLoop"])
    late = base(x=node("OtherPackLoop", latent=["g", 0]), d=decode(["x", 0]))
    check(late, allowed_after=["OtherPackLoop"])
    with pytest.raises(Refused, match="allowed_after"):
        check(late, allowed_before=["OtherPackLoop"])
    with pytest.raises(Refused, match="KSampler"):
        check(base(x=node("OtherPackLoop", latent=["ks", 0]), d=decode(["x", 0])), allowed_after=["OtherPackLoop"])


def test_thumbnails_that_the_caller_accepts():
    prompt, _ = REFUSED["previews: small pictures of a search"]
    check(prompt, allowed_before=["LatentCLIPSearch"])


def test_listed_class_that_shows_on_this_host():
    """A newer host may give a listed node a preview: what the registry says counts."""
    for kind, prompt in {"EmptyLatentImage": base(), "VAEDecode": HONEST["cropped before the gate"]}.items():
        shows = INFO | {kind: INFO[kind] | {"has_intermediate_output": True}}
        with pytest.raises(Refused, match=kind):
            require_gate(prompt, shows, models=MODELS, settings=SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"models": []}, "models is empty"),
        ({"models": [GateModel("CheckpointLoaderSimple")]}, "expected one of"),
        ({"models": [GateModel("LatentCLIPLoader")]}, "lacks the inputs file"),
        ({"models": [GateModel("LatentCLIPPixelLoader", {"file": "x.bin"})]}, "quick_gelu"),
        ({"settings": {"concepts": "i2p"}}, "lacks categories, thresholds"),
        ({"settings": SETTINGS | {"concepts": "typed below"}}, "lacks typed"),
        ({"allowed_after": "SaveImage"}, "got a text"),
    ],
)
def test_callers_own_mistakes_are_no_refusals(arguments, says):
    with pytest.raises(ValueError, match=says) as caught:
        check(base(), **arguments)
    assert not isinstance(caught.value, Refused)


def loaded(file="a.safetensors", **more) -> dict:
    """SDXL's layout: the checkpoint's VAE, a Latent-CLIP from a file."""
    return base(
        v=node("CheckpointLoaderSimple", ckpt_name="x.safetensors"), al=node("LatentCLIPLoader", file=file, dtype="auto"),
        g=gate(["ks", 0], ("al", 0)), d=decode(["g", 0], ("v", 2)), **more,
    )  # fmt: skip


def test_latent_clip_and_its_vaes_by_file():
    models = [GateModel(inputs={"file": "a.safetensors"}, vaes=["x.safetensors"])]
    check(loaded(), models=models)
    for prompt, says in {
        "b": loaded("b.safetensors"),
        "loader": loaded(["t", 0], t=node("PrimitiveString", value="a.safetensors")),
    }.items():
        with pytest.raises(Refused, match="LatentCLIPLoader") as caught:
            check(says, models=models)
        assert prompt and "a.safetensors" in str(caught.value)
    with pytest.raises(Refused, match=r"x\.safetensors.*Expected a VAE of y"):
        check(loaded(), models=[GateModel(inputs={"file": "a.safetensors"}, vaes=["y"])])


def test_pixel_clip_and_the_vae_that_is_wired_to_it():
    """It decodes itself: behind the gate the same VAE file decodes, whichever it is, and also from another node."""
    models = [GateModel("LatentCLIPPixelLoader", {"file": "c.bin", "quick_gelu": False})]

    def graph(checked_with: str, decoded_with: str, quick_gelu=False) -> dict:
        return base(
            v=node("VAELoader", vae_name=checked_with), w=node("VAELoader", vae_name=decoded_with),
            al=node("LatentCLIPPixelLoader", vae=["v", 0], file="c.bin", dtype="auto", quick_gelu=quick_gelu),
            g=gate(["ks", 0], ("al", 0)), d=decode(["g", 0], ("w", 0)),
        )  # fmt: skip

    check(graph("a", "a"), models=models)
    with pytest.raises(Refused, match="Load Pixel Judge"):
        check(graph("a", "b"), models=models)
    with pytest.raises(Refused, match=r"c\.bin"):
        check(graph("a", "a", quick_gelu=True), models=models)


def test_two_latent_clips_behind_one_switch_need_a_vae_that_fits_both():
    models = [*MODELS, GateModel(inputs={"file": "a"}, vaes=["x"])]
    both = behind(
        al=node("LatentCLIPLoader", file="a", dtype="auto"), g2=gate(["ks", 0], ("al", 0)),
        w=node("ComfySwitchNode", switch=True, on_false=["g", 0], on_true=["g2", 0]), x=decode(["w", 0]),
    )  # fmt: skip
    with pytest.raises(Refused, match=r"'g2'.*Expected a VAE of x"):
        check(both, models=models)
    check(both, models=[*MODELS, GateModel(inputs={"file": "a"}, vaes=["LatentCLIPShapesWorld"])])


# The lists


def test_every_family_has_a_reason_and_no_class_is_listed_twice():
    families = BEFORE_FAMILIES + NEUTRAL_FAMILIES
    assert all(len(family.reason) > 10 and family.classes for family in families)
    assert sum(len(family.classes) for family in families) == len(BEFORE | NEUTRAL)


def test_it_needs_neither_torch_nor_the_host():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'numpy', 'comfy', 'comfy_api', 'open_clip', 'einops', 'aiohttp'])\n"
        "from latent_clip.methods.require_gate import require_gate, Refused, GateModel"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_two_thousand_nodes_in_a_row_are_no_recursion():
    chain = {
        str(i): node("ImageScale", image=[str(i - 1), 0] if i else ["d", 0], width=64, height=64) for i in range(1900)
    }
    check(base(**chain, s=node("SaveImage", images=["1899", 0])))


def test_prompts_travel_through_json_unchanged():
    """Graphs of the table are what a client can send, but for the malformed ones."""
    for prompt in HONEST.values():
        assert json.loads(json.dumps(prompt)) == prompt
