"""Tokens by code cell."""
import io, json, sys, tokenize
def tokens(source):
    source = "\n".join("pass" if l.lstrip().startswith(("%","!")) else l for l in source.splitlines())
    return sum(t.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP) for t in tokenize.generate_tokens(io.StringIO(source).readline))
if __name__ == "__main__":
    nb = json.load(open("world_models_cartpole.ipynb"))["cells"]
    for i, c in enumerate(nb):
        s = "".join(c["source"])
        if c["cell_type"] == "code": print(i, c["id"], tokens(s), len(s.splitlines()), "FOLD" if "cellView" in c["metadata"] else "")
        elif s.startswith("## "): print(s.splitlines()[0])
