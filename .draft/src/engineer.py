# %% [markdown]
# ## 10 · The engineer's road: quantise, guard, serve, scale
#
# V, M and C are trained. Suppose a robot shall use them: it sends its pictures over a network, and gets a push back. What can be made smaller? What if the camera lies? How many robots can two cores serve? This part starts from the trained parts alone, so it can be run after the pretrained checkpoint, too.
#
# `ROADS` in the next cell says which of the last parts are computed. The others draw what they say from `assets/experiments/`, which a full pass over them has left there.

# %% cellView="form" tags=["run", "extra"]
# @title Which roads are computed? (none: they draw their tables from assets/experiments)
ROADS = os.environ.get("WM_ROADS", "all" if profile_name(PROFILE) == "smoke" else "none")  # @param ["none", "engineer", "all"] {allow-input: true}
live = {"engineer"} if ROADS == "all" else set(ROADS.replace(",", " ").split()) - {"none"}
road_libraries = {"fastapi": "fastapi", "uvicorn": "uvicorn", "aiohttp": "aiohttp", "prometheus_client": "prometheus-client"}
road_libraries |= {"ray": "ray[serve]"} if "engineer" in live else {}
road_missing = [package for name, package in road_libraries.items() if importlib.util.find_spec(name) is None]
if road_missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *road_missing], check=True)
print(f"computed here: {', '.join(sorted(live)) or 'nothing'}; missing libraries: {', '.join(road_missing) or 'none'}")

# %% [markdown]
# ### INT8: a quarter of the bytes
#
# A weight in 8 bits instead of 32: each linear layer gets one scale, and each of its weights becomes an integer from −127 to 127. *Dynamic* quantisation does the same to what flows in, batch by batch, so no calibration data are needed. It covers the linear layers, and M's gates are one; V's convolutions stay float. (PyTorch has announced that this function will go; `torchao` takes its place.) **Predict:** M moves 64 latents a little at each of 30 steps. Will rounding errors add up?

# %% tags=["define", "extra"]
import copy
import io


def quantised(module: nn.Module) -> nn.Module:
    """A copy whose linear layers compute in INT8; the module itself, and a sentence, on a GPU, or where PyTorch can't any more."""
    quantise = getattr(torch.ao.quantization, "quantize_dynamic", None)
    if quantise is None or DEVICE.type != "cpu":
        print("dynamic INT8 is for CPUs, and for PyTorch as long as it has quantize_dynamic: served in float here")
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is announced to go
        return quantise(copy.deepcopy(module), {nn.Linear}, dtype=torch.qint8)


def megabytes(*modules: nn.Module) -> float:
    """What the weights take when saved."""
    torch.save([module.state_dict() for module in modules], place := io.BytesIO())
    return place.tell() / 1e6


# %% [markdown]
# ### A service that keeps nothing
#
# Two servers shall be able to share the work, and either may die. So neither may remember anything about a robot. What M needs of the past, the last sixteen codes and pushes, travels with the robot itself, in a **token**: the server hands it out with each push and gets it back with the next pictures. The robot could change it; a signature (HMAC, with a key that only the servers know) shows if it did. A token also says when it was made and for which M.

# %% tags=["define", "extra"]
import base64
import hmac
import secrets
import threading

MAX_AGE = 60.0  # seconds for which a token is good


class Past(NamedTuple):
    """What M needs of the past of B robots."""

    z: Tensor  # (B, C, Z) the last codes, as V saw them or, where the guard didn't believe it, as M imagined them
    a: Tensor  # (B, C) the pushes after them
    known: Tensor  # (B, C) False: that was before the robot's first picture
    blind: Tensor  # (B,) steps since a picture was last believed


class Seal:
    """Pasts as opaque tokens: bytes, signed, in base64. Whoever has the key can make them and read them."""

    def __init__(self, key: bytes, driver: "Driver") -> None:
        """`key`: the servers' secret. `driver`: tokens are good for its V, M and C only."""
        c, z = driver.world.context, driver.latents
        self.key, self.model = key, hashlib.sha256(driver.weights.cpu().numpy().tobytes()).digest()[:8]
        self.form = np.dtype([("time", "<f8"), ("model", "V8"), ("z", "<f2", (c, z)), ("a", "u1", c), ("known", "?", c), ("blind", "u1")])

    def close(self, past: Past) -> list[str]:
        """One token per robot."""
        records = np.zeros(len(past.z), self.form)
        records["time"], records["model"] = time.time(), np.void(self.model)
        for name, part in past._asdict().items():
            records[name] = part.cpu().numpy()
        return [base64.b64encode(hmac.digest(self.key, record.tobytes(), "sha256") + record.tobytes()).decode() for record in records]

    def open(self, token: str) -> np.void:
        """The record in a token; an empty token is a robot's first. ValueError: forged, foreign, or too old."""
        if not token:
            return np.zeros((), self.form)
        try:
            data = base64.b64decode(token, validate=True)
        except ValueError:
            data = b""
        if len(data) != 32 + self.form.itemsize or not hmac.compare_digest(hmac.digest(self.key, data[32:], "sha256"), data[:32]):
            raise ValueError("this token was not made here, or it was changed")
        record = np.frombuffer(data[32:], self.form)[0]
        if record["model"].tobytes() != self.model:
            raise ValueError("this token was made for another model")
        if time.time() - record["time"] > MAX_AGE:
            raise ValueError(f"this token is more than {MAX_AGE:.0f} seconds old: begin anew, without a token")
        return record

    def past(self, records: list[np.void]) -> Past:
        """Records as one batch."""
        records = np.stack(records)
        return Past(*(torch.tensor(records[name].copy(), dtype=kind, device=DEVICE) for name, kind in zip(Past._fields, (torch.float32, torch.float32, torch.bool, torch.int64))))


# %% [markdown]
# ### The guard
#
# A camera can lie: noise, a frozen picture, pictures in the wrong order. V would code them as it codes everything, and C would act on what comes out. But M has an expectation. Before each push the guard asks two questions. **Is this what M expected?** The squared distance between the code that V sees and the one that M foresaw, in units of M's own doubt, is about 1 per latent for an honest camera. **Does what follows look real?** The guard dreams a few steps under the chosen push, before it is executed, and asks the verifier of part 9. If either answer is bad, the robot gets what it asked for: a refusal, or a push from the *dream*. There M goes on from its expectation, as if the eyes were shut, and C acts on that. **Predict:** how long can C balance with its eyes shut?

# %% tags=["define", "extra"]
AHEAD = 3  # steps that the guard dreams before a push is executed
LONGEST_BLIND = 15  # steps; then a dream is worth less than a doubtful picture


class Driver:
    """V, M, C, the verifier and a guard as one function of pictures and pasts."""

    def __init__(self, world: World, weights: Tensor, verifier: Verifier, limits: tuple[float, float]) -> None:
        """`limits`: the largest surprise and the smallest confidence with which a picture is believed."""
        self.world, self.weights, self.verifier, self.limits, self.latents = world._replace(memory=None, codes=None), weights, verifier, limits, world.codes.mu.shape[-1]

    @torch.no_grad()
    def __call__(self, frames: Tensor, past: Past, guarded: Tensor) -> tuple[Tensor, Past, dict[str, Tensor]]:
        """Pushes (B,), the new pasts, and what the guard thinks: `surprise`, `confidence`, `believed`, (B,) each.

        `frames` (B, 4, 64, 64) uint8, oldest first; `guarded` (B,): False: whatever the guard thinks, the picture is believed."""
        m, seen = self.world.m, self.world.v.encode(frames.float() / 255)[0]  # (B, Z)
        new = ~past.known[:, -1]  # (B,) a first picture: there is nothing to compare it with
        z = torch.where(new[:, None, None], seen[:, None], past.z)  # (B, C, Z)
        now = remembered(m, torch.cat([z, seen[:, None]], 1), past.a, past.known)
        blind = (past.blind + 1)[:, None].to(seen.dtype)  # (B, 1)
        expected = now._replace(z=now.before + m.change(now.h), blind=blind)  # what M foresaw
        surprise = ((seen - expected.z).square() * (-m.says(expected).log_var).exp()).mean(1)  # (B,)
        ahead = dream(m, now, controller(self.weights), AHEAD)
        confidence = torch.stack([self.verifier(step.state) for step in ahead]).amin(0).sigmoid()  # (B,)
        honest = (surprise <= self.limits[0]) & (confidence >= self.limits[1])
        believed = new | honest | ~guarded | (past.blind >= LONGEST_BLIND)  # (B,)
        state = State(*(torch.where(believed[:, None], a, b) for a, b in zip(now, expected)))
        push = act(self.weights[None], features(state)[None])[0]  # (B,)
        after = Past(torch.cat([z[:, 1:], state.z[:, None]], 1), torch.cat([past.a[:, 1:], push[:, None]], 1),
                     torch.cat([past.known[:, 1:], torch.ones_like(new)[:, None]], 1), torch.where(believed, 0, past.blind + 1))  # fmt: skip
        return push, after, {"surprise": surprise, "confidence": confidence, "believed": believed}


# %% [markdown]
# ### HTTP
#
# The service is a FastAPI app. `POST /act` takes four pictures (16,384 grey values, raw, in base64: decoding a PNG would cost more than it saves on a wire inside one house) and a token. Types, lengths and limits stand in two classes, and what breaks them is answered with a 4xx and a sentence. Requests that arrive while others are computed are answered **together**, as one batch: under load the matrix products grow and the number of calls shrinks. `GET /metrics` counts what happens, in the format of Prometheus, and `/docs` shows the whole interface.

# %% tags=["define", "extra"]
import asyncio
from collections.abc import Awaitable
from typing import Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import Base64Bytes, field_validator

PICTURES = STACK * FRAME_SIZE**2  # bytes of four pictures
LETTERS = (PICTURES + 2) // 3 * 4  # the same in base64
MOST = 64  # requests in one batch
LARGEST = 64_000  # bytes of a request's body


class Ask(BaseModel):
    """What a robot sends."""

    model_config = ConfigDict(extra="forbid")
    frames: Base64Bytes = Field(min_length=LETTERS, max_length=LETTERS, description="four grey pictures of 64 × 64 bytes, oldest first: 16,384 bytes in base64")
    token: str = Field("", max_length=8_000, description="from the last answer; empty at a robot's beginning")
    in_doubt: Literal["dream", "refuse", "believe"] = Field("dream", description="what to do when the guard does not believe the pictures")

    @field_validator("frames")
    @classmethod
    def four_pictures(cls, frames: bytes) -> bytes:
        """Letters that are no base64 are skipped in decoding: then bytes are missing."""
        if len(frames) != PICTURES:
            raise ValueError(f"these are {len(frames):,} bytes, not {PICTURES:,}")
        return frames


class Answer(BaseModel):
    """What it gets back."""

    push: int | None = Field(description="0: left, 1: right; null: refused")
    token: str = Field(description="to be sent with the next pictures")
    believed: bool = Field(description="does the guard believe the pictures?")
    surprise: float = Field(description="how far they are from what M expected; about 1 or less where all is well")
    confidence: float = Field(description="the verifier's, in what follows from them")


class Together:
    """Answers what arrives at the same time as one batch: while one batch is computed, the next one gathers."""

    def __init__(self, work: Callable[[list], list]) -> None:
        """`work`: computes many at once."""
        self.work, self.waiting, self.task = work, [], None

    async def __call__(self, item: Any) -> Any:
        """The result for one item."""
        self.waiting.append((item, future := asyncio.get_running_loop().create_future()))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.run())
        return await future

    async def run(self) -> None:
        """Work until nobody waits."""
        while self.waiting:
            batch, self.waiting = self.waiting[:MOST], self.waiting[MOST:]
            try:
                results = await asyncio.to_thread(self.work, [item for item, _ in batch])
            except Exception as error:  # whoever waits must hear of it
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results):
                if not future.done():  # its robot may be gone
                    future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)


class Short:
    """Lets only requests through whose body says its length, and is not too long."""

    def __init__(self, app: Callable) -> None:
        """`app`: what comes next."""
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """One request."""
        length = dict(scope.get("headers", ())).get(b"content-length", b"0" if scope.get("method", "GET") in ("GET", "HEAD", "OPTIONS") else b"")
        if length.isdigit() and int(length) <= LARGEST:
            return await self.app(scope, receive, send)
        refusal = JSONResponse({"detail": f"a body of at most {LARGEST:,} bytes, and its length in the header, please"}, 413 if length else 411)
        return await refusal(scope, receive, send)


# %% tags=["define", "extra"]
def make_app(driver: Driver, key: bytes) -> FastAPI:
    """The service. `key`: signs the tokens; all replicas need the same."""
    torch.set_num_threads(1)  # one core per replica
    app, seal, registry = FastAPI(title="A world model at the wheel"), Seal(key, driver), CollectorRegistry()
    count = Counter("pushes", "answers", ["verdict"], registry=registry)
    size, seconds = Histogram("batch_size", "requests per batch", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry), Histogram("batch_seconds", "time to compute one", registry=registry)

    def answer(asked: list[tuple[Ask, np.void]]) -> list[Answer]:
        """A batch of answers."""
        with seconds.time():
            size.observe(len(asked))
            frames = torch.frombuffer(bytearray(b"".join(ask.frames for ask, _ in asked)), dtype=torch.uint8).view(-1, STACK, FRAME_SIZE, FRAME_SIZE)
            guarded = torch.tensor([ask.in_doubt != "believe" for ask, _ in asked])
            push, after, thinks = driver(frames, seal.past([record for _, record in asked]), guarded)
        found = zip(asked, push.tolist(), seal.close(after), *(thinks[name].tolist() for name in ("believed", "surprise", "confidence")))
        return [Answer(push=None if ask.in_doubt == "refuse" and not yes else a, token=token, believed=yes, surprise=much, confidence=sure)
                for (ask, _), a, token, yes, much, sure in found]  # fmt: skip

    together = Together(answer)
    app.add_middleware(Short)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong, without repeating what was sent: that may be long, or no JSON at all."""
        return JSONResponse({"detail": [{"at": [str(place)[:50] for place in one["loc"]], "problem": one["msg"]} for one in error.errors()]}, 422)

    @app.post("/act", responses={code: {"description": text} for code, text in {401: "bad token", 411: "no length", 413: "too long"}.items()})
    async def act_on(ask: Ask) -> Answer:
        """One push for one robot."""
        try:
            record = seal.open(ask.token)
        except ValueError as error:
            count.labels("bad token").inc()
            raise HTTPException(401, str(error)) from error
        result = await together((ask, record))
        count.labels("refused" if result.push is None else "believed" if result.believed else "doubted").inc()
        return result

    @app.get("/healthz")
    async def healthy() -> dict[str, str]:
        """Is the service there?"""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """What happened so far."""
        return Response(generate_latest(registry), media_type="text/plain")

    return app


# %% [markdown]
# ### Two ways to serve, one client
#
# `uvicorn` serves one app in one process. Two of them can share a socket, and the kernel gives each new connection to one of them. **Ray Serve** does more: it starts replicas by load, watches them, replaces those that die, and spreads single requests. The app is the same. On two A10 GPUs each replica would take one (`num_gpus=1` beside `num_cpus`), and nothing else would change.
#
# The client is a policy like all others, so `play` runs it: the real CartPole on one side, the service on the other, HTTP on the loopback device between them.

# %% tags=["define", "extra"]
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import cloudpickle


@contextlib.contextmanager
def served(driver: Driver, key: bytes, replicas: int = 1) -> Iterator[tuple[str, Callable[[], list]]]:
    """uvicorn, one process per replica, all on one socket: its address, and a function that lists the processes. They end with the block."""

    def serve(handle: int) -> None:
        """What a replica does: serve until it is told to stop."""
        import uvicorn

        uvicorn.run(make_app(driver, key), fd=handle, log_level="error", access_log=False)

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work.pkl"
        work.write_bytes(cloudpickle.dumps(serve))
        call = "import cloudpickle, pathlib, sys; cloudpickle.loads(pathlib.Path(sys.argv[1]).read_bytes())(int(sys.argv[2]))"
        handle, address = listener.fileno(), f"http://127.0.0.1:{listener.getsockname()[1]}"
        processes = [subprocess.Popen([sys.executable, "-c", call, str(work), str(handle)], pass_fds=[handle]) for _ in range(replicas)]
        try:
            in_background(until_healthy(address))
            yield address, lambda: processes
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(20)


@contextlib.contextmanager
def served_by_ray(driver: Driver, key: bytes, replicas: int = 2) -> Iterator[tuple[str, Callable[[], list]]]:
    """Ray Serve with as many replicas as the load asks for, from one to `replicas`: its address, and a function that lists their processes."""
    import psutil
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="error")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        scale = {"min_replicas": 1, "max_replicas": replicas, "target_ongoing_requests": 16, "upscale_delay_s": 2}
        deployment = serve.deployment(serve.ingress(lambda: make_app(driver, key))(), autoscaling_config=scale, max_ongoing_requests=200, ray_actor_options={"num_cpus": 1})
        serve.run(deployment.bind(), name="driver")
        yield f"http://127.0.0.1:{port}", lambda: [process for process in psutil.process_iter(["name"]) if process.info["name"].startswith("ray::ServeReplica")]
    finally:
        serve.shutdown()
        ray.shutdown()


def in_background(work: Any) -> Any:
    """The result of a coroutine, computed in another thread: a notebook's own thread already runs an event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def until_healthy(address: str, seconds: float = 60) -> None:
    """Wait until a service answers. TimeoutError: it doesn't."""
    async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(address + "/healthz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


def encoded(frames: np.ndarray) -> str:
    """Four pictures (4, 64, 64) as a request carries them."""
    return base64.b64encode(frames.tobytes()).decode()


Lie = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (true stacks of all robots (W, 4, 64, 64), steps (W,)) -> what they show


class Remote:
    """A policy that lives behind an address. It sends four frames and a token, and gets a push and the next token."""

    def __init__(self, address: str, in_doubt: str = "dream", lie: Lie = lambda stacks, steps: stacks) -> None:
        """`lie`: what becomes of the pictures on their way."""
        self.address, self.in_doubt, self.lie, self.stack, self.answers = address, in_doubt, lie, None, []

    async def ask(self, stacks: np.ndarray) -> list[dict]:
        """All robots ask at once."""
        async with aiohttp.ClientSession(raise_for_status=True) as session:

            async def one(stack: np.ndarray, token: str) -> dict:
                """One robot's request."""
                body = {"frames": encoded(stack), "token": token, "in_doubt": self.in_doubt}
                async with session.post(self.address + "/act", json=body) as answer:
                    return await answer.json()

            return await asyncio.gather(*map(one, stacks, self.tokens))

    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One push per environment, (W,); where the service refuses, a push to the left. The true states are not used."""
        if self.stack is None:
            self.stack, self.steps, self.tokens = np.repeat(frames[:, None], STACK, 1), np.zeros(len(frames), int), [""] * len(frames)
        self.stack = np.where(fresh[:, None, None, None], frames[:, None], np.concatenate([self.stack[:, 1:], frames[:, None]], 1))  # (W, 4, 64, 64)
        self.steps = np.where(fresh, 0, self.steps + 1)
        self.tokens = ["" if new else token for new, token in zip(fresh, self.tokens)]
        answers = in_background(self.ask(self.lie(self.stack, self.steps)))
        self.tokens = [answer["token"] for answer in answers]
        self.answers += [(seed, int(step), answer["believed"], answer["surprise"], answer["confidence"]) for seed, step, answer in zip(seeds, self.steps, answers)]
        return np.array([answer["push"] or 0 for answer in answers])


# %% [markdown]
# ### Cameras that lie
#
# In 30 of each 100 steps the camera lies, in one of four ways: noise of 10 grey levels; a frozen picture; the pictures of another robot; the four pictures in the wrong order. 20 robots drive with the guard, and 20 without. How often is a lie caught within its first ten steps, and how often does the guard cry wolf in the ten honest steps before? (The limits are set on other episodes, so that each of the two questions doubts 2 % of honest stretches of ten steps.) **Predict** which of the four lies does no harm.

# %% tags=["define", "extra"]
LIE_FROM, LIE_FOR, LIE_EVERY = 60, 10, 100  # steps: the camera lies in 10 of each 100 steps


class Lies:
    """Cameras that lie now and then: what W robots show instead of their true stacks (W, 4, 64, 64)."""

    def __init__(self, kind: str) -> None:
        """`kind`: "none", "noise", "frozen", "another robot's", or "backwards"."""
        self.kind, self.luck, self.last = kind, np.random.default_rng(0), None

    def __call__(self, stacks: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """`steps` (W,): how old the robots are."""
        lying = (steps % LIE_EVERY >= LIE_FROM) & (steps % LIE_EVERY < LIE_FROM + LIE_FOR) & (self.kind != "none")  # (W,)
        self.last = stacks[:, -1:] if self.last is None else np.where(lying[:, None, None, None], self.last, stacks[:, -1:])  # (W, 1, 64, 64) the last honest picture
        shown = {
            "none": stacks,
            "noise": np.clip(stacks + self.luck.normal(0, 80, stacks.shape), 0, 255).astype(np.uint8),
            "frozen": np.repeat(self.last, STACK, 1),
            "another robot's": np.roll(stacks, 1, 0),
            "backwards": stacks[:, ::-1],
            "black": np.zeros_like(stacks),
        }[self.kind]
        return np.where(lying[:, None, None, None], shown, stacks)


def alarms(answers: list[tuple], first: int, last: int) -> dict[int, bool]:
    """For each episode (its seed): was a picture doubted between two of its steps?"""
    found: dict[int, bool] = {}
    for seed, step, believed, *_ in answers:
        if first <= step < last:
            found[seed] = found.get(seed, False) or not believed
    return found


def guard_limits(driver: Driver, address: str, seed: int, episodes: int, workers: int) -> tuple[float, float]:
    """The surprise and the confidence that 99.5 % of honest stretches of ten steps do not pass, on episodes of their own."""
    robot = Remote(address, "believe")
    play(robot, seeds_for("roads", seed, episodes), workers)
    lines = {(seed, step): (surprise, confidence) for seed, step, _, surprise, confidence in robot.answers}
    stretches: dict[tuple, list] = {}
    for (episode, step), found in lines.items():
        stretches.setdefault((episode, step // 10), []).append(found)
    worst = np.array([(max(a for a, _ in found), min(b for _, b in found)) for (_, tenth), found in stretches.items() if tenth > 0])
    return float(np.quantile(worst[:, 0], 0.995)), float(np.quantile(worst[:, 1], 0.005))


def try_guard(address: str, seed: int, episodes: int, workers: int) -> list[dict]:
    """Cameras that lie, with and without the guard: how often it is right within ten steps, and the return."""
    lines = []
    for kind in ("none", "noise", "frozen", "another robot's", "backwards", "black"):
        line = {"camera": kind}
        for in_doubt in ("believe", "dream"):
            robot = Remote(address, in_doubt, Lies(kind))
            played = play(robot, seeds_for("roads", seed, episodes), workers)
            line[f"return, {in_doubt}"] = float(np.mean([len(episode.actions) for episode in played]))
            if in_doubt == "dream":
                before, during = (alarms(robot.answers, first, first + 10).values() for first in (LIE_FROM - 10, LIE_FROM))
                line |= {"doubted in the ten steps before": float(np.mean([*before])), "doubted in the first ten steps of a lie": float(np.mean([*during]))}
        lines.append(line)
    return lines


async def under_load(address: str, clients: int, seconds: float, stacks: list[str]) -> dict[str, float]:
    """So many clients, each of which asks again as soon as it is answered: milliseconds to an answer, answers per second, and requests that failed.

    A request that fails is sent again, with the same token, until it is answered."""
    took, failed, end = [], 0, time.perf_counter() + seconds

    async def client(number: int) -> None:
        """One robot, with a recorded film."""
        nonlocal failed
        token, step = "", number
        while time.perf_counter() < end:
            begin = time.perf_counter()
            try:
                async with session.post(address + "/act", json={"frames": stacks[step % len(stacks)], "token": token}) as answer:
                    token = (await answer.json())["token"]
                took.append(1000 * (time.perf_counter() - begin))
                step += 1
            except aiohttp.ClientError:
                failed += 1

    async with aiohttp.ClientSession(raise_for_status=True, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*map(client, range(clients)))
    p50, p95, p99 = np.percentile(took, (50, 95, 99))
    return {"clients": clients, "per second": len(took) / seconds, "p50": p50, "p95": p95, "p99": p99, "failed": failed}


# %% tags=["define", "extra"]
def milliseconds(work: Callable[[], Any], times: int = 30) -> float:
    """The median time of some calls on one thread, after one to warm up."""
    taken = []
    with threads(1):
        for _ in range(times + 1):
            begin = time.perf_counter()
            work()
            taken.append(1000 * (time.perf_counter() - begin))
    return float(np.median(taken[1:]))


def try_int8(progress: Progress, drivers: dict[str, Driver], good_episodes: list[Episode], probe: Probe) -> dict:
    """Float and INT8 side by side: size, time, and how true their dreams are."""
    lines = []
    for name, driver in drivers.items():
        looks, stacks = driver.world.looking_at(good_episodes), Memory(good_episodes, 0, DEVICE)
        frames = (255 * stacks.stack(stacks.rows[100:132])).to(torch.uint8)  # (32, 4, 64, 64)
        past = Seal(b"", driver).past([Seal(b"", driver).open("")] * 32)
        ask = {count: functools.partial(driver, frames[:count], Past(*(part[:count] for part in past)), torch.ones(count, dtype=torch.bool, device=DEVICE)) for count in (1, 32)}
        error = open_loop_errors(looks, probe)[29]
        lines.append({"weights": name, "megabytes": megabytes(driver.world.v, driver.world.m), "ms, one robot": milliseconds(ask[1]), "ms, 32 robots": milliseconds(ask[32]),
                      "theta at 30 (degrees)": math.degrees(error[2]), "x at 30 (mm)": 1000 * float(error[0]), "KL at 30 (nats)": float(open_loop_kl(looks, 30)[29])})  # fmt: skip
    return {"lines": lines}


def try_service(progress: Progress, driver: Driver, *, seed: int, episodes: int, workers: int, seconds: float) -> dict:
    """The service as its users meet it: the return over HTTP, cameras that lie, load, and a replica that dies. Tables by name."""
    key, clients = secrets.token_bytes(32), (1, 8, 32, 128)
    with served(driver, key) as (address, _):
        driver.limits = guard_limits(driver, address, seed, episodes, workers)
    with served(driver, key) as (address, _):
        honest = Remote(address)
        played = play(honest, seeds_for("roads", seed + 1, episodes), workers)
        tables = {"guard": try_guard(address, seed + 2, episodes, workers)}
    returns = [float(len(episode.actions)) for episode in played]
    stacks = [encoded(np.stack([episode.frames[max(0, k)] for k in range(row - STACK + 1, row + 1)])) for episode in played[:1] for row in range(len(episode.actions))]
    lines = []
    for server, replicas in (("uvicorn", 1), ("uvicorn", 2), ("Ray Serve", 1), ("Ray Serve", 2)):
        way = served(driver, key, replicas) if server == "uvicorn" else served_by_ray(driver, key, replicas)
        with way as (address, processes):
            in_background(under_load(address, 8, 2.0, stacks))  # to warm up
            for count in clients:
                lines.append({"server": server, "replicas": replicas, "clients": count, "killed": 0} | in_background(under_load(address, count, seconds, stacks)))
            if replicas == 2:
                killer = threading.Timer(seconds / 2, processes()[0].kill)
                killer.start()
                lines.append({"server": server, "replicas": replicas, "clients": 32, "killed": 1} | in_background(under_load(address, 32, seconds, stacks)))
    return {"limits": list(driver.limits), "returns": returns, **tables, "load": lines}
