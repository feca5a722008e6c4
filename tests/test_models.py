"""V, M, dreams, C."""

import math

import numpy as np
import pytest


def test_kl_against_torch(nb):
    mu, log_var = nb.torch.randn(5, 3), nb.torch.randn(5, 3)
    normal = nb.torch.distributions.Normal
    wanted = nb.torch.distributions.kl_divergence(normal(mu, (0.5 * log_var).exp()), normal(0.0, 1.0))
    assert nb.torch.allclose(nb.kl_to_normal(mu, log_var), wanted, atol=1e-5)


def test_elbo_is_a_gaussian_log_likelihood_at_its_best_variance(nb, smoke, memory):
    v = nb.V(smoke.v)
    x = memory.stack(nb.torch.arange(8))
    noise = nb.torch.randn(8, smoke.v.latents)
    terms = nb.elbo(v, x, noise, 0.3)
    band = v.normalise(x)
    y = v.decode_normalised(nb.sample(*v.encode(x), noise))
    pixels = band[0].numel()

    def negative_log_likelihood(variance):
        return 0.5 * ((y - band).square() / variance + math.log(variance)).sum((1, 2, 3)).mean()

    best = float((y - band).square().mean())
    # Up to the constant D/2, and no other variance does better.
    assert float(terms.reconstruction) == pytest.approx(float(negative_log_likelihood(best)) - 0.5 * pixels, rel=1e-3)
    assert negative_log_likelihood(best) < min(negative_log_likelihood(0.8 * best), negative_log_likelihood(1.2 * best))
    assert float(terms.loss) == pytest.approx(float(terms.reconstruction + 0.3 * terms.kl), rel=1e-5)


def test_kl_ramp(nb):
    assert [nb.kl_weight_at(step, 100) for step in (0, 50, 100, 1000)] == [0.0, 0.5, 1.0, 1.0]


def test_v_shapes_and_range(nb, smoke, memory):
    v = nb.V(smoke.v).eval()
    x = memory.stack(nb.torch.arange(5))
    mu, log_var = v.encode(x)
    assert mu.shape == log_var.shape == (5, 64)
    picture = v.decode(mu)
    assert picture.shape == (5, 4, 64, 64) and 0 <= picture.min() and picture.max() <= 1


def test_nothing_moves_outside_the_band(nb, memory):
    pixels = memory.padded.float()
    assert (pixels.var(0).amax(1)[: nb.BAND.start] == 0).all() and (pixels.var(0).amax(1)[nb.BAND.stop :] == 0).all()


def test_lstm_step_by_step_equals_unrolled(nb):
    m = nb.M(6, 16, 8).eval()
    z, a = nb.torch.randn(3, 9, 6), nb.torch.randint(2, (3, 9))
    whole, _ = m(z, a)
    state, parts = None, []
    for t in range(9):
        h, state = m(z[:, t : t + 1], a[:, t : t + 1], state)
        parts.append(h)
    assert nb.torch.allclose(whole, nb.torch.cat(parts, 1), atol=1e-6)


def make_dream(nb, latents=6, hidden=16, starts=5, axes=4):
    nb.torch.manual_seed(0)
    m = nb.M(latents, hidden, 8).eval().requires_grad_(False)
    for part in (m.g, m.done):
        nb.nn.init.normal_(part.weight, std=0.3)
    begin = nb.Starts(nb.torch.randn(starts, latents), 0.5 * nb.torch.randn(starts, hidden), 0.5 * nb.torch.randn(starts, hidden))
    pool = nb.Starts(*(nb.torch.randn(200, values.shape[1]) for values in begin))
    space = nb.principal_axes(pool, axes)
    return nb.Dreamer(m, nb.torch.ones(latents), 1.0), begin, space, nb.principal_axes(pool, 3)


def test_dream_step_equals_the_lstm(nb):
    dreamer, begin, _, _ = make_dream(nb)
    a = nb.torch.randint(2, (5,))
    step = dreamer.step(*begin, a)
    h, (_, c) = dreamer.m(begin.z[:, None], a[:, None], (begin.h[None], begin.c[None]))
    assert nb.torch.allclose(step.h, h[:, 0], atol=1e-6) and nb.torch.allclose(step.c, c[0], atol=1e-6)
    says = dreamer.m.predict(begin.z, h[:, 0])
    assert nb.torch.allclose(step.z, says.mu, atol=1e-6) and nb.torch.allclose(step.survive, 1 - nb.torch.sigmoid(says.done), atol=1e-6)


def test_a_batch_of_dreams_equals_dreams_one_by_one(nb, smoke):
    dreamer, begin, space, home = make_dream(nb)
    points, noise = nb.torch.randn(3, 5), nb.torch.randn(7, 5, 6)
    together = nb.dream_returns(dreamer, points, space, home, begin, noise, smoke.c)
    for p in range(3):
        for r in range(5):
            one = nb.Starts(*(values[r : r + 1] for values in begin))
            alone = nb.dream_returns(dreamer, points[p : p + 1], space, home, one, noise[:, r : r + 1], smoke.c)
            assert nb.torch.allclose(together[p, r], alone[0, 0], atol=1e-4)


def test_common_random_numbers(nb, smoke):
    dreamer, begin, space, home = make_dream(nb)
    twins = nb.torch.randn(1, 5).repeat(4, 1)
    returns = nb.generation_returns(dreamer, twins, space, home, begin, smoke.c, 3)
    assert nb.torch.allclose(returns, returns[:1].expand_as(returns), atol=1e-4)
    assert not nb.torch.allclose(returns, nb.generation_returns(dreamer, twins, space, home, begin, smoke.c, 4), atol=1e-4)


def test_temperature_scales_the_noise_and_the_mask_stops_it(nb):
    dreamer, begin, _, _ = make_dream(nb)
    a, noise = nb.torch.zeros(5), nb.torch.randn(5, 6)
    still = dreamer.step(*begin, a).z
    once = dreamer.step(*begin, a, noise).z - still
    twice = nb.Dreamer(dreamer.m, dreamer.noisy, 2.0).step(*begin, a, noise).z - still
    assert once.abs().min() > 0 and nb.torch.allclose(twice, 2 * once, atol=1e-4)
    half = nb.torch.tensor([1.0, 0, 1, 0, 1, 0])
    masked = nb.Dreamer(dreamer.m, half, 1.0).step(*begin, a, noise).z - still
    assert nb.torch.allclose(masked, once * half, atol=1e-6)


def test_search_space_and_plain_weights_act_alike(nb):
    _, _, space, _ = make_dream(nb)
    points, z, h = nb.torch.randn(4, 5), nb.torch.randn(4, 50, 6), nb.torch.randn(4, 50, 16)
    inside = nb.act(points, nb.coordinates(space, z, h))
    plain = nb.act(nb.to_weights(space, points), nb.torch.cat([z, h], -1))
    assert (inside == plain).float().mean() > 0.99 and 0 < plain.float().mean() < 1


def test_axes_are_white(nb):
    pool = nb.Starts(nb.torch.randn(500, 6) * 3, nb.torch.randn(500, 16), nb.torch.randn(500, 16))
    place = nb.coordinates(nb.principal_axes(pool, 4), pool.z, pool.h)
    assert nb.torch.allclose(nb.torch.cov(place.T), nb.torch.eye(4), atol=1e-3) and place.mean(0).abs().max() < 1e-4


def test_familiarity_is_highest_at_home(nb):
    near, far = nb.familiarity(nb.torch.zeros(1, 4), 0.5), nb.familiarity(nb.torch.full((1, 4), 2.0), 0.5)
    assert float(near) == 1.0 and float(far) == pytest.approx(1 / 3)
    assert float(nb.familiarity(nb.torch.full((1, 4), 3.0), 0.0)) == 1.0


def test_a_dream_is_worth_its_steps_and_its_last_state(nb, smoke):
    dreamer, begin, space, home = make_dream(nb)
    points, noise = nb.torch.randn(2, 5), nb.torch.randn(7, 5, 6)
    steps_only = nb.dream_returns(dreamer, points, space, home, begin, noise, nb.dataclasses.replace(smoke.c, last_worth=0.0))
    all_same = nb.dream_returns(dreamer, points, space, home, begin, noise, nb.dataclasses.replace(smoke.c, last_worth=10.0, penalty=0.0))
    with_worth = nb.dream_returns(dreamer, points, space, home, begin, noise, nb.dataclasses.replace(smoke.c, last_worth=10.0, penalty=1.0))
    survived = (all_same - steps_only) / 10  # the probability of being alive at the end
    assert ((survived >= 0) & (survived <= 1)).all() and survived.max() > 0
    assert (with_worth < all_same).all() and (with_worth > steps_only).all()


def test_lawful_axes_find_what_follows_a_law(nb):
    """Twenty features: two follow a linear law under pushes, one grows, the others are drawn anew at each moment."""
    nb.torch.manual_seed(0)
    now, pushes = nb.torch.randn(6000, 20), nb.torch.randint(2, (6000, 3)) * 2.0 - 1
    later = nb.torch.randn(6000, 20)
    later[:, 0] = now[:, 0] + 0.5 * now[:, 1] + pushes.sum(1)
    later[:, 1] = now[:, 1] + 0.3 * pushes[:, 0]
    later[:, 2] = 4 * now[:, 2] + 2 * nb.torch.randn(6000)
    mixing = nb.torch.linalg.qr(nb.torch.randn(20, 20))[0]  # the observer sees a mixture
    space = nb.lawful_axes(now @ mixing, later @ mixing, pushes, 2, 1)
    place = (now @ mixing - space.mean) @ space.directions
    assert place.shape[1] == 3 and nb.torch.allclose(nb.torch.cov(place.T), nb.torch.eye(3), atol=1e-2)
    fit = nb.torch.linalg.lstsq(place, now[:, :3] - now[:, :3].mean(0)).solution
    missed = (now[:, :3] - now[:, :3].mean(0) - place @ fit).var(0)
    assert (missed < 0.05).all(), missed


def test_dreams_go_on_where_others_ended(nb, smoke):
    dreamer, begin, space, home = make_dream(nb)
    nb.nn.init.zeros_(dreamer.m.done.weight)
    nb.nn.init.constant_(dreamer.m.done.bias, -9.0)  # nobody falls
    weights = nb.torch.randn(6 + 16 + 1)
    ends = nb.dream_on(dreamer, weights, begin, None, smoke.c, 0, 64)
    assert len(ends.z) == 64 and nb.torch.equal(nb.dream_on(dreamer, weights, begin, None, smoke.c, 0, 64).z, ends.z)
    nb.nn.init.constant_(dreamer.m.done.bias, 9.0)  # all fall at once
    assert nb.dream_on(dreamer, weights, begin, ends, smoke.c, 0, 64) is ends


def test_joined_latents_lie_end_to_end(nb):
    one = nb.Latents(nb.torch.zeros(2, 5, 3), nb.torch.zeros(2, 5, 3), nb.torch.zeros(2, 5), nb.torch.zeros(2, 1), nb.torch.zeros(2, 1))
    both = nb.joined_latents(one, nb.Latents(*(part + 1 for part in one)))
    assert both.mu.shape == (2, 10, 3) and both.shift.shape == (2, 2) and float(both.mu[:, :5].sum()) == 0


def test_cma_does_not_restart_on_a_flat_loss(nb, smoke):
    settings = nb.dataclasses.replace(smoke.c, generations=60, population=8)
    optimizer, strategies, means = nb.make_cma(5, settings, 0), set(), []
    for _ in range(60):
        candidates, _ = nb.ask_generation(optimizer, settings, nb.DEVICE)
        for candidate in candidates:
            optimizer.tell(candidate, 1.0)
        strategies.add(id(optimizer.es))
        means.append(nb.cma_mean(optimizer))
    assert len(strategies) == 1 and optimizer.es.countiter == 60


def test_cma_mean_is_in_the_units_of_the_candidates(nb, smoke):
    settings = nb.dataclasses.replace(smoke.c, generations=80, population=12, sigma=0.3)
    optimizer = nb.make_cma(3, settings, 0)
    for _ in range(80):
        candidates, points = nb.ask_generation(optimizer, settings, nb.DEVICE)
        for candidate, point in zip(candidates, points):
            optimizer.tell(candidate, float((point - nb.torch.tensor([1.0, -2.0, 3.0])).square().sum()))
    assert np.allclose(nb.cma_mean(optimizer), [1, -2, 3], atol=0.01)


def test_real_policy_acts_on_the_features_that_are_measured(nb, smoke):
    """Two episodes side by side, one ending before the other: the policy decides as C does on (z, h) of the recorded rows."""
    v = nb.V(smoke.v).eval().requires_grad_(False)
    m = nb.M(smoke.v.latents, 16, 5).eval().requires_grad_(False)
    weights = nb.torch.randn(smoke.v.latents + 16 + 1)
    episodes = nb.play(nb.ControllerPolicy(v, m, weights), [11, 12, 13], 2)
    memory = nb.Memory(episodes, 0, nb.DEVICE)
    rows = nb.torch.arange(len(memory))
    z, _ = nb.encode_rows(v, memory, rows)
    acted = nb.act(weights[None], nb.features_with_h(m, z, memory, memory.actions, rows)[None])[0]
    for episode, first in zip(episodes, memory.first.unique()):
        assert (acted[first : first + len(episode.actions)].numpy() == episode.actions).all()


def test_recall_reads_known_steps_only(nb):
    m = nb.M(6, 16, 4).eval().requires_grad_(False)
    z, a = nb.torch.randn(3, 4, 6), nb.torch.randint(2, (3, 4))
    all_known, _ = nb.recall(m, z, a, nb.torch.ones(3, 4, dtype=bool))
    assert nb.torch.allclose(all_known, m(z, a)[0][:, -1], atol=1e-6)
    known = nb.torch.tensor([[False, False, True, True]]).repeat(3, 1)
    assert nb.torch.allclose(nb.recall(m, z, a, known)[0], m(z[:, 2:], a[:, 2:])[0][:, -1], atol=1e-6)
    assert (nb.recall(m, z, a, nb.torch.zeros(3, 4, dtype=bool))[0] == 0).all()


def test_unroll_reads_then_lives_on_its_own_predictions(nb):
    m = nb.M(6, 16, 4).eval()
    nb.nn.init.normal_(m.g.weight, std=0.3)
    z, a = nb.torch.randn(3, 9, 6), nb.torch.randint(2, (3, 9))
    h, _ = m(z, a)
    forced = m.predict(z, h)
    assert all(nb.torch.allclose(one, two, atol=1e-6) for one, two in zip(nb.unroll(m, z, a, 9), forced))
    free = nb.unroll(m, z, a, 4)
    assert nb.torch.allclose(free.mu[:, :4], forced.mu[:, :4], atol=1e-6) and not nb.torch.allclose(free.mu[:, 4], forced.mu[:, 4], atol=1e-3)
    changed = nb.torch.cat([z[:, :4], nb.torch.randn(3, 5, 6)], 1)  # what comes after is never looked at
    assert nb.torch.equal(free.mu, nb.unroll(m, changed, a, 4).mu)


def test_open_loop_first_step_is_the_teacher_forced_prediction(nb):
    m = nb.M(6, 16, 8).eval()
    z, a = nb.torch.randn(3, 12, 6), nb.torch.randint(2, (3, 12))
    path = nb.open_loop(m, z, a, 8)
    h, _ = m(z[:, :8], a[:, :8])
    assert path.shape == (3, 4, 6)
    assert nb.torch.allclose(path[:, 0], m.predict(z[:, 7], h[:, -1]).mu, atol=1e-6)


def test_probe_finds_a_linear_map(nb):
    features, mixing = nb.torch.randn(500, 8), nb.torch.randn(8, 4)
    probe = nb.Probe(features[:400], features[:400] @ mixing + 2)
    assert min(probe.score(features[400:], features[400:] @ mixing + 2)["r2"].values()) > 0.999
    assert max(probe.score(features[400:], nb.torch.randn(100, 4))["r2"].values()) < 0.1


def test_correlations(nb):
    assert nb.correlations([1, 2, 3, 4], [1, 4, 9, 16])[1] == pytest.approx(1.0)
    assert nb.correlations([1, 2, 3], [3, 2, 1])[0] == pytest.approx(-1.0)
    assert nb.correlations([1, 2, 2, 3], [10, 20, 20, 30])[1] == pytest.approx(1.0)
    assert math.isnan(nb.correlations([1, 1], [1, 2])[0])


def test_draw_rows_takes_its_share_from_gathered_episodes(nb):
    generator = nb.torch.Generator().manual_seed(0)
    allowed = nb.torch.arange(0, 1000, 2)
    for share in (0.0, 0.3, 1.0):
        rows = nb.draw_rows(allowed, 900, share, 4000, generator)
        assert set(rows.tolist()) <= set(allowed.tolist())
        assert float((rows >= 900).float().mean()) == pytest.approx(share, abs=0.03)
    assert int(nb.draw_rows(allowed, None, 1.0, 4000, generator).min()) < 100, "without gathered episodes, all rows are random play"


def test_seen_again_draws_and_looks(nb, smoke):
    nb.torch.manual_seed(0)
    v = nb.V(smoke.v).eval().requires_grad_(False)
    z = nb.torch.randn(2, 3, smoke.v.latents)
    again = nb.seen_again(v, z)
    assert again.shape == z.shape and nb.torch.allclose(again[1, 2], v.encode(v.decode(z[1, 2:3]))[0][0], atol=1e-4)


def test_shift_law_knows_which_way_pictures_move(nb, memory):
    # A code that obeys the law by construction: where the dark pixels of the newest frame lie, on average.
    rows = nb.torch.arange(40).repeat(2)
    shift, flip = nb.random_views(80, memory.max_shift, True, nb.torch.Generator().manual_seed(0), nb.DEVICE)
    flip = flip[:40].repeat(2)
    dark = 1 - memory.stack(rows, shift, flip)[:, -1, nb.BAND]
    dark = dark - dark.amin((1, 2), keepdim=True)
    centre = ((dark * nb.torch.arange(64.0)).sum((1, 2)) / dark.sum((1, 2)))[:, None]
    assert nb.shift_law_broken(centre, nb.torch.where(flip, -shift, shift)) < 0.05
    assert nb.shift_law_broken(centre, shift) > 0.3, "a mirrored picture moves the other way"


def test_shift_law_pulls_the_code(nb, memory, tmp_path):
    torch, settings = nb.torch, nb.make_settings("smoke", "v.steps=60,v.save_every=1000,v.batch=64")
    kept = {}
    for weight in (0.0, 300.0):
        result = nb.train_v_with_law(nb.Progress(tmp_path / str(weight)), memory, settings.v, nb.LawSettings(weight=weight), 0)
        kept[weight] = np.mean(result["log"]["broken"][-1:])
    assert kept[300.0] < 0.5 * kept[0.0], kept
    assert torch.isfinite(torch.tensor(list(kept.values()))).all()
