"""What is refused before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from paddle import nn

from ..strategies.run import Run


def refuse_sparse(network: nn.Layer) -> None:
    for path, layer in network.named_sublayers(include_self=True):
        if isinstance(layer, nn.Embedding) and getattr(layer, "_sparse", False):
            raise ValueError(
                f"{path} has sparse gradients (sparse=True), which cannot be measured; "
                "build it without"
            )


def refuse_nothing_to_train(network: nn.Layer, schedulable: Sequence[str]) -> None:
    """A schedule needs something that it may open.

    Raises:
        ValueError: if there is nothing.
    """
    if not schedulable:
        raise ValueError(
            f"every parameter of {type(network).__name__} that the schedule may open is "
            "frozen already; nothing would train. Set stop_gradient=False on what should, "
            "or ask for it by name"
        )


def never_opens(late: Sequence[tuple[str, int | None]], run: Run) -> str:
    """One warning for all stages that this run leaves frozen."""
    which = ", ".join(
        repr(name) if step is None else f"{name!r} (which needs {step} steps)"
        for name, step in late
    )
    length = f"{run.total_steps} steps" if run.total_steps else f"{float(run.epochs or 0):g} epochs"
    verb = "never opens" if len(late) == 1 else "never open"
    return f"in this run of {length} {which} {verb}: the schedule is longer than the run"
