import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
S = b.sub
n = "text-one-replica-answers-32-robots-with-408-p"
S(n, "When a replica is killed, 27 requests (uvicorn) and 12 (Ray Serve) have to be sent again; everything else goes on.", "When a replica is killed, 27 requests (uvicorn) and 12 (Ray Serve) have to be sent again. Ray Serve falls from 163 to 118 answers a second, and its p99 rises from 334 to 490 ms. (A request that is sent again is timed anew, so the outage itself is not in these numbers. And with uvicorn one of two killed gave 498 a second, two alive 483: that is how much runs differ.)")
t = b.source(n); a = t.index("Measured were 408 a second"); z = t.index("</details>", a)
b.set(n, t[:a] + "Measured were 408 a second with 32 clients: only 0.18 of 2.45 ms per push are V and M, and the rest is HTTP, base64, JSON, tokens, and the clients. And a rate is not enough. At 50 pushes a second each answer must come within 20 ms. One client gets it in 10 ms; with eight, half of the answers take more than 31 ms, and each robot gets 31 pushes a second. So it holds a robot or two. GPUs would save only what V and M cost. What helps is more cores.\n" + t[z:])
n = "text-all-three-learn-it-and-c-s-way-is-the-de"
S(n, "All three learn it, and C's way is the dearest. The **gradient** needs a tenth of CMA-ES's dreamed steps (288,000 instead of 2.88 million) and a third of its time, 8 or 9 seconds instead of 24 to 26. At its first look after the start, 96,000 dreamed steps, its network stands through all 200 steps with each seed; PPO does from 115,000 on, CMA-ES from 461,000 (right figure).", "All three learn it, and C's way needs the most dreams. CMA-ES was given ten times as many dreamed steps as the gradient (2.88 million and 288,000), so compare the looks (right figure). At its first look after the start, 96,000 dreamed steps, the **gradient**'s network stands through all 200 steps with each seed; PPO does from 115,000 on, CMA-ES from somewhere between 230,000 and 461,000. So CMA-ES needs at least two and a half times as many. The grid is too coarse to say more. (The seconds can't be compared closely, either: only those of CMA-ES include its set-up.)")
S(n, "It neither explodes nor vanishes (figure).", "Over 30 steps the gradient stays within bounds (figure; training also shortens every gradient to length 1 at most, and most are longer).")
S(n, "Where it can, the dream's own gradient is the better teacher.", "Where it can, the dream's own gradient learned from the fewest dreams.")
S(n, "CMA-ES: 25 s for 2.88 million steps, 8.7 µs each.", "CMA-ES: 25 s for 2.88 million steps, 8.7 µs each, its set-up included.")
S(n, "Here it needs ten times as many.", "By the looks it needs at least two and a half times as many: too close to call.")
n = "text-no-macro-actions-trained-like-this-do-no"
S(n, "And too long can hurt even with the worth:", "The worth does not rescue short dreams: those of 15 single steps end at 192, 128 and 335 without it, at 96, 71 and 79 with it, for thirty points at the end outweigh fifteen steps. And too long can hurt even with the worth:")
b.save()
