# %% [markdown]
# ## 14 · A cousin that dreams in words
#
# An agent that calls tools has a world, too: it sends a line and gets one back. Can it *foresee* the answer? Then it can look before it leaps: dream the call, and not send it when the dream ends badly. The same idea as before, with other letters: predict what the world will say, say how sure, act only when sure.
#
# ### A small world of tools
#
# Six tools with a memory of their own. A call is a JSON list, an answer a JSON object, and the rules fit on a page, so that every prediction can be checked.

# %% tags=["define", "extra"]
import re


class Office:
    """Six tools and their state: an account, a calendar, a store, a to-do list, a counter, a converter. `Office()(call)` is the answer."""

    KEYS, ITEMS, UNITS = ("red", "green", "blue"), ("bread", "milk", "salt"), {"km": 1_000, "hours": 60, "kg": 1_000}

    def __init__(self) -> None:
        """Everything is empty, but for 50 in the account."""
        self.balance, self.booked, self.stored, self.todo, self.count = 5, set(), {}, set(), 0

    def __call__(self, call: list) -> dict:
        """Do what a call says, and answer; {"error": why} where it can't be done, and then nothing has changed. ValueError: no such tool, or a wrong argument."""
        name, *given = call
        try:
            return getattr(self, f"do_{name}")(*given)
        except (AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"{json.dumps(call)} is no call: {error}") from error

    def do_pay(self, tens: int) -> dict:
        """Take money (1 to 9 tens) out of the account."""
        if tens > self.balance:
            return {"error": "overdraft"}
        self.balance -= tens
        return {"balance": self.balance}

    def do_earn(self, tens: int) -> dict:
        """Put money in; the account holds 9 tens at most."""
        self.balance = min(9, self.balance + tens)
        return {"balance": self.balance}

    def do_book(self, hour: int) -> dict:
        """Take an hour (1 to 6) of the calendar."""
        if hour in self.booked:
            return {"error": "taken"}
        self.booked.add(hour)
        return {"booked": len(self.booked)}

    def do_free(self, hour: int) -> dict:
        """Give an hour back."""
        if hour not in self.booked:
            return {"error": "not taken"}
        self.booked.remove(hour)
        return {"booked": len(self.booked)}

    def do_put(self, key: str, value: int) -> dict:
        """Store a digit under a key."""
        self.stored[key] = value
        return {"stored": key}

    def do_get(self, key: str) -> dict:
        """What is stored there."""
        return {"value": self.stored[key]} if key in self.stored else {"error": "missing"}

    def do_delete(self, key: str) -> dict:
        """Remove it."""
        return {"deleted": self.stored.pop(key)} if key in self.stored else {"error": "missing"}

    def do_add(self, item: str) -> dict:
        """Put something on the to-do list."""
        self.todo.add(item)
        return {"open": len(self.todo)}

    def do_done(self, item: str) -> dict:
        """Strike it out."""
        if item not in self.todo:
            return {"error": "not open"}
        self.todo.remove(item)
        return {"open": len(self.todo)}

    def do_count(self, step: int) -> dict:
        """Move a counter from 0 to 9, which goes round."""
        self.count = (self.count + step) % 10
        return {"count": self.count}

    def do_convert(self, number: int, unit: str) -> dict:
        """Kilometres to metres, hours to minutes, kilograms to grams."""
        return {"is": number * self.UNITS[unit]}


def random_call(luck: np.random.Generator) -> list:
    """What a random user asks for next."""
    digit, key, item, unit = int(luck.integers(1, 10)), str(luck.choice(Office.KEYS)), str(luck.choice(Office.ITEMS)), str(luck.choice(list(Office.UNITS)))
    calls = (["pay", digit], ["earn", digit], ["book", 1 + digit % 6], ["free", 1 + digit % 6], ["put", key, digit], ["get", key], ["delete", key],
             ["add", item], ["done", item], ["count", digit], ["convert", digit, unit])  # fmt: skip
    return calls[int(luck.integers(len(calls)))]


def random_trace(luck: np.random.Generator, calls: int) -> list[tuple[list, dict]]:
    """A random user in a new office: calls and answers."""
    office = Office()
    return [(call, office(call)) for call in (random_call(luck) for _ in range(calls))]


# %% [markdown]
# ### Tokens
#
# A network reads numbers, so lines become tokens: a word in quotes is one, each digit and each sign is one. What is no known word is spelt by its bytes, so any line can be written and read back.

# %% tags=["define", "extra"]
WORDS = sorted({word for name in dir(Office) if name.startswith("do_") for word in [name[3:]]}
               | {*Office.KEYS, *Office.ITEMS, *Office.UNITS} | {"error", "overdraft", "taken", "not taken", "missing", "not open", "balance", "booked", "stored", "value", "deleted", "open", "count", "is"})  # fmt: skip
TOKENS = [*(bytes([byte]) for byte in range(256)), *(json.dumps(word).encode() for word in WORDS)]
NUMBER_OF = {token: number for number, token in enumerate(TOKENS)}


def to_tokens(line: str) -> list[int]:
    """A line as numbers: known words in quotes whole, all else byte by byte."""
    found = []
    for part in re.findall(r'"[^"\\]*"|.', line, re.DOTALL):
        whole = part.encode()
        found += [NUMBER_OF[whole]] if whole in NUMBER_OF else whole
    return found


def to_line(tokens: list[int]) -> str:
    """Back again."""
    return b"".join(TOKENS[token] for token in tokens).decode()
