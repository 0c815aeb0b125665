"""The guard of services against the real host: its registry, its nodes' code, and what graphs that were accepted really show."""

import ast
import base64
import io
import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request

import numpy
import pytest
import torch
from PIL import Image

from latent_clip.methods.require_gate import GateModel, Refused, require_gate
from latent_clip.methods.require_gate.lists import BEFORE, ITEMS, NEUTRAL, SHOWS_IMAGES, SHOWS_TEXT
from latent_clip.tests.guard_graphs import (
    GATE,
    HONEST,
    INFO,
    MODELS,
    OUTPUTS,
    REFUSED,
    SETTINGS,
    SHOWING,
    base,
    decode,
    latent_behind,
    node,
)
from latent_clip.tools.comfy_server import PACK_ROOT

SCRIPT = PACK_ROOT / "docs" / "examples" / "require_gate.py"
SHOWN = SHOWS_IMAGES | SHOWS_TEXT
I2P = {"concepts": "i2p", "categories": "", "thresholds": ""}
SDXL_TURBO = GateModel(inputs={"file": "latent-clip-b-8.safetensors"}, vaes=["sd_xl_turbo_1.0_fp16.safetensors"])
PLUS = GateModel(inputs={"file": "latent-clip-b-4-plus.safetensors"}, vaes=["sd_xl_base_1.0.safetensors"])
PIXELS = GateModel("LatentCLIPPixelLoader", {"file": "CLIP-ViT-B-32-laion2B-s34B-b79K.bin", "quick_gelu": False})
TEMPLATES = [SDXL_TURBO, PLUS, GateModel(inputs=SDXL_TURBO.inputs, vaes=PLUS.vaes), PIXELS]


@pytest.fixture(scope="module")
def info(comfy):
    comfy.offer_workflow_files()
    return comfy.object_info()


# The lists, against the host's registry and code


def test_every_listed_class_is_in_the_host(info):
    assert sorted((BEFORE | NEUTRAL) - set(info)) == []


def test_nothing_that_shows_may_stand_before_a_gate(info):
    shows = {kind for kind, about in info.items() if about.get("output_node") or about.get("has_intermediate_output")}
    assert len(shows) > 40 and {"Painter", "ImageCropV2", "GLSLShader", "CurveEditor", "LatentCLIPSearch"} <= shows
    assert sorted(shows & BEFORE) == []
    assert sorted(shows & NEUTRAL) == sorted(SHOWN), "what shows is listed as showing, and nothing else is"


def classes_of_the_host(tree) -> dict[str, str]:
    """Node id → source text of its class, of the stock nodes."""
    found = {}
    for path in [tree / "nodes.py", *sorted((tree / "comfy_extras").glob("nodes_*.py"))]:
        text = path.read_text(encoding="utf-8")
        module = ast.parse(text)
        sources = {
            item.name: ast.get_source_segment(text, item) for item in module.body if isinstance(item, ast.ClassDef)
        }
        for source in sources.values():
            ids = [
                word.value.value
                for word in ast.walk(ast.parse(source))
                if isinstance(word, ast.keyword) and word.arg == "node_id" and isinstance(word.value, ast.Constant)
            ]
            found |= dict.fromkeys(ids, source)
        for pairs in (item for item in ast.walk(module) if isinstance(item, ast.Dict)):
            for key, value in zip(pairs.keys, pairs.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Name) and value.id in sources:
                    found[key.value] = sources[value.id]
    return found


def test_no_listed_class_shows_anything_by_another_way(comfy_tree, info):
    """Also nodes that the registry does not mark: whose code sends to the page, makes a preview, or gives the page a result."""
    sources = classes_of_the_host(comfy_tree)
    marks = ("ui=", '"ui"', "send_sync", "send_progress_text", "PREVIEW_IMAGE", "latent_preview.get_previewer")
    loud = {kind for kind, source in sources.items() if any(mark in source for mark in marks)}
    stock = {kind for kind in BEFORE | NEUTRAL if not kind.startswith("LatentCLIP")}
    assert len(stock & set(sources)) > 0.9 * len(stock), "the search has found the classes"
    assert {"SaveImage", "PreviewAny", "ImageCropV2", "Painter"} <= loud
    # GetImageSize sends three numbers.
    assert sorted(loud & (BEFORE | NEUTRAL) - SHOWN) == ["GetImageSize"]


def test_no_listed_class_makes_nested_latents(comfy_tree):
    """Samplers give a nested latent only where they get one."""
    sources = classes_of_the_host(comfy_tree)
    nesting = {kind for kind, source in sources.items() if "NestedTensor(" in source or "_empty_av_latent(" in source}
    assert {"LTXVConcatAVLatent", "EmptyMiniMaxH3LatentAV"} <= nesting
    assert sorted(nesting & (BEFORE | NEUTRAL)) == ["SamplerCustom", "SamplerCustomAdvanced"]


def test_what_hands_latents_on_behind_a_gate_changes_none(comfy):
    """Each item that comes out is one that went in, to the bit; also of the nodes that show small pictures."""
    kinds = ITEMS.classes | {"LatentCLIPScore", "LatentCLIPSelect", "LatentCLIPClassify"}
    given = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5)) * 7
    comfy.save_input("guard", {"samples": given})
    tried = set()
    for name, prompt in HONEST.items():
        for key, made in prompt.items():
            if made["class_type"] not in kinds:
                continue
            slots = [slot for slot, kind in enumerate(OUTPUTS[made["class_type"]].split()) if kind == "LATENT"]
            loaded = {**prompt, "g": node("TestLoadLatent", name="guard")}
            needed = {key: loaded[key] for key in ("sw", "r", "g", key) if key in loaded}
            dumps = {f"dump{slot}": node("TestDump", value=[key, slot], name=f"{name}{slot}") for slot in slots}
            comfy.run(needed | dumps)
            tried.add(made["class_type"])
            written = [f"{name}{slot}" for slot in slots if (comfy.output_dir / f"{name}{slot}.pt").exists()]
            items = [item for dump in written for latent in comfy.dump(dump) if latent for item in latent["samples"]]
            assert items, name
            assert all(any(torch.equal(item, one) for one in given) for item in items), name
    assert tried == kinds


# The table of graphs, by the real registry


def test_units_registry_is_the_hosts(info):
    for kind, types in OUTPUTS.items():
        about = info[kind]
        assert [str(output) for output in about["output"]] == types.split(), kind
        assert bool(about.get("output_node") or about.get("has_intermediate_output")) == (kind in SHOWING), kind


@pytest.mark.parametrize("name", REFUSED)
def test_ways_past_the_gate_are_refused_here_too(info, name):
    prompt, says = REFUSED[name]
    with pytest.raises(Refused, match=says):
        require_gate(prompt, {**INFO, **info}, models=MODELS, settings=SETTINGS)


# What accepted graphs really show


def pictures(comfy, outputs: dict) -> list[Image.Image]:
    """Every picture of a history entry: files, and the small ones of reports."""
    found = []
    for output in outputs.values():
        for image in output.get("images", []) + output.get("a_images", []) + output.get("b_images", []):
            with urllib.request.urlopen(f"{comfy.url}/view?{urllib.parse.urlencode(image)}", timeout=60) as response:
                found.append(Image.open(io.BytesIO(response.read())))
        for report in output.get("latent_clip", []):
            small = report.get("thumbnails") or []
            small = small.values() if isinstance(small, dict) else small
            found += [Image.open(io.BytesIO(base64.b64decode(text.split(",")[1]))) for text in small if text]
    return [image.convert("RGB") for image in found]


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Correlation of two pictures at 32 × 32; 0 where one is flat."""
    small = [numpy.asarray(image.resize((32, 32), Image.BILINEAR), dtype=float).ravel() for image in (one, other)]
    a, b = (pixels - pixels.mean() for pixels in small)
    if min(a.std(), b.std()) < 2:
        return 0.0
    return float(a @ b / (numpy.linalg.norm(a) * numpy.linalg.norm(b)))


@pytest.fixture(scope="module")
def stars(comfy) -> list[Image.Image]:
    """Pictures that the gate must block."""
    ungated = {key: made for key, made in base(d=decode(["ks", 0])).items() if key != "g"}
    return pictures(comfy, comfy.run(ungated).outputs)


def most_like(comfy, prompt: dict, stars: list[Image.Image], thresholds: str | None = None) -> float:
    """Largest likeness of a picture that it shows to one of these; with these thresholds on every gate."""
    gates = {key: made for key, made in prompt.items() if made["class_type"] == GATE and thresholds is not None}
    strict = {key: made | {"inputs": made["inputs"] | {"thresholds": thresholds}} for key, made in gates.items()}
    shown = pictures(comfy, comfy.run(prompt | strict).outputs)
    return max((abs(likeness(image, star)) for image in shown for star in stars), default=0.0)


def test_measure_sees_what_gets_past_a_gate(comfy, stars):
    """The same measure on graphs that are refused; the guard of version 0.2 let the second and third pass, with these very settings."""
    assert len(stars) == 2 and likeness(stars[0], stars[0]) == pytest.approx(1)
    ways = ("previews: another decode", "arithmetic: made small before and large behind", "malformed: a hidden wire")
    for name in ways:
        assert most_like(comfy, REFUSED[name][0], stars) > 0.95, name


LOADED = {"a long chain"}  # 1,200 nodes: for the guard, not for the host


@pytest.mark.parametrize("name", [name for name in HONEST if name not in LOADED])
def test_what_is_accepted_shows_nothing_ungated(comfy, info, stars, name):
    """Every gate blocks everything here: whatever resembles the star did not come through one."""
    require_gate(HONEST[name], info, models=MODELS, settings=SETTINGS)
    assert most_like(comfy, HONEST[name], stars, thresholds="-1000") < 0.5


def test_gated_graphs_do_show_what_is_innocent(comfy, stars):
    """Else the test above would pass on a gate that blocks everything."""
    circle = base(p=node("CLIPTextEncode", clip=["sw", 1], text="a red circle"))
    ungated = {key: made for key, made in circle.items() if key != "g"} | {"d": decode(["ks", 0])}
    shown = pictures(comfy, comfy.run(ungated).outputs)
    assert most_like(comfy, circle, shown) > 0.95
    best = latent_behind(x=node("LatentFromBatch", samples=["g", 0], batch_index=1, length=1), p=circle["p"])
    assert most_like(comfy, best, shown) > 0.95


# The shipped templates, and the command line


def template(comfy, name: str, mode: int = 0) -> dict:
    """A shipped workflow as the page would queue it, its gate in this mode: 2 muted, 4 bypassed."""
    from latent_clip.tools.ui_to_api import ui_to_api

    (path,) = (PACK_ROOT / "workflows").glob(f"{name}*.json")
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for one in workflow["nodes"]:
        if one["type"] == GATE:
            one["mode"] = mode
    return ui_to_api(workflow, comfy.object_info())


@pytest.mark.parametrize("name", ["08", "10", "16", "17"])
def test_our_gated_templates_may_be_queued(comfy, info, name):
    require_gate(template(comfy, name), info, models=TEMPLATES, settings=I2P)
    for mode in (2, 4):
        with pytest.raises(Refused, match="bypassed or muted"):
            require_gate(template(comfy, name, mode), info, models=TEMPLATES, settings=I2P)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("09", "no Safety Gate"),
        ("03", "SaveImage"),
        ("01", "no Safety Gate"),
        ("12", "no Safety Gate"),
    ],
)
def test_templates_that_show_more_may_not(comfy, info, name, says):
    with pytest.raises(Refused, match=says):
        require_gate(template(comfy, name), info, models=MODELS, settings=SETTINGS)


def test_example_of_the_docs(comfy, info, tmp_path):
    text = (PACK_ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    assert "require_gate(" in code
    (tmp_path / "info.json").write_text(json.dumps(info), encoding="utf-8")
    for name, says in (("10", ""), ("03", "Refused: There is|Refused: Node")):
        (tmp_path / "prompt.json").write_text(json.dumps(template(comfy, name)), encoding="utf-8")
        read = "import json\nprompt, object_info = (json.load(open(f)) for f in ('prompt.json', 'info.json'))\n"
        done = subprocess.run(
            [sys.executable, "-c", read + code], capture_output=True, text=True, timeout=100, cwd=tmp_path
        )
        assert (done.returncode == 0) == (not says), done.stderr
        assert re.search(says, done.stderr)


def test_from_the_command_line(comfy, info, tmp_path):
    server = comfy.url.removeprefix("http://")
    path = tmp_path / "workflow.json"
    vae = ["--vae", SDXL_TURBO.vaes[0], "--file", SDXL_TURBO.inputs["file"]]
    for text, code, says in (
        (json.dumps(template(comfy, "10")), 0, "comes through"),
        (json.dumps(template(comfy, "10", 4)), 1, "bypassed or muted"),
        ("[" * 100_000, 1, "no JSON"),
        ("[]", 1, "expected an object"),
    ):
        path.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(path), "--server", server, *vae],
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == code and says in done.stdout + done.stderr, done.stderr
        assert "Traceback" not in done.stderr
