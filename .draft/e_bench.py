import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub

def take(name, begin, end=None):
    t = b.source(name); i = t.index(begin); j = t.index(end, i) if end else len(t)
    part = t[i:j].strip("\n")
    b.set(name, (t[:i] + t[j:]).strip("\n"))
    return part

def move(name, after):
    cell = b.cell(name); b.cells.remove(cell)
    b.cells.insert([c["id"] for c in b.cells].index(after) + 1, cell)

last9 = "text-with-this-main-line-no-other-seed-has-be"
table = take("define-table-of", "import pandas", "def quantised")
calm = take("define-rank-controllers", "def calm_moments", "def rank_interval")
drift = take("define-verifier-loss", "def verifier_loss", "def judge_m")
bands = b.source("define-show-bands")
net = b.source("define-net")
adv = b.source("define-advantages")
straight = take("define-straight-through", "def straight_through", "REACH = (5")
grad = b.source("define-straight-through")
i = grad.index("def train_student")
b.set("define-straight-through", grad[:i] + '''def train_student(
    progress: Progress,
    school: School,
    *,
    way: str,
    hidden: int,
    lawful: bool,
    how: TrainSettings,
    seed: int,
    workers: int,
) -> dict:
    """Train a network in dreams: by "PPO", or by the "gradient" of the dream. `lawful`: it reads
    the axes in which CMA-ES searches, else plain (z, h).

    Returns what `taught` returns, and the `norms` of the gradient, before and after."""
    torch.manual_seed(seed)
    nets = nn.ModuleDict({"actor": school.net(hidden, lawful)})
    if way == "PPO":
        nets["critic"] = school.net(hidden, False)
    actor = nets.to(DEVICE)["actor"]
    losses = ppo(school, nets, how.batch) if way == "PPO" else by_dream(school, actor, how.batch)
    before = gradient_norms(school, actor)
    found = taught(progress, school, nets, losses, how=how, seed=seed, label=way, workers=workers)
    return found | {"norms": [before, gradient_norms(school, actor)]}''')
b.set("define-ppo-losses", b.source("define-ppo-losses").rstrip() + '''


def ppo(school: School, nets: nn.ModuleDict, batch: int) -> Losses:
    """PPO's losses, step by step, for an "actor" and a "critic": some lives are dreamed, and learned
    from for GATHER steps."""
    seen: dict[str, Any] = {}

    def losses(luck: torch.Generator, step: int) -> dict[str, Tensor]:
        """Those of one step."""
        if step % GATHER == 0 or not seen:
            seen.update(gathered(school, nets, luck, batch))
        pick = torch.randint(batch * school.c.horizon, (MOMENTS,), generator=luck).to(DEVICE)
        state, rest = seen["state"].pick(pick), {k: v[pick] for k, v in seen.items() if k != "state"}
        return ppo_losses(nets["actor"](state), nets["critic"](state), rest)

    return losses''')
b.insert(last9, "text-bench", '''## The bench: what several roads share

Parts 10 to 15 are roads on from here. Each needs parts 1 to 9 and this bench, and none needs another road: leave out those that you don't want.

`ROADS` says which of them are computed now. The others are drawn from `assets/experiments/`, where our own pass over them left its tables.''', kind="markdown")
move("run-roads", "text-bench")
b.insert("run-roads", "define-bench-tables", "# @title Tables of results, and how far a dream drifts\n" + table + "\n\n\n" + calm + "\n\n\n" + drift, tags=("define", "extra"), form=True)
b.insert("define-bench-tables", "define-bench-bands", "# @title Curves with bands, and differences seed by seed\n" + bands, tags=("define", "extra"), form=True)
b.insert("define-bench-bands", "define-bench-net", "# @title A small network that acts\n" + net, tags=("define", "extra"), form=True)
b.insert("define-bench-net", "define-bench-school", "# @title A school: where pupils dream, and what it pays\n" + adv, tags=("define", "extra"), form=True)
b.insert("define-bench-school", "define-bench-taught", "# @title Training in dreams, with looks at the real world\nLosses = Callable[[torch.Generator, int], dict[str, Tensor]]  # one of them is the total\n\n\n" + straight + '''


def by_dream(school: School, actor: Net, batch: int) -> Losses:
    """What an actor loses if it follows the gradient of the dream itself."""

    def losses(luck: torch.Generator, step: int) -> dict[str, Tensor]:
        """In some dreams."""
        returns = school.returns(straight_through(actor), school.some(luck, batch))  # (B,)
        return {"total": -returns.mean()}

    return losses


def taught(
    progress: Progress,
    school: School,
    nets: nn.ModuleDict,
    losses: Losses,
    *,
    how: TrainSettings,
    seed: int,
    label: str,
    workers: int,
) -> dict:
    """Train some networks, one of them the "actor", and look now and then.

    Returns the `log` of `fit`, the `actor`'s weights, and the `seconds` without looks."""
    begin, actor = time.perf_counter(), nets["actor"]

    def batch_loss(luck: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step, and what to log."""
        found, looks = losses(luck, step), step % LOG_EVERY == 0 or step == how.steps - 1
        return found["total"], found | (school.look(sure(actor), workers) if looks else {})

    log = fit(nets, batch_loss, how, seed, progress, label, 1.0)["log"]
    seconds = time.perf_counter() - begin - school.looking
    return {"log": log, "actor": {"weights": actor.state_dict()}, "seconds": seconds}''', tags=("define", "extra"), form=True)
b.delete("define-show-bands"); b.delete("define-net"); b.delete("define-advantages")
move("run-forced-stages", "define-bench-taught")
t = b.source("define-gaussian-gap")
old = t[t.index("    found = train_student("):t.index("    choose = sure(frozen")]
b.set("define-gaussian-gap", t.replace(old, '''    torch.manual_seed(seed)
    nets = nn.ModuleDict({"actor": school.net(128, False)}).to(DEVICE)
    losses = by_dream(school, nets["actor"], how.batch)
    found = taught(
        progress, school, nets, losses, how=how, seed=seed, label="gradient", workers=workers
    )
'''))
# the text of part 10 about ROADS, and of part 11
for c in b.cells:
    x = "".join(c["source"])
    if c["id"].startswith("text-10-the-engineer"):
        x = x.replace("\n\n`ROADS` says which of the last parts are computed now. The others are drawn from `assets/experiments/`, where our own pass over them left its tables.", "")
        c["source"] = x.splitlines(True)
n = 0
for c in b.cells:
    if c["cell_type"] == "code":
        n += 1; c["execution_count"] = n
        for o in c["outputs"]:
            if "execution_count" in o: o["execution_count"] = n
b.save()
