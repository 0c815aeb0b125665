"""Prompts as people write them: a reward reads the words that the host's own text encoder reads."""

import json

import pytest
import torch

from latent_clip.tests.checkpoints import save_latent_clip, tokenize

PLAIN = [
    "a red circle",
    "A photo of a red fox,\n in the snow; 35mm f/1.8 — “night” 50% & more: why? #1",
    "smile :) and wink ;)",
    "a < b and <3 and a>b",
    "time 12:30, ratio 3:2",
    "BREAKING news, daybreak",
    "ends with a backslash \\",
]
SYNTAX = [
    ("(a red circle:1.3)", "a red circle", ["weights"]),
    ("a (red) ((circle))", "a red circle", ["weights"]),
    ("a ((red:1.2) and (blue:0.8) circle:1.1)", "a red and blue circle", ["weights"]),
    ("[a red] circle", "a red circle", ["weights"]),
    ("[[a red]] circle, [blue:0.5]", "a red circle, blue", ["weights"]),
    (r"saber \(fate\), \[art\]", "saber (fate), [art]", []),
    (r"(saber \(fate\):1.2), art", "saber (fate) , art", ["weights"]),
    ("a red circle <lora:more (details):0.8>", "a red circle", ["LoRA tags"]),
    ("a red circle BREAK a blue star", "a red circle a blue star", ["BREAK"]),
    ("a red circle, embedding:easynegative", "a red circle,", ["embeddings"]),
    ("embedding:some-style a red circle", "a red circle", ["embeddings"]),
    ("(embedding:some-style:1.2) a red circle", "a red circle", ["weights", "embeddings"]),
    (
        "(red:1.2) circle BREAK [star] <lora:x:1>, embedding:y",
        "red circle star ,",
        ["LoRA tags", "BREAK", "weights", "embeddings"],
    ),
]


@pytest.fixture(scope="module")
def prompts(host_env):
    from importlib import import_module

    return import_module(f"{host_env.pack.__name__}.host.scorers.prompt_words")


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_stays_as_it_is(prompts, text):
    assert prompts.words_of(text) == (text, [])


@pytest.mark.parametrize(("prompt", "words", "left_out"), SYNTAX, ids=[row[0] for row in SYNTAX])
def test_words_stay_and_the_syntax_goes(prompts, prompt, words, left_out):
    found, kinds = prompts.words_of(prompt)
    assert found.split() == words.split()
    assert kinds == left_out


@pytest.mark.parametrize(
    "prompt",
    [*PLAIN[:3], *(row[0] for row in SYNTAX if not {"LoRA tags", "BREAK"} & set(row[2]) and "[" not in row[0])],
)
def test_they_are_the_tokens_that_the_hosts_encoder_reads(prompts, tmp_path, prompt):
    """Weights aside, and but for the typographic signs that open_clip's tokenizer repairs first."""
    from comfy.sd1_clip import SDTokenizer

    prompt = prompt.replace("“", '"').replace("”", '"')
    batches = SDTokenizer(embedding_directory=str(tmp_path)).tokenize_with_weights(prompt)
    hosts = [token for batch in batches for token, _ in batch if token not in (49406, 49407)]
    ours = [token for token in tokenize([prompts.words_of(prompt)[0]])[0].tolist() if token not in (0, 49406, 49407)]
    assert ours == hosts


# On the nodes


@pytest.fixture(scope="module")
def clip(comfy):
    (comfy.models_dir / "latent_clip").mkdir(parents=True, exist_ok=True)
    return save_latent_clip(comfy.models_dir / "latent_clip" / "prompts.safetensors")


def score(comfy, text: str, **more) -> tuple[list[float], str]:
    """Scores of four latents, and the name of the reward's term in the report on the node."""
    latents = {"batch_size": 4, "channels": 4, "height": 64, "width": 64, "seed": 0, "std": 7.0}
    latents |= {"with_mask": False, "with_batch_index": False}
    reward = {"latent_clip": ["clip", 0], "text": text, "weight": 1.0, "fit": "tiles", **more}
    result = comfy.run({
        "latents": {"class_type": "TestMakeLatent", "inputs": latents},
        "clip": {"class_type": "LatentCLIPLoader", "inputs": {"file": "prompts.safetensors", "dtype": "auto"}},
        "reward": {"class_type": "LatentCLIPTextReward", "inputs": reward},
        "score": {"class_type": "LatentCLIPScore", "inputs": {"latent": ["latents", 0], "reward": ["reward", 0]}},
    })  # fmt: skip
    report = json.loads(json.dumps(result.outputs["score"]["latent_clip"][0]))
    return report["scores"], report["terms"][0]["name"]


def test_syntax_changes_no_score_and_is_said_on_the_node(comfy, clip):
    plain, name = score(comfy, "a red circle and a star")
    assert name == "match: a red circle and a star"
    scores, name = score(comfy, "a (red:1.4) circle <lora:x:0.5> and BREAK a [star]")
    assert scores == plain
    assert name.startswith("match (LoRA tags not used, BREAK not used, weights not used): a (red:1.4) circle")


def test_text_that_was_cut_is_said_on_the_node(comfy, clip):
    long = ", ".join(["a red circle"] * 30)
    _, name = score(comfy, long)
    assert name.startswith("match (cut to 77 tokens): a red circle")
    _, name = score(comfy, "a star", text_to_avoid=long)
    assert name == "match (avoided text cut to 77 tokens): a star"


def test_plain_features_keep_every_bit(comfy, clip, host_env):
    from importlib import import_module

    loaded = import_module(f"{host_env.pack.__name__}.host.scorers.latent_clip").LoadedLatentCLIP
    space = import_module(f"{host_env.pack.__name__}.models.latent_spaces").LATENT_SPACES["sdxl"]
    from latent_clip.tests.checkpoints import TINY_CONFIG

    with torch.no_grad():
        features = loaded(clip, TINY_CONFIG, space, "tiny").encode_text(PLAIN)
        expected = torch.nn.functional.normalize(clip.encode_text(tokenize(PLAIN)).float(), dim=-1)
    assert torch.equal(features, expected)


def test_only_syntax_is_no_text(comfy, clip):
    result = comfy.run(
        {
            "clip": {"class_type": "LatentCLIPLoader", "inputs": {"file": "prompts.safetensors", "dtype": "auto"}},
            "latents": {
                "class_type": "TestMakeLatent",
                "inputs": {
                    "batch_size": 1, "channels": 4, "height": 64, "width": 64, "seed": 0, "std": 7.0,
                    "with_mask": False, "with_batch_index": False,
                },
            },
            "classes": {
                "class_type": "LatentCLIPClassify",
                "inputs": {
                    "latent": ["latents", 0], "latent_clip": ["clip", 0], "labels": "a star\n<lora:x:1>", "templates": "{}",
                    "route": "", "fit": "tiles",
                },
            },
        },
        expect_failure=True,
    )  # fmt: skip
    assert "Got only prompt syntax, '<lora:x:1>'" in result.error


@pytest.fixture(scope="module")
def loaded(host_env):
    """Shapes World's Latent-CLIP in the host's care."""
    from importlib import import_module

    with torch.inference_mode():
        return import_module(f"{host_env.pack.__name__}.host.scorers.shapes_world").load_latent_clip()


@pytest.mark.parametrize(
    "text",
    [
        "x" * 3_000_000, "!?" * 500_000, "é" * 500_000, "[" * 50_000 + "x" + "]" * 50_000, "a red circle " * 100_000, "<lora:" * 100_000,
        "x" + " " * 3_000_000,
    ],
    ids=lambda text: text[:8].strip(),
)  # fmt: skip
def test_prompt_of_any_length_is_read_in_no_time(prompts, loaded, text):
    from time import process_time

    began = process_time()
    words, left_out = prompts.words_of(text)
    tokens = loaded.text.tokenizer([words])
    assert process_time() - began < 1
    assert tokens.shape == (1, loaded.text.tokenizer.context_length) and "text after 20,000 characters" in left_out


def test_what_was_cut_of_a_long_text_is_said(loaded):
    assert loaded.text.remarks("a red circle") == []
    assert loaded.text.remarks("a red circle " * 100_000)[0] == "text after 20,000 characters not used"
    assert any(remark.startswith("cut") for remark in loaded.text.remarks("x" * 300))


def test_brackets_nested_too_deep_are_a_sentence(loaded):
    with pytest.raises(ValueError, match=r"brackets in each other.*Remove some"):
        loaded.text.encode(["(" * 5_000 + "x" + ")" * 5_000])


def test_scale_of_a_file_counts_as_at_most_100(host_env):
    """A file that another program trained may carry more; the tower's own stays as it is."""
    from importlib import import_module

    from latent_clip.tests.checkpoints import TINY_CONFIG

    pack = host_env.pack.__name__
    space = import_module(f"{pack}.models.latent_spaces").LATENT_SPACES["sdxl"]
    for scale, expected in ((6.0, 100.0), (3.0, 20.0855)):
        model = import_module(f"{pack}.models.latent_clip").LatentCLIP(TINY_CONFIG).train(False).requires_grad_(False)
        model.logit_scale.fill_(scale)
        found = import_module(f"{pack}.host.scorers.latent_clip").LoadedLatentCLIP(model, TINY_CONFIG, space, "tiny")
        assert found.logit_scale == pytest.approx(expected, abs=1e-3)
