film_long = memory.last - memory.first >= min(settings.m.context + 30, max(random_lengths))  # (N,)
film_end = int(memory.last[film_long][0])  # of the first random episode that is long enough
film_first = max(int(memory.first[film_end]), film_end - 30)
film_rows = torch.arange(film_first, film_end + 1, device=DEVICE)  # (T + 1,)
film_pushes = given(memory.actions[film_rows][None])
with torch.no_grad():
    film_lives = dream(world.m, world.states(film_rows[:1]), film_pushes, len(film_rows) - 1)
    film_dream = stacked(list(film_lives))  # (1, T, …)
film_pick = np.unique(np.linspace(0, len(film_rows) - 2, 7).astype(int))
show_pictures(
    {
        "real": memory.stack(film_rows[1:][film_pick])[:, -1],
        "dream": v.decode(film_dream.z[0, film_pick])[:, -1],
    },
    "The same pushes, in reality and in a dream",
    [f"+{k + 1}" for k in film_pick],
)
