coins = torch.randint(2, (14,), generator=torch.Generator().manual_seed(7)).to(DEVICE)
awake, asleep = (jostled(controller(ship), coins) for _ in range(2))
wake_episode = play(Agent(world, awake), seeds_for("check", settings.seed, 1), 1, steps=80)[0]
wake_world = world.looking_at([wake_episode])
start, steps = wake_world.states(wake_world.memory.rows[:1]), len(wake_episode.actions)
with torch.no_grad():
    wake_dream = stacked(list(dream(world.m, start, asleep, steps)))  # (1, T, …)
wake_films = {
    "what really happens": torch.from_numpy(wake_episode.frames[1:] / 255),
    "what V redraws": v.decode(wake_world.codes.mu[0, 1:])[:, -1],
    "what M dreams": v.decode(wake_dream.z[0])[:, -1],
}  # (T, 64, 64) each
show_pictures(
    {name: film[::11] for name, film in wake_films.items()},
    f"A coin pushes {len(coins)} times, then C: in reality and in a dream",
    [f"+{k + 1}" for k in range(0, steps, 11)],
)
wake_lean = np.degrees(np.abs(wake_episode.states[:, 2]).max())
print(f"the real pole leans by up to {wake_lean:.1f}°")
