"""Every layer of paddle.nn under partial freezing: what is open trains, whatever its kernel can."""

from __future__ import annotations

import copy
import gc
import inspect
import itertools
import os
import weakref
from collections.abc import Callable

import numpy as np
import paddle
import pytest
from networks import moved, values
from paddle import nn
from processes import posix_only

from paddle_freeze_callback import freeze, unfreeze
from paddle_freeze_callback.freezing.freezer import Freezer
from paddle_freeze_callback.freezing.kernels import spare
from paddle_freeze_callback.freezing.still import hold_statistics
from paddle_freeze_callback.installed import release
from paddle_freeze_callback.stages.partition import Survey, partition
from paddle_freeze_callback.stages.weights import weights


def drawn(*shape: int) -> Callable[[], paddle.Tensor]:
    return lambda: paddle.rand(shape) - 0.5


def states() -> tuple[paddle.Tensor, ...]:
    return drawn(1, 2, 3)(), drawn(1, 2, 3)()


def encoder(cls, *layers, **options):
    return lambda: cls(4, 2, *layers, 4, dropout=0.0, **options)


# A case is named after a layer of paddle.nn, and "/variant": how to build it, and its inputs.
BUILT: dict[str, tuple[Callable[[], nn.Layer], list]] = {
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], head_bias=True),
        [drawn(6, 4), lambda: paddle.arange(6)],
    ),
    "BatchNorm": (lambda: nn.BatchNorm(2), [drawn(3, 2, 3, 3)]),
    "BatchNorm1D": (lambda: nn.BatchNorm1D(2), [drawn(3, 2)]),
    "BatchNorm1D/sequence": (lambda: nn.BatchNorm1D(2), [drawn(3, 2, 4)]),
    "BatchNorm2D": (lambda: nn.BatchNorm2D(2), [drawn(3, 2, 3, 3)]),
    "BatchNorm2D/NHWC": (lambda: nn.BatchNorm2D(2, data_format="NHWC"), [drawn(3, 3, 3, 2)]),
    "BatchNorm2D/global": (lambda: nn.BatchNorm2D(2, use_global_stats=True), [drawn(3, 2, 3, 3)]),
    "BatchNorm3D": (lambda: nn.BatchNorm3D(2), [drawn(3, 2, 3, 3, 3)]),
    "BiRNN": (lambda: nn.BiRNN(nn.GRUCell(2, 3), nn.GRUCell(2, 3)), [drawn(2, 3, 2)]),
    "Bilinear": (lambda: nn.Bilinear(2, 3, 4), [drawn(2, 2), drawn(2, 3)]),
    "Conv1D": (lambda: nn.Conv1D(2, 2, 3), [drawn(2, 2, 5)]),
    "Conv1DTranspose": (lambda: nn.Conv1DTranspose(2, 2, 3), [drawn(2, 2, 5)]),
    "Conv2D": (lambda: nn.Conv2D(2, 2, 3), [drawn(2, 2, 4, 4)]),
    "Conv2D/groups": (lambda: nn.Conv2D(2, 2, 3, groups=2), [drawn(2, 2, 4, 4)]),
    "Conv2DTranspose": (lambda: nn.Conv2DTranspose(2, 2, 3), [drawn(2, 2, 4, 4)]),
    "Conv3D": (lambda: nn.Conv3D(2, 2, 2), [drawn(2, 2, 3, 3, 3)]),
    "Conv3DTranspose": (lambda: nn.Conv3DTranspose(2, 2, 2), [drawn(2, 2, 3, 3, 3)]),
    "Embedding": (lambda: nn.Embedding(5, 2), [lambda: paddle.to_tensor([1, 2])]),
    "GRU": (lambda: nn.GRU(2, 3), [drawn(2, 3, 2)]),
    "GRU/two": (lambda: nn.GRU(2, 3, num_layers=2, direction="bidirect"), [drawn(2, 3, 2)]),
    "GRUCell": (lambda: nn.GRUCell(2, 3), [drawn(2, 2)]),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), [drawn(2, 4, 3, 3)]),
    "HSigmoidLoss": (
        lambda: nn.HSigmoidLoss(3, 4),
        [drawn(2, 3), lambda: paddle.to_tensor([[1], [2]])],
    ),
    "InstanceNorm1D": (lambda: nn.InstanceNorm1D(2), [drawn(2, 2, 4)]),
    "InstanceNorm2D": (lambda: nn.InstanceNorm2D(2), [drawn(2, 2, 3, 3)]),
    "InstanceNorm3D": (lambda: nn.InstanceNorm3D(2), [drawn(2, 2, 3, 3, 3)]),
    "LSTM": (lambda: nn.LSTM(2, 3), [drawn(2, 3, 2)]),
    "LSTM/two": (lambda: nn.LSTM(2, 3, num_layers=2, direction="bidirect"), [drawn(2, 3, 2)]),
    "LSTM/states": (lambda: nn.LSTM(2, 3), [drawn(2, 3, 2), states]),
    "LSTM/lengths": (
        lambda: nn.LSTM(2, 3, time_major=True),
        [drawn(3, 2, 2), states, lambda: paddle.to_tensor([2, 3])],
    ),
    "LSTM/projected": (lambda: nn.LSTM(2, 4, proj_size=2), [drawn(2, 3, 2)]),
    "LSTMCell": (lambda: nn.LSTMCell(2, 3), [drawn(2, 2)]),
    "LayerNorm": (lambda: nn.LayerNorm(4), [drawn(2, 4)]),
    "Linear": (lambda: nn.Linear(2, 3), [drawn(2, 2)]),
    "MultiHeadAttention": (lambda: nn.MultiHeadAttention(4, 2), [drawn(2, 3, 4)]),
    "PReLU": (lambda: nn.PReLU(), [drawn(2, 2, 3)]),
    "PReLU/channels": (lambda: nn.PReLU(2), [drawn(2, 2, 3, 3)]),
    "RNN": (lambda: nn.RNN(nn.LSTMCell(2, 3)), [drawn(2, 3, 2)]),
    "SimpleRNN": (lambda: nn.SimpleRNN(2, 3), [drawn(2, 3, 2)]),
    "SimpleRNN/relu": (lambda: nn.SimpleRNN(2, 3, activation="relu"), [drawn(2, 3, 2)]),
    "SimpleRNNCell": (lambda: nn.SimpleRNNCell(2, 3), [drawn(2, 2)]),
    "SpectralNorm": (lambda: nn.SpectralNorm([2, 3]), [drawn(2, 3)]),
    "Transformer": (encoder(nn.Transformer, 1, 1), [drawn(2, 3, 4), drawn(2, 2, 4)]),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(encoder(nn.TransformerDecoderLayer)(), 1),
        [drawn(2, 3, 4), drawn(2, 2, 4)],
    ),
    "TransformerDecoderLayer": (
        encoder(nn.TransformerDecoderLayer),
        [drawn(2, 3, 4), drawn(2, 2, 4)],
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(encoder(nn.TransformerEncoderLayer)(), 1),
        [drawn(2, 3, 4)],
    ),
    "TransformerEncoderLayer": (encoder(nn.TransformerEncoderLayer), [drawn(2, 3, 4)]),
    "TransformerEncoderLayer/pre-norm": (
        encoder(nn.TransformerEncoderLayer, normalize_before=True),
        [drawn(2, 3, 4)],
    ),
}

RELEASE = release(paddle.__version__)
if RELEASE < (3, 1):  # 2.6 lacks them; in 3.0 the first one reads memory that nobody wrote
    BUILT = {
        case: one
        for case, one in BUILT.items()
        if case not in ("AdaptiveLogSoftmaxWithLoss", "LSTM/projected")
    }

EXCUSED = {
    "Layer": "the base of all",
    "RNNCellBase": "a base, without weights",
    "SyncBatchNorm": "no kernel on a CPU; test_a_synchronized_batch_norm_... looks at it",
    **dict.fromkeys(
        ["LayerDict", "LayerList", "ParameterDict", "ParameterList", "Sequential"], "a container"
    ),
    **({} if RELEASE >= (3, 1) else {"AdaptiveLogSoftmaxWithLoss": "see above"}),
}

# Which fail without the cure. If Paddle mends one, its cure can go.
FAILING = {
    "BatchNorm", "BatchNorm1D", "BatchNorm2D", "BatchNorm3D", "GRU", "HSigmoidLoss",
    "InstanceNorm1D", "InstanceNorm2D", "InstanceNorm3D", "LSTM", "SimpleRNN",
    "GroupNorm" if RELEASE < (3, 1) else "PReLU",
}  # fmt: skip


MADE_OF_CELLS = {"LSTM/projected"}


def layer_of(case: str) -> str:
    return case.split("/")[0]


FAILING_CASES = [c for c in BUILT if layer_of(c) in FAILING and c not in MADE_OF_CELLS]


def may_have_weights(layer: type[nn.Layer]) -> bool:
    """Whether its constructor creates parameters, or layers of paddle.nn."""
    own = itertools.takewhile(lambda base: base is not nn.Layer, layer.__mro__)
    codes = [base.__init__.__code__ for base in own if "__init__" in vars(base)]
    used = {name for code in codes for name in code.co_names}
    makers = {name for name in used if isinstance(vars(nn).get(name), type)}
    return "create_parameter" in used or any(issubclass(vars(nn)[n], nn.Layer) for n in makers)


def test_the_table_knows_every_layer_of_paddle():
    layers = {
        one.__name__: one
        for one in vars(nn).values()
        if isinstance(one, type) and issubclass(one, nn.Layer)
    }
    known = {layer_of(case) for case in BUILT} | set(EXCUSED)
    unknown = {name for name in set(layers) - known if may_have_weights(layers[name])}
    assert not unknown, f"new layers of paddle.nn: build or excuse {sorted(unknown)}"
    assert known <= set(layers) or RELEASE < (3, 1)


def tensors_in(nested) -> list[paddle.Tensor]:
    flat = paddle.utils.flatten(nested)
    return [one for one in flat if isinstance(one, paddle.Tensor) and one.is_floating_point()]


def built(case: str) -> tuple[nn.Layer, list]:
    make, inputs = BUILT[case]
    paddle.seed(0)
    layer = make()
    return layer, [one() for one in inputs]


def trainable(layer: nn.Layer) -> list[str]:
    return [weight.name for weight in weights(layer) if weight.trains]


def gradients(
    case: str, frozen: set[str], wants: bool, *, cured: bool = True, held: bool = False
) -> dict[str, np.ndarray | None]:
    """The gradient of each open weight, and of each input if it wants one."""
    layer, inputs = built(case)
    layer.train()
    named = {weight.name: weight.tensor for weight in weights(layer)}
    for name in frozen:
        named[name].stop_gradient = True
    if held:
        hold_statistics(layer)
    for tensor in tensors_in(inputs):
        tensor.stop_gradient = not wants
    before = {name: tensor.numpy().copy() for name, tensor in named.items()}
    if cured:
        spared = spare(layer)
    paddle.seed(2)
    outputs = tensors_in(layer(*inputs))
    loss = sum((one * paddle.rand(one.shape)).sum() for one in outputs)
    if not loss.stop_gradient:
        loss.backward()
    assert not moved(before, {name: tensor.numpy() for name, tensor in named.items()})
    assert all(named[name].grad is None for name in frozen)
    found = {name: named[name].grad for name in named if name not in frozen}
    if wants:
        found.update({f"input {i}": one.grad for i, one in enumerate(tensors_in(inputs))})
    if cured:
        spared.undo()
    return {name: None if one is None else one.numpy() for name, one in found.items()}


def subsets(names: list[str]) -> list[set[str]]:
    """All of a few; of more none, all, each one alone, and all but each one; of many, shares."""
    every = set(names)
    if len(names) <= 4:
        sizes = range(len(names) + 1)
        return [set(some) for size in sizes for some in itertools.combinations(names, size)]
    if len(names) <= 16:
        return [set(), every, *({name} for name in names), *(every - {name} for name in names)]
    biases = {name for name in names if "bias" in name}
    return [set(), every, biases, every - biases, set(names[:7]), set(names[7:]), set(names[::2])]


def assert_same(found: dict, reference: dict) -> None:
    for name, gradient in found.items():
        assert gradient is not None, f"{name} is open and got no gradient"
        np.testing.assert_allclose(gradient, reference[name], 1e-5, 1e-6, err_msg=name)


@pytest.mark.parametrize("case", BUILT)
def test_every_subset_of_weights_trains_as_the_fully_open_layer_does(case):
    reference = gradients(case, set(), True, cured=False)
    assert not [name for name, gradient in reference.items() if gradient is None]
    names = trainable(built(case)[0])
    for frozen, wants in itertools.product(subsets(names), [True, False]):
        assert_same(gradients(case, frozen, wants), reference)


@pytest.mark.parametrize("case", BUILT)
def test_a_frozen_layer_whose_statistics_are_held_passes_gradients_on(case):
    frozen = set(trainable(built(case)[0]))
    # Held, an RNN runs in eval mode, in which Paddle cannot go back through it even if it is open.
    by_the_book = set() if not isinstance(built(case)[0], nn.layer.rnn.RNNBase) else frozen
    reference = gradients(case, by_the_book, True, cured=bool(by_the_book), held=not by_the_book)
    assert_same(gradients(case, frozen, True, held=True), reference)


def fails(case: str) -> bool:
    """Whether any subset fails without the cure; in a process of its own, as some crash it."""
    posix_only()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        reference = gradients(case, set(), True, cured=False)
        for frozen, wants in itertools.product(subsets(trainable(built(case)[0])), [True, False]):
            assert_same(gradients(case, frozen, wants, cured=False), reference)
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("case", FAILING_CASES)
def test_these_layers_fail_without_the_cure(case):
    assert fails(case)


@pytest.mark.parametrize("case", [case for case in BUILT if case not in FAILING_CASES])
def test_no_other_layer_is_touched(case):
    layer, _ = built(case)
    layer_before = dict(layer.__dict__)
    for frozen in subsets(trainable(layer)):
        for weight in weights(layer):
            weight.tensor.stop_gradient = weight.name in frozen
        spare(layer)
        for one in layer.sublayers(include_self=True):
            assert not one._forward_pre_hooks
            assert "_cudnn_impl" not in one.__dict__
    assert layer.__dict__.keys() == layer_before.keys()


@pytest.mark.parametrize("case", [case for case in FAILING_CASES if len(BUILT[case][1]) == 1])
def test_full_traces_train_the_same(case):
    """``to_static(full_graph=True)`` gives zeros, raises, or crashes with some of these kernels."""

    class Around(nn.Layer):
        def __init__(self, inner: nn.Layer) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x):
            found = self.inner(x)
            return found[0] if isinstance(found, tuple) else found

    names = trainable(built(case)[0])
    given = drawn(*built(case)[1][0].shape)()

    def trained(frozen: set[str], full: bool | None) -> dict[str, np.ndarray | None]:
        network = Around(built(case)[0])
        network.train()
        named = {weight.name: weight.tensor for weight in weights(network.inner)}
        for name in frozen:
            named[name].stop_gradient = True
        x = given.clone()
        if full is None:
            x.stop_gradient = False
        else:
            spare(network)
            network = paddle.jit.to_static(network, full_graph=full)
        outputs = network(x)
        paddle.seed(2)
        (outputs * paddle.rand(outputs.shape)).sum().backward()
        return {n: t.grad if t.grad is None else t.grad.numpy() for n, t in named.items()}

    reference = trained(set(), None)
    for frozen, full in itertools.product([{names[0]}, {names[-1]}, set()], [True, False]):
        if len(frozen) < len(names):
            found = trained(frozen, full)
            assert all(found.pop(name) is None for name in frozen)
            assert_same(found, reference)


def test_a_synchronized_batch_norm_is_cured_as_the_others():
    """It has no kernel on a CPU, so what its kernel is handed is looked at."""
    layer = nn.SyncBatchNorm(2)
    layer.weight.stop_gradient = True
    seen = []
    layer.forward = lambda x: seen.append((layer.weight, layer.bias)) or x
    spared = spare(layer)
    layer(paddle.rand([2, 2, 3, 3]))
    ((weight, bias),) = seen
    assert not weight.stop_gradient
    assert weight is not layer.weight
    assert weight.data_ptr() == layer.weight.data_ptr()
    assert bias is layer.bias
    spared.undo()


@pytest.mark.parametrize("case", ["InstanceNorm2D", "BatchNorm2D", "LSTM", "LSTM/lengths", "PReLU"])
def test_inputs_may_be_given_by_name(case):
    layer, inputs = built(case)
    names = list(inspect.signature(layer.forward).parameters)
    named = trainable(layer)
    layer.__getattr__(named[0]).stop_gradient = len(named) > 1
    spare(layer)
    for _ in range(2):
        outputs = layer(**dict(zip(names, inputs)))
        tensors_in(outputs)[0].square().sum().backward()
    assert all(w.tensor.grad is not None for w in weights(layer) if w.trains)


class Reader(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm = nn.LSTM(2, 2), nn.BatchNorm1D(2)
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.norm(self.rnn(x)[0][:, -1]))


def half_frozen() -> Reader:
    network = Reader()
    network.rnn.weight_ih_l0.stop_gradient = True
    network.norm.weight.stop_gradient = True
    return network


def step(network: nn.Layer, x: paddle.Tensor) -> set[str]:
    """What moves in one step with momentum and weight decay."""
    before = values(network)
    momentum = paddle.optimizer.Momentum(
        0.1, parameters=network.parameters(), weight_decay=0.1, grad_clip=nn.ClipGradByGlobalNorm(1)
    )
    network.train()
    nn.functional.cross_entropy(network(x), paddle.to_tensor([0, 1, 1])).backward()
    momentum.step()
    return moved(before, values(network))


def state(network: nn.Layer) -> list:
    return [
        (set(layer.__dict__), len(layer._forward_pre_hooks), len(layer._forward_post_hooks))
        for layer in network.sublayers(include_self=True)
    ]


def test_all_is_put_back_also_after_an_error_in_a_forward():
    network = half_frozen()
    found = state(network)
    spared = spare(network)
    assert state(network) != found
    all_weights = network.rnn._all_weights
    with pytest.raises(ValueError, match="expected 2D or 3D"):
        network.norm(paddle.rand([2, 2, 2, 2]))  # after its hook, before its kernel
    with pytest.raises(Exception, match=r"."):
        network.rnn(paddle.rand([3, 2, 5]))
    assert network.rnn._all_weights is all_weights
    assert network.rnn.training
    spared.undo()
    spared.undo()
    assert state(network) == found
    assert network.norm.weight is dict(network.named_parameters())["norm.weight"]


def test_two_who_ask_are_both_served_in_any_order_of_undoing():
    network = half_frozen()
    found = state(network)
    for order in (0, -1):
        asked = [spare(network), spare(network)]
        asked.pop(order).undo()
        assert step(network, paddle.rand([3, 4, 2])) > {"rnn.0.cell.weight_hh", "norm.bias"}
        asked.pop().undo()
        assert state(network) == found


def test_a_copy_in_the_middle_of_training_trains_on_its_own():
    network = half_frozen()
    x = paddle.rand([3, 4, 2])
    spared = spare(network)
    step(network, x)
    twin = copy.deepcopy(network)
    spared.undo()
    before = values(network)
    still = {"rnn.0.cell.weight_ih", "rnn.weight_ih_l0", "norm.weight"}
    changed = step(twin, x)
    assert changed == set(before) - still
    assert not moved(before, values(network))
    again = half_frozen()
    again.set_state_dict(twin.state_dict())
    assert not moved(values(twin), values(again))


def test_an_optimizer_does_not_see_the_aliases():
    network = half_frozen()
    spare(network)
    nn.functional.cross_entropy(
        network(paddle.rand([3, 4, 2])), paddle.zeros([3], "int64")
    ).backward()
    frozen = [p for p in network.parameters() if p.stop_gradient]
    assert all(parameter.grad is None for parameter in frozen)
    assert not any(name for name, _ in network.named_buffers() if "weight" in name)
    assert values(network).keys() == values(half_frozen()).keys()


def test_no_gradient_is_made_where_none_is_wanted():
    network = half_frozen()
    for parameter in network.parameters():
        parameter.stop_gradient = True
    spare(network)
    assert network(paddle.rand([3, 4, 2])).stop_gradient
    network.head.weight.stop_gradient = False
    outputs: list[bool] = []
    network.norm.register_forward_post_hook(lambda *a: outputs.append(a[2].stop_gradient))
    assert not network(paddle.rand([3, 4, 2])).stop_gradient
    with paddle.no_grad():
        assert network(paddle.rand([3, 4, 2])).stop_gradient
    assert outputs == [True, True]


def test_what_is_spared_does_not_keep_a_network_alive():
    network = nn.LSTM(2, 2)
    freeze(network, "bias_*")
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


def test_freeze_and_unfreeze_by_hand_cure_too():
    network = Reader()
    x = paddle.rand([3, 4, 2])
    found = state(network)
    freeze(network, ["rnn.weight_ih_l0", "norm.weight"])
    still = {"rnn.0.cell.weight_ih", "rnn.weight_ih_l0", "norm.weight"}
    assert step(network, x) == set(values(network)) - still
    freeze(network, "rnn")
    network.norm.weight.stop_gradient = False
    x.stop_gradient = False
    step(network, x)
    assert x.grad is not None
    unfreeze(network)
    assert state(network) == found
    assert step(network, x) == set(values(network))


def test_whichever_layer_is_called_is_cured_not_the_outermost_frozen_one():
    network = nn.Sequential(
        ("stem", nn.Linear(2, 2)),
        ("neck", nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2, direction="bidirect"))),
    )
    freezer = Freezer(Survey(network), partition(network, ["stem", "neck"]), trainable(network))
    freezer.apply(["stem"])
    network.train()
    outputs, _ = network(paddle.rand([1, 3, 2]))
    outputs.sum().backward()
    assert network.stem.weight.grad.abs().sum() > 0
    freezer.restore()
    assert "_cudnn_impl" not in network.neck[1].__dict__
