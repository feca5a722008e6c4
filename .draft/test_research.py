"""The researcher's and the frontier's roads: the contrast, the ranking, macro-actions."""

import math

import numpy as np
import pytest


def test_info_nce_against_its_closed_form(nb):
    """One latent, σ and T as in the notebook: distances 0, σ² and 2 σ² are 0, 1/T and 2/T."""
    z = nb.torch.zeros(1, 1, 1)
    imagined = nb.SPREAD * nb.torch.tensor([0.0, 1.0, math.sqrt(2)]).view(3, 1, 1, 1)
    t = nb.TEMPERATURE
    assert float(nb.info_nce(imagined, z)) == pytest.approx(math.log(1 + math.exp(-1 / t) + math.exp(-2 / t)), rel=1e-4)
    assert float(nb.info_nce(imagined.flip(0), z)) == pytest.approx(2 / t + math.log(1 + math.exp(-1 / t) + math.exp(-2 / t)), rel=1e-4)
    assert float(nb.info_nce(imagined[:1].repeat(3, 1, 1, 1), z)) == pytest.approx(math.log(3), rel=1e-4), "who is the same cannot be told apart"


def test_the_contrast_pulls_the_true_dream_and_pushes_the_others(nb):
    imagined = (nb.SPREAD * nb.torch.tensor([[0.5, 0.1], [0.4, 0.3], [-0.3, 0.2]])).view(3, 1, 1, 2).requires_grad_()
    nb.info_nce(imagined, nb.torch.zeros(1, 1, 2)).sum().backward()
    step = (-imagined.grad * imagined.detach()).sum((1, 2, 3))  # positive: away from what was seen, which is 0
    assert step[0] < 0 < step[1] and step[2] > 0


def test_other_pushes_differ_only_where_m_is_alone(nb):
    a = nb.torch.tensor([[0, 1, 1, 0, 1, 0]])
    same, turned, every_other = nb.other_pushes(a, 3)
    assert nb.torch.equal(same, a)
    assert turned.tolist() == [[0, 1, 0, 1, 0, 1]] and every_other.tolist() == [[0, 1, 0, 0, 0, 0]]


def test_the_contrast_is_part_of_training_and_changes_it(nb, world, smoke, tmp_path):
    m, practice = smoke.m.but(steps=4, hidden=16, context=4), smoke.practice.but(steps=4, alone=5, batch=8)

    def train(folder, also):
        return nb.train_m(nb.Progress(tmp_path / folder), world.memory, world.codes, None, also, m=m, practice=practice, seed=1)["weights"]

    plain, contrast, nothing = train("plain", None), train("contrast", nb.contrast), train("nothing", lambda *what: 0.0)
    assert all(nb.torch.equal(plain[name], nothing[name]) for name in plain)
    assert not nb.torch.allclose(plain["gates.weight"], contrast["gates.weight"], atol=1e-5)


def test_the_ranking_knows_a_known_order(nb):
    real = list(np.arange(30.0))
    assert nb.correlations([x**3 for x in real], real)[1] == pytest.approx(1.0)
    low, high = nb.rank_interval(real, real)
    assert low == high == pytest.approx(1.0)
    luck = np.random.default_rng(1)
    low, high = nb.rank_interval(list(luck.normal(size=30)), real)
    assert low < 0 < high


def test_skilled_controllers_are_made_once_from_the_path(nb, world, tmp_path, monkeypatch):
    monkeypatch.setattr(nb, "lives", lambda agent, *rest: [1.0, 3.0])
    path = nb.torch.randn(40, 23)
    made = [nb.make_skilled(nb.Progress(tmp_path), world, path, seed=4, episodes=2, workers=1) for _ in range(2)]
    assert nb.torch.equal(made[0]["weights"], made[1]["weights"]) and made[0]["real"] == [2.0] * nb.RANKED
    gaps = (made[0]["weights"][:, None] - path).norm(dim=2).min(1).values
    assert (gaps[::3] < 1e-5).all() and (gaps[1::3] > 1e-3).all()


def test_an_imagined_return_is_the_dreams_own_and_a_doubted_state_pays_less(nb, world):
    weights, starts = nb.torch.randn(23), world.states(world.memory.rows[:10])
    plain = nb.imagined_return(world, None, weights, starts, 7)
    home = nb.Axes(nb.torch.zeros(22), nb.torch.eye(22))
    c = nb.CSettings(horizon=7, last_worth=0.0)
    assert plain == pytest.approx(float(nb.dream_returns(world.m, weights[None], starts, home, c).mean()), rel=1e-4)
    verifier = nb.frozen(nb.Verifier(6, 16))
    nb.nn.init.zeros_(verifier.layers[-1].weight)
    nb.nn.init.zeros_(verifier.layers[-1].bias)
    assert nb.imagined_return(world, verifier, weights, starts, 7) == pytest.approx(0.5 * plain, rel=1e-4), "a verifier that guesses halves all"


def test_a_macro_step_is_two_steps_when_the_weights_are_tied_by_hand(nb):
    """An M that only adds up pushes: z' = z + w · push, once by single steps, once by pairs."""

    def adder(pushes, reach):
        m = nb.M(2, 1, pushes)
        for part in m.parameters():
            nb.nn.init.zeros_(part)
        with nb.torch.no_grad():
            m.gates.bias[1:2], m.gates.bias[2:3], m.gates.bias[3:4] = 40.0, -40.0, 40.0  # in: all, forget: all, out: all
            m.gates.weight[0, 4 : 4 + pushes] = math.atanh(math.atanh(reach)) / pushes
            m.change.weight[:] = nb.torch.tensor([[1.0], [-2.0]])
        return m

    single, pair = adder(1, 0.3), adder(2, 0.6)
    z = nb.torch.randn(4, 2)
    a = nb.torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    twice = single.step(single.step(single.begin(z), a[:, 0]), a[:, 1])
    assert nb.torch.allclose(pair.step(pair.begin(z), a).z, twice.z, atol=1e-6)
    assert not nb.torch.allclose(twice.z[0], twice.z[3])


def test_every_second_frame(nb, memory, world):
    thin, codes = nb.every_second(world.memory, world.codes)
    whole = world.memory
    assert len(thin) == codes.mu.shape[1] and codes.actions.shape == (2, len(thin), 2)
    z = {tuple(code): row for row, code in enumerate(world.codes.mu[0].tolist())}
    for row in range(len(thin) - 1):
        if thin.episode[row] == thin.episode[row + 1]:
            here, there = (z[tuple(codes.mu[0, k].tolist())] for k in (row, row + 1))
            assert there == here + 2 and whole.episode[here] == whole.episode[there]
            assert codes.actions[:, row].T.tolist() == world.codes.actions[:, here:there].T.tolist()
            assert thin.rewards[row] == 2 and nb.torch.equal(thin.states[row], whole.states[here])
    assert thin.done.sum() == whole.done.sum(), "each fall is there once"
    assert (codes.mirror[1]).all() and len(thin.episodes) == codes.mirror.shape[1]


def test_the_macro_agent_does_both_pushes_and_looks_at_every_second_frame(nb, smoke):
    nb.torch.manual_seed(0)
    v, m = nb.frozen(nb.V(smoke.v)), nb.frozen(nb.M(smoke.v.latents, 16, 2))
    nb.nn.init.normal_(m.change.weight, std=0.1)
    codes = nb.Codes(nb.torch.zeros(1, 1, smoke.v.latents), None, nb.torch.zeros(1, 1, 2), None, None)

    def choose(k, state):
        return ((100 * state.z[:, :2]).sin() > 0).float()

    world = nb.World(v, m, None, codes, 5)
    episodes = nb.play(nb.MacroAgent(world, choose), [11, 12, 13], 2)
    real = world.looking_at(episodes)
    thin, pairs = nb.every_second(real.memory, real.codes)
    there = real._replace(memory=thin, codes=pairs)
    checked = 0
    for number, episode in enumerate(thin.episodes):
        rows = thin.rows[thin.episode == number]
        whole = episodes[number // 2]
        if not np.array_equal(episode.states[0], whole.states[0]):
            continue  # the frames between
        acted = choose(0, there.states(rows[:-1]))
        taken = pairs.actions[0, rows[:-1]]
        alike = (acted == taken).float().mean()
        assert alike > 0.9, (number, alike)
        checked += len(rows)
    assert checked > 5


def test_the_gap_between_two_gaussians(nb):
    luck = nb.torch.Generator().manual_seed(0)
    real = nb.torch.randn(20_000, 1, generator=luck)
    assert nb.gaussian_gap(real, real) == pytest.approx(0.0, abs=1e-6)
    assert nb.gaussian_gap(2 * real + 1, real) == pytest.approx(math.log(2) + (1 + 1) / 8 - 0.5, abs=0.03), "KL of N(0, 1) to N(1, 4)"
