# %% [markdown]
# ## 15 · A cousin that dreams in words
#
# An agent that calls tools lives in a world, too: it sends a line and gets one back. Can it *foresee* the answer? Then it can look before it leaps: dream the call first, and hold it back if the dream ends badly. It is the same idea with other letters: predict what the world will say, say how sure, act only when sure.
#
# ### A small world of tools
#
# An office has six tools with a memory of their own: an account, a calendar, a store, a to-do list, a counter and a converter. A call is a JSON list, its answer a JSON object. The rules fit on one screen, so every prediction can be checked.

# %% tags=["define", "extra"]
KEYS, ITEMS, UNITS = ("red", "green", "blue"), ("bread", "milk", "salt"), {"km": 1_000, "hours": 60, "kg": 1_000}
DIGITS, HOURS = range(1, 10), range(1, 7)
TOOLS = {"account": {"pay": (DIGITS,), "earn": (DIGITS,)}, "calendar": {"book": (HOURS,), "cancel": (HOURS,)}, "counter": {"count": (range(1, 4),)},
         "store": {"put": (KEYS, DIGITS), "get": (KEYS,), "delete": (KEYS,)}, "to-do list": {"add": (ITEMS,), "strike": (ITEMS,)},
         "converter": {"convert": (DIGITS, tuple(UNITS))}}  # tool -> what it can be asked, and what each argument may be  # fmt: skip
ASKS = {name: arguments for tool in TOOLS.values() for name, arguments in tool.items()}
TOOL_OF = {name: tool for tool, asks in TOOLS.items() for name in asks}


class Office:
    """The tools and their state. Called with a call, [what, argument, …], it answers; {"error": why} where that can't be done, and then nothing has changed."""

    def __init__(self) -> None:
        """5 in the account, all else is empty."""
        self.balance, self.booked, self.stored, self.todo, self.counter = 5, set(), {}, set(), 0

    def __call__(self, call: list) -> dict:
        """The answer to one call."""
        name, *given = call
        if name not in ASKS:
            return {"error": "no such call"}
        if len(given) != len(ASKS[name]) or not all(value in allowed for value, allowed in zip(given, ASKS[name])):
            return {"error": "bad argument"}
        first = given[0]
        missing = {"book": first in self.booked and "taken", "cancel": first not in self.booked and "free", "strike": first not in self.todo and "not open",
                   "pay": first in DIGITS and first > self.balance and "overdraft"} | dict.fromkeys(("get", "delete"), first not in self.stored and "missing")  # fmt: skip
        if missing.get(name):
            return {"error": missing[name]}
        match name:
            case "pay" | "earn":  # the account holds 9 at most
                self.balance = min(9, self.balance + (first if name == "earn" else -first))
                return {"balance": self.balance}
            case "count":  # from 0 to 9, and round again
                self.counter = (self.counter + first) % 10
                return {"count": self.counter}
            case "book" | "cancel":
                self.booked ^= {first}
                return {"booked" if name == "book" else "free": first}
            case "add" | "strike":
                self.todo = self.todo | {first} if name == "add" else self.todo - {first}
                return {"open" if name == "add" else "done": first}
            case "put":
                self.stored[first] = given[1]
                return {"stored": first}
            case "get":
                return {"value": self.stored[first]}
            case "delete":
                self.stored.pop(first)
                return {"deleted": first}
            case "convert":
                return {"is": first * UNITS[given[1]]}


# %% tags=["define", "extra"]
Trace = list[tuple[list, dict]]  # calls and their answers


def random_trace(luck: np.random.Generator, calls: int) -> Trace:
    """A random user in a new office, who works with two of the tools; one call in thirty has a wrong argument."""
    office, trace = Office(), []
    names = [name for tool in luck.choice(list(TOOLS), 2, replace=False) for name in TOOLS[tool]]
    for _ in range(calls):
        name = names[luck.integers(len(names))]
        call = [name, *(allowed[luck.integers(len(allowed))] for allowed in ASKS[name])]
        call = call if luck.random() > 1 / 30 else [*call[:-1], 0]
        trace.append((call, office(call)))
    return trace


# %% [markdown]
# ### Tokens
#
# A network reads numbers, so lines become tokens. As in a language model, what comes often is one token: a call with its first argument, how an answer begins, a word in quotes, an end. Digits stand alone. What is not known is spelt byte by byte, so any line can be written and read back.

# %% tags=["define", "extra"]
import re

REASONS = "overdraft", "taken", "free", "missing", "not open", "bad argument", "no such call"
ANSWERS = "error", "balance", "booked", "free", "stored", "value", "deleted", "open", "done", "count", "is"
PIECES = [*(f'["{name}",{json.dumps(value)}' for name in ASKS for value in (0, *ASKS[name][0])), *(f'{{"{name}":' for name in ANSWERS), *map(json.dumps, [*KEYS, *ITEMS, *UNITS, *REASONS]), "]\n", "}\n"]
TOKENS = [*(bytes([byte]) for byte in range(256)), *(piece.encode() for piece in PIECES)]
NUMBER_OF = {token: number for number, token in enumerate(TOKENS)}
END, ERROR = NUMBER_OF[b"}\n"], NUMBER_OF[b'{"error":']


def line_of(said: list | dict) -> str:
    """A call or an answer as a line of JSON."""
    return json.dumps(said, separators=(",", ":")) + "\n"


@functools.cache
def to_tokens(line: str) -> tuple[int, ...]:
    """A line as numbers: known pieces whole, all else byte by byte. (Kept: most lines come again and again.)"""
    parts = (part.encode() for part in re.findall(r'\["[^"\\]*",(?:\d|"[^"\\]*")|{"[^"\\]*":|"[^"\\]*"|[]}]\n|.', line, re.DOTALL))
    return tuple(token for part in parts for token in ([NUMBER_OF[part]] if part in NUMBER_OF else part))


def to_line(tokens: Any) -> str:
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

    def __init__(self, hidden: int = 128) -> None:
        """`hidden`: the size of h."""
        super().__init__()
        self.letters, self.lstm, self.next = nn.Embedding(len(TOKENS), 48), nn.LSTM(48, hidden, batch_first=True), nn.Linear(hidden, len(TOKENS))
        span = torch.empty(hidden).uniform_(1, REACHES).log()  # a cell forgets after about e^b steps: memories of all lengths from the start
        with torch.no_grad():
            self.lstm.bias_hh_l0.zero_()
            self.lstm.bias_ih_l0[:hidden], self.lstm.bias_ih_l0[hidden : 2 * hidden] = 0.0, span
            self.lstm.weight_ih_l0.normal_(0, 2.5 * 48**-0.5)  # gates that open and close from the start: PyTorch's own are six times as small

    def forward(self, tokens: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        """h (B, L, H) after each of some tokens (B, L), and the memory for what comes after them. `self.next(h)` are the logits of what follows."""
        return self.lstm(self.letters(tokens), memory)


def written(traces: list[Trace]) -> tuple[Tensor, Tensor]:
    """Traces as tokens (B, L), padded with line ends; and where tokens of answers stand, (B, L) bool."""
    rows = [[(to_tokens(line_of(said)), said is answer) for call, answer in trace for said in (call, answer)] for trace in traces]
    tokens = [torch.tensor([token for line, _ in row for token in line]) for row in rows]
    asked = [torch.tensor([is_answer for line, is_answer in row for _ in line]) for row in rows]
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
    h, memory = speaker(torch.tensor([list(tokens)], device=DEVICE), memory)
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


# %% [markdown]
# ### Does it know the office?
#
# Four questions to traces that it has never seen. **How often is the whole answer right**, tool by tool? **Is its confidence honest**: of the answers that it gives 90 %, are 90 % right? **Where does it drift**: in traces four times as long as those of the training, and when its own answers are fed back to it, as in a dream? And **can it guard**: a payment beyond the balance, a second booking of an hour, a deletion of what is not there shall be held back before they are sent.
#
# **Predict:** which tool is the hardest?

# %% tags=["define", "extra"]
DANGEROUS = "pay", "book", "delete"  # what is guarded


def held_back(call: list, seen: Foreseen, limit: float) -> bool:
    """The guard: a dangerous call is not sent if its dream fails with more than the probability `limit`."""
    return call[0] in DANGEROUS and seen.failure > limit


def retold(speaker: Speaker, trace: Trace, alone_from: int = 10**9) -> list[dict]:
    """Each call of a trace foreseen, a line for each. Then the model hears the true answer; from the call number `alone_from` on, its own."""
    memory, lines = None, []
    for number, (call, answer) in enumerate(trace):
        seen, truth = foresee(speaker, call, memory), line_of(answer)
        lines.append({"call": number + 1, "tool": TOOL_OF[call[0]], "asked": call[0], "right": int(seen.line == truth), "confidence": round(seen.confidence, 4),
                      "failure": round(seen.failure, 4), "fails": int("error" in answer)})  # fmt: skip
        _, memory = heard(speaker, to_tokens(seen.line if number >= alone_from else truth), seen.memory)
    return lines


def try_words(progress: Progress, speaker: Speaker, *, seed: int, traces: int) -> dict:
    """Traces that were never trained on, retold: `lines`, of as long ones as in training, of four times as long ones, and of ones whose last ten answers are its own."""
    luck = np.random.default_rng([seed, 1])
    kinds = {"as long": (traces, CALLS, CALLS), "four times as long": (traces // 4, 4 * CALLS, 4 * CALLS), "last ten alone": (traces, CALLS, CALLS - 10)}
    return {"lines": [{"traces": kind} | line for kind, (count, calls, alone) in kinds.items() for _ in range(count) for line in retold(speaker, random_trace(luck, calls), alone)]}


# %% tags=["run", "extra"]
words_lines, words_log = [], []
if "words" in live:
    words_how = TrainSettings(learning_rate=0.015, batch=8 if tiny else 32, steps=20 if tiny else 4_000)
    words_stage = keep(train_speaker, name="words", how=words_how, seed=settings.seed)
    words_log = [{"step": step, "loss": round(loss, 4), "seconds": round(words_stage.seconds, 1)} for step, loss in zip(*(words_stage.result["log"][name] for name in ("step", "loss")))]
    speaker = frozen(Speaker(), words_stage.result)
    words_lines = keep(try_words, speaker, after=(words_stage,), name="words-tried", seed=settings.seed, traces=8 if tiny else 200).result["lines"]
words_table, words_training = table_of("words", words_lines), table_of("words_training", words_log)
if len(words_table):
    print(f"{words_training['seconds'].iloc[0]:.0f} s of training; loss {words_training['loss'].iloc[0]:.2f}, at the end {words_training['loss'].iloc[-5:].mean():.3f} nats a token")
    words_fresh = words_table[words_table["traces"] == "as long"]
    words_said, words_true, words_gap = reliability(*(torch.tensor(words_fresh[name].to_numpy()) for name in ("confidence", "right")))
    print(f"whole answers right: {100 * words_fresh['right'].mean():.1f} % of {len(words_fresh):,}; calibration error {words_gap:.3f}")
    words_right = 100 * words_table.pivot_table(index="traces", columns="tool", values="right", sort=False)
    display(words_right.assign(all=100 * words_table.groupby("traces")["right"].mean()).round(1))

# %% alt="Left: confidence against the share of right answers. Middle: right answers along long traces and along a dream. Right: dangerous against harmless calls held back." tags=["run", "extra"]
if len(words_table):
    words_asked = words_fresh[words_fresh["asked"].isin(DANGEROUS)]
    words_bad, words_good = (words_asked["failure"][words_asked["fails"] == kind].to_numpy() for kind in (1, 0))
    words_limits = np.unique(np.concatenate([[0.0], words_asked["failure"], [1.0]]))[::-1]
    words_curve = [[100 * np.mean(part > limit) if len(part) else math.nan for limit in words_limits] for part in (words_good, words_bad)]
    words_drift = {}
    for words_kind, words_style in (("four times as long", "-"), ("last ten alone", "--")):
        words_by_call = 100 * words_table[words_table["traces"] == words_kind].groupby("call")["right"].mean()
        words_drift[words_kind] = (words_by_call.index, words_by_call.rolling(4, min_periods=1).mean(), words_style)
    plot(
        {"lines": {"_honest": ([0, 1], [0, 1], "k:"), "_": (words_said, words_true, "o-")}, "xlabel": "confidence", "ylabel": "share of right answers", "title": "Calibration"},
        {"lines": words_drift, "levels": {}, "xlabel": "call", "ylabel": "whole answers right (%)", "ylim": (0, 102), "title": "Drift (mean of four calls)"},
        {"lines": {"_": (*words_curve, "-")}, "xlabel": "harmless calls held back (%)", "ylabel": "dangerous calls held back (%)", "xlim": (-0.5, 20), "ylim": (0, 102), "title": "The guard"},
        size=(4.6, 3.6),
    )  # fmt: skip
    for words_limit in (0.5, 0.1, 0.02):
        words_held = [100 * np.mean(part > words_limit) if len(part) else math.nan for part in (words_bad, words_good)]
        print(f"held back where failure is likelier than {words_limit:4.2f}: {words_held[0]:5.1f} % of {len(words_bad)} dangerous calls, {words_held[1]:4.1f} % of {len(words_good)} harmless ones")

# %% [markdown]
# ⟦TEXT-WORDS⟧
#
# ### And a large one?
#
# Somebody has trained large language models to be such worlds: Word2World (arXiv 2512.18832) fine-tuned Llama 3.1 8B and Qwen 2.5 7B on tool calls of StableToolBench, among others. Conversions for llama.cpp (GGUF, 4 or 5 GB) run on a T4, or slowly on a processor. Name a file here, and it is asked the same kind of question: it is told the rules of our office in words, sees six calls with their answers, and shall say the seventh answer. It was never trained on this office, the small one on nothing else.

# %% cellView="form" tags=["define", "extra"]
# @title A world model in GGUF: download, load, ask
RULES = """You are an office with six tools. Answer each call, a JSON list, with one JSON object and nothing else. At first the account holds 5, all else is empty.
["pay", n]: take n out, {"balance": what is left}, or {"error": "overdraft"}. ["earn", n]: put n in, {"balance": what is there}; the account holds 9 at most.
["book", hour]: {"booked": hour}, or {"error": "taken"}. ["cancel", hour]: {"free": hour}, or {"error": "free"} if it was not booked.
["put", key, value]: {"stored": key}. ["get", key]: {"value": value}. ["delete", key]: {"deleted": key}. The last two: {"error": "missing"} if nothing is stored there.
["add", item]: put it on the list, {"open": item}. ["strike", item]: {"done": item}, or {"error": "not open"}.
["count", n]: a counter from 0 goes up by n and after 9 begins again at 0, {"count": where it stands}. ["convert", n, unit]: km to metres, hours to minutes, kg to grams, {"is": number}.
An argument outside of 1 to 9 (hours: 1 to 6, steps of the counter: 1 to 3) or unknown: {"error": "bad argument"}."""


def open_gguf(file: str) -> Any:
    """A llama.cpp server of a GGUF file: a path, or "owner/name/file.gguf" on the Hugging Face hub (several GB). A sentence and None where it can't be had."""
    try:
        import xllamacpp

        path = file if Path(file).exists() else hub_file(file)
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), 4096, 1, 0
        return xllamacpp.Server(params)
    except Exception as error:
        print(f"{file} can't be used ({type(error).__name__}: {str(error)[:200]}). It needs pip install xllamacpp huggingface_hub, and room for the file.")


def hub_file(file: str) -> str:
    """Download "owner/name/file.gguf" from the hub, once."""
    from huggingface_hub import hf_hub_download

    owner, name, rest = file.split("/", 2)
    return hf_hub_download(f"{owner}/{name}", rest)


def ask_gguf(server: Any, trace: Trace, call: list) -> tuple[str, float, float]:
    """The answer of a large model to a call, given a trace: its line, the probability of that line, and seconds."""
    talk = [{"role": "system", "content": RULES}]
    talk += [{"role": role, "content": line_of(said).strip()} for pair in trace for role, said in zip(("user", "assistant"), pair)]
    begin = time.perf_counter()
    said = server.handle_chat_completions({"messages": [*talk, {"role": "user", "content": line_of(call).strip()}], "max_tokens": 24, "temperature": 0, "logprobs": True})
    choice = said["choices"][0]
    return choice["message"]["content"].strip() + "\n", math.exp(sum(token["logprob"] for token in choice["logprobs"]["content"])), time.perf_counter() - begin


def try_gguf(server: Any, speaker: Speaker, seed: int, count: int = 12) -> list[dict]:
    """A dozen calls with known answers, asked of both models after the same six calls: a line each."""
    luck, lines = np.random.default_rng([seed, 2]), []
    for _ in range(count):
        *before, (call, answer) = random_trace(luck, 7)
        _, memory = heard(speaker, [token for pair in before for said in pair for token in to_tokens(line_of(said))])
        small, (large, confidence, seconds) = foresee(speaker, call, memory), ask_gguf(server, before, call)
        line = {"call": line_of(call).strip(), "true": line_of(answer).strip(), "small": small.line.strip(), "its confidence": round(small.confidence, 3)}
        lines.append(line | {"large": large.strip(), "large's confidence": round(confidence, 3), "seconds": round(seconds, 1)})
    return lines


# %% cellView="form" tags=["run", "extra"]
# @title Ask a large one? (owner/name/file.gguf on the hub: 4 to 5 GB; empty: no)
GGUF = os.environ.get("WM_GGUF", "")  # @param {type:"string"}
gguf_server = open_gguf(GGUF) if GGUF and "words" in live else None
if gguf_server is not None:
    gguf_table = pandas.DataFrame(try_gguf(gguf_server, speaker, settings.seed))
    display(gguf_table)
    print(f"right: small {(gguf_table['small'] == gguf_table['true']).sum()}, large {(gguf_table['large'] == gguf_table['true']).sum()} of {len(gguf_table)}; they agree on {(gguf_table['small'] == gguf_table['large']).sum()}")
else:
    print("no large model was asked")

# %% [markdown]
# ### What carries over, and what does not
#
# ⟦TEXT-CARRIES⟧
