"""What training moved in a network, as a file, and back into the network that it began with.

A file holds what was open at any time, and what moved beside it. Of everything else, the *base*,
it holds checksums: the network that it is loaded into must have the same, and is then bit for bit
the network that was saved, whatever its other tensors were before.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping

import paddle
from paddle import nn

from ..bits import digest
from ..freezing.rows import write as write_rows
from ..stages.weights import Weight, merging, weights
from ..version import VERSION
from ..words import did_you_mean
from .tensor_file import kind_of, read, write

_BASE = "base"
_PART = re.compile(r"(.+)\[(\d+):(\d+)\]")

Span = tuple[int, int]


class Trained:
    """What of a network has trained in a run, or moved with it.

    Args:
        network: the network, as it was found.
        every: all its weights.
        alone: names of the weights that are left alone: who knows what moves them.
        before: names of what had trained or moved when the run was resumed; ``None`` if only the
            weights are known then, which :meth:`opened` is told of.
        rows: the rows that train of weights of which others do not, by name.
    """

    def __init__(
        self,
        network: nn.Layer,
        every: Iterable[Weight],
        alone: Collection[str],
        before: Collection[str] | None = (),
        rows: Mapping[str, Span] | None = None,
    ) -> None:
        self._network = network
        prefix = _prefix(network)
        self._rows = {name.removeprefix(prefix): span for name, span in (rows or {}).items()}
        for name, span in {**dict.fromkeys(before or ()), **cut(before or ())}.items():
            if self._rows.get(name, span) != span:  # other rows trained before, or all
                del self._rows[name]
        known = {weight.name.removeprefix(prefix): weight.tensor for weight in every}
        state = _state(network, self._rows, known)
        beside = _state(network, None, known).keys() - known.keys()
        self._known = frozenset(state)
        self._names: set[str] = set(beside) if before is None else set()
        self.opened(before or ())
        watched = beside.union(name.removeprefix(prefix) for name in alone)
        self._found = {name: digest(state[name]) for name in watched}

    def opened(self, names: Iterable[str]) -> None:
        """These weights train from now on."""
        for name in names:
            name = name.removeprefix(_prefix(self._network))
            if name in self._known:
                self._names.add(name)
            elif name in self._rows:
                self._names.add(_part(name, *self._rows[name]))
            else:  # rows that trained before a resume
                self._names.update(cut([name]).keys() & self._known)

    def state_dict(self) -> dict[str, paddle.Tensor]:
        """What has trained, and what moved beside it, by its first name."""
        return {
            name: tensor
            for name, tensor in _state(self._network, self._rows).items()
            if name in self._names
            or name not in self._known
            or (name in self._found and digest(tensor) != self._found[name])
        }

    def save(self, file: str | os.PathLike[str], trained: Mapping[str, paddle.Tensor]) -> None:
        """Write this, with the checksums of the base."""
        base = _checksums(self._network, trained, self._rows)
        # "np": PaddleNLP refuses files that do not say who wrote their numbers.
        metadata = {"format": "np", "paddle_freeze_callback": VERSION, _BASE: json.dumps(base)}
        write(file, trained, metadata)


def load_trained(network: nn.Layer, file: str | os.PathLike[str]) -> tuple[str, ...]:
    """Load what ``schedule.run.save_trained`` wrote, into the network that training began with.

    It must be built in the same way, and what was frozen for the whole run must have the same
    weights: a new head, which trained, may have any. Then it is bit for bit the network that was
    saved. Build the optimizer after this, as it may keep weights of its own.

    Args:
        network: the network; flags stay as they are.
        file: the file.

    Returns:
        The names of the tensors that were loaded.

    Raises:
        ValueError: if the network is another one or has another base, which the message names, or
            if the file is damaged. Then nothing was loaded.
        OSError: if the file cannot be read.

    >>> import tempfile
    >>> from paddle_freeze_callback import FreezeSchedule
    >>> net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    >>> optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    >>> with FreezeSchedule(strategy="head_only").attach(net, optimizer, total_steps=9) as run:
    ...     pass  # train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run.save_trained(f"{folder}/head.safetensors")
    ...     load_trained(net, f"{folder}/head.safetensors")
    ('1.weight', '1.bias')
    """
    trained, metadata = read(file)
    name = os.fspath(file)
    try:
        base = json.loads(metadata[_BASE])
    except (KeyError, ValueError):
        raise ValueError(
            f"{name} was not written by save_trained(): it knows no base; "
            "network.set_state_dict() takes the tensors of any file"
        ) from None
    rows, kind = cut(trained), type(_bare(network)).__name__
    state = _state(network, rows)
    _refuse_other(name, kind, state, {**trained, **base})
    for key, tensor in trained.items():
        own = state[key]
        ours, theirs = (f"{kind_of(one)} {list(one.shape)}" for one in (own, tensor))
        if ours != theirs:
            raise ValueError(f"{key} is {theirs} in {name}, and {ours} in this {kind}")
    now = _checksums(network, trained, rows)
    differ = [key for key in base if base[key] and now[key] != base[key]]
    if differ:
        raise ValueError(
            f"{name} was trained on another base: {differ[0]} differs"
            f"{f', and {len(differ) - 1} more do' if differ[1:] else ''}, of {len(base)} tensors "
            f"that stayed as they were; give the {kind} the weights that training began with"
        )
    with paddle.no_grad():
        whole = _state(network)
        for key, tensor in trained.items():
            if key in whole:
                whole[key].set_value(tensor)
            for of, (first, after) in cut({key} - whole.keys()).items():
                write_rows(tensor, whole[of], slice(first, after))
    return tuple(trained)


def _refuse_other(
    file: str, kind: str, state: Mapping[str, paddle.Tensor], known: Collection[str]
) -> None:
    lacking = [key for key in known if key not in state]
    if lacking:
        whole = {_PART.sub(r"\1", key) for key in state}
        raise ValueError(
            f"this {kind} has no {lacking[0]!r}, which {file} knows"
            + (did_you_mean(lacking[0], whole) or "; build it as it was when it was saved")
        )
    further = [key for key in state if key not in known]
    if further:
        raise ValueError(
            f"this {kind} has {further[0]!r}, which {file} does not know; "
            "build it as it was when it was saved"
        )


def _checksums(
    network: nn.Layer, trained: Collection[str], rows: Mapping[str, Span]
) -> dict[str, str]:
    """Of all that did not train; empty for what moves by rounding, whose name alone counts."""
    rounded = merging(network)
    return {
        name: "" if id(tensor) in rounded else digest(tensor).hex()
        for name, tensor in _state(network, rows).items()
        if name not in trained
    }


def _bare(network: nn.Layer) -> nn.Layer:
    """The network inside its data-parallel wrapper, if it has one."""
    return network._layers if isinstance(network, paddle.DataParallel) else network


def _prefix(network: nn.Layer) -> str:
    return "" if _bare(network) is network else "_layers."


def _part(name: str, first: int, after: int) -> str:
    return f"{name}[{first}:{after}]"


def cut(names: Iterable[str]) -> dict[str, Span]:
    """Of which weights rows alone are named, and which.

    >>> cut(["head.weight", "words.weight[9:12]"])
    {'words.weight': (9, 12)}
    """
    found = filter(None, map(_PART.fullmatch, names))
    return {one[1]: (int(one[2]), int(one[3])) for one in found}


def _state(
    network: nn.Layer,
    rows: Mapping[str, Span] | None = None,
    known: Mapping[str, paddle.Tensor] | None = None,
) -> dict[str, paddle.Tensor]:
    """Weights by their first names, tied ones once, and all else that a checkpoint holds.

    A weight of which rows alone train comes in up to three parts. The weights may be known already.
    """
    network = _bare(network)
    found = dict(known or {weight.name: weight.tensor for weight in weights(network)})
    seen = {id(tensor) for tensor in found.values()}
    # That of Paddle itself: libraries, and mixed precision by a hook, hand out other tensors.
    for name, tensor in nn.Layer.state_dict(network, use_hook=False).items():
        if id(tensor) not in seen:
            found[name] = tensor
            seen.add(id(tensor))
    for name, (first, after) in (rows or {}).items():
        if name not in found:
            continue
        tensor = found.pop(name).detach()
        for start, end in ((0, first), (first, after), (after, tensor.shape[0])):
            if start < end:
                found[_part(name, start, end)] = tensor[start:end]
    return found
