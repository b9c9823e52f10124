"""``rows``: some rows of a tensor train, all others stay as they are, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from networks import moved, open_names, values
from paddle import nn
from trainers import WORD_TABLE, TrainerCallback, tiny_bert, trainer_for

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

import adapters

from paddle_freeze_callback import (
    ByGradient,
    Cyclic,
    FreezeSchedule,
    RandomStages,
    trainable_ratio,
)
from paddle_freeze_callback.freezing.rows import train_rows
from paddle_freeze_callback.stages import Weight

WORDS, SIZE, NEW = 12, 4, 9  # rows 9, 10, 11 are the new ones


class Tokens(paddle.io.Dataset):
    """Sequences of six tokens, new ones among them; the same for the same index."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int):
        random = np.random.RandomState(index)
        return random.randint(0, WORDS, 6), np.array([index % 2])


class Encoder(nn.Layer):
    """An embedding with a table and positions, two blocks, a head."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.embeddings = nn.Layer()
        self.embeddings.words = nn.Embedding(WORDS, SIZE, **options)
        self.embeddings.places = nn.Embedding(6, SIZE)
        self.blocks = nn.LayerList([nn.Linear(SIZE, SIZE) for _ in range(2)])
        self.head = nn.Linear(SIZE, 2)

    def forward(self, ids):
        x = self.embeddings.words(ids) + self.embeddings.places(paddle.arange(6))
        for block in self.blocks:
            x = nn.functional.tanh(block(x))
        return self.head(x.mean(axis=1))


class Tied(Encoder):
    """Its head is the table, beside a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Layer()
        self.head.table = self.embeddings.words.weight
        self.head.bias = self.create_parameter([WORDS], is_bias=True)

    def forward(self, ids):
        x = self.embeddings.words(ids)
        for block in self.blocks:
            x = nn.functional.tanh(block(x))
        return paddle.matmul(x.mean(axis=1), self.head.table, transpose_y=True) + self.head.bias


def build(kind=Encoder, **options):
    paddle.seed(5)
    return kind(**options)


TABLE = "embeddings.words.weight"
ROWS = {"embeddings.words": "9:"}
STAGE = f"{TABLE}[9:12]"


def adamw(parameters, **options):
    return paddle.optimizer.AdamW(0.05, parameters=parameters, weight_decay=0.1, **options)


OPTIMIZERS = {
    "AdamW": adamw,
    "SGD with decay": lambda p, **o: paddle.optimizer.SGD(0.1, parameters=p, weight_decay=0.1, **o),
    "Momentum with decay": lambda p, **o: paddle.optimizer.Momentum(
        0.1, parameters=p, weight_decay=0.1, use_nesterov=True, **o
    ),
    "Lamb": lambda p, **o: paddle.optimizer.Lamb(0.1, parameters=p, **o),
    "RMSProp": lambda p, **o: paddle.optimizer.RMSProp(0.1, parameters=p, weight_decay=0.1, **o),
}


def by_fit(network, schedule, optimizer, epochs=2):
    model = paddle.Model(network)
    model.prepare(optimizer, nn.CrossEntropyLoss())
    model.fit(Tokens(), batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=[schedule])


def batches(count):
    every = list(paddle.io.DataLoader(Tokens(), batch_size=4))
    return [every[step % len(every)] for step in range(count)]


def train(network, optimizer, steps, after=lambda: None, minimize=False):
    network.train()
    for ids, labels in steps:
        loss = nn.functional.cross_entropy(network(ids), labels)
        if minimize:
            loss.backward()
            optimizer.minimize(loss)
        else:
            loss.backward()
            optimizer.step()
        optimizer.clear_grad()
        after()


def attached(network, schedule, optimizer, epochs=2):
    with schedule.attach(network, optimizer, epochs=epochs, steps_per_epoch=6) as run:
        train(network, optimizer, batches(6 * epochs), run.step)


def followed(network, schedule, optimizer, epochs=2):
    with schedule.follow(network, optimizer, epochs=epochs, steps_per_epoch=6):
        train(network, optimizer, batches(6 * epochs))


def minimized(network, schedule, optimizer, epochs=2):
    with schedule.follow(network, optimizer, epochs=epochs, steps_per_epoch=6):
        train(network, optimizer, batches(6 * epochs), minimize=True)


def changed_rows(before, network, name=TABLE):
    after = values(network)[name]
    return [i for i in range(len(after)) if before[name][i].tobytes() != after[i].tobytes()]


@pytest.mark.parametrize("loop", [by_fit, attached, followed, minimized], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_those_rows_train_and_the_rest_of_the_table_is_bitwise_still(loop, name):
    network = build()
    before = values(network)
    optimizer = OPTIMIZERS[name](network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS, verify=True)
    loop(network, schedule, optimizer)
    assert changed_rows(before, network) == [9, 10, 11]
    assert moved(before, values(network)) == {TABLE, "head.weight", "head.bias"}
    assert not {"_apply_optimize"} & vars(optimizer).keys()
    assert not hasattr(network.embeddings.words.weight, "trained_rows")


def test_where_a_slice_is_a_copy_it_holds_too():
    """As in releases, and under a setting, in which Paddle has no views."""
    paddle.set_flags({"FLAGS_use_stride_kernel": False})
    try:
        network = build()
        before = values(network)
        schedule = FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS, verify=True)
        attached(network, schedule, adamw(network.parameters()))
    finally:
        paddle.set_flags({"FLAGS_use_stride_kernel": True})
    assert changed_rows(before, network) == [9, 10, 11]


class Narrow(nn.Layer):
    """What trains under ``ROWS``, with the new rows as a table of their own: the reference."""

    def __init__(self, network: Encoder) -> None:
        super().__init__()
        self.old = network.embeddings.words.weight[:NEW].clone().detach()
        self.new = self.create_parameter([WORDS - NEW, SIZE])
        self.new.set_value(network.embeddings.words.weight[NEW:])
        self.network = network

    def forward(self, ids):
        table = paddle.concat([self.old, self.new])
        x = nn.functional.embedding(ids, table) + self.network.embeddings.places(paddle.arange(6))
        for block in self.network.blocks:
            x = nn.functional.tanh(block(x))
        return self.network.head(x.mean(axis=1))


@pytest.mark.parametrize("name", ["AdamW", "Momentum with decay", "SGD with decay"])
def test_they_train_as_a_table_of_their_own_would_and_clipping_counts_them_alone(name):
    def clip():
        return nn.ClipGradByGlobalNorm(0.05)

    network = build()
    optimizer = OPTIMIZERS[name](network.parameters(), grad_clip=clip())
    with FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS).attach(
        network, optimizer, total_steps=12
    ) as run:
        train(network, optimizer, batches(12), run.step)
    narrow = Narrow(other := build())
    optimizer = OPTIMIZERS[name]([narrow.new, *other.head.parameters()], grad_clip=clip())
    train(narrow, optimizer, batches(12))
    ours, theirs = network.embeddings.words.weight[NEW:], narrow.new
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(network.head.weight.numpy(), other.head.weight.numpy(), rtol=1e-5)


def test_the_gradient_of_the_others_is_zero_before_the_step_under_accumulation_too():
    network = build()
    optimizer = adamw(network.parameters())
    with FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS).attach(
        network, optimizer, total_steps=2
    ):
        sums = np.zeros([WORDS, SIZE], "float32")
        for ids, labels in batches(2):
            nn.functional.cross_entropy(network(ids), labels).backward()
            gradient = network.embeddings.words.weight.grad.numpy()
            assert (gradient[:NEW] == 0).all()
            assert (gradient[NEW:] != sums[NEW:]).any()
            sums = gradient
        optimizer.step()
        moments = optimizer.state_dict()
    (moment,) = [v.numpy() for k, v in moments.items() if k.endswith("moment1_0") and
                 list(v.shape) == [WORDS, SIZE]]  # fmt: skip
    assert (moment[:NEW] == 0).all()
    assert (moment[NEW:] != 0).any()


class Half(Encoder):
    """Its table alone is in half precision: a CPU has few kernels for it."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings.words.to(dtype="bfloat16")

    def forward(self, ids):
        x = self.embeddings.words(ids).astype("float32") + self.embeddings.places(paddle.arange(6))
        return self.head(self.blocks[0](x).mean(axis=1))


@pytest.mark.parametrize("kind", [Encoder, Half])
def test_loss_scaling_and_half_precision(kind):
    network = build(kind)
    before = values(network)
    optimizer = paddle.optimizer.SGD(
        2.0, parameters=network.parameters(), weight_decay=0.1, multi_precision=True
    )
    scaler = paddle.amp.GradScaler(enable=True, init_loss_scaling=8.0)
    with FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS, verify=True).attach(
        network, optimizer, total_steps=4
    ) as run:
        for ids, labels in batches(4):
            scaler.scale(nn.functional.cross_entropy(network(ids), labels)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()
            run.step()
    assert changed_rows(before, network) == [9, 10, 11]


@pytest.mark.parametrize("made", ["before", "in the first step"])
def test_the_others_stay_in_the_master_weight_too(made):
    """As on a GPU: the step moves the master weight, and the weight is that, rounded."""
    weight = nn.Embedding(4, 2).to(dtype="bfloat16").weight
    weight.set_value(paddle.to_tensor([[0.1, 0.2]] * 4, dtype="bfloat16"))
    optimizer = paddle.optimizer.SGD(0.1, parameters=[weight], multi_precision=True)
    exact = paddle.to_tensor([[0.1, 0.2]] * 4)  # more exact than the weight
    if made == "before":
        optimizer._master_weights[weight.name] = exact.clone()
    rounded = weight.astype("float32").numpy()

    def step(*given, **named):
        master = optimizer._master_weights.setdefault(weight.name, weight.astype("float32"))
        master.set_value(master * 0.9)
        weight.set_value(master.astype("bfloat16"))

    optimizer._apply_optimize = step
    stop = train_rows([Weight("table", ("table",), weight, rows=(1, 3))], optimizer)
    for _ in range(2):
        optimizer._apply_optimize()
    stop()
    master = optimizer._master_weights[weight.name].numpy()
    expected = (exact.numpy() if made == "before" else rounded)[[0, 3]]
    assert (master[[0, 3]] == expected).all()
    assert (weight.astype("float32").numpy()[[0, 3]] == rounded[[0, 3]]).all()
    np.testing.assert_allclose(master[1:3], exact.numpy()[1:3] * 0.81, rtol=1e-2)


def test_a_tied_head_keeps_its_other_rows_and_the_rows_get_both_gradients():
    network = build(Tied)
    before = values(network)
    schedule = FreezeSchedule(unfreeze_at={0: "head.bias"}, rows={"head.table": "-3:"}, verify=True)
    attached(network, schedule, adamw(network.parameters()))
    assert network.head.table is network.embeddings.words.weight
    assert changed_rows(before, network) == [9, 10, 11]
    assert moved(before, values(network)) == {TABLE, "head.table", "head.bias"}


def test_a_head_of_nothing_but_rows_is_said_as_another_stage_opens_first():
    rows = {"head.weight": ":2", "head.bias": ":1"}
    table = FreezeSchedule(strategy="head_only", rows=rows).preview(build(), total_steps=3)
    assert table.phases[0].opened == ("blocks.1", "head.weight[0:2]", "head.bias[0:1]")
    assert any(
        note.startswith("rows: nothing but these rows is in 'head', so that 'blocks.1' takes its")
        for note in table.notes
    )


def test_they_train_from_start_to_end_whatever_opens_and_count_by_element(capsys):
    network = build()
    before = values(network)
    schedule = FreezeSchedule(every="3 steps", rows={"embeddings.words": "4:6"}, verify=True)
    table = schedule.preview(network, total_steps=12)
    ratios = []
    optimizer = adamw(network.parameters())
    with schedule.attach(network, optimizer, total_steps=12, say=print) as run:
        train(
            network, optimizer, batches(12),
            lambda: (run.step(), ratios.append(trainable_ratio(network))),
        )  # fmt: skip
    name = f"{TABLE}[4:6]"
    total, head, block, places = WORDS * SIZE + 24 + 2 * 20 + 10, 10, 20, 24
    trained = [head + 8, head + block + 8, head + 2 * block + 8, head + 2 * block + places + 8]
    assert [change.trainable for change in run.history] == trained
    assert {change.total for change in run.history} == {total}
    assert [phase.trainable for phase in table.phases] == trained
    assert [stage.numel for stage in table.stages if stage.name == name] == [8]
    assert [ratios[step] for step in (0, 3, 6, 9)] == [one / total for one in trained]
    assert run.history[0].opened == ("head", name)
    assert "opens 2 stages; freezes 3 stages" in capsys.readouterr().out
    assert changed_rows(before, network) == [4, 5]
    assert "embeddings.places.weight" in moved(before, values(network))
    assert str(run.as_explicit()).count("words") == 0
    assert trainable_ratio(network) == 1.0


def test_a_picture_shows_them_all_the_time(tmp_path):
    pytest.importorskip("matplotlib")
    schedule = FreezeSchedule(every="3 steps", rows=ROWS)
    figure = schedule.plot(tmp_path / "plan.svg", build(), total_steps=12)
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert "embedding…words.weight[9:12]" in labels


@pytest.mark.parametrize(
    "strategy", [RandomStages(k=1, every="2 steps"), Cyclic(every="2 steps")], ids=repr
)
def test_strategies_that_draw_never_see_the_table(strategy):
    """LISA's ``"embeddings"`` do not become the lowest block where the table is all of them."""
    network = build()
    del network.embeddings.places
    network.embeddings.places = lambda places: 0.0
    schedule = FreezeSchedule(strategy=strategy, rows=ROWS, verify=True)
    before = values(network)
    attached(network, schedule, adamw(network.parameters()))
    opened = [change.opened for change in schedule.history]
    assert opened[0].count(STAGE) == 1
    assert not any(STAGE in names for names in opened[1:])
    if isinstance(strategy, RandomStages):
        assert {len(names) for names in opened} == {1, 3}  # one block at a time
    assert changed_rows(before, network) == [9, 10, 11]


def test_a_table_that_was_found_frozen_opens_for_them_and_is_frozen_again():
    network = build()
    network.embeddings.words.weight.stop_gradient = True
    before = values(network)
    attached(network, FreezeSchedule(rows=ROWS, verify=True), adamw(network.parameters()))
    assert changed_rows(before, network) == [9, 10, 11]
    assert TABLE not in open_names(network)


@pytest.mark.parametrize("moments", [None, {0: "*"}, {0: "head", "1 step": "embeddings"}], ids=str)
@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"lr_decay": 2.6}, 1),
        ({"lr": {"head": 0.5}}, 1),
        ({"lr": {"head": 0.5, "*": 0.1}}, 0.1),
        ({"lr": {TABLE: 3, "*": 0.5}}, 3),
        ({"lr": {"embeddings": 0.3, "*": 1}}, 0.3),
        ({"lr": {"embeddings": 0.3, TABLE: 3}}, 3),
    ],
    ids=str,
)
def test_their_rate_is_the_optimizers_unless_lr_means_them_by_whatever_name(
    moments, rates, expected
):
    network = build()
    table = FreezeSchedule(unfreeze_at=moments, rows=ROWS, **rates).preview(network, total_steps=3)
    assert {stage.name: stage.multiplier for stage in table.stages}[STAGE] == expected


def test_what_moves_another_row_is_named():
    network = build()
    run = FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS, verify=True).attach(
        network, adamw(network.parameters()), total_steps=3
    )
    with paddle.no_grad():
        network.embeddings.words.weight[2, 1] = 7.0
    with pytest.raises(
        RuntimeError, match=r"embeddings\.words\.weight\[0:9\] moved although it is"
    ):
        run.close()
    assert network.embeddings.words.weight[2, 1] == 7.0


def test_saved_and_resumed_it_is_bitwise_the_uninterrupted_run(tmp_path):
    def begin():
        model = paddle.Model(build())
        model.prepare(adamw(model.network.parameters()), nn.CrossEntropyLoss())
        return model

    schedule = {"every": "1 epoch", "rows": ROWS, "verify": True}
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    with paddle.utils.unique_name.guard():
        model = begin()
        first = FreezeSchedule(**schedule)
        model.fit(Tokens(), epochs=3, save_dir=str(tmp_path), callbacks=[first], **options)
    whole = values(model.network)
    with paddle.utils.unique_name.guard():
        model = begin()
        model.load(str(tmp_path / "0"))
        schedule["resume_from"] = tmp_path / "0"
        model.fit(Tokens(), epochs=2, callbacks=[FreezeSchedule(**schedule)], **options)
    assert moved(whole, values(model.network)) == set()


@pytest.mark.parametrize(
    ("network", "optimizer", "message"),
    [
        (lambda: build(sparse=True), adamw,
         "embeddings.words has sparse gradients .sparse=True., which cannot be cut to some rows"),
        (build, lambda p: paddle.incubate.LookAhead(adamw(p)), "LookAhead moves weights in ways"),
        (build, lambda p: paddle.optimizer.LBFGS(parameters=p), "LBFGS moves weights in ways"),
    ],
    ids=["sparse", "LookAhead", "LBFGS"],
)  # fmt: skip
def test_what_cannot_keep_the_others_still_is_refused(network, optimizer, message):
    network = network()
    optimizer = optimizer(network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS)
    for begin in (schedule.attach, schedule.follow, schedule.preview):
        options = {"optimizer": optimizer, "total_steps": 3}
        with pytest.raises(ValueError, match=message):
            begin(network, **options)


def test_other_sparse_gradients_do_not_matter():
    network = build()
    network.embeddings.places = nn.Embedding(6, SIZE, sparse=True)
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    attached(network, FreezeSchedule(unfreeze_at={0: "*"}, rows=ROWS, verify=True), optimizer)


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back_after_a_failure_too(fails):
    network = build()
    optimizer = adamw(network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS)
    try:
        with schedule.attach(network, optimizer, total_steps=3) as run:
            train(network, optimizer, batches(3), run.step)
            if fails:
                raise KeyError
    except KeyError:
        pass
    before = values(network)
    train(network, optimizer, batches(1))
    assert changed_rows(before, network) == list(range(WORDS))


def test_a_run_that_is_thrown_away_lets_go():
    network = build()
    optimizer = adamw(network.parameters())
    FreezeSchedule(unfreeze_at={0: "head"}, rows=ROWS).attach(network, optimizer, total_steps=3)
    before = values(network)
    train(network, optimizer, batches(1))
    assert changed_rows(before, network) == list(range(WORDS))


# ---------------------------------------------------------------- in a Trainer


def test_new_tokens_train_in_a_trainer_and_its_checkpoints_hold_the_others_as_they_were(tmp_path):
    """Under its AdamW with decay and clipping; a checkpoint is written right after the step."""
    network = tiny_bert()
    before = values(network)
    seen = []

    class Saved(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **context):
            seen.append(changed_rows(before, model, f"{WORD_TABLE}.weight"))

    trainer = trainer_for(
        network, tmp_path, [Saved()], num_train_epochs=2, weight_decay=0.5,
        freeze_strategy="head_only", freeze_rows=[f"{WORD_TABLE}=40:"], freeze_verify=True,
    )  # fmt: skip
    trainer.add_callback(FreezeSchedule())
    trainer.train()
    assert seen
    assert all(rows == list(range(40, 50)) for rows in seen)


def test_a_lora_model_saves_the_table_of_which_rows_train():
    network = adapters.lora(None, 7)
    table = f"{adapters.WORDS}.weight"
    before = values(network)
    optimizer = adamw(network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "**.layers.*"}, rows={adapters.WORDS: "-4:"})
    with schedule.attach(network, optimizer, total_steps=2) as run:
        for _ in range(2):
            network(paddle.to_tensor([[3, 47, 49]])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            run.step()
    assert changed_rows(before, network, table) == [46, 47, 48, 49]
    assert table not in open_names(network)
    assert table.removeprefix("model.") in network.get_trainable_state_dict()


def test_by_gradient_compares_stages_alone():
    """What always trains is none of its business, however large its gradients are."""
    network = build()
    schedule = FreezeSchedule(strategy=ByGradient(every="2 steps"), rows=ROWS)
    attached(network, schedule, adamw(network.parameters()))
    _, note = schedule.run.record.decisions[0]
    assert set(note["gradients"]) == {"head", "blocks.1", "blocks.0", "embeddings"}
