"""The quantum particle in a box: its step against its definition, known solutions and published numbers."""

import copy
import itertools
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from bptt_envs.canvas import ACTION
from bptt_envs.charts import Curves, Field, NamedCurves
from bptt_envs.rendering import picture
from bptt_envs.systems import QuantumControl
from bptt_envs.systems.quantum_control import _operator

REFERENCE = Path(__file__).parent.parent / "reference"
POINTS = [8, 32, 64, 128, 256]


def as_complex(states):
    return torch.complex(states[..., 0], states[..., 1])


def as_parts(psi):
    return torch.view_as_real(psi)


def eigenstate(system, n):
    """phi_n of the empty box, (N,)."""
    j = torch.arange(1, system.n_points + 1, dtype=torch.float64)
    phi = torch.sin(n * torch.pi * j / (system.n_points + 1))
    return phi / phi.norm()


def hamiltonians(system, u):
    """H(u) = -d^2/dx^2 + u x on the three-point stencil, (B, N, N), for u: (B, 1)."""
    dx = system.box_length / (system.n_points + 1)
    one = torch.eye(system.n_points, dtype=torch.float64)
    neighbours = one.roll(1, 0).tril() + one.roll(1, 1).triu()
    x = dx * torch.arange(1, system.n_points + 1, dtype=torch.float64)
    return (2 * one - neighbours) / dx**2 + u.unsqueeze(-1) * torch.diag(x)


def crank_nicolson(system, psi, u):
    """(1 + i dt/2 H) psi' = (1 - i dt/2 H) psi, by a dense solve, (B, N)."""
    half = 0.5j * system.dt * hamiltonians(system, u)
    one = torch.eye(system.n_points)
    return torch.linalg.solve(one + half, ((one - half) @ psi.unsqueeze(-1)).squeeze(-1))


def random_psi(system, size, seed=0):
    """Any wave functions of norm 1, rough ones, (size, N)."""
    psi = torch.randn(size, system.n_points, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    return psi / psi.norm(dim=1, keepdim=True)


def norms(states):
    return states.double().flatten(1).norm(dim=1)


# The step


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-13), (torch.float32, 5e-6)])
@pytest.mark.parametrize("n_points", POINTS)
def test_step_is_that_of_crank_nicolson(n_points, dtype, tolerance):
    system, psi = QuantumControl(n_points=n_points), random_psi(QuantumControl(n_points=n_points), 51)
    u = torch.linspace(-50.0, 200.0, 51, dtype=torch.float64).unsqueeze(1)
    got = system.step(as_parts(psi).to(dtype), u.to(dtype))
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), as_parts(crank_nicolson(system, psi, u)), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {"n_points": 2, "target": 1},
        {"n_points": 16, "dt": 0.01},  # where the eigenvectors of 16 points are worst
        {"dt": 1e-4},
        {"dt": 0.02},
        {"dt": 2.0},
        {"box_length": 30.0},
        {"box_length": 0.1},
    ],
    ids=str,
)
def test_step_is_that_of_crank_nicolson_with_other_grids_and_durations(options):
    system = QuantumControl(**options)
    psi = random_psi(system, 51)
    u = torch.linspace(-500.0, 500.0, 51, dtype=torch.float64).unsqueeze(1)
    expected = as_parts(crank_nicolson(system, psi, u))
    torch.testing.assert_close(system.step(as_parts(psi), u), expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("n_points", POINTS)
def test_an_episode_keeps_the_norm(n_points):
    system, generator = QuantumControl(n_points=n_points), torch.Generator().manual_seed(0)
    states = system.initial_states(16, generator)
    for _ in range(system.horizon):
        states = system.step(states, 30.0 * torch.randn(16, 1, generator=generator))
        assert float((norms(states) - 1.0).abs().max()) <= 1e-5


@pytest.mark.parametrize("control", ["constant", "random"])
def test_ten_thousand_float32_steps_keep_the_norm(control):
    system, generator = QuantumControl(), torch.Generator().manual_seed(0)
    states = as_parts(random_psi(system, 16)).float()
    controls = torch.linspace(-50.0, 200.0, 16).unsqueeze(1)
    for _ in range(10_000):
        if control == "random":
            controls = 30.0 * torch.randn(16, 1, generator=generator)
        states = system.step(states, controls)
    assert float((norms(states) - 1.0).abs().max()) <= 1e-4


@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_an_eigenstate_of_the_empty_box_only_turns_its_phase(n):
    system = QuantumControl()
    tau, dx = system.dt / 2, system.box_length / (system.n_points + 1)
    E = (2.0 - 2.0 * np.cos(n * np.pi / (system.n_points + 1))) / dx**2  # of the three-point stencil
    phi = eigenstate(system, n).to(torch.complex128)
    got = as_complex(system.step(as_parts(phi).unsqueeze(0), torch.zeros(1, 1, dtype=torch.float64)))[0]
    torch.testing.assert_close(got, (1 - 1j * tau * E) / (1 + 1j * tau * E) * phi, rtol=0.0, atol=1e-13)


def test_steps_converge_to_the_matrix_exponential_at_second_order():
    duration, u = 0.5, torch.tensor([[12.0]], dtype=torch.float64)
    errors = []
    for steps in (50, 100, 200, 400):
        system = QuantumControl(n_points=8, dt=duration / steps)
        psi = (eigenstate(system, 1) + 1j * eigenstate(system, 2)) / np.sqrt(2.0)
        exact = torch.linalg.matrix_exp(-1j * duration * hamiltonians(system, u))[0] @ psi
        states = as_parts(psi).unsqueeze(0)
        for _ in range(steps):
            states = system.step(states, u)
        errors.append(float((as_complex(states)[0] - exact).norm()))
    orders = [float(np.log2(a / b)) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([2.0] * 3, abs=0.05), errors


def test_a_step_back_in_time_undoes_a_step():
    system, psi = QuantumControl(), random_psi(QuantumControl(), 8)
    u = torch.linspace(-50.0, 50.0, 8, dtype=torch.float64).unsqueeze(1)
    after = as_complex(system.step(as_parts(psi), u))
    back = as_complex(system.step(as_parts(after.conj().resolve_conj()), u)).conj()
    torch.testing.assert_close(back.resolve_conj(), psi, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("u", [10.0, -10.0])
def test_the_mean_position_accelerates_down_the_potential(u):
    """Ehrenfest: with mass 1/2, <x>'' = -2 u, so <x> moves by -u t^2; in the middle the walls push alike."""
    system, steps = QuantumControl(n_points=64, dt=1e-5), 1000
    x = system.dx * torch.arange(1, 65, dtype=torch.float64)
    states = as_parts(eigenstate(system, 1).to(torch.complex128)).unsqueeze(0)
    for _ in range(steps):
        states = system.step(states, torch.tensor([[u]], dtype=torch.float64))
    moved = float((states[0].square().sum(-1) * x).sum() - 1.0)
    assert moved == pytest.approx(-u * (steps * system.dt) ** 2, rel=0.02)


def test_step_gives_the_numbers_of_the_published_scripts():
    numbers = np.load(REFERENCE / "quantum_3.npz")
    system = QuantumControl(target=int(numbers["target_state"]), n_points=int(numbers["nx"]), dt=float(numbers["dt"]))
    got = system.step(torch.from_numpy(numbers["states"]), torch.from_numpy(numbers["controls"]))
    np.testing.assert_allclose(got, numbers["next_states"], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("objective", ["final", "continuous"])
@torch.no_grad()
def test_loss_of_a_controller_is_that_of_the_published_scripts(objective):
    numbers = np.load(REFERENCE / "quantum_3.npz")
    layers = {"conv0": nn.Conv1d(2, 60, 3, 2), "conv1": nn.Conv1d(60, 60, 3, 2), "dense": nn.Linear(420, 1)}
    for name, layer in layers.items():
        layer.weight.copy_(torch.from_numpy(numbers[f"{name}_W"]))
        layer.bias.copy_(torch.from_numpy(numbers[f"{name}_b"]))
    env = gym.make("DiffQuantumControl-v0", objective=objective, target=3).unwrapped
    assert (env.horizon, env.system.dt) == (int(numbers["horizon"]), float(numbers["dt"]))
    states = torch.from_numpy(numbers["initial_states"])
    loss = torch.zeros(len(states))
    for _ in range(env.horizon):
        hidden = layers["conv1"](layers["conv0"](states.mT).tanh()).tanh()
        states, reward = env.step_differentiable(states, layers["dense"](hidden.flatten(1)))
        loss -= reward
    loss -= env.final_reward(states)
    assert float(loss.mean()) == pytest.approx(float(numbers[f"loss_{objective}"]), rel=1e-5)


@pytest.mark.parametrize("target", [1, 3, 5])
def test_only_the_target_costs_nothing(target):
    system = QuantumControl(target=target)
    eigenstates = torch.stack([eigenstate(system, n) for n in range(1, 33)])
    costs = system.state_cost(as_parts(np.exp(0.7j) * eigenstates))  # whatever its phase
    expected = torch.ones(32, dtype=torch.float64)
    expected[target - 1] = 0.0
    torch.testing.assert_close(costs, expected, rtol=0.0, atol=1e-12)


# Slopes, layouts, copies


@pytest.mark.parametrize("n_points", [2, 32])
def test_step_and_cost_are_differentiable(n_points):
    system = QuantumControl(n_points=n_points, target=2)
    states = as_parts(random_psi(system, 2)).clone().requires_grad_()
    controls = torch.tensor([[-40.0], [90.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(system.step, (states, controls))
    assert torch.autograd.gradcheck(system.state_cost, (states,))


def test_products_in_float32_are_those_in_float64():
    system = QuantumControl()
    states, controls = as_parts(random_psi(system, 8)), torch.linspace(-50.0, 200.0, 8).unsqueeze(1).double()
    vectors = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = system.pullback(states, controls)(slice(None), vectors)
    single = system.pullback(states.float(), controls.float())(slice(None), vectors.float())
    for ours, expected in zip(single, exact, strict=True):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_of_any_layout_in_memory_can_be_stepped(dtype):
    system = QuantumControl()
    states, u = system.initial_states(3, torch.Generator().manual_seed(0), dtype), torch.ones(3, 1, dtype=dtype)
    expected = system.step(states, u)
    long = torch.nn.functional.pad(states.flatten(1), (1, 0))  # such as the time before the state
    layouts = [
        long[:, 1:].unflatten(1, (32, 2)),
        torch.cat([torch.zeros(1, dtype=dtype), states.flatten()])[1:].view(3, 32, 2),
        states.mT.contiguous().mT,
        states.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    ]
    for layout in layouts:
        assert torch.equal(system.step(layout, u), expected)


def test_copies_and_pickles_step_alike():
    system = QuantumControl(n_points=8, target=2)
    states, u = system.initial_states(3, torch.Generator().manual_seed(0)), torch.ones(3, 1)
    expected = system.step(states, u)
    for other in (copy.copy(system), copy.deepcopy(system), pickle.loads(pickle.dumps(system))):
        assert torch.equal(other.step(states, u), expected)
        assert vars(other) == vars(system)
    changed = copy.copy(system)
    changed.dt = 0.5
    assert torch.equal(changed.step(states, u), QuantumControl(n_points=8, target=2, dt=0.5).step(states, u))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_first_step_without_gradients_does_not_spoil_later_ones(mode):
    _operator.cache_clear()
    with mode():
        system = QuantumControl()
        states = system.initial_states(2, torch.Generator().manual_seed(0))
        system.state_cost(system.step(states, torch.zeros(2, 1)))
    controls = torch.zeros(2, 1, requires_grad=True)
    states = system.initial_states(2, torch.Generator().manual_seed(0))
    system.state_cost(system.step(states, controls)).sum().backward()
    assert torch.isfinite(controls.grad).all()


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.vmap])
def test_a_first_step_under_a_functional_transform_does_not_spoil_later_ones(transform):
    system = QuantumControl(n_points=4)
    states, controls = system.initial_states(2, torch.Generator().manual_seed(0)), torch.ones(2, 1)
    expected = system.step(states, controls)
    _operator.cache_clear()
    transform(lambda u: system.step(states, u.view(-1, 1).expand(2, 1)))(controls)
    assert torch.equal(system.step(states, controls), expected)
    controls.requires_grad_()
    system.step(states, controls).square()[:, :2].sum().backward()
    assert torch.isfinite(controls.grad).all()


# Start


def coefficients(system, states):
    """<phi_n|psi>, (B, N)."""
    eigenstates = torch.stack([eigenstate(system, n) for n in range(1, system.n_points + 1)])
    return as_complex(states.double()) @ eigenstates.T.to(torch.complex128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighting", [None, 0.0, 0.3, 1.0])
def test_starts_are_superpositions_of_the_two_lowest_eigenstates(weighting, dtype):
    system = QuantumControl(weighting=weighting)
    states = system.initial_states(64, torch.Generator().manual_seed(0), dtype)
    assert states.dtype is dtype
    populations = coefficients(system, states).abs().square()
    torch.testing.assert_close(populations.sum(1), torch.ones(64, dtype=torch.float64), rtol=0.0, atol=1e-6)
    assert float(populations[:, 2:].max()) <= 1e-12
    if weighting is not None:
        assert populations[:, 0].tolist() == pytest.approx([weighting] * 64, abs=1e-6)


def assert_uniform(samples):
    """U(0, 1), by its quantiles."""
    levels = torch.linspace(0.05, 0.95, 19, dtype=samples.dtype)
    torch.testing.assert_close(samples.quantile(levels), levels, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("weighting", [None, 0.5])
def test_starts_are_distributed_as_the_paper_has_it(weighting):
    system = QuantumControl(weighting=weighting)
    c = coefficients(system, system.initial_states(8192, torch.Generator().manual_seed(0)))[:, :2]
    phases = (c.angle() / (2 * torch.pi)) % 1.0
    assert_uniform(phases[:, 0])
    assert_uniform(phases[:, 1])
    assert_uniform((phases[:, 0] - phases[:, 1]) % 1.0)
    if weighting is None:  # two normals have a uniform direction, whose angle is that of |c_1| and |c_2|
        assert_uniform(torch.atan2(c[:, 1].abs(), c[:, 0].abs()) / (torch.pi / 2))


# Pictures


def test_charts_show_density_control_and_populations():
    system = QuantumControl(n_points=8, target=7, max_control=5.0)
    states = torch.stack([system.initial_states(3, torch.Generator().manual_seed(t)) for t in range(4)])
    actions = torch.randn(3, 3, 1)
    density, control, populations = system.charts(states, actions)
    assert isinstance(density, Field)
    assert density.values.shape == (4, 10)
    torch.testing.assert_close(density.values.sum(1) * system.dx, torch.ones(4))  # a particle, somewhere in the box
    assert (density.low, density.high) == (0.0, 2.0)
    assert isinstance(control, Curves)
    assert torch.equal(control.values, actions[..., 0])
    assert isinstance(populations, NamedCurves)
    assert list(populations.names) == [*(f"phi_{n}" for n in range(1, 7)), "phi_7 (target)"]
    expected = coefficients(system, states[:, 0]).abs().square()[:, :7].float()
    torch.testing.assert_close(populations.values, expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("n_points", "target", "count"), [(2, 1, 2), (4, 3, 4), (32, 3, 5), (32, 6, 6)])
def test_charts_show_the_target_and_the_lowest_eigenstates(n_points, target, count):
    system = QuantumControl(n_points=n_points, target=target)
    states = system.initial_states(1, torch.Generator().manual_seed(0)).unsqueeze(0)
    *_, populations = system.charts(states, torch.zeros(0, 1, 1))
    assert populations.values.shape == (1, count)
    assert [name for name in populations.names if "target" in name] == [f"phi_{target} (target)"]


def colored(image):
    """Columns of the pixels that are neither grey nor the action's."""
    pixels = image.astype(int)
    vivid = pixels.max(-1) - pixels.min(-1) > 40
    return np.nonzero(vivid & (np.abs(pixels - ACTION).max(-1) > 90))[1]


def test_the_picture_has_color_where_the_particle_is():
    system = QuantumControl()
    middle = []
    for first in (4, 24):
        psi = torch.zeros(32, 2)
        psi[first : first + 4, 0] = 0.5
        middle.append(np.median(colored(picture(system, psi))))
    assert middle[0] < 320 - 80
    assert middle[1] > 320 + 80


def test_the_picture_shows_the_phase_and_the_control():
    system = QuantumControl()
    psi = eigenstate(system, 3)
    turned = [picture(system, as_parts(psi * np.exp(1j * angle))) for angle in (0.0, 1.0, 2.0)]
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(turned, 2))

    def line(u):  # the highest pixel of the potential at the right wall
        rows, columns = np.nonzero((np.abs(picture(system, as_parts(psi + 0j), u).astype(int) - ACTION) <= 3).all(-1))
        return rows[columns == columns.max()].min()

    heights = [line(torch.tensor([u])) for u in (-1e9, -20.0, 0.0, 20.0, 1e9)]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 5
