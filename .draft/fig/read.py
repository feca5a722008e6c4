depths = range(2 * settings.m.context + 1)
deep_rows = windows(memory, len(depths), settings.evaluate.stretches)[:, -1]  # (S,)
deep_truth = memory.states[deep_rows]
deep_errors = [
    median((zh_probe(features(world._replace(context=k).states(deep_rows))) - deep_truth).abs())
    / deep_truth.std(0)
    for k in depths
]  # (4,) each
plot(
    {
        "lines": {
            name: (depths, errors)
            for name, errors in zip(STATE_UNITS, torch.stack(deep_errors, 1).cpu())
        }
        | {f"M reads {settings.m.context}": (2 * [settings.m.context], (0, 0.6), "k-")},
        "xlabel": "real steps that M has read (20 ms each)",
        "ylabel": "median |error| (deviations)",
        "title": "The velocities must be remembered",
    },
    size=(7.5, 3.4),
)
