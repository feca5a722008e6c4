import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
text = b.source("define-plain-source")
a, z = text.index("def bytecode"), text.index("def is_plain")
text = text[:a] + '''def spelt(value: Any) -> str:
    """A value as text, the same in every kernel: sets are sorted, and where something lies in memory does not count."""
    if isinstance(value, types.CodeType):  # what a function does where its source cannot be read (a cell under `%%time`)
        return f"{value.co_code.hex()} {value.co_names} {spelt(value.co_consts)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{spelt(name)}: {spelt(part)}' for name, part in value.items())}}}"
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = map(spelt, value)
        return f"{type(value).__name__} {sorted(parts) if isinstance(value, (set, frozenset)) else list(parts)}"
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


''' + text[z:]
old = text[text.index('            text = "\\n".join([repr(getattr(thing'):text.index('        found.append(f"{thing.__qualname__}: {text}")')]
text = text.replace(old, '''            text = "\\n".join(map(spelt, [getattr(thing, "__annotations__", ""), fixed, *(part.__code__ for part in functions)]))
''')
text = text.replace('found += [f"{name} = {value!r}" for name', 'found += [f"{name} = {spelt(value)}" for name')
b.set("define-plain-source", text)
b.sub("define-choose-precision", "torch.amp.GradScaler(init_scale", "torch.amp.GradScaler(DEVICE.type, init_scale")
b.save()
