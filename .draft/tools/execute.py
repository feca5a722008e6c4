"""execute.py NOTEBOOK_OUT: build the notebook from the script, run it from the first cell to the last, say how long each cell took."""
import subprocess, sys, time, os
from pathlib import Path
import nbformat
from nbclient import NotebookClient
root = Path(__file__).resolve().parent.parent.parent
out = Path(sys.argv[1])
subprocess.run([sys.executable, root / ".draft/tools/build.py", root / ".draft/src/world_models_cartpole.py", out], check=True)
nb = nbformat.read(out, 4)
begin = time.time(); last = [begin]
def done(cell, cell_index, execute_reply):
    now = time.time(); took = now - last[0]; last[0] = now
    if took > 1 or os.environ.get("ALL"): print(f"{now - begin:7.1f} {took:6.1f} {cell.id}", flush=True)
client = NotebookClient(nb, timeout=None, resources={"metadata": {"path": str(root)}}, on_cell_executed=done, kernel_name="python3")
try:
    client.execute()
finally:
    nbformat.write(nb, out)
print("total", round(time.time() - begin, 1))
