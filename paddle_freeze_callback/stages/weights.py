"""What is a weight of a network, and what is not.

A *weight* is a tensor that training may move: it has one identity, however many names lead to
it. State that forwards move is no weight, although Paddle stores some of it as parameters (with
``stop_gradient=True``): BatchNorm's ``_mean`` and ``_variance``, the scales of quantization-aware
training. It is never counted, never part of a stage, and never opened.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn
from paddle.distributed import fleet

# Statistics that Paddle stores as parameters: BatchNorm's, and SpectralNorm's vectors. In its own
# layers they stay what they are when somebody opens "all parameters", which names them too;
# elsewhere the names alone do not tell.
_STATISTIC_PARAMETERS = (("_mean", "_variance"), ("weight_u", "weight_v"))
_NORMS = (nn.layer.norm._BatchNormBase, nn.BatchNorm, nn.SpectralNorm)

# What quanters and observers measure in quantization-aware training, also stored as parameters.
_MEASURED = ("_scale", "_state", "_accum")
_QUANTIZATION = ("paddle.nn.quant.", "paddle.quantization.")
_QUANTIZATION_TOO = ("paddleslim.",)  # which also has scales that train

# How authors name the statistics that they register as buffers, and as parameters.
_STATISTIC_BUFFER = re.compile(r"_?((running|moving|global)_)?(mean|var|variance)|weight_[uv]")
_STATISTIC_IN_DISGUISE = re.compile(r"_?(running|moving|global)_(mean|var|variance)")
_NOTHING_ELSE = re.compile(r"_?(running|moving)_(mean|var|variance)")  # whatever its flag

#: What the kinds of a bias say of it.
BIAS = "bias"

# How authors name a bias: ``bias``, ``qkv_bias``, ``bias_ih_l0``; a table of them is none.
_BIAS = re.compile(r"(.*_)?bias|bias_.*")


#: The attribute of a tensor of which some rows train alone, while they do.
TRAINED_ROWS = "trained_rows"


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor of a network that may be trained.

    Attributes:
        name: the first name that leads to it, the one ``named_parameters`` lists.
        names: every name that leads to it, ``name`` first; more than one if it is tied.
        tensor: the parameter itself, or this process's part of it.
        group: the processes among which it is split; ``None`` where each has all of it.
        kinds: the classes of all layers around it, by name, and ``"bias"`` if it is one.
        rows: the first row that trains and the one after the last, where others never do.
    """

    name: str
    names: tuple[str, ...]
    tensor: paddle.Tensor
    group: Any = None
    kinds: frozenset[str] = frozenset()
    rows: tuple[int, int] | None = None

    @property
    def numel(self) -> int:
        """Number of elements, those that other processes hold included."""
        size = self.group.nranks if self.group else 1
        for side in self.tensor.shape:
            size *= side
        return size

    @property
    def opens(self) -> int:
        """Number of elements that train where it is open: all, or those of its rows."""
        if self.rows is None:
            return self.numel
        return self.numel // int(self.tensor.shape[0]) * (self.rows[1] - self.rows[0])

    @property
    def trains(self) -> bool:
        """Whether it gets gradients now."""
        return not self.tensor.stop_gradient


def own_parameters(layer: nn.Layer) -> dict[str, paddle.Tensor]:
    """The parameters that this layer itself (not its sublayers) holds, by attribute.

    Read from where Paddle keeps them: libraries override ``named_parameters()`` without the
    arguments that Paddle's own takes, and those differ between its releases.

    >>> import paddle
    >>> sorted(own_parameters(paddle.nn.Linear(2, 2)))
    ['bias', 'weight']
    """
    return {name: one for name, one in layer._parameters.items() if one is not None}


def split_among(layer: nn.Layer, tensor: paddle.Tensor) -> Any:
    """The processes among which a weight of this layer is split; ``None`` if it is not.

    >>> split_among(layer := paddle.nn.Linear(2, 2), layer.weight)
    """
    if not getattr(tensor, "is_distributed", False):
        return None
    group = getattr(layer, "model_parallel_group", None)
    if group is None:  # a library's own layer; without fleet, nothing is split
        try:
            group = fleet.get_hybrid_communicate_group().get_model_parallel_group()
        except (AssertionError, AttributeError):
            return None
    return group if group.nranks > 1 else None


def running_statistics(layer: nn.Layer) -> dict[str, paddle.Tensor]:
    """The running statistics that this layer itself (not its sublayers) keeps, by attribute.

    >>> import paddle
    >>> sorted(running_statistics(paddle.nn.BatchNorm2D(3)))
    ['_mean', '_variance']
    >>> running_statistics(paddle.nn.LayerNorm(3))
    {}
    """
    own = own_parameters(layer)
    surely = isinstance(layer, _NORMS)
    for group in _STATISTIC_PARAMETERS:
        if all(name in own and (surely or own[name].stop_gradient) for name in group):
            return {name: own[name] for name in group}
    return {
        **{
            name: one
            for name, one in own.items()
            if (_STATISTIC_IN_DISGUISE if one.stop_gradient else _NOTHING_ELSE).fullmatch(name)
        },
        **{
            name: buffer
            for name, buffer in layer.named_buffers(include_sublayers=False)
            if _STATISTIC_BUFFER.fullmatch(name)
        },
    }


def measured(layer: nn.Layer) -> dict[str, paddle.Tensor]:
    """What this layer itself measures for quantization-aware training, by attribute."""
    own = own_parameters(layer)
    module = type(layer).__module__
    # All three together are no weights either when somebody opens "all parameters".
    surely = module.startswith(_QUANTIZATION) or all(name in own for name in _MEASURED)
    maybe = module.startswith(_QUANTIZATION_TOO)
    return {
        name: one
        for name, one in own.items()
        if name in _MEASURED and (surely or (maybe and one.stop_gradient))
    }


def moving_state(layer: nn.Layer) -> dict[str, paddle.Tensor]:
    """What a forward in training mode may move in this layer itself: statistics, scales, buffers.

    >>> import paddle
    >>> sorted(moving_state(paddle.nn.utils.spectral_norm(paddle.nn.Linear(2, 2))))
    ['weight', 'weight_u', 'weight_v']
    """
    buffers = dict(layer.named_buffers(include_sublayers=False))
    if not buffers and not own_parameters(layer):
        return {}  # as of half the layers of a network, all of which are asked again and again
    return {**buffers, **running_statistics(layer), **measured(layer)}


def layers(network: nn.Layer) -> Iterator[tuple[str, nn.Layer]]:
    """Every layer with every name that leads to it, the network itself (named ``""``) first."""
    return ((path, line[-1]) for path, line in _walk("", (network,)))


def distinct_layers(network: nn.Layer) -> list[nn.Layer]:
    """Every layer once, the network itself first.

    >>> import paddle
    >>> shared = paddle.nn.Linear(2, 2)
    >>> [type(layer).__name__ for layer in distinct_layers(paddle.nn.Sequential(shared, shared))]
    ['Sequential', 'Linear']
    """
    return list({id(layer): layer for _, layer in layers(network)}.values())


def _walk(path: str, line: tuple[nn.Layer, ...]) -> Iterator[tuple[str, tuple[nn.Layer, ...]]]:
    """Every layer behind those around it."""
    yield path, line
    for name, child in line[-1]._sub_layers.items():
        if child is not None and not any(child is one for one in line):
            yield from _walk(f"{path}.{name}" if path else name, (*line, child))


def merging(network: nn.Layer) -> set[int]:
    """The identities of weights that LoRA layers move by rounding: they merge to evaluate."""
    return {
        id(tensor)
        for _, layer in layers(network)
        if isinstance(getattr(layer, "merged", None), bool)
        for tensor in own_parameters(layer).values()
    }


@functools.cache
def _classes(layer: type) -> frozenset[str]:
    """The names of a class of layers and of those that it derives from."""
    every = [one.__name__ for one in layer.__mro__ if issubclass(one, nn.Layer)]
    return frozenset(every) - {nn.Layer.__name__}


def weights(network: nn.Layer) -> tuple[Weight, ...]:
    """The weights of a network in the order in which it defines them, shared ones once.

    >>> import paddle
    >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 3), paddle.nn.BatchNorm1D(3))
    >>> [weight.name for weight in weights(net)]
    ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    if not isinstance(network, nn.Layer):
        raise TypeError(
            f"a network is a paddle.nn.Layer, not {type(network).__name__}"
            + ("; of a paddle.Model, pass model.network" if hasattr(network, "network") else "")
        )
    if not paddle.in_dynamic_mode():
        raise ValueError(
            "freezing needs dynamic mode: in a static graph what is frozen is fixed when the graph "
            "is built. Call paddle.disable_static() before building the network"
        )
    found: dict[int, tuple[nn.Layer, paddle.Tensor, list[str], set[str]]] = {}
    for path, line in _walk("", (network,)):
        layer = line[-1]
        around = frozenset().union(*(_classes(one.__class__) for one in line))
        statistics = {**running_statistics(layer), **measured(layer)}
        for own, tensor in own_parameters(layer).items():
            if own not in statistics:
                name = f"{path}.{own}" if path else own
                entry = found.setdefault(id(tensor), (layer, tensor, [], set()))
                entry[2].append(name)
                entry[3].update(around, {BIAS} if _BIAS.fullmatch(own) else ())
    return tuple(
        Weight(
            names[0], tuple(names), tensor, split_among(layer, tensor), frozenset(kinds),
            getattr(tensor, TRAINED_ROWS, None),
        )
        for layer, tensor, names, kinds in found.values()
    )  # fmt: skip


def trainable_ratio(network: nn.Layer) -> float:
    """Trainable elements / all elements of a network, each shared tensor counted once.

    Running statistics of normalization layers count on neither side.

    Args:
        network: the network.

    Returns:
        A share between 0.0 (all frozen) and 1.0 (all trainable).

    Raises:
        ValueError: if the network has no weights.

    >>> import paddle
    >>> net = paddle.nn.Sequential(paddle.nn.Linear(3, 3), paddle.nn.Linear(3, 1))
    >>> net[0].weight.stop_gradient = True
    >>> trainable_ratio(net)  # 3 + 3 + 1 of 9 + 3 + 3 + 1
    0.4375
    """
    trainable, total = count(weights(network))
    if not total:
        raise ValueError(f"{type(network).__name__} has no parameters")
    return trainable / total


def count(of: tuple[Weight, ...]) -> tuple[int, int]:
    """Trainable elements and all elements of some weights."""
    return sum(weight.opens for weight in of if weight.trains), sum(w.numel for w in of)
