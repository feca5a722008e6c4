# @title An explorer of z
import ipywidgets as widgets


def show_code(v: V, z: Tensor, knobs: dict[str, Tensor], **turns: float) -> None:
    """Draw the observation of a code z (Z,), after so many turns of some knobs, (Z,) each."""
    z = z + sum(turn * knobs[name] for name, turn in turns.items())  # (Z,)
    show_pictures({"drawn": v.decode(z[None])[0]}, "", ["t − 3", "t − 2", "t − 1", "t"])
