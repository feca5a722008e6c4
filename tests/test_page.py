"""The page to play the dream in: what it computes is what PyTorch computes, and it works in a real
browser."""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import NOTEBOOK, ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def data_in(page: Path) -> dict:
    """What the notebook has put into the page."""
    return json.loads(
        re.search(
            r'<script id="data" type="application/json">(.*?)</script>',
            page.read_text(encoding="utf-8"),
            re.DOTALL,
        )[1]
    )


def arrays_in(data: dict) -> dict[str, np.ndarray]:
    """Its numbers by name, in double precision."""
    flat, found, place = (
        np.frombuffer(base64.b64decode(data["weights"]), "<f2").astype(np.float64),
        {},
        0,
    )
    for name, size in data["sizes"]:
        found[name] = flat[place : place + size]
        place += size
    assert place == len(flat)
    return found


@pytest.fixture(scope="module")
def shipped(nb):
    """The world of the shipped checkpoint on a few random episodes, its C, and an untrained
    verifier."""
    settings = nb.make_settings("quick")
    kept = nb.load_checkpoint(ROOT / "assets" / "quick_run" / "checkpoint.pt", settings)

    v, m = (
        nb.frozen(nb.V(settings.v), kept["v"].result),
        nb.frozen(nb.M(settings.v.latents, settings.m.hidden), kept["practice"].result),
    )
    world = nb.World(v, m, None, None, settings.m.context).looking_at(
        nb.play(nb.random_policy, list(range(20)), 2)
    )
    nb.torch.manual_seed(0)
    return (
        world,
        kept["c"].result["weights"],
        nb.frozen(nb.Verifier(settings.v.latents, settings.m.hidden)),
    )


@pytest.fixture(scope="module")
def page(nb, shipped, tmp_path_factory):
    """A page of the shipped checkpoint."""
    world, c, verifier = shipped
    rows = nb.calm_moments(world, 1, 5)
    probe, noisy = nb.Probe(world.codes.mu[0], world.memory.states), nb.torch.ones(64)
    file = tmp_path_factory.mktemp("page") / "dream.html"
    nb.write_page(
        file,
        nb.page_numbers(world, verifier, c, probe, world.recall(rows)),
        world,
        world.memory.states[rows],
        noisy,
    )
    return file


@pytest.fixture(scope="module")
def chrome():
    """A real browser without a window; skipped, with the reason, where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no browser driver: pip install playwright"
    )
    path = next(
        filter(None, map(shutil.which, BROWSERS)), None
    )  # else the driver's own, if it was installed
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(
                f"no browser here: none of {', '.join(BROWSERS)}, nor the driver's own "
                f"({str(error).splitlines()[0]})"
            )
        yield browser
        browser.close()


@pytest.fixture
def tab(chrome, page):
    """The page, open; whatever it complains about fails the test."""
    tab, complaints = chrome.new_page(viewport={"width": 900, "height": 1000}, has_touch=True), []
    tab.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.as_uri())
    yield tab
    tab.close()
    assert not complaints


def until(tab, condition: str) -> None:
    """Wait until some JavaScript is true."""
    tab.wait_for_function(condition, timeout=20_000)


def test_one_file_without_a_network(page):
    for file in (page, ROOT / "assets" / "dream.html"):
        text = file.read_text(encoding="utf-8")
        assert len(text.encode()) < 2_000_000
        assert not re.search(r"https?://|\bsrc=|\bfetch\(|import\(|XMLHttpRequest|<link", text)
        assert "__" not in text.replace("__proto__", "")


def test_the_shipped_page_holds_the_shipped_checkpoint(nb, shipped):
    world, c, _ = shipped
    found = arrays_in(data_in(ROOT / "assets" / "dream.html"))
    expected = {
        "gates.weight": nb.torch.cat([world.m.lstm.weight_ih, world.m.lstm.weight_hh], 1),
        "change.weight": world.m.change.weight,
        "c.weight": c[:-1],
        "from_z.weight": world.v.from_z.weight,
    }
    for name, value in expected.items():
        assert np.array_equal(found[name], value.half().double().flatten().numpy()), name


def test_the_decoder_without_its_norms_draws_the_same(nb, shipped):
    decoder, x = shipped[0].v.decoder, nb.torch.randn(3, 64, 2, 4)
    for layer, block in enumerate(list(decoder)[:3]):
        weight, bias = nb.without_norm(block[0], block[1])
        assert nb.torch.allclose(
            nb.F.conv_transpose2d(x, weight, bias, 2, 1).relu(), block(x), atol=1e-4
        ), layer
        x = block(x)


def half_models(nb, shipped):
    """The same M and V with their weights rounded as in the page, in double precision."""
    world = shipped[0]
    m, v = nb.M(64, 192), nb.V(nb.make_settings("quick").v)
    weights = world.m.state_dict()
    # The page has one bias, the sum of both.
    weights["lstm.bias_ih"] = weights["lstm.bias_ih"] + weights["lstm.bias_hh"]
    weights["lstm.bias_hh"] = 0 * weights["lstm.bias_hh"]
    m.load_state_dict({name: value.half() for name, value in weights.items()})
    v.load_state_dict(world.v.state_dict())
    return nb.frozen(m).double(), nb.frozen(v)


def test_a_hundred_steps_are_those_of_pytorch(nb, shipped, page, tab):
    m, v = half_models(nb, shipped)
    data = data_in(page)
    arrays = arrays_in(data)
    pushes = nb.torch.randint(2, (5, 100), generator=nb.torch.Generator().manual_seed(3))
    starts = nb.torch.from_numpy(arrays["starts"]).view(5, 512).split((64, 64, 192, 192), 1)
    begin = nb.State(*starts, nb.torch.zeros(5, 1, dtype=nb.torch.float64))
    path = nb.stacked(nb.dream(m, begin, nb.given(pushes), 100))
    with nb.torch.no_grad():
        says = m.says(path)
        drawn = v.decode(path.z[:, ::25].flatten(0, 1).float())[:, -1]
    there = tab.evaluate(
        """pushes => pushes.map((row, number) => {
             let s = begin(number); const path = [];
             row.forEach((push, k) => {
               s = step(s, push);
               const drawn = k % 25 ? null : [...decode(s.z)];
               path.push({z: [...s.z], done: done(s), sigma: [...doubt(s)], drawn}); });
             return path; })""",
        pushes.tolist(),
    )
    z, done = (np.array([[one[name] for one in path] for path in there]) for name in ("z", "done"))
    assert np.abs(z - path.z.numpy()).max() < 1e-2
    assert (
        np.array_equal(done > 0.5, says.done.sigmoid().numpy() > 0.5)
        and np.abs(done - says.done.sigmoid().numpy()).max() < 1e-3
    )
    sigma = np.array([[one["sigma"] for one in path] for path in there])
    assert np.allclose(sigma, (0.5 * says.log_var).exp().numpy(), rtol=1e-3)
    pictures = np.array([one["drawn"] for path in there for one in path if one["drawn"]]).reshape(
        -1, 64, 64
    )
    assert np.abs(pictures - drawn.numpy()).max() < 0.02, "five of 255 grey levels"


def test_what_it_says_of_a_state_is_what_the_notebook_says(nb, shipped, page, tab):
    world, c, verifier = shipped
    rows = nb.calm_moments(world, 1, 5)
    states = world.recall(rows)
    there = tab.evaluate(
        "[0, 1, 2, 3, 4].map(k => [confidence(begin(k)), advice(begin(k)), reading(begin(k))])"
    )
    trust, push, angle = map(np.array, zip(*there))
    assert np.allclose(trust, verifier(states).sigmoid().numpy(), atol=2e-2)
    score = (nb.features(states) @ c[:-1] + c[-1]).numpy()
    assert np.array_equal(push[np.abs(score) > 0.02], (score > 0)[np.abs(score) > 0.02])
    probe = nb.Probe(world.codes.mu[0], world.memory.states)
    assert np.allclose(angle, np.degrees(probe(states.z)[:, 2].numpy()), atol=0.1)


def test_its_reality_is_gymnasiums(tab):
    env = gym.make("CartPole-v1").unwrapped
    for seed in range(5):
        state, _ = env.reset(seed=seed)
        pushes = np.random.default_rng(seed).integers(2, size=60).tolist()
        there = tab.evaluate(
            "([s, pushes]) => pushes.map(push => { s = physics(s, push); return [...s, fell(s)]; "
            "})",
            [env.state.tolist() if hasattr(env.state, "tolist") else list(env.state), pushes],
        )
        for push, line in zip(pushes, there):
            _, _, ended, _, _ = env.step(push)
            assert np.allclose(line[:4], env.state, atol=1e-9) and bool(line[4]) == ended
            if ended:
                break


def test_keys_and_touches_move_the_cart_and_the_fall_is_seen(tab, tmp_path):
    place = "game.real[0]"
    tab.wait_for_timeout(300)
    assert tab.evaluate("game.steps") == 0, "nothing moves before the first push"
    tab.click("#wake")
    begin = tab.evaluate(place)
    tab.keyboard.down("ArrowRight")
    until(tab, "game.steps >= 6")
    tab.keyboard.up("ArrowRight")
    assert tab.evaluate(place) > begin
    tab.click("#again")
    begin = tab.evaluate(place)
    button = tab.locator("#left").bounding_box()
    tab.mouse.move(button["x"] + 20, button["y"] + 20)
    tab.mouse.down()
    until(tab, "game.over")
    tab.mouse.up()
    assert (
        tab.evaluate(place) < begin
        and "even chance" in tab.inner_text("#story")
        and tab.evaluate("game.alive") < 0.5
    )
    shot = Path(os.environ.get("WM_ARTEFACTS", tmp_path)) / "dream.png"
    tab.screenshot(path=shot)
    assert shot.stat().st_size > 10_000
    tab.locator("#right").tap()
    assert tab.evaluate("game.over"), "there is time to read how it ended"
    until(tab, "performance.now() - game.ended > 1000")
    tab.locator("#right").tap()
    until(tab, "game.steps >= 2 && !game.over")


def test_c_plays_and_a_hand_takes_over(tab):
    tab.click("#pilot")
    until(tab, "game.steps >= 30")
    assert not tab.evaluate("game.over"), "thirty steps of its own dream are what C was trained on"
    tab.click("#again")
    until(tab, "game.steps >= 2 && game.steps < 30")  # C goes on in the next dream
    tab.keyboard.press("ArrowLeft")
    assert tab.get_attribute("#pilot", "aria-pressed") == "false"


def test_noise_moves_the_dream_and_zero_does_not(tab):
    far = """tau => {
        again(); game.number = 0; game.dream = begin(0);
        document.getElementById("tau").value = tau; held.right = true; game.begun = true;
        for (let k = 0; k < 5; k++) advance();
        held.right = false; return [...game.dream.z]; }"""
    calm, same, wild = (np.array(tab.evaluate(far, tau)) for tau in (0, 0, 3))
    assert np.array_equal(calm, same) and np.abs(wild - calm).max() > 1e-3


def test_it_draws_thirty_frames_a_second(tab):
    tab.fill("#pace", "50")
    tab.click("#pilot")
    until(tab, "game.steps >= 3")
    before = tab.evaluate("[frames, performance.now()]")
    tab.wait_for_timeout(2_000)
    after = tab.evaluate("[frames, performance.now()]")
    assert 1_000 * (after[0] - before[0]) / (after[1] - before[1]) >= 30


def test_anyone_can_use_it(tab):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="no axe-core: pip install axe-playwright-python",
    )
    for width in (360, 900):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.click("#wake")
        found = axe.Axe().run(tab).response["violations"]
        assert not found, [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The notebook as a page of HTML, as a lecturer would put it on the web."""
    from nbconvert import HTMLExporter

    file = tmp_path_factory.mktemp("rendered") / "notebook.html"
    file.write_text(
        HTMLExporter(template_name="classic").from_filename(str(NOTEBOOK))[0], encoding="utf-8"
    )
    return file


def test_the_rendered_notebook_can_be_read_by_anyone(chrome, rendered):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="no axe-core: pip install axe-playwright-python",
    )
    tab = chrome.new_page(viewport={"width": 1100, "height": 900})
    tab.route(
        re.compile("^https?:"), lambda route: route.abort()
    )  # formulas and the Colab badge come from the network
    tab.goto(rendered.as_uri(), wait_until="domcontentloaded")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    pictures = tab.evaluate(
        "[...document.images].filter(i => i.src.startsWith('data:')).map(i => [i.naturalWidth, "
        "i.alt])"
    )
    assert len(pictures) > 25 and all(width > 0 for width, _ in pictures), "a broken picture"
    assert not [alt for _, alt in pictures if len(alt) < 20 or "No description" in alt], (
        "a picture without a description"
    )
    heads = tab.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(h => [+h.tagName[1], h.textContent])"
    )
    assert heads[0][0] == 1 and not [
        two for one, two in zip(heads, heads[1:]) if two[0] > one[0] + 1
    ], "a level is left out"
    # What the template colours (code, prompts, empty corners of tables) is not ours.
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa"]}}
    found = (
        axe.Axe()
        .run(tab, context={"exclude": [[".highlight"], [".prompt"]]}, options=rules)
        .response["violations"]
    )
    assert not found, [
        (one["id"], [node["html"][:200] for node in one["nodes"][:5]]) for one in found
    ]
    tab.close()
