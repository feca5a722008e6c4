shifted = random_views(len(sampled_rows), settings.v.max_shift, torch.Generator(), DEVICE)
shifted_codes, _ = encode_rows(v, memory, sampled_rows, *shifted)  # (4096, Z)
# The probe turned round: from a state to its code.
to_code = Probe(true_states(memory, sampled_rows, *shifted), shifted_codes)
per_unit = (to_code.weight / to_code.scale[:, None]).float()  # (4, Z)
busiest = nats_of.argsort(descending=True)[:3].tolist()
names = ["x (m)", "ẋ (m/s)", "θ (rad)", "θ̇ (rad/s)", *(f"z[{j}]" for j in busiest)]
ways = torch.cat([per_unit, torch.diag(spread.sqrt())[busiest]])  # (7, Z) per unit or deviation
knobs, reach = dict(zip(names, ways)), dict(zip(names, (0.5, 1.0, 0.2, 2.0, 2.0, 2.0, 2.0)))
calm = z_recorded[memory.states.square().sum(1).argmin()]  # (Z,) upright, at rest, in the middle
turns = torch.linspace(-1, 1, 7, device=DEVICE)[:, None]  # (7, 1)
walks = {
    f"{name}, ±{reach[name]}": v.decode(calm + turns * reach[name] * knobs[name])
    for name in names[:5:2]
}  # (7, 4, 64, 64) each
show_pictures(
    {name: drawn[:, -1] for name, drawn in walks.items()},
    "V draws walks through z: along x, along θ, along one dimension",
)
for name, drawn in walks.items():
    x, _, theta, _ = z_probe(v.encode(drawn[[0, -1]])[0]).T.tolist()
    print(f"{name}: V sees x from {x[0]:+.2f} to {x[1]:+.2f} m, θ from {theta[0]:+.2f} to {theta[1]:+.2f} rad in its own drawings")
