"""Recomputed layers get their gradients, and nothing else wants one because of that."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import logging
import types
import weakref
from collections import namedtuple
from collections.abc import Callable

import numpy as np
import paddle
import pytest
from networks import Vectors, model_for, open_names, values
from paddle import nn
from paddle.autograd import PyLayer
from paddle.distributed.fleet.utils import recompute
from paddle.incubate.distributed.fleet import recompute_hybrid, recompute_sequential
from trainers import LIBRARY, PlainBert, Tokens, TrainerCallback, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.freezing import recompute as module
from paddle_freeze_callback.freezing.recompute import Bridge

NEVER = "1000 steps"


def plain(function, *args, **options):
    """What ``recompute`` stands for."""
    return function(*args)


# ------------------------------------------------------------ every open weight has its gradient


class Net(nn.Layer):
    """Embeddings, three blocks and a head; ``run`` calls each block."""

    def __init__(self, run: Callable = plain) -> None:
        super().__init__()
        paddle.seed(5)
        self.run = run
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.LayerList(
            [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(3)]
        )
        self.more()
        self.head = nn.Linear(4, 2)

    def more(self) -> None: ...

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = self.block(block, x)
        return self.head(x.mean(1))

    def block(self, block, x):
        return self.run(block, x)


class Stack(Net):
    """Block upon block."""


class Around(Net):
    """A function around a layer, that holds the whole network."""

    def block(self, block, x):
        return self.run(lambda x: self.blocks[0](x) * 0.1 + x + block(x), x)


class Inside(Net):
    """A block is recomputed inside a recomputed block."""

    def block(self, block, x):
        return self.run(lambda x: x + self.run(block[2], self.run(block[0], x).tanh()), x)


class Whole(Net):
    """All of it in one function of integers."""

    def forward(self, ids):
        return self.run(super().forward, ids) if self.run is plain else self.run(self.all, ids)

    def all(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Integers(Net):
    """The embeddings are recomputed, too: no input could want a gradient."""

    def forward(self, ids):
        x = self.run(self.embed, ids)
        for block in self.blocks:
            x = self.run(block, x)
        return self.run(self.head, x.mean(1))


class Sequential(Net):
    """``recompute_sequential``; it hands on what a segment gives as if that were a tuple."""

    def forward(self, ids):
        x = self.embed(ids)
        segments = [lambda x, block=block: (block(x),) for block in self.blocks]
        if self.run is plain:
            for segment in segments:
                (x,) = segment(x)
        else:
            (x,) = recompute_sequential({"segments": 3}, segments, x)
        return self.head(x.mean(1))


class ByName(Net):
    """Inputs by name, without a gradient, as an attention mask is."""

    def block(self, block, x):
        def function(hidden, mask=None, flag=True):
            return block(hidden) * mask if flag else None

        mask = paddle.to_tensor([[[1.0], [0.0], [1.0]]])
        return function(x, mask) if self.run is plain else self.run(function, x, mask=mask)


class Pairs(Net):
    """A tuple goes in, and a tuple comes out, of which one half trains."""

    def block(self, block, x):
        aside, trains = self.run(lambda pair: (pair[1].detach() * 1.0, block(pair[0])), (x, x))
        return trains + aside


class Hands(Net):
    """The function hands its mask on, as it came."""

    def block(self, block, x):
        mask = paddle.ones([1, 3, 1])
        x, again = self.run(lambda x, mask: (block(x) * mask, mask * 1.0), x, mask)
        return x * again


class Closure(Net):
    """The function has its input from elsewhere."""

    def block(self, block, x):
        return self.run(lambda scale: block(x) * scale, paddle.ones([1]))


class Bare(Net):
    """A weight that no layer inside the function owns."""

    def more(self):
        self.scale = self.create_parameter([4], default_initializer=nn.initializer.Constant(0.5))

    def block(self, block, x):
        return self.run(lambda x: block(x) * self.scale, x)


class Branches(Net):
    """A block that is fed by another than the last that ran."""

    def forward(self, ids):
        x = self.embed(ids)
        one, two = self.run(self.blocks[0], x), self.run(self.blocks[1], x)
        return self.head((self.run(self.blocks[2], one) + two).mean(1))


class Dropout(Net):
    """What is random must be the same once more."""

    def more(self):
        self.dropout = nn.Dropout(0.5)

    def block(self, block, x):
        return self.run(lambda x: self.dropout(block(x)), x)


class Named(Net):
    """A tuple with names comes out."""

    def block(self, block, x):
        return self.run(lambda x: TwoOf(block(x), x * 1.0), x)[0]


class Behind(Net):
    """A frozen LSTM, which has no backward of its own, feeds the recomputed blocks."""

    def more(self):
        self.lstm = nn.LSTM(4, 4)

    def forward(self, ids):
        x, _ = self.lstm(self.embed(ids))
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(x.mean(1))


TwoOf = namedtuple("TwoOf", ["one", "two"])
NETWORKS = [Stack, Around, Inside, Whole, Integers, Sequential, ByName, Pairs, Hands, Closure, Bare,
            Branches, Dropout, Named]  # fmt: skip
OPENED = [
    ["head"],
    ["head", "blocks.2"],
    ["head", "blocks.0"],
    ["head", "blocks.1"],
    ["blocks.0"],
    ["head", "blocks.{1-2}"],
    ["head", "embed"],
    ["embed"],
    "*",
]


def gradients(network) -> dict[str, np.ndarray]:
    """The gradients of one step; nothing that is frozen may have any."""
    network.train()
    paddle.seed(11)
    network(paddle.to_tensor([[1, 2, 3], [4, 2, 0]])).square().sum().backward()
    found = {
        name: tensor.grad.numpy().copy()
        for name, tensor in network.named_parameters()
        if tensor.grad is not None
    }
    for tensor in network.parameters():
        tensor.clear_gradient(False)
    return found


def attach(network, **options):
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    return FreezeSchedule(**options).attach(network, optimizer, total_steps=2000)


@contextlib.contextmanager
def opening(network, opened):
    later = {} if opened == "*" else {NEVER: "*"}
    with attach(network, unfreeze_at={0: opened, **later}):
        yield


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("opened", OPENED, ids=str)
@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_gradients_of_all_open_weights_are_those_without_recompute(kind, opened):
    found = []
    for network in (kind(), kind(recompute)):
        with opening(network, opened):
            found.append([gradients(network), gradients(network)])
            assert set(found[-1][0]) == set(open_names(network))
    for first, second in zip(*found):
        same(first, second)
    same(*found[1])


def test_a_weight_that_no_recomputed_layer_owns_has_its_gradient():
    found = []
    for network in (Bare(), Bare(recompute)):
        with opening(network, ["scale"]):
            found.append(gradients(network))
            assert set(found[-1]) == {"scale"}
    same(*found)


def test_a_frozen_embedding_and_lstm_below_recomputed_blocks():
    found = []
    for network in (Behind(), Behind(recompute)):
        with opening(network, ["head", "blocks.{1-2}"]):
            found.append(gradients(network))
            assert set(found[-1]) == set(open_names(network))
    same(*found)


def test_a_frozen_lstm_inside_a_recomputed_function():
    class Within(Behind):
        def forward(self, ids):
            x = self.embed(ids)
            for block in self.blocks:
                x = self.run(lambda x, block=block: block(self.lstm(x)[0]), x)
                x = x.detach()  # the next LSTM has no backward for its input
            return self.head(self.run(lambda x: self.blocks[2](self.lstm(x)[0]), x).mean(1))

    found = []
    for network in (Within(), Within(recompute)):
        with opening(network, ["head", "blocks.2"]):
            found.append(gradients(network))
    same(*found)
    assert "blocks.2.0.weight" in found[1]


def test_recompute_hybrid_of_many_processes(monkeypatch):
    """It refuses a CPU, and splits inputs among processes; here it is told that it is a GPU."""
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.distributed.ParallelEnv, "device_id", 0)
    group = types.SimpleNamespace(nranks=1, rank=0)

    def run(function, *args):
        return recompute_hybrid({"mp_group": group}, function, *args)

    for kind in (Stack, Around, Hands, Integers):
        for opened in OPENED:
            found = []
            for network in (kind(), kind(run)):
                with opening(network, opened):
                    found.append(gradients(network))
            same(*found)


def test_the_input_that_is_added_can_be_split_among_all_processes(monkeypatch):
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: 6)
    sizes = []

    class Copied(PyLayer):  # a recomputation of somebody else, after the model of Paddle's
        @staticmethod
        def forward(ctx, function, *args):
            ctx.function, ctx.args = function, args
            sizes.append([arg.size for arg in args])
            with paddle.no_grad():
                return function(*args)

        @staticmethod
        def backward(ctx, gradient):
            inputs = [arg.detach() for arg in ctx.args]
            with paddle.enable_grad():
                paddle.autograd.backward([ctx.function(*inputs)], [gradient])
            return tuple(None for _ in inputs)

    found = []
    for network in (Stack(), Stack(lambda function, x: Copied.apply(function, x))):
        with opening(network, ["head", "blocks.2"]):
            found.append(gradients(network))
    same(*found)
    assert sizes == [[24, 6]] * 3


def test_mixed_precision_is_recomputed_as_it_was():
    network = Stack(recompute)
    with opening(network, ["head", "blocks.2"]), paddle.amp.auto_cast(dtype="bfloat16"):
        assert set(gradients(network)) == set(open_names(network))


# ------------------------------------------------------------ and nothing else wants one


def flags(network) -> list[tuple[str, bool]]:
    """Which outputs of blocks want a gradient in a step."""
    seen = []
    hooks = [
        layer.register_forward_post_hook(
            lambda layer, inputs, output, name=name: seen.append((name, not output.stop_gradient))
        )
        for name, layer in network.named_sublayers()
        if isinstance(layer, (nn.Embedding, nn.Linear))
    ]
    given = []
    run = network.run
    network.run = lambda *args: given.append(run(*args)) or given[-1]
    gradients(network)
    network.run = run
    for hook in hooks:
        hook.remove()
    return seen + [(f"call {i}", not output.stop_gradient) for i, output in enumerate(given)]


def test_what_frozen_blocks_give_wants_no_gradient_whether_recomputed_or_not():
    for run in (plain, recompute):
        network = Stack(run)
        with opening(network, ["head", "blocks.2"]):
            for _ in range(3):
                wants = dict(flags(network))
                assert [wants[f"call {i}"] for i in range(3)] == [False, False, True]
                assert not wants["embed"]
                assert not any(wants[f"blocks.{i}.2"] for i in (0, 1))


def test_no_flag_of_a_tensor_of_the_network_changes():
    """Neither of the input, nor of what the function hands on, be it a mask or a weight."""
    network = Stack()
    mask, ids, x = paddle.ones([2]), paddle.to_tensor([1, 2]), paddle.ones([2, 4])
    with opening(network, ["head", "blocks.2"]):
        weight = network.head.weight
        given, *rest = recompute(
            lambda x, mask, ids: (network.blocks[2](x), mask, ids, network.embed.weight, weight),
            x, mask, ids,
        )  # fmt: skip
        assert not given.stop_gradient
        assert [one.stop_gradient for one in rest] == [True, True, True, False]
        assert all(one.stop_gradient for one in (x, mask, ids, network.embed.weight))
        assert weight.is_leaf
        given.sum().backward()
        assert x.grad is None
        assert network.blocks[2][0].weight.grad is not None


class Held:
    """What a recomputed function holds."""

    def __init__(self, call) -> None:
        self.call = call


@pytest.mark.parametrize("opened", [["head"], ["head", "blocks.2"]], ids=str)
def test_nothing_keeps_a_function_when_its_outputs_are_gone(opened):
    """What was recorded is freed at once, without the garbage collector."""
    network = Stack()
    gc.collect()
    gc.disable()
    try:
        with opening(network, opened):
            for _ in range(2):
                function = Held(network.blocks[2])
                alive = weakref.ref(function)
                output = recompute(lambda x, held=function: held.call(x), paddle.ones([2, 4]))
                del function
                if "blocks.2" in opened:
                    assert alive() is not None
                    output.sum().backward()
                else:
                    assert alive() is None
                del output
                assert alive() is None
    finally:
        gc.enable()


def test_nothing_keeps_an_output_that_the_backward_pass_does_not_need():
    network = Stack()
    with opening(network, ["head", "blocks.2"]):
        trains, aside = recompute(lambda x: (network.blocks[2](x), x + 1.0), paddle.ones([2, 4]))
        alive = weakref.ref(aside)
        del aside
        assert alive() is None
        trains.sum().backward()
        assert network.blocks[2][0].weight.grad is not None


def test_a_recomputation_without_autograd_is_left_alone():
    network = Stack(recompute)
    with opening(network, ["head", "blocks.2"]):
        with paddle.no_grad():
            network(paddle.to_tensor([[1]]))
        assert network.training
        assert recompute(network.blocks[2], paddle.ones([1, 4])).stop_gradient is False
        with paddle.no_grad():
            assert recompute(network.blocks[2], paddle.ones([1, 4])).stop_gradient is True


def test_other_layers_of_python_are_called_as_they_are():
    seen = []

    class Plain(PyLayer):
        @staticmethod
        def forward(ctx, x):
            seen.append(x)
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    class WithFunction(PyLayer):
        @staticmethod
        def forward(ctx, function, x):
            seen.append(function)
            return function(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    network, x = Stack(), paddle.ones([2, 4])
    with opening(network, ["head"]):
        assert Plain.apply(x).stop_gradient
        assert WithFunction.apply(network.blocks[0], x).stop_gradient
        x.stop_gradient = False
        assert not Plain.apply(x).stop_gradient
    assert seen[1] is network.blocks[0]


# ------------------------------------------------------------ memory


def kept_bytes(network) -> int:
    """The size of all that a step records for its backward pass."""
    sizes = []

    def note(tensor):
        sizes.append(tensor.size)
        return tensor

    with paddle.autograd.saved_tensors_hooks(note, lambda tensor: tensor):
        gradients(network)
    return sum(sizes)


@pytest.mark.parametrize("run", [plain, recompute], ids=["plain", "recompute"])
@pytest.mark.parametrize("kind", [Stack, Around, Whole])
def test_the_first_step_after_a_transition_records_what_the_second_does(kind, run):
    network = kind(run)
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    found = []
    schedule = FreezeSchedule(every="2 steps")
    with schedule.attach(network, optimizer, total_steps=10) as freezing:
        for _ in range(10):
            opened = open_names(network)
            found.append((opened, kept_bytes(network)))
            freezing.step()
    assert len({str(opened) for opened, _ in found}) == 5
    assert [size for _, size in found[::2]] == [size for _, size in found[1::2]]
    if run is recompute:
        return
    for opened, size in found:  # and what a network does that was frozen by hand
        for name, tensor in network.named_parameters():
            tensor.stop_gradient = name not in opened
        assert kept_bytes(network) == size


# ------------------------------------------------------------ operations in place


def set_row(x):
    x[:, 0] = 0.0
    return x


def plus(x):
    x += 1.0
    return x


IN_PLACE = {
    "relu_": nn.functional.relu_,
    "tanh_": lambda x: x.tanh_(),
    "add_": lambda x: x.add_(paddle.ones_like(x)),
    "scale_": lambda x: x.scale_(2.0),
    "x[:, 0] = 0": set_row,
    "+=": plus,
    "reshape_": lambda x: x.reshape_([x.shape[0], -1]),
    "unsqueeze_": lambda x: x.unsqueeze_(0).squeeze_(0),
    "clip_": lambda x: x.clip_(-1, 1),
    "masked_fill_": lambda x: x.masked_fill_(x > 0, 0.5),
}


class InPlace(nn.Layer):
    """Changes what its blocks give, and notes when a frozen one gives what wants a gradient."""

    def __init__(self, operation) -> None:
        super().__init__()
        paddle.seed(4)
        self.operation = operation
        self.block1 = nn.Sequential(nn.Linear(4, 8))
        self.block2 = nn.Sequential(nn.Linear(8, 8))
        self.fc = nn.Linear(8, 2)
        self.wanting: list[str] = []

    def forward(self, x):
        x = self.operation(self.noted("block1", x))
        return self.fc(self.operation(self.noted("block2", x)))

    def noted(self, name, x):
        block = getattr(self, name)
        wanted = not x.stop_gradient or not block[0].weight.stop_gradient
        x = block(x)
        if x.stop_gradient is wanted:
            self.wanting.append(name)
        return x


class Rows(Vectors):
    """The same vectors, for a Trainer."""

    def __getitem__(self, index):
        row, label = super().__getitem__(index)
        return {"x": row, "labels": label}


def in_fit(operation, folder):
    network = InPlace(operation)
    before = values(network)
    model_for(network).fit(
        Vectors(), batch_size=4, epochs=3, verbose=0, callbacks=[FreezeSchedule(verify=True)]
    )
    return network, before


def in_a_trainer(operation, folder):
    network = InPlace(operation)
    before = values(network)
    schedule = FreezeSchedule(verify=True)
    trainer = trainer_for(
        network, folder, [schedule], data=Rows(), num_train_epochs=3, kind=Classifies
    )
    trainer.train()
    return network, before


def by_hand(operation, folder):
    network = InPlace(operation)
    before = values(network)
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    with FreezeSchedule(verify=True).attach(
        network, optimizer, total_steps=12, steps_per_epoch=4
    ) as freezing:
        for i in range(12):
            network.train()
            rows = np.stack([Vectors()[2 * i % 24 + k][0] for k in range(2)])
            network(paddle.to_tensor(rows)).square().sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    return network, before


kinds = importlib.import_module(f"{LIBRARY}.trainer")


class Classifies(kinds.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **options):
        logits = model(inputs["x"])
        loss = nn.functional.cross_entropy(logits, inputs["labels"].flatten())
        return (loss, logits) if return_outputs else loss


@pytest.mark.parametrize("loop", [by_hand, in_fit, in_a_trainer])
@pytest.mark.parametrize("name", IN_PLACE)
def test_operations_in_place_work_in_every_step(tmp_path, name, loop):
    network, before = loop(IN_PLACE[name], tmp_path)
    after = values(network)
    assert not network.wanting
    assert any(not np.array_equal(before[key], after[key]) for key in ("fc.weight", "fc.bias"))


# ------------------------------------------------------------ in the training loops


class Vector(Net):
    """For the loops: a vector goes in."""

    def more(self):
        self.embed = nn.Linear(4, 4)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = self.run(block, x)
        return self.head(x)


def test_fit_with_recompute_gives_the_same_weights():
    found = []
    for run in (plain, recompute):
        network = Vector(run)
        schedule = FreezeSchedule(every="3 steps", verify=True)
        model_for(network).fit(
            Vectors(), batch_size=4, epochs=4, shuffle=False, verbose=0, callbacks=[schedule]
        )
        found.append(values(network))
        assert len(schedule.history) > 3
    same(*found)


class RecomputedBert(PlainBert):
    """With BERT's names, and reentrant recomputation as many networks write it."""

    run = staticmethod(recompute)

    def forward(self, input_ids):
        x = self.run(self.bert.embeddings, input_ids)
        for layer in self.bert.encoder.layers:
            x = self.run(layer, x)
        return self.classifier(nn.functional.tanh(self.run(self.bert.pooler, x[:, 0])))


class Given(Classifies):
    def compute_loss(self, model, inputs, return_outputs=False, **options):
        return super().compute_loss(
            model, {"x": inputs["input_ids"], "labels": inputs["labels"]}, return_outputs
        )

    def _get_train_sampler(self):  # in order, so that runs can be compared
        return paddle.io.DistributedBatchSampler(
            self.train_dataset, batch_size=4, shuffle=False, num_replicas=1, rank=0
        )


def trained_bert(folder, run, *, resume=None, **flags):
    paddle.seed(3)
    with paddle.utils.unique_name.guard():  # as in a process of its own
        network = RecomputedBert()
        network.run = run
        trainer = trainer_for(
            network, folder, [FreezeSchedule(every="3 steps", verify=True)], kind=Given,
            num_train_epochs=2, learning_rate=1e-2, data=Tokens(), **flags,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
    return values(network)


def test_a_trainer_with_recompute_gives_the_same_weights(tmp_path):
    same(trained_bert(tmp_path, plain), trained_bert(tmp_path, recompute))


@pytest.mark.parametrize("step", [2, 3, 4, 9])
def test_a_resumed_run_with_recompute_is_bitwise_the_same(tmp_path, step):
    """Before, at and after a transition."""
    saved = {"save_strategy": "steps", "save_steps": step, "max_steps": 12}
    whole = trained_bert(tmp_path / "a", recompute, **saved)
    resumed = trained_bert(
        tmp_path / "b", recompute, resume=str(tmp_path / "a" / f"checkpoint-{step}"), max_steps=12
    )
    assert not {name for name in whole if whole[name].tobytes() != resumed[name].tobytes()}


@pytest.mark.skipif(LIBRARY != "paddlenlp", reason="has no such networks that run on a CPU")
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_networks_of_the_library_with_reentrant_recompute(tmp_path, name):
    """Set on the network, and through the Trainer's ``recompute=True``."""
    transformers = importlib.import_module(f"{LIBRARY}.transformers")
    sizes = importlib.import_module("trainers").SIZES
    found = []
    for on in (False, True):
        paddle.seed(2)
        if name == "bert":
            network = tiny_bert()
            trainer = trainer_for(network, tmp_path, [FreezeSchedule(every="2 steps")], max_steps=8,
                                  recompute=on)  # fmt: skip
        else:
            config = transformers.LlamaConfig(
                **sizes, use_recompute=on, recompute=on, recompute_use_reentrant=True
            )
            network = transformers.LlamaForCausalLM(config)
            trainer = trainer_for(network, tmp_path, [FreezeSchedule(every="2 steps")], max_steps=8,
                                  recompute=on, data=Sequences())  # fmt: skip
        trainer.train()
        found.append(values(network))
    for key in found[0]:
        np.testing.assert_allclose(found[0][key], found[1][key], rtol=1e-4, atol=1e-5)


class Sequences(Tokens):
    """For a causal language model: the labels are the tokens."""

    def __getitem__(self, index):
        row = super().__getitem__(index)["input_ids"]
        return {"input_ids": row, "labels": row}


# ------------------------------------------------------------ left as found


def stands() -> bool:
    """Whether anything of ours is in Paddle."""
    log = logging.getLogger(module.PADDLES_LOG)
    return "apply" in PyLayer.__dict__ or bool(log.filters) or bool(module._at_work)


def test_nothing_stays_in_paddle_when_the_last_schedule_is_over():
    assert not stands()
    one, two = attach(Stack(), every="2 steps"), attach(Stack(), every="3 steps")
    assert stands()
    for _ in range(9):
        one.step()
    one.close()
    assert stands()
    network = Stack(recompute)
    two.close()
    assert not stands()
    with opening(network, ["head", "blocks.2"]):
        assert "blocks.2.0.weight" in gradients(network)
        assert stands()
    assert not stands()


class Stops(paddle.callbacks.Callback):
    def on_train_batch_end(self, step, logs=None):
        raise RuntimeError("stop")


def test_nothing_stays_in_paddle_after_an_exception_and_restore():
    schedule = FreezeSchedule()
    with pytest.raises(RuntimeError, match="stop"):
        model_for(Vector(recompute)).fit(Vectors(), verbose=0, callbacks=[schedule, Stops()])
    schedule.run.restore()
    assert not stands()


def test_nothing_stays_in_paddle_when_a_run_with_an_exception_is_forgotten():
    network = Vector(recompute)
    schedule = FreezeSchedule()
    model = model_for(network)
    with pytest.raises(RuntimeError, match="stop"):
        model.fit(Vectors(), verbose=0, callbacks=[schedule, Stops()])
    assert stands()
    del schedule, model, network
    gc.collect()
    assert not stands()


def test_nothing_stays_in_paddle_when_nobody_undoes_it():
    bridge = Bridge(Stack())
    assert stands()
    del bridge
    gc.collect()
    assert not stands()


def test_nothing_stays_in_paddle_after_an_exception_in_a_recomputed_function():
    def fails(x):
        raise RuntimeError("stop")

    network = Stack(recompute)
    with opening(network, ["head", "blocks.2"]):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="stop"):
                recompute(fails, paddle.ones([1]))
        assert "blocks.2.0.weight" in gradients(network)
    assert not stands()


def test_nothing_stays_in_paddle_after_a_trainer(tmp_path):
    class Interrupts(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    trained_bert(tmp_path, recompute, max_steps=1)
    assert not stands()
    schedule = FreezeSchedule()
    trainer = trainer_for(
        RecomputedBert(), tmp_path, [schedule, Interrupts()], kind=Given, max_steps=2
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert stands()
    schedule.run.restore()
    assert not stands()


def test_somebody_else_may_stand_there_before_and_after():
    seen = []

    def other(before):
        def apply(cls, *args):
            seen.append(cls.__name__)
            return (before.__get__(None, cls) if before else super(PyLayer, cls).apply)(*args)

        return classmethod(apply)

    first = other(None)
    PyLayer.apply = first
    network = Stack(recompute)
    try:
        with opening(network, ["head", "blocks.2"]):
            assert "blocks.2.0.weight" in gradients(network)
            assert seen
        assert PyLayer.__dict__["apply"] is first
        del PyLayer.apply
        run = attach(network, unfreeze_at={0: ["head", "blocks.2"], NEVER: "*"})
        second = PyLayer.apply = other(PyLayer.__dict__["apply"])
        assert "blocks.2.0.weight" in gradients(network)
        run.close()
        assert PyLayer.__dict__["apply"] is second
        network.blocks[2][0].weight.stop_gradient = False
        assert recompute(network.blocks[2], paddle.ones([1, 4])).stop_gradient
        with opening(network, ["head", "blocks.2"]):  # before the other, who is before us
            assert "blocks.2.0.weight" in gradients(network)
        assert PyLayer.__dict__["apply"] is second
    finally:
        del PyLayer.apply
    assert not stands()


def test_a_copy_of_the_network_is_a_network():
    network = Stack(recompute)
    with opening(network, ["head", "blocks.2"]):
        twin = copy.deepcopy(network)
        assert set(gradients(twin)) == set(gradients(network))
    assert not stands()
    assert len(gradients(twin)) == 0 or "head.weight" in gradients(twin)


# ------------------------------------------------------------ what others ask, and Paddle


@pytest.mark.parametrize(("run", "wanted"), [(plain, True), (recompute, None)])
def test_a_training_step_settles_whether_layers_are_recomputed(run, wanted):
    network, other = Stack(run), Stack(recompute)
    bridge, bystander = Bridge(network), Bridge(Stack())
    ids = paddle.to_tensor([[1, 2, 3]])
    try:
        assert bridge.settled is False
        with paddle.no_grad():
            network(ids)
        network.eval()
        network(ids)
        assert bridge.settled is False
        network.train()
        other(ids)  # somebody else's
        network(ids)
        assert bridge.settled is wanted
        network(ids)
        assert bridge.settled is wanted
        assert bystander.settled is False
    finally:
        bridge.undo()
        bystander.undo()
    assert not stands()


def test_a_transition_does_not_walk_the_network():
    class Closed(Stack):
        def refuse(self, *args, **kwargs):
            raise AssertionError

        parameters = named_parameters = sublayers = named_sublayers = refuse
        children = named_children = refuse

    Bridge(Closed()).undo()


def test_paddle_starts_its_recomputations_where_we_stand():
    """Fails when Paddle changes: then nothing of the above would be cured."""
    where = "paddle.distributed.fleet.recompute"
    for name, file in (
        ("RecomputeFunction", "recompute"),
        ("_HPRecomputeFunction", "recompute_hybrid"),
    ):
        cls = getattr(importlib.import_module(f"{where}.{file}"), name)
        assert issubclass(cls, PyLayer)
        assert "apply" not in cls.__dict__
        assert module._recomputes(cls, (print, 1))
    assert "apply" not in PyLayer.__dict__


def test_paddles_remark_on_each_frozen_block_is_not_made_while_a_schedule_is_at_work():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger(module.PADDLES_LOG)
    log.addHandler(handler)
    network = Stack(recompute)
    try:
        with opening(network, ["head", "blocks.2"]):
            gradients(network)
            log.warning("something else")
        assert said == ["something else"]
        network.embed.weight.stop_gradient = True
        gradients(network)
        assert "None of the inputs" in said[1]
    finally:
        log.removeHandler(handler)
