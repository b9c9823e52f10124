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


def of_images(task: str) -> bool:
    """Whether it begins with the network that was pretrained on images."""
    return "sentences" not in task


@dataclass(frozen=True)
class Row:
    """One schedule.

    Attributes:
        code: what gives it.
        on_images: what gives it there, if that differs: with a cache, as on images its numbers are
            bitwise the same (text has dropout, which a cache puts to rest in what is frozen), and
            phases are long enough for a cache to help.
        usual: the rate in the middle of the three that are tried first, as a power of ten: what
            trains fewer weights, or falls off quickly, wants a higher one.
        rate: what the optimizer gets as its learning rate.
        tasks: the tasks that it is tried on; all if there are none.
    """

    code: str
    usual: float = -3.5
    rate: str = PLAIN
    tasks: tuple[str, ...] = ()
    on_images: str = ""

    def tried_on(self, task: str) -> bool:
        """Whether it is compared on this task."""
        return not self.tasks or task in self.tasks

    def code_on(self, task: str) -> str:
        """What gives it on this task."""
        return (self.on_images or self.code) if of_images(task) else self.code

    def schedule(self, task: str) -> FreezeSchedule:
        """A new one."""
        made = eval(self.code_on(task), vars(paddle_freeze_callback))
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
    "gradual": Row("FreezeSchedule()", on_images='FreezeSchedule(cache="memory")'),
    "ULMFiT": Row(
        'FreezeSchedule.ulmfit(stages=3, every="12.5%")', -3, SLANTED,
        on_images='FreezeSchedule.ulmfit(stages=3, every="12.5%", cache="memory")',
    ),
    "fine_tune": Row("FreezeSchedule.fine_tune()", -3),
    "chain-thaw": Row(
        "FreezeSchedule(strategy=ChainThaw())",
        on_images='FreezeSchedule(strategy=ChainThaw(), cache="memory")',
    ),
    "FreezeDown": Row("FreezeSchedule(strategy=FreezeDown())"),
    "LISA": Row('FreezeSchedule.lisa(every="5%")'),
    "Cyclic": Row('FreezeSchedule(strategy=Cyclic(every="5%"))'),
    "OnPlateau": Row('FreezeSchedule(strategy=OnPlateau("loss", patience=1, max_wait="30%"))'),
    "ByGradient": Row("FreezeSchedule(strategy=ByGradient())"),
    "BitFit": Row("FreezeSchedule.bitfit()", -2.5),
    "bottom only": Row('FreezeSchedule(unfreeze_at={0: "bottom 2%"})', tasks=("noise",)),
    "gradual + norms": Row('FreezeSchedule(train_norm="always")', tasks=("noise",)),
    "gradual + statistics": Row('FreezeSchedule(frozen_norm="train")', tasks=("noise",)),
}  # fmt: skip
