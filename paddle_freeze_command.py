"""What the command ``paddle-freeze`` begins with.

It lies beside the package, not in it: importing the package needs Paddle, and ``--versions`` is
asked for where that fails. All else is in ``paddle_freeze_callback.cli``.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command, or say in one line why Paddle cannot be used.

    Returns:
        The exit status.
    """
    try:
        from paddle_freeze_callback.cli import main as command
    except Exception as error:
        # A package that cannot be imported leaves the modules that could.
        installed = sys.modules.get("paddle_freeze_callback.installed")
        if installed is None:
            raise
        kind, why = type(error).__name__, " ".join(str(error).split())
        if sys.argv[1:] == ["--versions"]:
            print(installed.versions(), f"cannot be imported: {kind}: {why}", sep="\n")
            return 0
        if sys.argv[1:] == ["--version"]:
            print(f"paddle_freeze_callback {installed.VERSION}")
            return 0
        if not isinstance(error, ImportError):
            raise  # a fault of Paddle's, which its traceback explains
        print(f"paddle-freeze: error: {why or kind}", file=sys.stderr)
        return 1
    return command()
