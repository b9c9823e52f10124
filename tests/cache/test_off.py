"""The cache is off where features cannot be kept, and gives the reason."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from cached import Three, Twice, by_hand, off_reason, random_batches
from networks import Images, conv_net, model_for
from paddle import nn

from paddle_freeze_callback import FreezeSchedule, HeadOnly


class FunctionalDropout(Three):
    def forward(self, x):
        return self.c(self.b(nn.functional.dropout(self.a(x), training=self.training)))


class LooksAtOthers(Three):
    def forward(self, x):
        inner = self.a(x)
        return self.c(self.b(inner - inner.mean(0)))


class NoBatchAtTheBoundary(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x).reshape([2, -1, 6])).reshape([-1, 6]))


class OpenFirst(Three):
    def forward(self, x):
        return self.b(self.a(self.c(x)))


class Unused(Three):
    def forward(self, x):
        self.a(x)
        return self.c(x)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (FunctionalDropout, "random numbers are drawn before the end of b"),
        (LooksAtOthers, "they depend on open layers, on the other samples of the batch"),
        (NoBatchAtTheBoundary, "whose first side is not the batch of 4"),
        (OpenFirst, "no frozen layer comes before the open ones"),
        (Unused, "does not depend on its frozen layers"),
    ],
)
def test_a_prefix_that_cannot_be_kept_switches_the_cache_off_and_says_why(build, why):
    """And the run is the same as without."""
    batches = random_batches([6])
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, **options)
        runs.append(by_hand(build(), schedule, batches)[0])
    assert runs[0] == runs[1]
    assert why in off_reason(build(), batches)


def test_a_preview_makes_every_check():
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")
    table = schedule.preview(LooksAtOthers(), total_steps=9, batch=random_batches([6], 1)[0])
    assert table.cache_bytes == {}
    assert any("on the other samples of the batch" in note for note in table.notes)


def test_inputs_without_a_common_batch_switch_it_off():
    batches = [(one, one[:1]) for one in random_batches([6])]
    assert "have no common first side" in off_reason(Twice(), batches)


def test_a_hook_of_the_users_switches_it_off():
    """It would see placeholders, or nothing."""
    network, seen = Three(), []
    network.a.register_forward_post_hook(lambda layer, i, o: seen.append(float(o.sum())))
    assert "a has a forward hook, which would not see" in off_reason(network, random_batches([6]))
    assert len(seen) == 12
    network, seen = Three(), []
    network.c.register_forward_post_hook(lambda layer, i, o: seen.append(float(o.sum())))
    assert "c has a forward hook" in off_reason(network, random_batches([6]))
    assert len(seen) == 12  # one call of its own too many would be wrong as well


def test_random_augmentation_makes_it_give_up_after_two_epochs():
    random = np.random.RandomState(3)  # of its own: the data is read in another thread

    class Augmented(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + np.float32(random.rand()), label

    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    model_for(conv_net()).fit(Augmented(), batch_size=4, epochs=5, verbose=0, callbacks=[schedule])
    # The thread of the loader may draw its numbers while the network is tried out.
    reasons = ("almost no sample came twice in two epochs", "by a thread that loads data")
    assert any(reason in schedule.run.cache.off[0] for reason in reasons)
    assert schedule.run.cache.rows == 0


def test_every_reason_why_it_was_off_is_kept():
    from paddle.distributed.fleet.utils import recompute

    class Recomputed(Three):
        def forward(self, x):
            return self.c(recompute(self.b, self.a(x)))

    schedule = FreezeSchedule(unfreeze_at={0: ["b", "c"], "6 steps": "*"}, cache="memory")
    _, statistics, lines = by_hand(Recomputed(), schedule, random_batches([6]))
    first, last = statistics.off
    assert "recomputed" in first
    assert last == "no layer is frozen as a whole"
    assert [line for line in lines if "cache off" in line] == [
        f"cache off until the next transition: {why}" for why in statistics.off
    ]


def test_layers_that_are_recomputed_switch_it_off(tmp_path):
    from paddle.distributed.fleet.utils import recompute

    class Recomputed(Three):
        def forward(self, x):
            return self.c(recompute(self.b, self.a(x)))

    network = Recomputed()
    schedule = FreezeSchedule(unfreeze_at={0: ["b", "c"]}, cache="memory")
    _, statistics, _ = by_hand(network, schedule, random_batches([6]))
    assert "recomputed" in statistics.off[0]
