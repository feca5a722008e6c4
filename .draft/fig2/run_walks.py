shifted = random_views(len(sampled_rows), settings.v.max_shift, torch.Generator(), DEVICE)
# The probe turned round: from a state to its code.
to_code = Probe(
    true_states(memory, sampled_rows, *shifted), encode_rows(v, memory, sampled_rows, *shifted)[0]
)
busiest = nats_of.argsort(descending=True)[:3].tolist()
names = ["x (m)", "ẋ (m/s)", "θ (rad)", "θ̇ (rad/s)", *(f"z[{j}]" for j in busiest)]
per_unit = [*(to_code.weight / to_code.scale[:, None]).float(), *spread.sqrt().diag()[busiest]]
knobs = dict(zip(names, per_unit))  # what one unit, or one deviation, changes in z, (Z,) each
reach = dict(zip(names, (0.5, 1.0, 0.2, 2.0, 2.0, 2.0, 2.0)))
calm = z_recorded[memory.states.square().sum(1).argmin()]  # (Z,) upright, at rest, in the middle
turns = torch.linspace(-1, 1, 7, device=DEVICE)[:, None]  # (7, 1)
walks = {
    f"{name}, ±{reach[name]}": v.decode(calm + turns * reach[name] * knobs[name])[:, -1]
    for name in names[:5:2]
}  # (7, 64, 64) each
show_pictures(walks, "V draws walks through z: x, θ, one dimension", across=slice(16, 48))
