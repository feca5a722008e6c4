import json, sys
for c in json.load(open(sys.argv[1]))["cells"]:
    if c["cell_type"] == "code":
        t = "".join("".join(o.get("text", "")) for o in c["outputs"] if o.get("name") == "stdout")
        if t.strip(): print("##", c["id"]); print(t.rstrip())
        for o in c["outputs"]:
            if o["output_type"] == "error": print("ERROR", o["ename"], o["evalue"][:500])
