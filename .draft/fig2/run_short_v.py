short = settings.v.but(batch=64, steps=min(400, settings.v.steps), ramp_steps=300, law=0.0)
trials = {"ours": short, "no-ramp": short.but(ramp_steps=1), "mean-reduced": short}
short_stages, drawings = [], {"seen x": x_seen[:, -1]}  # (8, 64, 64) each
for name, v_settings in trials.items():
    wrong = {"mean_reduced": name == "mean-reduced"}
    stage = keep(train_v, memory, name=f"v-{name}", v=v_settings, seed=settings.seed, **wrong)
    short_stages.append(stage)
    short_v = frozen(V(settings.v), stage.result)
    code = short_v.encode(x_seen)  # μ and log σ², (8, Z) each
    redrawn = short_v.decode(code[0])  # (8, 4, 64, 64)
    drawings[name] = redrawn[:, -1]
    print(
        f"{name}: error {255 * (redrawn - x_seen).square().mean().sqrt():.1f} grey levels, "
        f"KL {kl_to_normal(*code).sum(1).mean():.2f} nats"
    )
show_pictures(drawings, f"Three VAEs, each after {short.steps} steps")
