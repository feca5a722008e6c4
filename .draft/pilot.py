"""The core of the new main line, as cells (percent format). It runs: `python core.py PATH_TO_NOTEBOOK --seed 101 [--profile quick]`.

What is not here (environment, play, Memory, V, Probe, fit, stages, pictures) is taken from the notebook as it stands, through `nb`.
Improve it freely; what it reached is in README.md beside it.
"""

# %% what a notebook cell would simply have
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOMIRROR = RUNON = False
nb = None  # the notebook's definitions; set by `main`

# %% settings: pydantic checks ranges, types, unknown names; one line a field
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Branch(BaseModel):
    """One branch of the settings: nothing unknown, nothing changed after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MSettings(Branch):
    """M, the recurrent dynamics model."""

    hidden: int = Field(256, ge=1, le=8192, description="size of h")
    copies: int = Field(6, ge=1, le=100, description="encoded copies of the data, all but the first shifted and mirrored")
    context: int = Field(8, ge=2, le=100, description="real steps that M reads before it speaks")
    window: int = Field(24, ge=2, le=500, description="steps per sequence of teacher forcing")
    alone: int = Field(24, ge=1, le=500, description="steps per sequence of practice that M lives on its own predictions")
    batch: int = Field(64, ge=1, le=65_536, description="sequences per step of teacher forcing")
    practice_batch: int = Field(128, ge=2, le=65_536, description="sequences per step of practice, half of them mirror images")
    learning_rate: float = Field(1e-3, ge=1e-7, le=1, description="Adam's step size at its peak")
    steps: int = Field(20_000, ge=1, description="gradient steps of teacher forcing")
    practice_steps: int = Field(16_000, ge=0, description="gradient steps of practice")
    spread: float = Field(0.135, gt=0, le=10, description="σ of a latent in the loss of M's mean: the same for all, so that none is neglected")
    done_weight: float = Field(10.0, ge=0, description="weight of the termination loss beside the latent loss (nats)")


class CSettings(Branch):
    """C, the controller, and the dreams it learns in."""

    generations: int = Field(300, ge=1, description="CMA-ES generations (the recipe's epochs)")
    population: int = Field(32, ge=4, le=10_000, description="candidates per generation")
    rollouts: int = Field(30, ge=1, le=10_000, description="dreams per candidate and generation")
    horizon: int = Field(30, ge=1, le=1_000, description="steps per dream")
    temperature: float = Field(0.0, ge=0, le=10, description="τ, scales the deviation of the noise in dreams")
    last_worth: float = Field(30.0, ge=0, le=10_000, description="what a familiar last state is worth, in steps")
    penalty: float = Field(3.0, ge=0, le=1_000, description="weight of its squared distance from the recorded data")
    axes: int = Field(12, ge=1, le=96, description="directions of (z, h) in which C is searched: those whose future is easiest to tell")
    growing: int = Field(8, ge=0, le=96, description="and those in which small differences grow most")
    look_ahead: int = Field(10, ge=1, le=100, description="how far ahead those tell the future, in steps")
    sigma: float = Field(0.5, gt=0, le=100, description="first step size of CMA-ES")


def nested(pairs: dict[str, object]) -> dict:
    """{"m.hidden": 128} -> {"m": {"hidden": 128}}, ready for `Settings.model_validate`."""
    tree: dict = {}
    for name, value in pairs.items():
        *branches, last = name.split(".")
        place = tree
        for branch in branches:
            place = place.setdefault(branch, {})
        place[last] = value
    return tree


def said_plainly(error: ValidationError, kind: type[BaseModel]) -> str:
    """Pydantic's findings as sentences: field, value, what is allowed; for an unknown name, the names there are."""
    lines = []
    for found in error.errors():
        name, model = ".".join(map(str, found["loc"])), kind
        for part in found["loc"][:-1]:
            model = model.model_fields[part].annotation
        more = f": the choices are {', '.join(model.model_fields)}" if found["type"] == "extra_forbidden" else f" = {found['input']!r}: {found['msg']}"
        lines.append(name + more)
    return "\n".join(lines)


# %% M, written out
class State(NamedTuple):
    """Where B lives stand, real or dreamed."""

    z: Tensor  # (B, Z) what V sees now, or what M imagines to see
    before: Tensor  # (B, Z) the same one step earlier
    h: Tensor  # (B, H)
    c: Tensor  # (B, H) the LSTM's cell
    blind: Tensor  # (B, 1) steps since M last saw a real z

    def pick(self, rows: Tensor) -> State:
        """Some of the lives, in any order."""
        return State(*(part[rows] for part in self))


class Says(NamedTuple):
    """What M says about the next step."""

    mu: Tensor  # (B, Z) mean of the next z
    log_var: Tensor  # (B, Z) its log-variance
    reward: Tensor  # (B,) r̂
    done: Tensor  # (B,) logit of p_done


class M(nn.Module):
    """The recurrent world model: h' = LSTM(h, z, Δz, a), and heads on h' (Ha & Schmidhuber 2018, section 2.2; Hochreiter & Schmidhuber 1997)."""

    CHANGE = 5.0  # brings the change of z near the size of z

    def __init__(self, latents: int, hidden: int) -> None:
        """`latents`, `hidden`: sizes of z and h."""
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Linear(2 * latents + 1 + hidden, 4 * hidden)  # all four gates in one matrix product
        self.change = nn.Linear(hidden, latents)  # of z, in one step
        self.log_var = nn.Linear(hidden + 1, latents)  # how wrong that may be, after so many steps without looking
        self.reward, self.done = nn.Linear(hidden, 1), nn.Linear(hidden, 1)
        for part in (self.gates.weight, self.gates.bias):
            nn.init.uniform_(part, -(hidden**-0.5), hidden**-0.5)
        for part in (*self.change.parameters(), *self.log_var.parameters()):
            nn.init.zeros_(part)

    def begin(self, z: Tensor) -> State:
        """The state at z (B, Z) before anything was read."""
        nothing = z.new_zeros(len(z), self.hidden)
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


# %% the one loop that dreams
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
    """M along a life: as long as there are codes to be shown it reads them (teacher forcing), then it lives on its own predictions.

    Args:
        state: where the lives stand. choose: who acts. steps: how far.
        shown: (B, R, Z) what V really saw in the first R steps.
        tau, noise: the temperature, and (B, steps, Z) standard normal numbers, already masked.
    """
    for k in range(steps):
        if shown is not None and k < shown.shape[1]:
            state = state._replace(z=shown[:, k], blind=torch.zeros_like(state.blind))
        a = choose(k, state)
        state, says = m.step(state, a)
        if tau > 0:
            state = state._replace(z=says.mu + tau * (0.5 * says.log_var).exp() * noise[:, k])
        yield Step(a, state, says)


def stacked(parts: list[tuple]) -> tuple:
    """T tuples of tensors (B, …) -> one tuple of tensors (B, T, …)."""
    return type(parts[0])(*(torch.stack(values, 1) for values in zip(*parts)))


# %% training M
def m_losses(m: M, z: Tensor, a: Tensor, reward: Tensor, done: Tensor, real: Tensor, read: int, spread: float) -> dict[str, Tensor]:
    """M's losses on a batch of sequences, each a mean over the real (not padded) steps.

    Args:
        z: (B, T + 1, Z) codes, of which M reads the first `read`; a: (B, T); reward: (B, T).
        done: (B, T) 1 where the step ended the episode; real: (B, T) 0 beyond the episode's end.
        spread: σ in the mean's loss. Were it M's own σ, a latent could be neglected by calling it uncertain, and a dream would lose it
            (Seitzer et al. 2022, "On the pitfalls of heteroscedastic uncertainty estimation").
    """
    says = stacked([step.says for step in dream(m, m.begin(z[:, 0]), given(a), a.shape[1], z[:, :read])])
    squared = (z[:, 1:] - says.mu).square()  # (B, T, Z)
    parts = {
        "latent": 0.5 * squared.sum(-1) / spread**2,  # (B, T) nats: the mean
        "doubt": 0.5 * (squared.detach() * (-says.log_var).exp() + says.log_var).sum(-1),  # (B, T) nats: the variance, about that mean
        "reward": (says.reward - reward).square(),
        "done": F.binary_cross_entropy_with_logits(says.done, done, reduction="none"),
        "error": squared.mean(-1),
    }
    return {name: (value * real).sum() / real.sum() for name, value in parts.items()}


def train_m(progress, memory, codes, begin: dict | None = None, *, m: MSettings, practice: bool, seed: int) -> dict:
    """Train M on random windows of the encoded episodes; return its weights and log.

    Windows start anywhere in an episode, with h = 0: M has to find out from the codes where it is.

    Args:
        begin: weights to go on from.
        practice: False is teacher forcing throughout. True lets M read 4 to 8 steps (half of m.context to all of it) and live on its own
            predictions after that; half of a batch are the mirror images of the other half, so that M is not pulled to one side.
    """
    torch.manual_seed(seed)
    model = M(codes.mu.shape[-1], m.hidden).to(memory.device)
    if begin is not None:
        model.load_state_dict(begin)
    starts = torch.nonzero(torch.arange(len(memory), device=memory.device) < memory.last).squeeze(1)  # rows that have a next step
    length = m.context + m.alone if practice else m.window  # T
    offsets = torch.arange(length + 1, device=memory.device)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one random batch, and what to log."""
        count, read = (m.practice_batch // 2, int(torch.randint(m.context // 2, m.context + 1, (1,), generator=generator))) if practice else (m.batch, length)
        start = starts[torch.randint(len(starts), (count,), generator=generator).to(memory.device)][:, None]  # (B, 1)
        copy = torch.randint(len(codes.mu), (count, 1), generator=generator).to(memory.device)  # (B, 1)
        if practice and NOMIRROR:
            count = m.practice_batch
            start = starts[torch.randint(len(starts), (count,), generator=generator).to(memory.device)][:, None]
            copy = torch.randint(len(codes.mu), (count, 1), generator=generator).to(memory.device)
            start[::2] = torch.maximum(memory.first[start], torch.minimum(start, memory.last[start] - length))[::2]
        elif practice:
            # Most episodes end soon. Half of the windows move back until they fit, or there would be little to practise on.
            start[::2] = torch.maximum(memory.first[start], torch.minimum(start, memory.last[start] - length))[::2]
            other = nb.mirror_images(codes, copy[:, 0], memory.episode[start[:, 0]], generator)[:, None]
            start, copy = torch.cat([start, start]), torch.cat([copy, other])
        rows = torch.minimum(start + offsets, memory.last[start])  # (B, T + 1)
        real = (start + offsets[:-1] < memory.last[start]).float()  # (B, T)
        a, reward, done = codes.actions[copy, rows[:, :-1]], memory.rewards[rows[:, :-1]], memory.done[rows[:, 1:]].float()  # (B, T)
        losses = m_losses(model, codes.mu[copy, rows], a, reward, done, real, read, m.spread)
        return losses["latent"] + losses["doubt"] + losses["reward"] + m.done_weight * losses["done"], losses

    fitting = Fit(m.practice_steps if practice else m.steps, m.learning_rate, 200.0, 1_000)
    log = nb.fit(model, batch_loss, fitting, seed, progress, "M")
    return {"weights": {name: value.cpu() for name, value in model.state_dict().items()}, "log": log}


class Fit(NamedTuple):
    """What `fit` needs to know."""

    steps: int
    learning_rate: float
    max_gradient: float
    save_every: int


# %% one state of knowledge
@dataclass(frozen=True)
class World:
    """All that is known: what was recorded, how V codes it, how M continues it. Made once, passed on whole, replaced after new data."""

    v: nn.Module
    m: M
    memory: object
    codes: object
    context: int

    @torch.no_grad()
    def states(self, rows: Tensor, copies: Tensor) -> State:
        """The states at some rows (S,) of some copies (S,), with h from the last `context` real steps (fewer at an episode's beginning)."""
        parts = []
        for row, copy in zip(rows.split(8192), copies.split(8192)):
            back = row[:, None] - torch.arange(self.context, -1, -1, device=row.device)  # (S, C + 1)
            known = back >= self.memory.first[row][:, None]  # (S, C + 1)
            back = torch.maximum(back, self.memory.first[row][:, None])
            parts.append(remembered(self.m, self.codes.mu[copy[:, None], back], self.codes.actions[copy[:, None], back], known))
        return State(*(torch.cat(values) for values in zip(*parts)))

    def moments(self, count: int, generator: torch.Generator, ahead: int = 1, copies: int | None = None) -> tuple[Tensor, Tensor]:
        """Random rows (S,) with a few real steps before and `ahead` after them, and copies (S,): where dreams begin.

        Raises:
            ValueError: no episode is long enough.
        """
        rows = torch.arange(len(self.memory), device=self.memory.device)
        rows = rows[(rows - self.memory.first >= self.context // 2) & (rows + ahead <= self.memory.last)]
        if not len(rows):
            raise ValueError(f"no recorded episode has {self.context // 2 + ahead} steps")
        rows = rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]
        return rows, torch.randint(copies or len(self.codes.mu), (count,), generator=generator).to(rows.device)


def remembered(m: M, z: Tensor, a: Tensor, known: Tensor) -> State:
    """M's state at the last of C + 1 codes: z (B, C + 1, Z), a and known (B, C + 1); what is not known was before the episode began."""
    state = m.begin(z[:, 0])
    for k in range(z.shape[1] - 1):
        state, _ = m.step(state._replace(z=z[:, k], blind=torch.zeros_like(state.blind)), a[:, k])
        state = state._replace(h=state.h * known[:, k, None], c=state.c * known[:, k, None])
    return state._replace(z=z[:, -1], blind=torch.zeros_like(state.blind))


# %% C: where to search
def features(state: State) -> Tensor:
    """What C reads: (z, h), (B, Z + H)."""
    return torch.cat([state.z, state.h], 1)


def search_space(world: World, c: CSettings, generator: torch.Generator):
    """The directions of (z, h) whose value `look_ahead` steps later is told best by the present (canonical correlations, Hotelling 1936), and those that grow most."""
    rows, copies = world.moments(40_000, generator, c.look_ahead)
    now, later = features(world.states(rows, copies)), features(world.states(rows + c.look_ahead, copies))  # (S, Z + H) each
    between = rows[:, None] + torch.arange(c.look_ahead, device=rows.device)  # (S, K)
    pushes = 2.0 * world.codes.actions[copies[:, None], between] - 1  # (S, K)
    return nb.lawful_axes(now, later, pushes, c.axes, c.growing)


# %% C: what a dream is worth
@torch.no_grad()
def dream_returns(
    m: M, points: Tensor, axes, home, starts: State, c: CSettings, noise: Tensor | None = None, pays: Callable[[Step], Tensor] = lambda step: step.says.reward
) -> Tensor:
    """The imagined return of P controllers in the same R dreams, (P, R): Σ_k r̂_k · Π_{j≤k} (1 − p_done,j), and the worth of the last state.

    Args:
        points: (P, K + 1) controllers in the search space. starts: R states, the same for each controller (common random numbers).
        pays: what a step is worth; a remedy (norm penalty, verifier's weight) is another function here.
    """
    P, R = len(points), len(starts.z)
    every = torch.arange(R, device=points.device).repeat(P)
    state, alive, total = starts.pick(every), torch.ones(P * R, device=points.device), torch.zeros(P * R, device=points.device)

    def each_its_own(k: int, state: State) -> Tensor:
        """Each controller pushes in its own R dreams."""
        return nb.act(points, nb.coordinates(axes, state.z, state.h).view(P, R, -1)).view(-1)

    for step in dream(m, state, each_its_own, c.horizon, tau=c.temperature, noise=None if noise is None else noise[every]):
        alive = alive * torch.sigmoid(-step.says.done)  # not a hard end: a slightly safer controller must score slightly better
        total += alive * pays(step)
    # The dream ends here, but the life it stands for would go on: how long, depends on how familiar its last state is.
    total += alive * c.last_worth * nb.familiarity(nb.coordinates(home, step.state.z, step.state.h), c.penalty)
    return total.view(P, R)


# %% C: the search
def make_cma(dimensions: int, c: CSettings, seed: int):
    """CMA-ES (Hansen & Ostermeier 2001) from nevergrad, with its silent restarts turned off, all of them.

    pycma has stop criteria, and nevergrad answers a stop by starting anew from the first point without a word. A dream that saturates
    would trigger some. And since only the direction of a linear controller matters, its scale drifts upwards: after 130 generations σ was a
    thousand times its first value, `tolfacupx` fired, and what shipped was a beginner.
    """
    parameters = nb.ng.p.Array(init=np.zeros(dimensions)).set_mutation(sigma=c.sigma)
    parameters.random_state = np.random.RandomState(seed)
    never = {"tolfun": 0, "tolfunhist": 0, "tolflatfitness": 10**9, "tolstagnation": 0, "tolx": 0, "verbose": -9}
    never |= {"tolfacupx": 1e300, "tolconditioncov": 1e300, "maxiter": 10**12}
    return nb.ng.optimizers.ParametrizedCMA(popsize=c.population, inopts=never)(parameters, budget=c.generations * c.population, num_workers=c.population)


def learn(world: World, c: CSettings, seed: int, look: Callable[[int, Tensor], None] = lambda updates, weights: None) -> dict:
    """Evolve a controller wholly inside dreams. `look(updates, weights)` is the recipe's thermometer: it may watch, nothing comes back from it.

    Returns:
        `weights` (Z + H + 1,): the mean of the search's means over its second half (each of unit length, since only the direction acts), which is
        what ships; `path` (G, Z + H + 1) the mean after each generation; `dream` (G,) the mean dream return.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = world.states(*world.moments(8192, generator))
    home = nb.principal_axes(world.states(*world.moments(8192, generator, copies=1)), 16)
    axes = search_space(world, c, generator)
    optimizer = make_cma(axes.directions.shape[1] + 1, c, seed)
    path, scores = [], []
    for generation in range(c.generations):
        candidates, points = nb.ask_generation(optimizer, c, starts.z.device)
        pick = torch.randint(len(starts.z), (c.rollouts,), generator=torch.Generator().manual_seed(seed * 1000 + generation))
        returns = dream_returns(world.m, points, axes, home, starts.pick(pick.to(starts.z.device)), c).mean(1)  # (P,)
        for candidate, value in zip(candidates, returns.tolist()):
            optimizer.tell(candidate, -value)
        mean = torch.tensor(nb.cma_mean(optimizer), dtype=torch.float32, device=starts.z.device)  # (K + 1,)
        path.append(mean / mean[:-1].norm())
        scores.append(float(returns.mean()))
        look((generation + 1) * c.population, nb.to_weights(axes, path[-1][None])[0])
    path = torch.stack(path)  # (G, K + 1)
    ships = path[c.generations // 2 :].mean(0)
    return {"weights": nb.to_weights(axes, ships[None])[0], "path": nb.to_weights(axes, path), "dream": scores}


# %% C wakes up
class Agent:
    """C in the real world: V reads four frames, M the last few steps, C pushes. Callable by `play`.

    h is made as at a dream's beginning, from the last `context` steps, so that C meets in reality what it has met in dreams.
    """

    def __init__(self, world: World, weights: Tensor) -> None:
        """`weights`: (Z + H + 1,) one controller."""
        self.world, self.weights, self.stack = world, weights, None

    @torch.no_grad()
    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One push (0 or 1) per environment, (W,). The true states are not used."""
        frame, new = (torch.from_numpy(values).to(self.weights.device) for values in (frames, fresh))  # (W, 64, 64), (W,)
        if self.stack is None:
            many, context = len(frame), self.world.context
            self.stack = frame[:, None].repeat(1, 4, 1, 1)  # (W, 4, 64, 64)
            self.z = self.weights.new_zeros(many, context + 1, self.world.codes.mu.shape[-1])  # (W, C + 1, Z)
            self.a = torch.zeros(many, context + 1, dtype=torch.long, device=frame.device)  # (W, C + 1)
            self.known = torch.zeros(many, context + 1, dtype=torch.bool, device=frame.device)  # (W, C + 1)
        self.stack = torch.where(new[:, None, None, None], frame[:, None], torch.cat([self.stack[:, 1:], frame[:, None]], 1))
        z = self.world.v.encode(self.stack.float() / 255)[0]  # (W, Z)
        self.z = torch.where(new[:, None, None], z[:, None], torch.cat([self.z[:, 1:], z[:, None]], 1))
        self.known = torch.cat([self.known[:, 1:] & ~new[:, None], torch.ones_like(self.known[:, :1])], 1)
        self.a = self.a.roll(-1, 1)
        if RUNON:
            if not hasattr(self, "state"):
                self.state = self.world.m.begin(z)
            else:
                keep = (~new[:, None]).float()
                state, _ = self.world.m.step(self.state, self.a[:, -2])
                state = State(z, torch.where(new[:, None], z, self.state.z), state.h * keep, state.c * keep, state.blind * 0)
                self.state = state
            state = self.state._replace(z=z)
        else:
            state = remembered(self.world.m, self.z, self.a, self.known)
        self.a[:, -1] = nb.act(self.weights[None], features(state)[None])[0]
        return self.a[:, -1].cpu().numpy()


# %% how far a dream stays true
@torch.no_grad()
def open_loop(world: World, z: Tensor, memory, horizon: int, count: int) -> tuple[Says, Tensor]:
    """M alone on random windows of recorded episodes with codes z (N, Z): what it says, (S, T, …), and the rows it speaks of, (S, T)."""
    rows = nb.windows(memory, world.context + horizon, count, torch.Generator().manual_seed(0))  # (S, C + T)
    says = [s.says for s in dream(world.m, world.m.begin(z[rows[:, 0]]), given(memory.actions[rows]), world.context + horizon - 1, z[rows[:, : world.context]])]
    return stacked(says[world.context - 1 :]), rows[:, world.context :]


# %% run it
def main() -> None:
    """The whole line for one seed, without pictures."""
    import argparse
    import json
    import linecache
    import sys
    import tempfile
    import time
    import types
    from pathlib import Path

    global nb
    parser = argparse.ArgumentParser()
    parser.add_argument("notebook")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--profile", default="quick", choices=("smoke", "quick", "full"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--test", type=int, default=20, help="real episodes at the end")
    parser.add_argument("--vsteps", type=int, default=4000)
    parser.add_argument("--nomirror", action="store_true")
    parser.add_argument("--tag", default="")
    parser.add_argument("--folder", default=None, help="where data and weights are kept, so that a second run goes on from them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    nb = types.ModuleType("notebook")
    sys.modules["notebook"] = nb
    for number, cell in enumerate(json.loads(Path(options.notebook).read_text())["cells"]):
        if cell["cell_type"] == "code" and "define" in cell["metadata"].get("tags", []):
            source, name = "".join(cell["source"]), f"<notebook cell {number}>"
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)
            exec(compile(source, name, "exec"), nb.__dict__)
    nb.DEVICE = torch.device("cpu")
    folder = Path(options.folder or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    old = nb.make_settings(options.profile, f"seed={options.seed},v.steps={options.vsteps},v.ramp_steps={options.vsteps*3//4}")
    global NOMIRROR
    NOMIRROR = options.nomirror
    small = {"smoke": dict(copies=2, steps=30, practice_steps=10, batch=16, practice_batch=16), "quick": dict(copies=4, steps=4_000, practice_steps=3_000)}
    m_settings = MSettings(**small.get(options.profile, {}))
    c_settings = CSettings(**{"smoke": dict(generations=4, population=8, rollouts=6), "quick": dict(generations=150)}.get(options.profile, {}))

    def kept(name: str, make: Callable[[], object]) -> object:
        """What `make` gives, from the folder where it was made before."""
        path, begin = folder / f"{name}-{options.profile}-{options.seed}{'' if name in ('data', 'v', 'codes', 'm') else options.tag}.pt", time.perf_counter()
        if not path.exists():
            torch.save(make(), path)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
        return torch.load(path, weights_only=False)

    class Nowhere:
        """Nothing is saved half-way."""

        def load(self) -> None:
            """There is nothing."""

        def save(self, state: object) -> None:
            """Let it go."""

    seed = options.seed
    played = kept("data", lambda: [tuple(e) for e in nb.play(nb.RandomPolicy(seed), nb.seeds_for("random", seed, old.collect.episodes), 2)])
    memory = nb.Memory([nb.Episode(*e) for e in played], old.v.max_shift, nb.DEVICE)
    v = nb.load_v(kept("v", lambda: nb.train_v_with_law(Nowhere(), memory, old.v, old.law, seed)), old.v, nb.DEVICE)
    codes = nb.Latents(**kept("codes", lambda: nb.encode_memory(Nowhere(), memory, v, m_settings.copies, old.m.max_shift, True, seed)))
    forced = kept("m", lambda: train_m(Nowhere(), memory, codes, m=m_settings, practice=False, seed=seed))
    practised = kept("practice", lambda: train_m(Nowhere(), memory, codes, forced["weights"], m=m_settings, practice=True, seed=seed))
    m = M(codes.mu.shape[-1], m_settings.hidden)
    m.load_state_dict(practised["weights"])
    world = World(v, m.eval().requires_grad_(False), memory, codes, m_settings.context)
    learned = kept("c", lambda: learn(world, c_settings, seed))

    good = nb.Memory(nb.play(nb.centred_policy, nb.seeds_for("hand written", 5, 6), 2), 0, nb.DEVICE)
    z, _ = nb.encode_rows(v, good, torch.arange(len(good)))
    which = memory.episode
    probe = nb.Probe(codes.mu[-1], nb.true_states(memory, torch.arange(len(memory)), codes.shift[-1][which], codes.mirror[-1][which]))
    says, rows = open_loop(world, z, good, 30, 300)
    inside = ((z[rows] - says.mu).abs() < 1.645 * (0.5 * says.log_var).exp()).float().mean((0, 2))  # (T,)
    print("inside M's 90 % interval:", ", ".join(f"{k}: {100 * inside[k - 1]:.0f} %" for k in (1, 5, 15, 30)), flush=True)
    for name, path in {"drawn": nb.seen_again(v, says.mu), "z itself": says.mu}.items():
        missed = (probe(path) - good.states[rows]).abs().median(0).values  # (T, 4)
        print(
            f"open loop, {name}:", ", ".join(f"{k}: {math.degrees(missed[k - 1, 2]):.2f}°, {1000 * missed[k - 1, 0]:.0f} mm" for k in (1, 15, 30)), flush=True
        )
    rows, copies = world.moments(512, torch.Generator().manual_seed(1), copies=1)
    calm = (memory.states[rows, 2].abs() < math.radians(4)) & (memory.states[rows, 3].abs() < 0.5)
    starts, stands = world.states(rows[calm], copies[calm]), torch.ones(int(calm.sum()))
    with torch.no_grad():
        for step in dream(world.m, starts, lambda k, state: nb.act(learned["weights"][None], features(state)[None])[0], 150):
            stands = stands * torch.sigmoid(-step.says.done)
    print(f"dreams of 150 steps with the eyes closed that stand: {100 * float((stands > 0.5).float().mean()):.0f} %", flush=True)
    episodes = nb.play(Agent(world, learned["weights"]), nb.seeds_for("check", 77, options.test), min(8, options.test))
    lengths = [len(e.actions) for e in episodes]
    global RUNON
    RUNON = True
    on = [len(e.actions) for e in nb.play(Agent(world, learned["weights"]), nb.seeds_for("check", 78, 8), 8)]
    print("state runs on:", on, flush=True)
    RUNON = False
    print(
        f"seed {seed}: real return {np.mean(lengths):.1f}, worst {min(lengths)}, cart within {max(float(np.abs(e.states[:, 0]).max()) for e in episodes):.2f} m",
        flush=True,
    )


if __name__ == "__main__":
    main()
