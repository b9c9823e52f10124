"""Kill a Trainer run at each of 50 steps, resume it in a new process, compare bit for bit.

Each run is killed with SIGKILL: at odd steps right after the step, at even ones while a checkpoint
is being written (at another file each time). It is resumed from the newest whole checkpoint.
With ``lora`` the network is an adapter model, its checkpoints are PaddleNLP's unified ones, and a
process that resumes draws its adapters anew.

    python kill.py [STEPS [lora]]
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import adapters
import paddle
from paddlenlp.trainer import TrainerCallback
from paddlenlp.trainer.plugins import unified_checkpoint
from resume import PLAN, difference, in_a_process
from trainers import tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.session.record import FILE

EPOCHS = 9  # of 6 steps
# A run of 54 steps: half of it comes after the first moments in steps.
EARLY = {when: what for when, what in PLAN.items() if when != "50%"}
LATER = {
    "20 steps": {"freeze": "bert.embeddings"},
    "50%": {"freeze": "bert.pooler"},
    "31 steps": "*",
    "44 steps": {"freeze": "bert"},
}
# A base weight is opened by name, adapters freeze and open again.
LORA = {
    0: ["model.classifier", adapters.BLOCKS[0]],
    "3 steps": {"unfreeze": adapters.BLOCKS[1], "freeze": adapters.BLOCKS[0]},
    "7 steps": {"unfreeze": adapters.WORDS, "freeze": "model.classifier"},
    "12 steps": {"unfreeze": adapters.BLOCKS[2], "freeze": adapters.WORDS},
    "16 steps": {"unfreeze": ["model.classifier", *adapters.BLOCKS]},
}


class KillsAfterStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_while_saving(step: int) -> None:
    """Die while the file of this checkpoint whose turn it is has been written half."""
    files = [0]

    def dying(save, content, path, *rest, **options):
        save(content, path, *rest, **options)
        if f"checkpoint-{step}/" in str(path).replace(os.sep, "/"):
            files[0] += 1
            if files[0] == 1 + step // 2 % 4:
                with open(path, "r+b") as file:
                    file.truncate(os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    paddle.save = functools.partial(dying, paddle.save)
    in_unified = unified_checkpoint.safe_save_file
    unified_checkpoint.safe_save_file = functools.partial(dying, in_unified)


def train(folder: Path, kill: int | None, resume: int | None, result: Path, options: dict) -> None:
    """Run to the end, or until killed."""
    if kill and kill % 2 == 0:
        kill_while_saving(kill)
    lora = bool(options.get("lora"))
    schedule = FreezeSchedule(unfreeze_at=LORA if lora else {**EARLY, **LATER}, verify=True)
    trainer = trainer_for(
        adapters.lora(None, 5 if resume is None else 6) if lora else tiny_bert(),
        folder,
        [schedule, KillsAfterStep(kill)] if kill and kill % 2 else [schedule],
        num_train_epochs=EPOCHS,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=3,
        logging_steps=1000,
        warmup_steps=4,
        weight_decay=0.1,
        unified_checkpoint=lora,
    )
    trainer.train(resume_from_checkpoint=resume and str(folder / f"checkpoint-{resume}"))
    state = trainer.optimizer.state_dict()
    rate = state.pop("LR_Scheduler")
    state.pop("master_weights", None)
    found = {
        "weights": {n: t.numpy() for n, t in trainer.model.state_dict().items()},
        "moments": {n: t.numpy() for n, t in state.items() if isinstance(t, paddle.Tensor)},
        "rate": rate["last_lr"],
        "history": [(c.step, c.opened, c.frozen) for c in schedule.history],
    }
    result.write_bytes(pickle.dumps(found))


def newest_whole(folder: Path) -> int | None:
    """The schedule's record comes last and at once, so where it is the checkpoint is whole."""
    steps = [int(file.parent.name.split("-")[1]) for file in folder.glob(f"checkpoint-*/{FILE}")]
    return max(steps, default=None)


def main(steps: str = "50", *kind: str) -> None:
    """Kill at each step in turn."""
    options = dict.fromkeys(kind, True)
    base = Path(tempfile.mkdtemp(prefix="kill-"))
    whole = in_a_process(base / "whole", None, None, base / "whole.pickle", options, target=train)
    failed = {}
    for step in range(1, int(steps) + 1):
        folder = base / str(step)
        killed = in_a_process(folder, step, None, base / "none.pickle", options, target=train)
        resume = newest_whole(folder)
        result = base / f"{step}.pickle"
        resumed = in_a_process(folder, None, resume, result, options, target=train)
        wrong = difference(whole, resumed, resume or 0)
        if killed != f"exit code {-signal.SIGKILL}":
            wrong.append(f"was not killed: {killed}")
        if wrong:
            failed[step] = wrong
        print(f"killed at {step}, resumed from {resume}: {wrong or 'the same'}", flush=True)
        shutil.rmtree(folder)
    shutil.rmtree(base)
    print("RESULT " + json.dumps({"steps": int(steps), "failed": failed}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
