set -e
python3 -m pip install -q --no-index --no-deps --target /tmp/site .wheels/*.whl 2>&1 | tail -2
export PYTHONPATH=/tmp/site HOME=/tmp WM_NO_WIDGETS=1 TQDM_DISABLE=1
cat > /tmp/ex.py <<'P'
import sys, time, nbformat
from nbclient import NotebookClient
nb = nbformat.read(".draft/new.ipynb", 4); begin = time.time(); last = [begin]
def done(cell, cell_index, execute_reply):
    now = time.time(); took = now - last[0]; last[0] = now
    if took > 1.5: print(f"{now - begin:7.1f} {took:6.1f} {cell.id}", flush=True)
try: NotebookClient(nb, timeout=None, on_cell_executed=done, kernel_name="python3").execute()
except Exception as e: print(str(e)[-3000:])
finally:
    nbformat.write(nb, sys.argv[1])
    for c in nb.cells:
        if c.cell_type == "code" and "run" in c.metadata.tags:
            t = "".join(o.get("text", "") for o in c.outputs if o.get("name") == "stdout")
            if t.strip(): print("##", c.id); print(t.rstrip()[:1500])
print("total", round(time.time() - begin, 1))
P
nvidia-smi --query-gpu=name --format=csv,noheader
if [ "$1" = smoke ]; then
WM_PROFILE=smoke WM_RUN_FOLDER=/tmp/s python3 /tmp/ex.py $OUT/smoke.ipynb > $OUT/smoke.txt 2>&1 || true; grep -E "^ +[0-9]|total|Error" $OUT/smoke.txt | tail -30
fi
WM_PROFILE=full WM_RUN_FOLDER=/tmp/r WM_OVERRIDES="$2" timeout $3 python3 /tmp/ex.py $OUT/full.ipynb > $OUT/full.txt 2>&1 || true
cat $OUT/full.txt
cp /tmp/r/full/what_is_kept/manifest.json $OUT/ 2>/dev/null || true
