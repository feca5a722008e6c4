import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
s("define-shrink", "room: Room = Room()) -> gym.Env:", "room: Room | None = None) -> gym.Env:")
s("define-shrink", "= room\n", "= room or ROOM\n")
s("define-shrink", "frames are black, and a step is quick.\"\"\"", "frames are black, and a step is quick. `room`: if it is not ours.\"\"\"")
s("run-pole", "pole = pixel_cartpole()", "pole = pixel_cartpole(room=Room())")
t = b.source("run-pool").replace("pixel_cartpole(room=ROOM)", "pixel_cartpole()"); b.set("run-pool", t)
s("define-play", "functools.partial(pixel_cartpole, steps, pictures, room or ROOM)", "functools.partial(pixel_cartpole, steps, pictures, room or ROOM)")
s("define-branch", 'knob(9.8, 0.1, 50.0, "m/s²")', 'knob(9.8, 0.1, 50.0, "how strong gravity is, m/s²")')
t = b.source("define-show-seeds")
i = t.index("    print(\n        f\"{experiment}: {sum")
b.set("define-show-seeds", t[:i] + '''    reach = sum(mean >= SOLVED for mean in means)
    print(
        f"{experiment}: {reach} of {len(means)} seeds reach {SOLVED}; median "
        f"{np.median(means):.1f}, lowest {means[0]:.1f}"
    )''')
# text
for c in b.cells:
    if c["id"].startswith("text-the-small-picture"):
        name = c["id"]
t = b.source(name)
first, rest = t.split("\n\n", 1)
b.set(name, first + '''

<details><summary><b>Another world.</b> What is CartPole's own stands in the cell above the picture: the environment and how it is rendered, the room (gravity, pole, force; knobs in part 2), what a mirror does to a push, names, units and limits of the state, how many metres a pixel shows, and when it is solved. To bring a world of your own, change that cell.</summary>

Keep `frame` (64 × 64 grey bytes) and `state` (for measurements only), and two pushes, 0 and 1. `true_states` in part 4 says what a shifted and mirrored picture means for the state; set `v.law` and `v.max_shift` to 0 where a shifted picture is *not* the same scene elsewhere. And if no rows of the picture are always empty, let `Room.band` be all 64.
</details>

''' + rest)
b.save()
