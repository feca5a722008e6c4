# %% [markdown]
# ## 14 · A cousin that dreams in words
#
# An agent that calls tools lives in a world, too: it sends a line and gets one back. Can it *foresee* the answer? Then it can look before it leaps: dream the call first, and hold it back if the dream ends badly. It is the same idea with other letters: predict what the world will say, say how sure, act only when sure.
#
# ### A small world of tools
#
# An office has six tools with a memory of their own: an account, a calendar, a store, a to-do list, a counter and a converter. A call is a JSON list, its answer a JSON object. The rules fit on one screen, so every prediction can be checked.

# %% tags=["define", "extra"]
KEYS, ITEMS, UNITS = ("red", "green", "blue"), ("bread", "milk", "salt"), {"km": 1_000, "hours": 60, "kg": 1_000}
DIGITS, HOURS = range(1, 10), range(1, 7)
TOOLS = {"pay": (DIGITS,), "earn": (DIGITS,), "book": (HOURS,), "cancel": (HOURS,), "put": (KEYS, DIGITS), "get": (KEYS,), "delete": (KEYS,),
         "add": (ITEMS,), "strike": (ITEMS,), "count": (DIGITS,), "convert": (DIGITS, tuple(UNITS))}  # what each argument may be  # fmt: skip


class Office:
    """The tools and their state. Called with a call, it answers; {"error": why} where the call can't be done, and then nothing has changed."""

    def __init__(self) -> None:
        """5 in the account, all else is empty."""
        self.balance, self.booked, self.stored, self.todo, self.counter = 5, set(), {}, set(), 0

    def __call__(self, call: list) -> dict:
        """The answer to one call, [tool, argument, …]."""
        name, *given = call
        if name not in TOOLS:
            return {"error": "no such tool"}
        if len(given) != len(TOOLS[name]) or not all(value in allowed for value, allowed in zip(given, TOOLS[name])):
            return {"error": "bad argument"}
        return getattr(self, name)(*given)

    def pay(self, amount: int) -> dict:
        """Take money out of the account."""
        if amount > self.balance:
            return {"error": "overdraft"}
        return self.earn(-amount)

    def earn(self, amount: int) -> dict:
        """Put money in; the account holds 9 at most."""
        self.balance = min(9, self.balance + amount)
        return {"balance": self.balance}

    def book(self, hour: int) -> dict:
        """Take an hour of the calendar."""
        if hour in self.booked:
            return {"error": "taken"}
        self.booked.add(hour)
        return {"booked": len(self.booked)}

    def cancel(self, hour: int) -> dict:
        """Give an hour back."""
        if hour not in self.booked:
            return {"error": "free"}
        self.booked.remove(hour)
        return {"booked": len(self.booked)}

    def put(self, key: str, value: int) -> dict:
        """Store a digit under a key."""
        self.stored[key] = value
        return {"stored": len(self.stored)}

    def get(self, key: str) -> dict:
        """What is stored there."""
        return {"value": self.stored[key]} if key in self.stored else {"error": "missing"}

    def delete(self, key: str) -> dict:
        """Remove it."""
        return {"deleted": self.stored.pop(key)} if key in self.stored else {"error": "missing"}

    def add(self, item: str) -> dict:
        """Put something on the to-do list."""
        self.todo.add(item)
        return {"open": len(self.todo)}

    def strike(self, item: str) -> dict:
        """Strike it out."""
        if item not in self.todo:
            return {"error": "not open"}
        self.todo.remove(item)
        return {"open": len(self.todo)}

    def count(self, step: int) -> dict:
        """Move a counter from 0 to 9, which goes round."""
        self.counter = (self.counter + step) % 10
        return {"count": self.counter}

    def convert(self, number: int, unit: str) -> dict:
        """Kilometres to metres, hours to minutes, kilograms to grams."""
        return {"is": number * UNITS[unit]}


# %% tags=["define", "extra"]
Trace = list[tuple[list, dict]]  # calls and their answers


def random_call(luck: np.random.Generator) -> list:
    """What a random user asks for next; one call in thirty has a wrong argument."""
    name = list(TOOLS)[luck.integers(len(TOOLS))]
    call = [name, *(allowed[luck.integers(len(allowed))] for allowed in TOOLS[name])]
    return call if luck.random() > 1 / 30 else [*call[:-1], 0]


def random_trace(luck: np.random.Generator, calls: int) -> Trace:
    """A random user in a new office."""
    office = Office()
    return [(call, office(call)) for call in (random_call(luck) for _ in range(calls))]


# %% [markdown]
# ### Tokens
#
# A network reads numbers, so lines become tokens. As in a language model, what comes often is one token: how the call of a tool begins, how an answer begins, a word in quotes, an end. Digits stand alone. What is not known is spelt byte by byte, so any line can be written and read back.

# %% tags=["define", "extra"]
import re

REASONS = "overdraft", "taken", "free", "missing", "not open", "bad argument", "no such tool"
ANSWERS = "error", "balance", "booked", "stored", "value", "deleted", "open", "count", "is"
PIECES = [*(f'["{name}",' for name in TOOLS), *(f'{{"{name}":' for name in ANSWERS), *map(json.dumps, [*KEYS, *ITEMS, *UNITS, *REASONS]), "]\n", "}\n"]
TOKENS = [*(bytes([byte]) for byte in range(256)), *(piece.encode() for piece in PIECES)]
NUMBER_OF = {token: number for number, token in enumerate(TOKENS)}
END, ERROR = NUMBER_OF[b"}\n"], NUMBER_OF[b'{"error":']


def line_of(said: list | dict) -> str:
    """A call or an answer as a line of JSON."""
    return json.dumps(said, separators=(",", ":")) + "\n"


def to_tokens(line: str) -> list[int]:
    """A line as numbers: known pieces whole, all else byte by byte."""
    parts = (part.encode() for part in re.findall(r'\["[^"\\]*",|{"[^"\\]*":|"[^"\\]*"|[]}]\n|.', line, re.DOTALL))
    return [token for part in parts for token in ([NUMBER_OF[part]] if part in NUMBER_OF else part)]


def to_line(tokens: list[int]) -> str:
    """Back again; what is no text becomes �."""
    return b"".join(TOKENS[token] for token in tokens).decode(errors="replace")


# %% [markdown]
# ### The model
#
# The loop of training is the same, the sequence is another: an LSTM reads the trace token by token, and predicts the next token. Only the answers count in the loss. What a user asks next is chance, and there is nothing to learn in it. Every batch is made of new traces of sixteen calls.

# %% tags=["define", "extra"]
CALLS = 16  # in a trace of the training
REACHES = 100.0  # tokens: the longest memory that the LSTM begins with


class Speaker(nn.Module):
    """An LSTM that reads tokens and says what follows."""

    def __init__(self, hidden: int = 192) -> None:
        """`hidden`: the size of h."""
        super().__init__()
        self.letters, self.lstm, self.next = nn.Embedding(len(TOKENS), 48), nn.LSTM(48, hidden, batch_first=True), nn.Linear(hidden, len(TOKENS))
        span = torch.empty(hidden).uniform_(1, REACHES).log()  # a cell forgets after about e^b steps: memories of all lengths from the start
        with torch.no_grad():
            self.lstm.bias_hh_l0.zero_()
            self.lstm.bias_ih_l0[:hidden], self.lstm.bias_ih_l0[hidden : 2 * hidden] = -span, span

    def forward(self, tokens: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """h (B, L, H) after each of some tokens (B, L), and the memory for what comes after them. `self.next(h)` are the logits of what follows."""
        return self.lstm(self.letters(tokens), memory)


def written(traces: list[Trace]) -> tuple[Tensor, Tensor]:
    """Traces as tokens (B, L), padded with line ends; and where tokens of answers stand, (B, L) bool."""
    rows = [[(to_tokens(line_of(said)), said is answer) for pair in trace for answer in pair[1:] for said in pair] for trace in traces]
    tokens, asked = ([torch.tensor([value for line in row for value in pick(*line)]) for row in rows] for pick in (lambda t, a: t, lambda t, a: [a] * len(t)))
    pad = nn.utils.rnn.pad_sequence
    return pad(tokens, True, END).to(DEVICE), pad(asked, True, False).to(DEVICE)


def train_speaker(progress: Progress, *, how: TrainSettings, seed: int) -> dict:
    """Train a Speaker on random traces, new ones in every step."""
    torch.manual_seed(seed)
    model = Speaker().to(DEVICE)

    def batch_loss(generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean nats per token of the answers in one batch."""
        luck = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        tokens, asked = written([random_trace(luck, CALLS) for _ in range(how.batch)])  # (B, L) each
        h, _ = model(tokens[:, :-1])  # (B, L − 1, H)
        loss = F.cross_entropy(model.next(h[asked[:, 1:]]), tokens[:, 1:][asked[:, 1:]])
        return loss, {"loss": loss}

    return fit(model, batch_loss, how, seed, progress, "words", 1.0)


# %% tags=["define", "extra"]
class Foreseen(NamedTuple):
    """What the model expects as the answer to a call."""

    line: str
    confidence: float  # the probability of the whole line
    failure: float  # the probability that it is an error
    memory: Any  # the model's after the call, before any answer


LONGEST = 16  # tokens of an answer


@torch.no_grad()
def heard(speaker: Speaker, tokens: list[int], memory: Any = None) -> tuple[Tensor, Any]:
    """The probabilities (all tokens,) of what follows some tokens, and the memory after them."""
    h, memory = speaker(torch.tensor([tokens], device=DEVICE), memory)
    return speaker.next(h[0, -1]).softmax(0), memory


def foresee(speaker: Speaker, call: list, memory: Any = None) -> Foreseen:
    """Dream the answer to a call, token by token, the likeliest each time."""
    chances, asked = heard(speaker, to_tokens(line_of(call)), memory)
    tokens, confidence, failure, memory = [], 1.0, float(chances[ERROR]), asked  # an answer's first token says what kind it is
    while len(tokens) < LONGEST and tokens[-1:] != [END]:
        tokens.append(int(chances.argmax()))
        confidence *= float(chances.max())
        chances, memory = heard(speaker, tokens[-1:], memory)
    return Foreseen(to_line(tokens), confidence, failure, asked)
