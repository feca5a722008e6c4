"""Does every setting do its work? The notebook from nothing to its last cell, all roads computed,
three times: with every setting away from the smallest profile's value, with all of them at their
lower ends, and on the Moon with a long pole. `python tests/settings.py`; CI runs it, the tests do
not (it takes some minutes)."""

import math
import os
import sys
import tempfile
import time

import nbformat
from conftest import NOTEBOOK, ROOT, SMALLEST, load_notebook, own_sockets
from nbclient import NotebookClient

MOON = {"room.gravity": 1.62, "room.pole": 0.8}


def leaves(branch, name: str = ""):
    """(name, value, limits) of every setting below a branch."""
    for field, about in type(branch).model_fields.items():
        value = getattr(branch, field)
        if hasattr(type(value), "model_fields"):
            yield from leaves(value, f"{name}{field}.")
        else:
            limits = {
                end: getattr(limit, end)
                for limit in about.metadata
                for end in ("gt", "ge", "le")
                if hasattr(limit, end)
            }
            low = limits.get("ge", 1 if isinstance(value, int) else 1e-3)
            yield name + field, value, (low, limits.get("le", math.inf))


def elsewhere(value, default, ends: tuple):
    """A value that is neither the profile's nor the default, and not far away."""
    if isinstance(value, float):
        tries = (0.9 * value, 0.8 * value, 0.5, 0.4)
    else:
        tries = (value + 1, value + 2, value - 1)
    return next(
        other for other in tries if other not in (value, default) and ends[0] <= other <= ends[1]
    )


def overrides_of(nb) -> dict[str, str]:
    """The three runs: name -> overrides."""
    found = list(leaves(nb.make_settings("smoke")))
    defaults = {name: value for name, value, _ in leaves(nb.Settings())}
    away = {name: elsewhere(value, defaults[name], ends) for name, value, ends in found}
    low = {name: ends[0] for name, _, ends in found}
    return {
        kind: ",".join(f"{name}={value}" for name, value in values.items())
        for kind, values in {"away": away, "low": low, "moon": MOON}.items()
    }


def execute(kind: str, overrides: str) -> None:
    """One run. An error in a cell is an error here."""
    begin, notebook = time.time(), nbformat.read(NOTEBOOK, 4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=1200,
            resources={"metadata": {"path": str(ROOT)}},
            config=own_sockets(),
        )
        client.execute(
            env=os.environ
            | SMALLEST
            | {
                "WM_OVERRIDES": overrides,
                "WM_ROADS": "all",
                "WM_RUN_FOLDER": folder,
                "OMP_NUM_THREADS": "1",
            }
        )
    print(f"{kind}: every cell in {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    for kind, overrides in overrides_of(load_notebook()).items():
        if len(sys.argv) < 2 or kind in sys.argv[1:]:
            print(f"{kind}: {overrides}", flush=True)
            execute(kind, overrides)
