shifted = random_views(len(sampled_rows), settings.v.max_shift, torch.Generator(), DEVICE)
shifted_codes, _ = encode_rows(v, memory, sampled_rows, *shifted)  # (4096, Z)
# The probe turned round: from a state to its code.
to_code = Probe(true_states(memory, sampled_rows, *shifted), shifted_codes)
per_unit = (to_code.weight / to_code.scale[:, None]).float()  # (4, Z)
busiest = nats_of.argsort(descending=True)[:3].tolist()
names = ["x (m)", "ẋ (m/s)", "θ (rad)", "θ̇ (rad/s)", *(f"z[{j}]" for j in busiest)]
# What one unit, or one deviation of a dimension, changes in z.
knobs = dict(zip(names, torch.cat([per_unit, torch.diag(spread.sqrt())[busiest]])))  # (Z,) each
reach = dict(zip(names, (0.5, 1.0, 0.2, 2.0, 2.0, 2.0, 2.0)))
calm = z_recorded[memory.states.square().sum(1).argmin()]  # (Z,) upright, at rest, in the middle
turns = torch.linspace(-1, 1, 7, device=DEVICE)[:, None]  # (7, 1)
walks = {name: v.decode(calm + turns * reach[name] * knobs[name]) for name in names[:5:2]}
show_pictures(
    {f"{name}, ±{reach[name]}": drawn[:, -1] for name, drawn in walks.items()},
    "V draws walks through z: x, θ, one dimension",
    across=slice(16, 48),
)
x_ends = z_probe(v.encode(walks["x (m)"])[0])[:, 0]  # (7,) read from V's own drawings
print(
    f"asked for x = ±{reach['x (m)']} m, V draws a cart at {x_ends[0]:+.2f} and {x_ends[-1]:+.2f} m"
    f"; at the end of V's training {number(v_log.get('broken', [math.nan])[-1], 2)} of a code's "
    "change under a shift broke the law"
)
