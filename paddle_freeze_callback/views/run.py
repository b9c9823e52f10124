"""A run that can be drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..session.session import Freezing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .plot import File, Metrics

# Beside its metrics a Trainer's evaluation gives these.
_NO_RESULTS = ("_runtime", "_per_second", "epoch")


class FreezeRun(Freezing):
    """One run of a schedule: ``schedule.run``, and what ``schedule.attach()`` returns.

    It has everything of :class:`paddle_freeze_callback.session.Freezing`, and :meth:`plot`.
    """

    def plot(
        self,
        file: File | None = None,
        metrics: Metrics | None = None,
        *,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Draw what happened so far: stages upwards, time to the right.

        Args:
            file: a ``.png``, ``.svg`` or ``.pdf`` file; ``None`` to draw only.
            metrics: lines to draw beneath: by name, (optimizer steps done, value) in order; by
                default all that evaluations gave in the run, timings aside.
            ax: a panel of yours to draw the stages into, and nothing else.
            figsize: width and height in inches; below 3 inches of height the stages alone.

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            RuntimeError: before the first step.
            ImportError: without matplotlib.
            ValueError, TypeError: for a file that cannot be written, or metrics that do not fit.
        """
        from .plot import plot_history

        if not self.steps_done:
            raise RuntimeError("no step was trained yet, so there is nothing to draw")
        if metrics is None:  # a Trainer's timings are no result of training
            metrics = {n: line for n, line in self.metrics.items() if not n.endswith(_NO_RESULTS)}
        return plot_history(
            self.stages, self.history, self.steps_done, self.steps_per_epoch,
            metrics, file, rates=self.rates(), curve=self._phase_rates(), ax=ax, figsize=figsize,
        )  # fmt: skip
