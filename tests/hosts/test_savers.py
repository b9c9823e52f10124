"""Who else reads ``stop_gradient``: whatever is saved holds all that trained or will."""

from __future__ import annotations

import copy
import gc
import inspect
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from session.test_resume import program
from trainers import LIBRARY, Tokens, trainer_for

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

import adapters
from adapters import BLOCKS, FORMATS, KINDS, WORDS

from paddle_freeze_callback import FreezeSchedule, HeadOnly


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return program("adapters", tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_saved_whole_resumed_bitwise_and_put_back_to_their_best(runs, kind, form):
    """Each checkpoint, a resume in another process, the best model, the model after training."""
    found = runs[kind][form]
    if isinstance(found, str):
        pytest.skip(found)
    assert found == {}


def lora(**options):
    return adapters.lora(None, 5, **options)


ONE_THEN_TWO = {0: BLOCKS[0], "3 steps": BLOCKS[1]}
OPENS_WORDS = {0: ["model.classifier", BLOCKS[0]], "2 steps": {"unfreeze": WORDS}}
WORDS_WEIGHT = f"{WORDS.removeprefix('model.')}.weight"


def attached(network, schedule):
    optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
    return schedule.attach(network, optimizer, total_steps=4), optimizer


def one_step(network, optimizer, run):
    network(paddle.to_tensor(Tokens()[0]["input_ids"])[None]).sum().backward()
    optimizer.step()
    optimizer.clear_grad()
    run.step()


def adapter_names(network) -> set[str]:
    return {name.removeprefix("model.") for name in adapters.adapter_names(network)}


def names_read(network) -> set[str]:
    """What it says that trains, its flags as they were after that."""
    before = adapters.flags(network)
    names = set(network.get_trainable_state_dict())
    assert adapters.flags(network) == before
    return names


def test_a_schedule_on_the_model_inside_an_adapter_model_is_warned_of():
    inside = lora().model
    with pytest.warns(
        UserWarning, match=r"LoRALinear, and the model .* Give the schedule the whole LoRAModel"
    ):
        run, _ = attached(inside, FreezeSchedule(unfreeze_at={0: "*"}))
    run.close()


def test_flags_are_put_back_after_each_save_and_the_method_at_the_end(tmp_path):
    network = lora()
    run, optimizer = attached(
        network, FreezeSchedule(unfreeze_at={0: BLOCKS[0], "3 steps": BLOCKS[1]})
    )
    with run:
        one_step(network, optimizer, run)
        trains = [name for name, frozen in adapters.flags(network) if not frozen]
        assert len(trains) == 4
        assert names_read(network) == adapter_names(network)
        network.save_pretrained(str(tmp_path))
        assert set(adapters.saved(tmp_path)) == adapter_names(network)
        assert [name for name, frozen in adapters.flags(network) if not frozen] == trains
    assert "get_trainable_state_dict" not in vars(network)


def test_flags_are_put_back_when_saving_fails(monkeypatch):
    network = lora()
    run, _ = attached(network, FreezeSchedule(unfreeze_at={0: BLOCKS[0], "2 steps": BLOCKS[1]}))
    with run:
        before = adapters.flags(network)

        def fails():
            raise OSError("the disk is full")

        monkeypatch.setattr(network.model, "state_dict", fails)
        with pytest.raises(OSError, match="the disk is full"):
            network.get_trainable_state_dict()
        assert adapters.flags(network) == before


def test_a_deep_copy_saves_its_own_weights():
    network = lora()
    run, optimizer = attached(
        network, FreezeSchedule(unfreeze_at={0: BLOCKS[0], "3 steps": BLOCKS[1]})
    )
    with run:
        twin = copy.deepcopy(network)
        one_step(network, optimizer, run)
        ours, theirs = network.get_trainable_state_dict(), twin.get_trainable_state_dict()
        assert set(ours) == set(theirs) == adapter_names(network)
        moved = [n for n in ours if ours[n].numpy().tobytes() != theirs[n].numpy().tobytes()]
        assert moved
        assert all("layers.2" in name for name in moved)


def test_a_weight_opened_by_name_stays_part_of_the_adapter():
    network = lora()
    run, optimizer = attached(network, FreezeSchedule(unfreeze_at=OPENS_WORDS))
    wanted = adapter_names(network) | {WORDS_WEIGHT, "classifier.weight", "classifier.bias"}
    with run:
        assert names_read(network) == wanted  # before it opens
        for _ in range(3):
            one_step(network, optimizer, run)
    assert dict(adapters.flags(network))[f"model.{WORDS_WEIGHT}"]  # frozen, as found
    assert names_read(network) == wanted
    escaped = {name.replace(".", r"\.") for name in wanted - adapter_names(network)}
    assert set(network.lora_config.trainable_modules) == escaped
    with attached(network, FreezeSchedule(unfreeze_at=OPENS_WORDS))[0]:  # said once
        assert set(network.lora_config.trainable_modules) == escaped


def test_a_base_weight_beside_adapters_opens_if_it_is_named_in_full_only():
    """By any other selector over both, the adapters alone are meant."""
    name = "encoder.layers.2.linear1.weight"
    for selector, moves in ((f"model.bert.{name}", True), ("**.layers.2.linear1", False)):
        network = lora()
        before = adapters.state(network)[f"model.bert.{name}"]
        at = {0: ["model.classifier"], "1 step": selector}
        run, optimizer = attached(network, FreezeSchedule(unfreeze_at=at, verify=True))
        with run:
            for _ in range(3):
                one_step(network, optimizer, run)
        assert (adapters.state(network)[f"model.bert.{name}"] != before).any() == moves
        assert (f"bert.{name}" in names_read(network)) == moves


def test_a_user_s_own_trainable_modules_are_kept():
    network = lora(trainable_modules=["classifier.*"])
    with attached(network, FreezeSchedule(unfreeze_at={0: "model.classifier"}))[0]:
        assert network.lora_config.trainable_modules == ["classifier.*"]


def test_after_restore_false_the_adapter_is_whole_all_the_same():
    network = lora()
    schedule = FreezeSchedule(unfreeze_at=ONE_THEN_TWO, restore=False)
    with attached(network, schedule)[0]:
        pass
    assert len([name for name, frozen in adapters.flags(network) if not frozen]) == 4
    assert names_read(network) == adapter_names(network)


def test_a_run_that_is_thrown_away_leaves_the_model_as_found():
    network = lora()
    before = adapters.flags(network)
    run, _ = attached(network, FreezeSchedule(unfreeze_at=ONE_THEN_TWO))
    del run
    gc.collect()
    assert adapters.flags(network) == before
    assert "get_trainable_state_dict" not in vars(network)
    assert names_read(network) == adapter_names(network)


def test_a_save_from_a_callback_of_fit_is_whole(tmp_path):
    network = lora()
    integers = [paddle.static.InputSpec([None, 8], "int64", "input_ids")]
    model = paddle.Model(network, integers, [paddle.static.InputSpec([None, 1], "int64", "label")])
    model.prepare(
        paddle.optimizer.SGD(0.1, parameters=network.parameters()), paddle.nn.CrossEntropyLoss()
    )

    class Saves(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            network.save_pretrained(str(tmp_path))

    class Pairs(Tokens):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            return row["input_ids"], row["labels"].reshape(1)

    other = {"freeze": BLOCKS[0], "unfreeze": BLOCKS[1]}
    schedule = FreezeSchedule(unfreeze_at={0: BLOCKS[0], 1: other})
    model.fit(Pairs(8), batch_size=4, epochs=2, verbose=0, callbacks=[schedule, Saves()])
    held = adapters.saved(tmp_path)
    assert set(held) == adapter_names(network)
    for name, array in held.items():
        np.testing.assert_array_equal(array, network.state_dict()[f"model.{name}"].numpy())


def test_weights_opened_under_a_prefix_are_warned_of():
    if adapters.lacking("prefix", "plain"):
        pytest.skip("no prefix tuning here")
    network = adapters.prefix(None, 5)
    schedule = FreezeSchedule(unfreeze_at={0: "prefix_encoder", "1 step": "model.lm_head"})
    alone = r"saves its prefix alone.*: model\.lm_head\.weight"
    with pytest.warns(UserWarning, match=alone) as record:
        attached(network, schedule)[0].close()
    assert not [one for one in record if "LoRAModel" in str(one.message)]


def test_what_does_not_fit_is_refused_when_training_begins_not_before(tmp_path):
    """The Trainer asks the schedule before training what a checkpoint would hold."""
    schedule = FreezeSchedule(stages=["model.nothing"])
    trainer = trainer_for(lora(), tmp_path, [schedule], kind=adapters.AllWeights)
    with pytest.raises(ValueError, match=r"model\.nothing"):
        trainer.train()


def test_a_trainer_that_gives_its_optimizer_what_trains_wants_the_flags_set_first(tmp_path):
    """PaddleFormers' does; a weight that is found open is frozen until its moment."""
    if LIBRARY != "paddleformers":
        pytest.skip("PaddleNLP's Trainer gives its optimizer all weights")
    flags = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 1, "logging_steps": 100}
    schedule = FreezeSchedule(unfreeze_at=OPENS_WORDS, verify=True)
    with pytest.raises(ValueError, match="was not given 3 parameters"):
        trainer_for(lora(), tmp_path, [schedule], **flags).train()
    network = lora(trainable_modules=["classifier.*", WORDS_WEIGHT])
    trainer_for(network, tmp_path, [schedule], **flags).train()
    assert [(c.step, c.opened) for c in schedule.history][1] == (2, (WORDS,))
    for step in (1, 6):
        held = set(adapters.saved(tmp_path / f"checkpoint-{step}"))
        assert held == adapter_names(network) | {
            WORDS_WEIGHT,
            "classifier.weight",
            "classifier.bias",
        }


def test_compress_calls_no_callbacks():
    """So docs/conditions.md says; if a release does, a schedule may work there."""
    compress = pytest.importorskip("paddlenlp.trainer.trainer_compress")
    assert "callback" not in inspect.getsource(compress)


def test_a_network_without_adapters_is_left_alone(tmp_path):
    network = adapters.base(5)
    trainer_for(network, tmp_path, [FreezeSchedule(strategy=HeadOnly())])
    assert "get_trainable_state_dict" not in vars(network)
