"""The house rules: who may import whom, and which private names are touched.

The sources are only read, so this needs no paddle.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "paddle_freeze_callback"

# From the ground up. A file imports from rows above its own, or from its own wing. Of two in one
# row neither knows the other.
FLOORS = (
    ("version",),
    ("words", "checks", "installed", "bits"),
    ("strategies", "stages"),
    ("freezing", "cache"),
    ("options",),
    ("session",),
    ("views", "hosts"),
    ("schedule",),
    ("cli", "__init__"),
    ("__main__",),
)


def room(path: Path) -> str:
    """The wing, or the file right in the package, that a source belongs to."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def floor(name: str) -> int:
    return next(i for i, row in enumerate(FLOORS) if name in row)


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of each import of a source, those in functions too."""
    package = [PACKAGE, *path.parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for one in node.names:
                yield node.lineno, f"{module}.{one.name}" if module == PACKAGE else module


def complaints(path: Path, text: str) -> list[str]:
    """What a source imports against the rules; ``path`` is relative to the package."""
    found = []
    own = room(path)
    for line, name in imports(path, ast.parse(text)):
        top, *rest = name.split(".")
        if own == "strategies" and top in ("paddle", "numpy"):
            found.append(f"{path}:{line} imports {name}: strategies/ is pure")
        if top != PACKAGE or not rest or rest[0] == own:
            continue
        if floor(own) <= floor(rest[0]):
            found.append(f"{path}:{line} imports {name}: {rest[0]} is not below {own}")
    return found


SOURCES = sorted(path.relative_to(ROOT / PACKAGE) for path in (ROOT / PACKAGE).rglob("*.py"))


def text_of(path: Path) -> str:
    return (ROOT / PACKAGE / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_file_imports_only_from_below(path):
    assert complaints(path, text_of(path)) == []


def _within(path: Path) -> set[str]:
    """The files of its own wing that a source imports."""
    prefix = f"{PACKAGE}.{room(path)}."
    return {
        name[len(prefix) :].split(".")[0]
        for _, name in imports(path, ast.parse(text_of(path)))
        if name.startswith(prefix)
    }


@pytest.mark.parametrize("wing", sorted({p.parts[0] for p in SOURCES if len(p.parts) > 1}))
def test_the_files_of_a_wing_import_each_other_in_one_direction(wing):
    inside = {p.stem: _within(p) for p in SOURCES if room(p) == wing and p.stem != "__init__"}
    done: set[str] = set()
    while len(done) < len(inside):
        ready = {name for name, needs in inside.items() if name not in done and needs <= done}
        assert ready, f"{wing}/ goes round in a circle: {sorted(set(inside) - done)}"
        done |= ready


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("strategies/timed.py", "import paddle", "pure"),
        ("strategies/timed.py", "from ..stages import partition", "stages is not below"),
        ("words.py", "from .schedule import FreezeSchedule", "schedule is not below words"),
        (
            "cache/keys.py",
            "def f():\n    from ..freezing.freezer import Freezer",
            "freezing is not",
        ),
        ("hosts/hapi.py", "from .. import schedule", "schedule is not below hosts"),
    ],
)
def test_a_planted_import_is_found(path, text, complaint):
    (found,) = complaints(Path(path), text)
    assert complaint in found
    assert found.startswith(path)


# ---------------------------------------------------------------- names of others

# Private names of Paddle, and of Python. A comment beside each use says why no public way exists.
# Adding one is a decision.
OF_PADDLE: dict[str, set[str]] = {
    # optimizers: state that is loaded, created, freed
    "_accumulators": {"freezing/optimizer.py"},
    "_accumulators_holder": {"freezing/optimizer.py"},
    "_already_create_accumulator": {"freezing/optimizer.py"},
    "_apply_optimize": {"freezing/rows.py"},
    "_already_create_accumulater": {"freezing/optimizer.py"},
    "_create_accumulators": {"freezing/optimizer.py"},
    "_inner_opt": {"freezing/optimizer.py"},
    "_learning_rate": {"freezing/rates.py"},
    "_master_weights": {
        "freezing/best_weights.py",
        "freezing/optimizer.py",
        "freezing/rows.py",
    },
    "_origin_parameter_list": {"freezing/optimizer.py"},
    "_param_groups": {"freezing/optimizer.py"},
    "_parameter_list": {"freezing/optimizer.py", "hosts/hapi.py"},
    "_use_multi_tensor": {"freezing/optimizer.py"},
    # layers
    "_forward_post_hooks": {"cache/watch.py"},
    "_forward_pre_hooks": {"cache/watch.py", "freezing/still.py"},
    "_hook_id": {"freezing/still.py"},
    "_buffers": {"cache/state.py"},
    "_parameters": {"stages/weights.py"},
    "_sub_layers": {"stages/parts.py", "stages/weights.py"},
    "_is_initialized": {"cache/kept.py", "cache/state.py", "cli/models.py"},
    "_all_weights": {"freezing/kernels.py"},
    "_cudnn_impl": {"freezing/kernels.py"},
    "_sparse": {"session/preflight.py"},
    "_moving_rate": {"freezing/still.py"},
    "_use_global_stats": {"freezing/still.py"},
    # mixed precision, traced functions, data parallel
    "_amp_dtype": {"cache/feature_cache.py"},
    "_amp_level": {"cache/feature_cache.py"},
    "_dygraph_tracer": {"cache/feature_cache.py"},
    "_descriptor_cache": {"freezing/freezer.py"},
    "_instance": {"freezing/freezer.py"},
    "_layer": {"freezing/parallel.py"},
    "_layers": {"freezing/parallel.py", "session/trained.py"},
    "_reducer": {"freezing/parallel.py"},
    # paddle.Model
    "_accumulate": {"hosts/hapi.py"},
    "_optimizer": {"hosts/hapi.py"},
    "_run_one_epoch": {"hosts/hapi.py"},
    "_test_dataloader": {"hosts/hapi.py"},
    # Python's own
    "_fields": {"cache/nested.py"},
    "_getframe": {"hosts/trainer.py", "words.py"},
}
# Private names of our own that an object of another class, or a function, reaches for.
OF_OURS: dict[str, set[str]] = {
    "_called": {"cache/watch.py"},
    "_forward": {"cache/feature_cache.py"},
    "_freezer": {"session/session.py"},
    "_held": {"freezing/kernels.py"},
    "_manners": {"cli/written.py"},
    "_options": {"cli/written.py", "schedule.py"},
    "_read": {"cli/main.py"},
    "_record": {"hosts/hapi.py"},
    "_source": {"schedule.py"},
    "_step": {"session/session.py"},
    "_strategy": {"cli/run.py", "cli/written.py"},
    "_timeline": {"session/session.py"},
}


def private_names(tree: ast.AST) -> set[str]:
    """Private attributes that a source reads or sets on anything but ``self`` and ``cls``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            name = None if of_self else node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            by_text = node.func.id in ("getattr", "hasattr", "setattr", "delattr", "around")
            texts = [one.value for one in node.args[1:2] if isinstance(one, ast.Constant)]
            name = str(texts[0]) if by_text and texts else None
        else:
            continue
        if name and re.match(r"_[a-z]", name):
            found.add(name)
    return found


def test_private_names_that_are_touched_are_those_in_the_table():
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for name in private_names(ast.parse(text_of(path))):
            found.setdefault(name, set()).add(path.as_posix())
    known = {name: OF_PADDLE.get(name, set()) | OF_OURS.get(name, set()) for name in found}
    assert found == known
    assert {*OF_PADDLE, *OF_OURS} <= set(found), "the table names what nothing touches any more"


def test_a_planted_private_name_is_found():
    assert private_names(ast.parse("layer._hidden = getattr(layer, '_told')")) == {
        "_hidden",
        "_told",
    }
    assert private_names(ast.parse("self._mine = cls._ours")) == set()


# Where all objects of the process, or the frames of callers, may be looked through.
SEARCHES = {
    "cli/guest.py": {"gc"},
    "freezing/freezer.py": {"gc"},
    "freezing/parallel.py": {"gc"},
    "hosts/trainer.py": {"_getframe"},
    "words.py": {"_getframe"},  # where a warning points
}


def searches(tree: ast.AST) -> set[str]:
    """Ways to look through objects or frames that nobody handed over."""
    words = {"gc", "_getframe", "currentframe", "stack", "get_referrers", "f_locals", "f_back"}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    inspected = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("sys", "inspect", "gc")
    }
    return (names | inspected) & words


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_objects_and_frames_are_searched_in_few_files_only(path):
    assert searches(ast.parse(text_of(path))) <= SEARCHES.get(path.as_posix(), set())


# Files that know the libraries of the Trainers by name, inside functions.
KNOW_TRAINERS = ("installed.py", "words.py", "hosts/", "options/flags.py", "cli/models.py")


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_the_libraries_of_the_trainers_are_named_where_they_are_met(path):
    tree = ast.parse(text_of(path))
    if not path.as_posix().startswith(KNOW_TRAINERS):
        named = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and node.value in ("paddlenlp", "paddleformers")
        ]
        assert named == []
        assert not [n for _, n in imports(path, tree) if n.startswith(("paddlenlp", "paddlef"))]
    at_the_top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    top = ast.Module(at_the_top, [])
    assert not [name for _, name in imports(path, top) if name.startswith(("paddlenlp", "paddlef"))]


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/**/test_*.py")), ids=lambda p: p.stem)
def test_what_needs_posix_is_skipped_elsewhere(path):
    """Tests that fork, set limits or end a process by a signal ask ``posix_only()``."""
    text = path.read_text(encoding="utf-8")
    if re.search(r"os\.(fork|kill|waitpid)\b|SIGKILL|SIGTERM|import .*\bresource\b", text):
        assert path.name == Path(__file__).name or "posix_only()" in text


def test_every_warning_points_at_the_user_s_line():
    """``words.warn`` finds it; a number for ``stacklevel`` is right in one loop only."""
    assert [path for path in SOURCES if "warnings.warn(" in text_of(path)] == [Path("words.py")]


# ---------------------------------------------------------------- the map


def test_the_map_in_contributing_is_the_tree():
    """A row for each wing: its question, and its files."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+(?:\.py)?)` \| ([^|]+) \| ([^|]*) \|$", page, re.M)
    drawn = {place: set(re.findall(r"`(\w+\.py)`", files)) for place, _, files in rows}
    wings = {p.parts[0] for p in SOURCES if len(p.parts) > 1}
    tree = {f"{wing}/": {p.name for p in SOURCES if p.parts[0] == wing} for wing in wings}
    tree = {place: files - {"__init__.py"} for place, files in tree.items()}
    tree |= {p.name: set() for p in SOURCES if len(p.parts) == 1 and not p.name.startswith("__")}
    assert drawn == tree


def test_a_wing_asks_the_question_that_the_map_says():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for wing in sorted({p.parts[0] for p in SOURCES if len(p.parts) > 1}):
        source = text_of(Path(wing) / "__init__.py")
        question = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        assert question in page, f"{wing}/ asks {question!r}"
        assert len(source.splitlines()) <= 40
