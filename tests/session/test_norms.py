"""``train_norm``: normalization layers that train apart from their stage."""

from __future__ import annotations

import paddle
import pytest
from networks import Images, Watch, conv_net, fit, model_for, moved, values
from paddle import nn
from trainers import tiny_bert, trainer_for

from paddle_freeze_callback import Cyclic, FreezeSchedule
from paddle_freeze_callback.session.norms import kind_of

NORMS = {f"block{i}.1.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
STATISTICS = {f"block{i}.1.{name}" for i in (1, 2, 3) for name in ("_mean", "_variance")}
HEAD = {"fc.weight", "fc.bias"}


def convolution(block: int) -> set[str]:
    return {f"block{block}.0.{name}" for name in ("weight", "bias")}


def phases(network, **options) -> tuple[FreezeSchedule, list[set[str]]]:
    """What moves in each of four epochs of fit; a stage more opens in each."""
    schedule = FreezeSchedule(verify=True, **options)
    watch = Watch(schedule)
    model_for(network).fit(
        Images(), batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[schedule, watch]
    )
    batches = watch.moved
    return schedule, [set().union(*batches[start : start + 6]) for start in range(0, 24, 6)]


OPENED = [HEAD, HEAD | convolution(3), HEAD | convolution(3) | convolution(2)]
OPENED += [OPENED[2] | convolution(1)]


@pytest.mark.parametrize("norms", ["always", {"BatchNorm": "always"}, {"*": "always"}], ids=str)
def test_always_norms_and_their_statistics_train_from_the_start(norms):
    schedule, seen = phases(conv_net(), train_norm=norms)
    assert seen == [opened | NORMS | STATISTICS for opened in OPENED]
    assert [change.trainable for change in schedule.history] == [34, 182, 330, 370]
    assert schedule.history[0].opened == ("head", "norms (always)")
    assert schedule.run.as_explicit().unfreeze_at[0]["unfreeze"] == ["fc"]


class TableAndNorm(nn.Layer):
    """An embedding of which nothing is left beside a table and a norm, two blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.LayerList([nn.Embedding(9, 4), nn.LayerNorm(4)])
        self.blocks = nn.LayerList(
            [nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2)]
        )
        self.head = nn.Linear(4, 2)

    def forward(self, ids):
        x = self.embeddings[1](self.embeddings[0](ids))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=1))


def ran(schedule: FreezeSchedule, steps: int = 6) -> list[set[str]]:
    """The names of what moves in each step."""
    paddle.seed(7)
    network = TableAndNorm()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    seen = []
    with schedule.attach(network, optimizer, total_steps=steps) as freezing:
        for step in range(1, steps + 1):  # a target that moves: at the target, nothing else would
            before = values(network)
            (network(paddle.to_tensor([[1, 2, 8]])) - step).square().sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            seen.append(moved(before, values(network)))
            freezing.step()
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stages": ["head", "blocks.1", "blocks.0", "*"]},
        {"unfreeze_at": {0: "head", "3 steps": "blocks.1", "4 steps": "*"}},
        {"stages": ["head", "blocks.1", "blocks.0", "*"], "lr_decay": 2},
    ],
    ids=str,
)
def test_a_stage_of_which_rows_and_norms_leave_nothing_is_gone_unless_the_user_named_it(
    options, recwarn
):
    schedule = FreezeSchedule(
        train_norm="never", rows={"embeddings.0": "8:"}, verify=True, **options
    )
    seen = ran(schedule)
    head, table = {"head.weight", "head.bias"}, {"embeddings.0.weight"}
    blocks = {f"blocks.{i}.0.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert seen[0] == head | table
    assert seen[-1] == head | table | blocks
    assert not [one for one in recwarn if "has no effect" in str(one.message)]
    with pytest.raises(ValueError, match=r"the stage 'embeddings\.1' contradict each other"):
        ran(FreezeSchedule(stages=["head", "embeddings.1", "*"], train_norm="never"))


@pytest.mark.parametrize("norms", ["always", "never"])
def test_what_happened_is_replayed_beside_the_same_option(norms):
    schedule = FreezeSchedule(train_norm=norms)
    seen = ran(schedule)
    happened = schedule.run.as_explicit()
    again = FreezeSchedule(strategy=happened, train_norm=norms)
    assert ran(again) == seen
    assert again.run.as_explicit() == happened


def test_norms_that_were_all_found_frozen_do_not_open_and_that_is_said():
    network = conv_net()
    for path, layer in network.named_sublayers():
        if path.endswith(".1"):
            for tensor in layer.parameters():
                tensor.stop_gradient = True
    text = 'train_norm: every BatchNorm was found frozen, and "always" opens none'
    with pytest.warns(UserWarning, match=text):
        schedule, _ = phases(network, train_norm="always")
    assert schedule.history[0].opened == ("head",)


def test_norms_that_never_train_are_one_stage_whatever_the_rates():
    page = FreezeSchedule(train_norm="never", lr_decay=2).preview(conv_net(), total_steps=8)
    assert [stage.name for stage in page.stages if stage.name.startswith("norms")] == [
        "norms (never)"
    ]


@pytest.mark.parametrize("norms", ["never", {"BatchNorm": "never"}], ids=str)
def test_never_norms_and_their_statistics_stand_still_for_the_whole_run(norms):
    network = conv_net()
    schedule, seen = phases(network, train_norm=norms)
    assert seen == OPENED
    assert [change.trainable for change in schedule.history] == [10, 158, 306, 346]
    assert not any(tensor.stop_gradient for tensor in network.fc.parameters())
    assert not network.block1[1].weight.stop_gradient  # left as found


def test_always_holds_under_strategies_that_freeze_again():
    _, seen = phases(conv_net(), train_norm="always", strategy=Cyclic(every="1 epoch"))
    blocks = [HEAD, convolution(3), convolution(2), convolution(1)]
    assert seen == [block | NORMS | STATISTICS for block in blocks]


class Mixed(nn.Layer):
    """BatchNorm with and without weights, LayerNorm, and a class of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        paddle.seed(3)
        self.conv = nn.Conv2D(1, 4, 3, padding=1)
        self.bare = nn.BatchNorm2D(4)  # goes with the convolution, unless train_norm= says else
        self.batch = nn.BatchNorm2D(4)
        for name in ("weight", "bias"):
            delattr(self.bare, name)
            setattr(self.bare, name, None)
        self.layer = nn.LayerNorm(4)
        self.own = OwnNorm()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.batch(self.bare(self.conv(x)))
        return self.fc(self.own(self.layer(x.mean(axis=[2, 3]))))


class OwnNorm(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.scale = self.create_parameter([4], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, x):
        return self.scale * x / (x * x).mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ({"BatchNorm": "always"}, {"batch.weight", "batch.bias", "statistics"}),
        ({"LayerNorm": "always"}, {"layer.weight", "layer.bias"}),
        ({"LayerNorm": "with_stage", "*": "always"},
         {"batch.weight", "batch.bias", "statistics", "own.scale"}),
        ({"BatchNorm": "never", "*": "always"}, {"layer.weight", "layer.bias", "own.scale"}),
        ("never", set()),
    ],
    ids=lambda value: ", ".join(sorted(value)) if isinstance(value, set) else str(value),
)  # fmt: skip
def test_kinds_are_told_apart_and_a_norm_without_weights_goes_with_its_kind(norms, expected):
    network = Mixed()
    before = values(network)
    fit(network, FreezeSchedule(unfreeze_at={0: "fc"}, train_norm=norms, verify=True), epochs=1)
    names = moved(before, values(network)) - HEAD
    statistics = {f"{layer}.{n}" for layer in ("batch", "bare") for n in ("_mean", "_variance")}
    assert names & statistics in (set(), statistics)
    assert {n for n in names if n not in statistics} | (
        {"statistics"} if names & statistics else set()
    ) == expected


def test_never_also_holds_a_norm_without_weights_in_an_open_stage():
    network = Mixed()
    before = values(network)
    fit(network, FreezeSchedule(unfreeze_at={0: "*"}, train_norm="never", verify=True), epochs=1)
    assert moved(before, values(network)) == HEAD | {"conv.weight", "conv.bias"}


def test_a_norm_without_weights_beside_what_is_untouched_is_left_alone():
    network = Mixed()
    before = values(network)
    fit(network, FreezeSchedule(unfreeze_at={0: "fc"}, train_norm="never", untouched="conv"),
        epochs=1)  # fmt: skip
    names = moved(before, values(network))
    assert names == HEAD | {"conv.weight", "conv.bias", "bare._mean", "bare._variance"}


def test_a_followed_optimizer_does_the_same_and_refuses_at_once():
    network, before = conv_net(), values(conv_net())
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    with pytest.raises(ValueError, match="train_norm='never' and the stage"):
        FreezeSchedule(train_norm="never", stages=["fc", "block1.1"]).follow(
            network, optimizer, total_steps=4
        )
    schedule = FreezeSchedule(train_norm="always", strategy="head_only", verify=True)
    with schedule.follow(network, optimizer, total_steps=4):
        for _ in range(4):
            network(paddle.to_tensor(Images()[0][0][None])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
    assert moved(before, values(network)) == HEAD | NORMS | STATISTICS


def test_a_norm_keeps_the_rate_of_its_stage():
    table = FreezeSchedule(lr_decay=2, train_norm="always").preview(conv_net(), total_steps=8)
    rates = [(stage.name, stage.multiplier) for stage in table.stages if "norms" in stage.name]
    assert rates == [
        ("norms (always)", 0.5), ("norms (always) (2)", 0.25), ("norms (always) (3)", 0.125)
    ]  # fmt: skip


def test_what_was_found_frozen_or_is_untouched_goes_with_its_stage():
    network = conv_net()
    for tensor in network.block1[1].parameters():
        tensor.stop_gradient = True
    schedule, seen = phases(network, train_norm="always", untouched="block2")
    two = {name for name in NORMS | STATISTICS if name.startswith("block2")} | convolution(2)
    assert seen[0] - two == HEAD | {n for n in NORMS | STATISTICS if n.startswith("block3")}
    assert not any("block1.1" in name or "block2" in name
                   for stage in schedule.run.stages if "norms" in stage.name
                   for name in stage.parameters)  # fmt: skip


@pytest.mark.parametrize("norms", ["always", "never"])
def test_in_a_trainer_by_a_flag(tmp_path, norms):
    model = tiny_bert()
    norm = {n for n, w in model.named_parameters() if "norm" in n.lower()}
    before, schedule = values(model), FreezeSchedule()
    trainer_for(
        model, tmp_path, [schedule], num_train_epochs=2, freeze_verify=True,
        freeze_train_norm=[norms], freeze_unfreeze_at=["0=head", "1=encoder.layers.2"],
    ).train()  # fmt: skip
    names = moved(before, values(model))
    assert len(norm) == 14
    assert names & norm == (norm if norms == "always" else set())
    top = {name for name in names - norm if name.startswith("bert")}
    assert top
    assert all(name.startswith(("bert.encoder.layers.2", "bert.pooler")) for name in top)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm1D(2), "BatchNorm"),
        (nn.SyncBatchNorm(2), "BatchNorm"),
        (nn.InstanceNorm2D(2), "InstanceNorm"),
        (nn.GroupNorm(1, 2), "GroupNorm"),
        (nn.LayerNorm(2), "LayerNorm"),
        (type("LlamaRMSNorm", (OwnNorm,), {})(), "RMSNorm"),
        (type("Ours", (nn.LayerNorm,), {})(2), "LayerNorm"),
        (OwnNorm(), "*"),
        (nn.SpectralNorm([2, 2]), None),
        (nn.Linear(2, 2), None),
        (nn.Sequential(nn.LayerNorm(2)), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Layer) else value,
)
def test_the_kind_of_a_norm_is_read_from_its_class(layer, kind):
    assert kind_of(layer) == kind
