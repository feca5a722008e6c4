"""Bring the code cells of a notebook to 100 columns: docstrings, comments and long strings (ruff does the rest)."""

import ast
import io
import json
import re
import subprocess
import sys
import textwrap
import tokenize
from pathlib import Path

WIDE = 100


def wrap_block(lines, indent, first="", last=""):
    """One paragraph of text at an indent."""
    text = " ".join(line.strip() for line in lines)
    out = textwrap.wrap(first + text + last, WIDE, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return out


def docstring_lines(raw, indent):
    """Rewrap a docstring's source lines (quotes included) at an indent."""
    body = "\n".join(raw).strip()
    assert body.startswith('"""') and body.endswith('"""'), body[:40]
    inner = body[3:-3].rstrip()
    out, paragraph, ind = [], [], indent
    lines = inner.split("\n")
    blocks = []  # (indent, text lines) or blank
    for k, line in enumerate(lines):
        if not line.strip():
            blocks.append(None)
            continue
        here = indent if k == 0 else " " * (len(line) - len(line.lstrip()))
        entry = here != indent and re.match(r"\s*[\w., `]+: ", line)
        if blocks and blocks[-1] is not None and blocks[-1][0] == here and not entry and not line.strip().endswith(":") and not blocks[-1][1][-1].strip() in ("Args:",):
            blocks[-1][1].append(line)
        else:
            blocks.append((here, [line]))
    for k, block in enumerate(blocks):
        if block is None:
            out.append("")
            continue
        here, its = block
        first = '"""' if k == 0 else ""
        last = '"""' if k == len(blocks) - 1 else ""
        text = first + " ".join(line.strip() for line in its) + last
        hang = here if here == indent or k == 0 else here + "    "
        out += textwrap.wrap(text, WIDE, initial_indent=here, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
    return out


def split_string(line):
    """A line that holds one long string literal, as several adjacent literals."""
    match = re.match(r'^(\s*)((?:\w+=)?)(f?)"((?:[^"\\]|\\.)*)"(.*)$', line)
    if not match or len(match[5]) > 3 or match[2]:
        return None
    indent, _, f, text, rest = match.groups()
    room = WIDE - len(indent) - len(f) - 2
    parts, depth, start, space = [], 0, 0, -1
    for k, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}") if f else 0
        if letter == " " and depth == 0:
            space = k + 1
        if k - start + 1 >= room and space > start:
            parts.append(text[start:space])
            start = space
    parts.append(text[start:])
    if len(parts) == 1:
        return None
    return [f'{indent}{f if "{" in part or not f else ""}"{part}"' for part in parts[:-1]] + [f'{indent}{f if "{" in parts[-1] else ""}"{parts[-1]}"{rest}']


def wrap(source):
    lines = source.split("\n")
    tree = ast.parse(source)
    docs = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Module)) and ast.get_docstring(node) is not None:
            docs.append((node.body[0].lineno - 1, node.body[0].end_lineno, node.body[0].col_offset))
    inside = set()
    for first, end, column in sorted(docs, reverse=True):
        if any(len(line) > WIDE for line in lines[first:end]):
            lines[first:end] = docstring_lines(lines[first:end], " " * column)
    source = "\n".join(lines)
    # comments on lines of their own
    out, k, lines = [], 0, source.split("\n")
    strings = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and token.start[0] != token.end[0]:
            strings |= set(range(token.start[0], token.end[0] + 1))
    while k < len(lines):
        line = lines[k]
        if line.strip().startswith("#") and len(line) > WIDE and not line.startswith("# @title") and "# @param" not in line and k + 1 not in strings:
            indent, block = line[: len(line) - len(line.lstrip())], []
            while k < len(lines) and lines[k].startswith(indent + "# "):
                block.append(lines[k].strip()[2:])
                k += 1
            out += textwrap.wrap(" ".join(block), WIDE, initial_indent=indent + "# ", subsequent_indent=indent + "# ", break_long_words=False)
            continue
        if len(line) > WIDE and k + 1 not in strings and (parts := split_string(line)):
            out += parts
        else:
            out.append(line)
        k += 1
    return "\n".join(out)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and cell["id"] != "define-page":
            source = "".join(cell["source"])
            new = wrap(source)
            ast.parse(new)
            cell["source"] = new.splitlines(True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
