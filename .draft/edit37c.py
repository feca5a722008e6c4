import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
b.sub("define-plain-source", '''def bytecode(code: types.CodeType) -> str:
    """What a function does where its source cannot be read (a cell under `%%time`): its instructions, names and constants."""
    inner = [bytecode(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"
''', '''def bytecode(code: Any) -> str:
    """What a function does where its source cannot be read (a cell under `%%time`): its instructions, names and constants."""
    if isinstance(code, (tuple, frozenset)):  # the order of a set differs from kernel to kernel
        parts = map(bytecode, code)
        return str(list(parts) if isinstance(code, tuple) else sorted(parts))
    if not isinstance(code, types.CodeType):
        return repr(code)
    return f"{code.co_code.hex()} {code.co_names} {bytecode(code.co_consts)}"
''')
b.sub("define-plain-source", '''            text = "\\n".join([repr(getattr(thing, "__annotations__", "")), repr(fixed), *(bytecode(part.__code__) for part in functions)])
''', '''            text = "\\n".join([repr(getattr(thing, "__annotations__", "")), repr(fixed), *(bytecode(part.__code__) for part in functions)])
            text = re.sub(" at 0x[0-9a-f]+", "", text)  # where something lies in memory
''')
b.sub("define-plain-source", "import linecache\nimport textwrap", "import linecache\nimport re\nimport textwrap")
b.sub("define-line-of", "import re\n\n", "")
b.save()
