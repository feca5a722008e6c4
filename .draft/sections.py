# %% another room: define
ROOMS = {
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
    """The stage in which C, with a coin in a tenth of its steps, plays eight short episodes in a
    room: its mean `return`, M's `surprise` 1 and 5 steps ahead (the median squared error of z, summed), and
    the verifier's mean `confidence` in what was lived."""
    agent = Agent(world, controller(weights), 0.1, seed)
    seeds = seeds_for("another room", seed, 8)
    played = play(agent, seeds, workers, steps=LOOK_STEPS, room=Room(*room))
    its = world.looking_at(played)
    rows, states = open_loop(its, windows(its.memory, its.context + 5, 300))  # (S, 5)
    missed = median((its.codes.mu[0, rows] - states.z).square().sum(-1))  # (5,)
    lived = its.states(its.memory.rows[its.memory.rows - its.memory.first >= its.context // 2])
    return {
        "return": float(np.mean([len(episode.actions) for episode in played])),
        "surprise 1": float(missed[0]),
        "surprise 5": float(missed[4]),
        "confidence": float(verifier(lived).sigmoid().mean()),
    }


# %% another room: run
visits = {
    name: keep(
        visit, world, ship, verifier, name="visit", room=list(room), seed=settings.seed,
        workers=settings.collect.workers,
    ).result
    for name, room in ROOMS.items()
}
for name, seen in visits.items():
    print(name, seen)

# %% whose fault: define
def lived_on(states: Tensor, a: Tensor) -> Tensor:
    """Where gymnasium's own physics goes from states (S, 4) under pushes (S, T): (S, T, 4)."""
    cart, paths = pixel_cartpole(pictures=False).unwrapped, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a pole may fall: the physics goes on
        for state, pushes in zip(states.tolist(), a.tolist()):
            cart.reset()
            cart.state = state
            paths.append([cart.step(push)[0] for push in pushes])
    return torch.tensor(np.array(paths), device=states.device)  # (S, T, 4)


# %% whose fault: run
now = good_rows[:, settings.m.context - 1]  # (S,) the last moment that M has seen
ahead = good_rows[:, settings.m.context :]  # (S, T)
pushes = good_world.memory.actions[good_rows[:, settings.m.context - 1 : -1]]  # (S, T)
truth = good_world.memory.states
starts_read = {
    "physics from the true state": truth[now],
    "physics from (z, h)": zh_probe(features(good_world_practised.states(now))),
    "physics from z": wide_probe(good_world.codes.mu[0, now]),
    "physics from z, z_probe": z_probe(good_world.codes.mu[0, now]),
}
for name, begin in starts_read.items():
    path = lived_on(begin, pushes)
    err = median((path - truth[ahead]).abs())
    e0 = median((begin - truth[now]).abs())
    print(name, "start", [round(float(x), 4) for x in e0], "th0", math.degrees(e0[2]), "after 30:", math.degrees(err[29, 2]), 1000 * float(err[29, 0]))
for name, err in after_practice.items():
    print(name, math.degrees(err[29, 2]), 1000 * float(err[29, 0]))
