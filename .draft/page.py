"""The page's template at 100 columns."""
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, ".draft")
import nbedit

nbedit.PATH = Path(sys.argv[1])
b = nbedit.Book()
JS = {
"  button { font: inherit; color: #1a1a1a; background: #eef2f7; border: 1px solid #5b6b7d; border-radius: 6px; padding: 8px 12px; cursor: pointer; touch-action: none; user-select: none; -webkit-user-select: none; -webkit-touch-callout: none; }": """  button {
    font: inherit; color: #1a1a1a; background: #eef2f7; border: 1px solid #5b6b7d;
    border-radius: 6px; padding: 8px 12px; cursor: pointer; touch-action: none; user-select: none;
    -webkit-user-select: none; -webkit-touch-callout: none;
  }""",
'  .pads button { padding: 22px 0; font-size: 1.15em; } button[aria-pressed="true"] { background: #0b5394; color: #fff; }': '''  .pads button { padding: 22px 0; font-size: 1.15em; }
  button[aria-pressed="true"] { background: #0b5394; color: #fff; }''',
"  canvas { display: block; width: 100%; aspect-ratio: 96 / 38; border: 1px solid #767676; border-radius: 6px; }": """  canvas {
    display: block; width: 100%; aspect-ratio: 96 / 38; border: 1px solid #767676;
    border-radius: 6px;
  }""",
"  label { display: grid; grid-template-columns: 15em 1fr 4em; gap: 8px; align-items: center; margin: 6px 0; }": """  label {
    display: grid; grid-template-columns: 15em 1fr 4em; gap: 8px; align-items: center;
    margin: 6px 0;
  }""",
'  meter, input[type="range"] { width: 100%; } #story { min-height: 3em; margin: 10px 0; font-weight: 600; }': '''  meter, input[type="range"] { width: 100%; }
  #story { min-height: 3em; margin: 10px 0; font-weight: 600; }''',
'''  <figure><canvas id="dream" width="64" height="38" role="img" aria-label="V's drawing of the dream: a dark cart and a grey pole"></canvas><figcaption>the dream: what V draws of M's latent z</figcaption></figure>''': '''  <figure>
    <canvas id="dream" width="64" height="38" role="img"
      aria-label="V's drawing of the dream: a dark cart and a grey pole"></canvas>
    <figcaption>the dream: what V draws of M's latent z</figcaption>
  </figure>''',
'''  <figure id="awake" hidden><canvas id="real" width="960" height="380" role="img" aria-label="The true cart and pole under the same pushes"></canvas><figcaption>reality: the true physics from the same state, under the same pushes</figcaption></figure>''': '''  <figure id="awake" hidden>
    <canvas id="real" width="960" height="380" role="img"
      aria-label="The true cart and pole under the same pushes"></canvas>
    <figcaption>reality: the true physics from the same state, under the same pushes</figcaption>
  </figure>''',
'<div class="pads"><button id="left" type="button">◀ push left</button><button id="right" type="button">push right ▶</button></div>': '''<div class="pads">
  <button id="left" type="button">◀ push left</button>
  <button id="right" type="button">push right ▶</button>
</div>''',
'<label>M believes that you are alive <meter id="alive" min="0" max="1" low="0.5" value="1"></meter> <output id="alive-says">100 %</output></label>': '''<label>M believes that you are alive
  <meter id="alive" min="0" max="1" low="0.5" value="1"></meter>
  <output id="alive-says">100 %</output></label>''',
'<label>the verifier believes the dream <meter id="trust" min="0" max="1" low="0.5" value="1"></meter> <output id="trust-says">–</output></label>': '''<label>the verifier believes the dream
  <meter id="trust" min="0" max="1" low="0.5" value="1"></meter>
  <output id="trust-says">–</output></label>''',
'<label for="tau">noise where M is unsure, τ <input id="tau" type="range" min="0" max="3" step="0.25" value="0"> <output id="tau-says">0</output></label>': '''<label for="tau">noise where M is unsure, τ
  <input id="tau" type="range" min="0" max="3" step="0.25" value="0">
  <output id="tau-says">0</output></label>''',
'<label for="pace">steps a second (real: 50) <input id="pace" type="range" min="5" max="50" step="5" value="15"> <output id="pace-says">15</output></label>': '''<label for="pace">steps a second (real: 50)
  <input id="pace" type="range" min="5" max="50" step="5" value="15">
  <output id="pace-says">15</output></label>''',
'<div class="row"><button id="again" type="button">again</button><button id="wake" type="button" aria-pressed="false">wake up: show reality</button><button id="pilot" type="button" aria-pressed="false">let C play</button></div>': '''<div class="row">
  <button id="again" type="button">again</button>
  <button id="wake" type="button" aria-pressed="false">wake up: show reality</button>
  <button id="pilot" type="button" aria-pressed="false">let C play</button>
</div>''',
"// The weights: half-precision numbers (one bit of sign, five of exponent, ten of fraction), one array after the other.": """// The weights, one array after the other: half-precision numbers (one bit of sign, five of
// exponent, ten of fraction).""",
"  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * fraction / 1024);": """  if (exponent === 0) return sign * 2 ** -14 * fraction / 1024;
  return sign * 2 ** (exponent - 15) * (1 + fraction / 1024);""",
"  for (let o = 0, k = 0; o < y.length; o++) for (let i = 0; i < x.length; i++) y[o] += w[k++] * x[i];": """  for (let o = 0, k = 0; o < y.length; o++)
    for (let i = 0; i < x.length; i++) y[o] += w[k++] * x[i];""",
"  return { z: s.slice(0, Z), before: s.slice(Z, 2 * Z), h: s.slice(2 * Z, 2 * Z + H), c: s.slice(2 * Z + H), blind: 0 };": """  const z = s.slice(0, Z), before = s.slice(Z, 2 * Z);
  return { z, before, h: s.slice(2 * Z, 2 * Z + H), c: s.slice(2 * Z + H), blind: 0 };""",
'  const gates = linear([...s.z, ...s.z.map((v, i) => data.change * (v - s.before[i])), 2 * push - 1, ...s.h], "gates");': '''  const moved = s.z.map((v, i) => data.change * (v - s.before[i]));
  const gates = linear([...s.z, ...moved, 2 * push - 1, ...s.h], "gates");''',
'  return linear([...s.h, Math.log1p(s.blind), s.blind / 10], "log_var").map(v => Math.exp(0.5 * Math.min(3, Math.max(-16, data.doubt * v))));': '''  const logVar = linear([...s.h, Math.log1p(s.blind), s.blind / 10], "log_var");
  return logVar.map(v => Math.exp(0.5 * Math.min(3, Math.max(-16, data.doubt * v))));''',
"function normal() { return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()); }": """function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}""",
'  const look = [...s.z, ...s.z.map((v, i) => v - s.before[i]), ...s.h].map((v, i) => (v - W["look.mean"][i]) / W["look.scale"][i]);': '''  const seen = [...s.z, ...s.z.map((v, i) => v - s.before[i]), ...s.h];
  const look = seen.map((v, i) => (v - W["look.mean"][i]) / W["look.scale"][i]);''',
'  return sigmoid(linear(linear(linear(look, "layers.0").map(silu), "layers.2").map(silu), "layers.4")[0]);': '''  const first = linear(look, "layers.0").map(silu), second = linear(first, "layers.2").map(silu);
  return sigmoid(linear(second, "layers.4")[0]);''',
"function doubled(x, channels, height, width, name, last) {  // a transposed convolution, kernel 4, stride 2, padding 1": """// a transposed convolution, kernel 4, stride 2, padding 1
function doubled(x, channels, height, width, name, last) {""",
'  const bias = W[name + ".bias"], w = W[name + ".weight"], outs = bias.length, y = new Float64Array(outs * 4 * height * width);': '''  const bias = W[name + ".bias"], w = W[name + ".weight"], outs = bias.length;
  const size = 4 * height * width, y = new Float64Array(outs * size);''',
"  for (let o = 0; o < outs; o++) y.fill(bias[o], o * 4 * height * width, (o + 1) * 4 * height * width);": "  for (let o = 0; o < outs; o++) y.fill(bias[o], o * size, (o + 1) * size);",
"  for (let c = 0; c < channels; c++) for (let i = 0; i < height; i++) for (let j = 0; j < width; j++) {": """  for (let c = 0; c < channels; c++)
  for (let i = 0; i < height; i++)
  for (let j = 0; j < width; j++) {""",
"        if (column >= 0 && column < 2 * width) y[(o * 2 * height + row) * 2 * width + column] += v * w[((c * outs + o) * 4 + p) * 4 + q];": """        if (column < 0 || column >= 2 * width) continue;
        y[o * size + row * 2 * width + column] += v * w[((c * outs + o) * 4 + p) * 4 + q];""",
"  const sin = Math.sin(angle), cos = Math.cos(angle), pushed = ((push ? 10 : -10) + 0.05 * spin * spin * sin) / 1.1;": """  const sin = Math.sin(angle), cos = Math.cos(angle);
  const pushed = ((push ? 10 : -10) + 0.05 * spin * spin * sin) / 1.1;""",
"  const turn = (9.8 * sin - cos * pushed) / (0.5 * (4 / 3 - 0.1 * cos * cos / 1.1)), speed = pushed - 0.05 * turn * cos / 1.1;": """  const turn = (9.8 * sin - cos * pushed) / (0.5 * (4 / 3 - 0.1 * cos * cos / 1.1));
  const speed = pushed - 0.05 * turn * cos / 1.1;""",
'''  game = { number, dream: begin(number), real: data.states[number], alive: 1, steps: 0, agreed: 0, parted: false, realSteps: 0, realFell: false, begun: pressed("pilot"), over: false, ended: 0 };''': '''  game = {
    number, dream: begin(number), real: data.states[number], alive: 1, steps: 0, agreed: 0,
    parted: false, realSteps: 0, realFell: false, begun: pressed("pilot"), over: false, ended: 0,
  };''',
'''  const push = held.left !== held.right ? +held.right : pressed("pilot") ? advice(game.dream) : game.steps % 2;''': '''  const alone = pressed("pilot") ? advice(game.dream) : game.steps % 2;
  const push = held.left !== held.right ? +held.right : alone;''',
"  if (tau > 0) { const sigma = doubt(game.dream); game.dream.z = game.dream.z.map((v, i) => v + tau * sigma[i] * data.noisy[i] * normal()); }": """  if (tau > 0) {
    const sigma = doubt(game.dream);
    game.dream.z = game.dream.z.map((v, i) => v + tau * sigma[i] * data.noisy[i] * normal());
  }""",
"  if (!game.realFell) { game.real = physics(game.real, push); game.realSteps++; game.realFell = fell(game.real); }": """  if (!game.realFell) {
    game.real = physics(game.real, push);
    game.realSteps++;
    game.realFell = fell(game.real);
  }""",
'''  const truth = game.realFell ? `In reality it ended after ${game.realSteps}.` : "In reality it had not ended by then.";''': '''  const ended = game.realFell ? `ended after ${game.realSteps}` : "had not ended by then";
  const truth = `In reality it ${ended}.`;''',
'''  say(game.over ? `After ${game.steps} steps M gives you less than an even chance to be alive. ${both}` : `${game.steps} steps. ${pressed("wake") ? both : ""}`);''': '''  const verdict = `After ${game.steps} steps M gives you less than an even chance to be alive.`;
  say(game.over ? `${verdict} ${both}` : `${game.steps} steps. ${pressed("wake") ? both : ""}`);''',
"  for (let k = 0; k < 64 * 38; k++) image.data.set([255 * picture[20 * 64 + k], 255 * picture[20 * 64 + k], 255 * picture[20 * 64 + k], 255].map(Math.round), 4 * k);": """  for (let k = 0; k < 64 * 38; k++) {
    const grey = Math.round(255 * picture[20 * 64 + k]);
    image.data.set([grey, grey, grey, 255], 4 * k);
  }""",
'''  for (const [id, p] of [["alive", game.alive], ["trust", trust]]) { $(id).value = p; $(id + "-says").textContent = percent(p); }''': '''  for (const [id, p] of [["alive", game.alive], ["trust", trust]]) {
    $(id).value = p;
    $(id + "-says").textContent = percent(p);
  }''',
"function drawReal(x, v, angle) {  // as gymnasium draws it: 600 x 400, 125 pixels a metre; only the rows that the dream shows": """// as gymnasium draws it: 600 x 400, 125 pixels a metre; only the rows that the dream shows
function drawReal(x, v, angle) {""",
"  if (on && game.over && performance.now() - game.ended < 1000) return;  // time to read how it ended": """  // time to read how it ended
  if (on && game.over && performance.now() - game.ended < 1000) return;""",
'''  $(side).addEventListener("pointerdown", event => { $(side).setPointerCapture(event.pointerId); hold(side, true); });''': '''  $(side).addEventListener("pointerdown", event => {
    $(side).setPointerCapture(event.pointerId);
    hold(side, true);
  });''',
'''  for (const end of ["pointerup", "pointercancel"]) $(side).addEventListener(end, () => hold(side, false));''': '''  for (const end of ["pointerup", "pointercancel"])
    $(side).addEventListener(end, () => hold(side, false));''',
'''$("wake").addEventListener("click", () => { press("wake", !pressed("wake")); $("awake").hidden = !pressed("wake"); draw(); });''': '''$("wake").addEventListener("click", () => {
  press("wake", !pressed("wake"));
  $("awake").hidden = !pressed("wake");
  draw();
});''',
'''$("pilot").addEventListener("click", () => { press("pilot", game.over || !pressed("pilot")); if (game.over) again(); game.begun = true; });''': '''$("pilot").addEventListener("click", () => {
  press("pilot", game.over || !pressed("pilot"));
  if (game.over) again();
  game.begun = true;
});''',
}
for old, new in JS.items():
    b.sub("define-page", old, new)
lines = []
for line in b.source("define-page").split("\n"):
    lines += textwrap.wrap(line, 100, break_long_words=False, break_on_hyphens=False) if len(line) > 100 and line.startswith("<p") else [line]
b.set("define-page", "\n".join(lines))
print([line for line in lines if len(line) > 100])
b.save()
