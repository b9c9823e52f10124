"""The command line: its output, its refusals, and that a written schedule does the same."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import paddle
import pytest
import yaml
from networks import ConvNet
from paddle import nn
from trainers import tiny_bert

from paddle_freeze_callback import (
    Cyclic,
    FreezeArguments,
    FreezeSchedule,
    Gradual,
    HeadThenAll,
    RandomStages,
)
from paddle_freeze_callback.cli.main import main
from paddle_freeze_callback.cli.mistake import MistakeError
from paddle_freeze_callback.cli.models import load_model, near_model
from paddle_freeze_callback.cli.written import written_out
from paddle_freeze_callback.options.flags import FLAGS
from paddle_freeze_callback.strategies.by_name import NAMES

CONFIG = {
    "model_type": "bert",
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}

NETS = """
import paddle
from paddle import nn

print("this module talks")

class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.fc10 = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

def build():
    print("so does its function")
    return Net()

def wrapped():
    return paddle.Model(Net())

def number():
    return 3

def broken():
    raise RuntimeError("no disk left\\nat all")

def wants_more(size):
    return Net()

constant = 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the current folder; its name is new for each test, as modules are kept."""
    name = "nets_" + re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def bert(tmp_path):
    """A folder with a configuration."""

    def make(**entries):
        folder = tmp_path / "bert"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**CONFIG, **entries}))
        return str(folder)

    return make


def mistake(capsys, *words) -> str:
    """The one line of error of a command with a mistake; the standard output stays empty."""
    assert main([str(word) for word in words]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("paddle-freeze: error: ")
    assert "Traceback" not in said.err
    return last.partition("error: ")[2]


def wrong(capsys, *words) -> str:
    """The standard error after a wrong command line."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- plan


def test_plan_prints_the_preview_of_the_schedule(capsys, nets):
    assert main(["plan", f"{nets}:build", "--every", "1 epoch", "--lr-decay", "2"]) == 0
    network = load_model(f"{nets}:build")
    capsys_out = capsys.readouterr().out
    table = FreezeSchedule(every="1 epoch", lr_decay=2).preview(
        network, epochs=3, steps_per_epoch=100
    )
    assert str(table).strip() in capsys_out
    assert "this module talks" not in capsys_out.replace(str(table), "")
    assert [phase.step for phase in table.phases] == [0, 100, 200]


def test_the_length_of_the_run_is_counted(capsys):
    words = ["plan", "paddle.vision:LeNet", "--strategy", "head_then_all", "--at", "50%"]
    assert main([*words, "--epochs", "0.5", "--steps-per-epoch", "80"]) == 0
    table = FreezeSchedule(strategy=HeadThenAll("50%")).preview(
        paddle.vision.models.LeNet(), epochs=0.5, steps_per_epoch=80
    )
    assert table.phases[1].step == 20
    assert str(table).strip() in capsys.readouterr().out


def test_a_number_of_stages_merges_the_backbone(capsys):
    assert main(["plan", "paddle.vision:resnet18", "--stages", "2"]) == 0
    shown = capsys.readouterr().out
    assert "head" in shown
    assert "layer4" in shown
    assert "layer3 ... stem" in shown


def test_a_file_of_options_takes_the_place_of_flags(capsys, tmp_path, nets):
    file = tmp_path / "s.yaml"
    file.write_text("stages: [head, fc10, fc1]\nevery: 10 steps\n")
    assert main(["plan", f"{nets}:build", "--config", str(file)]) == 0
    table = FreezeSchedule(stages=["head", "fc10", "fc1"], every="10 steps").preview(
        load_model(f"{nets}:build"), epochs=3, steps_per_epoch=100
    )
    assert str(table).strip() in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "check"])
def test_flags_beside_a_file_add_what_it_does_not_set(capsys, tmp_path, nets, command):
    (tmp_path / "s.yaml").write_text("every: 10 steps\n")
    words = ["plan", f"{nets}:build", "--config", "s.yaml"]
    words = words if command == "plan" else ["check", "s.yaml", f"{nets}:build"]
    assert main([*words, "--stages", "1", "--lr-decay", "2"]) == 0
    table = FreezeSchedule(stages=1, every="10 steps", lr_decay=2).preview(
        load_model(f"{nets}:build"), epochs=3, steps_per_epoch=100
    )
    assert str(table).strip() in capsys.readouterr().out
    said = mistake(capsys, *words, "--start", "soon")
    assert said.startswith("--start: 'soon' is no moment of the run")
    said = mistake(capsys, *words, "--at", "1")
    assert said.startswith("s.yaml: every: belongs to the strategies 'gradual', ")


@pytest.mark.parametrize("command", ["plan", "check"])
def test_an_option_in_a_file_and_by_flag_is_a_contradiction(capsys, tmp_path, nets, command):
    (tmp_path / "s.yaml").write_text("lr_decay: 2\n")
    words = ["plan", f"{nets}:build", "--config", "s.yaml"]
    words = words if command == "plan" else ["check", "s.yaml", f"{nets}:build"]
    assert mistake(capsys, *words, "--lr-decay", "2") == (
        "--lr-decay and s.yaml contradict each other: both set lr_decay; drop one of them"
    )


FLAG_VALUES = {
    "stages": ["fc10", "head", "fc1"], "strategy": "gradual", "every": "7 steps",
    "start": "9 steps", "direction": "bottom_up", "at": "30%", "unfreeze_at": ["0=head", "50%=*"],
    "until": "80%",
    "power": "3", "k": "1", "always": ["head"], "seed": "7", "order": "ascending",
    "metric": "acc", "patience": "3", "min_delta": "0.1", "mode": "max", "max_wait": "50 steps",
    "restore_best": True, "threshold": "0.5", "lr_decay": "2.6", "lr": ["head=1", "fc1=0.1"],
    "warmup": "5 steps", "warmup_shape": "cosine", "hold": "3 steps", "frozen_norm": "train",
    "frozen_dropout": "eval", "cache": "memory", "cache_limit": "1 GB", "cache_dtype": "float16",
    "cache_check_every": "9", "verify": True, "restore": False, "free_optimizer_state": False,
    "phase_lr": ["one_cycle:0.5", "linear"], "phase_decay": "0.5",
    "untouched": ["fc1"], "train_norm": ["BatchNorm=never"], "on_conflict": "enforce",
    "save_trained": "a.safetensors", "rows": ["fc1.weight=1:"],
    "cache_key": "number",
}  # fmt: skip
BESIDE = {
    "order": {"k": "1"}, "seed": {"strategy": "lisa"}, "k": {"strategy": "lisa"},
    "patience": {"metric": "acc"}, "min_delta": {"metric": "acc"}, "mode": {"metric": "acc"},
    "max_wait": {"metric": "acc"}, "restore_best": {"metric": "acc"},
    "warmup_shape": {"warmup": "9 steps"}, "cache_limit": {"cache": "memory"},
    "cache_dtype": {"cache": "memory"}, "cache_check_every": {"cache": "memory"},
    "cache_key": {"cache": "memory"},
}  # fmt: skip


@pytest.mark.parametrize("dash", ["-", "_"])
@pytest.mark.parametrize("command", ["plan", "check"])
@pytest.mark.parametrize("name", FLAGS)
def test_every_option_is_a_flag(monkeypatch, tmp_path, nets, name, command, dash):
    """With ``-`` and with ``_``; it does what the flag of the Trainer does."""
    options = {**BESIDE.get(name, {}), name: FLAG_VALUES[name]}
    words = ["plan", f"{nets}:build"]
    if command == "check":
        (tmp_path / "s.json").write_text("{}")
        words = ["check", "s.json", f"{nets}:build"]
    for option, value in options.items():
        flag = option.replace("_", dash)
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no{dash}{flag}")
        else:
            words += [f"--{flag}", *([value] if isinstance(value, str) else value)]
    made = []
    monkeypatch.setattr(
        FreezeSchedule, "preview", lambda self, *_, **__: made.append(self) or Table()
    )
    assert main(words) == 0
    typed = {
        option: FLAGS[option].kind(value) if FLAGS[option].kind in (int, float) else value
        for option, value in options.items()
    }
    expected = FreezeSchedule.from_args(
        FreezeArguments(**{f"freeze_{option}": value for option, value in typed.items()})
    )
    assert repr(made[0]) == repr(expected) != "FreezeSchedule()"


class Table:
    """In place of a preview."""

    def show(self):
        pass


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["bert-base-uncased", "ernie-3.0-medium-zh"])
def test_a_name_that_paddlenlp_has_a_configuration_of_becomes_a_classifier(name):
    network = load_model(name)
    assert type(network).__name__.endswith("ForSequenceClassification")
    assert len([one for one, _ in network.named_sublayers() if one.endswith("linear1")]) in (6, 12)


def test_a_folder_without_architectures_becomes_a_classifier(bert):
    assert type(load_model(bert())).__name__ == "BertForSequenceClassification"
    assert type(load_model(bert(architectures=["BertModel"]))).__name__ == (
        "BertForSequenceClassification"
    )


def test_the_architecture_that_a_configuration_names_is_built(bert):
    network = load_model(bert(architectures=["BertForTokenClassification"], num_labels=5))
    assert type(network).__name__ == "BertForTokenClassification"
    assert network.classifier.weight.shape == [8, 5]


def test_weights_beside_a_configuration_are_not_read(capsys, tmp_path, bert):
    folder = bert()
    (tmp_path / "bert" / "model_state.pdparams").write_text("no weights at all")
    assert main(["plan", folder]) == 0
    assert "encoder.layers.1" in capsys.readouterr().out


def test_a_folder_without_configuration_says_what_it_has(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    said = mistake(capsys, "plan", tmp_path)
    assert said == f"the folder {tmp_path} has no config.json; it has notes.txt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not JSON: "),
        ("[]", "config.json must hold a mapping, not list"),
        ("{}", "knows no such model: architectures None, no model_type"),
        ('{"architectures": ["BertForSequenceClasification"]}', "did you mean BertForSeq"),
        ('{"model_type": "bertt"}', "or bert"),
        ('{"model_type": "bert", "hidden_size": 7}', "BertForSequenceClassification cannot be"),
    ],
)
def test_a_broken_configuration_is_named(capsys, tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    assert message in mistake(capsys, "plan", tmp_path)


def test_an_unknown_name_shows_the_nearest_that_are_known(capsys, monkeypatch):
    from paddlenlp.transformers import AutoConfig

    def offline(name):
        raise OSError("no network")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    said = mistake(capsys, "plan", "bert-base-uncase")
    assert re.match(
        r"MODEL 'bert-base-uncase' is no folder, none of the \d+ models that PaddleNLP has a "
        r"configuration of, and its config.json cannot be downloaded \(OSError\); "
        r"did you mean bert-base-uncased\?",
        said,
    )
    assert "did you mean paddle.vision:resnet50?" in mistake(capsys, "plan", "resnet50")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bert-base", "bert-base-"),
        ("bert-bose-chinese", "\\w*bert-base-chinese"),
        ("roberta-base", "roberta|rbt"),
        ("ernie-3.0-mediun-zh", "ernie-3.0-"),
        ("ernie-3.0", "ernie-3.0-"),
        ("ernie-health", "ernie-health-chinese"),
        ("ernie-m", "ernie-m-"),
        ("mbart-huge", "mbart-"),
        ("albert-base-v3", "albert-"),
        ("gpt2", "gpt2-|gpt3-"),
        ("gpt-2", "gpt"),
        ("T5-bass", "t5-"),
        ("resnet-50", "paddle.vision:resnet50"),
        ("mobilenetv2", "paddle.vision:mobilenet_v2"),
        ("VGG-16", "paddle.vision:vgg16"),
        ("llama-7b", None),
        ("zzz", None),
    ],
)
def test_near_misses_are_of_the_family_that_a_name_begins_with(name, near):
    from paddlenlp.transformers import AutoConfig

    kinds = [kind for kinds in AutoConfig.MAPPING_NAMES.values() for kind in kinds]
    families = {
        one: kind.model_type
        for kind in kinds
        for one in kind.pretrained_init_configuration
        if not one.startswith("__")
    }
    hint = near_model(name, families)
    if near is None:
        assert hint == ""
        return
    shown = re.split(" or |; did you mean ", hint.removesuffix("?"))[1:]
    assert shown
    assert [one for one in shown if not re.search(f"(^|[-/])({near})", one)] == []


def test_a_folder_that_is_not_there_is_no_name(capsys):
    assert mistake(capsys, "plan", "./nowhere") == "MODEL './nowhere': there is no such folder"


def test_a_file_is_no_model(capsys, bert):
    said = mistake(capsys, "plan", bert() + "/config.json")
    assert said.endswith("is a file; give the folder that holds config.json, or module:factory")


def test_without_paddlenlp_a_name_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "paddlenlp", None)
    monkeypatch.delitem(sys.modules, "paddlenlp.transformers", raising=False)
    said = mistake(capsys, "plan", "bert-base-uncased")
    assert said.startswith("a model by name or folder needs PaddleNLP, which is not installed; ")
    assert "pip install 'paddle-freeze-callback[nlp]'" in said


def test_an_unknown_model_of_paddle_vision_shows_near_misses(capsys):
    said = mistake(capsys, "plan", "paddle.vision:resnet51")
    assert said.startswith("paddle.vision.models has no 'resnet51'; did you mean paddle.vision:res")
    assert "resnet50" in said
    said = mistake(capsys, "plan", "paddle.vision:zzz")
    assert re.search(r"has no 'zzz'; it has .*\bresnet18, .*\bLeNet\b", said)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("buildd", "has no 'buildd'; did you mean {m}:build?"),
        ("broken", "{m}:broken, called without arguments, failed: RuntimeError: no disk left at"),
        ("wants_more", "called without arguments, failed: TypeError: wants_more() missing 1"),
        ("number", "{m}:number gave int, not a paddle.nn.Layer"),
        ("wrapped", "{m}:wrapped gave Model, not a paddle.nn.Layer; take .network of a paddle."),
        ("constant", "{m}:constant is int; it must be a function without arguments that gives"),
        ("", "write module:factory, such as paddle.vision:resnet50"),
    ],
)
def test_a_factory_that_gives_no_network_is_named(capsys, nets, factory, message):
    assert message.format(m=nets) in mistake(capsys, "plan", f"{nets}:{factory}")


def test_a_module_that_is_not_there_shows_near_misses(capsys, nets):
    said = mistake(capsys, "plan", f"{nets}x:build")
    assert said == (
        f"there is no module '{nets}x', neither here nor installed; did you mean {nets}:build?"
    )


def test_a_module_that_cannot_be_imported_says_why(capsys, tmp_path, nets):
    (tmp_path / f"{nets}_bad.py").write_text("import not_there_at_all")
    said = mistake(capsys, "plan", f"{nets}_bad:build")
    assert said == (
        f"the module '{nets}_bad' cannot be imported: No module named 'not_there_at_all'"
    )
    (tmp_path / f"{nets}_worse.py").write_text("def build(:")
    assert "cannot be imported: SyntaxError" in mistake(capsys, "plan", f"{nets}_worse:build")


# ---------------------------------------------------------------- mistakes in options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "gradul"], "--strategy: unknown strategy 'gradul'; did you mean 'gradual'"),
        (["--every", "1 epch"], "--every: '1 epch' is no moment of the run"),
        (["--strategy", "head_only", "--every", "1"], "--every: belongs to the strategies"),
        (["--strategy", "explicit"], "--strategy: explicit needs --unfreeze-at"),
        (["--strategy", "ulmfi"], "did you mean 'ulmfit'?"),
        (["--strategy", "lp_ft", "--max-wait", "1"], "--max-wait: belongs to the strategy"),
        (["--stages", "fc9", "*"], "did you mean 'fc"),
        (["--lr", "2"], "--lr: '2' is no pair stage=multiplier, such as head=1"),
        (["--cache_limit", "1 GB"], "cache_limit='1 GB' has no effect without cache="),
        (["--stages", "40"], "stages=40: the backbone has"),
        (["--lr-decay", "-1"], "--lr-decay: "),
        (["--config", "nowhere.yaml"], "nowhere.yaml: No such file or directory"),
    ],
)
def test_an_option_that_cannot_be_is_named(capsys, words, message):
    assert message in mistake(capsys, "plan", "paddle.vision:LeNet", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["plam", "m"], "invalid choice: 'plam'"),
        (["plan"], "required: MODEL"),
        (["plan", "m", "--epochs", "0"], "argument --epochs: '0' is no whole number from 1 on"),
        (["plan", "m", "--epochs", "nan"], "argument --epochs: 'nan' is no positive number"),
        (["plan", "m", "--steps-per-epoch", "1.5"], "--steps-per-epoch: '1.5' is no whole number"),
        (["plan", "--stages", "4", "m"], "required: MODEL"),
        (["plan", "--yaml", "m"], "put --yaml without a file after MODEL"),
        (["plan", "m", "--phase-decay", "x"], "argument --phase-decay: invalid float value: 'x'"),
        (["plan", "m", "--lrr", "2"], "unrecognized arguments: --lrr 2"),
        (["plot", "m"], "required: -o/--output"),
        (["check", "s.yaml"], "required: MODEL"),
    ],
)
def test_a_wrong_command_line_has_status_two(capsys, words, message):
    assert message in wrong(capsys, *words)


@pytest.mark.parametrize("words", [[], ["plan"], ["plot"], ["check"]])
def test_help_has_examples_models_and_exit_status(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for part in ("examples\n", "paddle.vision:resnet50", "my_module:build", "exit status", "  2  "):
        assert part in shown
    assert "%(" not in shown
    if words:
        assert re.search(r"\(default: (what plan wrote\s+the file for, else )?3\)", shown)
        assert "100, which is a guess" in " ".join(shown.split())
        assert all(name in " ".join(shown.split()) for name in NAMES)
        for name in FLAGS:
            assert f"  --{name.replace('_', '-')}" in shown
    assert max(map(len, shown.splitlines())) <= 100


# ---------------------------------------------------------------- check


def test_check_prints_what_a_file_would_do(capsys, tmp_path, nets):
    file = tmp_path / "s.json"
    file.write_text('{"unfreeze_at": {"0": "head", "50%": "*"}}')
    assert main(["check", str(file), f"{nets}:build", "--epochs", "4"]) == 0
    table = FreezeSchedule(unfreeze_at={0: "head", "50%": "*"}).preview(
        load_model(f"{nets}:build"), epochs=4, steps_per_epoch=100
    )
    assert str(table).strip() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.yaml", "unfreeze_at: {0: fc11, 1: '*'}", "s.yaml does not fit {m}:build: selector 'fc11"
         "' matches no parameter or layer; did you mean 'fc1', 'fc10'"),
        ("s.yaml", "evry: 1", "s.yaml: unknown option 'evry'; did you mean every"),
        ("s.yaml", "every: [", "s.yaml is not plain YAML: "),
        ("s.json", "{", "s.json is not JSON: "),
        ("s.toml", "", "s.toml: a schedule file ends in .yaml, .yml or .json, not '.toml'"),
        ("s.yaml", "unfreeze_at: {1: head}", "does not fit {m}:build: nothing would train before"),
    ],
)  # fmt: skip
def test_check_tells_what_does_not_fit(capsys, tmp_path, nets, name, text, message):
    (tmp_path / name).write_text(text)
    assert message.format(m=nets) in mistake(capsys, "check", name, f"{nets}:build")


def test_check_of_a_file_that_is_not_there_shows_near_misses(capsys, tmp_path, nets):
    (tmp_path / "freeze.yaml").write_text("every: 1")
    said = mistake(capsys, "check", "freez.yaml", f"{nets}:build")
    assert said == "freez.yaml: No such file or directory; did you mean freeze.yaml?"


CUT = """
import paddle
from paddle import nn

class Cut(nn.Layer):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.encoder(x).detach())

def batch():
    return paddle.ones([2, 4])

image = paddle.ones([1, 3, 64, 64])
"""


def test_check_with_a_batch_lists_what_the_first_step_contradicts(capsys, tmp_path, nets):
    (tmp_path / f"cut_{nets}.py").write_text(CUT)
    (tmp_path / "s.yaml").write_text("every: 1")
    words = ["check", "s.yaml", f"cut_{nets}:Cut", "--batch", f"cut_{nets}:batch"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "- nothing reaches 'encoder': it is open, and none of its weights got a gradient" in out
    assert main(["check", "s.yaml", "paddle.vision:squeezenet1_1", *words[3:4],
                 f"cut_{nets}:image"]) == 0  # fmt: skip
    assert "reaches" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("nonsense", "--batch 'nonsense': write module:function, such as my_module:batch"),
        ("{m}:bild", "the module '{m}' has no 'bild'; did you mean {m}:build"),
        ("{m}:broken", "{m}:broken, called without arguments, failed: RuntimeError: no disk left"),
        ("{m}:constant", "Net cannot be called with it"),
    ],
)
def test_a_batch_that_cannot_be_had_is_a_mistake(capsys, tmp_path, nets, batch, message):
    (tmp_path / "s.yaml").write_text("every: 1")
    words = ["check", "s.yaml", f"{nets}:build", "--batch", batch.format(m=nets)]
    assert message.format(m=nets) in mistake(capsys, *words)


# ---------------------------------------------------------------- YAML to edit

SCHEDULES = [
    FreezeSchedule(),
    FreezeSchedule(every="7 steps", lr_decay=2.6, warmup="5 steps"),
    FreezeSchedule(strategy=Gradual(direction="bottom_up"), stages=2),
    FreezeSchedule(strategy=HeadThenAll("50%"), frozen_norm="train"),
    FreezeSchedule(strategy=Cyclic(k=1, every="20 steps"), verify=True),
    FreezeSchedule(strategy=RandomStages(k=1, every="30%", always=["head"])),
    FreezeSchedule(lr={"head": 1, "*": 0.1}, strategy="chain_thaw", free_optimizer_state=True),
    FreezeSchedule.bitfit(),
    FreezeSchedule(strategy="fine_tune", stages=2),
    FreezeSchedule(strategy=Cyclic(k=1, every="20 steps"), phase_decay=0.5, phase_lr="linear"),
    FreezeSchedule(unfreeze_at={0: {"unfreeze": "*", "lr": 2}, "30%": {"lr": 0.5}}),
]
OF_BLOCKS_WITH_NORMS = [
    FreezeSchedule(unfreeze_at={0: "head", "30%": "top 60%", "60%": ["*", "!type:bias"]}),
    FreezeSchedule(train_norm="always", lr_decay=2.6),
    FreezeSchedule(train_norm="never", unfreeze_at={0: "head", "50%": "*"}),
]


@pytest.mark.parametrize("length", [(3, 37), (0.5, 90)])
@pytest.mark.parametrize(
    ("make", "schedule"),
    [
        *itertools.product([ConvNet, tiny_bert, paddle.vision.models.LeNet], SCHEDULES),
        *itertools.product([ConvNet, tiny_bert], OF_BLOCKS_WITH_NORMS),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_written_yaml_does_the_same_as_the_schedule(tmp_path, make, schedule, length):
    network = make()
    epochs, steps = length
    text = written_out(
        schedule, network, epochs=epochs, steps_per_epoch=steps, model="m", file="f.yaml"
    )
    file = tmp_path / "f.yaml"
    file.write_text(text)
    again = FreezeSchedule.from_file(file)
    before = schedule.preview(network, epochs=epochs, steps_per_epoch=steps)
    after = again.preview(network, epochs=epochs, steps_per_epoch=steps)

    def changes(table):
        return [
            (phase.step, phase.until, phase.epoch, phase.trainable, phase.memory_share,
             phase.rate, phase.shape)
            for phase in table.phases
        ]  # fmt: skip

    assert changes(after) == changes(before)
    assert weights_over_time(network, again, after) == weights_over_time(network, schedule, before)
    for name in ("verify", "frozen_norm", "warmup"):
        assert getattr(again, name) == getattr(schedule, name)


def test_yaml_cannot_hold_a_function():
    schedule = FreezeSchedule(phase_lr=lambda share: 1 - share)
    with pytest.raises(MistakeError, match="phase_lr is a function, which no file can hold"):
        written_out(schedule, ConvNet(), epochs=2, steps_per_epoch=9, model="m", file="f.yaml")


def test_yaml_cannot_say_what_happens_to_norms_without_weights():
    network = nn.Sequential(nn.Conv2D(1, 2, 3), nn.BatchNorm2D(2), nn.Conv2D(2, 2, 3))
    for name in ("weight", "bias"):
        delattr(network[1], name)
        setattr(network[1], name, None)
    schedule = FreezeSchedule(train_norm="always")
    with pytest.raises(MistakeError, match="has normalization layers without weights, which no"):
        written_out(schedule, network, epochs=2, steps_per_epoch=9, model="m", file="f.yaml")


def weights_over_time(network, schedule, table):
    """For each phase the open parameters with their multipliers, whatever the stages are called."""
    from paddle_freeze_callback.session.plan import plan
    from paddle_freeze_callback.stages.partition import Survey

    fitted = plan(
        Survey(network), schedule.stages, schedule._strategy, schedule._manners["learning_rates"],
        train_norm=schedule.train_norm,
    )  # fmt: skip
    return [
        {
            name: fitted.multipliers.get(stage.name, 1.0)
            for stage in fitted.stages
            if stage.name in phase.opened
            for name in stage.parameters
        }
        for phase in table.phases
    ]


def test_yaml_goes_to_a_new_file_beside_the_table(capsys, tmp_path, nets):
    words = ["plan", f"{nets}:build", "--strategy", "cyclic", "--every", "150 steps"]
    assert main([*words, "--yaml", "f.yaml"]) == 0
    said = capsys.readouterr()
    assert said.err.strip().endswith("wrote f.yaml")
    assert "cyclic" not in said.out
    assert "fc10" in said.out
    text = (tmp_path / "f.yaml").read_text()
    assert yaml.safe_load(text) == {
        "unfreeze_at": {
            0: {"unfreeze": ["head"]},
            "150 steps": {"unfreeze": ["fc10"], "freeze": ["head"]},
        },
        "free_optimizer_state": True,
    }
    assert re.search(r"^      - fc10 +# fc10: 72 parameters, 55.4%$", text, re.MULTILINE)
    assert re.search(r"^  150 steps: +# step 150, epoch 1$", text, re.MULTILINE)
    assert main(["check", "f.yaml", f"{nets}:build"]) == 0


def test_check_knows_for_which_length_a_file_was_written(capsys, tmp_path, nets):
    length = ("--epochs", "5", "--steps-per-epoch", "20")
    assert main(["plan", f"{nets}:build", *length, "--yaml", "f.yaml"]) == 0
    capsys.readouterr()
    words = ["check", "f.yaml", f"{nets}:build"]
    for more in ((), length):
        assert main([*words, *more]) == 0
        printed = capsys.readouterr().out
        assert "100 steps, 20 an epoch" in printed
        assert "was written for" not in printed
    for more, here in ((("--epochs", "4"), "4 of 20"), (("--steps-per-epoch", "9"), "5 of 9")):
        assert main([*words, *more]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert (
            f"- f.yaml was written for 5 epochs of 20 steps, and this run has {here}: what opens "
            "when may not be what was meant"
        ) in printed


def test_an_existing_file_is_not_written_over(capsys, tmp_path, nets):
    (tmp_path / "f.yaml").write_text("every: 1")
    said = mistake(capsys, "plan", f"{nets}:build", "--yaml", "f.yaml")
    assert said.startswith("f.yaml is there already and may have been edited; ")
    assert (tmp_path / "f.yaml").read_text() == "every: 1"


def test_yaml_without_a_file_is_all_of_the_standard_output(capsys, nets):
    assert main(["plan", f"{nets}:build", "--strategy", "head_then_all", "--yaml"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown) == {
        "unfreeze_at": {
            0: {"unfreeze": ["head"]},
            "1.5 epochs": {"unfreeze": ["fc10", "fc1"]},
        }
    }
    assert shown.startswith("# FreezeSchedule(strategy=HeadThenAll())\n")


def test_names_that_yaml_reads_as_numbers_are_quoted(tmp_path):
    network = paddle.nn.Sequential(paddle.nn.Linear(2, 4), paddle.nn.Linear(4, 1))
    text = written_out(
        FreezeSchedule(stages=["1", "0"], lr_decay=2), network, epochs=2, steps_per_epoch=3,
        model="m", file="f.yaml",
    )  # fmt: skip
    assert yaml.safe_load(text) == {
        "unfreeze_at": {0: {"unfreeze": ["1"]}, 1: {"unfreeze": ["0"]}},
        "lr": {"0": 0.5},
    }


@pytest.mark.parametrize("strategy", ["by_gradient", "on_plateau"])
def test_what_is_decided_in_the_run_cannot_be_written(capsys, tmp_path, nets, strategy):
    file = tmp_path / "s.yaml"
    file.write_text(f"strategy: {strategy}\n" + "metric: acc\n" * (strategy == "on_plateau"))
    said = mistake(capsys, "plan", f"{nets}:build", "--config", file, "--yaml", "f.yaml")
    assert "decides while it runs, so its moments are not known before" in said
    assert not (tmp_path / "f.yaml").exists()


# ---------------------------------------------------------------- plot


def test_plot_draws_into_a_file(capsys, tmp_path, nets):
    pytest.importorskip("matplotlib")
    assert main(["plot", f"{nets}:build", "-o", "s.png", "--strategy", "cyclic"]) == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == ""


def test_plot_into_a_file_that_cannot_be_is_a_mistake(capsys, nets):
    pytest.importorskip("matplotlib")
    assert "s.doc" in mistake(capsys, "plot", f"{nets}:build", "-o", "s.doc")


# ---------------------------------------------------------------- as a program


def run(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "paddle_freeze_callback", *words],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip


def test_as_a_program_it_prints_the_table_alone(tmp_path, bert):
    done = run(tmp_path, "plan", bert(), "--strategy", "head_only")
    assert done.returncode == 0
    table = FreezeSchedule(strategy="head_only").preview(
        load_model(bert()), epochs=3, steps_per_epoch=100
    )
    assert done.stdout.strip() == str(table).strip()
    assert "ccache" not in done.stderr


def test_as_a_program_it_finds_modules_of_the_folder_and_tells_mistakes(tmp_path):
    (tmp_path / "mine.py").write_text(NETS)
    done = run(tmp_path, "plan", "mine:broken")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == (
        "python -m paddle_freeze_callback: error: mine:broken, called without arguments, failed: "
        "RuntimeError: no disk left at all"
    )
