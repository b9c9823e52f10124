"""What ``stages="auto"`` finds in the networks that people fine-tune.

    python tests/zoo/zoo.py            # the table, for people
    python tests/zoo/zoo.py --write    # the golden listings of what is installed
    python tests/zoo/zoo.py --docs     # docs/zoo.md and docs/zoo.zh-CN.md from the listings

Each listing has one line a network: its stages with their sizes, or the word ``refused`` and why.
What a forward contradicts stands behind it, after two slashes.
"""

from __future__ import annotations

import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libraries
import own
import paddle
from paddle import nn
from paddle.vision import models

from paddle_freeze_callback.stages import Stage, partition
from paddle_freeze_callback.stages.weights import layers, own_parameters, weights

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        name: its line in the listing.
        build: makes it, tiny.
        call: makes a forward of it, or None if that would take too long.
    """

    name: str
    build: Callable[[], nn.Layer]
    call: Callable[[nn.Layer], Callable[[], Any]] | None = None


# ---------------------------------------------------------------- who is in it

#: Of each family of paddle.vision, the smallest runs a forward; the others have its structure.
_RUN = {
    "LeNet": [2, 1, 28, 28],
    "alexnet": [1, 3, 224, 224],
    "resnet18": [1, 3, 64, 64],
    "resnet50": [1, 3, 64, 64],
    "vgg11": [1, 3, 64, 64],
    "mobilenet_v1": [1, 3, 64, 64],
    "mobilenet_v2": [1, 3, 64, 64],
    "mobilenet_v3_small": [1, 3, 64, 64],
    "mobilenet_v3_large": [1, 3, 64, 64],
    "densenet121": [1, 3, 64, 64],
    "inception_v3": [1, 3, 96, 96],
    "googlenet": [1, 3, 224, 224],
    "squeezenet1_0": [1, 3, 64, 64],
    "squeezenet1_1": [1, 3, 64, 64],
    "shufflenet_v2_x0_25": [1, 3, 64, 64],
}
_CLASSES = {
    "ResNet": lambda: models.ResNet(models.resnet.BasicBlock, 18),
    "VGG": lambda: models.VGG(models.vgg.make_layers([8, "M", 16, "M", 512])),
    "SqueezeNet": lambda: models.SqueezeNet("1.0"),
}


def vision() -> Iterator[Network]:
    for name in sorted(models.__all__):
        yield Network(name, lazily(_CLASSES.get(name, getattr(models, name)), name), looking(name))
    for name in ("resnet18", "vgg11", "mobilenet_v2", "mobilenet_v3_small", "densenet121"):
        bare = lazily(lambda name=name: getattr(models, name)(num_classes=0), "")
        yield Network(f"{name} (num_classes=0)", bare)
    yield Network("vgg16 (batch_norm=True)", lazily(lambda: models.vgg16(batch_norm=True), ""))


def lazily(make: Callable[[], nn.Layer], name: str) -> Callable[[], nn.Layer]:
    """Without values where no forward wants them: a VGG has 500 MB."""

    def build() -> nn.Layer:
        if name in _RUN:
            return make()
        with paddle.LazyGuard():
            return make()

    return build


def looking(name: str) -> Callable[[nn.Layer], Callable[[], Any]] | None:
    if name not in _RUN:
        return None
    return lambda network: lambda: network(paddle.rand(_RUN[name]))


def users() -> Iterator[Network]:
    for name, (build, inputs) in own.NETWORKS.items():
        if name not in own.OF_PADDLENLP or libraries.LIBRARY == "paddlenlp":
            yield Network(name, build, lambda network, inputs=inputs: lambda: network(*inputs()))


def library() -> Iterator[Network]:
    for name, owner in libraries.classes().items():
        build = lambda name=name, owner=owner: libraries.build(name, owner)  # noqa: E731
        yield Network(name, build, libraries.call)


def version() -> str:
    return re.sub(r"\.\d+(\.\w+)?$", "", __import__(libraries.LIBRARY).__version__)


def listings() -> dict[str, Callable[[], Iterator[Network]]]:
    """The listings of this installation, by the name of the file."""
    return {"vision": vision, "users": users, f"{libraries.LIBRARY}-{version()}": library}


# ---------------------------------------------------------------- a line of the listing

#: Why a forward may contradict a listing, by what is listed.
TIED = "tied: the head's matrix is the embeddings', too"


def line(network: Network) -> str:
    """The line of a network, without its name."""
    paddle.seed(0)
    try:
        layer = network.build()
    except Exception as error:
        return f"not built: {type(error).__name__}"
    if not weights(layer):
        return "not built: no parameters"
    try:
        stages = partition(layer)
    except ValueError as error:
        return f"refused: {why(error)}"
    shown = " | ".join(f"{stage.name} {stage.numel}" for stage in stages)
    if network.call is None:
        return shown
    times, error = first_uses(layer, network.call(layer))
    said = list(contradictions(layer, stages, times, whole=error is None))
    if error is not None:
        half = len(times) > len(weights(layer)) / 2
        said.append(f"the forward ends early: {error}" if half else f"no forward: {error}")
    return " // ".join([shown, *said])


def why(error: ValueError) -> str:
    """The reason in a refusal."""
    return re.split(r"\. Its children are", str(error).split("from its backbone: ", 1)[-1])[0]


def pasted(error: ValueError) -> list:
    """The stages that a refusal gives to paste."""
    return eval(str(error).split("stages=", 1)[1])


def first_uses(network: nn.Layer, forward: Callable[[], Any]) -> tuple[dict[int, int], str | None]:
    """When a forward first calls the layer that holds each tensor, and what ended it early."""
    uses: dict[int, int] = {}
    hooks = []
    for _, layer in layers(network):
        own_ones = [id(one) for one in own_parameters(layer).values()]
        inside = any(own_parameters(one) for path, one in layers(layer) if path)
        fused = isinstance(layer, nn.layer.rnn.RNNBase)
        if own_ones and (fused or not inside):  # a container's own: used somewhere within its call

            def note(_layer, _inputs, own_ones=own_ones):
                now = len(uses)
                for one in own_ones:
                    uses.setdefault(one, now)

            hooks.append(layer.register_forward_pre_hook(note))
    network.eval()
    try:
        with paddle.no_grad():
            forward()
    except Exception as error:  # a model of a library that this release of Paddle breaks
        return uses, type(error).__name__
    finally:
        for hook in hooks:
            hook.remove()
    return uses, None


def contradictions(
    network: nn.Layer, stages: tuple[Stage, ...], uses: dict[int, int], whole: bool
) -> Iterator[str]:
    """What a forward says against the order of the stages, a sentence each."""
    tensors = {weight.name: weight for weight in weights(network)}
    tables = {
        id(one)
        for _, layer in layers(network)
        if "Embedding" in type(layer).__name__
        for one in own_parameters(layer).values()
    }
    prefixes = {""} if "+" not in stages[min(1, len(stages) - 1)].name else _towers(stages)
    for prefix in sorted(prefixes):
        times = {
            stage.name: {
                name: uses[id(tensors[name].tensor)]
                for name in stage.parameters
                if id(tensors[name].tensor) in uses and name.startswith(prefix)
            }
            for stage in stages
        }
        live = [stage.name for stage in stages if times[stage.name]]
        for above in live[:-1]:
            starts = {name: min(times[name].values()) for name in live[live.index(above) + 1 :]}
            below = max(starts, key=lambda name: starts[name])
            early = [name for name, time in times[above].items() if time < starts[below]]
            if early:
                tied = all(id(tensors[name].tensor) in tables for name in early)
                yield f"{above} uses {early[0]} before {below}" + (" (tied)" if tied else "")
        for above, below in itertools.pairwise(live[1:]):
            end = max(times[above].values())
            late = [
                name
                for name, time in times[below].items()
                if time > end and id(tensors[name].tensor) not in tables
                if not re.search("embed|prenet", name)  # a decoder's input, at the bottom
            ]
            if late:
                yield f"{below} uses {late[0]} after {above}"
    never = [
        stage.name
        for stage in stages
        if not any(id(tensors[name].tensor) in uses for name in stage.parameters)
        and any(name.count(".") for name in stage.parameters)
    ]
    if never and whole:
        yield f"unused: {', '.join(never)}"


def _towers(stages: tuple[Stage, ...]) -> set[str]:
    """The first names of the bodies that open side by side."""
    return {
        name.split(".")[0] for stage in stages for name in stage.name.split(" + ") if "." in name
    }


# ---------------------------------------------------------------- files


def golden(name: str) -> dict[str, str]:
    """A listing by network."""
    path = HERE / f"{name}.txt"
    if not path.exists():
        return {}
    lines = (one for one in path.read_text(encoding="utf-8").splitlines() if one)
    return dict(one.split(": ", 1) for one in lines)


def write(only: list[str]) -> None:
    for name, networks in listings().items():
        if not only or name in only or ("library" in only and name.startswith("paddle")):
            lines = [f"{network.name}: {line(network)}" for network in networks()]
            (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(name, len(lines))


# ---------------------------------------------------------------- tables for people

TITLES = {
    "vision": "paddle.vision",
    "users": "networks around pretrained ones",
    "paddlenlp-2.8": "PaddleNLP 2.8",
    "paddlenlp-3": "PaddleNLP 3: what 2.8 has not",
    "paddleformers-1": "PaddleFormers",
}
TEXTS = {
    "zoo.md": {
        "intro": """# What "auto" finds

[中文](zoo.zh-CN.md)

`FreezeSchedule()` finds the head (the new task layers) and the stages of the backbone by itself. Here is
what it finds in {count} networks, stages in the order in which they unfreeze; `head` first, the input side
last. {right} are read, {refused} are refused with a message that says why and gives `stages=[...]` to paste:
nearly all are base models, which have no head yet. Each row is checked by a test; where a forward pass runs,
the order of stages agrees with the order in which it uses the layers. `make zoo` prints the tables for what
is installed. A network that is not here: `print(schedule.preview(network))`, or `freeze_stages` on its class.
""",  # noqa: E501
        "header": "| network | stages, in the order in which they unfreeze |",
        "refused": "refused: {}",
        "titles": {},
    },
    "zoo.zh-CN.md": {
        "intro": """# “auto” 能读懂哪些网络

[English](zoo.md)

`FreezeSchedule()` 自动找出任务头（新加的层）和骨干网络的各个阶段。下面是它在 {count} 个网络中找到的结果，阶段按解冻的先后排列：
`head` 最先，输入侧最后。{right} 个能读懂；{refused} 个会被拒绝，报错说明原因，并给出可以直接粘贴的 `stages=[...]`：
它们几乎都是还没有任务头的基础模型。每一行都有测试；能运行前向的网络，阶段的顺序与前向使用各层的顺序一致。
`make zoo` 打印当前环境的表格。表中没有的网络：`print(schedule.preview(network))`，或在类上写 `freeze_stages`。
""",  # noqa: E501
        "header": "| 网络 | 阶段，按解冻的先后 |",
        "refused": "拒绝：{}",
        "titles": {
            "users": "围绕预训练模型搭建的网络",
            "paddlenlp-3": "PaddleNLP 3（2.8 没有的）",
        },
    },
}
_CHINESE = {
    r"(\w+) is a base model, and has no head yet": r"\1 是基础模型，还没有任务头",
    r"the last child '(.*)' ends with a normalization layer.*": r"最后一层 `\1` 以归一化层结尾",
    r"the last child '(.*)' has embeddings": r"最后一层 `\1` 含有 Embedding，不是任务头",
    r"the last child '(.*)' holds a series of blocks": r"最后一层 `\1` 含有一串 block，不是任务头",
    r"the last child '(.*)' is a pooler.*": r"最后一层 `\1` 是 pooler，不是任务头",
    r"it has a single layer with parameters": "只有一层有参数",
    r"everything lies in its base, '(.*)'": r"所有参数都在基础模型 `\1` 里",
}


def shown(line: str) -> str:
    """The names of the stages of a line, numbered ones in a row as a range from the top.

    >>> shown("head 3 | layers.2 4 | layers.1 4 | layers.0 4 | embeddings 9")
    'head, layers.{2…0}, embeddings'
    """
    names = [one.rsplit(" ", 1)[0] for one in line.split(" // ")[0].split(" | ")]
    runs: list[tuple[str, list[str]]] = []
    for name in names:
        stem = re.sub(r"\d+(?= \+ |$)", "#", name)
        if runs and "#" in stem and runs[-1][0] == stem:
            runs[-1][1].append(name)
        else:
            runs.append((stem, [name]))
    return ", ".join(_range(*run) for run in runs)


def _range(stem: str, names: list[str]) -> str:
    ends = [re.findall(r"(\d+)(?= \+ |$)", name) for name in (names[0], names[-1])]
    if len(names) == 1:
        return names[0]
    for first, last in zip(*ends):
        stem = stem.replace("#", f"{{{first}…{last}}}", 1)
    return stem


def rows(name: str) -> Iterator[tuple[str, str]]:
    """Network and line of a listing, without what could not be built."""
    known = golden("paddlenlp-2.8") if name == "paddlenlp-3" else {}
    for network, said in golden(name).items():
        if (
            network not in known
            and not said.startswith("not built")
            and "no parameters" not in said
        ):
            yield network, said


def docs() -> None:
    """Write the tables of the documentation."""
    listed = {name: list(rows(name)) for name in TITLES}
    lines = [said for entries in listed.values() for _, said in entries]
    refused = sum(said.startswith("refused") for said in lines)
    for file, text in TEXTS.items():
        numbers = {"count": len(lines), "refused": refused, "right": len(lines) - refused}
        parts = [text["intro"].format(**numbers)]
        for name, entries in listed.items():
            parts.append(f"## {text['titles'].get(name, TITLES[name])}\n")
            parts.append(f"{text['header']}\n| --- | --- |")
            for network, said in entries:
                cell = f"`{shown(said)}`"
                if said.startswith("refused: "):
                    reason = said.removeprefix("refused: ")
                    for english, chinese in _CHINESE.items() if "zh" in file else ():
                        reason = re.sub(english, chinese, reason)
                    cell = text["refused"].format(reason)
                parts.append(f"| {network} | {cell} |")
            parts.append("")
        (DOCS / file).write_text("\n".join(parts), encoding="utf-8")


def show() -> None:
    """Print the tables of what is installed, read anew."""
    from rich.console import Console
    from rich.table import Table

    console, counts = Console(), {"read": 0, "refused": 0, "not built": 0}
    for name, networks in listings().items():
        table = Table("network", "stages, in the order in which they unfreeze", title=name)
        for network in networks():
            said = line(network)
            refused, failed = said.startswith("refused"), said.startswith("not built")
            counts["refused" if refused else "not built" if failed else "read"] += 1
            table.add_row(network.name, said if refused or failed else shown(said))
        console.print(table)
    console.print(", ".join(f"{number} {what}" for what, number in counts.items()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if "--write" in sys.argv:
        write(sys.argv[2:])
    elif "--docs" in sys.argv:
        docs()
    else:
        show()
