# %% [markdown]
# ## 10 · The engineer's road: quantise, guard, serve, scale
#
# V, M and C are trained. Suppose a robot shall use them: it sends its pictures over a network, and gets a push back. What can be made smaller? What if the camera lies? How many robots can two cores serve? This part starts from the trained parts alone, so it can be run after the pretrained checkpoint, too.
#
# `ROADS` in the next cell says which of the last parts are computed. The others draw what they say from `assets/experiments/`, which a full pass over them has left there.

# %% cellView="form" tags=["run", "extra"]
# @title Which roads are computed? (none: they draw their tables from assets/experiments)
ROADS = os.environ.get("WM_ROADS", "all" if profile_name(PROFILE) == "smoke" else "none")  # @param ["none", "engineer", "all"] {allow-input: true}
live = {"engineer"} if ROADS == "all" else set(ROADS.replace(",", " ").split()) - {"none"}
road_libraries = {"fastapi": "fastapi", "uvicorn": "uvicorn", "aiohttp": "aiohttp", "prometheus_client": "prometheus-client"}
road_libraries |= {"ray": "ray[serve]"} if "engineer" in live else {}
road_missing = [package for name, package in road_libraries.items() if importlib.util.find_spec(name) is None]
if road_missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *road_missing], check=True)
print(f"computed here: {', '.join(sorted(live)) or 'nothing'}; missing libraries: {', '.join(road_missing) or 'none'}")

# %% [markdown]
# ### INT8: a quarter of the bytes
#
# A weight in 8 bits instead of 32: each linear layer gets one scale, and each of its weights becomes an integer from −127 to 127. *Dynamic* quantisation does the same to what flows in, batch by batch, so no calibration data are needed. It covers the linear layers, and M's gates are one; V's convolutions stay float. (PyTorch has announced that this function will go; `torchao` takes its place.) **Predict:** M moves 64 latents a little at each of 30 steps. Will rounding errors add up?

# %% tags=["define", "extra"]
import copy
import io


def quantised(module: nn.Module) -> nn.Module:
    """A copy on the CPU whose linear layers compute in INT8; in float, and with a sentence, where PyTorch can't any more."""
    module, quantise = copy.deepcopy(module).cpu(), getattr(torch.ao.quantization, "quantize_dynamic", None)
    if quantise is None:
        print("this PyTorch has no quantize_dynamic any more: served in float")
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is announced to go
        return quantise(module, {nn.Linear}, dtype=torch.qint8)


def megabytes(*modules: nn.Module) -> float:
    """What the weights take when saved."""
    torch.save([module.state_dict() for module in modules], place := io.BytesIO())
    return place.tell() / 1e6
