"""How a frozen prefix of a network is computed once per sample instead of once per epoch.

While a prefix is frozen, its output for a sample does not change. :class:`FeatureCache` keeps
that output and replays it: the layers of the prefix are skipped. They hand on placeholders or, at
the boundary, the features that were kept.

After each transition the first batches are computed in full, and kept. They show where the
boundary is, and prove that this network can be replayed at all
(:mod:`paddle_freeze_callback.cache.trial`). If not, the cache is off until the next transition, and
one line gives the reason. (Where few samples will come again before the next one, all this waits
until one has: :meth:`FeatureCache.begin`.) Only then are features replayed; of a batch of which
some are missing, the prefix is computed for those alone. Three guards stay on: placeholders are
NaN; each batch checks one frozen weight; every N-th batch is recomputed and compared.

What a cache knows lives for the run (:class:`FeatureCache`), while the prefix stays frozen
(:class:`~paddle_freeze_callback.cache.kept.Kept`), or until the next transition (``_Phase``).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import paddle
from paddle import nn

from ..words import percent
from .boundary import RECOMPUTED, Boundary, nearly_equal
from .kept import Kept
from .keys import CannotCacheError, batch_size, form_of, keys_given, keys_of, kind_of
from .nested import tensors
from .options import CacheOptions, CacheStatistics
from .replay import Blanks, Recipe, arrays_of, shapes_of
from .state import ForwardState, surely
from .stores import Row
from .trial import CHECKS, Trial, rows_of
from .watch import ForwardWatch, Trace

_COMPARED = 4  # batches that are compared if the user says what is the same sample


@dataclass
class _Phase:
    """What a cache has found out since the last transition."""

    opened: frozenset[int]  # identities of the open weights
    watch: ForwardWatch
    epoch: int  # in which it began
    seen: tuple[int, int]  # hits and misses when its first epoch ended
    waits: bool  # whether nothing is tried out before a sample has come again
    came: set[bytes] = field(default_factory=set)  # one key of each batch while it waits
    proofs: dict[Any, int] = field(default_factory=dict)  # checks passed, by kind of input
    early: list[tuple[_Batch, Trace]] = field(default_factory=list)  # before the boundary was known
    recipes: dict[Any, Recipe] = field(default_factory=dict)  # by form of input
    blanks: Blanks = field(default_factory=Blanks)
    batches: int = 0
    compared: Counter[bool] = field(default_factory=Counter)  # batches, in training or not
    replays: bool = False  # whether anything was replayed
    stray: bool = False  # a closed layer was called outside the network's forward
    moving: bool = False  # the prefix alone would move a buffer

    @property
    def knows_boundary(self) -> bool:
        """Whether a training step has shown where the prefix ends."""
        return any(training for training, *_ in self.proofs)

    def waits_on(self, keys: Sequence[bytes]) -> bool:
        """Whether none of these samples has come before, so that the cache still waits."""
        if self.waits:
            self.waits = self.came.isdisjoint(keys)
            self.came.add(keys[0])
        return self.waits

    def other_size(self, kind: Any) -> bool:
        """Whether this kind of input is proven for another number of samples."""
        return any(other[:-1] == kind[:-1] and n == CHECKS for other, n in self.proofs.items())

    def has_proven(self, kind: Any) -> bool:
        """Whether this kind of input can be replayed."""
        # A batch of one shows nothing of other samples, so a proof for any size holds for it.
        return self.proofs.get(kind) == CHECKS or (kind[-1] == 1 and self.other_size(kind))


class _Batch(NamedTuple):
    """A call of the network, with a key for each sample."""

    call: tuple[Callable[..., Any], Any, Any]  # the network's own forward, and its arguments
    form: Any  # how the inputs look and how the network runs
    kind: Any  # the same without sizes, but with the number of samples, which comes last
    keys: list[bytes]


class FeatureCache:
    """Replays the features of a frozen prefix in the forward of a network.

    A line is shown by ``say``; ``epoch`` gives the current epoch, from 0; ``ready`` tells whether
    the network runs as it will until the next transition, ``None`` if it recomputes its layers.

    Attributes:
        statistics: what the cache did since the run began.
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
        self._epoch = epoch
        self._ready = ready
        self._kept: Kept | None = None
        self._phase: _Phase | None = None
        self._told_of_misses = False
        self.statistics = CacheStatistics()

    # ------------------------------------------------------------ from transition to transition

    def begin(self, opened: frozenset[int], repeats: bool = True) -> None:
        """After a transition: the weights with these identities are open now.

        Features stay if nothing that they depend on has opened and the boundary turns out to be
        where it was. If ``repeats`` says that few samples come again before the next one, the cache
        waits until one does: to try out the network would cost more than is saved. A folder is
        filled all the same, for the next run.
        """
        self.remove()
        self.flush()
        done = self.statistics
        done.boundary = ()
        if self._kept and self._kept.depends & opened:
            self._kept = None
            done.rows = done.nbytes = 0
        watch = ForwardWatch(self._network, opened, self._called_outside)
        waits = not repeats and self._options.cache == "memory" and not done.rows
        self._phase = _Phase(opened, watch, self._epoch(), (done.hits, done.misses), waits)
        if not any(list(layer.parameters()) for _, layer in watch.closed):
            self._off("no layer is frozen as a whole")
            return
        try:
            watch.begin(self, FeatureCache._forward)
        except CannotCacheError as why:
            self._off(str(why))
            return
        if waits:
            self._say("cache waits until a sample comes again: few do in this phase")

    def flush(self) -> None:
        """Write the features to the disk that are only in memory, if a disk is their place."""
        if self._kept:
            was_full = self._kept.store.full
            self._kept.store.flush()
            self._report_full(was_full)

    def remove(self) -> None:
        """Put the forward functions back as they were found."""
        if self._phase:
            self._phase.watch.end()

    def close(self) -> None:
        """The run is over: put the forward functions back, and forget all features."""
        self.remove()
        self.flush()
        self._kept = self._phase = None

    def _off(self, why: str) -> None:
        self.close()
        self.statistics.off, self.statistics.boundary = (*self.statistics.off, why), ()
        self.statistics.rows = self.statistics.nbytes = 0
        self._say(f"cache off until the next transition: {why}")

    def _called_outside(self) -> None:
        """A closed layer is called outside the network's forward, as recompute does backwards.

        That shows in the steps before anything is skipped.
        """
        phase = self._phase
        if phase and not phase.waits and self._network.training and paddle.is_grad_enabled():
            phase.stray = phase.stray or not phase.replays

    # ------------------------------------------------------------ the forward of the network

    def _forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        phase = self._phase
        if not (phase and phase.watch.alive and paddle.in_dynamic_mode()) or phase.watch.busy:
            return original(*args, **kwargs)
        inputs = list(tensors((args, kwargs)))
        if any(not tensor.stop_gradient for tensor in inputs):
            return original(*args, **kwargs)  # somebody wants gradients of the input itself
        try:
            if phase.stray:
                raise CannotCacheError(RECOMPUTED)
            phase.watch.refuse_hooks()
            size, content = batch_size(inputs), form_of((args, kwargs))
            state = (self._network.training, _amp_state())
            form, kind = (*state, content), (*state, kind_of(content), size)
            if self._kept:
                self._kept.probe(phase.batches, self._network)
            if size == 0:
                return original(*args, **kwargs)
            call, key = (original, args, kwargs), self._options.key
            keys = keys_of(inputs, size, form) if key is None else keys_given(key, call, size, form)
            if phase.waits_on(keys):
                return original(*args, **kwargs)
            batch = _Batch(call, form, kind, keys)
            proven = phase.has_proven(kind)
            tried = not proven and self._can_try(phase, size)
        except CannotCacheError as why:
            self._off(str(why))
            return original(*args, **kwargs)
        if tried:
            return self._tried(phase, batch)
        if self._kept and (proven or phase.knows_boundary):
            return self._served(phase, self._kept, batch, proven)
        if phase.early or not self._network.training:
            return original(*args, **kwargs)
        result, trace = phase.watch.traced(*batch.call)
        phase.early.append((batch, trace))
        return result

    def _can_try(self, phase: _Phase, size: int) -> bool:
        """Whether a call can show what may be kept."""
        ready = self._ready()
        if ready is None:
            raise CannotCacheError(RECOMPUTED)
        # Only a training step shows the boundary, and one sample shows nothing of the others.
        training = self._network.training
        shows = paddle.is_grad_enabled() if training else phase.knows_boundary
        return bool(ready and shows and size > 1)

    def _tried(self, phase: _Phase, batch: _Batch) -> Any:
        """The network's output, and beside it a step of the proof that features give the same."""
        passed = phase.proofs.get(batch.kind, 0)
        known = self._kept.boundary if self._kept and phase.knows_boundary else None
        trial = Trial(phase.watch, self._network, batch.call, len(batch.keys), known, not passed)
        try:
            with trial:
                found = trial.check(passed, phase.opened)
            kept = self._keeping(phase, found)
            if known is None:
                features = self._features(phase, kept, trial.trace, batch.keys)
                each = sum(array.nbytes for array in features) // len(batch.keys)
                self._say(
                    f"cache on: keeps the output of {', '.join(kept.names)}, {each:,} bytes "
                    f"a sample; {len(kept.store):,} samples are there"
                )
            while phase.early:
                early, trace = phase.early.pop()
                self._keep(phase, kept, trace, early, kept.store.get(early.keys))
            rows = kept.store.get(batch.keys)
            # One check a step; all at once where a proof is all that is missing, and for further
            # kinds of input.
            due = CHECKS if None not in rows or CHECKS in phase.proofs.values() else passed + 1
            if due > passed + 1:
                with trial:
                    for number in range(passed + 1, due):
                        trial.check(number, phase.opened, found)
            phase.proofs[batch.kind] = due
            phase.moving = phase.moving or trial.moving
            phase.batches += 1
            self._keep(phase, kept, trial.trace, batch, rows)
        except CannotCacheError as why:
            self._off(str(why))
        return trial.result

    def _keeping(self, phase: _Phase, found: Boundary) -> Kept:
        """What is kept with this boundary: what there was, if it is the same, else anew."""
        kept, names = self._kept, tuple(phase.watch.name(call) for call, _ in found.kept)
        if kept and (kept.names, kept.boundary.kept) == (names, found.kept):
            kept = replace(kept, boundary=found)
        else:
            kept = Kept.of(found, names, self._network, phase.watch, phase.opened, self._options)
        self._kept = kept
        self.statistics.rows, self.statistics.nbytes = len(kept.store), kept.store.nbytes
        self.statistics.boundary = names
        return kept

    def _served(self, phase: _Phase, kept: Kept, batch: _Batch, proven: bool) -> Any:
        """The network's output, as far as possible from the cache."""
        recipe = phase.recipes.get(batch.form)
        rows = kept.store.get(batch.keys)
        phase.batches += 1
        # What the user calls the same sample is not known to be one: the first few are compared.
        training = self._network.training
        doubt = self._options.key is not None and phase.compared[training] < _COMPARED
        check = phase.batches % self._options.check_every == 0 or (doubt and phase.moving)
        try:
            if proven and recipe and not check and any(row is not None for row in rows):
                there = len(rows) - rows.count(None)
                if doubt:
                    phase.compared[training] += 1
                    found = [i for i, row in enumerate(rows) if row is not None]
                    some = found[:: max(len(found) // 2, 1)]
                    again = self._alone(phase, kept, batch, some)
                    self._compare(phase, kept, [rows[i] for i in some], again)
                if there < len(rows) and not phase.moving:
                    rows = self._completed(phase, kept, recipe, batch, rows)
                if recipe.serves(rows):
                    self.statistics.hits += there
                    phase.replays = True
                    return phase.watch.planned(*batch.call, recipe.outputs(rows))
            # Computed as a whole, exactly as without us.
            result, trace = phase.watch.traced(*batch.call, Trace(whole=kept.boundary.kept_calls))
        except CannotCacheError as why:
            self._off(str(why))
            return batch.call[0](*batch.call[1], **batch.call[2])
        try:
            self._check_trace(phase, kept, trace)
            self._keep(phase, kept, trace, batch, rows)
        except CannotCacheError as why:
            self._off(str(why))
        return result

    def _completed(
        self, phase: _Phase, kept: Kept, recipe: Recipe, batch: _Batch, rows: list[Row | None]
    ) -> list[Row | None]:
        """The features of a batch, the missing ones computed from their samples alone."""
        missing = [index for index, row in enumerate(rows) if row is None]
        features = self._alone(phase, kept, batch, missing)
        keys = [batch.keys[index] for index in missing]
        self._put(kept, recipe, keys, features)
        self.statistics.misses += len(missing)
        self._judge(phase, kept)
        done = dict(zip(missing, (tuple(array[i] for array in features) for i in range(len(keys)))))
        return [done.get(index, row) for index, row in enumerate(rows)]

    def _alone(self, phase: _Phase, kept: Kept, batch: _Batch, chosen: Sequence[int]) -> Row:
        """The features of some samples of a batch, computed without the others."""
        original, *given = batch.call
        args, kwargs = rows_of(given, chosen)
        trace = Trace(whole=kept.boundary.kept_calls, until=kept.boundary.kept_calls)
        with paddle.no_grad():
            phase.watch.traced(original, args, kwargs, trace)
        return self._features(phase, kept, trace, chosen)

    def _check_trace(self, phase: _Phase, kept: Kept, trace: Trace) -> None:
        """Whether a forward called the frozen layers as the proven one did."""
        if trace.recomputed:
            raise CannotCacheError(RECOMPUTED)
        calls = {call: prefix for call, _, prefix in trace.calls}
        if self._network.training and trace.grad:
            for call in kept.boundary.prefix:
                if not calls.get(call, True):
                    raise CannotCacheError(f"{phase.watch.name(call)} comes behind open layers now")

    def _features(self, phase: _Phase, kept: Kept, trace: Trace, samples: Sequence[Any]) -> Row:
        """The features in a trace, one row for each of these samples."""
        found = kept.boundary.features(trace, len(samples), phase.watch.name)
        return arrays_of(found, self._options.dtype)

    # ------------------------------------------------------------ keeping, and giving up

    def _keep(
        self, phase: _Phase, kept: Kept, trace: Trace, batch: _Batch, rows: Sequence[Row | None]
    ) -> None:
        """Keep the features of a batch that was computed; compare those that were there."""
        self.statistics.misses += len(batch.keys)
        phase.compared[self._network.training] += any(row is not None for row in rows)
        features = self._features(phase, kept, trace, batch.keys)
        if self._options.key is not None:  # of samples with one key, the first is kept
            first = {key: index for index, key in reversed(list(enumerate(batch.keys)))}
            each = [tuple(array[first[key]] for array in features) for key in batch.keys]
            rows = [row or one for row, one in zip(rows, each)]
        self._compare(phase, kept, rows, features)
        recipe = phase.recipes.get(batch.form)
        if recipe is None:
            recipe = Recipe.of(trace, kept.boundary, features, phase.blanks)
            phase.recipes[batch.form] = recipe
        self._put(kept, recipe, batch.keys, features)
        self._judge(phase, kept)

    def _put(self, kept: Kept, recipe: Recipe, keys: Sequence[bytes], features: Row) -> None:
        if shapes_of(features) != recipe.shapes:
            raise CannotCacheError(
                f"{', '.join(kept.names)} gives another shape for inputs of the same shape: "
                "what it computes of a sample depends on the others of the batch"
            )
        was_full = kept.store.full
        kept.store.put(keys, features)
        self.statistics.rows, self.statistics.nbytes = len(kept.store), kept.store.nbytes
        self._report_full(was_full)

    def _report_full(self, was_full: bool) -> None:
        if self._kept and self._kept.store.full and not was_full:
            store = self._kept.store
            self._say(
                f"cache full: {len(store):,} samples in {store.nbytes / 2**20:,.0f} MB; other "
                "samples are computed each time (cache_limit=)"
            )

    def _compare(self, phase: _Phase, kept: Kept, rows: Sequence[Row | None], now: Row) -> None:
        """Features that are kept must be those that were computed just now."""
        loose = 1e-3 if self._options.dtype is None else 1e-2
        same = (
            one.shape == all_rows[index].shape and nearly_equal(one, all_rows[index], loose)
            for index, row in enumerate(rows)
            for one, all_rows in zip(row or (), now)
        )
        if all(same):
            return
        key = self._options.key is not None
        if key and not phase.replays:
            raise CannotCacheError(
                "cache_key= gives the same key to samples with other features: to two samples, to "
                "one that random augmentation changes, or to those of another data set in this "
                "folder"
            )
        if self._options.cache != "memory" and not phase.replays:
            raise CannotCacheError(
                f"{os.fspath(self._options.cache)} has other features of a sample than the frozen "
                "layers give, of the same weights but other code or options; use another folder"
            )
        raise RuntimeError(
            f"the cache has other features of a sample than the frozen layers give now "
            f"({', '.join(kept.names)}): something changed their weights, buffers or options while "
            "they were frozen (a loaded checkpoint, an averaging callback)"
            f"{', or cache_key= gives two samples one key' if key else ''}; train without the cache"
        )

    def _judge(self, phase: _Phase, kept: Kept) -> None:
        """Say so, or give up, if few samples come from the cache."""
        hits, misses = self.statistics.hits, self.statistics.misses
        epochs = self._epoch() - phase.epoch
        if epochs < 1:
            phase.seen = (hits, misses)
        new_hits, new_misses = hits - phase.seen[0], misses - phase.seen[1]
        share = new_hits / max(new_hits + new_misses, 1)
        if epochs >= 2 and share < 0.01:
            raise CannotCacheError(
                "almost no sample came from it in two epochs: it is full; give it a higher "
                "cache_limit"
                if kept.store.full
                else "almost no sample came twice in two epochs; random augmentation, or "
                "padding that differs from batch to batch, makes new samples of old ones"
            )
        if epochs >= 2 and share < 0.5 and not self._told_of_misses:
            self._told_of_misses = True
            self._say(f"cache: {percent(share)} of the samples come from it: {_why(phase, kept)}")


def _why(phase: _Phase, kept: Kept) -> str:
    """Why few samples come from the cache, and what to change."""
    if phase.moving:
        return (
            "the frozen part moves a buffer in each forward, so a batch with one new sample is "
            "computed as a whole; raise cache_limit if it is full, or shuffle whole batches"
        )
    if kept.store.full:
        return "it is full; raise cache_limit"
    return (
        "padding that differs from batch to batch, or random augmentation, makes new samples of "
        "old ones; pad to one length, or keep what is in a batch and shuffle the batches"
    )


def bytes_a_sample(
    network: nn.Layer, opened: frozenset[int], options: CacheOptions, forward: Callable[[], Any]
) -> int:
    """Bytes that a cache would keep of each sample of a batch; the network is left as it was.

    Raises:
        CannotCacheError: with the reason why nothing would be kept.
    """
    memory = replace(options, cache="memory", limit=None)
    cache = FeatureCache(network, memory, lambda line: None)
    state = ForwardState(network)
    try:
        cache.begin(opened)
        for _ in range(2):  # the samples are there by then, and so all checks are made
            forward()
    finally:
        cache.remove()
        surely(state.restore)
    if cache.statistics.off or not cache.statistics.rows:
        few = "a batch needs two samples or more to tell"
        raise CannotCacheError("; ".join(cache.statistics.off) or few)
    return cache.statistics.nbytes // cache.statistics.rows


def _amp_state() -> tuple[str, str]:
    """The level and dtype of mixed precision."""
    # paddle.is_autocast_enabled() does not distinguish O1 from O2, whose features differ.
    tracer = paddle.base.framework._dygraph_tracer()
    return str(tracer._amp_level), str(tracer._amp_dtype)  # paddle.get_autocast_dtype is of 3.2
