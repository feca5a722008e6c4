"""merge.py EXECUTED: the notebook takes the outputs of an executed copy of itself (same sources), pictures in 64 colours; RUN_FOLDER's files go to assets."""
import base64, io, json, shutil, sys
from pathlib import Path
from PIL import Image
P = Path("world_models_cartpole.ipynb")
new, old = json.loads(P.read_text()), json.loads(Path(sys.argv[1]).read_text())
done = {c["id"]: c for c in old["cells"]}
number = 0
for c in new["cells"]:
    if c["cell_type"] != "code": continue
    number += 1
    theirs = done[c["id"]]
    same = "".join(c["source"]) == "".join(theirs["source"])
    if not same: print("SOURCE DIFFERS", c["id"])
    c["execution_count"] = number
    c["outputs"] = [o for o in theirs["outputs"] if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]
    for o in c["outputs"]:
        assert o.get("name") != "stderr", (c["id"], o)
        if "execution_count" in o: o["execution_count"] = number
        if "image/png" in o.get("data", {}):
            raw = base64.b64decode("".join(o["data"]["image/png"]))
            im = Image.open(io.BytesIO(raw))
            if not getattr(im, "is_animated", False):
                f = io.BytesIO(); im.convert("RGB").quantize(48, dither=Image.Dither.NONE).save(f, "PNG", optimize=True)
                if len(f.getvalue()) < len(raw): raw = f.getvalue()
            o["data"]["image/png"] = base64.b64encode(raw).decode()
P.write_text(json.dumps(new, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
if len(sys.argv) > 2:
    kept = Path(sys.argv[2]); home = Path("assets")
    for name in ("checkpoint.pt", "imagined_rollouts.pt", "film.png", "manifest.json"): shutil.copy(kept / name, home / "quick_run" / name)
    shutil.copy(kept / "dream.html", home / "dream.html")
