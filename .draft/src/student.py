# %% [markdown]
# ## 11 · The student's road: PPO, and gradients, in the dream
#
# C is linear, and CMA-ES only ever sees one number per candidate: its return. A dream knows more. It can say after each push how things stand, and, unlike reality, it is a formula, so it can be *differentiated*. Is CMA-ES on a linear C the best use of a dream? Three learners, one world: the same V and M, the same moments to begin in, dreams of 30 steps.
#
# Two of them train a small network, one hidden layer of 128 tanh units on (z, h), each number brought to mean 0 and deviation 1. Its score says right if it is positive, as C's does.

# %% tags=["define", "extra"]
class Net(nn.Module):
    """A score for each state: from (z, h) along some axes, through a layer of tanh units, or straight."""

    def __init__(self, axes: Axes, hidden: int) -> None:
        """`axes`: what it reads, K numbers. `hidden`: units; with 0 it is linear. It begins with the score 0 everywhere."""
        super().__init__()
        self.register_buffer("mean", axes.mean)
        self.register_buffer("directions", axes.directions)
        count = axes.directions.shape[1]
        self.body = nn.Sequential(nn.Linear(count, hidden), nn.Tanh()) if hidden else nn.Identity()
        self.out = nn.Linear(hidden or count, 1)
        for part in self.out.parameters():
            nn.init.zeros_(part)

    def forward(self, state: State) -> Tensor:
        """(B, …) for states (B, …)."""
        return self.out(self.body((features(state) - self.mean) @ self.directions))[..., 0]


def plain_axes(read: Tensor) -> Axes:
    """(z, h) as it is, each number with mean 0 and deviation 1 over some features (S, Z + H)."""
    return Axes(read.mean(0), (1 / (read.std(0) + 1e-3)).diag())


def sure(net: nn.Module) -> Choose:
    """A network that acts: right where its score is above 0."""
    return lambda k, state: (net(state) > 0).float()


# %% [markdown]
# ### One rollout for all
#
# A dream does not end with a bang. At step $k$ it goes on with the probability $d_k = 1 - p_{\text{done},k}$, so what is to come counts $d_k$ times:
#
# $$A_k = d_k\,\bigl(\hat r_k + \gamma\,(v_{k+1} + \lambda A_{k+1})\bigr) - v_k$$
#
# This is the *generalised advantage* (Schulman et al., 2016) with soft ends: how much better a push did than $v_k$ had promised. Put all $v_k$ to 0 except that of the last state, and $\lambda = \gamma = 1$, and it is nothing but C's imagined return. One function serves both learners.

# %% tags=["define", "extra"]
def advantages(reward: Tensor, on: Tensor, value: Tensor, gamma: float = 1.0, lam: float = 1.0) -> Tensor:
    """A (B, T) of the equation above. `reward`, `on` (B, T): r̂ and the probability to go on; `value` (B, T + 1): of the states before each push and after the last."""
    ahead, found = torch.zeros_like(value[:, 0]), []
    for k in reversed(range(reward.shape[1])):
        ahead = on[:, k] * (reward[:, k] + gamma * (value[:, k + 1] + lam * ahead)) - value[:, k]
        found.append(ahead)
    return torch.stack(found[::-1], 1)


class School:
    """Where C's dreams begin, and what they pay, for anyone who acts on states."""

    def __init__(self, world: World, c: CSettings, seed: int) -> None:
        """As `learn` does it."""
        luck = torch.Generator().manual_seed(seed)
        self.world, self.c, self.seed, self.looking = world, c, seed, 0.0
        self.starts = world.states(*world.moments(START_POOL, luck))
        self.read = features(world.states(*world.moments(START_POOL, luck, copies=1)))  # (S, Z + H)
        self.home, self.lawful = principal_axes(self.read, min(HOME_AXES, self.read.shape[1])), search_space(world, c, luck)

    def some(self, luck: torch.Generator, count: int) -> State:
        """Random moments to begin in."""
        return self.starts.pick(torch.randint(len(self.starts.z), (count,), generator=luck).to(self.starts.z.device))

    def lived(self, choose: Choose, begin: State, horizon: int) -> tuple[State, Tensor, Tensor, Tensor]:
        """B dreams: the states before each push and after the last (B, T + 1, …), the pushes, r̂, and the probabilities to go on, (B, T) each."""
        path = stacked(list(dream(self.world.m, begin, choose, horizon)))
        says = self.world.m.says(path.state)
        return State(*(torch.cat([a[:, None], b], 1) for a, b in zip(begin, path.state))), path.a, says.reward, torch.sigmoid(-says.done)

    def returns(self, choose: Choose, begin: State, horizon: int = 0) -> Tensor:
        """C's imagined return (B,)."""
        states, _, r, on = self.lived(choose, begin, horizon or self.c.horizon)
        worth = self.c.last_worth * familiarity(features(State(*(part[:, -1] for part in states))), self.home, self.c.penalty)  # (B,)
        return advantages(r, on, torch.cat([torch.zeros_like(r), worth[:, None]], 1))[:, 0]

    @torch.no_grad()
    def look(self, choose: Choose, workers: int, episodes: int = 2) -> dict[str, Tensor]:
        """A thermometer, as C's: the return in 512 common dreams, and that of some short real episodes. Its seconds are not counted as training."""
        begin = time.perf_counter()
        dreamed = self.returns(choose, self.some(torch.Generator().manual_seed(self.seed), 512)).mean()
        real = np.mean(lives(Agent(self.world, choose), "check", self.seed, episodes, workers, LOOK_STEPS))
        self.looking += time.perf_counter() - begin
        return {"dream": dreamed, "real": torch.tensor(real)}


# %% [markdown]
# ### PPO
#
# The student is an actor-critic. The actor pushes *by chance*, right with the probability σ(score). A second network, the critic, learns what a state is worth; after the 30 steps it also says what comes then, so the handmade worth of C's last state is not needed. The actor makes pushes with $A_k > 0$ likelier, but **clips** the ratio of the new to the old probability, so that it does not run far from what was dreamed:
#
# $$L = -\min\bigl(\rho_k A_k,\ \text{clip}(\rho_k, 1 - \epsilon, 1 + \epsilon)\,A_k\bigr) + \tfrac12 (v_k - \hat v_k)^2 - \beta\,\text{entropy}$$
#
# The entropy keeps it trying. It dreams 256 lives side by side, learns from them for ten steps, and dreams again.

# %% tags=["define", "extra"]
GATHER, MOMENTS = 10, 1024  # steps of PPO before it dreams again; dreamed moments in each
CLIP, ENTROPY, GAMMA, LAMBDA = 0.2, 0.01, 0.98, 0.95  # ε, β, γ, λ
FAR = 30.0  # the critic's unit, in steps: networks like numbers near 1


def ppo_losses(score: Tensor, value: Tensor, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """PPO's losses on S dreamed moments (Schulman et al., 2017, equations 7 and 9), each weighed by the chance that the dreamer was still alive.

    `score`, `value` (S,): the networks' now. `seen`, (S,) each: `a`, its `log_p` when it was dreamed, `advantage`, `target` of the critic, `alive`."""
    ratio = (F.logsigmoid((2 * seen["a"] - 1) * score) - seen["log_p"]).exp()
    gain = torch.minimum(ratio * seen["advantage"], ratio.clamp(1 - CLIP, 1 + CLIP) * seen["advantage"])
    p = score.sigmoid()
    parts = {"policy": -gain, "value": (value - seen["target"]).square(), "entropy": F.binary_cross_entropy(p, p, reduction="none")}
    means = {name: (part * seen["alive"]).sum() / seen["alive"].sum() for name, part in parts.items()}
    return {"total": means["policy"] + 0.5 * means["value"] - ENTROPY * means["entropy"], **means}


@torch.no_grad()
def gathered(school: School, nets: nn.ModuleDict, luck: torch.Generator, count: int) -> dict[str, Any]:
    """Dream `count` lives, and keep what PPO learns from: `state`, and the rest of `seen`, moment by moment."""

    def by_chance(k: int, state: State) -> Tensor:
        """Pushes (B,), right with the probability σ(score)."""
        return (torch.rand(count, generator=luck).to(state.z.device) < nets["actor"](state).sigmoid()).float()

    states, a, r, on = school.lived(by_chance, school.some(luck, count), school.c.horizon)
    before, value = State(*(part[:, :-1] for part in states)), nets["critic"](states)  # (B, T, …), (B, T + 1)
    advantage = advantages(r / FAR, on, value, GAMMA, LAMBDA)  # (B, T)
    seen = {"a": a, "log_p": F.logsigmoid((2 * a - 1) * nets["actor"](before)), "target": advantage + value[:, :-1]}
    seen["advantage"] = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
    seen["alive"] = torch.cat([torch.ones_like(on[:, :1]), on[:, :-1].cumprod(1)], 1)  # (B, T)
    return {name: part.flatten() for name, part in seen.items()} | {"state": State(*(part.flatten(0, 1) for part in before))}


# %% [markdown]
# ### The gradient of the dream itself
#
# M is differentiable, and so are r̂, $p_{\text{done}}$ and the worth of the last state. Only the push is not: it is left or right. The **straight-through** trick pushes hard, and pretends for the gradient that the push were the number σ(score / ½) (Bengio et al., 2013). Then the return of a dream has a gradient with respect to every weight of the controller, through all 30 steps of M. No candidates, no critic, no chance: Adam climbs the return.
#
# **Predict:** a gradient through 30 steps of an LSTM, at a pole that falls exponentially. Will it explode, or vanish?

# %% tags=["define", "extra"]
def straight_through(net: nn.Module, width: float = 0.5) -> Choose:
    """As sure as `sure`, with the gradient of σ(score / width)."""

    def choose(k: int, state: State) -> Tensor:
        """Pushes (B,) in {0, 1}."""
        soft = (net(state) / width).sigmoid()
        return (soft > 0.5).float() + soft - soft.detach()

    return choose


def train_student(progress: Progress, world: World, *, way: str, hidden: int, lawful: bool, how: TrainSettings, c: CSettings, seed: int, workers: int) -> dict:
    """Train a controller in dreams: by "PPO", or by the "gradient" of the dream.

    `lawful`: it reads the axes in which CMA-ES searches, else plain (z, h). Returns `fit`'s result, `seconds` without looks, and `norms`: the gradient's
    length for HORIZONS, before and after."""
    torch.manual_seed(seed)
    school = School(world, c, seed)
    nets = {"actor": Net(school.lawful if lawful else plain_axes(school.read), hidden)} | ({"critic": Net(plain_axes(school.read), hidden)} if way == "PPO" else {})
    nets, seen, begin = nn.ModuleDict(nets).to(DEVICE), {}, time.perf_counter()

    def batch_loss(luck: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step, and now and then a look."""
        if way == "PPO":
            if step % GATHER == 0:
                seen.update(gathered(school, nets, luck, how.batch))
            pick = torch.randint(how.batch * c.horizon, (MOMENTS,), generator=luck).to(DEVICE)
            state = seen["state"].pick(pick)
            losses = ppo_losses(nets["actor"](state), nets["critic"](state), {name: part[pick] for name, part in seen.items() if name != "state"})
        else:
            losses = {"total": -school.returns(straight_through(nets["actor"]), school.some(luck, how.batch)).mean()}
        looked = school.look(sure(nets["actor"]), workers) if step % LOG_EVERY == 0 or step == how.steps - 1 else {}
        return losses["total"], losses | looked

    norms = [gradient_norms(school, nets["actor"])]
    result = fit(nets, batch_loss, how, seed, progress, way, 1.0)
    return result | {"seconds": time.perf_counter() - begin - school.looking, "norms": [*norms, gradient_norms(school, nets["actor"])]}


HORIZONS = (5, 15, 30, 60)  # steps


def gradient_norms(school: School, net: nn.Module) -> list[float]:
    """The length of the gradient of 256 dreams' mean return with respect to the weights, for each of HORIZONS."""
    begin = school.some(torch.Generator().manual_seed(school.seed), 256)
    found = [torch.autograd.grad(school.returns(straight_through(net), begin, horizon).mean(), list(net.parameters())) for horizon in HORIZONS]
    return [math.sqrt(sum(float(part.square().sum()) for part in parts)) for parts in found]


# %% [markdown]
# ### Who uses the dream best?
#
# Each learner has three seeds and is tested in 100 real episodes. CMA-ES appears twice: with all its dreams, and with no more than PPO has. Two rows ask what the gradient needs: it climbs without the axes that CMA-ES is searched in, and without the worth of the last state. **Predict** the order, in dreamed steps.

# %% tags=["define", "extra"]
def try_student(progress: Progress, world: World, *, name: str, way: str, hidden: int, lawful: bool, how: TrainSettings, c: CSettings, seed: int, episodes: int, workers: int) -> dict:
    """One learner, one seed: a `line` for the table, `curve` (dreamed steps, dream and real return of each look), and `norms` of gradients."""
    school, norms = School(world, c, seed), []
    if way == "CMA-ES":
        begin = time.perf_counter()
        found = learn(None, world, c=c, seed=seed, workers=workers)
        seconds, per_step = time.perf_counter() - begin, c.population * c.rollouts * c.horizon
        looked = sorted({min(2**k, c.generations) for k in range(12)})
        looks, choose = [school.look(controller(found["path"][step - 1].to(DEVICE)), workers) for step in looked], controller(found["weights"].to(DEVICE))
        steps = c.generations
    else:
        found = train_student(progress, world, way=way, hidden=hidden, lawful=lawful, how=how, c=c, seed=seed, workers=workers)
        seconds, per_step, steps, norms = found["seconds"], how.batch * c.horizon / (GATHER if way == "PPO" else 1), how.steps, found["norms"]
        looked, looks = found["log"]["step"], [dict(zip(("dream", "real"), both)) for both in zip(found["log"]["dream"], found["log"]["real"])]
        actor = Net(school.lawful if lawful else plain_axes(school.read), hidden)
        actor.load_state_dict({key.removeprefix("actor."): value for key, value in found["weights"].items() if key.startswith("actor.")})
        choose = sure(frozen(actor))
    curve = [{"learner": name, "seed": seed, "steps": int(step * per_step), "dream": float(look["dream"]), "real": float(look["real"])} for step, look in zip(looked, looks)]
    played = play(Agent(world, choose), seeds_for("roads", seed, episodes), workers)
    real, far = [len(episode.actions) for episode in played], max(float(np.abs(episode.states[:, 0]).max()) for episode in played)
    line = {"learner": name, "seed": seed, "dreamed steps": int(steps * per_step), "seconds": seconds, "dream": curve[-1]["dream"], "real": float(np.mean(real)), "worst": min(real), "farthest (m)": far}
    return {"line": {key: round(value, 2) if isinstance(value, float) else value for key, value in line.items()}, "curve": curve, "norms": norms}
