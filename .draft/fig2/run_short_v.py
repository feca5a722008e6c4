batch, steps = min(64, settings.v.batch), min(400, settings.v.steps)
short = settings.v.but(batch=batch, steps=steps, ramp_steps=300, law=0.0)
trials = {
    "ours": {"v": short},
    "no-ramp": {"v": short.but(ramp_steps=1)},
    "mean-reduced": {"v": short, "mean_reduced": True},
}
short_stages, seen_often = [], memory.stack(sampled_rows[:1024])  # (1024, 4, 64, 64)
drawings = {"seen x": seen_often[:8, -1]}  # (8, 64, 64) each
for name, how in trials.items():
    stage = keep(train_v, memory, name=f"v-{name}", seed=settings.seed, **how)
    short_stages.append(stage)
    short_v, kl_log = frozen(V(settings.v), stage.result), stage.result["log"]["kl"]
    code = short_v.encode(seen_often)  # μ and log σ², (1024, Z) each
    drawn = short_v.decode(code[0])  # (1024, 4, 64, 64)
    drawings[name] = drawn[:8, -1]
    print(
        f"{name}: {255 * (drawn - seen_often).square().mean().sqrt():.1f} grey levels rms, KL "
        f"{kl_log[min(1, len(kl_log) - 1)]:.0f} nats after {LOG_EVERY} steps, "
        f"{kl_to_normal(*code).sum(1).mean():.2f} after {steps}"
    )
show_pictures(drawings, f"Three VAEs, each after {steps} steps")
