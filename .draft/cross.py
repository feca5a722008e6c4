import ast, json, re, builtins, collections
nb=json.load(open("world_models_cartpole.ipynb"))["cells"]
part=0; bound=collections.defaultdict(set); used={}
order=[]
for c in nb:
    s="".join(c["source"])
    if c["cell_type"]=="markdown":
        m=re.match(r"## (\d+)", s)
        if m: part=int(m[1])
        continue
    t=ast.parse(s)
    names=set()
    for n in ast.walk(t):
        if isinstance(n,(ast.FunctionDef,ast.ClassDef,ast.AsyncFunctionDef)) : pass
    for n in t.body:
        for m in ast.walk(n):
            if isinstance(m, ast.Name) and isinstance(m.ctx, ast.Store) and not isinstance(n,(ast.FunctionDef,ast.ClassDef)): names.add(m.id)
        if isinstance(n,(ast.FunctionDef,ast.ClassDef)): names.add(n.name)
        if isinstance(n,(ast.Import,ast.ImportFrom)):
            names|={(a.asname or a.name).split(".")[0] for a in n.names}
    loads={m.id for m in ast.walk(t) if isinstance(m,ast.Name) and isinstance(m.ctx,ast.Load)}
    order.append((part,c["id"],names,loads))
    for x in names: bound[x].add(part)
for p in range(10,16):
    need=collections.defaultdict(set)
    for q,i,names,loads in order:
        if q==p:
            for x in loads:
                if x in bound and p not in bound[x] and not any(b<=9 for b in bound[x]): need[x]|=bound[x]
    print(p, {k:sorted(v) for k,v in need.items()})
# names bound in several parts incl roads
