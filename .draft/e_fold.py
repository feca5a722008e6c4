import sys, re
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
folded, links = [], {}
for c in b.cells:
    t = "".join(c["source"])
    if c["cell_type"] != "markdown" or not t.startswith("## "): continue
    first, rest = t.split("\n", 1)
    heading = first[3:]
    anchor = heading.replace(" ", "-")
    if "<a name=" not in t:
        c["source"] = (first + f'\n<a name="{anchor}"></a>\n' + rest).splitlines(True)
    n = heading.partition(" ")[0]
    if n.isdigit(): links[n] = anchor
    if n == "2" or heading.startswith("The bench") or (n.isdigit() and 10 <= int(n) <= 15):
        c["metadata"]["jp-MarkdownHeadingCollapsed"] = True
        folded.append(c["id"])
b.nb["metadata"]["colab"]["collapsed_sections"] = folded
t = b.source(b.cells[0]["id"])
def link(m):
    return f"| [{m[1]} {m[2]}](#{links[m[1]]}) |"
t = re.sub(r"^\| (\d+) ([^|]+?) \|", link, t, flags=re.M)
b.set(b.cells[0]["id"], t)
b.save()
