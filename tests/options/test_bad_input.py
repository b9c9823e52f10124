"""Every wrong input that we know of, and the message it gets.

A message names the thing, says what was near or allowed, and what to do. It comes before the
first step, from our own code and not from inside Paddle, and leaves the network alone.
"""

from __future__ import annotations

import json
import math
import re
import traceback
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest
from networks import TwoLayers, conv_net, values
from paddle import nn

import paddle_freeze_callback
from paddle_freeze_callback import (
    ByGradient,
    ChainThaw,
    Cyclic,
    Explicit,
    FreezeArguments,
    FreezeDown,
    FreezeSchedule,
    Gradual,
    HeadOnly,
    HeadThenAll,
    OnPlateau,
    RandomStages,
    SlantedTriangular,
    freeze,
    partition,
    trainable_ratio,
    unfreeze,
)
from paddle_freeze_callback.hosts.trainer import _refuse_unsupported
from paddle_freeze_callback.session.record import FILE, Record
from paddle_freeze_callback.stages.selectors import select
from paddle_freeze_callback.stages.weights import weights
from paddle_freeze_callback.strategies.moments import Moment
from paddle_freeze_callback.strategies.run import Run


def chosen(selector):
    return select(weights(TwoLayers()), selector)


def parts(stages, network=conv_net):
    return partition(network(), stages)


def flags(**fields):
    return FreezeSchedule.from_args(
        FreezeArguments(**{f"freeze_{k}": v for k, v in fields.items()})
    )


def file(content, name="a.yaml"):
    def read(folder):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return FreezeSchedule.from_file(path)

    return read


def record(content):
    def read(folder):
        (folder / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
        return Record.load(folder)

    return read


def with_rows(name, text, further=()):
    rows = {name: text, **dict(further)}
    return lambda: attached(FreezeSchedule(rows=rows), network=TwoLayers())


def attached(schedule=None, *, network=None, optimizer=None, **lengths):
    """Start a schedule on a network, which must be left as it is."""
    network = network or conv_net()
    if optimizer is None:
        optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    before = values(network), [tensor.stop_gradient for tensor in network.parameters()]
    try:
        (schedule or FreezeSchedule()).attach(network, optimizer, **(lengths or {"total_steps": 9}))
    finally:
        after = values(network), [tensor.stop_gradient for tensor in network.parameters()]
        assert before[1] == after[1]
        assert all((before[0][name] == after[0][name]).all() for name in before[0])


def frozen_net():
    network = conv_net()
    for tensor in network.parameters():
        tensor.stop_gradient = True
    return network


def adam(parameters, **options):
    return paddle.optimizer.Adam(0.1, parameters=parameters, **options)


class HeadFirst(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.classifier, self.body = nn.Linear(4, 2), nn.Linear(4, 4)


class EncoderLast(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(4, 2)
        self.encoder = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))


def changed_after_partition():
    network, optimizer_net = conv_net(), conv_net()
    network.fc = nn.Linear(4, 3)  # the optimizer still has the old one
    return attached(network=network, optimizer=adam(optimizer_net.parameters()))


ROWS = {
    # ---- selectors
    "misspelt layer": (lambda: chosen("fc3"), "no parameter or layer; did you mean 'fc2'"),
    "part of a name": (lambda: chosen("fc"), "'fc' matches no parameter or layer; did you mean"),
    "nothing alike": (lambda: chosen("zzz"), "did you mean 'fc1', 'fc2'?"),
    "one of a list misspelt": (lambda: chosen(["fc1", "fc22"]), "'fc22' matches no"),
    "empty selector": (lambda: chosen(""), "empty component"),
    "two dots": (lambda: chosen("fc1..weight"), "'fc1..weight' has an empty component"),
    "blank before": (lambda: chosen(" fc1"), "blanks around one"),
    "open brace": (lambda: chosen("fc{1"), "unpaired brace in 'fc{1'"),
    "range backwards": (lambda: chosen("fc{2-1}"), "runs backwards; write {1-2}"),
    "empty alternative": (lambda: chosen("fc{1,}"), "empty alternative"),
    "bad regular expression": (lambda: chosen("re:("), "is no regular expression"),
    "regular expression without match": (lambda: chosen("re:fc"), "'re:fc' matches no parameter"),
    "empty list": (lambda: chosen([]), "an empty list selects nothing"),
    "number": (lambda: chosen(3), "3 is no selector: give a dotted name"),
    "None": (lambda: chosen(None), "None is no selector"),
    "all but a misspelt one": (lambda: chosen("!fc3"), "'fc3' matches no parameter or layer; did"),
    "all but everything": (lambda: chosen("!*"), "'!*' leaves nothing: '*' is everything"),
    "all but nothing": (lambda: chosen("!"), "selector '' has an empty component"),
    "nothing to take away": (
        lambda: chosen(["fc1", "!fc2"]),
        "selector fc1 without fc2: '!fc2' takes nothing away from the others; drop it",
    ),
    "everything taken away": (
        lambda: chosen(["fc1", "!fc1"]),
        "selector fc1 without fc1 selects none of the 4 parameters",
    ),
    "counted too far": (lambda: chosen("fc{-3}"), "{-3} counts further than the 2 that there are"),
    "position too far": (lambda: chosen("fc[2]"), "[2] counts further than the 2 that there are"),
    "range of counts": (lambda: chosen("fc{-2--1}"), "write {-2,-1} or [-2:] for the last two"),
    "no position": (lambda: chosen("fc[a]"), "[a] is no position; [-2:] means the last two"),
    "slice with steps": (lambda: chosen("fc[::2]"), "[::2] is no position; [-2:] means"),
    "position without a dot": (
        lambda: select(weights(conv_net()), "block1[-1]"),
        "'block1[-1]' matches no parameter or layer; did you mean 'block1.[-1]'?",
    ),
    "position without its prefix": (
        lambda: select(weights(nn.Sequential(("a", conv_net()))), "block[-1]"),
        "did you mean '**.block[-1]'?",
    ),
    "misspelt type": (lambda: chosen("type:linear"), "did you mean 'type:Linear'?"),
    "type of no layer": (
        lambda: chosen("type:LSTM"),
        "'type:LSTM' matches no class of a layer that has parameters; there are Linear, TwoLayers",
    ),
    "no bias": (
        lambda: select(weights(nn.Linear(2, 2, bias_attr=False)), "bias"),
        "selector 'bias' selects nothing: this network has no bias",
    ),
    "class of layers": (lambda: chosen(nn.Linear), "Linear is a class; write 'type:Linear'"),
    "share without its end": (lambda: chosen("30%"), "a share is 'top 30%' or 'bottom 30%'"),
    "share without percent": (lambda: chosen("top 30"), "a share is 'top 30%' or 'bottom 30%'"),
    "share of nothing": (lambda: parts(["top 0%", "*"]), "must be more than 0% and at most 100%"),
    "share above all": (lambda: parts(["top 101%"]), "must be more than 0% and at most 100%"),
    "share without stages": (
        lambda: chosen("top 30%"),
        "counts in whole stages, head first, and here are none; name layers, or the stages",
    ),
    "BitFit without a head": (
        lambda: attached(FreezeSchedule.bitfit(), network=nn.Sequential(nn.Linear(2, 2))),
        "no part of this network can be told to be its head; name layers instead of 'head'",
    ),
    "BitFit in stages of one's own": (
        lambda: attached(FreezeSchedule.bitfit(stages=2)),
        "'head + type:bias without head' cuts through the stage",
    ),
    "unknown time for norms": (
        lambda: FreezeSchedule(train_norm="nver"),
        "train_norm='nver' must be 'with_stage' or 'never' or 'always'",
    ),
    "unknown kind of norm": (
        lambda: FreezeSchedule(train_norm={"Batchnorm": "never"}),
        "train_norm: unknown kind of normalization 'Batchnorm'; did you mean BatchNorm?",
    ),
    "unknown time for a kind of norm": (
        lambda: FreezeSchedule(train_norm={"BatchNorm": True}),
        "train_norm['BatchNorm']=True must be 'with_stage' or 'never' or 'always'",
    ),
    "no kind of norm": (lambda: FreezeSchedule(train_norm={}), "train_norm={} names no kind"),
    "kind of norm that is not there": (
        lambda: attached(FreezeSchedule(train_norm={"LayerNorm": "never"})),
        "train_norm={'LayerNorm': 'never'}: ConvNet has no LayerNorm; it has BatchNorm",
    ),
    "no norm at all": (
        lambda: attached(FreezeSchedule(train_norm="never"), network=TwoLayers()),
        "train_norm='never': TwoLayers has no normalization layer; drop it",
    ),
    "stage of nothing but norms": (
        lambda: attached(FreezeSchedule(train_norm="always", stages=["fc", "block1.1", "*"])),
        "the stage 'block1.1' contradict each other: it has nothing but block1.1.weight, ",
    ),
    "an optimizer of another network": (
        lambda: (net := TwoLayers()) and FreezeSchedule().attach(
            net, [adam(net.parameters()), adam(TwoLayers().parameters())], total_steps=3
        ),
        "Adam, one of the optimizers, trains no parameter of this TwoLayers; leave out those of",
    ),
    "phase at no rate": (
        lambda: FreezeSchedule(phase_lr=lambda share: 0.0),
        "is 0 throughout, so that nothing would train; what must not train is frozen",
    ),
    "class that only Paddle knows": (
        lambda: attached(FreezeSchedule(unfreeze_at={0: "type:BatchNrm2D"})),
        "did you mean 'type:BatchNorm2D'?",
    ),
    "rate for norms apart": (
        lambda: attached(FreezeSchedule(train_norm="always", lr={"norms (always)": 2})),
        "lr: 'norms (always)': normalization layers have the rate of the stage that they come",
    ),
    "an option in a file is named once": (
        file("train_norm: {Batchnorm: never}"),
        "a.yaml: train_norm: unknown kind of normalization 'Batchnorm'; did you mean BatchNorm?",
    ),
    "rows that YAML reads as a number": (
        file("rows: {emb: 9:11}"),
        "rows={'emb': 551} must give text for a name, such as {\"embeddings\": \"5:10\"}; in YAML",
    ),
    "rows without quotes": (
        file("rows: [emb=7:]"),
        "a.yaml: rows: {'emb=7': None} is no pair tensor=rows; put it in quotes, such as",
    ),
    "an option of one run in a file": (
        file("resume_from: checkpoints/3"),
        "a.yaml: resume_from is of one run, and not of a file; give it in code",
    ),
    "no optimizer in a list": (
        lambda: attached(FreezeSchedule(), optimizer=[]),
        "an empty list of optimizers; give those that train the network",
    ),
    "argument of fine_tune in a file": (
        file("strategy: fine_tune\nfreeze_epochs: 3"),
        "a.yaml: freeze_epochs is fine_tune()'s in code; here: at: 2",
    ),
    "norms that stand still and move": (
        lambda: FreezeSchedule(train_norm="never", frozen_norm="train"),
        "frozen_norm='train' and train_norm='never' contradict each other",
    ),
    "a cache behind norms that train": (
        lambda: FreezeSchedule(train_norm={"*": "always"}, cache="memory"),
        "cache='memory' and train_norm={'*': 'always'} contradict each other",
    ),
    "a file of another kind": (
        lambda: FreezeSchedule(save_trained="trained.pdparams"),
        "save_trained='trained.pdparams' must end in .safetensors, which is its format",
    ),
    "no file": (
        lambda: FreezeSchedule(save_trained=True),
        "save_trained=True must be the path of a file",
    ),
    "a file in a file": (
        file("save_trained: 3"),
        "a.yaml: save_trained: save_trained=3 must be the path of a file",
    ),
    "rows of nothing": (lambda: FreezeSchedule(rows={}), "rows={} names no tensor; give for"),
    "rows without a tensor": (
        lambda: FreezeSchedule(rows="30522:"),
        "rows='30522:' must be a mapping, such as",
    ),
    "rows as a number": (
        lambda: FreezeSchedule(rows={"fc1": 7}),
        "rows={'fc1': 7} must give text for a name, such as {\"embeddings\": \"5:10\"}",
    ),
    **{
        f"rows {text!r}": (
            with_rows("fc1", text),
            f"rows['fc1']: {text!r} is no run of rows; write for example \"30522:\"",
        )
        for text in ("7", ":", "0:4:2", ":, 3:", "[1, 2]", "last", "", "2:2")
    },
    **{
        f"rows {text!r} of four": (
            with_rows("fc1.weight", text),
            f"rows['fc1.weight']: fc1.weight has 4 rows, 0 to 3; the rows {text} are not among",
        )
        for text in ("4:", "2:5", "-5:", "3:1", "9:12", ":-4")
    },
    "all rows": (
        with_rows("fc1.weight", "0:4"),
        "rows['fc1.weight']: that is all of fc1.weight; open it as a stage instead",
    ),
    "rows of a layer that is not there": (
        with_rows("fc11.weight", "1:"),
        "rows: selector 'fc11.weight' matches no parameter or layer; did you mean 'fc1.weight'",
    ),
    "rows of a layer with two tensors": (
        with_rows("fc1", "1:"),
        "rows['fc1'] means 2 tensors, fc1.weight, fc1.bias; name one",
    ),
    "rows of all": (
        with_rows("*", "1:"),
        "rows['*'] means 4 tensors, fc1.weight, fc1.bias ...; name one",
    ),
    "rows twice": (
        with_rows("fc1.weight", "1:", {"re:fc1.w.*": "2:"}),
        "rows['re:fc1.w.*']: the rows of fc1.weight are there twice",
    ),
    "a stage that opens the whole table": (
        lambda: attached(
            FreezeSchedule(rows={"fc1.weight": "1:"}, stages=["fc2", "fc1.weight", "*"]),
            network=TwoLayers(),
        ),
        "rows= and 'fc1.weight' contradict each other: that is nothing but fc1.weight, of which",
    ),
    "a moment that opens the whole table": (
        lambda: attached(
            FreezeSchedule(rows={"fc1.weight": "1:"}, unfreeze_at={0: "fc2", 1: ["fc1.weight"]}),
            network=TwoLayers(),
        ),
        "rows= and 'fc1.weight' contradict each other: that is nothing but fc1.weight, of which",
    ),
    "rows that are left alone": (
        lambda: attached(
            FreezeSchedule(rows={"fc1.weight": "1:"}, untouched="fc1.weight"),
            network=TwoLayers(),
        ),
        "untouched= and the rows of fc1.weight contradict each other",
    ),
    "rows behind a cache": (
        lambda: FreezeSchedule(rows={"fc1.weight": "1:"}, cache="memory"),
        "cache='memory' and rows={'fc1.weight': '1:'} contradict each other",
    ),
    "rows in a file": (
        file("rows: {fc1.weight: 3}"),
        "a.yaml: rows: rows={'fc1.weight': 3} must give text for a name, such as",
    ),
    "rows as a flag": (
        lambda: flags(rows=["fc1.weight"]),
        "--freeze_rows: 'fc1.weight' is no pair tensor=rows, such as embeddings=30522:",
    ),
    "norms in a file": (
        file("train_norm: {BatchNorm: sometimes}"),
        "a.yaml: train_norm: train_norm['BatchNorm']='sometimes' must be",
    ),
    "foreign layer": (lambda: chosen(nn.Linear(2, 2)), "the layer Linear given as a selector"),
    "callable that finds nothing": (lambda: chosen(lambda name: False), "selects none of the 4"),
    "paddle.Model": (lambda: weights(paddle.Model(TwoLayers())), "pass model.network"),
    "freeze by a wrong name": (lambda: freeze(TwoLayers(), "fc9"), "'fc9' matches no"),
    "unfreeze by a wrong name": (lambda: unfreeze(TwoLayers(), "fc9"), "'fc9' matches no"),
    "ratio of a list": (lambda: trainable_ratio([]), "a network is a paddle.nn.Layer, not list"),
    # ---- stages
    "overlapping stages": (
        lambda: parts(["fc", "fc.weight"]),
        "the stages 'fc' and 'fc.weight' both claim 'fc.weight'",
    ),
    "star first": (lambda: parts(["*", "fc"]), 'both claim \'fc.weight\'; put "*" last'),
    "star over nothing": (lambda: parts(["fc", "block?", "*"]), "they leave nothing; drop it"),
    "misspelt stage": (lambda: parts(["fc", "blok3"]), "did you mean 'block3'"),
    "no stages": (lambda: parts([]), "stages=[] names no stage"),
    "no backbone stages": (lambda: parts(0), "give a number from 1 to 3"),
    "more stages than blocks": (lambda: parts(4), "the backbone has 3 stages to merge (block3, "),
    "stages are true": (lambda: parts(True), "stages=True: give"),
    "stages are a float": (lambda: parts(2.0), "stages=2.0: give"),
    "a single layer": (lambda: parts("auto", lambda: nn.Linear(2, 2)), "a single layer"),
    "head before body": (lambda: parts("auto", HeadFirst), "'classifier' has the name of a head"),
    "embeddings last": (lambda: parts("auto", EncoderLast), "'encoder' has embeddings"),
    "no parameters": (lambda: parts("auto", nn.ReLU), "ReLU has no parameters"),
    # ---- moments
    "negative epoch": (lambda: Moment.of(-1), "moment -1 is negative; write 2 or"),
    "negative steps": (lambda: Moment.of("-5 steps"), "'-5 steps' is no moment"),
    "bare share": (lambda: Moment.of(0.5), "0.5 is no moment of the run; write"),
    "not a number": (lambda: Moment.of(math.nan), "nan is no moment"),
    "true": (lambda: Moment.of(True), "True is no moment"),
    "no moment": (lambda: Moment.of(None), "None is no moment"),
    "empty moment": (lambda: Moment.of(""), "'' is no moment"),
    "other unit": (lambda: Moment.of("3 weeks"), "'3 weeks' is no moment"),
    "over 100%": (lambda: Moment.of("120%"), "'120%' lies beyond the end"),
    "share or epochs": (lambda: Moment.of("0.5"), 'write "0.5 epochs" or'),
    "part of a step": (lambda: Moment.of("1.5 steps"), "optimizer steps are whole numbers"),
    # ---- options in code
    "every of zero": (lambda: FreezeSchedule(every=0), "every: a length of 0 is zero"),
    "start before the start": (lambda: FreezeSchedule(start=-1), "start: moment -1 is negative"),
    "at as a float": (lambda: HeadThenAll(at=0.5), "at: 0.5 is no moment"),
    # ---- strategies
    "a plateau without its metric": (
        lambda: FreezeSchedule(strategy="on_plateau"),
        "strategy='on_plateau' needs metric; write strategy=OnPlateau(...)",
    ),
    "direction": (lambda: Gradual(direction="up"), "direction='up' must be 'top_down' or"),
    "phases of no length": (lambda: ChainThaw(0), "every: a length of 0 is zero"),
    "until nothing": (lambda: FreezeDown(until="0%"), "until: a length of '0%' is zero"),
    "negative power": (lambda: FreezeDown(power=-1), "power=-1 must be a positive number, such as"),
    "power as text": (
        lambda: FreezeDown(power="3"),
        "power='3' must be a number, such as 1 (linear",
    ),
    "no stage at a time": (lambda: Cyclic(k=0), "k=0 must be a whole number from 1"),
    "half a stage": (lambda: RandomStages(k=0.5), "k=0.5 must be a whole number from 1"),
    "a truth as number": (lambda: Cyclic(k=True), "k=True must be a whole number from 1"),
    "seed": (lambda: RandomStages(seed="x"), "seed='x' must be a whole number from 0"),
    "order": (lambda: Cyclic(order="random"), "order='random' must be 'descending' or 'ascending'"),
    "always as text": (
        lambda: RandomStages(always="head"),
        "always='head' must be a list of stages",
    ),
    "always misspelt": (
        lambda: attached(FreezeSchedule(strategy=RandomStages(k=1, always=["block9"]))),
        "always: selector 'block9' matches no parameter or layer; did you mean 'block",
    ),
    "more stages at a time than there are": (
        lambda: attached(FreezeSchedule.lisa(k=3)),
        "k=3 stages cannot be open at a time: there are 2 to draw from, besides those always open "
        "(block3, block2); give k from 1 to 2",
    ),
    "more in turn than there are": (
        lambda: attached(FreezeSchedule(strategy=Cyclic(k=9))),
        "there are 4 stages (head, block3, block2, block1); give k from 1 to 4",
    ),
    "a chain-thaw longer than the run": (
        lambda: attached(FreezeSchedule(strategy=ChainThaw("2 steps")), total_steps=8),
        "every: a chain-thaw of 4 stages has 5 phases, and this run has room for 4: the last",
    ),
    "moments out of order": (
        lambda: attached(FreezeSchedule(unfreeze_at={0: "fc", "6 steps": "*", "50%": "block3"})),
        "unfreeze_at: the moments are out of order: '50%' (step 5) comes after '6 steps' (step 6)",
    ),
    "metric as a number": (lambda: OnPlateau(3), "metric=3 must be a name"),
    "metric that says nothing": (lambda: OnPlateau("m"), "mode: whether more or less of 'm' is"),
    "mode": (lambda: OnPlateau("acc", mode="up"), "mode='up' must be 'max' or 'min'"),
    "no patience": (
        lambda: OnPlateau("acc", patience=0),
        "patience=0 must be a whole number from 1",
    ),
    "negative delta": (
        lambda: OnPlateau("acc", min_delta=-1),
        "min_delta=-1 must be a number from 0",
    ),
    "delta that is no number": (lambda: OnPlateau("acc", min_delta=math.nan), "min_delta=nan must"),
    "longest wait of nothing": (lambda: OnPlateau("acc", max_wait=0), "max_wait: a length of 0"),
    "restore_best as text": (
        lambda: OnPlateau("acc", restore_best="y"),
        "restore_best='y' must be",
    ),
    "threshold over one": (
        lambda: ByGradient(threshold=2),
        "threshold=2 is a share of the largest",
    ),
    "threshold of nothing": (
        lambda: ByGradient(threshold=0),
        "threshold=0 must be a positive number",
    ),
    "a rule that gives nothing": (
        lambda: attached(FreezeSchedule(strategy=lambda progress: [])),
        "nothing would train from step 0 on: <lambda> gave no stage",
    ),
    "a rule that gives another name": (
        lambda: attached(FreezeSchedule(strategy=lambda progress: ["fc"])),
        "<lambda> gave the stage 'fc' at step 0, which is not one of the 4",
    ),
    "a rule that gives no names": (
        lambda: attached(FreezeSchedule(strategy=lambda progress: None)),
        "<lambda> gave None at step 0, not the names of the open stages",
    ),
    "a chain-thaw in too few steps": (
        lambda: attached(FreezeSchedule(strategy=ChainThaw()), total_steps=3),
        "this run has room for 3: the last, in which all train, would never come; make the run",
    ),
    **{
        f"{recipe} and {name}": (
            lambda recipe=recipe, name=name: getattr(FreezeSchedule, recipe)(**{name: 1}),
            f"{name}=1 and {recipe}() contradict each other: the recipe is a strategy; write Free",
        )
        for recipe, name in (("bitfit", "every"), ("fine_tune", "every"), ("lisa", "start"))
    },
    **{
        f"{own} and {other} of fine_tune": (
            lambda own=own, other=other, value=value: FreezeSchedule.fine_tune(
                **{own: 0.9, other: value}
            ),
            f"{own}= and {other}= contradict each other; drop one of them",
        )
        for own, other, value in (
            ("lr_mult", "lr_decay", 2),
            ("lr_mult", "lr", {"head": 2}),
            ("pct_start", "phase_lr", "linear"),
            ("div", "phase_lr", "linear"),
        )
    },
    "recipe and strategy": (
        lambda: FreezeSchedule.lp_ft(strategy=HeadOnly()),
        "strategy=HeadOnly() and lp_ft() contradict each other: the recipe is a strategy",
    ),
    "recipe and moments": (
        lambda: FreezeSchedule.ulmfit(unfreeze_at={0: "*"}),
        "unfreeze_at={0: '*'} and ulmfit() contradict each other",
    ),
    # ---- learning rates
    "decay of nothing": (
        lambda: FreezeSchedule(lr_decay=0),
        "lr_decay=0 must be a positive number",
    ),
    "decay as text": (lambda: FreezeSchedule(lr_decay="2.6"), "lr_decay='2.6' must be a number"),
    "endless decay": (lambda: FreezeSchedule(lr_decay=math.inf), "lr_decay=inf must be a positive"),
    "lr as a number": (lambda: FreezeSchedule(lr=0.1), "lr=0.1 is no mapping from stages to"),
    "lr that says nothing": (lambda: FreezeSchedule(lr={}), "lr={} sets nothing"),
    "a rate of nothing": (
        lambda: FreezeSchedule(lr={"head": 0}),
        "lr['head']=0 must be a positive number, such as 0.1; what must not train at all is frozen",
    ),
    "lr misspelt": (
        lambda: attached(FreezeSchedule(lr={"block8": 1})),
        "lr: selector 'block8' matches no parameter or layer; did you mean 'block",
    ),
    "a decay and a rate for all the others": (
        lambda: FreezeSchedule(lr_decay=2, lr={"*": 1}),
        "lr_decay=2 and lr={'*': ...} contradict each other",
    ),
    "a rate for what never opens": (
        lambda: attached(FreezeSchedule(unfreeze_at={0: "fc"}, lr={"block1": 1})),
        "lr: 'block1' never opens under this schedule, so a rate for it would have no effect",
    ),
    "lr said twice": (
        lambda: attached(FreezeSchedule(lr={"head": 1, "fc": 2})),
        "lr: both 'head' and 'fc' mean the stage 'head'; give its multiplier once",
    ),
    "lr of half a stage": (
        lambda: attached(FreezeSchedule(lr={"block2.0": 2})),
        "lr: 'block2.0' cuts through the stage 'block2'",
    ),
    "warmup of nothing": (lambda: FreezeSchedule(warmup=0), "warmup: a length of 0 is zero"),
    "shape": (
        lambda: FreezeSchedule(warmup=1, warmup_shape="s"),
        "warmup_shape='s' must be 'linear'",
    ),
    "shape of nothing": (
        lambda: FreezeSchedule(warmup_shape="cosine"),
        "warmup_shape='cosine' has nothing to shape; give warmup= or hold=",
    ),
    "warmup in epochs of unknown length": (
        lambda: attached(FreezeSchedule(warmup=1), total_steps=9),
        'warmup: "1 epoch" cannot be counted: how many steps an epoch has is not known',
    ),
    "triangle without steps": (lambda: SlantedTriangular(1, 0), "total_steps=0 must be a whole"),
    "triangle too short": (
        lambda: SlantedTriangular(1, 5),
        "leaves no step to rise in; give at least",
    ),
    "triangle that never falls": (
        lambda: SlantedTriangular(1, 50, cut_frac=1), "cut_frac=1 must be below 1",
    ),
    "triangle upside down": (
        lambda: SlantedTriangular(1, 50, ratio=0.5),
        "ratio=0.5 must be at least",
    ),
    "triangle without peak": (lambda: SlantedTriangular(0, 50), "peak=0 must be a positive number"),
    # ---- the schedule
    "strategy and every": (
        lambda: FreezeSchedule(strategy=HeadOnly(), every=1),
        "strategy= and every= contradict each other",
    ),
    "strategy and unfreeze_at": (
        lambda: FreezeSchedule(strategy=Gradual(), unfreeze_at={0: "fc"}),
        "strategy= and unfreeze_at= contradict",
    ),
    "every and unfreeze_at": (
        lambda: FreezeSchedule(every=1, unfreeze_at={0: "fc"}),
        "every= and unfreeze_at= contradict",
    ),
    "strategy as a class": (lambda: FreezeSchedule(strategy=HeadOnly), "write HeadOnly(...)"),
    "misspelt strategy": (lambda: FreezeSchedule(strategy="head_onyl"), "mean 'head_only'?"),
    "strategy without arguments": (
        lambda: FreezeSchedule(strategy="explicit"),
        "strategy='explicit' needs unfreeze_at; write strategy=Explicit(...)",
    ),
    "strategy is a number": (lambda: FreezeSchedule(strategy=3), "strategy=3 is no strategy; give"),
    "stages are None": (lambda: FreezeSchedule(stages=None), "stages=None: give"),
    "stages are zero": (lambda: FreezeSchedule(stages=0), "needs at least one stage"),
    "stages are empty": (lambda: FreezeSchedule(stages=[]), "stages=[] names no stage"),
    "on_conflict wrong": (lambda: FreezeSchedule(on_conflict="fix"), "must be 'warn' or 'enforce'"),
    "frozen_norm off": (lambda: FreezeSchedule(frozen_norm="off"), "must be 'eval' or 'train'"),
    "frozen_dropout true": (lambda: FreezeSchedule(frozen_dropout=True), "frozen_dropout=True"),
    "verify is a number": (lambda: FreezeSchedule(verify=1), "verify=1 must be True or False"),
    "restore is None": (lambda: FreezeSchedule(restore=None), "restore=None must be True or False"),
    "free state, please": (
        lambda: FreezeSchedule(free_optimizer_state="yes"),
        "free_optimizer_state='yes' must be True or False",
    ),
    "resume_at never": (lambda: FreezeSchedule(resume_at="never"), "resume_at: 'never' is no mom"),
    "no moments": (lambda: Explicit({}), "opens nothing; start with"),
    "list of moments": (lambda: Explicit(["fc"]), "is no mapping from moments to what opens"),
    "unknown verb": (lambda: Explicit({0: {"thaw": "fc"}}), "has the keys ['thaw']; give"),
    "empty change": (lambda: Explicit({0: {}}), "has the keys []"),
    "moment in words": (lambda: Explicit({"later": "fc"}), "unfreeze_at: 'later' is no moment"),
    # ---- the run
    "epochs alone": (lambda: attached(epochs=2), "epochs=2 alone does not say how long"),
    "no epochs": (lambda: Run.of(epochs=0, steps_per_epoch=4), "epochs=0 must be a positive"),
    "negative total": (lambda: Run.of(total_steps=-3), "total_steps=-3 must be a positive whole"),
    "part of a total": (lambda: Run.of(total_steps=2.5), "total_steps=2.5 must be a posit"),
    "nothing said": (lambda: Run.of(), "how long is the run? give two of"),
    "negative step": (lambda: attached(total_steps=9, step=-1), "step=-1 must be the number of"),
    "epochs of unknown length": (
        lambda: attached(FreezeSchedule(every=1)),
        '"1 epoch" cannot be counted: how many steps an epoch has is not known',
    ),
    # ---- schedule against network and optimizer
    "selector of no stage": (
        lambda: attached(FreezeSchedule(unfreeze_at={0: "fc", 1: "blok1"})),
        "'blok1' matches no parameter or layer; did you mean 'block1'",
    ),
    "selector cuts a stage": (
        lambda: attached(FreezeSchedule(stages=["fc", "*"], unfreeze_at={0: "fc.weight"})),
        "cuts through the stage 'fc'",
    ),
    "nothing open at the start": (
        lambda: attached(FreezeSchedule(unfreeze_at={"2 steps": "fc"})),
        "nothing would train before step 2",
    ),
    "nothing open later": (
        lambda: attached(FreezeSchedule(unfreeze_at={0: "fc", "3 steps": {"freeze": "*"}})),
        "nothing would train from step 3 on",
    ),
    "opened and frozen at once": (
        lambda: attached(
            FreezeSchedule(unfreeze_at={0: "*", 1: {"freeze": "fc", "unfreeze": "fc"}})
        ),
        "unfreeze_at[1] both opens and freezes fc; name it once, or make one",
    ),
    "freezing alone": (
        lambda: attached(FreezeSchedule(unfreeze_at={0: {"freeze": "block1"}})),
        'all but block1, write {0: {"unfreeze": "*", "freeze": "block1"}}',
    ),
    "freezing alone, several": (
        lambda: attached(FreezeSchedule(unfreeze_at={1: {"freeze": ["fc", "block1"]}})),
        '1 opens nothing; to open all but block1, fc, write {0: {"unfreeze": "*", "freeze": '
        '["block1", "fc"]}}',
    ),
    "all frozen already": (lambda: attached(network=frozen_net()), "frozen already; nothing would"),
    "optimizer of the head": (
        lambda: (lambda n: attached(network=n, optimizer=adam(n.fc.parameters())))(conv_net()),
        "was not given 12 parameters that the schedule will open: block1.0.weight",
    ),
    "network changed since": (changed_after_partition, "was not given 14 parameters"),
    "use_multi_tensor": (
        lambda: (
            lambda n: attached(network=n, optimizer=adam(n.parameters(), use_multi_tensor=True))
        )(conv_net()),
        "Adam(use_multi_tensor=True) keeps the list",
    ),
    "LookAhead": (
        lambda: (
            lambda n: attached(
                network=n, optimizer=paddle.incubate.LookAhead(adam(n.parameters()))
            )
        )(conv_net()),
        "takes zeros for those that open later, here 'block3': it would pull them towards zero. "
        "Give the schedule and the training loop the optimizer inside it",
    ),
    "no optimizer at all": (
        lambda: attached(optimizer=SimpleNamespace(step=None)),
        "SimpleNamespace is no paddle optimizer",
    ),
    "list of networks": (
        lambda: FreezeSchedule().attach([TwoLayers()], None, total_steps=4),
        "a network is a paddle.nn.Layer, not list",
    ),
    "None as the optimizer": (
        lambda: FreezeSchedule().attach(conv_net(), None, total_steps=4),
        "NoneType is no paddle optimizer",
    ),
    "say is text": (lambda: attached(total_steps=4, say="x"), "say='x' must be a function"),
    "callable of two names": (
        lambda: chosen(lambda name, other: True),
        "the selector <lambda> failed on 'fc1.weight': TypeError",
    ),
    "tensor as a selector": (lambda: chosen(paddle.ones([2])), "is no selector: give a dotted"),
    "step after the end": (lambda: attached(total_steps=4, step=9), "the run of 4 steps is over"),
    "resume_at in a loop by hand": (
        lambda: attached(FreezeSchedule(resume_at=3)),
        "resume_at=3 is for paddle.Model.fit; give attach() step=",
    ),
    "no whole step": (
        lambda: attached(epochs=0.1, steps_per_epoch=3),
        "epochs=0.1 of 3 steps are no whole step",
    ),
    # ---- flags
    "flag of another strategy": (
        lambda: flags(strategy="head_only", at="1"),
        "--freeze_at: belongs to the strategy 'head_then_all', not to 'head_only'",
    ),
    "explicit without its flag": (
        lambda: flags(strategy="explicit"),
        "--freeze_strategy: explicit needs --freeze_unfreeze_at",
    ),
    "flag of several strategies": (
        lambda: flags(k=2),
        "--freeze_k: belongs to several strategies; choose one with --freeze_strategy:",
    ),
    "flag of several others": (
        lambda: flags(strategy="gradual", k=2),
        "--freeze_k: belongs to the strategies 'random_stages', 'cyclic', not to 'gradual'",
    ),
    "strategy flag without its metric": (
        lambda: flags(strategy="on_plateau"), "--freeze_strategy: on_plateau needs --freeze_metric",
    ),
    "rate flag without a number": (
        lambda: flags(lr=["head=fast"]), "--freeze_lr: the multiplier 'fast' of 'head' is no",
    ),
    "rate flag without a stage": (
        lambda: flags(lr=["0.1"]), "--freeze_lr: '0.1' is no pair stage=multiplier, such as head=1",
    ),
    "bad value by flag": (
        lambda: flags(metric="acc", patience=0), "--freeze_patience: patience=0 must be a whole",
    ),
    "blame the longest name": (
        file("warmup: 10 steps\nwarmup_shape: foo"),
        "a.yaml: warmup_shape: warmup_shape='foo' must be",
    ),
    "a metric in a file that says nothing": (
        file("metric: foo"), "a.yaml: mode: whether more or less of 'foo'",
    ),
    "a number in a file that is none": (
        file("lr_decay: fast"), "a.yaml: lr_decay: lr_decay='fast' must be a number, such as 2.6",
    ),
    "flags of two strategies": (lambda: flags(every="1", at="1"), "--freeze_every: belongs to"),
    "unknown strategy": (lambda: flags(strategy="best"), "--freeze_strategy: unknown"),
    "flag every soon": (lambda: flags(every="soon"), "--freeze_every: 'soon' is no moment"),
    "no pair": (lambda: flags(unfreeze_at=["fc"]), "--freeze_unfreeze_at: 'fc' is no pair"),
    "moment twice": (lambda: flags(unfreeze_at=["0=fc", "0=*"]), "the moment '0' is there twice"),
    "pair without moment": (lambda: flags(unfreeze_at=["=fc"]), "'=fc' is no pair when=what"),
    "flag conflict": (lambda: flags(on_conflict="no"), "--freeze_on_conflict: on_conflict='no'"),
    "flag norm": (lambda: flags(frozen_norm="of"), "--freeze_frozen_norm: frozen_norm='of'"),
    "flag stages": (lambda: flags(stages=["0"]), "--freeze_stages: stages=0: the backbone needs"),
    "flag verify": (lambda: flags(verify="yes"), "--freeze_verify: 'yes' is neither true"),
    "no flags": (
        lambda: FreezeSchedule.from_args(SimpleNamespace()),
        "SimpleNamespace has no freeze_* fields; parse FreezeTrainingArguments",
    ),
    # ---- files
    "misspelt key": (file("evry: 1"), "unknown option 'evry'; did you mean every"),
    "unknown key": (file("zzz: 1"), "unknown option 'zzz'; known: stages, strategy, every"),
    "key twice": (file("every: 1\nfreeze_every: 2"), "the option 'every' is there twice"),
    "wrong value": (file("every: soon"), "a.yaml: every: 'soon' is no moment"),
    "misspelt strategy in a file": (file("strategy: gradul"), "unknown strategy 'gradul'; did you"),
    "list instead of mapping": (file("- every"), "must hold a mapping of options"),
    "empty file": (file(""), "must hold a mapping of options"),
    "no YAML": (file("every: ["), "a.yaml is not plain YAML"),
    "star without quotes": (
        file("unfreeze_at: {0: fc, 1: *}"),
        "\nwhat has !, [, {, * or : in it stands in quotes",
    ),
    "position without quotes": (
        file("stages: [head, layers.[-2:]]"),
        "\nwhat has !, [, {, * or : in it stands in quotes",
    ),
    "python tag": (file("x: !!python/object/apply:os.getcwd []"), "a.yaml is not plain YAML"),
    "python name": (file("every: !!python/name:os.system"), "a.yaml is not plain YAML"),
    "no JSON": (file("{", "a.json"), "a.json is not JSON"),
    "selector that YAML reads as a type": (
        file("stages:\n  - head\n  - !head"),
        "a.yaml: write '!head' in quotes; YAML reads !head as a type",
    ),
    "other kind of file": (file("x", "a.toml"), "ends in .yaml, .yml or .json, not '.toml'"),
    "other encoding": (file("stages: [分类]".encode("gbk")), "a.yaml is not UTF-8 text"),
    "verify in a file": (file("verify: 3"), "a.yaml: verify: 3 is neither true nor false"),
    "YAML's own false": (file("frozen_norm: off"), "frozen_norm=False must be 'eval' or"),
    # ---- rates of phases
    "misspelt shape": (
        lambda: FreezeSchedule(phase_lr="one_cicle"),
        "phase_lr='one_cicle': is no shape; did you mean 'one_cycle'? known: constant, linear, ",
    ),
    "misspelt shape with numbers": (
        lambda: FreezeSchedule(phase_lr=["linear", "onecycle:0.3"]),
        "phase_lr='onecycle:0.3': is no shape; did you mean 'one_cycle'?",
    ),
    "no shape at all": (
        lambda: FreezeSchedule(phase_lr="triangle"),
        "is no shape; known: constant, linear, cosine, one_cycle, or a function in code",
    ),
    "numbers for a shape that has none": (
        lambda: FreezeSchedule(phase_lr="cosine:0.1"),
        "phase_lr='cosine:0.1': takes no numbers; write 'cosine'",
    ),
    "too many numbers": (
        lambda: FreezeSchedule(phase_lr="one_cycle:0.3:5:10:2"),
        "is not of the form one_cycle:0.3:25:1e5: the share in which it rises, peak / first,",
    ),
    "a word among the numbers": (
        lambda: FreezeSchedule(phase_lr="one_cycle:0.3:div"), "is not of the form one_cycle:0.3",
    ),
    "rise of more than all": (
        lambda: FreezeSchedule(phase_lr="one_cycle:3"), "the rise must lie between 0 and 1",
    ),
    "no shapes": (lambda: FreezeSchedule(phase_lr=[]), "phase_lr=[] has no shape; give"),
    "a number as a shape": (
        lambda: FreezeSchedule(phase_lr=0.1),
        "phase_lr=0.1 is no shape: give one of constant, linear, cosine, one_cycle, or a function "
        "of the share of the phase; a number for a phase belongs in unfreeze_at={2: ",
    ),
    "a shape below zero": (
        lambda: FreezeSchedule(phase_lr=lambda share: share - 0.5),
        "gave -0.5 for the share 0 of a phase; it must give a number from 0, a part of the peak",
    ),
    "a shape that raises": (
        lambda: FreezeSchedule(phase_lr=lambda share: 1 / share),
        "phase_lr: <lambda> raised ZeroDivisionError: float division by zero, for the share 0 of",
    ),
    "a shape that raises near its end": (
        lambda: FreezeSchedule(phase_lr=lambda share: {True: 1}[share < 0.95]),
        "phase_lr: <lambda> raised KeyError: False, for the share 0.95 of a phase",
    ),
    "a shape in a file": (
        file("phase_lr: [linear, cosin]"), "a.yaml: phase_lr: phase_lr='cosin': is no shape",
    ),
    "a shape in a flag": (
        lambda: flags(phase_lr=["cosin"]), "--freeze_phase_lr: phase_lr='cosin': is no shape; did",
    ),
    "phase_decay of zero": (
        lambda: FreezeSchedule(phase_decay=0), "phase_decay=0 must be a positive number, such as",
    ),
    "lr_decay in other words": (
        lambda: FreezeSchedule(lr_decay="100 altogether"),
        "lr_decay='100 altogether' must be a number, such as 2.6, or say how much lower the last",
    ),
    "rate of a phase of zero": (
        lambda: Explicit({0: "*", 2: {"lr": 0}}),
        "unfreeze_at[2]['lr']=0 must be a positive number, such as 0.1",
    ),
    "rate of a phase in words": (
        file("unfreeze_at: {0: head, 1: {lr: low}}"),
        "a.yaml: unfreeze_at: at 1 the rate 'low' is no number",
    ),
    "misspelt key of a moment": (
        lambda: Explicit({0: {"unfreez": "*", "lr": 1}}),
        "unfreeze_at[0] has the keys ['unfreez', 'lr']; give \"unfreeze\", \"freeze\" or both, and "
        "\"lr\"; did you mean 'unfreeze'?",
    ),
    "rates and nothing opens": (
        lambda: Explicit({0: {"lr": 1}, 2: {"lr": 0.1}}), "sets rates and opens nothing; start",
    ),
    "a rate before anything opens": (
        lambda: attached(FreezeSchedule(unfreeze_at={0: {"lr": 1}, "2 steps": "*"})),
        "nothing would train from step 0 on",
    ),
    "a shape that a metric ends": (
        lambda: attached(FreezeSchedule(strategy=OnPlateau("acc"), phase_lr="cosine")),
        "phase_lr='cosine' needs to know when a phase ends, and OnPlateau(metric='acc') decides "
        "that while it runs; give max_wait=, which ends it at the latest, or phase_decay= alone",
    ),
    "a shape that gradients end": (
        lambda: attached(FreezeSchedule(strategy=ByGradient(), phase_lr=["constant", "linear"])),
        "phase_lr='linear' needs to know when a phase ends, and ByGradient() decides that while it "
        "runs; give phase_decay= alone, which needs no end",
    ),
    "a shape over data without length": (
        lambda: FreezeSchedule(phase_lr=abs).follow(
            conv_net(), adam(conv_net().parameters()), epochs=2
        ),
        "phase_lr='abs' needs to know when a phase ends, and how many steps the run has is not",
    ),
    "fine_tune of no time": (
        lambda: FreezeSchedule.fine_tune(freeze_epochs=-1), "freeze_epochs: moment -1 is negative",
    ),
    "fine_tune of no ratio": (
        lambda: FreezeSchedule.fine_tune(lr_mult=0), "lr_mult=0 must be a positive number, such as",
    ),
    "fastai's rate": (
        lambda: FreezeSchedule.fine_tune(base_lr=2e-3), "FreezeSchedule() has no option 'base_lr'",
    ),
    "unfreeze_at a number": (file("unfreeze_at: 3"), "a.yaml: unfreeze_at: 3 is no mapping"),
    "unfreeze_at empty": (file("unfreeze_at: {}"), "a.yaml: unfreeze_at: unfreeze_at={} opens"),
    "explicit without moments": (
        file("strategy: explicit"),
        "a.yaml: strategy: explicit needs ",
    ),
    "strategy as a mapping": (file("strategy: {name: head_only}"), "a.yaml: strategy: unknown"),
    "YAML key twice": (file("every: 1\nevery: 2"), "a.yaml: the key 'every' is there twice"),
    "JSON key twice": (file('{"every": 1, "every": 2}', "a.json"), "the key 'every' is there"),
    "selector in a file": (
        lambda folder: attached(file("stages: [fcc, '*']")(folder)),
        "a.yaml: selector 'fcc' matches no parameter or layer; did you mean 'fc'",
    ),
    "selector by flag": (
        lambda: attached(flags(stages=["fcc", "*"])),
        "--freeze_stages: selector 'fcc' matches no",
    ),
    "epochs in words": (lambda: attached(epochs="3", steps_per_epoch=2), "epochs='3' must be a"),
    "endless epochs": (
        lambda: attached(epochs=float("inf"), steps_per_epoch=2),
        "epochs=inf must be a positive number",
    ),
    "lengths that contradict": (
        lambda: attached(epochs=2, steps_per_epoch=3, total_steps=1000),
        "contradict each other; give two of them",
    ),
    "freeze a network of nothing": (lambda: freeze(nn.ReLU()), "ReLU has no parameters"),
    "no such file": (lambda: FreezeSchedule.from_file("nowhere.yaml"), "No such file"),
    "a folder": (lambda folder: FreezeSchedule.from_file(folder), "Is a directory"),
    # ---- records in checkpoints
    "record cut short": (record('{"format": 1, "st'), "is damaged: it is not JSON"),
    "record empty": (record(""), "is damaged: it is not JSON"),
    "record without keys": (record('{"format": 1, "step": 3}'), "is damaged: KeyError('schedule')"),
    "record of something else": (record('{"global_step": 3}'), "was not written by FreezeSchedule"),
    "record of the future": (record('{"format": 99}'), "has the format 99, this version reads 1"),
    "record in another encoding": (record(b"\xff\xfe"), "is damaged: 'utf-8' codec"),
    "record is a list": (record(json.dumps([1])), "was not written by FreezeSchedule"),
    # ---- kinds of parallel training
    "sharding stage2": (
        lambda: _refuse_unsupported(SimpleNamespace(sharding=["stage2"])),
        "does not work with sharding=stage2: it notes what trains when it is set up",
    ),
    "sharding stage3": (
        lambda: _refuse_unsupported(SimpleNamespace(sharding=["stage3"])),
        "sharding=stage3",
    ),
    "sharding stage1 of the second kind": (
        lambda: _refuse_unsupported(
            SimpleNamespace(sharding=["stage1"], sharding_parallel_config="split_param")
        ),
        "sharding with split_param: it flattens what trains",
    ),
    "pipeline parallel": (
        lambda: _refuse_unsupported(SimpleNamespace(pipeline_parallel_degree=2)),
        "pipeline_parallel_degree=2: not shown to be right with a schedule",
    ),
    "tensor parallel of PaddleFormers": (
        lambda: _refuse_unsupported(SimpleNamespace(tensor_model_parallel_size=4)),
        "tensor_model_parallel_size=4: not shown",
    ),
    "tensor parallel with options": (
        lambda: _refuse_unsupported(
            SimpleNamespace(tensor_parallel_degree=2, tensor_parallel_config="sync_grad")
        ),
        "tensor_parallel_config='sync_grad': not shown",
    ),
    "sequence parallel": (
        lambda: _refuse_unsupported(
            SimpleNamespace(tensor_parallel_degree=2, sequence_parallel=True)
        ),
        "sequence_parallel=True: not shown",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_wrong_input_is_answered_with_what_is_wrong_and_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = ROWS[name]
    takes_folder = getattr(call, "__code__", None) is not None and call.__code__.co_argcount == 1
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        call(tmp_path) if takes_folder else call()
    text = str(caught.value)
    assert message in text
    assert not re.search(r"\b_[A-Z]", text), "a name of our own insides"
    if not isinstance(caught.value, OSError):
        last = traceback.extract_tb(caught.tb)[-1].filename
        assert Path(paddle_freeze_callback.__file__).parent in Path(last).parents, last


def test_the_table_is_as_long_as_promised():
    assert len(ROWS) >= 60
