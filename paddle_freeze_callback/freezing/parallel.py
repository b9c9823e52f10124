"""How gradients of a stage opened late stay equal on all ranks.

``paddle.DataParallel`` notes which parameters train once, when it wraps a network. A parameter
that was frozen then is never averaged afterwards, without an error; one that freezes later makes
the others wait for it. So before anything is frozen, the reducer is built anew while everything
that opens at some time is trainable. ``find_unused_parameters=True`` lets frozen parameters be
absent from a step.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import paddle
from paddle import nn
from paddle.distributed import fleet

from ..stages.weights import Weight

# What each wrapper's reducer was built with. The reducers before it are kept: their hooks are
# still registered with the parameters, and a bare second init_reducer() crashes the process.
_built: weakref.WeakKeyDictionary[paddle.DataParallel, frozenset[int]] = weakref.WeakKeyDictionary()


_kept: weakref.WeakKeyDictionary[paddle.DataParallel, list[Any]] = weakref.WeakKeyDictionary()


def world_size() -> int:
    """How many processes train together."""
    return int(paddle.distributed.get_world_size())


def rank() -> int:
    """Which of the processes this is, from 0."""
    return int(paddle.distributed.get_rank())


def prepare(network: nn.Layer, will_open: Sequence[Weight]) -> None:
    """Make the wrappers around a network average everything that will ever open.

    Must be called before anything is frozen. Does nothing in a single process.
    """
    if world_size() < 2:
        return
    trainable = {id(tensor) for tensor in network.parameters() if not tensor.stop_gradient}
    wanted = frozenset(trainable | {id(weight.tensor) for weight in will_open})
    for wrapper in wrapped(network):
        if wanted <= _built.get(wrapper, frozenset()):
            continue
        closed = [weight.tensor for weight in will_open if weight.tensor.stop_gradient]
        for tensor in closed:
            tensor.stop_gradient = False
        try:
            # There is no public way to rebuild the reducer; init_reducer() is what the
            # constructor calls.
            _kept.setdefault(wrapper, []).append(wrapper._reducer)
            wrapper.find_unused_parameters = True
            wrapper.init_reducer()
            _built[wrapper] = wanted
        finally:
            for tensor in closed:
                tensor.stop_gradient = True


def wrapped(network: nn.Layer) -> list[paddle.DataParallel]:
    """The data-parallel wrappers around a network; loops hand their callbacks only the inside."""
    if isinstance(network, paddle.DataParallel):
        return [network]
    return [
        found
        for found in gc.get_objects()
        # by type: isinstance() asks the object, and a dead weak proxy raises
        if issubclass(type(found), paddle.DataParallel) and found._layers is network
    ]


#: Paddle's engines for which nobody has shown that a schedule is right, by their classes.
_ENGINES = {
    "GroupShardedOptimizerStage2": "sharding stage 2",
    "GroupShardedStage2": "sharding stage 2",
    "GroupShardedStage3": "sharding stage 3",
    "PipelineLayer": "a pipeline",
    "MoELayer": "expert parallel",
}
#: The same by the groups that fleet has made.
_DEGREES = {
    "get_pipe_parallel_world_size": "a pipeline",
    "get_sep_parallel_world_size": "sequence parallel",
}


def unshown(network: nn.Layer, optimizer: Any) -> list[str]:
    """The kinds of parallel training here for which nobody has shown that a schedule is right.

    A loop of one's own tells of them by its network, by its optimizer, by what is around the
    network, or by fleet alone.
    """
    if world_size() < 2:
        return []
    by_type: dict[type, str | None] = {}

    def engine(thing: Any) -> str | None:
        kind = type(thing)
        if kind not in by_type:
            named = [c for c in kind.__mro__ if getattr(c, "__name__", None) in _ENGINES]
            # Of all objects there are, some have a type without __module__; not those of Paddle.
            ours = [c for c in named if str(getattr(c, "__module__", "")).startswith("paddle.")]
            by_type[kind] = _ENGINES[ours[0].__name__] if ours else None
        return by_type[kind]

    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    found = [engine(one) for one in (*optimizers, *network.sublayers(include_self=True))]
    # There is no public way to ask what is around a network, nor what an engine has inside.
    found += [
        engine(around)
        for around in gc.get_objects()
        if engine(around) and getattr(around, "_layer", None) is network
    ]
    try:
        groups = fleet.get_hybrid_communicate_group()
    except (AssertionError, AttributeError):  # fleet is not in use
        groups = None
    for name, kind in _DEGREES.items():
        if getattr(groups, name, lambda: 1)() > 1:
            found.append(kind)
    return sorted({kind for kind in found if kind})


def same_on_all_ranks(value: Any) -> Any:
    """The value that rank 0 has."""
    if world_size() < 2:
        return value
    box = [value]
    paddle.distributed.broadcast_object_list(box, src=0)
    return box[0]
