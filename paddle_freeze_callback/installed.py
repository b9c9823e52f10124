"""What is installed beside this package.

Imports nothing of this package, and Paddle only when asked: it runs before everything else.
"""

from __future__ import annotations

import platform
import re
import sys
import warnings
from importlib import metadata
from typing import Any

from .version import VERSION

#: The oldest release of Paddle that the tests ran with.
LEAST = (2, 6)

_HOW = (
    "Install the distribution for your machine, paddlepaddle (CPU) or paddlepaddle-gpu: "
    "https://www.paddlepaddle.org.cn/en/install"
)


def require_paddle() -> None:
    """Refuse to go on without Paddle, or with one that is too old.

    Neither distribution is a hard requirement: ``paddlepaddle`` would be installed over
    ``paddlepaddle-gpu``, which holds the same modules.

    Raises:
        ImportError: in one line that names both distributions.
    """
    try:
        with warnings.catch_warnings():
            # Of interest to who compiles operators; the command would begin with it every time.
            warnings.filterwarnings("ignore", message="No ccache found")
            import paddle
    except ModuleNotFoundError as error:
        if error.name != "paddle":  # it is there, but something that it needs is not
            raise
        raise ModuleNotFoundError(
            f"paddle_freeze_callback needs PaddlePaddle, which is not installed. {_HOW}",
            name="paddle",
        ) from None
    version = getattr(paddle, "__version__", None)
    if version is None:  # a file of this name, or a folder, which Python takes for a package
        where = getattr(paddle, "__file__", None) or ", ".join(paddle.__path__)
        raise ModuleNotFoundError(
            f"paddle_freeze_callback needs PaddlePaddle; the module paddle that is found in "
            f"{where} is another. {_HOW}",
            name="paddle",
        )
    if too_old(version):
        least = ".".join(map(str, LEAST))
        raise ImportError(
            f"paddle_freeze_callback needs PaddlePaddle {least} or newer, and {version} is "
            f"installed. {_HOW}"
        )


def too_old(version: str) -> bool:
    """Whether a release of Paddle is too old; nightly builds call themselves 0.0.0.

    >>> [too_old(one) for one in ("0.15.0", "2.5.2", "2.6.2", "3.0.0-beta1", "3.3.1", "0.0.0")]
    [True, True, False, False, False, False]
    """
    return release(version) < LEAST


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a release of Paddle; a nightly build counts as the newest.

    >>> release("3.0.0-beta1"), release("0.0.0")
    ((3, 0), (99, 0))
    """
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return (99, 0) if numbers == (0, 0) else numbers


_DISTRIBUTIONS = (
    "paddlepaddle", "paddlepaddle-gpu", "paddlenlp", "paddleformers", "visualdl", "numpy", "PyYAML",
    "platformdirs", "psutil", "rich", "xxhash", "matplotlib",
)  # fmt: skip


def versions() -> str:
    """What a report of a fault should say of the machine, a line each."""
    lines = [
        f"paddle-freeze-callback {VERSION}",
        f"Python {platform.python_version()} ({platform.python_implementation()})",
        platform.platform(),
    ]
    for name in _DISTRIBUTIONS:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    paddle: Any = sys.modules.get("paddle")
    if hasattr(getattr(paddle, "version", None), "cuda"):  # it is imported
        cuda = paddle.version.cuda()  # a number, or "False"
        built = "without CUDA" if cuda == "False" else f"for CUDA {cuda}"
        lines.append(f"paddle {paddle.__version__}, built {built}")
    return "\n".join(lines)
