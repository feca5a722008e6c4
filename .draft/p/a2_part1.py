# %% [markdown]
# The small picture at the right is all that the agent will ever see: the dark block is the cart, the grey stick the pole.
#
# One function plays every episode of this notebook, whoever decides: a coin, a hand-written rule (which reads the true state), or the finished agent. Several environments run side by side, each in a process of its own.
#
# Each purpose for which the real environment is used has reset seeds of its own, and the test seeds serve the test only: nothing is ever tested on an episode that something was learned or chosen from.
#
# **Predict:** how many steps does a coin keep the pole up? And does one line of common sense reach 500?

# %% tags=["define"]
class Episode(NamedTuple):
    """One real episode of T steps."""

    seed: int
    frames: np.ndarray  # (T + 1, 64, 64) uint8
    states: np.ndarray  # (T + 1, 4) float32: x, ẋ, θ, θ̇; for measurements only
    actions: np.ndarray  # (T,) int64: 0 pushes left, 1 pushes right
    rewards: np.ndarray  # (T,) float32
    terminated: bool  # the pole fell or the cart left the screen
    truncated: bool  # 500 steps were over


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Policy = Callable[[np.ndarray, np.ndarray, np.ndarray, list], np.ndarray]


# %% tags=["define"]
def play(policy: Policy, seeds: list[int], workers: int, label: str | None = None, steps: int = 500) -> list[Episode]:
    """Play one real episode per seed, in the order of `seeds`, W at a time: W = `workers` environments side by side, each in a process of its own.

    `policy(fresh, frames, states, seeds)` decides for all of them at once: `fresh` (W,) is True where an episode has just begun, `frames` is
    (W, 64, 64) uint8, `states` (W, 4), `seeds` the W seeds; it returns W actions. The same seed and policy give the same episode. `label`: of the progress bar. `steps`: an episode is cut off then."""
    workers, played = min(workers, len(seeds)), []
    vector = gym.vector.AsyncVectorEnv if workers > 1 else gym.vector.SyncVectorEnv
    envs = vector([functools.partial(pixel_cartpole, steps)] * workers, autoreset_mode=gym.vector.AutoresetMode.DISABLED)
    # One thread is enough for whoever decides: idle ones would take the cores from the renderers.
    with threads(1), contextlib.closing(envs), tqdm(total=len(seeds), desc=label, unit="episode", disable=label is None) as bar:
        for some in (seeds[first : first + workers] for first in range(0, len(seeds), workers)):
            crew = some + some[:1] * (workers - len(some))  # where fewer are left, the other environments play along for nothing
            seen, _ = envs.reset(seed=crew)
            frames, states, pushes, pays, ends = [seen["frame"].copy()], [seen["state"].copy()], [], [], [np.zeros((2, workers), bool)]
            while not ends[-1].any(0).all():
                pushes.append(policy(np.full(workers, len(frames) == 1), frames[-1], states[-1], crew))
                seen, reward, *end, _ = envs.step(pushes[-1])
                for values, value in zip((frames, states, pays, ends), (seen["frame"], seen["state"], reward, end)):
                    values.append(np.array(value))
            over, by_step = np.array(ends), [np.array(values) for values in (frames, states, pushes, pays)]  # (T + 1, 2, W)
            for k, seed in enumerate(some):
                length = int(over[:, :, k].any(1).argmax())
                parts = [values[: length + (place < 2), k] for place, values in enumerate(by_step)]
                parts = [part.astype(kind) for part, kind in zip(parts, (np.uint8, np.float32, np.int64, np.float32))]
                played.append(Episode(seed, *parts, *map(bool, over[length, :, k])))
            bar.update(len(some))
    return played


# %% tags=["define"]
class RandomPolicy:
    """Pushes left or right by a coin flip; the coin of an episode depends on its seed alone."""

    def __init__(self, seed: int) -> None:
        """`seed`: of the coins; each episode has one of its own."""
        self.seed, self.coins = seed, {}

    def __call__(self, fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
        """One action (0 or 1) per environment, shape (W,)."""
        for k in np.flatnonzero(fresh):
            self.coins[k] = np.random.default_rng([self.seed, seeds[k]])
        return np.array([self.coins[k].integers(2) for k in range(len(frames))])


def hand_written_policy(fresh: np.ndarray, frames: np.ndarray, states: np.ndarray, seeds: list) -> np.ndarray:
    """Push to the side to which the pole leans and turns. It reads the true state, which V, M and C never do."""
    x, x_dot, theta, theta_dot = states.T
    return (theta + 0.5 * theta_dot > 0).astype(np.int64)


PURPOSES = ("random", "hand written", "check", "fresh", "test", "round", "remedies", "baselines")


def seeds_for(purpose: str, seed: int, count: int) -> list[int]:
    """Reset seeds for one of the PURPOSES (another is a ValueError). No two purposes share a seed, whatever the notebook's own seed is."""
    number = PURPOSES.index(purpose)  # purposes lie 100 million apart, and each takes a random stretch of consecutive seeds in its own range
    first = number * 100_000_000 + int(np.random.default_rng([seed, number]).integers(90_000_000))
    return list(range(first, first + count))


# %% cellView="form" tags=["define"]
# @title Figures and films
import io

from torchvision.utils import make_grid

# Colours by Okabe and Ito: colour-blind readers can tell them apart.
ORANGE, BLUE, GREEN, RED, PURPLE, GREY = "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#666666"
STYLE = {
    "figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 88, "savefig.dpi": 88, "font.size": 12, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#DDDDDD",
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 2, "legend.frameon": False, "legend.fontsize": 10, "image.cmap": "gray",
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY], ls=["-", "--", "-.", ":", "-", "--"]), "figure.constrained_layout.use": True,
}  # fmt: skip
PIXEL_SHAPE = 1.5  # a pixel of ours shows a piece of the world that is 1.5 times as wide as it is high: the camera's picture is 600 x 400
ROWS_DRAWN = slice(20, 58)  # pixel rows that pictures show: those in which something can move, and a margin


def plot(*panels: dict, title: str = "", size: tuple[float, float] = (5.2, 3.4)) -> None:
    """Draw panels side by side, `size` inches each. A panel is a dict: `lines` has label -> (x, y) or (x, y, matplotlib's format),
    `bars` heights, `levels` label -> y of a red dotted line; the rest is for `Axes.set`. A label that begins with _ is not shown."""
    figure, places = plt.subplots(1, len(panels), figsize=(size[0] * len(panels), size[1]), squeeze=False)
    for place, panel in zip(places[0], panels):
        for label, (x, y, *style) in panel.pop("lines", {}).items():
            place.plot(x, y, *style, label=label)
        for k, height in enumerate(panel.pop("bars", [])):
            place.bar(k, height, color=PURPLE)
        for label, y in panel.pop("levels", {}).items():
            place.axhline(y, color=RED, ls=":", lw=1.5, label=label)
        place.set(**panel)
        if place.get_legend_handles_labels()[1]:
            place.legend()
    figure.suptitle(title)
    plt.show()


def show_pictures(rows: dict[str, Tensor], title: str, columns: list[str] | None = None, across: slice = slice(8, 56)) -> None:
    """Draw rows of small pictures: name -> (n, H, W) in [0, 1]. `columns`: n short names. `across`: the pixel columns that are drawn."""
    pictures = torch.cat([torch.as_tensor(row).cpu().float() for row in rows.values()])[:, None, ROWS_DRAWN, across]  # (rows · n, 1, H, W)
    count, (high, wide) = len(pictures) // len(rows), pictures.shape[-2:]
    plt.figure(figsize=(0.75 * PIXEL_SHAPE * wide / high * count + 1.2, 0.75 * len(rows) + 0.7))
    plt.imshow(make_grid(pictures, nrow=count, padding=1, pad_value=1.0)[0], vmin=0, vmax=1, aspect=1 / PIXEL_SHAPE)
    plt.grid(False)
    plt.box(False)
    plt.yticks([(k + 0.5) * (high + 1) for k in range(len(rows))], list(rows))
    plt.xticks([(k + 0.5) * (wide + 1) for k in range(count)] if columns else [], columns or [])
    plt.tick_params(length=0, labeltop=True, labelbottom=False)
    plt.title(title)
    plt.show()


def gif_of(frames: np.ndarray, milliseconds: int = 40, zoom: int = 2, greys: int = 24) -> bytes:
    """An endless GIF from (n, H, W) values in [0, 1]; all frames share one scale of greys, or a still picture would flicker."""
    size, frames = (round(frames.shape[2] * zoom * PIXEL_SHAPE), frames.shape[1] * zoom), np.round(frames * (greys - 1)) / (greys - 1)
    pictures = [Image.fromarray((255 * frame).astype(np.uint8)).resize(size, 0) for frame in frames]
    pictures[0].save(file := io.BytesIO(), "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return file.getvalue()


def show_gif(frames: np.ndarray, caption: str) -> None:
    """Show frames (n, H, W) in [0, 1] as a GIF, which needs no video codec and is shown by GitHub, with a line of text below."""
    display(Picture(data=gif_of(frames), format="png", width=5 * frames.shape[2]))
    print(caption)


# %% tags=["run"]
plt.rcParams.update(STYLE)
coin_episode = play(RandomPolicy(123), seeds_for("random", 122, 1), 1)[0]
coin_pick = np.linspace(0, len(coin_episode.frames) - 1, 8).astype(int)
show_pictures({"coin": coin_episode.frames[coin_pick] / 255}, "A random episode, from the first frame to the fall", [f"step {k}" for k in coin_pick])

# %% [markdown]
# Eight frames of one random episode, cut to the rows in which something can move. The pole is down within half a second. Part 8 has the numbers: a coin lives 23.5 steps on average, and the one-line rule reaches 500 of 500. But the rule never looks at $x$, so nothing keeps its cart in the picture.
#
# **One frame has no velocity.** A pole that leans right may be falling or rising, and the picture is the same. So the observation $x_t$ stacks four frames, 0.06 s of history. How much velocity is in there? Less than one might think: each push changes the cart's velocity by 0.2 m/s at once, but its position only one step later. So even exact frames tell the velocity as it was before the last push. Remember this: it is what M's memory will have to add.
#
# <details><summary><b>Exercise 1.</b> Add x to the hand-written rule so that its cart stays near the centre. (Solution)</summary>
#
# `theta + 0.4 * theta_dot + 0.1 * x + 0.2 * x_dot > 0`. To move left, the rule first pushes right, so that the pole leans left, and then follows it. Part 5 lets this rule play.
# </details>

