"""V, M, dreams, C."""

import math

import numpy as np
import pytest


def test_kls_against_torch(nb):
    mu, log_var, other, doubt = (nb.torch.randn(5, 3) for _ in range(4))
    normal, kl = nb.torch.distributions.Normal, nb.torch.distributions.kl_divergence
    posterior, belief = (
        normal(mu, (0.5 * log_var).exp()),
        normal(other, (doubt.exp() + log_var.exp()).sqrt()),
    )
    assert nb.torch.allclose(
        nb.kl_to_normal(mu, log_var), kl(posterior, normal(0.0, 1.0)), atol=1e-5
    )
    assert nb.torch.allclose(
        nb.gaussian_kl(mu, log_var, nb.Says(other, doubt, None, None)),
        kl(posterior, belief).sum(-1),
        atol=1e-4,
    )


def test_elbo_is_a_gaussian_log_likelihood_at_its_best_variance(nb, smoke, memory):
    v = nb.V(smoke.v)
    x = memory.stack(nb.torch.arange(8))
    noise = nb.torch.randn(8, smoke.v.latents)
    terms, mu = nb.elbo(v, x, noise, 0.3)
    band = v.normalise(x)
    y = v.decode_normalised(nb.sample(*v.encode(x), noise))
    pixels = band[0].numel()

    def negative_log_likelihood(variance):
        return 0.5 * ((y - band).square() / variance + math.log(variance)).sum((1, 2, 3)).mean()

    best = float((y - band).square().mean())
    # Up to the constant D/2, and no other variance does better.
    drawn = float(terms["loss"] - 0.3 * terms["kl"])
    assert drawn == pytest.approx(float(negative_log_likelihood(best)) - 0.5 * pixels, rel=1e-3)
    assert negative_log_likelihood(best) < min(
        negative_log_likelihood(0.8 * best), negative_log_likelihood(1.2 * best)
    )
    more, _ = nb.elbo(v, x, noise, 0.5)
    assert float(more["loss"] - terms["loss"]) == pytest.approx(0.2 * float(terms["kl"]), rel=1e-2)
    assert mu.shape == (8, smoke.v.latents)


def test_v_shapes_and_range_and_nothing_moves_outside_its_band(nb, smoke, memory):
    v = nb.V(smoke.v).eval()
    mu, log_var = v.encode(memory.stack(nb.torch.arange(5)))
    picture, moves = v.decode(mu), memory.padded.float().var(0).amax(1)
    assert mu.shape == log_var.shape == (5, 64)
    assert picture.shape == (5, 4, 64, 64) and 0 <= picture.min() and picture.max() <= 1
    assert (moves[: nb.ROOM.band.start] == 0).all() and (moves[nb.ROOM.band.stop :] == 0).all()
    assert nb.torch.allclose(nb.seen_again(v, mu[None])[0], v.encode(picture)[0], atol=1e-4)


def test_shift_law_knows_which_way_pictures_move(nb, memory):
    # A code that obeys the law by construction: where the dark pixels of the newest frame lie, on
    # average.
    rows = nb.torch.arange(40).repeat(2)
    shift, flip = nb.random_views(
        80, memory.max_shift, nb.torch.Generator().manual_seed(0), nb.DEVICE
    )
    flip = flip[:40].repeat(2)
    dark = 1 - memory.stack(rows, shift, flip)[:, -1, nb.ROOM.band]
    dark = dark - dark.amin((1, 2), keepdim=True)
    centre = ((dark * nb.torch.arange(64.0)).sum((1, 2)) / dark.sum((1, 2)))[:, None]
    assert nb.shift_law_broken(centre, nb.torch.where(flip, -shift, shift)) < 0.05
    assert nb.shift_law_broken(centre, shift) > 0.3, "a mirrored picture moves the other way"


def test_shift_law_pulls_the_code(nb, memory, tmp_path):
    kept = {}
    for law in (0.001, 300.0):
        v = nb.make_settings("smoke").v.but(steps=60, batch=64, law=law)
        kept[law] = nb.train_v(nb.Progress(tmp_path / str(law)), memory, v=v, seed=0)["log"][
            "broken"
        ][-1]
    assert kept[300.0] < 0.5 * kept[0.001], kept


def lstm_of(nb, m):
    """PyTorch's LSTM for whole sequences, with the weights of M's cell."""
    lstm = nb.nn.LSTM(m.lstm.input_size, m.hidden, batch_first=True)
    lstm.load_state_dict({f"{name}_l0": value for name, value in m.lstm.state_dict().items()})
    return lstm


def test_steps_along_a_film_equal_an_lstm_of_the_whole_sequence(nb, world):
    z, a = (
        world.codes.mu[0, :9][None].repeat(3, 1, 1) + nb.torch.randn(3, 9, 6),
        nb.torch.randint(2, (3, 9)),
    )
    change = nb.torch.cat([0 * z[:, :1], z[:, 1:] - z[:, :-1]], 1)
    whole, (h, c) = lstm_of(nb, world.m)(nb.torch.cat([z, 5 * change, 2.0 * a[..., None] - 1], 2))
    states = list(nb.dream(world.m, world.m.begin(z[:, 0]), nb.given(a), 9, z))
    # At the second step M still remembers as `before` what it read at the first.
    assert nb.torch.allclose(nb.stacked(states).h, whole, atol=1e-5) and nb.torch.allclose(
        states[-1].c, c[0], atol=1e-5
    )


def test_a_dream_reads_then_lives_on_its_own_predictions(nb, world):
    z, a = nb.torch.randn(3, 10, 6), nb.torch.randint(2, (3, 9))

    def path(shown):
        return nb.stacked(nb.dream(world.m, world.m.begin(z[:, 0]), nb.given(a), 9, shown))

    forced, free = path(z[:, :9]), path(z[:, :4])
    assert nb.torch.equal(free.z[:, :4], forced.z[:, :4]) and not nb.torch.allclose(
        free.z[:, 4], forced.z[:, 4], atol=1e-3
    )
    assert nb.torch.equal(free.before[:, 5], free.z[:, 4]) and free.blind[0, :, 0].tolist() == [
        1,
        1,
        1,
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert nb.torch.equal(free.z, path(nb.torch.cat([z[:, :4]], 1)).z), (
        "what comes after is never looked at"
    )


def test_temperature_scales_the_noise_and_the_mask_stops_it(nb, world):
    begin, a, noise = (
        world.m.begin(nb.torch.randn(5, 6)),
        nb.torch.zeros(5, 1),
        nb.torch.randn(5, 1, 6),
    )

    def z(tau, mask=1.0):
        return next(nb.dream(world.m, begin, nb.given(a), 1, tau=tau, noise=noise * mask)).z

    once, twice = z(1.0) - z(0.0), z(2.0) - z(0.0)
    assert once.abs().min() > 0 and nb.torch.allclose(twice, 2 * once, atol=1e-4)
    half = nb.torch.tensor([1.0, 0, 1, 0, 1, 0])
    assert nb.torch.allclose(z(1.0, half) - z(0.0), once * half, atol=1e-5)


def test_doubt_shapes_neither_the_memory_nor_the_mean(nb, world):
    m = world.m.requires_grad_(True)
    z, a = world.codes.mu[0, :13][None], world.memory.actions[None, :12]
    ones = nb.torch.ones(1, 12)
    m.zero_grad()
    nb.m_losses(m, z, a, ones, 0 * ones, ones, 6, ones[:, :1])["doubt"].backward()
    moved = {name for name, p in m.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"log_var.weight", "log_var.bias"}
    m.requires_grad_(False)


def test_losses_by_hand_and_padding_counts_nothing(nb, world):
    z, a, ones = nb.torch.randn(2, 4, 6), nb.torch.randint(2, (2, 3)), nb.torch.ones(2, 3)
    real = nb.torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    losses = nb.m_losses(world.m, z, a, ones, 0 * ones, real, 3, 0.5 * ones[:, :1])
    says = world.m.says(
        nb.stacked(nb.dream(world.m, world.m.begin(z[:, 0]), nb.given(a), 3, z[:, :3]))
    )
    wanted = (0.5 * (z[:, 1:] - says.mu).square().sum(-1) / nb.SPREAD**2)[real > 0].mean()
    assert float(losses["latent"]) == pytest.approx(float(wanted), rel=1e-4)
    z[1, 2:] = 99.0  # beyond the episode's end
    assert float(
        nb.m_losses(world.m, z, a, ones, 0 * ones, real, 3, 0.5 * ones[:, :1])["done"]
    ) == pytest.approx(float(losses["done"]), rel=1e-4)


def test_the_doubt_learns_from_other_episodes_than_the_mean(nb, world):
    m = world.m.requires_grad_(True)
    z, a, ones = nb.torch.randn(2, 4, 6), nb.torch.randint(2, (2, 3)), nb.torch.ones(2, 3)
    unseen = nb.torch.tensor([[0.0], [1.0]])
    losses = nb.m_losses(m, z, a, ones, 0 * ones, ones, 3, unseen)
    for name, row in (("latent", 0), ("done", 0), ("doubt", 1)):
        alone = nb.m_losses(
            m, z[row : row + 1], a[row : row + 1], ones[:1], 0 * ones[:1], ones[:1], 3, 0.5
        )
        assert float(losses[name]) == pytest.approx(float(alone[name]), rel=1e-4), name
    m.requires_grad_(False)


def test_states_read_known_steps_only(nb, world):
    memory, first = world.memory, int(world.memory.first[-1])
    rows = nb.torch.tensor([first, first + 2, first + 7])
    states = world.recall(rows)
    assert (states.h[0] == 0).all() and nb.torch.equal(states.z, world.codes.mu[0, rows])
    for k, read in ((1, 2), (2, 4)):
        z, a = (
            world.codes.mu[0, rows[k] - read : rows[k] + 1][None],
            memory.actions[rows[k] - read : rows[k] + 1][None],
        )
        *_, last = nb.dream(world.m, world.m.begin(z[:, 0]), nb.given(a), read, z)
        if read < world.context:
            assert nb.torch.allclose(states.h[k], last.h[0], atol=1e-6)
        assert nb.torch.equal(states.before[k], world.codes.mu[0, rows[k] - 1])
    copied = world.recall(rows, nb.torch.tensor([1, 1, 1]))
    assert not nb.torch.allclose(copied.h[1], states.h[1]), "another copy, other codes and pushes"


def test_moments_keep_their_distance_from_both_ends(nb, world):
    rows, copies = world.moments(50, nb.torch.Generator().manual_seed(0), ahead=3)
    memory = world.memory
    assert (rows - memory.first[rows] >= world.context // 2).all() and (
        rows + 3 <= memory.last[rows]
    ).all()
    assert set(copies.tolist()) == {0, 1}
    with pytest.raises(ValueError, match="collect.episodes"):
        world.moments(5, nb.torch.Generator(), ahead=400)


def test_open_loop_is_the_forced_prediction_at_first_and_nan_without_data(nb, world):
    rows, state = nb.open_loop(world, nb.windows(world.memory, world.context + 3, 20))
    says = world.m.says(state)
    z, a = (
        world.codes.mu[0, rows[:, :1] + nb.torch.arange(-4, 0)],
        world.memory.actions[rows[:, :1] + nb.torch.arange(-4, 0)],
    )
    *_, last = nb.dream(world.m, world.m.begin(z[:, 0]), nb.given(a), 4, z)
    assert says.mu.shape == (20, 3, 6) and nb.torch.allclose(says.mu[:, 0], last.z, atol=1e-5)
    probe = nb.Probe(world.codes.mu[0], world.memory.states)
    nowhere = nb.windows(world.memory, world.context + 300, 20)
    none = nb.open_loop_errors(world, nowhere, probe, seen=False)
    assert none.shape == (300, 4) and none.isnan().all()
    assert (
        nb.copy_errors(world, nowhere).isnan().all()
        and nb.open_loop_kl(world, nowhere).isnan().all()
    )


def test_probe_finds_a_linear_map(nb):
    features, mixing = nb.torch.randn(500, 8), nb.torch.randn(8, 4)
    probe = nb.Probe(features[:400], features[:400] @ mixing + 2)
    assert min(probe.score(features[400:], features[400:] @ mixing + 2)["r2"].values()) > 0.999
    assert max(probe.score(features[400:], nb.torch.randn(100, 4))["r2"].values()) < 0.1


@pytest.fixture
def judged(nb, world, smoke):
    """What `dream_returns` needs: M, three controllers, five starts, home, settings."""
    starts = world.recall(*world.moments(5, nb.torch.Generator().manual_seed(0)))
    home = nb.principal_axes(
        nb.features(world.recall(*world.moments(200, nb.torch.Generator().manual_seed(1)))), 3
    )
    return world.m, nb.torch.randn(3, 6 + 16 + 1), starts, home, smoke.c.but(horizon=7)


def test_a_batch_of_dreams_equals_dreams_one_by_one(nb, judged):
    m, weights, starts, home, c = judged
    together = nb.dream_returns(m, weights, starts, home, c)
    for p in range(3):
        for r in range(5):
            alone = nb.dream_returns(m, weights[p : p + 1], starts.pick(slice(r, r + 1)), home, c)
            assert nb.torch.allclose(together[p, r], alone[0, 0], atol=1e-4)
    twins = nb.dream_returns(
        m, weights[:1].repeat(4, 1), starts, home, c.but(temperature=1.0), nb.torch.randn(5, 7, 6)
    )
    assert nb.torch.allclose(twins, twins[:1].expand_as(twins), atol=1e-4), "common random numbers"


def test_a_dream_is_worth_its_steps_and_its_last_state(nb, judged):
    m, weights, starts, home, c = judged
    steps_only, all_same, with_worth = (
        nb.dream_returns(m, weights, starts, home, c.but(**how))
        for how in (
            {"last_worth": 0.0},
            {"last_worth": 10.0, "penalty": 0.0},
            {"last_worth": 10.0, "penalty": 1.0},
        )
    )
    survived = (all_same - steps_only) / 10  # the probability of being alive at the end
    assert ((survived >= 0) & (survived <= 1)).all() and survived.max() > 0
    assert (with_worth < all_same).all() and (with_worth > steps_only).all()
    with nb.torch.no_grad():
        state, alive, total = starts.pick(slice(0, 1)), 1.0, 0.0
        for _ in range(7):  # by hand
            state = m.step(state, nb.controller(weights[0])(0, state))
            alive *= float(nb.torch.sigmoid(-m.says(state).done))
            total += alive * float(m.says(state).reward)
    assert float(steps_only[0, 0]) == pytest.approx(total, abs=1e-4)


def test_remedies_pay_less_and_hide_what_they_should(nb, judged):
    m, weights, starts, home, c = judged
    c = c.but(last_worth=0.0, population=4, rollouts=5)
    nb.nn.init.zeros_(m.reward.weight)
    nb.nn.init.ones_(
        m.reward.bias
    )  # the same reward for every step: then half the trust is half the reward
    plain = nb.dream_returns(m, weights, starts, home, c)
    half = nb.dream_returns(
        m, weights, starts, home, c, pays=nb.trusted(lambda state: nb.torch.zeros(len(state.z)))
    )
    assert nb.torch.allclose(2 * half, plain, atol=1e-5)
    assert (nb.dream_returns(m, weights, starts, home, c, pays=nb.norm_penalty) < plain).all()
    state = nb.State(*(nb.torch.ones(100, size) for size in (6, 6, 16, 16, 1)))
    read = nb.with_dropout(c.but(rollouts=25, population=4), 6, 0)(state)
    assert (
        0.7 < float(read[:, :6].mean()) < 0.9
        and (read[:, 6:] == 1).all()
        and nb.torch.equal(read[:25].repeat(4, 1), read)
    )


def test_search_space_and_plain_weights_act_alike(nb):
    read = nb.torch.randn(500, 22) * 3
    axes, points = nb.principal_axes(read, 4), nb.torch.randn(4, 5)
    place = (read - axes.mean) @ axes.directions
    assert (
        nb.torch.allclose(nb.torch.cov(place.T), nb.torch.eye(4), atol=1e-3)
        and place.mean(0).abs().max() < 1e-4
    )
    inside = (place @ points[:, :-1].T + points[:, -1] > 0).long().T
    plain = nb.act(nb.to_weights(axes, points), read[None].expand(4, -1, -1))
    assert (inside == plain).float().mean() > 0.99 and 0 < plain.float().mean() < 1
    near, far = nb.torch.zeros(1, 4), nb.torch.full((1, 4), 2.0)
    assert [
        float(nb.familiarity(read, nb.Axes(near[0], nb.torch.eye(4)), 0.5)) for read in (near, far)
    ] == pytest.approx([1.0, 1 / 3])


def test_lawful_axes_find_what_follows_a_law(nb):
    """Twenty features: two follow a linear law under pushes, one grows, the others are drawn anew
    at each moment."""
    nb.torch.manual_seed(0)
    now, pushes = nb.torch.randn(6000, 20), nb.torch.randint(2, (6000, 3)) * 2.0 - 1
    later = nb.torch.randn(6000, 20)
    later[:, 0] = now[:, 0] + 0.5 * now[:, 1] + pushes.sum(1)
    later[:, 1] = now[:, 1] + 0.3 * pushes[:, 0]
    later[:, 2] = 4 * now[:, 2] + 2 * nb.torch.randn(6000)
    mixing = nb.torch.linalg.qr(nb.torch.randn(20, 20))[0]  # the observer sees a mixture
    axes = nb.lawful_axes(now @ mixing, later @ mixing, pushes, 2, 1)
    place = (now @ mixing - axes.mean) @ axes.directions
    assert place.shape[1] == 3 and nb.torch.allclose(
        nb.torch.cov(place.T), nb.torch.eye(3), atol=1e-2
    )
    fit = nb.torch.linalg.lstsq(place, now[:, :3] - now[:, :3].mean(0)).solution
    missed = (now[:, :3] - now[:, :3].mean(0) - place @ fit).var(0)
    assert (missed < 0.05).all(), missed


@pytest.mark.parametrize("kind", ["flat", "scale does not matter", "without bound"])
def test_cma_never_starts_anew(nb, smoke, kind):
    """300 generations of what makes pycma stop: no differences; a fitness that ignores scale, as a
    linear controller's does; one that grows for ever."""
    c = smoke.c.but(generations=300, population=8)
    optimizer, strategies = nb.make_cma(5, c, 0), set()
    for _ in range(300):
        for candidate in [optimizer.ask() for _ in range(8)]:
            x = candidate.value
            loss = {
                "flat": 1.0,
                "scale does not matter": -float(x[0] / np.linalg.norm(x)),
                "without bound": -float(x.sum()),
            }[kind]
            optimizer.tell(candidate, loss)
        strategies.add(id(optimizer.es))
    assert len(strategies) == 1 and optimizer.es.countiter == 300


def test_cma_mean_is_in_the_units_of_the_candidates(nb, smoke):
    optimizer = nb.make_cma(3, smoke.c.but(generations=80, population=12), 0)
    for _ in range(80):
        for candidate in [optimizer.ask() for _ in range(12)]:
            optimizer.tell(candidate, float(np.square(candidate.value - [1.0, -2.0, 3.0]).sum()))
    assert np.allclose(optimizer.es.mean, [1, -2, 3], atol=0.01)


def test_the_agent_acts_on_the_features_that_are_measured(nb, smoke):
    """Two episodes side by side, one ending before the other: the agent decides as C does on (z, h)
    of the recorded rows."""
    nb.torch.manual_seed(1)
    v, m = nb.frozen(nb.V(smoke.v)), nb.frozen(nb.M(smoke.v.latents, 16))
    weights = nb.torch.randn(smoke.v.latents + 16 + 1)
    world = nb.World(v, m, None, nb.Codes(nb.torch.zeros(1, 1, smoke.v.latents), *[None] * 4), 5)
    episodes = nb.play(nb.Agent(world, nb.controller(weights)), [11, 12, 13], 2)
    seen = world.looking_at(episodes)
    acted = nb.controller(weights)(0, seen.recall(seen.memory.rows))
    for episode, first in zip(episodes, seen.memory.first.unique()):
        assert (acted[first : first + len(episode.actions)].numpy() == episode.actions).all()
    explored, alone = (
        nb.play(nb.Agent(world, nb.controller(weights), 1.0), seeds, 2)[-1].actions.tolist()
        for seeds in ([11, 12, 13], [13])
    )
    assert len(set(explored)) == 2 and explored == alone, (
        "a coin decides in every step, and an episode's coin is its own"
    )


def test_pace_takes_what_is_faster_now(nb, monkeypatch):
    clock, cost = [0.0], {1: 1.0, 4: 0.5}
    monkeypatch.setattr(nb.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(nb.torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(nb.torch, "set_num_threads", lambda count: now.__setitem__(0, count))
    now = [4]
    pace, used = nb.Pace(nb.torch.device("cpu")), []

    def work():
        used.append(now[0])
        clock[0] += cost[now[0]]

    for _ in range(10):
        pace.step(work)
    assert used[-5:] == [4] * 5 and {1, 4} == set(used[:4]), "alone, all threads are faster"
    cost[4] = 6.0  # a neighbour is busy now
    for _ in range(12):
        pace.step(work)
    assert used[-3:] == [1, 1, 1] and used[10:].count(4) <= 5, (
        "a few late steps, one look, and then one thread"
    )
    assert nb.Pace(nb.torch.device("cuda")).choices == (4,), "a GPU's run is left alone"
