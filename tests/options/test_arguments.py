"""Options as flags, JSON, YAML and dictionaries."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import re

import pytest
from paddlenlp.trainer import PdArgumentParser, TrainingArguments
from trainers import tiny_bert, trainer_for

from paddle_freeze_callback import (
    ByGradient,
    ChainThaw,
    Cyclic,
    Explicit,
    FreezeArguments,
    FreezeDown,
    FreezeSchedule,
    FreezeTrainingArguments,
    Gradual,
    HeadOnly,
    HeadThenAll,
    OnPlateau,
    RandomStages,
)
from paddle_freeze_callback.strategies.by_name import NAMES, STRATEGIES

CASES = [
    ([], FreezeSchedule()),
    (["--freeze_every", "1 epoch"], FreezeSchedule(strategy=Gradual("1 epoch"))),
    (["--freeze_every", "2"], FreezeSchedule(strategy=Gradual("2"))),
    (["--freeze_start", "500 steps"], FreezeSchedule(strategy=Gradual(None, "500 steps"))),
    (["--freeze_strategy", "head_only"], FreezeSchedule(strategy=HeadOnly())),
    (["--freeze_strategy", "head_then_all"], FreezeSchedule(strategy=HeadThenAll())),
    (["--freeze_at", "30%"], FreezeSchedule(strategy=HeadThenAll("30%"))),
    (
        ["--freeze_unfreeze_at", "0=fc", "1=layer4", "50%=*"],
        FreezeSchedule(strategy=Explicit({"0": "fc", "1": "layer4", "50%": "*"})),
    ),
    (["--freeze_direction", "bottom_up"], FreezeSchedule(strategy=Gradual(direction="bottom_up"))),
    (["--freeze_strategy", "chain_thaw", "--freeze_every", "2 epochs"],
     FreezeSchedule(strategy=ChainThaw("2 epochs"))),
    (["--freeze_until", "50%", "--freeze_power", "3"],
     FreezeSchedule(strategy=FreezeDown("50%", 3.0))),
    (["--freeze_strategy", "random_stages", "--freeze_k", "1", "--freeze_always", "head",
      "--freeze_every", "9 steps", "--freeze_seed", "4"],
     FreezeSchedule(strategy=RandomStages(1, "9 steps", ["head"], 4))),
    (["--freeze_always", "head"], FreezeSchedule(strategy=RandomStages(always=["head"]))),
    (["--freeze_order", "ascending", "--freeze_k", "3"],
     FreezeSchedule(strategy=Cyclic(3, order="ascending"))),
    (["--freeze_metric", "eval_f1", "--freeze_patience", "3", "--freeze_min_delta", "0.01",
      "--freeze_mode", "max", "--freeze_max_wait", "2", "--freeze_restore_best"],
     FreezeSchedule(strategy=OnPlateau("eval_f1", 3, 0.01, "max", "2", True))),
    (["--freeze_threshold", "0.2"], FreezeSchedule(strategy=ByGradient(threshold=0.2))),
    (["--freeze_lr_decay", "2.6", "--freeze_lr", "head=1", "encoder.{0-3}=0.1",
      "--freeze_warmup", "100 steps", "--freeze_warmup_shape", "cosine", "--freeze_hold", "5%"],
     FreezeSchedule(lr_decay=2.6, lr={"head": 1.0, "encoder.{0-3}": 0.1}, warmup="100 steps",
                    warmup_shape="cosine", hold="5%")),
    (["--freeze_cache", "memory", "--freeze_cache_limit", "4 GB", "--freeze_cache_dtype", "float16",
      "--freeze_cache_check_every", "50", "--freeze_cache_key", "number"],
     FreezeSchedule(cache="memory", cache_limit="4 GB", cache_dtype="float16",
                    cache_check_every=50, cache_key="number")),
    (["--freeze_free_optimizer_state", "false"], FreezeSchedule(free_optimizer_state=False)),
    (["--freeze_stages", "auto", "--freeze_verify"], FreezeSchedule(verify=True)),
    (["--freeze_stages", "4"], FreezeSchedule(stages=4)),
    (
        ["--freeze_stages", "classifier", "ernie.encoder.layers.{8-11}", "*"],
        FreezeSchedule(stages=["classifier", "ernie.encoder.layers.{8-11}", "*"]),
    ),
    (["--freeze_frozen_norm", "train"], FreezeSchedule(frozen_norm="train")),
    (["--freeze_frozen_dropout", "eval"], FreezeSchedule(frozen_dropout="eval")),
    (["--freeze_strategy", "ulmfit"],
     FreezeSchedule(strategy=Gradual("1 epoch"), lr_decay=2.6)),
    (["--freeze_strategy", "ulmfit", "--freeze_every", "9 steps", "--freeze_lr_decay", "1"],
     FreezeSchedule(strategy=Gradual("9 steps"), lr_decay=1.0)),
    (["--freeze_strategy", "lp_ft"], FreezeSchedule.lp_ft()),
    (["--freeze_strategy", "lp_ft", "--freeze_at", "2"], FreezeSchedule.lp_ft(at="2")),
    (["--freeze_strategy", "lisa"], FreezeSchedule.lisa()),
    (["--freeze_strategy", "lisa", "--freeze_k", "1", "--freeze_every", "9 steps",
      "--freeze_seed", "4", "--freeze_always", "head", "fc"],
     FreezeSchedule.lisa(1, "9 steps", 4, ["head", "fc"])),
    (["--freeze_strategy", "bitfit"],
     FreezeSchedule(strategy=Explicit({0: ["head", ["type:bias", "head", "!head"]]}))),
    (["--freeze_strategy", "fine_tune"], FreezeSchedule.fine_tune()),
    (["--freeze_strategy", "fine_tune", "--freeze_at", "2", "--freeze_phase_decay", "0.1"],
     FreezeSchedule.fine_tune(freeze_epochs="2", phase_decay=0.1)),
    (["--freeze_phase_lr", "cosine"], FreezeSchedule(phase_lr="cosine")),
    (["--freeze_phase_lr", "one_cycle:0.5:4", "linear", "--freeze_lr_decay", "30 in all"],
     FreezeSchedule(phase_lr=["one_cycle:0.5:4", "linear"], lr_decay="30 in all")),
    (["--freeze_unfreeze_at", '{"0": "fc", "2": {"unfreeze": "*", "lr": 0.1}}'],
     FreezeSchedule(strategy=Explicit({"0": "fc", "2": {"unfreeze": "*", "lr": 0.1}}))),
    (["--freeze_unfreeze_at", "0=fc", '2={unfreeze: "*", lr: 1e-1}', "3=blocks.{-2,-1}"],
     FreezeSchedule(strategy=Explicit({"0": "fc", "2": {"unfreeze": "*", "lr": 0.1},
                                       "3": "blocks.{-2,-1}"}))),
    (["--freeze_stages", "!head", "head"], FreezeSchedule(stages=["!head", "head"])),
    (["--freeze_unfreeze_at", "0=top 30%", "1=encoder.{-2,-1}", "2=!encoder.[:2]"],
     FreezeSchedule(strategy=Explicit({"0": "top 30%", "1": "encoder.{-2,-1}",
                                       "2": "!encoder.[:2]"}))),
    (["--freeze_untouched", "type:BatchNorm*", "bias"],
     FreezeSchedule(untouched=["type:BatchNorm*", "bias"])),
    (["--freeze_train_norm", "never"], FreezeSchedule(train_norm="never")),
    (["--freeze_train_norm", "BatchNorm=never", "*=always"],
     FreezeSchedule(train_norm={"BatchNorm": "never", "*": "always"})),
    (["--freeze_train_norm", '{"LayerNorm": "always"}'],
     FreezeSchedule(train_norm={"LayerNorm": "always"})),
    (["--freeze_save_trained=~/a.safetensors"],
     FreezeSchedule(save_trained=os.path.expanduser("~/a.safetensors"))),
    (["--freeze_cache=~/features"], FreezeSchedule(cache=os.path.expanduser("~/features"))),
    (["--freeze_save_trained", "a.safetensors"], FreezeSchedule(save_trained="a.safetensors")),
    (["--freeze_rows", "embeddings.words=30522:", "other=-8:-2"],
     FreezeSchedule(rows={"embeddings.words": "30522:", "other": "-8:-2"})),
    (["--freeze_rows", '{"embeddings": "30522:"}'], FreezeSchedule(rows={"embeddings": "30522:"})),
    (["--no_freeze_restore"], FreezeSchedule(restore=False)),
    (["--freeze_restore", "false", "--freeze_verify", "yes"],
     FreezeSchedule(verify=True, restore=False)),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "expected"), CASES, ids=lambda value: str(value)[:50])
def test_flags_make_the_same_schedule_as_code(flags, expected, tmp_path):
    (args,) = PdArgumentParser(FreezeArguments).parse_args_into_dataclasses(flags)
    assert repr(FreezeSchedule.from_args(args)) == repr(expected)
    parser = PdArgumentParser(FreezeTrainingArguments)
    (args,) = parser.parse_args_into_dataclasses([*flags, "--output_dir", str(tmp_path)])
    assert isinstance(args, TrainingArguments)
    assert repr(FreezeSchedule.from_args(args)) == repr(expected)


def test_every_field_has_help_and_is_an_option_of_code():
    for field in dataclasses.fields(FreezeArguments):
        assert field.name.startswith("freeze_")
        assert len(field.metadata["help"]) > 20
    text = PdArgumentParser(FreezeArguments).format_help()
    assert "such as 0=fc 1=layer4 '50%=*'" in re.sub(r"\s+", " ", text)


MAPPING = {
    "freeze_unfreeze_at": {"0": "fc", "50%": ["layer4", "layer3"]},
    "freeze_verify": True,
    "freeze_stages": ["fc", "layer4", "layer3", "*"],
}
FROM_MAPPING = FreezeSchedule(
    stages=["fc", "layer4", "layer3", "*"],
    strategy=Explicit({"0": "fc", "50%": ["layer4", "layer3"]}),
    verify=True,
)


def test_every_argument_of_a_strategy_is_a_flag():
    flags = {field.name for field in dataclasses.fields(FreezeArguments)}
    for kind in STRATEGIES.values():
        assert {f"freeze_{field.name}" for field in dataclasses.fields(kind)} <= flags


def test_learning_rates_and_strategies_in_a_yaml_file(tmp_path):
    file = tmp_path / "freeze.yaml"
    file.write_text(
        "strategy: random_stages\n"
        "k: 1\n"
        "always: [head, encoder.norm]\n"
        "free_optimizer_state: false\n"
        "lr_decay: 26e-1\n"
        "lr:\n"
        "  head: 1e1\n"
        "warmup: 50 steps\n"
    )
    expected = FreezeSchedule(
        strategy=RandomStages(k=1, always=["head", "encoder.norm"]), free_optimizer_state=False,
        lr_decay=2.6, lr={"head": 10.0}, warmup="50 steps",
    )  # fmt: skip
    read = FreezeSchedule.from_file(file)
    assert repr(read) == repr(expected).replace("free_", "free_")
    assert read._manners == expected._manners


def test_a_json_file_through_the_parser_and_a_dict(tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps(MAPPING))
    (args,) = PdArgumentParser(FreezeArguments).parse_json_file(str(file))
    assert repr(FreezeSchedule.from_args(args)) == repr(FROM_MAPPING)
    (args,) = PdArgumentParser(FreezeArguments).parse_dict(MAPPING)
    assert repr(FreezeSchedule.from_args(args)) == repr(FROM_MAPPING)
    file.write_text(json.dumps({"freeze_every": None, "freeze_stages": [4]}))
    (args,) = PdArgumentParser(FreezeArguments).parse_json_file(str(file))
    assert repr(FreezeSchedule.from_args(args)) == "FreezeSchedule(stages=4)"


@pytest.mark.parametrize("prefix", ["freeze_", ""])
@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
def test_a_file_has_the_same_keys_with_or_without_prefix(tmp_path, prefix, ending):
    file = tmp_path / f"freeze.{ending}"
    content = {prefix + key[len("freeze_") :]: value for key, value in MAPPING.items()}
    file.write_text(json.dumps(content))  # JSON is YAML
    assert repr(FreezeSchedule.from_file(file)) == repr(FROM_MAPPING)
    assert repr(FreezeSchedule.from_file(str(file))) == repr(FROM_MAPPING)


def test_a_yaml_file_as_people_write_it(tmp_path):
    file = tmp_path / "freeze.yaml"
    file.write_text(
        "strategy: explicit\n"
        "unfreeze_at:\n"
        "  0: fc           # numbers are epochs\n"
        "  200 steps: layer4\n"
        "  50%: '*'\n"
        "frozen_dropout: eval\n"
        "verify: yes\n"
    )
    expected = FreezeSchedule(
        strategy=Explicit({0: "fc", "200 steps": "layer4", "50%": "*"}),
        frozen_dropout="eval",
        verify=True,
    )
    assert repr(FreezeSchedule.from_file(file)) == repr(expected)


def test_arguments_without_freeze_flags_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"TrainingArguments has no freeze_\* fields; parse Freeze"):
        FreezeSchedule.from_args(TrainingArguments(output_dir=str(tmp_path)))


@pytest.mark.parametrize("given", [FreezeSchedule, FreezeSchedule()], ids=["class", "object"])
def test_a_schedule_without_arguments_takes_the_trainers_flags(tmp_path, given):
    trainer = trainer_for(tiny_bert(), tmp_path, [given], freeze_strategy="head_only")
    schedule = trainer.callback_handler.callbacks[1]
    assert repr(schedule) == "FreezeSchedule(strategy=HeadOnly())"
    trainer.train()
    assert len(schedule.history) == 1


def test_wrong_flags_are_found_when_the_trainer_is_built(tmp_path):
    with pytest.raises(ValueError, match="--freeze_every: 'soon' is no moment"):
        trainer_for(tiny_bert(), tmp_path, [FreezeSchedule()], freeze_every="soon")


def test_options_in_code_and_by_flags_are_a_contradiction(tmp_path):
    with pytest.raises(ValueError, match=re.escape("configured twice: FreezeSchedule(every=1)")):
        trainer_for(tiny_bert(), tmp_path, [FreezeSchedule(every=1)], freeze_every="2")
    args = FreezeArguments(freeze_every="2")
    schedule = FreezeSchedule.from_args(args)
    trainer_for(tiny_bert(), tmp_path, [schedule], freeze_every="2")  # the same: no contradiction


def test_a_schedule_prints_what_was_passed_and_can_be_copied_and_pickled():
    schedule = FreezeSchedule(every="1 epoch", stages=4, verify=True)
    assert repr(schedule) == "FreezeSchedule(stages=4, every='1 epoch', verify=True)"
    assert repr(copy.deepcopy(schedule)) == repr(schedule)
    assert repr(pickle.loads(pickle.dumps(schedule))) == repr(schedule)
    assert eval(repr(schedule), {"FreezeSchedule": FreezeSchedule}).__reduce__() == (
        schedule.__reduce__()
    )


def test_training_arguments_with_flags_can_be_pickled(tmp_path):
    args = FreezeTrainingArguments(output_dir=str(tmp_path), freeze_every="1 epoch")
    assert pickle.loads(pickle.dumps(args)).freeze_every == "1 epoch"


RECIPES = [
    ({"strategy": "ulmfit"}, FreezeSchedule.ulmfit()),
    ({"strategy": "ulmfit", "every": "9 steps", "start": 1, "lr_decay": 2.0, "verify": True},
     FreezeSchedule.ulmfit(every="9 steps", start=1, lr_decay=2.0, verify=True)),
    ({"strategy": "ulmfit", "lr_decay": 1.0}, FreezeSchedule.ulmfit(lr_decay=1.0)),
    ({"strategy": "lp_ft", "stages": 4}, FreezeSchedule.lp_ft(stages=4)),
    ({"strategy": "lisa"}, FreezeSchedule.lisa()),
    ({"strategy": "lisa", "every": "5 steps"}, FreezeSchedule.lisa(every="5 steps")),
    ({"strategy": "bitfit"}, FreezeSchedule.bitfit()),
    ({"strategy": "bitfit", "verify": True}, FreezeSchedule.bitfit(verify=True)),
    ({"strategy": "fine_tune"}, FreezeSchedule.fine_tune()),
    ({"strategy": "fine_tune", "lr_decay": 2.0, "phase_lr": "cosine", "stages": 4},
     FreezeSchedule.fine_tune(lr_decay=2.0, phase_lr="cosine", stages=4)),
]  # fmt: skip


@pytest.mark.parametrize(("options", "expected"), RECIPES, ids=lambda value: str(value)[:50])
def test_a_recipe_by_name_does_what_its_constructor_does(options, expected, tmp_path):
    schedule = FreezeSchedule(**options)
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps(options))
    for made in (schedule, FreezeSchedule.from_file(file), eval(repr(schedule)),
                 pickle.loads(pickle.dumps(schedule)), copy.copy(schedule)):  # fmt: skip
        assert made._strategy == expected._strategy
        assert made.stages == expected.stages
        assert made._manners == expected._manners


def test_a_recipe_by_name_prints_as_it_was_written():
    assert repr(FreezeSchedule(strategy="ulmfit")) == "FreezeSchedule(strategy='ulmfit')"
    assert FreezeSchedule(strategy="ulmfit")._manners["learning_rates"].lr_decay == 2.6
    assert FreezeSchedule.ulmfit()._strategy == Gradual("1 epoch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "ulmfit", "unfreeze_at": {0: "fc"}}, "strategy= and unfreeze_at= contradict"),
        ({"strategy": "lp_ft", "every": 1}, "strategy= and every= contradict each other"),
        ({"strategy": "lisa", "start": 1}, "strategy= and start= contradict each other"),
        ({"strategy": "bitfit", "unfreeze_at": {0: "fc"}}, "strategy= and unfreeze_at= contradict"),
        ({"strategy": "gradual", "every": 1}, "write for example strategy=Gradual(every=..."),
        ({"strategy": "ulmfitt"}, "unknown strategy 'ulmfitt'; did you mean 'ulmfit'? known: grad"),
        ({"strategy": "fine_tune", "every": 1}, "strategy= and every= contradict each other"),
        (
            {"strategy": "ulmfit", "lr": {"*": 1}, "lr_decay": 2},
            "lr_decay=2 and lr={'*': ...} contradict",
        ),
    ],
)
def test_what_contradicts_a_recipe_is_an_error(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FreezeSchedule(**options)


@pytest.mark.parametrize(
    "make",
    [
        lambda name, **options: FreezeSchedule(strategy=name, **options),
        lambda name, **options: getattr(FreezeSchedule, name)(**options),
        lambda name, **_: FreezeSchedule.from_args(
            FreezeArguments(freeze_strategy=name, freeze_lr=["head=1", "*=0.1"])
        ),
    ],
    ids=["by name", "constructor", "flags"],
)
@pytest.mark.parametrize("name", ["ulmfit", "fine_tune"])
def test_rates_of_every_stage_replace_the_decay_of_a_recipe(name, make):
    rates = make(name, lr={"head": 1, "*": 0.1})._manners["learning_rates"]
    assert rates.lr_decay == 1
    assert rates.phase_decay == (0.5 if name == "fine_tune" else 1)
    with pytest.raises(ValueError, match="contradict each other"):
        FreezeSchedule.fine_tune(lr_mult=8, lr={"*": 1})


def test_every_strategy_has_a_name_for_flags():
    assert list(STRATEGIES) == [
        "gradual", "head_only", "head_then_all", "explicit", "chain_thaw", "freeze_down",
        "random_stages", "cyclic", "on_plateau", "by_gradient",
    ]  # fmt: skip
    assert list(NAMES) == [*STRATEGIES, "ulmfit", "lp_ft", "lisa", "bitfit", "fine_tune"]
    for name in NAMES:
        assert name in FreezeArguments.__dataclass_fields__["freeze_strategy"].metadata["help"]
