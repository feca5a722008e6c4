"""page_gif.py PAGE OUT: the page as it is played, as a GIF: a hand pushes left and right, reality beside it."""
import io, shutil, sys
from pathlib import Path
from PIL import Image
from playwright.sync_api import sync_playwright
with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 660, "height": 560})
    page.goto(Path(sys.argv[1]).resolve().as_uri()); page.click("#wake")
    page.evaluate("requestAnimationFrame = () => 0")  # we count the frames ourselves
    page.evaluate("game.begun = true; press('pilot', true)")
    frames = []
    for k in range(75):
        page.evaluate("advance(); draw()")
        shot = page.screenshot(clip={"x": 0, "y": 60, "width": 660, "height": 440})
        frames.append(Image.open(io.BytesIO(shot)).convert("RGB").resize((495, 330), Image.LANCZOS).quantize(32, dither=Image.Dither.NONE))
        if page.evaluate("game.over"): break
    frames[0].save(sys.argv[2], save_all=True, append_images=frames[1:] + [frames[-1]] * 10, duration=80, loop=0, optimize=True)
    print(len(frames), Path(sys.argv[2]).stat().st_size, page.inner_text("#story"))
