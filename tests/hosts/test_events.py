"""A schedule answers every event of every loop, and does nothing at those it has no use for."""

from __future__ import annotations

import copy
import inspect
import pickle
from types import SimpleNamespace

import paddle
import pytest
from networks import Images, conv_net, model_for
from paddle.hapi.callbacks import CallbackList
from trainers import TrainerCallback, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, HeadOnly, trainable_ratio

OF_FIT = sorted(name for name in dir(paddle.callbacks.Callback) if name.startswith("on_"))
OF_A_TRAINER = sorted(name for name in dir(TrainerCallback) if name.startswith("on_"))


def arguments_of(name: str) -> list[object]:
    """Arguments as ``fit`` gives them: an index, where the event has one, and the logs."""
    parameters = list(inspect.signature(getattr(paddle.callbacks.Callback, name)).parameters)[1:]
    return [{} if parameter == "logs" else 0 for parameter in parameters]


def call_all_of_fit(schedule) -> None:
    for name in OF_FIT:
        # These start and end a run.
        if name not in ("on_train_begin", "on_train_end"):
            assert getattr(schedule, name)(*arguments_of(name)) is None


def call_all_of_a_trainer(schedule, args, state, control, **context) -> None:
    for name in OF_A_TRAINER:
        if name not in ("on_train_begin", "on_train_end"):
            answer = getattr(schedule, name)(
                args, state, control, logs={"loss": 0.5}, metrics={"eval_loss": 0.5}, **context
            )
            assert answer is None  # a Trainer takes anything else for its control


def test_every_event_of_fit_is_answered_before_in_and_after_a_run():
    class AtTheEnd(paddle.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            call_all_of_fit(schedule)
            ratios.append(trainable_ratio(network))

    ratios: list[float] = []
    assert len(OF_FIT) >= 14
    network, schedule = conv_net(), FreezeSchedule(strategy=HeadOnly(), verify=True)
    call_all_of_fit(schedule)
    assert schedule.on_train_end() is None
    assert schedule.history == []
    model_for(network).fit(
        Images(), batch_size=4, epochs=1, verbose=0, callbacks=[schedule, AtTheEnd()]
    )
    assert ratios == [10 / 370]
    history = list(schedule.history)
    call_all_of_fit(schedule)
    assert schedule.on_train_end() is None
    assert schedule.history == history
    assert schedule.run.metrics == {}
    assert trainable_ratio(network) == 1.0


def test_every_event_of_a_trainer_is_answered_before_in_and_after_a_run(tmp_path):
    class AtAStep(TrainerCallback):
        def on_step_end(self, args, state, control, **context):
            if state.global_step == 2:
                event.update(args=args, state=state, control=control, **context)
                call_all_of_a_trainer(schedule, **event)
                ratios.append(trainable_ratio(context["model"]))

    ratios: list[float] = []
    event: dict = {}
    assert len(OF_A_TRAINER) >= 15
    schedule = FreezeSchedule(strategy=HeadOnly(), verify=True)
    call_all_of_a_trainer(schedule, SimpleNamespace(), SimpleNamespace(), SimpleNamespace())
    assert schedule.history == []
    trainer = trainer_for(tiny_bert(), tmp_path, [schedule, AtAStep()], num_train_epochs=1)
    trainer.train()
    total = sum(tensor.size for tensor in trainer.model.parameters())
    assert ratios == [34 / total]
    # They had their effect: one evaluation, and one record, of step 2.
    assert schedule.run.metrics == {"eval_loss": [(2, 0.5)]}
    assert (tmp_path / "checkpoint-2.freeze_schedule.json").exists()
    call_all_of_a_trainer(schedule, **event)
    assert schedule.on_train_end(*(event[name] for name in ("args", "state", "control"))) is None
    assert schedule.run.metrics == {"eval_loss": [(2, 0.5)]}
    assert len(schedule.history) == 1
    assert trainable_ratio(trainer.model) == 1.0


def test_an_event_of_a_release_to_come_raises_nothing(tmp_path):
    class Later(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            found.append(schedule.on_gradients_ready(step, anything=[1]))

    found: list[object] = []
    schedule = FreezeSchedule()
    assert schedule.on_gradients_ready() is None
    model_for(conv_net()).fit(
        Images(), batch_size=12, epochs=4, verbose=0, callbacks=[schedule, Later()]
    )
    assert found == [None] * 8
    assert schedule.on_gradients_ready() is None


def test_other_names_are_no_attributes_and_say_so_as_usual():
    schedule = FreezeSchedule()
    assert hasattr(schedule, "on_anything")
    for name in ("onward", "stagse", "_on_log", "__deepcopy__", "__getstate__x"):
        assert not hasattr(schedule, name)
        with pytest.raises(
            AttributeError, match=f"'FreezeSchedule' object has no attribute '{name}'"
        ):
            getattr(schedule, name)


def test_the_run_is_no_attribute_before_the_first_and_says_what_to_do():
    schedule = FreezeSchedule()
    assert not hasattr(schedule, "run")
    with pytest.raises(AttributeError, match="there is no run yet: train first"):
        schedule.run.restore()


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_has_the_options_and_no_run_nor_events_of_it(again):
    copies = []

    class Copies(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step == 3:
                copies.append(again(schedule))

    schedule = FreezeSchedule(every="2 steps", lr_decay=2.0)
    network = conv_net()
    model_for(network).fit(
        Images(), batch_size=4, epochs=2, verbose=0, callbacks=[schedule, Copies()]
    )
    (other, _) = copies
    assert repr(other) == repr(schedule) == "FreezeSchedule(every='2 steps', lr_decay=2.0)"
    assert (other.every, other.lr_decay, other.stages) == ("2 steps", 2.0, "auto")
    assert not hasattr(other, "run")
    other.on_train_batch_begin(0, {})  # is nobody's event
    assert other.history == []


def test_what_was_asked_and_what_happened_have_different_names():
    asked = {
        "stages": 2, "every": "8 steps", "cache": "memory", "restore": False, "lr_decay": 2.0,
        "verify": True,
    }  # fmt: skip
    schedule = FreezeSchedule(**asked)
    for _ in range(2):  # before the run, and after it
        for name, value in asked.items():
            assert getattr(schedule, name) == value
        assert schedule.strategy is None
        assert schedule.frozen_dropout is None
        assert schedule.resume_from is None
        model_for(conv_net()).fit(
            Images(), batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[schedule]
        )
    assert [stage.name for stage in schedule.run.stages] == ["head", "block3", "block{1-2}"]
    assert schedule.run.history is schedule.history
    assert schedule.run.cache.hits + schedule.run.cache.misses > 0
    assert FreezeSchedule(restore=True).restore is True


def test_attach_returns_the_run_of_the_schedule():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(every="1 step")
    with schedule.attach(network, optimizer, total_steps=4) as run:
        assert schedule.run is run
        run.step()
        assert schedule.history == run.history
        assert run.cache is None
        assert len(run.history) == 2


def test_a_subclass_may_answer_an_event_of_its_own():
    class Counts(FreezeSchedule):
        batches = 0

        def on_train_batch_end(self, step, logs=None):
            type(self).batches += 1

    schedule = Counts(strategy=HeadOnly())
    model_for(conv_net()).fit(Images(), batch_size=4, epochs=1, verbose=0, callbacks=[schedule])
    assert Counts.batches == 6
    assert len(schedule.history) == 1


def test_fits_own_list_of_callbacks_finds_every_event():
    """Through Paddle's own caller, in case it comes to look for more than a name."""
    schedule = FreezeSchedule()
    callbacks = CallbackList([schedule])
    for mode in ("eval", "predict"):
        callbacks.on_begin(mode, {})
        callbacks.on_batch_begin(mode, 0, {})
        callbacks.on_batch_end(mode, 0, {})
        callbacks.on_end(mode, {})
    assert schedule.history == []


def test_a_trainer_is_asked_for_its_callbacks_by_way_of_its_handler(tmp_path):
    """The schedule comes first, and every other callback stays where it was."""
    schedule = FreezeSchedule(strategy=HeadOnly())
    trainer = trainer_for(tiny_bert(), tmp_path, [schedule], num_train_epochs=1)
    before = list(trainer.callback_handler.callbacks)
    assert before[0] is not schedule
    trainer.train()
    after = trainer.callback_handler.callbacks
    assert after[0] is schedule
    assert after[1:] == [one for one in before if one is not schedule]


def test_hosts_do_not_search_all_objects():
    import paddle_freeze_callback.hosts.hapi as hapi
    import paddle_freeze_callback.hosts.trainer as trainer

    for module in (hapi, trainer):
        source = inspect.getsource(module)
        assert "import gc" not in source
        assert source.count("_getframe") == (module is trainer)
