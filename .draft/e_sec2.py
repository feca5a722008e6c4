import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
s("run-visits", '''visit_places[0].set(xscale="log", ylabel=f"real return (of {LOOK_STEPS} steps)")
''', '''visit_places[0].set(xscale="log", ylabel=f"real return (of {LOOK_STEPS} steps)")
visit_places[0].minorticks_off()
visit_places[0].xaxis.set_major_formatter("{x:g}")
''')
t = b.source("text-whose-fault")
i = t.index("**M is.**"); j = t.index("\n\nA longer question")
b.set("text-whose-fault", '''**M, by a little.** Physics that begins from z alone is lost after thirty steps (13.6°): one code says little about speeds, and it begins 0.18 rad/s off. From (z, h) it begins 0.24° and 0.03 rad/s off, and ends at 3.0° and 14 mm. M itself ends at 2.6° and 13 mm as seen, and at 2.1° and 10 mm from z. (From the true state physics ends where reality does.) One M and its 400 stretches can't say whether M is really ahead of physics from (z, h); they do say that it is not behind. So what drifts is hardly M's law of motion: it is what could not be seen at the beginning, magnified by the pole.''' + t[j:])
t = b.source("text-visits")
b.set("text-visits", t.replace("TEXT\n", '''C keeps the pole up on the Moon, with half the force and with a pole twice as long (195 to 200 steps of 200). It lasts 134 steps in Jupiter's gravity, 35 with twice the force, 32 with a pole half as long. **M's surprise** tells these two groups apart: up to 0.044 where C copes, from 0.066 on where it does not. (Of the two worst rooms, the one with the higher surprise lasts a little longer.) **The doorkeeper** sees that twice the force is a foreign world (0.26 instead of 0.75). But in the room with the short pole, where C falls after 32 steps, it is more confident (0.68) than in the one with the long pole (0.65), where C does not fall. It has learned what a false step looks like, not what a foreign world looks like. If you can have only one witness, ask the one that predicts. (One seed, eight episodes a room.)
''', 1))
b.save()
