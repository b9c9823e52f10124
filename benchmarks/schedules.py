"""The schedules that are compared: each a line of code that a reader can copy.

What is printed is what is measured: the code is evaluated for every run.
"""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

from dataclasses import dataclass

import paddle_freeze_callback
from paddle_freeze_callback import FreezeSchedule

PLAIN = "rate"
SLANTED = "SlantedTriangular(rate, total_steps)"


@dataclass(frozen=True)
class Row:
    """One schedule.

    Attributes:
        code: what gives it.
        usual: the rate in the middle of the three that are tried first, as a power of ten: what
            trains fewer weights, or falls off quickly, wants a higher one.
        rate: what the optimizer gets as its learning rate.
        tasks: the tasks that it is tried on; all if there are none.
    """

    code: str
    usual: float = -3.5
    rate: str = PLAIN
    tasks: tuple[str, ...] = ()

    def tried_on(self, task: str) -> bool:
        """Whether it is compared on this task."""
        return not self.tasks or task in self.tasks

    def schedule(self) -> FreezeSchedule:
        """A new one."""
        made = eval(self.code, vars(paddle_freeze_callback))
        assert isinstance(made, FreezeSchedule)
        return made

    def learning_rate(self, rate: float, total_steps: int) -> object:
        """What the optimizer gets."""
        names = {**vars(paddle_freeze_callback), "rate": rate, "total_steps": total_steps}
        return eval(self.rate, names)


ROWS = {
    "full": Row('FreezeSchedule(unfreeze_at={0: "*"})'),
    "head only": Row('FreezeSchedule(strategy="head_only", cache="memory")', -2),
    "LP-FT": Row('FreezeSchedule.lp_ft(phase_decay=0.1, cache="memory")', -2.5),
    "gradual": Row("FreezeSchedule()"),
    "ULMFiT": Row("FreezeSchedule.ulmfit(stages=3)", -3, SLANTED),
    "fine_tune": Row("FreezeSchedule.fine_tune()", -3),
    "chain-thaw": Row("FreezeSchedule(strategy=ChainThaw())"),
    "FreezeDown": Row("FreezeSchedule(strategy=FreezeDown())"),
    "LISA": Row('FreezeSchedule.lisa(every="5%")'),
    "Cyclic": Row('FreezeSchedule(strategy=Cyclic(every="5%"))'),
    "OnPlateau": Row('FreezeSchedule(strategy=OnPlateau("loss", patience=1, max_wait="20%"))'),
    "ByGradient": Row("FreezeSchedule(strategy=ByGradient())"),
    "BitFit": Row("FreezeSchedule.bitfit()", -2.5),
    "bottom only": Row('FreezeSchedule(unfreeze_at={0: "bottom 2%"})', tasks=("noise",)),
}
