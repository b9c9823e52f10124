"""The options of a schedule as ``TrainingArguments`` flags, YAML or JSON.

A flag is the name of the option with ``freeze_`` before it. Files take the same keys, with or
without the prefix.
"""

# No "from __future__ import annotations": PdArgumentParser wants the types of fields, not text.

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, List, Optional

from .strategies import STRATEGIES, Gradual, Strategy, options_of, required_of

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


def options_from_arguments(args: Any) -> dict[str, Any]:
    """The options that were set among some training arguments, as the constructor takes them.

    Raises:
        ValueError, TypeError: naming the flag whose value is wrong.
    """
    return _read(_given(args), lambda key: f"--{PREFIX}{key}")


def given_flags(args: Any) -> list[str]:
    """The flags that were set among some training arguments."""
    return [f"--{PREFIX}{name}" for name in _given(args)]


def _given(args: Any) -> dict[str, Any]:
    options = {}
    for each in fields(FreezeArguments):
        value = getattr(args, each.name, each.default)
        default = None if each.default is MISSING else each.default
        if value != default and value not in (None, "None", [], ["None"]):
            options[each.name[len(PREFIX) :]] = value
    return options


def has_arguments(args: Any) -> bool:
    """Whether these training arguments know the freeze flags."""
    return any(hasattr(args, each.name) for each in fields(FreezeArguments))


def options_from_file(path: Any) -> dict[str, Any]:
    """The options in a YAML or JSON file, as the constructor takes them.

    Raises:
        ValueError, TypeError: naming the file and the key that is wrong.
        OSError: if the file cannot be read.
    """
    path = os.fspath(path)
    with open(path, encoding="utf-8") as file:
        try:
            text = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    content = _parsed(path, text)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} must hold a mapping of options, such as 'every: 1 epoch', "
            f"not {type(content).__name__}"
        )
    known = [each.name[len(PREFIX) :] for each in fields(FreezeArguments)]
    options = {}
    for key, value in content.items():
        name = str(key)
        name = name[len(PREFIX) :] if name.startswith(PREFIX) else name
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{path}: unknown option {key!r}; {hint}")
        if name in options:
            raise ValueError(f"{path}: the option {name!r} is there twice")
        if value is not None:
            options[name] = value
    return _read(options, lambda key: f"{path}: {key}")


def _parsed(path: str, text: str) -> Any:
    ending = os.path.splitext(path)[1].lower()
    if ending == ".json":
        try:
            return json.loads(text, object_pairs_hook=lambda pairs: _once(path, pairs))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    if ending in (".yaml", ".yml"):
        return _yaml(path, text)
    raise ValueError(f"{path}: a schedule file ends in .yaml, .yml or .json, not {ending!r}")


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of these, if no key is there twice."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{where}: the key {key!r} is there twice")
    return dict(pairs)


def _yaml(where: str, text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain data only, and no key twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            _once(where, [(str(key), None) for key in keys])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not plain YAML: {error}") from None


def _read(options: dict[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """Turn flat options as written into arguments of the constructor."""
    read: dict[str, Any] = {}
    for key, value in options.items():
        try:
            read[key] = _READERS.get(key, lambda given: given)(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where(key)}: {error}") from None
    name = read.pop("strategy", None)
    if name is not None and not (isinstance(name, str) and name in STRATEGIES):
        near = difflib.get_close_matches(str(name), STRATEGIES, n=1)
        raise ValueError(
            f"{where('strategy')}: unknown strategy {name!r}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"known: {', '.join(STRATEGIES)}"
        )
    own = {option: value for option, value in read.items() if owners(option)}
    rest = {option: value for option, value in read.items() if option not in own}
    if not own and name is None:
        return rest
    return {**rest, "strategy": _made(_kind(name, own, where), own, where)}


def named_in(error: Exception, options: Iterable[str]) -> Optional[str]:
    """The option that an error begins with; the longest, as one may begin with another."""
    return max((one for one in options if str(error).startswith(one)), key=len, default=None)


def owners(option: str) -> list[str]:
    """The names of the strategies that have an option of this name."""
    return [name for name, kind in STRATEGIES.items() if option in options_of(kind)]


def _kind(
    name: Optional[str], own: Mapping[str, Any], where: Callable[[str], str]
) -> "type[Strategy]":
    """The strategy that is named, or that alone has these options; the plain one if it has."""
    fitting = [kind for kind in STRATEGIES.values() if set(own) <= set(options_of(kind))]
    if name is None and Gradual in fitting:
        return Gradual
    if name is None and len(fitting) > 1:
        names = ", ".join(kind.name for kind in fitting)
        raise ValueError(
            f"{where(next(iter(own)))}: belongs to several strategies; "
            f"say which with {where('strategy')}: {names}"
        )
    if name is None and fitting:
        return fitting[0]
    kind = STRATEGIES[name or owners(list(own)[-1])[0]]
    for option in own:
        if option not in options_of(kind):
            others = owners(option)
            raise ValueError(
                f"{where(option)}: belongs to the "
                + ("strategy " if len(others) == 1 else "strategies ")
                + f"{', '.join(map(repr, others))}, not to {kind.name!r}"
            )
    return kind


def _made(kind: "type[Strategy]", own: Mapping[str, Any], where: Callable[[str], str]) -> Strategy:
    """The strategy; an error names the option as its source calls it."""
    lacking = [option for option in required_of(kind) if option not in own]
    if lacking:
        raise ValueError(f"{where('strategy')}: {kind.name} needs {', '.join(map(where, lacking))}")
    try:
        return kind(**own)
    except (TypeError, ValueError) as error:
        key = named_in(error, options_of(kind)) or "strategy"
        text = str(error)[len(key) + 2 :] if str(error).startswith(f"{key}: ") else str(error)
        raise type(error)(f"{where(key)}: {text}") from None


def _stages(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) == 1:
        only = value[0]
        if only == "auto" or (isinstance(only, str) and only.isdigit()):
            value = only
    if isinstance(value, (list, tuple)):  # a file may say 1 for the item "1" of a Sequential
        return [str(one) if type(one) is int else one for one in value]
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _unfreeze_at(value: Any) -> Any:
    """A mapping, or pairs ``when=what``."""
    return _pairs(value, "when=what", "1=layer4 or '50%=*'", "the moment")


def _lr(value: Any) -> Any:
    """A mapping, or pairs ``stage=multiplier``; a stage's name may hold no equals sign."""
    pairs = _pairs(value, "stage=multiplier", "head=1 or '*=0.1'", "the stage")
    numbers = {}
    for stage, multiplier in pairs.items():
        try:
            numbers[stage] = float(multiplier) if isinstance(multiplier, str) else multiplier
        except ValueError:
            raise ValueError(f"the multiplier {multiplier!r} of {stage!r} is no number") from None
    return numbers


def _pairs(value: Any, form: str, example: str, key: str) -> "dict[Any, Any]":
    """A mapping, or a list of pairs; a JSON mapping comes through argparse as one string."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence):
        raise TypeError(f"{value!r} is no mapping and no list of {form}")
    if len(value) == 1 and isinstance(value[0], str) and value[0].lstrip().startswith("{"):
        return _pairs(_yaml("the mapping", value[0]), form, example, key)
    pairs: dict[Any, Any] = {}
    for pair in value:
        left, equals, right = str(pair).partition("=")
        if not equals or not left.strip() or not right.strip():
            raise ValueError(f"{pair!r} is no pair {form}, such as {example}")
        if left.strip() in pairs:
            raise ValueError(f"{key} {left.strip()!r} is there twice")
        pairs[left.strip()] = right.strip()
    return pairs


def _number(value: Any) -> Any:
    """A number; YAML reads ``1e-3`` as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{value!r} is no number") from None


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


_READERS = {
    "stages": _stages,
    "unfreeze_at": _unfreeze_at,
    "lr": _lr,
    "restore_best": _boolean,
    **dict.fromkeys(("power", "min_delta", "threshold", "lr_decay"), _number),
    "verify": _boolean,
    "restore": _boolean,
    "free_optimizer_state": _boolean,
}


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
