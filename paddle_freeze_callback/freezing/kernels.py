"""How layers train whose kernels cannot do what freezing asks of them.

Some backward kernels of Paddle take it for granted that everything which a layer touches wants
a gradient. Where that is not so, they raise, or give no gradient at all to what is open, or end
the process:

- ``LSTM``, ``GRU`` and ``SimpleRNN``: with a frozen weight, and in eval mode;
- BatchNorm: with one of weight and bias frozen neither gets a gradient;
- InstanceNorm: the same, and with an input that wants no gradient;
- ``PReLU`` since Paddle 3.1: with an input that wants no gradient;
- ``HSigmoidLoss``: with an input that wants no gradient, or with a frozen weight;
- GroupNorm before Paddle 3.1: the same.

The cure needs nothing from loops and optimizers. A frozen parameter stays frozen. For the length
of one call the kernel is handed an alias of it: a tensor with the same memory that does want a
gradient. What the alias receives nobody sees, and it is gone with the graph.

The flags are read at each call of the layer itself, so it does not matter which layer around it
is frozen, who froze it, or what feeds it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn

from ..installed import release
from ..stages.weights import distinct_layers

_RELEASE = release(paddle.__version__)

# In a trace of to_static what a layer is given is a value of the trace.
_TENSORS = (paddle.Tensor, paddle.pir.Value)


@dataclass(frozen=True)
class _Kernel:
    """What the kernels of some layers need.

    Attributes:
        layers: the layers that call them.
        weights: the attributes that they read their weights from.
        inputs: whether their inputs must want gradients, too, or they raise; others give no
            gradient where only a part of the weights trains.
    """

    layers: tuple[type[nn.Layer], ...]
    weights: tuple[str, ...]
    inputs: bool


_KERNELS = (
    _Kernel(
        (nn.BatchNorm, nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D, nn.SyncBatchNorm),
        ("weight", "bias"),
        inputs=False,
    ),
    _Kernel(
        (nn.InstanceNorm1D, nn.InstanceNorm2D, nn.InstanceNorm3D),
        ("scale", "bias"),
        inputs=True,
    ),
    _Kernel((nn.PReLU,) if _RELEASE >= (3, 1) else (), ("_weight",), inputs=True),
    _Kernel((nn.HSigmoidLoss,), ("weight", "bias"), inputs=True),
    _Kernel(
        (nn.GroupNorm,) if _RELEASE < (3, 1) else (),
        ("weight", "bias"),
        inputs=True,
    ),
)


def spare(network: nn.Layer) -> Spared:
    """Let every layer of a network train as its flags say, whatever its kernels can do.

    A layer whose kernel raises, or ends the process, is always stood before: somebody else may
    set its flags meanwhile. Others only if they need it now; call it again when flags have changed.

    Args:
        network: the network.

    Returns:
        What takes it back.

    >>> import paddle
    >>> network = paddle.nn.LSTM(2, 2)
    >>> network.weight_ih_l0.stop_gradient = True
    >>> spared = spare(network)
    >>> network(paddle.ones([1, 3, 2]))[0].sum().backward()  # without it, this raises
    >>> network.weight_ih_l0.grad is None, network.weight_hh_l0.grad is None
    (True, False)
    >>> spared.undo()
    """
    return Spared(distinct_layers(network))


class Spared:
    """What :func:`spare` did to some layers, until :meth:`undo`.

    It does not keep the layers alive: :func:`.freeze` remembers it for as long as they live.
    """

    def __init__(self, layers: Iterable[nn.Layer]) -> None:
        self._hooks: list[_Hooks] = []
        self._recurrent: list[weakref.ref[nn.Layer]] = []
        for layer in layers:
            if isinstance(layer, nn.layer.rnn.RNNBase):
                # Others, such as an LSTM with proj_size, are made of cells, which can do it all.
                if layer.could_use_cudnn:
                    _Aliases.put_on(layer)
                    self._recurrent.append(weakref.ref(layer))
                continue
            kernel = next((one for one in _KERNELS if isinstance(layer, one.layers)), None)
            flags = {one.stop_gradient for one in _own(layer, kernel).values()} if kernel else set()
            if kernel and flags and (kernel.inputs or len(flags) == 2):
                self._hooks.append(_Hooks(layer, kernel))

    def undo(self) -> None:
        """Put the layers back as they were. Doing it again changes nothing."""
        while self._hooks:
            self._hooks.pop().undo()
        while self._recurrent:
            _Aliases.take_off(self._recurrent.pop()())


def _own(layer: nn.Layer, kernel: _Kernel) -> dict[str, Any]:
    own = {name: getattr(layer, name, None) for name in kernel.weights}
    return {name: tensor for name, tensor in own.items() if isinstance(tensor, _TENSORS)}


def _wanting(tensors: Iterable[Any]) -> list[Any]:
    """Those for whose sake there will be a backward pass through this call."""
    if not paddle.is_grad_enabled():
        return []
    return [one for one in tensors if isinstance(one, _TENSORS) and not one.stop_gradient]


def _opened(value: Any, wanting: list[Any]) -> Any:
    """The value; if it is a tensor that wants no gradient, an alias that does.

    Args:
        value: anything.
        wanting: what does want gradients in this call.
    """
    if not (isinstance(value, _TENSORS) and value.is_floating_point() and value.stop_gradient):
        return value
    if paddle.in_dynamic_mode():
        alias = value.detach()  # the same memory
        alias.stop_gradient = False
        return alias
    # A trace computes only what leads to something open, so the alias is made to: value + 0.
    return value + (wanting[0].sum() * 0.0).astype(value.dtype)


class _Hooks:
    """Hands a layer aliases of its frozen weights, and of its inputs where they must be open.

    A layer looks for an attribute in its ``__dict__`` before it looks among its parameters, so
    an alias in there stands before the parameter, which stays where everybody else finds it.

    Args:
        layer: the layer.
        kernel: what it needs.
    """

    def __init__(self, layer: nn.Layer, kernel: _Kernel) -> None:
        self._layer = weakref.ref(layer)
        self._kernel = kernel
        self._handles = (
            layer.register_forward_pre_hook(self._enter, with_kwargs=True)
            if _RELEASE >= (3, 0)
            else layer.register_forward_pre_hook(self._enter_by_position),
            layer.register_forward_post_hook(self._leave),
        )

    def _enter(self, layer: nn.Layer, inputs: Any, named: dict[str, Any]) -> Any:
        self._clear(layer)
        own = _own(layer, self._kernel)
        wanting = _wanting([*own.values(), *paddle.utils.flatten([inputs, named])])
        if not wanting:
            return None
        for name, tensor in own.items():
            if tensor.stop_gradient:
                layer.__dict__[name] = _opened(tensor, wanting)
        if not self._kernel.inputs:
            return None
        return tuple(_opened(one, wanting) for one in inputs), {
            name: _opened(one, wanting) for name, one in named.items()
        }

    def _enter_by_position(self, layer: nn.Layer, inputs: Any) -> Any:
        """The same in Paddle 2.6, whose hooks do not see what is given by name."""
        found = self._enter(layer, inputs, {})
        return found and found[0]

    def _leave(self, layer: nn.Layer, inputs: Any, outputs: Any) -> None:
        self._clear(layer)

    def _clear(self, layer: nn.Layer) -> None:
        for name in self._kernel.weights:
            layer.__dict__.pop(name, None)

    def __deepcopy__(self, memo: dict[int, object]) -> _Hooks:
        """A copy of a network shares its hooks: they act on the layer that they are called for."""
        return self

    def undo(self) -> None:
        for handle in self._handles:
            handle.remove()
        layer = self._layer()
        if layer is not None:  # if the forward raised, the hook behind it did not run
            self._clear(layer)


class _Aliases:
    """Stands before the kernel of one RNN, and hands it aliases of the frozen weights.

    All calls of the kernel go through the layer's ``_cudnn_impl``, on a CPU, too. There is no
    public place: the kernel gets its weights from a list, not from attributes. Standing there
    it also sees initial states, and is done when the forward raises.

    In eval mode the kernel keeps nothing for a backward pass, and a frozen layer whose statistics
    are held is in eval mode. There it runs in training mode without dropout, which is the same.

    Args:
        layer: the RNN.
    """

    def __init__(self, layer: nn.Layer) -> None:
        self._layer = layer
        self._held = 0

    @classmethod
    def put_on(cls, layer: nn.Layer) -> None:
        """Stand before this layer, or do so for one more: ``freeze`` and a schedule may ask."""
        layer.__dict__.setdefault("_cudnn_impl", cls(layer))._held += 1

    @classmethod
    def take_off(cls, layer: nn.Layer | None) -> None:
        """Whoever asked needs it no longer."""
        found = layer.__dict__.get("_cudnn_impl") if layer is not None else None
        if isinstance(found, cls):
            found._held -= 1
            if not found._held:
                del layer.__dict__["_cudnn_impl"]

    def __call__(self, inputs: Any, initial_states: Any, sequence_length: Any) -> Any:
        layer = self._layer
        found = layer._all_weights, layer.training, layer.dropout
        wanting = _wanting([inputs, *initial_states, *layer._all_weights])
        try:
            if wanting and paddle.in_dynamic_mode():  # a trace can do with frozen weights
                layer._all_weights = [_opened(one, wanting) for one in layer._all_weights]
            if wanting and not layer.training:
                layer.training, layer.dropout = True, 0.0
            return type(layer)._cudnn_impl(layer, inputs, initial_states, sequence_length)
        finally:
            layer._all_weights, layer.training, layer.dropout = found
