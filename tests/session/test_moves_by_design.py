"""Parameters that move by design: scales of quantization, base weights that LoRA merges into."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from networks import Images, conv_net, model_for, moved, values
from paddle import nn
from paddle.nn.quant import quant_layers
from paddle.quantization import QAT, QuantConfig
from paddle.quantization.quanters import FakeQuanterWithAbsMaxObserver
from trainers import InOrder, trainer_for

from paddle_freeze_callback import FreezeSchedule, partition, trainable_ratio
from paddle_freeze_callback.stages.weights import moving_state, weights


def quantized(rate=0.9):
    quanter = FakeQuanterWithAbsMaxObserver(moving_rate=rate)
    return QAT(QuantConfig(activation=quanter, weight=quanter)).quantize(conv_net())


def scales(network, part):
    return {n: v for n, v in values(network).items() if part in n and n.endswith("_scale")}


def by_hand(network, schedule, folder, epochs=4):
    optimizer = paddle.optimizer.SGD(0.05, parameters=network.parameters())
    with schedule.attach(network, optimizer, epochs=epochs, steps_per_epoch=6) as run:
        for step in range(6 * epochs):
            network.train()
            images = np.stack([Images()[4 * (step % 6) + index][0] for index in range(4)])
            network(paddle.to_tensor(images)).square().mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            run.step()


def in_fit(network, schedule, folder, epochs=4):
    model_for(network).fit(Images(), batch_size=4, epochs=epochs, verbose=0, callbacks=[schedule])


class Pixels(Images):
    def __getitem__(self, index: int):
        image, label = super().__getitem__(index)
        return {"x": image, "labels": label}


class PlainTrainer(InOrder):
    def compute_loss(self, model, inputs, return_outputs=False, **options):
        return nn.functional.cross_entropy(model(inputs["x"]), inputs["labels"])


def in_trainer(network, schedule, folder, epochs=4):
    flags = {"data": Pixels(), "kind": PlainTrainer, "num_train_epochs": epochs}
    trainer_for(network, folder, [schedule], **flags, remove_unused_columns=False).train()


LOOPS = pytest.mark.parametrize("loop", [by_hand, in_fit, in_trainer])


@LOOPS
def test_scales_of_quantization_are_no_weights_and_settle_in_a_frozen_layer(loop, tmp_path):
    network = quantized(rate=0.5)  # an average that has settled after six batches
    schedule = FreezeSchedule(every="8 steps", start="8 steps", verify=True, on_conflict="error")
    before, seen = scales(network, "block1"), []
    network.block1.register_forward_post_hook(
        lambda layer, inputs, output: seen.append(scales(network, "block1"))
    )
    loop(network, schedule, tmp_path)
    assert moved(before, seen[0]) == set(before)
    assert moved(seen[4], seen[5])
    assert not moved(seen[5], seen[23])
    assert [change.trainable for change in schedule.history][:1] == [10]
    assert schedule.history[0].total == sum(w.numel for w in weights(conv_net()))
    assert trainable_ratio(network) == 1.0


@LOOPS
def test_scales_of_what_trains_go_on_measuring(loop, tmp_path):
    network = quantized(rate=0.5)
    before = scales(network, "block3")
    loop(network, FreezeSchedule(unfreeze_at={0: "*"}, verify=True), tmp_path, epochs=1)
    middle = scales(network, "block3")
    loop(network, FreezeSchedule(unfreeze_at={0: "*"}, verify=True), tmp_path, epochs=1)
    assert moved(before, middle)
    assert moved(middle, scales(network, "block3"))


def test_an_evaluation_before_the_scales_have_settled_measures_nothing():
    network = quantized()
    optimizer = paddle.optimizer.SGD(0.05, parameters=network.parameters())
    with FreezeSchedule(strategy="head_only").attach(network, optimizer, total_steps=4):
        network.train()
        network(paddle.rand([2, 1, 6, 6]))
        before = scales(network, "block")
        network.eval()
        network(paddle.rand([2, 1, 6, 6]))
    assert not moved(before, scales(network, "block"))


def test_stages_of_a_quantized_network_are_those_of_the_network():
    def sizes(network):
        return [(stage.name, stage.numel) for stage in partition(network)]

    assert sizes(quantized()) == sizes(conv_net())


@pytest.mark.parametrize(
    "layer",
    [
        quant_layers.FakeQuantAbsMax(quant_on_weight=True),
        quant_layers.FakeQuantMovingAverageAbsMax(),
        quant_layers.MovingAverageAbsMaxScale(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_quanters_of_other_releases_have_no_weights(layer):
    assert weights(nn.Sequential(nn.Linear(2, 2), layer))[2:] == ()
    assert "_scale" in moving_state(layer)


def test_statistics_that_an_author_stored_as_parameters_are_no_weights():
    class Average(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.running_mean = self.create_parameter([4], is_bias=True)
            self.running_mean.stop_gradient = True

        def forward(self, x):
            if self.training:
                self.running_mean.set_value(0.5 * self.running_mean + 0.5 * x.mean(0))
            return self.fc(x - self.running_mean)

    network = nn.Sequential(("body", Average()), ("head", nn.Linear(4, 2)))
    assert [weight.name for weight in weights(network)][:2] == ["body.fc.weight", "body.fc.bias"]
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    before = values(network)
    schedule = FreezeSchedule(strategy="head_only", verify=True)
    with schedule.attach(network, optimizer, total_steps=3) as run:
        for _ in range(3):
            network.train()
            network(paddle.rand([2, 4])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            run.step()
    assert moved(before, values(network)) == {"head.weight", "head.bias"}


class Sequences(paddle.io.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict:
        ids = np.random.RandomState(index).randint(3, 50, 8)
        return {"input_ids": ids, "labels": ids}


def with_lora(**options):
    peft = pytest.importorskip("paddlenlp.peft")
    config = peft.LoRAConfig(target_modules=[".*q_proj.*"], r=2, merge_weights=True, **options)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
    models = pytest.importorskip("paddlenlp.transformers")
    paddle.seed(4)
    model = models.LlamaForCausalLM(
        models.LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
    )
    network = peft.LoRAModel(model, config)
    network.mark_only_lora_as_trainable()
    return network


BASE = "model.llama.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": "2 steps"},
        {"unfreeze_at": {0: "model.llama.layers.1", "3 steps": "*"}},
        {"unfreeze_at": {0: ["*", BASE], "5 steps": {"freeze": BASE}}},
    ],
    ids=str,
)
def test_base_weights_into_which_lora_merges_do_not_stop_a_trainer(options, tmp_path):
    network = with_lora()
    trainer = trainer_for(
        network, tmp_path, [FreezeSchedule(verify=True, on_conflict="error", **options)],
        data=Sequences(), learning_rate=0.1, evaluation_strategy="steps", eval_steps=1,
    )  # fmt: skip
    trainer.eval_dataset = Sequences()
    trainer.train()
    assert trainer.state.global_step == 16


def test_base_weights_into_which_lora_merges_do_not_stop_a_loop_by_hand():
    network = with_lora()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=network.parameters())
    ids = paddle.to_tensor([Sequences()[0]["input_ids"]])
    schedule = FreezeSchedule(every="2 steps", verify=True, on_conflict="error")
    with schedule.attach(network, optimizer, total_steps=6) as run:
        for _ in range(6):
            network.train()
            network(ids)[0].square().mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            network.eval()
            network(ids)
            run.verify()
            run.step()


def test_verify_still_sees_an_adapter_that_moves_while_it_is_frozen():
    network = with_lora()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=network.parameters())
    run = FreezeSchedule(every="2 steps", verify=True).attach(network, optimizer, total_steps=6)
    adapter = dict(network.named_parameters())[BASE.replace("weight", "lora_A")]
    adapter.set_value(adapter + 1)
    with pytest.raises(RuntimeError, match=r"q_proj.lora_A moved although it is frozen"):
        run.verify()
    run.restore()
