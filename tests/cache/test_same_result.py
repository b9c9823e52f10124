"""A frozen prefix is computed once per sample, and every number is the same."""

from __future__ import annotations

import paddle
import pytest
from cached import Losses, Three, Twice, both, random_batches
from networks import Images, conv_net, model_for, moved, values
from paddle import nn
from trainers import Tokens, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, HeadOnly


def bert(**options):
    return tiny_bert(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **options)


def ernie():
    from paddlenlp.transformers import ErnieConfig, ErnieForSequenceClassification

    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 16}  # fmt: skip
    return ErnieForSequenceClassification(ErnieConfig(**sizes))


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
@pytest.mark.parametrize(("build", "name"), [(bert, "bert"), (ernie, "ernie")])
def test_an_encoder_has_bitwise_the_same_losses(build, name, frozen):
    """Frozen: the embeddings and so many of three layers; with three, the whole backbone."""
    above = [f"{name}.encoder.layers.{i}" for i in range(frozen, 3)]
    plan = {0: ["classifier", *([] if frozen == 3 else [f"{name}.pooler"]), *above]}
    statistics, _ = both(build, random_batches([8], whole=50), plan)
    # the four batches of the first epoch show how the network runs, and what can be kept
    assert statistics.hits == 16 + 16
    kept = {0: f"{name}.embeddings", 3: name}.get(frozen, f"{name}.encoder.layers.{frozen - 1}")
    assert statistics.boundary == (kept,)
    each = {3: 16 * 4}.get(frozen, 8 * 16 * 4)  # of the whole backbone only what is pooled
    assert statistics.nbytes == 16 * each


RESNET = ["fc", "layer4", "layer3", "layer2", "layer1"]


@pytest.mark.parametrize("opened", range(1, 6))
def test_resnet18_has_bitwise_the_same_losses_at_each_stage_boundary(opened):
    def build():
        return paddle.vision.models.resnet18(num_classes=3)

    statistics, _ = both(build, random_batches([3, 32, 32], 3, 2), {0: RESNET[:opened]})
    kept = ["avgpool", "layer3", "layer2", "layer1", "maxpool"][opened - 1]
    assert statistics.boundary == (kept,)
    assert statistics.hits > 0


@pytest.mark.parametrize("last", [18, 14, 9, 4, 1])
def test_mobilenet_v2_has_bitwise_the_same_losses_at_stage_boundaries(last):
    def build():
        return paddle.vision.models.mobilenet_v2(num_classes=3)

    plan = {0: ["classifier", *(f"features.{i}" for i in range(last, 19))]}
    statistics, _ = both(build, random_batches([3, 32, 32], 2, 2), plan)
    assert statistics.boundary == (f"features.{last - 1}",)
    assert statistics.hits > 0


class Skip(Three):
    """The open layer looks over the boundary."""

    def forward(self, x):
        inner = self.a(x)
        return self.c(self.b(inner)) + inner


class InputSkip(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x))) + x


class Split(Three):
    """Gives a tuple, of which the head reads one item."""

    class Pair(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return {"wide": x.tile([1, 50]), "states": (self.inner(x), None)}

    def __init__(self) -> None:
        super().__init__()
        self.b = Split.Pair()

    def forward(self, x):
        return self.c(self.b(self.a(x))["states"][0])


@pytest.mark.parametrize(
    ("build", "inputs", "boundary", "each"),
    [
        (Three, 1, ("b",), 24),
        (Skip, 1, ("a", "b"), 48),
        (InputSkip, 1, ("b",), 24),
        (Twice, 2, ("b",), 24),
        (Split, 1, ("b",), 24),
    ],
)
def test_what_is_kept_is_what_the_rest_looks_at(build, inputs, boundary, each):
    batches = [tuple(one * (i + 1) for i in range(inputs)) for one in random_batches([6])]
    statistics, lines = both(build, batches, {0: "c"})
    assert statistics.boundary == boundary
    assert statistics.nbytes == 16 * each
    assert statistics.hits == 32
    where = ", ".join(boundary)
    expected = f"cache on: keeps the output of {where}, {each} bytes a sample; 0 samples are there"
    assert expected in lines


def test_through_transitions_features_are_kept_or_made_anew():
    """A prefix that shrinks has another boundary; one that comes back has other weights."""
    plan = {
        0: "fc",
        "12 steps": "block3",
        "20 steps": {"freeze": "block3"},
        "28 steps": {"unfreeze": ["block3", "block2"]},
    }
    statistics, lines = both(conv_net, random_batches([1, 6, 6]), plan, epochs=9)
    on = [line.split(",")[0] for line in lines if line.startswith("cache on")]
    assert on == [
        "cache on: keeps the output of block3",
        "cache on: keeps the output of block2",
        "cache on: keeps the output of block3",
        "cache on: keeps the output of block1",
    ]
    assert statistics.hits > 60


def test_fit_has_bitwise_the_same_losses_and_evaluates_from_the_cache_too():
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        losses = Losses()
        schedule = FreezeSchedule(strategy=HeadOnly(), verify=True, **options)
        model = model_for(conv_net(), metrics=paddle.metric.Accuracy())
        model.fit(
            Images(), Images(8), batch_size=4, epochs=4, shuffle=False, verbose=0,
            callbacks=[schedule, losses],
        )  # fmt: skip
        runs.append((losses.all, values(model.network)))
    assert runs[0][0] == runs[1][0]
    assert not moved(runs[0][1], runs[1][1])
    # 24 samples in 4 epochs and 8 in 4 evaluations: computed once each
    assert schedule.run.cache.hits + schedule.run.cache.misses == 4 * 24 + 4 * 8
    assert schedule.run.cache.rows == 24 + 8
    assert schedule.run.cache.misses == 24 + 8
    assert schedule.run.numbers["cache_hit_rate"] == schedule.run.cache.hit_rate > 0.7


def test_a_trainer_has_bitwise_the_same_weights_and_evaluates_from_the_cache_too(tmp_path):
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        schedule = FreezeSchedule(every="12 steps", stages=2, verify=True, **options)
        trainer = trainer_for(
            tiny_bert(), tmp_path, [schedule], num_train_epochs=5, evaluation_strategy="epoch"
        )
        trainer.eval_dataset = Tokens(8)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, values(trainer.model)))
    assert runs[0][0] == runs[1][0]
    assert not moved(runs[0][1], runs[1][1])
    assert schedule.run.cache.hits > 50
