"""What a loop that hands nothing to anybody shows all the same: forwards, batches, files.

Four names of Paddle are wrapped while a host listens to them, and put back when none does.
"""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import paddle
from paddle import nn


class Watch:
    """One name of Paddle's, wrapped while anybody listens.

    Args:
        holder: the module or class that has it.
        name: the name.
        wrapper: makes the function that takes its place, of this watch and of what was found.
    """

    def __init__(
        self, holder: Any, name: str, wrapper: Callable[[Watch, Any], Callable[..., Any]]
    ) -> None:
        self._holder, self._name, self._wrapper = holder, name, wrapper
        self._listeners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._found: Any = None
        self._ours: Any = None

    def listen(self, listener: object) -> None:
        """Tell this one, too, as long as it lives."""
        self._listeners.add(listener)
        if self._ours is None:
            self._found = vars(self._holder)[self._name]
            self._ours = functools.wraps(self._found)(self._wrapper(self, self._found))
            setattr(self._holder, self._name, self._ours)

    def leave(self, listener: object) -> None:
        """Tell this one no more."""
        self._listeners.discard(listener)
        self.listeners()

    def listeners(self) -> list[Any]:
        """Those that are told; when there are none any more, the name is put back."""
        told = list(self._listeners)
        # Where somebody has wrapped ours meanwhile, it stays, and does nothing of its own.
        if not told and vars(self._holder).get(self._name) is self._ours is not None:
            setattr(self._holder, self._name, self._found)
            self._ours = None
        return told


def _calling(watch: Watch, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(layer: nn.Layer, *inputs: Any, **named: Any) -> Any:
        if layer.training and paddle.is_grad_enabled():
            # Before the layer's own hooks run: a run registers some.
            for listener in watch.listeners():
                listener.forward_begins(layer)
        return call(layer, *inputs, **named)

    return wrapped


def _iterating(watch: Watch, iterate: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(loader: Any) -> Any:
        return _Batches(iterate(loader))

    return wrapped


def _saving(watch: Watch, save: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(obj: Any, path: Any, *rest: Any, **named: Any) -> Any:
        result = save(obj, path, *rest, **named)
        for listener in watch.listeners() if isinstance(path, (str, os.PathLike)) else ():
            listener.saved(obj, os.fspath(path))
        return result

    return wrapped


def _loading(watch: Watch, load: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(path: Any, *rest: Any, **named: Any) -> Any:
        loaded = load(path, *rest, **named)
        if watch.listeners() and isinstance(path, (str, os.PathLike)):
            files.append((loaded, os.fspath(path)))
        return loaded

    return wrapped


#: Forwards in training mode with gradients on: ``forward_begins(layer)``.
FORWARDS = Watch(nn.Layer, "__call__", _calling)
#: Batches: ``batch_comes(iteration)``, a number for each new iteration of a ``DataLoader``.
BATCHES = Watch(paddle.io.DataLoader, "__iter__", _iterating)
#: ``paddle.save``: ``saved(object, path)``, afterwards.
SAVES = Watch(paddle, "save", _saving)
#: ``paddle.load``; see :func:`origin`.
LOADS = Watch(paddle, "load", _loading)

#: What was loaded lately, and from where; emptied by :func:`forget_loaded`, for it holds tensors.
files: deque[tuple[Any, str]] = deque(maxlen=16)
_numbers = itertools.count(1)
_latest = 0


class _Batches:
    """An iterator of a ``DataLoader`` that says when a batch comes."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self._number = next(_numbers)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        global _latest
        batch = next(self._iterator)
        if self._number != _latest:
            _latest = self._number
            for listener in BATCHES.listeners():
                listener.batch_comes(_latest)
        return batch

    def __len__(self) -> int:
        return len(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


def latest_iteration() -> int:
    """The iteration that the last batch came from; 0 before the first batch."""
    return _latest


def forget_batches() -> None:
    """Batches from here on are the first."""
    global _latest
    _latest = 0


def forget_loaded() -> None:
    """Hold nothing any more of what was loaded."""
    files.clear()


def origin(state: Any) -> str | None:
    """The file that a state was loaded from, by the identity of what is in it."""
    parts = _parts(state)
    return next((path for obj, path in reversed(files) if parts & _parts(obj)), None)


def holds(obj: Any, state: Any) -> bool:
    """Whether what is saved holds this state, or what is in it."""
    return bool(_parts(obj) & _parts(state))


def _parts(thing: Any) -> set[int]:
    """The identities of what is not empty, all the way down: containers, tensors and arrays."""
    found: set[int] = set()
    waiting = [thing]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (dict, list, tuple)):
            if not one or id(one) in found:
                continue
            waiting.extend(one.values() if isinstance(one, dict) else one)
        elif not hasattr(one, "shape"):
            continue
        found.add(id(one))
    return found
