"""prints.py NOTEBOOK: what each run cell prints, beside the text that follows."""
import json, sys
for c in json.load(open(sys.argv[1]))["cells"]:
    if c["cell_type"] == "code" and c["outputs"]:
        said = "".join("".join(o.get("text", "")) for o in c["outputs"] if o["output_type"] == "stream")
        if said: print("##", c["id"]); print(said)
