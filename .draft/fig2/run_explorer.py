if switch("WM_NO_WIDGETS"):  # no front end listens, and a widget would wait for its answer
    show_code(v, calm, knobs, **{"θ (rad)": 0.2})
else:
    explorer = widgets.interactive(
        lambda **turns: show_code(v, calm, knobs, **turns),
        **{name: (-far, far, far / 20) for name, far in reach.items()},
    )
    display(explorer)
