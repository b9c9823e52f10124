"""Which parameters belong together, and in which order.

A *stage* is a named group of weights that is frozen and unfrozen as one. Stages are ordered
head first: the first is the head (the new task part), the last is the input side (embeddings,
stem). :func:`partition` makes them from what the user says: ``"auto"``, a number, or a list of
selectors. Every weight ends up in exactly one stage.

How ``"auto"`` reads a network:

1. The head is what lies outside the backbone that the network names itself (PaddleNLP's
   ``base_model_prefix``, or an attribute ``backbone``); otherwise it is the last child that has
   parameters, looked for inside wrappers that hold nothing else.
2. The blocks of the backbone are its outermost numbered children (``layers.0``, ``layers.1``,
   ...; ``layer1``, ``layer2``, ...; the items of a ``Sequential``).
3. What the network defines after the last block (pooler, final norm) goes with that block; what
   lies between two blocks goes with the lower one; what precedes the first block, and
   parameters that a container owns directly (class token, positions), is the last stage.
4. A tied tensor belongs to the first stage, head first, that any of its names leads to: a
   language-model head that shares the embedding's matrix is the head.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from paddle import nn

from .selectors import EVERYTHING, Selector, describe, select
from .weights import Weight, layers, running_statistics, weights

Stages = Union[str, int, Sequence[Selector]]

#: The stage of weights that no selector names: they stay frozen throughout.
REST = "rest"

_HEAD_NAMES = frozenset(
    ["head", "heads", "lm_head", "cls", "classifier", "fc", "output", "out_proj", "qa_outputs"]
)
_HEAD_WORDS = frozenset(["head", "heads", "classifier", "fc", "cls", "out", "output", "logits"])
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)[a-z]?")


@dataclass(frozen=True)
class Stage:
    """A named group of weights that is frozen and unfrozen as one.

    Attributes:
        name: what logs, plots and history call it.
        parameters: names of its weights, as ``network.named_parameters()`` lists them.
        numel: number of elements of all of them.
    """

    name: str
    parameters: tuple[str, ...]
    numel: int

    @classmethod
    def of(cls, name: str, members: Iterable[Weight]) -> Stage:
        members = tuple(members)
        return cls(name, tuple(w.name for w in members), sum(w.numel for w in members))


def partition(network: nn.Layer, stages: Stages = "auto") -> tuple[Stage, ...]:
    """Group all weights of a network into stages, head first.

    Args:
        network: the network.
        stages: ``"auto"``: the head, each block of the backbone, the input side. A number: the
            head, and the backbone in so many stages of near-equal size. A list of selectors:
            one stage each, in this order, ``"*"`` being whatever the others leave; what no
            selector names is a last stage ``"rest"``, which no schedule opens.

    Returns:
        The stages; every weight is in exactly one.

    Raises:
        ValueError: if a selector matches nothing, if two claim the same weight, if ``"auto"``
            cannot tell the head from the backbone, or if the number is out of range.
        TypeError: if ``stages`` is none of these.

    >>> import paddle
    >>> net = paddle.nn.Sequential(paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 2))
    >>> for stage in partition(net): print(stage.name, stage.parameters, stage.numel)
    head ('1.weight', '1.bias') 10
    0 ('0.weight', '0.bias') 20
    """
    every = weights(network)
    if not every:
        raise ValueError(
            f"{type(network).__name__} has no parameters, so there is nothing to freeze"
        )
    if isinstance(stages, str) and stages == "auto":
        return _stages(every, _auto(network, every))
    if isinstance(stages, bool) or not isinstance(stages, (int, str, list, tuple)):
        raise TypeError(
            f'stages={stages!r}: give "auto", a number of backbone stages, or a list of selectors'
        )
    if isinstance(stages, int):
        return _stages(every, _merged(_auto(network, every), stages))
    return _stages(every, _chosen(network, every, [stages] if isinstance(stages, str) else stages))


def partition_by(
    network: nn.Layer, selectors: Sequence[Selector], finer: Sequence[Selector] = ()
) -> tuple[tuple[Stage, ...], list[tuple[str, ...]]]:
    """The coarsest stages of which every selector is a union, in order of first mention.

    Selectors may overlap; the items of a list count one by one. What none of them means is a
    last stage ``"rest"``. Returns the stages and, for each selector, the names of its stages.

    Args:
        network: the network.
        selectors: what is to be a union of stages.
        finer: the same, but these alone do not keep a weight out of ``"rest"``.
    """
    every = weights(network)
    groups = automatic_stages(network, every)
    origin = [
        (index, one) for index, entry in enumerate([*selectors, *finer]) for one in _items(entry)
    ]
    chosen = [{id(w.tensor) for w in select(every, one, groups)} for _, one in origin]
    cells: dict[tuple[int, ...], list[Weight]] = {}
    for weight in every:
        key = tuple(i for i, ids in enumerate(chosen) if id(weight.tensor) in ids)
        if not key or origin[key[0]][0] >= len(selectors):
            key = ()
        cells.setdefault(key, []).append(weight)
    # Head first means: in the order in which the user opens them; the unnamed rest comes last.
    ordered = sorted(cells, key=lambda key: key or (len(origin),))
    parts: dict[str, list[Weight]] = {}
    names: dict[tuple[int, ...], str] = {}
    for key in ordered:
        narrowest = min(key, key=lambda i: len(chosen[i]), default=None)
        wanted = REST if narrowest is None else describe(origin[narrowest][1], network)
        names[key] = _unused(wanted, parts)
        parts[names[key]] = cells[key]
    return _stages(every, parts), [
        tuple(names[key] for key in ordered if any(origin[i][0] == index for i in key))
        for index in range(len(selectors))
    ]


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


def _items(selector: Selector) -> list[Selector]:
    """The selectors in a list of lists; an empty list is left, so that it is found wrong."""
    if isinstance(selector, (list, tuple)) and selector:
        return [item for part in selector for item in _items(part)]
    return [selector]


def stage_names(network: nn.Layer, stages: Sequence[Stage], selector: Selector) -> tuple[str, ...]:
    """The stages that a selector means, by stage name or by the parameters it selects.

    Raises:
        ValueError: if it cuts through a stage.
    """
    every = weights(network)
    by_name = {weight.name: weight for weight in every}
    groups = {stage.name: [by_name[name] for name in stage.parameters] for stage in stages}
    if selector == EVERYTHING:
        return tuple(groups)
    if isinstance(selector, str) and selector in groups:
        return (selector,)
    groups = {**automatic_stages(network, every), **groups}
    wanted = {weight.name for weight in select(every, selector, groups)}
    for stage in stages:
        inside = wanted.intersection(stage.parameters)
        if inside and len(inside) < len(stage.parameters):
            left = next(name for name in stage.parameters if name not in wanted)
            raise ValueError(
                f"{describe(selector, network)!r} cuts through the stage {stage.name!r}: it has "
                f"{min(inside)!r} but not {left!r}; name whole stages, or give other stages="
            )
    return tuple(stage.name for stage in stages if wanted.intersection(stage.parameters))


def covering(stage: Stage, every: Sequence[Weight], openable: Collection[str]) -> list[str]:
    """The fewest dotted names that together open exactly what may open of a stage.

    A weight that was found frozen opens only by its full name, and one that must not open is
    never named by it.
    """
    inside = {id(weight.tensor) for weight in every if weight.name in stage.parameters}

    def within(prefix: str) -> bool:
        return all(
            id(weight.tensor) in inside
            for weight in every
            if any(f"{name}.".startswith(f"{prefix}.") for name in weight.names)
        )

    names = []
    for weight in every:
        if id(weight.tensor) in inside and weight.name in openable:
            parts = weight.name.split(".")
            prefixes = [".".join(parts[: end + 1]) for end in range(len(parts))]
            names.append(next(prefix for prefix in prefixes if within(prefix)))
    return list(dict.fromkeys(names))


def _stages(every: Sequence[Weight], parts: Mapping[str, Iterable[Weight]]) -> tuple[Stage, ...]:
    """Stages from named lists; within a stage the weights keep the order of the network."""
    stages = []
    for name, members in parts.items():
        ids = {id(weight.tensor) for weight in members}
        stages.append(Stage.of(name, [w for w in every if id(w.tensor) in ids]))
    return tuple(stages)


def _unused(name: str, taken: Mapping[str, object]) -> str:
    """The name, with a number behind it if it is taken."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    return candidate


# ---------------------------------------------------------------- a list of selectors


def _chosen(
    network: nn.Layer, every: Sequence[Weight], selectors: Sequence[Selector]
) -> dict[str, list[Weight]]:
    if not selectors:
        raise ValueError('stages=[] names no stage; give "auto" or at least one selector')
    groups = automatic_stages(network, every)
    owner: dict[int, str] = {}
    parts: dict[str, list[Weight]] = {}
    for selector in selectors:
        wanted = select(every, selector, groups)
        if selector == EVERYTHING:
            wanted = tuple(weight for weight in wanted if id(weight.tensor) not in owner)
            if not wanted:
                raise ValueError(
                    'the stage "*" is what the other stages leave, and they leave nothing; drop it'
                )
        name = describe(selector, network)
        for weight in wanted:
            if id(weight.tensor) in owner:
                raise ValueError(_claimed(weight, owner[id(weight.tensor)], name))
        name = _unused(name, parts)
        parts[name] = list(wanted)
        owner.update((id(weight.tensor), name) for weight in wanted)
    rest = [weight for weight in every if id(weight.tensor) not in owner]
    if rest:
        parts[_unused(REST, parts)] = rest
    return parts


def _claimed(weight: Weight, first: str, second: str) -> str:
    if first == EVERYTHING:
        return f'the stages "*" and {second!r} both claim {weight.name!r}; put "*" last'
    tied = f" (tied: {' = '.join(weight.names)})" if len(weight.names) > 1 else ""
    return (
        f"the stages {first!r} and {second!r} both claim {weight.name!r}{tied}; "
        "a parameter belongs to one stage"
    )


def depth_of_weights(network: nn.Layer) -> dict[str, int]:
    """How many automatic stages lie above each weight, by name; empty if that cannot be told."""
    stages = automatic_stages(network, weights(network)).values()
    return {weight.name: depth for depth, group in enumerate(stages) for weight in group}


def automatic_stages(network: nn.Layer, every: Sequence[Weight]) -> dict[str, list[Weight]]:
    """The weights of the automatic stages by name; none if the network has no clear head."""
    try:
        return _auto(network, every)
    except ValueError:
        return {}


# ---------------------------------------------------------------- "auto"


@dataclass(frozen=True)
class _Unit:
    """A piece of the backbone that is not taken apart: a block, or something beside blocks."""

    path: str
    is_block: bool
    norm_only: bool


def _auto(network: nn.Layer, every: Sequence[Weight]) -> dict[str, list[Weight]]:
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
            parts[_unused(name, parts)] = inside
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


# ---------------------------------------------------------------- a number of stages


def _merged(parts: Mapping[str, list[Weight]], number: int) -> dict[str, list[Weight]]:
    """The head, and the backbone in contiguous groups whose largest is as small as possible."""
    (head, *names) = parts
    if not 1 <= number <= len(names):
        raise ValueError(
            f"stages={number}: the backbone has {len(names)} stages to merge "
            f"({', '.join(names)}); give a number from 1 to {len(names)}"
        )
    sizes = [sum(weight.numel for weight in parts[name]) for name in names]
    merged: dict[str, list[Weight]] = {head: list(parts[head])}
    for first, end in _balanced(sizes, number):
        group = names[first:end]
        merged[_unused(_joint_name(group), merged)] = [w for n in group for w in parts[n]]
    return merged


def _balanced(sizes: Sequence[int], groups: int) -> list[tuple[int, int]]:
    """Cut a sequence into so many runs, their sum of squares (hence their spread) least.

    >>> _balanced([1, 1, 1, 1, 4], 2)
    [(0, 4), (4, 5)]
    """
    total = [0]
    for size in sizes:
        total.append(total[-1] + size)
    best: list[list[tuple[int, int]]] = [[(0, 0)] + [(-1, 0)] * len(sizes)]
    for _ in range(groups):
        before = best[-1]
        row = [(-1, 0)]
        for end in range(1, len(sizes) + 1):
            row.append(
                min(
                    (
                        (before[cut][0] + (total[end] - total[cut]) ** 2, cut)
                        for cut in range(end)
                        if before[cut][0] >= 0
                    ),
                    default=(-1, 0),
                )
            )
        best.append(row)
    runs, end = [], len(sizes)
    for row in reversed(best[1:]):
        runs.append((row[end][1], end))
        end = row[end][1]
    return runs[::-1]


def _joint_name(names: Sequence[str]) -> str:
    """``layers.{8-11}`` for consecutive blocks, otherwise first and last.

    >>> _joint_name(["layers.11", "layers.10"])
    'layers.{10-11}'
    """
    if len(names) == 1:
        return names[0]
    ends = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    if all(ends) and len({end[1] for end in ends if end}) == 1:
        numbers = sorted(int(end[2]) for end in ends if end)
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{ends[0][1]}{{{numbers[0]}-{numbers[-1]}}}"  # type: ignore[index]
    return f"{names[0]} ... {names[-1]}"
