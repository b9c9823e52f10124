"""The documents: links lead somewhere, both languages say the same, outputs are today's."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_inside_the_project_leads_somewhere(name):
    text = text_of(name)
    for link in _LINK.findall(prose(text)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name}: {link}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_is_there(name):
    named = re.findall(r"`((?:examples|benchmarks|docs|tests)/[\w./-]+\.\w+)`", text_of(name))
    missing = [one for one in named if not (ROOT / one).exists()]
    assert not missing


def without_words(language: str, block: str) -> object:
    """A block without strings, placeholders and comments: those are in the reader's language."""
    if language == "python":
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        return ast.dump(tree)
    if language == "sh":
        lines = [shlex.split(line, comments=True) for line in block.splitlines()]
        return [[re.sub(r"<[^<>]+>", "<>", word) for word in line] for line in lines]
    if language == "yaml":
        return [line.partition("#")[0].rstrip() for line in block.splitlines()]
    return block


def test_both_readmes_have_the_same_sections_code_and_tables():
    english, chinese = text_of("README.md"), text_of("README.zh-CN.md")
    for pattern in (r"^## ", r"^### ", r"^\|[ |-]+\|$", r"^!\["):
        ours, theirs = (
            len(re.findall(pattern, prose(t), re.MULTILINE)) for t in (english, chinese)
        )
        assert ours == theirs, pattern
    ours, theirs = _FENCE.findall(english), _FENCE.findall(chinese)
    assert [language for language, _ in ours] == [language for language, _ in theirs]
    for (language, one), (_, other) in zip(ours, theirs):
        assert without_words(language, one) == without_words(language, other)


def test_the_links_to_other_projects_are_the_same_in_both_languages():
    found = [
        set(re.findall(r"https?://[^)\s>]+", text_of(f"README{x}.md"))) for x in ("", ".zh-CN")
    ]
    assert found[0] == found[1]


def readme_assets():
    place = importlib.util.spec_from_file_location("readme_assets", ROOT / "docs/readme_assets.py")
    assets = importlib.util.module_from_spec(place)
    place.loader.exec_module(assets)
    return assets


def test_the_tables_of_options_in_the_readmes_are_todays():
    assets = readme_assets()
    for readme in assets.READMES:
        text = readme.read_text(encoding="utf-8")
        for name, rows in assets.tables(readme).items():
            assert assets.table(name, text) == rows, f"{readme.name}: run make readme-assets"


def test_every_option_has_help_in_both_languages():
    assets = readme_assets()
    english, chinese = assets.english(), assets.chinese()
    assert {owner: list(own) for owner, own in english.items()} == {
        owner: list(own) for owner, own in chinese.items()
    }
    for owner, own in chinese.items():
        for name, help in own.items():
            assert re.search("[\u4e00-\u9fff]", help), f"{owner}: {name}"
            assert len(english[owner][name]) > 20, f"{owner}: {name}"


def test_the_outputs_in_the_readmes_are_what_is_printed_today():
    assets = readme_assets()
    for name, output in (("preview", assets.preview_output()), ("plan", assets.plan_output())):
        for readme in assets.READMES:
            found = assets.block(name, readme.read_text(encoding="utf-8"))
            assert found == output.rstrip("\n") + "\n", f"{readme.name}: run make readme-assets"


def test_the_reference_names_everything_that_is_public():
    import paddle_freeze_callback

    page = text_of("docs/api.rst")
    public = set(paddle_freeze_callback.__all__) - {"__version__"}
    assert {name for name in public if not re.search(rf":: (\w+\.)*{name}$", page, re.M)} == set()
