"""Where a frozen prefix ends, found and proven by trying out a few batches.

Nothing is assumed about the network:

* Closed layers are those without open weights; of those inside each other, the outermost that is
  called. A call of one belongs to the prefix if its output needs no gradient.
* The outputs of prefix calls are filled with NaN and with large numbers. Those that the rest of the
  network does not use leave its output, and the tensors in its attributes, bit for bit the same.
  All others must be kept.
* The prefix must depend on the sample alone. It is computed again for some of the batch in reverse
  order and for single samples. Meanwhile the random generators have other seeds (those of NumPy and
  Python only if the forward drew from them, or no other thread may), and open weights and moving
  buffers are NaN or large. The result must be the same, and no random number may be drawn before
  its end.
* A forward that moves weights, gradients, its input, or plain attributes (a counter, a list, a
  generator of its own) is not tried out at all.

These are three checks: what must be kept (NaN elsewhere); that large numbers elsewhere change
nothing, and several samples alone; single samples. Each is made on another batch and, but for the
first, on weights that have trained, beside a step that computes everything, so that no step takes
much longer; and none of a batch's features is served before all have passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..bits import array_of, digest
from ..stages.weights import moving_state
from .boundary import PLAIN, RECOMPUTED, Boundary, filled_like, nearly_equal
from .keys import CannotCacheError
from .nested import leaves, replaced, restructured, tensors
from .state import (
    ForwardState,
    changed,
    others_than,
    plain_state,
    random_state,
    surely,
    weight_digests,
)
from .watch import Call, ForwardWatch, Trace

_MORE = "the open layers look at more of the frozen ones than can be kept"

_LARGE = 1e4

CHECKS = 3  # how many make a proof; the first one finds the boundary


class Trial:
    """The forward that the training loop asked for, and what can be learnt from it.

    The loop gets the output of this very forward. After ``with trial:`` buffers, attributes and
    Paddle's random generators are as that forward left them, whatever was tried out; so are those
    of NumPy and Python if the forward drew from them. The first check looks at all weights, too;
    the boundary is known if a training step has shown it.
    """

    def __init__(
        self, watch: ForwardWatch, network: nn.Layer, call: tuple[Callable[..., Any], Any, Any],
        size: int, known: Boundary | None = None, first: bool = True,
    ) -> None:  # fmt: skip
        self._watch = watch
        self._network = network
        self._original, *self._given = call
        self._size = size
        self._known = known
        # From the end and from the middle, each before those in front of it.
        some = max(size // 8, 2)
        self._backwards = list(range(size - 1, 0, -max((size - 1) // some, 1)))[:some]
        self._before = ForwardState(network)
        weights = weight_digests(network) if first else {}
        given, plain = _bits(self._given), plain_state(network)
        kept = None if known is None else known.kept_calls
        trace = Trace(whole=kept, others=kept is not None, random=random_state())
        self.result, self.trace = watch.traced(*call, trace)
        unmoved = self._before.unmoved()  # at once: a thread may draw in the next moment
        self.moving = False  # whether the prefix alone moves a buffer, as far as is seen
        self._assigned = self._before.assigned()
        self._expected: list[Any] = []
        self._rows: list[int] | None = None
        self._some: list[Any] = []  # what is expected for these rows
        self._side_effects = changed(plain, plain_state(network))
        if first:
            self._side_effects += changed(weights, weight_digests(network))
        if _bits(self._given) != given:
            self._side_effects.append("its own input")
        self._unsteady = self._before.unsteady()
        self._after = ForwardState(network, self._unsteady)
        self._before.leave_alone(unmoved)
        self._after.leave_alone(unmoved)
        self._tried = False  # whether anything was tried out
        self._seen: dict[Any, bool] = {}  # by filling: whether it changed nothing

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not isinstance(error, Exception):
            surely(self._before.restore)  # an interrupt: the step never happened
        elif self._tried:
            surely(self._after.restore)
        if isinstance(error, Exception) and not isinstance(error, CannotCacheError):
            # The network's own code got what it does not expect.
            what = f"{type(error).__name__}: {str(error)[:200]}"
            raise CannotCacheError(f"it could not be tried out: {what}") from error

    def check(self, number: int, opened: frozenset[int], known: Boundary | None = None) -> Boundary:
        """Make one of the checks; the first finds the boundary, or proves that it is the known one.

        Raises:
            CannotCacheError: with the reason why nothing can be kept.
        """
        known = known or self._known
        if self.trace.recomputed:
            raise CannotCacheError(RECOMPUTED)
        # Other side effects could not be undone after a trial, or would be missing while their
        # layer is skipped.
        if self._side_effects:
            raise CannotCacheError(f"its forward changes {self._side_effects[0]}")
        self._expected = self._expected or _bits([self.result, self._assigned, self._unsteady])
        prefix = self._prefix(known)
        if known is not None and not known.kept_calls <= set(prefix):
            raise CannotCacheError("another kind of call has another boundary")
        real = {call: self.trace.output(call) for call in prefix}
        self._refuse(real)
        self._every = {call: frozenset(range(len(list(tensors(real[call]))))) for call in prefix}
        found = self._needed(real) if known is None else dict(known.kept)
        boundary = known or Boundary(tuple(prefix), tuple(found.items()))
        rest = self._rest(found)
        if number == 0 and not self._same(real, rest):
            raise CannotCacheError(_MORE)
        # NaN does not show in a comparison; numbers that are large both ways do, once the weights
        # behind them are no longer zero: after the first step.
        fillings = (_LARGE, -_LARGE) if number == 1 and any(rest.values()) else ()
        if not all(self._same(real, rest, fill, self._few(real)) for fill in fillings):
            raise CannotCacheError(_MORE)
        if number > 0:
            self._prove_alone(boundary, opened, several=number == 1)
        return boundary

    def _prefix(self, known: Boundary | None) -> list[Call]:
        """The calls of frozen layers before anything open, up to the last that may be kept."""
        if not self._network.training:  # only a training step shows which these are
            assert known is not None
            return [call for call in known.prefix if self.trace.output(call) is not None]
        prefix = [call for call, _, is_prefix in self.trace.calls if is_prefix]
        # What follows the last of these (a dropout) is computed as ever.
        while prefix and not self._may_be_kept(prefix[-1]):
            prefix.pop()
        if not prefix:
            raise CannotCacheError("no frozen layer comes before the open ones")
        return prefix

    def _may_be_kept(self, call: Call) -> bool:
        layer = self._watch.closed[call[0]][1]
        plain = type(layer).__module__ in PLAIN and not isinstance(layer, nn.RReLU)
        return plain or bool(list(layer.parameters()))

    def _refuse(self, real: Mapping[Call, Any]) -> None:
        """Refuse calls that do more than compute tensors from their input."""
        assigned = self._assigned
        for call, output in real.items():
            path, layer = self._watch.closed[call[0]]
            if not all(isinstance(leaf, paddle.Tensor) for leaf in leaves(output)):
                raise CannotCacheError(
                    f"{self._watch.name(call)} gives something else than tensors"
                )
            if call in self.trace.drawn:
                raise CannotCacheError(
                    f"random numbers are drawn before the end of {self._watch.name(call)}, in "
                    "forward code and not in a frozen layer, or meanwhile by a thread that loads "
                    "data"
                )
            # A skipped layer would not set what it keeps for others to read.
            inside = {id(one) for one in [layer, *layer.sublayers()]}
            for owner, name in assigned:
                if owner in inside:
                    raise CannotCacheError(f"{path} sets {name}, which others may read")
            # Nor would it go on moving its statistics, as what the user froze may do.
            moving = {id(tensor) for tensor in self._unsteady}
            for one in [layer, *layer.sublayers()]:
                for name, tensor in moving_state(one).items():
                    if id(tensor) in moving:
                        raise CannotCacheError(f"{path} moves its {name} in each forward")

    def _needed(self, real: Mapping[Call, Any]) -> dict[Call, tuple[int, ...]]:
        """The tensors of prefix calls that the rest of the network uses."""
        # A few samples show it nearly always, and all of them show whether they did.
        for rows in (self._few(real), None):
            found = self._used(real, rows)
            if found and self._same(real, self._rest(found)):
                return found
        raise CannotCacheError(
            _MORE if found else "the network's output does not depend on its frozen layers"
        )

    def _used(
        self, real: Mapping[Call, Any], rows: list[int] | None
    ) -> dict[Call, tuple[int, ...]]:
        """The tensors of prefix calls without which these samples get another output."""
        every, last = self._every, list(real)[-1]
        candidates = {last: every[last]}
        if not self._same(real, {**every, last: frozenset()}, rows=rows):
            if not self._same(real, {}, rows=rows):
                raise CannotCacheError("the network's forward does not repeat itself")
            # An inner tensor is used: keep every one that is.
            candidates = {
                call: holes
                for call, holes in every.items()
                if call == last or not self._same(real, {call: holes}, rows=rows)
            }
        found = {
            call: tuple(
                i for i in sorted(holes) if not self._same(real, {call: frozenset([i])}, rows=rows)
            )
            for call, holes in candidates.items()
        }
        return {call: places for call, places in found.items() if places}

    def _rest(self, found: Mapping[Call, Collection[int]]) -> dict[Call, frozenset[int]]:
        """The tensors of prefix calls that are not kept."""
        return {call: holes.difference(found.get(call, ())) for call, holes in self._every.items()}

    def _few(self, real: Mapping[Call, Any]) -> list[int] | None:
        """The last samples of the batch, backwards, if all outputs have one row per sample."""
        sides = {tuple(tensor.shape[:1]) for tensor in tensors(list(real.values()))}
        return self._backwards if sides == {(self._size,)} else None

    def _fresh(self) -> tuple[Any, Any]:
        """The arguments of the forward; the network's state becomes that before the call."""
        self._tried = True
        self._before.restore()
        args, kwargs = restructured(self._given)  # the tensors themselves: it leaves them alone
        return args, kwargs

    def _same(
        self, real: Mapping[Call, Any], holes: Mapping[Call, frozenset[int]],
        fill: float = math.nan, rows: list[int] | None = None,
    ) -> bool:  # fmt: skip
        """Whether the network does the same with these tensors filled, for all samples or some."""
        shown = {call: places for call, places in holes.items() if places}
        which = (frozenset(shown.items()), str(fill), rows is None)
        if which not in self._seen:
            if rows is not None and rows is not self._rows:
                self._rows, self._some = rows, self._planned(real, {}, fill, rows)
            expected = self._expected if rows is None else self._some
            self._seen[which] = self._planned(real, shown, fill, rows) == expected
        return self._seen[which]

    def _planned(
        self, real: Mapping[Call, Any], holes: Mapping[Call, frozenset[int]], fill: float,
        rows: list[int] | None,
    ) -> list[Any]:  # fmt: skip
        """What the network does with these tensors filled, bit for bit."""
        inputs = self._fresh()
        plan = {}
        for call, output in real.items():
            places = holes.get(call, frozenset())
            plan[call] = replaced(
                output if rows is None else rows_of(output, rows),
                lambda index, tensor, places=places: (  # type: ignore[misc]
                    filled_like(tensor, fill) if index in places else tensor.clone()
                ),
            )
        if rows is not None:
            inputs = rows_of(inputs, rows)
        with paddle.no_grad():
            again = self._watch.planned(self._original, *inputs, plan)
        return _bits([again, self._before.assigned(), self._unsteady])

    def _prove_alone(self, boundary: Boundary, opened: frozenset[int], several: bool) -> None:
        """Prove that features depend on the sample alone, and on nothing that is open."""
        watch = self._watch
        expected = boundary.features(self.trace, self._size, watch.name)
        backwards = self._backwards
        # One sample is enough after that; it also shows layers that cut to the longest of a batch.
        # Comparisons with NaN are always false, so open weights are made large, too. Whether a
        # buffer moves is seen only in a number, and with two samples. So each forward has what open
        # weights are filled with, what moving buffers are, and which samples there are.
        each = [(_LARGE, _LARGE, backwards[:1]), (-_LARGE, math.nan, [0])]
        if several:
            each = [(math.nan, -_LARGE, backwards)]
        weights = [tensor for tensor in self._network.parameters() if id(tensor) in opened]
        with paddle.no_grad(), _put_back(weights):
            for seed, (fill, buffer, chosen) in enumerate(each, 1 if several else 2):
                args, kwargs = rows_of(self._fresh(), chosen)
                self._before.reseed(seed)
                for group, value in ((weights, fill), (self._unsteady, buffer)):
                    for tensor, full in zip(group, others_than(group, value)):
                        tensor.set_value(full)
                buffers = [*self._unsteady, *self._before.replace_again(self._assigned, buffer)]
                filled = _bits(buffers)
                trace = Trace(whole=boundary.kept_calls, until=boundary.kept_calls)
                watch.traced(self._original, args, kwargs, trace)
                self.moving = self.moving or _bits(buffers) != filled
                again = boundary.features(trace, len(chosen), watch.name)
                for all_rows, part in zip(expected, again):
                    same_shape = part.shape[1:] == all_rows.shape[1:]
                    rows = array_of(all_rows)[chosen]
                    if not (same_shape and nearly_equal(array_of(part), rows, 1e-3)):
                        raise CannotCacheError(
                            "the frozen layers give a sample something else each time: they "
                            "depend on open layers, on the other samples of the batch, or on "
                            "random numbers"
                        )


@contextmanager
def _put_back(every: Sequence[paddle.Tensor]) -> Iterator[None]:
    """Give these tensors their values back at the end."""
    before = [tensor.clone() for tensor in every]

    def undo() -> None:
        for tensor, was in zip(every, before):
            tensor.set_value(was)

    try:
        yield
    finally:
        surely(undo)


def rows_of(value: Any, chosen: Sequence[int]) -> Any:
    """The same structure with some rows of each tensor."""

    def rows(_: int, tensor: paddle.Tensor) -> paddle.Tensor:
        # By way of NumPy: for some dtypes Paddle has no such kernel.
        found = paddle.to_tensor(array_of(tensor)[list(chosen)])
        return found if found.dtype == tensor.dtype else found.view(tensor.dtype)

    return replaced(value, rows)


def _bits(value: Any) -> list[Any]:
    """What tells whether the values in a structure are bit for bit the same."""
    return [_bits_of(leaf) for leaf in leaves(value)]


def _bits_of(leaf: Any) -> Any:
    if isinstance(leaf, paddle.Tensor):
        return digest(leaf)
    if isinstance(leaf, np.ndarray):
        return leaf.tobytes()
    if isinstance(leaf, (bool, int, float, str)):
        return repr(leaf)
    raise CannotCacheError(f"the network gives a {type(leaf).__name__} beside its tensors")
