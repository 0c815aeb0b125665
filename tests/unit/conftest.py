"""Unit tests use small tensors, for which threads only cost: on a busy machine one thread is three times as fast."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
