# %% [markdown]
# ## 10 · What was shown, and where to go
#
# **Shown.** How the three parts work together, what V and M know about the true state (the probes), how fast a dream drifts from reality (open loop), and what the controller reaches in the real environment (part 8).
#
# **Not shown.** That this works for harder worlds. CartPole is deterministic, its background is uniform (which makes the shift and the mirror image exact), and random play covers all angles. The true state was used for measurements and baselines only, but we did look at those measurements, and at real returns on validation seeds, while choosing the settings. And one seed stands behind everything before "Many runs".
#
# ### Things to try
#
# Each is one override (`WM_OVERRIDES`) and retrains only what depends on it. We have not run them for you.
#
# 1. `c.horizon=60`: dreams twice as long. Is C better, or only later?
# 2. `c.growing=0`: C is searched in the lawful axes alone. How far does the cart stray?
# 3. `c.temperature=1`: noise where M doubts. What becomes of the search?
# 4. `v.law=0`: V without the shift law. What do the probe and the open loop say?
# 5. `v.latents=8`: is there room for everything that C needs?
# 6. `m.context=2`: M reads only two real steps before it is asked. What becomes of $h$?
# 7. `collect.episodes=100`: two minutes of real life become half a minute. Which part suffers first?
#
# ### Troubleshooting
#
# | symptom | what to do |
# |---|---|
# | CUDA out of memory | `v.batch=128`, or `m.copies=4` |
# | Colab disconnected | run all again: finished stages load, the interrupted one goes on from its last save (tick `USE_GOOGLE_DRIVE`, because Colab deletes its own disk) |
# | no display | none is needed; run the cell "Imports" before anything else imports gymnasium |
# | "Could not write to …" | free some disk space, or set `WM_RUN_FOLDER` to a folder of yours |
# | something old seems to be used | it is not: a stage's key contains its settings and its code. To start over all the same, delete `runs/` |
#
# ### Glossary
#
# | word | meaning |
# |---|---|
# | h | M's memory: what has happened so far, as far as it matters |
# | rollout, dream | a sequence of steps; a dream is one inside M |
# | teacher forcing | training a sequence model on real inputs at every step |
# | open loop | prediction without looking |
# | τ | temperature: scales the noise in a dream |
# | posterior | the encoder's $q(z \mid x)$: what z may be, given the picture |
# | R² | share of a quantity's variance that a reading explains |
# | rms | root of the mean square: the usual size of an error |
# | bootstrap | an interval from drawing again and again from the measured values themselves |
# | Pearson, Spearman | correlation of two quantities, and of their ranks |
# | whitening | turning and scaling axes so that the data are uncorrelated, with variance 1 |
# | KL | Kullback–Leibler divergence: how many nats one distribution is off from another |
#
# ### References
#
# - D. Ha, J. Schmidhuber. *World Models.* arXiv:1803.10122; NeurIPS version: *Recurrent World Models Facilitate Policy Evolution*, arXiv:1809.01999.
# - D. P. Kingma, M. Welling. *Auto-Encoding Variational Bayes.* arXiv:1312.6114.
# - O. Rybkin, K. Daniilidis, S. Levine. *Simple and Effective VAE Training with Calibrated Decoders.* ICML 2021.
# - G. E. Hinton, A. Krizhevsky, S. D. Wang. *Transforming Auto-encoders.* ICANN 2011.
# - J. M. Hammersley, K. W. Morton. *A New Monte Carlo Technique: Antithetic Variates.* Proceedings of the Cambridge Philosophical Society, 1956.
# - H. Hotelling. *Relations Between Two Sets of Variates.* Biometrika, 1936.
# - N. Hansen, A. Ostermeier. *Completely Derandomized Self-Adaptation in Evolution Strategies.* Evolutionary Computation, 2001.
# - J. Richens, D. Abel, A. Bellot, T. Everitt. *General agents contain world models.* arXiv:2506.01622. (Not used here: why an agent that can reach many goals must hold such a model.)
