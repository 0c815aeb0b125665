"""The safety gate in the real host. It fails closed: this file tries to get something past it."""

import importlib
import json
import math
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

LINES = "star: a red star, a blue star\nneutral: a red circle, a blue circle, a red square"


@pytest.fixture(scope="module")
def pack(host_env):
    """Modules of the pack as the host imported it, and Shapes World's Latent-CLIP."""

    def module(name: str):
        return importlib.import_module(f"{host_env.pack.__name__}.{name}")

    names = ("host.safety.gate", "host.safety.audit", "host.scorers.concepts", "host.scorers.shapes_world", "models.concepts")
    found = SimpleNamespace(**{f"{name.split('.')[0]}_{name.split('.')[-1]}": module(name) for name in names})
    with torch.inference_mode():
        found.clip = found.host_shapes_world.load_latent_clip()
    return found


def gate(pack, latent, clip="shapes", concepts=None, on_block="grey", **more):
    """Run the gate in inference mode, as the executor does."""
    given = {name: more.pop(name) for name in ("verdicts", "texts") if name in more}
    settings = pack.host_gate.GateSettings(on_block, **more)
    read = concepts or (lambda: pack.models_concepts.parse_concepts(LINES).with_thresholds("1000"))
    with torch.inference_mode():
        return pack.host_gate.run_gate(latent, pack.clip if clip == "shapes" else clip, read, settings, **given)


def latent(size=2, **more) -> dict:
    return {"samples": torch.randn(size, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 7, **more}


def at(threshold):
    return lambda pack: lambda: pack.models_concepts.parse_concepts(LINES).with_thresholds(str(threshold))


# What passes, and what becomes of the rest


def test_what_is_below_its_threshold_passes_untouched(pack):
    given = latent()
    safe, report = gate(pack, given)
    assert safe is given and report.blocked == [False, False] and report.reasons == ["", ""]
    assert all(math.isfinite(score) for row in report.scores for score in row)


@pytest.mark.parametrize("on_block", ["grey", "blur", "drop", "stop"])
def test_what_is_above_does_not(pack, on_block):
    given = latent(3, noise_mask=(torch.arange(3.0) / 2).view(3, 1, 1).expand(3, 64, 64).clone(), batch_index=[4, 5, 6])
    scores = gate(pack, given)[1].scores
    threshold = sorted(row[0] for row in scores)[1] + 1e-3  # one above, two below
    worst = max(range(3), key=lambda i: scores[i][0])
    concepts = at(threshold)(pack)
    if on_block == "stop":
        with pytest.raises(pack.host_gate.BlockedError, match="1 of 3 images blocked"):
            gate(pack, given, concepts=concepts, on_block=on_block)
        return
    safe, report = gate(pack, given, concepts=concepts, on_block=on_block)
    assert [i for i, blocked in enumerate(report.blocked) if blocked] == [worst]
    assert "star: log-odds" in report.reasons[worst]
    kept = [i for i in range(3) if i != worst]
    if on_block == "drop":
        assert torch.equal(safe["samples"], given["samples"][kept])
        assert safe["batch_index"] == [given["batch_index"][i] for i in kept]
        assert torch.equal(safe["noise_mask"], given["noise_mask"][kept, None, :8, :8]), "as the sampler reads it"
        return
    assert torch.equal(safe["noise_mask"][kept], given["noise_mask"][kept, None, :8, :8])
    assert safe["noise_mask"][worst].eq(1).all()
    assert torch.equal(safe["samples"][kept], given["samples"][kept])
    hidden = safe["samples"][worst]
    assert hidden.flatten(1).std(dim=1).max() < 1e-5, "an 8×8 latent keeps one colour at most"
    assert on_block != "grey" or not hidden.any()


def test_batch_of_which_all_are_dropped_stops_with_a_message(pack):
    from comfy_execution.graph_utils import ExecutionBlocker

    safe, report = gate(pack, latent(), concepts=at(-1000)(pack), on_block="drop")
    assert isinstance(safe, ExecutionBlocker) and "2 of 2 images blocked" in safe.message
    assert report.blocked == [True, True] and report.thumbnails in ([], ["", ""])


def test_thumbnails_are_of_what_leaves_the_gate(pack):
    given = latent()
    plain = gate(pack, given)[1].thumbnails
    grey = gate(pack, given, concepts=at(-1000)(pack))[1].thumbnails
    assert plain[0] != plain[1] and grey[0] == grey[1] != plain[0]


def test_extra_views_can_only_block_more(pack):
    given = latent(4)
    one, five = (gate(pack, given, views=views)[1].scores for views in (0, 5))
    assert all(b[0] >= a[0] - 1e-4 for a, b in zip(one, five)) and one != five


def test_what_one_window_of_one_view_cannot_say_blocks(pack, monkeypatch):
    """A latent that is finite may still overflow in a tower; the other windows must not outvote it."""
    real = pack.clip.window_encoder("tiles")

    class OneBroken:
        limit, patchers, space, memory_per_item = real.limit, real.patchers, real.space, real.memory_per_item
        looks, reads_clips = 0, False

        def encode_windows(self, raw, noise_level=None):
            found = real.encode_windows(raw)
            self.looks += 1
            if self.looks == 2:
                found.windows[1, -1] = math.nan
            return found

    given = {"samples": torch.randn(3, 4, 8, 24, generator=torch.Generator().manual_seed(0)) * 7}
    clip = Broken(pack.clip)
    clip.window_encoder = lambda fit, closer: OneBroken()
    assert gate(pack, given, clip, views=2)[1].blocked == [False, True, False]


# Whose thresholds these are


def calibrated(pack, **change):
    """The shipped set, as if its threshold had been calibrated with another judge."""
    concepts = pack.models_concepts.shipped_concepts("shapes-world-stars")
    calibration = concepts.provenance["calibration"] | change
    return lambda: replace(concepts, provenance={"calibration": calibration})


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({"identity": "0" * 16}, {}, "of other weights than 'Shapes World Latent-CLIP'"),
        ({}, {"fit": "squash"}, "fit tiles instead of squash"),
        ({"fit": "crop"}, {}, "fit crop instead of tiles"),
        ({}, {"views": 4}, "0 views instead of 4"),
        ({"views": 4}, {}, "4 views instead of 0"),
        ({}, {"closer": True}, "no closer look"),
    ],
)
def test_set_that_was_calibrated_with_another_judge_blocks_and_says_so(pack, change, settings, words):
    _, report = gate(pack, latent(), concepts=calibrated(pack, **change), **settings)
    assert report.blocked == [True, True] and words in report.reasons[0] and "calibrate again" in report.reasons[0]
    typed = calibrated(pack, **change)().with_thresholds("1000")
    assert gate(pack, latent(), concepts=lambda: typed, **settings)[1].blocked == [False, False]


@pytest.mark.parametrize("fit", ["tiles", "crop"])
def test_shipped_set_holds_for_the_shipped_latent_clip(pack, fit):
    _, report = gate(pack, latent(), concepts=calibrated(pack), fit=fit)
    assert not any("calibrated" in reason for reason in report.reasons)
    assert report.scores == gate(pack, latent(), concepts=lambda: calibrated(pack)().with_thresholds("0"))[1].scores


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_dtype_that_it_computes_in_is_no_other_latent_clip(pack, dtype):
    with torch.inference_mode():
        assert pack.host_shapes_world.load_latent_clip(dtype).identity == pack.clip.identity


@pytest.mark.parametrize("node", ["LatentCLIPAvoidReward", "LatentCLIPSafetyGuidance"])
def test_rewards_and_guidance_refuse_such_a_set(pack, host_env, node):
    import nodes

    inputs = {
        "latent_clip": pack.clip,
        "concepts": "shapes-world-stars",
        "typed": "",
        "categories": "",
        "thresholds": "",
    }
    if node == "LatentCLIPAvoidReward":
        inputs |= {"weight": 1.0}
    else:
        model = pack.host_shapes_world.load_generator()[0]
        inputs |= {"model": model, "strength": 1.0, "start": 0.2, "end": 1.0, "every_n": 1, "momentum": 0.0}
    execute = nodes.NODE_CLASS_MAPPINGS[node].execute
    with torch.inference_mode():
        execute(**inputs, fit="tiles")
        execute(**inputs, fit="crop")
        execute(**inputs | {"thresholds": "1"}, fit="squash")
        with pytest.raises(ValueError, match="fit tiles instead of squash"):
            execute(**inputs, fit="squash")


# 216 ways to break it


def broken_samples() -> dict:
    nan, inf = latent(), latent()
    nan["samples"][0, 0, 0, 0], inf["samples"][1, 3, 7, 7] = math.nan, -math.inf
    return {
        "one NaN": nan, "one Inf": inf, "all NaN": {"samples": torch.full((2, 4, 8, 8), math.nan)},
        "16 channels": {"samples": torch.randn(2, 16, 8, 8)}, "3 channels": {"samples": torch.randn(2, 3, 8, 8)},
        "video": {"samples": torch.randn(2, 4, 3, 8, 8)}, "no batch": {"samples": torch.randn(4, 8, 8)},
        "one number": {"samples": torch.tensor(1.0)}, "empty batch": {"samples": torch.zeros(0, 4, 8, 8)},
        "no area": {"samples": torch.zeros(2, 4, 0, 8)}, "no samples": {}, "a list": {"samples": [1, 2]},
        "nothing": {"samples": None}, "a text": {"samples": "latent"}, "overflow": {"samples": torch.full((2, 4, 8, 8), 3e38)},
        "complex": {"samples": torch.zeros(2, 4, 8, 8, dtype=torch.complex64)}, "not a dict": None,
        "half NaN": {"samples": torch.full((2, 4, 8, 8), math.nan, dtype=torch.float16)},
    }  # fmt: skip


def broken_concepts(pack) -> dict:
    parse = pack.models_concepts.parse_concepts

    def raises(error):
        def read():
            raise error

        return read

    return {
        "no lines": lambda: parse(""), "no phrases": lambda: parse("star:"), "nonsense": lambda: parse("???"),
        "threshold text": lambda: parse(LINES).with_thresholds("high"), "threshold NaN": lambda: parse(LINES).with_thresholds("nan"),
        "threshold inf": lambda: parse(LINES).with_thresholds("inf"), "unknown category": lambda: parse(LINES).only("gun"),
        "missing file": lambda: pack.host_concepts.load_concepts("gone.json"), "None": lambda: None,
        "a number": lambda: 3, "an error": raises(RuntimeError("boom")), "out of memory": raises(MemoryError()),
    }  # fmt: skip


class Broken:
    """A model whose use fails, or gives nonsense."""

    def __init__(self, real, encode=None, scale=None):
        self.space, self.image, self.grid, self.config = real.space, real.image, real.grid, real.config
        self.logit_scale = real.logit_scale if scale is None else scale
        self.name, self.identity = real.name, real.identity
        self.encode_text, self.window_encoder = encode or real.encode_text, real.window_encoder


def broken_clips(pack) -> dict:
    def fail(texts):
        raise RuntimeError("the text tower is broken")

    real = pack.clip
    return {
        "None": None, "a text": "clip", "text tower fails": Broken(real, fail), "NaN scale": Broken(real, scale=math.nan),
        "infinite scale": Broken(real, scale=math.inf), "NaN features": Broken(real, lambda t: real.encode_text(t) * math.nan),
        "wrong width": Broken(real, lambda t: torch.ones(len(t), 3)), "no features": Broken(real, lambda t: torch.ones(0, 96)),
    }  # fmt: skip


def leaks(given, safe, report) -> bool:
    """Whether any number of the input that was blocked is still in what leaves the gate."""
    from comfy_execution.graph_utils import ExecutionBlocker

    if isinstance(safe, ExecutionBlocker):
        return False
    blocked = [i for i, bad in enumerate(report.blocked) if bad]
    if not blocked:
        return True
    samples = safe["samples"]
    if len(samples) != len(report.blocked):  # dropped
        return len(samples) > len(report.blocked) - len(blocked)
    return bool(samples[blocked].ne(0).any()) and samples[blocked].float().flatten(-2).std(dim=-1).max() > 1e-4


def test_nothing_broken_passes(pack):
    attempts = passed = 0
    for on_block in ("grey", "blur", "drop"):
        for views in (0, 2):
            cases = [(name, given, pack.clip, at(1000)(pack)) for name, given in broken_samples().items()]
            cases += [(name, latent(), pack.clip, read) for name, read in broken_concepts(pack).items()]
            cases += [(name, latent(), clip, at(1000)(pack)) for name, clip in broken_clips(pack).items()]
            for name, given, clip, read in cases:
                attempts += 1
                safe, report = gate(pack, given, clip, read, on_block, views=views)
                assert any(report.blocked), name
                if name not in ("one NaN", "one Inf"):
                    assert all(report.blocked), name
                assert all(len(reason) > 10 for reason, bad in zip(report.reasons, report.blocked) if bad), name
                passed += leaks(given, safe, report)
                json.loads(json.dumps(report.as_ui(), allow_nan=False))
    assert attempts >= 200 and passed == 0, (attempts, passed)


def test_broken_item_does_not_block_the_others(pack):
    given = latent()
    given["samples"][0, 0, 0, 0] = math.nan
    safe, report = gate(pack, given, on_block="blur")
    assert report.blocked == [True, False]
    assert not safe["samples"][0].any() and torch.equal(safe["samples"][1], given["samples"][1])


def test_a_cancel_is_not_a_verdict(pack):
    import comfy.model_management as mm

    def cancelled():
        raise mm.InterruptProcessingException

    with pytest.raises(mm.InterruptProcessingException):
        gate(pack, latent(), concepts=cancelled)


# Side doors: everything of a latent that some node could turn into pictures is judged, or does not leave

SOUND = torch.randn(2, 8, 25, 16, generator=torch.Generator().manual_seed(3))


def picture(size=2, seed=9) -> torch.Tensor:
    return torch.randn(size, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) * 7


def nested(*parts) -> dict:
    from comfy.nested_tensor import NestedTensor

    return {"samples": NestedTensor(parts)}


class Lying(dict):
    """Another latent for everyone who asks again."""

    def items(self):
        raise RuntimeError("not today")


class Imposter:
    is_nested = True

    def __init__(self, parts=None, fails=True):
        self.parts, self.fails = parts, fails

    def unbind(self):
        if self.fails:
            raise RuntimeError("no parts")
        return self.parts

    @property
    def shape(self):
        raise TypeError("no shape")


def tensors_in(value) -> list[torch.Tensor]:
    """Every tensor of a value that a node hands on, however deep."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [found for entry in value.values() for found in tensors_in(entry)]
    if isinstance(value, list | tuple | set):
        return [found for entry in value for found in tensors_in(entry)]
    if isinstance(value, float | int | str | bool | None) or not getattr(value, "is_nested", False):
        return []
    return tensors_in(list(value.unbind()))


def holds(value, secret: torch.Tensor) -> bool:
    """Check that any tensor, as it is or in other shapes, correlates with one of the secret pictures."""
    secrets = [item.flatten().double() - item.double().mean() for item in secret]
    for tensor in tensors_in(value):
        if tensor.is_complex() or not tensor.numel():
            continue
        for item in [tensor, *tensor] if tensor.ndim > 1 else [tensor]:
            flat = torch.nan_to_num(item.detach().flatten().double())
            for one in secrets:
                if len(flat) == len(one) and flat.std() > 0 and torch.corrcoef(torch.stack([flat, one]))[0, 1].abs() > 0.5:
                    return True
    return False


def smuggled(innocent: torch.Tensor, secret: torch.Tensor) -> dict[str, dict]:
    """Latents that have a judged, innocent first part and a picture that nobody has asked about."""
    plain, norm = {"samples": innocent}, (secret - secret.amin()) / (secret.amax() - secret.amin())
    flat = secret.reshape(2, 8, 2, 16)
    found = {
        "second part": nested(plain["samples"], secret), "third part": nested(plain["samples"], plain["samples"], secret),
        "third behind sound": nested(plain["samples"], SOUND, secret), "as sound": nested(plain["samples"], flat),
        "fewer channels": nested(plain["samples"], secret[:, :3]), "one item": nested(plain["samples"], secret[:1]),
        "three items": nested(plain["samples"], torch.cat([secret, secret[:1]])), "with frames": nested(plain["samples"], secret[:, :, None]),
        "flat": nested(plain["samples"], secret.flatten(1)), "no batch": nested(plain["samples"], secret[0]),
        "whole numbers": nested(plain["samples"], (secret * 100).long()), "half": nested(plain["samples"], secret.half()),
        "a list inside": nested(plain["samples"], [secret]), "nested in nested": nested(plain["samples"], nested(secret)["samples"]),
        "a list as samples": {"samples": [plain["samples"], secret]}, "another key": plain | {"picture": secret},
        "in a list": plain | {"extra": [secret[0], secret[1]]}, "in an object": plain | {"state_info": {"raw_x": secret}},
        "as numbers": plain | {"numbers": secret.flatten().tolist()}, "as batch_index": plain | {"batch_index": secret},
        "an imposter": {"samples": Imposter()}, "an imposter with parts": {"samples": Imposter([plain["samples"], secret], False)},
        "a lying dict": Lying(plain | {"picture": secret}),
    }  # fmt: skip
    masks = {
        "mask": secret, "mask of 0 to 1": norm, "mask of one item": norm[:1], "mask of one channel": secret[:, :1], "boolean mask": norm > 2,
        "mask with frames": norm[:, :, None], "mask of whole numbers": (secret * 100).long(), "NaN mask": secret * math.nan,
        "nested mask": nested(norm, norm)["samples"], "list mask": [norm], "mask in halves": norm.half(), "flat mask": norm.flatten(1),
        "wide mask": norm.repeat(1, 1, 8, 8), "object mask": {"a": norm}, "empty mask": norm[:0], "infinite mask": secret * math.inf,
    }  # fmt: skip
    found |= {name: plain | {"noise_mask": mask} for name, mask in masks.items()}
    found |= {f"{name}, nested": nested(plain["samples"], SOUND) | {"noise_mask": mask} for name, mask in masks.items()}
    return found


@pytest.mark.parametrize("on_block", ["grey", "blur", "drop"])
def test_no_picture_leaves_that_nobody_judged(pack, on_block):
    """Judged as harmless where it can be judged, or gone: the judge here blocks the secret pictures and lets the others pass."""
    pictures = picture(12)
    scores = torch.tensor(gate(pack, {"samples": pictures})[1].scores).flatten()
    order = scores.argsort()
    innocent, secret, threshold = pictures[order[:2]], pictures[order[-2:]], scores.median().item()
    assert gate(pack, {"samples": secret}, concepts=at(threshold)(pack))[1].blocked == [True, True]
    for name, given in smuggled(innocent, secret).items():
        safe, report = gate(pack, given, concepts=at(threshold)(pack), on_block=on_block)
        assert not holds(safe, secret), name
        assert all(len(reason) > 10 for reason in filter(None, report.reasons)), name
        json.loads(json.dumps(report.as_ui(), allow_nan=False))


def test_part_that_is_innocent_passes_with_the_first(pack):
    given = nested(latent()["samples"], picture())
    safe, report = gate(pack, given)
    assert report.blocked == [False, False] and safe is given


def test_part_that_cannot_be_judged_says_what_to_do(pack):
    _, report = gate(pack, nested(latent()["samples"], SOUND))
    assert report.blocked == [True, True]
    assert "(2, 4, 8, 8), (2, 8, 25, 16)" in report.reasons[0] and "Take them apart before the gate" in report.reasons[0]


MASK = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(4))
LEGAL_MASKS = {
    "2-D": MASK[0, 0], "3-D": MASK[:, 0], "3-D of one": MASK[:1, 0], "4-D": MASK, "4-D of one": MASK[:1], "of four": MASK.repeat(2, 1, 1, 1),
    "boolean": MASK > 0.5, "half": MASK.half(), "as many channels as the latent": MASK.expand(2, 4, 64, 64), "2-D as tall as the batch": MASK[0, 0, :2],
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL_MASKS)
def test_mask_does_what_it_did(pack, name):
    """The sampler reads the same of it; beside the gate's own size nothing of it is left."""
    from comfy.sampler_helpers import prepare_mask

    given = latent(noise_mask=LEGAL_MASKS[name])
    safe, report = gate(pack, given)
    assert report.blocked == [False, False] and not report.left_out and safe["noise_mask"].shape == (2, 1, 8, 8)
    mask = given["noise_mask"].float()[:, :1] if "channels" in name else given["noise_mask"].float()
    assert torch.equal(*(prepare_mask(one, (2, 4, 8, 8), "cpu") for one in (mask, safe["noise_mask"])))


def test_what_stays_and_what_is_left_out_is_said(pack):
    given = latent(batch_index=[4, 5], type="image", downscale_ratio_spacial=8, extra=picture(), noise_mask=picture())
    safe, report = gate(pack, given)
    assert set(safe) == {"samples", "batch_index", "type", "downscale_ratio_spacial"} and safe["samples"] is given["samples"]
    assert report.as_dict()["left_out"] == ["extra", "noise_mask"] and report.blocked == [False, False]


@pytest.mark.parametrize("error", [KeyError("a node is gone"), RecursionError(), TypeError("no JSON"), OSError(28, "No space left")])
def test_whatever_keeps_a_batch_from_the_log_blocks_it(pack, error):
    def texts():
        raise error

    safe, report = gate(pack, latent(), audit=True, texts=texts)
    assert report.blocked == [True, True] and "audit log could not be written" in report.reasons[0] and not safe["samples"].any()


# The log


def test_log_says_what_was_judged_and_no_more(pack):
    path = pack.host_audit.audit_file()
    path.unlink(missing_ok=True)
    gate(pack, latent(), concepts=at(-1000)(pack), audit=True)
    gate(pack, latent(), audit=True, texts=lambda: {"7.text": "a secret"})
    without, with_prompt = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert without["categories"] == ["star"] and len(without["scores"]) == 2 and all(without["reasons"])
    assert "texts" not in without and with_prompt["texts"] == {"7.text": "a secret"}
    assert not any(with_prompt["reasons"]) and without["time"] <= with_prompt["time"]


def test_what_cannot_be_logged_does_not_pass(pack, monkeypatch):
    def full(record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack.host_gate, "write_record", full)
    safe, report = gate(pack, latent(), audit=True)
    assert report.blocked == [True, True] and "No space left" in report.reasons[0] and not safe["samples"].any()


def test_log_survives_many_writers_and_rotates(pack, tmp_path):
    path = tmp_path / "log" / "safety.jsonl"

    def write(writer):
        for number in range(50):
            pack.host_audit.write_record({"writer": writer, "number": number}, path, max_bytes=4000)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = sorted(path.parent.glob("*.jsonl"))
    assert 2 <= len(files) <= 1 + pack.host_audit.KEPT
    records = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert len({(record["writer"], record["number"]) for record in records}) == len(records)
    assert all(file.stat().st_size <= 4100 for file in files)
    newest = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    assert newest["number"] == 49


# As a user wires it


def graph(**more) -> dict:
    inputs = {
        "latent": ["latents", 0], "latent_clip": ["world", 3], "concepts": "typed below", "typed": LINES, "categories": "",
        "thresholds": "1000", "on_block": "grey", "views": 0, "fit": "tiles", "audit_log": False, "log_prompt": False,
    }  # fmt: skip
    return {
        "world": {"class_type": "LatentCLIPShapesWorld", "inputs": {}},
        "latents": {
            "class_type": "TestMakeLatent",
            "inputs": {
                "batch_size": 3, "channels": 4, "height": 8, "width": 8, "seed": 0, "std": 7.0, "with_mask": False,
                "with_batch_index": False,
            },
        },
        "gate": {"class_type": "LatentCLIPSafetyGate", "inputs": inputs | more},
        **{
            f"dump_{name}": {"class_type": "TestDump", "inputs": {"value": ["gate", i], "name": f"gate_{name}"}}
            for i, name in enumerate(("safe", "blocked", "any_blocked", "report"))
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("thresholds", "blocked"), [("1000", [False] * 3), ("-1000", [True] * 3), ("none", [True] * 3)]
)
def test_node_over_http(comfy, thresholds, blocked):
    result = comfy.run(graph(thresholds=thresholds))
    assert list(comfy.dump("gate_blocked")) == blocked
    assert list(comfy.dump("gate_any_blocked")) == [any(blocked)]
    report = json.loads(comfy.dump("gate_report")[0])
    assert report["blocked"] == blocked
    ui = result.outputs["gate"]["latent_clip"][0]
    assert ui["kind"] == "safety" and len(ui["thumbnails"]) == 3
    assert bool(comfy.dump("gate_safe")[0]["samples"].any()) != any(blocked)
