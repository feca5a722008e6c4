# %% [markdown]
# ## 8 · Waking up
#
# 100 real episodes on seeds that were used for nothing else. No exploration, no selection, one run. Beside C play the two of part 1, on seeds of their own: the coin, and the hand-written rule.

# %% tags=["define"]
from scipy import stats


def final_test(progress: Progress, agent: Agent, *, purpose: str, episodes: int, seed: int, workers: int) -> dict:
    """Returns on the test seeds. The first eight episodes are kept with frames and states, for films and measurements."""
    played = play(agent, seeds_for(purpose, seed, episodes), workers, purpose)
    write_dataset(played[:8], progress.folder / "episodes", "C, test seeds")
    return {"returns": [float(len(episode.actions)) for episode in played], "parts": ["episodes"]}


def confidence_interval(values: list[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of the mean: how it varies when the values are drawn from themselves, again and again."""
    return tuple(map(float, stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval))


def correlations(a: list[float], b: list[float]) -> tuple[float, float]:
    """Pearson's and Spearman's correlation; nan where one side does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan
    return float(stats.pearsonr(a, b).statistic), float(stats.spearmanr(a, b).statistic)


# %% tags=["run"]
test_settings = {"episodes": settings.evaluate.episodes, "seed": settings.seed, "workers": settings.collect.workers}
test_stage, test_episodes = recorded(Agent(world, ship), function=final_test, after=(c_stage,), purpose="test", **test_settings)
test_returns = test_stage.result["returns"]
baselines = {
    "coin": lives(RandomPolicy(settings.seed), "baselines", settings.seed, settings.evaluate.baseline_episodes, settings.collect.workers),
    "hand-written rule on the true state": lives(hand_written_policy, "baselines", settings.seed, settings.evaluate.baseline_episodes, settings.collect.workers),
}
low, high = confidence_interval(test_returns)
who_plays = baselines | {"C, trained in dreams": test_returns}
print(f"mean of {len(test_returns)} real test episodes: {np.mean(test_returns):.1f}  (95 % interval {low:.1f} to {high:.1f}), worst {min(test_returns):.0f}")
print("\n".join(f"{name}: mean {np.mean(values):.1f}, from {min(values):.0f} to {max(values):.0f}" for name, values in who_plays.items()))
print(f"the cart stays within {max(float(np.abs(episode.states[:, 0]).max()) for episode in test_episodes):.2f} m of the centre in the first {len(test_episodes)} of them")
if c_stage.key.startswith("pretrained"):
    print(f"V, M and C come from the checkpoint, trained with seed {c_stage.key.partition('-seed-')[2]}; they played here with seed {settings.seed}")

# %% tags=["run"]
plt.figure(figsize=(9, 3.4))
plt.hist(list(who_plays.values()), np.arange(0, 526, 25), color=(GREY, ORANGE, BLUE), label=list(who_plays))
plt.axvline(475, color=RED, ls="--", label="475: solved, says gymnasium")
plt.gca().set(xlabel="return (steps)", ylabel="episodes", title="Real episodes")
plt.legend(loc="upper center")
plt.show()

# %% [markdown]
# ⟦TEST⟧
#
# <details><summary><b>Exercise 7.</b> Suppose all 100 test episodes reach 500. What can you say about the probability p of a failure? (Solution)</summary>
#
# If p were 3 %, 100 episodes without a failure would have probability 0.97¹⁰⁰ = 0.048. So with 95 % confidence p is below 3 %: the *rule of three*, 3/n. A perfect score is not a proof of perfection.
# </details>
#
# ### Does a good dream mean a good life?
#
# Each controller that was looked at along the way has a dream return and a real return. If dreams are worth anything, the two must rise together. The recipe also asks how far imagined and real latents lie apart: the **KL** between what V sees and what M believes, one step ahead and thirty.

# %% tags=["define"]
def gaussian_kl(mu: Tensor, log_var: Tensor, says: Says) -> Tensor:
    """KL(q(z | x) ‖ p_M) in nats, summed over the dimensions: (..., Z) -> (...). The encoder's own noise is part of what an observer sees, so it is added to M's variance."""
    variance = says.log_var.exp() + log_var.exp()  # (..., Z)
    ratio = log_var.exp() / variance
    return 0.5 * (ratio - 1 - ratio.log() + (mu - says.mu).square() / variance).sum(-1)


def open_loop_kl(world: World, horizon: int) -> Tensor:
    """Mean KL after each of T steps alone, (T,): between V's posterior of the real latent and M's belief; nan where no episode is long enough."""
    rows, says = open_loop(world, horizon)
    return gaussian_kl(world.codes.mu[0, rows], world.codes.log_var[0, rows], says).mean(0)


# %% tags=["run"]
pearson, spearman = correlations(learned["dream"], look_means)
plt.figure(figsize=(6.5, 3.6))
plt.scatter(learned["dream"], look_means, c=learned["updates"], cmap="viridis", norm="log", edgecolors="white")
plt.colorbar(label="imagined updates")
plt.gca().set(xlabel="dream return", ylabel=f"real return (of {LOOK_STEPS} steps)", title="One dot per look")
plt.show()
print(f"{len(look_means)} looks: Pearson {number(pearson, 2)}, Spearman {number(spearman, 2)}; {sum(mean == LOOK_STEPS for mean in look_means)} of them are perfect")
test_world = world.looking_at(test_episodes)
test_kl = open_loop_kl(test_world, 30)
print(f"KL between real and imagined latents on the test episodes: {number(float(test_kl[0]), 1)} nats one step ahead, {number(float(test_kl[29]), 1)} after 30 steps alone")

# %% [markdown]
# ⟦CORRELATION⟧
#
# ### What is kept
#
# The film on the first page: the first test episode, as the real environment shows it, as V redraws it, and as M dreams it. Every 30 steps M reads eight real frames again; then it goes on alone, under the real pushes.

# %% tags=["define"]
@torch.no_grad()
def three_films(world: World, length: int, horizon: int = 30) -> np.ndarray:
    """Real, redrawn and dreamed frames of the first episode, one above the other: (T, 96, 64) in [0, 1]. M looks again every `horizon` steps."""
    read, memory = world.context, world.memory
    rows = memory.rows[memory.episode == 0][: length + read]
    z, a = world.codes.mu[0, rows][None], memory.actions[rows][None]  # (1, T, Z), (1, T)
    dreamed = [z[0, :read]]
    for first in range(0, len(rows) - read, horizon):
        last = min(first + read + horizon, len(rows))
        path = stacked(list(dream(world.m, world.m.begin(z[:, first]), given(a[:, first:]), last - first - 1, z[:, first : first + read])))
        dreamed.append(path.state.z[0, read - 1 :])
    pictures = [memory.stack(rows)[:, -1], *(world.v.decode(path)[:, -1] for path in (z[0], torch.cat(dreamed)))]  # (T, 64, 64) each
    return torch.cat([film[:, BAND] for film in pictures], 1)[read:].cpu().numpy()  # (T, 96, 64)


# %% tags=["run"]
wake_film = three_films(test_world, 100)
if len(wake_film):
    show_gif(wake_film, "from above: real, redrawn by V, dreamed by M (which looks once every 30 steps)")

# %% [markdown]
# Two seconds of its life, and by eye the three are hard to tell apart. It is kept, and so are the checkpoint (a `safetensors` file: tensors only, no code), sixteen imagined rollouts under random pushes for whoever wants to look at a dream without running one, and `manifest.json`, which holds the main numbers.

# %% cellView="form" tags=["define"]
# @title What the checkpoint and the manifest hold
from safetensors.torch import save_file


def save_checkpoint(path: Path, stages: list[Stage], settings: Settings) -> str:
    """Write the results of some stages to one safetensors file: tensors as tensors, everything else as JSON beside them. Returns the file's SHA-256."""
    parts = {f"{stage.name}/{name}": value for stage in stages for name, value in stage.result.items()}
    for name in [name for name, value in parts.items() if isinstance(value, dict)]:
        parts |= {f"{name}/{inner}": value for inner, value in parts.pop(name).items()}
    tensors = {name: part.cpu().clone(memory_format=torch.contiguous_format) for name, part in parts.items() if isinstance(part, Tensor)}  # no two share memory
    others = {name: part for name, part in parts.items() if not isinstance(part, Tensor)}
    about = {"settings": settings.model_dump(mode="json"), "values": others, "seconds": {stage.name: stage.seconds for stage in stages}}
    save_file(tensors, path, {"about": json.dumps(about)})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def strict(value: Any) -> Any:
    """The same value as strict JSON can hold it: what could not be measured (nan) becomes null."""
    if isinstance(value, dict):
        return {name: strict(part) for name, part in value.items()}
    return [*map(strict, value)] if isinstance(value, (list, tuple)) else None if isinstance(value, float) and not math.isfinite(value) else value


def hardware_name(device: torch.device) -> str:
    """The GPU's name, or the number of CPU cores."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores, no GPU"


def open_loop_rows(table: dict[str, Tensor]) -> dict:
    """Median open-loop errors at a few horizons, by name: θ in degrees and x in metres."""
    return {
        name: {str(k): {"theta_degrees": math.degrees(errors[k - 1, 2]), "x_metres": float(errors[k - 1, 0])} for k in HORIZONS}
        for name, errors in table.items()
    }


@torch.no_grad()
def imagined_rollouts(world: World, starts: State, seed: int, count: int = 16, steps: int = 30) -> dict[str, Tensor]:
    """Dreams under random pushes: `z` (B, T, Z), `survive` (B, T) the probability to be alive after each step, `actions` (B, T)."""
    pushes = torch.randint(2, (count, steps), generator=torch.Generator().manual_seed(seed)).to(starts.z.device)
    path = stacked(list(dream(world.m, starts.pick(slice(count)), given(pushes), steps)))
    return {"z": path.state.z.cpu(), "survive": torch.sigmoid(-path.says.done).cumprod(1).cpu(), "actions": pushes.cpu()}


# %% cellView="form" tags=["run"]
# @title Save the checkpoint, imagined rollouts and the manifest
OUT = usable_folder(Path(os.environ.get("WM_OUT_FOLDER", RUN_FOLDER / "what_is_kept")))
kept_stages = [v_stage, broken_stage, m_stage, *exhibit_stages.values(), practice_stage, verifier_stage, c_stage, control_stage]
digest = save_checkpoint(OUT / "checkpoint.safetensors", kept_stages, settings)
(OUT / "film.gif").write_bytes(gif_of(wake_film) if len(wake_film) else b"")
save_file(imagined_rollouts(world, pool, settings.seed), OUT / "imagined_rollouts.safetensors")
own_z, own_zh = z_probe.score(test_world.codes.mu[0], test_world.memory.states), zh_probe.score(*read_rows(test_world))
real_steps_of = {
    "random play, trained on": random_steps, "looks, only logged": int(sum(map(sum, learned["real"])) + sum(control_returns)),
    "measured, by others than C": int(sum(len(episode.actions) for episode in good_episodes) + sum(map(sum, baselines.values()))), "test": int(sum(test_returns)),
}  # fmt: skip
manifest = {
    "profile": profile_name(PROFILE), "seed": settings.seed, "hardware": hardware_name(DEVICE),
    "versions": {"python": platform.python_version()} | {module.__name__: module.__version__ for module in (torch, gym, datasets, np, ng)},
    "stages": {stage.name: round(stage.seconds, 1) for stage in [collect, code_stage, good_stage, *kept_stages, test_stage]},
    "parameters": {"V": sum(p.numel() for p in v.parameters()), "M": sum(p.numel() for p in world.m.parameters()), "C": len(ship)},
    "real_steps": real_steps_of, "real_returns": test_returns, "real_return_mean": float(np.mean(test_returns)),
    "baseline_returns": {name: float(np.mean(values)) for name, values in baselines.items()} | {"untrained M": float(np.mean(control_returns))},
    "probe_r2": {"z": {"random": z_score["r2"], "controller": own_z["r2"]}, "z_h": {"random": zh_score["r2"], "controller": own_zh["r2"]}},
    "probe_rms": {"z": {"random": z_score["rms"], "controller": own_z["rms"]}, "z_h": {"random": zh_score["rms"], "controller": own_zh["rms"]}},
    "open_loop_error": open_loop_rows(after_practice | before_practice | swaying), "latent_kl": {"1": float(test_kl[0]), "30": float(test_kl[29])},
    "dream_real": {"pearson": pearson, "spearman": spearman, "updates": learned["updates"], "dream": learned["dream"], "real": look_means},
    "dream_steps_per_s": dream_rate, "real_steps_per_s": real_rate, "checkpoint_sha256": digest,
}  # fmt: skip
(OUT / "manifest.json").write_text(json.dumps(strict(manifest), indent=1, allow_nan=False))
print(f"on C's own episodes, (z, h) read: θ to {math.degrees(own_zh['rms']['theta']):.2f}°, x to {1000 * own_zh['rms']['x']:.0f} mm")
print("real steps:", "; ".join(f"{name}: {count:,}" for name, count in real_steps_of.items()))
print(f"checkpoint: {(OUT / 'checkpoint.safetensors').stat().st_size / 1e6:.1f} MB, SHA-256 {digest[:12]}…")

