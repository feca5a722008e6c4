"""How fast is this machine at each part, and what does a busy neighbour cost? Prints one table; run
it alone: `python tests/benchmark.py`.

Random weights and a handful of real frames are enough: speed does not depend on what was learned.
Medians, measured side by side in one run."""

import itertools
import multiprocessing
import statistics
import tempfile
import time

from conftest import load_notebook

nb = load_notebook()
torch = nb.torch
nb.DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work, times: int = 5) -> float:
    """The median time of some calls, after one to warm up."""
    work()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        if nb.DEVICE.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def training_step(train, *inputs, steps: int, **settings) -> float:
    """Seconds per training step of a stage: the time of 2n steps minus that of n, so that building
    the model and the first look at the clock do not count."""

    def run(count: int) -> float:
        begin = time.perf_counter()
        train(
            nb.Progress(nb.Path(tempfile.mkdtemp())),
            *inputs,
            **settings
            | {name: value.but(steps=count) for name, value in settings.items() if name in steers},
        )
        return time.perf_counter() - begin

    steers = ("practice",) if settings.get("practice") else ("v", "m")
    return statistics.median((run(2 * steps) - run(steps)) / steps for _ in range(3))


def fixed_threads(count: int):
    """Something in place of `Pace` that never asks the clock."""

    class Fixed:
        def __init__(self, device) -> None:
            self.count = count

        def look(self) -> None:
            """There is nothing to look at."""

        def step(self, work):
            """Do one step."""
            with nb.threads(self.count):
                return work()

    return Fixed


def busy() -> None:
    """A neighbour that never rests."""
    for _ in itertools.count():
        pass


def main() -> None:
    """Measure everything once and print it."""
    torch.set_float32_matmul_precision("high")
    settings, cores = nb.make_settings("full"), torch.get_num_threads()
    c = settings.c
    print(f"{'machine':44s} {nb.DEVICE.type}, {cores} threads, torch {torch.__version__}")
    a, b = torch.randn(2048, 2048, device=nb.DEVICE), torch.randn(2048, 2048, device=nb.DEVICE)
    peak = 2 * 2048**3 / seconds(lambda: a @ b)
    print(f"{'matrix product 2048³':44s} {peak / 1e9:,.0f} GFLOP/s")
    env = nb.pixel_cartpole()
    real = (
        seconds(lambda: [env.reset(seed=k) if k % 20 == 0 else env.step(k % 2) for k in range(200)])
        / 200
    )
    print(f"{'real steps, rendered, one environment':44s} {1 / real:,.0f} a second")

    episodes = nb.play(nb.random_policy, nb.seeds_for("random", 0, 40), 8)
    memory = nb.Memory(episodes, settings.v.max_shift, nb.DEVICE)
    once = training_step(nb.train_v, memory, steps=15, v=settings.v, seed=0)
    elbo = nb.elbo

    def twice_encoded(v, x, noise, kl_weight):
        """The ELBO as it was: its codes were encoded once more for the law."""
        terms, _ = elbo(v, x, noise, kl_weight)
        return terms, v.encode(x)[0]

    nb.elbo = twice_encoded
    before = training_step(nb.train_v, memory, steps=15, v=settings.v, seed=0)
    nb.elbo = elbo
    print(
        f"{'V, milliseconds per step':44s} {1e3 * once:,.0f}; with codes encoded twice "
        f"{1e3 * before:,.0f}, {before / once:.2f} times as long"
    )

    v = nb.frozen(nb.V(settings.v))
    codes = nb.Codes(**nb.encode_memory(None, memory, v, copies=2, max_shift=settings.v.max_shift))
    pace = nb.Pace
    for name, practice in (("M, teacher forcing", None), ("M, practice", settings.practice)):
        alone, beside = {}, {}
        for taken in (alone, beside):
            neighbour = multiprocessing.get_context("spawn").Process(target=busy, daemon=True)
            if taken is beside:
                neighbour.start()
                time.sleep(3)
            for how, kind in (("the clock decides", pace), ("all threads", fixed_threads(cores))):
                nb.Pace = kind
                few = 15 if taken is alone or how == "the clock decides" else 4
                taken[how] = training_step(
                    nb.train_m, memory, codes, steps=few, m=settings.m, practice=practice, seed=0
                )
            nb.Pace = pace
            if taken is beside:
                neighbour.terminate()
        for how in alone:
            print(
                f"{f'{name}, {how}':44s} {1e3 * alone[how]:,.0f} ms per step alone, "
                f"{1e3 * beside[how]:,.0f} beside one busy process: {beside[how] / alone[how]:.1f} "
                "times"
            )

    m = nb.frozen(nb.M(settings.v.latents, settings.m.hidden))
    world = nb.World(v, m, memory, codes, settings.m.context)
    many = c.population * c.rollouts
    starts, right = (
        world.recall(*world.moments(many, torch.Generator().manual_seed(0))),
        torch.ones(many, c.horizon, device=nb.DEVICE),
    )
    with torch.no_grad():
        rate = (
            many
            * c.horizon
            / seconds(lambda: [*nb.dream(m, starts, nb.given(right), c.horizon)][-1].z.cpu())
        )
    products = 2 * (m.lstm.weight_ih.numel() + m.lstm.weight_hh.numel() + m.change.weight.numel())
    print(
        f"{'dream':44s} {rate:,.0f} steps a second, {100 * rate * products / peak:.0f} % of the "
        f"matrix product's rate, {rate * real:,.0f} times the real ones"
    )


if __name__ == "__main__":
    main()
