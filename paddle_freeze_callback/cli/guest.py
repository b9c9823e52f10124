"""In the process of somebody's training script: find what trains, and follow it.

Nothing is done until the first forward in training mode: optimizers are built, and thrown away,
before weights are loaded and networks wrapped. Then the network is the outermost layer that owns
what the optimizer trains, and :class:`.Follower` takes over.

A network is named by ``--network``, not in the schedule's file: the same file serves ``fit``, a
Trainer and every script.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

from ..freezing import optimizer as optimizers
from ..freezing import parallel
from ..hosts import Follower
from ..hosts.watched import BATCHES, FORWARDS, LOADS
from ..schedule import FreezeSchedule
from ..stages.partition import Survey
from ..words import did_you_mean, in_lines, listing

VARIABLE = "PADDLE_FREEZE_RUN"
_METHODS = ("step", "minimize", "set_state_dict", "set_dict")


@dataclass(frozen=True)
class Wish:
    """What ``paddle-freeze run`` was asked for; travels in the environment.

    Attributes:
        notes: a folder in which each process notes what became of it.
        config: a schedule file; ``None`` for the schedule without options.
        epochs: how long the run is, as for :meth:`FreezeSchedule.follow`.
        steps_per_epoch: the same.
        total_steps: the same.
        network: the class or the ``full_name()`` of the layer to train.
        done_steps: optimizer steps done before, where no record tells.
    """

    notes: str
    config: str | None = None
    epochs: float | None = None
    steps_per_epoch: int | None = None
    total_steps: int | None = None
    network: str | None = None
    done_steps: int | None = None

    def to_text(self) -> str:
        """As text for the environment."""
        return json.dumps(asdict(self))

    def schedule(self) -> FreezeSchedule:
        """The schedule that is asked for."""
        return FreezeSchedule() if self.config is None else FreezeSchedule.from_file(self.config)

    def note(self, what: str) -> None:
        """Note what became of this process: that it trains, or that it was refused."""
        Path(self.notes, f"{what}-{os.getpid()}").touch()

    def noted(self, what: str) -> bool:
        """Whether any process noted this."""
        return any(Path(self.notes).glob(f"{what}-*"))


def begin() -> None:
    """Paddle has just been imported."""
    Guest(Wish(**json.loads(os.environ[VARIABLE]))).watch()


class Guest:
    """Waits in a process for training to begin.

    Args:
        wish: what is asked for.
    """

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._made: list[weakref.ref[Any]] = []  # optimizers
        self._looked = 0  # how many had been made when we looked last
        self._states: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._alone: weakref.WeakSet[Any] = weakref.WeakSet()
        self._schedule: FreezeSchedule | None = None
        self._network: nn.Layer | None = None
        self._follower: Follower | None = None
        self._followed: list[Any] = []
        self._refusal = ""
        self._status: Any = None  # that the script gave to sys.exit()
        self._process = 0

    def watch(self) -> None:
        """See optimizers that are made, forwards, batches and files that are loaded."""
        wrapped: set[type] = set()

        def new(kind: Any, *given: Any, **named: Any) -> Any:
            # Not __init__, which AdamW does not call.
            for one in set(kind.__mro__) - wrapped:
                wrapped.add(one)
                for name in _METHODS if issubclass(one, Optimizer) else ():
                    if name in vars(one):
                        setattr(one, name, self._wrapped(name, vars(one)[name]))
            made = object.__new__(kind)
            self._made.append(weakref.ref(made))
            return made

        leave = sys.exit

        @functools.wraps(leave)
        def noted(status: Any = None) -> NoReturn:
            self._status = status
            leave(status)

        sys.exit = noted
        Optimizer.__new__ = new
        for watch in (FORWARDS, BATCHES, LOADS):
            watch.listen(self)

    def _wrapped(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(optimizer: Any, *given: Any, **named: Any) -> Any:
            if name.startswith("set_"):
                if self._follower is None:
                    self._states[optimizer] = given[0] if given else next(iter(named.values()))
            elif self._steps(optimizer):
                return getattr(optimizer, name)(*given, **named)  # which now counts
            return method(optimizer, *given, **named)

        return wrapped

    def batch_comes(self, iteration: int) -> None:
        """Only that batches are counted matters here."""

    # ------------------------------------------------------------ what the script does

    def forward_begins(self, layer: nn.Layer) -> None:
        """Some layer's forward begins, in training mode with gradients on."""
        if self._refusal:
            self._refuse(self._refusal)  # the script went on all the same
        if len(self._made) == self._looked or paddle.io.get_worker_info() is not None:
            return
        self._looked = len(self._made)
        if self._attach() and self._follower is not None:
            with self._refusing():
                self._follower.forward_begins(layer)

    def _steps(self, optimizer: Any) -> bool:
        """An optimizer makes a step; whether we began to follow it right now."""
        if self._refusal:
            self._refuse(self._refusal)
        if self._follower is None:
            return self._attach()
        if optimizer in self._alone or any(optimizer is one for one in self._followed):
            return False
        assert self._network is not None
        if not optimizers.parameter_ids(optimizer) & _ids(self._network.parameters()):
            self._alone.add(optimizer)
            return False
        if any(optimizer is getattr(one, "inner_optimizer", None) for one in self._followed):
            self._alone.add(optimizer)
            return False
        with self._refusing():
            self._follower = self._follower.succeeded_by([optimizer])
        self._followed = [optimizer]
        self._say(f"goes on with a new {type(optimizer).__name__} of the same network")
        return True

    # ------------------------------------------------------------ taking a network

    def _attach(self) -> bool:
        """Follow what trains, if there is anything."""
        gc.collect()  # an optimizer or a network that was thrown away
        alive = [one for ref in self._made if (one := ref()) is not None]
        inside = [getattr(one, "inner_optimizer", None) for one in alive]
        alive = [
            one for one in alive
            if not any(one is other for other in inside) and type(one).__name__ != "ModelAverage"
        ]  # fmt: skip
        with self._refusing():
            pairs = _pairs(alive, self._wish.network)
            if not pairs:
                return False
            schedule = self._wish.schedule()
            for one in alive:
                if optimizers.step_one_by_one(one):
                    self._say(f"switches use_multi_tensor off in {type(one).__name__}")
            network, chosen = self._choose(schedule, pairs)
            follower = schedule.follow(network, chosen, say=self._say, **self._length())
            for one in chosen:
                if one in self._states:
                    follower.take(self._states[one])
        self._schedule, self._network, self._follower = schedule, network, follower
        self._followed = chosen
        self._states.clear()
        FORWARDS.leave(self)
        self._process = os.getpid()
        self._wish.note("trains")
        atexit.register(self._finish)
        util.Finalize(None, self._finish, exitpriority=0)  # a child of multiprocessing
        kinds = listing([type(one).__name__ for one in chosen], noun="optimizers")
        steps = ", of which every one steps in a step" if chosen[1:] else ""
        self._say(f"takes {_described(network)}, trained by {kinds}{steps}; {self._length_text()}")
        for other, theirs in pairs:
            if other is not network:
                kinds = listing([type(one).__name__ for one in theirs], noun="optimizers")
                self._say(f"leaves alone {_described(other)}, trained by {kinds}")
        return True

    def _choose(
        self, schedule: FreezeSchedule, pairs: list[tuple[nn.Layer, list[Any]]]
    ) -> tuple[nn.Layer, list[Any]]:
        """The one network that is there, or the one that the schedule fits."""
        if len(pairs) == 1:
            return pairs[0]
        fitting = []
        for network, theirs in pairs:
            try:
                schedule.follow(network, theirs, **self._length()).close(verify=False)
            except (ValueError, TypeError):
                continue
            fitting.append((network, theirs))
        if len(fitting) == 1:
            return fitting[0]
        which = "fits more than one of" if fitting else "fits none of"
        listed = "; ".join(
            f"{_described(network)}, trained by {', '.join(type(o).__name__ for o in theirs)}"
            for network, theirs in pairs
        )
        raise ValueError(
            f"the schedule {which} the networks that train here: {listed}. "
            "Name one with --network, by its class or by the name in brackets"
        )

    def _length(self) -> dict[str, Any]:
        wish = self._wish
        return {
            "epochs": wish.epochs, "steps_per_epoch": wish.steps_per_epoch,
            "total_steps": wish.total_steps, "step": wish.done_steps,
        }  # fmt: skip

    def _length_text(self) -> str:
        wish = self._wish
        if wish.epochs is None:
            return f"{wish.total_steps} steps"
        per_epoch = f" of {wish.steps_per_epoch} steps" if wish.steps_per_epoch else ""
        return f"{wish.epochs:g} epochs{per_epoch}"

    # ------------------------------------------------------------ words, and the end

    def _say(self, line: str) -> None:
        if parallel.rank() == 0:
            print(*in_lines(line, "paddle-freeze: "), sep="\n", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """What a schedule refuses stops the script."""
        try:
            yield
        except (ValueError, TypeError) as error:
            self._refuse(_in_flags(" ".join(str(error).split())))

    def _refuse(self, why: str) -> NoReturn:
        """Stop the script: it must not train without the schedule."""
        if not self._refusal:
            print(f"paddle-freeze: error: {why}", file=sys.stderr, flush=True)
        self._refusal = why
        self._wish.note("refused")
        raise SystemExit(1)

    def _finish(self) -> None:
        """The process ends, or its part in multiprocessing does."""
        follower, self._follower = self._follower, None
        if follower is None or os.getpid() != self._process:  # a copy by fork
            return
        failed = self._failed()
        try:
            follower.close(verify=not failed)
        except (RuntimeError, ValueError, OSError) as error:
            self._wish.note("refused")
            print(f"paddle-freeze: error: {error}", file=sys.stderr, flush=True)
            return
        self._say(f"{follower.steps_done} steps done")
        if failed and not self._refusal:
            self._say("the script failed: nothing is checked or written at its end")

    def _failed(self) -> bool:
        """Whether the script, or its part in multiprocessing, ends by a failure."""
        # Python sets last_value before any hook for what nobody caught, and not for SystemExit;
        # multiprocessing ends its part while the exception is on its way.
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)
        status = error.code if isinstance(error, SystemExit) else error
        return bool(self._refusal or self._status or (status is not None and status != 0))


def _in_flags(text: str) -> str:
    """A message of :meth:`FreezeSchedule.follow`, with our flags for its arguments.

    >>> _in_flags("step=2 is wrong; give steps_per_epoch= or total_steps=, too")
    '--done-steps 2 is wrong; give --steps-per-epoch or --total-steps, too'
    """

    def flag(found: re.Match[str]) -> str:
        name = "done-steps" if found[1] == "step" else found[1].replace("_", "-")
        return f"--{name} " if found[2] else f"--{name}"

    return re.sub(r"\b(steps_per_epoch|total_steps|epochs|step)=(?=(\w)?)", flag, text)


def _ids(tensors: Iterable[Any]) -> set[int]:
    return {id(tensor) for tensor in tensors}


def _pairs(alive: list[Any], wanted: str | None) -> list[tuple[nn.Layer, list[Any]]]:
    """Networks and the optimizers that train them, the largest first.

    Raises:
        ValueError: if a network is wanted that is not there, or several are.
    """
    # by type: isinstance() asks the object, and a dead weak proxy raises
    layers = [one for one in gc.get_objects() if issubclass(type(one), nn.Layer)]
    owned = [(_ids(one.parameters()), one) for one in _roots(layers, wanted)]
    pairs: dict[int, tuple[nn.Layer, list[Any]]] = {}
    for optimizer in alive:
        trained = optimizers.parameter_ids(optimizer)
        covers = [(len(own & trained), one) for own, one in owned]
        most = max((count for count, _ in covers), default=0)
        for count, network in covers:
            if count == most > 0:
                pairs.setdefault(id(network), (network, []))[1].append(optimizer)
    for _, theirs in pairs.values():
        theirs.sort(key=lambda one: -len(optimizers.parameter_ids(one)))
    return sorted(pairs.values(), key=lambda pair: -_size(pair[0]))


def _roots(layers: list[nn.Layer], wanted: str | None) -> list[nn.Layer]:
    """The layers that are in no other; or the one that is wanted."""
    if wanted is not None:
        found = [one for one in layers if wanted in (type(one).__name__, one.full_name())]
        if len(found) > 1:
            listed = ", ".join(_described(one) for one in found)
            raise ValueError(f"--network {wanted} means several: {listed}; give a name in brackets")
        if not found:
            known = {name for one in layers for name in (type(one).__name__, one.full_name())}
            raise ValueError(f"--network {wanted}: no such layer{did_you_mean(wanted, known)}")
        return found
    inside = {id(child) for one in layers for child in one.children()}
    roots = [one for one in layers if id(one) not in inside]
    return [_unwrapped(one) for one in roots]


def _unwrapped(layer: nn.Layer) -> nn.Layer:
    while isinstance(layer, paddle.DataParallel):
        layer = next(iter(layer.children()))
    return layer


def _size(network: nn.Layer) -> int:
    return sum(weight.numel for weight in Survey(network).weights)


def _described(network: nn.Layer) -> str:
    name = type(network).__name__
    return f"{name} ({network.full_name()}; {_size(network):,} parameters)"
