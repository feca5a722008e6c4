# %% [markdown]
# ## 13 · The frontier: do macro-actions let a dream look further?
#
# A dream drifts by the *step*. So let a step be longer: two pushes are one action, M jumps two frames at once, and a dream of fifty such steps is two seconds of life. Same class, same training, one argument: `M(…, pushes=2)`. There are four **macro-actions**: left-left, left-right, right-left, right-right.
#
# **Predict:** half as many steps to the same moment. Half the drift?

# %% tags=["define", "extra"]
def every_second(memory: Memory, codes: Codes) -> tuple[Memory, Codes]:
    """The same episodes seen every second frame, each twice: once so that its last frame is kept, once with the frames between (and without the end).

    A row's action are the two pushes after it; it pays the rewards of both."""
    episodes, rows, mine = [], [], []
    for number, episode in enumerate(memory.episodes):
        begin = int(memory.first[memory.episode == number][0]) if number == 0 else begin + len(memory.episodes[number - 1].frames)
        for last in (len(episode.frames) - 1, len(episode.frames) - 2):
            kept = np.arange(last % 2, last + 1, 2)
            if len(kept) < 2:
                continue
            paid = episode.rewards[kept[:-1]] + episode.rewards[kept[:-1] + 1]
            ended = {"terminated": episode.terminated and last == len(episode.frames) - 1}
            episodes.append(episode._replace(frames=episode.frames[kept], actions=episode.actions[kept[:-1]], rewards=paid, states=episode.states[kept], **ended))
            rows.append(begin + kept)
            mine.append(number)
    at = torch.from_numpy(np.concatenate(rows)).to(codes.mu.device)  # (N',)
    pairs = torch.stack([codes.actions[:, at], codes.actions[:, (at + 1).clamp(max=codes.actions.shape[1] - 1)]], 2)  # (K, N', 2)
    thinned = Codes(codes.mu[:, at], codes.log_var[:, at], pairs, codes.shift[:, mine], codes.mirror[:, mine])
    return Memory(episodes, 0, memory.device), thinned


class MacroAgent:
    """A controller of macro-actions in the real world: at every second frame it looks and chooses, then does both pushes."""

    def __init__(self, world: World, choose: Choose) -> None:
        """`world`: of a macro M. `choose`: pairs of pushes (W, 2)."""
        self.world, self.choose, self.stack = world, choose, None

    @torch.no_grad()
    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One push (0 or 1) per environment, (W,). The true states are not used."""
        frame, new = (torch.from_numpy(values).to(DEVICE) for values in (frames, fresh))  # (W, 64, 64), (W,)
        if self.stack is None:
            self.stack = frame[:, None].repeat(1, STACK, 1, 1)  # (W, 4, 64, 64)
            self.z = torch.zeros(len(frame), self.world.context + 1, self.world.codes.mu.shape[-1], device=DEVICE)  # (W, C + 1, Z)
            self.known = torch.zeros_like(self.z[:, :, 0], dtype=torch.bool)  # (W, C + 1)
            self.a, self.looks = torch.zeros_like(self.z[:, :, :2]), ~new  # (W, C + 1, 2), (W,)
        self.stack = torch.where(new[:, None, None, None], frame[:, None], torch.cat([self.stack[:, 1:], frame[:, None]], 1))
        self.looks = new | ~self.looks
        z, look = self.world.v.encode(self.stack.float() / 255)[0][:, None], self.looks[:, None]  # (W, 1, Z), (W, 1)
        self.z = torch.where(look[..., None], torch.where(new[:, None, None], z, torch.cat([self.z[:, 1:], z], 1)), self.z)
        self.known = torch.where(look, torch.cat([self.known[:, 1:] & ~new[:, None], torch.ones_like(look)], 1), self.known)
        self.a = torch.where(look[..., None], self.a.roll(-1, 1), self.a)
        chosen = self.choose(0, remembered(self.world.m, self.z, self.a, self.known))  # (W, 2)
        self.a[:, -1] = torch.where(look, chosen, self.a[:, -1])
        return torch.where(self.looks, self.a[:, -1, 0], self.a[:, -1, 1]).long().cpu().numpy()


# %% [markdown]
# ### Two tests of a long dream
#
# The controller is the student's: 128 units, trained by the dream's own gradient, with dreams of 15, 30, 50 and 100 steps, primitive or macro. **Does the real return follow the horizon?** The recipe's advice is to keep dreams short.
#
# **Is the dream still like life after a hundred steps?** The trained controller plays; from moments of these episodes M dreams on, with the same controller, and we compare 100 steps later what was dreamed with what was lived: the spread of θ and x, how many are alive, and the KL between the two distributions of (θ, x), each taken as a Gaussian with the mean and covariance of its 500 samples.

# %% tags=["define", "extra"]
def gaussian_gap(dreamed: Tensor, real: Tensor) -> float:
    """KL(real ‖ dreamed) in nats between Gaussians with the means and covariances of two samples, (S, D) each."""
    covs = [torch.cov(part.double().T) + 1e-9 * torch.eye(part.shape[1], device=part.device) for part in (dreamed, real)]
    off, inverse = (dreamed - real).double().mean(0), torch.linalg.inv(covs[0])
    return float(0.5 * ((inverse @ covs[1]).trace() + off @ inverse @ off - len(off) + torch.logdet(covs[0]) - torch.logdet(covs[1])))


@torch.no_grad()
def like_life(world: World, choose: Choose, probe: Probe, steps: int = 100) -> dict[str, float]:
    """A hundred steps later, dreamed and lived, from the same moments of the world's own episodes; nan where none is long enough."""
    rows, _ = windows(world.memory, world.context + steps + 1, 500)[:, [world.context, -1]].T  # (S,) each
    path = list(dream(world.m, world.states(rows), choose, steps))
    alive = torch.stack([torch.sigmoid(-world.m.says(step.state).done) for step in path]).prod(0)  # (S,)
    dreamed, real = probe(seen_again(world.v, path[-1].state.z))[:, [2, 0]], world.memory.states[rows + steps][:, [2, 0]]  # (S, 2): θ, x
    spread = {f"{name} {who}": float(factor * part[:, k].std()) for k, (name, factor) in enumerate((("θ", 180 / math.pi), ("x", 1000))) for who, part in (("dreamed", dreamed), ("lived", real))}
    return {"alive": float(alive.mean()), **spread, "KL": gaussian_gap(dreamed, real) if len(rows) > 2 else math.nan}


def try_horizon(progress: Progress, world: World, probe: Probe, *, horizon: int, how: TrainSettings, c: CSettings, seed: int, episodes: int, workers: int) -> dict:
    """Train a controller in dreams of one horizon, primitive or macro as the world is, and put both questions: one `line`."""
    macro = world.codes.actions.dim() == 3
    school = School(world, c.but(horizon=horizon), seed, MacroAgent if macro else Agent)
    found = train_student(progress, school, way="gradient", hidden=128, lawful=False, how=how, seed=seed, workers=workers)
    choose = sure(frozen(school.net(128, False), found["actor"]))
    played = play(school.agent(world, choose), seeds_for("roads", seed, episodes), workers)
    its = world.looking_at(played)
    its = its._replace(**dict(zip(("memory", "codes"), every_second(its.memory, its.codes)))) if macro else its
    real = [len(episode.actions) for episode in played]
    line = {"steps": "macro" if macro else "primitive", "horizon": horizon, "seed": seed, "seconds": found["seconds"], "real": float(np.mean(real)), "worst": float(min(real))}
    line |= {"gradient": found["norms"][1][2]} | like_life(its, choose, probe)
    return {"line": {name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()}}


# %% tags=["run", "extra"]
macro_drift_lines, macro_lines = [], []
if "frontier" in live:
    macro_memory, macro_codes = every_second(memory, codes)
    macro_good = World(v, m_forced, *every_second(good_world.memory, good_world.codes), settings.m.context // 2)
    macro_how = {"m": settings.m.but(context=settings.m.context // 2, window=settings.m.window // 2)}
    macro_practice = settings.practice.but(alone=settings.practice.alone // 2)  # the same time, in half as many steps
    frontier_how = {"how": TrainSettings(learning_rate=1e-2, batch=8 if tiny else 64, steps=4 if tiny else 150), "c": settings.c, "workers": settings.collect.workers}
    for frontier_luck in range(settings.seed, settings.seed + (1 if tiny else 3)):
        macro_forced = keep(train_m, macro_memory, macro_codes, after=(code_stage,), name="macro-m", **macro_how, seed=frontier_luck)
        macro_stage = keep(train_m, macro_memory, macro_codes, macro_forced.result["weights"], after=(macro_forced,), name="macro-practice", **macro_how, practice=macro_practice, seed=frontier_luck)
        plain_stage = keep(train_m, memory, codes, m_stage.result["weights"], after=(m_stage,), name="practice", m=settings.m, practice=settings.practice, seed=frontier_luck)
        macro_m = frozen(M(settings.v.latents, settings.m.hidden, 2), macro_stage.result)
        plain_m = frozen(M(settings.v.latents, settings.m.hidden), plain_stage.result)
        for frontier_name, frontier_world, frontier_good, frontier_stage in (
            ("primitive", world._replace(m=plain_m), good_world._replace(m=plain_m), plain_stage),
            ("macro", World(v, macro_m, macro_memory, macro_codes, macro_good.context), macro_good._replace(m=macro_m), macro_stage),
        ):
            stride = 2 if frontier_name == "macro" else 1
            frontier_drift = drift(frontier_good, wide_probe, 200 // stride)
            macro_drift_lines += [
                {"steps": frontier_name, "seed": frontier_luck, "frames": stride * (k + 1)} | {what: round(float(values[k]), 3) for what, values in frontier_drift.items()}
                for k in range(200 // stride)
            ]
            for horizon in (5,) if tiny else (15, 30, 50, 100):
                frontier_settings = frontier_how | {"horizon": horizon, "seed": frontier_luck, "episodes": 2 if tiny else 20}
                macro_lines.append(keep(try_horizon, frontier_world, wide_probe, after=(frontier_stage,), name=f"horizon-{frontier_name}", **frontier_settings).result["line"])
macro_drift = table_of("frontier_drift", macro_drift_lines)
macro_table = table_of("frontier", macro_lines)
macro_table

# %% tags=["run", "extra"]
far_panels = [{"lines": {}, "xlabel": "frames without looking (20 ms each)", "ylabel": label, "yscale": "log"} for label in ("median |error| of θ (degrees)", "median |error| of x (mm)")]
for far_name, far_rows in macro_drift.groupby("steps") if len(macro_drift) else ():
    for far_panel, far_what in zip(far_panels, ("theta", "x")):
        far_mean = far_rows.groupby("frames")[far_what].mean()
        far_panel["lines"][far_name] = (far_mean.index, far_mean, "--" if far_name == "macro" else "-")
far_panels.append({"lines": {}, "xlabel": "horizon of the dreams (frames)", "xscale": "log", "ylabel": "real return (steps)", "ylim": (0, 520)})
for far_name, far_rows in macro_table.groupby("steps") if len(macro_table) else ():
    far_real = far_rows.groupby("horizon")["real"].mean()
    far_panels[2]["lines"][far_name] = (far_real.index * (2 if far_name == "macro" else 1), far_real, "s--" if far_name == "macro" else "o-")
if len(macro_table):
    plot(*far_panels, title="Macro steps and single ones, mean of three seeds", size=(4.6, 3.6))

# %% [markdown]
# ⟦TEXT-FRONTIER⟧
#
# <details><summary><b>Exercise 12.</b> ⟦EXERCISE⟧ (Solution)</summary>
#
# ⟦SOLUTION⟧
# </details>
