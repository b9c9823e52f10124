"""How gradients reach the open stages under recomputation (gradient checkpointing).

Paddle's default ``recompute(use_reentrant=True)`` runs a function without autograd, and once more
in the backward pass. Whether it does so is decided by the inputs: if none wants a gradient, because
everything below is frozen, the function's own weights get none either, nor do those of any
recomputed block after it; there is only a warning.

The cure is at that call and nowhere else. The function is handed on with one input more, a tensor
of our own that wants a gradient. The function never sees it, so the flags of the network's own
tensors stay as they are, nothing frozen is differentiated, and it helps a function of integers,
too. When the function turns out to use no weight that is open, its outputs leave the graph again.

Whether it does is asked of autograd: the first run is made with it, as it is without recompute,
and what the outputs hang on is dropped at once. A block of frozen weights records nothing there;
the lowest open one records what its recomputation will.

Every reentrant recomputation of Paddle, and each that was written after its model, is a ``PyLayer``
whose ``forward`` takes the function first and any number of inputs last. So the one place to stand
is ``PyLayer.apply``: it is public, and asked for at each call, whoever imported ``recompute``.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer


class Bridge:
    """Lets gradients into recomputed layers that nothing below wants one from.

    As long as there is one, reentrant recomputations are looked at when they begin.

    Args:
        network: the network. What it recomputes is noted from now on.
    """

    def __init__(self, network: nn.Layer) -> None:
        self._runs = self._recomputes = self._trained = False
        self._hooks = [
            network.register_forward_pre_hook(self._begin),
            network.register_forward_post_hook(self._end),
        ]
        _at_work[id(self)] = weakref.ref(self)
        # Also for when nobody undoes it: an exception may have ended the run.
        self._leave = weakref.finalize(self, _leave, id(self))
        _stand()

    @property
    def settled(self) -> bool | None:
        """Whether a training step has shown that nothing is recomputed; ``None`` if it is."""
        return None if self._trained and self._recomputes else self._trained

    def undo(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._leave()

    def recomputes(self) -> None:
        """A reentrant recomputation begins, of this network or another."""
        self._recomputes = self._recomputes or self._runs

    def _begin(self, network: nn.Layer, inputs: Any) -> None:
        self._runs = True

    def _end(self, network: nn.Layer, inputs: Any, outputs: Any) -> None:
        self._runs = False
        if network.training and paddle.is_grad_enabled() and paddle.in_dynamic_mode():
            self._trained = True

    def __deepcopy__(self, memo: dict[int, object]) -> Bridge:
        """A copy of a network shares its hooks: they act on the layer that they are called for."""
        return self


class _Recomputed:
    """A function that is recomputed, with one input more, which it never sees.

    Attributes:
        aside: the outputs of its first run that no weight wants a gradient of.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._ran = False
        self.aside: list[paddle.Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._ran:  # the backward pass: now the recomputation is what matters
            return self._function(*args[:-1], **kwargs)
        with paddle.enable_grad():
            outputs = self._function(*args[:-1], **kwargs)
        self._ran = True
        inputs = {tensor.data_ptr() for tensor in _seen([*args, *kwargs.values()]) if tensor.size}
        return self._without_graph(outputs, inputs)

    def _without_graph(self, outputs: Any, inputs: set[int]) -> Any:
        """The outputs as autograd would have left them, had it been off."""
        if isinstance(outputs, paddle.Tensor):
            # Never the tensor itself: it may be a weight, and is about to be flagged.
            found = outputs.detach()
            if outputs.stop_gradient:
                # Paddle refuses an output that is an input, or detached from one.
                if not outputs.size:
                    found = found.clone()
                elif outputs.data_ptr() in inputs:
                    found = found.view(outputs.shape)
                self.aside.append(found)
            return found
        if isinstance(outputs, (tuple, list)):
            each = [self._without_graph(one, inputs) for one in outputs]
            kind = type(outputs)
            return kind(each) if kind in (tuple, list) else kind(*each)  # a tuple with names
        return outputs


def _cured(apply: Callable[..., Any], function: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    """A recomputation whose inputs want no gradient, as if one did, where there is a need."""
    # One number for each process: recompute_hybrid may split an input evenly among some of them.
    wanting = paddle.zeros([paddle.distributed.get_world_size()])
    wanting.stop_gradient = False
    recomputed = _Recomputed(function)
    results = apply(recomputed, *args, wanting, **kwargs)
    for tensor in recomputed.aside:
        tensor.detach_()
    recomputed.aside = []  # the backward pass holds the function, and needs none of these
    return results


# ------------------------------------------------------------ where recomputations begin

_at_work: dict[int, weakref.ref[Bridge]] = {}
_standing: list[tuple[Any, Any]] = []  # what was put at PyLayer.apply, and what was there


def _stand() -> None:
    """Stand at ``PyLayer.apply``, once, however many schedules there are."""
    if _standing:
        return
    before = PyLayer.__dict__.get("apply")

    def apply(cls: type[PyLayer], *args: Any, **kwargs: Any) -> Any:
        original = before.__get__(None, cls) if before else super(PyLayer, cls).apply
        if not _at_work or not _recomputes(cls, args) or not paddle.is_grad_enabled():
            return original(*args, **kwargs)
        for bridge in list(_at_work.values()):
            if (alive := bridge()) is not None:
                alive.recomputes()
        if any(not tensor.stop_gradient for tensor in _seen([*args, *kwargs.values()])):
            return original(*args, **kwargs)
        return _cured(original, args[0], args[1:], kwargs)

    ours = classmethod(apply)
    PyLayer.apply = ours
    _standing.append((ours, before))
    logging.getLogger(PADDLES_LOG).addFilter(_no_need)


def _leave(bridge: int) -> None:
    """One schedule less; the last takes back what was put there."""
    _at_work.pop(bridge, None)
    if _at_work or not _standing:
        return
    ours, before = _standing.pop()
    logging.getLogger(PADDLES_LOG).removeFilter(_no_need)
    if PyLayer.__dict__.get("apply") is not ours:
        return  # somebody stands before us, and would be undone: without a schedule we do nothing
    if before is None:
        del PyLayer.apply
    else:
        PyLayer.apply = before


def _recomputes(cls: type[PyLayer], args: tuple[Any, ...]) -> bool:
    """Whether a ``PyLayer`` is handed a function and, without names, what to call it with."""
    code = getattr(cls.forward, "__code__", None)
    return bool(args) and callable(args[0]) and bool(code and code.co_flags & inspect.CO_VARARGS)


def _seen(inputs: list[Any]) -> Iterator[paddle.Tensor]:
    """The tensors of which a ``PyLayer`` knows: alone, or in a list or tuple."""
    for one in inputs:
        for tensor in one if isinstance(one, (tuple, list)) else (one,):
            if isinstance(tensor, paddle.Tensor):
                yield tensor


# Paddle says for each block and step that it need not be recomputed in the backward pass: a line
# for each frozen block, and wrong of an open one.
PADDLES_LOG = "paddle.distributed.fleet.utils.log_util"


def _no_need(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("[Recompute]: None of the inputs")
