*law_pairs, law_pushes = pairs_ahead(world, torch.Generator().manual_seed(settings.seed))
law_x, law_y = (
    without(law_pushes.double(), part.double()).cpu() for part in law_pairs
)  # (S, Z + H) each
from_x, law_panels = inverse_root(law_x), []
law_now, lawful, grown = law_x @ from_x, law_y @ inverse_root(law_y), law_y @ from_x  # deviations
for law_name, law_later, law_place in (
    ("obeys a law", lawful, 0),
    ("grows", grown, 0),
    ("grows", grown, 1),
    ("neither", lawful, -1),
):
    law_told, law_slopes, law_asked = torch.linalg.svd(law_later.T @ law_now / len(law_now))
    law_pair = (
        law_now[:1000] @ law_asked[law_place],
        law_later[:1000] @ law_told[:, law_place],
    )  # (1000,) each
    law_panels.append(
        {
            "lines": {"_": (*law_pair, ".")},
            "title": f"{law_name}: slope {law_slopes[law_place]:.2f}",
            "xlabel": "now",
            "ylabel": f"{LOOK_AHEAD} steps later",
            "xlim": (-4, 4),
            "ylim": (-12, 12),
        }
    )
plot(*law_panels, title="Combinations of (z, h), in deviations", size=(2.9, 3.2))
