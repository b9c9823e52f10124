"""Install this clone, with extras, into the environment whose Python runs this.

    .venv/bin/python tests/install.py cpu,nlp,plot,test

By pip; where pip cannot leave out what PaddleNLP does not need (tests/overrides.txt), by uv, which
it installs first. Needs nothing but Python.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def by_pip(*wanted: str) -> list[str]:
    """A command that installs into this environment."""
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            *wanted]  # fmt: skip


def by_uv(python: str, *wanted: str) -> list[str]:
    """A command of this environment's uv that installs into that of another Python."""
    overrides = str(ROOT / "tests" / "overrides.txt")
    return [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python,
            "--override", overrides, *wanted]  # fmt: skip


def pip_can() -> bool:
    """Whether all that PaddleNLP requires has wheels here."""
    return (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and sys.version_info < (3, 13)
    )  # fmt: skip


def main(extras: str, *besides: str) -> None:
    wanted = ["--editable", f"{ROOT}[{extras}]", *besides]
    commands = [by_pip(*wanted)]
    if "nlp" in extras and not pip_can():
        commands = [by_pip("uv"), by_uv(sys.executable, *wanted)]
    for command in commands:
        try:
            subprocess.run(command, cwd=ROOT, check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(error.returncode) from None  # it has said why


if __name__ == "__main__":
    main(*sys.argv[1:])
