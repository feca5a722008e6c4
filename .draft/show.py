"""Print cells of the notebook as text: show.py FROM TO (indices), or ids."""
import json, sys
nb = json.load(open("world_models_cartpole.ipynb"))["cells"]
ids = [c["id"] for c in nb]
a, b = [int(x) if x.isdigit() else ids.index(x) for x in sys.argv[1:3]]
for i in range(a, b):
    c = nb[i]
    m = c["metadata"]
    tags = ",".join(m.get("tags", []))
    print(f"##### {i} {c['id']} [{c['cell_type']}] {tags} {'FOLD' if 'cellView' in m else ''}")
    print("".join(c["source"]))
    for o in c.get("outputs", []):
        if o["output_type"] == "stream":
            print("  >>", "".join(o["text"])[:1500].replace("\n", "\n  >> "))
        elif "data" in o:
            d = o["data"]
            print("  >>", list(d), "".join(d.get("text/plain", ""))[:1200].replace("\n", "\n  >> "))
    print()
