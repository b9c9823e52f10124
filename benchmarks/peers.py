"""The same work with Lightning and finetuning-scheduler, for bench.py.

Run by questions.py in .venv-peers; prints one line of JSON.

    python peers.py transition
    python peers.py kernels FOLDER
    python peers.py whole lightning|fts FOLDER PHASES
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from machine import keep_freed_memory
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


class Halfway(BaseFinetuning):
    """Opens the next phase's layers when it begins; what Lightning has no callback for."""

    def __init__(self, phases: list[list]) -> None:
        super().__init__()
        self.phases = {sum(one[0] for one in phases[:n]): layers
                       for n, (_, layers) in enumerate(phases)}  # fmt: skip
        self.done = 0

    def freeze_before_training(self, module: Classifier) -> None:
        self.freeze(module.backbone, train_bn=False)

    def finetune_function(self, module: Classifier, epoch: int, optimizer: Any) -> None:
        opened = self.phases.get(epoch, 0)
        parts = layers_of(module.backbone)
        upto = len(parts) if opened == "all" else opened
        if upto > self.done:
            self.unfreeze_and_add_param_group(
                parts[self.done : upto], optimizer, lr=2e-4, train_bn=False
            )
            self.done = upto


def layers_of(bert: torch.nn.Module) -> list[torch.nn.Module]:
    """What opens one after the other: the encoder from the top, then what is beside it."""
    return [*reversed(bert.encoder.layer), torch.nn.ModuleList([bert.embeddings, bert.pooler])]


class Clock(pl.Callback):
    """When the run's first step, and its epochs, began and ended."""

    def __init__(self) -> None:
        self.began, self.start, self.epochs = now(), 0.0, []

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        self.epoch = now()
        self.start = self.start or self.epoch - self.began

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Classifier) -> None:
        self.epochs.append(now() - self.epoch)


def now() -> float:
    """Seconds on a clock that waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def whole(kind: str, folder: str, phases_text: str) -> dict[str, Any]:
    """Seconds of a run in phases: so many epochs with so many layers open, or "all"."""
    place, phases = Path(folder), json.loads(phases_text)
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(*rows(place))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    clock = Clock()
    model = minilm(place)
    if kind == "fts":
        model.head_only = False
        callback = scheduled(model, phases)
    elif len(phases) > 2:
        callback = Halfway(phases)
    else:
        callback = BackboneFinetuning(
            unfreeze_backbone_at_epoch=phases[0][0], backbone_initial_ratio_lr=1.0,
            should_align=False, lambda_func=lambda epoch: 1.0,
        )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=sum(count for count, _ in phases), callbacks=[callback, clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, loader)
    seconds = now() - clock.began
    moved = any(
        not torch.equal(a.cpu(), b)
        for a, b in zip(model.backbone.parameters(), minilm(place).backbone.parameters())
    )
    return {"total": seconds, "start": clock.start, "epochs": clock.epochs, "moved": moved}


def scheduled(model: Classifier, phases: list[list]) -> Any:
    """finetuning-scheduler's callback for these phases."""
    import yaml
    from finetuning_scheduler import FinetuningScheduler

    names = {id(p): f"backbone.{name}" for name, p in model.backbone.named_parameters()}
    parts = [[names[id(p)] for p in part.parameters()] for part in layers_of(model.backbone)]
    schedule, done, until = {}, 0, 0
    for number, (count, layers) in enumerate(phases):
        upto = len(parts) if layers == "all" else layers
        until += count
        own = [name for part in parts[done:upto] for name in part]
        own = own if number else ["head.weight", "head.bias"]
        schedule[number] = {"params": own, "max_transition_epoch": until}
        done = upto
    path = Path(tempfile.mkdtemp()) / "schedule.yaml"
    path.write_text(yaml.safe_dump(schedule))
    return FinetuningScheduler(
        ft_schedule=str(path), epoch_transitions_only=True, restore_best=False, base_max_lr=2e-4
    )


def kernels(folder: str) -> dict[str, float]:
    """Seconds of one forward and one full step on the same batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = minilm(Path(folder)).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    tokens, labels = (one[:BATCH].to(device) for one in rows(Path(folder)))
    forwards, steps = [], []
    for _ in range(8):
        began = now()
        with torch.no_grad():
            model(tokens)
        forwards.append(now() - began)
        began = now()
        torch.nn.functional.cross_entropy(model(tokens), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(now() - began)
    return {"forward": float(np.median(forwards[1:])), "step": float(np.median(steps[1:]))}


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
    keep_freed_memory()
    work = {"whole": whole, "kernels": kernels, "transition": transition}[sys.argv[1]]
    versions = {name: version(name) for name in ("torch", "lightning", "finetuning-scheduler")}
    print("RESULT " + json.dumps({**work(*sys.argv[2:]), "versions": versions}))
