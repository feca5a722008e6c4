import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
t = b.source("define-memory")
i = t.index("        self.device, self.max_shift"); j = t.index("    def __len__")
k = t.index("    def draw"); l = t.index("    def stack")
b.set("define-memory", t[:i] + '''        self.device, self.max_shift = device, max_shift

        def flat(parts: Iterable[np.ndarray]) -> Tensor:
            """Arrays of all episodes, laid end to end on the device."""
            return torch.from_numpy(np.concatenate(list(parts))).to(device)

        # Padded at both sides with its own edge column, so that a sideways shift is only another
        # choice of columns.
        columns = torch.arange(-max_shift, FRAME_SIZE + max_shift).clamp(0, FRAME_SIZE - 1)
        frames = flat(episode.frames[:, :, columns.numpy()] for episode in episodes)
        self.padded = frames  # (N, 64, 64 + 2·shift) uint8
        # The last frame of an episode has no action; it gets 0 and is never used as the start of a
        # step.
        self.actions = flat(np.append(episode.actions, 0) for episode in episodes)  # (N,)
        self.rewards = flat(np.append(episode.rewards, 0) for episode in episodes).float()  # (N,)
        self.states = flat(episode.states for episode in episodes)  # (N, 4)
        self.rows = torch.arange(len(frames), device=device)  # (N,)
        lengths = [len(episode.frames) for episode in episodes]
        self.lengths = torch.tensor(lengths, device=device)  # (E,)
        self.episode = torch.repeat_interleave(self.lengths)  # (N,)
        ends = self.lengths.cumsum(0)  # (E,)
        self.first = (ends - self.lengths)[self.episode]  # (N,) first row of the row's episode
        self.last = (ends - 1)[self.episode]  # (N,) its last row
        # A pole that fell counts as an end; a clock that ran out (truncation) does not.
        terminated = torch.tensor([episode.terminated for episode in episodes], device=device)
        self.done = terminated[self.episode] & (self.rows == self.last)  # (N,)
        is_own = self.episode >= len(episodes) - own  # (N,)
        shares = [1 / part.sum().clamp(min=1) for part in (is_own, ~is_own)]
        self.weight = torch.where(is_own, *shares).double()  # (N,) of a row in a draw

''' + t[j:k] + '''    def draw(self, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` of some rows at random, by their weights; the generator lives on the CPU."""
        weight = self.weight[rows].cpu()
        pick = torch.multinomial(weight, count, replacement=True, generator=generator)
        return rows[pick.to(self.device)]

''' + t[l:])
t = b.source("define-memory")
i = t.index("        back = torch.arange(STACK - 1")
b.set("define-memory", t[:i] + '''        back = torch.arange(STACK - 1, -1, -1, device=self.device)
        rows = torch.maximum(rows[:, None] - back, self.first[rows][:, None])  # (B, 4)
        columns = torch.arange(FRAME_SIZE, device=self.device) + self.max_shift
        columns = columns.expand(len(rows), -1)  # (B, 64)
        if shift is not None:
            columns = columns + shift[:, None]
        if mirror is not None:
            columns = torch.where(mirror[:, None], columns.flip(-1), columns)
        wide = self.padded[:, band][rows]  # (B, 4, 64, 64 + 2·shift) uint8
        columns = columns[:, None, None].expand(-1, STACK, wide.shape[2], -1)  # (B, 4, 64, 64)
        return wide.gather(3, columns).float() / 255  # (B, 4, 64, 64)''')
s("define-contextlib", "from collections.abc import Callable\n", "from collections.abc import Callable, Iterable\n")

# the checkpoint
t = b.source("define-load-checkpoint")
i = t.index("def load_checkpoint"); j = t.index("def find_pretrained")
b.set("define-load-checkpoint", t[:i] + '''def load_checkpoint(path: Path, settings: Settings) -> dict[str, Stage]:
    """The stages that `save_checkpoint` wrote, by name: tensors and JSON, nothing in the file is
    ever run. A foreign file, or one of other sizes or of another room, is a ValueError."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"], parse_float=finite, parse_constant=finite)
            values = about["values"] | {name: file.get_tensor(name) for name in file.keys()}
        results: dict[str, dict] = {}
        for full_name, value in values.items():
            *places, last = full_name.split("/")
            place = results
            for part in places:
                place = place.setdefault(part, {})
            place[last] = value
        theirs, ours = leaves(Settings.model_validate(about["settings"])), leaves(settings)
        stages = {
            name: Stage(name, path.parent, float(seconds), results[name])
            for name, seconds in about["seconds"].items()
        }
    except Exception as error:
        raise ValueError(
            f"{path.name} is not a checkpoint of this notebook ({type(error).__name__}: "
            f"{str(error)[:200]})"
        ) from error
    for name in SHAPES:
        if theirs[name] != ours[name]:
            raise ValueError(
                f"{path.name} was made with {name} = {theirs[name]} (the settings ask for "
                f"{ours[name]})"
            )
    print(f"V, M and C come from our own run, trained with seed {theirs['seed']}")
    return stages


''' + t[j:])
t = b.source("define-load-checkpoint")
i = t.index("SHAPES = ("); j = t.index("# With V, M and C at hand")
b.set("define-load-checkpoint", t[:i] + '''# What V, M and C are made for: a checkpoint of other values is of no use.
SHAPES = "v.latents v.widths m.hidden room.gravity room.pole room.force".split()
''' + t[j:])
b.save()
