"""Programs on a GPU: the recorded kernels compute what the function does, on whatever they are handed."""

import pytest
import torch

from bptt_envs.program import CACHE_VARIABLE, CompilerError, Program

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def function(x, y):
    return x @ y, (x * 2.0).cumsum(0), x


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "programs"))
    return tmp_path / "programs"


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to("cuda") for shape in ((3, 4), (4, 2))]


def test_it_computes_what_the_function_does_and_earlier_results_stay(folder):
    made = Program(function, tensors(0))
    kept = [(tensors(seed), made(*tensors(seed))) for seed in (1, 2)]
    kept.append((tensors(3), made.again(*tensors(3))))
    for inputs, outputs in kept:
        for found, expected in zip(outputs, function(*inputs), strict=True):
            torch.testing.assert_close(found, expected)
    assert not folder.exists()


def test_what_it_was_made_with_is_left_alone():
    inputs = tensors(0)
    made = Program(function, inputs)
    made(*tensors(1))
    assert all(torch.equal(one, before) for one, before in zip(inputs, tensors(0), strict=True))


def test_inputs_in_another_layout_are_laid_out_anew():
    x, y = tensors(1)
    made = Program(function, tensors(0))
    found = made(x.T.contiguous().T, y)
    torch.testing.assert_close(found[0], x @ y)


def test_no_compiler_is_needed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    inputs = tensors(0)
    torch.testing.assert_close(Program(function, inputs)(*inputs)[0], inputs[0] @ inputs[1])


def test_a_function_that_looks_at_values_is_refused_in_words():
    def looks(x, y):
        return (x * 2.0 if x.sum() > 0 else y,)

    with pytest.raises(CompilerError, match=r"cannot record the operations as a CUDA graph \(.*\); use compile=False"):
        Program(looks, tensors(0))
    inputs = tensors(1)
    torch.testing.assert_close(Program(function, inputs)(*inputs)[0], inputs[0] @ inputs[1])  # nothing is left broken


def test_inputs_elsewhere_are_refused():
    made = Program(function, tensors(0))
    with pytest.raises(ValueError, match=r"input 0 of a program must be .* on cuda:0"):
        made(*(one.cpu() for one in tensors(1)))
