"""The engineer's road: INT8, tokens, the guard, batches, bad input, and a client over a real
socket."""

import asyncio
import base64
import json
import sys

import cloudpickle
import numpy as np
import pytest
from fastapi.testclient import TestClient
from itsdangerous import BadSignature
from load import generated


@pytest.fixture(scope="module")
def driver(nb):
    """V, M, C and a verifier with random weights, and a guard that believes everything."""
    nb.torch.manual_seed(0)
    s = nb.make_settings("smoke")
    v, m = nb.frozen(nb.V(s.v)), nb.frozen(nb.M(s.v.latents, 16))
    for part in (m.change, m.log_var):
        nb.nn.init.normal_(part.weight, std=0.1)
    return nb.Driver(
        nb.World(v, m, None, None, 4),
        nb.torch.randn(s.v.latents + 17),
        nb.frozen(nb.Verifier(s.v.latents, 16)),
    )


@pytest.fixture
def client(nb, driver):
    """The app, without a socket."""
    with TestClient(nb.make_app(driver, b"k" * 32), raise_server_exceptions=False) as client:
        yield client


FRAMES = np.random.default_rng(0).integers(0, 256, (8, 4, 64, 64), dtype=np.uint8)


def first(nb, driver, count=8):
    """The pasts of robots that begin."""
    return nb.Past(*(nb.torch.stack([part] * count) for part in nb.begun(driver.world)))


def ask(client, frames=FRAMES[0], **more):
    """One request."""
    return client.post("/act", json={"frames": base64.b64encode(frames.tobytes()).decode(), **more})


def test_int8_is_close_to_float_and_a_quarter_of_its_linear_layers(nb, driver):
    small = nb.quantised(driver.world.m)
    sizes = [
        nb.torch.save(module.state_dict(), file := nb.io.BytesIO()) or file.tell()
        for module in (small, driver.world.m)
    ]
    assert sizes[0] < 0.5 * sizes[1]
    layer, x = driver.world.m.change, nb.torch.randn(64, driver.world.m.hidden)
    step_w, step_x = (
        2 * layer.weight.abs().max() / 254,
        (x.max() - x.min()) / 127,
    )  # of the integers; PyTorch gives what flows in 7 bits here
    most = (
        0.5 * (step_w * x.abs().sum(1, keepdim=True) + step_x * layer.weight.abs().sum(1))
        + 0.25 * step_w * step_x * layer.in_features
    )  # (64, Z)
    apart = (layer(x) - small.change(x)).abs()
    assert (apart <= most + 1e-5).all() and apart.max() > 1e-4
    begin, right = driver.world.m.begin(0 * layer(x)), nb.torch.ones(64)
    wrong = (small.step(begin, right).h - driver.world.m.step(begin, right).h).abs()
    assert 0 < wrong.max() < 0.02


def test_without_dynamic_quantisation_the_road_says_so_and_serves_in_float(
    nb, driver, monkeypatch, capsys
):
    monkeypatch.delattr(nb.torch.ao.quantization, "quantize_dynamic")
    assert (
        nb.quantised(driver.world.m) is driver.world.m
        and "served in float" in capsys.readouterr().out
    )


def test_a_token_comes_back_as_it_went(nb, driver):
    past = driver(nb.torch.tensor(FRAMES), first(nb, driver), nb.torch.ones(8, dtype=bool))[1]
    seal = nb.Seal(b"k", driver.weights)
    again = nb.Past(*map(nb.torch.stack, zip(*map(seal.open, seal.close(past)))))
    assert all(
        nb.torch.allclose(a.float(), b.float(), atol=2e-3, rtol=1e-3) for a, b in zip(past, again)
    )


def test_a_token_for_another_controller_or_of_another_key_is_refused(nb, driver):
    token = nb.Seal(b"k", driver.weights).close(first(nb, driver, 1))[0]
    for other in (nb.Seal(b"k", driver.weights + 1), nb.Seal(b"other", driver.weights)):
        with pytest.raises(BadSignature):
            other.open(token)


def test_bad_tokens_are_401_and_say_why(nb, driver, client, monkeypatch):
    token = ask(client).json()["token"]
    assert ask(client, token=token).status_code == 200
    foreign = nb.Seal(b"another key", driver.weights).close(first(nb, driver, 1))[0]
    changed = token[:50] + ("A" if token[50] != "A" else "B") + token[51:]
    for bad in (changed, foreign, token[:-8], "no token", "é"):
        answer = ask(client, token=bad)
        assert answer.status_code == 401 and "token" in answer.json()["detail"], answer.text
    import itsdangerous.timed

    later = nb.time.time() + nb.MAX_AGE + 2
    monkeypatch.setattr(itsdangerous.timed.time, "time", lambda: later)
    assert "age" in ask(client, token=token).json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"frames": NaN}',
        b"[]",
        b'{"frames": "AAAA"}',
        b'{"frames": 5, "x": 1e999}',
        json.dumps({"frames": "!" * 21_848}).encode(),
    ],
)
def test_what_is_no_request_is_422_and_says_where(client, body):
    answer = client.post("/act", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"][0]["problem"]


def test_too_long_or_of_unknown_length_is_refused_unread(client):
    assert client.post("/act", content=b"x" * 70_000).status_code == 413
    assert client.post("/act", content=(b"x" for _ in range(3))).status_code == 411


def test_a_batch_equals_one_by_one(nb, driver):
    past, frames, yes = first(nb, driver), nb.torch.tensor(FRAMES), nb.torch.ones(8, dtype=bool)
    for _ in range(6):
        push, after, _ = driver(frames, past, yes)
        for k in range(8):
            one, its, _ = driver(
                frames[k : k + 1], nb.Past(*(part[k : k + 1] for part in past)), yes[:1]
            )
            assert (
                one == push[k]
                and nb.torch.allclose(its.z, after.z[k : k + 1], atol=1e-5)
                and nb.torch.allclose(its.alone, after.alone[k : k + 1], atol=1e-4)
            )
        past, frames = after, frames.roll(1, 0)


def test_the_driver_acts_as_the_agent_does(nb, driver):
    """Believed pictures give what the notebook's own agent does with them."""
    agent = nb.Agent(
        driver.world._replace(
            codes=nb.Codes(nb.torch.zeros(1, 1, driver.world.m.change.out_features), *[None] * 4)
        ),
        nb.controller(driver.weights),
    )
    films, past = (
        np.random.default_rng(1).integers(0, 256, (12, 8, 64, 64), dtype=np.uint8),
        first(nb, driver),
    )
    stack = np.repeat(films[0][:, None], 4, 1)
    for k, frames in enumerate(films):
        stack = stack if k == 0 else np.concatenate([stack[:, 1:], frames[:, None]], 1)
        push, past, _ = driver(nb.torch.tensor(stack), past, nb.torch.zeros(8, dtype=bool))
        luck = [np.random.default_rng(0)] * 8
        assert (push.numpy() == agent(nb.Scene(np.full(8, k == 0), frames, None, luck))).all()


def test_the_guard_doubts_beyond_its_limits_and_not_before(nb, driver):
    past, frames, yes = first(nb, driver), nb.torch.tensor(FRAMES), nb.torch.ones(8, dtype=bool)
    _, past, begin = driver(frames, past, yes)
    assert begin["believed"].all(), "there is nothing to compare a first picture with"
    surprise = driver(frames.roll(1, 0), past, yes)[2]["surprise"]
    strict = nb.Driver(
        driver.world, driver.weights, driver.verifier, nb.Limits(surprise=float(surprise.median()))
    )
    _, after, found = strict(frames.roll(1, 0), past, yes)
    assert (
        nb.torch.equal(found["believed"], surprise <= surprise.median())
        and not found["believed"].all()
    )
    assert (
        not after.known[~found["believed"], :-1].any() and after.known[found["believed"], -2].all()
    ), "after a jump M reads a new film"
    assert strict(frames.roll(1, 0), past, ~yes)[2]["believed"].all(), (
        "who does not want the guard is not guarded"
    )


def test_in_doubt_the_dream_goes_on_and_calm_pictures_are_believed_again(nb, driver):
    m, yes, shown = driver.world.m, nb.torch.ones(1, dtype=bool), nb.torch.tensor(FRAMES[:1])
    shown[:, 2:] = shown[:, 3:]
    still = nb.Driver(driver.world, driver.weights, driver.verifier, nb.Limits(still=1))
    past, believed = first(nb, driver, 1), []
    for k in range(9):
        frames = (
            shown if k < 4 else nb.torch.tensor(FRAMES[k - 3 : k - 2])
        )  # three pictures that do not change, then others
        before, (_, past, found) = past, still(frames, past, yes)
        believed.append(bool(found["believed"]))
        if not believed[-1]:
            sizes = [past.z.shape[2], past.z.shape[2], 16, 16, 1]
            alone = m.step(nb.State(*before.alone.split(sizes, 1)), before.a[:, -1])
            assert nb.torch.allclose(nb.torch.cat(alone, 1), past.alone), (
                "M goes on from where it was"
            )
    assert believed == [True, True, False, False, False, False, True, True, True]


def test_who_asks_for_a_refusal_gets_one(nb, driver):
    strict = nb.Driver(driver.world, driver.weights, driver.verifier, nb.Limits(surprise=0.0))
    with TestClient(nb.make_app(strict, b"k")) as client:
        token = ask(client).json()["token"]
        answers = {
            way: ask(client, FRAMES[1], token=token, in_doubt=way).json()
            for way in ("refuse", "dream", "believe")
        }
    assert (
        answers["refuse"]["push"] is None
        and answers["dream"]["push"] in (0, 1)
        and answers["believe"]["push"] in (0, 1)
    )
    assert [answer["believed"] for answer in answers.values()] == [False, False, True]


def test_what_arrives_together_is_computed_together_and_an_error_reaches_all(nb):
    sizes = []

    def work(items):
        sizes.append(len(items))
        if 7 in items:
            raise ValueError("seven")
        return [2 * item for item in items]

    async def go():
        together = nb.Together(work)
        assert await asyncio.gather(*map(together, range(5))) == [0, 2, 4, 6, 8]
        assert all(
            isinstance(result, ValueError)
            for result in await asyncio.gather(*map(together, (6, 7)), return_exceptions=True)
        )
        assert await together(1) == 2

    asyncio.run(go())
    assert sizes == [5, 2, 1]


def test_no_generated_request_breaks_the_service(nb, driver):
    app = nb.make_app(driver, b"k" * 32)
    statuses = generated(app, 300)
    assert not [what for what in statuses if what[-3] == "5"], statuses
    assert {"POST /act 200", "POST /act 401", "POST /act 422"} <= set(statuses), (
        "valid pictures, foreign tokens and nonsense are among them"
    )
    with TestClient(app) as client:
        assert (
            ask(client).status_code == 200
            and client.get("/healthz").json() == {"status": "ok"}
            and b"pushes_total" in client.get("/metrics").content
        )


def test_lies_come_when_they_should_and_limits_are_quantiles(nb):
    stacks = np.random.default_rng(0).integers(0, 200, (3, 4, 64, 64), dtype=np.uint8)
    for kind in nb.LIES:
        lie = nb.Lies(kind)
        assert (lie(stacks, np.array([59, 70, 1])) == stacks).all(), "honest before and after"
        assert ((lie(stacks + 1, np.array([60, 69, 65])) == stacks + 1).all()) == (
            kind == "none"
        ), kind
    lie = nb.Lies("frozen")
    lie(stacks, np.full(3, 59))
    shown = lie(stacks + 1, np.full(3, 61))
    assert (shown[:, 2:] == stacks[:, -1:]).all() and (shown[:, :2] == stacks[:, :2] + 1).all(), (
        "two lying pictures, two true ones"
    )
    answers = [
        {
            "life": 1,
            "step": step,
            "surprise": step,
            "confidence": 1 - step / 1000,
            "still": step // 100,
        }
        for step in range(1010)
    ]
    limits = nb.limits_of(answers, 0.1)
    assert nb.limits_of(answers[:15]) == nb.Limits(), "who falls at once teaches no limit"
    assert (
        limits.surprise == pytest.approx(910, abs=2)
        and limits.confidence == pytest.approx(0.09, abs=0.002)
        and limits.still == 9
    )


def test_a_client_plays_over_a_real_socket_and_the_server_ends(nb, driver):
    cloudpickle.register_pickle_by_value(sys.modules[nb.__name__])
    with nb.served(driver, b"k" * 32, 2) as (address, processes):
        remote = nb.Remote(address)
        episodes = nb.play(remote, nb.seeds_for("roads", 0, 3), 2, steps=15)
        assert len(episodes) == 3 and len(remote.answers) >= sum(
            len(episode.actions) for episode in episodes
        )
        lives = {}
        for answer in remote.answers:
            lives.setdefault(answer["life"], []).append(answer["step"])
        assert {0, 1} < set(lives), "the first ones count from 0"
        assert all(steps == list(range(len(steps))) for steps in lives.values()), "none are merged"
    assert all(process.poll() is not None for process in processes())
    with pytest.raises(RuntimeError), nb.served(driver, b"k" * 32) as (address, processes):
        raise RuntimeError("a test that fails")
    assert all(process.poll() is not None for process in processes())
