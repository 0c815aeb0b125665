"""No node of the pack changes what comes in on its wires: the host hands the same objects to other nodes, and keeps them."""

import asyncio
import hashlib

import pytest
import torch

CONCEPTS = {"concepts": "shapes-world-stars", "typed": "", "categories": "", "thresholds": ""}
WITHOUT_TENSORS = {"LatentCLIPLoader", "LatentCLIPPixelLoader", "LatentCLIPPixelReward", "LatentCLIPShapesWorld"}
MAX_DEPTH = 8


def tensors_of(value, path: str = "", depth: int = 0) -> dict[str, torch.Tensor]:
    """Every tensor that is reached from a value through containers and attributes, networks left out."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if depth == MAX_DEPTH or isinstance(value, torch.nn.Module | type) or callable(getattr(value, "clone", None)):
        return {}
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    else:
        parts = list(vars(value).items()) if hasattr(value, "__dict__") else []
    return {key: t for name, part in parts for key, t in tensors_of(part, f"{path}.{name}", depth + 1).items()}


def shape_of(value):
    """Keys, lengths and plain values of nested containers."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shape_of(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else id(value)


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().float().numpy().tobytes()).hexdigest()


@pytest.fixture
def watched(host_env, monkeypatch):
    """(class name → how many tensors came in, what was changed): filled while prompts run."""
    import nodes

    asyncio.new_event_loop().run_until_complete(nodes.init_builtin_extra_nodes())
    seen, changed = {}, []

    def watch(name: str, cls) -> None:
        execute = cls.execute.__func__

        def checking(cls, *args, **kwargs):
            found = tensors_of(kwargs, name)
            before = {path: digest(tensor) for path, tensor in found.items()}
            plain = shape_of({key: value for key, value in kwargs.items() if isinstance(value, dict | list)})
            result = execute(cls, *args, **kwargs)
            changed.extend(path for path, tensor in found.items() if digest(tensor) != before[path])
            now = shape_of({key: value for key, value in kwargs.items() if isinstance(value, dict | list)})
            changed.extend([f"{name}: containers"] if now != plain else [])
            seen[name] = max(seen.get(name, 0), len(found))
            return result

        monkeypatch.setattr(cls, "execute", classmethod(checking))

    for name, cls in nodes.NODE_CLASS_MAPPINGS.items():
        if name.startswith("LatentCLIP"):
            watch(name, cls)
    watch("SamplerCustomAdvanced", nodes.NODE_CLASS_MAPPINGS["SamplerCustomAdvanced"])
    return seen, changed


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(sampler: str, look: str) -> dict:
    """Every node that takes a tensor: a masked batch to change, four prompts' worth of noise, guided models."""
    world, reward, batch = ["world", 0], ["sum", 0], ["batch", 0]
    text = {"latent_clip": ["world", 3], "weight": 1.0, "fit": "tiles"}
    window = {"strength": 1.0, "start": 0.0, "end": 1.0, "every_n": 1, "momentum": 0.0}
    sigmas = node("BasicScheduler", model=world, scheduler="normal", steps=8, denoise=1.0)

    def guider(model: list) -> dict:
        return node("CFGGuider", model=model, positive=["pos", 0], negative=["neg", 0], cfg=2.0)

    def sampled(name: str) -> dict:
        wires = {"noise": ["noise", 0], "guider": [name, 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
        return node("SamplerCustomAdvanced", latent_image=batch, **wires)

    return {
        "world": node("LatentCLIPShapesWorld"),
        "pos": node("CLIPTextEncode", clip=["world", 1], text="a red star"),
        "neg": node("CLIPTextEncode", clip=["world", 1], text=""),
        "batch": node("TestMakeLatent", batch_size=4, channels=4, height=8, width=8, seed=1, std=7.0, with_mask=True, with_batch_index=True),
        "text": node("LatentCLIPTextReward", text="a red circle", **text),
        "like": node("LatentCLIPLatentReward", reference=batch, **text),
        "avoid": node("LatentCLIPAvoidReward", **CONCEPTS, **text),
        "sum": node("LatentCLIPCombineRewards", **{f"rewards.reward_{i}": [name, 0] for i, name in enumerate(("text", "like", "avoid"))}),
        "score": node("LatentCLIPScore", latent=batch, reward=reward),
        "select": node("LatentCLIPSelect", latent=batch, reward=reward, keep=2, use_threshold=False, threshold=0.2),
        "classify": node("LatentCLIPClassify", latent=batch, latent_clip=["world", 3], labels="a star\na circle", templates="{}", fit="tiles"),
        "gate": node("LatentCLIPSafetyGate", latent=batch, latent_clip=["world", 3], on_block="grey", views=0, fit="tiles", audit_log=False, log_prompt=False, **CONCEPTS),
        "noise": node("RandomNoise", noise_seed=3),
        "sampler": node("KSamplerSelect", sampler_name=sampler),
        "sigmas": sigmas,
        "two": node("BasicScheduler", model=world, scheduler="normal", steps=2, denoise=1.0),
        "plain": guider(world),
        "search": node(
            "LatentCLIPSearch", noise=["noise", 0], guider=["plain", 0], sampler=["sampler", 0], sigmas=["sigmas", 0], latent_image=batch,
            reward=reward, candidates=4, keep=1, look=look, budget=0.6, variety=0.5, chooses="reward", time_out=1.0, cuts="", draft_steps=0,
            draft_scheduler="simple", images_at_once=2,
        ),
        "reno": node(
            "LatentCLIPOptimizeNoise", noise=["search", 2], guider=["plain", 0], sigmas=["two", 0], latent_image=["search", 0], reward=reward,
            iterations=2, learning_rate=5.0, optimizer="nesterov", gradient_clip=0.1, prior_weight=0.01, patience=0, memory="low", watch=["like", 0],
        ),
        "pushed": node("LatentCLIPGuideModel", model=world, reward=reward, **window),
        "safe": node("LatentCLIPSafetyGuidance", model=["pushed", 0], latent_clip=["world", 3], fit="tiles", instead=["neg", 0], look_ahead="draft, redirect late", draft_steps=4, draft_thresholds="0.4", **CONCEPTS, **window),
        "guided": guider(["safe", 0]),
        "made": sampled("guided"),
        "again": node("SamplerCustomAdvanced", noise=["reno", 1], guider=["guided", 0], sampler=["sampler", 0], sigmas=["two", 0], latent_image=["reno", 0]),
        "looked": node("LatentCLIPSafetyGate", latent=["made", 0], latent_clip=["world", 3], on_block="remove", views=0, fit="tiles", audit_log=False, log_prompt=False, looks=["safe", 1], **CONCEPTS),
    }  # fmt: skip


@pytest.mark.parametrize(("sampler", "look"), [("uni_pc", "drafts"), ("dpmpp_2m_sde", "cuts"), ("euler", "both")])
def test_no_node_changes_its_inputs(host_env, watched, sampler, look):
    import nodes

    seen, changed = watched
    made = graph(sampler, look)
    for one in made.values():
        schema = nodes.NODE_CLASS_MAPPINGS[one["class_type"]].INPUT_TYPES()
        for name, options in {**schema.get("required", {}), **schema.get("optional", {})}.items():
            default = options[1].get("default") if len(options) > 1 else None
            if default is not None:
                one["inputs"].setdefault(name, default)
    executor = host_env.execute(made)
    assert executor.success, executor.status_messages
    assert changed == []
    ours = {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("LatentCLIP")}
    assert ours - WITHOUT_TENSORS <= set(seen)
    assert all(seen[name] for name in ("LatentCLIPSearch", "LatentCLIPOptimizeNoise", "LatentCLIPSafetyGate", "LatentCLIPSelect"))
