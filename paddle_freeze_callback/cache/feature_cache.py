"""How a frozen prefix of a network is computed once per sample instead of once per epoch.

While a prefix is frozen, its output for a sample does not change. :class:`FeatureCache` keeps
that output and replays it: the layers of the prefix are skipped, and hand on placeholders or, at
the boundary, what was kept.

Where the boundary is, and whether this network can be treated like that at all, is found out and
proven in the first training step after each transition (:mod:`paddle_freeze_callback.boundary`).
If not, the cache is off until the next transition, and one line says why. While replaying,
placeholders are NaN, so that what was not foreseen shows; one frozen weight, another with each
batch, is looked at; and one batch in so many is computed after all and compared with what was kept.
"""

from __future__ import annotations

import hashlib
import math
import os
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..stages.weights import layers, moving_state, weights
from .boundary import RECOMPUTED, Boundary, filled_like, nearly_equal
from .keys import CannotCacheError, batch_size, form_of, keys_of, kind_of
from .nested import replaced, restructured, tensors
from .options import CacheOptions, CacheStatistics
from .state import ForwardState, few
from .stores import DiskStore, MemoryStore, Row
from .trial import Trial
from .watch import Call, ForwardWatch, Shape, Trace

# What Paddle and we keep in a layer; not part of its options.
_PASSING = frozenset(["training", "_full_name", "_casted_by_pure_fp16", "forward"])


@dataclass(frozen=True)
class _Recipe:
    """How to replay one form of input.

    Attributes:
        placeholders: what each call of the prefix hands on, with placeholders for tensors.
        dtypes: of the tensors that are kept.
        shapes: of one sample's part of them.
    """

    placeholders: dict[Call, Any]
    dtypes: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]


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
        self._watch: ForwardWatch | None = None
        self._opened: frozenset[int] = frozenset()
        # What has been found out, and kept, about a prefix: stays while nothing of it opens.
        self._store: MemoryStore | DiskStore | None = None
        self._boundary: Boundary | None = None
        self._kept_names: tuple[str, ...] = ()
        self._depends: frozenset[int] = frozenset()  # tensors that the kept features depend on
        self._probes: list[tuple[paddle.Tensor, bytes]] = []
        # Since the last transition.
        self._proven: set[Any] = set()
        self._recipes: dict[Any, _Recipe] = {}
        self._blanks: dict[Any, paddle.Tensor] = {}
        self._batches = 0
        self._watching = 0  # training steps since the boundary was proven
        self._stray = False
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
        self._recipes, self._blanks, self._proven, self._batches = {}, {}, set(), 0
        self._watching, self._stray = 0, False
        self._began = self._epoch()
        self._seen_then = (self.statistics.hits, self.statistics.misses)
        self._opened = opened
        if self._depends & opened:
            self._forget()
            self.statistics.rows = self.statistics.nbytes = 0
        self._watch = ForwardWatch(self._network, opened, self._called_outside)
        if not any(list(layer.parameters()) for _, layer in self._watch.closed):
            self._off("no layer is frozen as a whole")
            return
        try:
            self._watch.begin(self, FeatureCache._forward)
        except CannotCacheError as why:
            self._off(str(why))

    def close(self) -> None:
        """The run is over: put the forward functions back, and forget all features."""
        self.remove()
        self._forget()

    def remove(self) -> None:
        """Put the forward functions back as they were found."""
        if self._watch is not None:
            self._watch.end()

    def _forget(self) -> None:
        self._store, self._boundary, self._depends = None, None, frozenset()
        self._recipes, self._blanks, self._probes = {}, {}, []

    def _off(self, why: str) -> None:
        self.remove()
        self._forget()
        self.statistics.off, self.statistics.boundary = why, ()
        self.statistics.rows = self.statistics.nbytes = 0
        self._say(f"cache off until the next transition: {why}")

    def _called_outside(self) -> None:
        """A closed layer is called outside the network's forward, as recompute does backwards.

        That shows in the first steps in which nothing is skipped.
        """
        training = self._network.training and paddle.is_grad_enabled()
        self._stray = self._stray or (self._watching in (1, 2) and training)

    # ------------------------------------------------------------ the forward of the network

    def _forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        watch = self._watch
        if watch is None or watch.busy or not watch.alive or not paddle.in_dynamic_mode():
            return original(*args, **kwargs)
        inputs = list(tensors((args, kwargs)))
        if any(not tensor.stop_gradient for tensor in inputs):
            return original(*args, **kwargs)  # somebody wants gradients of the input itself
        try:
            if self._stray:
                raise CannotCacheError(RECOMPUTED)
            watch.refuse_hooks()
            size = batch_size(inputs)
            content = form_of((args, kwargs))
            form = (self._network.training, _amp_state(), content)
            kind = (self._network.training, _amp_state(), kind_of(content), size)
            self._probe_a_weight()
            # A batch of one tells nothing of the others, so that of any size stands for it.
            proven = kind in self._proven or (
                size == 1 and any(other[:3] == kind[:3] for other in self._proven)
            )
            if size == 0 or not (proven or self._can_try(size)):
                return original(*args, **kwargs)
            keys = keys_of(inputs, size, form)
        except CannotCacheError as why:
            self._off(str(why))
            return original(*args, **kwargs)
        if not proven:
            return self._tried(watch, original, args, kwargs, form, kind, keys)
        return self._served(watch, original, args, kwargs, form, keys)

    def _can_try(self, size: int) -> bool:
        """Whether this call can tell what may be kept."""
        ready = self._ready()
        if ready is None:
            raise CannotCacheError(RECOMPUTED)
        known = any(proven for proven, *_ in self._proven)
        # Only a training step tells where the boundary is, and one sample nothing of the others.
        tells = paddle.is_grad_enabled() if self._network.training else known
        return bool(ready and tells and size > 1)

    def _tried(
        self, watch: ForwardWatch, original: Callable[..., Any], args: Any, kwargs: Any,
        form: Any, kind: Any, keys: list[bytes],
    ) -> Any:  # fmt: skip
        """The network's output, and beside it a proof that it can be had from features."""
        known = self._boundary if any(proven for proven, *_ in self._proven) else None
        trial = Trial(watch, self._network, original, args, kwargs, len(keys))
        problem = ""
        try:
            found = trial.boundary(self._opened, known)
        except CannotCacheError as why:
            problem = str(why)
        except Exception as error:  # the network's own code, handed what it does not expect
            problem = f"it could not be tried out: {type(error).__name__}: {str(error)[:200]}"
        except BaseException:  # an interrupt: the step never happened
            trial.undo()
            raise
        trial.end()
        try:
            if problem:
                raise CannotCacheError(problem)
            if known is None:
                self._take_boundary(found, watch)
                features = self._features(trial.trace, len(keys))
                each = sum(array.nbytes for array in features) // len(keys)
                self._say(
                    f"cache on: keeps the output of {', '.join(self._kept_names)}, {each:,} bytes "
                    f"a sample; {len(self._store or ()):,} samples are there"
                )
            self._proven.add(kind)
            self._watching = 0
            self._batches += 1
            self._keep(trial.trace, form, keys, self._store.get(keys) if self._store else [])
        except CannotCacheError as why:
            self._off(str(why))
        return trial.result

    def _probe_a_weight(self) -> None:
        """Whether one of the frozen weights, another with each batch, is still what it was."""
        if not self._probes:
            return
        tensor, before = self._probes[self._batches % len(self._probes)]
        if few(tensor).tobytes() != before:
            name = next((n for n, t in self._network.named_parameters() if t is tensor), "a buffer")
            raise CannotCacheError(f"{name} changed although it is frozen")

    def _served(
        self, watch: ForwardWatch, original: Callable[..., Any], args: Any, kwargs: Any,
        form: Any, keys: list[bytes],
    ) -> Any:  # fmt: skip
        """The network's output, from the cache if all samples of the batch are there."""
        assert self._store is not None
        assert self._boundary is not None
        recipe = self._recipes.get(form)
        rows = self._store.get(keys)
        self._batches += 1
        self._watching += self._network.training
        check = self._batches % self._options.check_every == 0
        if recipe is not None and self._alike(rows, recipe) and not check:
            self.statistics.hits += len(keys)
            return watch.planned(original, args, kwargs, self._outputs(recipe, rows))
        # A batch with a sample that is not there is computed as a whole, exactly as without us.
        trace = Trace(whole=self._boundary.kept_calls)
        result, trace = watch.traced(original, args, kwargs, trace)
        try:
            self._check_trace(trace, watch)
            self._keep(trace, form, keys, rows)
        except CannotCacheError as why:
            self._off(str(why))
        return result

    def _alike(self, rows: Sequence[Row | None], recipe: _Recipe) -> bool:
        """Whether all samples are there, in the shapes that this form of input gives."""
        return all(
            row is not None and tuple(array.shape for array in row) == recipe.shapes for row in rows
        )

    def _keep(self, trace: Trace, form: Any, keys: list[bytes], rows: Sequence[Row | None]) -> None:
        """Keep the features of a batch that was computed; compare those that were there."""
        self.statistics.misses += len(keys)
        features = self._features(trace, len(keys))
        self._compare(rows, features)
        if form not in self._recipes:
            self._recipes[form] = self._recipe(trace, features)
        recipe = self._recipes[form]
        if tuple(array.shape[1:] for array in features) != recipe.shapes:
            raise CannotCacheError(
                f"{', '.join(self._kept_names)} gives another shape for inputs of the same shape: "
                "what it computes of a sample depends on the others of the batch"
            )
        self._put(keys, features)
        if not any(row is not None for row in rows):
            self._give_up_without_hits()

    def _check_trace(self, trace: Trace, watch: ForwardWatch) -> None:
        """Whether a forward called the frozen layers as the proven one did."""
        assert self._boundary is not None
        if trace.recomputed:
            raise CannotCacheError(RECOMPUTED)
        calls = {call: prefix for call, _, prefix in trace.calls}
        if self._network.training and trace.grad:
            for call in self._boundary.prefix:
                if not calls.get(call, True):
                    raise CannotCacheError(f"{watch.name(call)} comes behind open layers now")

    def _outputs(self, recipe: _Recipe, rows: Sequence[Row | None]) -> dict[Call, Any]:
        """What each prefix call hands on: placeholders, and the features where they belong."""
        assert self._boundary is not None
        columns = (np.stack([row[i] for row in rows if row]) for i in range(len(recipe.dtypes)))
        features = (_tensor(array, dtype) for array, dtype in zip(columns, recipe.dtypes))
        # Copies of the structures: the network may append to a list that it was handed.
        plan = {call: restructured(out) for call, out in recipe.placeholders.items()}
        for call, places in self._boundary.kept:
            own = {place: next(features) for place in places}
            plan[call] = replaced(plan[call], own.get)
        return plan

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

    def _take_boundary(self, found: Boundary, watch: ForwardWatch) -> None:
        names = tuple(watch.name(call) for call, _ in found.kept)
        before = self._boundary.kept if self._boundary else None
        self._boundary = found
        if self._store is None or names != self._kept_names or found.kept != before:
            still = self._still(watch)
            self._depends = frozenset(id(tensor) for tensor in still)
            self._probes = [(tensor, few(tensor).tobytes()) for tensor in still]
            self._store = self._options.store(lambda: self._fingerprint(names, found.kept, still))
            self.statistics.rows, self.statistics.nbytes = len(self._store), self._store.nbytes
        self._kept_names = names
        self.statistics.boundary = names

    def _compare(self, rows: Sequence[Row | None], features: Row) -> None:
        """Features that are kept must be those that were computed just now."""
        loose = 1e-2 if self._dtype is not None else 1e-3
        for index, row in enumerate(rows):
            for kept, now in zip(row or (), features):
                if kept.shape == now[index].shape and nearly_equal(kept, now[index], loose):
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

    def _recipe(self, trace: Trace, features: Row) -> _Recipe:
        assert self._boundary is not None
        outputs = {call: trace.output(call) for call in self._boundary.prefix}
        placeholders = {
            call: replaced(output, self._blank, (paddle.Tensor, Shape))
            for call, output in outputs.items()
            if output is not None
        }
        dtypes = tuple(
            list(tensors(outputs[call]))[place].dtype
            for call, places in self._boundary.kept
            for place in places
        )
        return _Recipe(placeholders, dtypes, tuple(array.shape[1:] for array in features))

    def _blank(self, index: int, like: Any) -> paddle.Tensor:
        """NaN of this shape, or zeros of whole numbers; placeholders share their memory."""
        size = math.prod(like.shape)
        shared = self._blanks.get(like.dtype)
        if shared is None or shared.shape[0] < size:
            shared = paddle.zeros([size], like.dtype)
            shared = filled_like(shared, math.nan) if shared.is_floating_point() else shared
            self._blanks[like.dtype] = shared
        return shared[:size].reshape(list(like.shape))

    def _features(self, trace: Trace, size: int) -> Row:
        """The features in a trace, one row per sample."""
        assert self._boundary is not None
        assert self._watch is not None
        arrays = []
        for tensor in self._boundary.features(trace, size, self._watch.name):
            array = tensor.numpy()
            if self._dtype is not None and tensor.is_floating_point() and array.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    small = array.astype(self._dtype)
                if np.isinf(small).any() and not np.isinf(array).any():
                    raise CannotCacheError(f"cache_dtype={self._dtype} is too small for it")
                array = small
            arrays.append(array)
        return tuple(arrays)

    def _fingerprint(
        self, names: tuple[str, ...], kept: Any, still: Sequence[paddle.Tensor]
    ) -> str:
        """What features depend on besides the sample, as a short text.

        Everything that is not open: weights, buffers, plain options, and the code of its classes.
        """
        total = hashlib.blake2b(digest_size=16)
        total.update(repr((names, kept, str(self._dtype), paddle.__version__)).encode())
        for path, layer in layers(self._network):
            plain = {
                name: value if isinstance(value, (bool, int, float, str)) else _code_of(value)
                for name, value in sorted(layer.__dict__.items())
                if isinstance(value, (bool, int, float, str, *_FUNCTIONS)) and name not in _PASSING
            }
            code = [
                (name, _code_of(value))
                for kind in type(layer).__mro__
                if kind.__module__.partition(".")[0] not in ("paddle", "builtins")
                for name, value in sorted(vars(kind).items())
                if isinstance(value, _FUNCTIONS)
            ]
            total.update(repr((path, type(layer).__qualname__, code, plain)).encode())
        for tensor in still:
            total.update(tensor.numpy().tobytes())
        return total.hexdigest()

    def _still(self, watch: ForwardWatch) -> list[paddle.Tensor]:
        """What features may depend on: all that is not open, and is not at work behind them.

        Weights that are not open; buffers and statistics of the layers of the prefix, and of the
        layers around closed ones that own no open weights.
        """
        assert self._boundary is not None
        found = {id(w.tensor): w.tensor for w in weights(self._network)}
        found = {one: tensor for one, tensor in found.items() if one not in self._opened}
        closed = {
            id(one) for _, layer in watch.closed for one in layer.sublayers(include_self=True)
        }
        prefix = [watch.closed[index][1] for index in {call[0] for call in self._boundary.prefix}]
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


_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)


def _code_of(function: Any) -> Any:
    """What a function does, as far as its own code tells: its instructions, constants and names."""
    code = getattr(function, "__code__", None)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    if code is None:
        return name
    constants = [one for one in code.co_consts if not isinstance(one, types.CodeType)]
    inner = [one.co_code for one in code.co_consts if isinstance(one, types.CodeType)]
    return (name, code.co_code, constants, code.co_names, inner)


def bytes_a_sample(
    network: nn.Layer, opened: frozenset[int], options: CacheOptions, forward: Callable[[], Any]
) -> int:
    """Bytes that a cache would keep of each sample of a batch; the network is left as it was.

    Args:
        network: the network, frozen as it will be, in training mode.
        opened: identities of the open weights.
        options: of the cache; nothing is written to a disk.
        forward: calls the network with the batch.

    Raises:
        CannotCacheError: saying why nothing would be kept.
    """
    memory = replace(options, cache="memory", limit=None)
    cache = FeatureCache(network, memory, lambda line: None)
    state = ForwardState(network)
    try:
        cache.begin(opened)
        forward()
    finally:
        cache.remove()
        state.restore()
    if cache.statistics.off or not cache.statistics.rows:
        raise CannotCacheError(cache.statistics.off or "a batch needs two samples or more to tell")
    return cache.statistics.nbytes // cache.statistics.rows


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
