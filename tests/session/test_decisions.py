"""Strategies that decide while training, under real loops: metrics, gradients, own rules."""

from __future__ import annotations

import json
import re

import numpy as np
import paddle
import pytest
from networks import Images, Stream, conv_net, fit, model_for, moved, values
from trainers import Tokens, tiny_bert, trainer_for

from paddle_freeze_callback import (
    ByGradient,
    ChainThaw,
    Cyclic,
    Explicit,
    FreezeDown,
    FreezeSchedule,
    Gradual,
    HeadOnly,
    HeadThenAll,
    OnPlateau,
    RandomStages,
)
from paddle_freeze_callback.session.record import BEST_FILE, FILE, Record

STAGES = ("head", "block3", "block2", "block1")
DECIDED = [
    OnPlateau("eval_loss", patience=1, min_delta=0.05),
    OnPlateau("eval_loss", patience=3, max_wait="5 steps", restore_best=True),
    OnPlateau("eval_loss", patience=1, min_delta=9.0, restore_best=True),
    ByGradient(every="4 steps", threshold=0.3),
    lambda progress: progress.stages[: 1 + progress.step // 5],
]
TIMED = [
    Gradual(direction="bottom_up"),
    ChainThaw(),
    FreezeDown(power=3),
    RandomStages(k=1, every="3 steps"),
    Cyclic(k=2, every="5 steps"),
]


def evaluated_fit(schedule, network=None, epochs=4, **options):
    model = model_for(network or conv_net(), metrics=paddle.metric.Accuracy())
    settings = {"batch_size": 4, "epochs": epochs, "shuffle": False, "verbose": 0, **options}
    model.fit(Images(), Images(8), callbacks=[schedule], **settings)
    return model


def steps_of(schedule):
    return [(change.step, change.opened, change.frozen) for change in schedule.history]


def for_hapi(strategy):
    """The same strategy with the name that hapi gives the loss."""
    if isinstance(strategy, OnPlateau):
        return OnPlateau(**{**vars(strategy), "metric": "loss"})
    return strategy


def named(one: object) -> str:
    """The same in every process, unlike the repr of a function."""
    return getattr(one, "__name__", repr(one))[:50]


@pytest.mark.parametrize("strategy", [*TIMED, *DECIDED], ids=named)
def test_every_strategy_works_through_fit_and_holds_what_is_frozen(strategy):
    """``verify`` compares checksums of all that is frozen at each transition."""
    network = conv_net()
    before = values(network)
    schedule = FreezeSchedule(strategy=for_hapi(strategy), verify=True)
    evaluated_fit(schedule, network)
    assert len(schedule.history) > 1
    assert moved(before, values(network))
    assert not any(tensor.stop_gradient for tensor in network.fc.parameters())


@pytest.mark.parametrize("strategy", [*TIMED, *DECIDED], ids=named)
def test_every_strategy_works_through_a_trainer_and_is_recorded(tmp_path, strategy):
    schedule = FreezeSchedule(strategy=strategy, verify=True)
    trainer = trainer_for(
        tiny_bert(), tmp_path, [schedule], num_train_epochs=4, save_strategy="steps",
        save_steps=6, evaluation_strategy="steps", eval_steps=3,
    )  # fmt: skip
    trainer.eval_dataset = Tokens(4)
    trainer.train()
    assert len(schedule.history) > 1
    record = Record.load(tmp_path / "checkpoint-18")
    assert record.open_stages == tuple(
        s.name for s in schedule.run.stages if s.name in schedule.run._timeline.open_at(17)
    )


# ---------------------------------------------------------------- metrics


def test_a_plateau_of_what_fit_evaluates_opens_the_next_stage():
    """The labels are random, so the loss does not fall by 1 in any epoch."""
    schedule = FreezeSchedule(strategy=OnPlateau("loss", patience=2, min_delta=1.0), verify=True)
    evaluated_fit(schedule, epochs=6)
    # evaluations after steps 6, 12, ... ; the first is the best, the next two are no better
    assert [(c.step, c.opened) for c in schedule.history] == [
        (0, ("head",)),
        (18, ("block3",)),
    ]


def test_a_metric_that_the_loop_does_not_log_is_an_error_that_lists_what_it_logs(tmp_path):
    schedule = FreezeSchedule(strategy=OnPlateau("accuracy"))
    with pytest.raises(
        ValueError, match="metric='accuracy' is none of the metrics of this evaluation: acc, loss"
    ):
        evaluated_fit(schedule)
    schedule.run.restore()
    schedule = FreezeSchedule(strategy=OnPlateau("eval_los", mode="min"))
    trainer = trainer_for(
        tiny_bert(), tmp_path, [schedule], evaluation_strategy="steps", eval_steps=2
    )
    trainer.eval_dataset = Tokens(4)
    with pytest.raises(ValueError, match=r"of this evaluation: .*did you mean 'eval_loss'\?"):
        trainer.train()


def test_a_metric_driven_schedule_without_evaluation_is_refused_before_the_first_step(tmp_path):
    network = conv_net()
    before = values(network)
    with pytest.raises(ValueError, match=r"OnPlateau decides from metrics.*never evaluates"):
        fit(network, FreezeSchedule(strategy=OnPlateau("acc")))
    assert not moved(before, values(network))
    schedule = FreezeSchedule(strategy=OnPlateau("eval_loss"))
    for flags in ({}, {"evaluation_strategy": "steps", "eval_steps": 99}):
        trainer = trainer_for(tiny_bert(), tmp_path, [schedule], **flags)
        trainer.eval_dataset = Tokens(4)
        with pytest.raises(ValueError, match="never evaluates"):
            trainer.train()


def test_the_best_weights_of_the_phase_are_loaded_before_the_next_stage_opens():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(strategy=OnPlateau("acc", patience=2, restore_best=True), verify=True)
    lines: list[str] = []
    kept = {}
    with schedule.attach(network, optimizer, total_steps=12, say=lines.append) as freezing:
        for step, accuracy in enumerate([0.5, 0.9, 0.8, 0.7, 0.6], 1):
            network.train()
            network(paddle.to_tensor(Images()[step][0])[None]).square().sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            kept[step] = values(network)
            freezing.step()
            freezing.evaluated({"acc": accuracy})
            if step == 4:  # at once, between two optimizer steps
                assert freezing.open_stages == ("head", "block3")
                after = values(network)
                assert not moved(kept[2], after)
                assert moved(kept[4], after)
    assert [c.step for c in schedule.history] == [0, 4]
    assert "step 4: loads the best weights since the last transition" in lines


def test_best_weights_are_kept_in_low_precision_with_the_masters_behind_them(tmp_path):
    """Otherwise the next step would write the masters over what was loaded."""
    network = paddle.nn.Sequential(paddle.nn.Linear(3, 3), paddle.nn.Linear(3, 2))
    network.to(dtype="bfloat16")
    optimizer = paddle.optimizer.SGD(0.5, parameters=network.parameters(), multi_precision=True)

    def train():
        for tensor in network.parameters():
            if not tensor.stop_gradient:
                tensor.grad = paddle.ones_like(tensor)
        optimizer.step()
        optimizer.clear_grad()
        for tensor in network.parameters():  # Paddle's kernels for CPUs leave the masters alone
            if tensor.name in optimizer._master_weights:
                optimizer._master_weights[tensor.name].set_value(tensor.astype("float32"))

    def check(best):
        assert not moved(best, values(network))
        for tensor in network[1].parameters():
            master = optimizer._master_weights[tensor.name].numpy()
            assert (master == tensor.astype("float32").numpy()).all()

    rule = OnPlateau("acc", patience=1, restore_best=True)
    schedule = FreezeSchedule(strategy=rule)
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        train()
        freezing.step()
        freezing.evaluated({"acc": 0.9})
        best = values(network)
        schedule.run.save(tmp_path)
        train()
        freezing.step()
        assert moved(best, values(network))
        freezing.evaluated({"acc": 0.1})
        check(best)
    again = FreezeSchedule(strategy=rule, resume_from=tmp_path)  # and through a file
    with again.attach(network, optimizer, total_steps=9) as freezing:
        train()
        freezing.step()
        assert moved(best, values(network))
        freezing.evaluated({"acc": 0.1})
        check(best)


def scripted(accuracies, **options):
    """``fit`` whose evaluations give these accuracies; the weights after each."""

    class Scripted(paddle.metric.Metric):
        def __init__(self) -> None:
            super().__init__()
            self.left = list(accuracies)

        def name(self):
            return ["acc"]

        def reset(self):
            pass

        def update(self, *_):
            return 0.0

        def accumulate(self):
            return self.left[0]

    metric = Scripted()
    network = conv_net()
    after = []

    class See(paddle.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.fresh = True

        def on_train_batch_begin(self, step, logs=None):
            if step == 0:
                began.append(values(network))

        def on_eval_end(self, logs=None):
            metric.left = metric.left[1:] or [0.0]
            after.append(values(network))

    began: list = []
    schedule = FreezeSchedule(strategy=OnPlateau("acc", restore_best=True, **options))
    model_for(network, metrics=metric).fit(
        Images(), Images(4), batch_size=12, epochs=len(accuracies), verbose=0,
        callbacks=[schedule, See()],
    )  # fmt: skip
    return schedule, began, after


def test_an_evaluation_at_the_deadline_counts_for_the_phase_that_ends():
    """Evaluated every epoch, and a longest wait in epochs: the usual case."""
    schedule, began, after = scripted([0.1, 0.5, 0.6, 0.9, 0.9], patience=9, max_wait="2 epochs")
    assert [change.step for change in schedule.history] == [0, 4, 8]
    assert not moved(began[2], after[1])  # the best of the first phase is its last
    assert not moved(began[4], after[3])
    schedule, began, after = scripted([0.5, 0.1, 0.9, 0.6, 0.9], patience=9, max_wait="2 epochs")
    assert not moved(began[2], after[0])
    assert moved(began[2], after[1])
    assert not moved(began[4], after[2])


def test_a_trainer_with_several_evaluation_sets_is_judged_by_the_one_that_is_named(tmp_path):
    """Each evaluation gives its own metrics; the others are no evaluation of this one."""
    for name in ("a", "b"):
        schedule = FreezeSchedule(strategy=OnPlateau(f"eval_{name}_loss", patience=1))
        trainer = trainer_for(
            tiny_bert(), tmp_path, [schedule], num_train_epochs=1,
            evaluation_strategy="steps", eval_steps=2,
        )  # fmt: skip
        trainer.eval_dataset = Tokens(4)
        plain = trainer.evaluate

        def both(*arguments, plain=plain, **options):
            plain(metric_key_prefix="eval_a")
            return plain(metric_key_prefix="eval_b")

        trainer.evaluate = both
        trainer.train()
        assert [step for step, _ in schedule.run._timeline.decisions] == [2, 4, 6]


def test_what_an_earlier_fit_left_in_paddles_logs_is_no_metric_of_this_one():
    model_for(conv_net(), metrics=paddle.metric.Accuracy()).fit(
        Images(), Images(4), batch_size=4, epochs=1, verbose=0
    )
    schedule = FreezeSchedule(strategy=OnPlateau("acc", patience=1))
    with pytest.raises(ValueError, match=r"metric='acc' is none of the metrics.*: loss$"):
        model_for(conv_net()).fit(
            Images(), Images(4), batch_size=4, epochs=3, verbose=0, callbacks=[schedule]
        )


def test_a_single_number_may_come_as_a_tensor_an_array_or_a_list():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    forms = [0.5, paddle.to_tensor(0.5), np.array([0.5]), [0.5], np.float32(0.5), (0.5,)]
    schedule = FreezeSchedule(strategy=OnPlateau("acc", patience=9))
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        for value in forms:
            freezing.evaluated({"acc": value})
        assert [note["value"] for _, note in freezing._timeline.decisions] == [0.5] * 6
    with (
        FreezeSchedule(strategy=OnPlateau("acc")).attach(
            network, optimizer, total_steps=9
        ) as freezing,
        pytest.raises(ValueError, match="metric='acc' is no number but list"),
    ):
        freezing.evaluated({"acc": [0.5, 0.6]})


def test_a_plateau_schedule_that_never_saw_its_metric_says_so_at_the_end():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with (
        pytest.warns(UserWarning, match="never saw its metric"),
        FreezeSchedule(strategy=OnPlateau("acc")).attach(network, optimizer, total_steps=3),
    ):
        pass


def test_a_longest_wait_in_epochs_needs_no_length_of_the_data():
    schedule = FreezeSchedule(strategy=OnPlateau("loss", mode="max", patience=9, max_wait=1))
    model_for(conv_net()).fit(
        paddle.io.DataLoader(Stream(8), batch_size=4),
        Images(4),
        epochs=3,
        verbose=0,
        callbacks=[schedule],
    )
    assert [change.step for change in schedule.history] == [0, 2, 4]


@pytest.mark.parametrize("frozen", ["head", "embeddings"])
def test_a_role_is_not_taken_over_by_another_stage_if_its_own_was_found_frozen(frozen):
    network = tiny_bert()
    inside = network.classifier if frozen == "head" else network.bert.embeddings
    for tensor in inside.parameters():
        tensor.stop_gradient = True
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule.lisa(k=1, every="1 step")
    with schedule.attach(network, optimizer, total_steps=20) as freezing:
        seen = []
        for _ in range(19):
            seen.append(set(freezing.open_stages))
            freezing.step()
    blocks = {f"encoder.layers.{i}" for i in range(3)}
    assert all(len(blocks & now) == 1 for now in seen)
    if frozen == "head":
        with pytest.raises(ValueError, match="HeadOnly trains the head, and everything in 'head'"):
            FreezeSchedule(strategy=HeadOnly()).attach(network, optimizer, total_steps=9)


# ---------------------------------------------------------------- gradients


def by_hand(schedule, accumulate, steps=8, record=None):
    """Two micro-batches or one batch of the same samples."""
    network = conv_net()
    network.eval()
    optimizer = paddle.optimizer.SGD(0.05, parameters=network.parameters())
    images = paddle.to_tensor(np.stack([Images()[index][0] for index in range(4)]))
    with schedule.attach(network, optimizer, total_steps=steps) as freezing:
        for step in range(steps):
            for part in paddle.split(images, accumulate):
                (network(part).square().sum() / 4).backward()
            if record is not None:
                record[step] = {
                    name: [t.grad.numpy() for n, t in network.named_parameters()
                           if n.startswith(name) and t.grad is not None]
                    for name in ("fc", "block3", "block2", "block1")
                }, values(network)  # fmt: skip
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    return freezing


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_relative_gradient_norm_is_that_of_the_whole_batch(accumulate):
    seen: dict = {}
    freezing = by_hand(
        FreezeSchedule(strategy=ByGradient(every="3 steps", threshold=1e-9)), accumulate, 5, seen
    )
    ((step, measured),) = freezing._timeline.decisions
    assert step == 4
    measured = measured["gradients"]
    gradients, weights = seen[3]
    for stage, name in zip(STAGES, ("fc", "block3", "block2", "block1")):
        squares = sum((g.astype("float64") ** 2).sum() for g in gradients[name])
        own = [v for n, v in weights.items() if n.startswith(name) and "._" not in n]
        norm = sum((v.astype("float64") ** 2).sum() for v in own)
        assert measured[stage] == pytest.approx((squares / norm) ** 0.5, rel=1e-4)


def test_what_gradients_decided_can_be_printed_and_replayed_bit_for_bit():
    schedule = FreezeSchedule(strategy=ByGradient(every="2 steps", threshold=0.5), verify=True)
    network = conv_net()
    fit(network, schedule)
    assert len(schedule.history) > 1
    explicit = schedule.run.as_explicit()
    replayed = FreezeSchedule(strategy=eval(repr(explicit), {"Explicit": type(explicit)}))
    other = conv_net()
    fit(other, replayed)
    assert [c.step for c in replayed.history] == [c.step for c in schedule.history]
    assert not moved(values(network), values(other))


def test_a_schedule_of_automatic_stages_with_more_than_their_name_says_is_replayed_whole():
    """The pooler belongs to the top block; the embeddings to several layers."""
    schedule = FreezeSchedule(every="2 steps")
    network = tiny_bert()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with schedule.attach(network, optimizer, total_steps=10) as freezing:
        for _ in range(9):
            freezing.step()
    again = FreezeSchedule(strategy=schedule.run.as_explicit())
    with again.attach(network, optimizer, total_steps=10) as freezing:
        for _ in range(9):
            freezing.step()
    assert [(c.step, c.trainable) for c in again.history] == [
        (c.step, c.trainable) for c in schedule.history
    ]
    with pytest.raises(AttributeError, match="there is no run yet: train first"):
        FreezeSchedule().run.as_explicit()


@pytest.mark.parametrize(
    "strategy",
    [OnPlateau("acc", patience=1), Gradual("4 steps"), Explicit({0: "fc", "4 steps": {"lr": 0.5}})],
    ids=["decided", "timed", "a rate"],
)
def test_what_would_come_at_the_end_did_not_happen_and_is_not_replayed(strategy):
    network, schedule = conv_net(), FreezeSchedule(strategy=strategy)
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with schedule.attach(network, optimizer, total_steps=4) as freezing:
        for _ in range(4):
            freezing.step()
            freezing.evaluated({"acc": 0.5})
    explicit = schedule.run.as_explicit()
    steps = [change.step for change in schedule.history]
    assert [int(str(when).split()[0]) for when in explicit.unfreeze_at] == steps
    assert 4 not in steps


def replayed_rates(schedule, network, **options):
    """The rates in the middle of a run, by parameter."""
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    with schedule.attach(network, optimizer, total_steps=10) as freezing:
        for _ in range(9):
            freezing.step()
        return {n: t.optimize_attr["learning_rate"] for n, t in network.named_parameters()}


def test_a_replay_has_the_same_rates_in_whatever_order_stages_open():
    network = conv_net()
    schedule = FreezeSchedule(strategy=Gradual("2 steps", direction="bottom_up"), lr_decay=2)
    rates = replayed_rates(schedule, network)
    assert rates["fc.weight"] == 1.0
    assert rates["block1.0.weight"] == 0.125
    again = FreezeSchedule(strategy=schedule.run.as_explicit(), lr_decay=2)
    assert replayed_rates(again, network) == rates


def test_a_replay_opens_nothing_that_was_found_frozen():
    network = conv_net()
    network.fc.weight.stop_gradient = True
    network.block2[0].bias.stop_gradient = True
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())

    def trained(schedule):
        with schedule.attach(network, optimizer, total_steps=8) as freezing:
            for _ in range(7):
                freezing.step()
        return [(change.step, change.trainable) for change in schedule.history]

    first = FreezeSchedule(stages=["re:.*bias", "*"], strategy=HeadThenAll())
    whole = trained(first)
    assert trained(FreezeSchedule(strategy=first.run.as_explicit())) == whole


def test_what_happened_is_known_whole_after_a_resume_and_with_two_openings_at_one_step(tmp_path):
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    rule = OnPlateau("acc", patience=1)
    schedule = FreezeSchedule(strategy=rule)
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        freezing.step()
        for _ in range(4):
            freezing.evaluated({"acc": 0.5})
        freezing.step()
        schedule.run.save(tmp_path)
        expected = schedule.run.as_explicit()
    assert repr(expected) == (
        "Explicit(unfreeze_at={0: {'unfreeze': ['fc']}, '1 step': "
        "{'unfreeze': ['block2', 'block3']}})"
    ) or repr(expected) == (
        "Explicit(unfreeze_at={0: {'unfreeze': ['fc']}, '1 step': "
        "{'unfreeze': ['block3', 'block2']}})"
    )
    again = FreezeSchedule(strategy=rule, resume_from=tmp_path)
    with again.attach(network, optimizer, total_steps=9):
        assert again.run.as_explicit() == expected


def test_sparse_gradients_are_refused():
    network = paddle.nn.Sequential(paddle.nn.Embedding(5, 4, sparse=True), paddle.nn.Linear(4, 2))
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with pytest.raises(ValueError, match="0 has sparse gradients"):
        FreezeSchedule(strategy=ByGradient()).attach(network, optimizer, total_steps=9)
    FreezeSchedule().attach(network, optimizer, total_steps=9).close()


def test_measuring_leaves_no_hook_behind():
    network = conv_net()
    fit(network, FreezeSchedule(strategy=ByGradient(every="1 step")), epochs=1)
    for tensor in network.parameters():
        handle = tensor.register_hook(lambda gradient: None) if not tensor.stop_gradient else None
        assert handle is None or handle._hook_id <= 8  # of measurements in 6 steps none is left
        if handle is not None:
            handle.remove()


# ---------------------------------------------------------------- resume


class StopAfter(paddle.callbacks.Callback):
    """Ends a run after so many epochs, each with its evaluation."""

    def __init__(self, epochs) -> None:
        super().__init__()
        self.left = epochs

    def on_eval_end(self, logs=None):
        self.left -= 1
        self.model.stop_training = not self.left


def resumed_fit(tmp_path, strategy, stop):
    """A whole run of 4 epochs, one that stops early, and one that goes on from its checkpoint."""
    results = []
    for name, epochs, stops in (("whole", 4, 9), ("first", 4, stop), ("rest", 4 - stop, 9)):
        checkpoint = tmp_path / "first" / str(stop - 1) if name == "rest" else None
        with paddle.utils.unique_name.guard():
            network = conv_net()
            schedule = FreezeSchedule(
                strategy=strategy, lr_decay=2, warmup="4 steps", verify=True,
                resume_from=checkpoint,
            )  # fmt: skip
            model = model_for(network)
            if checkpoint is not None:
                model.load(str(checkpoint))
            model.fit(
                Images(), Images(8), batch_size=4, epochs=epochs, shuffle=False, verbose=0,
                callbacks=[schedule, StopAfter(stops)], save_dir=str(tmp_path / name),
            )  # fmt: skip
        results.append((schedule, values(network)))
    return results


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("strategy", [*TIMED, *DECIDED], ids=named)
def test_fit_continues_from_its_own_checkpoint_as_if_it_had_not_stopped(tmp_path, strategy, stop):
    """Saved by ``fit(save_dir=...)`` before it evaluates, in the middle of ramps and phases."""
    (whole, weights), _, (rest, resumed) = resumed_fit(tmp_path, for_hapi(strategy), stop)
    assert steps_of(rest)[1:] == [change for change in steps_of(whole) if change[0] > 6 * stop]
    assert not moved(weights, resumed)


def test_a_checkpoint_of_fit_has_our_files_beside_it(tmp_path):
    strategy = OnPlateau("loss", patience=1, restore_best=True)
    resumed_fit(tmp_path, strategy, 2)
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert {f"1.{FILE}", f"1.{BEST_FILE}", "1.pdparams", f"final.{FILE}"} <= names
    record = Record.load(tmp_path / "first" / "1")
    assert record.step == 12
    assert [step for step, _ in record.decisions] == [6, 12]  # the evaluation after the saving, too


def test_resume_from_says_what_is_wrong_with_it(tmp_path):
    def run(**options):
        evaluated_fit(FreezeSchedule(**{"strategy": OnPlateau("loss"), **options}), epochs=1)

    with pytest.raises(ValueError, match=r"resume_from=.*there is no .*give the path that model"):
        run(resume_from=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="resume_at= and resume_from= contradict"):
        run(resume_from="a", resume_at=1)
    with pytest.raises(TypeError, match="resume_from=3 must be the path"):
        run(resume_from=3)
    schedule = FreezeSchedule(strategy=OnPlateau("loss", restore_best=True))
    evaluated_fit(schedule, epochs=2, save_dir=str(tmp_path))
    best = tmp_path / f"1.{BEST_FILE}"
    again = {"strategy": OnPlateau("loss", restore_best=True), "resume_from": tmp_path / "1"}
    content = best.read_bytes()
    best.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"1\.freeze_schedule_best\.npz is damaged"):
        run(**again)
    best.unlink()
    with pytest.raises(ValueError, match=r"the best weights so far are in .* which is missing"):
        run(**again)
    with pytest.raises(ValueError, match=re.escape("resume_from='x' is for paddle.Model.fit")):
        trainer_for(tiny_bert(), tmp_path, [FreezeSchedule(resume_from="x")]).train()


def test_going_on_without_what_was_noted_is_refused_or_said():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    for rule in (OnPlateau("loss"), ByGradient()):
        schedule = FreezeSchedule(strategy=rule)
        with pytest.raises(ValueError, match=r"does not follow from time alone.*resume_from="):
            schedule.attach(network, optimizer, total_steps=9, step=3)
        schedule = FreezeSchedule(strategy=rule, resume_at=1)
        with pytest.raises(ValueError, match=r"does not follow from time alone.*resume_from="):
            evaluated_fit(schedule)
    schedule = FreezeSchedule(strategy=lambda progress: "head")
    with pytest.warns(UserWarning, match="starts without the metrics that were evaluated before"):
        schedule.attach(network, optimizer, total_steps=9, step=3)


def test_notes_of_another_strategy_are_refused(tmp_path):
    schedule = FreezeSchedule(strategy=OnPlateau("loss"))
    evaluated_fit(schedule, epochs=2, save_dir=str(tmp_path))
    for other in (OnPlateau("acc"), ByGradient(), lambda progress: "head"):
        again = FreezeSchedule(strategy=other, resume_from=tmp_path / "1")
        with pytest.raises(ValueError, match="resume with the strategy that it was saved with"):
            evaluated_fit(again)
    evaluated_fit(FreezeSchedule(resume_from=tmp_path / "1"))  # one that needs none of them


def test_a_folder_that_appears_after_saving_does_not_hide_what_was_saved(tmp_path):
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule()
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        freezing.step()
        schedule.run.save(tmp_path / "step1")
    paddle.save(network.state_dict(), str(tmp_path / "step1" / "model.pdparams"))
    again = FreezeSchedule(resume_from=tmp_path / "step1")
    with again.attach(network, optimizer, total_steps=9):
        assert again.history[0].step == 1


def test_a_hand_written_loop_saves_and_continues_with_its_decisions(tmp_path):
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    rule = OnPlateau("acc", patience=1)
    with pytest.raises(AttributeError, match="there is no run yet: train first"):
        FreezeSchedule().run.save(tmp_path)
    schedule = FreezeSchedule(strategy=rule)
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        for accuracy in (0.5, 0.4):
            freezing.step()
            freezing.evaluated({"acc": accuracy})
        schedule.run.save(tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["step"] == 2
    again = FreezeSchedule(strategy=rule, resume_from=tmp_path)
    with again.attach(network, optimizer, total_steps=9) as freezing:
        assert freezing.open_stages == ("head", "block3")
        assert again.history[0].step == 2
    with pytest.raises(ValueError, match=r"step=5 contradicts resume_from=.*after 2 steps"):
        again.attach(network, optimizer, total_steps=9, step=5)


# ---------------------------------------------------------------- memory


class WatchState(paddle.callbacks.Callback):
    """Notes after each batch whether only what is open has optimizer state."""

    def __init__(self, optimizer) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.only_open: list[bool] = []

    def on_train_batch_end(self, step, logs=None):
        kinds = self.optimizer._accumulators.values()
        parameters = self.model.network.parameters()
        have = [t for t in parameters if any(t.name in kind for kind in kinds)]
        self.only_open.append(not any(tensor.stop_gradient for tensor in have))


@pytest.mark.parametrize("strategy", [RandomStages(k=1, every="3 steps"), Cyclic(every="3 steps")])
def test_what_random_and_cyclic_schedules_freeze_again_has_no_optimizer_state(strategy):
    for free, expected in ((None, True), (False, False), (True, True)):
        network = conv_net()
        options = {} if free is None else {"free_optimizer_state": free}
        schedule = FreezeSchedule(strategy=strategy, **options)
        optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
        see = WatchState(optimizer)
        model_for(network, optimizer).fit(
            Images(), batch_size=4, epochs=3, verbose=0, callbacks=[schedule, see]
        )
        assert all(see.only_open) is expected


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (0.5, TypeError, r"evaluated\(0.5\): give metrics by name, such as evaluated\(\{\"acc\""),
        ({}, ValueError, r"evaluated\(\{\}\) has no metric, and OnPlateau\(.*\) needs one"),
    ],
)
def test_an_evaluation_without_metrics_by_name_is_refused(metrics, error, message):
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with (
        FreezeSchedule(strategy=OnPlateau("acc")).attach(network, optimizer, total_steps=9) as run,
        pytest.raises(error, match=message),
    ):
        run.evaluated(metrics)
