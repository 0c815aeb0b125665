"""What an encoder in the host's care offers beyond its features."""

from typing import Protocol, cast

import comfy.model_patcher
import torch

from ...methods.rewards import Encoder, WindowEncoder
from ..memory.oom import BatchLimit


class HostEncoder(Encoder, Protocol):
    """An encoder whose networks the host loads.

    Attributes:
        patchers: its networks.
        backward: times `memory_per_item` that an evaluation with gradients needs.
        limit: largest batches that had room; encoders of one network share it.
    """

    backward_cost: int

    @property
    def limit(self) -> BatchLimit: ...

    @property
    def patchers(self) -> list[comfy.model_patcher.ModelPatcher]: ...

    def memory_per_item(self, shape: torch.Size) -> int:
        """Bytes that one latent of (B, C, H, W) needs on the way forward."""
        ...


class HostWindowEncoder(HostEncoder, WindowEncoder, Protocol):
    """A `WindowEncoder` whose networks the host loads."""


class Judge(Protocol):
    """What looks at latents through encoders: a reward, an objective, a watch."""

    @property
    def encoders(self) -> list[Encoder]: ...


def networks_of(*judges: Judge | None) -> list[comfy.model_patcher.ModelPatcher]:
    """The distinct networks of some judges, of whom some may be missing."""
    every = [p for judge in judges if judge is not None for e in host_encoders(judge) for p in e.patchers]
    return list({id(patcher): patcher for patcher in every}.values())


def host_encoders(judge: Judge) -> list[HostEncoder]:
    """The distinct encoders of what was made by this pack's nodes, where every encoder is one of these."""
    return cast(list[HostEncoder], judge.encoders)


def forget_limits(encoders: list[HostEncoder]) -> None:
    """Let encoders try whole batches again; to be called where the host has just been asked to make room for them."""
    for encoder in encoders:
        encoder.limit.forget()
