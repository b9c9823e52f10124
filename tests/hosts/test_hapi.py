"""Under ``paddle.Model.fit``."""

from __future__ import annotations

import gc
import warnings

import paddle
import pytest
from networks import ConvNet, Images, Stream, Watch, conv_net, fit, model_for, moved, values
from paddle import nn

from paddle_freeze_callback import (
    Explicit,
    FreezeSchedule,
    Gradual,
    HeadOnly,
    HeadThenAll,
    OnPlateau,
    trainable_ratio,
)
from paddle_freeze_callback.session.record import Record

ALL = ("head", "block3", "block2", "block1")


def steps(schedule) -> list[tuple[int, int, tuple[str, ...]]]:
    return [(change.step, change.epoch, change.opened) for change in schedule.history]


def test_stages_open_from_the_top_and_frozen_ones_do_not_move():
    network = conv_net()
    schedule = FreezeSchedule(verify=True)
    watch = Watch(schedule)
    model_for(network).fit(
        Images(), batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[schedule, watch]
    )
    assert watch.open == [ALL[: 1 + batch // 6] for batch in range(24)]
    members = {stage.name: set(stage.parameters) for stage in schedule.run.stages}
    for now, changed in zip(watch.open, watch.moved):
        for stage in ALL:
            tensors = members[stage] | {f"{stage}.1._mean", f"{stage}.1._variance"}
            if stage in now:
                assert members[stage] & changed, (stage, changed)
            else:
                assert not tensors & changed
    assert steps(schedule) == [
        (0, 0, ("head",)), (6, 1, ("block3",)), (12, 2, ("block2",)), (18, 3, ("block1",)),
    ]  # fmt: skip
    assert schedule.history[0].frozen == ("block3", "block2", "block1")
    assert [change.trainable for change in schedule.history] == [10, 166, 322, 370]
    assert schedule.history[1].ratio == 166 / 370
    assert trainable_ratio(network) == 1.0


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        # 6 batches, 4 of them to a step: the last two make a step of their own
        (Images(), {"accumulate_grad_batches": 4}, [0, 2, 4, 6]),
        (Images(), {"accumulate_grad_batches": 6}, [0, 1, 2, 3]),
        (Images(), {"accumulate_grad_batches": 1}, [0, 6, 12, 18]),
        (Images(22), {}, [0, 6, 12, 18]),
        (Images(22), {"drop_last": True}, [0, 5, 10, 15]),
        # 20 iterations are 3 epochs and 2 batches
        (Images(), {"num_iters": 20}, [0, 6, 12, 18]),
        (Images(), {"num_iters": 20, "accumulate_grad_batches": 4}, [0, 2, 4]),
        (Images(), {"num_iters": 6}, [0]),
        (Images(), {"num_iters": 4}, [0]),
    ],
)
def test_epochs_are_counted_in_optimizer_steps(data, options, expected):
    schedule = FreezeSchedule(every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(conv_net(), schedule, data=data, **options)
    assert [change.step for change in schedule.history] == expected


@pytest.mark.parametrize("accumulate", [1, 2, 4, 5])
def test_steps_are_counted_as_the_optimizer_counts_them(accumulate):
    class Counting(paddle.optimizer.SGD):
        count = 0

        def step(self):
            type(self).count += 1
            super().step()

        def minimize(self, *args, **kwargs):
            type(self).count += 1
            return super().minimize(*args, **kwargs)

    class Sees(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            if step % accumulate == 0:
                assert schedule._host.done == Counting.count
                seen.append(step)

    seen: list[int] = []
    schedule = FreezeSchedule(every="3 steps")
    network = conv_net()
    model = model_for(network, Counting(0.1, parameters=network.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(
            Images(), batch_size=4, epochs=3, verbose=0, callbacks=[schedule, Sees()],
            accumulate_grad_batches=accumulate,
        )  # fmt: skip
    assert len(seen) == Counting.count == 3 * -(-6 // accumulate)
    assert all(change.step % 3 == 0 for change in schedule.history)


def test_data_without_length_is_scheduled_by_epochs():
    loader = paddle.io.DataLoader(Stream(), batch_size=4)
    schedule = FreezeSchedule(every=1)
    fit(conv_net(), schedule, data=loader)
    assert steps(schedule) == [
        (0, 0, ("head",)), (6, 1, ("block3",)), (12, 2, ("block2",)), (18, 3, ("block1",)),
    ]  # fmt: skip
    schedule = FreezeSchedule(strategy=HeadThenAll("50%"))
    fit(conv_net(), schedule, data=loader)
    assert [change.step for change in schedule.history] == [0, 12]
    schedule = FreezeSchedule(every="5 steps")
    fit(conv_net(), schedule, data=loader)
    assert [change.step for change in schedule.history] == [0, 5, 10, 15]


def test_data_without_length_and_with_a_number_of_iterations_has_a_known_end():
    loader = paddle.io.DataLoader(Stream(), batch_size=4)
    schedule = FreezeSchedule()
    fit(conv_net(), schedule, data=loader, num_iters=16)
    assert [change.step for change in schedule.history] == [0, 4, 8, 12]
    with pytest.raises(ValueError, match=r'"1 epoch" cannot be counted.*use steps'):
        fit(conv_net(), FreezeSchedule(every=1), data=loader, num_iters=16)


def test_data_without_length_cannot_be_accumulated():
    loader = paddle.io.DataLoader(Stream(), batch_size=4)
    with pytest.raises(ValueError, match="accumulate_grad_batches needs training data with a"):
        fit(conv_net(), FreezeSchedule(), data=loader, accumulate_grad_batches=2)


def test_the_same_object_starts_afresh_in_a_second_fit():
    schedule = FreezeSchedule()
    network = conv_net()
    model = fit(network, schedule)
    first = steps(schedule)
    model.fit(Images(), batch_size=4, epochs=4, verbose=0, callbacks=[schedule])
    assert steps(schedule) == first
    fit(conv_net(), schedule)
    assert steps(schedule) == first


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Gradual(every="2 steps", start="1 step"), [(0, 1), (1, 2), (3, 3), (5, 4)]),
        (HeadOnly(), [(0, 1)]),
        (HeadThenAll("5 steps"), [(0, 1), (5, 4)]),
        (Explicit({0: "fc", "3 steps": "block3", 3: "*"}), [(0, 1), (3, 2), (18, 3)]),
        ("head_only", [(0, 1)]),
        ("head_then_all", [(0, 1), (12, 4)]),
    ],
)
def test_strategies_run_to_the_step(strategy, expected):
    counts: list[tuple[int, int]] = []
    schedule = FreezeSchedule(strategy=strategy, verify=True)
    fit(conv_net(), schedule)
    now = 0
    for change in schedule.history:
        now += len(change.opened) - (0 if change is schedule.history[0] else len(change.frozen))
        counts.append((change.step, now))
    assert counts == expected


def test_refreezing_holds_the_stage_again():
    network = conv_net()
    schedule = FreezeSchedule(
        unfreeze_at={0: ["fc", "block3"], 1: {"freeze": "block3", "unfreeze": "block2"}},
        verify=True,
    )
    watch = Watch(schedule)
    model_for(network).fit(Images(), batch_size=4, epochs=3, verbose=0, callbacks=[schedule, watch])
    assert schedule.history[1].opened == ("block2",)
    assert schedule.history[1].frozen == ("block3",)
    for changed in watch.moved[6:]:
        assert not [name for name in changed if name.startswith("block3")]
    assert [stage.name for stage in schedule.run.stages] == ["fc", "block3", "block2", "rest"]


def test_a_stage_that_never_opens_is_a_warning_that_names_it():
    with pytest.warns(UserWarning, match=r"'block1' \(which needs 30 steps\) never opens"):
        fit(conv_net(), FreezeSchedule(every="10 steps"))


def test_numbers_are_in_the_logs_while_training_and_not_after():
    seen: list[dict] = []

    class Logs(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            seen.append(dict(logs))

        def on_eval_end(self, logs=None):
            self.after = dict(logs)

    watch = Logs()
    schedule = FreezeSchedule()
    network = conv_net()
    model = model_for(network)
    model.fit(Images(), batch_size=4, epochs=4, verbose=0, callbacks=[schedule, watch])
    assert seen[0]["trainable_params"] == 10
    assert seen[0]["trainable_ratio"] == 10 / 370
    assert [logs["open_stages"] for logs in seen] == [1 + batch // 6 for batch in range(24)]
    model.evaluate(Images(), batch_size=4, verbose=0, callbacks=[watch])
    assert "trainable_ratio" not in watch.after


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (1, 4), (2, 4)])
def test_lines_are_printed_unless_fit_is_silent(capsys, verbose, lines):
    fit(conv_net(), FreezeSchedule(), verbose=verbose)
    printed = [x for x in capsys.readouterr().out.splitlines() if x.startswith("FreezeSchedule: ")]
    assert len(printed) == lines
    if lines:
        assert printed[1] == (
            "FreezeSchedule: step 6, epoch 1: opens block3; 166 of 370 parameters train (44.9%)"
        )


def test_evaluation_during_training_changes_nothing_and_causes_no_transition():
    schedules = FreezeSchedule(), FreezeSchedule()
    networks = conv_net(), conv_net()
    fit(networks[0], schedules[0])
    fit(networks[1], schedules[1], eval_data=Images(8))
    assert steps(schedules[0]) == steps(schedules[1])
    assert not moved(values(networks[0]), values(networks[1]))


def test_a_schedule_given_to_evaluate_and_predict_does_nothing():
    network, schedule = conv_net(), FreezeSchedule()
    model = model_for(network)
    model.evaluate(Images(8), verbose=0, callbacks=[schedule])
    model.predict(Images(8), verbose=0, callbacks=[schedule])
    assert trainable_ratio(network) == 1.0
    assert schedule.history == []
    assert not hasattr(schedule, "run")


class Breaks(paddle.callbacks.Callback):
    def __init__(self, error: type[BaseException], at: int) -> None:
        super().__init__()
        self.error, self.left = error, at

    def on_train_batch_end(self, step, logs=None):
        self.left -= 1
        if not self.left:
            raise self.error("broken")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [1, 6, 8])
def test_after_an_exception_the_next_fit_starts_clean(error, at):
    network = conv_net()
    network.block2[0].bias.stop_gradient = True
    found = [tensor.stop_gradient for tensor in network.parameters()]
    broken, fine = FreezeSchedule(), FreezeSchedule(strategy=HeadOnly())
    model = model_for(network)
    with pytest.raises(error, match="broken"):
        model.fit(
            Images(), batch_size=4, epochs=4, verbose=0, callbacks=[broken, Breaks(error, at)]
        )
    assert trainable_ratio(network) < 0.6
    model.fit(Images(), batch_size=4, epochs=1, verbose=0, callbacks=[fine])
    assert fine.history[0].trainable == 10
    assert [tensor.stop_gradient for tensor in network.parameters()] == found
    assert network.block1[1]._use_global_stats is None


@pytest.mark.parametrize("how", ["restore", "forget"])
def test_after_an_exception_the_network_can_be_put_back_at_once(how):
    network, schedule = conv_net(), FreezeSchedule()
    model = model_for(network)
    with pytest.raises(RuntimeError):
        model.fit(Images(), batch_size=4, verbose=0, callbacks=[schedule, Breaks(RuntimeError, 2)])
    if how == "restore":
        schedule.run.restore()
    else:
        del schedule
        gc.collect()
    assert trainable_ratio(network) == 1.0
    assert network.block1[1]._use_global_stats is None


def test_two_schedules_in_one_fit_are_refused_before_the_first_step():
    network = conv_net()
    before = values(network)
    with pytest.raises(RuntimeError, match="give one schedule to a training run, not two"):
        model_for(network).fit(
            Images(), batch_size=4, verbose=0, callbacks=[FreezeSchedule(), FreezeSchedule()]
        )
    assert not moved(before, values(network))


def test_parameter_groups_of_the_optimizer_are_seen():
    network = conv_net()
    optimizer = paddle.optimizer.Adam(
        0.1,
        parameters=[{"params": network.fc.parameters()}, {"params": network.block3.parameters()}],
    )
    with pytest.raises(ValueError, match="was not given 8 parameters"):
        FreezeSchedule().attach(network, optimizer, total_steps=8)


def test_a_model_without_an_optimizer_is_refused():
    model = paddle.Model(conv_net())
    model.prepare(loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"call model\.prepare"):
        model.fit(Images(), verbose=0, callbacks=[FreezeSchedule()])


def test_static_graph_mode_is_refused():
    paddle.enable_static()
    try:
        spec = paddle.static.InputSpec
        model = paddle.Model(
            ConvNet(), spec([None, 1, 6, 6], "float32", "x"), spec([None, 1], "int64", "y")
        )
        optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
        model.prepare(optimizer, nn.CrossEntropyLoss())
        with pytest.raises(ValueError, match="freezing needs"):
            model.fit(Images(), batch_size=4, verbose=0, callbacks=[FreezeSchedule()])
    finally:
        paddle.disable_static()


def test_what_the_user_froze_is_opened_only_if_asked_for_by_name():
    def run(**options):
        network = conv_net()
        for tensor in [*network.block2.parameters(), network.block3[0].weight]:
            tensor.stop_gradient = True
        schedule = FreezeSchedule(**options)
        watch = Watch(schedule)
        model_for(network).fit(
            Images(), batch_size=4, epochs=4, verbose=0, callbacks=[schedule, watch]
        )
        return set().union(*watch.moved)

    assert not run() & {"block2.0.weight", "block3.0.weight"}
    assert not run(unfreeze_at={0: "fc", 1: "*"}) & {"block2.0.weight", "block3.0.weight"}
    assert "block2.0.weight" in run(unfreeze_at={0: "fc", 1: "block2"})
    named = run(stages=["fc", "block3", "block2", "*"], every="2 steps")
    assert "block2.0.weight" in named  # whole, so asking for it means opening it
    assert "block3.0.weight" not in named  # beside parameters that train
    assert "block3.0.weight" in run(unfreeze_at={0: "fc", 1: "block3.0.weight"})


def test_a_stage_that_the_user_froze_whole_takes_no_turn():
    network = conv_net()
    for tensor in network.block3.parameters():
        tensor.stop_gradient = True
    schedule = FreezeSchedule(every="2 steps")
    fit(network, schedule)
    assert [change.opened for change in schedule.history] == [("head",), ("block2",), ("block1",)]
    assert [stage.name for stage in schedule.run.stages] == list(ALL)


def test_a_refusal_comes_before_the_first_step_and_leaves_the_network_alone():
    network = conv_net()
    head_only = paddle.optimizer.Adam(0.1, parameters=network.fc.parameters())
    before = values(network)
    with pytest.raises(ValueError, match="was not given 12 parameters that the schedule will open"):
        model_for(network, head_only).fit(
            Images(), batch_size=4, verbose=0, callbacks=[FreezeSchedule()]
        )
    assert not moved(before, values(network))
    assert trainable_ratio(network) == 1.0
    schedule = FreezeSchedule(strategy=HeadOnly())  # which opens nothing that it lacks
    model_for(network, head_only).fit(Images(), batch_size=4, verbose=0, callbacks=[schedule])


def test_selectors_of_unfreeze_at_reach_what_no_stage_names():
    schedule = FreezeSchedule(
        stages=["fc", "block3"], unfreeze_at={0: "fc", 1: ["block2", "block1"], 2: "*"}
    )
    fit(conv_net(), schedule)
    assert [change.opened for change in schedule.history] == [("fc",), ("rest",), ("block3",)]
    with pytest.raises(ValueError, match="'block1' cuts through the stage 'rest'"):
        fit(conv_net(), FreezeSchedule(stages=["fc", "block3"], unfreeze_at={0: "fc", 1: "block1"}))


def test_a_star_in_unfreeze_at_is_everything_also_beside_a_stage_of_that_name():
    schedule = FreezeSchedule(stages=["fc", "block3", "*"], unfreeze_at={0: "fc", "50%": "*"})
    fit(conv_net(), schedule)
    assert schedule.history[-1].ratio == 1.0


def test_an_epoch_of_unknown_length_cannot_be_planned_and_says_so():
    loader = paddle.io.DataLoader(Stream(), batch_size=4)
    with pytest.raises(ValueError, match="single epoch of data without length"):
        fit(conv_net(), FreezeSchedule(), data=loader, epochs=1)
    with pytest.warns(UserWarning, match=r"in this run of 4 epochs .* never open"):
        fit(conv_net(), FreezeSchedule(unfreeze_at={0: "fc", 9: "*"}), data=loader, epochs=4)


def test_numbers_do_not_stay_in_paddles_logs_after_an_interrupt():
    schedule = FreezeSchedule()
    network = conv_net()
    with pytest.raises(KeyboardInterrupt):
        model_for(network).fit(
            Images(), batch_size=4, verbose=0, callbacks=[schedule, Breaks(KeyboardInterrupt, 2)]
        )
    schedule.run.restore()
    seen: list[dict] = []

    class Logs(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            seen.append(dict(logs))

    model_for(conv_net()).fit(Images(), batch_size=4, verbose=0, callbacks=[Logs()])
    assert "trainable_ratio" not in seen[0]


def test_parameter_groups_which_fit_cannot_train_are_refused():
    network = conv_net()
    optimizer = paddle.optimizer.Adam(0.1, parameters=[{"params": network.parameters()}])
    with pytest.raises(ValueError, match="cannot train with parameter groups"):
        model_for(network, optimizer).fit(Images(), verbose=0, callbacks=[FreezeSchedule()])


# ------------------------------------------------------------ checkpoints


class Saves(paddle.callbacks.Callback):
    """Saves in the middle of an epoch, as a user's own callback may."""

    def __init__(self, folder) -> None:
        super().__init__()
        self.folder = folder

    def on_train_batch_end(self, step, logs=None):
        if step == 2:
            self.model.save(f"{self.folder}/mine")


def records_in(folder) -> dict[str, int]:
    """The steps done, by checkpoint, of all records in a folder."""
    ending = ".freeze_schedule.json"
    found = {file.name[: -len(ending)]: file for file in folder.glob(f"*{ending}")}
    return {name: Record.load(file.with_name(name)).step for name, file in found.items()}


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_record_is_beside_every_checkpoint_whoever_saves_it(tmp_path, position):
    schedule = FreezeSchedule(every=1)
    others = [
        Saves(tmp_path),
        paddle.callbacks.EarlyStopping("loss", patience=9, verbose=0, save_best_model=True),
    ]
    model = model_for(conv_net())
    model.fit(
        Images(), Images(4), batch_size=4, epochs=2, verbose=0, save_dir=str(tmp_path),
        callbacks=[*others[:position], schedule, *others[position:]],
    )  # fmt: skip
    saved = {path.stem for path in tmp_path.glob("*.pdparams")}
    assert saved == {"0", "1", "final", "best_model", "mine"}
    records = records_in(tmp_path)
    assert records.pop("best_model") in (6, 12)
    # Before the schedule's turn this batch is not counted yet: no record, rather than a wrong one.
    mine = {} if position else {"mine": 9}
    assert records == {"0": 6, "1": 12, "final": 12, **mine}


def test_what_was_saved_before_an_evaluation_knows_what_it_decided(tmp_path):
    schedule = FreezeSchedule(strategy=OnPlateau("loss", patience=1))
    model_for(conv_net()).fit(
        Images(), Images(4), batch_size=4, epochs=2, verbose=0, save_dir=str(tmp_path),
        callbacks=[
            paddle.callbacks.EarlyStopping("loss", patience=9, verbose=0, save_best_model=True),
            schedule,
        ],
    )  # fmt: skip
    assert [step for step, _ in Record.load(tmp_path / "0").decisions] == [6]
    assert [step for step, _ in Record.load(tmp_path / "1").decisions] == [6, 12]
    best = Record.load(tmp_path / "best_model")
    assert best.decisions[-1][0] == best.step


def test_a_model_saved_for_inference_gets_no_record(tmp_path):
    class Exports(paddle.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.save(str(tmp_path / "exported"), training=False)

    network = conv_net()
    spec = paddle.static.InputSpec([None, 1, 6, 6], "float32", "x")
    label = paddle.static.InputSpec([None, 1], "int64", "y")
    model = paddle.Model(network, spec, label)
    model.prepare(
        paddle.optimizer.Adam(0.01, parameters=network.parameters()), nn.CrossEntropyLoss()
    )
    model.fit(Images(), batch_size=4, epochs=1, verbose=0, callbacks=[FreezeSchedule(), Exports()])
    assert list(tmp_path.glob("exported*"))
    assert records_in(tmp_path) == {}


def test_a_model_saves_as_before_when_the_run_is_over(tmp_path):
    model = model_for(conv_net())
    for folder in ({}, {"save_dir": str(tmp_path / "kept")}):
        model.fit(
            Images(), batch_size=4, epochs=1, verbose=0, callbacks=[FreezeSchedule()], **folder
        )
        assert not {"save", "_run_one_epoch"} & set(vars(model))
    model.save(str(tmp_path / "later"))
    model.fit(Images(), batch_size=4, epochs=1, verbose=0, save_dir=str(tmp_path / "plain"))
    assert records_in(tmp_path) == records_in(tmp_path / "plain") == {}
    assert records_in(tmp_path / "kept") == {"0": 6, "final": 6}


@pytest.mark.parametrize("how", ["restore", "next"])
def test_a_model_saves_as_before_after_an_interrupt_is_cleared_up(tmp_path, how):
    model, schedule = model_for(conv_net()), FreezeSchedule()
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            Images(), batch_size=4, verbose=0,
            callbacks=[schedule, Breaks(KeyboardInterrupt, 2)],
        )  # fmt: skip
    assert "save" in vars(model)
    if how == "restore":
        schedule.run.restore()
    else:
        model.fit(Images(), batch_size=4, verbose=0, callbacks=[FreezeSchedule()])
    assert "save" not in vars(model)
    model.save(str(tmp_path / "later"))
    assert records_in(tmp_path) == {}


def test_a_save_of_the_users_own_is_called_and_put_back(tmp_path):
    def save(path, training=True):
        saved.append(path)
        return type(model).save(model, path, training)

    saved: list[str] = []
    model = model_for(conv_net())
    model.save = save
    model.fit(
        Images(), batch_size=4, epochs=1, verbose=0, save_dir=str(tmp_path),
        callbacks=[FreezeSchedule()],
    )  # fmt: skip
    assert saved == [f"{tmp_path}/0", f"{tmp_path}/final"]
    assert model.save is save
    assert records_in(tmp_path) == {"0": 6, "final": 6}


# ------------------------------------------------------------ numbers


def test_the_logs_follow_a_scheduler_at_every_step_and_drop_what_froze():
    class Logs(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            rates = {name: value for name, value in logs.items() if name.startswith("lr/")}
            seen.append((optimizer.get_lr(), rates))

    seen: list[tuple[float, dict]] = []
    network = conv_net()
    scheduler = paddle.optimizer.lr.ExponentialDecay(0.1, 0.9)
    optimizer = paddle.optimizer.SGD(scheduler, parameters=network.parameters())
    schedule = FreezeSchedule(
        unfreeze_at={0: "fc", 1: {"freeze": "fc", "unfreeze": "block3"}}, lr={"block3": 0.5}
    )
    model_for(network, optimizer).fit(
        Images(), batch_size=4, epochs=2, verbose=0, callbacks=[Logs(), schedule]
    )
    assert [rate for rate, _ in seen] == [pytest.approx(0.1 * 0.9**step) for step in range(12)]
    for step, (rate, rates) in enumerate(seen):
        expected = {"lr/fc": rate} if step < 6 else {"lr/block3": 0.5 * rate}
        assert rates == pytest.approx(expected)


def test_nothing_is_built_anew_at_a_step_at_which_nothing_changes():
    class Numbers(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            numbers.append(schedule.run.numbers)

    numbers: list[object] = []
    schedule = FreezeSchedule(unfreeze_at={0: "fc", 1: "block3"}, lr={"*": 0.5}, warmup="2 steps")
    model_for(conv_net()).fit(
        Images(), batch_size=4, epochs=2, verbose=0, callbacks=[schedule, Numbers()]
    )
    # One in the first step, one while fc alone is open, and two while block3 warms up; all are
    # still referred to.
    assert len({id(one) for one in numbers}) == 4
    assert [one["open_stages"] for one in numbers] == [1] * 6 + [2] * 6


@pytest.mark.parametrize("first", [True, False])
def test_a_reporter_beside_a_progress_bar_gets_what_the_bar_leaves_out(capsys, first):
    class Reporter(paddle.callbacks.VisualDL):
        def _is_write(self):
            return False  # needs no package: it only keeps which numbers it would write

    reporter, schedule = Reporter("unused"), FreezeSchedule(lr_decay=2.0)
    model_for(conv_net()).fit(
        Images(), batch_size=4, epochs=4, verbose=2, log_freq=1,
        callbacks=[reporter, schedule] if first else [schedule, reporter],
    )  # fmt: skip
    rates = [f"lr/{name}" for name in ALL]
    shown = ["open_stages", "trainable_ratio", "trainable_params", "cache_hit_rate"]
    assert reporter.train_metrics == ["loss", *shown, *rates]
    out = capsys.readouterr().out
    assert "open_stages: 4" in out
    assert "lr/" not in out
    assert "trainable_params" not in out
