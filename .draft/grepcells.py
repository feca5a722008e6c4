import json,re,sys
nb=json.load(open("world_models_cartpole.ipynb"))["cells"]
for i,c in enumerate(nb):
    if c["cell_type"]!="code": continue
    for n,l in enumerate("".join(c["source"]).splitlines()):
        if re.search(sys.argv[1],l): print(f"{i} {c['id'][:34]} {n}: {l}")
