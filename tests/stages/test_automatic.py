"""How "auto" reads a network: each kind of structure, small; and what networks say themselves."""

from __future__ import annotations

import re

import paddle
import pytest
from paddle import nn
from paddle.vision import models

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.stages import partition
from paddle_freeze_callback.stages.weights import weights


def make(**children: nn.Layer) -> nn.Layer:
    """A layer with these children."""
    layer = nn.Layer()
    for name, child in children.items():
        layer.add_sublayer(name, child)
    return layer


def linears(number: int = 3) -> nn.LayerList:
    return nn.LayerList([nn.Linear(4, 4) for _ in range(number)])


def text() -> nn.Layer:
    return make(embed=nn.Embedding(9, 4), layers=linears(), norm=nn.LayerNorm(4))


def names(network: nn.Layer) -> list[str]:
    return [stage.name for stage in partition(network)]


def members(network: nn.Layer) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.parameters for stage in partition(network)}


def layers_of(parameters: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name.rsplit(".", 1)[0] for name in parameters))


# ---------------------------------------------------------------- order of use


def test_embeddings_are_the_input_side_wherever_they_are_defined():
    network = make(layers=linears(), norm=nn.LayerNorm(4), emb=nn.Embedding(9, 4), head=linears(1))
    parts = members(network)
    assert list(parts) == ["head", "layers.2", "layers.1", "layers.0", "embeddings"]
    assert layers_of(parts["embeddings"]) == ["emb"]
    assert layers_of(parts["layers.2"]) == ["layers.2", "norm"]


def test_a_table_of_relative_positions_beside_the_blocks_is_input_side():
    encoder = make(layer=linears(), relative_attention_bias=nn.Embedding(4, 2))
    parts = members(make(embed=nn.Embedding(9, 4), encoder=encoder, head=nn.Linear(4, 2)))
    assert layers_of(parts["embeddings"]) == ["embed", "encoder.relative_attention_bias"]


def test_a_final_norm_that_is_defined_first_belongs_to_the_top_block():
    parts = members(make(final_norm=nn.LayerNorm(4), layers=linears(), head=nn.Linear(4, 2)))
    assert "final_norm.weight" in parts["layers.2"]


def test_the_norm_of_an_encoder_belongs_to_its_own_top_block():
    def stack():
        return make(final_norm=nn.LayerNorm(4), block=linears(2))

    parts = members(make(encoder=stack(), decoder=stack(), head=nn.Linear(4, 2)))
    assert list(parts)[1:] == [f"{s}.block.{i}" for s in ("decoder", "encoder") for i in (1, 0)]
    assert "encoder.final_norm.weight" in parts["encoder.block.1"]


def test_a_decoder_is_above_its_encoder_and_the_middle_of_a_unet_between_them():
    unet = make(up_blocks=linears(2), mid_block=linears(1), down_blocks=linears(2), out=linears(1))
    ways = ["up_blocks.1", "up_blocks.0", "mid_block.0", "down_blocks.1", "down_blocks.0"]
    assert names(unet) == ["head", *ways]


# ---------------------------------------------------------------- series beside each other


def test_lists_of_equal_length_open_together_and_the_largest_names_them():
    norms = nn.LayerList([nn.LayerNorm(4) for _ in range(3)])
    wide = nn.LayerList([nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)) for _ in range(3)])
    parts = members(make(attn=linears(), norms=norms, ffn=wide, head=nn.Linear(4, 2)))
    assert list(parts) == ["head", "ffn.2", "ffn.1", "ffn.0"]
    assert layers_of(parts["ffn.1"]) == ["attn.1", "norms.1", "ffn.1.0", "ffn.1.1"]


def test_numbered_series_defined_one_after_the_other_open_together():
    def pieces(name):
        return {f"{name}{i}": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for i in (1, 2, 3)}

    norms = {f"norm{i}": nn.LayerNorm(4) for i in (1, 2, 3)}
    network = make(**pieces("patch"), **pieces("block"), **norms, head=nn.Linear(4, 2))
    assert names(network) == ["head", "patch3", "patch2", "patch1"]
    assert "block2.0.weight" in members(network)["patch2"]
    assert "norm2.weight" in members(network)["patch2"]


def test_plain_layers_of_two_names_stay_one_after_the_other():
    convs = {f"conv{i}": nn.Linear(4, 4) for i in (1, 2)}
    fcs = {f"fc{i}": nn.Linear(4, 4) for i in (1, 2, 3)}
    assert names(make(**convs, **fcs)) == ["head", "fc2", "fc1", "conv2", "conv1"]


# ---------------------------------------------------------------- new layers are the head


def test_everything_outside_a_pretrained_model_is_head_wherever_it_is_defined():
    network = make(fpn=linears(2), anything=models.resnet18(num_classes=0), box=nn.Linear(4, 4))
    parts = members(network)
    assert list(parts) == ["head", "layer4", "layer3", "layer2", "layer1", "stem"]
    assert layers_of(parts["head"]) == ["fpn.0", "fpn.1", "box"]


@pytest.mark.parametrize("name", ["backbone", "ptm", "_bert", "resnet50", "efficientnet_b0"])
def test_a_child_with_the_name_of_a_backbone_is_one(name):
    network = make(neck=nn.Linear(4, 4), **{name: text()}, a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    parts = members(network)
    assert layers_of(parts["head"]) == ["neck", "a", "b"]
    assert list(parts)[1:] == ["layers.2", "layers.1", "layers.0", "embeddings"]


def test_a_norm_right_after_the_blocks_is_theirs_and_new_layers_after_it_are_head():
    network = make(body=linears(), norm=nn.LayerNorm(4), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    parts = members(network)
    assert layers_of(parts["head"]) == ["a", "b"]
    assert layers_of(parts["body.2"]) == ["body.2", "norm"]


def test_an_alias_of_a_part_of_the_base_is_no_head():
    class Alias(nn.Layer):
        base_model_prefix = "base"

        def __init__(self) -> None:
            super().__init__()
            base = text()
            self.lm_head = nn.Linear(4, 9)
            self.layers = base.layers
            self.base = base

    assert layers_of(members(Alias())["head"]) == ["lm_head"]


class Wrapper(nn.Layer):
    """It hands on what it wraps, as PaddleFormers' LoRA model does."""

    def __init__(self, model: nn.Layer) -> None:
        super().__init__()
        self.model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class CausalLM(nn.Layer):
    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.model = text()
        self.lm_head = nn.Linear(4, 9)


def test_any_number_of_wrappers_is_gone_through():
    wrapped = Wrapper(Wrapper(CausalLM()))
    assert names(wrapped) == names(CausalLM())
    assert layers_of(members(wrapped)["head"]) == ["model.model.lm_head"]


def test_a_base_that_holds_everything_is_gone_into():
    class Tied(nn.Layer):
        base_model_prefix = "base"

        def __init__(self) -> None:
            super().__init__()
            self.base = text()

    parts = members(Tied())
    assert parts["head"] == ("base.embed.weight",)
    assert list(parts) == ["head", "layers.2", "layers.1", "layers.0"]


def test_a_network_that_names_a_backbone_and_has_nothing_outside_it_goes_on_inside():
    inner = make(backbone=text(), head=nn.Linear(4, 2))
    assert names(make(backbone=inner)) == ["head", "layers.2", "layers.1", "layers.0", "embeddings"]


# ---------------------------------------------------------------- several models


def test_models_beside_each_other_open_together_from_the_top():
    image = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2)))
    network = make(text_model=text(), image_model=make(pos=nn.Embedding(4, 4), blocks=image))
    network.logit_scale = network.create_parameter([1])
    parts = members(network)
    assert parts["head"] == ("logit_scale",)
    assert list(parts)[1:] == [
        "text_model.layers.2 + image_model.blocks.1",
        "text_model.layers.1 + image_model.blocks.0",
        "text_model.layers.0",
        "embeddings",
    ]


# ---------------------------------------------------------------- blocks, names, heads


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.SimpleRNN])
def test_a_fused_rnn_is_one_block(kind):
    rnn = kind(4, 4, num_layers=3, direction="bidirect")
    assert names(nn.Sequential(nn.Embedding(9, 4), rnn, nn.Linear(8, 2)))[:2] == ["head", "1"]


def test_dots_in_the_names_of_layers_split_nothing():
    network = nn.Layer()
    network._stem = nn.Linear(4, 4)
    for i in range(2):
        block = make(_a=nn.Linear(4, 4), _se_conv1=nn.Linear(4, 4), _se_conv2=nn.Linear(4, 4))
        network.add_sublayer(f"_blocks.{i}.", block)
    network._fc = nn.Linear(4, 2)
    assert names(network) == ["head", "_blocks.1", "_blocks.0", "stem"]
    assert partition(network, ["_fc", "_blocks.1", "*"])[1].parameters[0] == "_blocks.1.._a.weight"
    picked = partition(network, ["_blocks.1.._a.weight", "*"])[0]
    assert picked.parameters == ("_blocks.1.._a.weight",)


def test_leading_underscores_say_nothing():
    network = make(_blocks=linears(2), _head=nn.Linear(4, 4), _fc=nn.Linear(4, 2))
    assert names(network) == ["head", "_blocks.1", "_blocks.0"]


def test_of_a_pretrained_classifier_only_the_last_layer_is_head():
    with paddle.LazyGuard():
        network = models.vgg11()
    assert names(network)[:3] == ["head", "classifier", "features.18"]
    assert layers_of(members(network)["head"]) == ["classifier.6"]
    network.classifier = nn.Sequential(nn.Linear(25088, 8), nn.ReLU(), nn.Linear(8, 2))
    assert layers_of(members(network)["head"]) == ["classifier.0", "classifier.2"]


def test_a_layer_with_its_own_named_parameters_is_read_all_the_same():
    class Soft(nn.Linear):
        def named_parameters(self):
            return [("weight", self.weight)]

        def parameters(self):
            return [self.weight]

    network = nn.Sequential(nn.Linear(2, 2), Soft(2, 2))
    assert len(weights(network)) == 4
    assert names(network) == ["head", "0"]
    assert partition(network, [network[1], "*"])[0].parameters == ("1.weight", "1.bias")
    optimizer = paddle.optimizer.SGD(parameters=[w.tensor for w in weights(network)])
    with FreezeSchedule().attach(network, optimizer, epochs=1, steps_per_epoch=1) as freezing:
        network(paddle.rand([1, 2])).sum().backward()
        optimizer.step()
        freezing.step()


def test_a_layer_that_holds_itself_ends_somewhere():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].add_sublayer("parent", network)
    assert len(weights(network)) == 4


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (text, "'norm' ends with a normalization layer"),
        (lambda: models.vgg11(num_classes=0), "VGG is a base model"),
        (lambda: nn.Linear(2, 2), "a single layer"),
        (lambda: make(fc=nn.Linear(4, 4), blocks=linears()), "'fc' has the name of a head, but"),
        (lambda: make(a=linears(), pooler=nn.Linear(4, 4)), "'pooler' is a pooler"),
        (
            lambda: make(generator=linears(), discriminator=linears()),
            "a generator and a discriminator are trained against each other",
        ),
    ],
)
def test_refusals_say_why_and_give_stages_that_can_be_pasted(network, why):
    with paddle.LazyGuard():
        network = network()
    with pytest.raises(ValueError, match=re.escape(why)) as refused:
        partition(network)
    pasted = eval(str(refused.value).split("stages=", 1)[1])
    assert pasted[-1] == "*"
    assert all(stage.name != "rest" for stage in partition(network, pasted))


# ---------------------------------------------------------------- freeze_stages


def saying(stages, layer: nn.Layer | None = None) -> nn.Layer:
    layer = layer or make(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 2))
    layer.freeze_stages = stages
    return layer


def test_a_network_that_says_its_stages_is_believed():
    parts = members(saying({"new": ["b", "c"], "old": "*"}))
    assert {name: layers_of(inside) for name, inside in parts.items()} == {
        "new": ["b", "c"],
        "old": ["a"],
    }
    assert names(saying(["b", "*"])) == ["b", "*"]
    assert names(saying({"b": "b"})) == ["b", "rest"]


def test_it_may_be_a_method_of_a_base_class_of_ones_own():
    class Mine(nn.Layer):
        def freeze_stages(self):
            return {"head": self.top, "*": "auto"}

    class Net(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.top = nn.Linear(4, 4)
            self.layers = linears(2)

    assert names(Net()) == ["head", "layers.1", "layers.0"]


def test_what_a_backbone_says_follows_below_the_head_and_its_head_joins_it():
    body = make(proj=nn.Linear(4, 4), deep=linears(2), shallow=nn.Linear(4, 4))
    body.freeze_stages = {"head": "proj", "deep": "deep", "shallow": "*"}
    parts = members(make(backbone=body, task=nn.Linear(4, 2)))
    assert layers_of(parts["head"]) == ["backbone.proj", "task"]
    assert list(parts) == ["head", "deep", "shallow"]
    assert layers_of(parts["shallow"]) == ["backbone.shallow"]


def test_a_wrapper_does_not_take_over_what_the_wrapped_says():
    assert names(Wrapper(saying({"new": "c", "old": "*"}))) == ["new", "old"]


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ({"new": "bb", "*": "*"}, ValueError, "freeze_stages of Layer, stage 'new': .*'b'"),
        (
            {"x": "b", "y": ["b", "c"]},
            ValueError,
            "freeze_stages of Layer: .*'x' and 'y' both claim",
        ),
        ({}, ValueError, "freeze_stages of Layer names no stage"),
        (3, TypeError, "freeze_stages of Layer is 3: give a mapping"),
        ({"x": 3}, TypeError, "freeze_stages of Layer, stage 'x': 3 is no selector"),
    ],
)
def test_what_is_wrong_in_it_is_said_with_where_it_stands(stages, error, message):
    with pytest.raises(error, match=message):
        partition(saying(stages))
