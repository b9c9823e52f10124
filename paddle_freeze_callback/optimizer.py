"""What the optimizer needs so that stages can open and freeze while it runs.

Its list of parameters is never edited: everything that will ever open must be in it from the
start. Paddle's optimizers create the moments of a parameter when it is first stepped, so a
stage that opens late trains exactly as with a fresh optimizer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .weights import Weight


def innermost(optimizer: Any) -> Any:
    """The optimizer inside Paddle's wrappers for distributed training."""
    while True:
        inner = getattr(optimizer, "_inner_opt", None) or getattr(optimizer, "inner_opt", None)
        if inner is None or inner is optimizer:
            return optimizer
        optimizer = inner


def parameter_ids(optimizer: Any) -> set[int]:
    """The identities of the parameters that the optimizer was given."""
    # _parameter_list has no public reader; with groups it holds the groups, as given.
    listed = getattr(innermost(optimizer), "_parameter_list", None) or []
    tensors = [
        tensor
        for entry in listed
        for tensor in (entry["params"] if isinstance(entry, dict) else [entry])
    ]
    return {id(tensor) for tensor in tensors}


def check(optimizer: Any, will_open: Collection[Weight]) -> None:
    """Refuse, before the first step, an optimizer under which the schedule would go wrong.

    Args:
        optimizer: a ``paddle.optimizer.Optimizer``, maybe wrapped.
        will_open: the weights that the schedule opens at some time.

    Raises:
        ValueError: if the optimizer lacks some of them, or caches its parameters.
    """
    inner = innermost(optimizer)
    if getattr(inner, "_use_multi_tensor", False):
        raise ValueError(
            f"{type(inner).__name__}(use_multi_tensor=True) keeps the list of parameters of its "
            "first step, and would update the wrong ones after a stage opens or freezes; "
            "build it without use_multi_tensor"
        )
    known = parameter_ids(optimizer)
    missing = [weight.name for weight in will_open if id(weight.tensor) not in known]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise ValueError(
            f"the optimizer was not given {len(missing)} parameters that the schedule will open: "
            f"{shown}. Build it with parameters=network.parameters(), before anything is frozen; "
            "frozen parameters cost it nothing"
        )
