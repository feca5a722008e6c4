import json, os, sys
from pathlib import Path
import nbformat
from nbclient import NotebookClient
REG = '''
import types, functools, inspect
from datasets.fingerprint import Hasher
from datasets.utils._dill import pklregister

@pklregister(types.CodeType)
def _code(pickler, code):
    pickler.save_reduce(types.CodeType, (code.co_code, code.co_consts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags, code.co_argcount, code.co_kwonlyargcount, code.co_exceptiontable), obj=code)

@pklregister(frozenset)
def _frozen(pickler, value):
    pickler.save_reduce(frozenset, (sorted(map(Hasher.hash, value)),), obj=value)

def _refuse(pickler, kind):
    raise TypeError(f"{kind.__name__} differs in each kernel")
pklregister(type(BaseModel))(_refuse)
'''
FUNCTIONS = "record, train_v, encode_memory, train_m, learn, final_test, train_verifier, train_speaker, try_student, try_horizon, try_remedy, try_int8"
ASK = REG + f"""
import json, time
DEVICE = torch.device("cpu")
out = {{}}
for f in ({FUNCTIONS}):
    t=time.time()
    try: out[f.__name__] = Hasher.hash(f), round(time.time()-t,2)
    except Exception as e: out[f.__name__] = repr(e)[:200], 0
print(json.dumps(out))
"""
EDITS = {
 "comment inside (none)": ("    moved = torch.sub", "    # hello\n\n    moved = torch.sub"),
 "format inside": ("    change = torch.sub(*mu.chunk(2))", "    change = torch.sub(\n        *mu.chunk(2)\n    )"),
 "decorator": ('    later.callback(torch.set', '    print(1)\n    later.callback(torch.set'),
}
def hashes(notebook, edit=lambda s: s):
    source = nbformat.read(notebook, 4)
    cells = [c for c in source.cells if c.cell_type == "code" and "define" in c.metadata.get("tags", [])]
    for c in cells: c.source, c.outputs = edit(c.source), []
    cells[0].source = "from __future__ import annotations\n" + cells[0].source
    ask = nbformat.v4.new_code_cell(ASK)
    run = nbformat.v4.new_notebook(cells=[*cells, ask], metadata=source.metadata)
    NotebookClient(run, timeout=300, resources={"metadata": {"path": str(notebook.parent)}}).execute(env=os.environ | {"MPLBACKEND": "agg"})
    return json.loads("".join(o.text for o in ask.outputs if o.get("name") == "stdout").strip().splitlines()[-1])
nb = Path(sys.argv[1]).resolve()
a = hashes(nb); print(a, flush=True)
b = hashes(nb); print("same", {k: a[k][0]==b[k][0] for k in a}, flush=True)
for what,(t,o) in EDITS.items():
    c = hashes(nb, lambda s: s.replace(t,o)); print(what, [k for k in a if a[k][0]!=c[k][0]], flush=True)
