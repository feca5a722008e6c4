@torch.no_grad()
def pairs_ahead(world: World, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(z, h) at PAIRS recorded moments and LOOK_AHEAD steps later, (S, Z + H) each, and the pushes
    between, (S, K), −1 or +1."""
    rows, copies = world.moments(PAIRS, generator, LOOK_AHEAD)  # (S,) each
    now, later = (features(world.states(at, copies)) for at in (rows, rows + LOOK_AHEAD))
    between = rows[:, None] + torch.arange(LOOK_AHEAD, device=rows.device)  # (S, K)
    return now, later, 2.0 * world.codes.actions[copies[:, None], between].flatten(1) - 1


def search_space(world: World, c: CSettings, generator: torch.Generator) -> Axes:
    """Where C is searched in one state of knowledge. It asks the recorded data only, never the true
    state."""
    return lawful_axes(*pairs_ahead(world, generator), c.axes, c.growing)
