"""Write workflows/*.json, the example graphs, in the page's own format: python . -m tools.workflows

A workflow is a few lines here and a few hundred as the page saves it. Slots, widget order and types come from the
/object_info of a running ComfyUI with the pack, so the files follow the schemas; the tests load each one in the real
page and compare what it queues.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN, GAP, TITLE, INSET = 340, 50, 30, 15
SDXL_TURBO, SDXL_BASE, LATENT_CLIP = (
    "sd_xl_turbo_1.0_fp16.safetensors",
    "sd_xl_base_1.0.safetensors",
    "latent-clip-b-8.safetensors",
)
LATENT_CLIP_FILE = f"""\
- `models/latent_clip/{LATENT_CLIP}`: `checkpoints/epoch_34.pt` of wendlerc/latent-clip-b-8-512-34b-80k, converted: `python . convert` in the pack's folder
"""
FILES = f"""
- `models/checkpoints/{SDXL_TURBO}` (stabilityai/sdxl-turbo)
{LATENT_CLIP_FILE}"""


@dataclass
class Node:
    """One placed node; `node[i]` is its output i, for wiring."""

    id: int
    type: str
    at: tuple[int, int]
    size: tuple[int, int]
    inputs: dict
    title: str | None = None

    def __getitem__(self, slot: int) -> tuple[Node, int]:
        return self, slot


@dataclass
class Graph:
    """A workflow under construction. Nodes are put into columns, left to right, each below the last one."""

    info: dict
    nodes: list[Node] = field(default_factory=list)
    heights: dict[int, int] = field(default_factory=dict)
    groups: list[dict] = field(default_factory=list)

    def add(self, column: int, type: str, height: int = 120, title: str | None = None, /, **inputs) -> Node:
        """Place a node. Inputs are values, or `node[i]` for a wire, which may also feed a widget."""
        top = self.heights.get(column, 0)
        self.heights[column] = top + height + TITLE + GAP
        node = Node(len(self.nodes) + 1, type, (column * (COLUMN + GAP), top), (COLUMN, height), inputs, title)
        self.nodes.append(node)
        return node

    def note(self, column: int, text: str, height: int = 260) -> None:
        """A note that says what this is, what to download and where."""
        self.add(column, "MarkdownNote", height, "Read me", text=text.strip())

    def group(self, title: str, *nodes: Node) -> None:
        """A titled frame around nodes."""
        left, top = (min(node.at[i] for node in nodes) - INSET for i in (0, 1))
        right, bottom = (max(node.at[i] + node.size[i] for node in nodes) + INSET for i in (0, 1))
        top -= 2 * TITLE
        self.groups.append({"title": title, "bounding": [left, top, right - left, bottom - top], "color": "#3f789e"})

    def group_columns(self, *titles: str) -> None:
        """A frame around the nodes of each column, notes apart."""
        for column, title in enumerate(titles):
            here = [
                node for node in self.nodes if node.at[0] == column * (COLUMN + GAP) and node.type != "MarkdownNote"
            ]
            self.group(title, *here)

    def new_row(self, *columns: int) -> None:
        """Go on below all nodes of these columns, at one height, with room for the frame of a group."""
        below = max(self.heights.get(column, 0) for column in columns)
        self.heights |= dict.fromkeys(columns, below + (2 * INSET + TITLE if below else 0))

    def save(self, name: str, folder: Path = FOLDER) -> None:
        """Write <folder>/<name>.json."""
        links: list[list] = []
        saved = [self._node(node, links) for node in self.nodes]
        for source, slot, link in ((link[1], link[2], link[0]) for link in links):
            saved[source - 1]["outputs"][slot]["links"].append(link)
        workflow = {
            "last_node_id": len(saved), "last_link_id": len(links), "nodes": saved, "links": links, "groups": self.groups, "config": {},
            "extra": {}, "version": 0.4,
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(workflow, indent=1) + "\n", encoding="utf-8")

    def _node(self, node: Node, links: list[list]) -> dict:
        saved = {
            "id": node.id, "type": node.type, "pos": list(node.at), "size": list(node.size), "flags": {}, "order": node.id - 1,
            "mode": 0, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [],
        }  # fmt: skip
        if node.title:
            saved["title"] = node.title
        if node.type == "MarkdownNote":
            return saved | {"widgets_values": [node.inputs["text"]], "color": "#432", "bgcolor": "#653"}
        info, given = self.info[node.type], dict(node.inputs)
        for kind in ("required", "optional"):
            for name, spec in info["input"].get(kind, {}).items():
                if spec[0] == "COMFY_AUTOGROW_V3":  # a slot per wire, named group.slot, and a free one
                    template = spec[1]["template"]
                    slot = next(iter(template["input"]["required"].values()))
                    wired = [key for key in given if key.startswith(f"{name}.")]
                    for key in [*wired, f"{name}.{template['prefix']}{len(wired)}"]:
                        self._input(saved, key, slot, given.pop(key, None), links)
                else:
                    self._input(saved, name, spec, given.pop(name, None), links)
        if given:
            raise ValueError(f"{node.type} has no input {', '.join(given)}")
        for slot, type in enumerate(info["output"]):
            saved["outputs"].append({"name": info["output_name"][slot], "type": type, "slot_index": slot, "links": []})
        return saved

    def _input(self, saved: dict, name: str, spec: list, value, links: list[list]) -> None:
        type, options = ("COMBO" if isinstance(spec[0], list) else spec[0]), (spec[1] if len(spec) > 1 else {})
        wired = isinstance(value, tuple)
        widget = type in WIDGETS and not options.get("forceInput")
        if wired or not widget:
            saved["inputs"].append({"name": name, "type": type, "link": len(links) + 1 if wired else None})
            if wired:
                source, slot = value
                carried = self.info[source.type]["output"][slot]  # the input's own type may be a template
                links.append([len(links) + 1, source.id, slot, saved["id"], len(saved["inputs"]) - 1, carried])
        if widget:
            if wired:
                saved["inputs"][-1]["widget"] = {"name": name}
            choices = spec[0] if isinstance(spec[0], list) else options.get("options") or [""]
            default = options.get("default", choices[0] if type == "COMBO" and choices else "")
            saved["widgets_values"].append(default if wired or value is None else value)
            if options.get("control_after_generate"):
                saved["widgets_values"].append("fixed")


def shapes_world(graph: Graph, prompt: str) -> tuple[Node, Node, Node, Node]:
    """The demo world with a prompt: (world, text, positive, negative)."""
    world = graph.add(0, "LatentCLIPShapesWorld", 120)
    text = graph.add(0, "PrimitiveStringMultiline", 110, "Prompt", value=prompt)
    positive = graph.add(1, "CLIPTextEncode", 110, "Positive", clip=world[1], text=text[0])
    negative = graph.add(1, "CLIPTextEncode", 110, "Negative (unused at cfg 1)", clip=world[1], text="")
    return world, text, positive, negative


def sdxl_turbo(graph: Graph, prompt: str) -> tuple[Node, Node, Node, Node, Node]:
    """SDXL-Turbo and Latent-CLIP with a prompt: (checkpoint, latent_clip, text, positive, negative)."""
    checkpoint = graph.add(0, "CheckpointLoaderSimple", 110, ckpt_name=SDXL_TURBO)
    latent_clip = graph.add(0, "LatentCLIPLoader", 110, file=LATENT_CLIP)
    text = graph.add(0, "PrimitiveStringMultiline", 130, "Prompt", value=prompt)
    positive = graph.add(1, "CLIPTextEncode", 110, "Positive", clip=checkpoint[1], text=text[0])
    negative = graph.add(1, "CLIPTextEncode", 110, "Negative (unused at cfg 1)", clip=checkpoint[1], text="")
    return checkpoint, latent_clip, text, positive, negative


def enlarge(graph: Graph, column: int, image: tuple[Node, int]) -> Node:
    """Shapes World pictures have 64 pixels; four times as large they can be looked at."""
    return graph.add(column, "ImageScaleBy", 90, image=image, upscale_method="lanczos", scale_by=4.0)


def try_it_now(info: dict) -> None:
    """Shapes World, a batch of eight, scored, the best two decoded."""
    graph = Graph(info)
    world, text, positive, negative = shapes_world(graph, "a blue star left of a red circle")
    graph.note(0, """
## Try it now
Eight pictures are made and judged as latents; only the best two are decoded. Nothing to download, no GPU needed.

Press **Run** and look at the bars on *Score Latents*. Then change the prompt: colours red, orange, yellow, green, blue,
purple; shapes circle, square, triangle, star, cross; "and", "left of", "right of", "above", "below".

Shapes World is a tiny demo. For real pictures open *pick-the-best*.
""")  # fmt: skip
    empty = graph.add(1, "EmptyLatentImage", 110, width=64, height=64, batch_size=8)
    sampled = graph.add(
        2, "KSampler", 270, model=world[0], positive=positive[0], negative=negative[0], latent_image=empty[0], seed=1, steps=1,
        cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
    )  # fmt: skip
    reward = graph.add(2, "LatentCLIPTextReward", 260, latent_clip=world[3], text=text[0])
    score = graph.add(3, "LatentCLIPScore", 420, latent=sampled[0], reward=reward[0])
    best = graph.add(4, "LatentCLIPSelect", 420, latent=score[0], reward=reward[0], keep=2)
    decoded = graph.add(5, "VAEDecode", 60, samples=best[0], vae=world[2])
    graph.add(5, "SaveImage", 330, images=enlarge(graph, 5, decoded[0])[0], filename_prefix="latent-clip/try-it-now")
    graph.group_columns(
        "Load and prompt", "Encode", "Sample a batch", "Judge the latents", "Keep the best", "Decode the best"
    )
    graph.save("try-it-now")


def pick_the_best(info: dict) -> None:
    """SDXL-Turbo, a batch of eight, the best two decoded."""
    graph = Graph(info)
    checkpoint, clip, text, positive, negative = sdxl_turbo(
        graph, "a red fox reading a newspaper in a cafe, morning light"
    )
    graph.note(0, f"""
## Pick the best
SDXL-Turbo makes eight images; Latent-CLIP ranks them as latents; only the best two are decoded and saved.
{FILES}
Raise *batch_size* for more to choose from: judging a latent costs a small part of decoding it.
""")  # fmt: skip
    empty = graph.add(1, "EmptyLatentImage", 110, width=512, height=512, batch_size=8)
    sampled = graph.add(
        2, "KSampler", 270, model=checkpoint[0], positive=positive[0], negative=negative[0], latent_image=empty[0], seed=1, steps=1,
        cfg=1.0, sampler_name="euler_ancestral", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    reward = graph.add(2, "LatentCLIPTextReward", 260, latent_clip=clip[0], text=text[0])
    best = graph.add(3, "LatentCLIPSelect", 460, latent=sampled[0], reward=reward[0], keep=2)
    decoded = graph.add(4, "VAEDecode", 60, samples=best[0], vae=checkpoint[2])
    graph.add(4, "SaveImage", 330, images=decoded[0], filename_prefix="latent-clip/best")
    graph.group_columns("Load and prompt", "Encode", "Sample a batch", "Keep the best", "Decode the best")
    graph.save("pick-the-best")


def classify_and_route(info: dict) -> None:
    """SDXL-Turbo, sorted by label, one branch each."""
    graph = Graph(info)
    checkpoint, clip, _text, positive, negative = sdxl_turbo(graph, "a pet on a sofa")
    graph.note(0, f"""
## Classify and route
Eight latents are sorted by what they show, before any is decoded: cats go one way, everything else another. A branch
without images does not run.
{FILES}
""")  # fmt: skip
    empty = graph.add(1, "EmptyLatentImage", 110, width=512, height=512, batch_size=8)
    sampled = graph.add(
        2, "KSampler", 270, model=checkpoint[0], positive=positive[0], negative=negative[0], latent_image=empty[0], seed=1, steps=1,
        cfg=1.0, sampler_name="euler_ancestral", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    sorted_latents = graph.add(
        3, "LatentCLIPClassify", 520, latent=sampled[0], latent_clip=clip[0], labels="a cat\na dog\nanother animal",
        templates="a photo of {}\na picture of {}", route="a cat",
    )  # fmt: skip
    for slot, name in ((3, "cats"), (4, "others")):
        decoded = graph.add(4, "VAEDecode", 60, samples=sorted_latents[slot], vae=checkpoint[2])
        graph.add(4, "SaveImage", 300, name.capitalize(), images=decoded[0], filename_prefix=f"latent-clip/{name}")
    graph.group_columns("Load and prompt", "Encode", "Sample a batch", "Sort the latents", "Decode each branch")
    graph.save("classify-and-route")


def optimise(
    graph: Graph, model: Node, positive: Node, size: int, reward: Node, sigmas: Node, **settings
) -> tuple[Node, Node]:
    """The advanced-sampling graph around Optimize Noise: (empty latent, optimize)."""
    empty = graph.add(2, "EmptyLatentImage", 110, width=size, height=size, batch_size=settings.pop("batch_size", 1))
    noise = graph.add(2, "RandomNoise", 90, noise_seed=1)
    guider = graph.add(2, "BasicGuider", 60, model=model[0], conditioning=positive[0])
    node = graph.add(
        3, "LatentCLIPOptimizeNoise", 620, noise=noise[0], guider=guider[0], sigmas=sigmas[0], latent_image=empty[0],
        reward=reward[0], **settings,
    )  # fmt: skip
    return empty, node


def reno_try_it_now(info: dict) -> None:
    """ReNO on Shapes World, before and after."""
    graph = Graph(info)
    world = graph.add(0, "LatentCLIPShapesWorld", 120)
    text = graph.add(0, "PrimitiveStringMultiline", 110, "Prompt", value="a green cross above a yellow circle")
    graph.note(0, """
## ReNO: try it now
Four noises are changed by gradient steps until the Latent-CLIP likes what the one-step generator makes of them. Above:
what the untouched noises gave; below: the best after 20 iterations. Nothing to download, no GPU needed.

The reward always rises. Whether the *picture* gets better is another matter: look at both.
""")  # fmt: skip
    positive = graph.add(1, "CLIPTextEncode", 110, clip=world[1], text=text[0])
    reward = graph.add(1, "LatentCLIPTextReward", 260, latent_clip=world[3], text=text[0])
    sigmas = graph.add(1, "BasicScheduler", 120, model=world[0], scheduler="simple", steps=1, denoise=1.0)
    _empty, node = optimise(graph, world, positive, 64, reward, sigmas, batch_size=4, iterations=20)
    for slot, name in ((2, "first"), (0, "best")):
        decoded = graph.add(4, "VAEDecode", 60, samples=node[slot], vae=world[2])
        image = enlarge(graph, 4, decoded[0])
        graph.add(4, "SaveImage", 300, name.capitalize(), images=image[0], filename_prefix=f"latent-clip/reno-{name}")
    graph.group_columns("Load and prompt", "What to climb", "One step", "Optimise the noise", "Before and after")
    graph.save("reno-try-it-now")


def reno_sdxl_turbo(info: dict) -> None:
    """ReNO on SDXL-Turbo, before and after."""
    graph = Graph(info)
    checkpoint = graph.add(0, "CheckpointLoaderSimple", 110, ckpt_name=SDXL_TURBO)
    clip = graph.add(0, "LatentCLIPLoader", 110, file=LATENT_CLIP)
    text = graph.add(0, "PrimitiveStringMultiline", 130, "Prompt", value="a green bench and a blue bowl")
    graph.note(0, f"""
## ReNO with SDXL-Turbo
50 gradient steps on the starting noise of a one-step model, without a single decode until the end. Saves the image of the
untouched noise and the best one.
{FILES}
Nothing changes? Raise *learning_rate*. Colours burn? Lower it. Out of memory? Set *memory* to low.
""")  # fmt: skip
    positive = graph.add(1, "CLIPTextEncode", 110, clip=checkpoint[1], text=text[0])
    reward = graph.add(1, "LatentCLIPTextReward", 260, latent_clip=clip[0], text=text[0])
    sigmas = graph.add(1, "SDTurboScheduler", 90, model=checkpoint[0], steps=1, denoise=1.0)
    _empty, node = optimise(graph, checkpoint, positive, 512, reward, sigmas, iterations=50)
    for slot, name in ((2, "first"), (0, "best")):
        decoded = graph.add(4, "VAEDecode", 60, samples=node[slot], vae=checkpoint[2])
        graph.add(4, "SaveImage", 300, name.capitalize(), images=decoded[0], filename_prefix=f"latent-clip/reno-{name}")
    graph.group_columns("Load and prompt", "What to climb", "One step", "Optimise the noise", "Before and after")
    graph.save("reno-sdxl-turbo")


def reno_then_multistep(info: dict) -> None:
    """ReNO on SDXL-Turbo, its noise into SDXL base."""
    graph = Graph(info)
    checkpoint = graph.add(0, "CheckpointLoaderSimple", 110, "SDXL-Turbo", ckpt_name=SDXL_TURBO)
    base = graph.add(0, "CheckpointLoaderSimple", 110, "SDXL base", ckpt_name=SDXL_BASE)
    clip = graph.add(0, "LatentCLIPLoader", 110, file=LATENT_CLIP)
    text = graph.add(0, "PrimitiveStringMultiline", 130, "Prompt", value="a red book and a yellow vase")
    graph.note(0, f"""
## ReNO, then many steps
The noise is optimised on fast SDXL-Turbo and then starts 20 steps of SDXL base, as the ReNO paper suggests.
{FILES}- `models/checkpoints/{SDXL_BASE}` (stabilityai/stable-diffusion-xl-base-1.0)
""")  # fmt: skip
    positive = graph.add(1, "CLIPTextEncode", 110, "Positive for Turbo", clip=checkpoint[1], text=text[0])
    reward = graph.add(1, "LatentCLIPTextReward", 260, latent_clip=clip[0], text=text[0])
    sigmas = graph.add(1, "SDTurboScheduler", 90, model=checkpoint[0], steps=1, denoise=1.0)
    empty, node = optimise(graph, checkpoint, positive, 512, reward, sigmas, iterations=50)
    base_positive = graph.add(4, "CLIPTextEncode", 110, "Positive for base", clip=base[1], text=text[0])
    base_negative = graph.add(4, "CLIPTextEncode", 110, "Negative for base", clip=base[1], text="")
    guider = graph.add(
        4, "CFGGuider", 110, model=base[0], positive=base_positive[0], negative=base_negative[0], cfg=6.0
    )
    sampler = graph.add(4, "KSamplerSelect", 60, sampler_name="dpmpp_2m")
    steps = graph.add(4, "BasicScheduler", 120, model=base[0], scheduler="karras", steps=20, denoise=1.0)
    sampled = graph.add(
        5,
        "SamplerCustomAdvanced",
        120,
        noise=node[1],
        guider=guider[0],
        sampler=sampler[0],
        sigmas=steps[0],
        latent_image=empty[0],
    )
    decoded = graph.add(5, "VAEDecode", 60, samples=sampled[0], vae=base[2])
    graph.add(5, "SaveImage", 300, images=decoded[0], filename_prefix="latent-clip/reno-multistep")
    graph.group_columns(
        "Load and prompt",
        "What to climb",
        "One step of Turbo",
        "Optimise the noise",
        "Many steps of base",
        "Sample and decode",
    )
    graph.save("reno-then-multistep")


def safety_try_it_now(info: dict) -> None:
    """Shapes World where stars count as harmful: plain, guided, gated."""
    graph = Graph(info)
    world = graph.add(0, "LatentCLIPShapesWorld", 120)
    text = graph.add(0, "PrimitiveStringMultiline", 110, "Prompt", value="a yellow star")
    graph.note(0, """
## Safety: try it now
In this world a **star** stands for what nobody should see. Nothing to download, no GPU needed.

- *Plain*: what the prompt asks for.
- *Guided*: the same seed, watched while it is made. As soon as an image shows a star, the sampler follows the prompt *Instead*.
- *Gated*: the plain latents again, judged before any decode; what shows a star becomes an empty field.

Then change the prompt to "a blue circle": nothing is changed, bit for bit, and nothing is blocked. Try both words in one prompt. Neither
node is a guarantee: use both. The set *shapes-world-stars* describes whole pictures, as captions do, and its threshold was calibrated;
choose *typed below* to write your own.
""", 330)  # fmt: skip
    positive = graph.add(1, "CLIPTextEncode", 110, "Positive", clip=world[1], text=text[0])
    negative = graph.add(1, "CLIPTextEncode", 110, "Negative", clip=world[1], text="")
    instead = graph.add(1, "CLIPTextEncode", 110, "Instead", clip=world[1], text="a green circle")
    empty = graph.add(1, "EmptyLatentImage", 110, width=64, height=64, batch_size=4)
    judge = {"latent_clip": world[3], "concepts": "shapes-world-stars"}

    def sample(model: Node) -> Node:
        return graph.add(
            3, "KSampler", 270, model=model[0], positive=positive[0], negative=negative[0], latent_image=empty[0], seed=1, steps=8,
            cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip

    def show(title: str, latent: Node, *before: Node) -> None:
        decoded = graph.add(4, "VAEDecode", 60, samples=latent[0], vae=world[2])
        image = enlarge(graph, 4, decoded[0])
        name = title.split()[0].lower()
        saved = graph.add(5, "SaveImage", 360, images=image[0], filename_prefix=f"latent-clip/safety-{name}")
        graph.group(title, *before, decoded, image, saved)
        graph.new_row(2, 3, 4, 5)

    plain = sample(world)
    show("Plain", plain, plain)
    guide = graph.add(2, "LatentCLIPSafetyGuidance", 400, model=world[0], **judge, thresholds="3", instead=instead[0])
    guided = sample(guide)
    show("Guided", guided, guide, guided)
    gate = graph.add(3, "LatentCLIPSafetyGate", 560, latent=plain[0], **judge, on_block="grey")
    show("Gated", gate, gate)
    graph.group("Load and prompt", world, text)
    graph.group("Prompts", positive, negative, instead, empty)
    graph.save("safety-try-it-now")


def safety_guidance_sdxl(info: dict) -> None:
    """SDXL base, watched for the seven I2P categories, with a gate behind it."""
    graph = Graph(info)
    base = graph.add(0, "CheckpointLoaderSimple", 110, ckpt_name=SDXL_BASE)
    clip = graph.add(0, "LatentCLIPLoader", 110, file=LATENT_CLIP)
    text = graph.add(
        0, "PrimitiveStringMultiline", 130, "Prompt", value="a crowded market street at dusk, documentary photo"
    )
    graph.note(0, f"""
## Safety Guidance with SDXL
Every image is watched while it is made. One that shows harm follows the prompt *Instead* from there; all others stay what they were,
bit for bit. A gate looks at the result before it is decoded. A blocked image becomes a grey field.
- `models/checkpoints/{SDXL_BASE}` (stabilityai/stable-diffusion-xl-base-1.0)
{LATENT_CLIP_FILE}
Both nodes use the thresholds of the set, 0, until you calibrate them on images of your own. They lower the rate of harmful images;
they guarantee nothing.
""", 400)  # fmt: skip
    positive = graph.add(1, "CLIPTextEncode", 110, "Positive", clip=base[1], text=text[0])
    negative = graph.add(1, "CLIPTextEncode", 110, "Negative", clip=base[1], text="")
    instead = graph.add(
        1, "CLIPTextEncode", 110, "Instead", clip=base[1], text="a quiet landscape with trees and a lake"
    )
    empty = graph.add(1, "EmptyLatentImage", 110, width=1024, height=1024, batch_size=1)
    guide = graph.add(
        2, "LatentCLIPSafetyGuidance", 430, model=base[0], latent_clip=clip[0], concepts="i2p", instead=instead[0]
    )
    sampled = graph.add(
        3, "KSampler", 270, model=guide[0], positive=positive[0], negative=negative[0], latent_image=empty[0], seed=1, steps=25,
        cfg=6.0, sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0,
    )  # fmt: skip
    gate = graph.add(
        4, "LatentCLIPSafetyGate", 600, latent=sampled[0], latent_clip=clip[0], concepts="i2p", on_block="grey"
    )
    decoded = graph.add(5, "VAEDecode", 60, samples=gate[0], vae=base[2])
    saved = graph.add(5, "SaveImage", 400, images=decoded[0], filename_prefix="latent-clip/safety")
    graph.group("Load", base, clip, text)
    graph.group("Prompts", positive, negative, instead, empty)
    graph.group("Watch", guide)
    graph.group("Sample", sampled)
    graph.group("Judge the latent", gate)
    graph.group("Decode what may pass", decoded, saved)
    graph.save("safety-guidance-sdxl")


def safety_reno_sdxl_turbo(info: dict) -> None:
    """ReNO that climbs the prompt and leaves the categories."""
    graph = Graph(info)
    checkpoint = graph.add(0, "CheckpointLoaderSimple", 110, ckpt_name=SDXL_TURBO)
    clip = graph.add(0, "LatentCLIPLoader", 110, file=LATENT_CLIP)
    text = graph.add(0, "PrimitiveStringMultiline", 130, "Prompt", value="two boxers in a ring, film still")
    graph.note(0, f"""
## Optimise the noise, away from harm
The starting noise of a one-step model is changed until the image fits the prompt and shows less of the seven categories. An image below
every threshold is judged by the prompt alone. Saves the image of the untouched noise and the best one.
{FILES}
*Avoid* counts log-odds, which are up to 100 times as large as the cosines of *Match Text*: hence its small weight. Raise it if the best
image still shows what you avoid, lower it if the prompt is lost.
""", 420)  # fmt: skip
    positive = graph.add(1, "CLIPTextEncode", 110, clip=checkpoint[1], text=text[0])
    match = graph.add(1, "LatentCLIPTextReward", 260, latent_clip=clip[0], text=text[0])
    avoid = graph.add(1, "LatentCLIPAvoidReward", 390, latent_clip=clip[0], concepts="i2p", weight=0.05)
    sigmas = graph.add(2, "SDTurboScheduler", 90, model=checkpoint[0], steps=1, denoise=1.0)
    combined = graph.add(
        2, "LatentCLIPCombineRewards", 80, **{"rewards.reward_0": match[0], "rewards.reward_1": avoid[0]}
    )
    empty, node = optimise(graph, checkpoint, positive, 512, combined, sigmas, iterations=50)
    saved = []
    for slot, name in ((2, "first"), (0, "best")):
        decoded = graph.add(4, "VAEDecode", 60, samples=node[slot], vae=checkpoint[2])
        saved += [decoded, graph.add(
            4, "SaveImage", 300, name.capitalize(), images=decoded[0], filename_prefix=f"latent-clip/safety-reno-{name}"
        )]  # fmt: skip
    graph.group("Load", checkpoint, clip, text)
    graph.group("What to climb, what to leave", match, avoid, positive)
    graph.group(
        "One step",
        sigmas,
        combined,
        empty,
        *(item for item in graph.nodes if item.type in ("RandomNoise", "BasicGuider")),
    )
    graph.group("Optimise", node)
    graph.group("Before and after", *saved)
    graph.save("safety-reno-sdxl-turbo")


def safety_gate_service(info: dict) -> None:
    """A batch behind a gate that drops and logs, for a program that queues this graph."""
    graph = Graph(info)
    checkpoint, clip, text, positive, negative = sdxl_turbo(graph, "people at a festival, evening light")
    graph.note(0, f"""
## A gate for a service
Of eight latents only those that pass are decoded; the others leave the batch. Scores, verdicts and reasons go into
`latent_clip/safety.jsonl` in ComfyUI's user folder, without images and, here, without prompts.

*any_blocked* chooses the folder: complete batches go to `service/complete`, others to `service/partial`. The report is shown as text, so
a program finds it in the history of the prompt. If nothing passes, nothing is saved.
{FILES}
Calibrate the thresholds first; where the law asks for more than this, put a check of the pixels behind it.
""", 460)  # fmt: skip
    empty = graph.add(1, "EmptyLatentImage", 110, width=512, height=512, batch_size=8)
    sampled = graph.add(
        1, "KSampler", 270, model=checkpoint[0], positive=positive[0], negative=negative[0], latent_image=empty[0], seed=1, steps=1,
        cfg=1.0, sampler_name="euler_ancestral", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    gate = graph.add(
        2,
        "LatentCLIPSafetyGate",
        620,
        latent=sampled[0],
        latent_clip=clip[0],
        concepts="i2p",
        on_block="drop",
        audit_log=True,
    )
    complete = graph.add(3, "PrimitiveString", 60, "All passed", value="latent-clip/service/complete")
    partial = graph.add(3, "PrimitiveString", 60, "Some were blocked", value="latent-clip/service/partial")
    folder = graph.add(3, "ComfySwitchNode", 90, "Where to", switch=gate[2], on_false=complete[0], on_true=partial[0])
    report = graph.add(3, "PreviewAny", 200, "Report", source=gate[3])
    decoded = graph.add(4, "VAEDecode", 60, samples=gate[0], vae=checkpoint[2])
    saved = graph.add(4, "SaveImage", 400, images=decoded[0], filename_prefix=folder[0])
    graph.group("Load", checkpoint, clip, text)
    graph.group("Make a batch", positive, negative, empty, sampled)
    graph.group("Judge the latents", gate)
    graph.group("Tell the caller", complete, partial, folder, report)
    graph.group("Decode what passed", decoded, saved)
    graph.save("safety-gate-service")


def search(graph: Graph, column: int, model: tuple, conds: tuple, empty: Node, reward: Node, **settings) -> Node:
    """The advanced-sampling graph around Search Best Images: the search. `settings` may name the sampler and its steps."""
    names = ("sampler_name", "scheduler", "steps", "cfg")
    sampler_name, scheduler, steps, cfg = (settings.pop(name) for name in names)
    noise = graph.add(column, "RandomNoise", 90, noise_seed=1)
    guider = graph.add(column, "CFGGuider", 110, model=model, positive=conds[0][0], negative=conds[1][0], cfg=cfg)
    sampler = graph.add(column, "KSamplerSelect", 60, sampler_name=sampler_name)
    sigmas = graph.add(column, "BasicScheduler", 120, model=model, scheduler=scheduler, steps=steps, denoise=1.0)
    return graph.add(
        column + 1, "LatentCLIPSearch", 640, noise=noise[0], guider=guider[0], sampler=sampler[0], sigmas=sigmas[0],
        latent_image=empty[0], reward=reward[0], **settings,
    )  # fmt: skip


SEARCH_COLUMNS = ("Load and prompt", "Encode, and what to look for", "How to sample", "Search", "Decode")


def search_shapes(info: dict, name: str, note: str, **settings) -> None:
    """A search on Shapes World; its winners and what was left are saved."""
    graph = Graph(info)
    world, text, positive, negative = shapes_world(graph, "a green star above a red square")
    negative.title = "Negative"
    graph.note(0, note)
    empty = graph.add(1, "EmptyLatentImage", 110, width=64, height=64, batch_size=1)
    reward = graph.add(1, "LatentCLIPTextReward", 260, latent_clip=world[3], text=text[0])
    node = search(
        graph, 2, world[0], (positive, negative), empty, reward, sampler_name="euler", scheduler="normal", steps=16, cfg=3.0,
        **settings,
    )  # fmt: skip
    for slot, kind in ((0, "best"), (1, "rest")):
        decoded = graph.add(4, "VAEDecode", 60, samples=node[slot], vae=world[2])
        image = enlarge(graph, 4, decoded[0])
        graph.add(4, "SaveImage", 300, kind.capitalize(), images=image[0], filename_prefix=f"latent-clip/{name}-{kind}")
    graph.group_columns(*SEARCH_COLUMNS)
    graph.save(name)


def search_try_it_now(info: dict) -> None:
    """Twelve drafts on Shapes World, the best two in full."""
    search_shapes(info, "search-try-it-now", """
## Search: try it now
Twelve pictures are finished in a few steps each, as drafts; the Latent-CLIP looks at the drafts, and only the best two are made with
all 16 steps, from the same noise. Above: the winners; below: the drafts of the others. Nothing to download, no GPU needed.

Queue it with *chooses* set to *me*, and the node asks you instead.
""", candidates=12, keep=2)  # fmt: skip


def search_pick_by_hand(info: dict) -> None:
    """The reward proposes two of nine drafts, and a person decides."""
    search_shapes(info, "search-pick-by-hand", """
## Pick by hand
Nine drafts appear on *Search Best Images*, with their scores. Those that the reward would keep are marked: change that as you like and go on, and
only what you keep is made in full. After two minutes the reward decides alone. Nothing to download, no GPU needed.
""", candidates=9, keep=2, chooses="reward proposes, I confirm", time_out=120.0)  # fmt: skip


def search_sdxl(info: dict) -> None:
    """SDXL base, eight drafts, the best two in full."""
    graph = Graph(info)
    base = graph.add(0, "CheckpointLoaderSimple", 110, ckpt_name=SDXL_BASE)
    clip = graph.add(0, "LatentCLIPLoader", 110, file=LATENT_CLIP)
    text = graph.add(
        0, "PrimitiveStringMultiline", 130, "Prompt", value="two red apples and a blue cup on a wooden table"
    )
    graph.note(
        0,
        f"""
## Search with SDXL
Eight drafts, and the best two of them with all 30 steps from the same noise: about half of what eight images cost.
Winners look alike? Raise *variety*.
- `models/checkpoints/{SDXL_BASE}` (stabilityai/stable-diffusion-xl-base-1.0)
{LATENT_CLIP_FILE}""",
    )
    positive = graph.add(1, "CLIPTextEncode", 110, "Positive", clip=base[1], text=text[0])
    negative = graph.add(1, "CLIPTextEncode", 110, "Negative", clip=base[1], text="")
    empty = graph.add(1, "EmptyLatentImage", 110, width=1024, height=1024, batch_size=1)
    reward = graph.add(1, "LatentCLIPTextReward", 260, latent_clip=clip[0], text=text[0])
    node = search(
        graph, 2, base[0], (positive, negative), empty, reward, sampler_name="dpmpp_2m", scheduler="karras", steps=30, cfg=6.0,
        candidates=8, keep=2,
    )  # fmt: skip
    decoded = graph.add(4, "VAEDecode", 60, samples=node[0], vae=base[2])
    graph.add(4, "SaveImage", 400, images=decoded[0], filename_prefix="latent-clip/search")
    graph.group_columns(*SEARCH_COLUMNS)
    graph.save("search-sdxl")


def search_then_reno(info: dict) -> None:
    """The best of eight of a turbo model, and a few iterations of ReNO from its noise."""
    graph = Graph(info)
    checkpoint, clip, text, positive, negative = sdxl_turbo(graph, "a green bench and a blue bowl")
    graph.note(0, f"""
## Search, then optimise
Eight candidates of four steps, cut to the best one on the way; then ten iterations of Optimize Noise from the winner's noise: a good start is worth
more than many iterations.
{FILES}
""")  # fmt: skip
    empty = graph.add(1, "EmptyLatentImage", 110, width=512, height=512, batch_size=1)
    reward = graph.add(1, "LatentCLIPTextReward", 260, latent_clip=clip[0], text=text[0])
    node = search(
        graph, 2, checkpoint[0], (positive, negative), empty, reward, sampler_name="euler", scheduler="sgm_uniform", steps=4,
        cfg=1.0, candidates=8, keep=1, look="cuts", cuts="50% → 2",
    )  # fmt: skip
    guider, sigmas = (next(n for n in graph.nodes if n.type == kind) for kind in ("CFGGuider", "BasicScheduler"))
    reno = graph.add(
        4, "LatentCLIPOptimizeNoise", 620, noise=node[2], guider=guider[0], sigmas=sigmas[0], latent_image=empty[0],
        reward=reward[0], iterations=10,
    )  # fmt: skip
    for source, kind in ((node, "found"), (reno, "optimised")):
        decoded = graph.add(5, "VAEDecode", 60, samples=source[0], vae=checkpoint[2])
        graph.add(
            5, "SaveImage", 300, kind.capitalize(), images=decoded[0], filename_prefix=f"latent-clip/search-{kind}"
        )
    graph.group_columns(*SEARCH_COLUMNS[:4], "Optimise", "Decode")
    graph.save("search-then-reno")


WORKFLOWS = (
    try_it_now, pick_the_best, classify_and_route, reno_try_it_now, reno_sdxl_turbo, reno_then_multistep, safety_try_it_now,
    safety_guidance_sdxl, safety_reno_sdxl_turbo, safety_gate_service, search_try_it_now, search_pick_by_hand,
    search_sdxl, search_then_reno,
)  # fmt: skip


def main() -> None:
    """Ask a running ComfyUI for its nodes and write every workflow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--server", default="http://127.0.0.1:8188", help="a ComfyUI with the pack, such as ./dev serve"
    )
    with urllib.request.urlopen(f"{parser.parse_args().server}/object_info") as response:
        info = json.load(response)
    FOLDER.mkdir(exist_ok=True)
    for write in WORKFLOWS:
        write(info)


if __name__ == "__main__":
    main()
