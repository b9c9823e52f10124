"""What each kind of selector opens, and what then moves, in both loops."""

from __future__ import annotations

import paddle
import pytest
from networks import Images, Watch, conv_net, model_for, moved, open_names, values
from paddle import nn
from trainers import TrainerCallback, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, freeze, unfreeze
from paddle_freeze_callback.stages.weights import weights


def inside(network: nn.Layer, *starts: str, bias: bool | None = None) -> set[str]:
    """Names of the weights that start so; all, or those that are biases, or those that are not."""
    names = {weight.name for weight in weights(network) if weight.name.startswith(starts)}
    return {name for name in names if bias is None or name.endswith("bias") == bias}


# What trains in the first half of a run, and in the second.
IN_FIT = [
    ({"strategy": "bitfit"}, [("fc",), ("", True)], [("fc",), ("", True)]),
    ({"unfreeze_at": {0: "fc", "50%": "!block1"}}, [("fc",)], [("fc",), ("block2",), ("block3",)]),
    ({"unfreeze_at": {0: "top 45%", "50%": "*"}}, [("fc",), ("block3",)], [("",)]),
    ({"unfreeze_at": {0: "*", "50%": {"freeze": "bottom 20%"}}},
     [("",)], [("fc",), ("block3",), ("block2",)]),
    ({"unfreeze_at": {0: ["fc", "type:BatchNorm2D"], "50%": "block[-1]"}},
     [("fc",), ("block1.1",), ("block2.1",), ("block3.1",)],
     [("fc",), ("block1.1",), ("block2.1",), ("block3",)]),
    ({"unfreeze_at": {0: "fc", "50%": [["block{-2,-1}", "!bias"]]}},
     [("fc",)], [("fc",), ("block2", False), ("block3", False)]),
    ({"stages": ["fc", "block[-2:]"], "every": "50%"},
     [("fc",)], [("fc",), ("block2",), ("block3",)]),
]  # fmt: skip


def expected(network: nn.Layer, parts: list[tuple]) -> set[str]:
    return set().union(*(inside(network, start, bias=next(iter(b), None)) for start, *b in parts))


@pytest.mark.parametrize(("options", "first", "second"), IN_FIT, ids=lambda value: str(value)[:60])
def test_in_fit_exactly_what_a_selector_means_moves(options, first, second):
    network, schedule = conv_net(), FreezeSchedule(verify=True, **options)
    watch = Watch(schedule)
    model_for(network).fit(
        Images(), batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[schedule, watch]
    )
    for half, parts in ((watch.moved[:6], first), (watch.moved[6:], second)):
        assert set().union(*half) & inside(network, "") == expected(network, parts)


class Halves(TrainerCallback):
    """Notes what moved in each half of two epochs."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.moved, self.before = [], values(model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.moved.append(moved(self.before, values(model)))
        self.before = values(model)


LAYERS = "bert.encoder.layers."
IN_A_TRAINER = [
    ({"freeze_strategy": "bitfit"},
     [("classifier",), ("bert", True)], [("classifier",), ("bert", True)]),
    ({"freeze_unfreeze_at": ["0=head", f"1={LAYERS}[-2:]"]},
     [("classifier",)], [("classifier",), (f"{LAYERS}1",), (f"{LAYERS}2",)]),
    ({"freeze_unfreeze_at": ["0=head", "1=!bert.embeddings"]},
     [("classifier",)], [("classifier",), ("bert.encoder",), ("bert.pooler",)]),
    ({"freeze_unfreeze_at": ["0=head", "1=top 35%"]},
     [("classifier",)], [("classifier",), ("bert.pooler",), (f"{LAYERS}2",)]),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "first", "second"), IN_A_TRAINER, ids=lambda v: str(v)[:60])
def test_in_a_trainer_exactly_what_a_selector_in_a_flag_means_moves(tmp_path, flags, first, second):
    model, halves = tiny_bert(), Halves()
    schedule = FreezeSchedule()
    trainer_for(
        model, tmp_path, [schedule, halves], num_train_epochs=2, freeze_verify=True, **flags
    ).train()
    for half, parts in zip(halves.moved, (first, second)):
        assert half == expected(model, parts)


def test_by_hand_a_selector_means_the_same():
    network = conv_net()
    assert set(freeze(network, ["!fc", "!type:BatchNorm2D"])) == inside(
        network, "block1.0", "block2.0", "block3.0"
    )
    assert set(unfreeze(network, "block[-1]")) == inside(network, "block3.0")
    freeze(network, "bottom 20%")
    assert all(w.trains != w.name.startswith(("block1", "block2.0")) for w in weights(network))


def test_all_but_opens_nothing_that_was_found_frozen():
    """As ``"*"``: neither names anything."""
    network = conv_net()
    for tensor in network.block1.parameters():
        tensor.stop_gradient = True
    table = FreezeSchedule(stages=["fc", "!fc"]).preview(network, total_steps=4)
    assert table.phases[-1].trainable == 370 - 48
    for tensor in [*network.block2.parameters(), *network.block3.parameters()]:
        tensor.stop_gradient = True
    table = FreezeSchedule(stages=["fc", "!fc"]).preview(network, total_steps=4)
    assert table.phases[-1].trainable == 10
    assert unfreeze(network, "!fc") == unfreeze(network, ["!fc", "!block2"]) == ()
    assert set(unfreeze(network, "block[0]")) == inside(network, "block1")


@pytest.mark.parametrize(
    ("what", "biases"),
    [
        ("bitfit", True),
        ({0: ["head", ["type:bias", "!head"]]}, True),
        ({0: ["head", "type:bias"]}, False),  # the head's bias trains
    ],
    ids=["bitfit", "without the head's", "with the head's"],
)
def test_biases_found_frozen_open_if_a_selector_means_nothing_that_trains(what, biases):
    network, lines = conv_net(), []
    for weight in weights(network):
        weight.tensor.stop_gradient = not weight.name.startswith("fc")
    schedule = FreezeSchedule(**{"strategy" if what == "bitfit" else "unfreeze_at": what})
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with schedule.attach(network, optimizer, total_steps=4, say=lines.append):
        parts = [("fc",), ("", True)] if biases else [("fc",)]
        assert set(open_names(network)) == expected(network, parts)
    how = "to train it, name it alone or set stop_gradient=False"
    assert biases or f"left frozen, as found ({how}): type:bias" in lines


def test_the_name_of_an_automatic_stage_opens_what_was_found_frozen():
    network = conv_net()
    for tensor in network.fc.parameters():
        tensor.stop_gradient = True
    table = FreezeSchedule(stages=["head", "*"]).preview(network, total_steps=4)
    assert table.phases[0].trainable == 10


def test_bitfit_where_the_head_has_no_bias_and_where_nothing_has():
    network = conv_net()
    network.fc = nn.Linear(4, 2, bias_attr=False)
    table = FreezeSchedule.bitfit().preview(network, total_steps=4)
    assert table.phases[0].trainable == 8 + 3 * (4 + 4)
    network = nn.Sequential(*(nn.Linear(4, 4, bias_attr=False) for _ in range(3)))
    with pytest.raises(ValueError, match="'type:bias' selects nothing: this network has no bias"):
        FreezeSchedule.bitfit().preview(network, total_steps=4)
