"""A preview shows what the run then does, and leaves the network alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings

import numpy as np
import paddle
import pytest
from networks import ConvNet, TwoLayers, moved, open_names, values
from paddle import nn

from paddle_freeze_callback import (
    ByGradient,
    ChainThaw,
    Cyclic,
    FreezeDown,
    FreezeSchedule,
    Gradual,
    HeadThenAll,
    OnPlateau,
    RandomStages,
)
from paddle_freeze_callback.views.preview import Phase, Preview, StagePreview

IMAGES = paddle.rand([4, 1, 6, 6])

SCHEDULES = {
    "gradual": {},
    "late": {"start": "10 steps", "every": "7 steps"},
    "head then all": {"strategy": HeadThenAll("50%")},
    "cyclic": {"strategy": Cyclic(every="5 steps")},
    "chain thaw": {"strategy": ChainThaw("6 steps")},
    "freeze down": {"strategy": FreezeDown("8 steps")},
    "random": {"strategy": RandomStages(k=1, every="4 steps")},
    "explicit": {"unfreeze_at": {0: "fc", "12 steps": "block3", 2: {"freeze": "fc"}, "90%": "*"}},
    "rates": {"lr_decay": 2.0},
    "rates of phases": {
        "unfreeze_at": {0: "fc", 1: {"unfreeze": "*", "lr": 2}},
        "phase_lr": "linear",
    },
    "stages": {"stages": ["fc", "block2.*"]},
}


def everything(network: nn.Layer) -> dict[str, object]:
    state: dict[str, object] = {
        name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()
    }
    for name, tensor in network.named_parameters():
        state[f"{name} flag"] = tensor.stop_gradient
    for name, layer in network.named_sublayers(include_self=True):
        state[f"{name} mode"] = layer.training
        state[f"{name} hooks"] = (
            len(layer._forward_pre_hooks), len(layer._forward_post_hooks), "forward" in vars(layer),
        )  # fmt: skip
    return state


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_phases_of_a_preview_are_those_of_the_run(name):
    network = ConvNet()
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    schedule = FreezeSchedule(**SCHEDULES[name])
    table = schedule.preview(network, epochs=3, steps_per_epoch=10, optimizer=optimizer)
    with schedule.attach(network, optimizer, epochs=3, steps_per_epoch=10) as freezing:
        happened = []
        for step in range(30):
            if not happened or freezing.history[-1].step == step:
                change = freezing.history[-1]
                happened.append(
                    (step, change.epoch, freezing.open_stages, change.trainable, change.ratio)
                )
            freezing.step()
    told = [(p.step, p.epoch, p.opened, p.trainable, p.ratio) for p in table.phases]
    assert [(a, b, set(c), d, e) for a, b, c, d, e in told] == [
        (a, b, set(c), d, e) for a, b, c, d, e in happened
    ]
    assert [p.until for p in table.phases] == [p.step for p in table.phases[1:]] + [30]


def test_a_stage_is_open_in_the_phases_that_name_it():
    table = FreezeSchedule(strategy=Cyclic(every="5 steps")).preview(ConvNet(), total_steps=30)
    for stage in table.stages:
        steps = {step for first, after in stage.spans for step in range(first, after)}
        said = {
            step
            for phase in table.phases
            if stage.name in phase.opened
            for step in range(phase.step, phase.until)
        }
        assert steps == said
        assert all(one[1] < other[0] for one, other in zip(stage.spans, stage.spans[1:]))


def test_shares_parameters_and_multipliers_are_those_of_the_network():
    network = ConvNet()
    table = FreezeSchedule(lr_decay=2.0).preview(network, epochs=4, steps_per_epoch=5)
    assert [stage.name for stage in table.stages] == ["head", "block3", "block2", "block1"]
    assert [stage.multiplier for stage in table.stages] == [1, 0.5, 0.25, 0.125]
    assert [stage.numel for stage in table.stages] == [10, 156, 156, 48]
    assert [stage.parameters for stage in table.stages] == [2, 4, 4, 4]
    assert sum(stage.share for stage in table.stages) == pytest.approx(1)
    assert table.stages[0].spans == ((0, 20),)
    assert table.stages[3].spans == ((15, 20),)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SGD", {}), ("Momentum", {}), ("Adagrad", {}), ("RMSProp", {}), ("Adadelta", {}),
        ("Adamax", {}), ("Adam", {}), ("AdamW", {}), ("NAdam", {}), ("RAdam", {}), ("Lamb", {}),
    ],
)  # fmt: skip
def test_the_state_that_an_optimizer_keeps_is_what_it_really_keeps(kind, options):
    network = TwoLayers()
    optimizer = getattr(paddle.optimizer, kind)(
        learning_rate=0.01, parameters=network.parameters(), **options
    )
    table = FreezeSchedule(strategy=HeadThenAll("50%")).preview(
        network, total_steps=4, optimizer=optimizer
    )
    network(paddle.rand([3, 4])).sum().backward()
    optimizer.step()
    shapes = {tuple(tensor.shape) for tensor in network.parameters()}
    kept = sum(
        value.size * 4
        for name, value in optimizer.state_dict().items()
        if isinstance(value, paddle.Tensor) and tuple(value.shape) in shapes
        if "LR" not in name
    )
    assert sum(stage.optimizer_bytes for stage in table.stages) == kept


def test_a_head_alone_costs_its_forward_and_memory_follows_what_has_been_open():
    table = FreezeSchedule().preview(ConvNet(), epochs=4, steps_per_epoch=5)
    assert table.phases[0].time_share == pytest.approx((1 + 2 * 10 / 370) / 3)
    assert table.phases[-1].time_share == pytest.approx(1)
    assert table.phases[-1].memory_share == pytest.approx(1)
    assert table.phases[0].memory_share == pytest.approx((370 + 3 * 10) / (4 * 370))
    assert 0 < table.saving < 2 / 3
    assert not table.measured
    assert any("no batch was given" in note for note in table.notes)


def test_state_that_is_freed_is_not_counted_any_more():
    def memory(**options):
        schedule = FreezeSchedule(strategy=Cyclic(every="5 steps"), **options)
        return [phase.memory_share for phase in schedule.preview(ConvNet(), total_steps=25).phases]

    kept, freed = memory(free_optimizer_state=False), memory(free_optimizer_state=True)
    assert freed[0] == kept[0]
    assert all(one < other for one, other in zip(freed[1:], kept[1:]))


def test_with_a_batch_time_is_measured_and_nothing_of_the_network_moves():
    network = nn.Sequential(ConvNet(), nn.Dropout(0.5))
    network[0].block1.eval()
    before, random = everything(network), paddle.get_rng_state()
    schedule = FreezeSchedule(cache="memory")
    table = schedule.preview(network, epochs=3, steps_per_epoch=5, batch=IMAGES)
    assert table.measured
    assert everything(network) == before
    assert str(paddle.get_rng_state()[0]).split()[-5:] == str(random[0]).split()[-5:]
    shares = [phase.time_share for phase in table.phases]
    assert all(0.3 < share <= 1.0000001 for share in shares)
    assert shares == sorted(shares)


def test_the_bytes_that_a_cache_keeps_are_those_that_the_run_then_keeps():
    network = ConvNet()
    optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
    schedule = FreezeSchedule(cache="memory", every="4 steps")
    table = schedule.preview(network, total_steps=16, batch=IMAGES)
    seen = {}
    with schedule.attach(network, optimizer, total_steps=16) as freezing:
        for step in range(16):
            network(IMAGES).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            began = freezing.history[-1].step
            if schedule.run.cache.rows and step == began + 3:
                seen[began] = schedule.run.cache.nbytes // schedule.run.cache.rows
            freezing.step()
    assert table.cache_bytes == seen
    assert list(seen) == [0, 4, 8]
    assert "from step 12 the cache is off: no layer is frozen as a whole" in table.notes


def test_without_a_batch_the_cache_says_what_it_needs():
    table = FreezeSchedule(cache="memory").preview(ConvNet(), total_steps=16)
    assert table.cache_bytes == {}
    assert "no batch was given: what the cache keeps is not known" in table.notes


#: Whether samples come again under the same frozen prefix, in 4 epochs of 5 steps.
CACHED = {
    "one stage an epoch": ({}, False),
    "two epochs of the head": ({"strategy": HeadThenAll(at=2)}, True),
    "one epoch of the head": ({"strategy": HeadThenAll(at=1)}, False),
    "another stage each epoch": (
        {
            "stages": ["fc", "block3", "block2", "block1"],
            "unfreeze_at": {0: "fc", 1: "block2", 2: "block3", 3: "*"},
        },
        False,
    ),
    "everything, then less": ({"unfreeze_at": {0: "*", 2: {"freeze": "block1"}}}, True),
    "some layers never": ({"stages": ["fc", "block3"]}, True),
    "decided later": ({"strategy": OnPlateau("loss")}, True),
}


@pytest.mark.parametrize("name", CACHED)
def test_a_cache_without_a_hit_is_noted_and_warned_of(name):
    options, hits = CACHED[name]
    network, said = (
        ConvNet(),
        "what is frozen never stays the same for more than an epoch (5 steps)",
    )
    run = {"epochs": 4, "steps_per_epoch": 5}
    schedule = FreezeSchedule(cache="memory", **options)
    notes = [note for note in schedule.preview(network, **run).notes if said in note]
    assert len(notes) == (not hits)
    optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
    batches = [paddle.rand([4, 1, 6, 6]) for _ in range(5)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with schedule.attach(network, optimizer, **run) as freezing:
            for batch in batches * 4:
                network(batch).sum().backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
    assert any(said in str(one.message) for one in caught) is not hits
    assert bool(schedule.run.cache.hits) is hits


@pytest.mark.parametrize("strategy", [OnPlateau("loss"), ByGradient("3 steps")])
def test_what_is_decided_while_it_runs_is_said_to_be(strategy):
    table = FreezeSchedule(strategy=strategy).preview(ConvNet(), total_steps=30)
    assert any("decides while it runs" in note for note in table.notes)


def test_a_schedule_that_is_longer_than_the_run_is_told():
    table = FreezeSchedule(every="1 epoch").preview(ConvNet(), epochs=2, steps_per_epoch=5)
    assert any("'block2'" in note and "never open" in note for note in table.notes)
    assert table.stages[-1].spans == ()


@pytest.mark.parametrize(
    ("options", "run", "words"),
    [
        ({}, {"epochs": 3}, "does not say how long the run is"),
        ({}, {}, "how long is the run"),
        ({}, {"epochs": 0, "steps_per_epoch": 3}, "epochs=0 must be a positive number"),
        ({"stages": ["fcc"]}, {"total_steps": 3}, "fcc"),
        ({}, {"total_steps": 30, "batch": paddle.rand([2, 3])}, "batch: ConvNet cannot be called"),
    ],
)
def test_what_a_run_would_refuse_is_refused_at_once(options, run, words):
    network = ConvNet()
    before = everything(network)
    with pytest.raises(ValueError, match=words):
        FreezeSchedule(**options).preview(network, **run)
    assert everything(network) == before


def test_an_optimizer_that_lacks_parameters_is_refused_before_the_run():
    network = ConvNet()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.fc.parameters())
    with pytest.raises(ValueError, match="was not given"):
        FreezeSchedule().preview(network, total_steps=30, optimizer=optimizer)


def test_in_the_middle_of_a_run_there_is_no_preview():
    network = ConvNet()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule()
    with schedule.attach(network, optimizer, total_steps=8):  # noqa: SIM117
        with pytest.raises(RuntimeError, match="before the run, or after"):
            schedule.preview(network, total_steps=8)
    assert schedule.preview(network, total_steps=8).phases


def preview_of(**changes) -> Preview:
    stages = (
        StagePreview("head", 2, 10, 0.1, ((0, 30),), 1.0, 80),
        StagePreview("<layer>", 4, 90, 0.9, ((10, 20), (25, 30)), 0.5, 720),
    )
    phases = (
        Phase(0, 10, 0, ("head",), 10, 0.1, 0.4, 0.325),
        Phase(10, 30, 1, ("head", "<layer>"), 100, 1.0, 1.0, 1.0),
    )
    table = Preview(stages, phases, 30, 10, 0.2, False, {}, ("a note",))
    return dataclasses.replace(table, **changes)


def test_as_text_it_is_a_table_that_fits_no_matter_how_wide():
    text = str(preview_of())
    lines = text.splitlines()
    assert lines[0].split() == [
        "stage", "tensors", "parameters", "share", "open", "lr", "optimizer", "state",
    ]  # fmt: skip
    assert "all the time" in text
    assert "10 to 20, from 25" in text
    assert "x 0.5" in text
    assert "everything" in text
    assert "30 steps, 10 an epoch; about 20 % of the time saved" in text
    assert "- a note" in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in lines)


def test_in_a_notebook_names_are_escaped_and_the_cache_has_a_column():
    page = preview_of(cache_bytes={0: 2048})._repr_html_()
    assert "&lt;layer&gt;" in page
    assert "<layer>" not in page
    assert "cache, a sample" in page
    assert "2.0 KB" in page
    assert page.count("<tr>") == 2 + 2 + 2


def test_shown_where_there_is_no_terminal_it_is_plain(capsys):
    preview_of().show()
    assert capsys.readouterr().out.rstrip("\n") == str(preview_of())


def test_rich_can_print_it():
    from rich.console import Console

    console = Console(width=200, record=True, force_terminal=True)
    with console.capture() as shown:
        console.print(preview_of())
    assert "\x1b[1m" in shown.get()
    assert "all the time" in shown.get()


def test_importing_the_package_imports_no_library_for_pictures_or_tables():
    # Paddle itself imports some; so only what comes beyond it counts.
    code = (
        "import sys, paddle; before = set(sys.modules); import paddle_freeze_callback; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new & {'rich', 'matplotlib', 'paddlenlp'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "[]"


def test_measured_shares_follow_where_the_time_is_spent():
    class Uneven(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.slow = nn.Linear(512, 512)
            self.fc = nn.Linear(512, 2)

        def forward(self, x):
            for _ in range(20):
                x = self.slow(x)
            return self.fc(x)

    network = Uneven()
    schedule = FreezeSchedule(stages=["fc", "slow"], strategy=HeadThenAll("50%"))
    batch = paddle.to_tensor(np.ones([64, 512], "float32"))
    table = schedule.preview(network, total_steps=10, batch=batch)
    assert table.phases[0].time_share < 0.4


def test_a_layer_with_two_names_is_measured_once():
    seen = []

    class Twice(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Linear(4, 4)
            self.again = self.block
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            seen.append(len(self.block._forward_pre_hooks))
            return self.fc(self.again(self.block(x)))

    network = Twice()
    FreezeSchedule(stages=["fc", "block"]).preview(
        network, total_steps=4, batch=paddle.rand([2, 4])
    )
    assert max(seen) == 1
    assert not network.block._forward_pre_hooks


def test_the_picture_of_a_run_shows_its_metrics_but_no_timings(tmp_path):
    network = ConvNet()
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    schedule = FreezeSchedule(lr_decay=2.0)
    with pytest.raises(AttributeError, match="there is no run yet: train first"):
        schedule.run.plot()
    with schedule.attach(network, optimizer, epochs=4, steps_per_epoch=2) as freezing:
        for step in range(8):
            freezing.step()
            freezing.evaluated({"acc": step / 8, "eval_runtime": 3.0, "note": "text"})
    assert schedule.run.metrics["acc"] == [(step + 1, step / 8) for step in range(8)]
    assert "note" not in schedule.run.metrics
    figure = schedule.run.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 1000
    words = {text.get_text() for axes in figure.axes for text in axes.texts} | {
        title for axes in figure.axes for title in (axes.get_title(loc="left"), axes.get_title())
    }
    assert "acc" in words
    assert not any("runtime" in word for word in words)


def test_the_picture_before_a_run_is_of_the_preview(tmp_path):
    figure = FreezeSchedule().plot(tmp_path / "plan.svg", ConvNet(), epochs=4, steps_per_epoch=5)
    assert "4 stages, 20 steps" in figure.get_suptitle()
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")


def test_gradients_that_wait_for_a_step_are_still_there_after_a_preview_with_a_cache():
    network = ConvNet()
    network(IMAGES).sum().backward()
    before = {name: tensor.grad.numpy() for name, tensor in network.named_parameters()
              if tensor.grad is not None}  # fmt: skip
    with paddle.no_grad():
        table = FreezeSchedule(cache="memory").preview(network, total_steps=16, batch=IMAGES)
    assert table.cache_bytes
    after = {name: tensor.grad for name, tensor in network.named_parameters()}
    for name, grad in before.items():
        np.testing.assert_array_equal(after[name].numpy(), grad, name)


def test_a_traced_network_is_estimated_and_not_called_measured():
    network = paddle.jit.to_static(ConvNet(), full_graph=True)
    table = FreezeSchedule().preview(network, total_steps=16, batch=IMAGES)
    assert not table.measured
    assert any("too little of the forward could be measured" in note for note in table.notes)


def test_stages_in_order_of_opening_are_as_deep_as_they_lie():
    network = ConvNet()
    of_rule = FreezeSchedule(strategy=Gradual("5 steps", direction="bottom_up"))
    said = {0: "block1", "5 steps": "block2", "10 steps": "block3", "15 steps": "fc"}
    one, other = (
        [p.time_share for p in schedule.preview(network, total_steps=30).phases]
        for schedule in (of_rule, FreezeSchedule(unfreeze_at=said))
    )
    assert one == pytest.approx(other)
    assert one[0] > 0.6


def test_weights_that_never_open_are_not_counted_as_trained():
    network = ConvNet()
    for layer in (network.block1[0], network.block2[0], network.block3[0]):
        layer.weight.stop_gradient = True
    share = FreezeSchedule(strategy=HeadThenAll("50%")).preview(network, total_steps=4).phases[1]
    assert share.ratio < 0.2
    assert 2 / 3 < share.time_share < 0.8


def test_a_long_list_of_phases_is_cut_in_the_middle():
    table = FreezeSchedule(strategy=Cyclic(every="1 steps")).preview(ConvNet(), total_steps=300)
    assert len(table.phases) == 300
    assert "... 276 more phases" in str(table)
    assert len(str(table).splitlines()) < 45


def test_what_is_decided_later_says_so_in_table_and_picture():
    table = FreezeSchedule(strategy=OnPlateau("loss")).preview(ConvNet(), total_steps=30)
    assert table.decided_later
    assert "how much time is saved shows when it runs" in str(table)
    block = next(line for line in str(table).splitlines() if line.startswith(" block3"))
    assert " ".join(block.split()).endswith("as decided x 1 up to 1.2 KB")
    figure = FreezeSchedule(strategy=OnPlateau("loss")).plot(None, ConvNet(), total_steps=30)
    assert "as far as known before" in figure.get_suptitle()


def test_there_is_no_picture_of_a_run_without_a_step():
    network = ConvNet()
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    schedule = FreezeSchedule()
    with schedule.attach(network, optimizer, total_steps=8):  # noqa: SIM117
        with pytest.raises(RuntimeError, match="no step was trained yet"):
            schedule.run.plot()


def test_a_preview_with_a_batch_reports_what_the_first_step_would():
    class Detached(nn.Layer):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(4, 8)
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.encoder(x).detach())

    network = Detached()
    before = values(network)
    schedule, batch = FreezeSchedule(every=1), paddle.ones([2, 4])
    table = schedule.preview(network, epochs=2, steps_per_epoch=2, batch=batch)
    assert [note for note in table.notes if note.startswith("nothing reaches 'encoder'")]
    assert not moved(before, values(network))
    assert all(one.grad is None for one in network.parameters())
    assert open_names(network) == ["encoder.weight", "encoder.bias", "fc.weight", "fc.bias"]
    right = schedule.preview(TwoLayers(), epochs=2, steps_per_epoch=2, batch=batch)
    assert not [note for note in right.notes if "reaches" in note or "order" in note]
