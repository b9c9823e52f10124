"""The same work with Lightning and finetuning-scheduler, for bench.py.

Run by bench.py in .venv-peers (PyTorch on the CPU); prints one line of JSON.

    python peers.py transition
    python peers.py kernels FOLDER
    python peers.py whole lightning|fts FOLDER FROZEN_EPOCHS OPEN_EPOCHS
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from transformers import BertConfig, BertModel

BATCH = 16


class Classifier(pl.LightningModule):
    """The mean over tokens under a new head, as in bench.py."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = bert
        self.head = torch.nn.Linear(bert.config.hidden_size, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = tokens != 0
        hidden = self.backbone(tokens, attention_mask=mask.long())[0]
        weight = mask.float().unsqueeze(-1)
        return self.head((hidden * weight).sum(1) / weight.sum(1))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        tokens, labels = batch
        return torch.nn.functional.cross_entropy(self(tokens), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        own = self.head.parameters() if self.head_only else self.parameters()
        return torch.optim.AdamW(own, lr=2e-4)

    head_only = True


def minilm(folder: Path) -> Classifier:
    bert = BertModel.from_pretrained(str(folder / "all-MiniLM-L6-v2"), attn_implementation="eager")
    return Classifier(bert)


def rows(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    data = np.load(folder / "bench-rows.npz")
    return torch.from_numpy(data["tokens"]), torch.from_numpy(data["labels"])


def whole(kind: str, folder: str, frozen: str, opened: str) -> dict[str, float]:
    """Seconds of a run whose backbone is frozen for some epochs and open for some."""
    place, first, then = Path(folder), int(frozen), int(opened)
    torch.manual_seed(0)
    model = minilm(place)
    data = torch.utils.data.TensorDataset(*rows(place))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    if kind == "lightning":
        callback = BackboneFinetuning(
            unfreeze_backbone_at_epoch=first, backbone_initial_ratio_lr=1.0, should_align=False,
            lambda_func=lambda epoch: 1.0,
        )  # fmt: skip
    else:
        from finetuning_scheduler import FinetuningScheduler

        model.head_only = True
        schedule = {
            0: {"params": ["head.*"], "max_transition_epoch": first},
            1: {"params": ["backbone.*"], "max_transition_epoch": first + then},
        }
        path = Path(tempfile.mkdtemp()) / "schedule.yaml"
        import yaml

        path.write_text(yaml.safe_dump(schedule))
        callback = FinetuningScheduler(
            ft_schedule=str(path), epoch_transitions_only=True, restore_best=False,
            base_max_lr=2e-4,
        )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=first + then, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    if kind == "fts":
        model.head_only = False
    began = time.perf_counter()
    trainer.fit(model, loader)
    seconds = time.perf_counter() - began
    moved = any(
        not torch.equal(a, b)
        for a, b in zip(model.backbone.parameters(), minilm(place).backbone.parameters())
    )
    return {"seconds": seconds, "epochs": trainer.current_epoch, "backbone moved": moved}


def kernels(folder: str) -> dict[str, float]:
    """Seconds of one forward and one full step on the same batch."""
    model = minilm(Path(folder))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    tokens, labels = (one[:BATCH] for one in rows(Path(folder)))
    forwards, steps = [], []
    for _ in range(7):
        began = time.perf_counter()
        with torch.no_grad():
            model(tokens)
        forwards.append(time.perf_counter() - began)
        began = time.perf_counter()
        torch.nn.functional.cross_entropy(model(tokens), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - began)
    return {"forward": float(np.median(forwards)), "step": float(np.median(steps))}


def transition() -> dict[str, float]:
    """Milliseconds to open BERT base, stage by stage, in all."""
    bert = BertModel(BertConfig())
    stages = [*reversed(bert.encoder.layer), bert.embeddings]
    result = {}
    times = []
    for _ in range(5):
        BackboneFinetuning.freeze(bert, train_bn=False)
        head = torch.nn.Linear(768, 2)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
        began = time.perf_counter()
        for stage in stages:
            BackboneFinetuning.unfreeze_and_add_param_group(stage, optimizer, train_bn=False)
        times.append(time.perf_counter() - began)
    result["lightning"] = float(np.median(times)) * 1e3
    from finetuning_scheduler.strategy_adapters import StrategyAdapter

    times = []
    names = {id(p): n for n, p in bert.named_parameters()}
    for _ in range(5):
        for parameter in bert.parameters():
            parameter.requires_grad = False
        optimizer = torch.optim.AdamW(torch.nn.Linear(768, 2).parameters(), lr=1e-3)
        began = time.perf_counter()
        for stage in stages:
            thaw = [names[id(p)] for p in stage.parameters()]
            StrategyAdapter.base_ft_phase(bert, thaw_pl=thaw)
            optimizer.add_param_group({"params": list(stage.parameters())})
        times.append(time.perf_counter() - began)
    result["finetuning-scheduler"] = float(np.median(times)) * 1e3
    return result


if __name__ == "__main__":
    work = {"whole": whole, "kernels": kernels, "transition": transition}[sys.argv[1]]
    print("RESULT " + json.dumps(work(*sys.argv[2:])))
