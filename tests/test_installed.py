"""Which Paddle is there, and what is said when none is."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import install
import matrix
import paddle
import pytest
import yaml

from paddle_freeze_callback.freezing.still import before_all
from paddle_freeze_callback.version import VERSION

ROOT = Path(__file__).parents[1]


def importing(folder: Path, before: str = "") -> str:
    """The last line that importing the package prints, with a folder first on the path."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{before}\n"
         "import paddle_freeze_callback"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)}, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


WITHOUT_OUR_PATH = {name: one for name, one in os.environ.items() if name != "PYTHONPATH"}
BOTH = "paddlepaddle (CPU) or paddlepaddle-gpu: https://www.paddlepaddle.org.cn/en/install"


def test_without_paddle_one_line_names_both_distributions(tmp_path):
    assert importing(tmp_path, "sys.modules['paddle'] = None") == (
        "ModuleNotFoundError: paddle_freeze_callback needs PaddlePaddle, which is not installed. "
        f"Install the distribution for your machine, {BOTH}"
    )


def test_a_paddle_that_is_too_old_is_named(tmp_path):
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text("__version__ = '2.5.2'\n", encoding="utf-8")
    assert importing(tmp_path) == (
        "ImportError: paddle_freeze_callback needs PaddlePaddle 2.6 or newer, and 2.5.2 is "
        f"installed. Install the distribution for your machine, {BOTH}"
    )


def test_a_folder_that_happens_to_be_called_paddle_is_no_paddle(tmp_path):
    (tmp_path / "paddle").mkdir()
    # Without the site-packages, where the real one would be found.
    line = importing(tmp_path, "sys.path = [p for p in sys.path if 'site-packages' not in p]")
    assert "the module paddle that is found in" in line
    assert str(tmp_path / "paddle") in line
    assert BOTH in line


def test_a_file_that_happens_to_be_called_paddle_is_no_paddle(tmp_path):
    (tmp_path / "paddle.py").write_text("speed = 3\n", encoding="utf-8")
    line = importing(tmp_path)
    assert f"the module paddle that is found in {tmp_path / 'paddle.py'} is another" in line
    assert BOTH in line


def test_a_paddle_that_fails_says_so_in_its_own_words(tmp_path):
    """As one that is older than the NumPy beside it."""
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text("import re\nre.gone\n", encoding="utf-8")
    assert importing(tmp_path) == "AttributeError: module 're' has no attribute 'gone'"


def test_a_paddle_that_lacks_something_itself_says_so_in_its_own_words(tmp_path):
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text("import no_such_thing\n", encoding="utf-8")
    assert importing(tmp_path) == "ModuleNotFoundError: No module named 'no_such_thing'"


def test_the_hook_that_holds_a_layer_comes_before_hooks_that_were_there():
    layer = paddle.nn.Linear(1, 1)
    calls: list[str] = []
    layer.register_forward_pre_hook(lambda *_: calls.append("theirs"))
    handle = before_all(layer, lambda *_: calls.append("ours"))
    layer.register_forward_pre_hook(lambda *_: calls.append("later"))
    layer(paddle.ones([1, 1]))
    assert calls == ["ours", "theirs", "later"]
    handle.remove()
    calls.clear()
    layer(paddle.ones([1, 1]))
    assert calls == ["theirs", "later"]


def test_versions_prints_what_a_report_should_hold():
    done = subprocess.run(
        [sys.executable, "-m", "paddle_freeze_callback", "--versions"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == f"paddle-freeze-callback {VERSION}"
    assert f"rich {metadata.version('rich')}" in lines
    assert any(line.startswith("Python 3.") for line in lines)
    assert any(line.startswith("paddlepaddle-gpu ") for line in lines)
    cuda = paddle.version.cuda()
    built = "without CUDA" if cuda == "False" else f"for CUDA {cuda}"
    assert lines[-1] == f"paddle {paddle.__version__}, built {built}"


def command(paddle_: str | None, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, beside a module paddle that holds this text; without any if it is ``None``."""
    (folder / "paddle").mkdir()
    missing = "raise ModuleNotFoundError(\"No module named 'paddle'\", name='paddle')\n"
    (folder / "paddle" / "__init__.py").write_text(paddle_ or missing, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-c", "import paddle_freeze_command as c; raise SystemExit(c.main())",
         *words],
        capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
    )  # fmt: skip


FAILING = {
    None: "ModuleNotFoundError: paddle_freeze_callback needs PaddlePaddle, which is not installed.",
    "__version__ = '2.5.2'\n": "ImportError: paddle_freeze_callback needs PaddlePaddle 2.6 ",
    "raise ImportError('libcuda.so:\\nno such file')\n": "ImportError: libcuda.so: no such file",
    "raise ImportError\n": "ImportError: ",
    "import re\nre.gone\n": "AttributeError: module 're' has no attribute 'gone'",
}
BY_NAME = pytest.mark.parametrize(
    "paddle_", FAILING, ids=["none", "too old", "misses a library", "has no words", "fails"]
)


@BY_NAME
def test_the_command_shows_versions_where_paddle_cannot_be_used_and_says_why(paddle_, tmp_path):
    done = command(paddle_, tmp_path, "--versions")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == f"paddle-freeze-callback {VERSION}"
    assert f"numpy {metadata.version('numpy')}" in lines
    assert lines[-1].startswith(f"cannot be imported: {FAILING[paddle_]}")


@BY_NAME
def test_the_command_shows_its_own_version_where_paddle_cannot_be_used(paddle_, tmp_path):
    done = command(paddle_, tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"paddle_freeze_callback {VERSION}\n"


@pytest.mark.parametrize("words", [["--help"], ["plan", "bert-base-uncased"], []])
@BY_NAME
def test_all_else_that_the_command_does_is_refused_in_one_line_without_paddle(
    paddle_, words, tmp_path
):
    done = command(paddle_, tmp_path, *words)
    kind, _, said = FAILING[paddle_].partition(": ")
    assert (done.returncode, done.stdout) == (1, "")
    if kind == "AttributeError":  # a fault of Paddle's: where it is may help
        assert done.stderr.startswith("Traceback")
        assert done.stderr.endswith(f"{FAILING[paddle_]}\n")
    else:
        assert done.stderr.startswith(f"paddle-freeze: error: {said or kind}")
        assert done.stderr.count("\n") == 1


# ------------------------------------------------------------ wheel and sdist


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist, made from a copy of what git has."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stdout + done.stderr
    return folder


def test_wheel_and_sdist_pass_the_check_of_the_package_index(built):
    files = [str(one) for one in built.iterdir() if one.is_file()]
    assert sorted(Path(one).suffix for one in files) == [".gz", ".whl"]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True
    )
    assert not done.returncode, done.stdout


def test_the_wheel_holds_the_package_alone_and_one_version(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "paddle_freeze_callback",
        "paddle_freeze_command.py",
        f"paddle_freeze_callback-{VERSION}.dist-info",
    }
    assert "paddle_freeze_callback/py.typed" in names


def test_no_distribution_of_paddle_is_required_but_by_an_extra(built):
    (wheel,) = built.glob("*.whl")
    text = (
        zipfile.ZipFile(wheel).read(f"paddle_freeze_callback-{VERSION}.dist-info/METADATA").decode()
    )
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    hard = [line.removeprefix("Requires-Dist: ") for line in required if "extra ==" not in line]
    assert any(one.startswith("PyYAML") for one in hard)
    assert not [one for one in hard if one.startswith("paddle")]
    assert any(one.startswith("Requires-Dist: paddlepaddle") for one in required)


def test_the_sdist_holds_all_tests(built):
    import tarfile

    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert tests <= names
    assert {"Makefile", "CHANGELOG.md", "README.zh-CN.md", "docs/conditions.md"} <= names


@pytest.fixture(scope="module")
def beside_gpu(built, tmp_path_factory) -> tuple[Path, Path]:
    """The packages and the scripts of an environment with the wheel and a stub paddlepaddle-gpu."""
    (wheel,) = built.glob("*.whl")
    folder = tmp_path_factory.mktemp("beside_gpu")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    scheme = "nt" if os.name == "nt" else "posix_prefix"
    paths = sysconfig.get_paths(scheme, vars={"base": str(folder), "platbase": str(folder)})
    site, scripts = Path(paths["purelib"]), Path(paths["scripts"])
    (site / "paddle").mkdir()
    (site / "paddle" / "__init__.py").write_text("__version__ = '3.3.1'\n", encoding="utf-8")
    stub = site / "paddlepaddle_gpu-3.3.1.dist-info"
    stub.mkdir()
    (stub / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: paddlepaddle-gpu\nVersion: 3.3.1\n", encoding="utf-8"
    )
    (stub / "RECORD").write_text("paddle/__init__.py,,\n", encoding="utf-8")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet",
         "--disable-pip-version-check", str(wheel)],
        capture_output=True, text=True, cwd=folder, env=WITHOUT_OUR_PATH,
    )  # fmt: skip
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index is reached")
    assert not done.returncode, done.stderr
    return site, scripts


def test_the_wheel_leaves_a_paddle_for_gpus_alone(beside_gpu):
    site, _ = beside_gpu
    found = {path.name.partition("-")[0].lower() for path in site.glob("*.dist-info")}
    assert "paddle_freeze_callback" in found
    assert "paddlepaddle_gpu" in found
    assert "paddlepaddle" not in found
    assert (site / "paddle" / "__init__.py").read_text(encoding="utf-8") == (
        "__version__ = '3.3.1'\n"
    )


def test_the_command_of_the_wheel_shows_versions_though_that_paddle_is_a_stub(beside_gpu):
    _, scripts = beside_gpu
    done = subprocess.run(
        [str(scripts / "paddle-freeze"), "--versions"],
        capture_output=True, text=True, cwd=scripts, env=WITHOUT_OUR_PATH,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"paddlepaddle not installed", "paddlepaddle-gpu 3.3.1"} <= set(lines)
    assert lines[-1].startswith("cannot be imported: ")


def test_the_description_on_the_package_index_has_no_links_into_the_repository(built):
    (wheel,) = built.glob("*.whl")
    text = (
        zipfile.ZipFile(wheel).read(f"paddle_freeze_callback-{VERSION}.dist-info/METADATA").decode()
    )
    assert "# paddle_freeze_callback" in text
    assert re.findall(r"^Project-URL: PaddlePaddle, https:", text, re.MULTILINE)
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == []


# ------------------------------------------------------------ what the extras need, and habits

SYSTEMS = {
    "linux": "x86_64-manylinux_2_34",
    "windows": "x86_64-pc-windows-msvc",
    "macos": "aarch64-apple-darwin",
}
#: Where extras are to be had, oldest and newest Python.
CLAIMED = [
    *(("cpu docs plot", system, python) for system in SYSTEMS for python in ("3.10", "3.13")),
    *(("cpu nlp plot", "linux", python) for python in ("3.10", "3.12")),
    *(("cpu nlp3 plot", "linux", python) for python in ("3.10", "3.11")),
    *(("cpu formers plot", "linux", python) for python in ("3.10", "3.12")),
]
#: The same where uv leaves out what PaddleNLP requires and training does not need. On Windows
#: PaddleNLP holds protobuf at 3.20.2, and no onnx of that age has wheels for Python 3.13.
CLAIMED_OF_UV = [
    ("cpu nlp plot", "linux", "3.13"),
    *(("cpu nlp plot", "macos", python) for python in ("3.10", "3.13")),
    *(("cpu nlp plot", "windows", python) for python in ("3.10", "3.12")),
]
#: Written in Python alone, and published as sources.
SOURCES_ALONE = ("jieba", "seqeval", "gputil")


def resolves(folder: Path, extras: str, system: str, python: str, *further: str) -> str:
    """What keeps extras from being resolved to wheels; empty if nothing does."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = [setup["options.extras_require"][extra] for extra in extras.split()]
    listed.append(setup["options"]["install_requires"])
    wanted = folder / f"{extras}-{system}-{python}-{len(further)}.in"
    wanted.write_text("\n".join(listed), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header",
         "--python-platform", SYSTEMS[system], "--python-version", python, str(wanted),
         "--only-binary", ":all:", *(f"--no-binary={name}" for name in SOURCES_ALONE),
         *further],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stderr.strip() if done.returncode else ""


def test_every_extra_resolves_to_wheels_wherever_it_is_claimed(tmp_path):
    left_out = ("--override", str(ROOT / "tests" / "overrides.txt"))
    cases = [*CLAIMED, *((*case, *left_out) for case in CLAIMED_OF_UV)]
    with ThreadPoolExecutor(12) as pool:  # they mostly wait for the index
        found = list(pool.map(lambda case: resolves(tmp_path, *case), cases))
    if any(re.search(r"error sending request|dns error|timed out", each) for each in found):
        pytest.skip("no package index is reached")
    assert {case: why for case, why in zip(cases, found) if why} == {}


@pytest.mark.parametrize(
    ("files", "schema"),
    [
        (".github/workflows/*.yml", "vendor.github-workflows"),
        (".github/ISSUE_TEMPLATE/*.yml", "vendor.github-issue-forms"),
        (".readthedocs.yaml", "vendor.readthedocs"),
    ],
)
def test_the_files_for_a_public_forge_fit_their_schemas(files, schema):
    found = [str(path) for path in ROOT.glob(files)]
    assert found
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *found],
        capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stdout


def test_the_workflow_runs_rows_of_the_matrix_that_exist():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    asked = yaml.safe_load(text)["jobs"]["matrix"]["strategy"]["matrix"]["include"]
    assert {one["row"] for one in asked} <= {row.name for row in matrix.ROWS}
    assert all(one["row"].endswith(f"py{one['python']}") for one in asked)


def test_the_smallest_rows_are_of_every_paddle():
    smallest = matrix.smallest()
    assert sorted(row.paddle for row in smallest) == sorted({row.paddle for row in matrix.ROWS})
    assert {row.tests for row in smallest} == {matrix.LOOPS}


@pytest.mark.parametrize(
    ("python", "said"),
    [(None, "no Python 3.13 on this machine"), (sys.executable, "no index is reached")],
    ids=["no Python", "no index"],
)
@pytest.mark.parametrize("asked", [[], ["--row", "3.0.0"]], ids=["all", "asked for by name"])
def test_a_row_that_cannot_be_built_says_why_and_is_skipped_unless_it_was_asked_for(
    asked, python, said, monkeypatch, capsys, tmp_path
):
    fails = [sys.executable, "-c", "raise SystemExit('no index is reached')"]
    monkeypatch.setattr(matrix, "PLACE", tmp_path)
    monkeypatch.setattr(matrix, "interpreter", lambda version: python)
    monkeypatch.setattr(matrix, "by_uv", lambda *_: fails)
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--smallest", *asked])
    assert matrix.main() == bool(asked)
    lines = [one for one in capsys.readouterr().out.splitlines() if "not run" in one]
    assert len(lines) == (1 if asked else len(matrix.smallest()))
    assert [line for line in lines if line.startswith("3.0.0-py3.13: not run, ")]
    assert python is None or all(line.endswith(said) for line in lines)
    assert any(line.endswith(said) for line in lines)


def test_a_release_is_in_the_names_of_its_rows_alone():
    rows = {part: [row.paddle for row in matrix.ROWS if row.has(part)] for part in ("3.1", "3.3")}
    assert set(rows["3.1"]) == {"3.1.1"}
    assert set(rows["3.3"]) == {"3.3.1"}
    assert [row.trainer for row in matrix.ROWS if row.has("nlp3")] == ["nlp3"]


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """What the matrix writes when each row's tests pass at once; the row of 3.2.2 ran before."""
    file = tmp_path / "versions.json"
    ran = {"code": matrix.code(), "status": 0, "passed": 7}
    file.write_text(json.dumps({"3.2.2-py3.10": ran}), encoding="utf-8")
    monkeypatch.setattr(matrix, "RESULTS", file)
    monkeypatch.setattr(matrix, "write_docs", lambda: None)
    monkeypatch.setattr(matrix, "result", lambda row, further: {"status": 0, "passed": 1})

    def after(*words: str) -> dict[str, int]:
        monkeypatch.setattr(sys, "argv", ["matrix.py", *words])
        assert matrix.main() == 0
        return {name: one["passed"] for name, one in matrix.load().items()}

    return after


def test_a_row_that_ran_on_this_code_runs_again_when_asked_to(recorded):
    assert recorded("--row", "3.2.2-py3.10") == {"3.2.2-py3.10": 7}
    assert recorded("--row", "3.2.2-py3.10", "--again") == {"3.2.2-py3.10": 1}


def test_a_part_of_a_rows_tests_is_not_recorded(recorded):
    assert recorded("--row", "3.2.2-py3.10", "--again", "--", "-k", "one") == {"3.2.2-py3.10": 7}


def test_an_environment_is_of_what_setup_cfg_asks_for():
    (row,) = (row for row in matrix.ROWS if row.name == "2.6.2-nlp-py3.10")
    lines = matrix.requirements(row).splitlines()
    assert lines[:2] == ["2.6.2", "numpy<2"]
    assert {"paddlenlp==2.8.1", "matplotlib>=3.8", "pytest>=8", "xxhash>=3.0"} <= set(lines)


def test_the_workflow_runs_rows_that_ran_on_this_code():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (command,) = re.findall(r"run: (python tests/matrix.py .*)", text)
    assert "--again" in command


def test_a_row_that_does_not_exist_is_an_error_that_lists_the_rows(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--row", "3.4"])
    with pytest.raises(SystemExit) as ended:
        matrix.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "no row has '3.4' in its name: 3.3.1-nlp-py3.11, " in said


@pytest.mark.parametrize("language", ["", ".zh-CN"])
def test_the_table_of_versions_is_what_the_rows_that_ran_say(language):
    page = (ROOT / "docs" / f"versions{language}.md").read_text(encoding="utf-8")
    assert f"\n{matrix.table(language)}\n" in page
    assert len(matrix.load()) == matrix.table(language).count("\n") - 1


@pytest.mark.parametrize("can", [True, False])
def test_what_paddlenlp_does_not_need_is_left_out_by_uv_where_pip_would_fail(can, monkeypatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(install, "pip_can", lambda: can)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    install.main("cpu,nlp")
    assert [command[2] for command in commands] == (["pip"] if can else ["pip", "uv"])
    assert commands[-1][-1].endswith("[cpu,nlp]")
    assert ("--override" in commands[-1]) is not can


def test_an_installation_that_fails_ends_with_what_pip_said(monkeypatch, capfd):
    said = [sys.executable, "-c", "print('no index'); raise SystemExit(3)"]
    monkeypatch.setattr(install, "by_pip", lambda *wanted: said)
    with pytest.raises(SystemExit, match=r"^3$"):
        install.main("test")
    assert capfd.readouterr() == ("no index\n", "")


def test_the_hooks_before_a_commit_fit_their_schema():
    file = str(ROOT / ".pre-commit-config.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", file],
        capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stdout + done.stderr


def test_the_hooks_before_a_commit_are_the_tools_of_make_lint():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (local,) = yaml.safe_load(text)["repos"]
    tools = [hook["entry"].split("/")[-1].split()[0] for hook in local["hooks"]]
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2]
    assert tools == ["ruff", "ruff", "mypy"]
    assert all(f"/{tool}" in lint for tool in tools)
