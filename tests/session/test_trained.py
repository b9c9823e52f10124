"""``trained_state_dict``, ``save_trained`` and ``load_trained``: what was trained, and no more."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from pathlib import Path

import paddle
import pytest
from networks import Images, TwoLayers, conv_net, fit, model_for, moved, values
from paddle import nn
from safetensors import safe_open
from trainers import tiny_bert, trainer_for, trainer_library

sys.path.insert(0, str(Path(__file__).parent.parent / "programs"))

import adapters

from paddle_freeze_callback import Cyclic, FreezeSchedule, load_trained, unfreeze
from paddle_freeze_callback.bits import digest
from paddle_freeze_callback.session.record import FILE

TrainingArguments = trainer_library.TrainingArguments
HEAD = {"fc.weight", "fc.bias"}
TOP = {f"block3.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
TOP_STATISTICS = {"block3.1._mean", "block3.1._variance"}
STATISTICS = {f"block{i}.1.{name}" for i in (1, 2, 3) for name in ("_mean", "_variance")}
ONE_THEN_OTHER = {0: "fc", "6 steps": {"unfreeze": "block3", "freeze": "fc"}}


def adam(network, **options):
    return paddle.optimizer.AdamW(0.01, parameters=network.parameters(), **options)


def steps(network, optimizer, count, run=None):
    network.train()
    for images, labels in paddle.io.DataLoader(Images(4 * count), batch_size=4):
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.clear_grad()
        if run is not None:
            run.step()


def by_fit(network, schedule):
    fit(network, schedule, epochs=2)


def attached(network, schedule):
    optimizer = adam(network)
    with schedule.attach(network, optimizer, total_steps=12) as run:
        steps(network, optimizer, 12, run)


def followed(network, schedule):
    optimizer = adam(network)
    with schedule.follow(network, optimizer, total_steps=12):
        steps(network, optimizer, 12)


def wrapped(network, schedule):
    """Its names begin with another word, in the file they do not."""
    moments = {0: "_layers.fc", "6 steps": {"unfreeze": "_layers.block3", "freeze": "_layers.fc"}}
    options = {**schedule._options.given(), "unfreeze_at": moments}
    attached(paddle.DataParallel(network), FreezeSchedule(**options))


def other_head(network):
    """The base, as a fresh process has it: the head is drawn anew."""
    paddle.seed(99)
    for tensor in network.fc.parameters():
        tensor.set_value(paddle.rand(tensor.shape))
    return network


@pytest.mark.parametrize("loop", [by_fit, attached, followed, wrapped], ids=lambda f: f.__name__)
def test_what_was_open_at_any_time_makes_a_fresh_base_the_trained_network(tmp_path, loop):
    network, file = conv_net(), tmp_path / "new" / "trained.safetensors"
    loop(network, FreezeSchedule(unfreeze_at=ONE_THEN_OTHER, save_trained=file))
    base = other_head(conv_net())
    flags = [tensor.stop_gradient for tensor in base.parameters()]
    assert set(load_trained(base, file)) == HEAD | TOP | TOP_STATISTICS
    assert moved(values(network), values(base)) == set()
    assert [tensor.stop_gradient for tensor in base.parameters()] == flags


def test_a_trainer_writes_it_with_the_best_weights_that_it_loads_at_the_end(tmp_path):
    network, file = tiny_bert(), tmp_path / "trained.safetensors"
    names = {one.name for one in dataclasses.fields(TrainingArguments)}
    when = next(one for one in ("evaluation_strategy", "eval_strategy") if one in names)
    trainer = trainer_for(
        network, tmp_path, [FreezeSchedule(strategy="head_only", save_trained=file)],
        num_train_epochs=3, save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="eval_loss", learning_rate=0.5, **{when: "epoch"},
    )  # fmt: skip
    trainer.eval_dataset = trainer.train_dataset
    trainer.train()
    assert trainer.state.best_model_checkpoint
    names = load_trained(base := tiny_bert(), file)
    assert all(name.startswith("classifier") for name in names)
    assert moved(values(network), values(base)) == set()


def test_a_flag_of_a_trainer_names_the_file(tmp_path):
    network, file = tiny_bert(), tmp_path / "trained.safetensors"
    trainer = trainer_for(
        network, tmp_path, [FreezeSchedule()], num_train_epochs=2, freeze_save_trained=str(file)
    )
    trainer.train()
    load_trained(base := tiny_bert(), file)
    assert moved(values(network), values(base)) == set()


@pytest.mark.parametrize(
    ("options", "statistics"),
    [
        ({}, set()),
        ({"frozen_norm": "train"}, STATISTICS),
        ({"train_norm": "always"}, STATISTICS),
    ],
    ids=["held", "frozen_norm", "train_norm"],
)
def test_the_statistics_that_moved_are_in_it_and_no_others(tmp_path, options, statistics):
    network = conv_net()
    schedule = FreezeSchedule(unfreeze_at={0: "fc"}, save_trained=tmp_path / "a.safetensors")
    schedule = FreezeSchedule(**schedule._options.given(), **options)
    by_fit(network, schedule)
    found = set(schedule.run.trained_state_dict())
    assert {name for name in found if "._" in name} == statistics
    load_trained(base := conv_net(), tmp_path / "a.safetensors")
    assert moved(values(network), values(base)) == set()


class Teacher(TwoLayers):
    """A network with a part that the user moves by hand, and a counter."""

    def __init__(self):
        super().__init__()
        self.ema = nn.Linear(4, 8)
        self.register_buffer("seen", paddle.zeros([1], "int64"))
        self.register_buffer("scratch", paddle.zeros([1]), persistable=False)

    def forward(self, x):
        self.seen += 1
        self.scratch += 1
        return super().forward(x)


@pytest.mark.parametrize("moves", [False, True])
def test_what_is_left_alone_is_in_it_if_it_moved(moves):
    network = Teacher()
    optimizer = adam(network)
    schedule = FreezeSchedule(unfreeze_at={0: "fc2"}, untouched="ema")
    with schedule.attach(network, optimizer, total_steps=3) as run:
        network(paddle.ones([1, 4])).sum().backward()
        optimizer.step()
        if moves:
            with paddle.no_grad():
                network.ema.weight.set_value(network.ema.weight * 0.9)
        run.step()
    expected = {"fc2.weight", "fc2.bias", "seen"} | ({"ema.weight"} if moves else set())
    assert set(run.trained_state_dict()) == expected


def test_what_somebody_else_opened_and_layers_that_came_later_are_in_it():
    network = conv_net()
    optimizer = adam(network)
    schedule = FreezeSchedule(unfreeze_at={0: "fc"}, on_conflict="warn")
    with schedule.attach(network, optimizer, total_steps=6) as run:
        unfreeze(network, "block2.0")
        network.late = nn.Linear(2, 2)
        with pytest.warns(UserWarning, match="somebody else set stop_gradient"):
            steps(network, optimizer, 3, run)
    late = {"late.weight", "late.bias"}
    assert set(run.trained_state_dict()) == HEAD | {"block2.0.weight", "block2.0.bias"} | late


# ---------------------------------------------------------------- resumed


def resumed_fit(folder, first, second, record=lambda file: None):
    """Two epochs, then two more from the checkpoint, with another object each."""
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    with paddle.utils.unique_name.guard():
        model = model_for(conv_net())
        model.fit(Images(), epochs=2, save_dir=str(folder), callbacks=[first], **options)
    record(folder / f"1.{FILE}")
    with paddle.utils.unique_name.guard():
        model = model_for(conv_net())
        model.load(str(folder / "1"))
        model.fit(Images(), epochs=4, callbacks=[second], **options)
    return model.network


def test_what_was_open_before_a_resume_counts_under_another_schedule_too(tmp_path):
    first = FreezeSchedule(unfreeze_at={0: "fc", 1: {"freeze": "fc", "unfreeze": "block1"}})
    second = FreezeSchedule(
        unfreeze_at={0: "block1", 2: "block3"},
        resume_from=tmp_path / "1",
        save_trained=tmp_path / "a.safetensors",
    )
    network = resumed_fit(tmp_path, first, second)
    assert set(second.run.trained_state_dict()) == HEAD | TOP | TOP_STATISTICS | {
        name for name in values(network) if name.startswith("block1")
    }
    load_trained(base := conv_net(), tmp_path / "a.safetensors")
    assert moved(values(network), values(base)) == set()


def without_names(file):
    content = json.loads(file.read_text())
    del content["trained"]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("known", [{"resume_from": True}, {"resume_at": 2}], ids=str)
def test_a_resume_without_that_record_counts_what_the_schedule_had_open(tmp_path, known):
    """Of an earlier release, or of none: all statistics may have moved, so all are in it."""
    if "resume_from" in known:
        known = {"resume_from": tmp_path / "1"}
    moments = {0: "fc", 2: {"freeze": "fc", "unfreeze": "block3"}}
    second = FreezeSchedule(unfreeze_at=moments, **known)
    resumed_fit(tmp_path, FreezeSchedule(unfreeze_at=moments), second, without_names)
    assert set(second.run.trained_state_dict()) == HEAD | TOP | STATISTICS


def test_a_trainer_that_resumes_counts_what_was_open_before(tmp_path):
    blocks = [f"bert.encoder.layers.{i}" for i in (2, 1, 0)]
    schedule = {"stages": blocks, "strategy": Cyclic(every="2 steps")}
    with paddle.utils.unique_name.guard():
        trainer_for(
            tiny_bert(), tmp_path, [FreezeSchedule(**schedule)], num_train_epochs=1,
            save_strategy="steps", save_steps=3,
        ).train()  # fmt: skip
    file = tmp_path / "trained.safetensors"
    with paddle.utils.unique_name.guard():
        trainer = trainer_for(
            network := tiny_bert(), tmp_path, [FreezeSchedule(**schedule, save_trained=file)],
            max_steps=4,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    names = load_trained(base := tiny_bert(), file)
    assert {name.split(".")[3] for name in names} == {"2", "1"}
    assert moved(values(network), values(base)) == set()


# ---------------------------------------------------------------- kinds of weights


class Tied(nn.Layer):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(6, 4)
        self.body = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 6)
        self.decoder.tied = self.embeddings.weight

    def forward(self, ids):
        return paddle.matmul(self.body(self.embeddings(ids)), self.decoder.tied, transpose_y=True)


def test_a_tied_weight_is_in_it_once_and_both_names_have_it(tmp_path):
    paddle.seed(1)
    network = Tied()
    before = values(network)
    optimizer = adam(network)
    with FreezeSchedule(unfreeze_at={0: "embeddings"}).attach(
        network, optimizer, total_steps=2
    ) as run:
        network(paddle.to_tensor([[1, 2]])).sum().backward()
        optimizer.step()
        run.step()
    assert list(run.trained_state_dict()) == ["embeddings.weight"]
    run.save_trained(tmp_path / "a.safetensors")
    base = Tied()
    base.set_state_dict({name: paddle.to_tensor(value) for name, value in before.items()})
    load_trained(base, tmp_path / "a.safetensors")
    assert base.decoder.tied is base.embeddings.weight
    assert moved(values(network), values(base)) == set()


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_other_kinds_of_numbers_come_back_bit_for_bit_and_safetensors_reads_them(tmp_path, kind):
    def build():
        paddle.seed(4)
        return TwoLayers().to(dtype=kind)

    network, file = build(), tmp_path / "a.safetensors"
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with FreezeSchedule(unfreeze_at={0: "fc2"}).attach(network, optimizer, total_steps=1) as run:
        with paddle.no_grad():  # no kernel trains float16 on a CPU
            network.fc2.weight.set_value(network.fc2.weight * 3)
        run.save_trained(file)
    base = build()
    load_trained(base, file)
    assert moved(values(network), values(base)) == set()
    with safe_open(str(file), framework="np") as opened:
        assert set(opened.keys()) == {"fc2.weight", "fc2.bias"}
        part = opened.get_slice("fc2.weight")
        assert part.get_dtype() == {"bfloat16": "BF16", "float16": "F16", "float64": "F64"}[kind]
        assert part.get_shape() == [8, 2]
        if kind != "bfloat16":  # which NumPy lacks
            ours = network.fc2.weight.numpy()
            assert opened.get_tensor("fc2.weight").tobytes() == ours.tobytes()


def test_of_a_lora_model_the_adapter_and_the_head_are_in_it_also_after_evaluations(tmp_path):
    """They merge to evaluate, which moves the base by rounding."""
    network, file = adapters.lora(None, 7), tmp_path / "a.safetensors"
    optimizer = adam(network)
    schedule = FreezeSchedule(unfreeze_at={0: "model.classifier", "1 step": "**.layers.2"})
    with schedule.attach(network, optimizer, total_steps=4) as run:
        for _ in range(4):
            network(paddle.to_tensor([[3, 47, 49]])).square().sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            run.step()
    merging = [one for one in network.sublayers() if isinstance(getattr(one, "merged", None), bool)]
    for layer in merging:
        with paddle.no_grad():
            layer.weight.set_value(layer.weight * (1 + 1e-6))
    found = set(schedule.run.trained_state_dict())
    head = {"model.classifier.weight", "model.classifier.bias"}
    assert head < found
    assert all("lora_" in name and ".layers.2." in name for name in found - head)
    schedule.run.save_trained(file)
    base = adapters.lora(None, 7)
    assert set(load_trained(base, file)) == found
    assert all(
        (base.state_dict()[name].numpy() == tensor.numpy()).all()
        for name, tensor in schedule.run.trained_state_dict().items()
    )
    with paddle.no_grad():
        other = next(iter(base.model.bert.embeddings.parameters()))
        other.set_value(other + 1)
    with pytest.raises(ValueError, match=r"another base: model\.bert\.embeddings"):
        load_trained(base, file)


# ---------------------------------------------------------------- refused


@pytest.fixture
def saved(tmp_path):
    network, file = conv_net(), tmp_path / "a.safetensors"
    by_fit(network, FreezeSchedule(unfreeze_at={0: "fc"}, save_trained=file))
    return file


def changed(place, add=1.0):
    def build():
        network = conv_net()
        tensor = network.state_dict()[place]
        tensor.set_value(tensor + add)
        return network

    return build


def with_more():
    network = conv_net()
    network.extra = nn.Linear(2, 2)
    return network


def with_less():
    network = conv_net()
    del network.block3
    network.block_3 = nn.Linear(2, 2)
    return network


def with_other_head():
    network = conv_net()
    network.fc = nn.Linear(4, 3)
    return network


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (changed("block1.0.weight"), "was trained on another base: block1.0.weight differs, of 18"),
        (changed("block2.1._mean"), "was trained on another base: block2.1._mean differs"),
        (lambda: conv_net().to(dtype="float64"), "fc.weight is float32 [4, 2] in"),
        (with_more, "this ConvNet has 'extra.weight', which"),
        (with_less, "this ConvNet has no 'block3.0.weight', which"),
        (with_other_head, "fc.weight is float32 [4, 2] in"),
    ],
    ids=["weight", "statistic", "kind", "more", "less", "shape"],
)
def test_another_base_or_network_is_refused_by_name_and_left_alone(saved, build, message):
    network = build()
    before = values(network)
    with pytest.raises(ValueError, match="safetensors") as refused:
        load_trained(network, saved)
    assert message in str(refused.value)
    assert moved(before, values(network)) == set()


def entry(**changes):
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or no file of safetensors"),
        (b"PK\x03\x04 a zip archive, say", "is damaged, or no file of safetensors"),
        (struct.pack("<Q", 2) + b"[]", "is damaged, or no file of safetensors"),
        (entry(data_offsets=[0, 16]), "are no tensor of the shape [2]"),
        (entry(data_offsets=[8, 0]), "are no tensor of the shape [2]"),
        (entry(data_offsets=[4, 12]), "are no tensor of the shape [2]"),
        (entry(shape=[3]), "are no tensor of the shape [3]"),
        (entry(dtype="F4"), "it holds numbers of the type F4"),
        (entry(more=1), "is damaged, or no file of safetensors"),
        (entry(), "was not written by save_trained(): it knows no base"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_a_damaged_or_foreign_file_is_refused(tmp_path, content, message):
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="safetensors") as refused:
        load_trained(TwoLayers(), file)
    assert message in str(refused.value)


def test_every_file_that_breaks_off_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole), 7):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged, or no file of safetensors"):
            load_trained(conv_net(), saved)
    with pytest.raises(FileNotFoundError):
        load_trained(conv_net(), f"{saved}.missing")


def test_a_run_that_fails_writes_nothing(tmp_path):
    network, file = conv_net(), tmp_path / "a.safetensors"
    schedule = FreezeSchedule(save_trained=file)
    with pytest.raises(ZeroDivisionError), schedule.attach(network, adam(network), total_steps=3):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_none_are_refused_and_the_last_line_names_the_file(tmp_path):
    network, file, lines = conv_net(), tmp_path / "t.safetensors", []
    schedule = FreezeSchedule(save_trained=file)
    freezing = schedule.attach(network, adam(network), total_steps=3, say=lines.append)
    with freezing:
        for other in ("", tmp_path / "t.pt"):
            with pytest.raises(ValueError, match=r"must end in \.safetensors, which is its format"):
                freezing.save_trained(other)
        with pytest.raises(TypeError, match="file=None must be the path of a file"):
            freezing.save_trained(None)
    assert lines[-1] == f"step 0: what trained is in {file}"
    with pytest.raises(TypeError, match=r"expected str, bytes or os\.PathLike object, not None"):
        load_trained(network, None)


@pytest.mark.parametrize("loop", [by_fit, attached, followed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("place", ["folder.safetensors", "file/t.safetensors"])
def test_a_path_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, loop, place):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").touch()
    network = conv_net()
    before = values(network)
    with pytest.raises(ValueError, match=r"save_trained: .*(is a folder; name|is no folder)"):
        loop(network, FreezeSchedule(save_trained=tmp_path / place))
    assert moved(before, values(network)) == set()


def test_the_first_of_several_processes_writes(tmp_path, monkeypatch):
    network = conv_net()
    run = FreezeSchedule().attach(network, adam(network), total_steps=9)
    monkeypatch.setattr(paddle.distributed, "get_rank", lambda: 1)
    run.save_trained(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(paddle.distributed, "get_rank", lambda: 0)
    run.save_trained(tmp_path / "a.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_checksums_are_the_same_everywhere():
    """They are kept in files, which other processes and machines read."""
    tensor = paddle.arange(6, dtype="float32").reshape([2, 3])
    assert digest(tensor).hex() == "7a2f86fedc6562d9b94b4080f00c52dc"


# ---------------------------------------------------------------- rows


class Words(nn.Layer):
    def __init__(self, words=8):
        super().__init__()
        paddle.seed(6)
        self.words = nn.Embedding(8, 2)
        if words != 8:
            self.words.weight = paddle.create_parameter([words, 2], "float32")
        self.fc = nn.Linear(2, 2)

    def forward(self, ids):
        return self.fc(self.words(ids))


def a_step(network, **options):
    """Of a schedule; the run."""
    optimizer = adam(network)
    with FreezeSchedule(**options).attach(network, optimizer, total_steps=9) as run:
        network(paddle.arange(8)).square().sum().backward()
        optimizer.step()
        run.step()
    return run


@pytest.fixture
def words(tmp_path):
    network = Words()
    run = a_step(network, unfreeze_at={0: "fc"}, rows={"words": "5:7"})
    assert set(run.trained_state_dict()) == {"fc.weight", "fc.bias", "words.weight[5:7]"}
    run.save_trained(tmp_path / "a.safetensors")
    return network, tmp_path / "a.safetensors"


def test_of_a_table_the_rows_that_train_are_in_it(words):
    network, file = words
    base = Words()
    with paddle.no_grad():
        base.words.weight[5:7] = 3.0  # new tokens, drawn anew
    load_trained(base, file)
    assert moved(values(network), values(base)) == set()


@pytest.mark.parametrize(
    ("count", "row", "message"),
    [
        (8, 2, r"another base: words\.weight\[0:5\] differs"),
        (8, 7, r"another base: words\.weight\[7:8\] differs"),
        (9, None, r"this Words has 'words\.weight\[7:9\]', which .* does not know|has no 'words"),
        (6, None, r"this Words has no 'words\.weight\[7:8\]', which"),
        (5, None, r"this Words has no 'words\.weight\[7:8\]', which"),
    ],
)
def test_a_table_that_is_another_elsewhere_is_refused(words, count, row, message):
    base = Words(count)
    if row is not None:
        with paddle.no_grad():
            base.words.weight[row] = 3.0
    before = values(base)
    with pytest.raises(ValueError, match=message):
        load_trained(base, words[1])
    assert moved(before, values(base)) == set()


WHOLE = {"unfreeze_at": {0: ["fc", "words"]}}
FIVE, SIX = ({"unfreeze_at": {0: "fc"}, "rows": {"words": rows}} for rows in ("5:7", "6:8"))


@pytest.mark.parametrize(
    ("first", "second", "of_the_table"),
    [
        (FIVE, FIVE, "words.weight[5:7]"),
        (FIVE, SIX, "words.weight"),
        (FIVE, WHOLE, "words.weight"),
        (WHOLE, FIVE, "words.weight"),
        (FIVE, {"unfreeze_at": {0: "fc"}}, "words.weight"),
    ],
    ids=["the same", "others", "then all", "all, then some", "then none"],
)
def test_rows_before_and_after_a_resume(tmp_path, first, second, of_the_table):
    network = Words()
    optimizer = adam(network)
    with FreezeSchedule(**first).attach(network, optimizer, total_steps=9) as run:
        run.step()
        run.save(tmp_path / "a")
    schedule = FreezeSchedule(**second, resume_from=tmp_path / "a")
    with schedule.attach(network, adam(network), total_steps=9) as run:
        pass
    assert set(run.trained_state_dict()) == {"fc.weight", "fc.bias", of_the_table}
