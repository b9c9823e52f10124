"""The options of a schedule as ``TrainingArguments`` flags, YAML or JSON.

A flag is the name of the option with ``freeze_`` before it. Files take the same keys, with or
without the prefix.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, List, Optional

from ..strategies.by_name import STRATEGIES

PREFIX = "freeze_"


@dataclass
class FreezeArguments:
    """Options of :class:`FreezeSchedule` for ``PdArgumentParser``; all are optional.

    >>> FreezeArguments(freeze_every="1 epoch").freeze_every
    '1 epoch'
    """

    freeze_strategy: Optional[str] = field(
        default=None,
        metadata={"help": f"Which stages are open when: {', '.join(STRATEGIES)}."},
    )
    freeze_stages: Optional[List[str]] = field(
        default=None,
        metadata={
            "help": "'auto', a number of backbone stages, or selectors, head first, such as "
            "classifier 'ernie.encoder.layers.{8-11}' '*'."
        },
    )
    freeze_every: Optional[str] = field(
        default=None,
        metadata={
            "help": "gradual: time between two openings, such as '1 epoch', '200 steps'; "
            "chain_thaw: the length of a phase; random_stages, cyclic: how long the same stages "
            "stay open; by_gradient: time between two measurements."
        },
    )
    freeze_start: Optional[str] = field(
        default=None,
        metadata={"help": "gradual: when the second stage opens."},
    )
    freeze_direction: Optional[str] = field(
        default=None,
        metadata={"help": "gradual: 'top_down' (the default) or 'bottom_up'."},
    )
    freeze_at: Optional[str] = field(
        default=None,
        metadata={"help": "head_then_all: when everything opens, such as 2 or '50%%'."},
    )
    freeze_unfreeze_at: Optional[List[str]] = field(
        default=None,
        metadata={"help": "explicit: pairs of when=what, such as 0=fc 1=layer4 '50%%=*'."},
    )
    freeze_until: Optional[str] = field(
        default=None,
        metadata={"help": "freeze_down: when the last stage below the head freezes."},
    )
    freeze_power: Optional[float] = field(
        default=None,
        metadata={"help": "freeze_down: 1 spaces the moments evenly, 3 cubically."},
    )
    freeze_k: Optional[int] = field(
        default=None,
        metadata={"help": "random_stages, cyclic: how many stages are open at a time."},
    )
    freeze_always: Optional[List[str]] = field(
        default=None,
        metadata={"help": "random_stages: stages open all the time; default head embeddings."},
    )
    freeze_seed: Optional[int] = field(
        default=None,
        metadata={"help": "random_stages: another seed, another sequence of draws."},
    )
    freeze_order: Optional[str] = field(
        default=None,
        metadata={"help": "cyclic: 'descending' (from the head, the default) or 'ascending'."},
    )
    freeze_metric: Optional[str] = field(
        default=None,
        metadata={"help": "on_plateau: the metric's name in the logs, such as eval_accuracy."},
    )
    freeze_patience: Optional[int] = field(
        default=None,
        metadata={"help": "on_plateau: evaluations without improvement until the next opens."},
    )
    freeze_min_delta: Optional[float] = field(
        default=None,
        metadata={"help": "on_plateau: an improvement is a change by more than this."},
    )
    freeze_mode: Optional[str] = field(
        default=None,
        metadata={"help": "on_plateau: 'max' or 'min'; default by the metric's name."},
    )
    freeze_max_wait: Optional[str] = field(
        default=None,
        metadata={"help": "on_plateau: the longest time until the next stage opens."},
    )
    freeze_restore_best: bool = field(
        default=False,
        metadata={"help": "on_plateau: load the best weights before the next stage opens."},
    )
    freeze_threshold: Optional[float] = field(
        default=None,
        metadata={"help": "by_gradient: stages below this share of the largest value freeze."},
    )
    freeze_lr_decay: Optional[float] = field(
        default=None,
        metadata={"help": "Each stage trains at the rate of the one above divided by this."},
    )
    freeze_lr: Optional[List[str]] = field(
        default=None,
        metadata={"help": "Learning-rate multipliers, such as head=1 '*=0.1'."},
    )
    freeze_warmup: Optional[str] = field(
        default=None,
        metadata={"help": "How long a newly opened stage ramps up, such as '100 steps'."},
    )
    freeze_warmup_shape: Optional[str] = field(
        default=None,
        metadata={"help": "'linear' (the default) or 'cosine'."},
    )
    freeze_hold: Optional[str] = field(
        default=None,
        metadata={"help": "How long open stages ramp up again when another opens."},
    )
    freeze_frozen_norm: Optional[str] = field(
        default=None,
        metadata={
            "help": "Running statistics of frozen normalization layers: 'eval' (the default) "
            "holds them still, 'train' lets them move."
        },
    )
    freeze_frozen_dropout: Optional[str] = field(
        default=None,
        metadata={
            "help": "'eval' switches dropout off in frozen layers; default 'train', with a "
            "cache 'eval'."
        },
    )
    freeze_cache: Optional[str] = field(
        default=None,
        metadata={"help": "Compute a frozen prefix once per sample: 'memory', 'disk' or a folder."},
    )
    freeze_cache_limit: Optional[str] = field(
        default=None,
        metadata={
            "help": "Bytes of features at most, such as '4 GB'; default half of what's free."
        },
    )
    freeze_cache_dtype: Optional[str] = field(
        default=None,
        metadata={"help": "Keep features as 'float16' or 'float32'; default as computed."},
    )
    freeze_cache_check_every: Optional[int] = field(
        default=None,
        metadata={"help": "Compare a sample with a fresh computation every so many batches."},
    )
    freeze_verify: bool = field(
        default=False,
        metadata={"help": "Check with checksums that nothing frozen moves."},
    )
    freeze_restore: bool = field(
        default=True,
        metadata={"help": "Put stop_gradient back as it was at the end of training."},
    )
    freeze_free_optimizer_state: Optional[bool] = field(
        default=None,
        metadata={
            "help": "Drop the optimizer's moments of a stage that is frozen again; "
            "random_stages and cyclic do so anyway."
        },
    )


def _training_arguments() -> type:
    """:class:`FreezeArguments` and the Trainer's own arguments in one dataclass."""
    import importlib

    loaded = [name for name in ("paddlenlp", "paddleformers") if sys.modules.get(name)]
    for package in loaded or ["paddlenlp", "paddleformers"]:
        try:
            trainer = importlib.import_module(f"{package}.trainer")
        except ModuleNotFoundError as error:
            if error.name not in (package, f"{package}.trainer"):
                raise  # it is there, but something that it needs is not
            continue
        made: type = dataclass(
            type(
                "FreezeTrainingArguments",
                (FreezeArguments, trainer.TrainingArguments),
                {
                    "__doc__": "The Trainer's arguments and those of FreezeSchedule in one.",
                    "__module__": __name__,
                    "__annotations__": {},
                },
            )
        )
        return made
    raise ModuleNotFoundError(
        "FreezeTrainingArguments needs PaddleNLP or PaddleFormers; "
        "pip install 'paddle-freeze-callback[nlp]'"
    )


def __getattr__(name: str) -> Any:
    if name == "FreezeTrainingArguments":
        globals()[name] = _training_arguments()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
