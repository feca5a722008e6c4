film_coins = torch.randint(2, (10,), generator=torch.Generator().manual_seed(14)).to(DEVICE)
film_episode, wake_films = two_lives(world, controller(ship), film_coins, 80, settings.seed)
film_length = len(wake_films["what M dreams"])
film_looks = [k for k in (1, 5, 10, 15, 20, 30, 50, 80) if k <= film_length]
show_pictures(
    {name: film[[k - 1 for k in film_looks]] for name, film in wake_films.items()},
    "A coin pushes ten times, then C again: in reality and in its dream",
    [f"+{k}" for k in film_looks],
)
film_leans = np.abs(np.degrees(film_episode.states[-film_length:, 2]))  # (T,)
print(
    f"the real pole leans up to {film_leans.max():.1f}°, and {film_leans[-1]:.1f}° at the end, "
    f"{film_length} steps after the first coin"
)
