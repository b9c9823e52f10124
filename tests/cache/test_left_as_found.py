"""After a run the cache leaves nothing in the network."""

from __future__ import annotations

import copy
import gc
import inspect
import random
import threading
from contextlib import contextmanager

import numpy as np
import paddle
import pytest
from cached import Three, by_hand, off_reason, random_batches
from networks import TwoLayers, conv_net, values
from paddle import nn

from paddle_freeze_callback import FreezeSchedule, HeadOnly
from paddle_freeze_callback.cache import state, trial
from paddle_freeze_callback.cache.watch import ForwardWatch


def test_after_training_the_network_is_as_it_was_and_computes_for_itself():
    network = conv_net()
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    batches = random_batches([1, 6, 6])
    by_hand(network, schedule, batches)
    assert all("forward" not in layer.__dict__ for layer in network.sublayers(include_self=True))
    network.eval()
    before = network(batches[0]).numpy()
    with paddle.no_grad():
        network.block1[0].weight.set_value(network.block1[0].weight * 2)
    assert (network(batches[0]).numpy() != before).any()


def test_an_abandoned_run_leaves_no_patch():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    freezing = FreezeSchedule(strategy=HeadOnly(), cache="memory").attach(
        network, optimizer, total_steps=9
    )
    assert "forward" in network.__dict__
    network(random_batches([1, 6, 6])[0])
    del freezing
    gc.collect()
    assert all("forward" not in layer.__dict__ for layer in network.sublayers(include_self=True))


def test_copies_state_and_signature_are_those_of_the_network():
    network = conv_net()
    names, signature = list(network.state_dict()), inspect.signature(network.forward)
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    batch = random_batches([1, 6, 6])[0]
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        for _ in range(3):
            network(batch).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
        assert schedule.run.cache.hits == 4
        assert list(network.state_dict()) == names
        assert inspect.signature(network.forward) == signature
        other = copy.deepcopy(network)
        hits = schedule.run.cache.hits
        network.eval(), other.eval()
        with paddle.no_grad():
            other.block1[0].weight.set_value(other.block1[0].weight * 3)
            assert (other(batch).numpy() != network(batch).numpy()).any()
        assert schedule.run.cache.hits in (hits, hits + 4)


def test_a_forward_that_the_user_had_put_there_stays():
    network = TwoLayers()
    calls = []

    def mine(x):
        calls.append(1)
        return TwoLayers.forward(network, x)

    network.forward = mine
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    by_hand(network, schedule, random_batches([4]))
    assert network.__dict__["forward"] is mine
    assert len(calls) >= 12


def test_what_only_a_trial_puts_into_an_empty_list_or_dictionary_is_gone():
    class Notes(nn.Linear):
        def __init__(self):
            super().__init__(6, 6)
            self.names, self.list = {}, []

        def forward(self, x):
            if bool(paddle.isnan(x).any()):
                notes.append(1)
                self.names["seen"] = 1
                self.list.append(1)
            return super().forward(x)

    notes = []
    network = Three()
    network.c = Notes()
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")
    _, done, _ = by_hand(network, schedule, random_batches([6]))
    assert notes
    assert (network.c.names, network.c.list) == ({}, [])
    assert done.hits


@contextmanager
def another_thread():
    """As a loader has one; it waits."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_thread_that_draws_numbers_during_a_trial_gets_those_it_would_have_got(monkeypatch):
    """A data set that draws, read ahead by a loader: a seed gives one run, also with the cache."""
    drawn = []

    def drawing(tried):
        def one_more(*given):
            drawn.append((np.random.rand(), random.random()))
            return tried(*given)

        return one_more

    monkeypatch.setattr(ForwardWatch, "planned", drawing(ForwardWatch.planned))
    # The forward of the training loop itself is traced, too; a draw there is one of the network.
    alone = ForwardWatch.traced
    monkeypatch.setattr(
        ForwardWatch, "traced",
        lambda self, original, args, kwargs, trace=None: (
            drawing(alone) if trace is not None and trace.until else alone
        )(self, original, args, kwargs, trace),
    )  # fmt: skip
    changed = trial.changed  # in between, while nothing of the network runs
    monkeypatch.setattr(trial, "changed", drawing(changed))
    np.random.seed(7), random.seed(7)
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")
    with another_thread():
        by_hand(Three(), schedule, random_batches([6]))
    assert schedule.run.cache.hits == 32
    assert len(drawn) > 8 + 6
    np.random.seed(7), random.seed(7)
    assert drawn == [(np.random.rand(), random.random()) for _ in drawn]


class Remembers(Three):
    def forward(self, x):
        self.seen = self.a(x)
        return self.c(self.b(self.seen))


def test_what_a_network_gave_away_in_earlier_steps_keeps_its_values():
    """Trials fill the tensors in attributes with large numbers; those of earlier steps, too."""
    network, given = Remembers(), []
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.c.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        for batch in random_batches([6], 8):
            network(batch).sum().backward()
            given.append((network.seen, network.seen.numpy()))
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    assert schedule.run.cache.rows == 32
    for tensor, numbers in given:
        np.testing.assert_array_equal(tensor.numpy(), numbers)


class MovesAndReplaces(Three):
    def __init__(self) -> None:
        super().__init__()
        self.seen = paddle.zeros([6])

    def forward(self, x):
        given, inner = self.seen, self.a(x)
        given.set_value(inner.mean(0))
        self.seen = paddle.zeros([6])
        return self.c(self.b(inner))


def test_a_tensor_that_a_forward_moves_and_gives_away_is_as_that_forward_left_it():
    given = []
    for cache in (None, "memory"):
        paddle.seed(5)
        network, seen = MovesAndReplaces(), []
        optimizer = paddle.optimizer.SGD(0.1, parameters=network.c.parameters())
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache=cache)
        with schedule.attach(network, optimizer, total_steps=9) as freezing:
            for batch in random_batches([6], 8):
                seen.append(network.seen)
                network(batch).sum().backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
        given.append([tensor.numpy() for tensor in seen])
    np.testing.assert_array_equal(given[1], given[0])


class DrawsAndPutsBack(Three):
    def forward(self, x):
        state = np.random.get_state()
        noise = np.random.rand(6).astype("float32")
        np.random.set_state(state)
        return self.c(self.b(self.a(x + paddle.to_tensor(noise))))


def test_a_draw_that_is_put_back_is_seen_where_no_other_thread_draws(monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # earlier tests may leave some
    assert "random numbers" in off_reason(DrawsAndPutsBack(), random_batches([6]))


@pytest.mark.parametrize("nth", range(1, 11))
def test_an_interrupt_while_a_trial_is_undone_leaves_the_weights(monkeypatch, nth):
    network, batches = conv_net(), random_batches([1, 6, 6], 6)
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    network.train()
    set_value, count = paddle.Tensor.set_value, []

    def interrupted(self, value):
        count.append(1)
        if len(count) == nth:
            raise KeyboardInterrupt
        return set_value(self, value)

    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        before = values(network)
        monkeypatch.setattr(paddle.Tensor, "set_value", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for batch in batches:
                network(batch).sum().backward()
                optimizer.clear_grad()
                freezing.step()
        monkeypatch.setattr(paddle.Tensor, "set_value", set_value)
        now = values(network)
        for name, _ in network.named_parameters():
            np.testing.assert_array_equal(now[name], before[name])


def test_beside_a_gpu_the_generator_of_the_processor_is_put_back_too(monkeypatch):
    """A seed is for both. The device is played here: what is asked and put back is recorded."""
    asked, put = [], []
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(
        paddle, "get_rng_state", lambda device="gpu": (asked.append(device), device)
    )
    monkeypatch.setattr(
        paddle, "set_rng_state", lambda state, device="gpu": put.append((state[1], device))
    )
    monkeypatch.setattr(state, "_RELEASE", (3, 3))
    state._put_paddle_back(state._paddle_states())
    assert asked == ["gpu", "cpu"]
    assert put == [("gpu", "gpu"), ("cpu", "cpu")]
