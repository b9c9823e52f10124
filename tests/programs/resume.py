"""An uninterrupted Trainer run, and one resumed from each checkpoint in a process of its own.

Prints, as JSON, what differs. Children are forked before Paddle has built anything, so each
names its parameters from the beginning, as a new process does.

    python resume.py FOLDER ACCUMULATE [OPTION=VALUE ...]

Options are those of the constructor for a plan that freezes, unfreezes and refreezes, or, with
freeze_strategy among them, flags.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from trainers import Tokens, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeArguments, FreezeSchedule

TOP, BELOW = "bert.encoder.layers.2", "bert.encoder.layers.{0-1}"
PLAN = {
    0: ["classifier", "bert.pooler"],
    "3 steps": TOP,
    "5 steps": {"unfreeze": BELOW, "freeze": TOP},
    "50%": {"freeze": "bert.pooler"},
    "9 steps": {"unfreeze": [TOP, "bert.pooler", "bert.embeddings"]},
}


def train(folder: Path, accumulate: int, resume: int | None, result: Path, options: dict) -> None:
    """Run, and write down weights, optimizer state, learning rate and transitions."""
    if "freeze_strategy" in options:
        schedule = FreezeSchedule.from_args(FreezeArguments(freeze_verify=True, **options))
    else:
        schedule = FreezeSchedule(verify=True, **{"unfreeze_at": PLAN, **options})
    trainer = trainer_for(
        tiny_bert(),
        folder,
        [schedule],
        num_train_epochs=2 * accumulate,
        gradient_accumulation_steps=accumulate,
        save_strategy="steps" if resume is None else "no",
        save_steps=1,
        logging_steps=100,
        warmup_steps=4,
        weight_decay=0.1,
        evaluation_strategy="steps",
        eval_steps=2,
    )
    trainer.eval_dataset = Tokens(4)
    trainer.train(resume_from_checkpoint=resume and str(folder / f"checkpoint-{resume}"))
    state = trainer.optimizer.state_dict()
    rate = state.pop("LR_Scheduler")
    state.pop("master_weights", None)
    result.write_bytes(
        pickle.dumps(
            {
                "weights": {n: t.numpy() for n, t in trainer.model.state_dict().items()},
                "moments": {name: tensor.numpy() for name, tensor in state.items()},
                "rate": rate["last_lr"],
                "history": [(c.step, c.opened, c.frozen) for c in schedule.history],
            }
        )
    )


def in_a_process(
    *arguments: object, target: Callable[..., None] = train, at: int = 3
) -> dict | str:
    """What a run leaves, or how it failed."""
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        return f"exit code {child.exitcode}"
    return pickle.loads(arguments[at].read_bytes())


def difference(whole: dict, resumed: dict | str, step: int) -> list[str]:
    """In what a resumed run is not bit for bit the uninterrupted one."""
    if isinstance(resumed, str):
        return [resumed]
    wrong = [] if whole["rate"] == resumed["rate"] else ["learning rate"]
    for kind in ("weights", "moments"):
        ours, theirs = whole[kind], resumed[kind]
        wrong += sorted(f"{kind} {name} is there once" for name in set(ours) ^ set(theirs))
        wrong += [
            f"{kind} {name}"
            for name in set(ours) & set(theirs)
            if ours[name].tobytes() != theirs[name].tobytes()
        ]
    # A transition due at the very step of the checkpoint is in the resumed run's first entry.
    later = [entry for entry in whole["history"] if entry[0] > step]
    return wrong if later == resumed["history"][1:] else [*wrong, "transitions"]


def main(folder: str, accumulate: str, *options: str) -> None:
    """Compare a resume from every checkpoint."""
    where = Path(folder)
    given = {key: json.loads(value) for key, value in (option.split("=", 1) for option in options)}
    whole = in_a_process(where, int(accumulate), None, where / "whole.pickle", given)
    if isinstance(whole, str):
        raise SystemExit(whole)
    steps = sorted(int(path.name.split("-")[1]) for path in where.glob("checkpoint-*"))
    differs = {}
    for step in steps[:-1]:
        resumed = in_a_process(where, int(accumulate), step, where / "resumed.pickle", given)
        differs[step] = difference(whole, resumed, step)
    print(
        "RESULT "
        + json.dumps(
            {"steps": steps, "differs": differs, "at": [entry[0] for entry in whole["history"]]}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
