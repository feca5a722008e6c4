def jostled(choose: Choose, coins: Iterable[Tensor | None]) -> Choose:
    """Who acts in one life: the coins, (1,) each, as long as there are any; then `choose`, and also
    where one of them is None."""
    coins = iter(coins)

    def push(k: int, state: State) -> Tensor:
        """The push now, (1,)."""
        coin = next(coins, None)
        return choose(k, state) if coin is None else coin

    return push


@torch.no_grad()
def two_lives(
    world: World, choose: Choose, coins: Tensor, steps: int, seed: int
) -> tuple[Episode, dict[str, Tensor]]:
    """A real episode in which some coins (P,) push after a calm beginning, and then C again; and
    from there on T films (T, 64, 64): it, V's drawing of it, and the dream that M begins where the
    first coin falls. There C sees the dream only, so the pushes are its own."""
    calm, thrown = world.context, coins.split(1)
    agent = Agent(world, jostled(choose, [None] * calm + [*thrown]))
    episode = play(agent, seeds_for("check", seed, 1), 1, steps=calm + steps)[0]
    real = world.looking_at([episode])
    start, *rows = real.memory.rows[min(calm, len(episode.actions) - 1) :].split(1)
    dreamed = dream(world.m, real.states(start), jostled(choose, thrown), len(rows))
    rows = torch.cat(rows)  # (T,)
    return episode, {
        "what really happens": real.memory.stack(rows)[:, -1],
        "what V redraws": world.v.decode(real.codes.mu[0, rows])[:, -1],
        "what M dreams": world.v.decode(torch.cat([step.state.z for step in dreamed]))[:, -1],
    }
