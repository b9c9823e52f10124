"""Features go from the device that computes them to where they are kept, and back."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from cached import Three, Twice, by_hand, random_batches

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.cache import replay


class Place:
    """A place that says it is a GPU, or that it is none."""

    def __init__(self, gpu: bool) -> None:
        self._gpu = gpu

    def is_gpu_place(self) -> bool:
        return self._gpu


@pytest.mark.parametrize("inputs", [1, 2])
def test_features_leave_the_device_once_a_batch_and_come_back_once_a_batch(monkeypatch, inputs):
    build = Twice if inputs == 2 else Three
    batches = list(zip(*[random_batches([6])] * inputs))
    there, back = [], []
    read, sent = replay.array_of, replay._sent
    monkeypatch.setattr(replay, "array_of", lambda one: (there.append(one.shape), read(one))[1])
    monkeypatch.setattr(replay, "_sent", lambda *one: (back.append(one[0].shape), sent(*one))[1])
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")
    _, done, _ = by_hand(build(), schedule, batches)
    assert (done.hits, done.misses) == (8 * 4, 4 * 4)
    assert there == [[4, 6]] * (1 + 4)  # of the first batch, also to say how large it is
    assert back == [(4, 6)] * 8


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("cuda", [True, False])
def test_a_gpu_reads_them_from_pinned_memory(monkeypatch, gpu, cuda):
    steps = []
    real, place = paddle.to_tensor, Place(gpu)

    def made(array, place):
        steps.append(place)
        return real(array)

    def moved(self, place, blocking):
        steps.append((place, blocking))
        return self

    monkeypatch.setattr(paddle, "to_tensor", made)
    monkeypatch.setattr(paddle.Tensor, "to", moved)
    monkeypatch.setattr(paddle, "CUDAPinnedPlace", lambda: "pinned")
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: cuda)
    array = np.arange(6, dtype="float16").reshape(2, 3)
    found = replay._tensor(array, paddle.float32, place)
    assert steps == (["pinned", (place, True)] if gpu and cuda else [place])
    assert (found.dtype, found.tolist()) == (paddle.float32, array.tolist())
