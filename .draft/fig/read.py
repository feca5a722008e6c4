deep_rows = windows(memory, 2 * settings.m.context + 1, settings.evaluate.stretches)[:, -1]  # (S,)
deep_truth, depths = memory.states[deep_rows], range(2 * settings.m.context + 1)
deep_errors = torch.stack(
    [
        median((zh_probe(features(world._replace(context=k).states(deep_rows))) - deep_truth).abs())
        / deep_truth.std(0)
        for k in depths
    ],
    1,
).cpu()  # (4, depths)
plot(
    {
        "lines": {name: (depths, errors) for name, errors in zip(STATE_UNITS, deep_errors)}
        | {f"M reads {settings.m.context}": (2 * [settings.m.context], (0, 0.6), "k:")},
        "xlabel": "real steps that M has read (20 ms each)",
        "ylabel": "median |error| (deviations)",
        "title": "How h settles",
    },
    size=(7.5, 3.4),
)
