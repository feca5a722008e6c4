# %% [markdown]
# ## 10 · The engineer's road: quantise, guard, serve
#
# V, M and C are trained. Suppose a robot shall use them: it sends its pictures over a network, and gets a push back. What can be made smaller? What if the camera lies? How many robots can two cores serve?
#
# `ROADS` says which of the last parts are computed now. The others are drawn from `assets/experiments/`, where our own pass over them left its tables.

# %% cellView="form" tags=["run", "extra"]
# @title Which roads are computed now? (auto: all in smoke, else none)
import importlib.util

ROADS = os.environ.get("WM_ROADS", "auto")  # @param ["auto", "none", "engineer", "all"] {allow-input: true}
asked = {"auto": "all" if profile_name(PROFILE) == "smoke" else "", "none": ""}.get(ROADS, ROADS)
live = {"engineer"} if asked == "all" else set(asked.replace(",", " ").split())
if live - {"engineer"}:
    raise ValueError(f"ROADS = {ROADS!r}: choose auto, none, all or engineer")
road_needs = {name: name.replace("_", "-") for name in "fastapi uvicorn httpx prometheus_client itsdangerous".split()}
road_missing = [package for name, package in road_needs.items() if importlib.util.find_spec(name) is None]
if road_missing and subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *road_missing]).returncode:
    raise SystemExit(f"pip could not install {', '.join(road_missing)}: do it in a terminal, then run this cell again.")
print(f"computed now: {', '.join(sorted(live)) or 'nothing'}; missing libraries: {', '.join(road_missing) or 'none'}")

# %% [markdown]
# ### INT8: a quarter of the bytes
#
# A weight in 8 bits instead of 32: each linear layer gets one scale, and its weights become integers from −127 to 127. *Dynamic* quantisation does the same to what flows in, batch by batch, so it needs no calibration data. It covers linear layers. M's gates are one; V's convolutions stay float. (PyTorch has announced that this function will go; the library `torchao` takes its place.) **Predict:** M moves 64 latents a little in each of 30 steps. Will the rounding errors add up?

# %% tags=["define", "extra"]
import pandas


def table_of(experiment: str, lines: list[dict]) -> pandas.DataFrame:
    """Lines that were computed now, which are kept beside the run; or, if there are none, those of our own pass."""
    if lines:
        write_table(OUT / f"{experiment}.csv", lines)
    return pandas.DataFrame(lines or read_table(experiment))


def quantised(module: nn.Module) -> nn.Module:
    """A copy whose linear layers compute in INT8; the module itself, and a sentence, on a GPU, or where PyTorch can't any more."""
    quantise = getattr(torch.ao.quantization, "quantize_dynamic", None)
    if quantise is None or DEVICE.type != "cpu":
        print("dynamic INT8 needs a CPU, and a PyTorch that still has quantize_dynamic: served in float")
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is announced to go
        return quantise(module, {nn.Linear}, dtype=torch.qint8)  # makes a copy


def milliseconds(work: Callable[[], Any], times: int = 30) -> float:
    """The median time of some calls on one thread, after one to warm up."""
    taken = []
    with threads(1):
        for _ in range(times + 1):
            begin = time.perf_counter()
            work()
            taken.append(1000 * (time.perf_counter() - begin))
    return float(np.median(taken[1:]))


def try_int8(
    progress: Progress, worlds: dict[str, World], weights: Tensor, good_episodes: list[Episode], probe: Probe, *, seed: int, episodes: int, workers: int
) -> dict:
    """Each world's size, time to see and to dream for 1 and for 32 robots, error and KL after 30 steps alone, and real return."""
    lines, stacks = [], torch.rand(32, STACK, FRAME_SIZE, FRAME_SIZE, device=DEVICE)
    for name, its in worlds.items():
        looks = its.looking_at(good_episodes)
        torch.save([its.v.state_dict(), its.m.state_dict()], file := io.BytesIO())
        line = {"weights": name, "megabytes": file.tell() / 1e6}
        for robots in (1, 32):
            z = its.v.encode(stacks[:robots])[0]  # (B, Z)
            line[f"V, {robots} robots (ms)"] = milliseconds(functools.partial(its.v.encode, stacks[:robots]))
            line[f"M, {robots} robots (ms)"] = milliseconds(functools.partial(its.m.step, its.m.begin(z), z[:, 0]))
        error, kl = open_loop_errors(looks, probe)[29], open_loop_kl(looks, 30)[29]
        line |= {"θ at 30 (degrees)": math.degrees(error[2]), "x at 30 (mm)": 1000 * float(error[0]), "KL at 30 (nats)": float(kl)}
        line["real return"] = float(np.mean(lives(Agent(its, weights), "roads", seed, episodes, workers)))
        lines.append({name: value if name == "weights" else round(value, 3) for name, value in line.items()})
    return {"lines": lines}


# %% tags=["run", "extra"]
int8_world = world._replace(v=quantised(world.v), m=quantised(world.m))
int8_inputs = ({"float32": world, "INT8": int8_world}, ship, good_episodes, wide_probe)
int8_settings = {"seed": settings.seed, "episodes": settings.evaluate.episodes, "workers": settings.collect.workers}
int8_stage = keep(try_int8, *int8_inputs, after=(c_stage, good_stage), name="int8", **int8_settings) if "engineer" in live else None
table_of("engineer_int8", int8_stage.result["lines"] if int8_stage else []).T

# %% [markdown]
# They do add up. After thirty steps alone the angle is off by 2.99° instead of 2.37° and the belief by 109 nats instead of 100. C doesn't mind: 500 in each of 100 episodes, with both, for it never goes thirty steps without looking. The weights shrink to two fifths, not to a quarter, because V's convolutions stay as they are. And time? One robot is answered no sooner: packing numbers into bytes costs what it saves. For 32 robots M needs two thirds of the time, but V, which is most of the work, as much as before.
#
# ### A service that remembers nothing
#
# Two servers shall be able to share the work, and either may die. So neither may keep anything about a robot. What M needs of the past travels with the robot itself, in a **token**: the service hands it out with each push, and gets it back with the next pictures. The robot could change it; a signature shows if it did (an HMAC with a key that only the servers know). A token also carries its time, and is good for one minute and one C.

# %% tags=["define", "extra"]
import base64
import secrets

from itsdangerous import BadSignature, TimestampSigner
from safetensors.torch import load as tensors_of

MAX_AGE = 60  # seconds for which a token is good


class Past(NamedTuple):
    """What the service must know of the past of B robots."""

    z: Tensor  # (B, C, Z) what V saw in the last pictures
    a: Tensor  # (B, C) the pushes after them
    known: Tensor  # (B, C) False: before the robot's first picture, or before a jump
    alone: Tensor  # (B, 2Z + 2H + 1) M's state after the last push, where it dreams on if the next pictures are not believed
    quiet: Tensor  # (B,) steps since the guard last found something odd
    still: Tensor  # (B,) steps for which the picture has not changed


def begun(world: World) -> Past:
    """The past of a robot that has just begun, without the batch dimension."""
    c, z, h = world.context, world.m.change.out_features, world.m.hidden
    count = torch.zeros((), dtype=torch.uint8)
    return Past(torch.zeros(c, z), torch.zeros(c), torch.zeros(c, dtype=torch.bool), torch.zeros(2 * z + 2 * h + 1), count, count)


class Seal:
    """Turns pasts into signed text, and back. Whoever has the key can make it."""

    def __init__(self, key: bytes, weights: Tensor) -> None:
        """`key`: the servers' secret. `weights`: the C for which a token is good."""
        self.signer = TimestampSigner(key, hashlib.sha256(weights.cpu().numpy().tobytes()).digest(), digest_method=hashlib.sha256)

    def close(self, past: Past) -> list[str]:
        """One token per robot. Floats are kept in 16 bits."""
        parts = {name: (part.half() if part.is_floating_point() else part).cpu() for name, part in past._asdict().items()}
        bodies = (bytes_of({name: part[k] for name, part in parts.items()}) for k in range(len(past.z)))
        return [self.signer.sign(base64.b64encode(body)).decode() for body in bodies]

    def open(self, token: str) -> Past:
        """What is in a token, without the batch dimension. BadSignature: forged, of another key or C, or too old; the message says which."""
        parts = tensors_of(base64.b64decode(self.signer.unsign(token, MAX_AGE)))
        return Past(*(parts[name].float() if parts[name].is_floating_point() else parts[name] for name in Past._fields))


# %% [markdown]
# ### The guard
#
# A camera can lie: noise, a dead picture, another robot's pictures. V would code them as it codes everything, and C would act on that. But M has an expectation. Before each push the guard asks three questions. **Did M expect this?** The squared distance between the code that V sees and the one that M foresaw, in units of M's own doubt, is about 1 per latent for an honest camera. **Does what follows look real?** The guard dreams three steps under the chosen push, before it is executed, and asks the verifier of part 9. **Does anything move?**
#
# If an answer is bad, the robot gets what it asked for: a refusal, or a push from M's *dream*, which goes on from the last believed picture as if the eyes were shut. After a jump M reads the pictures as a new film, and when nothing has been odd for three steps, the guard believes it again. **Predict:** which lie will it never catch?

# %% tags=["define", "extra"]
AHEAD = 3  # steps that the guard dreams before a push is executed
CALM = 3  # steps without anything odd after which pictures are believed again


class Limits(NamedTuple):
    """Beyond these the guard doubts."""

    surprise: float = math.inf
    confidence: float = 0.0
    still: float = math.inf


class Driver:
    """V, M, C, the verifier and the guard as one function of pictures and pasts."""

    def __init__(self, world: World, weights: Tensor, verifier: Verifier, limits: Limits | None = None) -> None:
        """`weights` (Z + H + 1,): C. `limits`: without them it believes everything."""
        self.world, self.weights, self.verifier, self.limits = world._replace(memory=None, codes=None), weights, verifier, limits or Limits()

    @torch.no_grad()
    def __call__(self, frames: Tensor, past: Past, guarded: Tensor) -> tuple[Tensor, Past, dict[str, Tensor]]:
        """Pushes (B,), the new pasts, and (B,) each: `believed`, `surprise`, `confidence`, `still`.

        `frames` (B, 4, 64, 64) uint8, oldest first; `guarded` (B,): where False, all is believed."""
        m, seen = self.world.m, self.world.v.encode(frames.float() / 255)[0]  # (B, Z)
        new = ~past.known[:, -1]  # (B,) a robot's first pictures: there is nothing to compare them with
        z = torch.cat([torch.where(new[:, None, None], seen[:, None], past.z), seen[:, None]], 1)  # (B, C + 1, Z)
        now = remembered(m, z, past.a, past.known)
        foreseen = now._replace(z=now.before + m.change(now.h), blind=now.blind + 1)
        surprise = ((seen - foreseen.z).square() / m.says(foreseen).log_var.exp()).mean(1)  # (B,)
        follows = dream(m, now, controller(self.weights), AHEAD)
        confidence = torch.stack([self.verifier(step.state) for step in follows]).amin(0).sigmoid()  # (B,)
        same = (frames[:, -1] == frames[:, -2]).flatten(1).all(1) & ~new  # (B,)
        still = torch.where(same, past.still.clamp(max=254) + 1, 0).to(torch.uint8)  # (B,)
        ask = guarded & ~new  # (B,)
        jump = ask & (surprise > self.limits.surprise)
        odd = jump | ask & ((confidence < self.limits.confidence) | (still > self.limits.still))
        quiet = torch.where(odd, 0, torch.where(new, CALM, past.quiet.clamp(max=254) + 1)).to(torch.uint8)  # (B,)
        believed = ~guarded | (quiet >= CALM)
        sizes = [part.shape[1] for part in now]
        state = State(*(torch.where(believed[:, None], *both) for both in zip(now, m.step(State(*past.alone.split(sizes, 1)), past.a[:, -1]))))
        push = act(self.weights[None], features(state)[None])[0]  # (B,)
        a, known = (torch.cat([old[:, 1:], last[:, None]], 1) for old, last in ((past.a, push), (past.known & ~jump[:, None], torch.ones_like(new))))
        return (
            push,
            Past(z[:, 1:], a, known, torch.cat(state, 1), quiet, still),
            {"believed": believed, "surprise": surprise, "confidence": confidence, "still": still},
        )


# %% [markdown]
# ### HTTP
#
# The service is a FastAPI app. `POST /act` takes four pictures (raw grey values in base64) and a token. What a request may be stands in one class, and what breaks it is answered with a 4xx and a sentence. Requests that arrive while others are computed are answered **together**, as one batch, because one product with a matrix for 32 robots is much cheaper than 32 products. `GET /metrics` counts in the format of Prometheus, and `/docs` shows it all.

# %% tags=["define", "extra"]
import asyncio
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
    frames: Base64Bytes = Field(min_length=LETTERS, max_length=LETTERS, description="four grey pictures of 64 × 64 bytes, oldest first, in base64")
    token: str = Field("", max_length=20_000, description="from the last answer; empty at a robot's beginning")
    in_doubt: Literal["dream", "refuse", "believe"] = Field("dream", description="what to do when the guard does not believe the pictures")

    @field_validator("frames")
    @classmethod
    def whole(cls, frames: bytes) -> bytes:
        """Letters that are no base64 are skipped in decoding: then bytes are missing."""
        if len(frames) != PICTURES:
            raise ValueError(f"these are {len(frames):,} bytes, not {PICTURES:,}")
        return frames


class Answer(BaseModel):
    """What it gets back."""

    push: int | None = Field(description="0: left, 1: right; null: refused")
    token: str = Field(description="to be sent with the next pictures")
    believed: bool = Field(description="does the guard believe the pictures?")
    surprise: float = Field(description="how far they are from what M foresaw; about 1 or less is well")
    confidence: float = Field(description="the verifier's, in what follows from them")
    still: int = Field(description="steps for which the picture has not changed")


class Together:
    """Answers what arrives at the same time as one batch: while one batch is computed, the next one gathers."""

    def __init__(self, work: Callable[[list], list]) -> None:
        """`work`: computes many at once."""
        self.work, self.waiting, self.task = work, [], None

    async def __call__(self, item: Any) -> Any:
        """The result for one item; whatever error `work` raises."""
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
                if not future.done():  # its robot may have hung up
                    future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)


# %% tags=["define", "extra"]
def make_app(driver: Driver, key: bytes) -> FastAPI:
    """The service. `key` signs the tokens: all replicas need the same."""
    torch.set_num_threads(1)  # one core per replica
    app, seal, first, registry = FastAPI(title="A world model at the wheel"), Seal(key, driver.weights), begun(driver.world), CollectorRegistry()
    count, size = (
        Counter("pushes", "answers", ["verdict"], registry=registry),
        Histogram("batch", "requests in a batch", buckets=(1, 4, 16, 64), registry=registry),
    )
    seconds = Histogram("seconds", "to compute a batch", registry=registry)

    def answers(asked: list[tuple[Ask, Past]]) -> list[Answer]:
        """A batch of answers."""
        size.observe(len(asked))
        with seconds.time():
            frames = torch.frombuffer(bytearray(b"".join(ask.frames for ask, _ in asked)), dtype=torch.uint8).view(-1, STACK, FRAME_SIZE, FRAME_SIZE)
            past = Past(*(torch.stack(parts).to(DEVICE) for parts in zip(*(past for _, past in asked))))
            guarded = torch.tensor([ask.in_doubt != "believe" for ask, _ in asked], device=DEVICE)
            push, after, found = driver(frames.to(DEVICE), past, guarded)
        lines = [dict(zip(found, values)) for values in zip(*(part.tolist() for part in found.values()))]
        refused = [ask.in_doubt == "refuse" and not line["believed"] for (ask, _), line in zip(asked, lines)]
        return [Answer(push=None if no else a, token=token, **line) for no, a, token, line in zip(refused, push.tolist(), seal.close(after), lines)]

    together = Together(answers)

    @app.middleware("http")
    async def short(request: Request, go_on: Callable) -> Response:
        """Only bodies that say their length, and are not too long, are read."""
        length = request.headers.get("content-length", "")
        if request.method != "POST" or length.isdigit() and int(length) <= LARGEST:
            return await go_on(request)
        return JSONResponse({"detail": f"a body of at most {LARGEST:,} bytes, and its length in the header, please"}, 413 if length else 411)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong, without repeating what was sent: that may be long, or no JSON at all."""
        return JSONResponse({"detail": [{"at": [str(place)[:50] for place in one["loc"]], "problem": one["msg"]} for one in error.errors()]}, 422)

    @app.post("/act", responses={401: {"description": "bad token"}, 411: {"description": "no length"}, 413: {"description": "too long"}})
    async def push_for(ask: Ask) -> Answer:
        """One push for one robot."""
        try:
            past = seal.open(ask.token) if ask.token else first
        except BadSignature as error:
            raise HTTPException(401, f"bad token: {error}; begin anew without one") from error
        answer = await together((ask, past))
        count.labels("refused" if answer.push is None else "believed" if answer.believed else "doubted").inc()
        return answer

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """Is the service there?"""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """What happened so far, in this replica."""
        return Response(generate_latest(registry), media_type="text/plain")

    return app


# %% [markdown]
# ### Two ways to serve, one client
#
# `uvicorn` serves an app in one process; two of them can share a socket, and the kernel gives each new connection to one of them. **Ray Serve** does more: it starts replicas by load, watches them, replaces those that die, and spreads single requests. The app is the same. On two A10 GPUs each replica would take one (`num_gpus=1`), and nothing else would change.
#
# The client is a policy like any other, so `play` runs it: the real CartPole on one side, the service on the other, HTTP between them.

# %% tags=["define", "extra"]
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import httpx


@contextlib.contextmanager
def served(driver: Driver, key: bytes, replicas: int = 1) -> Iterator[tuple[str, Callable[[], list]]]:
    """uvicorn, one process per replica, all on one socket: its address, and a function that lists the processes. They end with the block. TimeoutError: none answers."""

    def serve(handle: int) -> None:
        """What a replica does until it is told to stop."""
        import uvicorn

        uvicorn.run(make_app(driver, key), fd=handle, log_level="error", access_log=False)

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, tempfile.TemporaryDirectory() as folder:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # uvicorn takes a given socket for no TCP, and small answers would wait 40 ms
        work = Path(folder) / "serve.pkl"
        work.write_bytes(cloudpickle.dumps(serve))  # a new process knows nothing of this notebook: the function travels with all that it needs
        call = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))(int(sys.argv[2]))"
        command = [sys.executable, "-W", "ignore", "-c", call, str(work), str(listener.fileno())]
        processes = [subprocess.Popen(command, pass_fds=[listener.fileno()]) for _ in range(replicas)]
        try:
            yield healthy(f"http://127.0.0.1:{listener.getsockname()[1]}"), lambda: processes
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(20)


@contextlib.contextmanager
def served_by_ray(driver: Driver, key: bytes, replicas: int = 2) -> Iterator[tuple[str, Callable[[], list]]]:
    """Ray Serve, with one to `replicas` replicas, as the load asks for: its address, and a function that lists their processes. They end with the block."""
    import psutil
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="error")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        scale = {"min_replicas": 1, "max_replicas": replicas, "target_ongoing_requests": 16, "upscale_delay_s": 2}
        deployment = serve.deployment(autoscaling_config=scale, max_ongoing_requests=200, ray_actor_options={"num_cpus": 1})
        serve.run(deployment(serve.ingress(lambda: make_app(driver, key))(type("Service", (), {}))).bind())
        yield healthy(f"http://127.0.0.1:{port}"), lambda: [process for process in psutil.process_iter(["name"]) if "ServeReplica" in process.info["name"]]
    finally:
        serve.shutdown()
        ray.shutdown()


def healthy(address: str, seconds: float = 60) -> str:
    """Wait until a service answers; its address. TimeoutError: it doesn't."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(address + "/healthz").is_success:
                return address
        time.sleep(0.1)
    raise TimeoutError(f"no service at {address} after {seconds:.0f} s")


class Remote:
    """A policy that lives behind an address. It sends four frames and a token, and gets a push and the next token."""

    def __init__(self, address: str, in_doubt: str = "dream", lie: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda stacks, steps: stacks) -> None:
        """`lie`: what becomes of the stacks (W, 4, 64, 64) of robots that are `steps` (W,) old, on their way."""
        self.client, self.in_doubt, self.lie, self.stack, self.answers = httpx.Client(base_url=address, timeout=60), in_doubt, lie, None, []

    def ask(self, stack: np.ndarray, token: str) -> dict:
        """One robot's request."""
        body = {"frames": base64.b64encode(stack.tobytes()).decode(), "token": token, "in_doubt": self.in_doubt}
        return self.client.post("/act", json=body).raise_for_status().json()

    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One push per environment, (W,); where the service refuses, a push to the left. The true states are not used."""
        if self.stack is None:
            self.stack, self.steps, self.tokens = np.repeat(frames[:, None], STACK, 1), np.zeros(len(frames), int), [""] * len(frames)
        self.stack = np.where(fresh[:, None, None, None], frames[:, None], np.concatenate([self.stack[:, 1:], frames[:, None]], 1))  # (W, 4, 64, 64)
        self.steps = np.where(fresh, 0, self.steps + 1)
        tokens = ["" if new else token for new, token in zip(fresh, self.tokens)]
        with ThreadPoolExecutor(len(frames)) as pool:
            answers = list(pool.map(self.ask, self.lie(self.stack, self.steps), tokens))
        self.tokens = [answer.pop("token") for answer in answers]
        self.answers += [{"seed": seed, "step": int(step)} | answer for seed, step, answer in zip(seeds, self.steps, answers)]
        return np.array([answer["push"] or 0 for answer in answers])


# %% [markdown]
# ### Cameras that lie
#
# In 10 of each 100 steps the camera lies, in one of five ways: strong noise; a picture that stays; another robot's pictures; the four pictures in the wrong order; all black. Robots drive with the guard, and without. The limits are set beforehand on honest episodes of their own, so that each of the three questions doubts 1 % of all stretches of ten steps. How often is a lie caught within its ten steps, and how often does the guard cry wolf in ten honest ones? **Predict** which lie does no harm.

# %% tags=["define", "extra"]
LIES = ("none", "noise", "frozen", "another robot's", "backwards", "black")
LIE_FROM, LIE_FOR, LIE_EVERY = 60, 10, 100  # steps


class Lies:
    """A camera that lies now and then: it shows other stacks (W, 4, 64, 64) than the true ones."""

    def __init__(self, kind: str) -> None:
        """`kind`: one of LIES."""
        self.kind, self.luck, self.last = LIES.index(kind), np.random.default_rng(0), None

    def __call__(self, stacks: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """`steps` (W,): how old the robots are."""
        age = (steps % LIE_EVERY - LIE_FROM)[:, None, None, None]  # (W, 1, 1, 1) of the lie
        lying = (age >= 0) & (age < LIE_FOR) & (self.kind > 0)
        self.last = stacks[:, -1:] if self.last is None else np.where(lying, self.last, stacks[:, -1:])  # (W, 1, 64, 64) the last honest picture
        noisy = np.clip(stacks + self.luck.normal(0, 80, stacks.shape), 0, 255).astype(np.uint8)
        frozen = np.where(np.arange(STACK)[:, None, None] < STACK - 1 - age, stacks, self.last)  # the last one stays, the older ones are still true
        return np.where(lying, (stacks, noisy, frozen, np.roll(stacks, 1, 0), stacks[:, ::-1], np.zeros_like(stacks))[self.kind], stacks)


def stretches(answers: list[dict]) -> dict[tuple[int, int], list[dict]]:
    """Answers by episode and ten steps: (seed, number of the stretch) -> its ten answers; without the first ten steps and without what is cut off."""
    found: dict[tuple[int, int], list[dict]] = {}
    for answer in answers:
        found.setdefault((answer["seed"], answer["step"] // 10), []).append(answer)
    return {(seed, tenth): ten for (seed, tenth), ten in found.items() if tenth > 0 and len(ten) == 10}


def limits_of(answers: list[dict], doubted: float = 0.01) -> Limits:
    """The limits which each doubt that share of honest stretches of ten steps."""
    ends = [
        (max(one["surprise"] for one in ten), min(one["confidence"] for one in ten), max(one["still"] for one in ten)) for ten in stretches(answers).values()
    ]
    surprise, confidence, still = np.array(ends).T
    return Limits(float(np.quantile(surprise, 1 - doubted)), float(np.quantile(confidence, doubted)), float(np.quantile(still, 1 - doubted)))


def try_guard(progress: Progress, driver: Driver, *, seed: int, episodes: int, steps: int) -> dict:
    """The service as robots meet it, whose cameras lie: returns with and without the guard, alarms, and `limits`."""
    key, lines = secrets.token_bytes(32), []

    def drive(address: str, purpose_seed: int, in_doubt: str, lie: Callable | None = None) -> tuple[float, list[dict]]:
        """Mean return of some episodes, and all answers."""
        robots = Remote(address, in_doubt, *filter(None, [lie]))
        played = play(robots, seeds_for("roads", purpose_seed, episodes), episodes, steps=steps)
        return float(np.mean([len(episode.actions) for episode in played])), robots.answers

    with served(driver, key) as (address, _):
        limits = limits_of(drive(address, seed + 1, "believe")[1])
    with served(Driver(driver.world, driver.weights, driver.verifier, limits), key) as (address, _):
        for kind in LIES:
            without, _ = drive(address, seed + 2, "believe", Lies(kind))
            guarded, answers = drive(address, seed + 2, "dream", Lies(kind))
            doubts = {place: not all(one["believed"] for one in ten) for place, ten in stretches(answers).items()}
            during = [doubt for (_, tenth), doubt in doubts.items() if 10 * tenth % LIE_EVERY == LIE_FROM]
            before = [doubt for (_, tenth), doubt in doubts.items() if kind == "none" or 10 * tenth < LIE_FROM]  # honest ones
            caught, wolf = (round(float(np.mean(values)), 3) if values else math.nan for values in (during, before))
            lines.append({"camera": kind, "return without guard": without, "return with guard": guarded, "caught": caught, "cried wolf": wolf})
    return {"lines": lines, "limits": list(limits)}


# %% tags=["run", "extra"]
steered = Driver(int8_world, ship, quantised(verifier))
guard_settings = {"seed": settings.seed, "episodes": 2 if settings.evaluate.episodes < 20 else 20, "steps": 80 if settings.evaluate.episodes < 20 else 500}
guard_stage = keep(try_guard, steered, after=(c_stage, verifier_stage), name="guard", **guard_settings) if "engineer" in live else None
guard_table = table_of("engineer_guard", guard_stage.result["lines"] if guard_stage else [])
guard_table

# %% tags=["run", "extra"]
if len(guard_table):
    plt.figure(figsize=(9, 3.2))
    for guard_shift, guard_how, guard_look in ((-0.2, "without guard", {"color": ORANGE, "hatch": "//"}), (0.2, "with guard", {"color": BLUE})):
        guard_heights = guard_table[f"return {guard_how}"].astype(float)
        plt.bar(np.arange(len(guard_table)) + guard_shift, guard_heights, 0.38, label=guard_how, edgecolor="white", **guard_look)
    plt.xticks(range(len(guard_table)), guard_table["camera"])
    plt.gca().set(xlabel="what the camera shows in 10 of each 100 steps", ylabel="return (steps)", title="What a lying camera costs, over HTTP", ylim=(0, 600))
    plt.legend(ncols=2, loc="upper center")
    plt.show()

# %% [markdown]
# TEXT-GUARD
#
# ### Load
#
# `python tests/load.py` made this table, with the checkpoint. Each client asks again as soon as it has its answer, like a robot with a recorded film. All of it shares two cores: the clients, the replicas, and what Ray Serve puts between them. In the last lines one of two replicas is killed in the middle; a request that fails is sent again, with the same token. **Predict:** do two replicas answer twice as many requests here?

# %% tags=["run", "extra"]
load_table = table_of("engineer_load", [])
load_table

# %% tags=["run", "extra"]
load_axes = {"xlabel": "clients", "xscale": "log", "yscale": "log"}
load_panels = [load_axes | {"lines": {}, "ylabel": what} for what in ("p99 (ms)", "per second")]
load_groups = load_table[load_table["killed"].astype(int) == 0].groupby(["server", "replicas"]) if len(load_table) else []
for (load_server, load_replicas), load_rows in load_groups:
    for load_panel in load_panels:
        load_line = (load_rows["clients"].astype(int), load_rows[load_panel["ylabel"]].astype(float), "o-" if load_server == "uvicorn" else "s--")
        load_panel["lines"][f"{load_server}, {load_replicas} of it"] = load_line
if len(load_table):
    plot(*load_panels, title="Clients and service on the same two cores")

# %% [markdown]
# TEXT-LOAD
#
# <details><summary><b>Exercise 9.</b> EXERCISE (Solution)</summary>
#
# SOLUTION
# </details>

