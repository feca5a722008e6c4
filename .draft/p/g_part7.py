# %% [markdown]
# ## 7 · C: learning to act without acting
#
# C is as small as can be: push right if $w \cdot (z, h) + b > 0$, else left. Its weights are found by **CMA-ES** (Hansen & Ostermeier 2001), which needs no gradient: it keeps a normal distribution over the weights, draws a population from it, lets each candidate live through some dreams, and moves and reshapes the distribution towards the better half. Here it goes down a narrow valley.

# %% tags=["define"]
import nevergrad as ng

SIGMA = 0.5  # first step size of CMA-ES; for a linear C only a change of scale (exercise 6)


def make_cma(dimensions: int, c: CSettings, seed: int) -> Any:
    """CMA-ES from nevergrad, with its silent restarts turned off, all of them."""
    # pycma has stop criteria, and nevergrad answers a stop by starting anew from the first point without a word. A dream that saturates would
    # trigger some. And since only the direction of a linear C matters, its scale drifts upwards: at a thousand times the first σ another one fires.
    parameters = ng.p.Array(init=np.zeros(dimensions)).set_mutation(sigma=SIGMA)
    parameters.random_state = np.random.RandomState(seed)
    never = {"tolfun": 0, "tolfunhist": 0, "tolfunrel": 0, "tolflatfitness": 10**9, "tolstagnation": 0, "tolx": 0, "verbose": -9}
    never |= {"tolfacupx": 1e300, "tolupsigma": 1e300, "tolconditioncov": 1e300, "tolxstagnation": False, "maxiter": 10**12, "maxfevals": 10**15}
    return ng.optimizers.ParametrizedCMA(popsize=c.population, inopts=never)(parameters, budget=c.generations * c.population, num_workers=c.population)


def cma_mean(optimizer: Any) -> np.ndarray:
    """The mean of the search distribution: steadier than `recommend()`, which returns the luckiest single candidate."""
    return optimizer.parametrization.spawn_child().set_standardized_data(optimizer.es.mean).value


# %% tags=["run"]
valley, drawn = make_cma(2, settings.c.but(population=20, generations=25), settings.seed), []
for _ in range(25):
    crew = [valley.ask() for _ in range(20)]
    drawn.append(np.array([candidate.value for candidate in crew]))
    for candidate, (a, b) in zip(crew, drawn[-1]):
        valley.tell(candidate, 25 * (b - a) ** 2 + (a + b - 6) ** 2)  # narrow across a = b, and deepest at (3, 3)
grid = np.meshgrid(np.linspace(-2, 5, 200), np.linspace(-2, 5, 200))
figure, places = plt.subplots(1, 4, figsize=(12, 3.2), sharey=True)
for place, generation in zip(places, (1, 4, 8, 25)):
    place.contour(*grid, 25 * (grid[1] - grid[0]) ** 2 + (grid[0] + grid[1] - 6) ** 2, levels=[1, 5, 20, 80, 300], colors=GREY, linewidths=0.8)
    place.plot(*drawn[generation - 1].T, "o", color=BLUE, ms=4)
    place.set(xlim=(-2, 5), ylim=(-2, 5), xlabel="first weight", title=f"generation {generation}")
places[0].set_ylabel("second weight")
plt.show()

# %% [markdown]
# Each dot is a candidate, each line a height. The cloud first stretches along the valley, then walks down it, and contracts at the bottom: it has learned the valley's shape from heights alone.
#
# ### What a dream is worth
#
# Four details make a dream a useful judge (all candidates times 30 dreams are one batch):
#
# - **Common random numbers.** Within a generation every candidate meets the same starts (and the same noise), so that they are compared by skill, not by luck.
# - **Starts from real moments**, with $h$ from the real steps before them. Many are hard: random play is always about to fall.
# - **Survival probability**, not a hard end, as in part 6.
# - **The worth of the last state.** Thirty steps are enough to fall, far too short to drift out of the picture, so a controller that drifts would not be found out. The recipe asks for a penalty on ‖z‖ to keep dreams where the model knows its way. We give the *last* state a worth: the more familiar it is, the more steps of life it still promises. With $d^2$ the mean squared distance from the middle of the recorded data, along their 16 main directions and in their own standard deviations,
#
# $$R = \sum_{k=1}^{T} \hat r_k \prod_{j \le k} (1 - p_{\text{done},j}) \;+\; \frac{W}{1 + \kappa d_T^2} \prod_{j \le T} (1 - p_{\text{done},j})$$
#
# with $T$ = `c.horizon`, $W$ = `c.last_worth` and $\kappa$ = `c.penalty`. So with $T = W = 30$ a perfect dream that ends in the very middle is worth 60; one that ends in an average recorded state ($d^2 = 1$) is worth 37.5. This worth is *our* wish, not something that M found out: it tells C to stay in the middle.
#
# Why the last state only? Count familiarity at *every* step, and the best thing a controller can do in 30 steps is to hurry home. But a cart that hurries to the left makes its pole lean to the right: it must first go the wrong way. A controller that is paid at each step never does that.
#
# ### Where to search
#
# C is linear in all 320 numbers of $(z, h)$, but CMA-ES would need very many dreams to sort out 320 weights, most of which do not matter. Which directions do? We ask the recorded data, without looking at the true state:
#
# - directions that **obey a law**: they tell best what is seen ten steps later, once the effect of the pushes between is taken out (canonical correlation analysis, Hotelling 1936). Physics is such a law; a detail of how V happens to write down a picture is not;
# - directions that **grow**: a small difference now is a large one later. In this world that is the falling pole.
#
# Twelve of the first kind and eight of the second, less what both say, are the search space: two numbers chosen by trying, on other seeds. A candidate is a point in that small space; it becomes weights on the plain $(z, h)$ when it acts.

# %% tags=["define"]
class Axes(NamedTuple):
    """Directions of (z, h), scaled so that the data have unit variance along each of them."""

    mean: Tensor  # (Z + H,)
    directions: Tensor  # (Z + H, K)


def with_fixed_signs(mean: Tensor, directions: Tensor) -> Axes:
    """Axes of which each points to its positive side: an eigenvector's sign is arbitrary, and the same seed shall give the same search on every machine."""
    return Axes(mean.float(), (directions * directions.sum(0).sign()).float())


def principal_axes(read: Tensor, count: int) -> Axes:
    """The `count` leading principal components of some features (S, Z + H), whitened: along them familiarity is measured."""
    read = read.double()
    values, vectors = torch.linalg.eigh(torch.cov(read.T))  # ascending: (Z + H,), (Z + H, Z + H)
    return with_fixed_signs(read.mean(0), vectors[:, -count:] / values[-count:].clamp(min=1e-12).sqrt())


def without(pushes: Tensor, read: Tensor) -> Tensor:
    """Features (S, F) without their mean and without what a linear function of the pushes (S, K) explains."""
    pushes, read = pushes - pushes.mean(0), read - read.mean(0)
    return read - pushes @ torch.linalg.lstsq(pushes, read).solution


def inverse_root(read: Tensor) -> Tensor:
    """A matrix W (F, F) such that features @ W are uncorrelated and have unit variance; a little ridge keeps it finite."""
    ridge = 1e-4 * torch.eye(read.shape[1], dtype=read.dtype, device=read.device)
    return torch.linalg.inv(torch.linalg.cholesky(read.T @ read / len(read) + ridge)).T


def lawful_axes(now: Tensor, later: Tensor, pushes: Tensor, lawful: int, growing: int) -> Axes:
    """Directions of (z, h) that follow a linear law of motion, uncorrelated and of unit variance over the features `now` (S, Z + H).

    `lawful`: so many whose value K steps `later` is told best by the present (canonical correlations), once what the `pushes` between (S, K), −1 or +1,
    explain is taken out. `growing`: so many in which a difference of one deviation now is largest later."""
    now, later, pushes = now.double(), later.double(), pushes.double()
    mean, scale, found = now.mean(0), now.std(0) + 1e-3, []
    x, y = without(pushes, (now - mean) / scale), without(pushes, (later - mean) / scale)  # (S, F) each
    of_x, of_y = inverse_root(x), inverse_root(y)  # (F, F)
    for count, metric in ((lawful, of_y), (growing, of_x)):
        _, _, directions = torch.linalg.svd((y @ metric).T @ (x @ of_x) / len(x))  # of a matrix (F, F): later from now, both in deviations
        found.append(of_x @ directions[:count].T / scale[:, None])  # (F, count)
    directions = torch.cat(found, 1)
    values, vectors = torch.linalg.eigh(directions.T @ torch.cov(now.T) @ directions)
    kept = values > 1e-3 * values[-1]  # where both kinds say the same, one of them is enough
    return with_fixed_signs(mean, directions @ vectors[:, kept] / values[kept].sqrt())  # (F, up to lawful + growing)


# %% tags=["define"]
PAIRS = 40_000  # pairs of a moment and a later one from which the search space is found
LOOK_AHEAD = 10  # how much later that is, in steps
HOME_AXES = 16  # main directions of the recorded (z, h) along which familiarity is measured


@torch.no_grad()
def search_space(world: World, c: CSettings, generator: torch.Generator) -> Axes:
    """Where C is searched in one state of knowledge. It asks the recorded data only, never the true state."""
    rows, copies = world.moments(PAIRS, generator, LOOK_AHEAD)  # (S,) each
    now, later = (features(world.states(some, copies)) for some in (rows, rows + LOOK_AHEAD))  # (S, Z + H) each
    between = rows[:, None] + torch.arange(LOOK_AHEAD, device=rows.device)  # (S, K)
    return lawful_axes(now, later, 2.0 * world.codes.actions[copies[:, None], between] - 1, c.axes, c.growing)


def to_weights(axes: Axes, points: Tensor) -> Tensor:
    """Points (P, K + 1) of the search space -> weights (P, Z + H + 1) on the plain (z, h)."""
    weights = points[:, :-1] @ axes.directions.T  # (P, Z + H)
    return torch.cat([weights, points[:, -1:] - weights @ axes.mean[:, None]], 1)  # (P, Z + H + 1)


def act(weights: Tensor, read: Tensor) -> Tensor:
    """π for P controllers at once: push right (1, else 0) where w · (z, h) + b > 0; weights (P, Z + H + 1), features (P, R, Z + H) -> (P, R)."""
    return (torch.baddbmm(weights[:, -1:, None], read, weights[:, :-1, None])[..., 0] > 0).long()


def controller(weights: Tensor) -> Choose:
    """One controller (Z + H + 1,) as the one who acts in a dream."""
    return lambda k, state: act(weights[None], features(state)[None])[0]


def familiarity(read: Tensor, home: Axes, penalty: float) -> Tensor:
    """How familiar some features (B, Z + H) are: 1 / (1 + penalty · d²), with d² = 1 for an average recorded state; (B,) in (0, 1]."""
    return 1 / (1 + penalty * ((read - home.mean) @ home.directions).square().mean(1))


# %% tags=["define"]
def reward(step: Step) -> Tensor:
    """What a step pays: r̂ (B,)."""
    return step.says.reward


@torch.no_grad()
def dream_returns(
    m: M, weights: Tensor, starts: State, home: Axes, c: CSettings, noise: Tensor | None = None, pays: Callable = reward, reads: Callable = features
) -> Tensor:
    """The imagined return (P, R) of P controllers in R dreams each: Σ_k r̂_k · Π_{j≤k} (1 − p_done,j), and the worth of the last state.

    Args:
        weights: (P, Z + H + 1). starts: R states, the same for each controller. noise: (R, T, Z), masked, the same for each controller.
        pays, reads: what a step is worth, (B,), and what C may read of a state, (B, Z + H). A remedy of part 9 is another function here."""
    P, R = len(weights), len(starts.z)
    every = torch.arange(R, device=weights.device).repeat(P)  # (P·R,)
    alive, total = torch.ones(P * R, device=weights.device), torch.zeros(P * R, device=weights.device)

    def each_its_own(k: int, state: State) -> Tensor:
        """Each controller pushes in its own R dreams: (P·R,)."""
        return act(weights, reads(state).view(P, R, -1)).view(-1)

    for step in dream(m, starts.pick(every), each_its_own, c.horizon, tau=c.temperature, noise=None if noise is None else noise[every]):
        alive = alive * torch.sigmoid(-step.says.done)
        total += alive * pays(step)
    # The dream ends here, but the life it stands for would go on: how long, depends on where it ends.
    total += alive * c.last_worth * familiarity(features(step.state), home, c.penalty)
    return total.view(P, R)


# %% [markdown]
# ### Awake
#
# In the real world the same three parts work in a loop: V looks, C acts, M remembers. Its $h$ is made anew at each step from the last eight real ones, exactly as at the beginning of a dream, so C meets no $h$ that it has not dreamed of.

# %% tags=["define"]
class Agent:
    """C in the real world, callable by `play`: V reads the last four frames, M the last few steps (as at the beginning of a dream), C acts on (z, h)."""

    def __init__(self, world: World, weights: Tensor, exploration: float = 0.0, seed: int = 0) -> None:
        """`weights` (Z + H + 1,): one controller. In a share `exploration` of the steps a coin decides instead."""
        self.world, self.weights, self.stack = world, weights.to(DEVICE), None
        self.exploration, self.dice = exploration, np.random.default_rng(seed)

    @torch.no_grad()
    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One push (0 or 1) per environment, (W,). The true states are not used."""
        frame, new = (torch.from_numpy(values).to(DEVICE) for values in (frames, fresh))  # (W, 64, 64), (W,)
        if self.stack is None:  # nothing has been seen yet
            self.stack = frame[:, None].repeat(1, STACK, 1, 1)  # (W, 4, 64, 64)
            self.z = torch.zeros(len(frame), self.world.context + 1, self.world.codes.mu.shape[-1], device=DEVICE)  # (W, C + 1, Z)
            self.a, self.known = torch.zeros_like(self.z[:, :, 0]), torch.zeros_like(self.z[:, :, 0], dtype=torch.bool)  # (W, C + 1) each
        self.stack = torch.where(new[:, None, None, None], frame[:, None], torch.cat([self.stack[:, 1:], frame[:, None]], 1))
        z = self.world.v.encode(self.stack.float() / 255)[0]  # (W, Z)
        self.z = torch.where(new[:, None, None], z[:, None], torch.cat([self.z[:, 1:], z[:, None]], 1))
        self.known = torch.cat([self.known[:, 1:] & ~new[:, None], torch.ones_like(self.known[:, :1])], 1)
        self.a = self.a.roll(-1, 1)
        push = act(self.weights[None], features(remembered(self.world.m, self.z, self.a, self.known))[None])[0]  # (W,)
        if self.exploration > 0:
            coin, rolled = self.dice.integers(2, size=len(frame)), self.dice.random(len(frame)) < self.exploration
            push = torch.where(torch.from_numpy(rolled).to(DEVICE), torch.from_numpy(coin).to(DEVICE), push)
        self.a[:, -1] = push
        return push.cpu().numpy()


def lives(policy: Policy, purpose: str, seed: int, episodes: int, workers: int, steps: int = 500) -> list[float]:
    """Real returns of a policy on the seeds of one purpose, in episodes of at most so many steps."""
    return [float(len(episode.actions)) for episode in play(policy, seeds_for(purpose, seed, episodes), workers, steps=steps)]


# %% [markdown]
# ### The search, and a thermometer
#
# Every 500 imagined updates (candidates evaluated), and after the first 1, 2, 4 and 8 generations, when C learns most, the mean of the search distribution takes a short look at the *real* world: two episodes of at most 200 steps. This is a thermometer. It is logged, and nothing else: nothing is trained on it, and nothing is chosen by it.
#
# So which controller ships? The rule was fixed before this seed was run: **the mean of the search's means over its second half**, each brought to unit length first, since only the direction of a linear C acts. Not the best of a dream or of a look: who picks a winner by luck reports luck as skill. A mean over many generations is steadier than any one of them.

# %% tags=["define"]
LOOK_STEPS = 200  # of a look at the real world: a thermometer need not be long


def learn(
    progress: Progress | None, world: World, pays: Callable = reward, reads: Callable = features, begins: State | None = None, *, c: CSettings, seed: int, workers: int
) -> dict:
    """Evolve a controller wholly inside dreams, and look at the real world now and then, but never use it. `begins`: where dreams begin, if not in real moments.

    Saved are the returns of all generations: a resumed run replays them, for CMA-ES is a function of its seed and those. Returns `weights` (Z + H + 1,), what
    ships; `path` (G, Z + H + 1), the mean after each generation; `returns` (G, P); and of each look its `updates`, `real` returns and `dream` return."""
    generator = torch.Generator().manual_seed(seed)
    starts = begins or world.states(*world.moments(8192, generator))
    home_read = features(world.states(*world.moments(8192, generator, copies=1)))
    home, axes = principal_axes(home_read, min(HOME_AXES, home_read.shape[1])), search_space(world, c, generator)
    noisy, _ = variance_mask(world, c.mask_threshold, seed)
    optimizer, path = make_cma(axes.directions.shape[1] + 1, c, seed), []
    kept = (progress and progress.load()) or {"returns": [], "updates": [], "real": []}

    def dreamed(weights: Tensor, count: int, luck: torch.Generator) -> Tensor:
        """Returns (P, R) in R random dreams, the same for all."""
        pick = torch.randint(len(starts.z), (count,), generator=luck).to(starts.z.device)
        noise = noisy * torch.randn(count, c.horizon, len(noisy), generator=luck).to(noisy.device) if c.temperature > 0 else None  # (R, T, Z)
        return dream_returns(world.m, weights, starts.pick(pick), home, c, noise, pays, reads)

    for generation in (bar := tqdm(range(c.generations), desc="C", unit="generation", disable=progress is None)):
        candidates = [optimizer.ask() for _ in range(c.population)]
        new = generation >= len(kept["returns"])  # else it was evaluated before an interruption
        if new:
            points = torch.tensor(np.stack([candidate.value for candidate in candidates]), dtype=torch.float32, device=starts.z.device)  # (P, K + 1)
            luck = torch.Generator().manual_seed(1_000_003 * seed + generation)
            kept["returns"].append(dreamed(to_weights(axes, points), c.rollouts, luck).mean(1).cpu())  # (P,)
        for candidate, imagined in zip(candidates, kept["returns"][generation].tolist()):
            optimizer.tell(candidate, -imagined)
        if optimizer.es.countiter != generation + 1:
            raise RuntimeError("CMA-ES has started anew: one of pycma's stop criteria fired, and what it had learned is lost")
        mean = torch.tensor(cma_mean(optimizer), dtype=torch.float32, device=starts.z.device)  # (K + 1,)
        path.append(mean / mean[:-1].norm())
        updates = (generation + 1) * c.population
        due = generation in (0, 1, 3, 7) or updates // c.look_every > (updates - c.population) // c.look_every
        if new and due and progress:
            agent = Agent(world, to_weights(axes, path[-1][None])[0])
            kept["real"].append(lives(agent, "check", seed, c.look_episodes, workers, LOOK_STEPS))
            kept["updates"].append(updates)
            bar.set_postfix(dream=f"{kept['returns'][-1].mean():.1f}", real=f"{np.mean(kept['real'][-1]):.0f}")
            progress.save(kept)
    path = torch.stack(path)  # (G, K + 1)
    ships = to_weights(axes, path[c.generations // 2 :].mean(0, keepdim=True))[0].cpu()  # (Z + H + 1,)
    path, looked = to_weights(axes, path), [updates // c.population - 1 for updates in kept["updates"]]
    # One common set of dreams, not used in training, so that the controllers that were looked at can be compared with each other.
    compared = dreamed(path[looked], 512, torch.Generator().manual_seed(seed)).mean(1).tolist() if looked else []
    return {"weights": ships, "path": path.cpu(), "returns": torch.stack(kept["returns"]), "updates": kept["updates"], "real": kept["real"], "dream": compared}


# %% [markdown]
# **Predict:** dream and reality on one time axis. After how many updates does C reach the full length of a look? (The dream return can pass 30, because the last state has a worth of its own.)

# %% tags=["run"]
c_settings = {"c": settings.c, "seed": settings.seed, "workers": settings.collect.workers}
c_stage = keep(learn, world, after=(practice_stage,), name="c", **c_settings)
learned = c_stage.result
ship = learned["weights"].to(DEVICE)  # (Z + H + 1,)
look_means = [float(np.mean(returns)) for returns in learned["real"]]
c_axes = {"xscale": "log", "xlabel": "imagined updates (candidates evaluated)"}
in_dreams = {"lines": {"_": (learned["updates"], learned["dream"], "s-")}, "ylabel": "return", "title": f"In dreams of {settings.c.horizon} steps"}
in_reality = {"lines": {"_": (learned["updates"], look_means, "o--")}, "ylabel": "return (steps)", "title": f"In reality, looks of {LOOK_STEPS} steps", "ylim": (0, 1.05 * LOOK_STEPS)}
plot(in_dreams | c_axes, in_reality | c_axes)
for updates, imagined, real in zip(learned["updates"], learned["dream"], look_means):
    print(f"after {updates:5,d} updates: dream return {imagined:5.1f}, real return {real:5.1f} of {LOOK_STEPS}")

# %% [markdown]
# ⟦C⟧
#
# Is it really the world model that teaches C? The control experiment is the same search, a third as long, in the dreams of an **untrained** M. **Predict** how long its pole stands; a coin's falls after 22 steps on average.

# %% tags=["run"]
control_settings = c_settings | {"c": settings.c.but(generations=max(4, settings.c.generations // 3))}
control_stage = keep(learn, world._replace(m=m_untrained), after=(code_stage, m_stage), name="c-untrained-m", **control_settings)
control_agent = Agent(world._replace(m=m_untrained), control_stage.result["weights"])
control_returns = lives(control_agent, "check", settings.seed, settings.c.look_episodes, settings.collect.workers, LOOK_STEPS)
print(f"trained in an untrained M's dreams: {np.mean(control_returns):.0f} real steps")

# %% [markdown]
# In an untrained M's dreams no picture moves: it predicts the $z$ that it has just seen. So nothing about balance can be learned there. ⟦CONTROL⟧ How to balance, C has learned from M; that it should stay in the middle, we told it, with the worth of the last state.
#
# <details><summary><b>Exercise 6.</b> Multiply all weights and the bias of C by ten. What changes in the real world, and what for CMA-ES? (Solution)</summary>
#
# In the world nothing: C looks at the sign of a sum only. And CMA-ES starts at zero weights: with a ten times larger first step size (`SIGMA`) it draws the same candidates, each ten times as long, and they act in the same way. So for a linear C the step size changes nothing but the scale. It also means that nothing holds the scale: it drifts upwards through the search, until pycma calls that a failure and stops. See `make_cma`.
# </details>

