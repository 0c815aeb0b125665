"""Faults in the data of a training: odd samples, odd tars, odd paths, damaged checkpoints; none of them ends a run unsaid."""

import json

import pytest
import torch
from safetensors.torch import save

pytest.importorskip("webdataset")

from latent_clip.training.shards import ShardError, decode_sample

zeros = torch.zeros
NAN = float("nan")
LEVELS = torch.tensor([0.2, 0.8])


def good(number=0):
    """Members of a sample that is right: one view of 4 × 8 × 8, features of 8 numbers, predictions at two levels."""
    generator = torch.Generator().manual_seed(number)
    latent, features = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 8, generator=generator)
    return {
        "latent.safetensors": save({"latent": latent}),
        "teacher.safetensors": save({"features": features}),
        "predictions.safetensors": save({"x0": zeros(2, 4, 8, 8), "levels": LEVELS}),
        "txt": b"a cat",
        "json": json.dumps({"id": str(number)}).encode(),
    }


def latent(**tensors):
    return {"latent.safetensors": save(tensors)}


def teacher(**tensors):
    return {"teacher.safetensors": save(tensors)}


def predictions(**tensors):
    return {"predictions.safetensors": save(tensors)}


DAMAGED = {
    "json is a list": ({"json": b"[]"}, "json is a list"),
    "json is nested 100,000 deep": ({"json": b"[" * 100_000 + b"]" * 100_000}, "RecursionError"),
    "json is cut off": ({"json": b'{"id"'}, "Expecting"),
    "json is not UTF-8": ({"json": b'{"id": "\xff"}'}, "utf-8"),
    "latent without views": (latent(latent=zeros(0, 4, 8, 8)), "shape"),
    "latent without cells": (latent(latent=zeros(1, 4, 0, 8)), "shape"),
    "latent of rank 3": (latent(latent=zeros(4, 8, 8)), "shape"),
    "latent of rank 5": (latent(latent=zeros(1, 4, 1, 8, 8)), "shape"),
    "latent of integers": (latent(latent=zeros(1, 4, 8, 8, dtype=torch.int8)), "int8"),
    "latent of complex numbers": (latent(latent=zeros(1, 4, 8, 8, dtype=torch.complex64)), "complex64"),
    "latent of 8-bit floats": (latent(latent=zeros(1, 4, 8, 8).to(torch.float8_e4m3fn)), "."),
    "NaN latent": (latent(latent=zeros(1, 4, 8, 8) * NAN), "NaN"),
    "no tensor in latent": (latent(), "expected latent"),
    "tensor of another name": (latent(x=zeros(1, 4, 8, 8)), "expected latent"),
    "mean without std": (latent(mean=zeros(1, 4, 8, 8)), "std"),
    "mean beside latent without std": (latent(mean=zeros(1, 4, 8, 8), latent=zeros(1, 4, 8, 8)), "std"),
    "std of fewer views": (latent(mean=zeros(2, 4, 8, 8), std=zeros(1, 4, 8, 8)), "std"),
    "negative std": (latent(mean=zeros(1, 4, 8, 8), std=zeros(1, 4, 8, 8) - 1), "below 0"),
    "damaged latent": ({"latent.safetensors": b"x"}, "Safetensor"),
    "damaged teacher": ({"teacher.safetensors": b"x"}, "Safetensor"),
    "teacher without views": (teacher(features=zeros(0, 8)), "features"),
    "teacher of two views": (teacher(features=zeros(2, 8)), "features"),
    "teacher of rank 1": (teacher(features=zeros(8)), "features"),
    "NaN teacher": (teacher(features=zeros(1, 8) * NAN), "features.*NaN"),
    "NaN patches": (teacher(features=zeros(1, 8), patches=zeros(4, 8) / 0), "patches.*NaN"),
    "patches of rank 3": (teacher(features=zeros(1, 8), patches=zeros(1, 4, 8)), "patches"),
    "predictions without levels": (predictions(x0=zeros(2, 4, 8, 8)), "without levels"),
    "predictions without x0": (predictions(levels=LEVELS), "without x0"),
    "more levels than predictions": (predictions(x0=zeros(1, 4, 8, 8), levels=zeros(9)), "x0"),
    "predictions of other channels": (predictions(x0=zeros(2, 3, 8, 8), levels=LEVELS), "x0"),
    "predictions of other cells": (predictions(x0=zeros(2, 4, 4, 8), levels=LEVELS), "x0"),
    "NaN prediction": (predictions(x0=zeros(2, 4, 8, 8) * NAN, levels=LEVELS), "x0.*NaN"),
    "level above 1": (predictions(x0=zeros(2, 4, 8, 8), levels=LEVELS * 2), "0 to 1"),
    "NaN level": (predictions(x0=zeros(2, 4, 8, 8), levels=LEVELS * NAN), "levels.*NaN"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_sample_is_a_shard_error_with_its_reason(change, reason):
    assert decode_sample(good()).captions == ["a cat"]
    with pytest.raises(ShardError, match=f"unusable sample.*{reason}"):
        decode_sample(good() | change)


def test_a_sample_without_an_id_has_the_name_of_its_members():
    sample = decode_sample({**good(), "json": b"{}", "__key__": b"folder/a"})
    assert sample.id == "folder/a"


def test_memory_that_runs_out_is_no_damaged_sample(monkeypatch):
    def out(content):
        raise MemoryError

    monkeypatch.setattr("latent_clip.training.shards.load", out)
    with pytest.raises(MemoryError):
        decode_sample(good())
