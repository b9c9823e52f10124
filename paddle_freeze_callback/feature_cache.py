"""How a frozen prefix of a network is computed once per sample instead of once per epoch.

While a prefix is frozen, its output for a sample does not change. :class:`FeatureCache` keeps
that output and replays it: the layers of the prefix are skipped, and hand on placeholders or, at
the boundary, what was kept.

Nothing is assumed about the network; everything is found out from one real training step after
each transition:

* Closed layers are the outermost layers without open weights. A call of one belongs to the
  prefix if its output needs no gradient, that is, if no open weight lies before it.
* What must be kept is found by filling the outputs of prefix calls with NaN: whatever the rest
  of the network does not look at leaves its output bit for bit the same.
* The prefix must depend on the sample alone. It is computed again for half of the batch, with
  another state of the random generators, and must come out the same.

If any of this fails, the cache is off until the next transition, and one line says why.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import math
import os
import shutil
import types
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
from .weights import layers, moving_state

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
        check_every: compare a sample with a fresh computation every so many batches.
    """

    cache: str | os.PathLike[str]
    limit: int | str | None = None
    dtype: str | None = None
    check_every: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cache, (str, os.PathLike)) or not os.fspath(self.cache):
            raise TypeError(f'cache={self.cache!r} must be "memory", "disk" or a folder')
        if self.limit is not None:
            bytes_of("cache_limit", self.limit)
        if self.dtype is not None:
            one_of("cache_dtype", self.dtype, ("float16", "float32"))
        if self.check_every is not None:
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
    """

    whole: frozenset[Call] | None = None
    calls: list[tuple[Call, Any, bool]] = field(default_factory=list)
    recomputed: bool = False

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
        self._check_every = options.check_every
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
        self._trusted: set[bool] = set()
        self._prefix_calls: tuple[Call, ...] = ()
        self._counts: dict[int, int] = {}
        self._mode: str = ""
        self._trace = _Trace()
        self._plan: dict[Call, Any] = {}
        self._grad = False
        self._batches = 0
        self._began = 0
        self._seen_then = (0, 0)
        self.statistics = CacheStatistics()

    # ------------------------------------------------------------ from transition to transition

    def begin(self, opened: frozenset[int]) -> None:
        """After a transition: the weights with these identities are open now.

        Features are kept if nothing that they depend on has opened and the boundary turns out to
        be where it was.
        """
        self.remove()
        self.statistics.off, self.statistics.boundary = "", ()
        self._recipes, self._blanks, self._trusted, self._batches = {}, {}, set(), 0
        self._began = self._epoch()
        self._seen_then = (self.statistics.hits, self.statistics.misses)
        if self._prefix & opened:
            self._forget()
        self._closed = _closed_layers(self._network, opened)
        if not any(list(layer.parameters()) for _, layer in self._closed):
            self._off("no layer is frozen as a whole")
            return
        try:
            self._refuse_hooks()
        except CannotCacheError as why:
            self._off(str(why))
            return
        self._patched = [_Patch(self._network, self._forward)]
        for index, (_, layer) in enumerate(self._closed):
            self._patched.append(_Patch(layer, self._watcher(index)))

    def remove(self) -> None:
        """Put the forward functions back as they were found."""
        for patch in reversed(self._patched):
            patch.undo()
        self._patched = []

    def _forget(self) -> None:
        self._store, self._kept, self._prefix = None, None, frozenset()
        self.statistics.rows = self.statistics.nbytes = 0

    def _off(self, why: str) -> None:
        self.remove()
        self._forget()
        self.statistics.off, self.statistics.boundary = why, ()
        self._say(f"cache off until the next transition: {why}")

    def _refuse_hooks(self) -> None:
        """Hooks of the user would be handed placeholders, or would not be called at all."""
        for path, layer in self._closed:
            for inner in [layer, *layer.sublayers()]:
                # Paddle gives no public list of the hooks of a layer.
                for hook in [
                    *inner._forward_pre_hooks.values(),
                    *inner._forward_post_hooks.values(),
                ]:
                    owner = getattr(hook, "__self__", hook)
                    home = type(owner).__module__ if owner is not hook else hook.__module__
                    home = type(hook).__module__ if home is None else home
                    if home.partition(".")[0] not in ("paddle", __name__.partition(".")[0]):
                        raise CannotCacheError(
                            f"{path} has a forward hook, which would not see its values"
                        )

    # ------------------------------------------------------------ the forward of the network

    def _forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._mode or not paddle.in_dynamic_mode():
            return original(*args, **kwargs)
        try:
            return self._cached(original, args, kwargs)
        except CannotCacheError as why:
            self._off(str(why))
            return original(*args, **kwargs)

    def _cached(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        inputs = list(_tensors((args, kwargs)))
        size = _batch_size(inputs)
        form = (self._network.training, _amp_state(), _form((args, kwargs)))
        training = self._network.training
        if training not in self._trusted:
            ready = self._ready()
            if ready is None:
                raise CannotCacheError(_RECOMPUTED)
            # Only a training step tells where the boundary is.
            tells = paddle.is_grad_enabled() if training else True in self._trusted
            if not (ready and tells):
                return original(*args, **kwargs)
            return self._discover(original, args, kwargs, form, size)
        assert self._store is not None
        keys = _keys(inputs, size, form)
        recipe = self._recipes.get(form)
        nothing: list[Row | None] = [None] * size
        rows = nothing if recipe is None else self._store.get(keys)
        missing = [index for index, row in enumerate(rows) if row is None]
        self.statistics.hits += size - len(missing)
        self.statistics.misses += len(missing)
        self._batches += 1
        if len(missing) == size:
            self._give_up_without_hits()
            return self._compute(original, args, kwargs, form, keys)
        assert recipe is not None
        if missing:
            fresh = self._prefix_of(original, args, kwargs, size, missing)
            self._put([keys[index] for index in missing], fresh)
            for place, index in enumerate(missing):
                rows[index] = tuple(array[place] for array in fresh)
        if self._check_every and self._batches % self._check_every == 0:
            self._compare_one(original, args, kwargs, size, rows)
        return self._replay(original, args, kwargs, recipe, rows)

    def _compute(
        self, original: Callable[..., Any], args: Any, kwargs: Any, form: Any, keys: list[bytes]
    ) -> Any:
        """A real forward whose features are kept."""
        result, trace = self._traced(original, args, kwargs)
        if form not in self._recipes:
            self._recipes[form] = self._recipe(trace)
        self._put(keys, self._kept_of(trace, len(keys)))
        return result

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
        plan = dict(recipe.placeholders)
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
            self._trace = _Trace(whole)
            self._grad = paddle.is_grad_enabled()
            result = original(*args, **kwargs)
            trace = self._trace
        if trace.recomputed:
            raise CannotCacheError(_RECOMPUTED)
        return result, trace

    @contextmanager
    def _as(self, mode: str) -> Iterator[None]:
        self._mode, self._counts = mode, {}
        try:
            yield
        finally:
            self._mode, self._plan, self._trace = "", {}, _Trace()

    def _watcher(self, index: int) -> Callable[..., Any]:
        def watch(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if not self._mode:
                return original(*args, **kwargs)
            nth = self._counts.get(index, 0)
            self._counts[index] = nth + 1
            call = (index, nth)
            if self._mode == "replay":
                if call in self._plan:
                    return self._plan[call]
                return original(*args, **kwargs)
            output = original(*args, **kwargs)
            if self._grad and not paddle.is_grad_enabled():
                self._trace.recomputed = True
            prefix = all(tensor.stop_gradient for tensor in _tensors(output))
            wanted = self._trace.whole is None or call in self._trace.whole
            noted = output if wanted else _with_tensors(output, _Shape.of)
            self._trace.calls.append((call, noted, prefix))
            return output

        return watch

    def _put(self, keys: list[bytes], features: Row) -> None:
        assert self._store is not None
        was_full = self._store.full
        self._store.put(keys, features)
        self.statistics.rows = len(self._store)
        self.statistics.nbytes = self._store.nbytes
        if self._store.full and not was_full:
            self._say(
                f"cache full: {len(self._store):,} samples in {self._store.nbytes / 2**20:,.0f} "
                "MB; the others are computed each time (cache_limit=)"
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
                raise CannotCacheError(
                    "almost no sample came twice in two epochs; random augmentation, or padding "
                    "that differs from batch to batch, makes new samples of old ones"
                )

    # ------------------------------------------------------------ finding out, and proving it

    def _discover(
        self, original: Callable[..., Any], args: Any, kwargs: Any, form: Any, size: int
    ) -> Any:
        """The first real forward after a transition, and the proof that it can be replayed."""
        before = _State(self._network)
        result, trace = self._traced(original, args, kwargs, everything=True)
        after = _State(self._network)
        try:
            with paddle.no_grad():
                self._find_boundary(original, args, kwargs, trace, result, before, size)
                self._prove_alone(original, args, kwargs, trace, before, size)
        except CannotCacheError as why:
            after.restore()
            self._off(str(why))
            return result
        after.restore()
        self._recipes[form] = self._recipe(trace)
        self._trusted.add(self._network.training)
        if self._network.training:
            each = sum(array.nbytes for array in self._kept_of(trace, size)) // size
            self._say(
                f"cache on: keeps the output of {', '.join(self._kept_names)}, {each:,} bytes a "
                f"sample; {len(self._store or ()):,} samples are there"
            )
        keys = _keys(list(_tensors((args, kwargs))), size, form)
        self.statistics.misses += size
        self._put(keys, self._kept_of(trace, size))
        return result

    def _find_boundary(
        self,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
        trace: _Trace,
        result: Any,
        before: _State,
        size: int,
    ) -> None:
        """Find what the rest of the network looks at, by filling everything else with NaN."""
        training = self._network.training
        if training:
            prefix = [call for call, _, is_prefix in trace.calls if is_prefix]
            bounds = [call for call in prefix if self._may_be_kept(call)]
            if not bounds:
                raise CannotCacheError("no frozen layer comes before the open ones")
            # What follows the last of these (a dropout) is computed as ever.
            prefix = prefix[: prefix.index(bounds[-1]) + 1]
            self._prefix_calls = tuple(prefix)
        else:
            prefix = [call for call in self._prefix_calls if trace.output(call) is not None]
        real = {call: trace.output(call) for call in prefix}
        for call in prefix:
            if not all(isinstance(t, paddle.Tensor) for t in _leaves(real[call])):
                raise CannotCacheError(f"{self._name(call)} gives something else than tensors")

        def same_without(holes: dict[Call, set[int]]) -> bool:
            """Whether NaN in these tensors leaves the network's output as it was."""
            plan = {}
            for call, output in real.items():
                nan = {
                    i: _nan_like(tensor)
                    for i, tensor in enumerate(_tensors(output))
                    if i in holes.get(call, ())
                }
                plan[call] = _with_tensors(output, nan.get)
            before.restore()
            return _same_bits(self._planned(original, args, kwargs, plan), result)

        every = {call: set(range(len(list(_tensors(real[call]))))) for call in prefix}
        proved: dict[Call, set[int]] | None = None
        found = self._kept or ()
        if training:
            last = prefix[-1]
            proved = {**every, last: set()}
            candidates = {last: every[last]}
            if not same_without(proved):
                if not same_without({}):
                    raise CannotCacheError("the network's forward does not repeat itself")
                # Something looks at an inner tensor: keep whatever is looked at.
                proved = None
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
        if rest != proved and not same_without(rest):
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
        self._take_boundary(found)

    def _take_boundary(self, found: tuple[tuple[Call, tuple[int, ...]], ...]) -> None:
        names = tuple(self._name(call) for call, _ in found)
        if self._store is None or names != self._kept_names or found != self._kept:
            self._prefix = frozenset(
                id(tensor)
                for index in {call[0] for call in self._prefix_calls}
                for tensor in self._closed[index][1].parameters()
            )
            self._store = self._options.store(lambda: self._fingerprint(names, found))
            self.statistics.rows, self.statistics.nbytes = len(self._store), self._store.nbytes
        self._kept, self._kept_names = found, names
        self.statistics.boundary = names

    def _prove_alone(
        self,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
        trace: _Trace,
        before: _State,
        size: int,
    ) -> None:
        """The features of half of the batch, with other random numbers, must be the same."""
        before.restore()
        paddle.seed(before.another_seed())
        half = list(range((size + 1) // 2))
        again = self._prefix_of(original, args, kwargs, size, half, evaluating=False)
        for all_rows, part in zip(self._kept_of(trace, size), again):
            expected, found = all_rows[: len(half)].astype("float64"), part.astype("float64")
            scale = float(np.abs(expected).max(initial=0.0)) or 1.0
            if not np.allclose(found, expected, rtol=1e-3, atol=1e-4 * scale, equal_nan=True):
                raise CannotCacheError(
                    "the frozen layers give a sample something else each time: they draw random "
                    "numbers (a dropout in forward code, not in a layer), or look at the other "
                    "samples of the batch"
                )

    def _prefix_of(
        self,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
        size: int,
        rows: list[int],
        *,
        evaluating: bool = True,
    ) -> Row:
        """The features of some rows of a batch alone, leaving the network as it was."""
        index = paddle.to_tensor(rows)

        def chosen(_: int, tensor: paddle.Tensor) -> paddle.Tensor:
            return paddle.index_select(tensor, index, axis=0)

        part_args, part_kwargs = _with_tensors((args, kwargs), chosen)
        modes = [(layer, layer.training) for _, layer in layers(self._network)]
        grad = self._grad
        try:
            if evaluating:
                self._network.eval()
            with paddle.no_grad():
                _, trace = self._traced(original, part_args, part_kwargs)
        finally:
            self._grad = grad
            for layer, training in modes:
                layer.training = training
        return self._kept_of(trace, len(rows))

    def _compare_one(
        self,
        original: Callable[..., Any],
        args: Any,
        kwargs: Any,
        size: int,
        rows: list[Row | None],
    ) -> None:
        index = self._batches // (self._check_every or 1) % size
        state = _State(self._network)
        fresh = self._prefix_of(original, args, kwargs, size, [index])
        state.restore()
        row = rows[index]
        assert row is not None
        for found, expected in zip(row, fresh):
            expected = expected[0].astype("float64")
            scale = float(np.abs(expected).max(initial=0.0)) or 1.0
            loose = 1e-2 if self._dtype is not None else 1e-3
            if not np.allclose(found.astype("float64"), expected, rtol=loose, atol=loose * scale):
                raise RuntimeError(
                    f"the cache has other features of a sample than the frozen layers give now "
                    f"({', '.join(self._kept_names)}): something changed their weights or buffers "
                    "while they were frozen (a loaded checkpoint, an averaging callback); "
                    "train with verify=True to find out what, or without the cache"
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
        """Zeros of this shape; all placeholders share their memory."""
        size = math.prod(like.shape)
        shared = self._blanks.get(like.dtype)
        if shared is None or shared.shape[0] < size:
            shared = self._blanks[like.dtype] = paddle.zeros([size], like.dtype)
        return shared[:size].reshape(list(like.shape))

    def _kept_of(self, trace: _Trace, size: int) -> Row:
        """The features in a trace, one row per sample."""
        assert self._kept is not None
        arrays = []
        for call, places in self._kept:
            output = trace.output(call)
            if output is None:
                raise CannotCacheError(f"{self._name(call)} is not called for every batch")
            tensors = list(_tensors(output))
            for place in places:
                array = tensors[place].numpy()
                if array.ndim == 0 or len(array) != size:
                    raise CannotCacheError(f"{self._name(call)} does not give one row per sample")
                floating = tensors[place].is_floating_point() and array.dtype.kind == "f"
                if self._dtype is not None and floating:
                    array = array.astype(self._dtype)
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
        """What features depend on besides the sample, as a short text."""
        total = hashlib.blake2b(digest_size=16)
        kinds = [repr(type(layer)) for _, layer in layers(self._network)]
        total.update(repr((names, found, str(self._dtype), kinds, paddle.__version__)).encode())
        for index in sorted({call[0] for call in self._prefix_calls}):
            layer = self._closed[index][1]
            tensors = {id(t): t for t in [*layer.parameters(), *layer.buffers()]}
            for tensor in tensors.values():
                total.update(tensor.numpy().tobytes())
        return total.hexdigest()


class _Patch:
    """Puts a function of ours before the forward of one layer."""

    def __init__(self, layer: nn.Layer, around: Callable[..., Any]) -> None:
        self.layer = layer
        self._had = layer.__dict__.get("forward")
        original = layer.forward

        def forward(self: nn.Layer, *args: Any, **kwargs: Any) -> Any:
            if self is not layer:  # a copy of the network: it has no cache
                return original.__func__(self, *args, **kwargs)
            return around(original, args, kwargs)

        def plain(*args: Any, **kwargs: Any) -> Any:
            return around(original, args, kwargs)

        # A method where there was one, with its signature: paddle.Model tells inputs from labels
        # by it, and PaddleNLP drops the columns of the data that it does not name.
        method = isinstance(original, types.MethodType)
        ours = forward if method else plain
        ours.__signature__ = inspect.signature(  # type: ignore[attr-defined]
            original.__func__ if method else original
        )
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


class _State:
    """What a forward may move besides its output: buffers, statistics, random generators."""

    def __init__(self, network: nn.Layer) -> None:
        self._tensors = [
            (tensor, tensor.clone()) for _, layer in layers(network)
            for tensor in moving_state(layer).values()
        ]  # fmt: skip
        self._random = paddle.get_rng_state()

    def restore(self) -> None:
        with paddle.no_grad():
            for tensor, value in self._tensors:
                tensor.set_value(value)
        paddle.set_rng_state(self._random)

    def another_seed(self) -> int:
        return 12345


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


def _without_size(form: Any) -> Any:
    if isinstance(form, tuple) and form and form[0] == "tensor":
        return ("tensor", form[1][1:], form[2])
    return tuple(_without_size(one) for one in form) if isinstance(form, tuple) else form


def _nan_like(tensor: paddle.Tensor) -> paddle.Tensor:
    """NaN, or for whole numbers something that is not there."""
    if tensor.is_floating_point():
        return paddle.full_like(tensor, math.nan)
    if tensor.dtype == paddle.bool:
        return paddle.logical_not(tensor)
    return tensor + 1


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
        elif a != b:
            return False
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
