"""Samples that are known by a key of the user's instead of their content."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from cached import Losses, Three, by_hand
from networks import model_for, moved, values
from paddle import nn
from trainers import Trainer, trainer_for

from paddle_freeze_callback import FreezeArguments, FreezeSchedule, HeadOnly
from paddle_freeze_callback.cache import feature_cache

SAMPLES = np.random.RandomState(0).rand(24, 6).astype("float32")


class Numbered(Three):
    """Takes the number of each sample and makes no use of it."""

    def forward(self, x, number=None):
        return super().forward(x)


class Rows(paddle.io.Dataset):
    def __init__(self, named: bool = False) -> None:
        self.named = named

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if self.named:
            return {"x": SAMPLES[index], "number": index, "labels": np.array([index % 6])}
        return SAMPLES[index], np.array(index), np.array([index % 6])


def numbered(order=range(24), size=4, shape=()):
    """Batches of samples with their numbers, in this order."""
    parts = [list(order[at : at + size]) for at in range(0, 24, size)]
    return [
        (paddle.to_tensor(SAMPLES[part]), paddle.to_tensor(part).reshape([-1, *shape]))
        for part in parts
    ]


def nothing_hashed(monkeypatch):
    def refuse(*_):
        raise AssertionError("the content was hashed")

    monkeypatch.setattr(feature_cache, "keys_of", refuse)


def both(build, batches, **options):
    """Losses and weights are those without a cache; what the cache did."""
    runs = []
    for cache in ({"frozen_dropout": "eval"}, {"cache": "memory", **options}):
        paddle.seed(5)
        network = build()
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, verify=True, **cache)
        runs.append((*by_hand(network, schedule, batches), values(network)))
    assert runs[0][0] == runs[1][0]
    assert not moved(runs[0][3], runs[1][3])
    return runs[1][1], runs[1][2]


@pytest.mark.parametrize("shape", [(), (1,)], ids=["flat", "column"])
def test_numbers_in_an_input_take_the_place_of_hashes(monkeypatch, shape):
    nothing_hashed(monkeypatch)
    done, _ = both(Numbered, numbered(shape=shape), cache_key="number")
    assert (done.hits, done.misses, done.rows, done.off) == (48, 24, 24, ())


@pytest.mark.parametrize("kind", ["list", "array", "tensor", "texts"])
def test_a_function_of_the_inputs_takes_their_place(monkeypatch, kind):
    nothing_hashed(monkeypatch)
    found = {
        "list": lambda x, number: number.tolist(),
        "array": lambda x, number: number.numpy(),
        "tensor": lambda x, number: number,
        "texts": lambda x, number: [f"file-{one}.png" for one in number.tolist()],
    }
    done, _ = both(Numbered, numbered(), cache_key=found[kind])
    assert (done.hits, done.misses, done.rows, done.off) == (48, 24, 24, ())


def test_numbers_may_lie_in_a_dictionary_of_inputs():
    class OfDict(Three):
        def forward(self, batch):
            return super().forward(batch["x"])

    batches = [({"x": x, "im_id": number},) for x, number in numbered()]
    done, _ = both(OfDict, batches, cache_key="im_id")
    assert (done.hits, done.rows) == (48, 24)


def test_a_sample_in_another_form_is_another_sample():
    class Reader(nn.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Embedding(50, 6), nn.Linear(6, 2)

        def forward(self, x, number):
            return self.c(self.a(x).mean(1))

    rows = paddle.to_tensor(np.random.RandomState(0).randint(3, 50, [4, 6]))
    numbers = paddle.arange(4)
    batches = [(rows, numbers), (rows[:, :4], numbers)] * 3
    done, _ = both(Reader, batches, cache_key="number")
    assert (done.rows, done.off) == (8, ())


def test_under_fit_shuffled(monkeypatch):
    nothing_hashed(monkeypatch)
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory", "cache_key": "number"}):
        paddle.seed(3)
        np.random.seed(3)
        losses = Losses()
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, **options)
        model_for(Numbered()).fit(
            Rows(), batch_size=4, epochs=4, shuffle=True, verbose=0, callbacks=[schedule, losses]
        )
        runs.append(losses.all)
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5)
    done = schedule.run.cache
    assert (done.hits, done.misses, done.rows) == (72, 24, 24)


def test_under_a_trainer_as_a_flag(tmp_path, monkeypatch):
    nothing_hashed(monkeypatch)

    class WithLoss(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            logits = model(inputs["x"], number=inputs["number"])
            return nn.functional.cross_entropy(logits, inputs["labels"])

    given = FreezeArguments(
        freeze_unfreeze_at=["0=c"], freeze_cache="memory", freeze_cache_key="number"
    )
    schedule = FreezeSchedule.from_args(given)
    assert repr(schedule).endswith("cache='memory', cache_key='number')")
    trainer = trainer_for(
        Numbered(), tmp_path, [schedule], kind=WithLoss, num_train_epochs=3, data=Rows(True)
    )
    trainer.train()
    done = schedule.run.cache
    assert (done.hits, done.misses, done.rows) == (48, 24, 24)


def test_from_a_file(tmp_path):
    file = tmp_path / "freeze.yaml"
    file.write_text("strategy: head_only\ncache: memory\ncache_key: number\n")
    schedule = FreezeSchedule.from_file(file)
    assert repr(schedule) == (
        "FreezeSchedule(strategy=HeadOnly(), cache='memory', cache_key='number')"
    )


# ---------------------------------------------------------------- keys that are wrong

WRONG = "cache_key= gives the same key to samples with other features"


def off_with(batches, key, build=Numbered):
    """Why the cache went off; losses are those without one, and nothing was ever served."""
    done, lines = both(build, batches, cache_key=key)
    (reason,) = done.off
    assert done.hits == done.rows == 0
    assert f"cache off until the next transition: {reason}" in lines
    return reason


def test_one_key_for_two_samples_of_a_batch_is_found():
    assert WRONG in off_with(numbered(), lambda x, number: number.clip(max=22))


def test_a_place_in_the_batch_is_no_key():
    assert WRONG in off_with(numbered(), lambda x, number: range(len(x)))


def test_a_label_is_no_key():
    assert WRONG in off_with(numbered(), lambda x, number: number // 8)


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_augmentation_under_the_same_numbers_is_found_before_it_is_served(tmp_path, cache):
    """In the second epoch, whose samples all seem to be there."""
    noise = np.random.RandomState(1)
    cache = tmp_path if cache == "folder" else cache
    epochs = [(x + float(noise.rand()), number) for _ in range(3) for x, number in numbered()]
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": cache, "cache_key": "number"}):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, **options)
        runs.append(by_hand(Numbered(), schedule, epochs, 1, steps_per_epoch=len(epochs) // 3))
    assert runs[0][0] == runs[1][0]
    assert WRONG in runs[1][1].off[0]
    assert runs[1][1].hits == 0


def test_other_data_in_the_same_folder_is_found(tmp_path):
    def run(batches):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache=tmp_path, cache_key="number")
        return by_hand(Numbered(), schedule, batches)[1]

    assert run(numbered()).off == ()
    other = run([(x + 1, number) for x, number in numbered()])
    assert (other.hits, "of another data set in this folder" in other.off[0]) == (0, True)


def test_two_evaluations_with_the_same_numbers_are_told_apart():
    paddle.seed(5)
    network = Numbered()
    optimizer = paddle.optimizer.SGD(0.05, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory", cache_key="number")

    def evaluated(shift):
        network.eval()
        with paddle.no_grad():
            return [network(x + shift, number).numpy() for x, number in numbered()]

    with schedule.attach(network, optimizer, total_steps=99, say=lambda line: None) as freezing:
        for x, number in numbered() * 2:
            network.train()
            network(x, number).mean().backward()
            optimizer.step(), optimizer.clear_grad(), freezing.step()
        evaluated(0.0)
        with pytest.raises(RuntimeError, match=r"or cache_key= gives two samples one key"):
            evaluated(1.0)


@pytest.mark.parametrize(
    ("key", "kind", "message"),
    [
        ("numbr", ValueError, "cache_key='numbr': the network is called without an input of this "
         "name; did you mean number?"),
        ("x", TypeError, "cache_key='x' gives float32; give whole numbers or texts"),
        (lambda x, number: [1, 2, 3], ValueError, "the function given as cache_key= gives keys of "
         "the shape [3] for a batch of 4 samples; give one for each"),
        (lambda x, number: 7, ValueError, "the function given as cache_key= gives keys of the "
         "shape [] for a batch of 4 samples; give one for each"),
        (lambda x, number: paddle.zeros([4, 2], "int64"), ValueError, "the function given as "
         "cache_key= gives keys of the shape [4, 2] for a batch of 4 samples; give one for each"),
        (lambda x, number: [None] * 4, TypeError, "the function given as cache_key= gives object; "
         "give whole numbers or texts"),
    ],
    ids=["name", "floats", "too few", "one number", "two for each", "none"],
)  # fmt: skip
def test_a_key_that_is_none_is_an_error_before_the_first_step(key, kind, message):
    network = Numbered()
    before = values(network)
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory", cache_key=key)
    with pytest.raises(kind) as error:
        by_hand(network, schedule, numbered())
    assert str(error.value) == message
    assert not moved(before, values(network))


@pytest.mark.parametrize("key", [7, "", ["number"], True], ids=repr)
def test_an_option_that_is_no_key_is_an_error_at_once(key):
    with pytest.raises(TypeError, match=r"cache_key=.* must be the name of an input"):
        FreezeSchedule(cache="memory", cache_key=key)


def test_a_key_without_a_cache_is_an_error():
    with pytest.raises(ValueError, match=r"cache_key='number' has no effect without cache="):
        FreezeSchedule(strategy=HeadOnly(), cache_key="number")
