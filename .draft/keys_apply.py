"""Apply the keys step to the notebook (once)."""
import sys
sys.path.insert(0, ".draft")
import keys_edit as K
from nbedit import Book

book = Book()
s = book.sub

files = K.FILES.replace("        except OSError:\n            if not path.is_dir():  # else another kernel was faster\n                raise\n",
 "        except OSError:\n            if not (side.is_dir() and path.is_dir()):  # else another kernel was faster\n                raise\n")
assert files != K.FILES
book.set("define-asset", files.rstrip("\n"))
s("define-contextlib", "import contextlib\nimport functools\nimport platform\nimport time\nimport warnings\nfrom collections.abc import Callable, Iterator\n",
  "import copy\nimport functools\nimport platform\nimport warnings\nfrom collections.abc import Callable\n")
book.delete("define-usable-folder")
book.delete("define-plain-source")
book.insert("text-a-profile-is-a-list-of-changes-to-that-t", "define-save-code", K.DIGESTS.rstrip("\n"), tags=("define",), form=True)
stages = K.STAGES.replace("""            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True) if left.exists() else None
""", """            shutil.rmtree(left) if left.is_dir() else left.unlink()
""")
assert stages != K.STAGES
book.set("define-stage", stages.rstrip("\n"))

# the environment without pictures, plays
s("define-shrink", '''def pixel_cartpole(steps: int = 500) -> gym.Env:
    """The real CartPole-v1, seen through its own renderer, for at most so many steps.

    It shows `frame` (64, 64) uint8, which is all that V, M and C ever see, and `state` (4,) float32
    (x in m, ẋ in m/s, θ in rad, θ̇ in rad/s), for measurements only."""
''', '''def pixel_cartpole(steps: int = 500) -> gym.Env:
    """The real CartPole-v1, seen through its own renderer, for at most so many steps.

    It shows `frame` (64, 64) uint8, which is all that V, M and C ever see, and `state` (4,) float32
    (x in m, ẋ in m/s, θ in rad, θ̇ in rad/s), for measurements only."""
''')
s("define-play", '''it returns W actions. The same seed and policy give the same episode. `label`: of the
    progress bar. `steps`: an episode is cut off then."""
''', '''it returns W actions. It is copied first, so what it remembers ends with the play. The same seed
    and policy give the same episode. `label`: of the progress bar. `steps`: an episode is cut off
    then."""
    policy = copy.copy(policy)
''')
s("define-randompolicy", '''        for k in np.flatnonzero(fresh):
            self.coins[k]''', '''        if fresh.all():  # a play begins
            self.coins = {}
        for k in np.flatnonzero(fresh):
            self.coins[k]''')
s("define-randompolicy", "self.seed, self.coins = seed, {}", "self.seed = seed")

# data
src = book.source("define-checksum")
a, b = src.index("def write_dataset"), src.index("def read_dataset")
body = src[b:]
write = K.DATA[: K.DATA.index("def read_dataset")]
read = '''def read_dataset(folder: Path) -> tuple[list[Episode], float]:
    """What `write_dataset` wrote. ValueError: a byte is not as it was written."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    if about["sha256"] != checksum(folder):
        raise ValueError("its checksum differs")
'''
rest = body[body.index("    dataset = datasets.load_from_disk"):]
rest = rest.replace("    return [\n        Episode", "    episodes = [\n        Episode")
assert rest.rstrip().endswith("]")
rest = rest.rstrip() + '\n    return episodes, float(about["seconds"])\n\n\nEPISODES = Store("episodes", write_dataset, read_dataset)'
src = src[:a] + write + read + rest
src = src.replace('pretty_name: "CartPole-v1 from pixels, {policy}"', 'pretty_name: "CartPole-v1 from pixels"')
book.set("define-checksum", src)
book.set("define-record", K.RECORD.rstrip("\n"))
s("run-collect-settings", '''    "purpose": "random",
''', "")
s("run-collect-settings", "collect, random_episodes = recorded(RandomPolicy(settings.seed), **collect_settings)\n",
 'collect = recorded(RandomPolicy(settings.seed), "random", **collect_settings)\nrandom_episodes = collect.result\n')

# memory
s("define-memory", "self.episodes, self.device, self.max_shift = episodes, device, max_shift\n        lengths = torch.tensor([len(episode.frames) for episode in episodes])\n",
 "self.device, self.max_shift = device, max_shift\n        lengths = torch.tensor([len(episode.frames) for episode in episodes])\n        self.lengths = lengths.to(device)  # (E,) in frames\n")
print(book.everywhere("len(memory.episodes)", "len(memory.lengths)"), book.everywhere("len(world.memory.episodes)", "len(world.memory.lengths)"))

# stages
s("run-v-stage", "keep(train_v, memory, after=(collect,), name", "keep(train_v, memory, name")
s("run-short-v", "    after=(collect,),\n", "")
s("run-code-settings", "memory, v, after=(collect, v_stage), name", "memory, v, name")
s("run-m-stage", "    train_m, memory, codes, after=(code_stage,), name", "    train_m, memory, codes, name")
s("run-practice-settings", "    after=(m_stage,),\n", "")
s("run-good-settings", 'good_stage, good_episodes = recorded(centred_policy, purpose="hand written", **good_settings)\n',
  'good_stage = recorded(centred_policy, "hand written", **good_settings)\ngood_episodes = good_stage.result\n')
s("run-c-settings", "world, after=(practice_stage,), name", "world, name")
s("run-control-settings", "    after=(code_stage, m_stage),\n", "")

# the agent
s("define-agent", "        self.world, self.choose = world, choose\n        self.exploration, self.seed, self.dice = exploration, seed, {}\n",
 "        self.v, self.m, self.context, self.choose = world.v, world.m, world.context, choose\n        self.exploration, self.seed = exploration, seed\n")
s("define-agent", "len(frame), self.world.context + 1, self.world.codes.mu.shape[-1], device=DEVICE", "len(frame), self.context + 1, self.m.change.out_features, device=DEVICE")
s("define-agent", "z = self.world.v.encode", "z = self.v.encode")
s("define-agent", "remembered(self.world.m, self.z", "remembered(self.m, self.z")
s("define-agent", "            )  # (W, C + 1) each\n        self.stack", "            )  # (W, C + 1) each\n            self.dice = {}\n        self.stack")
s("define-every-second-row", "remembered(self.world.m, self.z", "remembered(self.m, self.z")
s("define-every-second-row", '''        whole, kept = memory.episodes[number], rows - int(memory.first[rows[0]])
        paid = whole.rewards[kept[:-1]] + whole.rewards[kept[:-1] + 1]
        ends = whole.terminated and kept[-1] == len(whole.actions)
        episodes.append(
            Episode(
                whole.seed,
                whole.frames[kept],
                whole.states[kept],
                whole.actions[kept[:-1]],
                paid,
                ends,
                whole.truncated,
            )
        )
''', '''        now, states = torch.from_numpy(rows[:-1]).to(memory.device), memory.states[rows].cpu()
        frames = memory.stack(torch.from_numpy(rows).to(memory.device))[:, -1] * 255  # (T + 1, 64, 64)
        episodes.append(
            Episode(
                0,
                frames.round().byte().cpu().numpy(),
                states.numpy(),
                memory.actions[now].cpu().numpy(),
                (memory.rewards[now] + memory.rewards[now + 1]).cpu().numpy(),
                bool(memory.done[rows[-1]]),
                False,
            )
        )
''')

# the test
src = book.source("define-final-test")
a, b = src.index("def final_test"), src.index("def confidence_interval")
src = src[:a] + '''def baseline(progress: Progress, policy: Policy, *, seeds: list[int], workers: int) -> list[float]:
    """The stage in which a rival plays one real episode per seed: its returns."""
    return [float(len(episode.actions)) for episode in play(policy, seeds, workers)]


''' + src[b:]
book.set("define-final-test", src)
s("run-test-settings", '''test_stage, test_episodes = recorded(
    Agent(world, controller(ship)),
    function=final_test,
    after=(c_stage,),
    purpose="test",
    **test_settings,
)
test_returns = test_stage.result["returns"]
''', '''test_stage = recorded(Agent(world, controller(ship)), "test", **test_settings)
test_episodes = test_stage.result
test_returns = [float(len(episode.actions)) for episode in test_episodes]
''')
s("run-test-settings", '''how_many = (settings.evaluate.baseline_episodes, settings.collect.workers)
baselines = {
    name: lives(policy, "baselines", settings.seed, *how_many) for name, policy in rivals.items()
}
''', '''rival_settings = {
    "seeds": seeds_for("baselines", settings.seed, settings.evaluate.baseline_episodes),
    "workers": settings.collect.workers,
}
baselines = {
    name: keep(baseline, policy, name="baseline", **rival_settings).result
    for name, policy in rivals.items()
}
''')
s("run-test-settings", '''print(
    f"the cart stays within {farthest:.2f} m of the centre in the first {len(test_episodes)} of "
    "them"
)
if c_stage.key.startswith("pretrained"):
    print(
        "V, M and C come from the checkpoint, trained with seed "
        f"{c_stage.key.partition('-seed-')[2]}; they played here with seed {settings.seed}"
    )''', '''print(f"the cart stays within {farthest:.2f} m of the centre in all of them")''')
s("run-pearson", "world.looking_at(test_episodes)", "world.looking_at(test_episodes[:8])")

# the checkpoint
s("define-load-checkpoint", '''    key = f"pretrained-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}-seed-{theirs['seed']}"
    return {
        name: Stage(name, key, path.parent, seconds[name], result)
        for name, result in results.items()
    }
''', '''    print(f"V, M and C come from our own run, trained with seed {theirs['seed']}")
    return {
        name: Stage(name, path.parent, seconds[name], result) for name, result in results.items()
    }
''')

# part 9
s("run-fresh-settings", '''fresh_stage, fresh_episodes = recorded(
    RandomPolicy(settings.seed + 1), purpose="fresh", **fresh_settings
)
''', '''fresh_stage = recorded(RandomPolicy(settings.seed + 1), "fresh", **fresh_settings)
fresh_episodes = fresh_stage.result
''')
s("run-verifier-stage", "    after=(practice_stage,),\n", "")
s("run-short-c", '''    made_in, made_by = (
        (forced_world, m_stage) if row == "without practice for M" else (world, c_stage)
    )
    remedy_stage = keep(
        try_remedy,
        made_in,
        *how,
        after=(made_by, verifier_stage),
''', '''    remedy_stage = keep(
        try_remedy,
        forced_world if row == "without practice for M" else world,
        *how,
''')
s("run-round-stage", '''round_stage, own_episodes = recorded(
    Agent(world, controller(ship), 0.1, settings.seed),
    after=(c_stage,),
    purpose="round",
    episodes=settings.round.episodes,
    seed=settings.seed,
    workers=settings.collect.workers,
)
''', '''round_stage = recorded(
    Agent(world, controller(ship), settings.round.exploration, settings.seed),
    "round",
    episodes=settings.round.episodes,
    seed=settings.seed,
    workers=settings.collect.workers,
)
own_episodes = round_stage.result
''')
for old in ("    after=(round_stage, v_stage),\n", "    after=(practice_stage, own_codes),\n", "    after=(round_m_stage,),\n"):
    s("run-round-stage", old, "")
s("define-branch", '''    episodes: int = knob(24, 1, 10_000, "real episodes that C plays")
''', '''    episodes: int = knob(24, 1, 10_000, "real episodes that C plays")
    exploration: float = knob(0.1, 0.0, 1.0, "share of its steps in which a coin decides")
''')

# roads
s("define-table-of", '''def try_int8(
    progress: Progress,
    worlds: dict[str, World],
    weights: Tensor,
''', '''def try_int8(
    progress: Progress,
    world: World,
    weights: Tensor,
''')
s("define-table-of", '''    """Each world's size, time to see and to dream for 1 and for 32 robots, error and KL after 30
    steps alone, and real return."""
    lines, stacks = [], torch.rand(32, STACK, FRAME_SIZE, FRAME_SIZE, device=DEVICE)
    for name, its in worlds.items():
''', '''    """The world in floats and in INT8: size, time to see and to dream for 1 and for 32 robots,
    error and KL after 30 steps alone, and real return."""
    lines, stacks = [], torch.rand(32, STACK, FRAME_SIZE, FRAME_SIZE, device=DEVICE)
    for name, its in {"float32": world, "INT8": in_int8(world)}.items():
''')
s("define-table-of", "def milliseconds(", '''def in_int8(world: World) -> World:
    """The same world, its V and M quantised."""
    return world._replace(v=quantised(world.v), m=quantised(world.m))


def milliseconds(''')
s("run-int8-world", '''    int8_world = world._replace(v=quantised(world.v), m=quantised(world.m))
    int8_inputs = ({"float32": world, "INT8": int8_world}, ship, good_episodes, wide_probe)
''', "")
s("run-int8-world", "        try_int8, *int8_inputs, after=(c_stage, good_stage), name", "        try_int8, world, ship, good_episodes, wide_probe, name")
s("define-lies", '''def try_guard(progress: Progress, driver: Driver, *, seed: int, episodes: int, steps: int) -> dict:
    """The service as robots meet it, whose cameras lie: returns with and without the guard, alarms,
    and `limits`."""
    key, lines = secrets.token_bytes(32), []
''', '''def try_guard(
    progress: Progress,
    world: World,
    weights: Tensor,
    verifier: Verifier,
    *,
    seed: int,
    episodes: int,
    steps: int,
) -> dict:
    """The service in INT8 as robots meet it, whose cameras lie: returns with and without the guard,
    alarms, and `limits`."""
    driver = functools.partial(Driver, in_int8(world), weights, quantised(verifier))
    key, lines = secrets.token_bytes(32), []
''')
s("define-lies", "with served(driver, key) as", "with served(driver(), key) as")
s("define-lies", "with served(Driver(driver.world, driver.weights, driver.verifier, limits), key) as", "with served(driver(limits), key) as")
s("run-steered", "    steered = Driver(int8_world, ship, quantised(verifier))\n", "")
s("run-steered", "        try_guard, steered, after=(c_stage, verifier_stage), name", "        try_guard, world, ship, verifier, name")
s("define-make-app", "    async def metrics() -> Response:", "    async def metrics():")
s("run-by-gradient", "        after=(c_stage,),\n", "")
s("run-forced-stages", "train_m, memory, codes, after=(code_stage,), name", "train_m, memory, codes, name")
s("run-forced-stages", "            after=(forced_stages[-1],),\n", "")
for old in ("                after=(arm_forced,),\n", "                after=(arm_stage,),\n", "                after=(arm_door, good_stage, fresh_stage),\n", "                after=(arm_door,),\n"):
    s("run-contrast-lines", old, "")
s("run-macro-drift-lines", "world, after=(code_stage,), name", "world, name")
s("run-macro-drift-lines", "            after=(macro_forced,),\n", "")
s("run-macro-drift-lines", "                    after=(frontier_stage,),\n", "")
s("run-macro-drift-lines", "                after=(frontier_stage,),\n", "")
s("run-words-lines", "        after=(words_stage,),\n", "")
book.save()
