def jostled(choose: Choose, coins: Tensor) -> Choose:
    """Who acts in one life: as many pushes as there are coins (P,) are theirs, then `choose`
    acts."""
    left = iter(coins.split(1))

    def push(k: int, state: State) -> Tensor:
        """The push now, (1,)."""
        coin = next(left, None)
        return choose(k, state) if coin is None else coin

    return push
