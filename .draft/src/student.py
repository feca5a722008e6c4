# %% tags=["define", "extra"]
class Net(nn.Module):
    """One number per state: from (z, h) along some axes, through a layer of tanh units, if any."""

    def __init__(self, axes: Axes, hidden: int) -> None:
        """`axes`: what it reads, K numbers. `hidden`: units; 0: it is linear."""
        super().__init__()
        self.register_buffer("mean", axes.mean)
        self.register_buffer("directions", axes.directions)
        count = axes.directions.shape[1]
        self.body = nn.Sequential(nn.Linear(count, hidden), nn.Tanh()) if hidden else nn.Identity()
        self.out = nn.Linear(hidden or count, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, state: State) -> Tensor:
        """(B, …) for states (B, …)."""
        return self.out(self.body((features(state) - self.mean) @ self.directions))[..., 0]


def plain_axes(read: Tensor) -> Axes:
    """(z, h) as it is, each number with mean 0 and deviation 1 over some features (S, Z + H)."""
    return Axes(read.mean(0), (1 / (read.std(0) + 1e-3)).diag())


def sure(net: nn.Module) -> Choose:
    """A network as the one who acts: right where its score is above 0."""
    return lambda k, state: (net(state) > 0).float()


def by_chance(net: nn.Module, luck: torch.Generator) -> Choose:
    """Right with the probability σ(score)."""
    return lambda k, state: (torch.rand(len(state.z), generator=luck).to(state.z.device) < net(state).sigmoid()).float()


def straight_through(net: nn.Module, width: float = 0.5) -> Choose:
    """As sure as `sure`, but with the gradient of σ(score / width), as if the push were that number (Bengio et al., 2013)."""

    def choose(k: int, state: State) -> Tensor:
        """Pushes (B,) in {0, 1}."""
        soft = (net(state) / width).sigmoid()
        return (soft > 0.5).float() + soft - soft.detach()

    return choose


def lived(m: M, choose: Choose, starts: State, steps: int) -> tuple[State, Tensor, Tensor, Tensor]:
    """B dreams: the states before each push and after the last one (B, T + 1, …), pushes, r̂, and the probability that life goes on, (B, T) each."""
    path = list(dream(m, starts, choose, steps))
    says = m.says(stacked([step.state for step in path]))
    return stacked([starts, *(step.state for step in path)]), torch.stack([step.a for step in path], 1), says.reward, torch.sigmoid(-says.done)


def advantages(reward: Tensor, on: Tensor, value: Tensor, gamma: float = 1.0, lam: float = 1.0) -> Tensor:
    """Generalised advantages (B, T) (Schulman et al., 2016), where a life does not end, but goes on with a probability.

    r̂ and `on` (B, T); `value` (B, T + 1) of the states before each push and after the last. With values of 0 before the last one: the return itself."""
    ahead, found = torch.zeros_like(value[:, 0]), []
    for k in reversed(range(reward.shape[1])):
        ahead = on[:, k] * (reward[:, k] + gamma * (value[:, k + 1] + lam * ahead)) - value[:, k]
        found.append(ahead)
    return torch.stack(found[::-1], 1)


# %% tags=["define", "extra"]
GATHER = 10  # steps of PPO on what was dreamed, before it dreams again
CLIP, ENTROPY, LAMBDA = 0.2, 0.01, 0.95


def ppo_losses(score: Tensor, value: Tensor, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """PPO's losses on a batch of moments (Schulman et al., 2017, equation 7), each weighed by the chance that the dreamer still lived.

    `score`, `value` (S,): now. `seen`: a (S,), log_p (S,) when it was dreamed, advantage, target and alive (S,)."""
    log_p = F.logsigmoid((2 * seen["a"] - 1) * score)  # (S,)
    ratio = (log_p - seen["log_p"]).exp()
    gain = torch.minimum(ratio * seen["advantage"], ratio.clamp(1 - CLIP, 1 + CLIP) * seen["advantage"])
    p = score.sigmoid()
    entropy = F.binary_cross_entropy(p, p, reduction="none")  # (S,)
    parts = {"policy": -gain, "value": (value - seen["target"]).square(), "entropy": entropy}
    parts = {name: (part * seen["alive"]).sum() / seen["alive"].sum() for name, part in parts.items()}
    return {"total": parts["policy"] + 0.5 * parts["value"] - ENTROPY * parts["entropy"], **parts}


def train_student(progress: Progress, world: World, *, way: str, hidden: int, lawful: bool, how: TrainSettings, c: CSettings, seed: int, workers: int, boot: bool = False, gamma: float = 1.0) -> dict:
    """Train a controller in dreams by PPO, or by the gradient of the dream itself: `weights`, and `log` with dream and real returns.

    The dreams begin where C's do, and their last state is worth the same."""
    torch.manual_seed(seed)
    first = torch.Generator().manual_seed(seed)
    starts = world.states(*world.moments(START_POOL, first))
    read = features(world.states(*world.moments(START_POOL, first, copies=1)))
    home, axes = principal_axes(read, min(HOME_AXES, read.shape[1])), search_space(world, c, first) if lawful else plain_axes(read)
    nets = nn.ModuleDict({"actor": Net(axes, hidden), "critic": Net(plain_axes(read), hidden)} if way == "PPO" else {"actor": Net(axes, hidden)}).to(DEVICE)
    agent, seen = Agent(world, sure(nets["actor"])), {}

    def worth(state: State) -> Tensor:
        """Of a dream's last state, in steps (B,)."""
        return c.last_worth * familiarity(features(state), home, c.penalty)

    def returns(choose: Choose, begin: State) -> Tensor:
        """Imagined returns (B,)."""
        states, _, r, on = lived(world.m, choose, begin, c.horizon)
        value = torch.cat([torch.zeros_like(r), worth(states.at(-1))[:, None]], 1)
        return advantages(r, on, value)[:, 0]

    def some(luck: torch.Generator, count: int) -> State:
        """Random moments in which dreams begin."""
        return starts.pick(torch.randint(len(starts.z), (count,), generator=luck).to(starts.z.device))

    @torch.no_grad()
    def gather(luck: torch.Generator) -> None:
        """Dream, and keep what PPO learns from, moment by moment."""
        states, a, r, on = lived(world.m, by_chance(nets["actor"], luck), some(luck, how.batch), c.horizon)
        value = nets["critic"](states)  # (B, T + 1)
        if not boot: value[:, -1] = worth(states.at(-1)) / VALUE
        value = value * VALUE
        advantage = advantages(r, on, value, gamma, LAMBDA)  # (B, T)
        alive = torch.cat([torch.ones_like(on[:, :1]), on[:, :-1].cumprod(1)], 1)
        before = State(*(part[:, :-1] for part in states))
        log_p = F.logsigmoid((2 * a - 1) * nets["actor"](before))
        norm = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        flat = {"a": a, "log_p": log_p, "advantage": norm, "target": (advantage + value[:, :-1]) / VALUE, "alive": alive}
        seen.update({name: part.flatten() for name, part in flat.items()}, state=State(*(part.flatten(0, 1) for part in before)))

    def batch_loss(luck: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step, and every 50 steps a look at dream and reality."""
        if way == "PPO":
            if step % GATHER == 0:
                gather(luck)
            pick = torch.randint(len(seen["a"]), (MINI,), generator=luck).to(DEVICE)
            state = seen["state"].pick(pick)
            losses = ppo_losses(nets["actor"](state), nets["critic"](state), {n: p[pick] for n, p in seen.items() if n != "state"})
            loss = losses["total"]
        else:
            loss, losses = -returns(straight_through(nets["actor"]), some(luck, how.batch)).mean(), {}
        if step % LOG_EVERY == 0 or step == how.steps - 1:
            with torch.no_grad():
                t = time.perf_counter()
                common = torch.Generator().manual_seed(seed)
                losses["dream"] = returns(sure(nets["actor"]), some(common, 512)).mean()
                losses["real"] = torch.tensor(np.mean(lives(Agent(world, sure(nets["actor"])), "check", seed, LOOKS, workers, LOOK_STEPS)))
                SPENT.append(time.perf_counter() - t)
        return loss, losses

    return fit(nets, batch_loss, how, seed, progress, way, 1.0)
