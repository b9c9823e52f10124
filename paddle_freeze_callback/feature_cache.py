"""How a frozen prefix of a network is computed once per sample instead of once per epoch.

While a prefix is frozen, its output for a sample does not change. :class:`FeatureCache` keeps
that output and replays it: the layers of the prefix are skipped, and hand on placeholders or, at
the boundary, what was kept.

Nothing is assumed about the network; everything is found out before the first training step
after each transition, on a batch of the loop's own, and everything is put back afterwards (buffers,
plain attributes, random generators):

* Closed layers are the outermost layers without open weights. A call of one belongs to the
  prefix if its output needs no gradient.
* What must be kept is found by filling the outputs of prefix calls with NaN and with large
  numbers: whatever the rest of the network does not look at leaves its output, and what it keeps in
  attributes, bit for bit the same.
* The prefix must depend on the sample alone. It is computed again for a part of the batch in
  another order, with other random numbers, and with NaN in all open weights, and must come out the
  same; and no random number may be drawn before its end.

If any of this fails, the cache is off until the next transition, and one line says why. While
replaying, placeholders are NaN, so that what was not foreseen shows; and one batch in so many is
computed after all and compared with what was kept.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import math
import os
import random
import shutil
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from .checks import one_of, whole
from .feature_store import DiskStore, MemoryStore, Row, bytes_of, default_folder, free_memory
from .weights import layers, moving_state, weights

# Layers without weights that compute the same in training and evaluation: these may lie at the
# boundary, which is often a pooling. Dropout may not.
_PLAIN = ("paddle.nn.layer.pooling", "paddle.nn.layer.activation")

_RECOMPUTED = "layers are recomputed in the backward pass"

Call = tuple[int, int]  # which closed layer, and which of its calls in one forward


@dataclass(frozen=True)
class CacheOptions:
    """Whether, where and how features are kept.

    Attributes:
        cache: ``"memory"``, ``"disk"`` (a folder in the user's cache folder), or a folder.
        limit: bytes of features at most, or text such as ``"4 GB"``; by default half of the free
            memory, or of the free space on the disk.
        dtype: keep floating-point features as ``"float16"`` or ``"float32"``; by default as
            computed.
        check_every: compute one batch in so many after all, and compare.
    """

    cache: str | os.PathLike[str]
    limit: int | str | None = None
    dtype: str | None = None
    check_every: int = 200

    def __post_init__(self) -> None:
        if not isinstance(self.cache, (str, os.PathLike)) or not os.fspath(self.cache):
            raise TypeError(f'cache={self.cache!r} must be "memory", "disk" or a folder')
        if self.cache not in ("memory", "disk") and Path(self.cache).is_file():
            raise ValueError(f"cache={os.fspath(self.cache)!r} is a file, not a folder")
        if self.limit is not None:
            bytes_of("cache_limit", self.limit)
        if self.dtype is not None:
            one_of("cache_dtype", self.dtype, ("float16", "float32"))
        whole("cache_check_every", self.check_every, 1)

    def store(self, fingerprint: Callable[[], str]) -> MemoryStore | DiskStore:
        """A store for features of a prefix with this fingerprint."""
        limit = None if self.limit is None else bytes_of("cache_limit", self.limit)
        if self.cache == "memory":
            return MemoryStore(free_memory() // 2 if limit is None else limit)
        folder = default_folder() if self.cache == "disk" else Path(self.cache)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        return DiskStore(folder / fingerprint(), free // 2 if limit is None else limit)


class CannotCacheError(Exception):
    """Why this network, or this call of it, cannot use the cache."""


@dataclass
class CacheStatistics:
    """What a cache did since the run began.

    Attributes:
        hits: samples whose features were replayed.
        misses: samples whose features were computed.
        rows: samples kept now.
        nbytes: bytes of features kept now.
        boundary: what is kept, such as ``("encoder.layers.2",)``; empty while the cache is off.
        off: why it is off; empty while it is on.
    """

    hits: int = 0
    misses: int = 0
    rows: int = 0
    nbytes: int = 0
    boundary: tuple[str, ...] = ()
    off: str = ""

    @property
    def hit_rate(self) -> float:
        """Hits / all look-ups; 0 before the first."""
        return self.hits / max(self.hits + self.misses, 1)


@dataclass
class _Recipe:
    """How to replay one form of input.

    Attributes:
        kept: the calls whose outputs are kept, with the places of the tensors in them.
        placeholders: the outputs of the other prefix calls, and of the unneeded tensors.
        templates: the structure of the output of each kept call.
    """

    kept: tuple[tuple[Call, tuple[int, ...]], ...]
    placeholders: dict[Call, Any]
    dtypes: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Shape:
    """What a tensor looked like."""

    shape: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, index: int, tensor: paddle.Tensor) -> _Shape:
        return cls(tuple(tensor.shape), tensor.dtype)


@dataclass
class _Trace:
    """The calls of closed layers in one forward, in order.

    Attributes:
        whole: the calls whose outputs are wanted; of the others only shapes are noted, so that
            their memory is freed as it would be without us. ``None`` for all.
        calls: for each call its output, and whether that needs no gradient.
        recomputed: whether the layers turned out to be recomputed in the backward pass.
        drawn: the calls before whose end a random number had been drawn.
    """

    whole: frozenset[Call] | None = None
    calls: list[tuple[Call, Any, bool]] = field(default_factory=list)
    recomputed: bool = False
    drawn: set[Call] = field(default_factory=set)
    random: Any = None

    def output(self, call: Call) -> Any:
        return next((out for one, out, _ in self.calls if one == call), None)


class FeatureCache:
    """Replays the features of a frozen prefix in the forward of a network.

    Args:
        network: the network whose forward is called.
        options: where and how features are kept.
        say: shows a line.
        epoch: tells the epoch of now, from 0; used to give up where nothing ever comes again.
        ready: tells whether the network runs as it will until the next transition; ``None`` if
            it turned out to recompute its layers in the backward pass.
    """

    def __init__(
        self,
        network: nn.Layer,
        options: CacheOptions,
        say: Callable[[str], object],
        epoch: Callable[[], int] = lambda: 0,
        ready: Callable[[], bool | None] = lambda: True,
    ) -> None:
        self._network = network
        self._options = options
        self._say = say
        self._dtype = None if options.dtype is None else np.dtype(options.dtype)
        self._epoch = epoch
        self._ready = ready
        self._closed: list[tuple[str, nn.Layer]] = []
        self._patched: list[_Patch] = []
        self._store: MemoryStore | DiskStore | None = None
        self._prefix: frozenset[int] = frozenset()  # weights that the kept features depend on
        self._kept: tuple[tuple[Call, tuple[int, ...]], ...] | None = None
        self._kept_names: tuple[str, ...] = ()
        self._recipes: dict[Any, _Recipe] = {}
        self._blanks: dict[Any, paddle.Tensor] = {}
        self._each = 0
        self._probes: list[tuple[paddle.Tensor, bytes]] = []
        self._proven: set[Any] = set()
        self._watching = 0
        self._stray = False
        self._prefix_calls: tuple[Call, ...] = ()
        self._counts: dict[int, int] = {}
        self._mode: str = ""
        self._trace = _Trace()
        self._plan: dict[Call, Any] = {}
        self._grad = False
        self._batches = 0
        self._began = 0
        self._seen_then = (0, 0)
        self._opened: frozenset[int] = frozenset()
        self.statistics = CacheStatistics()

    # ------------------------------------------------------------ from transition to transition

    def begin(self, opened: frozenset[int]) -> None:
        """After a transition: the weights with these identities are open now.

        Features are kept if nothing that they depend on has opened and the boundary turns out to
        be where it was.
        """
        self.remove()
        self.statistics.off, self.statistics.boundary = "", ()
        self._recipes, self._blanks, self._proven, self._batches = {}, {}, set(), 0
        self._watching, self._stray = 0, False
        self._began = self._epoch()
        self._seen_then = (self.statistics.hits, self.statistics.misses)
        if self._prefix & opened:
            self._forget()
            self.statistics.rows = self.statistics.nbytes = 0
        self._closed = _closed_layers(self._network, opened)
        if not any(list(layer.parameters()) for _, layer in self._closed):
            self._off("no layer is frozen as a whole")
            return
        self._opened = opened
        try:
            self._refuse_hooks()
            self._patched.append(_Patch(self._network, self, FeatureCache._forward))
            for index, (_, layer) in enumerate(self._closed):
                self._patched.append(_Patch(layer, self, _watch(index)))
        except CannotCacheError as why:
            self._off(str(why))

    def close(self) -> None:
        """The run is over: put the forward functions back, and forget all features."""
        self.remove()
        self._forget()

    def remove(self) -> None:
        """Put the forward functions back as they were found."""
        for patch in reversed(self._patched):
            patch.undo()
        self._patched = []

    def _forget(self) -> None:
        self._store, self._kept, self._prefix = None, None, frozenset()
        self._recipes, self._blanks, self._probes = {}, {}, []

    def _off(self, why: str) -> None:
        self.remove()
        self._forget()
        self.statistics.off, self.statistics.boundary = why, ()
        self.statistics.rows = self.statistics.nbytes = 0
        self._say(f"cache off until the next transition: {why}")

    def _refuse_hooks(self) -> None:
        """Hooks of the user would be handed placeholders, or not be called, or once too often."""
        for path, layer in layers(self._network):
            # Paddle gives no public list of the hooks of a layer.
            hooks = [*layer._forward_pre_hooks.values(), *layer._forward_post_hooks.values()]
            for hook in hooks if path else ():
                owner = getattr(hook, "__self__", hook)
                home = getattr(hook if owner is hook else type(owner), "__module__", None)
                home = home or type(hook).__module__
                if home.partition(".")[0] not in ("paddle", __name__.partition(".")[0]):
                    raise CannotCacheError(
                        f"{path} has a forward hook, which would not see its values"
                    )

    # ------------------------------------------------------------ the forward of the network

    def _forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._mode or not self._patched or not paddle.in_dynamic_mode():
            return original(*args, **kwargs)
        inputs = list(_tensors((args, kwargs)))
        if any(not tensor.stop_gradient for tensor in inputs):
            return original(*args, **kwargs)  # somebody wants gradients of the input itself
        try:
            if self._stray:
                raise CannotCacheError(_RECOMPUTED)
            size = _batch_size(inputs)
            content = _form((args, kwargs))
            form = (self._network.training, _amp_state(), content)
            kind = (self._network.training, _amp_state(), _kind(content))
            self._probe_a_weight()
            if size == 0 or not (kind in self._proven or self._prove(original, args, kwargs, kind)):
                return original(*args, **kwargs)
            keys = _keys(inputs, size, form)
        except CannotCacheError as why:
            self._off(str(why))
            return original(*args, **kwargs)
        return self._served(original, args, kwargs, form, keys)

    def _probe_a_weight(self) -> None:
        """Whether one of the frozen weights, another with each batch, is still what it was."""
        if not self._probes:
            return
        tensor, before = self._probes[self._batches % len(self._probes)]
        if _few(tensor).tobytes() != before:
            name = next((n for n, t in self._network.named_parameters() if t is tensor), "a buffer")
            raise CannotCacheError(f"{name} changed although it is frozen")

    def _served(
        self, original: Callable[..., Any], args: Any, kwargs: Any, form: Any, keys: list[bytes]
    ) -> Any:
        """The network's output, from the cache if all samples of the batch are there."""
        assert self._store is not None
        size, recipe = len(keys), self._recipes.get(form)
        rows = self._store.get(keys)
        missing = sum(row is None for row in rows)
        self._batches += 1
        self._watching += self._network.training
        check = self._batches % self._options.check_every == 0
        if recipe is not None and not missing and not check:
            self.statistics.hits += size
            return self._replay(original, args, kwargs, recipe, rows)
        # A batch with a sample that is not there is computed as a whole, exactly as without us.
        self.statistics.misses += size
        result, trace = self._traced(original, args, kwargs)
        try:
            self._check_trace(trace)
            features = self._kept_of(trace, size)
            self._compare(rows, features)
            self._recipes.setdefault(form, self._recipe(trace))
            self._put(keys, features)
            if missing == size:
                self._give_up_without_hits()
        except CannotCacheError as why:
            self._off(str(why))
        return result

    def _check_trace(self, trace: _Trace) -> None:
        """Whether a forward called the frozen layers as the proven one did."""
        if trace.recomputed:
            raise CannotCacheError(_RECOMPUTED)
        calls = {call: prefix for call, _, prefix in trace.calls}
        for call, _ in self._kept or ():
            if call not in calls:
                raise CannotCacheError(f"{self._name(call)} is not called for every batch")
        if self._network.training and self._grad:
            for call in self._prefix_calls:
                if not calls.get(call, True):
                    raise CannotCacheError(f"{self._name(call)} comes behind open layers now")

    def _replay(
        self,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
        recipe: _Recipe,
        rows: Sequence[Row | None],
    ) -> Any:
        columns = [np.stack([row[i] for row in rows if row]) for i in range(len(recipe.dtypes))]
        features = [_tensor(array, dtype) for array, dtype in zip(columns, recipe.dtypes)]
        return self._planned(original, args, kwargs, self._outputs(recipe, features))

    def _outputs(self, recipe: _Recipe, features: Sequence[paddle.Tensor]) -> dict[Call, Any]:
        """What each prefix call hands on: placeholders, and the features where they belong."""
        # Copies of the structures: the network may append to a list that it was handed.
        plan = {call: _with_tensors(out, _same) for call, out in recipe.placeholders.items()}
        coming = iter(features)
        for call, places in recipe.kept:
            own = {place: next(coming) for place in places}
            plan[call] = _with_tensors(plan[call], own.get)
        return plan

    def _planned(
        self, original: Callable[..., Any], args: Any, kwargs: Any, plan: dict[Call, Any]
    ) -> Any:
        for output in plan.values():
            for tensor in _tensors(output):
                tensor.stop_gradient = True  # a hook may have said otherwise last time
        with self._as("replay"):
            self._plan = plan
            return original(*args, **kwargs)

    def _traced(
        self, original: Callable[..., Any], args: Any, kwargs: Any, *, everything: bool = False
    ) -> tuple[Any, _Trace]:
        whole = None if everything else frozenset(call for call, _ in self._kept or ())
        with self._as("trace"):
            self._trace = _Trace(whole, random=_random_state() if everything else None)
            self._grad = paddle.is_grad_enabled()
            result = original(*args, **kwargs)
            trace = self._trace
        return result, trace

    @contextmanager
    def _as(self, mode: str) -> Iterator[None]:
        self._mode, self._counts = mode, {}
        try:
            yield
        finally:
            self._mode, self._plan, self._trace = "", {}, _Trace()

    def _watched(self, index: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of a closed layer."""
        if not self._mode:
            # Called from outside the network's forward, in the steps that show how it runs.
            training = self._network.training and paddle.is_grad_enabled()
            self._stray = self._stray or (self._watching in (1, 2) and training)
            return original(*args, **kwargs)
        nth = self._counts.get(index, 0)
        self._counts[index] = nth + 1
        call = (index, nth)
        if self._mode == "replay":
            return self._plan[call] if call in self._plan else original(*args, **kwargs)
        output = original(*args, **kwargs)
        trace = self._trace
        if self._grad and not paddle.is_grad_enabled():
            trace.recomputed = True
        if trace.random is not None and trace.random != _random_state():
            trace.drawn.add(call)
        prefix = all(tensor.stop_gradient for tensor in _tensors(output))
        wanted = trace.whole is None or call in trace.whole
        # A copy of the structure: the network may change what it was handed.
        trace.calls.append((call, _with_tensors(output, _same if wanted else _Shape.of), prefix))
        return output

    def _put(self, keys: list[bytes], features: Row) -> None:
        assert self._store is not None
        was_full = self._store.full
        self._store.put(keys, features)
        self.statistics.rows = len(self._store)
        self.statistics.nbytes = self._store.nbytes
        if self._store.full and not was_full:
            self._say(
                f"cache full: {len(self._store):,} samples in {self._store.nbytes / 2**20:,.0f} "
                "MB; batches with another sample are computed each time (cache_limit=)"
            )

    def _give_up_without_hits(self) -> None:
        """Random augmentation: no sample ever comes again."""
        epoch = self._epoch()
        hits, misses = self.statistics.hits, self.statistics.misses
        if epoch < self._began + 1:
            self._seen_then = (hits, misses)
        elif epoch >= self._began + 2:
            new_hits = hits - self._seen_then[0]
            if new_hits < 0.01 * (new_hits + misses - self._seen_then[1]):
                full = self._store is not None and self._store.full
                raise CannotCacheError(
                    "almost no batch came from it in two epochs: it is full, and a batch counts "
                    "only as a whole; give it a higher cache_limit"
                    if full
                    else "almost no sample came twice in two epochs; random augmentation, or "
                    "padding that differs from batch to batch, makes new samples of old ones"
                )

    # ------------------------------------------------------------ finding out, and proving it

    def _prove(self, original: Callable[..., Any], args: Any, kwargs: Any, kind: Any) -> bool:
        """Find the boundary for this kind of call; ``False`` if this batch cannot tell."""
        training = self._network.training
        ready = self._ready()
        if ready is None:
            raise CannotCacheError(_RECOMPUTED)
        size = _batch_size(list(_tensors((args, kwargs))))
        known = any(proven for proven, *_ in self._proven)
        # Only a training step tells where the boundary is, and one sample nothing of the others.
        tells = paddle.is_grad_enabled() if training else known
        if not (ready and tells and size > 1):
            return False
        state = _State(self._network)
        try:
            self._find_boundary(original, (args, kwargs), state, size, known=known)
        except CannotCacheError:
            raise
        except Exception as error:  # the network's own code, handed what it does not expect
            raise CannotCacheError(
                f"it could not be tried out: {type(error).__name__}: {str(error)[:200]}"
            ) from error
        finally:
            state.restore()
        self._proven.add(kind)
        self._watching = 0
        if training and not known:
            each = self._each
            self._say(
                f"cache on: keeps the output of {', '.join(self._kept_names)}, {each:,} bytes a "
                f"sample; {len(self._store or ()):,} samples are there"
            )
        return True

    def _find_boundary(
        self, original: Callable[..., Any], given: Any, state: _State, size: int, *, known: bool
    ) -> None:
        """Find what the rest of the network looks at, by filling everything else."""

        def fresh() -> tuple[Any, Any]:
            state.restore()
            args, kwargs = _with_tensors(given, lambda _, tensor: tensor.clone().detach())
            return args, kwargs

        training = self._network.training
        result, trace = self._traced(original, *fresh(), everything=True)
        if trace.recomputed:
            raise CannotCacheError(_RECOMPUTED)
        expected = (result, state.changed_tensors())
        if training:
            prefix = [call for call, _, is_prefix in trace.calls if is_prefix]
            bounds = [call for call in prefix if self._may_be_kept(call)]
            if not bounds:
                raise CannotCacheError("no frozen layer comes before the open ones")
            # What follows the last of these (a dropout) is computed as ever.
            prefix = prefix[: prefix.index(bounds[-1]) + 1]
        else:
            prefix = [call for call in self._prefix_calls if trace.output(call) is not None]
        if known and not {call for call, _ in self._kept or ()} <= set(prefix):
            raise CannotCacheError("another kind of call has another boundary")
        real = {call: trace.output(call) for call in prefix}
        for call in prefix:
            if not all(isinstance(t, paddle.Tensor) for t in _leaves(real[call])):
                raise CannotCacheError(f"{self._name(call)} gives something else than tensors")
            if call in trace.drawn:
                raise CannotCacheError(
                    f"random numbers are drawn before the end of {self._name(call)}, in forward "
                    "code and not in a frozen layer"
                )
            self._refuse_attributes(call[0], state)

        def same_without(holes: dict[Call, set[int]], fill: float = math.nan) -> bool:
            """Whether the network does the same with these tensors filled."""
            inputs = fresh()
            plan = {}
            for call, output in real.items():
                filled = {
                    index: _filled(tensor, fill)
                    for index, tensor in enumerate(_tensors(output))
                    if index in holes.get(call, ())
                }
                copies = _with_tensors(output, lambda _, tensor: tensor.clone())
                plan[call] = _with_tensors(copies, filled.get)
            with paddle.no_grad():
                again = self._planned(original, *inputs, plan)
            return _same_bits((again, state.changed_tensors()), expected)

        every = {call: set(range(len(list(_tensors(real[call]))))) for call in prefix}
        found = self._kept or ()
        if not known:
            last = prefix[-1]
            candidates = {last: every[last]}
            if not same_without({**every, last: set()}):
                if not same_without({}):
                    raise CannotCacheError("the network's forward does not repeat itself")
                # Something looks at an inner tensor: keep whatever is looked at.
                candidates = {
                    call: holes
                    for call, holes in every.items()
                    if call == last or not same_without({call: holes})
                }
            kept = []
            for call, holes in candidates.items():
                needed = tuple(i for i in sorted(holes) if not same_without({call: {i}}))
                if needed:
                    kept.append((call, needed))
            found = tuple(kept)
        if not found:
            raise CannotCacheError("the network's output does not depend on its frozen layers")
        rest = {call: every[call] - set(dict(found).get(call, ())) for call in prefix}
        # NaN does not show in a comparison; numbers that are large both ways do.
        if any(rest.values()) and not all(same_without(rest, fill) for fill in _FILLINGS):
            raise CannotCacheError(
                "the open layers look at more of the frozen ones than can be kept"
            )
        for call, places in found:
            tensors = list(_tensors(real[call]))
            for place in places:
                if not tensors[place].shape or tensors[place].shape[0] != size:
                    raise CannotCacheError(
                        f"the output of {self._name(call)} has the shape {tensors[place].shape}, "
                        f"whose first side is not the batch of {size}"
                    )
        self._prove_alone(original, fresh, found, trace, size)
        if not known:
            self._prefix_calls = tuple(prefix)
            state.restore()
            self._take_boundary(found)
            features = self._rows_of(found, trace, size)
            self._each = sum(array.nbytes for array in features) // size

    def _refuse_attributes(self, index: int, state: _State) -> None:
        """A skipped layer would not set what it keeps for others to read."""
        path, layer = self._closed[index]
        inside = {id(one) for one in [layer, *layer.sublayers()]}
        for owner, name in state.changed_tensors():
            if owner in inside:
                raise CannotCacheError(f"{path} sets {name}, which others may read")

    def _take_boundary(self, found: tuple[tuple[Call, tuple[int, ...]], ...]) -> None:
        names = tuple(self._name(call) for call, _ in found)
        if self._store is None or names != self._kept_names or found != self._kept:
            still = self._still()
            self._prefix = frozenset(id(tensor) for tensor in still)
            self._probes = [(tensor, _few(tensor).tobytes()) for tensor in still]
            self._store = self._options.store(lambda: self._fingerprint(names, found))
            self.statistics.rows, self.statistics.nbytes = len(self._store), self._store.nbytes
        self._kept, self._kept_names = found, names
        self.statistics.boundary = names

    def _prove_alone(
        self,
        original: Callable[..., Any],
        fresh: Callable[[], tuple[Any, Any]],
        found: tuple[tuple[Call, tuple[int, ...]], ...],
        trace: _Trace,
        size: int,
    ) -> None:
        """Features must follow from the sample alone, and from nothing that is open."""
        expected = self._rows_of(found, trace, size)
        chosen = list(range(size // 2, size))[::-1]
        for seed in (1, 2):
            args, kwargs = _with_tensors(fresh(), lambda _, tensor: _rows(tensor, chosen))
            _reseed(seed)
            with paddle.no_grad(), self._open_weights_are_nan():
                _, again = self._traced(original, args, kwargs, everything=True)
            for call, _ in found:
                if again.output(call) is None:
                    raise CannotCacheError(f"{self._name(call)} is not called for every batch")
            for whole_rows, part in zip(expected, self._rows_of(found, again, len(chosen))):
                if not _near(part, whole_rows[chosen], 1e-3):
                    raise CannotCacheError(
                        "the frozen layers give a sample something else each time: they depend on "
                        "open layers, on the other samples of the batch, or on random numbers"
                    )

    @contextmanager
    def _open_weights_are_nan(self) -> Iterator[None]:
        opened = [t for t in self._network.parameters() if id(t) in self._opened]
        copies = [tensor.clone() for tensor in opened]
        try:
            for tensor in opened:
                if tensor.is_floating_point():
                    tensor.set_value(paddle.full_like(tensor, math.nan))
            yield
        finally:
            for tensor, copy_ in zip(opened, copies):
                tensor.set_value(copy_)

    def _compare(self, rows: Sequence[Row | None], features: Row) -> None:
        """Features that are kept must be those that were computed just now."""
        loose = 1e-2 if self._dtype is not None else 1e-3
        for index, row in enumerate(rows):
            for kept, now in zip(row or (), features):
                if kept.shape == now[index].shape and _near(kept, now[index], loose):
                    continue
                if self._options.cache != "memory" and self._batches == 1:
                    raise CannotCacheError(
                        f"{os.fspath(self._options.cache)} has other features of a sample than the "
                        "frozen layers give, of the same weights but other code or options; use "
                        "another folder"
                    )
                raise RuntimeError(
                    f"the cache has other features of a sample than the frozen layers give now "
                    f"({', '.join(self._kept_names)}): something changed their weights, buffers or "
                    "options while they were frozen (a loaded checkpoint, an averaging callback); "
                    "train without the cache"
                )

    # ------------------------------------------------------------ small things

    def _recipe(self, trace: _Trace) -> _Recipe:
        assert self._kept is not None
        placeholders = {}
        for call in self._prefix_calls:
            output = trace.output(call)
            if output is None:
                continue
            placeholders[call] = _replaced(output, (paddle.Tensor, _Shape), self._blank)
        dtypes = tuple(
            list(_tensors(trace.output(call)))[place].dtype
            for call, places in self._kept
            for place in places
        )
        return _Recipe(self._kept, placeholders, dtypes)

    def _blank(self, index: int, like: Any) -> paddle.Tensor:
        """NaN of this shape, or zeros of whole numbers; placeholders share their memory."""
        size = math.prod(like.shape)
        shared = self._blanks.get(like.dtype)
        if shared is None or shared.shape[0] < size:
            shared = paddle.zeros([size], like.dtype)
            shared = _filled(shared, math.nan) if shared.is_floating_point() else shared
            self._blanks[like.dtype] = shared
        return shared[:size].reshape(list(like.shape))

    def _kept_of(self, trace: _Trace, size: int) -> Row:
        return self._rows_of(self._kept or (), trace, size)

    def _rows_of(
        self, found: tuple[tuple[Call, tuple[int, ...]], ...], trace: _Trace, size: int
    ) -> Row:
        """The features in a trace, one row per sample."""
        arrays = []
        for call, places in found:
            tensors = list(_tensors(trace.output(call)))
            for place in places:
                array = tensors[place].numpy()
                if array.ndim == 0 or len(array) != size:
                    raise CannotCacheError(f"{self._name(call)} does not give one row per sample")
                floating = tensors[place].is_floating_point() and array.dtype.kind == "f"
                if self._dtype is not None and floating:
                    with np.errstate(over="ignore"):
                        small = array.astype(self._dtype)
                    if np.isinf(small).any() and not np.isinf(array).any():
                        raise CannotCacheError(f"cache_dtype={self._dtype} is too small for it")
                    array = small
                arrays.append(array)
        return tuple(arrays)

    def _may_be_kept(self, call: Call) -> bool:
        layer = self._closed[call[0]][1]
        plain = type(layer).__module__ in _PLAIN and not isinstance(layer, nn.RReLU)
        return plain or bool(list(layer.parameters()))

    def _name(self, call: Call) -> str:
        path = self._closed[call[0]][0]
        return path if call[1] == 0 else f"{path} (call {call[1] + 1})"

    def _fingerprint(self, names: tuple[str, ...], found: Any) -> str:
        """What features depend on besides the sample, as a short text.

        Everything that is not open: weights, buffers, plain options, and the code of forward.
        """
        total = hashlib.blake2b(digest_size=16)
        total.update(repr((names, found, str(self._dtype), paddle.__version__)).encode())
        for path, layer in layers(self._network):
            code = getattr(type(layer).forward, "__code__", None)
            plain = {
                name: value
                for name, value in sorted(layer.__dict__.items())
                if isinstance(value, (bool, int, float, str)) and name not in _PASSING
            }
            what = (path, type(layer).__qualname__, code and code.co_code, plain)
            total.update(repr((*what, code and code.co_consts)).encode())
        for tensor in self._still():
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()

    def _still(self) -> list[paddle.Tensor]:
        """What features may depend on: all that is not open, and is not at work behind them.

        Weights that are not open; buffers and statistics of the layers of the prefix, and of the
        layers around closed ones that own no open weights.
        """
        found = {id(w.tensor): w.tensor for w in weights(self._network)}
        found = {one: tensor for one, tensor in found.items() if one not in self._opened}
        closed = {
            id(one) for _, layer in self._closed for one in layer.sublayers(include_self=True)
        }
        prefix = [self._closed[index][1] for index in {call[0] for call in self._prefix_calls}]
        inside = [one for layer in prefix for one in layer.sublayers(include_self=True)]
        around = [
            layer
            for _, layer in layers(self._network)
            if id(layer) not in closed
            and not any(id(t) in self._opened for t in layer.parameters(include_sublayers=False))
        ]
        for layer in [*inside, *around]:
            found.update({id(tensor): tensor for tensor in moving_state(layer).values()})
        return [tensor for tensor in found.values() if tensor._is_initialized()]


def _watch(index: int) -> Callable[..., Any]:
    def watched(cache: FeatureCache, original: Any, args: Any, kwargs: Any) -> Any:
        return cache._watched(index, original, args, kwargs)

    return watched


class _Patch:
    """Puts a function of ours before the forward of one layer."""

    def __init__(self, layer: nn.Layer, cache: FeatureCache, around: Callable[..., Any]) -> None:
        self.layer = layer
        self._had = layer.__dict__.get("forward")
        original = layer.forward
        if not isinstance(original, (types.MethodType, types.FunctionType)):
            raise CannotCacheError(
                f"the forward of {type(layer).__name__} is a {type(original).__name__}"
            )
        # Weak: a copy of the network has this function, too, and must not keep ours alive.
        mine, its = weakref.ref(layer), weakref.ref(cache)
        function = getattr(original, "__func__", original)

        def forward(self: nn.Layer, *args: Any, **kwargs: Any) -> Any:
            alive = its()
            if self is not mine() or alive is None:  # a copy of the network: it has no cache
                return function(self, *args, **kwargs)
            return around(alive, types.MethodType(function, self), args, kwargs)

        def plain(*args: Any, **kwargs: Any) -> Any:
            alive = its()
            return function(*args, **kwargs) if alive is None else around(
                alive, function, args, kwargs
            )  # fmt: skip

        # A method where there was one, with its signature: paddle.Model tells inputs from labels
        # by it, and PaddleNLP drops the columns of the data that it does not name.
        method = isinstance(original, types.MethodType)
        ours = forward if method else plain
        ours.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        self._ours = types.MethodType(ours, layer) if method else ours
        # Not by assignment: PaddleNLP's models wrap what is assigned to forward.
        layer.__dict__["forward"] = self._ours

    def undo(self) -> None:
        if self.layer.__dict__.get("forward") is not self._ours:
            return
        if self._had is None:
            del self.layer.__dict__["forward"]
        else:
            self.layer.__dict__["forward"] = self._had


# What Paddle and we keep in a layer; not part of its options.
_PASSING = frozenset(["training", "_full_name", "_casted_by_pure_fp16", "forward"])
_FILLINGS = (math.nan, 1e4, -1e4)


class _State:
    """What a forward may move besides its output, to be put back as it was found.

    Buffers, statistics, plain attributes of layers, and the random generators of Paddle, NumPy
    and Python.
    """

    def __init__(self, network: nn.Layer) -> None:
        every = {id(layer): layer for _, layer in layers(network)}
        self._tensors = [
            (tensor, tensor.clone())
            for layer in every.values()
            for tensor in moving_state(layer).values()
            if tensor._is_initialized()  # an RNN has a buffer without memory
        ]
        self._attributes: list[tuple[nn.Layer, dict[str, tuple[Any, Any]]]] = [
            (layer, _shallow(layer.__dict__)) for layer in every.values()
        ]
        self._random = (paddle.get_rng_state(), np.random.get_state(), random.getstate())

    def restore(self) -> None:
        with paddle.no_grad():
            for tensor, value in self._tensors:
                tensor.set_value(value)
        for layer, attributes in self._attributes:
            for name in set(layer.__dict__) - set(attributes):
                del layer.__dict__[name]
            mutable: Any
            for name, (mutable, content) in attributes.items():
                layer.__dict__[name] = mutable
                if isinstance(content, dict):
                    mutable.clear()
                    mutable.update(content)
                elif content is not None:
                    mutable.clear()
                    mutable.extend(content)
        paddle.set_rng_state(self._random[0])
        np.random.set_state(self._random[1])
        random.setstate(self._random[2])

    def changed_tensors(self) -> dict[tuple[int, str], paddle.Tensor]:
        """Tensors that layers have put into attributes since.

        Paddle makes a buffer of a tensor that is assigned to an attribute.
        """
        changed = {}
        for layer, before in self._attributes:
            held = {**layer.__dict__, **layer._buffers}
            had = {**{name: value for name, (value, _) in before.items()}, **before["_buffers"][1]}
            for name, value in held.items():
                if isinstance(value, paddle.Tensor) and had.get(name) is not value:
                    changed[id(layer), name] = value
        return changed


def _shallow(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and a copy of its content if that can change in place."""
    return {
        name: (value, copy.copy(value) if isinstance(value, (dict, list)) else None)
        for name, value in attributes.items()
    }


def _random_state() -> Any:
    """The state of all random generators, comparable."""
    # Paddle's states cannot be compared; as text they can, but for an address in it.
    ours = [[part for part in str(s).split() if "x" not in part] for s in paddle.get_rng_state()]
    theirs: Any = np.random.get_state()
    return (ours, theirs[1].tobytes(), theirs[2:], random.getstate())


def _reseed(seed: int) -> None:
    paddle.seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _rows(tensor: paddle.Tensor, chosen: list[int]) -> paddle.Tensor:
    """Some rows of a tensor; of dtypes for which Paddle has no such kernel, by way of NumPy."""
    rows = paddle.to_tensor(tensor.numpy()[chosen])
    return rows if rows.dtype == tensor.dtype else rows.view(tensor.dtype)


def _few(tensor: paddle.Tensor) -> np.ndarray[Any, Any]:
    """Up to 64 of its numbers, spread over all of it."""
    flat = tensor.detach().flatten()
    return np.asarray(flat[:: max(flat.shape[0] // 64, 1)].numpy())


def _near(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], loose: float) -> bool:
    found, expected = one.astype("float64"), other.astype("float64")
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)) or 1.0
    return bool(np.allclose(found, expected, rtol=loose, atol=loose * scale, equal_nan=True))


def _closed_layers(network: nn.Layer, opened: frozenset[int]) -> list[tuple[str, nn.Layer]]:
    """The outermost layers below the network that have no open weights, each once."""
    found: dict[int, tuple[str, nn.Layer]] = {}

    def visit(path: str, layer: nn.Layer) -> None:
        for name, child in layer.named_children():
            below = f"{path}.{name}" if path else name
            if any(id(tensor) in opened for tensor in child.parameters()):
                visit(below, child)
            elif isinstance(child, (nn.LayerList, nn.LayerDict, nn.ParameterList)):
                visit(below, child)  # these are never called
            else:
                found.setdefault(id(child), (below, child))

    visit("", network)
    return list(found.values())


def _leaves(value: Any) -> Iterator[Any]:
    """Whatever lies in tuples, lists and dictionaries, ``None`` left out."""
    if isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _leaves(one)
    elif value is not None:
        yield value


def _tensors(value: Any) -> Iterator[paddle.Tensor]:
    return (leaf for leaf in _leaves(value) if isinstance(leaf, paddle.Tensor))


def _same(index: int, tensor: Any) -> Any:
    """For a copy of a structure that holds the same tensors."""
    return tensor


def _with_tensors(value: Any, change: Callable[[int, paddle.Tensor], Any]) -> Any:
    """The same structure with each tensor, counted from 0, replaced.

    ``change`` gets the number and the tensor, as ``dict.get`` does a key and a default.
    """
    return _replaced(value, paddle.Tensor, change)


def _replaced(value: Any, kind: Any, change: Callable[[int, Any], Any]) -> Any:
    count = itertools.count()

    def walk(one: Any) -> Any:
        if isinstance(one, kind):
            return change(next(count), one)
        if isinstance(one, dict):
            changed = copy.copy(one)
            for key in one:
                changed[key] = walk(one[key])
            return changed
        if isinstance(one, tuple) and hasattr(one, "_fields"):
            return type(one)(*(walk(item) for item in one))
        if isinstance(one, (tuple, list)):
            return type(one)(walk(item) for item in one)
        return one

    return walk(value)


def _batch_size(inputs: Sequence[paddle.Tensor]) -> int:
    sizes = {tuple(tensor.shape[:1]) for tensor in inputs}
    if len(sizes) != 1 or () in sizes:
        raise CannotCacheError("the network's inputs have no common first side, the batch")
    return int(sizes.pop()[0])


def _form(value: Any) -> Any:
    """What inputs look like, their values aside; equal forms can share a recipe."""
    if isinstance(value, paddle.Tensor):
        return ("tensor", tuple(value.shape), str(value.dtype))
    if isinstance(value, dict):
        return ("dict", tuple((str(key), _form(one)) for key, one in value.items()))
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, tuple(_form(one) for one in value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise CannotCacheError(
        f"the network is called with {type(value).__name__}, which has no content key"
    )


def _keys(inputs: Sequence[paddle.Tensor], size: int, form: Any) -> list[bytes]:
    """A 128-bit key for each sample, from its rows of all inputs."""
    # The number of samples beside it is no part of a sample.
    alone = repr(_without_size(form)).encode()
    arrays = [np.ascontiguousarray(tensor.numpy()).reshape(size, -1) for tensor in inputs]
    views = [array.view(np.uint8) for array in arrays]
    keys = []
    for row in range(size):
        total = hashlib.blake2b(alone, digest_size=16)
        for view in views:
            total.update(view[row])
        keys.append(total.digest())
    return keys


def _kind(form: Any) -> Any:
    """A form without its sizes: of forms of one kind one is proven."""
    if isinstance(form, tuple) and form and form[0] == "tensor":
        return ("tensor", len(form[1]), form[2])
    return tuple(_kind(one) for one in form) if isinstance(form, tuple) else form


def _without_size(form: Any) -> Any:
    if isinstance(form, tuple) and form and form[0] == "tensor":
        return ("tensor", form[1][1:], form[2])
    return tuple(_without_size(one) for one in form) if isinstance(form, tuple) else form


def _filled(tensor: paddle.Tensor, value: float) -> paddle.Tensor:
    """The same shape full of this value, or, for whole numbers, something that is not there."""
    if tensor.is_floating_point():
        return paddle.full_like(tensor, value)
    if tensor.dtype == paddle.bool:
        return paddle.logical_not(tensor)
    return paddle.zeros_like(tensor) if bool((tensor != 0).any()) else paddle.ones_like(tensor)


def _same_bits(one: Any, other: Any) -> bool:
    ours, theirs = list(_leaves(one)), list(_leaves(other))
    if len(ours) != len(theirs):
        return False
    for a, b in zip(ours, theirs):
        if isinstance(a, paddle.Tensor) != isinstance(b, paddle.Tensor):
            return False
        if isinstance(a, paddle.Tensor):
            if a.shape != b.shape or a.numpy().tobytes() != b.numpy().tobytes():
                return False
        elif isinstance(a, np.ndarray):
            if not isinstance(b, np.ndarray) or a.tobytes() != b.tobytes():
                return False
        elif isinstance(a, (bool, int, float, str)):
            if repr(a) != repr(b):
                return False
        elif type(a) is not type(b):
            return False
        else:
            raise CannotCacheError(f"the network gives a {type(a).__name__} beside its tensors")
    return True


def _tensor(array: np.ndarray[Any, Any], dtype: Any) -> paddle.Tensor:
    """A tensor of this dtype; bfloat16 is kept as its bits, for which NumPy has 16-bit integers."""
    if dtype == paddle.bfloat16 and array.dtype == np.uint16:
        return paddle.to_tensor(array).view(paddle.bfloat16)
    tensor = paddle.to_tensor(array)
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)


def _amp_state() -> Any:
    """The level and dtype of mixed precision; there is no public reader of them."""
    tracer = paddle.base.framework._dygraph_tracer()
    return (str(getattr(tracer, "_amp_level", None)), str(getattr(tracer, "_amp_dtype", None)))
