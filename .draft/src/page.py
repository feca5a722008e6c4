# %% [markdown]
# ## 14 · Take the pole yourself
#
# A dream is easiest to judge from inside. The next cell writes `dream.html`, one file of about a megabyte: V's decoder, M, the verifier and C in half precision, and two hundred lines of plain JavaScript that do what the PyTorch code above does. It needs no kernel and no network, so it works on a phone as it does here. Hold a button or an arrow key, and keep the pole up. Then press *wake up*: the true physics, from the same state and under the same pushes, runs beside the dream.
#
# **Predict:** for how many steps will your dream and reality agree? And whose pole falls first?

# %% cellView="form" tags=["define", "extra"]
# @title The page: its template
PAGE = r"""__PAGE__"""


# %% tags=["define", "extra"]
import base64


def without_norm(convolution: nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights (C, O, 4, 4) and biases (O,) that do in one step what a transposed convolution and the batch norm behind it do, when V is not in training."""
    size = norm.weight / (norm.running_var + norm.eps).sqrt()  # (O,)
    return convolution.weight * size[:, None, None], (convolution.bias - norm.running_mean) * size + norm.bias


def page_numbers(world: World, verifier: Verifier, weights: Tensor, probe: Probe, starts: State) -> dict[str, Tensor]:
    """All numbers that the page computes with, by name. `probe`: reads θ from z. `starts`: states (S, …) in which a dream can begin."""
    found = {f"{part}.{kind}": value for part in ("gates", "change", "log_var", "done") for kind, value in getattr(world.m, part).named_parameters()}
    found |= {name: value for name, value in verifier.named_parameters()} | {"look.mean": verifier.mean, "look.scale": verifier.scale}
    *blocks, last = world.v.decoder
    for layer, block in enumerate(blocks):
        found[f"decoder.{layer}.weight"], found[f"decoder.{layer}.bias"] = without_norm(block[0], block[1])
    found |= {"decoder.3.weight": last.weight[:, -1:], "decoder.3.bias": last.bias[-1:]}  # the newest of the four frames
    found |= {"from_z.weight": world.v.from_z.weight, "from_z.bias": world.v.from_z.bias, "mean_picture": world.v.mean_picture}
    slope = torch.rad2deg(probe.weight[:, 2] / probe.scale)  # (Z,) degrees per unit of z
    found |= {"probe.weight": slope, "probe.bias": torch.rad2deg(probe.offset[2:3]) - (slope * probe.mean).sum()}
    found |= {"c.weight": weights[:-1], "c.bias": weights[-1:], "starts": torch.cat([starts.z, starts.before, starts.h, starts.c], 1)}
    return found


def write_page(file: Path, numbers: dict[str, Tensor], world: World, states: Tensor, noisy: Tensor) -> None:
    """Write the page with its numbers inside, in half precision. `states` (S, 4): the true ones of the starts, for the physics. `noisy` (Z,): where τ adds noise."""
    flat = {name: value.detach().cpu().half().flatten().numpy() for name, value in numbers.items()}
    data = {"latents": len(noisy), "hidden": world.m.hidden, "change": M.CHANGE, "doubt": M.DOUBT, "band": BAND.start, "scale": PIXEL_SCALE,
            "states": states.tolist(), "noisy": noisy.tolist(), "sizes": [(name, len(part)) for name, part in flat.items()],
            "weights": base64.b64encode(np.concatenate(list(flat.values())).astype("<f2").tobytes()).decode()}  # fmt: skip
    text = PAGE.replace("__COUNT__", f"{sum(map(len, flat.values())):,}").replace("__DATA__", json.dumps(data))
    write_whole(file, text.encode())


# %% tags=["run", "extra"]
page_rows = calm_moments(world, settings.seed, 12)
page_theta = Probe(codes.mu[0], memory.states)  # fitted on pictures as the game shows them: neither shifted nor mirrored
write_page(OUT / "dream.html", page_numbers(world, verifier, ship, page_theta, world.states(page_rows)), world, memory.states[page_rows], noisy)
print(f"dream.html: {(OUT / 'dream.html').stat().st_size / 1e6:.2f} MB")

# %% tags=["run", "extra", "widget"]
if not switch("WM_NO_WIDGETS"):  # a megabyte is too much for a saved notebook
    framed = (OUT / "dream.html").read_text().replace("&", "&amp;").replace('"', "&quot;")
    display(HTML(f'<iframe title="the dream to play with" srcdoc="{framed}" width="100%" height="820" style="border:0"></iframe>'))
