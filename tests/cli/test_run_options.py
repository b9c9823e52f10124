"""Each option from a file, under ``paddle-freeze run``, on a script that knows nothing of us.

The script tells at which rate each tensor trained at each step, measured from how it moved.
A new option is one more row.
"""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import pytest
import yaml

from paddle_freeze_callback.options.options import Options

#: SGD moves a weight by rate x gradient. The rate is told for each slice of a tensor.
SCRIPT = """
import numpy as np
import paddle
from paddle import nn

paddle.seed(3)

class Images(paddle.io.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        random = np.random.RandomState(index)
        return random.rand(1, 6, 6).astype("float32"), np.array([index % 2]), np.array(index)

class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        conv = nn.Conv2D(1, 4, 3, bias_attr=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2D(4), nn.Dropout())
        self.body = nn.Conv2D(4, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, images, number):
        return self.fc(self.body(self.stem(images)).mean(axis=[2, 3]))

def rate(before, after, gradient):
    if gradient is None:
        return f"{int((before != after).any())}"
    rows = []
    for moved, slope in zip(before - after, gradient):
        size = float((slope * slope).sum())
        rows.append(round(float((moved * slope).sum()) / size / 0.1, 2) if size else 0.0)
    return "|".join(f"{one:g}" for one in sorted(set(rows)))

net = Net()
optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
told = {name: [] for name in (*net.state_dict(), "stem.2")}
hook = net.stem[2].register_forward_post_hook(
    lambda layer, given, out: told["stem.2"].append(f"{int((given[0] != out).any())}")
)
for _ in range(3):
    net.train()
    for images, labels, numbers in paddle.io.DataLoader(Images(), batch_size=4):
        before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
        nn.functional.cross_entropy(net(images, numbers), labels).backward()
        slopes = {n: p.grad.numpy().copy() for n, p in net.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.clear_grad()
        for name, value in net.state_dict().items():
            told[name].append(rate(before[name], value.numpy(), slopes.get(name)))
print({name: " ".join(rates) for name, rates in told.items()})
"""

ALL, NONE = "1 1 1 1 1 1", "0 0 0 0 0 0"
SECOND, THIRD = "0 0 1 1 1 1", "0 0 0 0 1 1"
STAGED = "unfreeze_at: {0: fc, 1: body, 2: '*'}"
IN_TURN = {"fc": ALL, "body": SECOND, "stem": THIRD}
HEAD = "unfreeze_at: {0: fc}"
#: What some scripts do at the begin of each epoch.
OPENS = "net.body.bias.stop_gradient = False"


@dataclass(frozen=True)
class Row:
    """A schedule, and what comes of it.

    Attributes:
        file: the YAML file.
        rates: of six steps in three epochs, by the first components of a name; the longest that
            fits counts, and what none fits is still. Of statistics and the dropout ``stem.2``: 1
            where they move or drop.
        says: what stands on the standard error.
        status: the exit status.
        script: a line that the script has at the begin of each epoch.
        writes: a file that is there afterwards.
    """

    file: str
    rates: dict[str, str] | None = None
    says: str = ""
    status: int = 0
    script: str = ""
    writes: str = ""


ROWS = (
    Row(f"{STAGED}\nverify: true\nrestore: false", IN_TURN),
    Row("stages: [fc, body, '*']\nevery: 1\nstart: 2", {"fc": ALL, "body": THIRD}),
    Row("strategy: bitfit", {"fc": ALL, "body.bias": ALL, "stem.1.bias": ALL, "stem.1._": ALL}),
    Row("unfreeze_at: {0: 'top 50%', 1: 'type:BatchNorm2D', 2: '!fc'}",
        {"fc": ALL, "body": ALL, "stem.0": THIRD, "stem.1": SECOND}),
    Row("strategy: cyclic\nstages: [fc, '*']\nfree_optimizer_state: true", {"fc": ALL}),
    Row(f"{HEAD}\nfrozen_norm: train\nfrozen_dropout: eval",
        {"fc": ALL, "stem.1._": ALL, "stem.2": NONE}),
    Row(f"{STAGED}\ntrain_norm: never", {**IN_TURN, "stem.1": NONE}),
    Row(f"{STAGED}\ntrain_norm: {{BatchNorm: always}}", {**IN_TURN, "stem.1": ALL}),
    Row("unfreeze_at: {0: body}\nrows: {fc.weight: '2:'}\nsave_trained: trained.safetensors",
        {"body": ALL, "fc.weight": "0|1 0|1 0|1 0|1 0|1 0|1"}, "opens body, fc.weight[2:4]",
        writes="trained.safetensors"),
    Row(f"{HEAD}\nuntouched: body", {"fc": ALL, "body": ALL}),
    Row(f"{HEAD}\non_conflict: enforce", {"fc": ALL}, "body.bias is open", script=OPENS),
    Row(f"{HEAD}\non_conflict: error", None, "body.bias is open", 1, OPENS),
    Row(f"{HEAD}\nverify: true", None, "body.bias moved although it is frozen", 1,
        "net.body.bias.set_value(net.body.bias + 1)"),
    Row(f"{STAGED}\nlr_decay: 2.5\nwarmup: 3 steps\nwarmup_shape: cosine",
        {"fc": ALL, "body": "0 0 0.1 0.3 0.4 0.4", "stem": "0 0 0 0 0.04 0.12", "stem.1._": THIRD}),
    Row(f"{STAGED}\nlr: {{fc: 0.5, '*': 0.2}}\nhold: 2 steps",
        {"fc": "0.5 0.5 0.25 0.5 0.25 0.5", "body": "0 0 0.2 0.2 0.1 0.2",
         "stem": "0 0 0 0 0.2 0.2", "stem.1._": THIRD}),
    Row(f"{STAGED}\nphase_lr: linear\nphase_decay: 0.4",
        {"fc": "1 0.5 0.4 0.2 0.16 0.08", "body": "0 0 0.4 0.2 0.16 0.08",
         "stem": "0 0 0 0 0.16 0.08", "stem.1._": THIRD}),
    Row(f"{HEAD}\ncache: memory\ncache_limit: 1 MB\ncache_dtype: float32\ncache_check_every: 1\n"
        "cache_key: number",
        {"fc": ALL, "stem.2": ""}, "cache on: keeps the output of body", script="hook.remove()"),
    Row("resume_at: 1\nresume_from: c", None, "resume_at is of one run", 1),  # of fit
)  # fmt: skip


def expected(name: str, row: Row) -> str:
    rates = {"": NONE, "stem.2": ALL, **row.rates}
    return rates[max(filter(name.startswith, rates), key=len)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.file.replace("\n", "; "))
def test_an_option_in_a_file_does_what_it_says(tmp_path, row):
    begin = "    net.train()\n"
    script = SCRIPT.replace(begin, f"{begin}    {row.script}\n")
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "freeze.yaml").write_text(row.file)
    words = ("run", "--config", "freeze.yaml", "--epochs", "3", "--steps-per-epoch", "2")
    done = subprocess.run(
        [sys.executable, "-m", "paddle_freeze_callback", *words, "train.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == row.status, done.stderr[-4000:]
    assert row.says in done.stderr
    assert (tmp_path / row.writes).exists()
    if row.rates is not None:
        told = ast.literal_eval(done.stdout)
        assert told == {name: expected(name, row) for name in told}


def test_every_option_has_a_row():
    named = {name for row in ROWS for name in yaml.safe_load(row.file)}
    assert {option.name for option in dataclasses.fields(Options)} - named == set()
