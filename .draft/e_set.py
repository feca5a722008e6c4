import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
s("define-branch", "from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError\n", "from pydantic import BaseModel, BeforeValidator, ConfigDict, Field\n")
s("define-branch", '''        """A copy with some fields changed. ValueError: a name or a value is not allowed."""
        return checked(type(self), dict(self) | changes)
''', '''        """A copy with some fields changed. ValueError: a name or a value is not allowed."""
        return self.model_validate(dict(self) | changes)
''')
t = b.source("define-branch")
i = t.index("def four(widths"); j = t.index("class VSettings")
b.set("define-branch", t[:i] + '''def from_text(widths: Any) -> Any:
    """Widths, also from text such as 8-16-32-64."""
    return widths.split("-") if isinstance(widths, str) else widths


Width = Annotated[int, Field(ge=1, le=1024)]
FourWidths = Annotated[
    tuple[Width, ...], BeforeValidator(from_text), Field(min_length=4, max_length=4)
]


''' + t[j:])
s("define-branch", "    widths: Widths = Field(\n", "    widths: FourWidths = Field(\n")
t = b.source("define-profile-name")
i = t.index("def make_settings")
b.set("define-profile-name", t[:i] + '''def leaves(branch: Branch, before: str = "") -> dict[str, Any]:
    """All settings below a branch, by their full names, such as m.hidden."""
    found = {}
    for name, value in branch:
        inside = isinstance(value, Branch)
        found |= leaves(value, f"{before}{name}.") if inside else {before + name: value}
    return found


def make_settings(profile: str, overrides: str = "") -> Settings:
    """The settings of a profile, with overrides such as `"m.hidden=128,c.horizon=15,seed=7"`; of
    two for one name the later wins. ValueError: a name is unknown, or a value not allowed; it says
    what is."""
    wishes = PROFILES[profile_name(profile)].copy()
    for part in filter(None, map(str.strip, overrides.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(
                f"override {name!r} is not of the form name=value (a comma separates two "
                "overrides: write 1000, not 1,000)"
            )
        wishes[name.strip()] = value.strip()
    known = leaves(Settings())
    if unknown := wishes.keys() - known.keys():
        raise ValueError(f"unknown setting {sorted(unknown)}: the choices are {', '.join(known)}")
    tree: dict[str, Any] = {}
    for name, value in wishes.items():
        branch, _, leaf = name.rpartition(".")
        (tree.setdefault(branch, {}) if branch else tree)[leaf] = value
    return Settings.model_validate(tree)''')
b.save()
