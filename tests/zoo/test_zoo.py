"""Every network of the zoo is read as its listing says, and every refusal can be acted on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import paddle
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import zoo

from paddle_freeze_callback.stages import REST, partition

#: The release of Paddle with which the listings were written.
LISTED_WITH = "3.3."
#: Why a forward may contradict the order of the stages, by network or kind of contradiction.
MEANT = {
    r".* \(tied\)": "the head's matrix is that of the embeddings, or the head has its own table",
    r"the forward ends early: \w+": "a class of the library that this release of Paddle breaks",
    r"no forward: \w+": "the same, or inputs that nobody can guess",
    r"blenderbot\w*.\w+ForCausalLM: .*encoder.*": "a decoder alone, beside its encoder",
    r"semantic_search.ErnieEncoder: unused: head": "a classifier that this class never calls",
    r"tinybert.TinyBertForPretraining: unused: head": "used only while a teacher is distilled",
    r"xlnet.\w+: unused: stem": "a mask that only permuted inputs need",
}


def networks() -> list:
    return [
        pytest.param(listing, network, id=f"{listing}: {network.name}")
        for listing, make in zoo.listings().items()
        for network in make()
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("listing", "network"), networks())
def test_the_stages_are_those_of_the_listing(listing, network):
    golden = zoo.golden(listing)
    if not golden:
        pytest.skip(f"there is no listing {listing}.txt; python tests/zoo/zoo.py --write makes it")
    found, listed = zoo.line(network), golden.get(network.name, "")
    if not paddle.__version__.startswith(LISTED_WITH):  # where other forwards of the library fail
        found, listed = (one.partition(" // ")[0] for one in (found, listed))
    assert found == listed, "python tests/zoo/zoo.py --write shows all changes"
    for said in found.split(" // ")[1:]:
        meant = any(
            re.fullmatch(pattern, text)
            for pattern in MEANT
            for text in (said, f"{network.name}: {said}")
        )
        assert meant, f"a forward contradicts the order of the stages: {said}"
    if found.startswith("refused"):
        check_refusal(network.build())


def check_refusal(layer) -> None:
    """The stages in a refusal can be pasted, and are several, unless there is a single layer."""
    with pytest.raises(ValueError, match="Its children are") as refused:
        partition(layer)
    parts = partition(layer, zoo.pasted(refused.value))
    assert REST not in [stage.name for stage in parts]
    assert len(parts) > 1


def test_every_line_of_a_listing_is_a_network():
    for listing, make in zoo.listings().items():
        known = {network.name for network in make()} | zoo.own.OF_PADDLENLP
        assert set(zoo.golden(listing)) <= known
