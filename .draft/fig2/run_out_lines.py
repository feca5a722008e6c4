words = ["a coin pushes"] * len(wake_coins) + ["C pushes"] * len(wake_episode.frames)
bands = {name: film[:, v.band] for name, film in wake_films.items()}
write_whole(OUT / "film.png", film_of(bands, words))
