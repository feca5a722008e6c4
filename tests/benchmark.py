"""How fast is this machine at each part? Prints one table; run it alone: `python tests/benchmark.py`.

Random weights and a handful of real frames are enough: speed does not depend on what was learned. Medians of five runs.
"""

import statistics
import tempfile
import time

from conftest import load_notebook

nb = load_notebook()
torch = nb.torch
nb.DEVICE = nb.choose_device()


def seconds(work) -> float:
    """The median time of five calls, after one to warm up."""
    work()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        work()
        if nb.DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def matmul_peak(size: int = 2048) -> float:
    """Multiply-adds, counted as two operations, per second in a square float32 product."""
    a, b = torch.randn(size, size, device=nb.DEVICE), torch.randn(size, size, device=nb.DEVICE)
    return 2 * size**3 / seconds(lambda: a @ b)


def training_rate(train, *inputs, steps: int, settings) -> float:
    """Training steps per second of a stage: the time of 2n steps minus that of n, so that building the model does not count."""

    def run(count: int) -> float:
        begin = time.perf_counter()
        train(nb.Progress(nb.Path(tempfile.mkdtemp())), *inputs, **settings(count))
        return time.perf_counter() - begin

    run(steps)
    return statistics.median(steps / (run(2 * steps) - run(steps)) for _ in range(3))


def main() -> None:
    """Measure everything once and print it."""
    torch.set_float32_matmul_precision("high")
    settings = nb.make_settings("full")
    c = settings.c
    rows = [("machine", f"{nb.hardware_name(nb.DEVICE)}, {torch.get_num_threads()} threads, torch {torch.__version__}")]
    peak = matmul_peak()
    rows.append(("matrix product 2048³", f"{peak / 1e9:,.0f} GFLOP/s"))
    rows.append(("real steps, rendered", f"{nb.real_speed(300):,.0f} a second, one environment"))

    episodes = nb.play(nb.RandomPolicy(0), nb.seeds_for("random", 0, 40), 8)
    memory = nb.Memory(episodes, settings.v.max_shift, nb.DEVICE)

    def v_settings(count):
        return {"v": nb.dataclasses.replace(settings.v, steps=count), "law": settings.law, "seed": 0}

    rate = training_rate(lambda progress, memory, v, law, seed: nb.train_v_with_law(progress, memory, v, law, seed), memory, steps=20, settings=v_settings)
    rows.append(("V", f"{rate:,.1f} steps/s of {settings.v.batch} observations"))

    v = nb.V(settings.v).to(nb.DEVICE).eval().requires_grad_(False)
    latents = nb.Latents(**nb.encode_memory(None, memory, v, 2, settings.m.max_shift, True, 0))
    for name, practice in (("M, teacher forcing", False), ("M, practice", True)):

        def m_settings(count, practice=practice):
            return {"m": nb.dataclasses.replace(settings.m.practised if practice else settings.m, steps=count), "practice": practice, "seed": 0}

        rate = training_rate(nb.train_m, memory, latents, steps=20, settings=m_settings)
        length = settings.m.context + settings.m.alone if practice else settings.m.window
        rows.append((name, f"{rate:,.1f} steps/s of {settings.m.practice_batch if practice else settings.m.batch} × {length}"))

    m = nb.M(settings.v.latents, settings.m.hidden, settings.m.context).to(nb.DEVICE).eval().requires_grad_(False)
    starts = nb.find_starts(m, memory, latents, 512, torch.Generator().manual_seed(0))
    dreamer = nb.Dreamer(m, torch.ones(settings.v.latents, device=nb.DEVICE), 1.0)
    rate = nb.dream_speed(dreamer, starts, c.population * c.rollouts, c.horizon)
    products = 2 * sum(weight.numel() for weight, _ in dreamer.gates) + 2 * m.g.weight.numel()
    rows.append(("dream", f"{rate:,.0f} steps/s, {100 * rate * products / peak:.0f} % of the matrix product's rate"))
    for name, value in rows:
        print(f"{name:24s} {value}")


if __name__ == "__main__":
    main()
