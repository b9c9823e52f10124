"""How ``"auto"`` reads a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paddle import nn

from .selectors import Selector
from .weights import Weight, layers, running_statistics, weights

_HEAD_NAMES = frozenset(
    ["head", "heads", "lm_head", "cls", "classifier", "fc", "output", "out_proj", "qa_outputs"]
)


_HEAD_WORDS = frozenset(["head", "heads", "classifier", "fc", "cls", "out", "output", "logits"])


_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)[a-z]?")


def automatic_selectors(network: nn.Layer) -> list[Selector]:
    """Selectors, each of exactly one automatic stage; none if there are no such stages."""

    def members(name: str, group: Iterable[Weight]) -> Selector:
        names = {one for weight in group for one in weight.names}

        def inside(parameter: str) -> bool:
            return parameter in names

        inside.__name__ = name
        return inside

    every = weights(network)
    return [members(name, group) for name, group in automatic_stages(network, every).items()]


def unused_name(name: str, taken: Mapping[str, object]) -> str:
    """The name, with a number behind it if it is taken."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    return candidate


def depth_of_weights(network: nn.Layer) -> dict[str, int]:
    """How many automatic stages lie above each weight, by name; empty if that cannot be told."""
    stages = automatic_stages(network, weights(network)).values()
    return {weight.name: depth for depth, group in enumerate(stages) for weight in group}


def automatic_stages(network: nn.Layer, every: Sequence[Weight]) -> dict[str, list[Weight]]:
    """The weights of the automatic stages by name; none if the network has no clear head."""
    try:
        return read(network, every)
    except ValueError:
        return {}


@dataclass(frozen=True)
class _Unit:
    """A piece of the backbone that is not taken apart: a block, or something beside blocks."""

    path: str
    is_block: bool
    norm_only: bool


def read(network: nn.Layer, every: Sequence[Weight]) -> dict[str, list[Weight]]:
    head, units, base = _structure(network, every)
    parts: dict[str, list[Weight]] = {"head": head}
    taken = {id(weight.tensor) for weight in head}

    has_blocks = any(unit.is_block for unit in units)
    groups: list[list[_Unit]] = []  # input side first
    for unit in units:
        starts = (unit.is_block or not has_blocks) and not unit.norm_only
        if starts or not groups:
            groups.append([unit])
        else:
            groups[-1].append(unit)

    members: list[list[Weight]] = []
    for group in groups:
        inside = [
            weight
            for weight in every
            if id(weight.tensor) not in taken
            and any(_below(name, unit.path) for unit in group for name in weight.names)
        ]
        taken.update(id(weight.tensor) for weight in inside)
        members.append(inside)
    own = [weight for weight in every if id(weight.tensor) not in taken]
    first_is_input = bool(groups) and not groups[0][0].is_block
    if own:
        if first_is_input:
            members[0] = own + members[0]
        else:
            groups.insert(0, [])
            members.insert(0, own)

    for group, inside in zip(reversed(groups), reversed(members)):
        if inside:
            below_blocks = not group or (has_blocks and not any(unit.is_block for unit in group))
            name = _input_name(network, inside) if below_blocks else _unit_name(group, base)
            parts[unused_name(name, parts)] = inside
    return parts


def _input_name(network: nn.Layer, inside: list[Weight]) -> str:
    """What people call the input side of such a network."""
    tables = {
        id(tensor)
        for _, layer in layers(network)
        if "Embedding" in type(layer).__name__
        for tensor in layer.parameters()
    }
    embeds = any(id(weight.tensor) in tables or "embed" in weight.name for weight in inside)
    return "embeddings" if embeds else "stem"


def _unit_name(group: list[_Unit], base: str) -> str:
    """The path of the block, or of the first unit, seen from the backbone."""
    path = next((unit for unit in group if unit.is_block), group[0]).path
    shorter = path
    if path == base:
        shorter = path.rsplit(".", 1)[-1]
    elif base and path.startswith(base + "."):
        shorter = path[len(base) + 1 :]
    return path if shorter[0].isdigit() else shorter


def _structure(network: nn.Layer, every: Sequence[Weight]) -> tuple[list[Weight], list[_Unit], str]:
    """The head's weights, the backbone's units from the input side up, the backbone's path."""
    path, backbone = _named_backbone(network, every)
    if backbone is not None:
        head = [w for w in every if any(not _below(name, path) for name in w.names)]
        if not head:
            raise ValueError(_no_head(network, "everything lies in " + repr(path)))
        return head, _units(path, backbone, every), path

    outer, container = _unwrap(network, every)
    children = _children(outer, container, every)
    if len(children) < 2:
        raise ValueError(_no_head(network, "it has a single layer with parameters"))
    last_path = children[-1][0]
    named = [path for path, _ in children if _is_head_name(path.rsplit(".", 1)[-1])]
    if named and last_path not in named:
        raise ValueError(
            _no_head(network, f"{named[-1]!r} has the name of a head, but {last_path!r} comes last")
        )
    if not named:
        why = _is_backbone(container, children, every)
        if why:
            raise ValueError(_no_head(network, f"the last child {last_path!r} {why}"))
    heads = named if 0 < len(named) < len(children) else [last_path]
    head = [w for w in every if any(_below(name, path) for name in w.names for path in heads)]
    below = [(path, layer) for path, layer in children if path not in heads]
    units = [
        unit
        for child_path, unit_layer, numbered in _mark_numbered(container, below)
        for unit in _expand(child_path, unit_layer, numbered, every)
    ]
    return head, units, _common([p for p, _ in below])


def _is_head_name(name: str) -> bool:
    """Whether people give this name to a head.

    >>> [_is_head_name(name) for name in ("head1", "cls_head", "_fc_out", "fc1", "layer1")]
    [True, True, True, False, False]
    """
    words = [word for word in name.lower().split("_") if word]
    if name.lower() in _HEAD_NAMES:
        return True
    if len(words) == 1:  # fc1, fc2, ... are the layers of a plain network
        return words[0].rstrip("0123456789") in _HEAD_WORDS - {"fc"}
    return any(word.rstrip("0123456789") in _HEAD_WORDS for word in words)


def _is_backbone(
    container: nn.Layer, children: Sequence[tuple[str, nn.Layer]], every: Sequence[Weight]
) -> str:
    """Why the last child is no head, if it is none."""
    path, last = children[-1]
    if any(isinstance(layer, nn.Embedding) for _, layer in layers(last)):
        return "has embeddings"
    if any(
        mark and list(inner.children()) for _, inner, mark in _numbered_inside(path, last, every)
    ):
        return "holds a series of blocks"
    stem = _NUMBERED.fullmatch(path.rsplit(".", 1)[-1])
    like = [
        other
        for other_path, other in children[:-1]
        if stem and (match := _NUMBERED.fullmatch(other_path.rsplit(".", 1)[-1]))
        if match["stem"] == stem["stem"] and type(other) is type(last) and list(last.children())
    ]
    if like and ((stem and stem["stem"]) or not isinstance(last, nn.Sequential)):
        return "is one of a series of blocks"
    return ""


def _common(paths: Sequence[str]) -> str:
    """The layer that all these paths are in, or the one path itself."""
    common: list[str] = []
    for same in zip(*(path.split(".") for path in paths)):
        if len(set(same)) > 1:
            break
        common.append(same[0])
    return ".".join(common)


def _named_backbone(network: nn.Layer, every: Sequence[Weight]) -> tuple[str, nn.Layer | None]:
    """What the network itself calls its backbone, with its path."""
    for attribute in (getattr(network, "base_model_prefix", None), "backbone"):
        inner = getattr(network, attribute, None) if attribute else None
        if isinstance(inner, nn.Layer) and inner is not network:
            for path, layer in layers(network):
                if layer is inner and any(_below(w.name, path) for w in every):
                    return path, inner
    return "", None


def _unwrap(network: nn.Layer, every: Sequence[Weight]) -> tuple[str, nn.Layer]:
    """Step into wrappers that hold one child and nothing else."""
    path, layer = "", network
    while True:
        children = _children(path, layer, every)
        owns = any(_owner(w.name) == path for w in every)
        if len(children) != 1 or owns or not _children(*children[0], every):
            return path, layer
        path, layer = children[0]


def _children(path: str, layer: nn.Layer, every: Sequence[Weight]) -> list[tuple[str, nn.Layer]]:
    """The children that have weights, with their paths."""
    paths = ((f"{path}.{name}" if path else name, child) for name, child in layer.named_children())
    return [(p, c) for p, c in paths if any(_below(n, p) for w in every for n in w.names)]


def _units(path: str, backbone: nn.Layer, every: Sequence[Weight]) -> list[_Unit]:
    children = _children(path, backbone, every)
    if not children:
        return [_Unit(path, False, False)]
    return [
        unit
        for child_path, child, numbered in _mark_numbered(backbone, children)
        for unit in _expand(child_path, child, numbered, every)
    ]


def _expand(path: str, layer: nn.Layer, numbered: bool, every: Sequence[Weight]) -> list[_Unit]:
    """The layer as one unit, or taken apart if there are numbered children inside."""
    if not numbered and any(mark for _, _, mark in _numbered_inside(path, layer, every)):
        return _units(path, layer, every)
    return [_Unit(path, numbered, _is_norm(layer))]


def _numbered_inside(
    path: str, layer: nn.Layer, every: Sequence[Weight]
) -> Iterable[tuple[str, nn.Layer, bool]]:
    for child_path, child, mark in _mark_numbered(layer, _children(path, layer, every)):
        # Only whole layers count: the two linear maps of one feed-forward are not blocks.
        yield (
            child_path,
            child,
            mark
            and (isinstance(layer, (nn.LayerList, nn.Sequential)) or bool(list(child.children()))),
        )
        if not mark:
            yield from _numbered_inside(child_path, child, every)


def _mark_numbered(
    parent: nn.Layer, children: Sequence[tuple[str, nn.Layer]]
) -> list[tuple[str, nn.Layer, bool]]:
    """Each child, and whether it is one of a numbered series (``layer1``, ``layer2``, ...)."""
    stems = [_NUMBERED.fullmatch(path.rsplit(".", 1)[-1]) for path, _ in children]
    series = [match["stem"] if match else None for match in stems]
    counted = [stem for stem, (_, child) in zip(series, children) if not _is_norm(child)]
    least = 1 if isinstance(parent, nn.LayerList) else 2
    return [
        (path, child, stem is not None and counted.count(stem) >= least)
        for (path, child), stem in zip(children, series)
    ]


def _is_norm(layer: nn.Layer) -> bool:
    """Whether this is a normalization layer: its name says so, in Paddle and by habit."""
    if any(not name.startswith("weight_") for name in running_statistics(layer)):
        return True
    return "Norm" in type(layer).__name__ and not list(layer.children())


def _below(name: str, path: str) -> bool:
    return not path or name.startswith(path + ".")


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _no_head(network: nn.Layer, why: str) -> str:
    children = ", ".join(f"{n} ({type(c).__name__})" for n, c in network.named_children())
    return (
        f"cannot tell the head of {type(network).__name__} from its backbone: {why}. "
        f"Its children are: {children or 'none'}. Name the stages yourself, head first, "
        'for example stages=["head", "*"]'
    )
