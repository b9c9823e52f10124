"""Which parameters a selector means."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import TwoLayers, conv_net
from paddle import nn

from paddle_freeze_callback.stages.names import compile_name, matching
from paddle_freeze_callback.stages.partition import Survey, partition, stage_names
from paddle_freeze_callback.stages.selectors import describe, select
from paddle_freeze_callback.stages.weights import weights


def names(network: nn.Layer, selector) -> list[str]:
    return [weight.name for weight in select(weights(network), selector)]


class Twelve(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LayerList([nn.Linear(2, 2, bias_attr=False) for _ in range(12)])
        self.fc1 = nn.Linear(2, 2)
        self.fc10 = nn.Linear(2, 2)


def test_a_name_matches_whole_components_so_fc1_never_selects_fc10():
    assert names(Twelve(), "fc1") == ["fc1.weight", "fc1.bias"]
    assert names(Twelve(), "layers.1") == ["layers.1.weight"]


def test_a_range_in_braces_selects_these_numbers_and_no_others():
    assert names(Twelve(), "layers.{8-11}") == [f"layers.{i}.weight" for i in (8, 9, 10, 11)]
    assert names(Twelve(), "layers.{0,3-4}") == [f"layers.{i}.weight" for i in (0, 3, 4)]
    assert names(Twelve(), "fc{1}.{weight,bias}") == ["fc1.weight", "fc1.bias"]


def test_a_star_stays_within_a_component_and_two_stars_cross_them():
    network = conv_net()
    assert names(network, "block?.0.w*") == [f"block{i}.0.weight" for i in (1, 2, 3)]
    assert names(network, "**.bias")[-1] == "fc.bias"
    assert names(network, "block1.**") == names(network, "block1")
    assert len(names(network, "*")) == 14


def test_one_star_stands_for_exactly_one_component():
    assert names(conv_net(), "*.bias") == ["fc.bias"]
    with pytest.raises(ValueError, match="matches no parameter"):
        select(weights(Twelve()), "layers.*.bias")


def test_a_regular_expression_must_match_a_whole_name():
    assert names(Twelve(), r"re:fc\d") == ["fc1.weight", "fc1.bias"]
    assert names(Twelve(), r"re:.*\.bias") == ["fc1.bias", "fc10.bias"]


def test_a_layer_a_callable_and_a_list_select_too():
    network = TwoLayers()
    assert names(network, network.fc2) == ["fc2.weight", "fc2.bias"]
    assert names(network, lambda name: name.endswith("bias")) == ["fc1.bias", "fc2.bias"]
    assert names(network, ["fc2.bias", network.fc1]) == ["fc1.weight", "fc1.bias", "fc2.bias"]


def test_running_statistics_are_never_selected():
    assert not [n for n in names(conv_net(), "*") if "_mean" in n or "_variance" in n]


def test_a_tied_weight_is_selected_by_each_of_its_names():
    network = TwoLayers()
    network.tied = nn.Linear(8, 2)
    network.tied.weight = network.fc2.weight
    assert names(network, "tied.weight") == ["fc2.weight"]
    assert names(network, "tied") == ["fc2.weight", "tied.bias"]


def test_a_name_without_its_prefix_is_answered_with_the_full_name():
    network = nn.Sequential(("backbone", TwoLayers()), ("head", nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=re.escape("did you mean 'backbone.fc1'")):
        select(weights(network), "fc1")


@pytest.mark.parametrize(
    ("selector", "name"),
    [
        ("fc1", "fc1"),
        (["fc1", "fc2"], "fc1 + fc2"),
        (["!fc1", "!fc2"], "* without fc1 + fc2"),
        (lambda name: True, "<lambda>"),
    ],
)
def test_a_selector_describes_itself(selector, name):
    assert describe(selector) == name


def test_a_layer_is_described_by_its_path():
    network = TwoLayers()
    assert describe(network.fc1, network) == "fc1"
    assert describe(nn.Linear(1, 1), network) == "Linear"


LAST_TWO = ["layers.10.weight", "layers.11.weight"]
ALL = [f"layers.{i}.weight" for i in range(12)]

COUNTED = [
    ("layers.[-2:]", LAST_TWO),
    ("layers.{-2,-1}", LAST_TWO),
    ("layers.[-1]", LAST_TWO[1:]),
    ("layers.[0]", ALL[:1]),
    ("layers.[:2].weight", ALL[:2]),
    ("layers.[:-10]", ALL[:2]),
    ("layers.[:]", ALL),
    ("layers.{0,-1}", [ALL[0], ALL[11]]),
    ("l*.[-2:]", LAST_TWO),
    ("**.[-2:]", LAST_TWO),
    ("fc[-1:]", ["fc10.weight", "fc10.bias"]),
    ("fc{-2}.bias", ["fc1.bias"]),
]


@pytest.mark.parametrize(("selector", "expected"), COUNTED)
def test_positions_count_from_either_end_among_the_numbers_that_are_there(selector, expected):
    assert names(Twelve(), selector) == expected


def test_each_of_several_places_has_its_own_last_one():
    network = nn.Layer()
    network.encoder = nn.LayerList([nn.Linear(2, 2, bias_attr=False) for _ in range(3)])
    network.decoder = nn.LayerList([nn.Linear(2, 2, bias_attr=False) for _ in range(2)])
    assert names(network, "*.[-1]") == ["encoder.2.weight", "decoder.1.weight"]
    assert names(network, "{en,de}coder.{-1}") == ["encoder.2.weight", "decoder.1.weight"]
    with pytest.raises(ValueError, match="counts further than the 2 that there are, 0 to 1"):
        names(network, "*.{-3}")


def test_numbers_with_gaps_and_zeros_before_them_are_counted_by_value():
    network = nn.Layer()
    for name in ("conv2", "conv02b", "conv10", "conv011"):
        network.add_sublayer(name, nn.Linear(2, 2, bias_attr=False))
    assert names(network, "conv[-2:]") == ["conv10.weight", "conv011.weight"]
    assert names(network, "conv[-1]b") == ["conv02b.weight"]


@given(st.integers(-15, 15) | st.none(), st.integers(-15, 15) | st.none())
def test_a_slice_means_what_it_means_in_python(first, end):
    text = f"layers.[{'' if first is None else first}:{'' if end is None else end}]"
    every = [f"layers.{number}.weight" for number in range(12)]
    assert matching(text, every) == set(every[first:end])


def test_an_exclamation_mark_means_all_but():
    assert names(TwoLayers(), "!fc1") == ["fc2.weight", "fc2.bias"]
    assert names(Twelve(), "!layers.[:-1]") == [ALL[11], *names(Twelve(), ["fc1", "fc10"])]
    assert names(TwoLayers(), "!type:bias") == ["fc1.weight", "fc2.weight"]


def test_in_a_list_an_exclamation_mark_takes_away_wherever_it_stands():
    expected = ["fc1.weight", "fc1.bias", "fc10.weight"]
    assert names(Twelve(), ["fc1", "fc10", "!fc10.bias"]) == expected
    assert names(Twelve(), ["!fc10.bias", "fc1", "fc10"]) == expected
    assert names(Twelve(), ["!layers", "!fc10.bias"]) == expected


class Norm(nn.LayerNorm):
    """A class of the user's own."""


def kinds_net() -> nn.Layer:
    network = nn.Layer()
    network.embed = nn.Embedding(4, 2)
    network.lstm = nn.LSTM(2, 2)
    network.norm = nn.Sequential(Norm(2), nn.BatchNorm1D(2))
    network.out = nn.Linear(2, 2)
    network.position_bias_table = network.create_parameter([3, 2])
    return network


def test_a_type_selects_everything_inside_layers_of_this_class_or_one_below_it():
    network = kinds_net()
    assert names(network, "type:LayerNorm") == ["norm.0.weight", "norm.0.bias"]
    assert names(network, "type:Norm") == ["norm.0.weight", "norm.0.bias"]
    assert names(network, "type:*Norm*") == names(network, "norm")
    assert names(network, "type:Sequential") == names(network, "norm")
    assert names(network, "type:LSTM") == names(network, "lstm")


def test_biases_are_told_by_their_own_names_and_a_table_of_them_is_none():
    network = kinds_net()
    expected = [name for name in names(network, "lstm") if "bias" in name]
    assert len(expected) == 2
    expected += ["norm.0.bias", "norm.1.bias", "out.bias"]
    assert names(network, "bias") == names(network, "type:bias") == expected
    network.bias = nn.Linear(2, 2)
    assert names(network, "bias") == ["bias.weight", "bias.bias"]  # a name comes first


def test_a_tied_weight_has_the_kinds_of_all_its_places():
    network = kinds_net()
    network.head = nn.Linear(2, 4)
    network.head.weight = network.embed.weight
    assert "embed.weight" in names(network, "type:Linear")
    assert "embed.weight" in names(network, "type:Embedding")


SHARES = [  # of 10: the head has 1, the blocks 2 each, the input side 3
    ("top 10%", 1), ("top 1%", 1), ("top 19%", 1), ("top 21%", 2), ("top 50%", 3),
    ("top 80%", 4), ("top 100%", 5), ("bottom 30%", -1), ("bottom 41 %", -2), ("bottom  90.5%", -4),
    ("bottom 100%", -5),
]  # fmt: skip


@pytest.mark.parametrize(("selector", "stages"), SHARES)
def test_a_share_is_the_whole_stages_from_one_end_that_come_nearest(selector, stages):
    sizes = {"head": 1, "b2": 2, "b1": 2, "b0": 2, "stem": 3}
    network = nn.Layer()
    for name, size in sizes.items():
        network.add_sublayer(name, nn.Linear(size, 1, bias_attr=False))
    every = weights(network)
    groups = {name: [one for one in every if one.name.startswith(name)] for name in sizes}
    chosen = [one.name.split(".")[0] for one in select(every, selector, groups)]
    assert chosen == (list(sizes)[:stages] if stages > 0 else list(sizes)[stages:])


def test_a_share_counts_in_the_stages_of_the_schedule_and_names_none_of_a_declaration():
    survey = Survey(conv_net())
    stages = partition(survey, ["fc", "block{2-3}", "block1"])
    assert stage_names(survey, stages, "bottom 30%") == ("block1",)
    assert stage_names(survey, stages, "top 50%") == ("fc", "block{2-3}")
    assert [w.name.split(".")[0] for w in survey.select("bottom 10%")] == ["block1"] * 4


component = st.text("abcdefgh_0123456789", min_size=1, max_size=5)
dotted = st.lists(component, min_size=1, max_size=4).map(".".join)


@given(dotted, dotted)
def test_a_plain_name_matches_itself_and_what_is_below_it_only(selector, name):
    below = name == selector or name.startswith(selector + ".")
    assert bool(compile_name(selector).fullmatch(name)) == below


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_a_range_means_the_numbers_from_its_low_to_its_high_end(low, high, number):
    low, high = sorted((low, high))
    pattern = compile_name(f"layers.{{{low}-{high}}}")
    assert bool(pattern.fullmatch(f"layers.{number}.weight")) == (low <= number <= high)
