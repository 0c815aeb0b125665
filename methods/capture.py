"""Functions of one tensor as recordings that a GPU plays back: CUDA graphs of the forward and the backward pass.

A network of small kernels waits for Python to launch them one after the other; a recording is launched at once. It knows one
shape, lies in memory of its own, and does again exactly what was done when it was made, so whatever decides in Python, waits for
the device or copies to it cannot be recorded. Then the function is called as it is, and `reason` says why.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor

from ..models.latent_spaces import LatentSpace
from .features import WindowFeatures
from .rewards import Encoder, Reward, WindowEncoder

Function = Callable[[Tensor], tuple[Tensor, ...]]
Generate = Callable[[Tensor, list[int]], Tensor]


class Recording(Protocol):
    """Recording of one function for one shape."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]: ...

    def backward(self, cotangents: tuple[Tensor, ...]) -> Tensor: ...


Record = Callable[[Function, Tensor], Recording]


class CudaRecording:
    """Two CUDA graphs over memory of their own, which no other recording shares."""

    def __init__(self, function: Function, example: Tensor):
        """Args:
        example: of the shape to record.

        Raises:
            RuntimeError: the function does something that cannot be recorded, or memory runs out.
        """
        self.given = example.detach().clone().requires_grad_()
        self._warm_up(function)
        pool = torch.cuda.graph_pool_handle()
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward_graph, pool=pool):
            results = function(self.given)
        self.cotangents = [torch.zeros_like(result) for result in results]
        with torch.cuda.graph(self.backward_graph, pool=pool):
            (self.gradient,) = torch.autograd.grad(results, self.given, self.cotangents)
        self.results = [result.detach() for result in results]

    def _warm_up(self, function: Function) -> None:
        """Run once on another stream, as PyTorch asks: libraries choose and allocate what they need the first time."""
        side, now = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(now)
        with torch.cuda.stream(side):
            results = function(self.given)
            torch.autograd.grad(results, self.given, [torch.zeros_like(result) for result in results])
        now.wait_stream(side)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            self.given.copy_(x)
        self.forward_graph.replay()
        return tuple(result.clone() for result in self.results)  # the next time they are written over

    def backward(self, cotangents: tuple[Tensor, ...]) -> Tensor:
        for kept, cotangent in zip(self.cotangents, cotangents):
            kept.copy_(cotangent)
        self.backward_graph.replay()
        return self.gradient.clone()


class _Played(torch.autograd.Function):
    @staticmethod
    def forward(ctx, player: "_Player", x: Tensor):
        player.played += 1
        ctx.player, ctx.turn = player, player.played
        return player.recording.forward(x)

    @staticmethod
    def backward(ctx, *cotangents: Tensor):
        if ctx.turn != ctx.player.played:
            raise RuntimeError(
                "A recording was played again before its backward pass, which would give the gradient of another input."
            )
        return None, ctx.player.recording.backward(cotangents)


class _Player:
    """A recording, and how often it was played."""

    def __init__(self, recording: Recording):
        self.recording, self.played = recording, 0


class Captured:
    """A function that is recorded the first time that a gradient is wanted for a shape, and played from then on.

    Attributes:
        reason: why it is called as it is; "" while it is not.
    """

    def __init__(self, function: Function, record: Record):
        self.function, self.record = function, record
        self.reason = ""
        self._players: dict[tuple, _Player] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        key = (x.shape, x.dtype)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self.function(x)  # a recording that is played overwrites what its own backward pass still needs
        if key not in self._players and not self.reason:
            self._try_to_record(key, x)
        player = self._players.get(key)
        return self.function(x) if player is None else _Played.apply(player, x)

    def _try_to_record(self, key: tuple, x: Tensor) -> None:
        try:
            self._players[key] = _Player(self.record(self.function, x))
        except RuntimeError as error:  # also out of memory: what is played needs no less than what is called
            self.reason = str(error).splitlines()[0][:200]
            self._players.clear()


class Buckets:
    """Batch items that are evaluated together: N, N/2 or N/4 of them, so that an item that ends forces no new recording."""

    def __init__(self, size: int):
        self.sizes = sorted({math.ceil(size / part) for part in (1, 2, 4)})
        self.members = list(range(size))

    def holding(self, items: list[int]) -> list[int]:
        """Return the items and, where the smallest bucket that holds them has room, others that were with them, in order."""
        size = next(size for size in self.sizes if size >= len(items))
        if size < len(self.members):
            others = [item for item in self.members if item not in items]
            self.members = sorted([*items, *others[: size - len(items)]])
        return self.members


class CapturedGenerator:
    """A `Generate` of `methods.reno` whose evaluations are recorded, a bucket at a time; the recordings of larger ones are let go."""

    def __init__(self, generate: Generate, size: int, record: Record):
        self.generate, self.record = generate, record
        self.buckets = Buckets(size)
        self._members: list[int] = []
        self._captured: Captured | None = None

    @property
    def reason(self) -> str:
        """See `Captured`."""
        return "" if self._captured is None else self._captured.reason

    def __call__(self, noise: Tensor, items: list[int]) -> Tensor:
        if self.reason:
            return self.generate(noise, items)
        members = self.buckets.holding(items)
        if self._captured is None or members != self._members:
            items_now = self._members = list(members)
            self._captured = None  # its memory is free before the next is made
            self._captured = Captured(lambda x: (self.generate(x, items_now),), self.record)
        if members == items:
            return self._captured(noise)[0]
        places = torch.tensor([members.index(item) for item in items]).to(noise.device)
        whole = noise.new_zeros(len(members), *noise.shape[1:]).index_copy(0, places, noise)
        return self._captured(whole)[0][places]


class CapturedEncoder:
    """Encoder whose evaluations are played back, but for those at a noise level; equal only to itself."""

    def __init__(self, encoder: Encoder, record: Record):
        self.encoder = encoder
        self._features = Captured(lambda raw: (encoder(raw),), record)

    @property
    def space(self) -> LatentSpace:
        return self.encoder.space

    @property
    def reads_clips(self) -> bool:
        return self.encoder.reads_clips

    @property
    def reason(self) -> str:
        """See `Captured`."""
        return self._features.reason

    def __call__(self, raw_latents: Tensor, noise_level: float | None = None) -> Tensor:
        return self._features(raw_latents)[0] if noise_level is None else self.encoder(raw_latents, noise_level)


class CapturedWindowEncoder(CapturedEncoder):
    """Window encoder whose evaluations are played back."""

    def __init__(self, encoder: WindowEncoder, record: Record):
        super().__init__(encoder, record)
        self.window_encoder = encoder
        self._windows = Captured(lambda raw: tuple(encoder.encode_windows(raw)), record)

    @property
    def plain(self) -> CapturedEncoder:
        return self

    @property
    def reason(self) -> str:
        return super().reason or self._windows.reason

    def encode_windows(self, raw_latents: Tensor, noise_level: float | None = None) -> WindowFeatures:
        if noise_level is not None:
            return self.window_encoder.encode_windows(raw_latents, noise_level)
        return WindowFeatures(*self._windows(raw_latents))


def captured_reward(reward: Reward, record: Record) -> tuple[Reward, list[CapturedEncoder]]:
    """Copy a reward so that its encoders are recorded the first time; returns (reward, those encoders)."""
    with_windows = {term.encoder: cast(WindowEncoder, term.encoder) for term in reward.terms if term.every_window}
    captured = {
        e: CapturedWindowEncoder(with_windows[e], record) if e in with_windows else CapturedEncoder(e, record)
        for e in reward.encoders
    }
    terms = tuple(replace(term, encoder=captured[term.encoder]) for term in reward.terms)
    return replace(reward, terms=terms), list(captured.values())
