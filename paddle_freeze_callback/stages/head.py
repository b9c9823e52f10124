"""Which layers are the head, and which pretrained models lie below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paddle import nn
from paddle.vision import models

from .declared import as_declared, declared, of_family
from .families import BACKBONE, INPUT, PRETRAINED_CLASSIFIERS, is_head_name, way
from .parts import (
    Part,
    Split,
    common,
    holds_blocks,
    holds_tables,
    is_norm,
    is_rnn,
    looks_like_input,
    only_norms,
    series_in,
    stem_of,
)
from .weights import own_parameters

_LIBRARIES = ("paddlenlp.", "paddleformers.")
_VISION = tuple(one for name in models.__all__ if isinstance(one := getattr(models, name), type))


class NoHeadError(Exception):
    """Why a network cannot be read."""


def find_head(root: Part) -> Split:
    """Find the head, going through wrappers and bases that hold everything."""
    part, task = root, False
    while True:
        said = declared(part.layer)
        base = _base(part)
        bodies = (base,) if base else pretrained_inside(part)
        if said is None:
            if _is_base(part.layer) and not task and not bodies:
                name = type(part.layer).__name__
                raise NoHeadError(f"{name} is a base model, and has no head yet")
            said = of_family(part.layer)
        if said is not None:
            return as_declared(part, said)
        if bodies:
            head = _outside(part, bodies)
            if head:
                return _opened(head, bodies)
            if len(bodies) > 1:
                return _heads_of_all(bodies)
            part, task = bodies[0], task or bool(base)
        elif len(part.children) == 1 and not part.own and part.children[0].children:
            part = part.children[0]
        else:
            return _inside(part, task)


def _base(part: Part) -> Part | None:
    """What the network itself calls its base; never asked through ``__getattr__``.

    A wrapper (LoRA) hands on what it wraps: its prefix would then lead into a wrapped model.
    """
    own = vars(part.layer).get(
        "base_model_prefix", getattr(type(part.layer), "base_model_prefix", None)
    )
    for name in (own, "backbone"):
        for child in part.children:
            if child.key == name:
                return child
    return None


def pretrained_inside(part: Part) -> tuple[Part, ...]:
    """The pretrained models beside each other inside, or the one inside, outermost first.

    A class of a library names its own base; of its models only several beside each other count,
    and its encoder and decoder are one model.
    """
    ours = _module(part.layer).startswith(_LIBRARIES)
    found = [one for child in part.children for one in _outermost(child, by_name=not ours)]
    if {"encoder", "decoder"} <= {one.key for one in found}:
        found = []
    if ours or not found:
        beside = _towers(part)
        found += [one for one in beside if one not in found and not any(_in(f, one) for f in found)]
    return tuple(found) if len(found) > 1 or not ours else ()


def _towers(part: Part) -> list[Part]:
    """Several children that are each a network of their own, with blocks and an input side."""
    whole = [
        one
        for one in part.children
        if one.children and stem_of(one.key) is None and not is_head_name(one.key)
        if holds_blocks(one)
    ]
    towers = [one for one in whole if holds_tables(one) or _has_twin(one, whole)]
    serial = {way(one.key) for one in towers} - {None}
    return towers if len(towers) > 1 and len(serial) < 2 else []


def _in(inner: Part, outer: Part) -> bool:
    return any(one is inner for one in outer.walk())


def _has_twin(part: Part, among: Sequence[Part]) -> bool:
    """Whether another child is of the same class, and of one that its author wrote."""
    plain = isinstance(part.layer, (nn.Sequential, nn.LayerList))
    return not plain and sum(type(one.layer) is type(part.layer) for one in among) > 1


def _outermost(part: Part, by_name: bool) -> Iterator[Part]:
    if _is_pretrained(part, by_name):
        yield part
    else:
        for child in part.children:
            yield from _outermost(child, by_name)


def _is_pretrained(part: Part, by_name: bool) -> bool:
    """Whether this is a model of a library, or has the name of a backbone."""
    if not part.children:
        return False
    of_library = any(
        one.__name__ == "PretrainedModel" and one.__module__.startswith(_LIBRARIES)
        for one in type(part.layer).__mro__
    )
    named = by_name and BACKBONE.fullmatch(part.key.lower())
    return of_library or isinstance(part.layer, _VISION) or bool(named)


def _module(layer: nn.Layer) -> str:
    return type(layer).__module__ + "."


def _is_base(layer: nn.Layer) -> bool:
    """Whether this is a base model of a library, which its task classes put a head on."""
    if isinstance(layer, _VISION):
        return getattr(layer, "num_classes", 1) <= 0
    base = getattr(type(layer), "base_model_class", None)
    return isinstance(base, type) and isinstance(layer, base)


def _outside(part: Part, bodies: Sequence[Part]) -> frozenset[int]:
    """The tensors that layers outside of the bodies hold, by layer: an alias is no other layer."""
    inside = {id(one.layer) for body in bodies for one in body.walk()}
    ours = _module(part.layer).startswith(_LIBRARIES)
    found: set[int] = set()
    todo = [part]
    while todo:
        one = todo.pop()
        if id(one.layer) not in inside and not (ours and INPUT.fullmatch(one.key.lower())):
            found |= one.own
            todo += one.children
    return frozenset(found)


def _heads_of_all(bodies: Sequence[Part]) -> Split:
    """Several whole models beside each other, with nothing outside: each has its own head."""
    below = []
    for body in bodies:
        try:
            below.append(find_head(body))
        except NoHeadError:  # a model without a head beside one that has it
            below.append(Split(frozenset(), (body,)))
    head = frozenset[int]().union(*(one.head for one in below))
    if not head:
        names = ", ".join(body.path for body in bodies)
        raise NoHeadError(f"it has several models beside each other ({names}), none with a head")
    return _opened(head, [body for one in below for body in one.bodies])


def _opened(head: frozenset[int], bodies: Sequence[Part]) -> Split:
    """The split, with what the bodies say of themselves, or hold.

    A task class of a library has its own head, which joins the head; so does what lies outside
    the models inside a body, such as the projections of CLIP.
    """
    below: list[Part] = []
    for body in bodies:
        ours = _module(body.layer).startswith(_LIBRARIES)
        base = _base(body) if ours else None
        inner = (base,) if base else pretrained_inside(body)
        if base or len(inner) > 1:
            head |= _outside(body, inner)
        below += inner if base or len(inner) > 1 else (body,)
    if len(below) > 1:
        return Split(head, tuple(below), bodies[0].path if len(bodies) == 1 else "")
    (body,) = below
    said = declared(body.layer) or of_family(body.layer)
    if said is None:
        return Split(head, (body,), body.path)
    own = as_declared(body, said)
    return Split(head | own.head, own.bodies, body.path, own.declared)


def _inside(part: Part, task: bool) -> Split:
    """The head among the children of a network that names none."""
    children = part.children
    named = [child for child in children if is_head_name(child.key)]
    if task and not named:  # a tied model answers through its table of words
        table = _token_table(part)
        if table is None:
            raise NoHeadError(f"everything lies in its base, {part.path!r}")
        return Split(table.ids, (part,), part.path)
    if len(children) < 2:
        if part.own and children:
            return Split(part.own, children, children[0].path)
        raise NoHeadError("it has a single layer with parameters")
    if {"generator", "discriminator"} <= {child.key for child in children}:
        raise NoHeadError("a generator and a discriminator are trained against each other")
    whole = [] if _module(part.layer).startswith(_LIBRARIES) else _whole(children)
    if whole:
        inside = frozenset[int]().union(*(one.ids for one in whole))
        rest = _without_ends(children, whole)
        named = [c for c in rest if not (c.ids <= inside or looks_like_input(c))] or named
    if not named:
        why = _is_backbone(part, children)
        if why:
            raise NoHeadError(f"the last child {children[-1].path!r} {why}")
        named = [children[-1]]
    if not whole:
        more = _with_what_follows(named, children)
        if len(children) == len(more) > len(named):  # nothing would be left for a backbone
            raise NoHeadError(
                f"{named[-1].path!r} has the name of a head, but {children[-1].path!r} comes last"
            )
        named = more
    if len(named) == len(children):
        named = [children[-1]]
    head = frozenset[int]().union(*(child.ids for child in named))
    below = [child for child in children if child not in named]
    classifier = _pretrained_classifier(part, named)
    if classifier is not None:
        head = classifier.children[-1].ids
    return Split(head, (part,), common([child.path for child in below]), {}, classifier)


def _with_what_follows(named: list[Part], children: Sequence[Part]) -> list[Part]:
    """The heads, and what is defined after the last of them, which is as new as they are."""
    after = children[children.index(named[-1]) + 1 :]
    if any(holds_blocks(one) or holds_tables(one) for one in after):
        if any(one.key.lower().strip("_") not in ("fc", "out", "output") for one in named):
            return named  # defined first, used last
        raise NoHeadError(
            f"{named[-1].path!r} has the name of a head, but {after[-1].path!r} comes last"
        )
    return [*named, *(one for one in after if not _ends_backbone(one))]


def _token_table(part: Part) -> Part | None:
    """The largest table outside the blocks: a tied model answers through it."""
    tables = [
        one
        for one in part.walk()
        if "Embedding" in type(one.layer).__name__ and one.own and not one.children
    ]
    size = {id(one): sum(p.size for p in own_parameters(one.layer).values()) for one in tables}
    return max(tables, key=lambda one: size[id(one)], default=None)


def _whole(children: Sequence[Part]) -> list[Part]:
    """The children that are networks of their own, with layers beside them that are not."""
    candidates = [
        child
        for child in children
        if child.children and not is_head_name(child.key) and not INPUT.fullmatch(child.key.lower())
    ]
    tables = [one for one in candidates if holds_tables(one) and _is_more_than_tables(one)]
    if tables:
        serial = {way(one.key) for one in tables} - {None}
        return tables if len(tables) == 1 or len(serial) < 2 else []
    solid = [one for one in candidates if not only_norms(one)]
    if len(solid) != 1 or solid[0] is not children[0]:
        return []
    after = _without_ends(children, solid)
    plain = all(not one.children and not is_rnn(one) for one in after)
    return solid if after and plain else []


def _without_ends(children: Sequence[Part], whole: Sequence[Part]) -> list[Part]:
    """The other children, without a final norm or pooler right after these."""
    rest = [one for one in children if one not in whole]
    after = list(children[children.index(whole[-1]) + 1 :])
    while after and not after[0].children and _ends_backbone(after[0]):
        rest.remove(after.pop(0))
    return rest


def _is_more_than_tables(part: Part) -> bool:
    plain = [
        one
        for one in part.walk()
        if one.own and not is_norm(one) and "Embedding" not in type(one.layer).__name__
    ]
    return len(plain) > 1


def _is_backbone(part: Part, children: Sequence[Part]) -> str:
    """Why the last child is no head, if it is none."""
    last = children[-1]
    if holds_tables(last):
        return "has embeddings"
    if holds_blocks(last) and any(one.children for one in series_in(last)):
        return "holds a series of blocks"
    stem = stem_of(last.key)
    like = [
        one
        for one in children[:-1]
        if stem is not None and stem_of(one.key) == stem
        if type(one.layer) is type(last.layer) and last.children
    ]
    if like and (stem or not isinstance(last.layer, nn.Sequential)):
        return "is one of a series of blocks"
    if last.key.lower().startswith("pool"):
        return "is a pooler, as a backbone has"
    return "ends with a normalization layer, as a backbone does" if _ends_backbone(last) else ""


def _ends_backbone(part: Part) -> bool:
    """Whether this is a pooler, or ends with a norm: a head ends with what gives the answer."""
    *_, end = (one for one in part.walk() if one.own)
    return part.key.lower().startswith("pool") or is_norm(end)


def _pretrained_classifier(part: Part, named: Sequence[Part]) -> Part | None:
    """A ``Sequential`` head that is pretrained but for its last layer, if this is one."""
    shapes = PRETRAINED_CLASSIFIERS.get(type(part.layer).__name__)
    if not isinstance(part.layer, _VISION) or shapes is None or len(named) != 1:
        return None
    wanted = [
        [getattr(part.layer, side) if isinstance(side, str) else side for side in shape]
        for shape in shapes
    ]
    first = [getattr(one.layer, "weight", None) for one in named[0].children[:-1]]
    found = [list(one.shape) for one in first if one is not None]
    return named[0] if found == wanted else None
