"""The options of a schedule as flags: of a Trainer, and of the command line.

A Trainer's flag is the name of the option with ``freeze_`` before it.

>>> FreezeArguments(freeze_every="1 epoch").freeze_every
'1 epoch'
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, List, Optional

from ..strategies.by_name import STRATEGIES, arguments_of
from . import readers
from .options import Options

PREFIX = "freeze_"


@dataclass(frozen=True)
class Flag:
    """An option as a flag, or as the key of a file.

    Attributes:
        name: the name of the option.
        fields: the fields that describe it: one of the schedule, or one of each strategy that has
            it as an argument.
    """

    name: str
    fields: dict[str, Field[Any]]

    @property
    def kind(self) -> type:
        """``str``, ``int``, ``float``, ``bool``, or ``list`` for several words."""
        kind: type = next(iter(self.fields.values())).metadata["flag"]
        return kind

    @property
    def help(self) -> str:
        """Its meaning and its default, for each strategy where they differ."""
        owners: dict[str, list[str]] = {}
        for owner, each in self.fields.items():
            owners.setdefault(each.metadata["help"] + _default(each.default), []).append(owner)
        return ". ".join(
            f"{', '.join(names)}: {text}" if any(names) else text for text, names in owners.items()
        )

    def read(self, value: Any) -> Any:
        """What the constructor takes, from what a flag or a file gives.

        Raises:
            ValueError, TypeError: for another value.
        """
        own = [each.metadata["reader"] for each in fields(Options) if each.name == self.name]
        reader = next(filter(None, own), readers.BY_TYPE.get(self.kind))
        return value if reader is None else reader(value)


def _default(value: Any) -> str:
    """The default as the end of a help text."""
    if value is None or value is MISSING or isinstance(value, bool):
        return ""
    return f" (default: {' '.join(value) if isinstance(value, tuple) else value})"


def _flags() -> dict[str, Flag]:
    own = {each.name: each for each in fields(Options) if each.metadata["flag"]}
    arguments: dict[str, dict[str, Field[Any]]] = {}
    for owner, kind in STRATEGIES.items():
        for name, each in arguments_of(kind).items():
            arguments.setdefault(name, {})[owner] = each
    named = {name: arguments.get(name, {"": each}) for name, each in own.items()}
    return {name: Flag(name, described) for name, described in {**named, **arguments}.items()}


#: Every option that a flag or a file may set, arguments of strategies among them.
FLAGS = _flags()

_TYPES: dict[type, Any] = {
    str: Optional[str],
    int: Optional[int],
    float: Optional[float],
    list: Optional[List[str]],
}


def _entry(flag: Flag) -> tuple[str, Any, Any]:
    """The field of FreezeArguments for a flag."""
    default = next(iter(flag.fields.values())).default
    default = default if isinstance(default, bool) else None
    kind = _TYPES.get(flag.kind, Optional[bool] if default is None else bool)
    help = flag.help.replace("%", "%%")  # argparse formats it
    return PREFIX + flag.name, kind, field(default=default, metadata={"help": help})


FreezeArguments: Any = dataclasses.make_dataclass(
    "FreezeArguments",
    [_entry(flag) for flag in FLAGS.values()],
    namespace={
        "__doc__": "Options of :class:`FreezeSchedule` for ``PdArgumentParser``; all are optional.",
        "__module__": __name__,
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
