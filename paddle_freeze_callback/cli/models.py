"""A model by name, without its weights."""

from __future__ import annotations

import difflib
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
from .mistake import MistakeError, near_file


def load_model(text: str) -> nn.Layer:
    """The network that a MODEL of the command line means, without pretrained weights.

    Args:
        text: ``"paddle.vision:factory"``, ``"module:factory"``, a folder with a configuration
            of PaddleNLP, or the name of one of PaddleNLP's models.

    Raises:
        MistakeError: if there is no such model, with names that look like it.

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
    # Classes that take no arguments (LeNet) are models, too; functions build the others.
    known = [name for name in models.__all__ if name[0].islower() or name == "LeNet"]
    if factory not in known:
        near = difflib.get_close_matches(factory, known, n=3, cutoff=0.5)
        hint = did_you_mean(f"paddle.vision:{one}" for one in near)
        raise MistakeError(
            f"paddle.vision.models has no {factory!r}{hint or '; it has ' + ', '.join(known)}"
        )
    build = getattr(models, factory)
    with paddle.LazyGuard():  # shapes are enough
        network: nn.Layer = build() if isinstance(build, type) else build(pretrained=False)
    return network


def _from_module(name: str, factory: str) -> nn.Layer:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise MistakeError(f"the module {name!r} cannot be imported: {error}") from error
        files = [one[:-3] for one in os.listdir(".") if one.endswith(".py")]
        hint = did_you_mean(f"{one}:{factory}" for one in difflib.get_close_matches(name, files))
        raise MistakeError(
            f"there is no module {error.name!r}, neither here nor installed{hint}"
        ) from error
    except (Exception, SystemExit) as error:
        raise MistakeError(f"the module {name!r} cannot be imported: {_named(error)}") from error
    if not hasattr(module, factory):
        near = difflib.get_close_matches(factory, [n for n in dir(module) if n[0] != "_"], n=3)
        hint = did_you_mean(f"{name}:{one}" for one in near)
        raise MistakeError(f"the module {name!r} has no {factory!r}{hint}")
    build = getattr(module, factory)
    if isinstance(build, nn.Layer):
        return build
    if not callable(build):
        raise MistakeError(
            f"{name}:{factory} is {type(build).__name__}; "
            "it must be a function without arguments that gives a paddle.nn.Layer"
        )
    try:
        network = build()
    except (Exception, SystemExit) as error:
        raise MistakeError(
            f"{name}:{factory}, called without arguments, failed: {_named(error)}"
        ) from error
    if not isinstance(network, nn.Layer):
        raise MistakeError(
            f"{name}:{factory} gave {type(network).__name__}, not a paddle.nn.Layer"
            + ("; take .network of a paddle.Model" if isinstance(network, paddle.Model) else "")
        )
    return network


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def _transformers() -> Any:
    """``paddlenlp.transformers``."""
    try:
        import paddlenlp.transformers as transformers
        from paddlenlp.utils.log import logger
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "paddlenlp":
            raise MistakeError(
                "a model by name or folder needs PaddleNLP, which is not installed; "
                "pip install 'paddle-freeze-callback[nlp]', or give module:factory"
            ) from error
        raise MistakeError(f"PaddleNLP is installed, but cannot be imported: {error}") from error
    except Exception as error:
        raise MistakeError(
            f"PaddleNLP is installed, but cannot be imported: {_named(error)}"
        ) from error
    logger.set_level("ERROR")
    return transformers


def _from_folder(folder: str) -> nn.Layer:
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        inside = sorted(os.listdir(folder))[:5]
        raise MistakeError(
            f"the folder {folder} has no config.json; it has "
            + (", ".join(inside) + ("" if len(inside) < 5 else " ...") if inside else "nothing")
        )
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise MistakeError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise MistakeError(f"{path} must hold a mapping, not {type(content).__name__}")
    return _from_configuration(path, content)


def _from_configuration(where: str, content: Mapping[str, Any]) -> nn.Layer:
    transformers = _transformers()
    said = content.get("architectures") or [content.get("init_class")]
    wanted = said[0] if isinstance(said, list) and said else said
    kind = getattr(transformers, wanted, None) if isinstance(wanted, str) else None
    config_class = getattr(kind, "config_class", None)
    if config_class is None:
        families = transformers.AutoConfig.MAPPING_NAMES
        family = content.get("model_type")
        base = transformers.PretrainedConfig
        fitting = [one for one in families.get(family, ()) if one is not base]
        if not fitting:
            told = f"model_type {family!r}" if family else "no model_type"
            near = difflib.get_close_matches(str(wanted or family), [*dir(transformers), *families])
            raise MistakeError(
                f"{where}: PaddleNLP knows no such model: architectures {wanted!r}, "
                f"{told}{did_you_mean(near)}"
            )
        config_class = fitting[0]
    try:
        config = config_class.from_dict(dict(content))
    except Exception as error:
        raise MistakeError(
            f"{where}: {config_class.__name__} refuses it: {_named(error)}"
        ) from error
    return _built(where, config, kind)


def _from_name(name: str) -> nn.Layer:
    transformers = _transformers()
    kinds = [one for kinds in transformers.AutoConfig.MAPPING_NAMES.values() for one in kinds]
    known = {known: kind for kind in kinds for known in kind.pretrained_init_configuration}
    try:
        config = known.get(name, transformers.AutoConfig).from_pretrained(name)
    except Exception as error:  # whatever a download may fail with
        near = difflib.get_close_matches(name, known, n=3)
        vision = [one for one in paddle.vision.models.__all__ if one == name]
        raise MistakeError(
            f"MODEL {name!r} is no folder, none of the {len(known)} models that PaddleNLP has a "
            f"configuration of, and its config.json cannot be downloaded ({type(error).__name__})"
            + did_you_mean([*near, *(f"paddle.vision:{one}" for one in vision)])
        ) from error
    said = config.architectures
    return _built(name, config, getattr(transformers, said[0], None) if said else None)


def _built(where: str, config: Any, kind: Any) -> nn.Layer:
    """The network of a configuration, as the class or, if that has no head, as a classifier."""
    if kind is None or re.search(r"(Model|ForPretraining|ForPreTraining)$", kind.__name__):
        family = type(config).__name__[: -len("Config")]
        modeling = importlib.import_module(
            type(config).__module__.replace("configuration", "modeling")
        )
        classifier = getattr(modeling, f"{family}ForSequenceClassification", None)
        kind = classifier or kind or getattr(modeling, f"{family}Model", None)
        if kind is None:
            raise MistakeError(
                f"{where}: PaddleNLP has no sequence classifier for {type(config).__name__}; "
                "say in config.json under architectures which class to build"
            )
    try:
        try:
            with paddle.LazyGuard():  # shapes are enough, and take no memory
                network: nn.Layer = kind.from_config(config)
        except Exception:  # some look at their weights while they are built
            network = kind.from_config(config)
    except Exception as error:
        raise MistakeError(f"{where}: {kind.__name__} cannot be built: {_named(error)}") from error
    return network
