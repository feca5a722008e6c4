# %% [markdown]
# ## 3 · Collect: what a coin flip sees
#
# The agent's whole experience of reality: episodes of a random policy. Each becomes one row of a Hugging Face `Dataset` on disk, frames and actions together. The true states are stored too, for measurements; no network reads them. They are recorded in parts, so that an interruption costs one part at most.
#
# **Predict:** a random episode starts upright. After how many of the 20 ms steps will half of the poles have fallen?

# %% cellView="form" tags=["define"]
# @title Episodes on disk
FEATURES = datasets.Features({
    "seed": datasets.Value("int64"), "frames": datasets.Array3D((None, FRAME_SIZE, FRAME_SIZE), "uint8"), "states": datasets.Array2D((None, 4), "float32"),
    "actions": datasets.Sequence(datasets.Value("int8")), "rewards": datasets.Sequence(datasets.Value("float32")),
    "terminated": datasets.Value("bool"), "truncated": datasets.Value("bool"),
})  # fmt: skip
CARD = """---
{{license: mit, pretty_name: "CartPole-v1 from pixels, {policy}"}}
---
{episodes} episodes ({steps} steps) of gymnasium's CartPole-v1, rendered by the environment itself. One row is one episode of T steps.

- `seed`: the environment's reset seed; `frames`: (T + 1, 64, 64) uint8, blue channel, area-averaged from 600 x 400
- `states`: (T + 1, 4) float32, x (m), x_dot (m/s), theta (rad), theta_dot (rad/s); for measurements only, nothing is trained on it
- `actions`: (T,) 0 left, 1 right; `rewards`: (T,) always 1; `terminated`: the pole fell or the cart left the picture; `truncated`: 500 steps were over
"""


def write_dataset(episodes: list[Episode], folder: Path, policy: str) -> None:
    """Save episodes as a Hugging Face Dataset with explicit features, one row per episode, and a card beside it: all of it, or nothing."""
    rows = [{**episode._asdict(), "actions": episode.actions.astype(np.int8)} for episode in episodes]
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as place:
        # Kept in memory: a file that is still mapped can't be removed on Windows.
        made = datasets.Dataset.from_generator(lambda: iter(rows), features=FEATURES, cache_dir=f"{place}/cache", keep_in_memory=True)
        made.save_to_disk(f"{place}/data")
        card = CARD.format(policy=policy, episodes=len(episodes), steps=sum(len(episode.actions) for episode in episodes))
        Path(place, "data", "README.md").write_text(card)
        if not folder.exists():  # another kernel may have been faster
            os.rename(f"{place}/data", folder)


def read_dataset(folder: Path) -> list[Episode]:
    """The episodes of one saved dataset."""
    dataset = datasets.load_from_disk(str(folder), keep_in_memory=True)
    # Left alone, the format turns every byte into eight: ask for bytes.
    pictures = dataset.with_format("numpy", columns=["frames"], dtype=np.uint8)
    others = dataset.remove_columns("frames").with_format("numpy")
    plain = {"seed": int, "terminated": bool, "truncated": bool, "actions": np.int64, "states": np.asarray, "rewards": np.asarray}  # each column's own kind
    return [Episode(**picture, **{name: plain[name](value) for name, value in row.items()}) for picture, row in zip(pictures, others)]


# %% tags=["define"]
PART = 500  # episodes that are recorded and saved at a time


def record(progress: Progress, policy: Policy, *, purpose: str, episodes: int, seed: int, workers: int) -> dict:
    """The stage that lets a policy play episodes on the seeds of one purpose. Each part is saved: an interruption costs one at most."""
    seeds = seeds_for(purpose, seed, episodes)
    parts = {f"episodes-{first:06d}": seeds[first : first + PART] for first in range(0, episodes, PART)}
    for name, part in parts.items():
        if not (progress.folder / name).exists():
            write_dataset(play(policy, part, workers, purpose), progress.folder / name, purpose)
    return {"parts": list(parts)}


def recorded(policy: Policy, function: Callable = record, after: tuple[Stage, ...] = (), **how: Any) -> tuple[Stage, list[Episode]]:
    """Keep the stage of a function that records, and read its episodes; a part that can't be read is set aside and recorded anew."""
    stage, episodes = keep(function, policy, after=after, name=how["purpose"].replace(" ", "-"), **how), []
    for folder in (stage.folder / part for part in stage.result["parts"]):
        try:
            episodes += read_dataset(folder)
        except Exception as error:
            set_aside(folder, error)
            set_aside(stage.folder / "result.pt", error)
            return recorded(policy, function, after, **how)
    return stage, episodes


# %% tags=["run"]
collect_settings = {"purpose": "random", "episodes": settings.collect.episodes, "seed": settings.seed, "workers": settings.collect.workers}
collect, random_episodes = recorded(RandomPolicy(settings.seed), **collect_settings)
random_lengths = [len(episode.actions) for episode in random_episodes]
random_steps = sum(random_lengths)
print(f"{len(random_episodes):,} random episodes, {random_steps:,} real steps, median length {np.median(random_lengths):.0f}, longest {max(random_lengths)}")

# %% [markdown]
# Half of the poles are down after 19 steps, 0.4 s, and no episode is longer than 121.
#
# **Predict:** the picture is 4.8 m wide. How much of it does a coin visit?

# %% tags=["run"]
random_states = np.concatenate([episode.states for episode in random_episodes])  # (N, 4)
inside = np.quantile(np.abs(random_states[:, 0]), 0.99)
plt.figure(figsize=(7, 3.4))
plt.hexbin(random_states[:, 0], np.degrees(random_states[:, 2]), gridsize=60, bins="log", cmap="viridis", extent=(-2.4, 2.4, -16, 16), mincnt=1)
plt.colorbar(label="frames")
plt.hlines([-12, 12], -2.4, 2.4, color=RED, ls="--", label="the episode ends")
plt.gca().set(xlabel="cart position x (m)", ylabel="pole angle θ (degrees)", title="Where random play goes", ylim=(-18, 23))
plt.legend(loc="upper left")
plt.show()
print(f"99 % of the random frames lie within {inside:.2f} m of the centre; the picture reaches to 2.4 m")


# %% [markdown]
# A narrow strip. The angle is covered up to the fall, the position hardly at all: the pole falls before the cart gets anywhere. A controller that balances for ten seconds may drift out of this strip, and there V and M would have to guess. But the picture itself offers a way around this trap. The background is uniform, so **a whole episode shifted sideways is a valid episode**, and so is its mirror image with the two actions swapped. Both cost nothing. We keep a shift constant over an episode, or it would look like motion.
#
# (The end of the track is *not* shifted along: our model never learns that the picture has an end. What keeps the cart in the middle comes later, in C.)
#
# All frames go to the device once, as bytes. A stack of four frames, a shift, a mirror image: each is only another choice of indices.

# %% tags=["define"]
class Memory:
    """N frames of E episodes laid end to end in a few flat tensors, ready for index arithmetic: a stack of four frames is never stored, it is four row numbers."""

    def __init__(self, episodes: list[Episode], max_shift: int, device: torch.device, own: int = 0) -> None:
        """`max_shift`: the largest sideways shift, in pixels, that `stack` will be asked for. `own`: so many last episodes are the controller's own, and half of all draws fall on them."""
        self.episodes, self.device, self.max_shift = episodes, device, max_shift
        lengths = torch.tensor([len(episode.frames) for episode in episodes])
        frames = torch.from_numpy(np.concatenate([episode.frames for episode in episodes]))
        # Padded at both sides with its own edge column, so that a sideways shift is only another choice of columns.
        pad = [frames[:, :, :1].expand(-1, -1, max_shift), frames, frames[:, :, -1:].expand(-1, -1, max_shift)]
        self.padded = torch.cat(pad, 2).to(device)  # (N, 64, 64 + 2·shift) uint8
        # The last frame of an episode has no action; it gets 0 and is never used as the start of a step.
        self.actions = torch.from_numpy(np.concatenate([np.append(episode.actions, 0) for episode in episodes])).to(device)  # (N,)
        self.rewards = torch.from_numpy(np.concatenate([np.append(episode.rewards, 0) for episode in episodes])).float().to(device)  # (N,)
        self.states = torch.from_numpy(np.concatenate([episode.states for episode in episodes])).to(device)  # (N, 4)
        self.rows = torch.arange(len(frames), device=device)  # (N,)
        self.episode = torch.repeat_interleave(torch.arange(len(episodes)), lengths).to(device)  # (N,)
        ends = lengths.cumsum(0).to(device)
        self.first, self.last = (ends - lengths.to(device))[self.episode], (ends - 1)[self.episode]  # (N,) each: first and last row of the row's episode
        # A pole that fell counts as an end; a clock that ran out (truncation) does not.
        terminated = torch.tensor([episode.terminated for episode in episodes], device=device)
        self.done = terminated[self.episode] & (self.rows == self.last)  # (N,)
        is_own = self.episode >= len(episodes) - own  # (N,)
        self.weight = torch.where(is_own, 1 / is_own.sum().clamp(min=1), 1 / (~is_own).sum().clamp(min=1)).double()  # (N,) of a row in a draw

    def __len__(self) -> int:
        """The number of frames, N."""
        return len(self.padded)

    def draw(self, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` of some rows at random, by their weights; the generator lives on the CPU."""
        levels = self.weight[rows].cumsum(0)
        return rows[torch.searchsorted(levels, levels[-1] * torch.rand(count, generator=generator, dtype=torch.float64).to(self.device)).clamp(max=len(rows) - 1)]

    def stack(self, rows: Tensor, shift: Tensor | None = None, mirror: Tensor | None = None, band: slice = slice(None)) -> Tensor:
        """The observations x_t for row numbers (B,): (B, 4, 64, 64) float32 in [0, 1], the newest frame last; before the start of an episode its frame 0 is repeated.

        `shift`: (B,) whole pixels, up to max_shift (an index error beyond), to the left. `mirror`: (B,) True flips left and right. `band`: the pixel rows wanted."""
        back = torch.arange(STACK - 1, -1, -1, device=self.device)
        rows = torch.maximum(rows[:, None] - back, self.first[rows][:, None])  # (B, 4)
        columns = (torch.arange(FRAME_SIZE, device=self.device) + self.max_shift).expand(len(rows), -1)  # (B, 64)
        columns = columns if shift is None else columns + shift[:, None]
        columns = columns if mirror is None else torch.where(mirror[:, None], columns.flip(-1), columns)
        wide = self.padded[:, band][rows]  # (B, 4, 64, 64 + 2·shift) uint8
        return wide.gather(3, columns[:, None, None].expand(-1, STACK, wide.shape[2], -1)).float() / 255  # (B, 4, 64, 64)


# %% tags=["run"]
memory = Memory(random_episodes, settings.v.max_shift, DEVICE)
two_steps = {f"step {row}": memory.stack(torch.tensor([row], device=DEVICE))[0] for row in (0, int(memory.last[0]))}  # (4, 64, 64) each
show_pictures(two_steps, "Two observations", ["t − 3", "t − 2", "t − 1", "t"])
print(f"{len(memory):,} frames, {memory.padded.numel() / 1e6:.0f} MB on {DEVICE.type}")

# %% [markdown]
# Two observations, at the very start of an episode (its first frame repeated) and at its end. The change from picture to picture is all that they say about speed.
#
# <details><summary><b>Exercise 2.</b> We shift a whole episode by the same number of pixels. What would the agent see if each frame had a shift of its own, of one pixel at most? (Solution)</summary>
#
# A pixel is 0.075 m and a step is 0.02 s, so one pixel between two frames looks like a velocity of 3.75 m/s. A single push changes the velocity by 0.2 m/s. The stack would show noise where it should show motion.
# </details>

# %% [markdown]
# ## 4 · V: what do I see?
#
# V turns an observation $x$ (four frames, 16,384 numbers) into $z$, 64 numbers from which the observation can be drawn again. It is a variational autoencoder: an encoder $q(z \mid x) = \mathcal N(\mu(x), \sigma^2(x))$, a prior $p(z) = \mathcal N(0, I)$, a decoder $p(x \mid z)$.
#
# **Why not a plain autoencoder?** Because M will have to predict $z$, and C to read it. Noise in $z$ forces similar pictures to lie near each other, and the price on information keeps out what does not help to draw.
#
# Two things make V learn fast. It works on the *difference to the mean picture*, so that all that never moves is exactly 0. And it looks only at the band of rows where anything can move at all; outside, the mean picture is already right.

# %% tags=["define"]
import torch.nn.functional as F

BAND = slice(24, 56)  # the rows in which something can move; the other half of the picture never changes
PIXEL_SCALE = 8.0  # brings the differences to the mean picture near unit size


def down(channels_in: int, channels_out: int) -> nn.Sequential:
    """A convolution that halves height and width."""
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), nn.ReLU())


def up(channels_in: int, channels_out: int) -> nn.Sequential:
    """A transposed convolution that doubles height and width."""
    return nn.Sequential(nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), nn.ReLU())


# %% tags=["define"]
class V(nn.Module):
    """A convolutional VAE: x (B, 4, 64, 64) in [0, 1] -> z (B, Z), after Kingma & Welling (2014) and Ha & Schmidhuber (2018), appendix A.1."""

    def __init__(self, settings: VSettings, mean_picture: Tensor | None = None) -> None:
        """`mean_picture`: (64, 64) mean of the training frames. V works on the difference to it: what never moves is 0 then."""
        super().__init__()
        a, b, c, d = self.widths = settings.widths
        # With the band's 32 rows: (B, 4, 32, 64) -> (B, a, 16, 32) -> (B, b, 8, 16) -> (B, c, 4, 8) -> (B, d, 2, 4).
        self.encoder = nn.Sequential(down(STACK, a), down(a, b), down(b, c), down(c, d))
        self.to_posterior = nn.Linear(8 * d, 2 * settings.latents)
        self.from_z = nn.Linear(settings.latents, 8 * d)
        self.decoder = nn.Sequential(up(d, c), up(c, b), up(b, a), nn.ConvTranspose2d(a, STACK, 4, 2, 1))
        self.register_buffer("mean_picture", torch.zeros(FRAME_SIZE, FRAME_SIZE) if mean_picture is None else mean_picture)
        # Channels last in memory: on a CPU this saves a good part of the time of a convolution.
        self.to(memory_format=torch.channels_last)

    def normalise(self, x: Tensor) -> Tensor:
        """Pixels (B, 4, 64, 64) in [0, 1], or only their band (B, 4, 32, 64) -> the band as differences to the mean picture, (B, 4, 32, 64)."""
        band = x[:, :, BAND] if x.shape[2] == FRAME_SIZE else x
        return ((band - self.mean_picture[BAND]) * PIXEL_SCALE).contiguous(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of the posterior q(z | x), each (B, Z), for pixels x as in `normalise`."""
        return self.encode_normalised(self.normalise(x))

    def encode_normalised(self, band: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ², each (B, Z), for an already normalised band (B, 4, 32, 64)."""
        features = self.encoder(band).contiguous().flatten(1)  # (B, 8d)
        mu, log_var = self.to_posterior(features).float().chunk(2, -1)  # (B, Z) each
        return mu, log_var.clamp(-14, 3)

    def decode_normalised(self, z: Tensor) -> Tensor:
        """The mean of p(x | z) as a normalised band, (B, 4, 32, 64), for z (B, Z)."""
        features = F.relu(self.from_z(z)).unflatten(1, (self.widths[-1], 2, 4))  # (B, d, 2, 4)
        return self.decoder(features.contiguous(memory_format=torch.channels_last))

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z) as pictures in [0, 1], (B, 4, 64, 64)."""
        x = self.mean_picture.expand(len(z), STACK, -1, -1).clone()  # (B, 4, 64, 64)
        x[:, :, BAND] += self.decode_normalised(z) / PIXEL_SCALE
        return x.clamp(0, 1)


# %% [markdown]
# ### The ELBO, from one inequality
#
# We want a high $\log p(x)$, but the integral over $z$ is out of reach. For any $q$, Jensen's inequality gives
#
# $$\log p(x) = \log \mathbb E_{q(z\mid x)}\!\left[\frac{p(x\mid z)\,p(z)}{q(z\mid x)}\right] \;\ge\; \underbrace{\mathbb E_{q(z\mid x)}[\log p(x\mid z)]}_{\text{how well is } x \text{ drawn}} \;-\; \underbrace{\mathrm{KL}\!\left(q(z\mid x)\,\|\,p(z)\right)}_{\text{how much is said about } x}$$
#
# With normal distributions the second term is a sum over the latent dimensions, $\tfrac12\sum_j(\mu_j^2+\sigma_j^2-1-\log\sigma_j^2)$. For the first term we need the decoder's noise $\sigma_x$. Most code sets it by hand, without saying so, as a "β". Rybkin et al. (σ-VAE) solve for it: the best $\sigma_x^2$ is the mean squared error itself, and then $-\log p(x\mid z) = \tfrac D2\log\mathrm{MSE} + \text{const}$, with $D$ the number of pixels that are drawn. No weight is left to tune between the two terms: a KL weight of 1 is a true ELBO. Mind the **sums** over pixels and latent dimensions, and the mean over the batch.
#
# The KL weight climbs from 0 to 1 during training, so that V first learns to draw and then to be brief. (In `full` the climb takes all 10,000 steps, as in the recipe.)

# %% tags=["define"]
def kl_to_normal(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) in nats, element by element: ½ (μ² + σ² − 1 − log σ²)."""
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var)


def sample(mu: Tensor, log_var: Tensor, noise: Tensor) -> Tensor:
    """z = μ + σ·ε, the reparametrisation trick."""
    return mu + (0.5 * log_var).exp() * noise


def elbo(v: V, x: Tensor, noise: Tensor, kl_weight: float) -> tuple[dict[str, Tensor], Tensor]:
    """The negative ELBO with the decoder variance at its optimum (σ-VAE, Rybkin et al. 2021, eq. 6): σ² is the batch's mean squared error.

    For observations x as in `V.normalise` and standard normal noise (B, Z). Returns, in nats per observation (sums over pixels and latent dimensions, mean over
    the batch): `loss` = reconstruction + kl_weight · kl, `reconstruction` = −log p(x | z) up to a constant, `kl`, and `error` = σ²; and the codes μ (B, Z)."""
    band = v.normalise(x)  # (B, 4, 32, 64)
    mu, log_var = v.encode_normalised(band)
    y = v.decode_normalised(sample(mu, log_var, noise)).float()  # (B, 4, 32, 64)
    error = F.mse_loss(y, band)
    reconstruction = 0.5 * band[0].numel() * torch.log(error + 1e-8)
    kl = kl_to_normal(mu, log_var).sum(1).mean()
    return {"loss": reconstruction + kl_weight * kl, "reconstruction": reconstruction, "kl": kl, "error": error}, mu


# %% tags=["run"]
# NBVAL_CHECK_OUTPUT
by_hand = kl_to_normal(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, math.log(0.25)]))
print([round(nats, 3) for nats in by_hand.tolist()])

# %% [markdown]
# The check can be worked out by hand: a standard normal costs 0 nats (1 nat is 1.44 bits), a mean of 1 costs ½, and a deviation of ½ costs ½ (¼ − 1 − log ¼) = 0.318.
#
# One training loop serves V, M and the verifier. It saves as it goes, the random generator's state included, so that an interrupted run ends with the same weights as an uninterrupted one. Before each step it could use one thread or all of them. Which is faster depends on what else the machine is doing, so `Pace` asks the clock.

# %% cellView="form" tags=["define"]
# @title As many threads as are faster now
SLOW = 2.0  # three steps in a row that take so many times as long as in the trial: the machine has changed


class Pace:
    """Chooses between one thread and all of them, by the clock: two real steps with one thread, two with all. On a GPU there is no choice."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where the steps are computed."""
        self.choices = (1, torch.get_num_threads()) if device.type == "cpu" else (torch.get_num_threads(),)
        self.look()

    def look(self) -> None:
        """Time the choices again, from the next step on."""
        self.trials = [count for count in self.choices for _ in range(2)]
        self.seconds, self.slow = dict.fromkeys(self.choices, math.inf), 0  # threads -> the quicker one of its trials

    def step(self, work: Callable[[], Any]) -> Any:
        """Do one step of training, and return what it returns."""
        count, begin = self.trials[0] if self.trials else min(self.seconds, key=self.seconds.get), time.perf_counter()
        with threads(count):
            result = work()
        took = time.perf_counter() - begin
        late = took > SLOW * min(self.seconds.values())
        if self.trials:  # where all threads are clearly slower, there is no need to try them once more
            self.seconds[count], self.trials = min(took, self.seconds[count]), [] if late and count > 1 else self.trials[1:]
        else:
            self.slow = self.slow + 1 if late else 0
            if self.slow == 3:
                self.look()
        return result


# %% tags=["define"]
LOG_EVERY = 50  # steps between two entries of a training log
SAVE_EVERY = 500  # steps between two saves
FIRST_SCALE = 2.0**4  # of a float16 loss: V's gradients fit below 2⁴ to 2⁸, and the scaler's own 2¹⁶ would cost the first dozen steps


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """A rise over the first 100 steps, then half a cosine down to 2 % of the peak."""
    return peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


BatchLoss = Callable[[torch.Generator, int], tuple[Tensor, dict[str, Tensor]]]


def fit(model: nn.Module, batch_loss: BatchLoss, settings: TrainSettings, seed: int, progress: Progress, label: str, max_gradient: float = math.inf) -> dict:
    """Train a model in place with Adam for `settings.steps` steps; go on from the last save if there is one. Gradients longer than `max_gradient` are shortened.

    `batch_loss(generator, step)` draws a batch and returns its loss and numbers to log. The generator lives on the CPU, so that an interrupted run
    can continue with the very same numbers. Returns `weights`, and `log`: a list per number, one entry every `LOG_EVERY` steps."""
    generator, pace, log, first = torch.Generator().manual_seed(seed), Pace(DEVICE), {"step": []}, 0
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
    scaler = torch.amp.GradScaler(init_scale=FIRST_SCALE, enabled=choose_precision(DEVICE) == torch.float16)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    if (saved := progress.load()) is not None:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        first, log = saved["step"], saved["log"]
        print(f"{label}: going on from step {first:,}")

    def train(step: int) -> dict[str, Tensor]:
        """One step of gradient descent."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings.steps, settings.learning_rate)
        loss, numbers = batch_loss(generator, step)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_gradient)
        scaler.step(optimizer)
        scaler.update()
        return numbers

    model.train()
    for step in tqdm(range(first, settings.steps), desc=label, initial=first, total=settings.steps, unit="step"):
        numbers = pace.step(functools.partial(train, step))
        if step % LOG_EVERY == 0 or step == settings.steps - 1:
            for name, value in {"step": torch.tensor(step), **numbers}.items():
                log.setdefault(name, []).append(value.item())
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < settings.steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            progress.save({**state, "generator": generator.get_state(), "step": step + 1, "log": log})
            pace.look()
    model.eval()
    return {"weights": {name: value.cpu() for name, value in model.state_dict().items()}, "log": log}


def frozen(model: nn.Module, result: dict | None = None) -> nn.Module:
    """A model on the device, without gradients, with the weights of a finished stage if there is one."""
    if result is not None:
        model.load_state_dict(result["weights"])
    return model.to(DEVICE).eval().requires_grad_(False)


# %% [markdown]
# ### A law for the code: shifted picture, shifted z
#
# The ELBO does not care *how* $z$ writes down what it says. Left to itself, V may write the cart's position as a curve, with the angle mixed in, and C is linear: it can't undo a curve. But we know something that V does not: a picture shifted by $k$ pixels shows the same scene at another place. So its code should move by $k$ times one fixed direction $u$, wherever the cart is and however the pole leans:
#
# $$\mu(x \text{ shifted by } k) = \mu(x) + k\,u$$
#
# We make it a second loss. Each observation comes twice in a batch, under two shifts $k_1$ and $k_2$. Which share of the change of the code is *not* the law, with the best $u$ for the batch (least squares)?
#
# $$s = \frac{\sum \lVert\, \mu_1 - \mu_2 - (k_1 - k_2)\,u \,\rVert^2}{\sum \lVert\, \mu_1 - \mu_2 \,\rVert^2}, \qquad \text{loss} = -\text{ELBO} + \lambda \log s$$
#
# with $\lambda$ = `v.law`. Why a share, and not the squared distance itself? Because V could make a distance small by making $z$ small, and a share only by obeying. A straighter code is not always one that M predicts more easily, so 20 is a small weight. (That codes should follow the picture's motion is the idea of Hinton, Krizhevsky and Wang, 2011; this loss is ours.)
#
# **Predict** the shape of V's KL curve: its weight is 0 at the start, and grows.

# %% tags=["define"]
def shift_law_broken(mu: Tensor, pixels: Tensor) -> Tensor:
    """Which share of the change of a code is not one fixed direction times the shift of the picture: 0 is a perfect law, 1 none.

    `mu` (2B, Z): codes of B observations, and once more of the same ones under other shifts; `pixels` (2B,): by how much each was shifted."""
    change = torch.sub(*mu.chunk(2))  # (B, Z)
    moved = torch.sub(*pixels.float().chunk(2))[:, None]  # (B, 1)
    u = (moved * change).sum(0) / moved.square().sum().clamp(min=1)  # (Z,) least squares
    return (change - moved * u).square().sum() / change.square().sum().clamp(min=1e-6)


# %% tags=["define"]
def random_views(count: int, max_shift: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """A random shift (pixels) and mirror flag for each of `count` observations or episodes, both (count,)."""
    shift = torch.randint(-max_shift, max_shift + 1, (count,), generator=generator)
    flip = torch.randint(0, 2, (count,), generator=generator).bool()
    return shift.to(device), flip.to(device)


def train_v(progress: Progress, memory: Memory, *, v: VSettings, seed: int, mean_reduced: bool = False) -> dict:
    """Train V on single observations. With a law, each comes twice in a batch, under two shifts. `mean_reduced`: the classic mistake, for the exhibit."""
    torch.manual_seed(seed)
    views = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(memory), (4096,), generator=views).to(memory.device)
    mean_picture = memory.stack(rows, *random_views(len(rows), v.max_shift, views, memory.device)).mean((0, 1))  # (64, 64)
    model, precision = V(v, mean_picture).to(memory.device), choose_precision(memory.device)
    times = 2 if v.law > 0 else 1
    count = max(1, v.batch // times)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one random batch, and what to log."""
        rows = torch.randint(len(memory), (count,), generator=generator).to(memory.device).repeat(times)  # (B,)
        shift, flip = random_views(len(rows), v.max_shift, generator, memory.device)  # (B,) each
        flip = flip[:count].repeat(times)
        x = memory.stack(rows, shift, flip, BAND)  # (B, 4, 32, 64)
        noise = torch.randn(len(rows), v.latents, generator=generator).to(memory.device)  # (B, Z)
        with torch.autocast(memory.device.type, precision, enabled=precision != torch.float32):
            terms, mu = elbo(model, x, noise, min(1.0, step / v.ramp_steps))  # the weight of the KL climbs from 0 to 1
        loss = terms["error"] + terms["kl"] if mean_reduced else terms["loss"]
        if v.law > 0:
            terms["broken"] = shift_law_broken(mu, torch.where(flip, -shift, shift))  # a mirrored picture moves the other way
            loss = loss + v.law * torch.log(terms["broken"] + 1e-3)  # 0.001 keeps the logarithm finite
        return loss, terms

    return fit(model, batch_loss, v, seed, progress, "V")


def encode_rows(v: V, memory: Memory, rows: Tensor, shift: Tensor | None = None, mirror: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """μ and log σ² of a frozen V for some rows of the memory, each (B, Z), computed 1,024 at a time."""
    parts = []
    for chunk in torch.arange(len(rows), device=memory.device).split(1024):
        views = [None if values is None else values[chunk] for values in (shift, mirror)]
        parts.append(v.encode(memory.stack(rows[chunk], *views, BAND)))
    return tuple(torch.cat(values) for values in zip(*parts))


# %% tags=["run"]
v_stage = keep(train_v, memory, after=(collect,), name="v", v=settings.v, seed=settings.seed)
v = frozen(V(settings.v), v_stage.result)

# %% tags=["run"]
v_log = v_stage.result["log"]
drawing = {"lines": {"_": (v_log["step"], v_log["error"])}, "yscale": "log", "ylabel": "MSE (normalised pixels)", "title": "V draws better and better"}
saying = {"lines": {"_": (v_log["step"], v_log["kl"], "--")}, "ylim": (0, None), "ylabel": "KL (nats)", "title": "… and with fewer words"}
plot(drawing | {"xlabel": "step"}, saying | {"xlabel": "step"})
v_greys = math.sqrt(v_log["error"][-1]) / PIXEL_SCALE * 255
print(f"last batch: MSE {v_log['error'][-1]:.4f} of normalised pixels, that is {v_greys:.1f} grey levels rms; KL {v_log['kl'][-1]:.0f} nats")

# %% [markdown]
# Left, the drawing error falls steeply, and then slowly. Right, the KL shoots up while its weight is small and words are free, and comes down as each nat has to be paid for. About 200 nats are left. Four numbers would need far fewer; V also says where exactly each grey pixel of an edge lies.

# %% tags=["run"]
sampled_rows = torch.randint(len(memory), (4096,), generator=torch.Generator().manual_seed(settings.seed)).to(DEVICE)
sampled_mu, sampled_log_var = encode_rows(v, memory, sampled_rows)  # (4096, Z) each
spread, nats_of = sampled_mu.var(0), kl_to_normal(sampled_mu, sampled_log_var).mean(0)  # (Z,) each
x_seen, x_drawn = memory.stack(sampled_rows[:8]), v.decode(sampled_mu[:8])  # (8, 4, 64, 64)
show_pictures({"seen x": x_seen[:, -1], "drawn from z": x_drawn[:, -1]}, "The newest frame of eight observations, and V's drawing of it")
plot(
    {"bars": nats_of.sort(descending=True).values.cpu(), "xlabel": "latent dimension, sorted", "ylabel": "nats"},
    title="What each dimension says",
    size=(8, 2.6),
)
print(f"root-mean-square error {255 * (x_drawn - x_seen).square().mean().sqrt():.1f} of 255 grey levels, over all 64 × 64 pixels")
print(f"{int((spread > 0.01).sum())} of {len(spread)} dimensions are active; KL {nats_of.sum():.0f} nats in all, {nats_of.max():.1f} in the busiest")

# %% [markdown]
# The error is smaller here, 1.4 grey levels instead of 2.8, because V now draws without noise, and because half of the picture never changes. A dimension is *active* when its mean varies from picture to picture (variance over 0.01); an unused one would stay at the prior and cost nothing. All 64 are in use, although the state has four numbers: V also describes what does not matter for control.
#
# A **traversal** turns one knob at a time: take the mean code, move one dimension of $z$, draw the newest of the four frames. These are the four dimensions with the most nats.

# %% tags=["run"]
middle = sampled_mu.mean(0, keepdim=True)  # (1, Z)
turns, busiest = torch.linspace(-2, 2, 9, device=DEVICE), nats_of.argsort(descending=True)[:4].tolist()
one_knob = torch.diag(spread.sqrt())  # (Z, Z): one deviation of one dimension
turned = {f"z[{j}]": v.decode(middle + turns[:, None] * one_knob[j])[:, -1] - v.decode(middle)[:, -1] for j in busiest}  # (9, 64, 64) each
changes = {name: 0.5 + 6 * change for name, change in turned.items()}  # grey: no change
show_pictures(changes, "What one dimension of z changes, from −2 to +2 deviations (enlarged six times)", [f"{turn:+.1f}" for turn in turns])

# %% cellView="form" tags=["define"]
# @title An explorer of z
import ipywidgets as widgets


def show_code(v: V, middle: Tensor, one_knob: Tensor, **turns: float) -> None:
    """Draw the observation that belongs to a code: `middle` (1, Z), with turns such as z7=1.5, in deviations."""
    z = middle + sum(turn * one_knob[int(name[1:])] for name, turn in turns.items())  # (1, Z)
    show_pictures({"x": v.decode(z)[0]}, "V's drawing", ["t − 3", "t − 2", "t − 1", "t"])


# %% tags=["run", "widget"]
explorer = widgets.interactive(lambda **turns: show_code(v, middle, one_knob, **turns), **{f"z{j}": widgets.FloatSlider(0, min=-3, max=3) for j in busiest})
if os.environ.get("WM_NO_WIDGETS") != "1":  # a saved widget is nothing without its kernel
    display(explorer)

# %% [markdown]
# Drawn is the difference to the middle picture: grey is no change. The third row moves cart and pole together, the fourth mostly the pole, and the first two hardly anything, though V says most in them. No dimension is "the angle": the state is spread over many. With a kernel at hand, turn the knobs yourself.
#
# ### Does z hold the physical state?
#
# Good pictures prove little: a pole of 20 grey pixels can be lost at almost no cost in MSE. The telling question is whether $x, \dot x, \theta, \dot\theta$ can be read from $z$ by a *linear* map. We fit one by least squares on the first 80 % of the episodes and test it on the others. Nothing is trained through it.
#
# **Predict:** which of the four will be hard to read?

# %% tags=["define"]
STATE_UNITS = {"x": "m", "x_dot": "m/s", "theta": "rad", "theta_dot": "rad/s"}
PIXEL_METRES = 4.8 / FRAME_SIZE  # the picture is 4.8 m wide


def true_states(memory: Memory, rows: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """The physical states (B, 4) of some rows, as they look after a shift (B,) in pixels, positive to the left, and a mirror (B,)."""
    states = memory.states[rows] - F.pad((shift * PIXEL_METRES)[:, None], (0, 3))  # (B, 4)
    return torch.where(mirror[:, None], -states, states)


class Probe:
    """A linear reading of the physical state from features: a measuring instrument. Nothing is trained through it."""

    def __init__(self, features: Tensor, states: Tensor, ridge: float = 1e-5) -> None:
        """Least squares from features (S, F) to states (S, 4), with a small ridge for features that say the same thing."""
        features, states = features.double(), states.double()
        self.mean, self.scale, self.offset = features.mean(0), features.std(0) + 1e-3, states.mean(0)
        a = (features - self.mean) / self.scale  # (S, F)
        gram = a.T @ a + ridge * len(a) * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)  # (F, F)
        self.weight = torch.linalg.solve(gram, a.T @ (states - self.offset))  # (F, 4)

    def __call__(self, features: Tensor) -> Tensor:
        """States (..., 4) read from features (..., F)."""
        return (((features.double() - self.mean) / self.scale) @ self.weight + self.offset).float()

    def score(self, features: Tensor, states: Tensor) -> dict[str, dict[str, float]]:
        """R² and root-mean-square error (in the state's own units) on other data, by name of the state."""
        missed, spread = (self(features) - states).square().mean(0), states.var(0, unbiased=False)  # (4,) each
        return {name: dict(zip(STATE_UNITS, values.tolist())) for name, values in (("r2", 1 - missed / spread), ("rms", missed.sqrt()))}


def print_scores(columns: dict[str, tuple[dict, str]]) -> None:
    """A table with a line per state: column -> (what `Probe.score` returned, "r2" or "rms")."""
    print(f"{'':10s}", *(f"{column:>24s}" for column in columns))
    for name, unit in STATE_UNITS.items():
        texts = (f"R² {score[kind][name]:.3f}" if kind == "r2" else f"rms {score[kind][name]:.3f} {unit}" for score, kind in columns.values())
        print(f"{name:10s}", *(f"{text:>24s}" for text in texts))


# %% tags=["run"]
z_recorded, _ = encode_rows(v, memory, memory.rows)  # (N, Z)
held_out = memory.episode >= 0.8 * len(memory.episodes)
z_probe = Probe(z_recorded[~held_out], memory.states[~held_out])
z_score = z_probe.score(z_recorded[held_out], memory.states[held_out])
print_scores({"share explained": (z_score, "r2"), "error": (z_score, "rms")})

# %% [markdown]
# The position is read to 0.010 m, about a seventh of a pixel, and the angle to 0.016 rad, about 0.9°. The velocities are lost, in two ways. What the last push has done is not yet visible. And a velocity is a difference of two positions: even of the first and the last frame, 0.06 s apart, 0.01 m too much in one of them are 0.17 m/s too much. Somebody who has seen more frames and *remembers the pushes* could do better. That somebody is M.
#
# ### What goes wrong with a mean-reduced loss
#
# The most frequent mistake in VAE code is `mse_loss(..., reduction="mean") + kl`. The mean divides the drawing error by the number of pixels but leaves the KL as it is, so one nat suddenly costs as much as thousands of wrong pixels. **Predict** what such a VAE draws, after a few hundred steps.

# %% tags=["run"]
short_v = settings.v.but(steps=min(300, settings.v.steps), law=0.0)
broken_stage = keep(train_v, memory, after=(collect,), name="v-mean-reduced", v=short_v, seed=settings.seed, mean_reduced=True)
broken = frozen(V(settings.v), broken_stage.result)
drawings = {"seen x": x_seen, "our V": x_drawn, "mean-reduced": broken.decode(broken.encode(x_seen)[0])}  # (8, 4, 64, 64) each
show_pictures({name: pictures[:, -1] for name, pictures in drawings.items()}, "Summed and mean-reduced loss")
collapsed = kl_to_normal(*broken.encode(memory.stack(sampled_rows[:512]))).sum(1).mean()
print(f"KL of the mean-reduced VAE: {collapsed:.3f} nats; ours: {nats_of.sum():.0f} nats")


# %% [markdown]
# A KL close to zero means that $z$ says nothing about the picture, and the decoder can only draw the average of all of them. That is *posterior collapse*, here caused by the wrong scale of the two terms.
#
# <details><summary><b>Exercise 3.</b> By which factor must the KL be weighted so that the mean-reduced loss becomes the ELBO with σ² = 1? (Solution)</summary>
#
# A mean over D pixels is the sum divided by D; the ELBO has ½ of the sum. So weight the KL by 2/D. With our D = 8,192 that is 0.00024.
# </details>

