"""How ``"auto"`` reads a network: its head, its blocks, its input side.

1. A network may say it itself, with an attribute ``freeze_stages``: see :func:`declared.declared`.
2. The head is everything outside the pretrained part: the part that PaddleNLP's
   ``base_model_prefix`` names, a model of a library, a child with the name of a backbone.
   Otherwise it is the children with a head's name, or the last child. Wrappers that hold nothing
   else, and task classes whose weights all lie in their base, are gone through.
3. The blocks are the outermost numbered layers (``layers.0``, ``layers.1``, ...; ``layer1``,
   ``layer2``, ...; the items of a ``Sequential``). Series of equal length beside each other open
   together, number by number. An RNN is one block.
4. What lies between two blocks goes with the lower one; what follows the last one (pooler, final
   norm) goes with that. Embeddings outside the blocks, what precedes the first one, and
   parameters that a container owns directly (class token, positions), are the last stage.
5. Several pretrained parts beside each other (an image and a text model) open together, block by
   block from the top.
6. A tied tensor belongs to the first stage, head first, that any layer leads to: a language-model
   head that shares the embedding's matrix is the head. A second name for the same layer says
   nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from paddle import nn

from .advice import refusal
from .blocks import below_head
from .head import NoHeadError, find_head
from .parts import part_of, unused
from .weights import Weight


def automatic_stages(network: nn.Layer, every: Sequence[Weight]) -> dict[str, list[Weight]]:
    """The weights of the automatic stages by name; none if the network has no clear head."""
    try:
        return read(network, every)
    except ValueError:
        return {}


def read(network: nn.Layer, every: Sequence[Weight]) -> dict[str, list[Weight]]:
    """The automatic stages of a network, head first.

    Raises:
        ValueError: if it has no head, or nothing tells which layers are; the message names why
            and gives stages to paste. Also if its ``freeze_stages`` is wrong.
        TypeError: if its ``freeze_stages`` is no mapping and no list.
    """
    root = part_of(network)
    try:
        split = find_head(root)
    except NoHeadError as why:
        raise ValueError(refusal(root, str(why))) from None
    parts: dict[str, set[int]] = {"head": set(split.head)} if split.head else {}
    for name, ids in below_head(root, split).items():
        parts[unused(name, parts)] = ids
    return {
        name: [weight for weight in every if id(weight.tensor) in ids]
        for name, ids in parts.items()
        if ids
    }
