# %% [markdown]
# ## 12 · The researcher's road: does a contrast keep a dream true?
#
# A dream drifts. One idea to hold it: M is only ever told what *does* follow, never what does not. A **contrastive** loss says both: the dream under the true pushes shall lie nearer to what was seen than dreams under other pushes do. Hypothesis: an M that practises with this loss drifts less, and ranks controllers better, out to a hundred steps.
#
# ### The loss
#
# From one moment M dreams three times: under the recorded pushes, with all of them reversed, and with every second one reversed. At each step the recorded $z$ picks the dream that is its own (InfoNCE, van den Oord et al., 2018):
#
# $$L = -\log \frac{e^{-d_0 / T}}{\sum_n e^{-d_n / T}}, \qquad d_n = \frac1Z \sum_i \frac{(\hat z^{(n)}_i - z_i)^2}{\sigma^2}$$
#
# The positive is the dream under the true pushes ($n = 0$), the negatives are the other two, σ is the one of M's own loss, and $T = 0.1$. It is added with weight 10 to the losses of M's practice, on every fourth sequence (the other dreams cost time), and nothing else changes: the same start, the same steps, the same seeds.

# %% tags=["define", "extra"]
TEMPERATURE, CONTRAST = 0.1, 10.0  # T, and the weight of the loss


def other_pushes(a: Tensor, read: int) -> Tensor:
    """(3, B, T): the pushes a (B, T) themselves, then all reversed, then every second one, from the last step that M reads."""
    turned = torch.arange(a.shape[1], device=a.device) - (read - 1)  # (T,) counts the steps alone
    return torch.stack([a, torch.where(turned >= 0, 1 - a, a), torch.where((turned >= 0) & (turned % 2 == 0), 1 - a, a)])


def info_nce(imagined: Tensor, z: Tensor) -> Tensor:
    """The loss of each step, (B, T), in nats: dreams (N, B, T, Z), of which the first is the true one, before what was seen, z (B, T, Z)."""
    nearness = -(imagined - z).square().mean(-1) / SPREAD**2 / TEMPERATURE  # (N, B, T)
    return nearness.logsumexp(0) - nearness[0]


def contrast(m: M, z: Tensor, a: Tensor, real: Tensor, read: int) -> Tensor:
    """What `train_m` adds to its loss, on every fourth of its sequences: z (B, T + 1, Z), a and real (B, T)."""
    z, a, real = z[::4], a[::4], real[::4]
    pushes = other_pushes(a, read)  # (3, B, T)
    shown = z[:, :read].repeat(len(pushes), 1, 1)  # (3B, R, Z)
    lived = stacked([step.state.z for step in dream(m, m.begin(shown[:, 0]), given(pushes.flatten(0, 1)), a.shape[1], shown)])  # (3B, T, Z)
    alone = real[:, read - 1 :]  # (B, K)
    loss = info_nce(lived.view(len(pushes), *z[:, 1:].shape)[:, :, read - 1 :], z[:, read:])  # (B, K)
    return CONTRAST * (loss * alone).sum() / alone.sum().clamp(min=1)


# %% [markdown]
# ### Two questions
#
# **How far does it drift?** As in part 9: degrees, millimetres, KL, and, new, the verifier's loss: −log of its confidence in what M dreams.
#
# **Does it rank controllers rightly?** A dream that is used to choose must tell good controllers from bad ones, even when it is wrong in detail. Thirty controllers of all skills, from the search's own path, some with noise on top, play real episodes once. Then each M dreams their lives, from the same moments, for 30, 60 and 100 steps. Do the imagined returns order them as reality does (Spearman)? And does it help to weigh each imagined reward by the verifier's confidence, as the recipe suggests?

# %% tags=["define", "extra"]
RANKED, LONG = 30, (30, 60, 100)  # controllers; horizons in steps


def make_skilled(progress: Progress, world: World, path: Tensor, *, seed: int, episodes: int, workers: int) -> dict:
    """Controllers of all skills: `weights` (RANKED, Z + H + 1), from a search's path (G, Z + H + 1) and noise of up to its own size; and their mean `real` returns."""
    luck = torch.Generator().manual_seed(seed)
    when = (len(path) ** torch.linspace(0, 1, RANKED) - 1).long().clamp(max=len(path) - 1)  # early generations differ most
    size = torch.tensor([0.0, 0.3, 1.0]).repeat(RANKED)[:RANKED, None] * path[when].norm(dim=1, keepdim=True)
    noise = torch.randn(RANKED, path.shape[1], generator=luck)
    weights = path[when] + size * noise / noise.norm(dim=1, keepdim=True)
    real = [float(np.mean(lives(Agent(world, controller(one.to(DEVICE))), "roads", seed, episodes, workers))) for one in weights]
    return {"weights": weights, "real": real}


@torch.no_grad()
def verifier_loss(world: World, verifier: Verifier, horizon: int) -> list[float]:
    """Mean −log confidence (nats) in M's states after each of T steps alone, on recorded windows; nan where none is long enough."""
    rows = windows(world.memory, world.context + horizon, 200)  # (S, C + T)
    z, a = world.codes.mu[0, rows], world.codes.actions[0, rows]
    lived = [step.state for step in dream(world.m, world.m.begin(z[:, 0]), given(a), rows.shape[1] - 1, z[:, : world.context])][world.context - 1 :]
    return [float(-F.logsigmoid(verifier(state)).mean()) for state in lived]


@torch.no_grad()
def imagined_return(world: World, verifier: Verifier | None, weights: Tensor, starts: State, steps: int) -> float:
    """The mean return of a controller in dreams; with a verifier each reward counts as much as it trusts the state."""
    alive, total = torch.ones(len(starts.z), device=starts.z.device), 0.0
    for step in dream(world.m, starts, controller(weights), steps):
        says = world.m.says(step.state)
        alive = alive * torch.sigmoid(-says.done)
        total = total + alive * says.reward * (verifier(step.state).sigmoid() if verifier else 1.0)
    return float(total.mean())


def judge_m(progress: Progress, world: World, good: World, random: World, probe: Probe, verifier: Verifier, skilled: dict, rows: Tensor, *, arm: str, seed: int) -> dict:
    """One M before both questions: lines for `drift` and for `ranking`. `rows`: moments in which dreams of controllers begin."""
    who, lines = {"arm": arm, "seed": seed}, []
    for play_name, its, horizon in (("good play", good, 100), ("random play", random, 24)):
        found = drift(its, probe, horizon) | {"verifier loss": verifier_loss(its, verifier, horizon)}
        lines += [who | {"play": play_name, "step": k + 1} | {name: round(float(values[k]), 4) for name, values in found.items()} for k in range(len(found["x"]))]
    starts, ranking = world.states(rows), []
    for steps in LONG:
        for weighed in (False, True):
            dreamed = [imagined_return(world, verifier if weighed else None, one.to(DEVICE), starts, steps) for one in skilled["weights"]]
            low, high = rank_interval(dreamed, skilled["real"])
            line = {"steps": steps, "weighed": int(weighed), "Spearman": correlations(dreamed, skilled["real"])[1], "low": low, "high": high}
            ranking.append(who | {name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()})
    return {"drift": lines, "ranking": ranking}


def rank_interval(a: list[float], b: list[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of Spearman's correlation, over the controllers."""
    luck, both = np.random.default_rng(0), np.array([a, b])
    drawn = [stats.spearmanr(*both[:, luck.integers(len(a), size=len(a))]).statistic for _ in range(1_000)]
    return tuple(float(value) for value in np.nanquantile(drawn, (0.025, 0.975)))


# %% tags=["run", "extra"]
contrast_lines = {"drift": [], "ranking": []}
if "researcher" in live:
    skilled_stage = keep(make_skilled, world, learned["path"], after=(c_stage,), name="skilled", seed=settings.seed, episodes=2 if tiny else 8, workers=settings.collect.workers)
    calm_luck = torch.Generator().manual_seed(settings.seed)
    calm_rows = world.moments(4_096, calm_luck, copies=1)[0]  # the same moments for each M; from some of them a good controller can survive
    calm_rows = calm_rows[(memory.states[calm_rows][:, 2].abs() < math.radians(4)) & (memory.states[calm_rows][:, 3].abs() < 0.5)][:256]
    for arm, also in (("baseline", None), ("contrastive", contrast)):
        for luck in range(1 if tiny else 3):
            arm_settings = {"m": settings.m, "practice": settings.practice, "seed": settings.seed + luck}
            arm_stage = keep(train_m, memory, codes, m_stage.result["weights"], also, after=(m_stage,), name="practice" if arm == "baseline" else arm, **arm_settings)
            arm_m = frozen(M(settings.v.latents, settings.m.hidden), arm_stage.result)
            arm_worlds = [its._replace(m=arm_m) for its in (world, good_world, fresh_world)]
            judged_stage = keep(judge_m, *arm_worlds, wide_probe, verifier, skilled_stage.result, calm_rows, after=(arm_stage, skilled_stage, verifier_stage), name=f"judged-{arm}", arm=arm, seed=settings.seed + luck)
            for table in contrast_lines:
                contrast_lines[table] += judged_stage.result[table]
contrast_drift = table_of("researcher_drift", contrast_lines["drift"])
contrast_ranking = table_of("researcher_ranking", contrast_lines["ranking"])
contrast_ranking.pivot_table(index=["arm", "weighed"], columns="steps", values="Spearman", aggfunc=["mean", "min", "max"]) if len(contrast_ranking) else None

# %% tags=["run", "extra"]
drift_panels = [{"lines": {}, "xlabel": "steps without looking", "ylabel": label, "yscale": "log"} for label in ("median |error| of θ (degrees)", "median |error| of x (mm)", "verifier's loss (nats)")]
for (drift_play, drift_arm), drift_rows in contrast_drift.groupby(["play", "arm"]) if len(contrast_drift) else ():
    for drift_panel, drift_what in zip(drift_panels, ("theta", "x", "verifier loss")):
        drift_mean = drift_rows.groupby("step")[drift_what].mean()
        drift_panel["lines"][f"{drift_arm}, {drift_play}"] = (drift_mean.index, drift_mean, "-" if drift_arm == "baseline" else "--")
if len(contrast_drift):
    plot(*drift_panels, title="Drift, mean of three seeds", size=(4.6, 3.6))

# %% [markdown]
# ⟦TEXT-RESEARCHER⟧
#
# <details><summary><b>Exercise 11.</b> ⟦EXERCISE⟧ (Solution)</summary>
#
# ⟦SOLUTION⟧
# </details>
