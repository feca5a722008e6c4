"""merge.py EXECUTED [KEPT_FOLDER]: the notebook takes the outputs of an executed copy of itself, pictures in few colours; KEPT_FOLDER's files go to assets."""
import base64, io, json, shutil, sys
from pathlib import Path
from PIL import Image
P = Path("world_models_cartpole.ipynb")
new, old = json.loads(P.read_text()), json.loads(Path(sys.argv[1]).read_text())
if len(sys.argv) > 2:
    kept = Path(sys.argv[2]); home = Path("assets")
    for name in ("checkpoint.pt", "imagined_rollouts.pt", "film.png", "manifest.json"): shutil.copy(kept / name, home / "quick_run" / name)
    shutil.copy(kept / "dream.html", home / "dream.html")
done = {c["id"]: c for c in old["cells"]}
number = 0
for c in new["cells"]:
    if c["cell_type"] != "code": continue
    number += 1
    theirs = done[c["id"]]
    if "".join(c["source"]) != "".join(theirs["source"]): print("SOURCE DIFFERS", c["id"])
    c["execution_count"] = number
    c["outputs"] = [o for o in theirs["outputs"] if "application/vnd.jupyter.widget-view+json" not in o.get("data", {})]
    pictures = [o for o in c["outputs"] if "image/png" in o.get("data", {})]
    if c["id"] == "run-title-film":
        for o, name in zip(pictures, ("model.png", "quick_run/film.png"), strict=True):
            o["data"]["image/png"] = base64.b64encode((Path("assets") / name).read_bytes()).decode()
        pictures = []
    for o in c["outputs"]:
        assert o.get("name") != "stderr", (c["id"], o)
        if "execution_count" in o: o["execution_count"] = number
    for o in pictures:
        raw = base64.b64decode("".join(o["data"]["image/png"]))
        im = Image.open(io.BytesIO(raw))
        if not getattr(im, "is_animated", False):
            f = io.BytesIO(); im.convert("RGB").quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(f, "PNG", optimize=True)
            if len(f.getvalue()) < len(raw): raw = f.getvalue()
        o["data"]["image/png"] = base64.b64encode(raw).decode()
P.write_text(json.dumps(new, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
