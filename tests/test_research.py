"""The researcher's and the frontier's roads: the contrast, the ranking, macro-actions."""

import math

import numpy as np
import pytest


def test_info_nce_against_its_closed_form(nb):
    """One latent, at squared distances of 0, σ²T and 2 σ²T: the three dreams weigh 1, 1/e and
    1/e²."""
    z = nb.torch.zeros(1, 1, 1)
    imagined = (
        nb.SPREAD
        * math.sqrt(nb.TEMPERATURE)
        * nb.torch.tensor([0.0, 1.0, math.sqrt(2)]).view(3, 1, 1, 1)
    )
    total = 1 + math.exp(-1) + math.exp(-2)
    assert float(nb.info_nce(imagined, z)) == pytest.approx(math.log(total), rel=1e-5)
    assert float(nb.info_nce(imagined.flip(0), z)) == pytest.approx(2 + math.log(total), rel=1e-5)
    assert float(nb.info_nce(imagined[:1].repeat(3, 1, 1, 1), z)) == pytest.approx(
        math.log(3), rel=1e-5
    ), "who is the same cannot be told apart"


def test_the_contrast_pulls_the_true_dream_and_pushes_the_others(nb):
    imagined = (
        (nb.SPREAD * nb.torch.tensor([[0.5, 0.1], [0.4, 0.3], [-0.3, 0.2]]))
        .view(3, 1, 1, 2)
        .requires_grad_()
    )
    nb.info_nce(imagined, nb.torch.zeros(1, 1, 2)).sum().backward()
    step = (-imagined.grad * imagined.detach()).sum(
        (1, 2, 3)
    )  # positive: away from what was seen, which is 0
    assert step[0] < 0 < step[1] and step[2] > 0


def test_other_pushes_differ_only_where_m_is_alone(nb):
    a = nb.torch.tensor([[0, 1, 1, 0, 1, 0]])
    same, turned, every_other = nb.other_pushes(a, 3)
    assert nb.torch.equal(same, a)
    assert turned.tolist() == [[0, 1, 0, 1, 0, 1]] and every_other.tolist() == [[0, 1, 0, 0, 0, 0]]


def test_the_contrast_is_part_of_training_and_changes_it(nb, world, smoke, tmp_path):
    m, practice = (
        smoke.m.but(steps=4, hidden=16, context=4),
        smoke.practice.but(steps=4, alone=5, batch=8),
    )

    def train(folder, also):
        return nb.train_m(
            nb.Progress(tmp_path / folder),
            world.memory,
            world.codes,
            None,
            also,
            m=m,
            practice=practice,
            seed=1,
        )["weights"]

    plain, contrast, nothing = (
        train("plain", None),
        train("contrast", nb.strong_contrast),
        train("nothing", lambda *what: 0.0),
    )
    assert all(nb.torch.equal(plain[name], nothing[name]) for name in plain)
    assert not nb.torch.allclose(plain["lstm.weight_ih"], contrast["lstm.weight_ih"], atol=1e-5)


def test_the_ranking_knows_a_known_order(nb):
    real = list(np.arange(30.0))
    assert nb.rank_interval([x**3 for x in real], real) == pytest.approx((1.0, 1.0, 1.0))
    found, low, high = nb.rank_interval(list(np.random.default_rng(1).normal(size=30)), real)
    assert low < 0 < high and low < found < high


@pytest.fixture
def ranked(nb, world, tmp_path, monkeypatch):
    """Ranks a world's controllers whose real returns are 1 and 3; what was played is kept in
    `ranked.weights`."""
    monkeypatch.setattr(nb, "LONG", (3, 7))
    path = nb.torch.randn(40, 23)
    monkeypatch.setattr(nb, "train_c", lambda progress, its, c, seed: {"path": path})
    monkeypatch.setattr(nb, "controller", lambda weights: weights)

    def played(agent, *rest):
        rank.weights.append(agent.choose)
        return [1.0, 3.0]

    monkeypatch.setattr(nb, "lives", played)
    verifier = nb.frozen(nb.Verifier(6, 16))
    nb.nn.init.zeros_(verifier.layers[-1].weight)
    nb.nn.init.zeros_(verifier.layers[-1].bias)

    def rank():
        rank.weights = []
        return nb.rank_controllers(
            nb.Progress(tmp_path),
            world,
            verifier,
            c=nb.CSettings(temperature=1.0),
            seed=4,
            episodes=2,
            starts=40,
            workers=1,
        )["lines"]

    rank.path = path
    return rank


def test_skilled_controllers_are_from_the_path_with_noise(nb, ranked):
    first, weights = ranked(), None
    weights = nb.torch.stack(ranked.weights)
    assert ranked() == first and nb.torch.equal(nb.torch.stack(ranked.weights), weights), (
        "the same seed makes the same"
    )
    assert len(first) == nb.RANKED and all(line["real"] == 2.0 for line in first)
    gaps = (weights[:, None] - ranked.path).norm(dim=2).min(1).values
    assert (gaps[::3] < 1e-5).all() and (gaps[1::3] > 1e-3).all()


def test_an_imagined_return_is_the_dreams_own_and_a_doubted_state_pays_less(nb, world, ranked):
    lines = ranked()
    starts = world.recall(nb.calm_moments(world, 4, 40))
    home = nb.Axes(nb.torch.zeros(22), nb.torch.eye(22))
    for steps in (3, 7):
        c = nb.CSettings(horizon=steps, last_worth=0.0)
        for line, one in list(zip(lines, ranked.weights))[::7]:
            assert line[f"plain {steps}"] == pytest.approx(
                float(nb.dream_returns(world.m, one[None], starts, home, c).mean()),
                rel=1e-3,
                abs=1e-4,
            )
            assert line[f"weighed {steps}"] == pytest.approx(
                0.5 * line[f"plain {steps}"], rel=1e-3, abs=1e-4
            ), "a verifier that guesses halves all"


def test_calm_moments_are_calm(nb, world):
    rows = nb.calm_moments(world, 1, 30)
    assert 0 < len(rows) <= 30
    assert (world.memory.states[rows, 2].abs() < math.radians(4)).all() and (
        world.memory.states[rows, 3].abs() < 0.5
    ).all()


def test_the_verifiers_loss_is_the_log_of_its_confidence_in_the_dream(nb, world):
    verifier = nb.frozen(nb.Verifier(6, 16))
    rows = nb.windows(world.memory, 4 + 5, 20)
    losses = nb.verifier_loss(world, verifier, rows)
    told = list(
        nb.dream(
            world.m,
            world.m.begin(world.codes.mu[0, rows[:, 0]]),
            nb.given(world.codes.actions[0, rows]),
            8,
            world.codes.mu[0, rows[:, :4]],
        )
    )
    assert float(losses[2]) == pytest.approx(
        float(-verifier(told[5]).sigmoid().log().mean()), rel=1e-4
    )
    assert len(losses) == 5


def test_the_paired_differences_against_students_own_arithmetic(nb):
    first, other = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.5, 4.5])
    error = np.array([1.0, 1.5, 0.5]).std(ddof=1) / math.sqrt(3)
    far, low, high, p = nb.difference(first, other)
    assert (far, low, high) == pytest.approx(
        (1, 1 - 4.30265 * error, 1 + 4.30265 * error), rel=1e-4
    )  # t of two degrees of freedom
    assert p == pytest.approx(
        1 - (1 / error) / math.sqrt(2 + 1 / error**2), rel=1e-6
    )  # its distribution has a closed form
    assert math.isnan(nb.difference(first[:1], other[:1])[3]), "one seed shows nothing"
    table = nb.pandas.DataFrame(
        {"arm": ["a", "b"] * 3, "seed": [1, 1, 2, 2, 3, 3], "what": [1.0, 2.0, 2.0, 3.5, 4.0, 4.5]}
    )
    found = nb.paired(table.sample(frac=1, random_state=0), "arm", "what", "a")
    assert found["a"] == "2.33" and found["b"].startswith("3.33: +1 (-0.242 to 2.24), p = 0.07")


def test_a_macro_step_is_two_steps_when_the_weights_are_tied_by_hand(nb):
    """An M that only adds up pushes: z' = z + w · push, once by single steps, once by pairs."""

    def adder(pushes, reach):
        m = nb.M(2, 1, pushes)
        for part in m.parameters():
            nb.nn.init.zeros_(part)
        with nb.torch.no_grad():
            # in: all, forget: all, cell: by the pushes, out: all
            m.lstm.bias_ih[:] = nb.torch.tensor([40.0, -40.0, 0.0, 40.0])
            m.lstm.weight_ih[2, 4 : 4 + pushes] = math.atanh(math.atanh(reach)) / pushes
            m.change.weight[:] = nb.torch.tensor([[1.0], [-2.0]])
        return m

    single, pair = adder(1, 0.3), adder(2, 0.6)
    z = nb.torch.randn(4, 2)
    a = nb.torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    twice = single.step(single.step(single.begin(z), a[:, 0]), a[:, 1])
    assert nb.torch.allclose(pair.step(pair.begin(z), a).z, twice.z, atol=1e-6)
    assert not nb.torch.allclose(twice.z[0], twice.z[3])


def test_every_second_frame(nb, world):
    macro, whole = nb.every_second(world), world.memory
    thin, codes = macro.memory, macro.codes
    assert len(thin) == codes.mu.shape[1] == len(whole) and codes.actions.shape == (
        2,
        len(thin),
        2,
    ), "each frame is there once"
    z = {tuple(code): row for row, code in enumerate(world.codes.mu[0].tolist())}
    for row in range(len(thin) - 1):
        if thin.episode[row] == thin.episode[row + 1]:
            here, there = (z[tuple(codes.mu[0, k].tolist())] for k in (row, row + 1))
            assert there == here + 2 and whole.episode[here] == whole.episode[there]
            assert codes.actions[:, row].tolist() == world.codes.actions[:, here:there].tolist()
            assert thin.rewards[row] == 2 and nb.torch.equal(thin.states[row], whole.states[here])
            assert bool(thin.done[row + 1]) == bool(whole.done[there])
    assert thin.done.sum() == whole.done.sum() == len(whole.lengths), "each fall is there once"
    assert (
        codes.mirror[1].all() and len(thin.lengths) == codes.mirror.shape[1] and macro.context == 2
    )


def test_both_halves_of_an_episode_teach_m_or_neither(nb):
    """`train_m` learns its doubt on each tenth episode: a macro M's must not meet those in its
    other half."""
    for count in (20, 30, 8):
        lengths = [5 + number % 3 for number in range(count)]
        episodes = [
            nb.Episode(
                0,
                np.zeros((n + 1, 64, 64), np.uint8),
                np.zeros((n + 1, 4), np.float32),
                np.zeros(n, np.int64),
                np.ones(n, np.float32),
                True,
                False,
            )
            for n in lengths
        ]
        halves = nb.every_second_row(nb.Memory(episodes, 0, nb.DEVICE))
        assert sorted(number for number, _ in halves) == sorted([*range(count)] * 2)
        kept = [number for place, (number, _) in enumerate(halves) if place % 10 == 9]
        taught = [number for place, (number, _) in enumerate(halves) if place % 10 != 9]
        if count % 10 == 0:
            assert set(kept) == set(range(9, count, 10)) and not set(kept) & set(taught)
        assert sorted(row for _, rows in halves for row in rows) == list(
            range(sum(lengths) + count)
        )


def test_the_same_moments_for_single_and_macro_steps(nb, world):
    rows = nb.windows(world.memory, 8, 25)
    macro, same = nb.every_second(world), nb.same_windows(world.memory, rows)
    assert same.shape == (25, 4) and nb.torch.equal(
        macro.codes.mu[:, same], world.codes.mu[:, rows[:, ::2]]
    )
    assert (macro.memory.episode[same] == macro.memory.episode[same[:, :1]]).all() and (
        same.diff() == 1
    ).all()


def test_the_macro_agent_does_both_pushes_and_remembers_as_a_dreams_beginning_does(nb, smoke):
    """Whatever it saw in play, `states` finds again in the recorded episode: so it acts awake as in
    dreams."""
    nb.torch.manual_seed(0)
    v, m = nb.frozen(nb.V(smoke.v)), nb.frozen(nb.M(smoke.v.latents, 16, 2))
    nb.nn.init.normal_(m.change.weight, std=0.1)
    codes = nb.Codes(nb.torch.zeros(1, 1, smoke.v.latents), None, None, None, None)

    def choose(k, state):
        return ((300 * state.h[:, :2]).sin() > 0).float()

    world = nb.World(v, m, None, codes, 3)
    episodes = nb.play(nb.MacroAgent(world, choose), [11, 12, 13], 2)
    its = nb.every_second(world._replace(context=6).looking_at(episodes))
    assert its.context == 3
    checked, both = 0, set()
    for number in range(len(its.memory.lengths)):
        rows = its.memory.rows[its.memory.episode == number][:-1]
        begin = its.memory.states[rows[0]].numpy()
        if not any(np.array_equal(begin, whole.states[0]) for whole in episodes):
            continue  # the frames between
        acted = choose(0, its.recall(rows)).tolist()
        taken = its.codes.actions[0, rows].tolist()
        agree = [one == two for one, two in zip(acted, taken)]
        assert np.mean(agree) > 0.9, (number, agree)  # batches of other sizes round differently
        checked, both = checked + len(agree), both | set(map(tuple, taken))
    assert checked > 10 and len(both) > 1


def test_the_gap_between_two_gaussians(nb):
    """Of N(0, 1) to N(1, 4) in the first direction; the second is the same in both, and
    independent."""
    luck = nb.torch.Generator().manual_seed(0)
    real = nb.torch.randn(20_000, 2, generator=luck)
    assert nb.gaussian_gap(real, real) == pytest.approx(0.0, abs=1e-6)
    dreamed = nb.torch.randn(15_000, 2, generator=luck) * nb.torch.tensor(
        [2.0, 1.0]
    ) + nb.torch.tensor([1.0, 0.0])
    assert nb.gaussian_gap(dreamed, real) == pytest.approx(
        math.log(2) + (1 + 1) / 8 - 0.5, abs=0.03
    )
    assert math.isnan(nb.gaussian_gap(real[:5], real))


def test_a_dream_that_copies_life_is_like_life(nb, smoke):
    """An M that says the end is far, and recorded lives that fall: the steps lived are counted by
    hand."""
    episodes = nb.play(nb.random_policy, [1, 2, 3, 4], 2)
    memory = nb.Memory(episodes, 0, nb.DEVICE)
    m, v = nb.frozen(nb.M(smoke.v.latents, 8)), nb.frozen(nb.V(smoke.v))
    m.done.weight.zero_(), m.done.bias.fill_(-40.0)
    world = nb.World(v, m, memory, None, 3)
    world = world._replace(codes=nb.Codes(**nb.encode_memory(None, memory, v)))
    probe = nb.Probe(world.codes.mu[0], memory.states)
    found = nb.like_life(world, lambda k, state: nb.torch.zeros(len(state.z)), probe, 6, count=4000)
    left = np.concatenate(
        [np.arange(len(one.actions), -1, -1)[3:-1] for one in episodes]
    )  # all of them fall
    assert found["lived dreamed"] == pytest.approx(6.0)
    assert found["lived real"] == pytest.approx(np.minimum(left, 6).mean(), rel=0.03)
    assert found["x real"] > 0 and found["KL"] > 0
    late = nb.like_life(world._replace(context=1_000), lambda k, state: state.z[:, 0], probe, 6)
    assert all(math.isnan(value) for value in late.values()) and late.keys() == found.keys()
