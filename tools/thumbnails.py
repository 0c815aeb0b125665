"""Draw workflows/*.jpg, the pictures in the template browser, and those of docs/tour.md: python . -m tools.thumbnails

Runs every template in a real ComfyUI and shows what it gives, not its graph. Those that need downloaded models run with
Shapes World in their place, and say so. Needs what `./dev test host` sets up.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance

from ..tests.host_server import TestServer
from .comfy_server import PACK_ROOT, ComfyServer, Result
from .contact_sheet import GOLD, INK, LINE, PAPER, RED, draw_mark, font

SIZE = (800, 450)
CAPTION, EDGE = 84, 14  # height of the caption; space around pictures
LETTERS = 46  # 14 pixels where the template browser shows the picture 240 pixels wide
WORLD = "world"


@dataclass(frozen=True)
class Picture:
    """Inputs of a template's run, and the function that draws its result.

    Attributes:
        caption: at most 32 letters.
        text: the prompt, in the words of Shapes World; "" lets it draw what it likes.
        changes: inputs by class, where Shapes World needs others than the template has.
    """

    caption: str
    layout: str
    text: str
    seed: int = 1
    changes: dict[str, dict] | None = None


STARS = {"concepts": "shapes-world-stars", "thresholds": "3"}
STEPS = {"steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
RENO = {"LatentCLIPOptimizeNoise": {"iterations": 20}, "EmptyLatentImage": {"batch_size": 4}}
SEARCH = {"BasicScheduler": {"steps": 16}}
GATED = {
    "KSampler": STEPS,
    "LatentCLIPSafetyGate": {"concepts": "shapes-world-stars", "on_block": "drop"},
    "EmptyLatentImage": {"batch_size": 8},
}
# The nodes that load → the output of Load Shapes World that their first one becomes; those that shift noise levels go with the model.
LOADERS = {
    "CheckpointLoaderSimple": 0, "LatentCLIPLoader": 3, "LatentCLIPShapesWorld": 0, "UNETLoader": 0, "ModelSamplingAuraFlow": 0,
    "ModelSamplingSD3": 0, "CLIPLoader": 1, "DualCLIPLoader": 1, "VAELoader": 2, "LatentCLIPPixelLoader": 3,
}  # fmt: skip
PICTURES = {
    "01 Try it now": Picture("8 judged as latents, 2 decoded", "ranked", "a blue star left of a red circle"),
    "02 Optimize noise, demo": Picture("The noise, before and after", "before", "a red triangle right of a blue cross"),
    "03 Safety, demo": Picture("Plain, guided, gated", "safety", "a yellow star"),
    "04 Pick the best": Picture("Best of a batch (demo world)", "ranked", "a green triangle below a purple cross", seed=3),
    "05 Sort by content": Picture(
        "“left of”, and the rest (demo)", "sorted", "a blue star and a red circle", changes={"LatentCLIPClassify": {
            "labels": "\n".join(f"a blue star {where} a red circle" for where in ("left of", "right of", "above", "below")),
            "route": "a blue star left of a red circle", "templates": "{}",
        }},
    ),
    "06 Optimize noise": Picture(
        "Before and after (demo world)", "before", "a purple star above a green square", changes=RENO
    ),
    "07 Optimize noise, then many steps": Picture(
        "1 step, then 8 (demo world)", "multistep", "an orange star below a purple circle",
        changes={**RENO, "EmptyLatentImage": {"batch_size": 1}},
    ),
    "08 Safety guidance": Picture(
        "Watched for stars (demo world)", "guided", "a red star",
        changes={"LatentCLIPSafetyGuidance": STARS, "LatentCLIPSafetyGate": {"concepts": STARS["concepts"]}, "KSampler": STEPS},
    ),
    "09 Optimize noise, away from harm": Picture(
        "Fits better, no star (demo world)", "before", "a yellow triangle below a purple cross",
        changes={**RENO, "LatentCLIPAvoidReward": {"concepts": STARS["concepts"]}},
    ),
    "10 Safety gate for a service": Picture(
        "Blocked, not decoded (demo world)", "gated", "", seed=8,
        changes={"KSampler": STEPS, "LatentCLIPSafetyGate": {"concepts": STARS["concepts"]}},
    ),
    "11 Search, demo": Picture("12 drafts, 2 finished", "searched", "a green star above a red square", changes=SEARCH),
    "12 Pick by hand, demo": Picture("9 drafts, you choose 2", "searched", "a blue star and a yellow square", seed=2, changes=SEARCH),
    "13 Search": Picture("8 drafts, best 2 (demo world)", "searched", "an orange cross left of a blue circle", changes=SEARCH),
    "14 Search, then optimize": Picture(
        "Found, optimized (demo world)", "optimized", "a red triangle below a green circle", changes={"BasicScheduler": {"steps": 4}},
    ),
    "15 Flux schnell, optimize noise": Picture(
        "Before and after (demo world)", "before", "a yellow circle right of a green star", seed=4, changes=RENO
    ),
    "16 Qwen-Image, safety gate": Picture("Behind a gate (demo world)", "gated", "", seed=11, changes=GATED),
    "17 Wan clip, safety gate": Picture("Each one judged (demo world)", "gated", "", seed=5, changes=GATED),
    "18 Z-Image, pick the best": Picture(
        "Best of a batch (demo world)", "ranked", "a red square above a blue triangle", seed=2,
        changes={"KSampler": {"steps": 1}, "EmptyLatentImage": {"batch_size": 8}, "LatentCLIPSelect": {"keep": 2}},
    ),
    "19 Z-Image, search": Picture("6 drafts, best 2 (demo world)", "searched", "a purple star below a yellow square", changes=SEARCH),
}  # fmt: skip

TOUR = {  # the tour shows what the first three templates give
    "01 Try it now": "tour-best", "02 Optimize noise, demo": "tour-noise", "03 Safety, demo": "tour-safety"
}  # fmt: skip


def on_shapes_world(prompt: dict, picture: Picture) -> dict:
    """The prompt of a template with Shapes World in the place of its checkpoints, and of what only they understand."""
    first = {key: LOADERS[node["class_type"]] for key, node in prompt.items() if node["class_type"] in LOADERS}
    turbo = {"sampler_name": "euler", "scheduler": "simple"}
    made = {WORLD: {"class_type": "LatentCLIPShapesWorld", "inputs": {}}}
    for key, node in prompt.items():
        if key in first:
            continue
        kind, inputs = node["class_type"], dict(node["inputs"])
        for name, value in inputs.items():
            if isinstance(value, list) and value[0] in first:
                inputs[name] = [WORLD, first[value[0]] + value[1]]
        if kind == "SDTurboScheduler":
            kind, inputs = "BasicScheduler", {**inputs, "scheduler": "simple"}
        elif kind == "BasicScheduler" and inputs["steps"] > 1:
            inputs |= {"steps": 8, "scheduler": "normal"}
        elif kind == "CFGGuider":
            inputs["cfg"] = 3.0
        elif kind == "KSampler":
            inputs |= {"seed": picture.seed} | (turbo if inputs["steps"] == 1 else {})
        elif kind == "RandomNoise":
            inputs["noise_seed"] = picture.seed
        elif kind.startswith("Empty"):  # of a picture, or of a clip, which becomes a batch
            kind, inputs = "EmptyLatentImage", {"width": 64, "height": 64, "batch_size": inputs["batch_size"]}
        elif kind == "SaveAnimatedWEBP":
            kind, inputs = "SaveImage", {"images": inputs["images"], "filename_prefix": "clip"}
        elif kind == "ImageScaleBy":
            inputs["scale_by"] = 1.0
        elif kind == "PrimitiveStringMultiline":
            inputs["value"] = picture.text
        elif kind == "CLIPTextEncode" and node["_meta"]["title"] == "Instead":
            inputs["text"] = "a green circle"
        made[key] = {**node, "class_type": kind, "inputs": inputs | (picture.changes or {}).get(kind, {})}
    return made


def node_of(prompt: dict, kind: str) -> str:
    """The id of the first node of a class."""
    return next(key for key, node in prompt.items() if node["class_type"] == kind)


def also_show(prompt: dict, latent: list) -> str:
    """Decode and show what the template leaves undecoded; returns the node that shows it."""
    prompt["also"] = {"class_type": "VAEDecode", "inputs": {"samples": latent, "vae": [WORLD, 2]}}
    prompt["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["also", 0]}}
    return "shown"


def pictures_of(server: ComfyServer, result: Result, node: str) -> list[Image.Image]:
    """Pictures that a node saved or showed."""
    found = []
    for image in result.outputs.get(node, {}).get("images", []):
        with Image.open(server.base / image["type"] / image["subfolder"] / image["filename"]) as opened:
            found.append(opened.convert("RGB"))
    return found


def run(server: ComfyServer, name: str, picture: Picture) -> Image.Image:
    """Run a template on Shapes World and draw what it gave."""
    prompt = on_shapes_world(server.workflow_to_prompt(PACK_ROOT / "workflows" / f"{name}.json"), picture)
    saves = [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]
    if picture.layout == "ranked":
        shown = also_show(prompt, [node_of(prompt, "LatentCLIPSelect"), 1])
    elif picture.layout == "searched" and len(saves) == 1:
        shown = also_show(prompt, [node_of(prompt, "LatentCLIPSearch"), 1])
    elif picture.layout in ("guided", "gated"):
        plain = node_of(prompt, "KSampler")
        if picture.layout == "guided":  # the same noise without the guidance
            model = prompt[node_of(prompt, "LatentCLIPSafetyGuidance")]["inputs"]["model"]
            inputs = prompt[plain]["inputs"] | {"model": model}
            plain, prompt["plain"] = "plain", {"class_type": "KSampler", "inputs": inputs}
        shown = also_show(prompt, [plain, 0])
    elif picture.layout == "multistep":
        shown = also_show(prompt, [node_of(prompt, "LatentCLIPOptimizeNoise"), 0])
    else:
        shown = ""
    result = server.run(prompt)
    saved = [pictures_of(server, result, key) for key in saves]
    others = pictures_of(server, result, shown)
    if picture.layout == "before":
        item = most_improved(result.outputs[node_of(prompt, "LatentCLIPOptimizeNoise")]["latent_clip"][0])
        return side_by_side(picture.caption, [saved[0][item], saved[1][item]], arrow=True)
    if picture.layout == "multistep":
        return side_by_side(picture.caption, [others[0], saved[0][0]], arrow=True)
    if picture.layout == "guided":
        return side_by_side(picture.caption, [others[0], saved[0][0]], arrow=True)
    if picture.layout == "safety":
        return side_by_side(picture.caption, [batch[0] for batch in saved])
    if picture.layout == "ranked":
        return ranked(picture.caption, saved[0], others)
    if picture.layout == "searched":
        return ranked(picture.caption, saved[0], others or saved[1])
    if picture.layout == "optimized":
        return side_by_side(picture.caption, [batch[0] for batch in saved], arrow=True)
    if picture.layout == "sorted":
        return two_bins(picture.caption, saved[0], saved[1])
    blocked = result.outputs[node_of(prompt, "LatentCLIPSafetyGate")]["latent_clip"][0]["blocked"]
    return grid(picture.caption, list(zip(others, blocked, strict=True)))


def most_improved(trace: dict) -> int:
    """The item of a batch whose reward rose most."""
    first = trace["iterations"][0]["rewards"]
    return max(range(len(first)), key=lambda item: trace["best"][item] - first[item])


def sheet(caption: str) -> Image.Image:
    """An empty picture with its caption."""
    made = Image.new("RGB", SIZE, PAPER)
    draw = ImageDraw.Draw(made)
    draw.rectangle((0, SIZE[1] - CAPTION, *SIZE), fill=INK)
    if (width := draw.textlength(caption, font(LETTERS))) > SIZE[0] - 2 * EDGE:
        raise ValueError(
            f"the caption {caption!r} is {width:.0f} pixels wide, and {SIZE[0] - 2 * EDGE} fit: shorten it"
        )
    draw.text((SIZE[0] / 2, SIZE[1] - CAPTION / 2), caption, PAPER, font(LETTERS), anchor="mm")
    return made


def place(
    made: Image.Image, image: Image.Image, corner: tuple[int, int], edge: int, frame: tuple | None = None
) -> None:
    """Put an enlarged picture on the sheet."""
    x, y = corner
    if frame:
        ImageDraw.Draw(made).rounded_rectangle((x - 7, y - 7, x + edge + 6, y + edge + 6), 8, frame)
    made.paste(image.resize((edge, edge), Image.Resampling.LANCZOS), corner)
    if not frame:
        ImageDraw.Draw(made).rectangle((x, y, x + edge - 1, y + edge - 1), outline=LINE, width=2)


def side_by_side(caption: str, images: list[Image.Image], arrow: bool = False) -> Image.Image:
    """Two or three large pictures, in a row."""
    made = sheet(caption)
    room = SIZE[1] - CAPTION
    gap = 70 if arrow else EDGE + 6
    edge = min(room - 2 * EDGE, (SIZE[0] - 2 * EDGE - gap * (len(images) - 1)) // len(images))
    left, top = (SIZE[0] - len(images) * edge - (len(images) - 1) * gap) // 2, (room - edge) // 2
    for i, image in enumerate(images):
        x = left + i * (edge + gap)
        place(made, image, (x, top), edge)
        if arrow and i:
            middle, tip = room // 2, x - 12
            ImageDraw.Draw(made).polygon([(tip - 44, middle - 34), (tip - 44, middle + 34), (tip, middle)], fill=GOLD)
    return made


def ranked(caption: str, kept: list[Image.Image], rest: list[Image.Image]) -> Image.Image:
    """The kept two, large and framed, and the others, small and pale."""
    made, edge, small = sheet(caption), 250, 104
    top = (SIZE[1] - CAPTION - edge) // 2
    for i, image in enumerate(kept):
        place(made, image, (EDGE + 4 + i * (edge + 20), top), edge, GOLD)
    left = EDGE + 4 + 2 * (edge + 20) + 2
    columns, step = 2, small + 8
    for i, image in enumerate(rest[:6]):
        corner = (left + i % columns * step, (SIZE[1] - CAPTION - 3 * step + 8) // 2 + i // columns * step)
        place(made, ImageEnhance.Color(image).enhance(0.25), corner, small)
    return made


def two_bins(caption: str, matched: list[Image.Image], rest: list[Image.Image]) -> Image.Image:
    """Pictures that matched the label on the left, framed; all others on the right."""
    made, edge = sheet(caption), 158
    step, room = edge + 16, SIZE[1] - CAPTION
    for side, images in enumerate((matched[:4], rest[:4])):
        left = EDGE + 10 + side * (2 * step + 50)
        for i, image in enumerate(images):
            corner = (left + i % 2 * step, (room - 2 * step + 16) // 2 + i // 2 * step)
            place(made, image, corner, edge, None if side else GOLD)
    return made


def grid(caption: str, images: list[tuple[Image.Image, bool]]) -> Image.Image:
    """A batch of eight; what was blocked is pale and crossed out."""
    made, edge = sheet(caption), 164
    step = edge + 14
    left, top = (SIZE[0] - 4 * step + 14) // 2, (SIZE[1] - CAPTION - 2 * step + 14) // 2
    for i, (image, blocked) in enumerate(images):
        x, y = left + i % 4 * step, top + i // 4 * step
        place(made, ImageEnhance.Brightness(image).enhance(0.6) if blocked else image, (x, y), edge)
        if blocked:
            draw = ImageDraw.Draw(made)
            for a, b in (((24, 24), (140, 140)), ((24, 140), (140, 24))):
                draw.line([(x + a[0], y + a[1]), (x + b[0], y + b[1])], RED, 14)
        else:
            draw_mark(ImageDraw.Draw(made), (x + edge - 44, y + 6), 38, True)
    return made


def main() -> None:
    """Draw all of them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 02; default: all")
    names = parser.parse_args().names
    tree = Path(os.environ.get("COMFYUI_PATH", PACK_ROOT / ".cache" / "comfyui" / "0.30.0"))
    with TestServer(tree, Path(tempfile.mkdtemp())) as server:
        server.offer_workflow_files()
        for name, picture in PICTURES.items():
            if not names or name.startswith(tuple(names)):
                drawn = run(server, name, picture)
                drawn.save(PACK_ROOT / "workflows" / f"{name}.jpg", quality=88, optimize=True)
                if name in TOUR:
                    drawn.save(PACK_ROOT / "docs" / "images" / f"{TOUR[name]}.jpg", quality=88, optimize=True)
                print(name, flush=True)


if __name__ == "__main__":
    main()
