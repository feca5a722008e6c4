"""The core, plainer (changes stage keys). Run in a checkout: python .draft/core2.py"""
import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()


def rep(cell, *pairs):
    s = b.source(cell)
    for o, n in pairs:
        assert s.count(o) == 1, (cell, o, s.count(o))
        s = s.replace(o, n)
    b.set(cell, s)


# --- the room
rep("define-contextlib", ('''from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
''', ""))
rep("define-shrink", ('''    return np.asarray(resize(blue, [FRAME_SIZE, FRAME_SIZE], InterpolationMode.BOX))''',
'''    return np.asarray(blue.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BOX))'''))

# --- play
b.set("define-episode", '''class Episode(NamedTuple):
    """One real episode of T steps."""

    seed: int
    frames: np.ndarray  # (T + 1, 64, 64) uint8
    states: np.ndarray  # (T + 1, 4) float32: x, ẋ, θ, θ̇; for measurements only
    actions: np.ndarray  # (T,) int64: 0 pushes left, 1 pushes right
    rewards: np.ndarray  # (T,) float32
    terminated: bool  # the pole fell or the cart left the screen
    truncated: bool  # 500 steps were over


class Scene(NamedTuple):
    """What a policy is shown: W environments side by side, each in an episode of its own."""

    fresh: np.ndarray  # (W,) True where the episode has just begun
    frames: np.ndarray  # (W, 64, 64) uint8
    states: np.ndarray  # (W, 4): for measurements, and for rivals that may look
    luck: list[np.random.Generator]  # W: an episode's coins depend on its seed alone


Policy = Callable[[Scene], np.ndarray]  # returns W pushes


def threads(count: int) -> contextlib.ExitStack:
    """Let PyTorch use so many threads, inside a `with`."""
    later = contextlib.ExitStack()
    later.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(count)
    return later''')
b.set("define-play", '''def play(
    policy: Policy,
    seeds: list[int],
    workers: int,
    label: str | None = None,
    **how: Any,
) -> list[Episode]:
    """Play one real episode per seed, in the order of `seeds`, W at a time: W = `workers`
    environments side by side, each in a process of its own.

    The policy decides for all of them at once. The same seed and policy give the same episode; a
    copy of the policy plays, so what it remembers ends with the play. `label`: of the progress bar.
    `how`: goes to `pixel_cartpole`."""
    policy = copy.copy(policy)
    workers = min(workers, len(seeds))
    vector = gym.vector.AsyncVectorEnv if workers > 1 else gym.vector.SyncVectorEnv
    envs = vector(
        [functools.partial(pixel_cartpole, **how)] * workers,
        autoreset_mode=gym.vector.AutoresetMode.DISABLED,
    )
    waiting = iter(range(len(seeds)))
    turns = [0] * workers  # whose turn it is in each environment: a place in `seeds`
    begun, luck = [[]] * workers, [None] * workers  # what has happened there so far, and its coins
    played: dict[int, Episode] = {}  # place -> episode
    over = np.ones(workers, bool)  # (W,) whose environment is free for the next episode
    bar = progress_bar(total=len(seeds), label=label, unit="episode")
    try:
        # One thread is enough for whoever decides: idle ones would take the cores from the
        # renderers.
        with threads(1), bar:
            while len(played) < len(seeds):
                fresh = over
                for k in np.flatnonzero(fresh):
                    # Where no seed is left, the first is played again, for nothing.
                    turns[k], begun[k] = next(waiting, 0), []
                    luck[k] = np.random.default_rng([seeds[turns[k]], 1])  # 1: not the reset's own
                if fresh.any():
                    crew = [seeds[place] for place in turns]
                    seen, _ = envs.reset(seed=crew, options={"reset_mask": fresh})
                now = Scene(fresh, seen["frame"], seen["state"], luck)
                pushes = policy(now)
                seen, rewards, terminated, truncated, _ = envs.step(pushes)
                over = terminated | truncated  # (W,)
                for k, place in enumerate(turns):
                    begun[k].append((now.frames[k], now.states[k], pushes[k], rewards[k]))
                    if over[k] and place not in played:
                        frames, states, a, r = zip(*begun[k])
                        played[place] = Episode(
                            seeds[place],
                            np.stack([*frames, seen["frame"][k]]),
                            np.stack([*states, seen["state"][k]]),
                            np.array(a, np.int64),
                            np.array(r, np.float32),
                            bool(terminated[k]),
                            bool(truncated[k]),
                        )
                        bar.update()
    finally:
        # `close` would wait for ever if an interrupt came between a question and its answer.
        for process in getattr(envs, "processes", ()):
            process.kill()
            process.join()
        envs.closed = True
    return [played[place] for place in range(len(seeds))]''')
s = b.source("define-randompolicy")
b.set("define-randompolicy", '''def random_policy(now: Scene) -> np.ndarray:
    """Push left or right by a coin flip."""
    return np.array([coin.integers(2) for coin in now.luck])


''' + s[s.index("PURPOSES ="):])
rep("define-linear-rule", ('''def linear_rule(
    weights: tuple, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list
) -> np.ndarray:''', '''def linear_rule(weights: tuple, now: Scene) -> np.ndarray:'''), ("(states @ np.array", "(now.states @ np.array"))
rep("run-coin-episode", ("RandomPolicy(123)", "random_policy"))
rep("run-collect-settings", ("RandomPolicy(settings.seed)", "random_policy"))
rep("run-test-settings", ("RandomPolicy(settings.seed)", "random_policy"))
rep("run-fresh-settings", ("RandomPolicy(settings.seed + 1)", "random_policy"))
rep("define-remote", ('''    def __call__(
        self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list
    ) -> np.ndarray:
        """One push per environment, (W,); where the service refuses, a push to the left. The true
        states are not used."""
        if fresh.all():
            self.stack, self.steps, self.tokens = (
                np.repeat(frames[:, None], STACK, 1),
                np.zeros(len(frames), int),
                [""] * len(frames),
            )
''', '''    def __call__(self, now: Scene) -> np.ndarray:
        """One push per environment, (W,); where the service refuses, a push to the left. The true
        states are not used."""
        fresh, frames = now.fresh, now.frames
        if fresh.all():
            self.stack = np.repeat(frames[:, None], STACK, 1)
            self.steps, self.lives = np.zeros((2, len(frames)), int)
            self.tokens = [""] * len(frames)
'''), ('''        self.steps = np.where(fresh, 0, self.steps + 1)
''', '''        self.steps = np.where(fresh, 0, self.steps + 1)
        numbers = self.lives.max() + 1 + np.arange(len(frames))  # of lives that begin now
        self.lives = np.where(fresh, numbers, self.lives)
'''), ('''            {"seed": seed, "step": int(step)} | answer
            for seed, step, answer in zip(seeds, self.steps, answers)''', '''            {"life": int(life), "step": int(step)} | answer
            for life, step, answer in zip(self.lives, self.steps, answers)'''))
rep("define-lies", ('''"""Answers by episode and ten steps: (seed, number of the stretch)''', '''"""Answers by episode and ten steps: (life, number of the stretch)'''), ('(answer["seed"], answer["step"] // 10)', '(answer["life"], answer["step"] // 10)'), ("(seed, tenth): ten for (seed, tenth), ten in", "(life, tenth): ten for (life, tenth), ten in"))

# --- memory
b.delete("define-columns-seen")
s = b.source("define-memory")
s = s.replace('''    def __init__(
        self, episodes: list[Episode], max_shift: int, device: torch.device, own: int = 0
    ) -> None:
        """`max_shift`: the largest sideways shift, in pixels, that `stack` will be asked for.
        `own`: so many last episodes are the controller's own; half of all draws fall on them."""
''', '''    def __init__(self, episodes: list[Episode], max_shift: int, device: torch.device) -> None:
        """`max_shift`: the largest sideways shift, in pixels, that `stack` will be asked for."""
''')
s = s.replace('''        columns = torch.arange(-max_shift, FRAME_SIZE + max_shift).clamp(0, FRAME_SIZE - 1)
        padded = (episode.frames[:, :, columns.numpy()] for episode in episodes)
        self.padded = flat(padded)  # (N, 64, 64 + 2·shift) uint8
''', '''        columns = np.arange(-max_shift, FRAME_SIZE + max_shift).clip(0, FRAME_SIZE - 1)
        padded = (episode.frames[:, :, columns] for episode in episodes)
        self.padded = flat(padded)  # (N, 64, 64 + 2·shift) uint8
''')
i, j = s.index("        self.rows = torch"), s.index("        self.lengths")
s = s[:i] + s[j:]
i = s.index("        # A pole that fell")
s = s[:i] + '''        # The rows from which one draws: all, each once. Whoever wants some more often, or not at
        # all, changes them.
        self.rows = torch.arange(len(self.padded), device=device)  # (N,)
        # A pole that fell counts as an end; a clock that ran out (truncation) does not.
        terminated = torch.tensor([episode.terminated for episode in episodes], device=device)
        self.done = terminated[self.episode] & (self.rows == self.last)  # (N,)

    def __len__(self) -> int:
        """The number of frames, N."""
        return len(self.padded)

    def stack(
        self,
        rows: Tensor,
        shift: Tensor | None = None,
        mirror: Tensor | None = None,
        band: slice = slice(None),
    ) -> Tensor:
        """The observations X_t for row numbers (B,): (B, 4, R, 64) float32 in [0, 1], the newest
        frame last; before the start of an episode its frame 0 is repeated.

        Each seen `shift` (B,) pixels further left, and flipped where `mirror` (B,) is True. `band`:
        the R pixel rows wanted, if not all 64."""
        back = torch.arange(STACK - 1, -1, -1, device=self.device)
        stack = torch.maximum(rows[:, None] - back, self.first[rows][:, None])  # (B, 4)
        begin = self.max_shift + (0 * rows if shift is None else shift)[:, None]  # (B, 1)
        windows = self.padded[:, band].unfold(2, FRAME_SIZE, 1)  # (N, R, 2·shift + 1, 64)
        x = windows[stack, :, begin]  # (B, 4, R, 64) uint8
        if mirror is not None:
            x = torch.where(mirror[:, None, None, None], x.flip(-1), x)
        return x.float() / 255'''
b.set("define-memory", s)

# --- V
rep("define-v", ('''    def __init__(self, settings: VSettings, mean_picture: Tensor | None = None) -> None:
        """`mean_picture`: (64, 64) mean of the training frames. V works on the difference to it:
        what never moves is 0 then."""
        super()''', '''    def __init__(self, settings: VSettings) -> None:
        """Untrained, of the sizes in the settings."""
        super()'''), ('''        nothing = torch.zeros(FRAME_SIZE, FRAME_SIZE)
        self.register_buffer("mean_picture", nothing if mean_picture is None else mean_picture)
''', '''        # The mean of the training frames. V works on the difference to it: what never moves is 0.
        self.register_buffer("mean_picture", torch.zeros(FRAME_SIZE, FRAME_SIZE))
'''), ('''        return ((band - self.mean_picture[self.band]) * PIXEL_SCALE).contiguous(
            memory_format=torch.channels_last
        )
''', '''        return (band - self.mean_picture[self.band]) * PIXEL_SCALE
'''), ('''self.encoder(self.normalise(x)).contiguous().flatten(1)''', '''self.encoder(self.normalise(x)).flatten(1)'''), ('''        return self.decoder(features.contiguous(memory_format=torch.channels_last))''', '''        return self.decoder(features)'''))
b.set("define-random-views", '''def random_views(
    count: int, max_shift: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A random shift (pixels) and mirror flag for each of `count` observations or episodes, both
    (count,)."""
    shift = torch.randint(-max_shift, max_shift + 1, (count,), generator=generator)
    mirror = torch.randint(0, 2, (count,), generator=generator).bool()
    return shift.to(device), mirror.to(device)


def train_v(
    progress: Progress, memory: Memory, *, v: VSettings, seed: int, mean_reduced: bool = False
) -> dict:
    """Train V on single observations, each twice in a batch, under two shifts. `mean_reduced`: the
    classic mistake, for the exhibit."""
    torch.manual_seed(seed)
    luck = torch.Generator().manual_seed(seed)
    model, count = V(v).to(memory.device), v.batch // 2
    some = memory.rows[torch.randint(len(memory), (4096,), generator=luck)]
    model.mean_picture.copy_(
        memory.stack(some, *random_views(4096, v.max_shift, luck, memory.device)).mean((0, 1))
    )

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one random batch, and what to log."""
        rows = memory.rows[torch.randint(len(memory), (count,), generator=generator).repeat(2)]
        shift, mirror = random_views(len(rows), v.max_shift, generator, memory.device)  # (B,) each
        mirror = mirror[:count].repeat(2)
        x = memory.stack(rows, shift, mirror, model.band)  # (B, 4, R, 64)
        noise = torch.randn(len(rows), v.latents, generator=generator).to(memory.device)  # (B, Z)
        terms, mu = elbo(model, x, noise, kl_weight=min(1.0, step / v.ramp_steps))
        loss = terms["error"] + terms["kl"] if mean_reduced else terms["loss"]
        # A mirrored picture moves the other way.
        terms["broken"] = shift_law_broken(mu, torch.where(mirror, -shift, shift))
        # 0.001: the logarithm of 0 is not a number.
        return loss + v.law * torch.log(terms["broken"] + 1e-3), terms

    return fit(model, batch_loss, v, seed, progress, "V")


def encode_rows(v: V, memory: Memory, rows: Tensor, *views: Tensor) -> tuple[Tensor, Tensor]:
    """μ and log σ² of a frozen V for some rows of the memory, each (B, Z), computed 1,024 at a
    time. `views`: shift and mirror, (B,) each, if any."""
    parts = []
    for at in torch.arange(len(rows), device=memory.device).split(1024):
        x = memory.stack(rows[at], *(view[at] for view in views), band=v.band)
        parts.append(v.encode(x))
    return tuple(map(torch.cat, zip(*parts)))''')
s = b.source("run-v-log")
assert 'if "broken" in v_log:' in s, s

# --- M
rep("define-m", ('''        # All four gates in one matrix product.
        self.gates = nn.Linear(2 * latents + pushes + hidden, 4 * hidden)
''', '''        self.lstm = nn.LSTMCell(2 * latents + pushes, hidden)
'''), ('''        for part in self.gates.parameters():
            nn.init.uniform_(part, -(hidden**-0.5), hidden**-0.5)
''', ""), ('''        gates = self.gates(torch.cat([z, self.CHANGE * (z - before), push, h], 1))  # (B, 4H)
        i, f, o = gates[:, self.hidden :].sigmoid().chunk(3, 1)  # (B, H) each
        c = f * c + i * gates[:, : self.hidden].tanh()
        h = o * c.tanh()
''', '''        reads = torch.cat([z, self.CHANGE * (z - before), push], 1)  # (B, 2Z + P)
        h, c = self.lstm(reads, (h, c))  # (B, H) each
'''))
rep("define-step", ('''def stacked(parts: list) -> Any:
    """T tensors (B, …), or T tuples of such, as one tensor (B, T, …), or one tuple."""
    if isinstance(''', '''def stacked(parts: Iterable) -> Any:
    """T tensors (B, …), or T tuples of such, as one tensor (B, T, …), or one tuple."""
    parts = list(parts)
    if isinstance('''))
rep("define-m-losses", ("m.says(stacked(list(lived)))", "m.says(stacked(lived))"))
rep("run-film-long", ("stacked(list(film_lives))", "stacked(film_lives)"))
rep("run-wake-film", ("stacked(list(dream(world.m, start, asleep, steps)))", "stacked(dream(world.m, start, asleep, steps))"))
rep("define-live-on", ("stacked(list(dream(world.m, starts, controller(weights), steps)))", "stacked(dream(world.m, starts, controller(weights), steps))"))
rep("define-strict", ("stacked(list(dream(world.m, starts.pick(slice(16)), given(pushes), 30)))", "stacked(dream(world.m, starts.pick(slice(16)), given(pushes), 30))"))
rep("define-bench-school", ("stacked(list(dream(self.world.m, begin, noted, horizon)))", "stacked(dream(self.world.m, begin, noted, horizon))"), ('"""As `learn` does it.', '"""As `train_c` does it.'))
rep("define-train-m", ('''    starts = memory.rows[memory.rows < memory.last]  # rows that have a next step
''', '''    starts = memory.rows[memory.rows < memory.last[memory.rows]]  # rows that have a next step
'''), ('''        read, start = length, memory.draw(starts, how.batch, generator)[:, None]  # (B, 1)
''', '''        read = length
        start = starts[torch.randint(len(starts), (how.batch, 1), generator=generator)]  # (B, 1)
'''))
rep("define-world", ('''        parts = []
        for row, view in zip(rows[:, None].split(8192), copies[:, None].split(8192)):
            first = self.memory.first[row]  # (S, 1)
            known, back = row + offsets >= first, torch.maximum(row + offsets, first)  # (S, C + 1)
            z, a = self.codes.mu[view, back], self.codes.actions[view, back]
            parts.append(remembered(self.m, z, a, known))
        return State(*map(torch.cat, zip(*parts)))
''', '''        at = copies[:, None], torch.maximum(rows + offsets, first)  # (S, 1), (S, C + 1)
        return remembered(self.m, self.codes.mu[at], self.codes.actions[at], rows + offsets >= first)
'''), ('''        copies = torch.as_tensor(copies, device=rows.device).expand(len(rows))
        offsets =''', '''        copies = torch.as_tensor(copies, device=rows.device).expand(len(rows))
        rows, first = rows[:, None], self.memory.first[rows][:, None]  # (S, 1) each
        offsets ='''), ('''        copies: int = 0,
        episodes: range | None = None,
    ) -> tuple[Tensor, Tensor]:
        """At most `count` random rows (S,) with a few real steps before and `ahead` after them, and
        copies (S,), 0: of all. ValueError: no episode is long enough."""
        memory = self.memory
        rows, back, left = memory.rows, memory.rows - memory.first, memory.last - memory.rows
        if episodes:
            its = (memory.episode >= episodes.start) & (memory.episode < episodes.stop)
            rows, back, left = rows[its], back[its], left[its]
''', '''        copies: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Moments to begin in: at most `count` random rows (S,) with a few real steps before and
        `ahead` after them, each in one of the first `copies` copies (S,), or (0) in any. ValueError:
        no episode is long enough."""
        rows = self.memory.rows
        back, left = rows - self.memory.first[rows], self.memory.last[rows] - rows  # (N,) each
'''), ('''        rows = memory.draw(rows, min(count, copies * len(rows)), generator)
        return rows, torch.randint(copies, (len(rows),), generator=generator).to(rows.device)''', '''        count = min(count, copies * len(rows))
        rows = rows[torch.randint(len(rows), (count,), generator=generator)]
        return rows, torch.randint(copies, (count,), generator=generator).to(rows.device)'''))

# --- C
b.set("define-make-cma", '''import nevergrad as ng

SIGMA = 0.5  # first step size of CMA-ES; for a linear C only a change of scale (exercise 6)


def make_cma(dimensions: int, c: CSettings, seed: int) -> Any:
    """CMA-ES from nevergrad, without its silent restarts. The mean of its search, `es.mean`, is
    steadier than `recommend()`, which returns the luckiest single candidate."""
    make = ng.optimizers.ParametrizedCMA(scale=SIGMA, popsize=c.population)
    size = c.population
    optimizer = make(dimensions, budget=c.generations * size, num_workers=size)
    optimizer.parametrization.random_state = np.random.RandomState(seed)
    # pycma has stop criteria, and nevergrad answers a stop by starting anew from the first point
    # without a word. Since only the direction of a linear C matters, its scale drifts upwards: at a
    # thousand times the first σ one of them fires.
    optimizer.es.stop = dict
    return optimizer''')
rep("define-search-space", ("    return (torch.baddbmm(weights[:, -1:, None], read, weights[:, :-1, None])[..., 0] > 0).long()", "    return ((read @ weights[:, :-1, None])[..., 0] + weights[:, -1:] > 0).long()"), ('"""π for P controllers at once: push right', '"""P controllers at once: push right'))
b.set("define-agent", '''def moved_on(window: Tensor, newest: Tensor) -> Tensor:
    """A window (W, K, …) without its oldest entry, and with a newest one, (W, …)."""
    return torch.cat([window[:, 1:], newest[:, None]], 1)


class Agent:
    """C in the real world, a policy for `play`: V reads the last four frames, M the last few steps
    (as at the beginning of a dream), C acts on (z, h)."""

    def __init__(self, world: World, choose: Choose, exploration: float = 0.0) -> None:
        """`choose`: who acts, as in a dream. In a share `exploration` of the steps a coin decides
        instead."""
        self.v, self.m, self.context = world.v, world.m, world.context
        self.choose, self.exploration = choose, exploration

    @torch.no_grad()
    def __call__(self, now: Scene) -> np.ndarray:
        """One push (0 or 1) per environment, (W,). The true states are not used."""
        frame, new = (torch.from_numpy(part).to(DEVICE) for part in (now.frames, now.fresh))
        if new.all():  # a play begins, perhaps with another number of environments than the last
            shape = len(frame), self.context + 1, self.m.change.out_features
            self.stack = frame[:, None].repeat(1, STACK, 1, 1)  # (W, 4, 64, 64)
            self.z = torch.zeros(shape, device=DEVICE)  # (W, C + 1, Z)
            self.a = torch.zeros(shape[:2], device=DEVICE)  # (W, C + 1)
            self.known = self.a.bool()  # (W, C + 1)
        self.stack = moved_on(self.stack, frame)
        self.stack[new] = frame[new, None]  # before the first frame was the same one
        z = self.v.encode(self.stack.float() / 255)[0]  # (W, Z)
        self.z = moved_on(self.z, z)
        self.z[new] = z[new, None]
        self.known = moved_on(self.known, torch.ones_like(new))
        self.known[new, :-1] = False
        self.a = self.a.roll(-1, 1)  # its last column, the push to come, is not read yet
        coins = np.array([coin.random(2) for coin in now.luck])  # (W, 2): whether, and what
        explores, tossed = coins[:, 0] < self.exploration, coins[:, 1] < 0.5
        push = np.where(explores, tossed, self.push(new).long().cpu())  # (W,)
        self.a[:, -1] = torch.from_numpy(push)
        return push

    def push(self, new: Tensor) -> Tensor:
        """The pushes now, (W,). `new` (W,): whose episode has just begun."""
        return self.choose(0, remembered(self.m, self.z, self.a, self.known))


def lives(
    policy: Policy, purpose: str, seed: int, episodes: int, workers: int, steps: int = 500
) -> list[float]:
    """Real returns of a policy on the seeds of one purpose, in episodes of at most so many
    steps."""
    played = play(policy, seeds_for(purpose, seed, episodes), workers, steps=steps)
    return [float(len(episode.actions)) for episode in played]''')
rep("define-evolve", ('''LOOK_STEPS = 200  # of a look at the real world: a thermometer need not be long


''', ""), ('''torch.from_numpy(np.float32(cma_mean(optimizer))).to(DEVICE)''', '''torch.from_numpy(np.float32(optimizer.es.mean)).to(DEVICE)'''))
b.set("define-learn", '''def train_c(
    progress: Progress | None,
    world: World,
    pays: Callable = reward,
    reads: Callable = features,
    begins: State | None = None,
    *,
    c: CSettings,
    seed: int,
) -> dict:
    """Evolve a controller wholly inside dreams. `begins`: where they begin, if not in recorded
    moments.

    Returns `weights` (Z + H + 1,), what ships; `path` (G, Z + H + 1), the mean of the search after
    each generation; `dream` (G,), what each of these means dreams; `returns` (G, P)."""
    luck = torch.Generator().manual_seed(seed)
    starts = begins or world.states(*world.moments(START_POOL, luck))
    read = features(world.states(*world.moments(START_POOL, luck, copies=1)))  # (S, Z + H)
    home = principal_axes(read, min(HOME_AXES, read.shape[1]))
    axes = search_space(world, c, luck)
    noisy, _ = variance_mask(world, c.mask_threshold, seed)
    pace, path, returns = Pace(DEVICE), [], (progress and progress.load()) or []

    def dreamed(weights: Tensor, count: int, number: int) -> Tensor:
        """The mean return (P,) in so many random dreams, the same for all."""
        luck, noise = torch.Generator().manual_seed(number), None
        begin = starts.pick(torch.randint(len(starts.z), (count,), generator=luck).to(DEVICE))
        if c.temperature > 0:
            noise = torch.randn(count, c.horizon, len(noisy), generator=luck).to(DEVICE) * noisy
        return dream_returns(world.m, weights, begin, home, c, noise, pays, reads).mean(1)

    def judge(points: Tensor, generation: int) -> Tensor:
        """A generation's returns (P,)."""
        number = 1_000_003 * seed + generation
        return pace.step(lambda: dreamed(to_weights(axes, points), c.rollouts, number))

    means = evolve(judge, axes.directions.shape[1] + 1, c, seed, returns)
    label = "C" if progress else None
    for mean in progress_bar(means, label=label, unit="generation", total=c.generations):
        path.append(to_weights(axes, mean[None])[0])
        if progress and len(path) % 10 == 0:
            progress.save(returns)
            pace.look()
    path = torch.stack(path)  # (G, Z + H + 1)
    ships = path[c.generations // 2 :].mean(0)  # (Z + H + 1,)
    # One common set of dreams, so that the means can be compared with each other.
    compared = [dreamed(weights[None], 512, seed) for weights in path]
    found = {"weights": ships.cpu(), "path": path.cpu(), "dream": torch.cat(compared).cpu()}
    return found | {"returns": torch.stack(returns)}''')
b.save()

# --- looks, and who follows
b = Book()
rep("define-learn", ('''    compared = [dreamed(weights[None], 512, seed) for weights in path]
''', '''    compared = [dreamed(some, 128, seed) for some in path.split(10)]
'''))
b.insert("define-learn", "define-looks", '''LOOK_STEPS = 200  # of a look at the real world: a thermometer need not be long


def looked_at(c: CSettings) -> list[int]:
    """The generations after which C takes a look at the real world, from 0: a few early ones, and
    each in which `look_every` more candidates were evaluated."""
    size, every = c.population, c.look_every
    due = {0, 1, 3, 7} | {k for k in range(c.generations) if (k + 1) * size % every < size}
    return sorted(k for k in due if k < c.generations)


def looks(
    progress: Progress, world: World, path: Tensor, *, c: CSettings, seed: int, workers: int
) -> list[list[float]]:
    """The stage in which means of the search, `path` (G, Z + H + 1), play a few short real
    episodes: the returns of each look. They are logged, never used."""
    agents = [Agent(world, controller(path[k].to(DEVICE))) for k in looked_at(c)]
    return [lives(agent, "check", seed, c.look_episodes, workers, LOOK_STEPS) for agent in agents]''', tags=("define",))
b.set("run-c-settings", '''c_stage = keep(train_c, world, name="c", c=settings.c, seed=settings.seed)
learned = c_stage.result
ship = learned["weights"].to(DEVICE)  # (Z + H + 1,)''')
b.insert("run-c-settings", "run-looks", '''look_stage = keep(looks, world, learned["path"], name="looks", c=settings.c, **seed_and_workers)
look_generations = looked_at(settings.c)
look_counts = [(k + 1) * settings.c.population for k in look_generations]
look_means = [float(np.mean(returns)) for returns in look_stage.result]
look_dreams = learned["dream"][look_generations].tolist()
all_counts = settings.c.population * np.arange(1, settings.c.generations + 1)
look_axes = {"xscale": "log", "xlabel": "candidates evaluated"}
in_dreams = {
    "lines": {"_": (all_counts, learned["dream"])},
    "levels": {"perfect": settings.c.horizon + settings.c.last_worth},
    "ylim": (0, None),
    "ylabel": "return",
    "title": f"In dreams of {settings.c.horizon} steps",
}
in_reality = {
    "lines": {"_": (look_counts, look_means, "o--")},
    "ylabel": "return (steps)",
    "title": f"In reality, looks of {LOOK_STEPS} steps",
    "ylim": (0, 1.05 * LOOK_STEPS),
}
plot(in_dreams | look_axes, in_reality | look_axes)
for count, imagined, real in zip(look_counts, look_dreams, look_means):
    print(
        f"after {count:5,d} candidates: dream return {imagined:5.1f}, real return {real:5.1f} of "
        f"{LOOK_STEPS}"
    )''', tags=("run",))
rep("run-control-settings", ('keep(learn, control_world, name="c-untrained-m", c=control_c, **seed_and_workers)', 'keep(\n    train_c, control_world, name="c-untrained-m", c=control_c, seed=settings.seed\n)'))
rep("run-pearson", ('{"dream": learned["dream"], "real": look_means}', '{"dream": look_dreams, "real": look_means}'), ('''    learned["dream"],
    look_means,
    c=learned["updates"],
''', '''    look_dreams,
    look_means,
    c=look_counts,
'''))
rep("run-out", ('''    "looks, only logged": int(
        sum(map(sum, learned["real"] + control_stage.result["real"])) + sum(control_returns)
    ),
''', '''    "looks, only logged": int(sum(map(sum, look_stage.result)) + sum(control_returns)),
'''), ('"updates": learned["updates"],', '"updates": look_counts,'), ('"dream": learned["dream"],', '"dream": look_dreams,'), ("practice_stage, c_stage, control_stage]", "practice_stage, c_stage, look_stage, control_stage]"))
rep("define-norm-penalty", ("learn(None, world, *how, c=c, seed=seed + k, workers=workers)", "train_c(None, world, *how, c=c, seed=seed + k)"))
for name in ("define-try-student", "define-rank-controllers"):
    rep(name, ("learn(None, world, c=c, seed=seed, workers=workers)", "train_c(None, world, c=c, seed=seed)"))
rep("define-real-steps", ("    rows, copies = world.moments(count, generator, episodes=episodes)  # (B,) each\n", '''    memory = copy.copy(world.memory)
    its = (memory.episode >= episodes.start) & (memory.episode < episodes.stop)  # (N,)
    memory.rows = memory.rows[its]
    rows, copies = world._replace(memory=memory).moments(count, generator)  # (B,) each
'''))
rep("define-visit", ('Agent(world, controller(weights), 0.1, seed), seeds_for', 'Agent(world, controller(weights), 0.1), seeds_for'))
rep("run-round-stage", ("Agent(world, controller(ship), settings.round.exploration, settings.seed)", "Agent(world, controller(ship), settings.round.exploration)"), ('''round_memory = Memory(
    [*random_episodes, *own_episodes], settings.v.max_shift, DEVICE, own=len(own_episodes)
)
''', '''round_memory = Memory([*random_episodes, *own_episodes], settings.v.max_shift, DEVICE)
# So often that about half of all windows are from C's own episodes.
own_rows = round_memory.rows[len(memory) :].repeat(max(1, round(len(memory) / len(own_memory))))
round_memory.rows = torch.cat([memory.rows, own_rows])
'''))
rep("run-v-log", ('''if "broken" in v_log:
''', ""))
# --- the roads
rep("define-table-of", ("quantise(module, {nn.Linear}, dtype=torch.qint8)", "quantise(module, {nn.Linear, nn.LSTMCell}, dtype=torch.qint8)"), ('"""A copy whose linear layers compute in INT8;', '"""A copy whose linear layers and LSTM compute in INT8;'))
rep("define-without-norm", ('''    found = {
        f"{part}.{kind}": value
        for part in ("gates", "change", "log_var", "done")
        for kind, value in getattr(world.m, part).named_parameters()
    }
''', '''    found = {
        f"{part}.{kind}": value
        for part in ("change", "log_var", "done")
        for kind, value in getattr(world.m, part).named_parameters()
    }
    lstm = world.m.lstm
    found |= {
        "gates.weight": torch.cat([lstm.weight_ih, lstm.weight_hh], 1),
        "gates.bias": lstm.bias_ih + lstm.bias_hh,
    }  # in, forget, cell, out: H rows each
'''))
rep("define-page", ('''    c[j] = sigmoid(gates[2 * H + j]) * s.c[j] + sigmoid(gates[H + j]) * Math.tanh(gates[j]);
''', '''    c[j] = sigmoid(gates[H + j]) * s.c[j] + sigmoid(gates[j]) * Math.tanh(gates[2 * H + j]);
'''))
b.save()
