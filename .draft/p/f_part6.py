# %% [markdown]
# ## 6 · Dreaming
#
# Now M is left alone with pushes that it is given. First with those of a recorded episode, so that the dream can be set beside reality.

# %% tags=["run"]
film_long = memory.last - memory.first >= min(settings.m.context + 30, max(random_lengths))  # (N,)
film_end = int(memory.last[film_long][0])  # of the first random episode that is long enough
film_rows = torch.arange(max(int(memory.first[film_end]), film_end - 30), film_end + 1, device=DEVICE)  # (T + 1,)
with torch.no_grad():
    film_steps = stacked(list(dream(world.m, world.states(film_rows[:1]), given(memory.actions[film_rows][None]), len(film_rows) - 1)))
films = {"real": memory.stack(film_rows[1:])[:, -1].cpu(), "dream": v.decode(film_steps.state.z[0])[:, -1].cpu()}  # (T, 64, 64) each
film_pick = np.unique(np.linspace(0, len(film_rows) - 2, 7).astype(int))
show_pictures({name: film[film_pick] for name, film in films.items()}, "The same pushes, in reality and in a dream", [f"+{k + 1}" for k in film_pick])
show_gif(torch.cat([film[:, ROWS_DRAWN] for film in films.values()], 1).numpy(), "above: real, below: dreamed, under the same pushes")

# %% [markdown]
# Above the last thirty steps of the first random episode that is long enough, below the dream under the same pushes. It starts from real frames and then never looks again. ⟦FILM⟧ (M has practised on this episode; part 9 measures dreams on new ones.)
#
# And how fast is a dream? We time a whole generation's worth of dreams against the real, rendered environment. **Predict** the ratio before you look.

# %% tags=["run"]
import timeit

START_POOL = 8192  # real moments that are kept ready as beginnings of dreams
pool = world.states(*world.moments(START_POOL, torch.Generator().manual_seed(settings.seed)))
crowd = pool.pick(torch.arange(settings.c.population * settings.c.rollouts, device=DEVICE) % START_POOL)  # as many dreams as one generation of C
always_right, rendered = torch.ones(len(crowd.z), settings.c.horizon, device=DEVICE), pixel_cartpole()
with torch.no_grad():
    dream_seconds = timeit.repeat(lambda: list(dream(world.m, crowd, given(always_right), settings.c.horizon))[-1].state.z.cpu(), number=1, repeat=5)
real_seconds = timeit.repeat(lambda: [rendered.reset(seed=k) if k % 20 == 0 else rendered.step(k % 2) for k in range(200)], number=1, repeat=5)
dream_rate, real_rate = len(crowd.z) * settings.c.horizon / float(np.median(dream_seconds)), 200 / float(np.median(real_seconds))
print(f"{dream_rate:,.0f} dreamed steps a second, {real_rate:,.0f} real ones: {dream_rate / real_rate:,.0f} to 1")

# %% [markdown]
# ⟦Hundreds of dreamed steps go by in the time of one rendered step⟧, because nearly a thousand dreams share each matrix product.
#
# ### The variance mask, τ, and two heads
#
# In a dream, noise should enter where M is really unsure, and nowhere else. M's doubt tells: a dimension is *noisy* if the variance of its next value, averaged over real steps, exceeds a small share of the dimension's variance in the data. The temperature τ scales the noise.
#
# **Predict** what the reward head has learned: what does CartPole pay for a good step, and what for the last step before the fall?

# %% tags=["define"]
@torch.no_grad()
def variance_mask(world: World, threshold: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which dimensions get noise in a dream: (Z,) 1.0 or 0.0, and (Z,) the share of variance that M can not predict."""
    rows, copies = world.moments(512, torch.Generator().manual_seed(seed), copies=1)
    _, says = world.m.step(world.states(rows, copies), world.memory.actions[rows])
    share = says.log_var.exp().mean(0) / world.codes.mu[0].var(0)  # (Z,)
    return (share > threshold).float(), share


# %% tags=["run"]
noisy, unsure_share = variance_mask(world, settings.c.mask_threshold, settings.seed)
unsure = {"bars": unsure_share.sort(descending=True).values.cpu(), "levels": {"threshold": settings.c.mask_threshold}, "ylabel": "unpredicted share"}
plot(unsure | {"xlabel": "latent dimension, sorted", "yscale": "log"}, title="Where M is unsure", size=(8, 2.6))
print(f"{int(noisy.sum())} of {len(noisy)} dimensions get noise in a dream")

last_rows = memory.rows[(memory.rows < memory.last) & (memory.rows - memory.first >= settings.m.context // 2)]  # (S,) steps that lead somewhere
_, heads = world.m.step(world.states(last_rows), memory.actions[last_rows])
ended, called = memory.done[last_rows + 1], heads.done > 0  # (S,) each; a logit above 0 is a probability above one half
found_share, right_share = (100 * int((called & ended).sum()) / max(1, int(flags.sum())) for flags in (ended, called))
print(f"reward head: {heads.reward[~ended].mean():.3f} on steps in mid-episode, {heads.reward[ended].mean():.3f} on last steps\n"
      f"termination head: finds {found_share:.0f} % of the ends (recall); {right_share:.0f} % of its calls are right (precision)")  # fmt: skip

# %% [markdown]
# Each bar is one dimension; above the red line it gets noise. ⟦MASK⟧ And noise makes a dream a less precise judge (part 9), so C's dreams run at `c.temperature` τ = 0, without noise; raise it in the form and see.
#
# The reward head is blind: it says 1, always, and it is right: CartPole pays 1 for every step, the fatal one included. A dream judged by this head alone would find all controllers equally good. So the imagined return multiplies in the *survival probability* from the termination head, $\sum_k \hat r_k \prod_{j \le k} (1 - p_{\text{done},j})$. Why a probability, and not a hard end? Because most candidates survive thirty steps, and a slightly safer one must score slightly better. An episode that ran out of time (truncation) is not an end: the pole was still standing.
#
# ### A doorkeeper: does this moment look real?
#
# A dream never says that it has left reality. A **verifier** is a small network that tries to: it looks at where a life stands after a step, $(z_{t+1}, z_{t+1} - z_t, h_{t+1})$, and says how likely that is a recorded moment. We train it by contrast. The positives are real moments. The negatives are imagined ones with a perturbed latent, of two kinds: M's prediction with noise added to it, and M's prediction from a $z_t$ that had already drifted. (It is our own construction, not a paper's.) C does not need it; part 9 measures what it sees, and what it is worth.

# %% tags=["define"]
class Verifier(nn.Module):
    """Is this a recorded moment? A network with two hidden layers. It returns logits: positive means real, and their sigmoid is the confidence."""

    def __init__(self, latents: int, hidden: int) -> None:
        """`latents`, `hidden`: the sizes of z and h."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * latents + hidden))
        self.register_buffer("scale", torch.ones(2 * latents + hidden))
        self.layers = nn.Sequential(nn.Linear(2 * latents + hidden, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))

    def look(self, state: State) -> Tensor:
        """What it reads, (B, 2Z + H)."""
        return torch.cat([state.z, state.z - state.before, state.h], 1)

    def forward(self, state: State) -> Tensor:
        """Logits (B,)."""
        return self.layers((self.look(state) - self.mean) / self.scale)[:, 0]


# %% tags=["define"]
VERIFIER_POOL = 20_000  # recorded steps to learn from


def real_steps(world: World, count: int, episodes: range, generator: torch.Generator) -> tuple[State, Tensor, State]:
    """`count` recorded steps at random, of all copies, from some of the episodes: the states before, the pushes (B,), the states after."""
    rows, copies = world.moments(count, generator, episodes=episodes)  # (B,) each
    now, a = world.states(rows, copies), world.codes.actions[copies, rows]
    after, _ = world.m.step(now, a)
    return now, a, after._replace(z=world.codes.mu[copies, rows + 1], blind=now.blind)


def false_steps(m: M, now: State, a: Tensor, spread: Tensor, generator: torch.Generator) -> State:
    """What M imagines in place of recorded steps, with noise of 3 % to 100 % of the data's `spread` (Z,): in half of them on the next z, in the others on the present one."""
    size = 10 ** (-1.5 * torch.rand(len(a), 1, generator=generator)).to(a.device)  # (B, 1)
    noise = size * spread * torch.randn(now.z.shape, generator=generator).to(a.device)  # (B, Z)
    drifted = torch.arange(len(a), device=a.device)[:, None] % 2 == 0  # (B, 1)
    after, _ = m.step(now._replace(z=now.z + noise * drifted), a)
    return after._replace(z=after.z + noise * ~drifted)


def train_verifier(progress: Progress, world: World, *, verifier: TrainSettings, seed: int) -> dict:
    """Train the verifier on recorded steps of the first 80 % of the episodes, and on false ones made from them."""
    torch.manual_seed(seed)
    first = range(round(0.8 * len(world.memory.episodes)))
    now, a, after = real_steps(world, VERIFIER_POOL, first, torch.Generator().manual_seed(seed))
    model = Verifier(now.z.shape[1], now.h.shape[1]).to(now.z.device)
    model.mean.copy_(model.look(after).mean(0))
    model.scale.copy_(model.look(after).std(0) + 1e-3)
    truth = torch.cat([torch.ones(verifier.batch), torch.zeros(verifier.batch)]).to(now.z.device)  # (2B,)
    spread = world.codes.mu[0].std(0)  # (Z,)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one random batch, and what to log."""
        pick = torch.randint(len(a), (verifier.batch,), generator=generator).to(a.device)
        false = false_steps(world.m, now.pick(pick), a[pick], spread, generator)
        loss = F.binary_cross_entropy_with_logits(torch.cat([model(after.pick(pick)), model(false)]), truth)
        return loss, {"loss": loss}

    return fit(model, batch_loss, verifier, seed, progress, "verifier")


# %% tags=["run"]
verifier_stage = keep(train_verifier, world, after=(practice_stage,), name="verifier", verifier=settings.verifier, seed=settings.seed)
verifier = frozen(Verifier(settings.v.latents, settings.m.hidden), verifier_stage.result)


# %% cellView="form" tags=["define"]
# @title A dream player
@torch.no_grad()
def show_dream(world: World, noisy: Tensor, starts: State, start: int, τ: float, pushes: str, steps: int = 40) -> None:
    """Dream from one of the starts, at temperature τ, under a pattern of pushes such as "left right" that is repeated, and show the film."""
    a = torch.tensor([[word == "right" for word in (pushes.split() * steps)[:steps]]], device=starts.z.device).long()  # (1, T)
    noise = noisy * torch.randn(1, steps, len(noisy), generator=torch.Generator().manual_seed(start)).to(noisy.device)  # (1, T, Z)
    path = stacked(list(dream(world.m, starts.pick(slice(start, start + 1)), given(a), steps, tau=τ, noise=noise)))
    show_gif(world.v.decode(path.state.z[0])[:, -1, ROWS_DRAWN].cpu().numpy(), f"{pushes}, τ = {τ}")


# %% tags=["run", "widget"]
patterns = ["left right", "right", "left", "left left right right"]
player = widgets.interactive(lambda **knobs: show_dream(world, noisy, pool, **knobs), start=(0, 99), τ=(0.0, 3.0, 0.25), pushes=patterns, steps=(10, 100))
if os.environ.get("WM_NO_WIDGETS") != "1":  # a saved widget is nothing without its kernel
    display(player)

# %% [markdown]
# With a kernel at hand you have a dream player now: choose a start, a temperature τ and a pattern of pushes. Try τ = 3: at what point does the picture stop looking like a cart?
#
# <details><summary><b>Exercise 5.</b> How many dreamed steps a second can a machine do at best that multiplies matrices at 100 GFLOP/s? (Solution)</summary>
#
# One step multiplies (z, Δz, push, h), 385 numbers, by a matrix of 385 × 1,024, and h by one of 256 × 130 (64 changes, 64 doubts, two heads), at two operations per entry: 855,040. So 100 GFLOP/s allow 117,000 steps a second. `tests/benchmark.py` measures both numbers on your machine.
# </details>

