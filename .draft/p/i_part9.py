# %% [markdown]
# ## 9 · When the dream lies
#
# Everybody who trains in a dream meets the same wall: the dream says 29 of 30, and the real pole falls after a hundred steps. Our own search went through such a place. Among the controllers that were looked at we take those that survive nearly as long in dreams as the best one (within one step of 30), and of these the one with the lowest real return: the *liar*.
#
# It plays one real episode; we go back to thirty steps before its end, and let the dream take over from there. **Predict:** at which step will the dream part from reality?

# %% tags=["define", "extra"]
@torch.no_grad()
def live_on(world: World, weights: Tensor, starts: State, steps: int) -> tuple[Tensor, Tensor]:
    """One controller (Z + H + 1,) in dreams: the imagined latents (S, T, Z), and the probability to be alive after each step (S, T)."""
    path = stacked(list(dream(world.m, starts, controller(weights), steps)))
    return path.state.z, torch.sigmoid(-path.says.done).cumprod(1)


def find_liar(survived: list[float], real: list[float]) -> int:
    """Of the controllers that survive within one step as long as the best one in dreams, the one with the lowest real return."""
    promising = [k for k, steps in enumerate(survived) if steps > max(survived) - 1]
    return min(promising, key=lambda k: real[k])


# %% tags=["run", "extra"]
# Random play is always about to fall. For this question we take moments from which a good controller can survive.
read_pool = zh_probe(features(pool))  # (S, 4)
calm = pool.pick((read_pool[:, 2].abs() < math.radians(4)) & (read_pool[:, 3].abs() < 0.5)).pick(slice(512))  # angle in rad, angular velocity in rad/s
looked_at = [learned["path"][updates // settings.c.population - 1].to(DEVICE) for updates in learned["updates"]]
survived = [float(live_on(world, weights, calm, 30)[1].sum(1).mean()) for weights in looked_at]
liar = find_liar(survived, look_means)
print("\n".join(f"after {updates:5,d} updates: {steps:.1f} of 30 dreamed steps, {real:5.1f} of {LOOK_STEPS} real ones" + "  <- the liar" * (k == liar)
                for k, (updates, steps, real) in enumerate(zip(learned["updates"], survived, look_means))))  # fmt: skip

lied = world.looking_at(play(Agent(world, looked_at[liar]), seeds_for("check", settings.seed + 1, 1), 1))  # one real episode of its own
lie_begin = max(min(settings.m.context, (len(lied.memory) - 1) // 2), len(lied.memory) - 31)  # thirty steps before its end, where that leaves M something to read
lie_steps = len(lied.memory) - 1 - lie_begin
lie_path, lie_alive = live_on(world, looked_at[liar], lied.states(lied.memory.rows[lie_begin : lie_begin + 1]), lie_steps)  # (1, T, Z), (1, T)
dreamed_angle = np.degrees(wide_probe(seen_again(v, lie_path))[0, :, 2].cpu().numpy())  # (T,)
real_angle = np.degrees(lied.memory.states[lie_begin + 1 :, 2].cpu().numpy())  # (T,)
lie_time, lie_pick = range(1, lie_steps + 1), np.unique(np.linspace(0, lie_steps - 1, 6).astype(int))
plot({"lines": {"real": (lie_time, real_angle), "dreamed": (lie_time, dreamed_angle)}, "levels": {"the episode ends": math.copysign(12, real_angle[-1])},
      "xlabel": "steps since the dream began", "ylabel": "angle θ (degrees)", "title": "The same controller, in reality and in its dream"}, size=(7, 3))  # fmt: skip
lie_films = {"real": lied.memory.stack(lied.memory.rows[lie_begin + 1 :])[lie_pick, -1], "dream": v.decode(lie_path[0])[lie_pick, -1]}
show_pictures(lie_films, "The last steps of a controller that its dreams praised", [f"+{k + 1}" for k in lie_pick], slice(0, 64))
agree = np.flatnonzero(np.abs(dreamed_angle - real_angle) <= 2)  # the steps at which the two still agree
print(f"its real episode lasted {lie_begin + lie_steps} steps; the dream gives it a {100 * lie_alive[0, -1]:.0f} % chance to be alive at its end")
print(f"both angles agree within 2° for the last time at step {agree[-1] + 1 if len(agree) else 0}; at the end they read {real_angle[-1]:.1f}° and {dreamed_angle[-1]:.1f}°")

# %% [markdown]
# ⟦LIAR⟧
#
# ### Drift: how fast a dream leaves reality
#
# Thirty steps are what C trains on. How does it go on to a hundred? We ask for the **error** of angle and position as in part 5, and for M's **calibration**: how often does the true latent lie in M's 50 % interval, and how often in its 90 % one? M has seen none of these episodes: the good rule's, and a few hundred new random ones (these are short, so their curves end early).

# %% tags=["define", "extra"]
WIDTH = {50: 0.6745, 90: 1.645}  # half the width of a normal distribution's 50 % and 90 % interval, in σ


def drift(world: World, probe: Probe, horizon: int, count: int = 300) -> dict[str, Tensor]:
    """What becomes of M's predictions over T steps without looking, (T,) each; nan where no recorded episode is long enough.

    `theta` (degrees) and `x` (mm), median errors as a spectator would read them; `kl` (nats); `50` and `90`, per cent of true latents inside M's intervals."""
    rows, says = open_loop(world, horizon, count)  # (S, T)
    truth, log_var = world.codes.mu[0, rows], world.codes.log_var[0, rows]  # (S, T, Z) each
    error = median((probe(seen_again(world.v, says.mu)) - world.memory.states[rows]).abs())  # (T, 4)
    surprise = (truth - says.mu).abs() / (0.5 * says.log_var).exp()  # (S, T, Z)
    inside = {str(share): 100 * (surprise < width).float().mean((0, 2)) for share, width in WIDTH.items()}
    return {"theta": torch.rad2deg(error[:, 2]), "x": 1000 * error[:, 0], "kl": gaussian_kl(truth, log_var, says).mean(0), **inside}


# %% tags=["run", "extra"]
fresh_settings = {"episodes": settings.evaluate.fresh_episodes, "seed": settings.seed + 1, "workers": settings.collect.workers}
_, fresh_episodes = recorded(RandomPolicy(settings.seed + 1), purpose="fresh", **fresh_settings)
fresh_world = world.looking_at(fresh_episodes)
longest_alone = max(1, min(40, max(len(episode.actions) for episode in fresh_episodes) - settings.m.context - 1))
drifts = {"good play": drift(good_world_practised, wide_probe, 100), "random play": drift(fresh_world, wide_probe, longest_alone)}
time_of = {name: range(1, len(found["x"]) + 1) for name, found in drifts.items()}
plot(*(
    {"lines": {name: (time_of[name], found[key].cpu()) for name, found in drifts.items()}, "xlabel": "steps without looking", "ylabel": label, "ylim": (0, None)}
    for key, label in (("theta", "median |error| of θ (degrees)"), ("x", "median |error| of x (mm)"))
), {"lines": {f"{share} %, {name}": (time_of[name], found[str(share)].cpu()) for name, found in drifts.items() for share in WIDTH},
    "levels": {"_50": 50, "an honest M": 90}, "xlabel": "steps without looking", "ylabel": "inside M's interval (%)", "ylim": (0, 102)}, size=(4.6, 3.6))  # fmt: skip
print("\n".join(
    f"{name:11s} {k:3d} steps: θ {number(float(found['theta'][k - 1]), 2, '°'):>6s}, x {number(float(found['x'][k - 1]), 0, ' mm'):>6s}, KL {number(float(found['kl'][k - 1]), 0):>3s} nats,"
    f" inside 50 %: {number(float(found['50'][k - 1]), 0, ' %')}, 90 %: {number(float(found['90'][k - 1]), 0, ' %')}"
    for name, found in drifts.items() for k in (1, 5, 12, 30, 60, 100) if k <= len(found["x"])
))  # fmt: skip

# %% [markdown]
# ⟦DRIFT⟧ (Some of this growth is no fault of M's: a pole magnifies what was wrong at first. Exercise 8.)
#
# A longer question to the same dream: C itself, in dreams of 150 steps, five times as long as those it was trained in. They begin in moments of its own test episodes, so we know what reality did: it stood. **Predict** how many of the dreams are still alive at the end.

# %% tags=["run", "extra"]
test_age = test_world.memory.rows - test_world.memory.first
from_life = test_world.memory.rows[(test_age >= settings.m.context) & ((test_age - settings.m.context) % 20 == 0) & (test_age < 300) & (test_world.memory.rows < test_world.memory.last)]
long_path, long_alive = live_on(world, ship, test_world.states(from_life), 150)  # (S, T, Z), (S, T)
long_angle = torch.rad2deg(wide_probe(seen_again(v, long_path[:, 9::10]))[..., 2].square().mean(0).sqrt()).cpu()  # (15,)
in_life = math.degrees(test_world.memory.states[:, 2].square().mean().sqrt())
plot(
    {"lines": {"_": (range(1, 151), 100 * long_alive.mean(0).cpu())}, "xlabel": "imagined steps", "ylabel": "dreams still alive (%)", "ylim": (0, 102)},
    {"lines": {"in dreams": (range(10, 151, 10), long_angle)}, "levels": {"in reality": in_life}, "xlabel": "imagined steps", "ylabel": "rms of θ (degrees)", "ylim": (0, None)},
    title="C in dreams five times as long",
)  # fmt: skip
long_shares = ", ".join(f"{100 * long_alive[:, k - 1].mean():.0f} %" for k in (30, 60, 100, 150))
print(f"alive after 30, 60, 100, 150 steps: {long_shares}; angle at the end {long_angle[-1]:.1f}° rms, in reality {in_life:.1f}°")

# %% [markdown]
# ⟦LONG⟧
#
# ### What the verifier sees
#
# The verifier of part 6 learned to tell recorded moments from noisy ones. The measure is the **AUROC**: the probability that a random real moment gets a higher score than a random false one (½ is guessing). All come from episodes that it has not seen. **Predict:** noise it will spot. But a step under the wrong push? A world that stands still for one step? And a dream?

# %% tags=["define", "extra"]
def auroc(real: Tensor, false: Tensor) -> float:
    """The probability that a random real step scores higher than a random false one: (S,) and (F,) scores; ties count half (Mann and Whitney's U)."""
    return float(stats.mannwhitneyu(real.cpu(), false.cpu()).statistic / (len(real) * len(false)))


def unseen_kinds(m: M, now: State, a: Tensor, after: State, spread: Tensor) -> dict[str, State]:
    """False moments of kinds that the verifier was not trained on, by name."""
    return {
        "M's step under the other push": after._replace(z=m.step(now, 1 - a)[0].z),
        "a fifth of the way to another moment": after._replace(z=after.z + 0.2 * (after.z.roll(1, 0) - after.z)),
        "half a spread off in 8 dimensions": after._replace(z=after.z + 0.5 * spread * (torch.arange(len(spread), device=spread.device) < 8)),
        "the world stands still": after._replace(z=now.z),
    }


def reliability(trust: Tensor, truth: Tensor, bins: int = 10) -> tuple[list[float], list[float], float]:
    """Mean confidence and share of real steps in each tenth of the confidence scale, and the mean gap between them, weighted by count."""
    place = (trust * bins).long().clamp(max=bins - 1)
    here = [place == k for k in range(bins) if (place == k).any()]
    said, true = ([float(values[part].float().mean()) for part in here] for values in (trust, truth))
    return said, true, sum(float(part.float().mean()) * abs(a - b) for part, a, b in zip(here, said, true))


# %% tags=["run", "extra"]
judge_luck, others = torch.Generator().manual_seed(settings.seed + 2), range(round(0.8 * len(memory.episodes)), len(memory.episodes))
judged_now, judged_a, judged = real_steps(world, 4_096, others, judge_luck)
spread_z = codes.mu[0].std(0)  # (Z,)
kinds = {"noise, as in training": false_steps(world.m, judged_now, judged_a, spread_z, judge_luck), **unseen_kinds(world.m, judged_now, judged_a, judged, spread_z)}
verifier_auroc = {name: auroc(verifier(judged), verifier(false)) for name, false in kinds.items()}
print("\n".join(f"{name:40s} AUROC {value:.3f}" for name, value in verifier_auroc.items()))
door_scores = torch.sigmoid(torch.cat([verifier(judged), verifier(kinds["noise, as in training"])]))
said, true, verifier_gap = reliability(door_scores, torch.arange(len(door_scores), device=DEVICE) < len(judged_a))
coin_pushes = torch.randint(2, (len(judged_a), 30), generator=judge_luck).to(DEVICE)  # (B, T)
dream_auroc = [auroc(verifier(judged), verifier(step.state)) for step in dream(world.m, judged, given(coin_pushes), 30)]
plot(
    {"lines": {"_honest": ([0, 1], [0, 1], "k:"), "_": (said, true, "o-")}, "xlabel": "the verifier's confidence", "ylabel": "share of real moments", "title": "Calibration"},
    {"lines": {"_": (range(1, 31), dream_auroc)}, "xlabel": "dream step", "ylabel": "AUROC", "ylim": (0.45, 1.02), "title": "Real moments against dreamed ones"},
)  # fmt: skip
print(f"calibration gap {verifier_gap:.3f}; AUROC after 1, 10, 30 dreamed steps: {dream_auroc[0]:.2f}, {dream_auroc[9]:.2f}, {dream_auroc[29]:.2f}")

# %% [markdown]
# ⟦VERIFIER⟧
#
# ### Remedies
#
# The recipe names five ways to keep a dream useful: a penalty on ‖z‖, grounding in real moments, a verifier, short horizons, and latent dropout. The main line needs none of them but grounding: all its dreams begin in recorded moments. Each remedy is a small function that is handed to the one search: what a step pays, what C may read, where dreams begin. Three rows take away something that ships. All searches are a third as long as ours, with two seeds each; C plays a few real episodes on check seeds. **Predict** which three rows do worst.

# %% tags=["define", "extra"]
def norm_penalty(step: Step) -> Tensor:
    """r̂ less 0.3 times the mean square of z, (B,)."""
    return step.says.reward - 0.3 * step.state.z.square().mean(1)


def trusted(verifier: Verifier) -> Callable[[Step], Tensor]:
    """r̂ times the verifier's confidence, (B,)."""
    return lambda step: step.says.reward * torch.sigmoid(verifier(step.state))


def with_dropout(c: CSettings, latents: int, seed: int) -> Callable[[State], Tensor]:
    """What C reads where a fifth of z is hidden (0), other numbers in each of its dreams, the same for all candidates: (P·R, Z + H)."""
    shown = (torch.rand(c.rollouts, latents, generator=torch.Generator().manual_seed(seed)) > 0.2).repeat(c.population, 1).to(DEVICE)  # (P·R, Z)
    return lambda state: features(state._replace(z=state.z * shown))


def try_remedy(progress: Progress, world: World, *how: Any, c: CSettings, seed: int, seeds: int, workers: int) -> dict:
    """Search C with a remedy, once for each of some seeds, and let it play four real episodes each time: returns, and how far the cart went (m)."""
    found = {"returns": [], "farthest": []}
    for k in range(seeds):
        weights = learn(None, world, *how, c=c, seed=seed + k, workers=workers)["weights"]
        played = play(Agent(world, weights), seeds_for("remedies", seed, 4), workers)
        found["returns"].append([float(len(episode.actions)) for episode in played])
        found["farthest"].append(max(float(np.abs(episode.states[:, 0]).max()) for episode in played))
    return found


# %% tags=["run", "extra"]
short_c = settings.c.but(generations=max(4, settings.c.generations // 3))
with torch.no_grad():
    dream_ends = [step.state for step in dream(world.m, pool, controller(ship), settings.c.horizon)][-1]
remedies = {
    "as shipped": (short_c,),
    "penalty on the norm of z": (short_c, norm_penalty),
    "weighed by the verifier": (short_c, trusted(verifier)),
    "a fifth of z hidden from C": (short_c, reward, with_dropout(short_c, settings.v.latents, settings.seed)),
    "dreams of 15 steps": (short_c.but(horizon=15),),
    "noise, τ = 1": (short_c.but(temperature=1.0),),
    "without grounding: from where dreams ended": (short_c, reward, features, dream_ends),
    "without worth for the last state": (short_c.but(last_worth=0.0),),
    "without practice for M": (short_c,),
}
remedy_settings = {"seed": settings.seed, "seeds": settings.evaluate.remedy_seeds, "workers": settings.collect.workers}
remedy_rows = {}
for row, (row_c, *how) in remedies.items():
    looker, made_by = (forced_world, m_stage) if row == "without practice for M" else (world, c_stage)
    remedy_stage = keep(try_remedy, looker, *how, after=(made_by, verifier_stage), name=f"remedy-{list(remedies).index(row)}", c=row_c, **remedy_settings)
    remedy_rows[row] = remedy_stage.result
print("\n" + " " * 44 + "real return, each search   the cart stays within")
for row, found in remedy_rows.items():
    means, far = ([f"{value:.{digits}f}" for value in values] for values, digits in ((map(np.mean, found["returns"]), 0), (found["farthest"], 2)))
    print(f"{row:44s} {', '.join(means):>24s}   {', '.join(far)} m")

# %% tags=["run", "extra"]
plt.figure(figsize=(9, 3.4))
for height, found in enumerate(remedy_rows.values()):
    plt.plot([np.mean(returns) for returns in found["returns"]], [height] * len(found["returns"]), "o", color=BLUE)
plt.yticks(range(len(remedy_rows)), list(remedy_rows), fontsize=10)
plt.gca().set(xlabel="mean real return of four episodes (steps)", xlim=(0, 510), title="The remedies, each alone: one dot per search")
plt.gca().invert_yaxis()
plt.show()

# %% [markdown]
# ⟦REMEDIES⟧
#
# ### Real data again
#
# The recipe lets the controller gather new real data from time to time, so that dream and reality do not part. One **round**: C plays some episodes, with a tenth of its pushes left to a coin; M practises on all data, with half of its windows from the new episodes (a weight in the memory); C is trained anew in the new dreams. This run does not need it, so here it is shown once, and what ships is the C from before. **Predict:** what can M learn from episodes in which nothing goes wrong?

# %% tags=["run", "extra"]
round_stage, own_episodes = recorded(
    Agent(world, ship, 0.1, settings.seed), after=(c_stage,), purpose="round", episodes=settings.round.episodes, seed=settings.seed, workers=settings.collect.workers
)
own_codes = keep(encode_memory, Memory(own_episodes, settings.v.max_shift, DEVICE), v, after=(round_stage, v_stage), name="round-codes", **code_settings)
round_memory = Memory([*random_episodes, *own_episodes], settings.v.max_shift, DEVICE, own=len(own_episodes))
round_codes = Codes(*(torch.cat([old, own_codes.result[name].to(DEVICE)], 1) for name, old in codes._asdict().items()))
round_practice = settings.practice.but(steps=settings.round.steps)
round_m_stage = keep(train_m, round_memory, round_codes, practice_stage.result["weights"], after=(practice_stage, own_codes), name="round-m",
                     m=settings.m, practice=round_practice, seed=settings.seed + 1)  # fmt: skip
round_world = World(v, frozen(M(settings.v.latents, settings.m.hidden), round_m_stage.result), round_memory, round_codes, settings.m.context)
round_c_stage = keep(try_remedy, round_world, after=(round_m_stage,), name="round-c", c=short_c, **remedy_settings)
round_good = good_world._replace(m=round_world.m)
show_open_loop({"M before, seen": after_practice["M, seen"], "M after the round, seen": open_loop_errors(round_good, wide_probe),
                "M before, from z": after_practice["M, from z"], "M after the round, from z": open_loop_errors(round_good, wide_probe, seen=False)}, "A round of real data, good play")  # fmt: skip
print(f"{sum(len(episode.actions) for episode in own_episodes):,} real steps gathered and trained on; real returns of C, trained anew: "
      f"{', '.join(f'{np.mean(returns):.0f}' for returns in round_c_stage.result['returns'])} (before: {', '.join(f'{np.mean(returns):.0f}' for returns in remedy_rows['as shipped']['returns'])})")  # fmt: skip

# %% [markdown]
# ⟦ROUND⟧
#
# ### Many runs
#
# One run is an anecdote. `tests/experiments.py` executes this very notebook with other seeds and settings, and writes one line per run to `assets/experiments/`, the failed runs included. What follows is drawn from there.

# %% tags=["define", "extra"]
import csv


def show_seeds(experiment: str) -> None:
    """Each test episode of each run of an experiment, in words and as a picture; a sentence, where its table is not at hand."""
    path = Path("assets") / "experiments" / f"{experiment}.csv"
    if not path.exists():
        return print(f"{path.as_posix()} is not here: python tests/experiments.py {experiment} makes it")
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    returns = {int(line["seed"]): np.array(line["returns"].split(), float) for line in lines}
    for line in lines:
        print(f"seed {line['seed']:>3s}: {line['status']}, mean {line['real_mean'] or '–':>6s}, worst episode {line['real_worst'] or '–':>5s}")
    plt.figure(figsize=(9, 3))
    for place, values in enumerate(returns.values()):
        plt.plot(place + np.linspace(-0.3, 0.3, len(values)), values, "o", color=BLUE, ms=3, alpha=0.4)
        plt.plot([place - 0.35, place + 0.35], [np.mean(values) if len(values) else np.nan] * 2, color=ORANGE, ls="-")
    plt.axhline(475, color=RED, lw=1, ls="--")
    plt.xticks(range(len(returns)), list(returns))
    plt.gca().set(xlabel="seed", ylabel="return (steps; red: 475)", ylim=(0, 515), title=f"{experiment}: each test episode (dots), mean (bars)")
    plt.show()
    means = sorted(float(line["real_mean"] or 0) for line in lines)
    print(f"{experiment}: {sum(mean >= 475 for mean in means)} of {len(means)} seeds reach 475; median {np.median(means):.1f}, lowest {means[0]:.1f}")


# %% tags=["run", "extra"]
show_seeds("main_line_quick")

# %% [markdown]
# ⟦SEEDS⟧
#
# <details><summary><b>Exercise 8.</b> Left alone, a small error of the angle becomes e ≈ 2.7 times as large in a quarter of a second. Suppose M is off by 0.1° after its first step. After how many steps without looking is it off by 3°, if nothing else goes wrong? (Solution)</summary>
#
# A factor of 30 is e to the power of ln 30 = 3.4, so it takes 3.4 quarters of a second, 0.85 s, or 43 steps of 20 ms. So physics sets a limit to the length of a dream, and a better M moves it only slowly: ten times less error buys 29 more steps.
# </details>

