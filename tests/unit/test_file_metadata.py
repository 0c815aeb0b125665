"""Metadata of files: records written and read, keys of files of version 0.2, damaged records."""

import json

import pytest
from safetensors.torch import load_file, save_file

from latent_clip.models.checkpoint import CheckpointError, read_checkpoint
from latent_clip.models.file_metadata import (
    decode,
    encode,
    latent_clip_metadata,
    object_of,
    space_of_metadata,
    training_of,
)
from latent_clip.models.latent_spaces import LATENT_SPACES, LatentSpace
from latent_clip.tests.checkpoints import TINY_CONFIG, tiny_latent_clip
from latent_clip.training.release import model_card


def test_records_come_back_as_they_were_written():
    records = {"vae": {"name": "ä"}, "teacher": None, "figures": [1, 2.5]}
    assert {key: decode(encode(records), key) for key in records} == records and decode({}, "vae") is None


def test_latent_clip_file_brings_its_own_space():
    space = LatentSpace("mine", 5, 8, (1.0, 2.0, 3.0, 4.0, 5.0), 0.5, "of a test")
    assert space_of_metadata(latent_clip_metadata("a", {}, space)) == space
    assert space_of_metadata({}) is LATENT_SPACES["sdxl"]


def test_keys_of_files_of_0_2_are_read_under_todays_names():
    old = {"lr": 1.0, "seconds of the last sitting": 7, "leash": {"l1": 1.0}}
    assert training_of(encode({"training": old})) == {"lr": 1.0, "training seconds (last session)": 7, "regularisers": {"l1": 1.0}}
    assert training_of({}) == {}


def write(path, **records):
    model = tiny_latent_clip()
    save_file(model.state_dict(), path, latent_clip_metadata("tiny", TINY_CONFIG, LATENT_SPACES["sdxl"], records))
    return path


def test_card_of_a_file_of_0_2_has_todays_words(tmp_path):
    card = model_card(write(tmp_path / "old.safetensors", training={"seconds of the last sitting": 7}, vae={"name": "v"}, teacher=None, data={}))
    assert "training seconds (last session): 7" in card and "sitting" not in card


@pytest.mark.parametrize("damaged", ["[1]", "no json", "3"])
def test_damaged_record_names_the_file_and_the_record(damaged, tmp_path):
    with pytest.raises(ValueError, match="teacher"):
        object_of({"teacher": damaged}, "teacher")
    path = write(tmp_path / "mine.safetensors", training={"lr": 1.0})
    tensors, metadata = load_file(path), read_checkpoint(path).metadata
    save_file(tensors, path, metadata | {"teacher": damaged})
    with pytest.raises(CheckpointError, match=r"mine\.safetensors: .*teacher"):
        model_card(path)
    save_file(tensors, path, {key: value for key, value in metadata.items() if key != "training"})
    with pytest.raises(CheckpointError, match="no metadata about its training"):
        model_card(path)
    assert json.loads(metadata["config"]) == TINY_CONFIG
