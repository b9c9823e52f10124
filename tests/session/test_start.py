"""The start of a run: the network is read once, and a preview refuses what a run would refuse."""

from __future__ import annotations

import sys

import paddle
import pytest
from networks import conv_net, fit
from paddle import nn
from trainers import tiny_bert, trainer_for

from paddle_freeze_callback import ByGradient, FreezeSchedule, HeadOnly, HeadThenAll
from paddle_freeze_callback.stages.automatic import automatic_stages
from paddle_freeze_callback.stages.weights import weights

# ---------------------------------------------------------------- one reading


@pytest.fixture
def readings(monkeypatch):
    """The networks whose weights were listed, and those whose automatic stages were, in order."""
    seen: dict[str, list[nn.Layer]] = {"weights": [], "automatic_stages": []}
    for original in (weights, automatic_stages):

        def counted(network, *rest, original=original):
            seen[original.__name__].append(network)
            return original(network, *rest)

        for module in [m for n, m in sys.modules.items() if n.startswith("paddle_freeze_callback")]:
            if vars(module).get(original.__name__) is original:
                monkeypatch.setattr(module, original.__name__, counted)
    return seen


def attached(schedule, network, folder):
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    schedule.attach(network, optimizer, epochs=3, steps_per_epoch=4).close()


def previewed(schedule, network, folder):
    schedule.preview(network, epochs=3, steps_per_epoch=4)


def previewed_with_a_batch(schedule, network, folder):
    batch = paddle.ones([2, 1, 6, 6])
    schedule.preview(network, epochs=3, steps_per_epoch=4, batch=batch)


def trained_by_fit(schedule, network, folder):
    fit(network, schedule)


def trained_by_a_trainer(schedule, network, folder):
    trainer_for(network, folder, [schedule], max_steps=3).train()


SCHEDULES = {
    "plain": {},
    "ulmfit": {"every": "1 epoch", "lr_decay": 2.6},
    "explicit": {"unfreeze_at": {0: "head", 1: "*"}, "lr_decay": 2.0},
    "merged": {"stages": 2},
}


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("start", [attached, previewed, previewed_with_a_batch, trained_by_fit])
def test_a_start_reads_the_network_once(readings, tmp_path, start, options):
    network = conv_net()
    start(FreezeSchedule(**options), network, tmp_path)
    assert readings == {"weights": [network], "automatic_stages": [network]}


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_a_start_in_a_trainer_reads_the_network_once(readings, tmp_path, options):
    network = tiny_bert()
    trained_by_a_trainer(FreezeSchedule(**options), network, tmp_path)
    assert readings == {"weights": [network], "automatic_stages": [network]}


@pytest.mark.parametrize("start", [attached, previewed, trained_by_fit])
def test_keys_of_lr_do_not_read_it_again(readings, tmp_path, start):
    network = conv_net()
    lr = {"head": 1.0, "block3": 0.5, "block2": 0.25}
    start(FreezeSchedule(every=1, lr=lr), network, tmp_path)
    assert readings["weights"] == [network]


# ---------------------------------------------------------------- the same refusals


def frozen(network: nn.Layer, *names: str) -> nn.Layer:
    for name, tensor in network.named_parameters():
        if name.startswith(names):
            tensor.stop_gradient = True
    return network


def embedding_net() -> nn.Layer:
    return nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2))


def sgd(network, parameters=None, kind=paddle.optimizer.SGD):
    return kind(0.1, parameters=network.parameters() if parameters is None else parameters)


REFUSED = {
    "nothing to train": (
        lambda: frozen(conv_net(), "block", "fc"), {}, sgd, "nothing would train",
    ),
    "a frozen head": (
        lambda: frozen(conv_net(), "fc"), {"strategy": HeadOnly()}, sgd,
        "HeadOnly trains the head, and everything in 'head' was found frozen",
    ),
    "sparse gradients": (
        embedding_net, {"strategy": ByGradient(), "stages": ["1", "0"]}, sgd,
        "0 has sparse gradients",
    ),
    "a ramp without a length": (
        conv_net, {"warmup": "1 epoch"}, sgd, "warmup: ",
    ),
    "an optimizer of the head alone": (
        conv_net, {}, lambda network: sgd(network, network.fc.parameters()),
        "was not given 12 parameters that the schedule will open",
    ),
    "an optimizer without multipliers": (
        conv_net, {"lr_decay": 2.0},
        lambda network: sgd(network, kind=paddle.optimizer.Rprop), "Rprop ignores",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "options", "optimizer", "text"), REFUSED.values(), ids=REFUSED)
def test_a_preview_refuses_what_a_run_refuses_in_the_same_words(build, options, optimizer, text):
    network = build()
    schedule = FreezeSchedule(
        **{"every": "2 steps", **options} if "strategy" not in options else options
    )
    refusals = []
    for start in (
        lambda: schedule.attach(network, optimizer(network), total_steps=9),
        lambda: schedule.preview(network, total_steps=9, optimizer=optimizer(network)),
    ):
        with pytest.raises(ValueError, match=text) as refused:
            start()
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (FreezeSchedule(every="5 steps"), "'block2' .* and 'block1' .* never open"),
        (FreezeSchedule(strategy=HeadThenAll("9 steps")), "never acts"),
    ],
)
def test_a_preview_notes_what_a_run_warns_of(schedule, text):
    network = conv_net()
    with pytest.warns(UserWarning, match="in this run of 9 steps") as warned:
        schedule.attach(network, sgd(network), total_steps=9).close()
    assert warned[0].filename == __file__
    notes = schedule.preview(network, total_steps=9).notes
    assert str(warned[0].message) in notes


# ---------------------------------------------------------------- traced functions


def test_without_traced_functions_no_start_walks_all_objects(monkeypatch):
    from paddle.jit.dy2static.program_translator import ProgramTranslator

    from paddle_freeze_callback.freezing import freezer

    walks = []
    objects = freezer.gc.get_objects
    monkeypatch.setattr(freezer.gc, "get_objects", lambda: walks.append(1) or objects())
    monkeypatch.setattr(ProgramTranslator, "_instance", None)
    attached(FreezeSchedule(), conv_net(), None)
    assert not walks
    monkeypatch.undo()
    monkeypatch.setattr(freezer.gc, "get_objects", lambda: walks.append(1) or objects())
    paddle.jit.to_static(lambda x: x, full_graph=True)
    attached(FreezeSchedule(), conv_net(), None)
    assert walks


def test_a_function_traced_after_the_start_follows_the_next_transition(monkeypatch):
    from paddle.jit.dy2static.program_translator import ProgramTranslator

    network = conv_net()
    optimizer = sgd(network)
    monkeypatch.setattr(ProgramTranslator, "_instance", None)  # as in a process that has none
    freezing = FreezeSchedule(every="1 step").attach(network, optimizer, total_steps=9)
    monkeypatch.undo()

    def function(x):
        return network(x)

    call = paddle.jit.to_static(function, full_graph=True)
    for opened in (["fc"], ["fc", "block3"], ["fc", "block3", "block2"]):
        call(paddle.ones([2, 1, 6, 6])).sum().backward()
        moving = {
            name.split(".")[0] for name, t in network.named_parameters() if t.grad is not None
        }
        assert moving == set(opened)
        optimizer.step()
        optimizer.clear_grad()
        freezing.step()
    freezing.close()
