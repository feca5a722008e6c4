"""The student's road: advantages, PPO's clip, gradients through a dream, resumed training."""

import math

import numpy as np
import pytest


@pytest.fixture
def school(nb, world, smoke):
    """Small dreams of a small random M."""
    for part in (world.m.change, world.m.done, world.m.log_var):
        nb.nn.init.normal_(part.weight, std=0.1)
    return nb.School(world, smoke.c.but(horizon=6), 3)


def test_advantages_by_hand(nb):
    """Three steps that pay 1, 2, 3; γ = 0.9, λ = 0.5; once where nothing ends, once with an end
    after the second step."""
    reward, value = nb.torch.tensor([[1.0, 2.0, 3.0]]), nb.torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    third = 3 + 0.9 * 2 - 3  # δ = 1.8
    second = 2 + 0.9 * 3 - 4 + 0.45 * third  # 0.7 + 0.81
    first = 1 + 0.9 * 4 - 5 + 0.45 * second  # −0.4 + 0.6795
    found = nb.advantages(reward, nb.torch.ones(1, 3), value, 0.9, 0.5)
    assert nb.torch.allclose(found, nb.torch.tensor([[first, second, third]]))
    found = nb.advantages(reward, nb.torch.tensor([[1.0, 0.0, 1.0]]), value, 0.9, 0.5)
    assert nb.torch.allclose(
        found, nb.torch.tensor([[1 + 0.9 * 4 - 5 + 0.45 * -4, -4.0, third]])
    ), "after an end nothing comes, and the step that ends pays nothing"


def test_without_values_an_advantage_is_the_imagined_return_of_c(nb, school):
    """The same number as `dream_returns` gives, for the same controller in the same dreams."""
    weights = nb.torch.randn(1, school.read.shape[1] + 1)
    starts = school.starts.pick(slice(20))
    expected = nb.dream_returns(school.world.m, weights, starts, school.home, school.c)[0]
    assert nb.torch.allclose(school.returns(nb.controller(weights[0]), starts), expected, atol=1e-4)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.7, 0.79, 0.81, 1.19, 1.21, 1.3])
def test_the_clip_at_its_edges(nb, ratio, advantage):
    """Nothing is gained by moving on where the ratio has gone too far in the direction of the gain;
    else the gradient is the advantage's."""
    score = nb.torch.zeros(1, requires_grad=True)
    seen = {
        "a": nb.torch.ones(1),
        "log_p": nb.torch.tensor([math.log(0.5 / ratio)]),
        "advantage": nb.torch.tensor([advantage]),
    }
    losses = nb.ppo_losses(
        score, nb.torch.zeros(1), seen | {"target": nb.torch.ones(1), "alive": nb.torch.ones(1)}
    )
    clipped = min(max(ratio, 0.8), 1.2)
    assert losses["policy"].item() == pytest.approx(-min(ratio * advantage, clipped * advantage))
    slope = float(nb.torch.autograd.grad(losses["policy"], score)[0])
    gone_too_far = ratio > 1.2 if advantage > 0 else ratio < 0.8
    assert slope == pytest.approx(0.0 if gone_too_far else -advantage * ratio * 0.5), (
        "d ratio / d score = ratio · (1 − p)"
    )
    assert losses["value"].item() == 1.0 and losses["entropy"].item() == pytest.approx(math.log(2))


def test_the_dead_do_not_count(nb):
    score, seen = (
        nb.torch.tensor([0.3, 5.0]),
        {
            "a": nb.torch.ones(2),
            "log_p": nb.torch.tensor([-0.7, -0.1]),
            "advantage": nb.torch.tensor([1.0, 50.0]),
        },
    )
    both = nb.ppo_losses(
        score, score, seen | {"target": nb.torch.zeros(2), "alive": nb.torch.tensor([1.0, 0.0])}
    )
    one = nb.ppo_losses(
        score[:1],
        score[:1],
        {name: part[:1] for name, part in seen.items()}
        | {"target": nb.torch.zeros(1), "alive": nb.torch.ones(1)},
    )
    assert all(nb.torch.allclose(both[name], one[name]) for name in both)


def test_gathered_moments_are_those_that_were_dreamed(nb, school):
    nb.torch.manual_seed(0)
    nets = nb.nn.ModuleDict({"actor": school.net(8, False), "critic": school.net(8, False)})
    for net in nets.values():
        nb.nn.init.normal_(net.out.weight)
    seen = nb.gathered(school, nets, nb.torch.Generator().manual_seed(0), 5)
    assert (
        len(seen["a"]) == 5 * 6
        and (seen["alive"].view(5, 6)[:, 0] == 1).all()
        and (seen["alive"].view(5, 6).diff() <= 0).all()
    )
    score = nets["actor"](seen["state"])
    assert nb.torch.allclose(
        seen["log_p"],
        nb.torch.where(seen["a"] > 0, score.sigmoid(), 1 - score.sigmoid()).log(),
        atol=1e-5,
    )
    state = seen["state"].pick(nb.torch.arange(30).view(5, 6)[:, 0])
    after = school.world.m.step(state, seen["a"].view(5, 6)[:, 0])
    assert nb.torch.allclose(after.z, seen["state"].z.view(5, 6, -1)[:, 1], atol=1e-5), (
        "each moment follows from the one before"
    )
    assert abs(float(seen["advantage"].mean())) < 1e-5 and float(
        seen["advantage"].std()
    ) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("hidden", [0, 8])
def test_gradients_reach_every_weight_through_thirty_steps(nb, school, hidden):
    nb.torch.manual_seed(0)
    net = school.net(hidden, False)
    nb.nn.init.normal_(net.out.weight)
    school.returns(nb.straight_through(net), school.starts.pick(slice(64)), 30).mean().backward()
    assert all(
        part.grad.isfinite().all() and part.grad.abs().max() > 0 for part in net.parameters()
    )
    assert all(not part.requires_grad for part in school.world.m.parameters()), "M is not trained"


def test_gradients_agree_with_finite_differences_where_the_push_is_smooth(nb, school):
    """Where the push is σ(score) itself, nothing is pretended: the gradient is the slope."""
    m, double = school.world.m.double(), lambda part: part.double()
    school.world, school.starts, school.home = (
        school.world._replace(m=m),
        nb.State(*map(double, school.starts)),
        nb.Axes(*map(double, school.home)),
    )
    nb.torch.manual_seed(0)
    net = school.net(4, False).double()
    nb.nn.init.normal_(net.out.weight)
    begin = school.starts.pick(slice(8))

    def value():
        return school.returns(lambda k, state: net(state).sigmoid(), begin, 30).mean()

    slopes = nb.torch.autograd.grad(value(), list(net.parameters()))
    for part, slope in zip(net.parameters(), slopes):
        place = int(slope.abs().argmax())
        ends = []
        for sign in (1, -1):
            with nb.torch.no_grad():
                part.view(-1)[place] += sign * 1e-5
                ends.append(float(value()))
                part.view(-1)[place] -= sign * 1e-5
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(slope.view(-1)[place]), rel=1e-4)


def test_the_push_is_hard_and_its_gradient_is_not(nb, school):
    net = school.net(0, False)
    nb.nn.init.normal_(net.out.weight)
    state = school.starts.pick(slice(20))
    push = nb.straight_through(net)(0, state)
    assert nb.torch.equal(push.detach().round(), nb.sure(net)(0, state)) and set(
        push.detach().round().tolist()
    ) <= {0.0, 1.0}
    slope = nb.torch.autograd.grad(push.sum(), net.out.bias)[0]
    soft = (net(state) / 0.5).sigmoid()
    assert slope.item() == pytest.approx((soft * (1 - soft) / 0.5).sum().item(), rel=1e-4)


@pytest.mark.parametrize("way", ["PPO", "gradient"])
def test_resumed_equals_uninterrupted_and_seeds_matter(nb, school, tmp_path, monkeypatch, way):
    monkeypatch.setattr(nb, "SAVE_EVERY", 20)
    monkeypatch.setattr(
        nb.School,
        "look",
        lambda self, choose, workers: {"dream": nb.torch.zeros(()), "real": nb.torch.zeros(())},
    )
    how, count = nb.TrainSettings(learning_rate=1e-2, batch=4, steps=30), []

    def train(folder, seed=0):
        return nb.train_student(
            nb.Progress(tmp_path / folder),
            school,
            way=way,
            hidden=8,
            lawful=False,
            how=how,
            seed=seed,
            workers=1,
        )["actor"]["weights"]

    whole, again, other = train("whole"), train("again"), train("other", seed=1)
    step = nb.torch.optim.Adam.step

    def stopped(self, *rest, **more):
        count.append(1)
        if len(count) == 25:
            raise KeyboardInterrupt
        return step(self, *rest, **more)

    monkeypatch.setattr(nb.torch.optim.Adam, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    monkeypatch.setattr(nb.torch.optim.Adam, "step", step)
    resumed = train("cut")
    assert all(
        nb.torch.equal(whole[name], part[name]) for name in whole for part in (again, resumed)
    )
    assert not all(nb.torch.equal(whole[name], other[name]) for name in whole)


def test_a_learner_climbs_its_dream(nb, school, tmp_path):
    """Both pupils end with a better dream return than they began with, in a world where one push
    pays."""
    for part in (school.world.m.change, school.world.m.reward):
        nb.nn.init.zeros_(part.weight)
    world = school.world._replace(m=right_pays(school.world.m))
    pupils = nb.School(world, school.c, 3)
    for way, rate in (("PPO", 0.03), ("gradient", 0.03)):
        how = nb.TrainSettings(learning_rate=rate, batch=16, steps=60)
        pupils.look = lambda choose, workers: {
            "dream": pupils.returns(choose, pupils.starts).mean().detach(),
            "real": nb.torch.zeros(()),
        }
        log = nb.train_student(
            nb.Progress(tmp_path / way),
            pupils,
            way=way,
            hidden=8,
            lawful=False,
            how=how,
            seed=0,
            workers=1,
        )["log"]
        assert log["dream"][-1] > log["dream"][0] + 1, (way, log["dream"])


def right_pays(m):
    """M, but a push to the right pays 1, and one to the left nothing: `blind` carries what was
    pushed last."""
    step, says = m.step, m.says
    m.step = lambda state, a: step(state, a)._replace(blind=a[:, None].float())
    m.says = lambda state: says(state)._replace(
        reward=state.blind[..., 0], done=0 * state.blind[..., 0] - 5
    )
    return m


def no_network(*what, **how):
    """As on a train."""
    raise OSError("no network")


def test_the_table_comes_from_the_run_or_from_the_file(nb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nb, "OUT", tmp_path, raising=False)
    monkeypatch.setattr(nb.urllib.request, "urlopen", no_network)
    assert (
        len(nb.table_of("mine", [])) == 0
        and "is not beside this notebook" in capsys.readouterr().out
    )
    lines = [{"learner": "a", "real": 12.5}, {"learner": "b", "real": 500.0}]
    assert nb.table_of("mine", lines)["real"].tolist() == [12.5, 500.0]
    (tmp_path / "assets" / "experiments").mkdir(parents=True)
    (tmp_path / "mine.csv").rename(tmp_path / "assets" / "experiments" / "mine.csv")
    assert nb.table_of("mine", [])["real"].tolist() == [12.5, 500.0]


def test_a_network_reads_standardised_features(nb, school):
    net = school.net(8, False)
    read = (school.read - net.mean) @ net.directions
    used = school.read.std(0) > 0.1
    assert read.mean(0).abs().max() < 1e-3 and np.allclose(read.std(0)[used], 1.0, atol=0.02)
