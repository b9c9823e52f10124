"""The options of the cache: what they change, and which are refused."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from cached import both, by_hand, random_batches
from networks import conv_net, values
from paddle import nn

from paddle_freeze_callback import FreezeSchedule, HeadOnly
from paddle_freeze_callback.cache.options import bytes_of


def test_a_full_cache_keeps_what_it_has_and_computes_the_rest():
    batches = random_batches([1, 6, 6])
    statistics, lines = both(conv_net, batches, {0: "fc"}, cache_limit=6 * 4 * 36 * 4)
    # a batch is kept as a whole: that the same batches give the same numbers bit for bit
    assert statistics.nbytes == 4 * 4 * 36 * 4
    assert statistics.rows == 4
    assert any(line.startswith("cache full: 4 samples in") for line in lines)
    assert statistics.hits > 0


def test_half_precision_halves_the_bytes_and_is_near():
    losses = {}
    for dtype in (None, "float16"):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "fc"}, cache="memory", cache_dtype=dtype)
        found, statistics, _ = by_hand(conv_net(), schedule, random_batches([1, 6, 6]))
        losses[dtype] = np.frombuffer(b"".join(found), "float32")
        assert statistics.nbytes == 16 * 4 * 36 * (2 if dtype else 4)
    np.testing.assert_allclose(losses["float16"], losses[None], rtol=1e-2)
    assert (losses["float16"] != losses[None]).any()


def looped(network, schedule, meddle):
    """Two batches again and again; after ten steps somebody meddles with the network."""
    optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
    batches = random_batches([1, 6, 6], 2)
    with schedule.attach(network, optimizer, epochs=20, steps_per_epoch=2) as freezing:
        for step in range(20):
            network.train()
            network(batches[step % 2]).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
            if step == 9:
                meddle(network)
    return values(network)


def test_a_frozen_weight_that_changes_is_noticed_and_switches_it_off():
    def as_a_loaded_checkpoint(network):
        for tensor in network.block1.parameters():
            tensor.set_value(tensor * 2)

    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    looped(conv_net(), schedule, as_a_loaded_checkpoint)
    assert "changed although it is frozen" in schedule.run.cache.off[0]
    assert schedule.run.cache.hits > 0


def test_a_batch_is_compared_now_and_then_and_what_changed_is_an_error():
    """An option of a frozen layer, which nothing but a comparison tells."""

    class Option(type(conv_net())):
        factor = 1.0

        def forward(self, x):
            x = self.block3(self.block2(self.block1(x) * self.factor))
            return self.fc(x.mean(axis=[2, 3]))

    def louder(network):
        network.factor = 3.0

    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory", cache_check_every=2)
    with pytest.raises(RuntimeError, match=r"other features of a sample than.*\(block3\)"):
        looped(Option(), schedule, louder)


def test_a_frozen_rnn_below_the_head_changes_nothing():
    class Reader(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(50, 6), nn.LSTM(6, 6)
            self.c = nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.rnn(self.embedding(x))[0][:, -1])

    statistics, _ = both(Reader, random_batches([5], whole=50), {0: "c"})
    assert statistics.boundary == ("embedding",)  # Paddle says that its RNN needs a gradient
    assert statistics.hits > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": 3}, 'cache=3 must be "memory", "disk" or a folder'),
        ({"cache": True}, "cache=True must be"),
        ({"cache": ""}, "cache='' must be"),
        ({"cache": __file__}, "is a file, not a folder"),
        ({"cache_limit": "4 GB"}, "cache_limit='4 GB' has no effect without cache="),
        ({"cache": "memory", "cache_limit": "much"}, "cache_limit='much' must be bytes, or text"),
        ({"cache": "memory", "cache_limit": 0}, "cache_limit=0 must be bytes"),
        ({"cache": "memory", "cache_limit": 1.5}, "cache_limit=1.5 must be bytes"),
        ({"cache": "memory", "cache_dtype": "int8"}, "cache_dtype='int8' must be 'float16' or"),
        ({"cache": "memory", "cache_check_every": 0}, "cache_check_every=0 must be a whole number"),
        ({"cache": "memory", "frozen_dropout": "train"}, "and frozen_dropout='train' contradict"),
        ({"cache": "memory", "frozen_norm": "train"}, "and frozen_norm='train' contradict"),
    ],
)
def test_wrong_options_are_refused_with_what_to_do(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FreezeSchedule(**options)


def test_sizes_are_read_as_people_write_them():
    assert bytes_of("x", "4 GB") == 4 * 2**30
    assert bytes_of("x", "1.5kb") == 1536
    assert bytes_of("x", 77) == 77
