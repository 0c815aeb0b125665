"""Protocols of encoders whose networks the host loads."""

from typing import Protocol, cast

import comfy.model_patcher
import torch

from ...methods.rewards import Encoder, WindowEncoder
from ..memory.oom import BatchLimit


class HostEncoder(Encoder, Protocol):
    """Encoder whose networks the host loads.

    Attributes:
        patchers: its networks.
        backward_cost: times `memory_per_item` that an evaluation with gradients needs.
        limit: largest batches that had room; encoders of one network share it.
    """

    backward_cost: int

    @property
    def limit(self) -> BatchLimit: ...

    @property
    def patchers(self) -> list[comfy.model_patcher.ModelPatcher]: ...

    def memory_per_item(self, shape: torch.Size) -> int:
        """Bytes that one latent of (B, C, H, W) needs in the forward pass."""
        ...


class HostWindowEncoder(HostEncoder, WindowEncoder, Protocol):
    """`WindowEncoder` whose networks the host loads."""


class HasEncoders(Protocol):
    """Anything that reads latents through encoders: a reward, an objective, a monitor."""

    @property
    def encoders(self) -> list[Encoder]: ...


def networks_of(*owners: HasEncoders | None) -> list[comfy.model_patcher.ModelPatcher]:
    """List the distinct networks of all encoders of the owners that are not None."""
    every = [p for owner in owners if owner is not None for e in host_encoders(owner) for p in e.patchers]
    return list({id(patcher): patcher for patcher in every}.values())


def host_encoders(owner: HasEncoders) -> list[HostEncoder]:
    """List the distinct encoders of an object that this pack's nodes made, where every encoder is a `HostEncoder`."""
    return cast(list[HostEncoder], owner.encoders)


def forget_limits(encoders: list[HostEncoder]) -> None:
    """Let encoders try whole batches again; call it after the host was asked to make room for them."""
    for encoder in encoders:
        encoder.limit.forget()
