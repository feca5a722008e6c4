import json, torch
from safetensors import safe_open
from pathlib import Path
F=Path('/work/main/assets/quick_run')
with safe_open(F/'checkpoint.safetensors','pt') as f:
    about=json.loads(f.metadata()['about']); values=about['values']|{n:f.get_tensor(n) for n in f.keys()}
results={}
for full,v in values.items():
    *places,last=full.split('/'); p=results
    for part in places: p=p.setdefault(part,{})
    p[last]=v
s=about['settings']; s['v']['width']=s['v'].pop('widths')[0]
torch.save({"value":{"settings":s,"stages":{n:[results[n],float(sec)] for n,sec in about['seconds'].items()}},"seconds":0.0},F/'checkpoint.pt')
import hashlib
d=hashlib.sha256((F/'checkpoint.pt').read_bytes()).hexdigest()
m=json.loads((F/'manifest.json').read_text()); m['checkpoint_sha256']=d
m['probe']={'z':{k:{'r2':m['probe_r2']['z'][k],'rms':m['probe_rms']['z'][k]} for k in ('random','controller')},'(z, h)':{k:{'r2':m['probe_r2']['z_h'][k],'rms':m['probe_rms']['z_h'][k]} for k in ('random','controller')}}
m.pop('probe_r2'); m.pop('probe_rms'); m['cores']=2; m['hardware']='CPU, no GPU'
(F/'manifest.json').write_text(json.dumps(m,indent=1))
from safetensors.torch import load_file
r=load_file(F/'imagined_rollouts.safetensors'); torch.save({"value":r,"seconds":0.0},F/'imagined_rollouts.pt')
print(d)
