"""How the optimizer follows while stages open and freeze.

Its list of parameters is never edited: whatever opens at some time must be in it from the start.
Paddle's optimizers create the moments of a parameter at its first step, so a stage that opens
late trains exactly as with a fresh optimizer.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import weakref
from collections.abc import Callable, Collection, Iterable
from types import MethodType
from typing import Any

import paddle
from paddle.base.layer_helper import LayerHelper

from ..stages.weights import Weight


def each(optimizer: Any) -> list[Any]:
    """The optimizers inside all wrappers: one, or those of a list that train one network."""
    return [innermost(one) for one in (optimizer if isinstance(optimizer, list) else [optimizer])]


def training(optimizer: Any, weights: Collection[Weight]) -> dict[Any, int]:
    """The optimizers that train these weights, and how many elements each does."""
    several = each(optimizer)
    if len(several) == 1:
        return {several[0]: 1}
    held = [(one, parameter_ids(one)) for one in several]
    shares = {one: sum(w.numel for w in weights if id(w.tensor) in ids) for one, ids in held}
    return {one: share for one, share in shares.items() if share} or {several[0]: 1}


def awaits_state(optimizer: Any) -> bool:
    """Whether a state was loaded that no step has used yet."""
    return bool(getattr(innermost(optimizer), "_accumulators_holder", None))


def step_one_by_one(optimizer: Any) -> bool:
    """Have an optimizer that caches its list of parameters not do so; whether it did.

    Before its first step that changes neither weights nor the names of its state.
    """
    inner = innermost(optimizer)
    cached = bool(getattr(inner, "_use_multi_tensor", False))
    if cached:
        inner._use_multi_tensor = False
    return cached


def innermost(optimizer: Any) -> Any:
    """The optimizer inside Paddle's wrappers for distributed training."""
    while True:
        inner = getattr(optimizer, "_inner_opt", None) or getattr(optimizer, "inner_opt", None)
        if inner is None or inner is optimizer:
            return optimizer
        optimizer = inner


def parameter_ids(optimizer: Any) -> set[int]:
    """The identities of the parameters that the optimizer was given."""
    return {id(tensor) for tensor in _parameters(optimizer)}


def around(
    optimizer: Any, name: str, function: Callable[..., Any], **marks: Any
) -> Callable[[], None]:
    """Have the calls of one method of an optimizer go through a function.

    Args:
        optimizer: has the method; one that has not stays as it is.
        name: of the method.
        function: is given the optimizer, the method, and what the method is given.
        marks: attributes of the method meanwhile.

    Returns:
        How to stop, in any order with others that do so. It does not keep the optimizer alive.
    """
    if not hasattr(optimizer, name):
        return lambda: None
    method, found, over = getattr(optimizer, name), vars(optimizer).get(name), False
    here = weakref.ref(optimizer)

    @functools.wraps(method)
    def wrapped(self: Any, *given: Any, **named: Any) -> Any:
        if self is not here():  # a deep copy
            return getattr(type(self), name)(self, *given, **named)
        return method(*given, **named) if over else function(self, method, *given, **named)

    def stop() -> None:
        nonlocal over
        over = True
        one = here()
        while (
            one is not None
            and (top := vars(one).get(name))
            and getattr(top, "is_over", lambda: False)()
        ):
            setattr(one, name, top.found) if top.found else delattr(one, name)

    vars(wrapped).update(marks, is_over=lambda: over, found=found)
    setattr(optimizer, name, MethodType(wrapped, optimizer))
    return stop


def _parameters(optimizer: Any) -> list[paddle.Tensor]:
    if isinstance(optimizer, list):
        return [tensor for one in optimizer for tensor in _parameters(one)]
    inner = innermost(optimizer)
    # These lists have no public reader. A sharding optimizer hands its own rank's share to the
    # optimizer inside and keeps the whole list; with groups the list holds the groups, as given.
    wrapper = getattr(optimizer, "_inner_opt", optimizer)
    listed = getattr(wrapper, "_origin_parameter_list", None) or inner._parameter_list or []
    return [
        tensor
        for entry in listed
        for tensor in (entry["params"] if isinstance(entry, dict) else [entry])
    ]


def check(
    optimizer: Any, will_open: Collection[Weight], opens_late: Callable[[], str | None]
) -> None:
    """Refuse, before the first step, an optimizer under which the schedule would go wrong.

    Args:
        optimizer: a ``paddle.optimizer.Optimizer``, maybe wrapped, or a list of those that
            train one network.
        will_open: the weights that the schedule opens at some time.
        opens_late: gives the name of a stage that opens after the first step, if one does.

    Raises:
        ValueError: if the optimizer lacks some of them, or notes at its first step what trains.
        TypeError: if it is no optimizer of Paddle.
    """
    if not each(optimizer):
        raise ValueError("an empty list of optimizers; give those that train the network")
    for inner in each(optimizer):
        _check_kind(inner, opens_late)
    known = parameter_ids(optimizer)
    missing = [weight.name for weight in will_open if id(weight.tensor) not in known]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise ValueError(
            f"the optimizer was not given {len(missing)} parameters that the schedule will open: "
            f"{shown}. Build it with parameters=network.parameters(), before anything is frozen; "
            "frozen parameters cost it nothing"
        )


def _check_kind(inner: Any, opens_late: Callable[[], str | None]) -> None:
    if not isinstance(inner, paddle.optimizer.Optimizer):
        raise TypeError(f"{type(inner).__name__} is no paddle optimizer")
    if getattr(inner, "_use_multi_tensor", False):
        raise ValueError(
            f"{type(inner).__name__}(use_multi_tensor=True) keeps the list of parameters of its "
            "first step, and would update the wrong ones after a stage opens or freezes; "
            "build it without use_multi_tensor"
        )
    if isinstance(inner, paddle.incubate.LookAhead) and (late := opens_late()) is not None:
        raise ValueError(
            "LookAhead copies the weights that train in its first step, and takes zeros for those "
            f"that open later, here {late!r}: it would pull them towards zero. Give the schedule "
            "and the training loop the optimizer inside it (lookahead.inner_optimizer), or have "
            "everything open from step 0"
        )


def settle(optimizer: Any, trained_before: Collection[Weight]) -> None:
    """Hand moments loaded from a checkpoint to their parameters, at once.

    Paddle does so at the first step of a parameter, and fails (``Optimizer set error``) on a
    parameter that the checkpoint does not have, such as one of a stage that opens after the
    resume. Moments of a stage that is frozen now would be missing from the next checkpoint. After
    this, whatever opens later gets fresh moments, as in an uninterrupted run.

    Args:
        optimizer: a ``paddle.optimizer.Optimizer``, maybe wrapped.
        trained_before: the weights that trained in the step before the checkpoint.

    Raises:
        ValueError: if the loaded state belongs to a network whose parameters have other names.
    """
    if isinstance(optimizer, list):
        for one in optimizer:
            own = parameter_ids(one)
            settle(one, [weight for weight in trained_before if id(weight.tensor) in own])
        return
    inner = innermost(optimizer)
    # Where Paddle keeps loaded state until it is asked for; there is no public access.
    holder = getattr(inner, "_accumulators_holder", None)
    if not holder:
        return
    keys = sorted(holder)
    known = [tensor for tensor in _parameters(optimizer) if _has_state(keys, tensor.name)]
    left_over = set(keys).difference(*(_state_of(keys, tensor.name) for tensor in known))
    names = {tensor.name for tensor in known}
    lost = [weight for weight in trained_before if weight.tensor.name not in names]
    if left_over and (lost or not known):
        missing = f"{lost[0].name} ({lost[0].tensor.name!r})" if lost else "this network"
        raise ValueError(
            f"the loaded optimizer state knows {min(left_over)!r} but nothing of {missing}: "
            "Paddle names parameters in the order in "
            "which layers are built, so build the network exactly once, and first, in the "
            "process that resumes"
        )
    _create_state(inner, known)
    inner._accumulators_holder = {}


def free(optimizer: Any, frozen: Iterable[Weight]) -> None:
    """Drop the moments and master weights of parameters that were frozen again.

    They get fresh ones from :func:`renew` when they open.
    """
    for inner, weight in itertools.product(each(optimizer), list(frozen)):
        name = weight.tensor.name
        master = inner._master_weights.pop(name, None)
        for per_parameter in inner._accumulators.values():
            per_parameter.pop(name, None)
            if master is not None:
                per_parameter.pop(master.name, None)
        older: set[str] = getattr(inner, "_already_create_accumulater", set())  # Paddle 2.6
        getattr(inner, "_already_create_accumulator", older).discard(name)


def renew(optimizer: Any, opened: Iterable[Weight]) -> None:
    """Create the moments of parameters that open again."""
    tensors = [weight.tensor for weight in opened]
    for inner in each(optimizer):
        _create_state(inner, tensors)


def _create_state(inner: Any, tensors: list[paddle.Tensor]) -> None:
    """Create moments under the names that a checkpoint expects.

    A second set of moments of a parameter would be called ``..._moment1_1``, which a process
    that resumes does not look for; under a new name scope it is ``..._moment1_0`` again.
    """
    block = paddle.static.default_main_program().global_block()
    wanted = {id(tensor) for tensor in tensors}
    groups = inner._param_groups
    if inner.helper is None:  # before the first step; Paddle 2.6 does not make it when it needs it
        inner.helper = LayerHelper(type(inner).__name__)
    with paddle.utils.unique_name.guard():
        if groups and isinstance(groups[0], dict):  # a group may have betas of its own
            for group in groups:
                own = [tensor for tensor in group["params"] if id(tensor) in wanted]
                if own:
                    inner._create_accumulators(block, {**group, "params": own})
        elif own := [tensor for tensor in groups if id(tensor) in wanted]:
            inner._create_accumulators(block, own)  # under sharding a rank's share only


def _state_of(keys: list[str], name: str) -> list[str]:
    """The keys that begin with a parameter's name; the keys are sorted."""
    after = chr(ord("_") + 1)
    return keys[bisect.bisect_left(keys, f"{name}_") : bisect.bisect_left(keys, f"{name}{after}")]


def _has_state(keys: list[str], name: str) -> bool:
    return bool(_state_of(keys, name))
