"""Which parameters belong together: golden lists for real architectures, and properties."""

from __future__ import annotations

import re

import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ConvNet, TwoLayers, conv_net
from paddle import nn
from paddle.vision import models
from paddlenlp import transformers as nlp
from trainers import SIZES, tiny_bert

from paddle_freeze_callback.stages.partition import (
    Survey,
    partition,
    partition_by,
    stage_names,
    stages_with,
)
from paddle_freeze_callback.stages.weights import trainable_ratio, weights


def listing(network: nn.Layer, stages="auto") -> list[str]:
    return [stage.name for stage in partition(network, stages)]


def assert_partition(network: nn.Layer, stages="auto") -> None:
    """Every parameter that is not a running statistic is in exactly one stage, once."""
    parts = partition(network, stages)
    members = [name for stage in parts for name in stage.parameters]
    expected = [n for n, _ in network.named_parameters() if not n.endswith(("_mean", "_variance"))]
    assert sorted(members) == sorted(expected)
    assert all(stage.parameters for stage in parts)
    by_name = dict(network.named_parameters())
    for stage in parts:
        assert stage.numel == sum(by_name[name].size for name in stage.parameters)
    assert len({stage.name for stage in parts}) == len(parts)


class WithBackbone(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = self.create_parameter([1])
        self.head = nn.Linear(4, 2)
        self.backbone = ConvNet()


class VisionTransformer(nn.Layer):
    """A container that owns parameters directly, beside its children."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2D(3, 8, 4, stride=4)
        self.cls_token = self.create_parameter([1, 1, 8])
        self.pos_embed = self.create_parameter([1, 5, 8])
        self.blocks = nn.LayerList([nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)


class Wrapper(nn.Layer):
    def __init__(self, inner: nn.Layer) -> None:
        super().__init__()
        self.inner = inner


class OwnClassifier(nn.Layer):
    """What PaddleNLP users write: a pretrained encoder and a layer of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.ernie = nlp.ErnieModel(nlp.ErnieConfig(**SIZES))
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(16, 2)


ENCODER = ["head", "encoder.layers.2", "encoder.layers.1", "encoder.layers.0", "embeddings"]
RESNET = ["head", "layer4", "layer3", "layer2", "layer1", "stem"]
DECODER = ["head", "layers.2", "layers.1", "layers.0", "embeddings"]
VGG = [28, 26, 24, 21, 19, 17, 14, 12, 10, 7, 5, 2, 0]
GOLDEN = {
    "two layers": (TwoLayers, ["head", "fc1"]),
    "sequential": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 1)),
        ["head", "2", "0"],
    ),
    "sequential with norms": (
        lambda: nn.Sequential(
            nn.Conv2D(1, 2, 3),
            nn.BatchNorm2D(2),
            nn.Conv2D(2, 2, 3),
            nn.BatchNorm2D(2),
            nn.Linear(2, 1),
        ),
        ["head", "2", "0"],
    ),
    "numbered blocks": (ConvNet, ["head", "block3", "block2", "block1"]),
    "backbone and head": (WithBackbone, ["head", "block3", "block2", "block1"]),
    "class token": (VisionTransformer, ["head", "blocks.2", "blocks.1", "blocks.0", "embeddings"]),
    "wrapped": (lambda: Wrapper(Wrapper(TwoLayers())), ["head", "fc1"]),
    "own classifier": (OwnClassifier, ENCODER),
    "LeNet": (models.LeNet, ["head", "features.3", "features.0"]),
    "resnet18": (models.resnet18, RESNET),
    "resnet50": (models.resnet50, RESNET),
    "mobilenet_v2": (models.mobilenet_v2, ["head", *(f"features.{i}" for i in range(18, -1, -1))]),
    "vgg16": (models.vgg16, ["head", "classifier", *(f"features.{i}" for i in VGG)]),
    "squeezenet1_1": (
        models.squeezenet1_1,
        ["head", *(f"_conv{i}" for i in range(8, 0, -1)), "stem"],
    ),
    "BERT classification": (tiny_bert, ENCODER),
    "BERT tokens": (lambda: nlp.BertForTokenClassification(nlp.BertConfig(**SIZES)), ENCODER),
    "BERT answers": (lambda: nlp.BertForQuestionAnswering(nlp.BertConfig(**SIZES)), ENCODER),
    "ERNIE classification": (
        lambda: nlp.ErnieForSequenceClassification(nlp.ErnieConfig(**SIZES)),
        ENCODER,
    ),
    "ERNIE tokens": (lambda: nlp.ErnieForTokenClassification(nlp.ErnieConfig(**SIZES)), ENCODER),
    "ERNIE answers": (lambda: nlp.ErnieForQuestionAnswering(nlp.ErnieConfig(**SIZES)), ENCODER),
    "RoBERTa classification": (
        lambda: nlp.RobertaForSequenceClassification(nlp.RobertaConfig(**SIZES)),
        ENCODER,
    ),
    "RoBERTa tokens": (
        lambda: nlp.RobertaForTokenClassification(nlp.RobertaConfig(**SIZES)),
        ENCODER,
    ),
    "RoBERTa answers": (
        lambda: nlp.RobertaForQuestionAnswering(nlp.RobertaConfig(**SIZES)),
        ENCODER,
    ),
    "Llama": (lambda: nlp.LlamaForCausalLM(nlp.LlamaConfig(**SIZES)), DECODER),
    "QWen": (
        lambda: nlp.QWenForCausalLM(nlp.QWenConfig(**SIZES, seq_length=16)),
        ["head", "h.2", "h.1", "h.0", "embeddings"],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_stages(name):
    build, golden = GOLDEN[name]
    network = build()
    assert listing(network) == golden
    assert_partition(network)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_number_of_stages_merges_the_backbone(name):
    network = GOLDEN[name][0]()
    automatic = partition(network)
    for number in (1, 2, len(automatic) - 1)[: len(automatic) - 1]:
        parts = partition(network, number)
        assert len(parts) == 1 + number
        assert parts[0] == automatic[0]
        assert_partition(network, number)


def test_what_goes_with_what():
    bert = {stage.name: stage.parameters for stage in partition(tiny_bert())}
    assert bert["head"] == ("classifier.weight", "classifier.bias")
    assert "bert.pooler.dense.weight" in bert["encoder.layers.2"]
    assert all(name.startswith("bert.embeddings.") for name in bert["embeddings"])
    resnet = {stage.name: stage.parameters for stage in partition(models.resnet18())}
    assert resnet["stem"] == ("conv1.weight", "bn1.weight", "bn1.bias")
    vit = {stage.name: stage.parameters for stage in partition(VisionTransformer())}
    assert vit["embeddings"] == ("cls_token", "pos_embed", "patch_embed.weight", "patch_embed.bias")
    assert vit["blocks.2"][-2:] == ("norm.weight", "norm.bias")
    own = {stage.name: stage.parameters for stage in partition(WithBackbone())}
    assert own["block3"][-2:] == ("backbone.fc.weight", "backbone.fc.bias")
    assert own["head"] == ("temperature", "head.weight", "head.bias")


def test_merged_stages_are_of_near_equal_size_and_named_by_their_range():
    network = tiny_bert(num_hidden_layers=6, vocab_size=8, max_position_embeddings=8)
    parts = partition(network, 3)
    assert [stage.name for stage in parts] == [
        "head",
        "encoder.layers.{4-5}",
        "encoder.layers.{2-3}",
        "encoder.layers.1 ... embeddings",
    ]
    sizes = [stage.numel for stage in parts[1:]]
    assert max(sizes) < 1.2 * min(sizes)


def test_a_head_that_shares_the_embedding_is_the_head():
    class Tied(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens = nn.Embedding(9, 4)
            self.layers = nn.LayerList([nn.Linear(4, 4) for _ in range(2)])
            self.lm_head = nn.Linear(4, 9)
            self.lm_head.weight = self.embed_tokens.weight

    network = Tied()
    parts = {stage.name: stage.parameters for stage in partition(network)}
    assert parts["head"] == ("embed_tokens.weight", "lm_head.bias")
    assert list(parts) == ["head", "layers.1", "layers.0"]
    network.lm_head.bias.stop_gradient = True
    assert trainable_ratio(network) == (36 + 2 * 20) / (36 + 9 + 2 * 20)


def test_selectors_make_stages_in_their_order_and_a_star_takes_the_rest():
    network = conv_net()
    stages = ["fc", network.block3, lambda name: name.startswith("block2"), "*"]
    assert listing(network, stages) == ["fc", "block3", "<lambda>", "*"]
    assert_partition(network, stages)


def test_what_no_selector_names_is_the_rest():
    assert listing(conv_net(), ["fc", "block3"]) == ["fc", "block3", "rest"]
    assert_partition(conv_net(), ["fc", "block3"])


def test_the_names_of_automatic_stages_select_them_where_the_network_has_no_such_name():
    assert listing(tiny_bert(), ["head", "encoder.layers.{1-2}", "*"]) == [
        "head",
        "encoder.layers.{1-2}",
        "*",
    ]
    parts = partition(tiny_bert(), ["head", "encoder.layers.{1-2}", "*"])
    assert parts[0].parameters == ("classifier.weight", "classifier.bias")
    assert "bert.encoder.layers.1.linear1.weight" in parts[1].parameters


class TwoHeads(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1, self.layer2 = (nn.Linear(4, 4) for _ in range(3))
        self.cls_head, self.reg_head = nn.Linear(4, 2), nn.Linear(4, 1)


def test_several_heads_are_one_stage():
    head = partition(TwoHeads())[0]
    assert head.parameters[::2] == ("cls_head.weight", "reg_head.weight")
    main = "_fc_out.weight"
    assert main in partition(models.googlenet())[0].parameters


class NoHead(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.layers = nn.LayerList([nn.TransformerEncoderLayer(4, 2, 4) for _ in range(2)])


@pytest.mark.parametrize(
    "build",
    [
        NoHead,
        lambda: models.resnet18(num_classes=0),
        lambda: nlp.ElectraModel(nlp.ElectraConfig(**SIZES, embedding_size=16)),
    ],
)
def test_a_backbone_without_a_head_is_refused(build):
    with pytest.raises(ValueError, match=r"cannot tell .* (series of blocks|base model)"):
        partition(build())


def test_overlapping_selectors_make_the_coarsest_stages_of_which_each_is_a_union():
    selectors = ["fc", "layer{3-4}", "layer4.1", "layer2"]
    survey = Survey(models.resnet18())
    parts = partition_by(survey, selectors)
    meant = [stages_with(parts, survey.select(selector)) for selector in selectors]
    assert [stage.name for stage in parts] == ["fc", "layer{3-4}", "layer4.1", "layer2", "rest"]
    assert meant == [("fc",), ("layer{3-4}", "layer4.1"), ("layer4.1",), ("layer2",)]


def test_selectors_over_given_stages_mean_whole_stages():
    network = Survey(conv_net())
    parts = partition(network, ["fc", ["block3", "block2"], "*"])
    assert stage_names(network, parts, "fc") == ("fc",)
    assert stage_names(network, parts, ["block2", "block3.*"]) == ("block3 + block2",)
    with pytest.raises(ValueError, match=re.escape("'block2' cuts through the stage")):
        stage_names(network, parts, "block2")
    assert stage_names(network, parts, "*") == ("fc", "block3 + block2", "*")  # everything
    parts = partition(network, ["fc", "block3"])
    assert stage_names(network, parts, ["block2", "block1"]) == ("rest",)
    with pytest.raises(ValueError, match="'block1' cuts through the stage 'rest'"):
        stage_names(network, parts, "block1")


# ---------------------------------------------------------------- properties


@st.composite
def networks(draw, depth=3):
    """Random trees of layers: shared layers, own parameters, norms, lists."""
    kind = draw(
        st.sampled_from(["linear", "norm", "list", "sequence", "own"][: None if depth else 2])
    )
    if kind == "linear":
        return nn.Linear(2, 2, bias_attr=draw(st.sampled_from([None, False])))
    if kind == "norm":
        return draw(st.sampled_from([nn.BatchNorm1D, nn.LayerNorm]))(2)
    children = draw(st.lists(networks(depth=depth - 1), min_size=1, max_size=3))
    if draw(st.booleans()):
        children.append(children[0])  # shared
    if kind == "list":
        return nn.LayerList(children)
    if kind == "sequence":
        return nn.Sequential(*children)
    layer = nn.Layer()
    layer.token = layer.create_parameter([2])
    for index, child in enumerate(children):
        layer.add_sublayer(
            f"part{index}" if draw(st.booleans()) else f"x{'abc'[index % 3]}{index}", child
        )
    return layer


@settings(max_examples=60, deadline=None)
@given(
    networks(), st.lists(st.sampled_from(["0", "1", "part0", "part{0-1}", "**.weight"]), max_size=2)
)
def test_every_parameter_is_in_exactly_one_stage(network, selectors):
    head = nn.Linear(2, 1)
    whole = nn.Sequential(("body", network), ("head", head))
    assert_partition(whole)
    assert partition(whole)[0].parameters[-2:] == ("head.weight", "head.bias")
    for stages in (["head", "*"], [*selectors, "*"], [*selectors, "head"]):
        try:
            partition(whole, stages)
        except ValueError as refused:
            assert (
                "matches no" in str(refused) or "claim" in str(refused) or "leave" in str(refused)
            )
        else:
            assert_partition(whole, stages)


@settings(max_examples=30, deadline=None)
@given(networks())
def test_the_trainable_ratio_is_a_naive_count(network):
    every = {
        id(tensor): tensor
        for name, tensor in network.named_parameters()
        if not name.endswith(("_mean", "_variance"))
    }
    for index, tensor in enumerate(every.values()):
        tensor.stop_gradient = index % 2 == 0
    open_elements = sum(t.size for t in every.values() if not t.stop_gradient)
    assert trainable_ratio(network) == open_elements / sum(t.size for t in every.values())
    assert len(weights(network)) == len(every)
    assert paddle.in_dynamic_mode()
