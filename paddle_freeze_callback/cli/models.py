"""A model by name, without its weights."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import paddle
from paddle import nn

from ..words import did_you_mean
from .mistake import MistakeError, blaming, near_file


def load_model(text: str) -> nn.Layer:
    """The network that MODEL means on the command line, without pretrained weights.

    >>> type(load_model("paddle.vision:LeNet")).__name__
    'LeNet'
    """
    if os.path.isdir(text):
        return _from_folder(text)
    module, colon, factory = text.partition(":")
    if colon and not os.path.exists(text):
        if not module or not factory:
            raise MistakeError(
                f"MODEL {text!r}: write module:factory, such as paddle.vision:resnet50"
            )
        if module == "paddle.vision":
            return _from_vision(factory)
        return _from_module(module, factory)
    if os.path.isfile(text):
        raise MistakeError(
            f"MODEL {text!r} is a file; give the folder that holds config.json, or module:factory"
        )
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or os.sep == "\\" in text:
        raise MistakeError(f"MODEL {text!r}: there is no such folder{near_file(text)}")
    return _from_name(text)


def _from_vision(factory: str) -> nn.Layer:
    models = paddle.vision.models
    # Most models are built by functions; LeNet is a class without required arguments.
    known = [name for name in models.__all__ if name[0].islower() or name == "LeNet"]
    if factory not in known:
        hint = did_you_mean(factory, known, cutoff=0.5, show="paddle.vision:{}".format)
        raise MistakeError(
            f"paddle.vision.models has no {factory!r}{hint or '; it has ' + ', '.join(known)}"
        )
    build = getattr(models, factory)
    with paddle.LazyGuard():  # shapes are enough
        network: nn.Layer = build() if isinstance(build, type) else build(pretrained=False)
    return network


def load_batch(text: str) -> Any:
    """What BATCH on the command line means: the batch that a module holds, or a function gives."""
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise MistakeError(f"--batch {text!r}: write module:function, such as my_module:batch")
    found = _in_module(module, name)
    with blaming(f"{text}, called without arguments, failed"):
        return found() if callable(found) else found


def with_values(network: nn.Layer) -> nn.Layer:
    """The network with random weights, if it was built without any."""
    for parameter in network.parameters():
        if not parameter._is_initialized():  # nothing public tells; initialize() asserts
            parameter.initialize()
    return network


def _in_module(name: str, factory: str) -> Any:
    """The attribute of a module, which is looked for in the current folder, too."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    with blaming(f"the module {name!r} cannot be imported"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, but lacks another
            files = [one[:-3] for one in os.listdir(".") if one.endswith(".py")]
            hint = did_you_mean(name, files, show=lambda one: f"{one}:{factory}")
            raise MistakeError(
                f"there is no module {error.name!r}, neither here nor installed{hint}"
            ) from error
    if not hasattr(module, factory):
        public = [one for one in dir(module) if one[0] != "_"]
        hint = did_you_mean(factory, public, show=lambda one: f"{name}:{one}")
        raise MistakeError(f"the module {name!r} has no {factory!r}{hint}")
    return getattr(module, factory)


def _from_module(name: str, factory: str) -> nn.Layer:
    build = _in_module(name, factory)
    if isinstance(build, nn.Layer):
        return build
    if not callable(build):
        raise MistakeError(
            f"{name}:{factory} is {type(build).__name__}; "
            "it must be a function without arguments that gives a paddle.nn.Layer"
        )
    with blaming(f"{name}:{factory}, called without arguments, failed"):
        network = build()
    if not isinstance(network, nn.Layer):
        raise MistakeError(
            f"{name}:{factory} gave {type(network).__name__}, not a paddle.nn.Layer"
            + ("; take .network of a paddle.Model" if isinstance(network, paddle.Model) else "")
        )
    return network


def _transformers() -> Any:
    """``paddlenlp.transformers``."""
    with blaming("PaddleNLP is installed, but cannot be imported"):
        try:
            import paddlenlp.transformers as transformers
            from paddlenlp.utils.log import logger
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "paddlenlp":
                raise  # PaddleNLP is there, but lacks another
            raise MistakeError(
                "a model by name or folder needs PaddleNLP, which is not installed; "
                "pip install 'paddle-freeze-callback[nlp]', or give module:factory"
            ) from error
    logger.set_level("ERROR")
    return transformers


def _from_folder(folder: str) -> nn.Layer:
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        inside = sorted(os.listdir(folder))[:5]
        shown = ", ".join(inside) + ("" if len(inside) < 5 else " ...")
        raise MistakeError(f"the folder {folder} has no config.json; it has {shown or 'nothing'}")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise MistakeError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise MistakeError(f"{path} must hold a mapping, not {type(content).__name__}")
    transformers = _transformers()
    named = content.get("architectures") or [content.get("init_class")]
    wanted = named[0] if isinstance(named, list) and named else named
    kind = getattr(transformers, wanted, None) if isinstance(wanted, str) else None
    config_class = getattr(kind, "config_class", None)
    if config_class is None:
        families = transformers.AutoConfig.MAPPING_NAMES
        family = content.get("model_type")
        fitting = [c for c in families.get(family, ()) if c is not transformers.PretrainedConfig]
        if not fitting:
            model_type = f"model_type {family!r}" if family else "no model_type"
            hint = did_you_mean(wanted or family, [*dir(transformers), *families], show=str)
            raise MistakeError(
                f"{path}: PaddleNLP knows no such model: architectures {wanted!r}, "
                f"{model_type}{hint}"
            )
        config_class = fitting[0]
    with blaming(f"{path}: {config_class.__name__} refuses it"):
        config = config_class.from_dict(content)
    return _built(path, config, kind)


def _from_name(name: str) -> nn.Layer:
    transformers = _transformers()
    kinds = [one for kinds in transformers.AutoConfig.MAPPING_NAMES.values() for one in kinds]
    known = {known: kind for kind in kinds for known in kind.pretrained_init_configuration}
    try:
        config = known.get(name, transformers.AutoConfig).from_pretrained(name)
    except Exception as error:  # whatever a download may fail with
        public = {one: kind for one, kind in known.items() if not one.startswith("__")}
        hint = near_model(name, {one: kind.model_type for one, kind in public.items()})
        raise MistakeError(
            f"MODEL {name!r} is no folder, none of the {len(known)} models that PaddleNLP has a "
            f"configuration of, and its config.json cannot be downloaded ({type(error).__name__})"
            + hint
        ) from error
    named = config.architectures
    return _built(name, config, getattr(transformers, named[0], None) if named else None)


def near_model(name: str, families: Mapping[str, str]) -> str:
    """The end of a sentence that names models like an unknown one, of the family that it names.

    Args:
        name: the unknown name.
        families: the family of each known model of PaddleNLP.

    >>> known = {"bart-base": "bart", "bert-base-cased": "bert", "ernie-m-base": "ernie_m"}
    >>> near_model("bert-base", known), near_model("resnet-50", known)
    ('; did you mean bert-base-cased?', '; did you mean paddle.vision:resnet50?')
    """

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    vision = {plain(one): one for one in paddle.vision.models.__all__ if one[0].islower()}
    hint = did_you_mean(
        plain(name), vision, most=1, cutoff=0.85, show=lambda one: f"paddle.vision:{vision[one]}"
    )
    if hint:
        return hint
    if begun := [one for one in families if one.startswith(name)]:
        return did_you_mean(name, begun, cutoff=0, show=str)
    said = [family for family in families.values() if _names(name, family)]
    family = max(said, key=len, default=None)
    if family is None:
        return did_you_mean(name, families, show=str)
    own = [one for one, kind in families.items() if kind == family]
    return did_you_mean(name, own, cutoff=0.2, show=str)


def _names(name: str, family: str) -> bool:
    """Whether a model's name has its family as words, a number aside.

    >>> _names("ernie-m-large", "ernie_m"), _names("mbart-large", "bart"), _names("gpt2", "gpt")
    (True, False, True)
    """
    words = re.sub(r"[^a-z0-9]+", "-", family.lower())
    text = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return bool(re.search(rf"(?<![a-z0-9]){words}(?![a-z])", text))


def _built(where: str, config: Any, kind: Any) -> nn.Layer:
    """The network of a configuration: as this class or, if it has no head, as a classifier."""
    if kind is None or re.search(r"(Model|ForPretraining|ForPreTraining)$", kind.__name__):
        family = type(config).__name__[: -len("Config")]
        module = type(config).__module__.replace("configuration", "modeling")
        modeling = importlib.import_module(module)
        classifier = getattr(modeling, f"{family}ForSequenceClassification", None)
        kind = classifier or kind or getattr(modeling, f"{family}Model", None)
        if kind is None:
            raise MistakeError(
                f"{where}: PaddleNLP has no sequence classifier for {type(config).__name__}; "
                "name the class to build in config.json, under architectures"
            )
    network: nn.Layer
    with blaming(f"{where}: {kind.__name__} cannot be built"):
        try:
            with paddle.LazyGuard():  # shapes are enough, and take no memory
                network = kind.from_config(config)
        except Exception:  # some classes read their weights while they are built
            network = kind.from_config(config)
    return network
