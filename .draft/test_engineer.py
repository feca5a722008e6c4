"""The engineer's road: INT8, tokens, the guard, batches, bad input, and a client over a real socket. To be moved to tests/ with the road."""

import asyncio
import base64
import json

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings


@pytest.fixture(scope="module")
def driver(nb):
    """V, M, C and a verifier with random weights, and a guard that believes everything."""
    nb.torch.manual_seed(0)
    s = nb.make_settings("smoke")
    v, m = nb.frozen(nb.V(s.v)), nb.frozen(nb.M(s.v.latents, 16))
    codes = nb.Codes(*[nb.torch.zeros(1, 1, s.v.latents)] * 2, *[nb.torch.zeros(1, 1)] * 3)
    return nb.Driver(nb.World(v, m, None, codes, 4), nb.torch.randn(s.v.latents + 17), nb.frozen(nb.Verifier(s.v.latents, 16)), (1e9, -1.0))


@pytest.fixture
def client(nb, driver):
    """The app, without a socket."""
    with TestClient(nb.make_app(driver, b"k" * 32), raise_server_exceptions=False) as client:
        yield client


FRAMES = np.random.default_rng(0).integers(0, 256, (8, 4, 64, 64), dtype=np.uint8)


def ask(client, nb, frames=FRAMES[0], **more):
    """One request."""
    return client.post("/act", json={"frames": nb.encoded(frames), **more})


def test_int8_is_close_to_float_and_a_quarter_of_its_linear_layers(nb, driver):
    small = nb.quantised(driver.world.m)
    assert nb.megabytes(small) < 0.5 * nb.megabytes(driver.world.m)
    layer, x = driver.world.m.gates, nb.torch.randn(64, driver.world.m.gates.in_features)
    step_w, step_x = 2 * layer.weight.abs().max() / 254, (x.max() - x.min()) / 127  # of the integers; PyTorch gives what flows in 7 bits here
    most = 0.5 * (step_w * x.abs().sum(1, keepdim=True) + step_x * layer.weight.abs().sum(1)) + 0.25 * step_w * step_x * layer.in_features  # (64, 4H)
    apart = (layer(x) - small.gates(x)).abs()
    assert (apart <= most + 1e-5).all() and apart.max() > 1e-4


def test_a_token_comes_back_as_it_went(nb, driver):
    seal, past = nb.Seal(b"k", driver), nb.Past(nb.torch.randn(3, 4, driver.latents), nb.torch.ones(3, 4), nb.torch.tensor([[False, True, True, True]] * 3), nb.torch.tensor([0, 7, 15]))
    again = seal.past([seal.open(token) for token in seal.close(past)])
    assert all(nb.torch.allclose(a.float(), b.float(), atol=2e-3) for a, b in zip(past, again)) and nb.torch.equal(past.blind, again.blind)


def test_bad_tokens_are_401_and_say_why(nb, driver, client, monkeypatch):
    token = ask(client, nb).json()["token"]
    assert ask(client, nb, token=token).status_code == 200
    data = bytearray(base64.b64decode(token))
    data[50] ^= 1
    foreign = nb.Seal(b"another key", driver).close(nb.Seal(b"", driver).past([nb.Seal(b"", driver).open("")]))[0]
    for bad in (base64.b64encode(data).decode(), foreign, token[:-8], "no token", "é"):
        answer = ask(client, nb, token=bad)
        assert answer.status_code == 401 and "token" in answer.json()["detail"], answer.text
    monkeypatch.setattr(nb.time, "time", lambda now=nb.time.time(): now + nb.MAX_AGE + 1)
    assert "seconds old" in ask(client, nb, token=token).json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"frames": NaN}', b"[]", b'{"frames": "AAAA"}', b'{"frames": 5, "x": 1e999}', json.dumps({"frames": "!" * 21_848}).encode()])
def test_what_is_no_request_is_422_and_says_where(client, body):
    answer = client.post("/act", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"][0]["problem"]


def test_too_long_or_of_unknown_length_is_refused_unread(client):
    assert client.post("/act", content=b"x" * 70_000).status_code == 413
    assert client.post("/act", content=(b"x" for _ in range(3))).status_code == 411


def test_a_batch_equals_one_by_one(nb, driver):
    past = nb.Seal(b"", driver).past([nb.Seal(b"", driver).open("")] * 8)
    frames, yes = nb.torch.tensor(FRAMES), nb.torch.ones(8, dtype=bool)
    for _ in range(6):
        push, after, thinks = driver(frames, past, yes)
        for k in range(8):
            one, its, _ = driver(frames[k : k + 1], nb.Past(*(part[k : k + 1] for part in past)), yes[:1])
            assert one == push[k] and nb.torch.allclose(its.z, after.z[k : k + 1], atol=1e-5)
        past, frames = after, frames.roll(1, 0)


def test_the_guard_doubts_beyond_its_limits_and_not_before(nb, driver):
    past = nb.Seal(b"", driver).past([nb.Seal(b"", driver).open("")] * 8)
    frames, yes = nb.torch.tensor(FRAMES), nb.torch.ones(8, dtype=bool)
    _, past, first = driver(frames, past, yes)
    assert first["believed"].all(), "nothing to compare a first picture with"
    surprise = driver(frames.roll(1, 0), past, yes)[2]["surprise"]
    strict = nb.Driver(driver.world._replace(codes=nb.Codes(nb.torch.zeros(1, 1, driver.latents), *[None] * 4)), driver.weights, driver.verifier, (float(surprise.median()), -1.0))
    push, after, thinks = strict(frames.roll(1, 0), past, yes)
    assert nb.torch.equal(thinks["believed"], surprise <= surprise.median()) and not thinks["believed"].all()
    assert nb.torch.equal(after.blind, (~thinks["believed"]).long())
    assert strict(frames.roll(1, 0), past, ~yes)[2]["believed"].all(), "who does not want the guard is not guarded"


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
        assert all(isinstance(result, ValueError) for result in await asyncio.gather(*map(together, (6, 7)), return_exceptions=True))
        assert await together(1) == 2

    asyncio.run(go())
    assert sizes == [5, 2, 1]


def test_no_generated_request_breaks_the_service(nb, driver):
    app = nb.make_app(driver, b"k" * 32)
    schema, statuses = schemathesis.openapi.from_asgi("/openapi.json", app), []
    for operation in (result.ok() for result in schema.get_all_operations()):

        @given(case=operation.as_strategy())
        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def no_server_error(case):
            statuses.append(case.call().status_code)
            assert statuses[-1] < 500

        no_server_error()
    assert len(statuses) >= 100
    with TestClient(app) as client:
        assert ask(client, nb).status_code == 200 and client.get("/healthz").json() == {"status": "ok"} and b"pushes_total" in client.get("/metrics").content


def test_a_client_plays_over_a_real_socket_and_the_server_ends(nb, driver):
    import cloudpickle
    import sys

    cloudpickle.register_pickle_by_value(sys.modules[nb.__name__])
    with nb.served(driver, b"k" * 32, 2) as (address, processes):
        remote = nb.Remote(address)
        episodes = nb.play(remote, nb.seeds_for("roads", 0, 2), 2, steps=15)
        assert len(episodes) == 2 and remote.answers
    assert all(process.poll() is not None for process in processes())
