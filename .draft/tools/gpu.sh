# gpu.sh OVERRIDES SECONDS: smoke with the road, and beside it `full` with overrides, both with every error kept.
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl 2>&1 | tail -2
export PYTHONPATH=/tmp/site HOME=/tmp WM_NO_WIDGETS=1 TQDM_DISABLE=1
cat > /tmp/ex.py <<'P'
import sys, time, nbformat
from nbclient import NotebookClient
nb = nbformat.read(".draft/new.ipynb", 4); begin = time.time(); last = [begin]
def done(cell, cell_index, execute_reply):
    now = time.time(); took = now - last[0]; last[0] = now
    if took > 1.5: print(f"{now - begin:7.1f} {took:6.1f} {cell.id}", flush=True)
    if execute_reply["content"]["status"] == "error": print("ERROR", cell.id, execute_reply["content"]["ename"], execute_reply["content"]["evalue"][:300], flush=True)
    for o in cell.outputs:
        if "run" in cell.metadata.tags and o.get("name") == "stdout": print("##", cell.id, "|", "".join(o["text"])[:900], flush=True)
        if o.get("name") == "stderr": print("STDERR", cell.id, "".join(o["text"])[:400], flush=True)
    if took > 5: nbformat.write(nb, sys.argv[1])
try: NotebookClient(nb, timeout=None, on_cell_executed=done, allow_errors=True, kernel_name="python3").execute()
except Exception as e: print(str(e)[-3000:])
nbformat.write(nb, sys.argv[1])
print("total", round(time.time() - begin, 1))
P
nvidia-smi --query-gpu=name --format=csv,noheader; python3 -c 'import torch, sys; print(torch.__version__, sys.version)'
python3 -c "import nbclient, gymnasium, datasets, nevergrad, fastapi, itsdangerous, ipykernel; print('all there')" || exit 1
(WM_PROFILE=smoke WM_RUN_FOLDER=/tmp/s timeout $2 python3 /tmp/ex.py $OUT/smoke.ipynb > $OUT/smoke.txt 2>&1) &
(while sleep 5; do nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader; done > $OUT/memory.txt) & M=$!
WM_PROFILE=full WM_RUN_FOLDER=/tmp/r WM_OVERRIDES="$1" timeout $2 python3 /tmp/ex.py $OUT/full.ipynb > $OUT/full.txt 2>&1
kill $M; wait %1
grep -E "^ +[0-9]|total|ERROR|STDERR" $OUT/smoke.txt | tail -40; echo ==== FULL; tail -c 7000 $OUT/full.txt; sort -n $OUT/memory.txt | tail -1
cp /tmp/r/full/what_is_kept/manifest.json $OUT/ 2>/dev/null || true
