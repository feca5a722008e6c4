import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
text = b.source("define-rank-controllers")
a = text.index("def rank_interval")
b.set("define-rank-controllers", text[:a] + '''def rank_interval(a: Any, b: Any) -> tuple[float, float, float]:
    """Spearman's correlation, and its 95 % bootstrap interval over the pairs."""
    pairs = np.array([a, b])
    drawn = stats.rankdata(pairs[:, np.random.default_rng(0).integers(len(a), size=(500, len(a)))], axis=-1)  # (2, 500, N)
    first, second = drawn - drawn.mean(-1, keepdims=True)  # (500, N) each
    with np.errstate(invalid="ignore"):  # nan where one side does not vary
        spearman = (first * second).mean(-1) / (first.std(-1) * second.std(-1))  # (500,)
    return (correlations(*pairs)[1], *map(float, np.nanquantile(spearman, (0.025, 0.975))))''')

# how many stretches are measured is a setting; whoever measures is handed the stretches
b.sub("define-branch", '''    remedy_seeds: int =''', '''    stretches: int = Field(400, ge=1, le=100_000, description="stretches of recorded play on which a dream's drift is measured, at most")
    remedy_seeds: int =''')
b.sub("define-profile-name", '"evaluate.fresh_episodes": 60,', '"evaluate.fresh_episodes": 60, "evaluate.stretches": 40,')
b.sub("define-median", '''def windows(memory: Memory, length: int, count: int = 400) -> Tensor:''', '''def windows(memory: Memory, length: int, count: int) -> Tensor:''')
b.sub("define-median", '''def open_loop_errors(world: World, probe: Probe, seen: bool = True, horizon: int = 30) -> Tensor:
    """Median |error| of the read state after each of T steps alone, (T, 4); `seen`: from the picture that V draws, else from z itself."""
    rows, state = open_loop(world, windows(world.memory, world.context + horizon))
''', '''def open_loop_errors(world: World, rows: Tensor, probe: Probe, seen: bool = True) -> Tensor:
    """Median |error| of the read state after each of T steps alone, (T, 4), on windows (S, C + T); `seen`: from the picture that V draws, else from z itself."""
    rows, state = open_loop(world, rows)
''')
b.sub("define-median", '''def copy_errors(world: World, horizon: int = 30) -> Tensor:
    """The same for the copy-the-last-frame baseline (with a perfect reading of that frame), (T, 4)."""
    rows = windows(world.memory, world.context + horizon)[:, world.context :]
''', '''def copy_errors(world: World, rows: Tensor) -> Tensor:
    """The same for the copy-the-last-frame baseline (with a perfect reading of that frame), (T, 4)."""
    rows = rows[:, world.context :]
''')
b.set("run-shifted-states", '''shifted_states = true_states(memory, memory.rows, codes.shift[-1][memory.episode], codes.mirror[-1][memory.episode])  # (N, 4)
wide_probe = Probe(codes.mu[-1], shifted_states)
torch.manual_seed(settings.seed)
m_untrained = frozen(M(settings.v.latents, settings.m.hidden))
good_rows, random_rows = (windows(its.memory, its.context + 30, settings.evaluate.stretches) for its in (good_world, forced_world))  # (S, C + T) each
before_practice = {
    "teacher forcing only, seen": open_loop_errors(good_world, good_rows, wide_probe),
    "teacher forcing only, from z": open_loop_errors(good_world, good_rows, wide_probe, seen=False),
    "M, untrained": open_loop_errors(good_world._replace(m=m_untrained), good_rows, wide_probe),
    "copy the last frame": copy_errors(good_world, good_rows),
}
show_open_loop(before_practice, "Dreaming with the eyes closed, on a good controller's episodes")''')
b.sub("run-practice-settings", "open_loop_errors(good_world_practised, wide_probe, seen)", "open_loop_errors(good_world_practised, good_rows, wide_probe, seen)")
b.sub("run-practice-settings", '"M, random play": open_loop_errors(world, wide_probe), "copy the last frame, random play": copy_errors(world)', '"M, random play": open_loop_errors(world, random_rows, wide_probe), "copy the last frame, random play": copy_errors(world, random_rows)')
b.sub("define-gaussian-kl", '''def open_loop_kl(world: World, horizon: int) -> Tensor:
    """Mean KL after each of T steps alone, (T,): between V's posterior of the real latent and M's belief; nan where no episode is long enough."""
    rows, state = open_loop(world, windows(world.memory, world.context + horizon))
''', '''def open_loop_kl(world: World, rows: Tensor) -> Tensor:
    """Mean KL after each of T steps alone, (T,), on windows (S, C + T): between V's posterior of the real latent and M's belief; nan without windows."""
    rows, state = open_loop(world, rows)
''')
b.sub("run-pearson", "test_kl = open_loop_kl(test_world, 30)", "test_kl = open_loop_kl(test_world, windows(test_world.memory, test_world.context + 30, settings.evaluate.stretches))")
b.sub("run-round-stage", "open_loop_errors(round_good, wide_probe),", "open_loop_errors(round_good, good_rows, wide_probe),")
b.sub("run-round-stage", "open_loop_errors(round_good, wide_probe, seen=False)", "open_loop_errors(round_good, good_rows, wide_probe, seen=False)")
b.sub("run-fresh-settings", "windows(its.memory, its.context + horizon, 300)", "windows(its.memory, its.context + horizon, min(300, settings.evaluate.stretches))")
b.sub("define-table-of", '''        error, kl = open_loop_errors(looks, probe)[29], open_loop_kl(looks, 30)[29]
''', '''        rows = windows(looks.memory, looks.context + 30, stretches)
        error, kl = open_loop_errors(looks, rows, probe)[29], open_loop_kl(looks, rows)[29]
''')
b.sub("define-table-of", "good_episodes: list[Episode], probe: Probe, *, seed: int, episodes: int, workers: int", "good_episodes: list[Episode], probe: Probe, *, seed: int, episodes: int, stretches: int, workers: int")
b.sub("run-int8-world", '"episodes": settings.evaluate.episodes, "workers"', '"episodes": settings.evaluate.episodes, "stretches": settings.evaluate.stretches, "workers"')
b.sub("define-verifier-loss", "verifier: Verifier, *, longest: int) -> dict:", "verifier: Verifier, *, longest: int, stretches: int) -> dict:")
b.sub("define-verifier-loss", "windows(its.memory, its.context + horizon, 300)", "windows(its.memory, its.context + horizon, stretches)")
b.sub("define-verifier-loss", '''`longest`: stretch alone on random play."""''', '''`longest`: steps alone on random play. `stretches`: at most so many."""''')
b.sub("run-contrast-lines", '''name="judged", longest=longest_alone
''', '''name="judged", longest=longest_alone, stretches=8 if tiny else 300
''')
b.sub("run-macro-drift-lines", "windows(good_world.memory, good_world.context + 200, 300)", "windows(good_world.memory, good_world.context + 200, 8 if tiny else 300)")
b.save()
