"""Seeing, and replacing, the calls of frozen layers within a network's forward.

:class:`ForwardWatch` puts functions of ours in front of the forward of a network and of its closed
layers, those without open weights. Of closed layers inside each other only the outermost that is
called counts: a T5 encoder may be called without the forward of the T5 around it. A forward can
then be *traced*: the outputs of these calls are noted. Or it is *planned*: chosen calls return
planned outputs and compute nothing.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import nn

from ..stages.weights import layers
from .keys import CannotCacheError
from .nested import replaced, restructured, tensors
from .state import random_state

Call = tuple[int, int]  # which closed layer, and which of its calls in one forward


@dataclass(frozen=True)
class Shape:
    """What a tensor looked like."""

    shape: tuple[int, ...]
    dtype: Any


@dataclass
class Trace:
    """The calls of closed layers in one forward: what to note, and then what was seen."""

    # The calls whose outputs are noted; None for all that may belong to a prefix. Of the others
    # only shapes are, so that their memory is freed as it would be without us.
    whole: frozenset[Call] | None = None
    others: bool = False  # whether the outputs of others are noted, too, as they will be at the end
    until: frozenset[Call] | None = None  # the forward stops when all of these calls are done
    random: Any = None  # the state of the random generators at its start, if draws are noted
    grad: bool = False  # whether it was made for a backward pass
    calls: list[tuple[Call, Any, bool]] = field(default_factory=list)  # output; needs no gradient
    recomputed: bool = False  # whether the layers were recomputed in the backward pass
    drawn: set[Call] = field(default_factory=set)  # calls that ended after a random draw
    inside: bool = False  # whether a closed layer is being called

    def output(self, call: Call) -> Any:
        """The output of a call; ``None`` if it was not made."""
        return next((out for one, out, _ in self.calls if one == call), None)


class _Enough(BaseException):
    """Stops a forward. It is no Exception, so that no code of the network catches it."""


class ForwardWatch:
    """Functions in front of the forward of a network and of its closed layers.

    ``outside`` is called when a closed layer is called outside the forward of the network.
    """

    def __init__(
        self, network: nn.Layer, opened: frozenset[int], outside: Callable[[], object]
    ) -> None:
        self.closed = _closed_layers(network, opened)
        self._network = network
        self._outside = outside
        self._patched: list[_Patch] = []
        self._layers = network.sublayers(include_self=True)
        self._hooks = -1
        self._mode = ""
        self._trace = Trace()
        self._plan: dict[Call, Any] = {}
        self._counts: dict[int, int] = {}

    @property
    def busy(self) -> bool:
        """Whether a traced or planned forward is under way."""
        return bool(self._mode)

    @property
    def alive(self) -> bool:
        """Whether its functions are in place."""
        return bool(self._patched)

    def begin(self, owner: Any, forward: Callable[..., Any]) -> None:
        """Put the functions in place.

        The network's forward becomes ``forward``, called with the owner, the original function, its
        arguments, and those by name. Once the owner, held weakly, is gone it runs as without us.

        Raises:
            CannotCacheError: if one of them cannot be replaced, or has hooks of the user.
        """
        self.refuse_hooks()
        self._patched.append(_Patch(self._network, owner, forward))
        for index, (path, layer) in enumerate(self.closed):
            try:
                self._patched.append(_Patch(layer, self, _call_of(index)))
            except CannotCacheError:  # seldom called by anything but the layer around it
                if not any(path.startswith(f"{outer}.") for outer, _ in self.closed):
                    raise

    def end(self) -> None:
        """Put the forward functions back as they were found."""
        for patch in reversed(self._patched):
            patch.undo()
        self._patched = []

    def traced(
        self, original: Callable[..., Any], args: Any, kwargs: Any, trace: Trace | None = None
    ) -> tuple[Any, Trace]:
        """Run a forward; returns its output, or ``None`` if it was stopped, and the trace."""
        found = trace or Trace()
        found.grad = paddle.is_grad_enabled()
        with self._as("trace"):
            self._trace = found
            try:
                return original(*args, **kwargs), found
            except _Enough:
                return None, found

    def planned(
        self, original: Callable[..., Any], args: Any, kwargs: Any, plan: dict[Call, Any]
    ) -> Any:
        """Run a forward in which some calls return the planned outputs."""
        for output in plan.values():
            for tensor in tensors(output):
                tensor.stop_gradient = True  # the network may have changed it last time
        with self._as("plan"):
            self._plan = plan
            return original(*args, **kwargs)

    def name(self, call: Call) -> str:
        """How a call is named, such as ``"encoder.layers.2"``."""
        path = self.closed[call[0]][0]
        return path if call[1] == 0 else f"{path} (call {call[1] + 1})"

    @contextmanager
    def _as(self, mode: str) -> Iterator[None]:
        self._mode, self._counts = mode, {}
        try:
            yield
        finally:
            self._mode, self._plan, self._trace = "", {}, Trace()

    def _called(self, index: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of a closed layer."""
        if not self._mode:
            self._outside()
        trace = self._trace
        if not self._mode or trace.inside:
            return original(*args, **kwargs)
        nth = self._counts.get(index, 0)
        self._counts[index] = nth + 1
        call = (index, nth)
        if call in self._plan:
            return self._plan[call]
        trace.inside = True
        try:
            output = original(*args, **kwargs)
        finally:
            trace.inside = False
        if self._mode == "plan":
            return output
        if trace.grad and not paddle.is_grad_enabled():
            trace.recomputed = True
        if trace.random is not None and trace.random != random_state():
            trace.drawn.add(call)
        prefix = all(tensor.stop_gradient for tensor in tensors(output))
        if prefix if trace.whole is None else call in trace.whole:
            # As it is now: the network may change it in place.
            noted = replaced(output, lambda _, one: one.detach().clone())
        elif trace.others:
            noted = restructured(output)
        else:
            noted = replaced(output, lambda _, one: Shape(tuple(one.shape), one.dtype))
        trace.calls.append((call, noted, prefix))
        if trace.until is not None and trace.until <= {done for done, *_ in trace.calls}:
            raise _Enough
        return output

    def refuse_hooks(self) -> None:
        """Refuse hooks of the user: they would get placeholders, or run too seldom or too often.

        Raises:
            CannotCacheError: naming a layer that has one.
        """
        count = sum(
            len(layer._forward_pre_hooks) + len(layer._forward_post_hooks) for layer in self._layers
        )
        if count == self._hooks:
            return
        self._hooks = count
        for path, layer in layers(self._network):
            # Paddle gives no public list of the hooks of a layer.
            hooks = [*layer._forward_pre_hooks.values(), *layer._forward_post_hooks.values()]
            for hook in hooks if path else ():
                owner = getattr(hook, "__self__", hook)
                home = getattr(hook if owner is hook else type(owner), "__module__", None)
                home = home or type(hook).__module__
                if home.partition(".")[0] not in ("paddle", __name__.partition(".")[0]):
                    raise CannotCacheError(
                        f"{path} has a forward hook, which would not see its values"
                    )


def _call_of(index: int) -> Callable[..., Any]:
    def called(watch: ForwardWatch, original: Any, args: Any, kwargs: Any) -> Any:
        return watch._called(index, original, args, kwargs)

    return called


def _closed_layers(network: nn.Layer, opened: frozenset[int]) -> list[tuple[str, nn.Layer]]:
    """The layers below the network that have no open weights, each once, the outer ones first."""
    never_called = (nn.LayerList, nn.LayerDict, nn.ParameterList)
    found: dict[int, tuple[str, nn.Layer]] = {}
    for path, layer in layers(network):
        frozen = not any(id(tensor) in opened for tensor in layer.parameters())
        if path and frozen and not isinstance(layer, never_called):
            found.setdefault(id(layer), (path, layer))
    return list(found.values())


class _Patch:
    """A function of ours in front of the forward of one layer."""

    def __init__(self, layer: nn.Layer, owner: Any, around: Callable[..., Any]) -> None:
        self.layer = layer
        self._had = layer.__dict__.get("forward")
        original = layer.forward
        if not isinstance(original, (types.MethodType, types.FunctionType)):
            raise CannotCacheError(
                f"the forward of {type(layer).__name__} is a {type(original).__name__}"
            )
        # Weak: a copy of the network has this function, too, and must not keep ours alive.
        mine, its = weakref.ref(layer), weakref.ref(owner)
        function = getattr(original, "__func__", original)
        method = isinstance(original, types.MethodType)

        def forward(*args: Any, **kwargs: Any) -> Any:
            alive, first = its(), args[:method]
            if alive is None or (first and first[0] is not mine()):  # a copy has no cache
                return function(*args, **kwargs)
            return around(alive, functools.partial(function, *first), args[method:], kwargs)

        # A method where there was one, with its signature: paddle.Model tells inputs from labels
        # by it, and PaddleNLP drops the columns of the data that it does not name.
        forward.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        self._ours = types.MethodType(forward, layer) if method else forward
        # Not by assignment: PaddleNLP's models wrap what is assigned to forward.
        layer.__dict__["forward"] = self._ours

    def undo(self) -> None:
        if self.layer.__dict__.get("forward") is not self._ours:
            return
        if self._had is None:
            del self.layer.__dict__["forward"]
        else:
            self.layer.__dict__["forward"] = self._had
