short = settings.v.but(
    steps=min(400, settings.v.steps), ramp_steps=300, batch=min(64, settings.v.batch), law=0.0
)
trials = {
    "ours": {"v": short},
    "no ramp": {"v": short.but(ramp_steps=1)},
    "mean-reduced": {"v": short, "mean_reduced": True},
}
short_stages = [
    keep(train_v, memory, name="v-" + name.replace(" ", "-"), seed=settings.seed, **how)
    for name, how in trials.items()
]
short_drawings, seen_rows = {"seen x": x_seen[:, -1]}, memory.stack(sampled_rows[:1024])
for name, stage in zip(trials, short_stages):
    short_v = frozen(V(settings.v), stage.result)
    short_mu, short_log_var = short_v.encode(seen_rows)  # (1024, Z) each
    drawn = short_v.decode(short_mu)  # (1024, 4, 64, 64)
    short_drawings[name] = drawn[:8, -1]
    print(
        f"{name}: {255 * (drawn - seen_rows).square().mean().sqrt():.1f} grey levels rms, "
        f"KL {kl_to_normal(short_mu, short_log_var).sum(1).mean():.1f} nats; after "
        f"{LOG_EVERY} steps {stage.result['log']['kl'][1]:.0f} nats"
    )
show_pictures(short_drawings, f"Three VAEs, each after {short.steps} steps with batches of {short.batch}")
