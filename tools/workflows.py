"""Write workflows/*.json, the example graphs, in the front end's format: python . -m tools.workflows

Every one can be read when it opens: on a screen of 1440 × 900 the front end shows 1520 × 940 units of a graph at 70 %, so
nodes that nobody has to set are folded. File names are what the template browser shows and sorts by.
"""

from __future__ import annotations

import argparse
import json
import urllib.request

from .workflow_graph import FOLDER, Graph, Node

SDXL_TURBO, SDXL_BASE, LATENT_CLIP = (
    "sd_xl_turbo_1.0_fp16.safetensors",
    "sd_xl_base_1.0.safetensors",
    "latent-clip-b-8.safetensors",
)
LATENT_CLIP_FILE = f"- `latent_clip/{LATENT_CLIP}`: where from, says *Weights* in the README\n"
FILES = f"""
Needs, in `models/`:
- `checkpoints/{SDXL_TURBO}`
{LATENT_CLIP_FILE}"""


PIXEL_CLIP = "CLIP-ViT-B-32-laion2B-s34B-b79K.bin"
PIXEL_CLIP_FILE = f"""- `open_clip/{PIXEL_CLIP}`: `open_clip_pytorch_model.bin` of laion/CLIP-ViT-B-32-laion2B-s34B-b79K on Hugging Face (MIT licence)
"""
Z_IMAGE = (("z_image_turbo_bf16.safetensors",), ("qwen_3_4b.safetensors",), "lumina2", "ae.safetensors")
FLUX_SCHNELL = (("flux1-schnell.safetensors",), ("clip_l.safetensors", "t5xxl_fp16.safetensors"), "flux", "ae.safetensors")
QWEN_IMAGE = (
    ("qwen_image_fp8_e4m3fn.safetensors", "ModelSamplingAuraFlow", 3.1), ("qwen_2.5_vl_7b_fp8_scaled.safetensors",), "qwen_image",
    "qwen_image_vae.safetensors",
)  # fmt: skip
WAN21 = (
    ("wan2.1_t2v_1.3B_fp16.safetensors", "ModelSamplingSD3", 8.0), ("umt5_xxl_fp8_e4m3fn_scaled.safetensors",), "wan",
    "wan_2.1_vae.safetensors",
)  # fmt: skip


def files_of(parts: tuple) -> str:
    """Files that a workflow of `load_parts` needs, for its note."""
    model, texts, _, vae = parts
    files = [f"`diffusion_models/{model[0]}`", *(f"`text_encoders/{text}`" for text in texts), f"`vae/{vae}`"]
    return "\nNeeds, in `models/`, what ComfyUI's own template of this model has, and a judge:\n- " + ", ".join(files) + f"\n{PIXEL_CLIP_FILE}"


def load_parts(graph: Graph, parts: tuple, prompt: str) -> tuple[Node, Node, Node, Node, Node]:
    """Load a model in parts, like the host's templates, a pixel CLIP and a prompt: (model, clip, vae, judge, text)."""
    (file, *shift), texts, kind, vae_file = parts
    model = graph.fold(0, "UNETLoader", "Model", unet_name=file)
    if shift:
        model = graph.fold(0, shift[0], "Shift", model=model[0], shift=shift[1])
    loader = "DualCLIPLoader" if len(texts) == 2 else "CLIPLoader"
    names = dict(zip(("clip_name1", "clip_name2") if len(texts) == 2 else ("clip_name",), texts))
    clip = graph.fold(0, loader, "Text encoder", type=kind, **names)
    vae = graph.fold(0, "VAELoader", "VAE", vae_name=vae_file)
    judge = graph.add(0, "LatentCLIPPixelLoader", 140, vae=vae[0], file=PIXEL_CLIP)
    return model, clip, vae, judge, graph.add(0, "PrimitiveStringMultiline", 100, "Prompt", value=prompt)


def shapes_world(graph: Graph, prompt: str) -> tuple[Node, Node]:
    """The demo world with a prompt: (world, text)."""
    return graph.add(0, "LatentCLIPShapesWorld", 146), graph.add(
        0, "PrimitiveStringMultiline", 105, "Prompt", value=prompt
    )


def sdxl(graph: Graph, prompt: str, *checkpoints: str) -> tuple[Node, ...]:
    """Checkpoints, SDXL-Turbo by default, Latent-CLIP and a prompt: (checkpoint, ..., latent_clip, text)."""
    loaded = [graph.add(0, "CheckpointLoaderSimple", 130, ckpt_name=name) for name in checkpoints or (SDXL_TURBO,)]
    clip = graph.add(0, "LatentCLIPLoader", 115, file=LATENT_CLIP)
    return *loaded, clip, graph.add(0, "PrimitiveStringMultiline", 105, "Prompt", value=prompt)


def encode(graph: Graph, column: int, clip: tuple[Node, int], text, title: str = "Positive", **place) -> Node:
    """A prompt for the model, folded: its text comes from elsewhere or is empty."""
    return graph.fold(column, "CLIPTextEncode", title, clip=clip, text=text, **place)


def sample(
    graph: Graph, column: int, model: Node, clip: tuple[Node, int], text: Node, latent: Node, title: str | None = None,
    folded: bool = False, **settings,
) -> Node:  # fmt: skip
    """Add a KSampler above its two folded prompts; at cfg 1 it ignores the negative one."""
    turbo = {
        "seed": 1,
        "steps": 1,
        "cfg": 1.0,
        "sampler_name": "euler_ancestral",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    settings = turbo | settings
    node = graph.add(column, "KSampler", 265, title, folded=folded, model=model[0], latent_image=latent[0], **settings)
    positive = encode(graph, column, clip, text[0])
    negative = encode(graph, column, clip, "", "Negative")
    node.inputs |= {"positive": positive[0], "negative": negative[0]}
    return node


def save_image(
    graph: Graph, column: int, latent: tuple[Node, int], vae: tuple[Node, int], height: int, name: str,
    title: str | None = None, enlarge: bool = False,
) -> list[Node]:  # fmt: skip
    """Decode, folded, and save a large picture; 64 pixels of Shapes World are enlarged to 256 for the eye."""
    image = decode = graph.fold(column, "VAEDecode", samples=latent, vae=vae)
    if enlarge:
        image = graph.fold(column, "ImageScaleBy", "Enlarge", image=decode[0], upscale_method="lanczos", scale_by=4.0)
    prefix = name if isinstance(name, tuple) else f"latent-clip/{name}"
    return [decode, image, graph.add(column, "SaveImage", height, title, images=image[0], filename_prefix=prefix)]


def try_it_now(info: dict) -> None:
    """Shapes World, a batch of eight, the best two decoded."""
    graph = Graph(info, (290, 290, 340, 480))
    graph.note(0, """
## Try it now
Eight pictures are judged as latents; only the best two are decoded. No download, no GPU.

Press **Run**. Then change the prompt: red, orange, yellow, green, blue, purple; circle, square, triangle, star, cross;
"and", "left of", "right of", "above", "below".

Shapes World is a tiny demo. For real pictures: *04 Pick the best*.
""", 210)  # fmt: skip
    world, text = shapes_world(graph, "a blue star left of a red circle")
    empty = graph.add(1, "EmptyLatentImage", 120, "How many", width=64, height=64, batch_size=8)
    sampled = sample(graph, 1, world, world[1], text, empty, sampler_name="euler", scheduler="simple")
    reward = graph.add(2, "LatentCLIPTextReward", 250, latent_clip=world[3], text=text[0])
    best = graph.add(2, "LatentCLIPSelect", 470, latent=sampled[0], reward=reward[0], keep=2)
    save_image(graph, 3, best[0], world[2], 480, "try-it-now", "The best two", enlarge=True)
    graph.group_columns("Load and prompt", "Make a batch", "Judge the latents, keep the best", "Decode the best")
    graph.save("01 Try it now")


def optimise(
    graph: Graph, model: Node, clip: tuple[Node, int], text: Node, reward: Node, sigmas: Node, size: int, **settings
) -> tuple[Node, Node]:
    """The advanced-sampling graph around Optimize Noise, in columns 1 and 2: (empty latent, optimize)."""
    noise = graph.add(1, "RandomNoise", 85, noise_seed=1)
    kind = settings.pop("empty", "EmptyLatentImage")
    empty = graph.add(1, kind, 120, width=size, height=size, batch_size=settings.pop("batch_size", 1))
    positive = encode(graph, 1, clip, text[0])
    guider = graph.fold(1, "BasicGuider", "Guider", model=model[0], conditioning=positive[0])
    node = graph.add(
        2, "LatentCLIPOptimizeNoise", 720, noise=noise[0], guider=guider[0], sigmas=sigmas[0], latent_image=empty[0],
        reward=reward[0], **settings,
    )  # fmt: skip
    return empty, node


def before_and_after(graph: Graph, node: Node, vae: tuple[Node, int], name: str, height: int, enlarge: bool = False):
    """The picture of the untouched noise above the best one, in column 3."""
    for slot, word, title in ((2, "first", "Before"), (0, "best", "After")):
        save_image(graph, 3, node[slot], vae, height, f"{name}-{word}", title, enlarge)


def reno_try_it_now(info: dict) -> None:
    """ReNO on Shapes World, before and after."""
    graph = Graph(info, (290, 290, 400, 430))
    graph.note(0, """
## Optimize Noise (ReNO), no download
Four noises are changed by gradient steps until the Latent-CLIP likes what the one-step model makes of them.

Press **Run** and compare *Before* and *After*. The reward always rises; whether the *picture* gets better, you have to
see.
""", 180)  # fmt: skip
    world, text = shapes_world(graph, "a red triangle right of a blue cross")
    reward = graph.add(1, "LatentCLIPTextReward", 250, latent_clip=world[3], text=text[0])
    sigmas = graph.add(1, "BasicScheduler", 120, "One step", model=world[0], scheduler="simple", steps=1, denoise=1.0)
    _empty, node = optimise(graph, world, world[1], text, reward, sigmas, 64, batch_size=4, iterations=20)
    before_and_after(graph, node, world[2], "reno", 290, enlarge=True)
    graph.group_columns("Load and prompt", "What to climb, from where", "Optimise the noise", "Before and after")
    graph.save("02 Optimize noise, demo")


def safety_try_it_now(info: dict) -> None:
    """Shapes World where stars count as harmful: plain, guided, gated."""
    graph = Graph(info, (280, 290, 340, 490))
    graph.note(0, """
## Safety, no download
Here a **star** stands for what nobody should see.

- *Plain*: what the prompt asks for.
- *Guided*: the same seed, drafted first; an image that would show a star is made from *Instead*.
- *Gated*: the plain latents, judged before any decode; a star becomes a grey field.

Then try "a blue circle": nothing changes, bit for bit. Neither is a guarantee: use both.
""", 230)  # fmt: skip
    world, text = shapes_world(graph, "a yellow star")
    instead = graph.add(0, "CLIPTextEncode", 105, "Instead", clip=world[1], text="a green circle")
    empty = graph.fold(0, "EmptyLatentImage", "Four latents", width=64, height=64, batch_size=4)
    judge = {"latent_clip": world[3], "concepts": "shapes-world-stars"}
    guide = graph.add(
        1, "LatentCLIPSafetyGuidance", 540, model=world[0], **judge, thresholds="3", instead=instead[0], look_ahead="draft only"
    )  # fmt: skip
    steps = {"steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
    plain = sample(graph, 1, world, world[1], text, empty, "Sample, plain", folded=True, **steps)
    guided = graph.fold(1, "KSampler", "Sample, guided", **plain.inputs | {"model": guide[0]})
    gate = graph.add(2, "LatentCLIPSafetyGate", 640, latent=plain[0], **judge, on_block="grey")
    for title, latent in (("Plain", plain), ("Guided", guided), ("Gated", gate)):
        decode = graph.fold(2, "VAEDecode", f"Decode, {title.lower()}", samples=latent[0], vae=world[2])
        image = graph.fold(3, "ImageScaleBy", "Enlarge", image=decode[0], upscale_method="lanczos", scale_by=4.0)
        graph.add(3, "SaveImage", 180, title, images=image[0], filename_prefix=f"latent-clip/safety-{title.lower()}")
    graph.group_columns("Load and prompts", "Watch and sample", "Judge the latents, decode", "Plain, guided, gated")
    graph.save("03 Safety, demo")


def pick_the_best(info: dict) -> None:
    """SDXL-Turbo, a batch of eight, the best two decoded."""
    graph = Graph(info, (300, 290, 340, 460))
    graph.note(0, f"""
## Pick the best
SDXL-Turbo makes eight images; Latent-CLIP ranks them as latents; only the best two are decoded. Judging one costs a small
part of decoding it: raise *batch_size*.
{FILES}
""", 230)  # fmt: skip
    checkpoint, clip, text = sdxl(graph, "a red fox reading a newspaper in a cafe, morning light")
    empty = graph.add(1, "EmptyLatentImage", 120, "How many", width=512, height=512, batch_size=8)
    sampled = sample(graph, 1, checkpoint, checkpoint[1], text, empty)
    reward = graph.add(2, "LatentCLIPTextReward", 250, latent_clip=clip[0], text=text[0])
    best = graph.add(2, "LatentCLIPSelect", 480, latent=sampled[0], reward=reward[0], keep=2)
    save_image(graph, 3, best[0], checkpoint[2], 500, "best", "The best two")
    graph.group_columns("Load and prompt", "Make a batch", "Judge the latents, keep the best", "Decode the best")
    graph.save("04 Pick the best")


def classify_and_route(info: dict) -> None:
    """SDXL-Turbo, sorted by label, one branch each."""
    graph = Graph(info, (300, 290, 380, 420))
    graph.note(0, f"""
## Sort by content
Eight latents are sorted by what they show, before any is decoded: cats go one way, all else another. A branch without
images does not run.
{FILES}
""", 230)  # fmt: skip
    checkpoint, clip, text = sdxl(graph, "a pet on a sofa")
    empty = graph.add(1, "EmptyLatentImage", 120, "How many", width=512, height=512, batch_size=8)
    sampled = sample(graph, 1, checkpoint, checkpoint[1], text, empty)
    sorted_latents = graph.add(
        2, "LatentCLIPClassify", 640, latent=sampled[0], latent_clip=clip[0], labels="a cat\na dog\nanother animal",
        templates="a photo of {}\na picture of {}", route="a cat",
    )  # fmt: skip
    for slot, name in ((3, "cats"), (4, "others")):
        save_image(graph, 3, sorted_latents[slot], checkpoint[2], 310, name, name.capitalize())
    graph.group_columns("Load and prompt", "Make a batch", "Sort the latents", "Decode each branch")
    graph.save("05 Sort by content")


def reno_sdxl_turbo(info: dict) -> None:
    """ReNO on SDXL-Turbo, before and after."""
    graph = Graph(info, (300, 290, 400, 420))
    graph.note(0, f"""
## Optimize Noise (ReNO)
50 gradient steps on the starting noise of a one-step model, without a decode until the end.
{FILES}
Nothing changes? Raise *learning_rate*. Colours burn? Lower it. Out of memory? Set *memory* to low.
""", 250)  # fmt: skip
    checkpoint, clip, text = sdxl(graph, "a green bench and a blue bowl")
    reward = graph.add(1, "LatentCLIPTextReward", 250, latent_clip=clip[0], text=text[0])
    sigmas = graph.add(1, "SDTurboScheduler", 95, "One step", model=checkpoint[0], steps=1, denoise=1.0)
    _empty, node = optimise(graph, checkpoint, checkpoint[1], text, reward, sigmas, 512, iterations=50)
    before_and_after(graph, node, checkpoint[2], "reno", 310)
    graph.group_columns("Load and prompt", "What to climb, from where", "Optimise the noise", "Before and after")
    graph.save("06 Optimize noise")


def reno_then_multistep(info: dict) -> None:
    """ReNO on SDXL-Turbo, its noise into SDXL base."""
    graph = Graph(info, (340, 290, 380, 380))
    graph.note(0, f"""
## Optimize noise, then many steps
The noise is optimised on fast SDXL-Turbo and then starts 20 steps of SDXL base, as the ReNO paper suggests.
{FILES}- `checkpoints/{SDXL_BASE}`
""", 190)  # fmt: skip
    checkpoint, base, clip, text = sdxl(graph, "a red book and a yellow vase", SDXL_TURBO, SDXL_BASE)
    checkpoint.title, base.title = "SDXL-Turbo", "SDXL base"
    reward = graph.add(1, "LatentCLIPTextReward", 250, latent_clip=clip[0], text=text[0])
    sigmas = graph.add(1, "SDTurboScheduler", 95, "One step", model=checkpoint[0], steps=1, denoise=1.0)
    empty, node = optimise(graph, checkpoint, checkpoint[1], text, reward, sigmas, 512, iterations=50)
    steps = graph.add(3, "BasicScheduler", 120, "Many steps", model=base[0], scheduler="karras", steps=20, denoise=1.0)
    positive = encode(graph, 3, base[1], text[0], "Positive for base")
    negative = encode(graph, 3, base[1], "", "Negative for base")
    guider = graph.fold(3, "CFGGuider", model=base[0], positive=positive[0], negative=negative[0], cfg=6.0)
    sampler = graph.fold(3, "KSamplerSelect", "Sampler", sampler_name="dpmpp_2m")
    sampled = graph.fold(
        3, "SamplerCustomAdvanced", "Sample", noise=node[1], guider=guider[0], sampler=sampler[0], sigmas=steps[0], latent_image=empty[0],
    )  # fmt: skip
    save_image(graph, 3, sampled[0], base[2], 400, "reno-multistep")
    graph.group_columns("Load and prompt", "What to climb, from where", "Optimise the noise", "Many steps of base")
    graph.save("07 Optimize noise, then many steps")


def safety_guidance_sdxl(info: dict) -> None:
    """SDXL base, monitored for the seven I2P categories, with a gate behind it."""
    graph = Graph(info, (260, 290, 230, 300, 310))
    graph.note(0, f"""
## Safety Guidance
Every image is drafted first, in four steps. One whose draft shows harm is made from *Instead*; all others are made as
without, bit for bit. The gate looks at the result, and its report names both looks.

Needs, in `models/`:
- `checkpoints/{SDXL_BASE}`
{LATENT_CLIP_FILE}
Calibrate the thresholds on your own images. Both lower the rate of harm; they guarantee nothing.
""", 290)  # fmt: skip
    base, clip, text = sdxl(graph, "a crowded market street at dusk, documentary photo", SDXL_BASE)
    guide = graph.add(
        1, "LatentCLIPSafetyGuidance", 540, model=base[0], latent_clip=clip[0], concepts="i2p", look_ahead="draft only"
    )
    instead = graph.add(
        1, "CLIPTextEncode", 105, "Instead", clip=base[1], text="a quiet landscape with trees and a lake"
    )
    guide.inputs["instead"] = instead[0]
    empty = graph.add(2, "EmptyLatentImage", 120, width=1024, height=1024, batch_size=1)
    sampled = sample(
        graph, 2, guide, base[1], text, empty, steps=25, cfg=6.0, sampler_name="dpmpp_2m", scheduler="karras"
    )
    gate = graph.add(
        3,
        "LatentCLIPSafetyGate",
        640,
        latent=sampled[0],
        latent_clip=clip[0],
        concepts="i2p",
        on_block="grey",
        looks=guide[1],
    )
    save_image(graph, 4, gate[0], base[2], 500, "safety")
    graph.group_columns("Load and prompt", "Watch", "Sample", "Judge the latent", "Decode")
    graph.save("08 Safety guidance")


def safety_reno_sdxl_turbo(info: dict) -> None:
    """ReNO that optimises the prompt's reward and avoids the categories."""
    graph = Graph(info, (300, 290, 400, 420))
    graph.note(0, f"""
## Optimize noise, away from harm
The starting noise changes until the image fits the prompt and shows less of seven categories.
{FILES}
*Avoid* counts log-odds, up to 100 times as large as the cosines of *Match Text*: hence its small weight. Raise it if the
image still shows what you avoid.
""", 270)  # fmt: skip
    checkpoint, clip, text = sdxl(graph, "two boxers in a ring, film still")
    avoid = graph.add(1, "LatentCLIPAvoidReward", 315, latent_clip=clip[0], concepts="i2p", weight=0.05)
    match = graph.fold(1, "LatentCLIPTextReward", latent_clip=clip[0], text=text[0])
    combined = graph.fold(1, "LatentCLIPCombineRewards", **{"rewards.reward_0": match[0], "rewards.reward_1": avoid[0]})
    sigmas = graph.fold(2, "SDTurboScheduler", "One step", model=checkpoint[0], steps=1, denoise=1.0)
    _empty, node = optimise(graph, checkpoint, checkpoint[1], text, combined, sigmas, 512, iterations=50)
    before_and_after(graph, node, checkpoint[2], "safety-reno", 310)
    graph.group_columns("Load and prompt", "Climb this, leave that", "Optimise the noise", "Before and after")
    graph.save("09 Optimize noise, away from harm")


def safety_gate_service(info: dict) -> None:
    """A batch behind a gate that drops and logs, for a program that queues this graph."""
    graph = Graph(info, (300, 290, 360, 420))
    graph.note(0, f"""
## A gate for a service
Only latents that pass are decoded; the others leave the batch. Verdicts go into `latent_clip/safety.jsonl` in ComfyUI's user
folder, without images and, here, without prompts. *any_blocked* chooses where pictures go; nothing passes, nothing is saved.
{FILES}
Calibrate the thresholds first; where the law asks for more, check the pixels too.
""", 310)  # fmt: skip
    checkpoint, clip, text = sdxl(graph, "people at a festival, evening light")
    empty = graph.add(1, "EmptyLatentImage", 120, "How many", width=512, height=512, batch_size=8)
    sampled = sample(graph, 1, checkpoint, checkpoint[1], text, empty)
    gate = graph.add(
        2, "LatentCLIPSafetyGate", 680, latent=sampled[0], latent_clip=clip[0], concepts="i2p", on_block="drop", audit_log=True,
    )  # fmt: skip
    graph.add(3, "PreviewAny", 150, "Report", source=gate[3])
    complete = graph.add(3, "PrimitiveString", 75, "All passed", value="latent-clip/service/complete")
    partial = graph.add(3, "PrimitiveString", 75, "Some were blocked", value="latent-clip/service/partial")
    folder = graph.fold(3, "ComfySwitchNode", "Where to", switch=gate[2], on_false=complete[0], on_true=partial[0])
    save_image(graph, 3, gate[0], checkpoint[2], 280, folder[0])
    graph.group_columns("Load and prompt", "Make a batch", "Judge the latents", "Tell the caller, decode what passed")
    graph.save("10 Safety gate for a service")


def search(
    graph: Graph, model: Node, clip: tuple[Node, int], text: Node, latent_clip: tuple[Node, int], size: int, sampling: tuple, **settings
) -> Node:  # fmt: skip
    """The advanced-sampling graph around Search Best Images, in columns 1 and 2. `sampling`: sampler, scheduler, steps, cfg."""
    sampler_name, scheduler, steps, cfg = sampling
    kind = settings.pop("empty", "EmptyLatentImage")
    reward = graph.add(1, "LatentCLIPTextReward", 250, latent_clip=latent_clip, text=text[0])
    noise = graph.add(1, "RandomNoise", 85, noise_seed=1)
    sigmas = graph.add(1, "BasicScheduler", 120, model=model[0], scheduler=scheduler, steps=steps, denoise=1.0)
    positive = encode(graph, 1, clip, text[0])
    negative = encode(graph, 1, clip, "", "Negative")
    guider = graph.fold(1, "CFGGuider", "Guider", model=model[0], positive=positive[0], negative=negative[0], cfg=cfg)
    sampler = graph.fold(1, "KSamplerSelect", "Sampler", sampler_name=sampler_name)
    empty = graph.fold(1, kind, "Size", width=size, height=size, batch_size=1)
    return graph.add(
        2, "LatentCLIPSearch", 770, noise=noise[0], guider=guider[0], sampler=sampler[0], sigmas=sigmas[0], latent_image=empty[0],
        reward=reward[0], **settings,
    )  # fmt: skip


SEARCH_COLUMNS = ("Load and prompt", "What to look for, how to sample", "Search", "Decode")


def search_shapes(info: dict, name: str, prefix: str, note: str, **settings) -> None:
    """A search on Shapes World; its winners and what was left are saved."""
    graph = Graph(info, (290, 290, 400, 430))
    graph.note(0, note, 200)
    world, text = shapes_world(graph, "a green star above a red square")
    node = search(graph, world, world[1], text, world[3], 64, ("euler", "normal", 16, 3.0), **settings)
    for slot, kind, title in ((0, "best", "Winners"), (1, "rest", "The drafts of the others")):
        save_image(graph, 3, node[slot], world[2], 290, f"{prefix}-{kind}", title, enlarge=True)
    graph.group_columns(*SEARCH_COLUMNS)
    graph.save(name)


def search_try_it_now(info: dict) -> None:
    """Twelve drafts on Shapes World, the best two in full."""
    search_shapes(info, "11 Search, demo", "search", """
## Search, no download
Twelve pictures are finished in a few steps each, as drafts; the Latent-CLIP looks at them, and only the best two are made
with all 16 steps, from the same noise.

Set *chooses* to *me*, and the node asks you instead.
""", candidates=12, keep=2)  # fmt: skip


def search_pick_by_hand(info: dict) -> None:
    """The reward proposes two of nine drafts, and a person decides."""
    search_shapes(info, "12 Pick by hand, demo", "by-hand", """
## Pick by hand, no download
Nine drafts appear on the node. Those that the reward would keep are marked: change that and go on; only what you keep is
made in full. After two minutes the reward decides alone.
""", candidates=9, keep=2, chooses="reward proposes, I confirm", time_out=120.0)  # fmt: skip


def search_sdxl(info: dict) -> None:
    """SDXL base, eight drafts, the best two in full."""
    graph = Graph(info, (300, 290, 400, 420))
    graph.note(0, f"""
## Search
Eight drafts, and the best two of them with all 30 steps from the same noise: about half of what eight images cost. Winners
look alike? Raise *variety*.

Needs, in `models/`:
- `checkpoints/{SDXL_BASE}`
{LATENT_CLIP_FILE}
""", 250)  # fmt: skip
    base, clip, text = sdxl(graph, "two red apples and a blue cup on a wooden table", SDXL_BASE)
    node = search(graph, base, base[1], text, clip[0], 1024, ("dpmpp_2m", "karras", 30, 6.0), candidates=8, keep=2)
    save_image(graph, 3, node[0], base[2], 500, "search", "Winners")
    graph.group_columns(*SEARCH_COLUMNS)
    graph.save("13 Search")


def search_then_reno(info: dict) -> None:
    """The best of eight of a turbo model, and a few iterations of ReNO from its noise."""
    graph = Graph(info, (250, 240, 330, 330, 230))
    graph.note(0, f"""
## Search, then optimize
Eight candidates of four steps, cut to the best one on the way; then ten iterations of Optimize Noise from its noise.
{FILES}
""", 230)  # fmt: skip
    checkpoint, clip, text = sdxl(graph, "a green bench and a blue bowl")
    node = search(
        graph, checkpoint, checkpoint[1], text, clip[0], 512, ("euler", "sgm_uniform", 4, 1.0), candidates=8, keep=1,
        look="cuts", cuts="50% → 2",
    )  # fmt: skip
    wires = {name: node.inputs[name] for name in ("guider", "sigmas", "latent_image", "reward")}
    reno = graph.add(3, "LatentCLIPOptimizeNoise", 720, noise=node[2], **wires, iterations=10)
    for source, kind in ((node, "found"), (reno, "optimized")):
        save_image(graph, 4, source[0], checkpoint[2], 310, f"search-{kind}", kind.capitalize())
    graph.group_columns("Load and prompt", "What to look for", "Search", "Optimize the winner", "Found, optimized")
    graph.save("14 Search, then optimize")


def flux_schnell_reno(info: dict) -> None:
    """ReNO through Flux schnell and its VAE, with a pixel CLIP."""
    graph = Graph(info, (300, 290, 400, 420))
    graph.note(0, f"""
## Optimize noise of FLUX.1 schnell
There is no Latent-CLIP for Flux yet, so every iteration decodes and looks at the picture; the gradient goes through the
judge, the VAE and Flux. Out of memory? Set *memory* to low, and *weight_dtype* of the model to fp8.
{files_of(FLUX_SCHNELL)}
""", 330)  # fmt: skip
    model, clip, vae, judge, text = load_parts(graph, FLUX_SCHNELL, "a green bench and a blue bowl")
    reward = graph.add(1, "LatentCLIPTextReward", 250, latent_clip=judge[0], text=text[0])
    sigmas = graph.add(1, "BasicScheduler", 120, "One step", model=model[0], scheduler="simple", steps=1, denoise=1.0)
    _empty, node = optimise(
        graph, model, clip[0], text, reward, sigmas, 512, iterations=20, empty="EmptySD3LatentImage"
    )
    before_and_after(graph, node, vae[0], "flux-reno", 310)
    graph.group_columns("Load and prompt", "What to climb, from where", "Optimise the noise", "Before and after")
    graph.save("15 Flux schnell, optimize noise")


def qwen_image_safety_gate(info: dict) -> None:
    """Qwen-Image behind a gate that checks the decoded pictures."""
    graph = Graph(info, (300, 290, 360, 460))
    graph.note(0, f"""
## A gate for Qwen-Image
The gate decodes, looks, and lets pass what is below every threshold; what shows harm becomes a grey field. Its thresholds are
not calibrated for this judge: run `python . calibrate --help` first.
{files_of(QWEN_IMAGE)}
""", 330)  # fmt: skip
    model, clip, vae, judge, text = load_parts(graph, QWEN_IMAGE, "people at a festival, evening light")
    empty = graph.add(1, "EmptySD3LatentImage", 120, width=1328, height=1328, batch_size=1)
    sampled = sample(graph, 1, model, clip[0], text, empty, steps=20, cfg=4.0, sampler_name="euler", scheduler="simple")
    gate = graph.add(2, "LatentCLIPSafetyGate", 680, latent=sampled[0], latent_clip=judge[0], concepts="i2p")
    save_image(graph, 3, gate[0], vae[0], 480, "qwen-gate")
    graph.group_columns("Load and prompt", "Sample", "Judge", "Decode what passed")
    graph.save("16 Qwen-Image, safety gate")


def wan_clip_gate(info: dict) -> None:
    """A clip of Wan, cut before its first frame that does not pass."""
    graph = Graph(info, (300, 290, 360, 460))
    graph.note(0, f"""
## A gate for clips
Every frame of the clip is judged. With *cut_clips* a clip that begins clean is cut before its first bad frame; one that begins
badly does not go on at all. The report says which frames, and why. Calibrate the thresholds first.
{files_of(WAN21)}
""", 330)  # fmt: skip
    model, clip, vae, judge, text = load_parts(graph, WAN21, "a fox running through a winter forest, tracking camera")
    empty = graph.add(1, "EmptyHunyuanLatentVideo", 150, width=832, height=480, length=33, batch_size=1)
    sampled = sample(graph, 1, model, clip[0], text, empty, steps=30, cfg=6.0, sampler_name="uni_pc", scheduler="simple")
    gate = graph.add(
        2, "LatentCLIPSafetyGate", 700, latent=sampled[0], latent_clip=judge[0], concepts="i2p", on_block="drop", cut_clips=True
    )  # fmt: skip
    graph.add(3, "PreviewAny", 150, "Report", source=gate[3])
    decode = graph.fold(3, "VAEDecode", samples=gate[0], vae=vae[0])
    graph.add(3, "SaveAnimatedWEBP", 400, images=decode[0], filename_prefix="latent-clip/wan-gate", fps=16.0)
    graph.group_columns("Load and prompt", "Sample", "Judge every frame", "Tell why, save what passed")
    graph.save("17 Wan clip, safety gate")


def z_image_pick_the_best(info: dict) -> None:
    """Z-Image-Turbo, a batch of four, the best one saved."""
    graph = Graph(info, (300, 290, 340, 460))
    graph.note(0, f"""
## Pick the best of Z-Image
Z-Image-Turbo makes four images, the judge ranks them, the best is saved. There is no Latent-CLIP for its VAE yet, so all are
decoded once to be judged. Once there is one, put *Load Latent-CLIP* in the place of *Load Pixel Judge*.
{files_of(Z_IMAGE)}
""", 330)  # fmt: skip
    model, clip, vae, judge, text = load_parts(graph, Z_IMAGE, "a red fox reading a newspaper in a cafe, morning light")
    empty = graph.add(1, "EmptySD3LatentImage", 120, "How many", width=1024, height=1024, batch_size=4)
    sampled = sample(
        graph, 1, model, clip[0], text, empty, steps=8, cfg=1.0, sampler_name="res_multistep", scheduler="simple"
    )
    reward = graph.add(2, "LatentCLIPTextReward", 250, latent_clip=judge[0], text=text[0])
    best = graph.add(2, "LatentCLIPSelect", 470, latent=sampled[0], reward=reward[0], keep=1)
    save_image(graph, 3, best[0], vae[0], 500, "z-image-best", "The best")
    graph.group_columns("Load and prompt", "Make a batch", "Judge, keep the best", "Decode the best")
    graph.save("18 Z-Image, pick the best")


def z_image_search(info: dict) -> None:
    """Six drafts of Z-Image-Turbo, the best two in full."""
    graph = Graph(info, (300, 290, 400, 420))
    graph.note(0, f"""
## Search with Z-Image
Six drafts of a few steps are decoded and judged; the best two are made with all 8 steps from the same noise. Turbo models give
alike images of one prompt: *variety* parts them.
{files_of(Z_IMAGE)}
""", 320)  # fmt: skip
    model, clip, vae, judge, text = load_parts(graph, Z_IMAGE, "two red apples and a blue cup on a wooden table")
    node = search(
        graph, model, clip[0], text, judge[0], 1024, ("res_multistep", "simple", 8, 1.0), candidates=6, keep=2, budget=0.6,
        variety=0.5, empty="EmptySD3LatentImage",
    )  # fmt: skip
    save_image(graph, 3, node[0], vae[0], 500, "z-image-search", "Winners")
    graph.group_columns(*SEARCH_COLUMNS)
    graph.save("19 Z-Image, search")


WORKFLOWS = (
    try_it_now, reno_try_it_now, safety_try_it_now, pick_the_best, classify_and_route, reno_sdxl_turbo, reno_then_multistep,
    safety_guidance_sdxl, safety_reno_sdxl_turbo, safety_gate_service, search_try_it_now, search_pick_by_hand, search_sdxl, search_then_reno,
    flux_schnell_reno, qwen_image_safety_gate, wan_clip_gate, z_image_pick_the_best, z_image_search,
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
