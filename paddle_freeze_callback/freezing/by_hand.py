"""Freezing in a training loop of one's own, without a schedule."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass, field

from paddle import nn

from ..stages.partition import Survey
from ..stages.selectors import Selector, asked_by_name, items
from ..stages.weights import Weight
from ..words import EVERYTHING
from .freezer import set_frozen
from .kernels import Spared, spare
from .still import EvalForward, GlobalStatistics, governed, hold_statistics
from .tree import tree


@dataclass
class _ByHand:
    """What :func:`freeze` did to one network.

    Attributes:
        frozen: the flags as they were found, by the identities of the weights.
        held: what holds the statistics of layers, by the identities of the layers.
        spared: what lets partly frozen layers train.
    """

    frozen: dict[int, bool] = field(default_factory=dict)
    held: dict[int, EvalForward | GlobalStatistics] = field(default_factory=dict)
    spared: Spared | None = None


_by_hand: weakref.WeakKeyDictionary[nn.Layer, _ByHand] = weakref.WeakKeyDictionary()


def freeze(network: nn.Layer, selector: Selector = EVERYTHING) -> tuple[str, ...]:
    """Freeze parameters, and hold the running statistics of their normalization layers.

    Args:
        network: the network.
        selector: which parameters, see :mod:`paddle_freeze_callback.stages.selectors`.

    Returns:
        The names of the selected parameters.

    Raises:
        ValueError: if the selector matches nothing.

    >>> import paddle
    >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
    >>> freeze(net, "0")
    ('0.weight', '0.bias')
    >>> net[0].weight.stop_gradient, net[1].weight.stop_gradient
    (True, False)
    """
    survey = Survey(network)
    chosen = survey.select(selector)
    state = _by_hand.setdefault(network, _ByHand())
    for weight in chosen:
        state.frozen.setdefault(id(weight.tensor), weight.tensor.stop_gradient)
        set_frozen(weight.tensor, True)
    _hold_by_hand(survey, state)
    return tuple(weight.name for weight in chosen)


def unfreeze(network: nn.Layer, selector: Selector = EVERYTHING) -> tuple[str, ...]:
    """Open parameters again.

    What :func:`freeze` froze gets back the flag that it had. A parameter that something else
    had frozen (you, or LoRA) is opened only if it is asked for by name: by its full name, or by
    a selector, other than ``"*"``, that selects nothing else.

    Args:
        network: the network.
        selector: which parameters; by default whatever :func:`freeze` froze.

    Returns:
        The names of the parameters that train now and did not before.

    Raises:
        ValueError: if the selector matches nothing.

    >>> import paddle
    >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
    >>> net[1].bias.stop_gradient = True
    >>> _ = freeze(net)
    >>> unfreeze(net)
    ('0.weight', '0.bias', '1.weight')
    >>> unfreeze(net, "1.bias")
    ('1.bias',)
    """
    survey = Survey(network)
    chosen = survey.select(selector)
    state = _by_hand.setdefault(network, _ByHand())
    found = {id(w.tensor): state.frozen.get(id(w.tensor), w.tensor.stop_gradient) for w in chosen}
    opened = []
    by_name: set[str] = set()
    for one in items(selector):
        inside = survey.select(one)
        by_name |= asked_by_name(inside, one, [w for w in inside if not found[id(w.tensor)]])
    for weight in chosen:
        if not weight.trains and (not found[id(weight.tensor)] or weight.name in by_name):
            set_frozen(weight.tensor, False)
            opened.append(weight.name)
        if weight.trains:
            state.frozen.pop(id(weight.tensor), None)
    _hold_by_hand(survey, state)
    return tuple(opened)


def held_by_hand(survey: Survey, opening: Collection[Weight]) -> list[str]:
    """The layers whose statistics :func:`freeze` holds though these weights of theirs open."""
    state = _by_hand.get(survey.network)
    if state is None or not state.held:
        return []
    ids = {id(weight.tensor) for weight in opening}
    return [
        path
        for path, layer, governors in governed(tree(survey), statistics=True)
        if id(layer) in state.held and not governors.isdisjoint(ids)
    ]


def _hold_by_hand(survey: Survey, state: _ByHand) -> None:
    """Hold the statistics of exactly those layers that are frozen by hand."""
    frozen = {id(w.tensor) for w in survey.weights if not w.trains and id(w.tensor) in state.frozen}
    for _, layer, governors in governed(tree(survey), statistics=True):
        wanted = bool(governors) and governors <= frozen
        if wanted and id(layer) not in state.held:
            state.held[id(layer)] = hold_statistics(layer)
        elif not wanted and id(layer) in state.held:
            state.held.pop(id(layer)).undo()
    if state.spared is not None:
        state.spared.undo()
    state.spared = spare(survey.network) if frozen else None
