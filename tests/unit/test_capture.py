"""CUDA graphs on a GPU that is not there: what is played back is what is computed, whatever of a batch is left, or the reason why not."""

import pytest
import torch

from latent_clip.methods.augmentations import Augmentations
from latent_clip.methods.capture import Buckets, Captured, CapturedGenerator, CudaRecording, captured_reward
from latent_clip.methods.features import WindowFeatures
from latent_clip.methods.reno import RenoSettings, optimize_noise
from latent_clip.methods.rewards import Reward, Term
from latent_clip.models.latent_spaces import LATENT_SPACES
from latent_clip.tests import emulated_gpu

pytestmark = pytest.mark.skipif(not emulated_gpu.AVAILABLE, reason="this torch lets no test register a device")


@pytest.fixture
def gpu():
    with emulated_gpu.EmulatedGPU() as active:
        yield active


@pytest.fixture
def graphs(gpu, monkeypatch):
    """Every graph that is made."""
    return emulated_gpu.with_graphs(monkeypatch)


def there(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(emulated_gpu.device())


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class World:
    """A generator and a reward with windows, each on its own device."""

    space, reads_clips = LATENT_SPACES["sdxl"], False

    def __init__(self, to=lambda tensor: tensor):
        self.weight, self.head = to(seeded(4, 4, 3, 3, seed=1) / 6), to(seeded(256, 8, seed=2) / 16)
        self.prompts = to(seeded(6, 4, 1, 1, seed=3))
        direction = to(seeded(8, seed=4))
        self.evaluations = 0
        self.reward = Reward((
            Term("match", self, lambda f: f @ direction),
            Term("worst", self, lambda w: -w.amax(dim=(1, 2)), 0.1, every_window=True),
        ))  # fmt: skip

    def generate(self, noise, items):
        """Every item has a prompt of its own, which a recording keeps."""
        self.evaluations += 1
        mixed = torch.nn.functional.conv2d(noise, self.weight, padding=1)
        return 3 * torch.tanh(
            mixed + self.prompts[items[0] : items[-1] + 1] if contiguous(items) else mixed + self._prompts(items)
        )

    def _prompts(self, items):
        return torch.cat([self.prompts[item : item + 1] for item in items])

    def __call__(self, raw_latents, noise_level=None):
        return torch.nn.functional.normalize(raw_latents.flatten(1) @ self.head, dim=1)

    plain = property(lambda self: self)

    def encode_windows(self, raw_latents, noise_level=None):
        return WindowFeatures(self(raw_latents), torch.stack([self(raw_latents), self(-raw_latents)], dim=1))


def contiguous(items: list[int]) -> bool:
    return items == list(range(items[0], items[-1] + 1))


@pytest.mark.parametrize("views", [None, Augmentations(noise=0.1)], ids=["plain", "views"])
@pytest.mark.parametrize("size", [1, 6])
def test_captured_run_is_the_same_run(gpu, graphs, size, views):
    """Items end one after the other by a target; the generator is recorded once for every bucket, and called no more."""
    settings = RenoSettings(iterations=16, learning_rate=3.0, target=1.5 if size > 1 else None, views=views)
    start = seeded(size, 4, 8, 8, seed=5)
    expected = optimize_noise((plain := World()).generate, plain.reward, start, settings)
    world = World(there)
    generate = CapturedGenerator(world.generate, size, CudaRecording)
    reward, encoders = captured_reward(world.reward, CudaRecording)
    found = optimize_noise(generate, reward, there(start), settings)
    assert not generate.reason and not any(encoder.reason for encoder in encoders)
    for name in ("rewards", "noise", "latents", "first_latents"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), atol=1e-4, rtol=1e-4)
    assert found.stop_reasons == expected.stop_reasons
    assert [step.items for step in found.iterations] == [step.items for step in expected.iterations]
    left = {len(step.items) for step in expected.iterations}
    assert len(left) > 2 or size == 1, "the run is to lose items on its way"
    buckets = {next(n for n in Buckets(size).sizes if n >= count) for count in left}
    called = int(len(expected.iterations) == settings.iterations)  # the last of all has no backward pass
    assert world.evaluations == 2 * len(buckets) + called  # once to warm up, once to record
    assert sum(graph.replays for graph in graphs) >= 3 * (len(expected.iterations) - 1)


@pytest.mark.parametrize(("size", "sizes"), [(1, [1]), (2, [1, 2]), (6, [2, 3, 6]), (8, [2, 4, 8])])
def test_buckets(size, sizes):
    assert Buckets(size).sizes == sizes


def test_bucket_stays_the_same_until_a_smaller_one_holds_what_is_left():
    buckets = Buckets(8)
    assert buckets.holding([*range(8)]) == [*range(8)] and buckets.holding([0, 2, 3, 5, 7]) == [*range(8)]
    assert buckets.holding([2, 5, 7]) == [0, 2, 5, 7] and buckets.holding([5, 7, 2]) == [0, 2, 5, 7]
    assert buckets.holding([7]) == [0, 7]


@pytest.mark.parametrize(
    "unfit",
    [
        lambda x: x * float(x.sum().item() > -1e9),
        lambda x: x * there(torch.ones(8, 8)),
        lambda x: x[x[:, 0, 0, 0] > -1e9],
    ],
    ids=["waits", "copies", "counts"],
)
def test_what_cannot_be_recorded_is_called_as_it_is(gpu, graphs, unfit):
    captured = Captured(lambda x: (unfit(x),), CudaRecording)
    for seed in (0, 1):
        x = seeded(2, 4, 8, 8, seed=seed)
        torch.testing.assert_close(captured(there(x).requires_grad_())[0].detach().cpu(), x)
        assert "not permitted when stream is capturing" in captured.reason
    assert not any(graph.replays for graph in graphs)


def test_out_of_memory_is_a_reason_too(gpu):
    def record(function, example):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB\nmore")

    captured = Captured(lambda x: (2 * x,), record)
    assert captured(seeded(3).requires_grad_())[0].equal(2 * seeded(3))
    assert captured.reason == "CUDA out of memory. Tried to allocate 3 GiB"


def test_way_back_after_another_way_there_is_refused(gpu, graphs):
    """It would be that of the other's activations, in silence."""
    captured = Captured(lambda x: (x.square(),), CudaRecording)
    x = there(seeded(3)).requires_grad_()
    first, second = captured(x)[0], captured(x)[0]
    assert torch.autograd.grad(second.sum(), x)[0].shape == x.shape
    with pytest.raises(RuntimeError, match="played again before its backward pass"):
        torch.autograd.grad(first.sum(), x)


def test_results_are_not_written_over(gpu, graphs):
    captured = Captured(lambda x: (x * 2,), CudaRecording)
    first = captured(there(seeded(3)).requires_grad_())[0]
    second = captured(there(seeded(3, seed=1)))[0]  # nothing is recorded for it
    torch.testing.assert_close(first.detach().cpu(), 2 * seeded(3))
    torch.testing.assert_close(second.cpu(), 2 * seeded(3, seed=1))
    assert len(graphs) == 2 and graphs[0].replays == 1 and graphs[1].replays == 0


def test_another_error_comes_out(gpu, graphs):
    def wrong(x):
        raise ValueError("Got something wrong")

    with pytest.raises(ValueError, match="Got something wrong"):
        Captured(wrong, CudaRecording)(there(seeded(3)).requires_grad_())
