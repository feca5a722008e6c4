film_long = memory.last - memory.first >= min(settings.m.context + 30, max(random_lengths))  # (N,)
film_end = int(memory.last[film_long][0])  # of the first random episode that is long enough
film_rows = torch.arange(
    max(int(memory.first[film_end]), film_end - 30), film_end + 1, device=DEVICE
)  # (T + 1,)
with torch.no_grad():
    film_steps = stacked(
        list(
            dream(
                world.m,
                world.states(film_rows[:1]),
                given(memory.actions[film_rows][None]),
                len(film_rows) - 1,
            )
        )
    )
films = {
    "real": memory.stack(film_rows[1:])[:, -1].cpu(),
    "dream": v.decode(film_steps.z[0])[:, -1].cpu(),
}  # (T, 64, 64) each
film_pick = np.unique(np.linspace(0, len(film_rows) - 2, 7).astype(int))
show_pictures(
    {name: film[film_pick] for name, film in films.items()},
    "The same pushes, in reality and in a dream",
    [f"+{k + 1}" for k in film_pick],
)
film_data = film_of({name: film[:, v.band] for name, film in films.items()})
display(Picture(data=film_data, format="png", width=384))
