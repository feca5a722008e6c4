words = ["a coin pushes"] * len(coins) + ["C pushes"] * len(wake_episode.actions)
write_whole(OUT / "film.png", film_of(wake_films, words))
