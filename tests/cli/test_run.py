"""``paddle-freeze run``: somebody's script, unedited. Each test runs the script in processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import posix_only

from paddle_freeze_callback.cli import main, run
from paddle_freeze_callback.cli.run import split

# What a suite brings: it knows nothing of us.
SUITE = """
import os, sys
import numpy as np
import paddle
from paddle import nn

paddle.seed(3)

class Images(paddle.io.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        random = np.random.RandomState(index)
        return random.rand(1, 6, 6).astype("float32"), np.array([index % 2])

class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4))
        self.body = nn.Conv2D(4, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(self.body(self.stem(images)).mean(axis=[2, 3]))

def adam(*networks, **options):
    parameters = [p for one in networks for p in one.parameters()]
    return paddle.optimizer.AdamW(0.1, parameters=parameters, **options)

def loader():
    return paddle.io.DataLoader(Images(), batch_size=4)

def epoch(net, *optimizers):
    net.train()
    for images, labels in loader():
        nn.functional.cross_entropy(net(images), labels).backward()
        for one in optimizers:
            one.step()
        for one in optimizers:
            one.clear_grad()

def dump(net, name="out"):
    np.savez(f"{name}.npz", **{key: value.numpy() for key, value in net.state_dict().items()})
"""
USUAL = """
from suite import *
net = Net()
dump(net, "before")
optimizer = adam(net)
for _ in range(3):
    epoch(net, optimizer)
dump(net)
"""
STAGED = '{unfreeze_at: {0: fc, 1: body, 2: "*"}, verify: true}'
OPEN = '{unfreeze_at: {0: "*"}}'
HEAD = "{unfreeze_at: {0: fc}, verify: true}"
EPOCHS = ("--epochs", "3")


class Folder:
    """A folder with a script, and what running it gives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("suite.py", SUITE)

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def python(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            capture_output=True, text=True, cwd=self.path, timeout=300,
            env={**os.environ, **environment},
        )  # fmt: skip

    def train(self, script: str, schedule: str, *words: str, **environment: str):
        """``paddle-freeze run``; the words before ``--`` are ours, the others the script's."""
        self.write("train.py", script)
        self.write("freeze.yaml", schedule)
        at = words.index("--") if "--" in words else len(words)
        return self.python(
            "-m", "paddle_freeze_callback", "run", "--config", "freeze.yaml",
            *words[:at], *(words[at + 1 :] or ["train.py"]), **environment,
        )  # fmt: skip

    def arrays(self, name: str = "out") -> dict[str, np.ndarray]:
        with np.load(self.path / f"{name}.npz") as saved:
            return dict(saved)

    def moved(self, name: str = "out") -> set[str]:
        before, after = self.arrays("before"), self.arrays(name)
        return {key for key in before if not np.array_equal(before[key], after[key])}


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def told(done) -> list[str]:
    """Our lines on the standard error."""
    said = "paddle-freeze: "
    return [line.removeprefix(said) for line in done.stderr.splitlines() if line.startswith(said)]


def ended(done, status: int = 0):
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done


# ---------------------------------------------------------------- as without us


def test_a_script_runs_as_python_runs_it_and_with_everything_open_trains_bitwise_the_same(folder):
    folder.write("package/__init__.py", "")
    folder.write("package/near.py", "WORD = 'relative'")
    folder.write(
        "package/__main__.py",
        "from .near import WORD\n" + USUAL + "print(WORD, __name__, __file__, sys.argv, sys.path)",
    )
    words = ("-m", "package", "--epochs", "9", "-c", "its_own.yml", "--a_b=c_d")
    bare = ended(folder.python(*words))
    expected = folder.arrays()
    done = ended(folder.train("", OPEN, *EPOCHS, "--", *words))
    assert folder.arrays().keys() == expected.keys()
    assert all(np.array_equal(folder.arrays()[key], expected[key]) for key in expected)
    # our folder stands on the path, behind the script's own
    assert done.stdout.replace(f"{os.path.dirname(main.__code__.co_filename)}/site', '", "") == (
        bare.stdout
    )
    assert told(done)[0] == "takes Net (net_0; 206 parameters), trained by AdamW; 3 epochs"
    assert told(done)[-1] == "6 steps done"


def test_the_schedule_is_kept_epoch_by_epoch_and_what_is_frozen_stays_bitwise(folder):
    done = ended(folder.train(USUAL, STAGED, *EPOCHS))
    opened = [line.split(";")[0] for line in told(done) if line.startswith("step")]
    assert opened == [
        "step 0, epoch 0: opens fc",
        "step 2, epoch 1: opens body",
        "step 4, epoch 2: opens the rest",
    ]
    ended(folder.train(USUAL, HEAD, "--total-steps", "6"))
    assert folder.moved() == {"fc.weight", "fc.bias"}


def test_rows_alone_train_in_a_script_too(folder):
    ended(folder.train(USUAL, "{unfreeze_at: {0: fc}, rows: {body.weight: '1:3'}, verify: true}",
                       *EPOCHS))  # fmt: skip
    assert folder.moved() == {"fc.weight", "fc.bias", "body.weight"}
    before, after = folder.arrays("before")["body.weight"], folder.arrays()["body.weight"]
    assert [bool((one != other).any()) for one, other in zip(before, after)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_what_trained_is_written_when_the_script_ends(folder):
    schedule = "{unfreeze_at: {0: fc, 1: body}, save_trained: trained.safetensors}"
    ended(folder.train(USUAL, schedule, *EPOCHS))
    script = """
from suite import *
from paddle_freeze_callback import load_trained
net = Net()
load_trained(net, "trained.safetensors")
dump(net, "loaded")
"""
    folder.write("load.py", script)
    ended(folder.python("load.py"))
    trained, loaded = folder.arrays(), folder.arrays("loaded")
    assert folder.moved() == {"fc.weight", "fc.bias", "body.weight", "body.bias"}
    assert all(np.array_equal(trained[name], loaded[name]) for name in trained)


@pytest.mark.parametrize(
    ("crash", "status"),
    [
        ("epoch(net, optimizer); epoch(net, optimizer); raise KeyError('mine')", 1),
        ("net.train(); net(paddle.ones([1, 1, 6, 6])); raise KeyError('mine')", 1),
        ("epoch(net, optimizer); sys.exit('mine')", 1),
    ],
    ids=["after_steps", "after_a_forward", "by_its_status"],
)
def test_a_script_that_fails_leaves_the_file_of_the_last_run(folder, crash, status):
    (folder.path / "t.safetensors").write_bytes(b"good")
    script = f"from suite import *\nnet = Net()\noptimizer = adam(net)\n{crash}"
    done = ended(
        folder.train(script, "{save_trained: t.safetensors}", "--total-steps", "6"), status
    )
    assert (folder.path / "t.safetensors").read_bytes() == b"good"
    assert told(done)[-1] == "the script failed: nothing is checked or written at its end"
    assert "mine" in done.stderr


def test_a_file_that_cannot_be_written_makes_the_status_1(folder):
    (folder.path / "there.safetensors").mkdir()
    done = ended(folder.train(USUAL, "{save_trained: there.safetensors}", *EPOCHS), 1)
    assert "save_trained: there.safetensors is a folder; name a file" in done.stderr
    assert not (folder.path / "out.npz").exists()  # before the first step
    script = USUAL + "os.mkdir('t.safetensors')"
    done = ended(folder.train(script, "{save_trained: t.safetensors}", *EPOCHS), 1)
    assert told(done)[-1].startswith("error: ")
    assert not (folder.path / "t.safetensors.partial").exists()


def test_a_shape_of_phases_over_epochs_alone_asks_for_the_flag(folder):
    schedule = "{unfreeze_at: {0: fc}, phase_lr: cosine}"
    done = ended(folder.train(USUAL, schedule, *EPOCHS), 1)
    assert "give the number of steps (--steps-per-epoch or --total-steps)" in done.stderr


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (USUAL + "sys.exit(3)", 3),
        ("import sys; sys.exit(3)", 3),
        (USUAL + "raise KeyError('mine')", 1),
        (USUAL + "os.kill(os.getpid(), 9)", -9),  # SIGKILL
    ],
)
def test_the_exit_status_is_the_script_s(folder, script, status):
    if status < 0:
        posix_only()
    ended(folder.train(script, STAGED, *EPOCHS), status)


def test_another_sitecustomize_still_has_its_turn(folder):
    folder.write("site/sitecustomize.py", "import sys; sys.mine = 'seen'")
    path = os.pathsep.join([str(folder.path / "site"), os.environ.get("PYTHONPATH", "")])
    done = ended(folder.train(USUAL + "print(sys.mine)", OPEN, *EPOCHS, PYTHONPATH=path))
    assert done.stdout == "seen\n"


def test_who_ends_the_command_ends_the_script(folder):
    posix_only()
    script = USUAL + "print('ready', flush=True)\nimport time\ntime.sleep(100)"
    folder.write("train.py", script)
    folder.write("freeze.yaml", OPEN)
    words = ("-m", "paddle_freeze_callback", "run", "--config", "freeze.yaml", *EPOCHS, "train.py")
    with subprocess.Popen(
        [sys.executable, *words], cwd=folder.path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as command:
        assert command.stdout.readline() == b"ready\n"
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == -signal.SIGTERM


# ---------------------------------------------------------------- what is refused

SWALLOWS = """
from suite import *
net = Net()
dump(net, "before")
optimizer = {}
try:
    epoch(net, optimizer)
except BaseException as error:
    print("swallowed", type(error).__name__)
try:
    epoch(net, optimizer)
except BaseException as error:
    print("swallowed", type(error).__name__)
dump(net)
"""


@pytest.mark.parametrize(
    ("optimizer", "schedule", "words", "message"),
    [
        ("adam(net)", "{unfreeze_at: {0: fx}}", EPOCHS, "freeze.yaml: selector 'fx' matches no"),
        ("adam(net.fc)", OPEN, EPOCHS, "was not given 6 parameters that the schedule will open"),
        ("adam(net)", OPEN, (*EPOCHS, "--network", "Nett"), "--network Nett: no such layer; did"),
    ],
)
def test_a_refusal_comes_before_the_first_step_and_cannot_be_swallowed(
    folder, optimizer, schedule, words, message
):
    done = ended(folder.train(SWALLOWS.format(optimizer), schedule, *words), 1)
    assert done.stdout == "swallowed SystemExit\nswallowed SystemExit\n"
    assert folder.moved() == set()
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr


def test_a_script_that_trains_nothing_is_an_error(folder):
    for script in ("print('hello')", "from suite import *\nadam(Net())"):
        done = ended(folder.train(script, OPEN, *EPOCHS), 1)
        assert "error: nothing was trained under the schedule" in done.stderr


def test_what_moves_while_it_is_frozen_makes_the_status_1(folder):
    script = USUAL + "net.body.weight.set_value(net.body.weight + 1)"
    done = ended(folder.train(script, HEAD, *EPOCHS), 1)
    assert "error: body.weight moved although it is frozen" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["run"], 1, "run needs a script"),
        (["run", "--epochs", "3", "no.py"], 1, "no.py: no such script"),
        (["run", "--epochs", "3", "python", "no.py"], 1, "python: no such script; leave the word"),
        (["run", "setup.py"], 1, "how long is the run? give --epochs or --total-steps"),
        (["run", "--epochs", "x", "setup.py"], 2, "no positive number"),
        (["run", "--config", "no.yaml", "--epochs", "3", "setup.py"], 1, "No such file"),
        (["run", "--nonsense", "3", "setup.py"], 2, "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_command_line_starts_nothing(words, status, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    monkeypatch.setattr(run, "_wait", None)
    try:
        assert main(words) == status
    except SystemExit as error:
        assert error.code == status
    assert message in capsys.readouterr().err


def test_a_strategy_that_needs_metrics_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    Path("freeze.yaml").write_text("{strategy: on_plateau, metric: accuracy}")
    assert main(["run", "--config", "freeze.yaml", "--epochs", "3", "train.py"]) == 1
    assert "decides from metrics, which a script hands to nobody" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ("run train.py --epochs 3", "run"),
        ("run --epochs 3 train.py --epochs 4", "run --epochs 3"),
        ("run --epochs=3 -- -u train.py", "run --epochs=3"),
        ("run --help train.py", "run --help"),
        ("run -h", "run -h"),
        ("run --epochs", "run --epochs"),
    ],
)
def test_what_comes_from_the_script_on_is_the_script_s(words, ours):
    assert split(words.split())[0] == ours.split()


# ---------------------------------------------------------------- which network, which optimizer

GAN = """
from suite import *

class Judge(nn.Layer):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 4)
        self.fc = nn.Linear(4, 1)

    def forward(self, x):
        return self.fc(self.inner(x))

net, judge = Net(), Judge()
dump(net, "before")
ours, theirs = adam(net), adam(judge)
for _ in range(3):
    for images, _ in loader():
        judge(net(images)).mean().backward()
        ours.step()
        theirs.step()
        ours.clear_grad()
        theirs.clear_grad()
dump(net)
"""


def test_networks_that_cannot_be_told_apart_are_listed_and_asked_for(folder):
    done = ended(folder.train(GAN, HEAD, *EPOCHS), 1)
    assert (
        "error: the schedule fits more than one of the networks that train here: "
        "Net (net_0; 206 parameters), trained by AdamW; "
        "Judge (judge_0; 17 parameters), trained by AdamW. Name one with --network"
    ) in done.stderr
    for name in ("Net", "net_0"):
        done = ended(folder.train(GAN, HEAD, *EPOCHS, "--network", name))
        assert folder.moved() == {"fc.weight", "fc.bias"}


def test_the_one_network_that_the_schedule_fits_is_taken(folder):
    done = ended(folder.train(GAN, "{unfreeze_at: {0: fc, 2: body}}", *EPOCHS))
    assert told(done)[:2] == [
        "takes Net (net_0; 206 parameters), trained by AdamW; 3 epochs",
        "leaves alone Judge (judge_0; 17 parameters), trained by AdamW",
    ]
    done = ended(folder.train(GAN, "{unfreeze_at: {0: nothing}}", *EPOCHS), 1)
    assert "the schedule fits none of the networks that train here" in done.stderr


MANY = """
from suite import *
adam(Net())                                     # thrown away
net = Net()
dump(net, "before")
class Task(nn.Layer):                           # a part of nothing that trains
    def forward(self, x):
        return x
head = paddle.optimizer.SGD(0.1, parameters=net.fc.parameters())
rest = paddle.optimizer.Momentum(
    0.1, parameters=[p for n, p in net.named_parameters() if n[:2] != "fc"], use_multi_tensor=True
)
for _ in range(3):
    epoch(net, rest, head)
dump(net)
"""


def test_two_optimizers_over_one_network_are_one_run(folder):
    done = ended(folder.train(MANY, STAGED, *EPOCHS))
    assert told(done)[:2] == [
        "switches use_multi_tensor off in Momentum",
        "takes Net (net_1; 206 parameters), trained by Momentum, SGD, of which every one steps in "
        "a step; 3 epochs",
    ]
    assert told(done)[-1] == "6 steps done"


REBUILT = """
from suite import *
net = Net()
dump(net, "before")
for _ in range(3):
    optimizer = {}
    epoch(net, optimizer)
dump(net)
"""


def test_an_optimizer_that_is_built_anew_goes_on_where_the_last_one_was(folder):
    done = ended(folder.train(REBUILT.format("adam(net)"), STAGED, *EPOCHS))
    assert [line for line in told(done) if "opens" in line and "step 4, epoch 2" in line]
    assert told(done).count("goes on with a new AdamW of the same network") == 2
    assert told(done)[-1] == "6 steps done"
    trainable = "adam(net.fc if _ else net)"  # the second time of what trains alone
    done = ended(folder.train(REBUILT.format(trainable), STAGED, *EPOCHS), 1)
    assert "was not given 6 parameters that the schedule will open" in done.stderr


def test_a_loop_that_calls_no_layer_is_followed_from_its_first_step(folder):
    script = """
from suite import *
net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
dump(net, "before")
optimizer = adam(net)
for _ in range(4):
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    optimizer.clear_grad()
dump(net)
"""
    done = ended(folder.train(script, '{unfreeze_at: {0: "1"}}', "--total-steps", "6"))
    assert "no forward of the network in training mode was seen" in done.stderr
    assert folder.moved() == {"1.weight", "1.bias"}
    assert "ends after 4 of 6 steps" in told(done)


# ---------------------------------------------------------------- checkpoints

RESUMES = """
from suite import *
net = Net()
scheduler = paddle.optimizer.lr.StepDecay(0.1, step_size=2)
optimizer = paddle.optimizer.Adam(scheduler, parameters=net.parameters())
first, last = int(sys.argv[1]), int(sys.argv[2])
if first:
    optimizer.set_state_dict(paddle.load(f"c/{first}.pdopt"))
    net.set_state_dict(paddle.load(f"c/{first}.pdparams"))
batches = list(loader()) * 3
net.train()
for step in range(first, last):
    images, labels = batches[step]
    nn.functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
    optimizer.clear_grad()
    scheduler.step()
    paddle.save(net.state_dict(), f"c/{step + 1}.pdparams")
    paddle.save(optimizer.state_dict(), f"c/{step + 1}.pdopt")
dump(net)
"""
PER_EPOCH = (*EPOCHS, "--steps-per-epoch", "2")


def test_a_script_that_resumes_from_its_own_checkpoints_is_bitwise_the_same(folder):
    ended(folder.train(RESUMES, STAGED, *PER_EPOCH, "--", "train.py", "0", "6"))
    whole = folder.arrays()
    for step in (1, 4):  # within an epoch, and where something opens
        done = ended(folder.train(RESUMES, STAGED, *PER_EPOCH, "--", "train.py", str(step), "6"))
        assert all(np.array_equal(whole[key], value) for key, value in folder.arrays().items())
        assert f"step {step}, epoch {step // 2}: opens" in done.stderr


def test_a_checkpoint_without_a_record_is_refused_unless_its_steps_are_told(folder):
    folder.write("train.py", RESUMES)
    ended(folder.python("train.py", "0", "2"))
    words = ("--", "train.py", "2", "4")
    done = ended(folder.train(RESUMES, STAGED, *PER_EPOCH, *words), 1)
    assert "c/2.pdopt, which has no record of a schedule; give --done-steps" in done.stderr
    done = ended(folder.train(RESUMES, STAGED, *PER_EPOCH, "--done-steps", "2", *words))
    assert "step 2, epoch 1: opens fc, body" in done.stderr
    assert "ends after 4 of 6 steps" in told(done)


# ---------------------------------------------------------------- several processes

SPAWNS = """
from suite import *

def work():
    paddle.distributed.init_parallel_env()
    paddle.seed(3)
    net = Net()
    dump(net, "before")
    network = paddle.DataParallel(net)
    optimizer = adam(network)
    for _ in range(3):
        epoch(network, optimizer)
    dump(net, f"out{paddle.distributed.get_rank()}")

if __name__ == "__main__":
"""


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("    paddle.distributed.spawn(work, nprocs=2, backend='gloo')", ("train.py",)),
        (
            "    work()",
            ("-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo",
             "train.py"),
        ),
    ],
    ids=["spawn", "launch"],
)  # fmt: skip
def test_every_process_of_spawn_and_launch_keeps_the_schedule(folder, start, words):
    script = SPAWNS + start
    done = ended(folder.train(script, HEAD, *EPOCHS, "--", *words, CUDA_VISIBLE_DEVICES=""))
    for rank in "01":
        assert folder.moved(f"out{rank}") == {"fc.weight", "fc.bias"}, done.stderr[-3000:]
    one, other = folder.arrays("out0"), folder.arrays("out1")
    assert all(np.array_equal(one[key], other[key]) for key in one)
    done = folder.train(script, "{unfreeze_at: {0: fx}}", *EPOCHS, "--", *words)
    assert done.returncode not in (0, None)
    assert folder.moved("out0") == {"fc.weight", "fc.bias"}  # of the run before: none was written


def test_the_workers_of_a_loader_are_left_in_peace(folder):
    script = USUAL.replace(
        "optimizer = adam(net)",
        "optimizer = adam(net)\n"
        "def loader(): return paddle.io.DataLoader(Images(), batch_size=4, num_workers=2)\n"
        "import suite; suite.loader = loader",
    )
    done = ended(folder.train(script, HEAD, *EPOCHS))
    assert [line for line in told(done) if line.startswith("takes")] == told(done)[:1]
    assert told(done)[-1] == "6 steps done"
    assert folder.moved() == {"fc.weight", "fc.bias"}
