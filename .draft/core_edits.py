"""Next step (changes stage keys, so a run of quick from nothing follows): `train_c` only dreams, the looks are a stage of their own; who explores is an Agent of part 9; the round weighs its own draws; plainer `columns_seen`, `act`, `train_v`. Run in a checkout: python .draft/core_edits.py"""
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

rep("define-columns-seen", ('''    columns = torch.arange(FRAME_SIZE, device=rows.device) + max_shift  # (64,)
    columns = columns.expand(len(rows), -1)  # (B, 64)
    if shift is not None:
        columns = columns + shift[:, None]
    return columns if mirror is None else torch.where(mirror[:, None], columns.flip(-1), columns)''', '''    columns = torch.arange(FRAME_SIZE, device=rows.device).expand(len(rows), -1)  # (B, 64)
    if mirror is not None:
        columns = torch.where(mirror[:, None], FRAME_SIZE - 1 - columns, columns)
    return columns + max_shift + (0 if shift is None else shift[:, None])'''))
rep("define-memory", ('''    def __init__(
        self, episodes: list[Episode], max_shift: int, device: torch.device, own: int = 0
    ) -> None:
        """`max_shift`: the largest sideways shift, in pixels, that `stack` will be asked for.
        `own`: so many last episodes are the controller's own; half of all draws fall on them."""
''', '''    def __init__(self, episodes: list[Episode], max_shift: int, device: torch.device) -> None:
        """`max_shift`: the largest sideways shift, in pixels, that `stack` will be asked for."""
'''), ('''        is_own = self.episode >= len(episodes) - own  # (N,)
        shares = [1 / part.sum().clamp(min=1) for part in (is_own, ~is_own)]
        self.weight = torch.where(is_own, *shares).double()  # (N,) of a row in a draw
''', '''        self.weight = torch.ones_like(self.rows, dtype=torch.double)  # (N,) of a row in a draw
'''), ('''(B, 4, 64, 64) float32 in [0, 1], the newest
        frame last; before the start of an episode its frame 0 is repeated. `view`: see
        `columns_seen`. `band`: the pixel rows wanted."""''', '''(B, 4, R, 64) float32 in [0, 1], the newest
        frame last; before the start of an episode its frame 0 is repeated. `view`: shift and mirror,
        (B,) each. `band`: the R pixel rows wanted."""'''),
    ("wide = self.padded[:, band][rows]  # (B, 4, 64, 64 + 2·shift) uint8", "wide = self.padded[:, band][rows]  # (B, 4, R, 64 + 2·shift) uint8"),
    (".expand(-1, STACK, wide.shape[2], -1)  # (B, 4, 64, 64)", ".expand(-1, STACK, wide.shape[2], -1)  # (B, 4, R, 64)"),
    ("return wide.gather(3, columns).float() / 255  # (B, 4, 64, 64)", "return wide.gather(3, columns).float() / 255  # (B, 4, R, 64)"))
rep("define-v", ('''    def __init__(self, settings: VSettings, mean_picture: Tensor | None = None) -> None:
        """`mean_picture`: (64, 64) mean of the training frames. V works on the difference to it:
        what never moves is 0 then."""
''', '''    def __init__(self, settings: VSettings) -> None:
        """`mean_picture` (64, 64): the mean of the training frames, set by training. V works on the
        difference to it: what never moves is 0 then."""
'''), ('''        nothing = torch.zeros(FRAME_SIZE, FRAME_SIZE)
        self.register_buffer("mean_picture", nothing if mean_picture is None else mean_picture)
''', '''        self.register_buffer("mean_picture", torch.zeros(FRAME_SIZE, FRAME_SIZE))
'''))
rep("define-random-views", ('''    model = V(v, seen.mean((0, 1))).to(memory.device)
    times = 2 if v.law > 0 else 1
    count = max(1, v.batch // times)
''', '''    model = V(v).to(memory.device)
    model.mean_picture.copy_(seen.mean((0, 1)))
    count = v.batch // 2  # each comes twice
'''), ("rows = torch.randint(len(memory), (count,), generator=generator).repeat(times)  # (B,)", "rows = torch.randint(len(memory), (count,), generator=generator).repeat(2)  # (B,)"),
    ("flip = flip[:count].repeat(times)", "flip = flip[:count].repeat(2)"),
    ('''        if v.law > 0:
            # A mirrored picture moves the other way.
            terms["broken"] = shift_law_broken(mu, torch.where(flip, -shift, shift))
            loss = loss + v.law * torch.log(terms["broken"] + 1e-3)  # never the logarithm of 0
        return loss, terms''', '''        # A mirrored picture moves the other way.
        terms["broken"] = shift_law_broken(mu, torch.where(flip, -shift, shift))
        # 0.001 more, for the logarithm of 0 is not finite.
        return loss + v.law * torch.log(terms["broken"] + 1e-3), terms'''),
    ('''    """Train V on single observations. With a law, each comes twice in a batch, under two shifts.
    `mean_reduced`''', '''    """Train V on single observations, each twice in a batch, under two shifts. `mean_reduced`'''))
rep("run-v-log", ('''if "broken" in v_log:
    print(f"of a code''', '''print(f"of a code''')) if 'if "broken" in v_log:' in b.source("run-v-log") else None
rep("define-search-space", ("    return (torch.baddbmm(weights[:, -1:, None], read, weights[:, :-1, None])[..., 0] > 0).long()", "    return ((read @ weights[:, :-1, None])[..., 0] + weights[:, -1:] > 0).long()"), ('"""π for P controllers at once: push right', '"""P controllers at once: push right'))
rep("define-world", ('''        copies: int = 0,
        episodes: range | None = None,
    ) -> tuple''', '''        copies: int = 0,
    ) -> tuple'''), ('''        if episodes:
            its = (memory.episode >= episodes.start) & (memory.episode < episodes.stop)
            rows, back, left = rows[its], back[its], left[its]
''', ""))
# who explores
s = b.source("define-agent")
rep("define-agent", ('''    def __init__(
        self, world: World, choose: Choose, exploration: float = 0.0, seed: int = 0
    ) -> None:
        """`choose`: who acts, as in a dream. In a share `exploration` of the steps a coin decides
        instead."""
        self.v, self.m, self.context = world.v, world.m, world.context
        self.choose, self.exploration, self.seed = choose, exploration, seed
''', '''    def __init__(self, world: World, choose: Choose) -> None:
        """`choose`: who acts, as in a dream."""
        self.v, self.m, self.context, self.choose = world.v, world.m, world.context, choose
'''), ('''            self.coin = RandomPolicy(self.seed)
''', ""))
s = b.source("define-agent"); i = s.index("        tossed = self.coin("); j = s.index("    def push(self")
b.set("define-agent", s[:i] + '''        push = self.push(new).long()  # (W,)
        self.a[:, -1] = push
        return push.cpu().numpy()

''' + s[j:])
# the search, and the looks
b.set("define-learn", '''LOOK_STEPS = 200  # of a look at the real world: a thermometer need not be long


def looked_at(c: CSettings) -> list[int]:
    """The generations after which C takes a look at the real world, from 0."""
    size, every = c.population, c.look_every
    due = {0, 1, 3, 7} | {k for k in range(c.generations) if (k + 1) * size % every < size}
    return sorted(k for k in due if k < c.generations)


def train_c(
    progress: Progress | None,
    world: World,
    pays: Callable = reward,
    reads: Callable = features,
    begins: State | None = None,
    *,
    c: CSettings,
    seed: int,
) -> dict:
    """Evolve a controller wholly inside dreams. `begins`: where dreams begin, if not in real
    moments.

    Returns `weights` (Z + H + 1,), what ships; `path` (G, Z + H + 1), the mean after each
    generation; `returns` (G, P); `dream`, what the means at the looks dream."""
    luck = torch.Generator().manual_seed(seed)
    starts = begins or world.states(*world.moments(START_POOL, luck))
    read = features(world.states(*world.moments(START_POOL, luck, copies=1)))  # (S, Z + H)
    home = principal_axes(read, min(HOME_AXES, read.shape[1]))
    axes = search_space(world, c, luck)
    noisy, _ = variance_mask(world, c.mask_threshold, seed)
    pace, returns, path = Pace(DEVICE), (progress and progress.load()) or [], []

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
    # One common set of dreams, so that they can be compared with each other. Their starts are drawn
    # from the same pool as in training.
    compared = dreamed(path[looked_at(c)], 512, seed).tolist()
    found = {"weights": ships.cpu(), "path": path.cpu(), "dream": compared}
    return found | {"returns": torch.stack(returns)}''')
b.insert("define-learn", "define-looks", '''def looks(
    progress: Progress, world: World, path: Tensor, *, c: CSettings, seed: int, workers: int
) -> dict:
    """The stage in which the means of a search (G, Z + H + 1) play a few short real episodes each:
    logged, never used. Returns `real`, a list of returns for each look."""
    real = [
        lives(
            Agent(world, controller(path[k].to(DEVICE))),
            "check",
            seed,
            c.look_episodes,
            workers,
            LOOK_STEPS,
        )
        for k in looked_at(c)
    ]
    return {"real": real}''', tags=("define",))
rep("run-c-settings", ("c_stage = keep(learn, world, name=\"c\", c=settings.c, **seed_and_workers)\nlearned = c_stage.result\n", '''c_stage = keep(train_c, world, name="c", c=settings.c, seed=settings.seed)
learned = c_stage.result
look_stage = keep(looks, world, learned["path"], name="looks", c=settings.c, **seed_and_workers)
look_counts = [(k + 1) * settings.c.population for k in looked_at(settings.c)]
'''), ('for returns in learned["real"]]', 'for returns in look_stage.result["real"]]'))
s = b.source("run-c-settings").replace('learned["updates"]', "look_counts").replace("for updates, imagined", "for count, imagined").replace("after {updates:5,d}", "after {count:5,d}"); b.set("run-c-settings", s)
rep("run-control-settings", ('keep(learn, control_world, name="c-untrained-m", c=control_c, **seed_and_workers)', 'keep(\n    train_c, control_world, name="c-untrained-m", c=control_c, seed=settings.seed\n)'))
b.set("run-pearson", b.source("run-pearson").replace('c=learned["updates"]', "c=look_counts"))
rep("run-out", ('''        sum(map(sum, learned["real"] + control_stage.result["real"])) + sum(control_returns)''', '''        sum(map(sum, look_stage.result["real"])) + sum(control_returns)'''), ('"updates": learned["updates"],', '"updates": look_counts,'), ("practice_stage, c_stage, control_stage]", "practice_stage, c_stage, look_stage, control_stage]"))
rep("define-norm-penalty", ("learn(None, world, *how, c=c, seed=seed + k, workers=workers)", "train_c(None, world, *how, c=c, seed=seed + k)"))
for name in ("define-try-student", "define-rank-controllers"):
    rep(name, ("learn(None, world, c=c, seed=seed, workers=workers)", "train_c(None, world, c=c, seed=seed)"))
rep("define-bench-school", ('"""As `learn` does it.', '"""As `train_c` does it.'))
# part 9: the verifier's episodes, who explores, the round's weights
s = b.source("define-real-steps")
rep("define-real-steps", ("    rows, copies = world.moments(count, generator, episodes=episodes)  # (B,) each\n", '''    memory = copy.copy(world.memory)
    memory.weight = ((memory.episode >= episodes.start) & (memory.episode < episodes.stop)).double()
    rows, copies = world._replace(memory=memory).moments(count, generator)  # (B,) each
'''))
b.insert("define-real-steps" if False else "text-visits", "define-explorer", '''class Explorer(Agent):
    """An agent for whom a coin decides in a share `exploration` of its steps."""

    def __init__(self, world: World, choose: Choose, exploration: float, seed: int) -> None:
        """`seed`: of the coins."""
        super().__init__(world, choose)
        self.exploration, self.seed = exploration, seed

    def __call__(
        self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list
    ) -> np.ndarray:
        """One push (0 or 1) per environment, (W,)."""
        if fresh.all():
            self.coin = RandomPolicy(self.seed)
        push, tossed = (who(fresh, frames, states, seeds) for who in (super().__call__, self.coin))
        explores = [coin.random() < self.exploration for coin in self.coin.coins.values()]
        push = np.where(explores, tossed, push)
        self.a[:, -1] = torch.from_numpy(push)
        return push''', tags=("define",))
b.save()
