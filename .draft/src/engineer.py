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


# %% [markdown]
# ### A service that keeps nothing
#
# Two servers shall be able to share the work, and either may die. So neither may remember anything about a robot. What M needs of the past, the last sixteen codes and pushes, travels with the robot itself, in a **token**: the server hands it out with each push and gets it back with the next pictures. The robot could change it; a signature (HMAC, with a key that only the servers know) shows if it did. A token also says when it was made and for which M.

# %% tags=["define", "extra"]
import base64
import hmac

MAX_AGE = 60.0  # seconds for which a token is good


class Past(NamedTuple):
    """What M needs of the past of B robots."""

    z: Tensor  # (B, C, Z) the last codes, as V saw them or, where the guard didn't believe it, as M imagined them
    a: Tensor  # (B, C) the pushes after them
    known: Tensor  # (B, C) False: that was before the robot's first picture
    blind: Tensor  # (B,) steps since a picture was last believed


class Seal:
    """Pasts as opaque tokens: bytes, signed, in base64. Whoever has the key can make them and read them."""

    def __init__(self, key: bytes, world: World) -> None:
        """`key`: the servers' secret. `world`: tokens are good for its V and M only."""
        c, z = world.context, world.codes.mu.shape[-1]
        self.key, self.model = key, hashlib.sha256(repr([code.sum().item() for code in world.v.state_dict().values()]).encode()).digest()[:8]
        self.form = np.dtype([("time", "<f8"), ("model", "V8"), ("z", "<f2", (c, z)), ("a", "u1", c), ("known", "?", c), ("blind", "u1")])

    def close(self, past: Past) -> list[str]:
        """One token per robot."""
        records = np.zeros(len(past.z), self.form)
        records["time"], records["model"] = time.time(), np.void(self.model)
        for name, part in past._asdict().items():
            records[name] = part.cpu().numpy()
        return [base64.b64encode(hmac.digest(self.key, record.tobytes(), "sha256") + record.tobytes()).decode() for record in records]

    def open(self, token: str) -> np.void:
        """The record in a token; an empty token is a robot's first. ValueError: forged, foreign, or too old."""
        if not token:
            return np.zeros((), self.form)
        data = base64.b64decode(token, validate=True)
        if len(data) != 32 + self.form.itemsize or not hmac.compare_digest(hmac.digest(self.key, data[32:], "sha256"), data[:32]):
            raise ValueError("this token was not made here, or it was changed")
        record = np.frombuffer(data[32:], self.form)[0]
        if record["model"].tobytes() != self.model:
            raise ValueError("this token was made for another model")
        if time.time() - record["time"] > MAX_AGE:
            raise ValueError(f"this token is more than {MAX_AGE:.0f} seconds old: begin anew, without a token")
        return record

    def past(self, tokens: list[str]) -> Past:
        """Tokens as one batch."""
        records = np.stack([self.open(token) for token in tokens])
        return Past(*(torch.tensor(records[name], dtype=kind, device=DEVICE) for name, kind in zip(Past._fields, (torch.float32, torch.float32, torch.bool, torch.int64))))


# %% [markdown]
# ### The guard
#
# A camera can lie: noise, a frozen picture, pictures in the wrong order. V would code them as it codes everything, and C would act on what comes out. But M has an expectation. Before each push the guard asks two questions. **Is this what M expected?** The squared distance between the code that V sees and the one that M foresaw, in units of M's own doubt, is about 1 per latent for an honest camera. **Does what follows look real?** The guard dreams a few steps under the chosen push, before it is executed, and asks the verifier of part 9. If either answer is bad, the robot gets what it asked for: a refusal, or a push from the *dream*. There M goes on from its expectation, as if the eyes were shut, and C acts on that. **Predict:** how long can C balance with its eyes shut?

# %% tags=["define", "extra"]
AHEAD = 3  # steps that the guard dreams before a push is executed
LONGEST_BLIND = 40  # steps; then a dream is worth less than any picture


class Driver:
    """V, M, C, the verifier and a guard as one function of pictures and pasts."""

    def __init__(self, world: World, weights: Tensor, verifier: Verifier, limits: tuple[float, float]) -> None:
        """`limits`: the largest surprise and the smallest confidence with which a picture is believed."""
        self.world, self.weights, self.verifier, self.limits = world, weights, verifier, limits

    @torch.no_grad()
    def __call__(self, frames: Tensor, past: Past, guarded: Tensor) -> tuple[Tensor, Past, dict[str, Tensor]]:
        """Pushes (B,), the new pasts, and what the guard thinks: `surprise`, `confidence`, `believed`, (B,) each.

        `frames` (B, 4, 64, 64) uint8, oldest first; `guarded` (B,): False: whatever the guard thinks, the picture is believed."""
        m, seen = self.world.m, self.world.v.encode(frames.float() / 255)[0]  # (B, Z)
        new = ~past.known[:, -1]  # (B,) a first picture: there is nothing to compare it with
        z = torch.where(new[:, None, None], seen[:, None], past.z)  # (B, C, Z)
        now = remembered(m, torch.cat([z, seen[:, None]], 1), past.a, past.known)
        blind = (past.blind + 1)[:, None].to(seen.dtype)  # (B, 1)
        expected = now._replace(z=now.before + m.change(now.h), blind=blind)  # what M foresaw
        surprise = ((seen - expected.z).square() * (-m.says(expected).log_var).exp()).mean(1)  # (B,)
        ahead = dream(m, now, controller(self.weights), AHEAD)
        confidence = torch.stack([self.verifier(step.state) for step in ahead]).amin(0).sigmoid()  # (B,)
        honest = (surprise <= self.limits[0]) & (confidence >= self.limits[1])
        believed = new | honest | ~guarded | (past.blind >= LONGEST_BLIND)  # (B,)
        state = State(*(torch.where(believed[:, None], a, b) for a, b in zip(now, expected)))
        push = act(self.weights[None], features(state)[None])[0]  # (B,)
        after = Past(torch.cat([z[:, 1:], state.z[:, None]], 1), torch.cat([past.a[:, 1:], push[:, None]], 1),
                     torch.cat([past.known[:, 1:], torch.ones_like(new)[:, None]], 1), torch.where(believed, 0, past.blind + 1))  # fmt: skip
        return push, after, {"surprise": surprise, "confidence": confidence, "believed": believed}
