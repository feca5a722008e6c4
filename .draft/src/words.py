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


def written(trace: list[tuple[list, dict]]) -> tuple[list[int], list[int]]:
    """A trace as tokens: a line per call, a line per answer; and for each token the number of the call whose answer it belongs to, or −1."""
    tokens, whose = [], []
    for number, (call, answer) in enumerate(trace):
        for said, owner in ((call, -1), (answer, number)):
            line = to_tokens(json.dumps(said, separators=(",", ":")) + "\n")
            tokens += line
            whose += [owner] * len(line)
    return tokens, whose


# %% [markdown]
# ### The model
#
# The same training loop, another sequence: an LSTM reads the trace token by token and predicts the next token. Only the answers count in the loss. What a user asks next is chance, and there is nothing to learn in it.

# %% tags=["define", "extra"]
class Speaker(nn.Module):
    """An LSTM over tokens."""

    def __init__(self, hidden: int = 256) -> None:
        """`hidden`: the size of h."""
        super().__init__()
        self.letters, self.lstm, self.next = nn.Embedding(len(TOKENS), 64), nn.LSTM(64, hidden, batch_first=True), nn.Linear(hidden, len(TOKENS))

    def forward(self, tokens: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, L, all tokens) of what follows each of some tokens (B, L), and the memory for what comes after them."""
        h, memory = self.lstm(self.letters(tokens), memory)  # (B, L, H)
        return self.next(h), memory


CALLS = 16  # in a trace of the training


def batch_of(luck: np.random.Generator, count: int, calls: int) -> tuple[Tensor, Tensor]:
    """`count` random traces as tokens (B, L), padded with line ends, and for each token whose answer it is, (B, L), −1 for none."""
    lines = [written(random_trace(luck, calls)) for _ in range(count)]
    length, end = max(len(tokens) for tokens, _ in lines), to_tokens("\n")
    return tuple(torch.tensor([row + fill * (length - len(row)) for row in rows]).to(DEVICE) for rows, fill in zip(zip(*lines), (end, [-1])))


def train_speaker(progress: Progress, *, how: TrainSettings, seed: int) -> dict:
    """Train a Speaker on random traces, new ones in every step."""
    torch.manual_seed(seed)
    model = Speaker().to(DEVICE)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per token of the answers in one batch."""
        luck = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        tokens, whose = batch_of(luck, how.batch, CALLS)  # (B, L) each
        logits = model(tokens[:, :-1])[0]  # (B, L − 1, all)
        asked = whose[:, 1:] >= 0
        loss = F.cross_entropy(logits[asked], tokens[:, 1:][asked])
        return loss, {"loss": loss}

    return fit(model, batch_loss, how, seed, progress, "words", 1.0)


# %% tags=["define", "extra"]
class Foreseen(NamedTuple):
    """What the model expects as the answer to a call."""

    line: str
    confidence: float  # the probability of that whole line
    failure: float  # the probability that the answer is an error
    memory: Any  # the model's, if that line comes true


LONGEST = 40  # tokens of an answer


@torch.no_grad()
def heard(speaker: Speaker, line: str, memory: Any) -> tuple[Tensor, Any]:
    """The probabilities (all tokens,) of what follows a line, and the memory after it."""
    logits, memory = speaker(torch.tensor([to_tokens(line)], device=DEVICE), memory)
    return logits[0, -1].softmax(0), memory


def foresee(speaker: Speaker, call: list, memory: Any = None) -> Foreseen:
    """Dream the answer to a call, token by token, the likeliest each time."""
    chances, memory = heard(speaker, json.dumps(call, separators=(",", ":")) + "\n", memory)
    tokens, confidence, failure = [], 1.0, 0.0
    while len(tokens) < LONGEST and (not tokens or TOKENS[tokens[-1]] != b"\n"):
        if len(tokens) == 1:  # after the bracket
            failure = float(chances[NUMBER_OF[b'"error"']])
        tokens.append(int(chances.argmax()))
        confidence *= float(chances.max())
        chances, memory = heard(speaker, TOKENS[tokens[-1]].decode("latin-1"), memory)
    return Foreseen(b"".join(TOKENS[token] for token in tokens).decode(errors="replace").rstrip("\n"), confidence, failure, memory)
