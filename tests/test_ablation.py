"""The ablation: what is printed is what is run, plans end, and sentences follow from intervals."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import paddle
import pytest
from networks import conv_net
from processes import posix_only
from trainers import tiny_bert

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """Those of the benchmark, by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "examples"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = [
        *("schedules", "tasks", "training", "published", "differences", "ablation"),
        *(f"ablation_{one}" for one in ("tables", "sentences", "runs", "report")),
    ]
    found = {name: importlib.import_module(name) for name in names}
    monkeypatch.setattr(found["ablation"], "weights", lambda: "made here")
    return found


NETWORKS = {
    "images": (conv_net, np.random.RandomState(0).rand(8, 1, 8, 8).astype("float32")),
    "text": (tiny_bert, np.random.RandomState(0).randint(3, 50, [8, 8])),
}
NAMES = ["full", "head only", "LP-FT", "gradual", "ULMFiT", "fine_tune", "chain-thaw", "FreezeDown",
         "LISA", "Cyclic", "OnPlateau", "ByGradient", "BitFit", "bottom only",
         "gradual + norms", "gradual + statistics"]  # fmt: skip


@pytest.mark.parametrize("kind", list(NETWORKS))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_code_that_is_printed_trains(modules, name, kind):
    """By the very function that the benchmark trains with."""
    row = modules["schedules"].ROWS[name]
    if name == "bottom only" and kind == "text":
        pytest.skip("its selector is for images")
    make, inputs = NETWORKS[kind]
    paddle.seed(1)
    network, data = make(), (inputs, np.arange(8) % 2)
    before = {key: value.numpy() for key, value in network.state_dict().items()}
    task = {"images": "10 images", "text": "300 sentences"}[kind]
    modules["training"].train(
        network, data, row, task, epochs=10, rate=1e-2, seed=0, validation=data,
    )  # fmt: skip
    moved = [k for k, v in network.state_dict().items() if not np.array_equal(v.numpy(), before[k])]
    assert moved
    found = modules["training"].judged(network, data)
    assert 0 <= found["accuracy"] <= 1
    assert 0 <= found["ece"] <= 1


CACHED = ["head only", "LP-FT", "gradual", "ULMFiT", "chain-thaw"]


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_with_the_cache_images_get_the_numbers_that_they_get_without(modules, name):
    schedules = modules["schedules"]
    cached = schedules.ROWS[name].code_on("10 images")
    without = cached.replace(', cache="memory"', "").replace('cache="memory"', "")
    assert without != cached
    ends = []
    for code in (cached, without):
        row = schedules.Row(code, rate=schedules.ROWS[name].rate)
        paddle.seed(1)
        network, inputs = conv_net(), NETWORKS["images"][1]
        modules["training"].train(
            network, (inputs, np.arange(8) % 2), row, "10 images", epochs=16, rate=1e-2, seed=0
        )
        ends.append({key: value.numpy() for key, value in network.state_dict().items()})
    assert all(np.array_equal(value, ends[1][key]) for key, value in ends[0].items())


def test_rows_without_a_cache_on_images_have_no_long_frozen_prefix(modules):
    rows = modules["schedules"].ROWS
    assert [name for name, row in rows.items() if "cache" in row.code_on("noise")] == CACHED


@pytest.mark.parametrize(
    ("task", "steps"), [("300 sentences", 19), ("1000 sentences", 63), ("10 images", 3),
                        ("50 images", 16), ("noise", 6)],
)  # fmt: skip
def test_every_schedule_opens_all_that_it_announces_within_the_run(modules, task, steps):
    """ULMFiT by the epoch would have opened one stage of three in two epochs."""
    epochs = modules["tasks"].TASKS[task].epochs
    network = tiny_bert() if "sentences" in task else conv_net()
    for name, row in modules["schedules"].ROWS.items():
        if row.tried_on(task) and name not in ("head only", "BitFit", "bottom only"):
            shown = row.schedule(task).preview(network, epochs=epochs, steps_per_epoch=steps)
            assert not re.search(r"never +x", str(shown)), name


def test_no_batch_is_smaller_than_half_of_one(modules):
    ends = modules["training"].batch_ends
    for samples in range(1, 200):
        sizes = np.diff([0, *ends(samples)])
        assert sizes.sum() == samples
        assert len(sizes) == 1 or sizes.min() >= 8
        assert sizes.max() < 24


def test_no_seed_is_that_of_the_pretrained_network(modules):
    """A new head would begin as the old one did."""
    assert 0 not in modules["ablation"].SEEDS
    assert len(modules["ablation"].SEEDS) == 8


def test_every_schedule_is_there(modules):
    assert list(modules["schedules"].ROWS) == NAMES


def test_the_calibration_error_is_the_gap_between_sure_and_right(modules):
    """Two of four right at 90 % sure is an error of 0.4."""

    class Sure(paddle.nn.Layer):
        def forward(self, x):
            return paddle.concat([paddle.full_like(x, np.log(9.0)), paddle.zeros_like(x)], axis=1)

    found = modules["training"].judged(
        Sure(), (np.zeros([4, 1], "float32"), np.array([0, 0, 1, 1]))
    )
    assert found["accuracy"] == 0.5
    assert found["ece"] == pytest.approx(0.4, abs=1e-6)


def numbers(accuracy):
    """What a run gives."""
    return {"accuracy": accuracy, "loss": 1.0, "ece": 0.1, "train": 1.0, "old_before": 0.97,
            "old": 0.9, "seconds": 2.0, "memory": 9.0}  # fmt: skip


def line(modules, run, accuracy):
    return {**asdict(run), **numbers(accuracy), "machine": "one", "paddle": "3",
            "code": modules["ablation"].produced_by(run)}  # fmt: skip


def planned(modules, score, tasks=("noise",), schedules=("full", "gradual"), seeds=3):
    """All lines, when each run's accuracy is a function of it."""
    lines = []
    while todo := modules["ablation"].missing(lines, tasks, schedules, seeds):
        lines.append(line(modules, todo[0], score(todo[0])))
        assert len(lines) < 500
    return lines


@pytest.mark.parametrize(
    ("best", "tried"), [(3.2e-4, 3), (1e-3, 4), (3.2e-3, 5), (1e-2, 6), (1.0, 6), (1e-9, 6)]
)
def test_rates_are_tried_until_the_best_lies_inside_and_held_out_runs_use_it(modules, best, tried):
    def score(run):
        return -abs(np.log10(run.rate / best)) if run.split == "validation" else 0.5

    lines = planned(modules, score, schedules=("full",))
    rates = {one["rate"] for one in lines if one["split"] == "validation"}
    held_out = [one for one in lines if one["split"] == "held out"]
    assert len(rates) == tried
    assert {one["rate"] for one in held_out} == {min(rates, key=lambda r: abs(np.log10(r / best)))}
    assert [one["seed"] for one in held_out] == [1, 2, 3]
    assert {o["seed"] for o in lines if o["split"] == "validation"} == set(range(100, 108))


def test_of_equal_rates_the_usual_one_is_kept(modules):
    lines = planned(modules, lambda run: 0.5, schedules=("full",))
    assert {one["rate"] for one in lines} == {1e-4, 3.2e-4, 1e-3}
    assert {one["rate"] for one in lines if one["split"] == "held out"} == {3.2e-4}


def test_a_schedule_for_one_task_is_tried_there_alone(modules):
    lines = planned(modules, lambda run: 0.5, tasks=("noise", "10 images"), schedules=NAMES)
    assert {one["task"] for one in lines if one["schedule"] == "bottom only"} == {"noise"}


def test_results_are_kept_line_by_line_and_those_of_other_code_do_not_count(
    modules, tmp_path, capsys
):
    ablation = modules["ablation"]
    runs = [modules["training"].Run("noise", "full", 1e-3, seed, "held out") for seed in (0, 1)]
    for run in runs:
        ablation.keep(run, numbers(0.5), tmp_path)
    (file,) = tmp_path.iterdir()
    lines = [json.loads(one) for one in file.read_text().splitlines()]
    assert [ablation.run_of(one) for one in lines] == runs
    assert ablation.finished(tmp_path) == lines
    file.write_text(json.dumps({**lines[0], "code": "other"}) + "\n" + json.dumps(lines[1]) + "\n")
    assert ablation.finished(tmp_path) == lines[1:]
    said = f"{file}: 1 lines are of other code than today's, and do not count\n"
    assert capsys.readouterr().err == said


def test_documents_are_left_as_they_are_where_no_result_counts(modules, monkeypatch, tmp_path):
    """As after a change of the tasks."""
    ablation = modules["ablation"]
    finished = ablation.finished
    monkeypatch.setattr(ablation, "produced_by", lambda run: "other")
    monkeypatch.setattr(ablation, "finished", lambda *_: finished())
    monkeypatch.setattr(modules["ablation_report"], "write", lambda *_: pytest.fail("written"))
    monkeypatch.setattr("sys.argv", ["ablation.py", "--report"])
    with pytest.raises(SystemExit, match="no held-out run counts: the documents are left as they"):
        ablation.main()


@pytest.mark.parametrize(
    "broken",
    [b"null", b"{}", b'{"task": "noise"}', b'{"task": "noi', b"<<<<<<< HEAD", '{"é'.encode()[:-1]],
)
def test_a_line_that_is_no_whole_result_is_left_out_and_named(modules, tmp_path, capsys, broken):
    ablation = modules["ablation"]
    run = modules["training"].Run("noise", "full", 1e-3, 1, "held out")
    kept = ablation.keep(run, numbers(0.5), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(broken + b"\n" + file.read_bytes() + b"\n")
    assert ablation.finished(tmp_path) == [kept]
    assert f"{file}:1: left out, not a whole result: {broken!r}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_said_before_anything_runs(
    modules, monkeypatch, tmp_path
):
    ablation = modules["ablation"]
    folder = tmp_path / "file"
    folder.write_text("")
    monkeypatch.setattr(ablation, "finished", list)
    monkeypatch.setattr(ablation, "RESULTS", folder)
    monkeypatch.setattr(ablation, "_prepare", lambda *_: pytest.fail("began"))
    with pytest.raises(SystemExit, match=f"results cannot be written to {folder}: "):
        ablation.run_all(["noise"], ["full"], 1, 1)


def test_the_hash_of_weights_says_nothing_where_the_command_says_that_it_was_stopped(
    modules, monkeypatch, capfd
):
    """Its process ends by a signal, and has the handler of the command."""
    posix_only()
    ablation = modules["ablation"]
    monkeypatch.undo()  # weights()
    monkeypatch.setattr(ablation, "_weights", os.getpid)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        for _ in range(8):
            ablation.weights.__wrapped__()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopped" not in capfd.readouterr().err


def test_a_line_that_was_cut_off_is_left_out_and_the_next_begins_a_new_one(
    modules, tmp_path, capsys
):
    ablation = modules["ablation"]
    runs = [modules["training"].Run("noise", "full", 1e-3, seed, "held out") for seed in (1, 2)]
    first = ablation.keep(runs[0], numbers(0.5), tmp_path)
    (file,) = tmp_path.iterdir()
    with file.open("a") as end:
        end.write('{"task": "noi')
    second = ablation.keep(runs[1], numbers(0.6), tmp_path)
    assert ablation.finished(tmp_path) == [first, second]
    assert "noise.jsonl:2: left out, not a whole result: b'{" in capsys.readouterr().err


def test_of_a_run_that_two_machines_made_the_first_line_counts(modules, tmp_path):
    ablation = modules["ablation"]
    run = modules["training"].Run("noise", "full", 1e-3, 1, "held out")
    first = ablation.keep(run, numbers(0.5), tmp_path)
    ablation.keep(run, numbers(0.6), tmp_path)
    assert ablation.finished(tmp_path) == [first]


def test_results_that_began_with_different_weights_are_not_compared(modules, tmp_path, monkeypatch):
    ablation, run = modules["ablation"], modules["training"].Run
    first = ablation.keep(run("noise", "full", 1e-3, 1, "held out"), numbers(0.5), tmp_path)
    monkeypatch.setattr(ablation, "weights", lambda: "made there")
    monkeypatch.setattr(ablation, "fetch_digits", lambda: None)
    monkeypatch.setattr(ablation, "start", lambda run: (None, None))
    monkeypatch.setattr(ablation, "result_of", lambda here, child: {})
    with pytest.raises(SystemExit, match="this machine's pretrained network is not that of"):
        ablation._prepare([first], ["noise"])
    ablation._prepare([first], ["50 images"])
    ablation._prepare([{**first, "split": "validation"}], ["noise"])
    without = {k: first[k] for k in first if k != "weights"}
    with pytest.raises(SystemExit, match="is not that of"):
        ablation._prepare([without], ["noise"])  # nobody knows
    ablation._prepare([without], ["300 sentences"])
    ablation.keep(run("50 images", "full", 1e-3, 1, "held out"), numbers(0.5), tmp_path)
    ablation.keep(run("noise", "full", 1e-3, 100, "validation"), numbers(0.5), tmp_path)
    assert len(ablation.finished(tmp_path)) == 3  # another task; one that only chose a rate
    ablation.keep(run("noise", "full", 1e-3, 2, "held out"), numbers(0.5), tmp_path)
    with pytest.raises(
        SystemExit, match=r"of noise began with different weights, those of .*: in .*, keep"
    ):
        ablation.finished(tmp_path)


def test_runs_come_as_they_end_and_one_that_fails_stops_no_other(modules, monkeypatch, capfd):
    ablation, run_of = modules["ablation"], modules["training"].Run

    def results(run):
        if run.seed == 2:
            raise RuntimeError("out of luck")
        return {"accuracy": float(run.seed)}

    monkeypatch.setattr(ablation, "results", results)
    left = [run_of("noise", "full", 1e-3, seed, "held out") for seed in (1, 2, 3)]
    found = {}
    for run, numbers in ablation.in_parallel(lambda: list(left), 2):
        left.remove(run)
        found[run.seed] = numbers
    assert found == {1: {"accuracy": 1.0}, 2: None, 3: {"accuracy": 3.0}}
    assert "out of luck" in capfd.readouterr().err


def test_the_pretrained_network_is_made_before_the_runs_and_must_be(modules, monkeypatch, capfd):
    ablation = modules["ablation"]
    monkeypatch.setattr(ablation, "fetch_digits", lambda: None)
    monkeypatch.setattr(ablation, "pretrained", lambda train: {})
    ablation._prepare([], ["noise"])

    def pretrained(train):
        raise RuntimeError("no digits")

    monkeypatch.setattr(ablation, "pretrained", pretrained)
    with pytest.raises(SystemExit, match="that all images begin with could not be made"):
        ablation._prepare([], ["noise"])
    assert "no digits" in capfd.readouterr().err


def test_a_network_that_cannot_be_made_anew_leaves_the_one_that_was_there(
    modules, monkeypatch, tmp_path
):
    ablation = modules["ablation"]
    kept = tmp_path / "weights.pdparams"
    kept.write_text("made before")
    monkeypatch.setattr(ablation, "PRETRAINED", kept)

    def prepare(lines, tasks):
        assert not kept.exists()  # from nothing
        kept.write_text("made anew")
        if tasks == ["noise"]:
            raise SystemExit("this machine's pretrained network is not that of another")

    monkeypatch.setattr(ablation, "_prepare", prepare)
    with pytest.raises(SystemExit, match="is not that of another"):
        ablation._make_anew([], ["noise"])
    assert kept.read_text() == "made before"
    ablation._make_anew([], ["50 images"])
    assert kept.read_text() == "made anew"
    assert list(tmp_path.iterdir()) == [kept]


def test_what_another_pretrained_network_gives_is_compared_verdict_by_verdict(modules):
    report = modules["ablation_report"]
    names = ("full", "gradual", "LISA")

    def score(better):
        return lambda run: 0.7 + 0.05 * (run.schedule in better and run.split == "held out")

    ours = planned(modules, score({"gradual", "LISA"}), schedules=names, seeds=6)
    theirs = planned(modules, score({"gradual"}), schedules=names, seeds=6)
    page = report.page(ours, (), [one for one in theirs if one["split"] == "held out"])
    assert (
        "noise was run with the one that one had trained, too (`results/another`): the verdict on "
        "accuracy is the same for 1 of 2 schedules; a difference is seen with one of the networks "
        "alone for LISA (+5.0 [5.0, 5.0] here, +0.0 [0.0, 0.0] there); the opposite for none."
    ) in page
    assert "Another pretrained network" not in report.page(ours)


def test_advice_that_another_pretrained_network_does_not_give_says_so(modules):
    differences, sentences = modules["differences"], modules["ablation_sentences"]
    names = ("full", "gradual")

    def score(run):
        return 0.7 + 0.05 * (run.schedule == "gradual" and run.split == "held out")

    ours = differences.by_row(planned(modules, score, schedules=names, seeds=6))
    theirs = differences.by_row(planned(modules, lambda run: 0.7, schedules=names, seeds=6))
    english, chinese = sentences.advice(ours, theirs)[0]
    assert english.endswith(
        "most gradual (+5.0 [5.0, 5.0]; with another pretrained network none of 1, gradual no "
        "difference seen (+0.0 [0.0, 0.0]))."
    )
    assert "换一个预训练网络时，1 种无一领先，gradual 为 +0.0 [0.0, 0.0]）" in chinese
    assert "another pretrained network" not in sentences.advice(ours, ours)[0][0]


def test_the_time_of_what_needs_a_metric_has_the_evaluations_that_give_it(modules):
    """Ten seconds of training, a second of evaluation at the end; three more meanwhile."""
    differences = modules["differences"]
    lines = planned(modules, lambda run: 0.5, schedules=("full", "OnPlateau", "LISA"), seeds=6)
    for one in lines:
        one["seconds"], one["whole"] = 10.0, 14.0 if one["schedule"] == "OnPlateau" else 11.0
    found = differences.by_row(lines)
    shares = {name: differences.time_share(found, "noise", name) for name in ("OnPlateau", "LISA")}
    assert shares == {"OnPlateau": pytest.approx(1.3), "LISA": pytest.approx(1.0)}
    rows = modules["schedules"].ROWS
    assert {name for name in rows if '"loss"' in rows[name].code} == differences.EVALUATED


def test_bottom_only_is_the_stem_and_layer1_of_the_resnet18(modules):
    """As the page says."""
    network = modules["tasks"].resnet()
    optimizer = paddle.optimizer.AdamW(parameters=network.parameters())
    with (
        modules["schedules"]
        .ROWS["bottom only"]
        .schedule("noise")
        .attach(network, optimizer, epochs=1, steps_per_epoch=6, say=lambda line: None)
    ):
        names = [name for name, one in network.named_parameters() if not one.stop_gradient]
    assert {name.split(".")[0] for name in names} == {"conv1", "bn1", "layer1"}


def test_other_numbers_of_a_second_run_are_named_and_times_are_not(
    modules, monkeypatch, capsys, tmp_path
):
    ablation, run_of = modules["ablation"], modules["training"].Run
    differences = modules["differences"]
    runs = modules["ablation_runs"]
    report = modules["ablation_report"]
    finished = ablation.finished
    lines = planned(modules, lambda run: 0.5, schedules=("full",))
    monkeypatch.setattr(
        ablation, "finished", lambda *folder: finished(*folder) if folder else lines
    )
    monkeypatch.setattr(ablation, "_make_anew", lambda lines, tasks: None)
    monkeypatch.setattr(ablation, "AGAIN", tmp_path / "again")
    monkeypatch.setattr(ablation, "processor", lambda: "another")
    monkeypatch.setattr(ablation.os, "cpu_count", lambda: 2)
    made = []

    def in_parallel(todo, jobs):
        for run in todo():
            made.append(run.seed)
            same = {name: lines[-1][name] for name in differences.NUMBERS}
            yield run, {**numbers(0), **same, "loss": 1.0 + (run.seed == 2), "seconds": 99.0}

    monkeypatch.setattr(ablation, "in_parallel", in_parallel)
    assert ablation.again([1], ["noise"], ["full"], 1) == 0
    assert runs.made_again(lines, finished(ablation.AGAIN))[1] == (
        "**Once more.** 1 held-out runs were made again from nothing, for images with their "
        "pretrained network: 1 on noise (seed 1; on another, 2 cores, at first on one). All gave "
        "the same numbers, to the last bit, time and memory aside."
    )
    assert ablation.again([1, 2], ["noise"], ["full"], 1) == 1
    assert made == [1, 2]  # what was made once more is not made a third time
    said = capsys.readouterr().out
    assert f"{run_of('noise', 'full', 3.2e-4, 1, 'held out')} gives the same" in said
    assert "differs in loss" in said
    assert "1 of 2 gave the same numbers" in said
    page = report.page(lines, finished(ablation.AGAIN))
    assert (
        "2 on noise (seeds 1 and 2; on another, 2 cores, at first on one). 1 of them gave the same "
        "numbers, to the last bit, time and memory aside; others in full on noise, seed 2 (loss)."
    ) in page
    assert "made again" not in report.page(lines)
    lines += planned(modules, lambda run: 0.5, schedules=("LISA",))
    assert "2 of 4 on noise (seeds 1 and 2" in report.page(lines, finished(ablation.AGAIN))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 9", "argument --seeds: invalid choice"),
        ("--again 0", "argument --again: invalid choice"),
        ("--task nois", "argument --task: invalid choice"),
        ("--jobs 0", "argument --jobs: 0 is not 1 or more"),
        ("--jobs -1", "argument --jobs: -1 is not 1 or more"),
        ("--report --task noise", "--report is of all results: it goes with no other option"),
        ("--report --again 1", "--report is of all results: it goes with no other option"),
        ("--again 1 --seeds 2", "--again names its seeds itself: it does not go with --seeds"),
    ],
)
def test_what_is_not_there_or_does_not_go_together_is_refused(
    modules, monkeypatch, capsys, words, message
):
    monkeypatch.setattr("sys.argv", ["ablation.py", *words.split()])
    with pytest.raises(SystemExit):
        modules["ablation"].main()
    assert message in capsys.readouterr().err


def test_what_spans_zero_is_called_no_difference_and_what_does_not_is_advised(modules):
    """Gradual is 5 points better in every seed; LISA as often better as worse."""
    differences = modules["differences"]
    sentences = modules["ablation_sentences"]
    report = modules["ablation_report"]

    def score(run):
        if run.split == "validation":
            return 0.5
        shift = {"gradual": 0.05, "LISA": 0.02 * (-1) ** run.seed, "BitFit": -0.2}
        return 0.7 + 0.01 * run.seed + shift.get(run.schedule, 0.0)

    names = ("full", "gradual", "LISA", "BitFit")
    lines = planned(modules, score, tasks=("noise", "10 images"), schedules=names, seeds=8)
    found = differences.by_row(lines)
    gradual = differences.difference(found, "noise", "gradual", differences.accuracy)
    assert gradual.text() == "+5.0 [5.0, 5.0]"
    page = report.page(lines)
    assert "no difference seen (+0.0 [-1.5, 1.5])" in page
    english, chinese = zip(*sentences.advice(found, {}))
    assert english[0] == (
        "More accurate than training everything from the start: on 10 images a class 1 of 3 "
        "schedules, most gradual (+5.0 [5.0, 5.0]); on noise 1 of 3 schedules, most gradual "
        "(+5.0 [5.0, 5.0])."
    )
    assert "Behind `full` on all 2 tasks: BitFit." in english
    assert len(english) == len(chinese) <= 5
    assert "Not finished" in page  # the other tasks
    copied = (
        '| noise | gradual | `FreezeSchedule(cache="memory")` | `0.00032` | +5.0 [5.0, 5.0] |'
        " 90 (90) |  |"
    )
    assert copied in page
    assert copied.replace("noise", "加噪声") in report.part(found, "zh", {})


def test_each_claim_is_counted_over_all_schedules_and_tasks_and_shown_with_intervals(modules):
    """One schedule takes a second less in every seed; another forgets as often as not."""
    differences, sentences = modules["differences"], modules["ablation_sentences"]
    names, tasks = ("full", "gradual", "BitFit"), ("noise", "10 images")
    lines = planned(modules, lambda run: 0.5, tasks=tasks, schedules=names, seeds=8)
    for one in lines:
        one["seconds"] -= one["schedule"] == "gradual"
        if one["schedule"] == "BitFit":
            one["old"] += 0.02 * (-1) ** one["seed"]
    found = differences.by_row(lines)
    over_fits, faster, keeps = (english for english, _ in sentences.claims_said(found).values())
    assert (
        "holds in 0 of 4 comparisons with full, the opposite in 0, no difference seen in 4"
        in over_fits
    )
    assert (
        "holds in 2 of 4 comparisons with full, the opposite in 0, no difference seen in 2"
        in faster
    )
    assert faster.endswith("most gradual on 10 images a class (-50.0 [-50.0, -50.0]).")
    assert "holds in 0 of 4 comparisons" in keeps
    page = "\n".join(sentences.claims(found))
    assert "| gradual | -50.0 [-50.0, -50.0] | -50.0 [-50.0, -50.0] |" in page
    kept = "no difference seen (+0.0 [-1.5, 1.5])"
    assert f"| BitFit | {kept} | {kept} |" in page
    chinese = sentences.claims_said(found)[sentences.FASTER][1]
    assert "与 full 的 4 次比较中，2 次成立，0 次相反，2 次没有发现差别" in chinese
    assert "“每类 10 张”上的 gradual（-50.0 [-50.0, -50.0]）" in chinese


def test_the_rate_to_copy_is_what_the_optimizer_got(modules):
    """A slanted triangle, which peaks there."""
    differences, tables = modules["differences"], modules["ablation_tables"]

    def score(run):
        return 0.5 if run.split == "validation" else 0.7 + 0.05 * (run.schedule == "ULMFiT")

    lines = planned(modules, score, schedules=("full", "ULMFiT"), seeds=6)
    page = "\n".join(tables.to_copy(differences.by_row(lines), "en", {}))
    assert "| `SlantedTriangular(0.001, total_steps)` |" in page


def test_what_full_keeps_at_other_rates_is_shown_beside_the_claim(modules):
    lines = planned(modules, lambda run: 0.5, schedules=("full",))
    for one in lines:
        one["old"] = 0.5 if one["rate"] == 1e-3 else 0.9
    shown = modules["ablation_tables"].rates_of_full(lines)
    assert shown[-3:] == [
        "| 0.0001 | 50.0 (90) |", "| 0.00032 | 50.0 (90) |", "| 0.001 | 50.0 (50) |"
    ]  # fmt: skip


def test_nothing_is_said_before_there_are_six_seeds(modules):
    """The lowest and the highest mean of five values cover 94 %."""
    differences, sentences = modules["differences"], modules["ablation_sentences"]
    lines = planned(modules, lambda run: 0.5, seeds=5)
    found = differences.by_row(lines)
    assert sentences.advice(found, {}) == []
    assert sentences.claims_said(found) == {}
    assert differences.leaders(found) == {}


def test_advice_says_what_norms_that_follow_the_input_are_to_gradual_under_noise(modules):
    differences, sentences = modules["differences"], modules["ablation_sentences"]
    shift = {"full": 0.3, "bottom only": 0.3, "gradual + norms": 0.2, "gradual + statistics": 0.1}

    def score(run):
        return 0.5 if run.split == "validation" else 0.6 + shift.get(run.schedule, 0.0)

    lines = planned(modules, score, schedules=(*shift, "gradual"), seeds=6)
    english, chinese = sentences.advice(differences.by_row(lines), {})[-1]
    assert english.endswith(
        "showed no difference to training everything (+0.0 [0.0, 0.0]); gradual, whose frozen "
        "norms keep their statistics, changes by +20.0 [20.0, 20.0] with "
        '`FreezeSchedule(train_norm="always")` (to `full`: -10.0 [-10.0, -10.0]) and by +10.0 '
        '[10.0, 10.0] with `FreezeSchedule(frozen_norm="train")` (to `full`: -20.0 [-20.0, -20.0]).'
    )
    assert 'train")` 后准确率变化 +10.0 [10.0, 10.0]（与 `full` 之差 -20.0' in chinese
    without = differences.by_row([one for one in lines if "+" not in one["schedule"]])
    assert "statistics" not in sentences.advice(without, {})[-1][0]


def test_a_claim_that_nothing_was_compared_for_leaves_the_others_their_tables(modules):
    """Times of two machines are not compared."""
    differences, sentences = modules["differences"], modules["ablation_sentences"]
    lines = planned(modules, lambda run: 0.5, seeds=6)
    for one in lines:
        one["machine"] = one["schedule"]
        one["old"] -= 0.1 * (one["schedule"] == "gradual")
    found = differences.by_row(lines)
    assert list(sentences.claims_said(found)) == [sentences.OVER_FITS, sentences.KEEPS]
    *_, title, _, _, _, row = sentences.claims(found)
    assert title.startswith("**Keeps what it knew")
    assert row == "| gradual | -10.0 [-10.0, -10.0] |"


def test_the_code_of_all_rows_runs_after_the_line_that_stands_before_it(modules):
    names = {}
    exec(modules["ablation_report"].imports(), names)
    names |= {"rate": 1e-3, "total_steps": 80}
    for row in modules["schedules"].ROWS.values():
        for code in (row.code, row.on_images or row.code, row.rate):
            eval(code, names)


def test_the_time_of_a_row_that_one_task_alone_has_says_so(modules):
    """A mean over one task beside means over all."""
    lines = planned(modules, lambda run: 0.5, schedules=("full", "bottom only"), seeds=6)
    part = modules["ablation_report"].part
    found = modules["differences"].by_row(lines)
    assert "| bottom only | 50.0 (90) | 1.00 (noise) |" in part(found, "en", {})
    assert "| bottom only | 50.0 (90) | 1.00 (加噪声) |" in part(found, "zh", {})


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_marked_part_of_the_documents_has_a_column_for_each_task(modules, language):
    lines = planned(modules, lambda run: 0.5, tasks=("noise",), schedules=("full",))
    differences = modules["differences"]
    tables = modules["ablation_tables"]
    report = modules["ablation_report"]
    assert list(tables.CHINESE) == list(modules["tasks"].TASKS)
    part = report.part(differences.by_row(lines), language, {})
    assert part.splitlines()[2] == "| full | 50.0 (90) | 1.00 |"


def test_a_held_out_run_at_a_rate_that_is_no_more_the_best_does_not_count(modules):
    """Two validation seeds had found another rate than four do."""
    ablation, run_of = modules["ablation"], modules["training"].Run
    lines = planned(modules, lambda run: 0.5, schedules=("full",))
    (rate,) = {one["rate"] for one in lines if one["split"] == "held out"}
    old = line(modules, run_of("noise", "full", 0.001, 0, "held out"), 0.9)
    assert rate != old["rate"]
    assert ablation.counted([*lines, old]) == lines


def test_published_numbers_are_set_beside_intervals_value_by_value(modules):
    differences, tables = modules["differences"], modules["ablation_tables"]

    def score(run):
        return 0.5 if run.split == "validation" else 0.7 + 0.05 * (run.schedule == "LP-FT")

    names = ("full", "LP-FT", "head only", "LISA")
    lines = planned(modules, score, tasks=("10 images",), schedules=names, seeds=8)
    page = "\n".join(tables.beside_published(differences.by_row(lines)))
    both = "as in-distribution"
    assert f"| LP-FT | 10 images a class: +5.0 [5.0, 5.0], {both} |" in page
    assert "| head only | 10 images a class: no difference seen (+0.0 [0.0, 0.0]) |" in page
    assert "in-distribution -2.2 points" in page
    assert "IMDb" not in page  # nothing to set beside


def test_what_the_table_says_of_ulmfit_is_the_difference_of_the_errors_it_quotes(modules):
    (row,) = (o for o in modules["published"].PUBLISHED if o.name == "ULMFiT")
    assert row.values == {"IMDb": 1.87, "TREC-6": 1.17, "AG": 0.43}


def test_each_published_row_names_a_schedule_and_tasks_that_are_there(modules):
    for one in modules["published"].PUBLISHED:
        assert one.name in modules["schedules"].ROWS
        assert all(modules["schedules"].ROWS[one.name].tried_on(task) for task in one.tasks)
        assert set(one.tasks) <= set(modules["tasks"].TASKS)


def test_only_the_marked_parts_of_documents_are_written(modules, monkeypatch, tmp_path):
    report = modules["ablation_report"]
    lines = planned(modules, lambda run: 0.5, tasks=("noise",), seeds=6)
    files = {}
    for kind in ("DOCS", "READMES"):
        for language in ("en", "zh"):
            file = files[kind, language] = tmp_path / f"{kind}-{language}.md"
            file.write_text("a\n<!-- ablation -->\nold\n<!-- end -->\nb\n", encoding="utf-8")
        both = {language: files[kind, language] for language in ("en", "zh")}
        monkeypatch.setattr(report, kind, both)
    monkeypatch.setattr(report, "REPORT", tmp_path / "ABLATION.md")
    report.write(lines)
    texts = {key: file.read_text(encoding="utf-8") for key, file in files.items()}
    said = "- No schedule was seen to be more accurate than training everything from the start"
    assert texts["READMES", "en"].startswith(f"a\n<!-- ablation -->\n{said}")
    assert "| full | 50.0 (90) | 1.00 |" in texts["DOCS", "zh"]
    for text in texts.values():
        assert text.startswith("a\n<!-- ablation -->\n")
        assert text.endswith("\n<!-- end -->\nb\n")
        assert "old\n" not in text
    files["READMES", "zh"].write_text("a\n<!-- ablation -->\nb\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no lines <!-- ablation --> and <!-- end -->"):
        report.write(lines)
    assert files["READMES", "zh"].read_text() == "a\n<!-- ablation -->\nb\n"


def test_a_task_that_takes_the_rates_of_another_has_held_out_runs_alone(modules):
    def score(run):
        return run.rate == 1e-4 if run.split == "validation" else 0.5

    lines = planned(modules, score, tasks=("1000 sentences",), schedules=("full",))
    runs = {(one["task"], one["split"]) for one in lines}
    assert runs == {("300 sentences", "validation"), ("1000 sentences", "held out")}
    assert {one["rate"] for one in lines if one["split"] == "held out"} == {1e-4}
    assert modules["ablation"].counted(lines) == lines


@pytest.mark.parametrize(
    "name",
    [
        "ablation",
        *(f"ablation_{one}" for one in ("tables", "sentences", "runs", "report")),
        "training",
    ],
)
def test_the_examples_in_docstrings_hold(modules, name):
    found = doctest.testmod(modules[name])
    assert (found.failed, found.attempted > 0) == (0, True)


def test_what_the_documents_say_beside_the_tables_is_so(modules):
    """Times without evaluations, best rates beside fastai's, what frozen norms are to gradual."""
    lines = modules["ablation"].counted(modules["ablation"].finished())
    held_out = [one for one in lines if one["split"] == "held out"]

    def of(name, task, what):
        return [one[what] for one in held_out if (one["schedule"], one["task"]) == (name, task)]

    for task in {one["task"] for one in held_out}:
        assert np.mean(of("OnPlateau", task, "seconds")) < np.mean(of("full", task, "seconds"))
        assert min(of("fine_tune", task, "rate")) > 2e-3
    full, gradual, statistics = (
        np.mean(of(name, "noise", "accuracy"))
        for name in ("full", "gradual", "gradual + statistics")
    )
    assert statistics - gradual > 0.5 * (full - gradual)  # "most of why"


def test_the_documents_say_what_the_results_say(modules, capsys):
    """Else: ``python benchmarks/ablation.py --report``, or the whole of it after other code."""
    differences, report = modules["differences"], modules["ablation_report"]
    ablation = modules["ablation"]
    lines = ablation.counted(ablation.finished())
    found = differences.by_row(lines)
    repeated, another = ablation.finished(ablation.AGAIN), ablation.finished(ablation.ANOTHER)
    assert capsys.readouterr().err == ""  # every line counts
    theirs, page = differences.by_row(another), report.page(lines, repeated, another)
    assert report.REPORT.read_text(encoding="utf-8") == page
    for language in ("en", "zh"):
        for files, wanted in (
            (report.DOCS, report.part(found, language, theirs)),
            (report.READMES, "\n".join([*report.said(found, language, theirs), ""])),
        ):
            text = files[language].read_text(encoding="utf-8")
            assert text.partition(report.MARK)[2].partition(report.END)[0] == wanted
    assert len(report.said(found, "en", theirs)) <= 5
