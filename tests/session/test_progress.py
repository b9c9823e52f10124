"""What people see while it runs: progress bars, lines and the numbers that reporters get."""

from __future__ import annotations

import copy
import json
import pickle
import re

import paddle
import pytest
from networks import Images, conv_net, fit, model_for
from paddle.callbacks import ProgBarLogger, VisualDL
from paddlenlp.trainer import TrainerCallback
from paddlenlp.trainer import trainer_callback as trainer_callbacks
from trainers import logger, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, HeadOnly
from paddle_freeze_callback.hosts import announce
from paddle_freeze_callback.session.transition import Open

ALL = ("head", "encoder.layers.2", "encoder.layers.1", "encoder.layers.0", "embeddings")
BLOCKS = ("head", "block3", "block2", "block1")


class Bar:
    """Stands in for tqdm: keeps the words behind the bar, with the step they came at."""

    made: list[Bar]

    def __init__(self, total=None, desc=None, **options) -> None:
        self.step, self.words, self.closed = 0, [], False
        self.made.append(self)

    def update(self, count: int) -> None:
        self.step += count

    def set_postfix_str(self, words: str) -> None:
        assert not self.closed
        self.words.append((self.step, words))

    def close(self) -> None:
        self.closed = True


def train(folder, schedule, *, extra=(), **flags):
    trainer = trainer_for(tiny_bert(), folder, [*extra, schedule], num_train_epochs=5, **flags)
    trainer.train()
    return trainer


def scalars(folder, tag: str) -> dict[int, float]:
    """What a VisualDL folder holds under a tag, by step."""
    from visualdl import LogReader

    (file,) = folder.iterdir()
    points = LogReader(file_path=str(file)).get_data("scalar", tag)
    return {point.id: point.value for point in points}


def test_the_trainers_bar_shows_each_phase_from_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(Bar, "made", [], raising=False)
    monkeypatch.setattr(trainer_callbacks, "tqdm", Bar)
    schedule = FreezeSchedule()
    train(tmp_path, schedule, disable_tqdm=False)
    (bar,) = Bar.made
    assert bar.words == [(6 * i, f"open {1 + i}/5") for i in range(len(ALL))]
    assert bar.closed


def test_the_real_bar_shows_the_phase(tmp_path, capsys):
    train(tmp_path, FreezeSchedule(), disable_tqdm=False)
    drawn = capsys.readouterr().err.replace("\r", "\n")
    shown = re.findall(r"TrainProcess.*open \d/5\]", drawn)
    opened = [line[-4] for line in shown]
    assert list(dict.fromkeys(opened)) == ["1", "2", "3", "4", "5"]
    assert max(map(len, shown)) < 80


def test_two_runs_show_the_phase_in_two_bars(tmp_path, monkeypatch):
    monkeypatch.setattr(Bar, "made", [], raising=False)
    monkeypatch.setattr(trainer_callbacks, "tqdm", Bar)
    trainer = train(tmp_path, FreezeSchedule(), disable_tqdm=False)
    trainer.train()
    first, second = Bar.made
    assert first.words == second.words
    assert len(second.words) == len(ALL)


def test_without_a_bar_a_trainer_trains_as_before(tmp_path):
    schedule = FreezeSchedule()
    train(tmp_path, schedule, disable_tqdm=True)
    assert [change.opened for change in schedule.history] == [(name,) for name in ALL]


def test_a_bar_that_is_no_tqdm_is_left_alone(tmp_path):
    class OwnBar(TrainerCallback):
        training_bar = "my own"

    own = OwnBar()
    train(tmp_path, FreezeSchedule(), extra=[own])
    assert own.training_bar == "my own"


def test_every_reporter_of_a_trainer_gets_the_numbers_even_if_it_comes_first(tmp_path):
    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                seen.append((state.global_step, dict(logs)))

    seen: list[tuple[int, dict]] = []
    train(tmp_path, FreezeSchedule(lr_decay=2), extra=[Reporter()], lr_scheduler_type="constant")
    assert [step for step, _ in seen] == list(range(1, 31))
    for step, logs in seen:
        opened = 1 + (step - 1) // 6
        assert logs["open_stages"] == opened
        rates = {name: value for name, value in logs.items() if name.startswith("lr/")}
        assert rates == {
            f"lr/{name}": pytest.approx(1e-3 / 2**depth) for depth, name in enumerate(ALL[:opened])
        }
        # Reporters drop, with a warning, what is no plain number.
        assert {type(logs[name]) for name in ("trainable_ratio", *rates)} == {float}
    assert seen[-1][1]["trainable_ratio"] == 1.0


@pytest.mark.parametrize("bar", [False, True])
def test_a_trainers_console_has_what_fits_and_reporters_the_rest(tmp_path, monkeypatch, bar):
    lines: list[str] = []
    monkeypatch.setattr(logger, "info", lines.append)
    options = {"lr_scheduler_type": "constant", "disable_tqdm": not bar}
    schedule = FreezeSchedule(lr_decay=2)
    trainer = train(tmp_path, schedule, **options)
    shown = [line for line in lines if str(line).startswith("loss: ")]
    ends = [f"trainable_ratio: {float(f'{change.ratio:.3g}')}" for change in schedule.history]
    assert [line.partition("progress_or_epoch")[2].partition(", ")[2] for line in shown] == [
        f"{ends[step // 6]}, open_stages: {1 + step // 6}/5" for step in range(30)
    ]
    assert max(len(line) for line in lines if str(line).startswith("FreezeSchedule")) <= 120
    logged = [one for one in trainer.state.log_history if "loss" in one][-1]
    assert logged["lr/embeddings"] == pytest.approx(1e-3 / 16)
    assert json.loads(json.dumps(logged))["open_stages"] == 5
    others = [one for one in trainer.callback_handler.callbacks if one is not schedule]
    assert not [one for one in others if "on_log" in vars(one)]


def test_a_count_of_open_stages_survives_a_copy():
    for copied in (copy.deepcopy(Open(3, of=8)), pickle.loads(pickle.dumps(Open(3, of=8)))):
        assert (copied, str(copied), f"{copied}") == (3, "3/8", "3/8")


def test_a_trainers_visualdl_has_the_numbers_and_a_curve_for_each_stages_rate(tmp_path):
    folder = tmp_path / "runs"
    options = {"report_to": ["visualdl"], "logging_dir": str(folder)}
    schedule = FreezeSchedule(lr_decay=2)
    train(tmp_path, schedule, lr_scheduler_type="constant", **options)
    assert scalars(folder, "train/open_stages") == {i: 1 + (i - 1) // 6 for i in range(1, 31)}
    ratios = [change.ratio for change in schedule.history]
    assert scalars(folder, "train/trainable_ratio") == {
        i: pytest.approx(ratios[(i - 1) // 6]) for i in range(1, 31)
    }
    for depth, name in enumerate(ALL):
        assert scalars(folder, f"train/lr/{name}") == {
            i: pytest.approx(1e-3 / 2**depth) for i in range(1 + 6 * depth, 31)
        }


def lines_of(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("step ")]


@pytest.mark.parametrize(
    ("columns", "verbose", "metrics", "shown"),
    [
        (80, 2, ["loss"], ["open_stages"]),
        (80, 2, ["loss", "acc"], ["open_stages"]),
        (80, 2, ["loss", "acc_top1", "acc_top5"], []),
        (80, 1, ["loss"], []),
        (110, 2, ["loss", "acc"], ["open_stages", "trainable_ratio"]),
        (120, 1, ["loss"], ["open_stages"]),
        (150, 1, ["loss", "acc"], ["open_stages", "trainable_ratio"]),
        (80, 2, None, ["open_stages", "trainable_ratio"]),
    ],
)
def test_fits_line_gets_as_much_as_the_terminal_is_wide(
    monkeypatch, columns, verbose, metrics, shown
):
    monkeypatch.setenv("COLUMNS", str(columns))
    params = {"metrics": metrics, "steps": 1000, "verbose": verbose}
    announce(params)
    assert params["metrics"] == [*(metrics or ()), *shown]


def test_a_line_of_fit_with_a_metric_fits_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    model = model_for(conv_net(), metrics=paddle.metric.Accuracy())
    schedule = FreezeSchedule(lr_decay=2)
    model.fit(Images(), batch_size=1, epochs=2, verbose=2, log_freq=1, callbacks=[schedule])
    lines = lines_of(capsys.readouterr().out)
    assert all(re.search(r" - open_stages: \d/4 - ", line) for line in lines)
    assert len(lines) == 48
    assert max(map(len, lines)) <= 80


def test_a_transition_within_an_epoch_begins_a_line_of_its_own_below_the_bar(capsys):
    fit(conv_net(), FreezeSchedule(every="4 steps"), verbose=1, log_freq=1)
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if "FreezeSchedule: " in line]
    assert len(said) == 4
    assert all(line.startswith("FreezeSchedule: ") for line in said)


def test_fits_line_shows_ratio_and_open_stages_of_the_step_it_tells_of(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    fit(conv_net(), FreezeSchedule(lr_decay=2), verbose=2, log_freq=1)
    lines = lines_of(capsys.readouterr().out)
    assert len(lines) == 24
    ratios = [10 / 370, 166 / 370, 322 / 370, 1.0]
    for i, line in enumerate(lines):
        expected = rf"step {1 + i % 6}/6 - loss: \d\.\d{{4}} - open_stages: (\d)/4 - "
        found = re.fullmatch(expected + r"trainable_ratio: (\S+) - \S+/step", line)
        assert found, line
        assert found.groups() == (str(1 + i // 6), f"{ratios[i // 6]:.4f}")


@pytest.mark.parametrize("log_freq", [1, 4, 10])
def test_fits_bar_shows_them_however_seldom_it_prints(capsys, monkeypatch, log_freq):
    monkeypatch.setenv("COLUMNS", "160")
    fit(conv_net(), FreezeSchedule(), verbose=1, log_freq=log_freq)
    out = capsys.readouterr().out
    shown = re.findall(r"open_stages: (\d)/4 - trainable_ratio: ", out)
    assert list(dict.fromkeys(shown)) == ["1", "2", "3", "4"]


def test_fits_line_is_its_own_again_in_an_evaluation_and_in_the_next_run(capsys):
    bar = ProgBarLogger(1, verbose=2)
    model = fit(conv_net(), FreezeSchedule(strategy=HeadOnly()), verbose=0, epochs=1)
    capsys.readouterr()
    options = {"batch_size": 4, "verbose": 2}
    callbacks = [bar, FreezeSchedule(strategy=HeadOnly())]
    model.fit(Images(), Images(8), epochs=1, callbacks=callbacks, **options)
    trained, evaluated = capsys.readouterr().out.split("Eval begin...")
    assert trained.count("open_stages: 1") == len(lines_of(trained)) == 6
    assert "open_stages" not in evaluated
    assert len(lines_of(evaluated)) == 2
    model.fit(Images(), epochs=1, callbacks=[bar], **options)
    out = capsys.readouterr().out
    assert len(lines_of(out)) == 6
    assert "open_stages" not in out


def test_the_list_of_metrics_that_fit_shares_among_callbacks_is_not_touched():
    class Asks(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            announced.append(list(self.params["metrics"]))

    announced: list[list[str]] = []
    model = paddle.Model(conv_net())
    model.prepare(
        paddle.optimizer.Adam(0.01, parameters=model.parameters()),
        paddle.nn.CrossEntropyLoss(),
        paddle.metric.Accuracy(),
    )
    callbacks = [FreezeSchedule(), Asks()]
    model.fit(Images(), batch_size=4, epochs=4, verbose=1, callbacks=callbacks)
    assert announced == [["loss", "acc"]] * 24


@pytest.mark.parametrize("first", [True, False])
def test_fits_visualdl_has_the_numbers_and_a_curve_for_each_stages_rate(tmp_path, first):
    schedule, reporter = FreezeSchedule(lr_decay=2), VisualDL(str(tmp_path / "runs"))
    callbacks = [reporter, schedule] if first else [schedule, reporter]
    model = paddle.Model(conv_net())
    optimizer = paddle.optimizer.Adam(0.01, parameters=model.parameters())
    model.prepare(optimizer, paddle.nn.CrossEntropyLoss())
    model.fit(Images(), batch_size=4, epochs=4, verbose=0, callbacks=callbacks)
    folder = tmp_path / "runs"
    assert len(scalars(folder, "train/loss")) == 24
    assert scalars(folder, "train/open_stages") == {i: 1 + (i - 1) // 6 for i in range(1, 25)}
    ratios = [change.ratio for change in schedule.history]
    assert scalars(folder, "train/trainable_ratio") == {
        i: pytest.approx(ratios[(i - 1) // 6]) for i in range(1, 25)
    }
    for depth, name in enumerate(BLOCKS):
        assert scalars(folder, f"train/lr/{name}") == {
            i: pytest.approx(0.01 / 2**depth) for i in range(1 + 6 * depth, 25)
        }
