"""The documents: links lead somewhere, both languages say the same, outputs are today's."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_freeze_callback.words import LINE

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
        lines = [shlex.split(line) for line in block.splitlines()]
        return [[re.sub(r"<[^<>]+>", "<>", word) for word in line] for line in lines]
    if language == "yaml":
        return [line.partition("#")[0].rstrip() for line in block.splitlines()]
    return block


#: Faces of the site: they hold the READMEs and the changelog.
FACES = {"docs/index.md", "docs/index.zh-CN.md", "docs/changelog.md"}
#: Documents in both languages, without their endings.
TRANSLATED = sorted(
    name.removesuffix(".zh-CN.md") for name in set(DOCUMENTS) - FACES if name.endswith(".zh-CN.md")
)


@pytest.mark.parametrize("name", TRANSLATED)
def test_both_languages_have_the_same_sections_code_and_tables(name):
    english, chinese = text_of(f"{name}.md"), text_of(f"{name}.zh-CN.md")
    for pattern in (r"^## ", r"^### ", r"^\|[ |-]+\|$", r"^!\["):
        ours, theirs = (
            len(re.findall(pattern, prose(t), re.MULTILINE)) for t in (english, chinese)
        )
        assert ours == theirs, pattern
    ours, theirs = _FENCE.findall(english), _FENCE.findall(chinese)
    assert [language for language, _ in ours] == [language for language, _ in theirs]
    for (language, one), (_, other) in zip(ours, theirs):
        assert without_words(language, one) == without_words(language, other)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_for_a_shell_can_be_pasted_into_any(name):
    """An interactive zsh takes what follows # for words of the command."""
    blocks = [block for language, block in _FENCE.findall(text_of(name)) if language == "sh"]
    assert not [line for block in blocks for line in block.splitlines() if "#" in line]


def test_a_document_for_users_is_there_in_both_languages():
    docs = {name for name in set(DOCUMENTS) - FACES if name.startswith(("docs/", "README"))}
    assert docs == {f"{name}{ending}" for name in TRANSLATED for ending in (".md", ".zh-CN.md")}


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_links_to_other_projects_are_the_same_in_both_languages(name):
    found = [
        set(re.findall(r"https?://[^)\s>]+", text_of(f"{name}{x}.md"))) for x in ("", ".zh-CN")
    ]
    assert found[0] == found[1]


#: What a Chinese engineer would not write, and what to write instead.
AVOIDED = {
    "主干": "骨干网络",
    "骨干(?!网络)": "骨干网络",
    "日程": "冻结计划 or 解冻策略",
    "打开": "解冻; of a cache, 启用",
    "逐段": "逐层 or 逐个阶段",
    "(?<![阶字])段(?!错误)": "阶段",  # a segmentation fault is one
    "升温": "warmup（热身）",
    "配方": "预设",
    "选取器|选择符": "选择器",
    "判别学习率|差异化学习率": "分层学习率",
    "点名": "显式指定, or 指明是哪一项",
    "自写": "自己编写的",
    "词元": "token",
    "提前停止": "早停",
    "附加项": "可选依赖（extra）",
    "教师(?!网络)": "教师网络",
    "你": "您",
    "先看一看|可以修改什么": "先预览, 按需修改",
}
CHINESE = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.zh-CN.md", "docs/*.zh-CN.*", "examples/*.zh-CN.*")
    for path in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize("name", CHINESE)
def test_chinese_uses_the_terms_of_its_readers(name):
    found = [
        f"line {number}: {match[0]}, better {better}: {line}"
        for number, line in enumerate(text_of(name).splitlines(), 1)
        for avoided, better in AVOIDED.items()
        for match in re.finditer(avoided, line)
    ]
    assert not found


PROGRAMS = [name for name in DOCUMENTS if "```python" in text_of(name)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_code_of_a_document_runs_as_it_stands_in_its_order(name, tmp_path):
    """In a process of its own, as a reader would paste it, block after block."""
    blocks = [block for language, block in _FENCE.findall(text_of(name)) if language == "python"]
    script = tmp_path / "pasted.py"
    script.write_text("\n\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pasted", script.name],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert not done.returncode, done.stderr[-3000:]


def test_the_program_for_several_processes_does_the_same_in_two_as_in_one(tmp_path):
    blocks = [block for language, block in _FENCE.findall(text_of("docs/processes.md"))
              if language == "python"]  # fmt: skip
    (tmp_path / "train.py").write_text("\n\n".join(blocks), encoding="utf-8")
    launch = ["paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "--log_dir", "logs", "train.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert not done.returncode, done.stderr[-3000:]
    logs = [(tmp_path / "logs" / f"workerlog.{rank}").read_text() for rank in (0, 1)]
    said = [re.findall(r"^  (step \d+, .*)", log, re.MULTILINE) for log in logs]
    assert [line.partition(";")[0] for line in said[0]] == [
        "step 0, epoch 0: opens head",
        "step 4, epoch 1: opens block",
        "step 8, epoch 2: opens stem",
    ]
    assert said[0] == said[1]
    assert [f"rank {rank} of 2:" in log for rank, log in enumerate(logs)] == [True, True]


DEMO = "python examples/finetune_sentiment.py "


def test_the_flags_in_the_readme_are_read_and_open_something():
    """Each command line of the demo, its training aside."""
    import paddle
    from paddlenlp.trainer import PdArgumentParser

    from paddle_freeze_callback import FreezeSchedule, FreezeTrainingArguments

    network = paddle.nn.Sequential(
        ("encoder", paddle.nn.Sequential(*(paddle.nn.Linear(2, 2) for _ in range(6)))),
        ("classifier", paddle.nn.Linear(2, 2)),
    )
    found = [
        line
        for language, block in _FENCE.findall(text_of("README.md"))
        if language == "sh"
        for line in block.splitlines()
        if line.startswith(DEMO)
    ]
    assert len(found) == 3
    for line in found:
        words = shlex.split(line.removeprefix(DEMO))
        parser = PdArgumentParser(FreezeTrainingArguments)
        (args,) = parser.parse_args_into_dataclasses(["--output_dir", "out", *words])
        table = FreezeSchedule.from_args(args).preview(network, epochs=3, steps_per_epoch=10)
        assert table.phases[0].trainable, line


def readme_assets():
    place = importlib.util.spec_from_file_location("readme_assets", ROOT / "docs/readme_assets.py")
    assets = importlib.util.module_from_spec(place)
    place.loader.exec_module(assets)
    return assets


def test_the_tables_of_options_are_todays():
    assets = readme_assets()
    for ending in assets.ENDINGS:
        for name, rows in assets.tables(ending).items():
            path = assets.place("options", name, ending)
            found = assets.table(name, path.read_text(encoding="utf-8"))
            assert found == rows, f"{path.name}: run make readme-assets"


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


def test_the_outputs_in_the_documents_are_what_is_printed_today():
    assets = readme_assets()
    for name, output in (("preview", assets.preview_output()), ("plan", assets.plan_output())):
        for ending in assets.ENDINGS:
            path = assets.place("output", name, ending)
            found = assets.block(name, path.read_text(encoding="utf-8"))
            assert found == output.rstrip("\n") + "\n", f"{path.name}: run make readme-assets"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_line_of_a_log_in_a_document_is_as_short_as_a_real_one(name):
    lines = re.findall(
        r"^ *(?:FreezeSchedule: )?(step \d+, epoch .*)$", text_of(name), re.MULTILINE
    )
    assert [line for line in lines if len(line) > LINE] == []


@pytest.mark.parametrize("ending", [".md", ".zh-CN.md"])
def test_counts_and_measured_numbers_are_those_of_the_page_that_is_written_by_a_program(ending):
    (networks,) = set(re.findall(r"(\d+) (?:networks|个网络)", text_of(f"docs/zoo{ending}")))
    assert set(re.findall(r"(\d+) (?:networks|个网络)", text_of(f"README{ending}"))) == {networks}
    measured = text_of("benchmarks/ABLATION.md")
    in_one = measured.partition("## All in one")[2].partition("## What follows")[0]
    row = re.compile(r"^\| .*\d\.\d(?: [-+])? \(\d+\) \|.*$", re.MULTILINE)
    assert len(row.findall(in_one)) >= 13
    there = text_of(f"docs/choosing{ending}").replace("(加噪声)", "(noise)")
    assert row.findall(there) == row.findall(in_one)


def test_every_page_of_the_site_is_in_its_table_of_contents():
    listed = re.findall(r"^([\w.-]+|.* <.*>)$", text_of("docs/index.md"), re.MULTILINE)
    pages = {one.partition("<")[2].rstrip(">") or one for one in listed} | {"index"}
    there = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert there <= pages


def test_the_reference_names_everything_that_is_public():
    import paddle_freeze_callback

    page = text_of("docs/api.rst")
    public = set(paddle_freeze_callback.__all__) - {"__version__"}
    assert {name for name in public if not re.search(rf":: (\w+\.)*{name}$", page, re.M)} == set()
