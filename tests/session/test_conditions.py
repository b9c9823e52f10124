"""Conditions of real training, one after another; each test is named after its condition."""

from __future__ import annotations

import copy
import errno

import numpy as np
import paddle
import pytest
from networks import Images, Vectors, conv_net, model_for, moved, open_names, values
from paddle import nn
from paddle.distributed.fleet.utils import recompute
from paddlenlp import transformers as nlp
from paddlenlp.peft import LoRAConfig, LoRAModel, PrefixConfig, PrefixModelForCausalLM
from paddlenlp.peft.prefix import llama_postprocess_past_key_value
from paddlenlp.trainer import EarlyStoppingCallback, TrainerCallback
from trainers import SIZES, Tokens, tiny_bert, trainer_for

from paddle_freeze_callback import (
    FreezeSchedule,
    HeadOnly,
    HeadThenAll,
    partition,
    trainable_ratio,
)

# ------------------------------------------------------------ recompute


class Blocks(nn.Layer):
    def __init__(self, mode: str | None = None) -> None:
        super().__init__()
        paddle.seed(5)
        self.mode = mode
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.LayerList(
            [nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(4)]
        )
        self.head = nn.Linear(4, 2)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            if self.mode:
                x = recompute(layer, x, use_reentrant=self.mode == "reentrant")
            else:
                x = layer(x)
        return self.head(x.mean(1))


def gradients(network) -> dict[str, np.ndarray]:
    network.train()
    network(paddle.to_tensor([[1, 2, 3]])).square().sum().backward()
    found = {
        name: tensor.grad.numpy().copy()
        for name, tensor in network.named_parameters()
        if tensor.grad is not None
    }
    for tensor in network.parameters():
        tensor.clear_gradient(False)
    return found


@pytest.mark.parametrize("mode", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("steps", range(6))
def test_recompute_in_a_hand_written_network_keeps_every_gradient(mode, steps):
    """At each point of the schedule, and twice, because the first forward decides what is kept."""
    results = []
    for network in (Blocks(), Blocks(mode)):
        optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
        schedule = FreezeSchedule(every="1 step")
        with schedule.attach(network, optimizer, total_steps=9, step=steps):
            results.append([gradients(network), gradients(network)])
            assert set(results[-1][1]) == set(open_names(network))
    for plain, recomputed in zip(*results):
        assert set(plain) == set(recomputed)
        for name in plain:
            np.testing.assert_allclose(plain[name], recomputed[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("opened", [0, 1, 2, 3])
def test_recompute_keeps_gradients_of_an_open_block_wherever_it_is(opened):
    """Stages in an order of the user's own: one block open among frozen ones."""
    results = []
    for network in (Blocks(), Blocks("reentrant")):
        optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
        schedule = FreezeSchedule(unfreeze_at={0: ["head", f"layers.{opened}"], "5 steps": "*"})
        with schedule.attach(network, optimizer, total_steps=9):
            results.append([gradients(network), gradients(network)])
            assert set(results[-1][1]) == set(open_names(network))
    for plain, recomputed in zip(*results):
        for name in recomputed:
            np.testing.assert_allclose(plain[name], recomputed[name], rtol=1e-6, atol=1e-8)


class Branches(nn.Layer):
    """An open block that is fed by a frozen layer other than the last that ran."""

    def __init__(self, mode: str | None) -> None:
        super().__init__()
        paddle.seed(6)
        self.mode = mode
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        run = (lambda layer, y: recompute(layer, y)) if self.mode else (lambda layer, y: layer(y))
        return self.head(run(self.block, one)) + self.head(two)


def test_recompute_of_a_block_behind_a_frozen_branch_keeps_its_gradient():
    found = []
    for mode in (None, "reentrant"):
        network = Branches(mode)
        optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
        schedule = FreezeSchedule(unfreeze_at={0: ["head", "block"], "5 steps": "*"})
        with schedule.attach(network, optimizer, total_steps=9):
            for _ in range(2):
                network.train()
                network(paddle.ones([2, 4])).square().sum().backward()
                found.append(network.block.weight.grad.numpy().copy())
                network.clear_gradients()
    np.testing.assert_allclose(found[0], found[2], rtol=1e-6)
    np.testing.assert_allclose(found[1], found[3], rtol=1e-6)


class Residual(Blocks):
    """As transformers do it: the sum is inside the recomputed function; or all in one function."""

    def forward(self, ids):
        run = recompute if self.mode else (lambda function, x: function(x))
        x = self.embed(ids)
        if self.whole:
            return run(self.rest, x)
        for layer in self.layers:
            x = run(lambda x, layer=layer: x + layer(x), x)
        return self.head(x.mean(1))

    def rest(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("steps", range(6))
def test_recompute_of_a_function_around_a_layer_keeps_every_gradient(steps, whole):
    results = []
    for network in (Residual(), Residual("reentrant")):
        network.whole = whole
        optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
        schedule = FreezeSchedule(every="1 step")
        with schedule.attach(network, optimizer, total_steps=9, step=steps):
            results.append([gradients(network), gradients(network)])
            assert set(results[-1][1]) == set(open_names(network))
    for plain, recomputed in zip(*results):
        assert set(plain) == set(recomputed)
        for name in plain:
            np.testing.assert_allclose(plain[name], recomputed[name], rtol=1e-6, atol=1e-8)


def test_recompute_above_bare_frozen_parameters_keeps_every_gradient():
    class Bare(Blocks):
        def __init__(self, mode):
            super().__init__(mode)
            self.table = self.create_parameter([10, 4])
            self.embed = None

        def forward(self, ids):
            x = nn.functional.embedding(ids, self.table)
            for layer in self.layers:
                x = recompute(layer, x) if self.mode else layer(x)
            return self.head(x.mean(1))

    results = []
    for network in (Bare(None), Bare("reentrant")):
        optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
        plan = {0: ["head", "layers"], "5 steps": "*"}
        with FreezeSchedule(unfreeze_at=plan).attach(network, optimizer, total_steps=9):
            results.append(gradients(network))
            assert set(results[-1]) == set(open_names(network))
    for name, plain in results[0].items():
        np.testing.assert_allclose(plain, results[1][name], rtol=1e-6, atol=1e-8)


def test_without_recompute_nothing_frozen_is_differentiated_in_any_step():
    network = Blocks()
    optimizer = paddle.optimizer.SGD(0.0, parameters=network.parameters())
    outputs: list[paddle.Tensor] = []
    network.layers[2].register_forward_post_hook(
        lambda layer, inputs, output: outputs.append(output)
    )
    with FreezeSchedule(every="1 step").attach(network, optimizer, total_steps=9, step=1):
        network.eval()
        network(paddle.to_tensor([[1]]))
        gradients(network)
        gradients(network)
        gradients(network)
    assert [tensor.stop_gradient for tensor in outputs] == [True, True, True, True]


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_recompute_through_the_trainer_gives_the_same_weights(tmp_path, model):
    def train(recompute: bool):
        paddle.seed(1)
        if model == "bert":
            network = tiny_bert()
        else:
            network = nlp.LlamaForCausalLM(nlp.LlamaConfig(**SIZES, use_recompute=recompute))
        trainer = trainer_for(
            network, tmp_path, [FreezeSchedule(every=1, stages=3, verify=True)],
            num_train_epochs=4, recompute=recompute, data=Sequences() if model == "llama" else None,
        )  # fmt: skip
        before = values(network)
        trainer.train()
        return before, values(network)

    before, plain = train(False)
    _, recomputed = train(True)
    assert len(moved(before, plain)) == len(before)
    for name in plain:
        np.testing.assert_allclose(plain[name], recomputed[name], rtol=1e-4, atol=1e-5)


class Sequences(Tokens):
    """For a causal language model: the labels are the tokens."""

    def __getitem__(self, index):
        row = super().__getitem__(index)["input_ids"]
        return {"input_ids": row, "labels": row}


# ------------------------------------------------------------ optimizers

OPTIMIZERS = {
    "SGD": lambda rate, **o: paddle.optimizer.SGD(rate, **o),
    "Momentum": lambda rate, **o: paddle.optimizer.Momentum(rate, **o),
    "Adam": lambda rate, **o: paddle.optimizer.Adam(rate, **o),
    "AdamW": lambda rate, **o: paddle.optimizer.AdamW(rate, **o),
    "Lamb": lambda rate, **o: paddle.optimizer.Lamb(
        rate, lamb_weight_decay=o.pop("weight_decay", 0.0), **o
    ),
    "RMSProp": lambda rate, **o: paddle.optimizer.RMSProp(rate, **o),
    "Adagrad": lambda rate, **o: paddle.optimizer.Adagrad(rate, **o),
}
SETTINGS = {
    "plain": {},
    "decay and clipping": {"weight_decay": 0.1, "grad_clip": nn.ClipGradByGlobalNorm(0.5)},
}


def one_step(network, optimizer) -> None:
    network.train()
    inputs = paddle.to_tensor(np.stack([Vectors()[i][0] for i in range(4)]))
    network(inputs).square().sum().backward()
    optimizer.step()
    optimizer.clear_grad()


class ThreeLayers(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        paddle.seed(2)
        self.layer1, self.layer2, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(nn.functional.tanh(self.layer2(nn.functional.tanh(self.layer1(x)))))


@pytest.mark.parametrize("rate", ["float", "scheduler"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_never_move_a_frozen_stage_and_begin_afresh_with_a_new_one(
    name, grouped, setting, rate
):
    """``layer2`` opens at step 2, as a new optimizer moves it; freezes at 4, opens at 6."""

    def optimizer_for(network, steps_done=0):
        learning_rate = 0.05
        if rate == "scheduler":
            learning_rate = paddle.optimizer.lr.NaturalExpDecay(0.05, gamma=0.1)
            for _ in range(steps_done):
                learning_rate.step()
        parameters = network.parameters()
        if grouped:
            layers = (network.layer1, network.layer2, network.head)
            parameters = [{"params": layer.parameters()} for layer in layers]
        return OPTIMIZERS[name](learning_rate, parameters=parameters, **SETTINGS[setting])

    network = ThreeLayers()
    optimizer = optimizer_for(network)
    plan = {0: "head", "2 steps": "layer2", "4 steps": {"freeze": "layer2"}, "6 steps": "layer2"}
    schedule = FreezeSchedule(unfreeze_at=plan, verify=True)
    with schedule.attach(network, optimizer, total_steps=8) as freezing:
        for step in range(8):
            twin = ThreeLayers()
            twin.set_state_dict(network.state_dict())
            before = values(network)
            one_step(network, optimizer)
            changed = moved(before, values(network))
            opened = {"head", "layer2"} if step in (2, 3, 6, 7) else {"head"}
            assert {name.split(".")[0] for name in changed} == opened
            if step == 2:
                for tensor in twin.layer1.parameters():
                    tensor.stop_gradient = True
                one_step(twin, optimizer_for(twin, step))
                for part in ("weight", "bias"):
                    np.testing.assert_array_equal(
                        getattr(twin.layer2, part).numpy(), getattr(network.layer2, part).numpy()
                    )
            if rate == "scheduler":
                optimizer._learning_rate.step()
            freezing.step()
    assert trainable_ratio(network) == 1.0


class LowPrecision(ThreeLayers):
    """Weights in bfloat16; a CPU multiplies matrices of float32 only."""

    def __init__(self) -> None:
        super().__init__()
        self.to(dtype="bfloat16")

    def forward(self, x):
        for layer in (self.layer1, self.layer2, self.head):
            x = nn.functional.linear(
                x, layer.weight.astype("float32"), layer.bias.astype("float32")
            )
        return x


def state_elements(optimizer) -> int:
    state = optimizer.state_dict()
    tensors = [*state.values(), *state.get("master_weights", {}).values()]
    return sum(int(tensor.size) for tensor in tensors if isinstance(tensor, paddle.Tensor))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimizer_state_of_a_refrozen_stage_is_freed_on_request(dtype):
    plan = {0: "*", "2 steps": {"freeze": ["layer1", "layer2"]}, "4 steps": "layer2"}
    elements = {}
    for free in (False, True):
        network = LowPrecision() if dtype == "bfloat16" else ThreeLayers()
        make = paddle.optimizer.SGD if dtype == "bfloat16" else paddle.optimizer.AdamW
        masters = {"multi_precision": True} if dtype == "bfloat16" else {}
        optimizer = make(0.05, parameters=network.parameters(), **masters)
        schedule = FreezeSchedule(unfreeze_at=plan, free_optimizer_state=free)
        elements[free] = []
        with schedule.attach(network, optimizer, total_steps=6) as freezing:
            for _ in range(6):
                network(paddle.ones([2, 4])).sum().backward()
                optimizer.step()
                optimizer.clear_grad()
                elements[free].append(state_elements(optimizer))
                freezing.step()
        names = [name for name in optimizer.state_dict() if "moment" in name]
        assert all(name.endswith("_0") for name in names)
    per_stage = 4 * 4 + 4
    each = 1 if dtype == "bfloat16" else 2
    powers = 0 if dtype == "bfloat16" else 4  # two numbers for each of two parameters
    freed = each * per_stage + powers
    assert elements[False] == [elements[False][0]] * 6
    kept = elements[True]
    assert kept[0] - kept[2] == 2 * freed
    assert kept[5] - kept[2] == freed


def test_freeing_optimizer_state_lowers_the_memory_that_paddle_holds():
    class Wide(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(512, 512), nn.Linear(512, 2)

        def forward(self, x):
            return self.head(self.body(x))

    def held() -> int:
        return int(paddle.base.core.host_memory_stat_current_value("Allocated", 0))

    network = Wide()
    optimizer = paddle.optimizer.Adam(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(
        unfreeze_at={0: "*", "1 step": {"freeze": "body"}}, free_optimizer_state=True
    )
    with schedule.attach(network, optimizer, total_steps=2) as freezing:
        network(paddle.ones([1, 512])).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        before = held()
        freezing.step()
        after = held()
    # two moments and the gradient, of four bytes each
    assert before - after >= 3 * 4 * 512 * 512


# ------------------------------------------------------------ mixed precision


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_mixed_precision_through_fit_keeps_frozen_stages_still(level):
    network = conv_net()
    schedule = FreezeSchedule(every="2 steps", verify=True)
    model = model_for(network, amp_configs=level)
    before = values(network)
    model.fit(Images(), batch_size=4, epochs=2, verbose=0, callbacks=[schedule])
    assert len(schedule.history) == 4
    assert {"fc.weight", "block1.0.weight"} <= moved(before, values(network))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_mixed_precision_with_a_grad_scaler_in_a_loop_by_hand(level, dtype):
    network = ThreeLayers()
    optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
    scaler = paddle.amp.GradScaler(init_loss_scaling=128.0)
    schedule = FreezeSchedule(every="2 steps", verify=True)
    with schedule.attach(network, optimizer, total_steps=6) as freezing:
        for step in range(6):
            before = values(network)
            with paddle.amp.auto_cast(level=level, dtype=dtype):
                loss = network(paddle.ones([2, 4])).square().sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()
            changed = {name.split(".")[0] for name in moved(before, values(network))}
            assert changed == set(["head", "layer2", "layer1"][: 1 + step // 2])
            freezing.step()


@pytest.mark.parametrize("master_grad", [False, True])
def test_bf16_parameters_keep_their_master_weights_through_freeze_and_unfreeze(
    tmp_path, master_grad
):
    """``amp_master_grad`` of the Trainer is taken as given; on a CPU it casts nothing."""
    network = LowPrecision()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters(), multi_precision=True)
    plan = {0: "*", "2 steps": {"freeze": "layer2"}, "4 steps": "layer2"}
    schedule = FreezeSchedule(unfreeze_at=plan, verify=True)
    masters, moving = set(), []
    with schedule.attach(network, optimizer, total_steps=6) as freezing:
        for _ in range(6):
            before = values(network)
            network(paddle.ones([2, 4])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            masters.add(id(optimizer._master_weights[network.layer2.weight.name]))
            moving.append("layer2.weight" in moved(before, values(network)))
            freezing.step()
    assert moving == [True, True, False, False, True, True]
    assert len(masters) == 1
    trainer = trainer_for(tiny_bert(), tmp_path, [FreezeSchedule()], amp_master_grad=master_grad)
    trainer.train()


# ------------------------------------------------------------ to_static


@pytest.mark.parametrize("full_graph", [None, True])
def test_to_static_follows_every_transition(full_graph):
    network = ThreeLayers()
    options = {} if full_graph is None else {"full_graph": full_graph}
    network = paddle.jit.to_static(network, **options)
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    plan = {0: "head", "2 steps": "layer{1-2}", "4 steps": {"freeze": "layer1"}}
    schedule = FreezeSchedule(unfreeze_at=plan, verify=True)
    with schedule.attach(network, optimizer, total_steps=6) as freezing:
        for step in range(6):
            before = values(network)
            one_step(network, optimizer)
            changed = {name.split(".")[0] for name in moved(before, values(network))}
            expected = [{"head"}, {"head", "layer1", "layer2"}, {"head", "layer2"}][step // 2]
            assert changed == expected, step
            freezing.step()
    before = values(network)
    one_step(network, optimizer)
    assert len(moved(before, values(network))) == 6


@pytest.mark.parametrize("how", ["function", "method", "wrapper"])
def test_to_static_of_the_full_graph_from_outside_follows_too(how):
    class Encoder(ThreeLayers):
        @paddle.jit.to_static(full_graph=True)
        def encode(self, x):
            return self.head(nn.functional.tanh(self.layer2(nn.functional.tanh(self.layer1(x)))))

    class Wrapper(nn.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    network = Encoder()
    if how == "function":

        def function(x):
            return network(x)

        call = paddle.jit.to_static(function, full_graph=True)
    else:
        call = network.encode
    if how == "wrapper":
        call = paddle.jit.to_static(Wrapper(network), full_graph=True)
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with FreezeSchedule(every="2 steps").attach(network, optimizer, total_steps=6) as freezing:
        for step in range(6):
            before = values(network)
            call(paddle.ones([2, 4])).square().sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            changed = {name.split(".")[0] for name in moved(before, values(network))}
            assert changed == set(["head", "layer2", "layer1"][: 1 + step // 2])
            freezing.step()


# ------------------------------------------------------------ LoRA, prefix tuning


def tiny_llama(**sizes):
    paddle.seed(4)
    return nlp.LlamaForCausalLM(nlp.LlamaConfig(**{**SIZES, **sizes}))


def base_and_adapters(before, after, mark: str) -> tuple[set[str], set[str]]:
    changed = moved(before, after)
    adapters = {name for name in before if mark in name}
    return changed - adapters, changed & adapters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": "2 steps"},
        {"stages": 2, "every": "3 steps"},
        {"stages": ["model.llama.layers.2", "model.llama.layers.{0-1}", "*"], "every": "2 steps"},
        {"stages": ["**.layers.2.**.lora_A", "**.lora_B", "*"], "every": "3 steps"},
        {"unfreeze_at": {0: "model.llama.layers.2", 1: "*"}},
    ],
    ids=str,
)
def test_lora_base_weights_that_no_selector_names_stay_frozen(tmp_path, options):
    config = LoRAConfig(target_modules=[".*q_proj.*", ".*v_proj.*"], r=2, lora_alpha=4)
    network = LoRAModel(tiny_llama(), config)
    network.mark_only_lora_as_trainable()
    before = values(network)
    flags = [tensor.stop_gradient for tensor in network.parameters()]
    schedule = FreezeSchedule(verify=True, **options)
    trainer = trainer_for(
        network, tmp_path, [schedule], data=Sequences(), learning_rate=0.05, num_train_epochs=4
    )
    trainer.train()
    base, adapters = base_and_adapters(before, values(network), "lora_")
    assert not base
    assert len(adapters) == 2 * 3 * 2
    assert len(schedule.history) > 1
    assert [tensor.stop_gradient for tensor in network.parameters()] == flags


def test_prefix_tuning_leaves_the_model_frozen(tmp_path):
    config = PrefixConfig(
        num_prefix_tokens=2, num_attention_heads=2, num_hidden_layers=3, hidden_size=16,
    )  # fmt: skip
    network = PrefixModelForCausalLM(
        model=tiny_llama(), prefix_config=config,
        postprocess_past_key_value=llama_postprocess_past_key_value,
    )  # fmt: skip
    network.mark_only_prefix_as_trainable()
    before = values(network)
    schedule = FreezeSchedule(stages=["prefix_encoder", "*"], verify=True)
    trainer_for(network, tmp_path, [schedule], data=Sequences(), num_train_epochs=2).train()
    base, adapters = base_and_adapters(before, values(network), "prefix")
    assert not base
    assert adapters


# ------------------------------------------------------------ tied weights


class TiedHead(nn.Layer):
    """PaddleNLP 2.8's Llama ignores ``tie_word_embeddings``; this is what it means."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden_states, tensor_parallel_output=None):
        return paddle.matmul(hidden_states, self.weight, transpose_y=True)


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_tied_language_model_head_is_one_tensor_in_one_stage(tmp_path, kind):
    if kind == "gpt":
        network = nlp.GPTForCausalLM(nlp.GPTConfig(**SIZES))
    else:
        network = tiny_llama(tie_word_embeddings=True)
        network.lm_head = TiedHead(network.llama.embed_tokens.weight)
    parts = partition(network)
    members = [name for stage in parts for name in stage.parameters]
    assert len(members) == len(set(members)) == len(list(network.named_parameters()))
    assert len(parts[0].parameters) == 1
    assert "embed" in parts[0].parameters[0]  # its first name; lm_head leads to it, too
    schedule = FreezeSchedule(strategy=HeadOnly(), verify=True)
    before = values(network)
    trainer_for(network, tmp_path, [schedule], data=Sequences(), num_train_epochs=1).train()
    total = sum(tensor.size for tensor in network.parameters())
    assert schedule.history[0].total == total
    assert schedule.history[0].trainable == parts[0].numel == 50 * 16
    changed = moved(before, values(network))
    tied = {n for n, v in before.items() if v.shape == (50, 16)}
    assert changed == tied


# ------------------------------------------------------------ normalization


def test_sync_batch_norm_is_held_by_eval_mode_because_it_ignores_global_stats():
    """It has no CPU kernel: what can be shown here is the mode in which it would run."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(conv_net())
    modes: list[bool] = []
    network.block1[1].forward = lambda x: modes.append(network.block1[1].training) or x
    network.block2[1].forward = network.block3[1].forward = lambda x: x
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with FreezeSchedule().attach(network, optimizer, total_steps=9):
        network.train()
        network(paddle.ones([2, 1, 6, 6]))
    network(paddle.ones([2, 1, 6, 6]))
    assert modes == [False, True]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: nn.InstanceNorm2D(4), [4, 4, 3, 3]),
        (lambda: nn.GroupNorm(2, 4), [4, 4, 3, 3]),
        (lambda: nn.LayerNorm(4), [4, 3, 4]),
        (lambda: nn.BatchNorm(4), [4, 4, 3, 3]),
    ],
    ids=["instance", "group", "layer", "batch, of the old kind"],
)
def test_other_norms_work_frozen_and_come_back_untouched(norm, shape):
    head = nn.Linear(int(np.prod(shape[1:])), 1)
    network = nn.Sequential(("norm", norm()), ("flat", nn.Flatten()), ("head", head))
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    attributes = dict(vars(network.norm))
    before = values(network)
    with FreezeSchedule(verify=True).attach(network, optimizer, total_steps=9) as freezing:
        network.train()
        network(paddle.randn(shape)).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        freezing.step()
        assert moved(before, values(network)) <= {"head.weight", "head.bias"}
    plain = {k: v for k, v in vars(network.norm).items() if isinstance(v, (bool, int, type(None)))}
    del plain["_built"]  # Paddle's own note that there was a forward
    assert plain == {k: attributes[k] for k in plain}


# ------------------------------------------------------------ early stopping, best model


@pytest.mark.parametrize("position", ["before", "after"])
def test_early_stopping_and_the_best_model_in_the_trainer(tmp_path, position):
    schedule = FreezeSchedule(every="2 steps", verify=True)
    stopping = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=10.0)
    callbacks = [schedule, stopping] if position == "before" else [stopping, schedule]
    trainer = trainer_for(
        tiny_bert(), tmp_path, callbacks, evaluation_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=False, num_train_epochs=4,
    )  # fmt: skip
    trainer.eval_dataset = Tokens(8)
    trainer.train()
    assert trainer.state.global_step == 6  # two evaluations without the improvement asked for
    assert [change.step for change in schedule.history] == [0, 2, 4]
    assert trainable_ratio(trainer.model) == 1.0


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_early_stopping_plateau_and_checkpoints_in_fit(tmp_path, position):
    schedule = FreezeSchedule(every="3 steps", verify=True)
    others = [
        paddle.callbacks.EarlyStopping("loss", patience=1, verbose=0, min_delta=10, mode="min"),
        paddle.callbacks.ReduceLROnPlateau("loss", patience=1, verbose=0),
        paddle.callbacks.ModelCheckpoint(1, str(tmp_path)),
    ]
    others.insert(position, schedule)
    network = conv_net()
    model = model_for(network)
    model.fit(
        Images(), Images(8), batch_size=4, epochs=9, verbose=0, callbacks=others,
        save_dir=str(tmp_path),
    )  # fmt: skip
    assert [change.step for change in schedule.history] == [0, 3, 6, 9]
    assert trainable_ratio(network) == 1.0
    saved = paddle.load(str(tmp_path / "0.pdparams"))
    assert list(saved) == list(conv_net().state_dict())


# ------------------------------------------------------------ evaluation


def test_evaluation_and_prediction_in_the_trainer_change_nothing(tmp_path):
    class Evaluates(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            count = len(schedule.history)
            before, names = values(model), open_names(model)
            trainer.evaluate(Tokens(4))
            trainer.predict(Tokens(4))
            assert not moved(before, values(model))
            assert open_names(model) == names
            assert len(schedule.history) == count

    results = []
    for extra in ([], [Evaluates()]):
        schedule = FreezeSchedule(every="2 steps", verify=True)
        trainer = trainer_for(tiny_bert(), tmp_path, [schedule, *extra], num_train_epochs=2)
        trainer.train()
        results.append((values(trainer.model), [c.step for c in schedule.history]))
    assert results[0][1] == results[1][1]
    assert not moved(results[0][0], results[1][0])
    trainer.evaluate(Tokens(4))
    trainer.predict(Tokens(4))
    assert trainable_ratio(trainer.model) == 1.0


# ------------------------------------------------------------ exceptions


def test_a_full_disk_while_saving_leaves_the_network_to_the_next_run(tmp_path, monkeypatch):
    network, schedule = tiny_bert(), FreezeSchedule()
    trainer = trainer_for(network, tmp_path, [schedule], save_strategy="steps", save_steps=2)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "_save_ckpt_func", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert trainable_ratio(network) < 1
    again = FreezeSchedule(strategy=HeadThenAll(1))
    trainer_for(network, tmp_path, [again], num_train_epochs=2).train()
    assert again.history[0].trainable == 34
    assert trainable_ratio(network) == 1.0


def test_a_copy_made_in_the_middle_of_training_is_independent():
    copies = []

    class Copies(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            copies.append(copy.deepcopy(self.model.network))

    network = conv_net()
    schedule = FreezeSchedule(frozen_dropout="eval", every="2 steps")
    model_for(network).fit(
        Images(), batch_size=4, epochs=2, verbose=0, callbacks=[schedule, Copies()]
    )
    before = values(network)
    for twin in copies:
        assert list(twin.state_dict()) == list(network.state_dict())
        twin.train()
        twin(paddle.ones([2, 1, 6, 6])).sum().backward()
    assert not moved(before, values(network))
    assert all(tensor.grad is None or not tensor.grad.any() for tensor in network.parameters())
