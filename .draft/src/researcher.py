# %% [markdown]
# ## 12 · The researcher's road: does a contrast keep a dream true?
#
# A dream drifts. Here is one idea to hold it: M is only ever told what *does* follow, never what does not. A **contrastive** loss says both: the dream under the true pushes shall lie nearer to what was seen than dreams under other pushes. The hypothesis: an M that practises with this loss drifts less, and tells good controllers from bad ones better, out to a hundred steps.
#
# ### The loss
#
# From one moment M dreams three times: under the recorded pushes, with all of them reversed, and with every second one reversed. At each step what was seen, $z$, picks the dream that is its own (InfoNCE, van den Oord et al., 2018):
#
# $$L = -\log \frac{e^{-d_0 / T}}{\sum_n e^{-d_n / T}}, \qquad d_n = \frac1Z \sum_i \frac{(\hat z^{(n)}_i - z_i)^2}{\sigma^2}$$
#
# The positive is the dream under the true pushes ($n = 0$), the negatives are the other two, σ is the one in the loss of M's mean, and $T = 0.1$. The loss is added to those of M's practice with weight 10, on every fourth sequence (the other dreams cost time). Nothing else changes: the same start, the same number of steps, the same seeds. T and the weight were set once, by the size of the terms, and not tuned.

# %% tags=["define", "extra"]
TEMPERATURE, CONTRAST = 0.1, 10.0  # T, and the weight of the loss


def other_pushes(a: Tensor, read: int) -> Tensor:
    """(3, B, T): the pushes a (B, T) themselves, then all reversed, then every second one, from the last step that M reads."""
    alone = torch.arange(a.shape[1], device=a.device) - (read - 1)  # (T,) counts the steps alone
    return torch.stack([a, torch.where(alone >= 0, 1 - a, a), torch.where((alone >= 0) & (alone % 2 == 0), 1 - a, a)])


def info_nce(imagined: Tensor, z: Tensor) -> Tensor:
    """The loss of each step, (B, T), in nats: dreams (N, B, T, Z), of which the first is the true one, before what was seen, z (B, T, Z)."""
    nearness = -(imagined - z).square().mean(-1) / SPREAD**2 / TEMPERATURE  # (N, B, T)
    return nearness.logsumexp(0) - nearness[0]


def contrast(m: M, z: Tensor, a: Tensor, real: Tensor, read: int) -> Tensor:
    """What `train_m` adds to its loss, from every fourth of its sequences: z (B, T + 1, Z), a and real (B, T)."""
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
# **How far does it drift?** As in part 9: degrees, millimetres, KL, and, new, the verifier's loss: −log of its confidence in what M dreams. (A verifier reads M's $h$, so each M has one of its own, trained as in part 9.)
#
# **Does it rank controllers?** Who chooses by dreams needs only the right order. Thirty controllers, from useless to perfect, taken from the path of C's search, two thirds of them with noise on top, play eight real episodes each, once. Then each M dreams their lives for 30, 60 and 100 steps, from the same 256 calm moments, and we compare the order of the imagined returns with the real one: Spearman's correlation, with a bootstrap interval over the thirty. Last, each imagined reward is weighed by the verifier's confidence. That makes four arms: baseline, contrastive, and both again with these weights.
#
# Three seeds each: M's teacher forcing, its practice and its verifier are trained anew; V and the data stay.

# %% tags=["define", "extra"]
RANKED, LONG = 30, (30, 60, 100)  # controllers; horizons in steps


def make_skilled(progress: Progress, world: World, path: Tensor, *, seed: int, episodes: int, workers: int) -> dict:
    """Controllers of all skills: `weights` (RANKED, Z + H + 1) from a search's path (G, Z + H + 1), each third with noise of 0, 0.3 and 1 times its own size; and their mean `real` returns."""
    luck = torch.Generator().manual_seed(seed)
    when = (len(path) ** torch.linspace(0, 1, RANKED) - 1).long().clamp(max=len(path) - 1)  # early generations differ most
    size = torch.tensor([0.0, 0.3, 1.0]).repeat(RANKED)[:RANKED, None] * path[when].norm(dim=1, keepdim=True)
    noise = F.normalize(torch.randn(RANKED, path.shape[1], generator=luck), dim=1)
    weights = path[when] + size * noise
    real = [float(np.mean(lives(Agent(world, controller(one.to(DEVICE))), "roads", seed, episodes, workers))) for one in weights]
    return {"weights": weights, "real": real}


@torch.no_grad()
def imagined_returns(world: World, verifier: Verifier, weights: Tensor, starts: State) -> Tensor:
    """A controller's mean return in dreams of each of LONG, (2, 3): as M pays it, and each reward weighed by the verifier's confidence."""
    alive, total, found = torch.ones_like(starts.blind[:, 0]), torch.zeros(2), []
    for k, step in enumerate(dream(world.m, starts, controller(weights), LONG[-1])):
        says = world.m.says(step.state)
        alive = alive * torch.sigmoid(-says.done)  # (B,)
        paid = alive * says.reward
        total = total + torch.stack([paid.mean(), (paid * verifier(step.state).sigmoid()).mean()]).cpu()
        found += [total] if k + 1 in LONG else []
    return torch.stack(found, 1)


def rank_interval(a: list[float], b: list[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of Spearman's correlation, over the pairs."""
    luck, both = np.random.default_rng(0), np.array([a, b])
    drawn = [correlations(*both[:, luck.integers(len(a), size=len(a))])[1] for _ in range(1_000)]
    return tuple(float(value) for value in np.nanquantile(drawn, (0.025, 0.975)))


# %% tags=["define", "extra"]
@torch.no_grad()
def verifier_loss(world: World, verifier: Verifier, horizon: int, count: int = 300) -> list[float]:
    """Mean −log confidence (nats) in M's states after each of T steps alone, on recorded windows; nan where none is long enough."""
    rows = windows(world.memory, world.context + horizon, count)  # (S, C + T)
    z, a = world.codes.mu[0, rows], world.codes.actions[0, rows]
    lived = [step.state for step in dream(world.m, world.m.begin(z[:, 0]), given(a), rows.shape[1] - 1, z[:, : world.context])][world.context - 1 :]
    return [float(-F.logsigmoid(verifier(state)).mean()) for state in lived]


def drift_lines(world: World, probe: Probe, verifier: Verifier, horizon: int, frames: int = 1) -> list[dict]:
    """`drift` and `verifier_loss` as lines of a table, by frames without looking; `frames`: of one step."""
    found = drift(world, probe, horizon) | {"doubt": verifier_loss(world, verifier, horizon)}
    return [{"frames": frames * (k + 1)} | {what: round(float(values[k]), 3) for what, values in found.items()} for k in range(horizon)]


def judge_m(progress: Progress, world: World, good: World, fresh: World, probe: Probe, verifier: Verifier, skilled: dict, rows: Tensor, *, longest: int) -> dict:
    """One M before both questions: lines for `drift` and for `ranking`. `rows`: moments in which dreams of controllers begin. `longest`: stretch alone on random play."""
    plays = {"good play": (good, 100), "random play": (fresh, longest)}
    lines = [{"play": name} | line for name, (its, horizon) in plays.items() for line in drift_lines(its, probe, verifier, horizon)]
    starts, ranking = world.states(rows), []
    dreamed = torch.stack([imagined_returns(world, verifier, one.to(DEVICE), starts) for one in skilled["weights"]], -1)  # (2, 3, RANKED)
    for weighed, steps, values in ((weighed, steps, dreamed[weighed, k].tolist()) for weighed in (0, 1) for k, steps in enumerate(LONG)):
        low, high = rank_interval(values, skilled["real"])
        found = {"Spearman": correlations(values, skilled["real"])[1], "low": low, "high": high}
        ranking.append({"weighed": weighed, "steps": steps} | {name: round(value, 3) for name, value in found.items()})
    return {"drift": lines, "ranking": ranking}


# %% tags=["define", "extra"]
def show_bands(table: pandas.DataFrame, by: str, x: str, panels: dict[str, str], title: str) -> None:
    """One panel for each column of a table (column -> label): its mean over the seeds, and from the least to the greatest, for each kind in the column `by`."""
    figure, places = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), squeeze=False)
    for place, (column, label) in zip(places[0], panels.items()):
        for style, (kind, rows) in zip(("-", "--", "-.", ":"), table.groupby(by)):
            band = rows.groupby(x)[column].agg(["min", "mean", "max"])
            place.plot(band.index, band["mean"], style, label=kind)
            place.fill_between(band.index, band["min"], band["max"], alpha=0.2)
        place.set(xlabel=x, ylabel=label, yscale="log")
    places[0][0].legend()
    figure.suptitle(title)
    plt.show()


def paired(table: pandas.DataFrame, by: str, column: str) -> pandas.Series:
    """The two kinds in the column `by`, seed by seed: both means, the ratio of the second to the first, the mean difference with a 95 % interval, and Student's p."""
    (_, first), (_, second) = table.set_index("seed")[column].groupby(table.set_index("seed")[by])
    test = stats.ttest_rel(second, first.loc[second.index])
    low, high = test.confidence_interval() if len(second) > 1 else (math.nan, math.nan)
    return pandas.Series({"first": first.mean(), "second": second.mean(), "ratio": second.mean() / first.mean(), "low": low, "high": high, "p": test.pvalue})


# %% tags=["run", "extra"]
forced_stages, plain_stages, skilled_stage = [m_stage], [practice_stage], None
if live & {"researcher", "frontier"}:
    for again_luck in () if tiny else (1, 2):
        again = {"m": settings.m, "seed": settings.seed + again_luck}
        forced_stages.append(keep(train_m, memory, codes, after=(code_stage,), name="m-again", **again))
        again_weights = forced_stages[-1].result["weights"]
        again_stage = keep(train_m, memory, codes, again_weights, after=(forced_stages[-1],), name="practice-again", practice=settings.practice, **again)
        plain_stages.append(again_stage)
if "researcher" in live:
    skilled_settings = {"seed": settings.seed, "episodes": 2 if tiny else 8, "workers": settings.collect.workers}
    skilled_stage = keep(make_skilled, world, c_stage.result["path"], after=(c_stage,), name="skilled", **skilled_settings)
    print("real returns of the thirty:", *(f"{value:.0f}" for value in sorted(skilled_stage.result["real"])))

# %% tags=["run", "extra"]
contrast_lines = {"drift": [], "ranking": []}
if "researcher" in live:
    calm_rows, _ = world.moments(START_POOL, torch.Generator().manual_seed(settings.seed), copies=1)  # the same for each M
    calm = (memory.states[calm_rows][:, 2].abs() < math.radians(4)) & (memory.states[calm_rows][:, 3].abs() < 0.5)  # a good controller survives there
    for arm_luck, (arm_forced, arm_plain) in enumerate(zip(forced_stages, plain_stages)):
        arm_settings = {"m": settings.m, "practice": settings.practice, "seed": settings.seed + arm_luck}
        arm_contrast = keep(train_m, memory, codes, arm_forced.result["weights"], contrast, after=(arm_forced,), name="contrastive", **arm_settings)
        for arm_name, arm_stage in (("baseline", arm_plain), ("contrastive", arm_contrast)):
            arm_worlds = [its._replace(m=frozen(M(settings.v.latents, settings.m.hidden), arm_stage.result)) for its in (world, good_world, fresh_world)]
            arm_door = keep(
                train_verifier, arm_worlds[0], after=(arm_stage,), name="verifier-again", verifier=settings.verifier, seed=settings.seed + arm_luck
            )
            arm_verifier = frozen(Verifier(settings.v.latents, settings.m.hidden), arm_door.result)
            judged_stage = keep(judge_m, *arm_worlds, wide_probe, arm_verifier, skilled_stage.result, calm_rows[calm][:256],
                                after=(arm_stage, arm_door, skilled_stage), name="judged", longest=longest_alone)  # fmt: skip
            for contrast_kind, contrast_kept in contrast_lines.items():
                contrast_kept += [{"arm": arm_name, "seed": settings.seed + arm_luck} | line for line in judged_stage.result[contrast_kind]]
contrast_drift = table_of("researcher_drift", contrast_lines["drift"])
contrast_ranking = table_of("researcher_ranking", contrast_lines["ranking"])

# %% tags=["run", "extra"]
for drift_play, drift_rows in contrast_drift.groupby("play") if len(contrast_drift) else ():
    drift_labels = {"theta": "median |error| of θ (degrees)", "x": "median |error| of x (mm)", "kl": "KL (nats)", "doubt": "verifier's loss (nats)"}
    show_bands(drift_rows, "arm", "frames", drift_labels, f"Drift, {drift_play}: mean and range of the seeds")
    drift_last = drift_rows[drift_rows["frames"].isin((10, 30, 60, drift_rows["frames"].max()))]
    print(f"{drift_play}: baseline (first) and contrastive (second)")
    display(pandas.DataFrame({(what, k): paired(rows, "arm", what) for what in drift_labels for k, rows in drift_last.groupby("frames")}).T.round(3))

# %% tags=["run", "extra"]
if len(contrast_ranking):
    display(contrast_ranking.pivot_table(index=["arm", "weighed"], columns="steps", values="Spearman", aggfunc=["mean", "min", "max"]))
    display(contrast_ranking.pivot_table(index=["arm", "weighed"], columns="steps", values=["low", "high"]).round(3))
    rank_tests = {(weighed, steps): paired(rows, "arm", "Spearman") for (weighed, steps), rows in contrast_ranking.groupby(["weighed", "steps"])}
    display(pandas.DataFrame(rank_tests).T.round(3))

# %% [markdown]
# ⟦TEXT-RESEARCHER⟧
#
# <details><summary><b>Exercise 11.</b> ⟦EXERCISE⟧ (Solution)</summary>
#
# ⟦SOLUTION⟧
# </details>
