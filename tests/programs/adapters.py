"""Adapter models under schedules that freeze again, saved, resumed and put back to their best.

Prints, as JSON, what is wrong, by kind of adapter and format of checkpoints. Children are forked
before Paddle has built anything, so each names its parameters from the beginning, as a new process
does; each draws its adapters anew.

    python adapters.py FOLDER
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import paddle
from resume import difference, in_a_process
from trainers import LIBRARY, WORD_TABLE, InOrder, Tokens, TrainerCallback, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, RandomStages

LINEAR = [".*linear1.*", ".*linear2.*"]
BLOCKS = ["**.layers.2", "**.layers.1", "**.layers.0"]
WORDS = f"model.{WORD_TABLE}"
FORMATS = {
    "plain": {"paddlenlp": {"unified_checkpoint": False}, "paddleformers": {}},
    "unified": {
        "paddlenlp": {"unified_checkpoint": True},
        "paddleformers": {
            "save_checkpoint_format": "unified_checkpoint",
            "load_checkpoint_format": "unified_checkpoint",
        },
    },
}


if LIBRARY == "paddleformers" and importlib.util.find_spec("paddlefleet") is None:
    # It asks whether a LoRA model holds one of these, and imports the name with paddlefleet alone.
    importlib.import_module("paddleformers.trainer.trainer").GPTModel = type("GPTModel", (), {})


def peft():
    return importlib.import_module(f"{LIBRARY}.peft")


def base(seed):
    network = tiny_bert()
    paddle.seed(seed)  # the adapter is drawn next
    if LIBRARY == "paddleformers":  # which has no BERT; its LoRA model asks for a configuration
        transformers = importlib.import_module("paddleformers.transformers")
        network.config = transformers.PretrainedConfig(tensor_model_parallel_size=1)
        network.can_generate = lambda: False
    return network


def lora(folder, seed, **options):
    if folder is not None:
        return peft().LoRAModel.from_pretrained(base(seed), str(folder))
    return peft().LoRAModel(base(seed), peft().LoRAConfig(target_modules=LINEAR, r=2, **options))


def vera(folder, seed):
    network = base(5)  # vera_A, which never trains, is in no checkpoint
    if folder is not None:
        return peft().VeRAModel.from_pretrained(network, str(folder))
    config = peft().VeRAConfig(target_modules=LINEAR, r=2, vera_alpha=4)
    network = peft().VeRAModel(network, config)
    network.mark_only_vera_as_trainable(notfreezeB=True)
    return network


def prefix(folder, seed):
    transformers = importlib.import_module(f"{LIBRARY}.transformers")
    utils = importlib.import_module(f"{LIBRARY}.peft.prefix")
    paddle.seed(3)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    paddle.seed(seed)
    past = utils.llama_postprocess_past_key_value
    if folder is not None:
        return utils.PrefixModelForCausalLM.from_pretrained(model, str(folder), past)
    config = utils.PrefixConfig(
        num_prefix_tokens=2, hidden_size=16, prefix_projection=True,
        prefix_projection_hidden_size=8, **heads,
    )  # fmt: skip
    return utils.PrefixModelForCausalLM(model, config, past)


@dataclass(frozen=True)
class Kind:
    build: Callable
    schedule: dict
    options: dict = field(default_factory=dict)
    opens: tuple[str, ...] = ()  # weights under the adapter

    def __call__(self, folder=None, seed=7):
        return self.build(folder, seed, **(self.options if folder is None else {}))


REFROZEN = {"stages": BLOCKS, "strategy": RandomStages(k=1, every="2 steps", always=())}
KINDS = {
    "LoRA": Kind(lora, REFROZEN),
    "LoRA with trainable_modules": Kind(lora, {}, {"trainable_modules": ["classifier.*"]}),
    "LoRA and weights opened by name": Kind(
        lora,
        {
            "unfreeze_at": {
                0: ["model.classifier", BLOCKS[0]],
                "2 steps": {"unfreeze": [WORDS, BLOCKS[1]], "freeze": BLOCKS[0]},
                "5 steps": {"unfreeze": BLOCKS[2], "freeze": WORDS},
                "9 steps": {"freeze": "model.classifier"},
            }
        },
        opens=("classifier.weight", "classifier.bias", f"{WORDS.removeprefix('model.')}.weight"),
    ),
    "prefix": Kind(
        prefix,
        {
            "unfreeze_at": {
                0: "prefix_encoder.3",
                "2 steps": {"unfreeze": "prefix_encoder.{0-1}", "freeze": "prefix_encoder.3"},
                "8 steps": {"unfreeze": "prefix_encoder.3", "freeze": "prefix_encoder.0"},
            }
        },
    ),
    "VeRA": Kind(vera, REFROZEN),
}


class Sequences(Tokens):
    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {**row, "labels": row["input_ids"]}


def state(network):
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


class Look(TrainerCallback):
    def __init__(self):
        self.at = {}

    def on_save(self, args, state_, control=None, model=None, **context):
        self.at[state_.global_step] = state(model)


def saved(folder: Path) -> dict:
    """The weights in a checkpoint, by the names in it."""
    found = {}
    for file in folder.glob("*model_state*.pdparams"):
        found |= paddle.load(str(file), return_numpy=True)
    for file in folder.glob("*model*.safetensors"):
        found |= importlib.import_module("safetensors.numpy").load_file(str(file))
    return found


def train(folder: Path, kind: str, form: str, resume: int | None, result: Path) -> None:
    spec = KINDS[kind]
    network = spec(seed=5 if resume is None else 6)
    start, found, look = state(network), flags(network), Look()
    schedule = FreezeSchedule(verify=True, **spec.schedule)
    trainer = trainer_for(
        network,
        folder,
        [schedule, look],
        data=Sequences() if kind == "prefix" else Tokens(),
        kind=AllWeights,
        num_train_epochs=2,
        learning_rate=0.02,
        save_strategy="steps",
        save_steps=3,
        evaluation_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # so that the best is not the last
        logging_steps=100,
        weight_decay=0.1,
        **FORMATS[form][LIBRARY],
    )
    trainer.eval_dataset = Sequences(4) if kind == "prefix" else Tokens(4)
    trainer.train(resume_from_checkpoint=resume and str(folder / f"checkpoint-{resume}"))
    moments = trainer.optimizer.state_dict()
    rate = moments.pop("LR_Scheduler")
    moments.pop("master_weights", None)
    trainer.save_model(str(folder / "final"))
    best = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
    final = state(network)
    again = state(spec(folder / "final"))
    result.write_bytes(
        pickle.dumps(
            {
                "weights": look.at[12],
                "moments": {name: tensor.numpy() for name, tensor in moments.items()},
                "rate": rate["last_lr"],
                "history": [(c.step, c.opened, c.frozen) for c in schedule.history],
                "start": start,
                "at": look.at,
                "held": {step: saved(folder / f"checkpoint-{step}") for step in look.at},
                "adapter": adapter_names(network),
                "best": best,
                "final": final,
                "flags": [n for n, f in zip(flags(network), found) if n != f],
                "from_pretrained": [n for n in final if final[n].tobytes() != again[n].tobytes()],
            }
        )
    )


def flags(network):
    return [(name, tensor.stop_gradient) for name, tensor in network.named_parameters()]


class AllWeights(InOrder):
    """A Trainer whose optimizer is given all weights; PaddleFormers' gets those that train."""

    def create_optimizer(self, lr_scheduler=None):
        if LIBRARY == "paddleformers" and self.optimizer is None:
            self.optimizer = paddle.optimizer.AdamW(
                self.lr_scheduler if lr_scheduler is None else lr_scheduler,
                parameters=self.model.parameters(),
                weight_decay=0.1,
            )
        return super().create_optimizer(*([] if lr_scheduler is None else [lr_scheduler]))


def adapter_names(network) -> list[str]:
    marks = ("lora_", "vera_b", "vera_B", "vera_d", "prefix_encoder")
    return [name for name, _ in flags(network) if any(mark in name for mark in marks)]


def wrong(kind: str, whole: dict | str, resumed: dict | str, step: int) -> dict[str, list[str]]:
    """What is not as it must be; empty for nothing."""
    if isinstance(whole, str):
        return {"trained": [whole]}
    found = {"resumed": difference(whole, resumed, step)}
    below = len("prefix_encoder." if kind == "prefix" else "model.")
    for at, truth in whole["at"].items():
        held = whole["held"][at]
        must = [*whole["adapter"], *(f"model.{name}" for name in KINDS[kind].opens)]
        must += [n for n in truth if truth[n].tobytes() != whole["start"][n].tobytes()]
        found[f"not in checkpoint-{at}"] = sorted({n for n in must if n[below:] not in held})
        found[f"otherwise in checkpoint-{at}"] = [
            name for name in held if held[name].tobytes() != named(truth, name).tobytes()
        ]
    for which, run in (("run", whole), ("resumed run", resumed)):
        if isinstance(run, str):
            continue
        truth, final = whole["at"][run["best"]], run["final"]
        if kind != "VeRA":  # of which PaddleNLP 3 never loads the best
            found[f"best of the {which}"] = [
                name for name in truth if truth[name].tobytes() != final[name].tobytes()
            ]
        found[f"from_pretrained after the {which}"] = run["from_pretrained"]
        found[f"flags after the {which}"] = run["flags"]
    if whole["best"] == 12:
        found["best"] = ["is the last, which shows nothing"]
    return {what: those for what, those in found.items() if those}


def named(state: dict, name: str):
    full = f"model.{name}"
    return state[full if full in state else f"prefix_encoder.{name}"]


def lacking(kind: str, form: str) -> str | None:
    """What this library cannot do, with or without a schedule."""
    if kind == "prefix" and LIBRARY == "paddleformers":
        return "PaddleFormers has no prefix tuning"
    if kind == "VeRA" and not hasattr(peft(), "VeRAModel"):
        return "no VeRA here"
    if form == "unified" and kind in ("prefix", "VeRA") and hasattr(peft(), "VeRAModel"):
        return "PaddleNLP 3 cannot write unified checkpoints of these"
    return None


def main(folder: str, *only: str) -> None:
    """Run all kinds of adapter with all formats."""
    results: dict[str, dict] = {}
    for kind in only or KINDS:
        for form in FORMATS:
            if reason := lacking(kind, form):
                results.setdefault(kind, {})[form] = reason
                continue
            where = Path(folder) / f"{kind}-{form}"
            where.mkdir(parents=True)
            files = where / "whole.pickle", where / "resumed.pickle"
            whole = in_a_process(where, kind, form, None, files[0], target=train, at=4)
            resumed = in_a_process(where, kind, form, 6, files[1], target=train, at=4)
            results.setdefault(kind, {})[form] = wrong(kind, whole, resumed, 6)
            print(kind, form, results[kind][form], flush=True)
    print("RESULT " + json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
