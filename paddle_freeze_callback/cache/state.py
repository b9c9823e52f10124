"""What a forward may move besides its output, so that a trial leaves no trace.

That is buffers, statistics, plain attributes of layers, and the random generators of Paddle, NumPy
and Python.
"""

from __future__ import annotations

import collections
import functools
import pickle
import random
import re
import threading
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn

from ..bits import array_of, digest
from ..installed import release
from ..stages.weights import Weight, distinct_layers, layers, moving_state, weights


class _Held:
    """A tensor, and what it was."""

    def __init__(self, tensor: paddle.Tensor) -> None:
        self.tensor = tensor
        self.value = tensor.clone()

    @functools.cached_property
    def _bits(self) -> bytes:
        return digest(self.value)  # a copy does not change, and is looked at in each trial

    def has_changed(self) -> bool:
        """Bit for bit: Paddle compares no bfloat16, and no NaN with NaN."""
        return digest(self.tensor) != self._bits


class ForwardState:
    """The state of a network around its forwards, as it is now, and of further tensors."""

    def __init__(self, network: nn.Layer, also: Iterable[paddle.Tensor] = ()) -> None:
        every = distinct_layers(network)
        moving = [one for layer in every for one in moving_state(layer).values()]
        self._tensors = [
            _Held(tensor)
            for tensor in {id(one): one for one in (*moving, *also)}.values()
            if tensor._is_initialized()  # an RNN has a buffer without memory
        ]
        self._attributes = [(layer, dict(layer.__dict__), _contents(layer)) for layer in every]
        self._buffers = {id(layer): _buffers(layer) for layer in every}
        self._random = [(one, one.state()) for one in _GENERATORS]

    def restore(self) -> None:
        """Put everything back as it was."""
        with paddle.no_grad():
            for one in self._tensors:
                # Paddle 2.6 and 3.0 write into what lies beside a tensor that is part of another.
                if one.has_changed():
                    one.tensor.set_value(one.value)
        for layer, attributes, contents in self._attributes:
            for name in set(layer.__dict__) - set(attributes):
                del layer.__dict__[name]
            layer.__dict__.update(attributes)
            for name, content in contents.items():
                mutable: Any = attributes[name]
                if mutable or content:
                    mutable.clear()
                    (mutable.update if isinstance(mutable, dict) else mutable.extend)(content)
        for generator, state in self._random:
            generator.put_back(state)

    def leave_alone(self, generators: Collection[Generator]) -> None:
        """Neither restore nor seed these from now on."""
        self._random = [(one, state) for one, state in self._random if one not in generators]

    def unmoved(self) -> list[Generator]:
        """Generators that a thread which loads data may draw from, and nobody has since then.

        In a process without other threads, and of Paddle, these are none: what draws from a
        generator and puts it back shows only under another seed.
        """
        if threading.active_count() == 1:
            return []
        return [
            one
            for one, was in self._random
            if one.loads_data and one.comparable(was) == one.comparable(one.state())
        ]

    def reseed(self, seed: int) -> None:
        """Seed the random generators that :meth:`restore` puts back."""
        for generator, _ in self._random:
            generator.seed(seed)

    def unsteady(self) -> list[paddle.Tensor]:
        """Tensors that have changed in place since."""
        return [one.tensor for one in self._tensors if one.has_changed()]

    def replace_again(
        self, assigned: Collection[tuple[int, str]], value: float
    ) -> list[paddle.Tensor]:
        """Put tensors full of a value in the place of those that :meth:`assigned` ones replaced.

        The old ones themselves stay as they are: others may hold them. Returns those put there.
        """
        found = []
        for layer, *_ in self._attributes:
            old = self._buffers[id(layer)]
            names = [n for n in old if (id(layer), n) in assigned and old[n]._is_initialized()]
            new = others_than([old[name] for name in names], value)
            layer._buffers.update(zip(names, new))
            found += new
        return found

    def assigned(self) -> dict[tuple[int, str], paddle.Tensor]:
        """Tensors that layers have put into attributes since, by identity and name.

        Paddle makes a buffer of a tensor that is assigned to an attribute.
        """
        changed = {}
        for layer, before, _ in self._attributes:
            held = {**layer.__dict__, **_buffers(layer)}
            had = before | self._buffers[id(layer)]
            for name, value in held.items():
                if isinstance(value, paddle.Tensor) and had.get(name) is not value:
                    changed[id(layer), name] = value
        return changed


class WeightState:
    """Weights and their gradients, as they are now; this takes as much memory as they do."""

    def __init__(self, every: Iterable[Weight]) -> None:
        self._weights = [
            (w.tensor, w.tensor.clone().detach(), _grad_of(w.tensor))
            for w in every
            if w.tensor._is_initialized()
        ]

    def restore(self) -> None:
        """Put everything back as it was."""
        with paddle.no_grad():
            for tensor, value, grad in self._weights:
                if not _equal(tensor, value):
                    tensor.set_value(value)
                if grad is None and tensor.grad is not None:
                    tensor.clear_gradient(False)
                elif grad is not None and tensor.grad is None:
                    tensor.grad = grad
                elif grad is not None and not _equal(tensor.grad, grad):
                    tensor.grad.set_value(grad)


def plain_state(network: nn.Layer) -> dict[str, Any]:
    """By name, the plain attributes of layers: counters, lists, generators.

    Tensors in attributes are reported by :meth:`ForwardState.assigned`.
    """
    return {
        f"{path}.{name}" if path else name: told(value)
        for path, layer in layers(network)
        for name, value in layer.__dict__.items()
        if name not in _OF_EVERY_LAYER and not isinstance(value, paddle.Tensor)
    }


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names under which something else stands now.

    >>> changed({"a": 1, "b": 2}, {"a": 1, "b": 3})
    ['b']
    """
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def weight_digests(network: nn.Layer) -> dict[str, Any]:
    """By name, what tells later whether a weight or its gradient has changed."""
    return {
        w.name: (digest(w.tensor), None if w.tensor.grad is None else digest(w.tensor.grad))
        for w in weights(network)
        if w.tensor._is_initialized()
    }


def _buffers(layer: nn.Layer) -> dict[str, paddle.Tensor]:
    """The buffers of this layer itself, one that has two names under both."""
    # named_buffers(remove_duplicate=False) is not in Paddle 2.6.
    return {name: one for name, one in layer._buffers.items() if one is not None}


def _grad_of(tensor: paddle.Tensor) -> paddle.Tensor | None:
    return None if tensor.grad is None else tensor.grad.clone()


def _equal(one: paddle.Tensor, other: paddle.Tensor) -> bool:
    """Whether two tensors have the same bits."""
    return digest(one) == digest(other)


def _contents(layer: nn.Layer) -> dict[str, Any]:
    """Copies of its lists and dictionaries, whose contents can change in place."""
    found: dict[str, Any] = {}
    for name, value in layer.__dict__.items():
        if isinstance(value, (dict, list)):
            try:
                # Most are empty, and hundreds of copies would start the garbage collector.
                found[name] = value.copy() if value else ()
            except Exception:  # a mapping that cannot be copied cannot be put back either
                continue
    return found


# What Paddle and we keep in every layer; it is no state of the user's.
_OF_EVERY_LAYER = frozenset(["forward", "_casted_by_pure_fp16", *vars(nn.Layer())])


def told(value: Any, depth: int = 5) -> Any:
    """A plain value as something that shows later whether the value has changed in place.

    >>> numbers = [1, 2]
    >>> before = told({"a": numbers})
    >>> numbers.append(3)
    >>> told({"a": numbers}) == before
    False
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)):
        return id(value)
    if isinstance(value, paddle.Tensor):
        return (id(value), few(value).tobytes() if value._is_initialized() else b"")
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    if isinstance(value, (np.random.RandomState, np.random.Generator, random.Random)):
        return pickle.dumps(value)
    if depth == 0:
        return id(value)
    if isinstance(value, dict):
        return [(told(key, depth - 1), told(one, depth - 1)) for key, one in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return [told(one, depth - 1) for one in value]
    if isinstance(value, Set):
        return sorted(repr(told(one, depth - 1)) for one in value)
    if isinstance(value, nn.Layer):  # in a plain list: Paddle does not know that it is there
        state = moving_state(value)
        return (id(value), [(name, told(one)) for name, one in sorted(state.items())])
    inside = getattr(value, "__dict__", None)
    if isinstance(inside, dict) and not type(value).__module__.startswith("paddle.base"):
        return (id(value), [(name, told(one, depth - 1)) for name, one in inside.items()])
    return id(value)


def few(tensor: paddle.Tensor) -> np.ndarray[Any, Any]:
    """Up to 64 of its numbers, spread over all of it."""
    # Where all of it is at hand, NumPy's view takes a tenth of the time of Paddle's slice.
    here = tensor.place.is_cpu_place()
    flat: Any = array_of(tensor).reshape(-1) if here else tensor.detach().flatten()
    some = flat[:: max(flat.shape[0] // 64, 1)]
    return np.asarray(some) if here else array_of(some)


class Generator(NamedTuple):
    """One of the random generators that all code of a process shares."""

    state: Callable[[], Any]
    put_back: Callable[[Any], object]
    seed: Callable[[int], object]
    comparable: Callable[[Any], Any]  # a state in a form that can be compared
    loads_data: bool  # whether data sets draw from it, which Paddle may load in a thread


_ADDRESS = re.compile("0x[0-9a-f]+")
_RELEASE = release(paddle.__version__)


def _paddle_states() -> list[Any]:
    """Of the device, and of the processor beside a GPU: a seed is for both."""
    both = paddle.get_device() != "cpu" and _RELEASE >= (3, 0)  # 2.6 cannot put it back
    return [paddle.get_rng_state(), *([paddle.get_rng_state("cpu")] if both else [])]


def _put_paddle_back(states: list[Any]) -> None:
    paddle.set_rng_state(states[0])
    for of_the_processor in states[1:]:
        paddle.set_rng_state(of_the_processor, "cpu")


_GENERATORS = (
    # Paddle's states cannot be compared; as text they can, but for an address in it.
    Generator(
        _paddle_states, _put_paddle_back, paddle.seed,
        lambda states: [_ADDRESS.sub("", str(one), 1) for some in states for one in some],
        loads_data=False,
    ),
    Generator(
        np.random.get_state, np.random.set_state, np.random.seed,
        lambda state: (state[1].tobytes(), state[2:]), loads_data=True,
    ),
    Generator(random.getstate, random.setstate, random.seed, lambda state: state, loads_data=True),
)  # fmt: skip


def others_than(every: Sequence[paddle.Tensor], value: float) -> list[paddle.Tensor]:
    """Tensors full of a value in the forms of these; counters get another number.

    >>> [one.item() for one in others_than([paddle.zeros([]), paddle.to_tensor(3)], 5.0)]
    [5.0, 10]
    """
    full: dict[Any, paddle.Tensor] = {}  # one for all of a form: the memory is taken once
    found = []
    for tensor in every:
        if not tensor.is_floating_point():
            found.append(tensor if tensor.dtype == paddle.bool else tensor + 7)
            continue
        form = (tuple(tensor.shape), tensor.dtype)
        if form not in full:
            full[form] = paddle.full_like(tensor, value)
        found.append(full[form])
    return found


def surely(undo: Callable[[], object]) -> None:
    """Undo something; an interrupt meanwhile takes effect when all is undone."""
    try:
        undo()
    except BaseException:
        undo()
        raise


def random_state() -> Any:
    """The state of all random generators, comparable."""
    return [one.comparable(one.state()) for one in _GENERATORS]
