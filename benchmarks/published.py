"""What papers report of schedules beside training everything, to set beside what was seen here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What a paper reports of a schedule beside training everything, and where that is tried here.

    Attributes:
        source: the paper, and where in it.
        compared: its names for both sides, with its numbers.
        values: by data set, the schedule's accuracy less that of training everything; none where
            only words were read.
        name: the schedule here.
        tasks: the tasks here that come nearest.
        unit: that of the values.
    """

    source: str
    compared: str
    values: Mapping[str, float]
    name: str
    tasks: tuple[str, ...]
    unit: str = "points"


TEXT, IMAGES = ("300 sentences", "1000 sentences"), ("10 images", "50 images")
_ULMFIT = "ULMFiT (Howard & Ruder 2018), table 7, validation error in %"
_FULL_THERE = "Full 6.87 / 6.86 / 5.81"
_LP_FT = "Kumar et al. 2022, tables 1 and 2, % accuracy, means in and out of distribution"
_LIKE = "in-distribution"


def _ulmfit(imdb: float, trec: float, ag: float) -> dict[str, float]:
    """Errors there, as differences in accuracy to training everything."""
    return {
        "IMDb": round(6.87 - imdb, 2), "TREC-6": round(6.86 - trec, 2), "AG": round(5.81 - ag, 2),
    }  # fmt: skip


PUBLISHED = (
    Published(_ULMFIT, f"Freez + discr + stlr 5.00 / 5.69 / 5.38, {_FULL_THERE}",
              _ulmfit(5.00, 5.69, 5.38), "ULMFiT", TEXT),
    Published(_ULMFIT, f"Freez 6.37 / 6.86 / 5.81, {_FULL_THERE}",
              _ulmfit(6.37, 6.86, 5.81), "gradual", TEXT),
    Published(_ULMFIT, f"Chain-thaw 5.39 / 6.71 / 5.90, {_FULL_THERE}",
              _ulmfit(5.39, 6.71, 5.90), "chain-thaw", TEXT),
    Published(_ULMFIT, f"Last 6.49 / 16.09 / 8.38, {_FULL_THERE}",
              _ulmfit(6.49, 16.09, 8.38), "head only", TEXT),
    Published(_LP_FT, "LP-FT 85.7 and 68.9, fine-tuning 85.1 and 59.3",
              {_LIKE: 0.6}, "LP-FT", IMAGES),
    Published(_LP_FT, "linear probing 82.9 and 66.2, fine-tuning 85.1 and 59.3",
              {_LIKE: -2.2}, "head only", IMAGES),
    Published("Surgical fine-tuning (Lee et al. 2023), abstract; CIFAR-10-C as others report it",
              "for corrupted images tuning only the first few layers works best; the first block "
              "alone about 3 above all", {"CIFAR-10-C": 3.0}, "bottom only", ("noise",)),
    Published("LISA (Pan et al. 2024), abstract",
              "on MT-Bench 10 to 35 % above LoRA, which was not tried here; on par with full "
              "parameter tuning or above it", {}, "LISA", TEXT),
    Published("BAdam (Luo et al. 2024), table 5, MT-Bench, mean of 3 epochs",
              "BAdam 4.96 / 4.81 / 6.65, Adam 4.76 / 4.90 / 6.23",
              {"Llama 2-7B at 1e-5": 0.2, "Llama 2-7B at 1e-6": -0.09, "Llama 3-8B at 1e-6": 0.42},
              "Cyclic", TEXT, "of 10"),
)  # fmt: skip
