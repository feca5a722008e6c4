"""merge.py EXECUTED OUT: the notebook of the script with the outputs of an executed one (same code, cell by cell)."""
import base64, io, subprocess, sys, nbformat, re
from PIL import Image
from pathlib import Path
root = Path(__file__).resolve().parent.parent.parent
out = Path(sys.argv[2])
subprocess.run([sys.executable, root / ".draft/tools/build.py", root / ".draft/src/world_models_cartpole.py", out], check=True)
new, old = nbformat.read(out, 4), nbformat.read(sys.argv[1], 4)
done = {c.id: c for c in old.cells if c.cell_type == "code"}
for c in new.cells:
    if c.cell_type == "code":
        assert c.source == done[c.id].source or "define" in c.metadata.tags, c.id
        c.outputs, c.execution_count = done[c.id].outputs, done[c.id].execution_count
        for o in c.outputs:
            if "image/png" in o.get("data", {}):
                raw = base64.b64decode("".join(o["data"]["image/png"]))
                if raw[:3] != b"GIF":
                    file = io.BytesIO(); Image.open(io.BytesIO(raw)).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
                    if len(file.getvalue()) < len(raw): o["data"]["image/png"] = base64.b64encode(file.getvalue()).decode()
            assert o.get("name") != "stderr", (c.id, o)
nbformat.write(new, out)
