"""What the schedule did not freeze is its owner's: teachers, and what no selector names."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from networks import Images, model_for, moved, values
from paddle import nn
from trainers import InOrder, TrainerCallback, trainer_for

from paddle_freeze_callback import FreezeSchedule, OnPlateau, freeze
from paddle_freeze_callback.session.alone import twins
from paddle_freeze_callback.stages.partition import Survey
from paddle_freeze_callback.stages.weights import weights


def encoder() -> nn.Layer:
    block = [nn.Conv2D(1, 4, 3, padding=1), nn.BatchNorm2D(4), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*block, nn.AdaptiveAvgPool2D(1), nn.Flatten())


class Distilled(nn.Layer):
    """A student with a head, and a frozen teacher that somebody else moves."""

    def __init__(self, teacher: str = "teacher") -> None:
        super().__init__()
        self.student, self.name = encoder(), teacher
        setattr(self, teacher, encoder())
        self.head = nn.Linear(4, 2)
        for tensor in getattr(self, teacher).parameters():
            tensor.stop_gradient = True

    def forward(self, input_ids):
        with paddle.no_grad():
            target = getattr(self, self.name)(input_ids)
        return self.head(self.student(input_ids)) + target[:, :2]


def averaged(network: Distilled) -> None:
    """The teacher follows the student."""
    for slow, fast in zip(weights(getattr(network, network.name)), weights(network.student)):
        slow.tensor.set_value(0.5 * slow.tensor + 0.5 * (fast.tensor + 0.01))


class Follows(paddle.callbacks.Callback):
    def on_train_batch_end(self, step, logs=None):
        averaged(self.model.network)


class FollowsInTrainer(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **context):
        averaged(model)


class Pixels(Images):
    def __getitem__(self, index: int):
        image, label = super().__getitem__(index)
        return {"input_ids": image, "labels": label}


def by_hand(network, schedule, folder, moves=averaged):
    optimizer = paddle.optimizer.Adam(0.01, parameters=network.parameters())
    with schedule.attach(network, optimizer, epochs=4, steps_per_epoch=6, say=LINES.append) as run:
        for step in range(24):
            network.train()
            images = np.stack([Images()[4 * (step % 6) + index][0] for index in range(4)])
            network(paddle.to_tensor(images)).square().mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            moves(network)
            run.step()


def in_fit(network, schedule, folder):
    data = {"batch_size": 4, "epochs": 4, "verbose": 0}
    model_for(network).fit(Images(), callbacks=[schedule, Follows()], **data)


class PlainTrainer(InOrder):
    def compute_loss(self, model, inputs, return_outputs=False, **options):
        return nn.functional.cross_entropy(model(inputs["input_ids"]), inputs["labels"])


def in_trainer(network, schedule, folder):
    callbacks = [schedule, FollowsInTrainer()]
    trainer_for(network, folder, callbacks, data=Pixels(), kind=PlainTrainer).train()


LINES: list[str] = []
LOOPS = pytest.mark.parametrize("loop", [by_hand, in_fit, in_trainer])
MANNERS = {"every": "6 steps", "verify": True, "on_conflict": "error", "frozen_dropout": "eval"}


@LOOPS
@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        ("teacher", {}),
        ("teacher", {"stages": ["head", "student"]}),
        ("encoder2", {"untouched": "encoder2"}),
        ("encoder2", {"stages": ["head", "student"]}),
        ("encoder2", {"stages": ["head", "*"], "untouched": ["encoder2"]}),
    ],
)
def test_a_teacher_moves_by_hand_and_keeps_its_training_mode(loop, teacher, options, tmp_path):
    paddle.seed(3)
    network = Distilled(teacher)
    before = values(network)
    dropped = []
    getattr(network, teacher)[3].register_forward_post_hook(
        lambda layer, inputs, output: dropped.append(layer.training)
    )
    loop(network, FreezeSchedule(**MANNERS, **options), tmp_path)
    changed = moved(before, values(network))
    for part in ("0.weight", "1.weight", "1._mean", "1._variance"):
        assert f"{teacher}.{part}" in changed
    assert dropped == [True] * 24
    assert all(tensor.stop_gradient for tensor in getattr(network, teacher).parameters())


@LOOPS
def test_a_frozen_part_inside_the_stages_is_held_still_all_the_time(loop, tmp_path):
    """It is no twin: it lies in the way, or differs from what trains."""
    paddle.seed(3)
    network = Distilled("student_2")
    before = values(network)
    modes = []
    network.student_2[3].register_forward_post_hook(
        lambda layer, inputs, output: modes.append(layer.training)
    )
    schedule = FreezeSchedule(every="6 steps", frozen_dropout="eval", stages=["head", "*"])
    loop(network, schedule, tmp_path)
    assert not [n for n in moved(before, values(network)) if n.endswith("_mean") and "_2" in n]
    assert modes == [False] * 24


@pytest.mark.parametrize(
    "options", [{}, {"stages": ["head", "*"]}, {"stages": ["head", "student"]}, MANNERS]
)
def test_a_frozen_twin_is_named_in_a_line_and_not_among_what_the_schedule_freezes(options):
    """It may be an ordinary branch that the user froze, whose statistics then move."""
    LINES.clear()
    schedule = FreezeSchedule(**options)
    by_hand(Distilled(), schedule, None)
    assert (
        "left alone, as found: teacher, the frozen twin of student; its statistics and training "
        "mode are yours. freeze(network, 'teacher') holds them still"
    ) in LINES
    assert len([line for line in LINES if "left alone" in line]) == 1
    assert not [name for name in schedule.history[0].frozen if name.startswith("teacher")]


def test_a_preview_names_a_frozen_twin():
    notes = FreezeSchedule().preview(Distilled(), epochs=2, steps_per_epoch=6).notes
    assert [note for note in notes if "teacher, the frozen twin of student" in note]


def test_a_twin_that_the_user_froze_with_freeze_is_held_still():
    network = Distilled()
    freeze(network, "teacher")
    before = values(network)
    by_hand(network, FreezeSchedule(every="6 steps"), None, moves=lambda network: None)
    assert not [name for name in moved(before, values(network)) if name.startswith("teacher")]


def test_a_stage_that_is_left_alone_is_named_in_a_line():
    LINES.clear()
    network = Distilled("student_2")
    by_hand(network, FreezeSchedule(untouched="student_2"), None)
    assert "left alone, as found: student_2" in LINES


def test_untouched_weights_that_train_go_on_training():
    network = Distilled()
    for weight in weights(network.teacher):
        weight.tensor.stop_gradient = False
    before = values(network)
    schedule = FreezeSchedule(strategy="head_only", untouched="student.1")
    (planned,) = schedule.preview(network, epochs=4, steps_per_epoch=6).phases
    by_hand(network, schedule, None)
    assert schedule.history[0].trainable == planned.trainable == 2 * 4 + 10
    changed = moved(before, values(network))
    assert {"head.weight"} <= changed
    assert "student.0.weight" not in changed
    assert not network.student[1].weight.stop_gradient


def test_features_of_a_frozen_backbone_are_kept_beside_a_teacher_that_moves():
    class Beside(nn.Layer):
        def __init__(self):
            super().__init__()
            self.student = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.teacher = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
            self.head = nn.Linear(4, 2)
            for tensor in self.teacher.parameters():
                tensor.stop_gradient = True

        def forward(self, x):
            return self.head(self.student(x)) + self.teacher(x)[:, :2].detach()

    results = []
    for options in ({}, {"cache": "memory", "cache_check_every": 3}):
        paddle.seed(1)
        network = Beside()
        optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
        batch = paddle.rand([4, 4])
        schedule = FreezeSchedule(strategy="head_only", **options)
        with schedule.attach(network, optimizer, epochs=8, steps_per_epoch=1) as run:
            for _ in range(8):
                loss = network(batch).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                averaged_by_hand = network.teacher[0].weight
                averaged_by_hand.set_value(averaged_by_hand + 0.1)
                run.step()
                results.append(loss.numpy().tobytes())
    assert results[:8] == results[8:]
    assert run.cache.hits > 0
    assert run.cache.off == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"untouched": "techer"}, r"untouched: selector 'techer' matches no parameter .*teacher"),
        ({"untouched": "*"}, "untouched= takes the whole network"),
        (
            {"untouched": "student", "stages": ["head", "student"]},
            "untouched= and the stage 'student' contradict each other",
        ),
    ],
)
def test_an_untouched_that_does_not_fit_is_refused(options, message):
    network = Distilled()
    with pytest.raises(ValueError, match=message):
        FreezeSchedule(**options).preview(network, epochs=2, steps_per_epoch=6)


@pytest.mark.parametrize("wrong", [True, 3, [], {"a": 1}])
def test_an_untouched_that_is_no_selector_is_refused(wrong):
    with pytest.raises(TypeError, match=r"untouched=.* is no selector"):
        FreezeSchedule(untouched=wrong)


def two(kind=lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), names=("a", "b"), frozen="b"):
    return sorted(twins_of(nn.LayerDict({name: kind() for name in names}), frozen))


def encoder_of_two():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def twins_of(network, frozen):
    for name, tensor in network.named_parameters():
        tensor.stop_gradient = name.startswith(frozen)
    every = Survey(network).weights
    return twins(every, [w.name for w in every if w.trains])


def test_a_twin_is_a_frozen_part_of_several_layers_beside_its_like_that_trains():
    assert two() == ["b"]
    assert two(names=("online", "target", "target_slow"), frozen="target") == [
        "target",
        "target_slow",
    ]
    assert two(names=("layer1", "layer2"), frozen="layer2") == []
    assert two(kind=lambda: nn.Linear(2, 2)) == []
    assert two(frozen=("a", "b")) == []
    assert two(frozen="b.0") == []
    predictor = nn.LayerDict({"net": encoder_of_two(), "predictor": encoder_of_two()})
    both = nn.LayerDict({"online": predictor, "target": nn.LayerDict({"net": encoder_of_two()})})
    assert twins_of(both, "target") == {"target": "online"}
    assert twins_of(nn.LayerList([both]), "0.target") == {"0.target": "0.online"}
    assert twins_of(both, "online") == {}


def test_statistics_that_are_the_users_go_on_moving_beside_a_cache():
    """The norm's output happens not to depend on them: each sample is normalized before it."""
    results = []
    for options in ({}, {"cache": "memory"}):
        paddle.seed(1)
        network = nn.Sequential(
            ("norms", nn.Sequential(nn.InstanceNorm2D(4), nn.BatchNorm2D(4))),
            ("flat", nn.Flatten()),
            ("head", nn.Linear(36, 2)),
        )
        for tensor in network.norms[1].parameters():
            tensor.stop_gradient = True
        optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
        batch = paddle.rand([4, 4, 3, 3])
        schedule = FreezeSchedule(unfreeze_at={0: "head"}, **options)
        with schedule.attach(network, optimizer, epochs=4, steps_per_epoch=1) as run:
            for _ in range(4):
                network(batch).square().mean().backward()
                optimizer.step()
                optimizer.clear_grad()
                run.step()
        results.append(values(network))
    assert not moved(*results)
    assert run.cache.off == ("norms moves its _mean in each forward",)


def test_the_best_weights_of_a_plateau_bring_nothing_back_into_what_is_left_alone():
    network = Distilled()
    optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
    schedule = FreezeSchedule(
        strategy=OnPlateau("acc", patience=1, restore_best=True),
        stages=["head", "student"],
        untouched="teacher",
    )
    images = paddle.rand([4, 1, 4, 4])
    with schedule.attach(network, optimizer, epochs=4, steps_per_epoch=1) as run:
        for epoch in range(4):
            network(images).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            for tensor in network.teacher.state_dict().values():
                tensor.set_value(paddle.full(tensor.shape, float(epoch)))
            run.step()
            run.evaluated({"acc": 0.9 - 0.1 * epoch})
            found = {float(one.max()) for one in network.teacher.state_dict().values()}
            assert found == {float(epoch)}
    assert len(run.history) == 2  # it opened the student, and loaded the best head before


@pytest.mark.parametrize(
    "unfreeze_at", [{0: "*", 1: {"freeze": "2"}}, {0: {"unfreeze": "*", "freeze": "2"}, 1: "*"}]
)
@pytest.mark.filterwarnings("ignore:unfreeze_at")
def test_a_name_under_freeze_opens_nothing_that_the_user_froze(unfreeze_at):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for tensor in network[2].parameters():
        tensor.stop_gradient = True
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    before = values(network)
    with FreezeSchedule(unfreeze_at=unfreeze_at).attach(
        network, optimizer, epochs=2, steps_per_epoch=1
    ) as run:
        for _ in range(2):
            network(paddle.rand([3, 2])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            run.step()
    assert moved(before, values(network)) == {"0.weight", "0.bias", "1.weight", "1.bias"}
