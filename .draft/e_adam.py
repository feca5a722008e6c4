import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book(); s = b.sub
s("define-choose-precision", "torch.optim.Adam(model.parameters(), settings.learning_rate)", "torch.optim.Adam(model.parameters(), settings.learning_rate, fused=True)")
s("run-fresh-settings", "windows(its.memory, its.context + horizon, min(300, settings.evaluate.stretches))", "windows(its.memory, its.context + horizon, settings.evaluate.stretches)")
b.save()
