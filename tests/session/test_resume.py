"""Condition: a run that is resumed is the run that was not interrupted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import paddle
import pytest
from networks import Images, conv_net, model_for, moved, values
from processes import posix_only
from trainers import ACCUMULATES, WORD_TABLE, Tokens, logger, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, HeadOnly, HeadThenAll
from paddle_freeze_callback.session.record import FILE, Record
from paddle_freeze_callback.strategies.base import Strategy

PROGRAMS = Path(__file__).parent.parent / "programs"


def program(name: str, *arguments: object) -> dict:
    """What a program in its own process prints as its result."""
    posix_only()  # it forks
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(results[0][len("RESULT ") :])


@pytest.mark.parametrize(
    "arguments",
    [
        (1,),
        (2,),
        (1, "free_optimizer_state=true"),
        (2, 'frozen_dropout="eval"', "free_optimizer_state=true"),
    ],
    ids=str,
)
def test_trainer_resumed_after_any_step_in_another_process_is_bitwise_the_same(tmp_path, arguments):
    """Before, at and after each transition, also mid-epoch."""
    if arguments[0] > 1 and not ACCUMULATES:
        pytest.skip("this Trainer cannot accumulate on a CPU, with or without a schedule")
    result = program("resume", tmp_path, *arguments)
    assert result["steps"] == list(range(1, 13))
    assert {3, 5, 9} <= set(result["at"])
    assert result["differs"] == {str(step): [] for step in range(1, 12)}


RATES = ('freeze_lr=["head=2"]', "freeze_lr_decay=2.6", 'freeze_warmup="3 steps"')


@pytest.mark.parametrize(
    "options",
    [
        ('freeze_strategy="random_stages"', "freeze_k=1", "freeze_seed=5",
         'freeze_train_norm=["always"]',
         'freeze_every="2 steps"', *RATES),
        ('freeze_strategy="cyclic"', 'freeze_every="2 steps"',
         f'freeze_rows=["{WORD_TABLE}=45:"]'),
        ('freeze_strategy="by_gradient"', 'freeze_every="2 steps"', "freeze_threshold=0.9"),
        ('freeze_strategy="on_plateau"', 'freeze_metric="eval_loss"', "freeze_patience=1",
         "freeze_min_delta=0.001", 'freeze_max_wait="5 steps"', "freeze_restore_best=true",
         'freeze_hold="2 steps"'),
        ('freeze_strategy="fine_tune"', "freeze_at=1"),
        ('freeze_strategy="explicit"', 'freeze_phase_lr=["linear", "one_cycle:0.5:4"]',
         'freeze_unfreeze_at=["{0: head, 3 steps: {unfreeze: \'*\', lr: 0.5}, 9 steps: {lr: 2}}"]'),
        ('freeze_strategy="on_plateau"', 'freeze_metric="eval_loss"', "freeze_patience=1",
         "freeze_min_delta=0.001", 'freeze_max_wait="5 steps"', 'freeze_phase_lr=["cosine"]',
         "freeze_phase_decay=0.5"),
        ('freeze_strategy="explicit"', 'freeze_unfreeze_at=["0=type:bias", "3 steps=top 35%", '
         '"50%=bert.encoder.layers.[:-1]", "9 steps=!type:LayerNorm"]'),
    ],
    ids=lambda options: options[0],
)  # fmt: skip
def test_what_chance_gradients_and_metrics_decided_is_resumed_after_any_step(tmp_path, options):
    """From the checkpoint of each step, in another process, bitwise the same; rates, too."""
    result = program("resume", tmp_path, 1, *options)
    assert result["steps"] == list(range(1, 13))
    assert len(result["at"]) > 1
    assert result["differs"] == {str(step): [] for step in range(1, 12)}


def test_hapi_saved_and_continued_in_another_process_is_bitwise_the_same(tmp_path):
    result = program("resume_hapi", tmp_path)
    assert result["differs"] == {"2 epochs": [], "12 steps": [], "1 epoch": [], "6 steps": []}


def test_hapi_resume_at_must_be_countable():
    network = conv_net()
    with pytest.raises(ValueError, match=re.escape('resume_at="50%" is a share, of a run whose')):
        model_for(network).fit(
            Images(), batch_size=4, verbose=0, callbacks=[FreezeSchedule(resume_at="50%")]
        )


def test_resume_at_is_refused_by_a_trainer_which_knows(tmp_path):
    trainer = trainer_for(tiny_bert(), tmp_path, [FreezeSchedule(resume_at=1)])
    with pytest.raises(ValueError, match="resume_at=1 is for paddle"):
        trainer.train()


def saved_run(tmp_path, schedule, **flags):
    """A run of 6 steps with a checkpoint after each."""
    with paddle.utils.unique_name.guard():
        trainer = trainer_for(
            tiny_bert(), tmp_path, [schedule], num_train_epochs=1, save_strategy="steps",
            save_steps=1, **flags,
        )  # fmt: skip
        trainer.train()


def resumed_run(tmp_path, schedule, step, **flags):
    with paddle.utils.unique_name.guard():
        trainer = trainer_for(tiny_bert(), tmp_path, [schedule], num_train_epochs=2, **flags)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    return trainer


def test_a_resume_with_another_schedule_is_allowed_and_says_what_differs(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(logger, "info", lines.append)
    saved_run(tmp_path, FreezeSchedule(strategy=HeadOnly()))
    other = FreezeSchedule(strategy=HeadThenAll("2 steps"), verify=True)
    resumed_run(tmp_path, other, 4)
    (first,) = [index for index, line in enumerate(lines) if "resumed at" in str(line)]
    assert [f"{lines[first]} {lines[first + 1].strip()}"] == [
        "FreezeSchedule: resumed at step 4 with another schedule than the saved run "
        "(FreezeSchedule(strategy=HeadOnly())): encoder.layers.2, encoder.layers.1, "
        "encoder.layers.0, embeddings was frozen and is now open"
    ]
    assert other.history[0].step == 4
    assert len(other.history[0].opened) == 5
    lines.clear()
    resumed_run(tmp_path, FreezeSchedule(strategy=HeadOnly()), 4)
    assert not [line for line in lines if "resumed at" in str(line)]


def test_a_resume_from_a_checkpoint_without_a_schedule_works(tmp_path):
    saved_run(tmp_path, FreezeSchedule(unfreeze_at={0: "*"}))
    for file in tmp_path.glob(f"*/{FILE}"):
        file.unlink()
    schedule = FreezeSchedule(strategy=HeadOnly(), verify=True)
    resumed_run(tmp_path, schedule, 3)
    assert [change.step for change in schedule.history] == [3]


def test_the_state_of_a_network_with_other_names_is_refused(tmp_path):
    saved_run(tmp_path, FreezeSchedule())
    trainer = trainer_for(tiny_bert(), tmp_path, [FreezeSchedule()], num_train_epochs=2)
    with pytest.raises(ValueError, match="build the network exactly once, and first"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_state_of_other_names_is_refused_at_the_first_step_too():
    first, second = conv_net(), conv_net()
    optimizer = paddle.optimizer.Adam(0.1, parameters=first.parameters())
    first(paddle.ones([2, 1, 6, 6])).sum().backward()
    optimizer.step()
    other = paddle.optimizer.Adam(0.1, parameters=second.parameters())
    other.set_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="but nothing of this network"):
        FreezeSchedule().attach(second, other, total_steps=4)


# ------------------------------------------------------------ decisions that no clock makes


@dataclass(frozen=True)
class OneMoreEachTime(Strategy):
    """Opens one more stage whenever the loss of an evaluation is below a bound."""

    name: ClassVar[str] = "one_more"
    decides: ClassVar[bool] = True
    needs_record: ClassVar[bool] = True
    bound: float = 1e9
    key: str = "eval_loss"

    def decide(self, progress, stages):
        asked.append(progress.step)
        loss = progress.metrics[self.key]
        loss = loss[0] if isinstance(loss, (list, tuple, np.ndarray)) else loss
        return "open" if loss < self.bound and len(progress.decisions) < 2 else None

    def timetable(self, run, stages):
        return [(0, frozenset(stages))]

    def open_stages(self, progress, stages):
        return tuple(stages[: 1 + len(progress.decisions)])

    def next_step(self, progress, stages):
        return None


asked: list[int] = []


def test_decisions_are_stored_with_the_checkpoint_and_read_back(tmp_path):
    asked.clear()
    flags = {"evaluation_strategy": "steps", "eval_steps": 2}
    schedule = FreezeSchedule(strategy=OneMoreEachTime(), verify=True)
    with paddle.utils.unique_name.guard():
        trainer = trainer_for(
            tiny_bert(), tmp_path, [schedule], num_train_epochs=1, save_strategy="steps",
            save_steps=1, **flags,
        )  # fmt: skip
        trainer.eval_dataset = Tokens(4)
        trainer.train()
    assert asked == [2, 4, 6]
    assert [change.step for change in schedule.history] == [0, 2, 4]
    record = Record.load(tmp_path / "checkpoint-5")
    assert record.decisions == ((2, "open"), (4, "open"))
    assert record.open_stages == ("head", "encoder.layers.2", "encoder.layers.1")
    again = FreezeSchedule(strategy=OneMoreEachTime(bound=-1.0), verify=True)
    resumed_run(tmp_path, again, 3)
    assert again.history[0].opened == ("head", "encoder.layers.2")
    again = FreezeSchedule(strategy=OneMoreEachTime(bound=-1.0), verify=True)
    resumed_run(tmp_path, again, 5)
    assert again.history[0].opened == ("head", "encoder.layers.2", "encoder.layers.1")


def test_decisions_are_made_from_what_fit_evaluates():
    asked.clear()
    schedule = FreezeSchedule(strategy=OneMoreEachTime(key="loss"), verify=True)
    model_for(conv_net()).fit(
        Images(), Images(4), batch_size=4, epochs=4, verbose=0, callbacks=[schedule]
    )
    assert [change.step for change in schedule.history] == [0, 6, 12]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "which is missing"),
        ("", "is damaged: it is not JSON"),
        ('{"format": 1, "step": 3', "is damaged: it is not JSON"),
        ('{"format": 1, "step": 3}', "is damaged: KeyError('schedule')"),
        ('{"format": 1, "step": "x", "schedule": "", "open_stages": []}', "is damaged: ValueError"),
        ("[]", "was not written by FreezeSchedule"),
        ('{"global_step": 3}', "was not written by FreezeSchedule"),
        ('{"format": 99}', "has the format 99, this version reads 1"),
        (b"\xff\xfe", "is damaged: 'utf-8' codec"),
    ],
)
def test_a_missing_or_damaged_record_of_decisions_is_a_clear_error(tmp_path, content, message):
    saved_run(tmp_path, FreezeSchedule())
    file = tmp_path / "checkpoint-3" / FILE
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        resumed_run(tmp_path, FreezeSchedule(strategy=OneMoreEachTime()), 3)


def test_a_record_is_written_whole_or_not_at_all(tmp_path):
    record = Record(3, "FreezeSchedule()", ("head", "分类"), ((1, {"open": [2]}),))
    record.save(tmp_path)
    assert Record.load(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


# ------------------------------------------------------------ a loop written by hand


def test_a_hand_written_loop_continues_where_it_stopped(tmp_path):
    """Weights and moments saved after 3 of 8 steps, before a stage opens that they do not know."""

    def run(*arguments, **options):
        with paddle.utils.unique_name.guard():  # names as in a process of its own
            return run_here(*arguments, **options)

    def run_here(steps, start=0, load=False):
        network = conv_net()
        optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
        if load:
            network.set_state_dict(paddle.load(str(tmp_path / "net")))
            optimizer.set_state_dict(paddle.load(str(tmp_path / "opt")))
        schedule = FreezeSchedule(every="2 steps", verify=True)
        with schedule.attach(network, optimizer, total_steps=8, step=start) as freezing:
            for index in range(start, steps):
                network.train()
                image = paddle.to_tensor(Images()[index][0])[None]
                network(image).square().sum().backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
        return network, optimizer

    whole, _ = run(8)
    network, optimizer = run(3)
    paddle.save(network.state_dict(), str(tmp_path / "net"))
    paddle.save(optimizer.state_dict(), str(tmp_path / "opt"))
    resumed, _ = run(8, start=3, load=True)
    assert not moved(values(whole), values(resumed))
