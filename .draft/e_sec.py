import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
s("define-randompolicy", '    "roads",\n', '    "roads",\n    "another room",\n')
drift = next(c["id"] for c in b.cells if c["id"].startswith("text-on-good-play-the-angle"))
t = b.source(drift)
i = t.index("A longer question to the same dream")
b.set(drift, t[:i].replace(" (Some of this growth is no fault of M's: a pole magnifies what was wrong at first. Exercise 8.)", "") + '''### Whose fault is the drift?

A pole magnifies whatever was wrong at first: left alone, an upright one doubles an error within 0.17 s (exercise 8). So how much of the drift is M's own? We let **gymnasium's own physics** take over at the same moments, under the same pushes. It makes no mistake. But it must be told where cart and pole are, and all that anybody knows here is what V and M have seen. So it begins where a linear probe reads them, from (z, h) or from z alone. **Predict:** who is closer to reality after thirty steps, perfect physics or M?''')
b.insert(drift, "define-lived-on", '''def lived_on(states: Tensor, a: Tensor) -> Tensor:
    """Where gymnasium's own physics goes from states (S, 4) under pushes (S, T): (S, T, 4)."""
    cart, paths = pixel_cartpole(pictures=False).unwrapped, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a pole may fall: the physics goes on
        for state, pushes in zip(states.tolist(), a.tolist()):
            cart.reset()
            cart.state = state
            paths.append([cart.step(push)[0] for push in pushes])
    return torch.tensor(np.array(paths), device=states.device).view(*a.shape, 4)  # (S, T, 4)''', tags=("define", "extra"))
b.insert("define-lived-on", "run-whose-fault", '''fault_now = good_rows[:, settings.m.context - 1]  # (S,) the last moment that M has seen
fault_after = good_world.memory.states[good_rows[:, settings.m.context :]]  # (S, T, 4)
fault_pushes = good_world.memory.actions[good_rows[:, settings.m.context - 1 : -1]]  # (S, T)
fault_begins = {
    "physics from (z, h)": zh_probe(features(good_world_practised.states(fault_now))),
    "physics from z": wide_probe(good_world.codes.mu[0, fault_now]),
    "physics from the truth": good_world.memory.states[fault_now],
}  # (S, 4) each
fault_errors = after_practice | {
    name: median((lived_on(begin, fault_pushes) - fault_after).abs())
    for name, begin in fault_begins.items()
}  # (T, 4) each
show_open_loop(fault_errors, "The same moments and pushes: M, and perfect physics")
for name, begin in fault_begins.items():
    fault_first = median((begin - good_world.memory.states[fault_now]).abs())  # (4,)
    print(
        f"{name:37s} begins {number(math.degrees(fault_first[2]), 2, '°')} and "
        f"{number(float(fault_first[3]), 2, ' rad/s')} off"
    )''', tags=("run", "extra"))
b.insert("run-whose-fault", "text-whose-fault", '''**M is.** Physics that begins from z alone is lost after thirty steps (13.6°): one code says little about speeds. From (z, h), 0.24° and 0.03 rad/s off at first, it ends at 3.0° and 14 mm. M itself ends at 2.6° and 13 mm as seen, and at 2.1° and 10 mm from z. (From the true state physics ends where reality does.) So most of the drift is no fault of M's law of motion: it is what could not be seen at the beginning, magnified by the pole. And M knows better where things stand than a linear probe can read it from M.

A longer question to the dream of good play: C itself, in dreams of 150 steps, five times as long as those it was trained in. They begin in moments of its own test episodes, so we know what reality did: it stood. **Predict** how many of the dreams are still alive at the end.''', kind="markdown")
# live_on stands before run-test-age, after the text
cell = b.cell("define-live-on"); b.cells.remove(cell)
b.cells.insert([c["id"] for c in b.cells].index("run-test-age"), cell)
door = next(c["id"] for c in b.cells if c["id"].startswith("text-it-spots-its-own-kind"))
t = b.source(door)
i = t.index("### Remedies")
remedies = t[i:]
b.set(door, t[:i] + '''### Another room

V, M and C know one room. Now we change it without a word: gravity, the push, the length of the pole. Nothing is trained anew. C plays eight short episodes in each room, with a coin in a tenth of its steps. Two witnesses could warn us: **M's surprise**, the squared error of its next z, and the doorkeeper's confidence. **Predict:** in which rooms does C fail? And which of the two says so?''')
b.insert(door, "define-visit", '''ROOMS = {
    "as trained": Room(),
    "gravity of the Moon": Room(gravity=1.62),
    "gravity of Jupiter": Room(gravity=24.8),
    "half the force": Room(force=5.0),
    "twice the force": Room(force=20.0),
    "pole half as long": Room(pole=0.25),
    "pole twice as long": Room(pole=1.0),
}


def visit(
    progress: Progress,
    world: World,
    weights: Tensor,
    verifier: Verifier,
    *,
    room: list[float],
    seed: int,
    workers: int,
) -> dict:
    """The stage in which C plays eight short episodes in a room, with a coin in a tenth of its
    steps: mean `return`; M's `surprise` one step ahead, the median squared error of z, summed; and
    the verifier's mean `confidence` in the moments that were lived."""
    agent, seeds = Agent(world, controller(weights), 0.1, seed), seeds_for("another room", seed, 8)
    played = play(agent, seeds, workers, steps=LOOK_STEPS, room=Room(*room))
    its = world.looking_at(played)
    memory = its.memory
    rows, ahead = open_loop(its, windows(memory, its.context + 1, 300))  # (S, 1)
    lived = its.states(memory.rows[memory.rows - memory.first >= its.context // 2])
    return {
        "return": float(np.mean([len(episode.actions) for episode in played])),
        "surprise": float(median((its.codes.mu[0, rows] - ahead.z).square().sum(-1))),
        "confidence": float(verifier(lived).sigmoid().mean()),
    }''', tags=("define", "extra"))
b.insert("define-visit", "run-visits", '''visit_settings = {"seed": settings.seed, "workers": settings.collect.workers}
visits = {
    name: keep(
        visit, world, ship, verifier, name="visit", room=list(room), **visit_settings
    ).result
    for name, room in ROOMS.items()
}
visit_figure, visit_places = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
for place, (what, label) in zip(
    visit_places,
    {"surprise": "M's surprise one step ahead", "confidence": "the verifier's confidence"}.items(),
):
    for (name, found), marker in zip(visits.items(), "osD^vP*"):
        place.plot(found[what], found["return"], marker, ms=9, label=name)
    place.set(xlabel=label, ylim=(0, 1.05 * LOOK_STEPS))
visit_places[0].set(xscale="log", ylabel=f"real return (of {LOOK_STEPS} steps)")
visit_figure.legend(*visit_places[0].get_legend_handles_labels(), loc="outside right")
plt.show()
for name, found in visits.items():
    print(
        f"{name:20s} real return {found['return']:5.1f} of {LOOK_STEPS}, M's surprise "
        f"{number(found['surprise'], 3)}, the verifier's confidence "
        f"{number(found['confidence'], 2)}"
    )''', tags=("run", "extra"))
b.insert("run-visits", "text-visits", "TEXT\n\n" + remedies, kind="markdown")
b.save()
