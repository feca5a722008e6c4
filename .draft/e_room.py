import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
t = b.source("define-shrink")
i = t.index("def pixel_cartpole")
b.set("define-shrink", '''FRAME_SIZE = 64  # pixels; the networks below are built for 64 x 64
STACK = 4  # frames in one observation
STATE_UNITS = {"x": "m", "x_dot": "m/s", "theta": "rad", "theta_dot": "rad/s"}
TRACK, LEAN = 2.4, math.radians(12)  # m, rad: beyond either the episode ends
SOLVED = 475  # mean return over 100 episodes, says gymnasium
PICTURE_METRES = 4.8  # the width of the picture
PIXEL_METRES = PICTURE_METRES / FRAME_SIZE
PIXEL_SHAPE = 1.5  # width by height of the piece of the world in a pixel: 600 x 400 become square


class Room(NamedTuple):
    """What can be changed in CartPole's room. The defaults are gymnasium's."""

    gravity: float = 9.8  # m/s²
    pole: float = 0.5  # half the pole's length, m
    force: float = 10.0  # of a push, N

    @property
    def band(self) -> slice:
        """The pixel rows in which something can move, a multiple of 16: below them is nothing, and
        above them an upright pole doesn't reach."""
        tip, below = int(46.8 - 40 * self.pole), 56  # the camera shows 40 of our rows in 2 m
        return slice(below - 16 * math.ceil((below + 1 - tip) / 16), below)


def mirrored(a: Tensor) -> Tensor:
    """What pushes (1: right, 0: left) become in a mirror: the other ones."""
    return 1 - a


''' + t[t.index("def shrink"):i] + '''def pixel_cartpole(steps: int = 500, pictures: bool = True, room: Room = Room()) -> gym.Env:
    """The real CartPole-v1, seen through its own renderer, for at most so many steps.

    It shows `frame` (64, 64) uint8, which is all that V, M and C ever see, and `state` (4,) float32
    (x in m, ẋ in m/s, θ in rad, θ̇ in rad/s), for measurements only. `pictures`: without them all
    frames are black, and a step is quick."""
    env = gym.make("CartPole-v1", render_mode="rgb_array", max_episode_steps=steps)
    cart = env.unwrapped
    cart.gravity, cart.length, cart.force_mag = room
    cart.polemass_length = cart.masspole * cart.length
''' + t[t.index('    black = np.zeros'):])
s("define-contextlib", "import copy\nimport functools\n", "import copy\nimport functools\nimport math\n")
s("define-branch", "import math\n", "")
s("define-plot", b.source("define-plot")[b.source("define-plot").index("# A pixel of ours"):b.source("define-plot").index("\n\ndef plot(")], "")
s("define-plot", '''    columns: list[str] | None = None,
    across: slice = slice(8, 56),
) -> None:''', '''    columns: list[str] | None = None,
    across: slice = slice(8, 56),
    room: Room | None = None,
) -> None:''')
s("define-plot", '''the pixel columns that are drawn."""
''', '''the pixel columns that are drawn. `room`: if it is not ours."""
    band = (room or ROOM).band  # only its rows are drawn, and a margin
''')
s("define-plot", "        :, None, ROWS_DRAWN, across\n", "        :, None, band.start - 4 : band.stop + 2, across\n")
s("run-coin-episode", "seeds_for(\"random\", 122, 1), 1)[0]", "seeds_for(\"random\", 122, 1), 1, room=Room())[0]")
s("run-coin-episode", '''    [f"step {k}" for k in coin_pick],
)''', '''    [f"step {k}" for k in coin_pick],
    room=Room(),
)''')
t = b.source("define-play")
i = t.index("def play("); j = t.index("-> list[Episode]:")
b.set("define-play", t[:i] + '''def play(
    policy: Policy,
    seeds: list[int],
    workers: int,
    label: str | None = None,
    steps: int = 500,
    pictures: bool = True,
    room: Room | None = None,
) ''' + t[j:])
s("define-play", "`pictures`: as in `pixel_cartpole`.", "`pictures`: as in `pixel_cartpole`. `room`: if it is not\n    ours.")
s("define-play", "functools.partial(pixel_cartpole, steps, pictures)", "functools.partial(pixel_cartpole, steps, pictures, room or ROOM)")
s("define-branch", '''class CollectSettings(Branch):''', '''class RoomSettings(Branch):
    """The room that the cart is in. V looks at as many rows as the pole needs."""

    gravity: float = knob(9.8, 0.1, 50.0, "m/s²")
    pole: float = knob(0.5, 0.1, 0.9, "half the pole's length, m")
    force: float = knob(10.0, 0.5, 100.0, "of a push, N")


class CollectSettings(Branch):''')
s("define-branch", "    collect: CollectSettings = CollectSettings()\n", "    room: RoomSettings = RoomSettings()\n    collect: CollectSettings = CollectSettings()\n")
s("run-profile", "if USE_GOOGLE_DRIVE:  # it", "ROOM = Room(**settings.room.model_dump())\nif USE_GOOGLE_DRIVE:  # it")
s("run-random-states", "    extent=(-2.4, 2.4, -16, 16),\n", "    extent=(-TRACK, TRACK, -16, 16),\n")
s("run-random-states", "plt.hlines([-12, 12], -2.4, 2.4, color", "plt.hlines(np.degrees([-LEAN, LEAN]), -TRACK, TRACK, color")
s("run-random-states", '''    f"99 % of the random frames lie within {inside:.2f} m of the centre; the picture reaches to "
    "2.4 m"
''', '''    f"99 % of the random frames lie within {inside:.2f} m of the centre; the picture reaches to "
    f"{PICTURE_METRES / 2} m"
''')
s("define-down", b.source("define-down")[b.source("define-down").index("BAND = slice("):b.source("define-down").index("PIXEL_SCALE")], "")
s("define-v", '''        a, b, c, d = self.widths = settings.widths
        # With the band's 32 rows: (B, 4, 32, 64) -> (B, a, 16, 32) -> (B, b, 8, 16) -> (B, c, 4, 8)
        # -> (B, d, 2, 4).
''', '''        self.band = ROOM.band  # R rows, 32 of them if the room is gymnasium's
        a, b, c, d = self.widths = settings.widths
        # (B, 4, R, 64) -> (B, a, R/2, 32) -> (B, b, R/4, 16) -> (B, c, R/8, 8) -> (B, d, R/16, 4)
        wide = d * 4 * (self.band.stop - self.band.start) // 16
''')
s("define-v", "nn.Linear(8 * d, 2 * settings.latents)", "nn.Linear(wide, 2 * settings.latents)")
s("define-v", "nn.Linear(settings.latents, 8 * d)", "nn.Linear(settings.latents, wide)")
s("define-v", "x[:, :, BAND] if", "x[:, :, self.band] if")
s("define-v", "self.mean_picture[BAND]", "self.mean_picture[self.band]")
s("define-v", "x[:, :, BAND] +=", "x[:, :, self.band] +=")
s("define-v", ".unflatten(1, (self.widths[-1], 2, 4))  # (B, d, 2, 4)", ".unflatten(1, (self.widths[-1], -1, 4))  # (B, d, R/16, 4)")
s("define-v", "# (B, 8d)", "# (B, d · R/16 · 4)")
t = b.source("define-v").replace("(B, 4, 32, 64)", "(B, 4, R, 64)")
b.set("define-v", t)
s("define-random-views", "memory.stack(rows, shift, flip, BAND)  # (B, 4, 32, 64)", "memory.stack(rows, shift, flip, model.band)  # (B, 4, R, 64)")
s("define-random-views", "*views, BAND)", "*views, v.band)")
s("define-true-states", b.source("define-true-states")[:b.source("define-true-states").index("def true_states")], "")
s("define-codes", "torch.where(views[1], 1 - memory.actions, memory.actions)", "torch.where(views[1], mirrored(memory.actions), memory.actions)")
s("run-film-long", "film[:, ROWS_DRAWN]", "film[:, v.band]")
s("run-pool", "        pixel_cartpole(),\n", "        pixel_cartpole(room=ROOM),\n") if "        pixel_cartpole(),\n" in b.source("run-pool") else s("run-pool", "pixel_cartpole()", "pixel_cartpole(room=ROOM)")
s("run-cell", 'plt.axvline(475, color=RED, ls="--", label="475: solved, says gymnasium")', 'plt.axvline(SOLVED, color=RED, ls="--", label=f"{SOLVED}: solved, says gymnasium")')
s("define-three-films", "film[:, BAND]", "film[:, world.v.band]")
s("run-read-pool", "math.copysign(12, real_angle[-1])", "math.copysign(math.degrees(LEAN), real_angle[-1])")
s("define-auroc", "m.step(now, 1 - a).z", "m.step(now, mirrored(a)).z")
t = b.source("define-show-seeds")
t = t.replace("plt.axhline(475,", "plt.axhline(SOLVED,").replace('"return (steps; red: 475)"', 'f"return (steps; red: {SOLVED})"').replace("mean >= 475 for", "mean >= SOLVED for").replace("seeds reach 475; ", "seeds reach {SOLVED}; ")
b.set("define-show-seeds", t)
s("define-other-pushes", "torch.where(alone >= 0, 1 - a, a)", "torch.where(alone >= 0, mirrored(a), a)")
s("define-other-pushes", "(alone % 2 == 0), 1 - a, a)", "(alone % 2 == 0), mirrored(a), a)")
s("define-without-norm", '''        "band": BAND.start,
''', '''        "band": world.v.band.start,
        "rows": world.v.band.stop - world.v.band.start,
        "room": ROOM._asdict(),
''')
t = b.source("define-page")
for old, new in (
  ("height = 2, width = 4;", "height = data.rows / 16, width = 4;"),
  ('''  const pushed = ((push ? 10 : -10) + 0.05 * spin * spin * sin) / 1.1;
  const turn = (9.8 * sin - cos * pushed) / (0.5 * (4 / 3 - 0.1 * cos * cos / 1.1));
  const speed = pushed - 0.05 * turn * cos / 1.1;
''', '''  const { gravity, pole, force } = data.room, heavy = 0.1 * pole;  // the pole's mass is 0.1 kg
  const pushed = ((push ? force : -force) + heavy * spin * spin * sin) / 1.1;
  const turn = (gravity * sin - cos * pushed) / (pole * (4 / 3 - 0.1 * cos * cos / 1.1));
  const speed = pushed - heavy * turn * cos / 1.1;
'''),
  ('''image = new ImageData(64, 38);
  for (let k = 0; k < 64 * 38; k++) {
    const grey = Math.round(255 * picture[20 * 64 + k]);''', '''image = new ImageData(64, tall);
  for (let k = 0; k < 64 * tall; k++) {
    const grey = Math.round(255 * picture[above * 64 + k]);'''),
  ("pen.setTransform(1.6, 0, 0, 1.6, 0, -200);", "pen.setTransform(1.6, 0, 0, 1.6, 0, -10 * above);"),
  ('pen.fillRect(-5, -120, 10, 125);', 'pen.fillRect(-5, 5 - 250 * data.room.pole, 10, 250 * data.room.pole);'),
  ('''const percent = p =>''', '''// the rows that are shown: those that V draws, and a margin
const above = data.band - 4, tall = data.rows + 6;
for (const [id, size] of [["dream", tall], ["real", 10 * tall]]) {
  $(id).height = size;
  $(id).style.aspectRatio = `96 / ${tall}`;
}
const percent = p =>'''),
):
    assert t.count(old) == 1, old
    t = t.replace(old, new)
b.set("define-page", t)
b.save()
