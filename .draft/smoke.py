"""Run all cells in smoke from a run folder; print what stages say, per-cell seconds over 2 s; ask code at the end."""
import os, sys, time, json
from pathlib import Path
import nbformat
from nbclient import NotebookClient
nb = nbformat.read("world_models_cartpole.ipynb", 4)
env = os.environ | {"WM_PROFILE": os.environ.get("WM_PROFILE","smoke"), "WM_NO_WIDGETS": "1", "WM_RUN_FOLDER": sys.argv[1], "TQDM_DISABLE": "1"}
c = NotebookClient(nb, timeout=1200, resources={"metadata": {"path": "."}})
stop = False
with c.setup_kernel(env=env):
    for k, cell in enumerate(nb.cells):
        if cell.cell_type != "code": continue
        if cell.id == os.environ.get('UNTIL'): stop = True
        if stop and 'define' not in cell.metadata.tags: continue
        t = time.time()
        try: c.execute_cell(cell, k)
        except Exception as e:
            print(k, cell.id, str(e)[-3000:]); break
        took = time.time() - t
        said = "".join(o.text for o in cell.outputs if o.output_type == "stream")
        err = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr")
        if took > 2 or "of work" in said or err: print(k, cell.id, f"{took:.1f} s", [l for l in said.splitlines() if "of work" in l], err[-300:], flush=True)
    for code in sys.argv[2:]:
        cell = nbformat.v4.new_code_cell(code); c.execute_cell(cell, 0); print("".join(o.get("text","") for o in cell.outputs))
