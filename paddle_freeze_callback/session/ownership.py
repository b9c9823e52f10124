"""Which run holds which layer."""

from __future__ import annotations

import weakref
from typing import Protocol

from paddle import nn


class Holder(Protocol):
    """A run that has frozen a network."""

    @property
    def at_work(self) -> bool:
        """Whether it has not put the network back yet."""

    def give_up(self) -> None:
        """Put the network back, and refuse to go on."""


# The run that holds each layer (two networks may share layers). Weak references: the loop owns
# the run.
_holders: weakref.WeakKeyDictionary[nn.Layer, weakref.ref[Holder]] = weakref.WeakKeyDictionary()


def hold(network: nn.Layer, run: Holder) -> None:
    """Note that a run holds every layer of a network."""
    for layer in network.sublayers(include_self=True):
        _holders[layer] = weakref.ref(run)


def release(network: nn.Layer) -> None:
    """End the runs that hold any layer of a network: an exception left them, or they are rivals."""
    if not len(_holders):
        return
    for layer in network.sublayers(include_self=True):
        holder = _holders.pop(layer, lambda: None)()
        if holder is not None:
            holder.give_up()


def refuse_running(network: nn.Layer) -> None:
    """Refuse a network in the middle of a run: its flags are not those that were found.

    Raises:
        RuntimeError: if a schedule is at work on the network.
    """
    for layer in network.sublayers(include_self=True):
        holder = _holders.get(layer, lambda: None)()
        if holder is not None and holder.at_work:
            raise RuntimeError(
                f"a FreezeSchedule is training this {type(network).__name__}; "
                "preview it before the run, or after; if that run was interrupted, call "
                "its schedule.run.restore() first"
            )
