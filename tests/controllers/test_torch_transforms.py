"""The built-in networks under torch's transforms: differentiated twice, forwards, one by one, exported."""

import io

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from bptt_trainers import GRU, LSTM, MLP, ConvNet, Gaussian
from bptt_trainers.controllers.normalized import Normalized

pytestmark = [  # torch's forward mode and exporters warn of what they use themselves
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]

NETWORKS = {
    "MLP": lambda **g: MLP((3,), (2,), (4,), squash=(-1.0, 1.0), **g),
    "ConvNet": lambda **g: ConvNet((9, 2), (1,), (3, 2), **g),
    "GRU": lambda **g: GRU((3,), (2,), (4,), **g),
    "LSTM": lambda **g: LSTM((3,), (2,), (4, 3), squash=(-1.0, 1.0), **g),
    "Gaussian": lambda **g: Gaussian((3,), (2,), (4,), squash=(-1.0, 1.0), **g),
    "Gaussian of a GRU": lambda **g: Gaussian((3,), (2,), (4,), network="gru", deviation="state", **g),
    "Normalized": lambda **g: Normalized((3,), (2,), (4,), **g),
}


def made(name, dtype):
    """A network, and what it is handed for a batch of two and of five."""
    controller = NETWORKS[name](generator=torch.Generator().manual_seed(0)).to(dtype)
    shapes = [shape for shape in (controller.memory_shape, controller.noise_shape) if shape]
    shapes = [controller.observation_shape, *shapes]
    generator = torch.Generator().manual_seed(1)
    return controller, *(tuple(torch.randn(n, *s, dtype=dtype, generator=generator) for s in shapes) for n in (2, 5))


SHAPES = {  # of what `forward` takes: what is handed beside observations is one tuple of it
    "ConvNet": lambda batch: (batch,),
    "GRU": lambda batch: (batch, batch),
    "Gaussian": lambda batch: (batch, (batch,)),
    "Gaussian of a GRU": lambda batch: (batch, (batch, batch)),
}


def parts(answer):
    return answer if isinstance(answer, tuple) else (answer,)


def as_function(controller, inputs):
    """From parameters and observations to all that the controller gives, as one vector."""

    def function(parameters, observation):
        answer = functional_call(controller, parameters, (observation, *inputs[1:]))
        return torch.cat([part.flatten() for part in parts(answer)])

    return function, {name: p.detach().clone() for name, p in controller.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_first_and_second_slopes_are_those_of_differences(name):
    controller, inputs, _ = made(name, torch.float64)
    function, parameters = as_function(controller, inputs)
    weights = {k: p.requires_grad_(controller.get_parameter(k).requires_grad) for k, p in parameters.items()}
    names = [k for k, p in weights.items() if p.requires_grad]

    def of_tensors(observation, *trained):
        return function({**weights, **dict(zip(names, trained, strict=True))}, observation)

    given = (inputs[0].requires_grad_(), *(weights[k] for k in names))
    assert torch.autograd.gradcheck(of_tensors, given, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(of_tensors, given, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_slopes_in_float32_are_those_in_float64(name):
    """On the CPU float32 has functions of its own."""
    found = []
    for dtype in (torch.float32, torch.float64):
        controller, inputs, _ = made(name, torch.float64)
        controller, inputs = controller.to(dtype), tuple(one.to(dtype) for one in inputs)
        function, _ = as_function(controller, inputs)
        weights = dict(controller.named_parameters())  # they require gradients, as those of a controller do
        along = torch.ones_like(inputs[0])
        _, forwards = jvp(lambda x, f=function, w=weights: f(w, x), (inputs[0],), (along,))
        backwards = jacrev(lambda x, f=function, w=weights: f(w, x))(inputs[0])
        twice = hessian(lambda x, f=function, w=weights: f(w, x).square().sum())(inputs[0])
        torch.testing.assert_close(forwards, (backwards * along).flatten(1).sum(1))
        found.append((forwards, backwards, twice))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_each_sample_are_those_one_by_one(name):
    controller, inputs, _ = made(name, torch.float32)
    weights = dict(controller.named_parameters())

    def loss(weights, *one):
        return sum(p.square().sum() for p in parts(functional_call(controller, weights, tuple(x[None] for x in one))))

    together = vmap(grad(loss), (None, *(0 for _ in inputs)))(weights, *inputs)
    for i in range(2):
        alone = grad(loss)(weights, *(x[i] for x in inputs))
        torch.testing.assert_close({k: v[i] for k, v in together.items()}, alone)


@pytest.mark.parametrize("name", SHAPES)
def test_an_exported_program_gives_the_same_for_any_batch(name):
    controller, inputs, others = made(name, torch.float32)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(controller, inputs, dynamic_shapes=SHAPES[name](batch))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for one, other in zip(parts(loaded(*others)), parts(controller(*others)), strict=True):
        assert torch.equal(one, other)


def test_an_onnx_file_of_a_controller_with_memory_gives_the_same_for_any_batch():
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    controller, inputs, others = made("GRU", torch.float32)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(controller.eval(), inputs, dynamic_shapes=(batch, batch))
    model = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    names = [given.name for given in model.graph.input]
    answers = ReferenceEvaluator(model).run(None, {n: x.numpy() for n, x in zip(names, others, strict=True)})
    for one, other in zip(answers, controller(*others), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other.detach())


def test_a_trace_gives_the_same():
    controller, inputs, others = made("GRU", torch.float32)
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.trace"):
        traced = torch.jit.trace(controller, inputs, check_trace=False)
    for one, other in zip(traced(*others), controller(*others), strict=True):
        assert torch.equal(one, other)
