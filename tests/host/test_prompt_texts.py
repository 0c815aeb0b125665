"""log_prompt: the texts that a judged latent comes from are in the log, however they are wired."""

import asyncio
import importlib
import json

import pytest

LINES = "star: a red star, a blue star\nneutral: a red circle, a blue circle, a red square"


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(**more) -> dict:
    """A gate behind a sampler on Shapes World whose prompt is wired from a concatenation of two primitives."""
    return {
        "world": node("LatentCLIPShapesWorld"),
        "one": node("PrimitiveStringMultiline", value="a red star"),
        "two": node("PrimitiveString", value="a blue circle"),
        "joined": node("StringConcatenate", string_a=["one", 0], string_b=["two", 0], delimiter=" above "),
        "pos": node("CLIPTextEncode", clip=["world", 1], text=["joined", 0]),
        "neg": node("CLIPTextEncode", clip=["world", 1], text="a cross"),
        "unrelated": node("CLIPTextEncode", clip=["world", 1], text="another image's prompt"),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "ks": node(
            "KSampler", model=["world", 0], positive=["pos", 0], negative=["neg", 0], latent_image=["empty", 0], seed=0, steps=1,
            cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "gate": gate(["ks", 0]),
        **more,
    }  # fmt: skip


def gate(latent, **more) -> dict:
    inputs = {
        "latent": latent, "latent_clip": ["world", 3], "concepts": "typed below", "typed": LINES, "categories": "", "thresholds": "1000",
        "on_block": "grey", "views": 0, "fit": "tiles", "audit_log": True, "log_prompt": True,
    }  # fmt: skip
    return node("LatentCLIPSafetyGate", **inputs | more)


WIRED = {
    "joined.delimiter": " above ", "one.value": "a red star", "two.value": "a blue circle", "neg.text": "a cross",
}  # fmt: skip


@pytest.fixture(scope="module")
def primitives(host_env):
    """The host's text nodes, which its server loads at start."""
    import nodes

    for name in ("nodes_primitive", "nodes_string"):
        path = str(host_env.tree / "comfy_extras" / f"{name}.py")
        assert asyncio.new_event_loop().run_until_complete(nodes.load_custom_node(path, module_parent="comfy_extras"))


@pytest.fixture
def logged(host_env, primitives):
    """logged(prompt) → the texts that the last record of the log has after this prompt has run."""
    audit_file = importlib.import_module(f"{host_env.pack.__name__}.host.safety.audit").audit_file

    def run(prompt: dict) -> dict:
        executor = host_env.execute(prompt)
        assert executor.success, executor.status_messages
        return json.loads(audit_file().read_text(encoding="utf-8").splitlines()[-1]).get("texts")

    return run


def test_wired_texts_are_logged_and_unrelated_ones_are_not(logged):
    assert logged(graph()) == WIRED
    assert logged(graph(gate=gate(["ks", 0], log_prompt=False))) is None


def test_our_own_template_logs_its_prompt(comfy):
    """10 Safety gate for a service wires its prompt from a primitive; 0.1 logged an empty object."""
    from latent_clip.tools.comfy_server import PACK_ROOT

    comfy.offer_workflow_files()
    prompt = comfy.workflow_to_prompt(PACK_ROOT / "workflows" / "10 Safety gate for a service.json")
    (gate_id,) = [name for name, node in prompt.items() if node["class_type"] == "LatentCLIPSafetyGate"]
    prompt[gate_id]["inputs"] |= {"audit_log": True, "log_prompt": True}
    comfy.run(prompt)
    log = comfy.base / "user" / "latent_clip" / "safety.jsonl"
    record = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    assert "people at a festival, evening light" in record["texts"].values()


def test_nodes_that_expand_are_followed_inside_and_out(logged):
    import nodes
    from comfy_execution.graph_utils import GraphBuilder

    class Inner:
        """A prompt that is typed inside of an expansion."""

        INPUT_TYPES = classmethod(lambda cls: {"required": {"clip": ("CLIP",)}})
        RETURN_TYPES = ("CONDITIONING",)
        FUNCTION = "expand"

        def expand(self, clip):
            inside = GraphBuilder()
            text = inside.node("PrimitiveString", value="a green triangle")
            encoded = inside.node("CLIPTextEncode", clip=clip, text=text.out(0))
            return {"result": (encoded.out(0),), "expand": inside.finalize()}

    class Gated:
        """A gate inside of an expansion, whose latent comes from outside."""

        INPUT_TYPES = classmethod(lambda cls: {"required": {"latent": ("LATENT", {"rawLink": True}), "clip": ("LATENT_CLIP", {"rawLink": True})}})  # fmt: skip
        RETURN_TYPES = ("LATENT",)
        FUNCTION = "expand"
        OUTPUT_NODE = True

        def expand(self, latent, clip):
            inside = GraphBuilder()
            judged = inside.node("LatentCLIPSafetyGate", **gate(latent, latent_clip=clip)["inputs"])
            return {"result": (judged.out(0),), "expand": inside.finalize()}

    nodes.NODE_CLASS_MAPPINGS |= {"TestInner": Inner, "TestGated": Gated}
    try:
        prompt = graph(pos=node("TestInner", clip=["world", 1]))
        assert set(logged(prompt).values()) == {"a green triangle", "a cross"}
        prompt = graph(gated=node("TestGated", latent=["ks", 0], clip=["world", 3]))
        del prompt["gate"]
        assert logged(prompt) == WIRED
    finally:
        del nodes.NODE_CLASS_MAPPINGS["TestInner"], nodes.NODE_CLASS_MAPPINGS["TestGated"]


def test_cycles_and_broken_graphs_end(host_env):
    from comfy_execution.graph import DynamicPrompt

    texts_behind = importlib.import_module(f"{host_env.pack.__name__}.host.safety.prompt_texts").texts_behind
    prompt = {
        "gate": node("LatentCLIPSafetyGate", latent=["a", 0]),
        "a": node("CLIPTextEncode", text="first", clip=["b", 0]),
        "b": node("Unknown node type", anything="second", back=["a", 0], gone=["nowhere", 0]),
    }
    texts = texts_behind(DynamicPrompt(prompt), "gate", "latent")
    assert texts == {"a.text": "first", "b.anything": "second"}
    assert texts_behind(DynamicPrompt({"gate": node("LatentCLIPSafetyGate")}), "gate", "latent") == {}
