"""In a phase that ends before samples come again, the cache waits for one that does."""

from __future__ import annotations

import paddle
import pytest
from cached import by_hand, random_batches
from networks import conv_net

from paddle_freeze_callback import FreezeSchedule, HeadOnly

WAITS = "cache waits until a sample comes again: few do in this phase"
PLAN = {0: "fc", 1: "block3", 2: "block2"}  # a layer in each of the first epochs


def gradual(plan=PLAN, epochs=4, steps_per_epoch=None, **options):
    """Losses, what the cache did, and its lines, of a run with four batches an epoch."""
    schedule = FreezeSchedule(unfreeze_at=plan, **options)
    batches = random_batches([1, 6, 6])
    losses, done, lines = by_hand(conv_net(), schedule, batches, epochs, steps_per_epoch)
    return losses, done, [line for line in lines if line.startswith("cache")]


@pytest.mark.filterwarnings("ignore:what is frozen never stays")
def test_a_phase_that_ends_before_samples_come_again_is_not_tried_out():
    """The last one lasts, and is."""
    plain, _, _ = gradual(frozen_dropout="eval")
    losses, done, lines = gradual(cache="memory")
    assert losses == plain
    assert lines[:2] == [WAITS, WAITS]
    assert len(lines) == 3
    assert lines[2].startswith("cache on: keeps the output of block1")
    assert done.hits == done.misses == 16
    assert done.off == ()


def test_a_folder_is_filled_in_such_a_phase_too_for_the_next_run(tmp_path):
    _, first, lines = gradual(cache=tmp_path)
    _, second, again = gradual(cache=tmp_path)
    assert WAITS not in lines + again
    assert second.hits > first.hits


def test_features_that_are_there_serve_a_short_phase():
    plan = {0: ["fc", "block3", "block2"], 2: {"freeze": "fc"}}
    _, done, lines = gradual(plan, 3, cache="memory")
    assert WAITS not in lines
    assert done.hits > 16, "in the second epoch, and in the third"


def test_samples_that_come_again_in_spite_of_what_was_announced_are_replayed():
    """Four batches an epoch, and twelve are said to be one."""
    plain, _, _ = gradual({0: "fc"}, 3, 12, frozen_dropout="eval")
    losses, done, lines = gradual({0: "fc"}, 3, 12, cache="memory")
    assert losses == plain
    assert lines[0] == WAITS
    assert lines[1].startswith("cache on")
    assert (done.hits, done.misses) == (16, 16)


def test_evaluations_within_an_epoch_are_replayed_from_the_third_on():
    network, lines, hits, losses = conv_net(), [], [], []
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    train, held_out = random_batches([1, 6, 6], 12), random_batches([1, 6, 6], 2, 3)
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    with schedule.attach(network, optimizer, epochs=1, steps_per_epoch=12, say=lines.append) as run:
        for step, batch in enumerate(train):
            network.train()
            network(batch).mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            run.step()
            if step % 2:
                network.eval()
                losses.append([network(one).numpy().tobytes() for one in held_out])
                hits.append(schedule.run.cache.hits)
    assert all(each == losses[0] for each in losses)
    assert WAITS in lines
    assert hits[1] == 0
    assert hits[-1] - hits[-2] == 6
