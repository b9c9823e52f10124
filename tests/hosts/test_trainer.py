"""Under the PaddleNLP ``Trainer``."""

from __future__ import annotations

import re

import paddle
import pytest
from networks import moved, open_names, values
from paddlenlp.trainer import PrinterCallback, Trainer, TrainerCallback
from paddlenlp.utils.log import logger
from trainers import InOrder, Tokens, TokenStream, tiny_bert, trainer_for

from paddle_freeze_callback import Explicit, FreezeSchedule, HeadOnly, HeadThenAll, trainable_ratio

ALL = ("head", "encoder.layers.2", "encoder.layers.1", "encoder.layers.0", "embeddings")


def train(tmp_path, schedule, *, model=None, extra=(), **flags):
    model = model or tiny_bert()  # a Layer is always true
    trainer = trainer_for(model, tmp_path, [schedule, *extra], **flags)
    trainer.train()
    return trainer


def steps(schedule) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(change.step, change.epoch, change.opened) for change in schedule.history]


class Watch(TrainerCallback):
    """Notes before each step what is open, and after it what moved."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.open, self.moved, self.before = [], [], values(model)

    def on_optimizer_begin(self, args, state, control, model=None, **kwargs):
        self.open.append((state.global_step, open_names(model)))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        after = values(model)
        self.moved.append(moved(self.before, after))
        self.before = after


def test_stages_open_from_the_top_and_frozen_ones_do_not_move(tmp_path):
    schedule, watch, model = FreezeSchedule(verify=True), Watch(), tiny_bert()
    train(tmp_path, schedule, model=model, extra=[watch], num_train_epochs=5)
    assert steps(schedule) == [(6 * i, i, (name,)) for i, name in enumerate(ALL)]
    members = {stage.name: set(stage.parameters) for stage in schedule.run.stages}
    for (step, names), changed in zip(watch.open, watch.moved):
        opened = set().union(*(members[name] for name in ALL[: 1 + step // 6]))
        assert set(names) == opened
        assert changed <= opened
        for name in ALL[: 1 + step // 6]:
            assert members[name] & changed
    assert trainable_ratio(model) == 1.0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [0, 6, 12, 18]),
        # 6 batches, 4 to a step: the two left over join the next epoch's first step
        ({"gradient_accumulation_steps": 4}, [0, 1, 2, 3]),
        ({"gradient_accumulation_steps": 2}, [0, 3, 6, 9]),
        ({"gradient_accumulation_steps": 9}, [0, 1, 2, 3]),
        ({"num_train_epochs": 2.5}, [0, 6, 12]),
        ({"max_steps": 14}, [0, 6, 12]),
        ({"per_device_train_batch_size": 5}, [0, 5, 10, 15]),
        ({"per_device_train_batch_size": 5, "dataloader_drop_last": True}, [0, 4, 8, 12]),
    ],
)
@pytest.mark.filterwarnings("ignore:the stage")
def test_epochs_are_counted_by_the_trainers_own_formula(tmp_path, flags, expected):
    class EpochsBegin(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if getattr(self, "new", False):
                starts.append(state.global_step)
            self.new = False

        def on_epoch_begin(self, args, state, control, **kwargs):
            self.new = True

    starts: list[int] = []
    schedule = FreezeSchedule(every=1)
    model = tiny_bert()
    kind = Trainer if "dataloader_drop_last" in flags else InOrder
    trainer_for(model, tmp_path, [schedule, EpochsBegin()], kind=kind, **flags).train()
    assert [change.step for change in schedule.history] == expected
    assert starts[: len(expected)] == expected


def test_data_without_length_is_scheduled_by_steps(tmp_path):
    schedule = FreezeSchedule()
    train(tmp_path, schedule, data=TokenStream(), kind=Trainer, max_steps=10)
    assert [change.step for change in schedule.history] == [0, 2, 4, 6, 8]
    schedule = FreezeSchedule(unfreeze_at={0: "classifier", "3 steps": "bert.encoder", "50%": "*"})
    train(tmp_path, schedule, data=TokenStream(), kind=Trainer, max_steps=10)
    assert [change.step for change in schedule.history] == [0, 3, 5]
    with pytest.raises(
        ValueError, match=r'"1 epoch" cannot be counted: how many steps an epoch has'
    ):
        train(tmp_path, FreezeSchedule(every=1), data=TokenStream(), kind=Trainer, max_steps=10)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_transition_never_comes_inside_gradient_accumulation(tmp_path, accumulate):
    class Forward(Trainer):
        def training_step(self, model, inputs):
            forwards.append((self.state.global_step, len(open_names(model))))
            return super().training_step(model, inputs)

    forwards: list[tuple[int, int]] = []
    schedule = FreezeSchedule(every="1 step")
    train(
        tmp_path, schedule, kind=Forward,
        gradient_accumulation_steps=accumulate, num_train_epochs=8,
    )  # fmt: skip
    by_step: dict[int, set[int]] = {}
    for step, count in forwards:
        by_step.setdefault(step, set()).add(count)
    # Also with 4, where two batches of an epoch are left over and join the next one's first step.
    assert all(len(counts) == 1 for counts in by_step.values())
    assert [change.step for change in schedule.history] == [0, 1, 2, 3, 4]


def test_the_schedule_may_be_given_as_a_class_and_added_later(tmp_path):
    trainer = trainer_for(tiny_bert(), tmp_path, [FreezeSchedule], num_train_epochs=5)
    trainer.train()
    (schedule,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, FreezeSchedule))
    assert [change.step for change in schedule.history] == [0, 6, 12, 18, 24]
    schedule = FreezeSchedule(strategy=HeadOnly())
    trainer = trainer_for(tiny_bert(), tmp_path, [])
    trainer.add_callback(schedule)
    trainer.train()
    assert len(schedule.history) == 1


def test_a_second_train_starts_afresh_and_one_object_serves_several_trainers(tmp_path):
    schedule = FreezeSchedule(verify=True)
    expected = None
    for _ in range(2):
        trainer = train(tmp_path, schedule)
        expected = expected or steps(schedule)
        assert steps(schedule) == expected
        trainer.train()
        assert steps(schedule) == expected


def test_log_history_and_progress_line_carry_the_numbers(tmp_path):
    class Shown(PrinterCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            shown.append(dict(logs))

    shown: list[dict] = []
    trainer = train(tmp_path, FreezeSchedule(), extra=[Shown()], num_train_epochs=5)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["open_stages"] for entry in history] == [1 + i // 6 for i in range(30)]
    assert history[0]["trainable_params"] == 34
    assert history[-1]["trainable_ratio"] == 1.0
    assert [e.get("open_stages") for e in shown if "loss" in e] == [1 + i // 6 for i in range(30)]


def test_evaluate_returns_its_own_numbers_only(tmp_path):
    class Evaluates(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            returned.append(trainer.evaluate(Tokens(8)))

    returned: list[dict] = []
    callbacks = [FreezeSchedule(), Evaluates()]
    trainer = trainer_for(tiny_bert(), tmp_path, callbacks, num_train_epochs=1)
    trainer.train()
    assert len(returned) == 6
    for metrics in [*returned, trainer.evaluate(Tokens(8))]:
        assert "eval_loss" in metrics
        assert not {"trainable_ratio", "open_stages"} & set(metrics)


def test_visualdl_reads_the_numbers_back(tmp_path):
    from visualdl import LogReader

    logging_dir = tmp_path / "runs"
    train(
        tmp_path, FreezeSchedule(), num_train_epochs=5,
        report_to=["visualdl"], logging_dir=str(logging_dir),
    )  # fmt: skip
    (file,) = logging_dir.iterdir()
    reader = LogReader(file_path=str(file))
    data = reader.get_data("scalar", "train/trainable_ratio")
    assert [point.id for point in data] == list(range(1, 31))
    total = sum(tensor.size for tensor in tiny_bert().parameters())
    assert data[0].value == pytest.approx(34 / total)
    assert data[-1].value == 1.0
    stages = [point.value for point in reader.get_data("scalar", "train/open_stages")]
    assert stages == [1 + i // 6 for i in range(30)]


def test_one_line_a_transition_goes_through_the_trainers_logger(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(logger, "info", lines.append)
    train(tmp_path, FreezeSchedule(strategy=HeadThenAll(1)))
    ours = [line for line in lines if str(line).startswith("FreezeSchedule: ")]
    total = sum(tensor.size for tensor in tiny_bert().parameters())
    assert ours == [
        "FreezeSchedule: step 0, epoch 0: opens head; freezes encoder.layers.2 ... embeddings "
        f"(4 stages); {100 * 34 / total:.3g}% of {total:,} train",
        "FreezeSchedule: step 6, epoch 1: opens encoder.layers.2 ... embeddings (4 stages); "
        f"{total:,} of {total:,} train (100%)",
    ]


def test_left_over_micro_batches_do_not_come_back_after_refreezing(tmp_path):
    """With 6 batches and 4 to a step, two gradients are left at the end of each epoch."""
    model = tiny_bert()
    schedule = FreezeSchedule(
        unfreeze_at={
            0: ["classifier", "bert.pooler"],
            1: {"freeze": "bert.pooler"},
            3: {"unfreeze": "bert.pooler"},
        },
        verify=True,
    )
    norms: list[bool] = []  # noted after the schedule, which comes first in the list

    class Gradients(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            norms.append(model.bert.pooler.dense.weight.grad is None)

    train(
        tmp_path, schedule, model=model, extra=[Gradients()], gradient_accumulation_steps=4,
        num_train_epochs=4,
    )  # fmt: skip
    # Frozen from step 1 on and opened before step 3, it has no gradient until it trains again:
    # then those of the two batches that epoch 2 leaves over, which join the last step.
    assert norms == [True, True, True, True, True, True, False]


def test_an_exception_leaves_nothing_behind_for_the_next_train(tmp_path):
    class Broken(Trainer):
        def training_step(self, model, inputs):
            if self.state.global_step == 7:
                raise KeyboardInterrupt
            return super().training_step(model, inputs)

    model, schedule = tiny_bert(), FreezeSchedule()
    trainer = trainer_for(model, tmp_path, [schedule], kind=Broken)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainable_ratio(model) < 1
    other = FreezeSchedule(strategy=HeadOnly())
    train(tmp_path, other, model=model, num_train_epochs=1)
    assert other.history[0].trainable == 34
    assert trainable_ratio(model) == 1.0


def test_an_optimizer_built_for_the_head_is_refused_by_name(tmp_path):
    model = tiny_bert()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=model.classifier.parameters())
    trainer = trainer_for(model, tmp_path, [FreezeSchedule()])
    trainer.optimizer = optimizer
    with pytest.raises(
        ValueError, match=re.escape("parameters that the schedule will open: bert.")
    ):
        trainer.train()
    assert trainable_ratio(model) == 1.0


def test_explicit_over_automatic_stage_names(tmp_path):
    schedule = FreezeSchedule(
        strategy=Explicit({0: "head", 1: "encoder.layers.{1-2}", "50%": "*"}), stages="auto"
    )
    train(tmp_path, schedule)
    assert steps(schedule) == [
        (0, 0, ("head",)),
        (6, 1, ("encoder.layers.{1-2}",)),
        (12, 2, ("*",)),
    ]
