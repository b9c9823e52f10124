"""After a run the cache leaves nothing in the network."""

from __future__ import annotations

import copy
import gc
import inspect

import paddle
from cached import Three, by_hand, random_batches
from networks import TwoLayers, conv_net
from paddle import nn

from paddle_freeze_callback import FreezeSchedule, HeadOnly


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
