"""What setup.cfg cannot say: the README without links that work in the repository alone."""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
# ![picture](docs/...) goes, [text](docs/...) keeps its text; addresses and anchors stay.
README = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)", "", README)
README = re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"\1", README)

setup(long_description=README, long_description_content_type="text/markdown")
