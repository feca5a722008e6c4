# %% [markdown]
# ## 13 · The frontier: do macro-actions let a dream look further?
#
# A dream drifts by the *step*. So let a step be longer: two pushes become one action, and M jumps two frames at once. There are four such **macro-actions**: left-left, left-right, right-left, right-right. A dream of fifty steps is then two seconds of life. The class and its training are the same, with one argument, `M(…, pushes=2)`. Its memory, its windows and its practice last as long as the single-step M's in seconds, so they have half as many steps.
#
# **Predict:** half as many steps to the same moment. Half the drift?

# %% tags=["define", "extra"]
def every_second(world: World, m: M | None = None) -> World:
    """The same episodes seen every second frame, each twice: so that its last frame is kept, and once more with the frames between, without the end.

    A row's action are the two pushes after it, (K, N, 2), and it pays the rewards of both. `m`: the macro M."""
    memory, codes = world.memory, world.codes
    episodes, rows, mine = [], [], []
    for number, begin in enumerate(memory.rows[memory.rows == memory.first].tolist()):
        whole = memory.episodes[number]
        for last in (len(whole.actions), len(whole.actions) - 1):
            kept = np.arange(last % 2, last + 1, 2)
            paid = whole.rewards[kept[:-1]] + whole.rewards[kept[:-1] + 1]
            ends = whole.terminated and last == len(whole.actions)
            episodes.append(Episode(whole.seed, whole.frames[kept], whole.states[kept], whole.actions[kept[:-1]], paid, ends, whole.truncated))
            rows.append(begin + kept)
            mine.append(number)
    at = torch.from_numpy(np.concatenate(rows)).to(memory.device)  # (N',)
    pairs = torch.stack([codes.actions[:, at], codes.actions[:, (at + 1).clamp(max=len(memory) - 1)]], 2)  # (K, N', 2)
    thinned = Codes(codes.mu[:, at], codes.log_var[:, at], pairs, codes.shift[:, mine], codes.mirror[:, mine])
    return World(world.v, m or world.m, Memory(episodes, 0, memory.device), thinned, world.context // 2)


def train_macro(progress: Progress, world: World, begin: dict | None = None, *, m: MSettings, practice: PracticeSettings | None = None, seed: int) -> dict:
    """Train a macro M as `train_m` does, with context, windows and practice of as many seconds, so of half as many steps."""
    its, half = every_second(world), m.but(context=max(2, m.context // 2), window=max(2, m.window // 2))
    shorter = practice and practice.but(alone=max(1, practice.alone // 2))
    return train_m(progress, its.memory, its.codes, begin, m=half, practice=shorter, seed=seed)


class MacroAgent(Agent):
    """Someone who chooses two pushes at once, in the real world: at every second frame it looks and chooses, then it does both."""

    def __init__(self, world: World, choose: Choose) -> None:
        """`world`: of a macro M. `choose`: pairs of pushes (W, 2), as in a dream."""
        super().__init__(world._replace(context=2 * world.context), choose)
        self.looked = self.second = None

    def push(self, new: Tensor) -> Tensor:
        """The pushes now, (W,): the first of a new pair, or the second of the last one. `new` (W,): whose episode has just begun."""
        pairs = self.a[:, :-1].unflatten(1, (-1, 2))  # (W, C, 2): all before now, of which M reads every second frame, counted back from now
        chosen = self.choose(0, remembered(self.world.m, self.z[:, ::2], pairs, self.known[:, ::2]))  # (W, 2)
        looks = new if self.looked is None else new | ~self.looked  # (W,)
        first, self.second = chosen[:, 0], chosen[:, 1] if self.second is None else torch.where(looks, chosen[:, 1], self.second)
        self.looked = looks
        return torch.where(looks, first, self.second)


# %% [markdown]
# ### Two tests of a long dream
#
# The controllers are the student's: 128 units, trained by the dream's own gradient, in dreams of 15, 30, 50 and 100 steps, single or macro. **Does the real return follow the horizon?** The recipe says that short dreams are enough. But our dreams end with a handmade judgement: 30 steps of worth for a last state that is familiar. It stands for what comes later, so it could hide what a horizon does. We train with it, and without it.
#
# **Is a long dream still like life?** The trained controller plays 20 real episodes. From 500 moments in them M dreams on, with the same controller, for two and for four seconds' worth of frames (100 and 200). Then we compare: how many steps of these were lived, on average, in the dream and in reality; the spread of θ and x among the survivors; and the KL from the real to the dreamed distribution of (θ, x), each taken as a Gaussian with the mean and covariance of its survivors.

# %% tags=["define", "extra"]
def gaussian_gap(dreamed: Tensor, real: Tensor) -> float:
    """KL(real ‖ dreamed) in nats between Gaussians with the means and covariances of two samples, (S, D) each; nan for fewer than ten."""
    if min(len(dreamed), len(real)) < 10:
        return math.nan
    covs = [torch.cov(part.double().T) + 1e-9 * torch.eye(part.shape[1], device=part.device) for part in (dreamed, real)]
    off, inverse = (dreamed - real.double().mean(0)).double().mean(0), torch.linalg.inv(covs[0])
    return float(0.5 * ((inverse @ covs[1]).trace() + off @ inverse @ off - len(off) + torch.logdet(covs[0]) - torch.logdet(covs[1])))


@torch.no_grad()
def like_life(world: World, choose: Choose, probe: Probe, steps: int, count: int = 500) -> dict[str, float]:
    """Dreams of some steps, from moments of the world's own episodes, beside what was lived from there: `lived` steps, spreads of θ (degrees) and x (mm), `KL`.

    All numbers come in pairs, dreamed and real. nan where there is nothing to compare."""
    memory = world.memory
    left, ended = memory.last - memory.rows, memory.done[memory.last]  # (N,) each: steps until the recording ends, and whether the pole fell then
    rows = memory.rows[(memory.rows - memory.first >= world.context) & (left > 0) & ((left >= steps) | ended)]
    if not len(rows):
        return dict.fromkeys(("lived dreamed", "lived real", "θ dreamed", "θ real", "x dreamed", "x real", "KL"), math.nan)
    rows = rows[torch.randint(len(rows), (count,), generator=torch.Generator().manual_seed(0)).to(rows.device)]  # (S,)
    path = list(dream(world.m, world.states(rows), choose, steps))
    alive = torch.stack([torch.sigmoid(-world.m.says(step.state).done) for step in path], 1).cumprod(1)  # (S, T)
    stood = left[rows] >= steps  # (S,)
    dreamed = probe(seen_again(world.v, path[-1].state.z[alive[:, -1] > 0.5][:, None]))[:, 0, [2, 0]]  # (S', 2): θ, x
    real = memory.states[rows[stood] + steps][:, [2, 0]]  # (S'', 2)
    found = {"lived dreamed": alive.sum(1).mean(), "lived real": left[rows].clamp(max=steps).float().mean()}
    for k, (name, unit) in enumerate({"θ": 180 / math.pi, "x": 1000}.items()):
        found |= {f"{name} dreamed": unit * dreamed[:, k].std(), f"{name} real": unit * real[:, k].std()}
    return {name: round(float(value), 3) for name, value in (found | {"KL": gaussian_gap(dreamed, real)}).items()}


def try_horizon(progress: Progress, world: World, probe: Probe, *, horizon: int, how: TrainSettings, c: CSettings, seed: int, episodes: int, workers: int) -> dict:
    """Train a controller in dreams of one horizon, single or macro as the world is, and put both questions: a `line` for the table, and two for `life`."""
    macro = world.m.pushes > 1
    school = School(world, c.but(horizon=horizon), seed, MacroAgent if macro else Agent)
    found = train_student(progress, school, way="gradient", hidden=128, lawful=False, how=how, seed=seed, workers=workers)
    choose = sure(frozen(school.net(128, False), found["actor"]))
    played = play(school.agent(world, choose), seeds_for("roads", seed, episodes), workers)
    real, own = [len(episode.actions) for episode in played], World(world.v, world.m, world.memory, world.codes, 2 * world.context if macro else world.context)
    own = own.looking_at(played)
    own = every_second(own) if macro else own
    life = [{"frames": frames} | like_life(own, choose, probe, frames // world.m.pushes) for frames in (100, 200)]
    return {"line": {"real": float(np.mean(real)), "worst": min(real), "seconds": round(found["seconds"], 1)}, "life": life}


# %% tags=["run", "extra"]
macro_drift_lines, macro_lines, life_lines = [], [], []
if "frontier" in live:
    macro_worlds = every_second(world), every_second(good_world)
    frontier_how = {"how": TrainSettings(learning_rate=1e-2, batch=8 if tiny else 64, steps=4 if tiny else 150), "workers": settings.collect.workers}
    for frontier_luck, frontier_plain in enumerate(plain_stages):
        frontier_seed = {"seed": settings.seed + frontier_luck}
        macro_forced = keep(train_macro, world, after=(code_stage,), name="macro-m", m=settings.m, **frontier_seed)
        macro_practice = {"m": settings.m, "practice": settings.practice} | frontier_seed
        macro_stage = keep(train_macro, world, macro_forced.result["weights"], after=(macro_forced,), name="macro-practice", **macro_practice)
        for frontier_name, frontier_stage, frontier_worlds in (
            ("single steps", frontier_plain, (world, good_world)),
            ("macro steps", macro_stage, macro_worlds),
        ):
            jump = 2 if frontier_name == "macro steps" else 1  # frames
            frontier_m = frozen(M(settings.v.latents, settings.m.hidden, jump), frontier_stage.result)
            frontier_world, frontier_good = (its._replace(m=frontier_m) for its in frontier_worlds)
            frontier_door = keep(train_verifier, frontier_world, after=(frontier_stage,), name="verifier-again", verifier=settings.verifier, **frontier_seed)
            frontier_verifier, frontier_who = frozen(Verifier(settings.v.latents, settings.m.hidden), frontier_door.result), {"steps": frontier_name} | frontier_seed
            macro_drift_lines += [frontier_who | line for line in drift_lines(frontier_good, wide_probe, frontier_verifier, 200 // jump, jump)]
            for horizon, worth in ((horizon, worth) for horizon in ((5,) if tiny else (15, 30, 50, 100)) for worth in (settings.c.last_worth, 0.0)):
                frontier_settings = frontier_how | frontier_seed | {"horizon": horizon, "c": settings.c.but(last_worth=worth), "episodes": 2 if tiny else 20}
                frontier_tried = keep(try_horizon, frontier_world, wide_probe, after=(frontier_stage,), name="horizon", **frontier_settings).result
                frontier_case = frontier_who | {"horizon": horizon, "worth": worth}
                macro_lines.append(frontier_case | frontier_tried["line"])
                life_lines += [frontier_case | line for line in frontier_tried["life"]]
macro_drift = table_of("frontier_drift", macro_drift_lines)
macro_table, life_table = table_of("frontier", macro_lines), table_of("frontier_life", life_lines)

# %% tags=["run", "extra"]
if len(macro_drift):
    far_labels = {"theta": "median |error| of θ (degrees)", "x": "median |error| of x (mm)", "kl": "KL (nats)", "doubt": "verifier's loss (nats)"}
    show_bands(macro_drift, "steps", "frames", far_labels, "Drift on good play: mean and range of the seeds")
    far_rows = macro_drift[macro_drift["frames"].isin((20, 60, 100, 200))]
    print("macro steps (first) and single steps (second)")
    display(pandas.DataFrame({(what, k): paired(rows, "steps", what) for what in far_labels for k, rows in far_rows.groupby("frames")}).T.round(3))

# %% tags=["run", "extra"]
if len(macro_table):
    display(macro_table.pivot_table(index=["worth", "steps"], columns="horizon", values="real", aggfunc=["mean", "min", "max"]).round(0))
    life_of = life_table.set_index(["frames", "steps", "horizon"])[life_table["worth"].to_numpy() > 0].drop(columns=["seed", "worth"])
    display(life_of.groupby(level=[0, 1, 2]).mean().round(2))

# %% [markdown]
# ⟦TEXT-FRONTIER⟧
#
# <details><summary><b>Exercise 12.</b> ⟦EXERCISE⟧ (Solution)</summary>
#
# ⟦SOLUTION⟧
# </details>
