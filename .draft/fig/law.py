law_now, law_later, law_pushes = (
    part.double() for part in pairs_ahead(world, torch.Generator().manual_seed(settings.seed))
)
law_x, law_y = without(law_pushes, law_now), without(law_pushes, law_later)  # (S, Z + H) each
law_panels = []
for law_name, law_read, law_place in (
    ("obeys a law", law_y, 0),
    ("grows", law_x, 1),
    ("neither", law_y, -1),
):
    from_x, from_y = inverse_root(law_x), inverse_root(law_read)
    told, _, asked = torch.linalg.svd((law_y @ from_y).T @ (law_x @ from_x))  # later from now
    law_pair = torch.stack(
        [law_x @ from_x @ asked[law_place], law_y @ from_y @ told[:, law_place]]
    ).cpu()  # (2, S)
    law_panels.append(
        {
            "lines": {"_": (*law_pair[:, :1000], ".")},
            "title": f"{law_name}: r = {float(torch.corrcoef(law_pair)[0, 1]):.2f}",
            "xlabel": "now (deviations)",
            "ylabel": f"{LOOK_AHEAD} steps later",
            "xlim": (-4, 4),
            "ylim": (-12, 12),
        }
    )
plot(*law_panels, size=(3.5, 3.3))
