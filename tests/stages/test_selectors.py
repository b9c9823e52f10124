"""Which parameters a selector means."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import TwoLayers, conv_net
from paddle import nn

from paddle_freeze_callback.stages.names import compile_name
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
    [("fc1", "fc1"), (["fc1", "fc2"], "fc1 + fc2"), (lambda name: True, "<lambda>")],
)
def test_a_selector_describes_itself(selector, name):
    assert describe(selector) == name


def test_a_layer_is_described_by_its_path():
    network = TwoLayers()
    assert describe(network.fc1, network) == "fc1"
    assert describe(nn.Linear(1, 1), network) == "Linear"


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
