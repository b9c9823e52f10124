"""What adapter models are told when they ask which weights train.

LoRA models and their kind save, and expect from a checkpoint, whatever has
``stop_gradient=False`` at that moment (``get_trainable_state_dict``). Under a schedule a weight
that has trained, or will, may be frozen just then. So for the length of that call all of them
read as trainable, whoever makes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import paddle
from paddle import nn

from ..stages.weights import Weight, layers, weights
from ..words import warn

# The method by which all of them ask, whether they save or load, in each library.
_ASKS = "get_trainable_state_dict"


def adapters(network: nn.Layer) -> list[nn.Layer]:
    """The layers of a network, itself included, that save the weights that train alone."""
    found = {id(one): one for _, one in layers(network) if hasattr(type(one), _ASKS)}
    return list(found.values())


def tell_savers(network: nn.Layer, trained: Collection[Weight]) -> Callable[[], None]:
    """Have adapter models save, and load, these weights whatever their flags say then.

    Weights of the model under an adapter that train are named in its configuration, too, so that
    ``from_pretrained`` loads them.

    Args:
        network: the network, flags as found.
        trained: the weights that train at some time of the run.

    Returns:
        How to stop. Weights that trained and are frozen then stay part of the adapter.
    """
    wanted = {id(weight.tensor) for weight in trained}
    found = adapters(network)
    if not found:
        _warn_of_inner(network)
    _warn_of_unsaved(network, trained)
    told = [(one, _tell(one, wanted)) for one in found]

    def stop() -> None:
        for adapter, method in told:
            if vars(adapter).get(_ASKS) is method and not _frozen(adapter, method.names):
                del vars(adapter)[_ASKS]

    return stop


def _warn_of_inner(network: nn.Layer) -> None:
    """Warn of adapters whose adapter model is outside: it saves, and cannot be found from here."""
    for path, layer in layers(network):
        module = type(layer).__module__
        if path and ".peft." in module and ".prefix" not in module:  # a prefix saves itself
            warn(
                f"{path} is a {type(layer).__name__}, and the model that saves it is not in this "
                f"{type(network).__name__}: its checkpoints would lack adapters that are frozen at "
                "that moment. Give the schedule the whole LoRAModel, not lora.model"
            )
            return


def _warn_of_unsaved(network: nn.Layer, trained: Collection[Weight]) -> None:
    """Warn of weights that train under a prefix, whose model saves the prefix alone."""
    for _, layer in layers(network):
        prefix = dict(layer.named_children()).get("prefix_encoder")
        if prefix is None:
            continue
        own = {id(weight.tensor) for weight in weights(layer)}
        own -= {id(weight.tensor) for weight in weights(prefix)}
        lost = [weight.name for weight in trained if id(weight.tensor) in own]
        if lost:
            warn(
                f"{type(layer).__name__} saves its prefix alone, so that a checkpoint of a Trainer "
                f"lacks what the schedule opens under it: {', '.join(lost[:3])}"
                f"{f' and {len(lost) - 3} more' if lost[3:] else ''}. Save it yourself, "
                "or leave it frozen"
            )


def _tell(adapter: nn.Layer, wanted: Collection[int]) -> Any:
    own = weights(adapter)
    names = {weight.name for weight in own if id(weight.tensor) in wanted}
    _name_opened(adapter, {id(w.tensor) for w in own if w.name in names and not w.trains})
    found = vars(adapter).get(_ASKS)
    # What an earlier run trained is part of the adapter, too.
    names |= getattr(found, "names", set())

    def get_trainable_state_dict(self: nn.Layer, *args: Any, **options: Any) -> Any:
        with _open(_frozen(self, names)):
            return getattr(type(self), _ASKS)(self, *args, **options)

    get_trainable_state_dict.names = names  # type: ignore[attr-defined]
    # A method, not a function: that of a deep copy asks the copy.
    method = MethodType(get_trainable_state_dict, adapter)
    vars(adapter)[_ASKS] = method
    return method


def _frozen(adapter: nn.Layer, names: Collection[str]) -> list[paddle.Tensor]:
    return [w.tensor for w in weights(adapter) if w.name in names and not w.trains]


@contextmanager
def _open(frozen: Collection[paddle.Tensor]) -> Iterator[None]:
    try:
        for tensor in frozen:
            tensor.stop_gradient = False
        yield
    finally:
        for tensor in frozen:
            tensor.stop_gradient = True


def _name_opened(adapter: nn.Layer, opened: Collection[int]) -> None:
    """Name weights that were found frozen and train in the adapter's configuration."""
    configs = [one for name, one in vars(adapter).items() if name.endswith("_config")]
    for config in configs if opened else ():
        if not hasattr(config, "trainable_modules"):
            continue
        given = config.trainable_modules or []
        patterns = [given] if isinstance(given, str) else list(given)
        config.trainable_modules = patterns + [
            re.escape(name)
            for name, tensor in adapter.model.state_dict().items()
            if id(tensor) in opened and not any(re.fullmatch(one, name) for one in patterns)
        ]
