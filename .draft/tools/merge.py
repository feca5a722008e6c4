"""merge.py EXECUTED OUT [LATER id,id…]: the notebook of the script with the outputs of an executed one; cells that changed, and those named, take the outputs of a later pass."""
import base64, io, subprocess, sys, nbformat
from PIL import Image
from pathlib import Path
root = Path(__file__).resolve().parent.parent.parent
out = Path(sys.argv[2])
subprocess.run([sys.executable, root / ".draft/tools/build.py", root / ".draft/src/world_models_cartpole.py", out], check=True)
new, old = nbformat.read(out, 4), nbformat.read(sys.argv[1], 4)
later = {c.id: c for c in nbformat.read(sys.argv[3], 4).cells if c.cell_type == "code"} if len(sys.argv) > 3 else {}
named = sys.argv[4].split(",") if len(sys.argv) > 4 else []
same = sys.argv[5].split(",") if len(sys.argv) > 5 else []  # cells whose source changed, but not what they compute
done = {c.id: c for c in old.cells if c.cell_type == "code"}
number = 0
for c in new.cells:
    if c.cell_type == "code":
        number += 1
        source = done.get(c.id)
        if "define" in c.metadata.tags:
            c.outputs, c.execution_count = [], number
            continue
        if c.id in named or source is None or (c.source != source.source and c.id not in same):
            print("from the later pass:", c.id); source = later[c.id]; assert c.source == source.source, c.id
        c.outputs = [o for o in source.outputs if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]  # progress bars
        c.execution_count = number
        for o in c.outputs:
            if "image/png" in o.get("data", {}):
                raw = base64.b64decode("".join(o["data"]["image/png"]))
                if not getattr(Image.open(io.BytesIO(raw)), "is_animated", False):
                    file = io.BytesIO(); Image.open(io.BytesIO(raw)).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
                    if len(file.getvalue()) < len(raw): o["data"]["image/png"] = base64.b64encode(file.getvalue()).decode()
            assert o.get("name") != "stderr", (c.id, o)
nbformat.write(new, out)
