"""What people and libraries call the parts of their networks.

Names, and nothing that runs: a network that is read wrong gets an entry here, or says itself what
it is with an attribute ``freeze_stages`` (see :func:`declared.declared`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Union

#: Stages by name, head first, of the network of a class. ``"auto"`` stands for what the others
#: leave, read as if nothing had been said. A selector that a smaller variant lacks is left out.
FAMILIES: Mapping[str, Mapping[str, Union[str, Sequence[str]]]] = {
    # Two auxiliary classifiers, each a convolution and two linear layers, beside the main one.
    "GoogLeNet": {"head": ["_conv_o{1-2}", "_fc_o{1-2}", "_out{1-2}", "_fc_out"], "*": "auto"},
    # Each upsampling step is followed by three of the residual blocks.
    "SpeechT5HifiGan": {
        "head": "conv_post",
        "upsampler.3": ["upsampler.3", "resblocks.{9-11}"],
        "upsampler.2": ["upsampler.2", "resblocks.{6-8}"],
        "upsampler.1": ["upsampler.1", "resblocks.{3-5}"],
        "upsampler.0": ["upsampler.0", "resblocks.{0-2}"],
        "stem": "*",
    },
    # Blocks that predict a token further on: heads that are pretrained, too.
    "Ernie4_5_MoeModel": {"head": "mtp_*", "*": "auto"},
    # Maps to a teacher's width: used while distilling, and by nothing else.
    "TinyBertModel": {"head": ["fit_denses", "fit_dense"], "*": "auto"},
}

#: Children of a class that are used before its blocks, and after them, wherever it defines them.
#: A class whose name others have, too, is named with its module.
USED_FIRST: Mapping[str, Sequence[str]] = {
    "ClapAudioEncoder": ["batch_norm"],
    "bigbird.modeling.TransformerEncoder": ["norm"],
}
USED_LAST: Mapping[str, Sequence[str]] = {
    "BlenderbotEncoder": ["encoder_layernorm"],
    "BlenderbotDecoder": ["decoder_layernorm"],
    "PegasusEncoder": ["encoder_layernorm"],
    "PegasusDecoder": ["decoder_layernorm"],
}

#: Input sizes and output sizes of the pretrained layers that a constructor of ``paddle.vision``
#: puts before the last one of its classifier; a word is an attribute of the network.
PRETRAINED_CLASSIFIERS: Mapping[str, Sequence[tuple[int | str, int | str]]] = {
    "VGG": [(25088, 4096), (4096, 4096)],
    "MobileNetV3Small": [("lastconv_out_channels", "last_channel")],
    "MobileNetV3Large": [("lastconv_out_channels", "last_channel")],
}

HEAD_NAMES = frozenset(
    ["head", "heads", "lm_head", "cls", "classifier", "fc", "output", "out_proj", "qa_outputs"]
)
HEAD_WORDS = frozenset(["head", "heads", "classifier", "fc", "cls", "out", "output", "logits"])

#: A child of this name is the pretrained part, whatever its class.
BACKBONE = re.compile(
    r"_*(?P<what>backbone|ptm|plm|pretrained\w*|base_?(model|net|network)|trunk|"
    r"(distil|tiny|mobile|ro|al)?berta?|ernie\w*|electra|nezha|skep|t5|gpt2?|llama|qwen\w*|"
    r"res_?net\w*|vgg\d*|mobile_?net\w*|efficient_?net\w*|dense_?net\w*|convnext|swin|vit|clip)\d*_*"
)

#: Words for the two ways of a network that goes down and up again, or reads and then writes.
DOWN = frozenset(["down", "downs", "encoder", "encoders", "enc", "contract", "lower"])
MIDDLE = frozenset(["mid", "middle", "bottleneck", "bridge"])
UP = frozenset(["up", "ups", "decoder", "decoders", "dec", "expand", "upper"])

#: Words for what reads the input, and for what follows the last block, wherever it is defined.
INPUT = re.compile(r".*(embed|prenet|patch|stem|wte|wpe|relative|rel_pos).*")
LAST = re.compile(r"_*(final|last|post|pool|ln_f|norm_f).*")


def words(name: str) -> list[str]:
    """The words of an attribute's name, without numbers.

    >>> words("_up_blocks2")
    ['up', 'blocks']
    """
    return [word for word in re.split(r"[_.\d]+", name.lower()) if word]


def is_head_name(name: str) -> bool:
    """Whether people give this name to a head; leading underscores say nothing.

    >>> [is_head_name(name) for name in ("head1", "cls_head", "_fc_out", "_fc", "fc1", "layer1")]
    [True, True, True, True, False, False]
    """
    name = name.lower().strip("_")
    parts = [part for part in name.split("_") if part]
    if name in HEAD_NAMES:
        return True
    if len(parts) == 1:  # fc1, fc2, ... are the layers of a plain network
        return parts[0].rstrip("0123456789") in HEAD_WORDS - {"fc"}
    return any(part.rstrip("0123456789") in HEAD_WORDS for part in parts)


def way(name: str) -> int | None:
    """Whether a name says down (0), middle (1), up (2), or nothing of the kind.

    >>> [way(name) for name in ("encoder", "mid_block", "up_blocks", "layers")]
    [0, 1, 2, None]
    """
    said = set(words(name))
    return next((rank for rank, any_of in enumerate((DOWN, MIDDLE, UP)) if said & any_of), None)


def listed(table: Mapping[str, Sequence[str]], owner: type) -> Sequence[str]:
    """What a table says of a class, by its name or its module and name."""
    full = f"{owner.__module__}.{owner.__name__}"
    return [one for key, entry in table.items() if f".{full}".endswith(f".{key}") for one in entry]
