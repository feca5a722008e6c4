# %% [markdown]
# ## 5 · M: what happens next?
#
# M is the private simulator. It reads $z_t$ and the action $a_t$, keeps a memory $h$, and predicts the next latent. Its core is an LSTM (Hochreiter & Schmidhuber 1997), which also keeps a cell state $c$:
#
# $$\begin{aligned} i, f, g, o &= W\,[\,z_t,\; 5(z_t - z_{t-1}),\; a_t,\; h_t\,] + b \\ c_{t+1} &= \mathrm{sigmoid}(f)\, c_t + \mathrm{sigmoid}(i) \tanh(g) \qquad h_{t+1} = \mathrm{sigmoid}(o) \tanh(c_{t+1}) \\ \mu_{t+1} &= z_t + \Delta(h_{t+1}) \qquad \hat r = w_r^\top h_{t+1} \qquad p_\text{done} = \mathrm{sigmoid}(w_d^\top h_{t+1}) \end{aligned}$$
#
# $\Delta$ is the predicted change of $z$ (none at first: its weights start at zero), $\hat r$ the predicted reward, $p_\text{done}$ the probability that the episode ends here. Why does M read the change of $z$ as well? Because a velocity is a small difference of two large numbers, and an LSTM that has to form it itself learns it slowly and not exactly; the 5 brings it near the size of $z$. The step is written out, so that all four gates are one matrix product: thousands of dreams can then share it.
#
# M also says how much it doubts its prediction: $\log \sigma^2(h_{t+1}, n)$ for each dimension, where $n$ counts the steps since M last saw a real $z$. Ha & Schmidhuber use a mixture of normals; CartPole is deterministic, so one normal is enough.
#
# V is frozen from here on. It encodes the whole memory once: as recorded, and in several copies, each episode shifted and mirrored by chance. M trains on these codes and never sees a picture. (Ha & Schmidhuber let M read samples $z_t \sim q(z \mid x_t)$; ours reads the means.)

# %% tags=["define"]
class Codes(NamedTuple):
    """The memory as V sees it, in K copies; copy 0 is as recorded, the others are shifted and mirrored by episode."""

    mu: Tensor  # (K, N, Z)
    log_var: Tensor  # (K, N, Z)
    actions: Tensor  # (K, N) swapped where the episode is mirrored
    shift: Tensor  # (K, E) pixels
    mirror: Tensor  # (K, E) bool


def encode_memory(progress: Progress | None, memory: Memory, v: V, *, copies: int = 1, max_shift: int = 0, seed: int = 0) -> dict:
    """Encode the whole memory `copies` times. A shift stays the same throughout an episode, or it would look like motion."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for number in tqdm(range(copies), desc="encode", unit="copy", disable=copies == 1):
        shift, flip = (view * (number > 0) for view in random_views(len(memory.episodes), max_shift, generator, memory.device))  # (E,) each
        views = shift[memory.episode], flip[memory.episode]  # (N,) each
        actions = torch.where(views[1], 1 - memory.actions, memory.actions)  # (N,)
        parts.append((*encode_rows(v, memory, memory.rows, *views), actions, shift, flip))
    return Codes(*(torch.stack(values) for values in zip(*parts)))._asdict()


# %% tags=["run"]
code_settings = {"copies": settings.m.copies, "max_shift": settings.v.max_shift, "seed": settings.seed}
code_stage = keep(encode_memory, memory, v, after=(collect, v_stage), name="codes", **code_settings)
codes = Codes(**{name: values.to(DEVICE) for name, values in code_stage.result.items()})
print("{} copies of {:,} codes with {} dimensions".format(*codes.mu.shape))


# %% tags=["define"]
class State(NamedTuple):
    """Where B lives stand, real or dreamed."""

    z: Tensor  # (B, Z) what V sees now, or what M imagines to see
    before: Tensor  # (B, Z) the same one step earlier
    h: Tensor  # (B, H)
    c: Tensor  # (B, H) the LSTM's cell
    blind: Tensor  # (B, 1) steps since M last saw a real z

    def pick(self, rows: Tensor | slice) -> "State":
        """Some of the lives, by number or by a mask."""
        return State(*(part[rows] for part in self))


class Says(NamedTuple):
    """What M says about the next step."""

    mu: Tensor  # (B, Z) mean of the next z
    log_var: Tensor  # (B, Z) its log-variance
    reward: Tensor  # (B,) r̂
    done: Tensor  # (B,) logit of p_done


class M(nn.Module):
    """The recurrent world model: h' = LSTM(h, z, Δz, a), and heads on h' (Ha & Schmidhuber 2018, section 2.2)."""

    CHANGE = 5.0  # brings the change of z near the size of z

    def __init__(self, latents: int, hidden: int) -> None:
        """`latents`, `hidden`: sizes of z and h."""
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Linear(2 * latents + 1 + hidden, 4 * hidden)  # all four gates in one matrix product
        self.change = nn.Linear(hidden, latents)  # of z, in one step
        self.log_var = nn.Linear(hidden + 1, latents)  # how wrong that may be, after so many steps without looking
        self.reward, self.done = nn.Linear(hidden, 1), nn.Linear(hidden, 1)
        for part in self.gates.parameters():
            nn.init.uniform_(part, -(hidden**-0.5), hidden**-0.5)
        for part in (*self.change.parameters(), *self.log_var.parameters()):
            nn.init.zeros_(part)

    def begin(self, z: Tensor) -> State:
        """The state at z (B, Z) before anything was read."""
        nothing = z.new_zeros(len(z), self.hidden)  # (B, H)
        return State(z, z, nothing, nothing, nothing[:, :1])

    def step(self, state: State, a: Tensor) -> tuple[State, Says]:
        """One step under the pushes a (B,) in {0, 1}: the state after it, with M's mean as its z, and all that M says."""
        z, before, h, c, blind = state
        push = 2.0 * a.to(z.dtype)[:, None] - 1  # (B, 1): −1 left, +1 right
        i, f, g, o = self.gates(torch.cat([z, self.CHANGE * (z - before), push, h], 1)).chunk(4, 1)  # (B, H) each
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        blind = blind + 1
        # The doubt is a witness: it reads h, but its loss does not shape h, or M would rather doubt a latent than learn it.
        log_var = self.log_var(torch.cat([h.detach(), blind.log1p()], 1)).clamp(-16, 3)  # (B, Z)
        says = Says(z + self.change(h), log_var, self.reward(h)[:, 0], self.done(h)[:, 0])
        return State(says.mu, z, h, c, blind), says


# %% [markdown]
# ### One loop, awake or dreaming
#
# M lives along a sequence of steps. As long as there are real codes to be shown, it reads them. When there are none left, it goes on with its own predictions: that is a dream. Who pushes (recorded pushes, a coin, a controller, a whole generation of controllers) is an argument. Everything below, training included, goes through this one loop.

# %% tags=["define"]
class Step(NamedTuple):
    """One step of B lives."""

    a: Tensor  # (B,) the push
    state: State  # after the push
    says: Says


Choose = Callable[[int, State], Tensor]  # (number of the step, state) -> pushes (B,)


def given(a: Tensor) -> Choose:
    """Pushes that are known beforehand: a (B, T)."""
    return lambda k, state: a[:, k]


def dream(m: M, state: State, choose: Choose, steps: int, shown: Tensor | None = None, tau: float = 0.0, noise: Tensor | None = None) -> Iterator[Step]:
    """M along B lives: as long as there are codes to be shown it reads them (teacher forcing), then it lives on its own predictions.

    Args:
        state: where the lives stand. choose: who acts. steps: how far.
        shown: (B, R, Z) what V really saw in the first R steps.
        tau, noise: the temperature τ, and (B, steps, Z) standard normal numbers, already masked."""
    for k in range(steps):
        if shown is not None and k < shown.shape[1]:
            state = state._replace(z=shown[:, k], blind=torch.zeros_like(state.blind))
        a = choose(k, state)
        state, says = m.step(state, a)
        if tau > 0:
            state = state._replace(z=says.mu + tau * (0.5 * says.log_var).exp() * noise[:, k])
        yield Step(a, state, says)


def stacked(parts: list) -> Any:
    """T tensors (B, …), or T tuples of such, as one tensor (B, T, …), or one tuple."""
    first = parts[0]
    return torch.stack(parts, 1) if isinstance(first, Tensor) else type(first)(*map(stacked, zip(*parts)))


# %% [markdown]
# ### Teacher forcing, and what the loss must not allow
#
# During training M first reads *real* codes at each step, not its own predictions: **teacher forcing**. It is stable and fast, but M never practises living with its own mistakes. We shall measure what that costs.
#
# **The loss** looks like a matter of taste, and is not. The usual choice is the Gaussian's −log p with M's own $\sigma$. But a model that may call a latent uncertain has two ways to lower that loss: learn the latent, or doubt it, and then its error counts little. So the mean learns by *squared error, with one fixed σ for all latents*, and the doubt learns beside it, about that mean, without shaping $h$. The exhibit below shows both.
#
# **Windows start anywhere**, with $h = 0$. A random episode starts near the same state, so an M that always sees it from the start can simply add up the pushes and hardly look at $z$. A good controller's episode is long, and adding up fails there. An M that is thrown into the middle has to look. Ends are rare, so their loss counts ten times.
#
# **Predict:** CartPole pays 1 at every step. How long will the reward loss take to get small? And how well can the fall be foreseen one step ahead?

# %% tags=["define"]
SPREAD = 0.135  # σ in the loss of M's mean: about the size of a latent's change in a step
DONE_WEIGHT = 10.0  # ends are rare


def m_losses(
    m: M, z: Tensor, a: Tensor, reward: Tensor, done: Tensor, real: Tensor, read: int, excuses: bool = False
) -> dict[str, Tensor]:
    """M's losses on a batch of sequences, each a mean over the real (not padded) steps: `total`, and what to log.

    Args:
        z: (B, T + 1, Z) codes, of which M reads the first `read`; a: (B, T); reward: (B, T).
        done: (B, T) 1 where the step ended the episode; real: (B, T) 0 beyond the episode's end.
        excuses: the classic mistake, for the exhibit: the mean's σ is M's own (Seitzer et al. 2022 describe what that does)."""
    says = stacked([step.says for step in dream(m, m.begin(z[:, 0]), given(a), a.shape[1], z[:, :read])])
    squared = (z[:, 1:] - says.mu).square()  # (B, T, Z)
    doubt = squared if excuses else squared.detach()
    parts = {
        "latent": 0.5 * squared.sum(-1) / SPREAD**2 * (not excuses),  # (B, T) nats: the mean
        "doubt": 0.5 * (doubt * (-says.log_var).exp() + says.log_var).sum(-1),  # (B, T) nats: the variance, about that mean
        "reward": (says.reward - reward).square(),
        "done": F.binary_cross_entropy_with_logits(says.done, done, reduction="none"),
        "error": squared.mean(-1),
    }
    means = {name: (value * real).sum() / real.sum() for name, value in parts.items()}
    return {"total": means["latent"] + means["doubt"] + means["reward"] + DONE_WEIGHT * means["done"], **means}


def mirror_images(codes: Codes, copy: Tensor, episode: Tensor, generator: torch.Generator) -> Tensor:
    """For B pairs of a copy and an episode, a random copy in which this episode is mirrored the other way, (B,); the same copy if there is none."""
    others = codes.mirror[:, episode] != codes.mirror[copy, episode]  # (K, B)
    order = torch.rand(others.shape, generator=generator).to(others.device)  # (K, B)
    return torch.where(others.any(0), (others * order).argmax(0), copy)


# %% tags=["define"]
MAX_GRADIENT = 200.0  # longer gradients of M are shortened: they come from a few bad windows


def train_m(
    progress: Progress, memory: Memory, codes: Codes, begin: dict | None = None, *, m: MSettings, practice: PracticeSettings | None = None, seed: int, excuses: bool = False
) -> dict:
    """Train M, from the weights `begin` if given, on random windows of the encoded episodes.

    Without practice: teacher forcing, on windows of m.window steps. With practice M reads between half of m.context and all of it, and lives on its own
    predictions for the rest of m.context + practice.alone steps; half of a batch are the mirror images of the other half, so that M is not pulled to one side."""
    torch.manual_seed(seed)
    model, how = M(codes.mu.shape[-1], m.hidden).to(memory.device), practice or m
    if begin is not None:
        model.load_state_dict(begin)
    starts = memory.rows[memory.rows < memory.last]  # rows that have a next step
    length = m.context + practice.alone if practice else m.window  # T
    offsets = torch.arange(length + 1, device=memory.device)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one random batch, and what to log."""
        count, read = how.batch // 2 if practice else how.batch, length
        start = memory.draw(starts, count, generator)[:, None]  # (B, 1)
        copy = torch.randint(len(codes.mu), (count, 1), generator=generator).to(memory.device)  # (B, 1)
        if practice:
            read = int(torch.randint(m.context // 2, m.context + 1, (1,), generator=generator))
            # Most episodes end soon. Half of the windows move back until they fit, or there would be little to practise on.
            start[::2] = torch.maximum(memory.first[start], torch.minimum(start, memory.last[start] - length))[::2]
            other = mirror_images(codes, copy[:, 0], memory.episode[start[:, 0]], generator)[:, None]
            start, copy = torch.cat([start, start]), torch.cat([copy, other])  # (B, 1)
        rows = torch.minimum(start + offsets, memory.last[start])  # (B, T + 1)
        real = (start + offsets[:-1] < memory.last[start]).float()  # (B, T)
        a, reward, done = codes.actions[copy, rows[:, :-1]], memory.rewards[rows[:, :-1]], memory.done[rows[:, 1:]].float()  # (B, T)
        losses = m_losses(model, codes.mu[copy, rows], a, reward, done, real, read, excuses)
        return losses["total"], losses

    return fit(model, batch_loss, how, seed, progress, "M", MAX_GRADIENT)


# %% tags=["run"]
m_stage = keep(train_m, memory, codes, after=(code_stage,), name="m", m=settings.m, seed=settings.seed)
m_forced = frozen(M(settings.v.latents, settings.m.hidden), m_stage.result)
m_log = m_stage.result["log"]
next_z = {"lines": {"_": (m_log["step"], m_log["error"])}, "ylabel": "squared error of one latent", "title": "M predicts the next z"}
its_heads = {"termination (nats)": (m_log["step"], m_log["done"], "--"), "reward (squared error)": (m_log["step"], np.maximum(m_log["reward"], 1e-9), "-.")}
m_axes = {"xlabel": "step", "yscale": "log"}
plot(next_z | m_axes, {"lines": its_heads, "ylabel": "loss", "title": "… the end, and the reward"} | m_axes)
print(f"last batch: squared error {m_log['error'][-1]:.4f}, termination {m_log['done'][-1]:.3f} nats, reward {m_log['reward'][-1]:.0e}")

# %% [markdown]
# ⟦The reward is soon learned: each step pays 1. The fall is harder to foresee; its loss stays near 0.05 nats.⟧
#
# ### Open loop: how long can M dream?
#
# Now the hard test. M reads a few real steps and then goes on alone, with the real actions but its own latents. It counts on a *good* controller's episodes, because that is where C will take us. We have no C yet, so the rule from exercise 1 plays a few, for measuring and for nothing else.
#
# How does M get its $h$ in the middle of an episode? It reads the last eight real steps (`m.context`; fewer where the episode has just begun), beginning with $h = 0$, and the same recipe serves everywhere: at the start of a dream, in the measurements, and later in the real world. So $h$ never gets much older than what M was trained on.
#
# What always belongs together is one object, a `World`: V, M, the episodes they look at, and their codes. It is made once and passed on whole.

# %% tags=["define"]
class World(NamedTuple):
    """One state of knowledge: what was recorded, how V codes it, how M continues it."""

    v: V
    m: M
    memory: Memory
    codes: Codes  # of that memory
    context: int  # real steps that M reads before it speaks

    def looking_at(self, episodes: list[Episode]) -> "World":
        """The same V and M, with other episodes before them."""
        memory = Memory(episodes, 0, DEVICE)
        return self._replace(memory=memory, codes=Codes(**encode_memory(None, memory, self.v)))

    def states(self, rows: Tensor, copies: Tensor | int = 0) -> State:
        """The states at some rows (S,) of some copies (S,), with h from the last `context` real steps (fewer at an episode's beginning)."""
        copies, parts = torch.as_tensor(copies, device=rows.device).expand(len(rows)), []
        for row, copy in zip(rows.split(8192), copies.split(8192)):
            first, back = self.memory.first[row][:, None], row[:, None] - torch.arange(self.context, -1, -1, device=row.device)  # (S, 1), (S, C + 1)
            known, back = back >= first, torch.maximum(back, first)  # (S, C + 1) each
            parts.append(remembered(self.m, self.codes.mu[copy[:, None], back], self.codes.actions[copy[:, None], back], known))
        return State(*(torch.cat(values) for values in zip(*parts)))

    def moments(self, count: int, generator: torch.Generator, ahead: int = 1, copies: int = 0, episodes: range | None = None) -> tuple[Tensor, Tensor]:
        """Random rows (S,) with a few real steps before and `ahead` after them, and copies (S,), 0: of all. ValueError: no episode is long enough."""
        rows, wanted = self.memory.rows, episodes or range(len(self.memory.episodes))
        rows = rows[(rows - self.memory.first >= self.context // 2) & (rows + ahead <= self.memory.last)]
        rows = rows[(self.memory.episode[rows] >= wanted.start) & (self.memory.episode[rows] < wanted.stop)]
        if not len(rows):
            raise ValueError(f"no recorded episode has {self.context // 2 + ahead} steps: record more of them (collect.episodes)")
        rows = self.memory.draw(rows, count, generator)
        return rows, torch.randint(copies or len(self.codes.mu), (count,), generator=generator).to(rows.device)


def remembered(m: M, z: Tensor, a: Tensor, known: Tensor) -> State:
    """M's state at the last of C + 1 codes: z (B, C + 1, Z), a and known (B, C + 1); what is not known was before the episode began."""
    state = m.begin(z[:, 0])
    for k in range(z.shape[1] - 1):
        state, _ = m.step(state._replace(z=z[:, k], blind=torch.zeros_like(state.blind)), a[:, k])
        state = state._replace(h=state.h * known[:, k, None], c=state.c * known[:, k, None])  # as long as the episode has not begun, h and c stay 0
    return state._replace(z=z[:, -1], blind=torch.zeros_like(state.blind))


# %% cellView="form" tags=["define"]
# @title A good rule, for measurements only
def centred_policy(fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
    """The solution of exercise 1: a rule on the true state that also keeps the cart in the middle."""
    return (states @ np.array([0.1, 0.2, 1.0, 0.4]) > 0).astype(np.int64)


# %% tags=["run"]
good_settings = {"episodes": settings.evaluate.good_episodes, "seed": settings.seed, "workers": settings.collect.workers}
good_stage, good_episodes = recorded(centred_policy, purpose="hand written", **good_settings)
forced_world = World(v, m_forced, memory, codes, settings.m.context)
good_world = forced_world.looking_at(good_episodes)
print(f"centred rule: mean return {np.mean([len(episode.actions) for episode in good_episodes]):.0f} over {len(good_episodes)} episodes")

# %% [markdown]
# We read the imagined state in two ways. *Seen*: V draws the imagined $z$ and looks at its own drawing, as a spectator would, and a linear probe reads angle and position. *From z*: the probe reads the imagined $z$ itself, as the next step of the dream does. (The probe is fitted on a shifted and mirrored copy of random play, so that it knows a wider track.) Two baselines run along: one that copies the last frame, and an M that was never trained.
#
# **Predict:** after one step, M should be off by a fraction of a degree. And after 30?

# %% tags=["define"]
HORIZONS = (1, 5, 15, 30)  # steps without looking, of which tables speak


def median(values: Tensor) -> Tensor:
    """The median over the first dimension, (S, ...) -> (...); nan where there is nothing to take it of."""
    return values.median(0).values if len(values) else values.new_full(values.shape[1:], math.nan)


def number(value: float, digits: int, unit: str = "") -> str:
    """A measured number as text; – where it could not be measured, because no episode was long enough."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}{unit}"


def seen_again(v: V, z: Tensor) -> Tensor:
    """What V sees in its own drawings of some latents: z (S, T, Z) -> drawn and encoded again, (S, T, Z)."""
    parts = [v.encode(v.decode(part))[0] for part in z.flatten(0, 1).split(1024) if len(part)]
    return torch.cat(parts).view(z.shape) if parts else z  # (S, T, Z)


def windows(memory: Memory, length: int, count: int) -> Tensor:
    """Row numbers (S, length) of random stretches that lie within one episode; S = count, or 0 if no episode is that long."""
    starts, generator = memory.rows[memory.rows + length <= memory.last + 1], torch.Generator().manual_seed(0)
    pick = torch.randint(max(1, len(starts)), (count if len(starts) else 0,), generator=generator).to(memory.device)
    return starts[pick][:, None] + torch.arange(length, device=memory.device)  # (S, length)


@torch.no_grad()
def open_loop(world: World, horizon: int, count: int = 400) -> tuple[Tensor, Says]:
    """M alone on random windows of recorded episodes: it reads `context` real steps and then lives on, under the real pushes.

    Returns the rows of the T = `horizon` steps alone, (S, T), and what M says of them. S is 0 where no episode is long enough."""
    rows = windows(world.memory, world.context + horizon, count)  # (S, C + T)
    z, a = world.codes.mu[0, rows], world.memory.actions[rows]  # (S, C + T, Z), (S, C + T)
    says = [step.says for step in dream(world.m, world.m.begin(z[:, 0]), given(a), rows.shape[1] - 1, z[:, : world.context])]
    return rows[:, world.context :], stacked(says[world.context - 1 :])


def open_loop_errors(world: World, probe: Probe, seen: bool = True, horizon: int = 30) -> Tensor:
    """Median |error| of the read state after each of T steps alone, (T, 4); `seen`: from the picture that V draws, else from z itself."""
    rows, says = open_loop(world, horizon)
    return median((probe(seen_again(world.v, says.mu) if seen else says.mu) - world.memory.states[rows]).abs())


def copy_errors(world: World, horizon: int = 30) -> Tensor:
    """The same for the copy-the-last-frame baseline (with a perfect reading of that frame), (T, 4)."""
    rows, _ = open_loop(world, horizon)
    return median((world.memory.states[rows[:, :1] - 1] - world.memory.states[rows]).abs())


def show_open_loop(table: dict[str, Tensor], title: str) -> None:
    """Median open-loop errors (T, 4) by name: θ in degrees at the left, x in millimetres at the right, against the horizon; and some of them in print."""
    panels = []
    for index, factor, label in ((2, 180 / math.pi, "θ (degrees)"), (0, 1000, "x (mm)")):
        lines = {name: (range(1, len(errors) + 1), factor * errors[:, index].cpu()) for name, errors in table.items()}
        panels.append({"lines": lines, "xlabel": "steps without looking (20 ms each)", "ylabel": f"median |error| of {label}", "ylim": (0, None)})
    plot(*panels, title=title)
    for name, errors in table.items():
        texts = (f"{k:2d}: {number(math.degrees(errors[k - 1, 2]), 2, '°'):>5s} {number(1000 * float(errors[k - 1, 0]), 0, ' mm'):>6s}" for k in HORIZONS)
        print(f"{name:37s}", "   ".join(texts))


# %% tags=["run"]
shifted_states = true_states(memory, memory.rows, codes.shift[-1][memory.episode], codes.mirror[-1][memory.episode])  # (N, 4)
wide_probe = Probe(codes.mu[-1], shifted_states)
torch.manual_seed(settings.seed)
m_untrained = frozen(M(settings.v.latents, settings.m.hidden))
before_practice = {
    "teacher forcing only, seen": open_loop_errors(good_world, wide_probe),
    "teacher forcing only, from z": open_loop_errors(good_world, wide_probe, seen=False),
    "M, untrained": open_loop_errors(good_world._replace(m=m_untrained), wide_probe),
    "copy the last frame": copy_errors(good_world),
}
show_open_loop(before_practice, "Dreaming with the eyes closed, on a good controller's episodes")

# %% [markdown]
# ⟦M's angle is off by 0.42° after one step, and by 5.33° after thirty: its small errors grow, as they do on a real pole.⟧ Do not be fooled by the two baselines that stay flat. On a good controller's episodes next to nothing happens, so whoever predicts *no change* is right most of the time. Episodes in which the pole moves come below.
#
# ### Practice: living on its own predictions
#
# Teacher forcing always put M back on the road, so it has never met its own mistakes. And a pole is unforgiving: left alone, a small lean grows by a factor of 2.7 every quarter of a second.
#
# The cure is **practice**. In further training steps M reads only the first few codes of a window, between 4 and 8, and then lives on its own predictions, with the real actions. The loss is the same, and its gradient flows back through all the imagined steps. This also teaches M to *look* better: an angular velocity that is read a little wrong costs nothing after one step, and much after sixteen.
#
# A batch of random windows pulls M a little to the left or to the right, and these pulls never quite cancel: M's imagined poles would *lean*. The remedy is an old trick from statistics, antithetic pairs (Hammersley and Morton, 1956): each window comes with its **mirror image**, from a copy in which the same episode is mirrored the other way. Whatever pulls to the left in one half of the batch pulls to the right in the other.

# %% tags=["run"]
practice_stage = keep(train_m, memory, codes, m_stage.result["weights"], after=(m_stage,), name="practice", m=settings.m, practice=settings.practice, seed=settings.seed)
world = forced_world._replace(m=frozen(M(settings.v.latents, settings.m.hidden), practice_stage.result))
good_world_practised = good_world._replace(m=world.m)
after_practice = {
    "M, seen": open_loop_errors(good_world_practised, wide_probe),
    "M, from z": open_loop_errors(good_world_practised, wide_probe, seen=False),
}
show_open_loop(after_practice | {name: before_practice[name] for name in list(before_practice)[:2]}, "The same test after practice, good play")
swaying = {"M, random play": open_loop_errors(world, wide_probe), "copy the last frame, random play": copy_errors(world)}
show_open_loop(swaying, "Dreaming with the eyes closed, while the pole sways")

# %% [markdown]
# ⟦PRACTICE⟧ But do not give practice all the credit: it is also more training, with twice the batch.
#
# ⟦The second figure has long stretches of random play, in which the pole really moves. Here the baseline grows as well.⟧ (M has practised on these very episodes; part 9 has new ones.)
#
# ### The exhibit: a model that may doubt instead of learn
#
# Two short trainings, with teacher forcing, from the same weights and on the same windows. In one the mean learns by squared error with a fixed σ, as ours does; in the other by the Gaussian's −log p with M's own σ, as most code has it. **Predict:** which one has the smaller error in its *worst* latents?

# %% tags=["run"]
short = settings.m.but(steps=max(1, settings.m.steps // 4))
exhibit_stages = {
    "fixed σ": keep(train_m, memory, codes, after=(code_stage,), name="m-fixed-sigma", m=short, seed=settings.seed),
    "M's own σ": keep(train_m, memory, codes, after=(code_stage,), name="m-own-sigma", m=short, seed=settings.seed, excuses=True),
}
exhibit_worlds = {name: good_world._replace(m=frozen(M(settings.v.latents, settings.m.hidden), stage.result)) for name, stage in exhibit_stages.items()}
neglect = {}
for name, looker in exhibit_worlds.items():
    rows_alone, says_alone = open_loop(looker, 1)
    missed = (says_alone.mu[:, 0] - looker.codes.mu[0, rows_alone[:, 0]]).square().mean(0).sqrt()  # (Z,)
    neglect[name] = (range(1, len(missed) + 1), (missed / codes.mu[0].std(0)).sort(descending=True).values.cpu())
plot({"lines": neglect, "xlabel": "latents, worst first", "ylabel": "rms error in one step ÷ spread of the latent", "ylim": (0, None)}, title="What M's own σ excuses")
show_open_loop(
    {f"{name}, {how}": open_loop_errors(looker, wide_probe, seen=how == "seen") for name, looker in exhibit_worlds.items() for how in ("seen", "from z")},
    "Both losses on their own, good play",
)

# %% [markdown]
# ⟦EXHIBIT⟧
#
# ### What h adds
#
# The same linear probe as in part 4, now on $(z, h)$: fitted on random play, and then tried on the good rule's episodes, which are far longer and hardly ever off balance.

# %% tags=["define"]
def features(state: State) -> Tensor:
    """What C reads: (z, h), (B, Z + H)."""
    return torch.cat([state.z, state.h], 1)


def read_rows(world: World, copy: int = 0, episodes: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """(z, h) at all rows of some episodes, in one copy, with their true states: (S, Z + H), (S, 4). Without each episode's first steps, when M has read too little."""
    memory, chosen = world.memory, torch.zeros(len(world.memory.episodes), dtype=torch.bool, device=world.memory.device)
    chosen[episodes] = True
    rows = memory.rows[chosen[memory.episode] & (memory.rows - memory.first >= world.context // 2)]  # (S,)
    views = (view[copy, memory.episode[rows]] for view in (world.codes.shift, world.codes.mirror))  # (S,) each
    return features(world.states(rows, copy)), true_states(memory, rows, *views)


# %% tags=["run"]
half_way = len(memory.episodes) // 2
zh_probe = Probe(*read_rows(world, 1 % len(codes.mu), slice(half_way, None)))
zh_score, zh_good = zh_probe.score(*read_rows(world, 0, slice(0, half_way))), zh_probe.score(*read_rows(good_world_practised))
print_scores({"z, random play": (z_score, "r2"), "(z, h), random play": (zh_score, "r2"), "(z, h), good play": (zh_good, "rms")})

# %% [markdown]
# With the memory $h$, the velocities become readable too: M has seen more frames than four, and it remembers the pushes. The last column says how well C will be informed when it is good.
#
# <details><summary><b>Exercise 4.</b> M says σ = 2 for a dimension whose true spread is 1. How many nats per step does it lose against σ = 1? (Solution)</summary>
#
# The expected −log p is log σ + 1/(2σ²) + const. With σ = 2 that is 0.693 + 0.125 = 0.818, with σ = 1 it is 0 + 0.5. So it loses 0.318 nats. With σ = ½ it would lose 0.807: too sure is punished harder than too modest.
# </details>

