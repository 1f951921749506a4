"use strict";

// ---------------------------------------------------------------------------------------------- the recordings

const TYPES = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, uint32: Uint32Array };

// What page.py has packed: the length of the JSON, the JSON, the arrays.
async function unpack(base64) {
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const content = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrayOf = (packed) => new TYPES[packed.type](buffer, 4 + length + packed.place, packed.length);
  return { content, arrayOf };
}

// The values of all tracks from their changes. `bits`: of a value; sums wrap around as in page.py.
function summed(changes, numFrames, bits) {
  const values = new Int32Array(changes.length);
  let place = 0;
  for (const count of numFrames) {
    let value = 0;
    for (let i = 0; i < count; i++, place++) {
      value += changes[place];
      value = bits === 16 ? (value << 16) >> 16 : value & 255;
      values[place] = value;
    }
  }
  return values;
}

// The recordings of episodes.recording.Recording, with positions in m and angles in radians.
function recordings(packed, arrayOf, steps) {
  const numFrames = arrayOf(packed.num_frames);
  const firstFrame = arrayOf(packed.first_frame);
  const size = arrayOf(packed.size_dm);
  const points = {
    x: Float32Array.from(summed(arrayOf(packed.dx), numFrames, 16), (value) => value * steps.position_m),
    y: Float32Array.from(summed(arrayOf(packed.dy), numFrames, 16), (value) => value * steps.position_m),
    angle: Float32Array.from(
      summed(arrayOf(packed.dangle), numFrames, 8), (value) => (value * steps.angle_deg * Math.PI) / 180
    ),
    speed: arrayOf(packed.speed),
  };
  const state = arrayOf(packed.state);
  const queue = arrayOf(packed.queue_veh);
  const numTracks = arrayOf(packed.num_tracks);
  let second = 0, track = 0, point = 0;
  return Array.from(arrayOf(packed.num_seconds), (seconds, number) => {
    const tracks = [];
    for (const end = track + numTracks[number]; track < end; track++) {
      const [length, width] = [size[2 * track] / 10, size[2 * track + 1] / 10];
      tracks.push({ first: firstFrame[track], last: firstFrame[track] + numFrames[track] - 1, point, length, width });
      point += numFrames[track];
    }
    const own = { seconds, tracks, points, states: packed.states };
    own.state = state.subarray(second, second + seconds);
    own.queue = queue.subarray(second, second + seconds);
    second += seconds;
    return own;
  });
}

// The tracks that are present in each frame.
function presence(recording) {
  const present = Array.from({ length: recording.seconds + 1 }, () => []);
  for (const track of recording.tracks) {
    for (let frame = track.first; frame <= track.last; frame++) present[frame].push(track);
  }
  return present;
}

const queueAt = (recording, time) => recording.queue[Math.min(recording.seconds, Math.ceil(time)) - 1] ?? 0;

// ---------------------------------------------------------------------------------------------- drawing

const COLOURS = {
  road: "#b4bac1", path: "#dcd8cf", rail: "#a89f91", node: "#c3c8ce",
  moving: "#1f4e79", halting: "#f0a30a", outline: "#16191d",
  ink: "#16191d", soft: "#5a626b", line: "#d5dae0",
  stages: ["#3d7ea6", "#7fb069", "#c98bb9", "#d9b44a", "#6c8ead", "#9a9a5b", "#b5838d", "#5fa8a0"],
  change: "#e6e9ec", dear: "#c22f3d", cheap: "#8a929b",
};
const EPISODE_COLOURS = ["#1c5fa8", "#b45309"];
const ANSWER_COLOURS = { yes: "#1f7a3a", no: "#7a1f6a" };
const SIGNALS = { G: "#12a53a", g: "#5ecb7a", s: "#5ecb7a", y: "#ffd21a", Y: "#ffd21a", u: "#ff9500", r: "#e02b3c", o: "#b98500", O: "#8a929b" };
const FONT = '12px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';

// A canvas whose pixels are those of the screen. Returns its context, in CSS pixels.
function fitted(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

const pathOf = (points, path = new Path2D()) => {
  points.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
  return path;
};

class GroundMap {
  constructor(map) {
    this.shown = map.shown;
    this.stopLines = map.stop_lines.map(([index, points]) => ({ index, path: pathOf(points) }));
    this.crossings = map.crossings.map(([index, points, width]) => ({ index, width, path: pathOf(points) }));
    this.nodes = new Path2D();
    for (const outline of map.nodes) pathOf(outline, this.nodes).closePath();
    this.lanes = map.lanes.map(([points, width, kind]) => ({ path: pathOf(points), width, kind }));
  }

  draw(context) {
    context.fillStyle = context.strokeStyle = COLOURS.node;
    context.fill(this.nodes);
    context.lineJoin = "round";
    for (const { path, width, kind } of this.lanes) {
      context.strokeStyle = COLOURS[kind];
      context.lineWidth = width * 0.94;
      context.stroke(path);
    }
  }

  // `letters`: the state of the signal. `pixel`: the length of a pixel in m.
  drawSignals(context, letters, pixel) {
    context.lineCap = "butt";
    context.setLineDash([0.5, 0.5]);
    for (const { index, width, path } of this.crossings) {
      context.strokeStyle = "Gg".includes(letters[index]) ? SIGNALS.G : "#fff";
      context.lineWidth = Math.min(width, 4);
      context.stroke(path);
    }
    context.setLineDash([]);
    context.lineWidth = Math.max(1.1, 4 * pixel);
    for (const { index, path } of this.stopLines) {
      context.strokeStyle = SIGNALS[letters[index]] ?? COLOURS.soft;
      context.stroke(path);
    }
  }
}

// What all panels show: the middle in m, and how many times larger than at first.
class View {
  constructor(shown) {
    this.shown = shown;
    this.reset();
  }

  reset() {
    const [west, south, east, north] = this.shown;
    Object.assign(this, { x: (west + east) / 2, y: (south + north) / 2, zoom: 1 });
  }

  // pixels per m
  scale(canvas) {
    const [west, south, east, north] = this.shown;
    return this.zoom * Math.min(canvas.clientWidth / (east - west), canvas.clientHeight / (north - south));
  }
}

// Draws one recording on a canvas.
class Panel {
  constructor(canvas, recording, ground, view, redraw) {
    Object.assign(this, { canvas, recording, ground, view, present: presence(recording) });
    this.background = document.createElement("canvas");
    this.listen(redraw);
  }

  // time: in s since the first frame
  draw(time) {
    const context = fitted(this.canvas);
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = this.view.scale(this.canvas), ratio = window.devicePixelRatio || 1;
    const toMetres = (target) => target.setTransform(
      ratio * scale, 0, 0, -ratio * scale, ratio * (width / 2 - this.view.x * scale), ratio * (height / 2 + this.view.y * scale)
    );
    const seen = [width, height, ratio, scale, this.view.x, this.view.y].join();
    if (this.seen !== seen) {
      this.seen = seen;
      Object.assign(this.background, { width: this.canvas.width, height: this.canvas.height });
      const below = this.background.getContext("2d");
      toMetres(below);
      this.ground.draw(below);
    }
    context.clearRect(0, 0, width, height);
    context.drawImage(this.background, 0, 0, width, height);
    toMetres(context);
    const { states, state, seconds } = this.recording;
    this.ground.drawSignals(context, states[state[Math.min(seconds - 1, Math.floor(time))]], 1 / scale);
    this.drawVehicles(context, time, width / 2 / scale + 20, height / 2 / scale + 20, 1 / scale);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    drawScaleBar(context, scale, height);
  }

  // halfWidth, halfHeight: how far from the middle a vehicle can be seen, in m
  drawVehicles(context, time, halfWidth, halfHeight, pixel) {
    const { x: xs, y: ys, angle: angles, speed: speeds } = this.recording.points;
    const frame = Math.min(this.recording.seconds, Math.floor(time)), part = time - frame;
    const paths = { moving: new Path2D(), halting: new Path2D() };
    for (const track of this.present[frame]) {
      const here = track.point + frame - track.first;
      const there = frame < track.last ? here + 1 : here;
      const x = xs[here] + part * (xs[there] - xs[here]), y = ys[here] + part * (ys[there] - ys[here]);
      if (Math.abs(x - this.view.x) > halfWidth || Math.abs(y - this.view.y) > halfHeight) continue;
      let turn = angles[there] - angles[here];
      if (turn > Math.PI) turn -= 2 * Math.PI;
      if (turn < -Math.PI) turn += 2 * Math.PI;
      const angle = angles[here] + part * turn;
      outline(speeds[part < 0.5 ? here : there] ? paths.moving : paths.halting, x, y, angle, track.length, track.width);
    }
    context.lineWidth = pixel;
    context.strokeStyle = COLOURS.outline;
    for (const [kind, path] of Object.entries(paths)) {
      context.fillStyle = COLOURS[kind];
      context.fill(path);
      context.stroke(path);
    }
  }

  listen(redraw) {
    const { canvas, view } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = canvas.getBoundingClientRect();
      const right = event.clientX - box.left - box.width / 2, down = event.clientY - box.top - box.height / 2;
      const before = view.scale(canvas);
      view.zoom = Math.min(20, Math.max(0.25, view.zoom * Math.exp(-event.deltaY / 500)));
      const after = view.scale(canvas);
      view.x += right / before - right / after;  // what is below the pointer stays there
      view.y -= down / before - down / after;
      redraw();
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      view.x -= event.movementX / view.scale(canvas);
      view.y += event.movementY / view.scale(canvas);
      redraw();
    });
  }
}

// Adds a vehicle to a path. x, y: the middle of its front; angle: radians clockwise from north.
function outline(path, x, y, angle, length, width) {
  const ahead = [Math.sin(angle), Math.cos(angle)];
  const nose = Math.min(0.9, length / 4);
  // along: m behind the front; aside: m to the right
  const corner = (along, aside) => [x - along * ahead[0] + aside * ahead[1], y - along * ahead[1] - aside * ahead[0]];
  pathOf([
    corner(0, -width / 3.2), corner(0, width / 3.2), corner(nose, width / 2),
    corner(length, width / 2), corner(length, -width / 2), corner(nose, -width / 2),
  ], path).closePath();
}

function drawScaleBar(context, scale, height) {
  const metres = [5, 10, 20, 50, 100].find((each) => each * scale > 50) ?? 200;
  context.strokeStyle = context.fillStyle = COLOURS.ink;
  context.lineWidth = 2;
  context.font = FONT;
  context.beginPath();
  context.moveTo(12, height - 12);
  context.lineTo(12 + metres * scale, height - 12);
  context.stroke();
  context.fillText(`${metres} m`, 12, height - 18);
}

// ---------------------------------------------------------------------------------------------- words

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

function clockWords(seconds) {
  const whole = Math.floor(seconds);
  const two = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

// An element with a class, a text or children.
function element(tag, content = "", className = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...[content].flat());
  return made;
}

const ANSWER_WORDS = { yes: "extend", no: "end" };

// ---------------------------------------------------------------------------------------------- the strip chart

const GUTTER = 118, QUEUE_HEIGHT = 110, BAND_HEIGHT = 14, ROW_HEIGHT = 42, AXIS_HEIGHT = 20;

class Strip {
  constructor(canvas, episodes, fromS) {
    Object.assign(this, { canvas, episodes, fromS, seconds: episodes[0].recording.seconds });
    canvas.style.height = `${QUEUE_HEIGHT + episodes.length * ROW_HEIGHT + AXIS_HEIGHT + 8}px`;
    this.background = document.createElement("canvas");
    this.dearest = Math.max(1, ...episodes.flatMap(({ decisions }) => decisions.map(({ regret }) => regret)));
  }

  get width() { return this.canvas.clientWidth - GUTTER - 26; }
  x(time) { return GUTTER + (time / this.seconds) * this.width; }
  time(x) { return Math.min(this.seconds, Math.max(0, ((x - GUTTER) / this.width) * this.seconds)); }
  rowTop(row) { return QUEUE_HEIGHT + 8 + row * ROW_HEIGHT; }
  markY(row) { return this.rowTop(row) + BAND_HEIGHT + 12; }

  draw(time, open) {
    const context = fitted(this.canvas);
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = window.devicePixelRatio || 1, seen = [width, height, ratio].join();
    if (this.seen !== seen) {
      this.seen = seen;
      Object.assign(this.background, { width: this.canvas.width, height: this.canvas.height });
      const below = this.background.getContext("2d");
      below.setTransform(ratio, 0, 0, ratio, 0, 0);
      this.drawBackground(below);
    }
    context.clearRect(0, 0, width, height);
    context.drawImage(this.background, 0, 0, width, height);
    if (open) {
      const x = this.x(open.decision.time_s - this.fromS);
      context.strokeStyle = COLOURS.ink;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, this.markY(open.row), 9, 0, 2 * Math.PI);
      context.stroke();
    }
    context.strokeStyle = COLOURS.ink;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(this.x(time), 0);
    context.lineTo(this.x(time), height - AXIS_HEIGHT);
    context.stroke();
  }

  drawBackground(context) {
    context.font = FONT;
    const highest = Math.max(1, ...this.episodes.map(({ recording }) => recording.queue.reduce((a, b) => Math.max(a, b), 0)));
    drawQueueAxis(context, highest, GUTTER, this.width, QUEUE_HEIGHT, "queue [veh]");
    this.episodes.forEach(({ recording, colour, name }, row) => {
      drawQueue(context, recording.queue, highest, (second) => this.x(second), QUEUE_HEIGHT, colour, row ? [6, 3] : []);
      this.drawStages(context, row);
      this.drawMarks(context, row);
      context.fillStyle = colour;
      context.textAlign = "right";
      context.textBaseline = "middle";
      context.fillText(shortened(context, name, GUTTER - 14), GUTTER - 8, this.rowTop(row) + BAND_HEIGHT / 2);
    });
    this.drawTimes(context);
  }

  drawStages(context, row) {
    const { stage } = this.episodes[row];
    const top = this.rowTop(row);
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let begin = 0, end; begin < stage.length; begin = end) {
      end = begin + 1;
      while (end < stage.length && stage[end] === stage[begin]) end++;
      const x = this.x(begin), width = this.x(end) - x;
      context.fillStyle = stage[begin] < 0 ? COLOURS.change : COLOURS.stages[stage[begin] % COLOURS.stages.length];
      context.fillRect(x, top, width, BAND_HEIGHT);
      if (stage[begin] >= 0 && width > 12) {
        context.fillStyle = "#000";
        context.fillText(stage[begin] + 1, x + width / 2, top + BAND_HEIGHT / 2 + 1);
      }
    }
  }

  drawMarks(context, row) {
    const y = this.markY(row);
    context.lineWidth = 1.5;
    // the dearest lie above
    for (const { time_s, decision, regret } of [...this.episodes[row].decisions].sort((a, b) => a.regret - b.regret)) {
      const x = this.x(time_s - this.fromS), radius = 3 + 4 * Math.sqrt(regret / this.dearest);
      context.strokeStyle = context.fillStyle = regret > 0 ? COLOURS.dear : COLOURS.cheap;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      if (decision === "no") context.fillStyle = "#fff";
      context.fill();
      context.stroke();
    }
  }

  drawTimes(context) {
    const step = [10, 30, 60, 120, 300, 600, 1200].find((each) => (each / this.seconds) * this.width > 55) ?? 3600;
    const y = this.canvas.clientHeight - AXIS_HEIGHT + 10;
    context.fillStyle = COLOURS.soft;
    context.textAlign = "center";
    for (let s = Math.ceil(this.fromS / step) * step; s <= this.fromS + this.seconds; s += step) {
      const x = this.x(s - this.fromS);
      context.fillRect(x, y - 12, 1, 4);
      context.fillText(clockWords(s), x, y + 2);
    }
  }

  // The decision whose mark is at a point, or null.
  decisionAt(x, y) {
    let best = null, nearest = 8;
    this.episodes.forEach(({ decisions }, row) => {
      if (Math.abs(y - this.markY(row)) > 14) return;
      decisions.forEach((decision, place) => {
        const distance = Math.abs(this.x(decision.time_s - this.fromS) - x);
        if (distance < nearest) [best, nearest] = [{ row, place }, distance];
      });
    });
    return best;
  }
}

function shortened(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  while (text && context.measureText(`${text}…`).width > width) text = text.slice(0, -1);
  return `${text}…`;
}

function drawQueueAxis(context, highest, left, width, height, label) {
  context.fillStyle = COLOURS.soft;
  context.strokeStyle = COLOURS.line;
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((each) => highest / each <= 4) ?? 1000;
  for (let value = 0; value <= highest; value += step) {
    const y = Math.round(height - (value / highest) * (height - 10)) + 0.5;
    context.beginPath();
    context.moveTo(left, y);
    context.lineTo(left + width, y);
    context.stroke();
    context.fillText(value, left - 6, y);
  }
  context.textAlign = "left";
  context.fillText(label, 2, 8);
}

// xOf: the place of the end of a second
function drawQueue(context, queue, highest, xOf, height, colour, dash) {
  context.strokeStyle = colour;
  context.lineWidth = 1.8;
  context.setLineDash(dash);
  context.beginPath();
  queue.forEach((value, second) => {
    const y = height - (value / highest) * (height - 10);
    if (second) context.lineTo(xOf(second + 1), y);
    else context.moveTo(xOf(1), y);
  });
  context.stroke();
  context.setLineDash([]);
}

// ---------------------------------------------------------------------------------------------- a decision

// What both answers of a decision led to.
class DecisionView {
  constructor(section, ground, view, cost, redraw) {
    Object.assign(this, { section, ground, view, cost, redraw, open: null });
  }

  show(open) {
    this.open = open;
    this.time = 0;
    this.playing = true;
    const { episode, decision, answers } = open;
    const close = element("button", "Close");
    close.type = "button";
    close.title = "Esc";
    close.onclick = () => this.close();
    const places = element("div", "", "answers");
    this.panels = ["yes", "no"].map((answer) => {
      const canvas = element("canvas");
      const title = element("h2", [`If the answer is ${answer}: ${ANSWER_WORDS[answer]} the green`]);
      const figures = element("span", "", "numbers");
      title.append(figures);
      const place = element("div", [title, canvas], "panel");
      place.style.setProperty("--colour", ANSWER_COLOURS[answer]);
      places.append(place);
      return { figures, answer, panel: new Panel(canvas, answers[answer], this.ground, this.view, this.redraw) };
    });
    this.chart = element("canvas", "", "chart");
    this.chart.addEventListener("click", (event) => {
      this.time = this.chartTime(event.clientX - this.chart.getBoundingClientRect().left);
      this.playing = false;
      this.redraw();
    });
    this.toggle = element("button", "Pause");
    this.toggle.type = "button";
    this.toggle.onclick = () => {
      this.playing = !this.playing;
      this.redraw();
    };
    const heading = `${episode.name} at ${clockWords(decision.time_s)} (${number(decision.time_s)} s): ` +
      `${decision.decision}, ${ANSWER_WORDS[decision.decision]} the green`;
    this.section.replaceChildren(
      close, element("h2", heading), ...this.facts(decision), places,
      element("p", [
        this.toggle, ` Both from the same state, over ${this.cost.horizon_s} s. The queue after `,
        element("span", "yes (solid)", "answer-yes"), " and ", element("span", "no (dashed)", "answer-no"), ":",
      ]),
      this.chart,
      ...this.words(decision),
    );
    this.section.hidden = false;
    this.section.scrollIntoView({ block: "nearest" });
    this.redraw();
  }

  close() {
    this.open = null;
    this.section.hidden = true;
    this.redraw();
  }

  facts(decision) {
    const unit = this.cost.unit === "vehicle-seconds" ? "veh·s" : this.cost.unit;
    const { yes, no } = decision.outcomes;
    const rows = ["yes", "no"].map((answer) => {
      const notes = [
        ...(answer === decision.decision ? ["given"] : []),
        ...(decision.outcomes[answer] === Math.min(yes, no) && yes !== no ? ["better"] : []),
      ];
      const row = element("tr", [
        element("td", `${answer} (${ANSWER_WORDS[answer]})`), element("td", number(decision.outcomes[answer], 1), "number"),
        element("td", notes.join(", ")),
      ]);
      if (notes.includes("better")) row.className = "better";
      return row;
    });
    const head = element("tr", [element("th", "answer"), element("th", `cost [${unit}]`, "number"), element("th", "")]);
    const verdict = yes === no ? "Both answers cost the same."
      : decision.regret ? `Regret: the other answer would have cost ${number(decision.regret, 1)} ${unit} less.`
        : `No regret: the other answer would have cost ${number(Math.abs(yes - no), 1)} ${unit} more.`;
    return [
      element("p", `Stage ${decision.stage + 1}, green for ${number(decision.elapsed_green_s)} s. ${verdict}`),
      element("table", [element("thead", head), element("tbody", rows)]),
      element("p", `The cost is ${this.cost.measure} over ${this.cost.horizon_s} s (scope: ${this.cost.scope}); after the ` +
        `decision, ${this.cost.tail} runs all junctions. So what follows here differs from the episode above.`, "soft"),
    ];
  }

  words(decision) {
    if (!decision.prompt) return [];
    const prompt = [element("h3", "Prompt")];
    for (const { role, content } of decision.prompt) prompt.push(element("p", role, "role"), element("pre", content));
    const answer = [element("h3", "Answer of the model"), element("pre", decision.answer ?? "(no answer in time)")];
    if (decision.fallback) answer.push(element("p", `The answer is ${decision.fallback}, so the net's own plan decided.`));
    return [element("div", [element("div", prompt), element("div", answer)], "words")];
  }

  chartTime(x) {
    const width = this.chart.clientWidth - 80;
    return Math.min(this.cost.horizon_s, Math.max(0, ((x - 60) / width) * this.cost.horizon_s));
  }

  // seconds: how much simulated time has passed since the last frame
  draw(seconds) {
    if (!this.open) return;
    if (this.playing) this.time += seconds;
    if (this.time > this.cost.horizon_s + 1) this.time = 0;  // begins again after a second at the end
    const time = Math.min(this.time, this.cost.horizon_s);
    for (const { panel, figures } of this.panels) {
      panel.draw(time);
      figures.textContent = `queue ${queueAt(panel.recording, time)} veh after ${Math.floor(time)} s`;
    }
    this.toggle.textContent = this.playing ? "Pause" : "Play";
    this.drawChart(time);
  }

  drawChart(time) {
    const context = fitted(this.chart);
    const { clientWidth: width, clientHeight: height } = this.chart;
    const bottom = height - 22, x = (second) => 60 + (second / this.cost.horizon_s) * (width - 80);
    const queues = this.panels.map(({ panel }) => panel.recording.queue);
    const highest = Math.max(1, ...queues.flatMap((queue) => Array.from(queue)));
    context.clearRect(0, 0, width, height);
    context.font = FONT;
    drawQueueAxis(context, highest, 60, width - 80, bottom, "[veh]");
    this.panels.forEach(({ answer }, place) => {
      drawQueue(context, queues[place], highest, x, bottom, ANSWER_COLOURS[answer], place ? [6, 3] : []);
    });
    context.fillStyle = COLOURS.soft;
    context.textAlign = "center";
    for (let second = 0; second <= this.cost.horizon_s; second += this.cost.horizon_s > 120 ? 60 : 15) {
      context.fillText(`${second} s`, x(second), height - 9);
    }
    context.strokeStyle = COLOURS.ink;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x(time), 0);
    context.lineTo(x(time), bottom);
    context.stroke();
  }
}

// ---------------------------------------------------------------------------------------------- the page

class Player {
  constructor(content, arrayOf) {
    this.fromS = content.from_s;
    this.time = 0;
    this.playing = false;
    this.byId = (id) => document.getElementById(id);
    const ground = new GroundMap(content.map);
    this.view = new View(content.map.shown);
    this.redraw = () => this.request();
    this.episodes = content.episodes.map((packed, row) => episodeOf(packed, row, arrayOf, content.steps));
    this.seconds = this.episodes[0].recording.seconds;
    for (const episode of this.episodes) this.addPanel(episode, ground);
    this.strip = new Strip(this.byId("strip"), this.episodes, this.fromS);
    this.decision = new DecisionView(this.byId("decision"), ground, this.view, content.cost, this.redraw);
    this.byId("title").textContent = `${content.scenario}, junction ${content.junction}, seed ${content.seed}: ` +
      this.episodes.map(({ name }) => name).join(" and ");
    this.writeKey();
    this.listCostliest(content.cost);
    this.listen();
    this.followLink();
  }

  addPanel(episode, ground) {
    const canvas = element("canvas");
    const title = element("h2", episode.name);
    title.title = episode.description;
    episode.figures = element("span", "", "numbers");
    title.append(episode.figures);
    const place = element("div", [title, canvas], "panel");
    place.style.setProperty("--colour", episode.colour);
    this.byId("panels").append(place);
    episode.panel = new Panel(canvas, episode.recording, ground, this.view, this.redraw);
  }

  writeKey() {
    const words = "Above: halting vehicles on the approaches of this junction. Bands: the green stage; grey is yellow and red between stages.";
    const marks = " Circles: decisions, filled to extend the green and empty to end it. Red ones cost more than the other answer; the larger, the more. Click one to see both answers.";
    this.byId("key").textContent = words + (this.episodes.some(({ decisions }) => decisions.length) ? marks : "");
  }

  listCostliest(cost) {
    const unit = cost.unit === "vehicle-seconds" ? "veh·s" : cost.unit;
    const lists = this.episodes.map((episode, row) => {
      const { decisions, name } = episode;
      const dear = decisions.map((decision, place) => ({ ...decision, place })).filter(({ regret }) => regret > 0);
      const total = dear.reduce((sum, { regret }) => sum + regret, 0);
      const words = decisions.length
        ? `${decisions.length} decisions; ${dear.length} cost more than the other answer, ${number(total / Math.max(1, dear.length), 1)} ${unit} each on average.`
        : "SUMO switches by a program: there are no decisions.";
      const head = element("tr", ["time", "decision", `regret [${unit}]`].map((text, i) => element("th", text, i > 1 ? "number" : "")));
      const rows = dear.sort((a, b) => b.regret - a.regret).slice(0, 5).map(({ time_s, decision, regret, place }) => {
        const line = element("tr", [
          element("td", clockWords(time_s)), element("td", `${decision} (${ANSWER_WORDS[decision]})`), element("td", number(regret, 1), "number"),
        ], "link");
        line.tabIndex = 0;
        line.onclick = () => this.openDecision(row, place);
        line.onkeydown = (event) => event.key === "Enter" && this.openDecision(row, place);
        return line;
      });
      return element("div", [
        element("h3", name), element("p", words),
        ...(rows.length ? [element("table", [element("thead", head), element("tbody", rows)])] : []),
      ]);
    });
    this.byId("costliest").append(element("h2", "Costliest decisions"), element("div", lists, "lists"));
  }

  listen() {
    const speeds = [0.5, 1, 2, 5, 10, 20, 50];
    this.byId("speed").append(...speeds.map((speed) => new Option(`${speed} ×`, speed, speed === 5, speed === 5)));
    this.byId("play").onclick = () => this.toggle();
    this.byId("previous").onclick = () => this.step(-1);
    this.byId("next").onclick = () => this.step(1);
    this.byId("home").onclick = () => this.resetView();
    this.byId("seek").max = this.seconds;
    this.byId("seek").oninput = (event) => this.seek(Number(event.target.value));
    const strip = this.byId("strip");
    const place = (event) => [event.clientX - strip.getBoundingClientRect().left, event.clientY - strip.getBoundingClientRect().top];
    strip.addEventListener("pointerdown", (event) => {
      const found = this.strip.decisionAt(...place(event));
      if (found) return this.openDecision(found.row, found.place);
      strip.setPointerCapture(event.pointerId);
      this.seek(this.strip.time(place(event)[0]));
    });
    strip.addEventListener("pointermove", (event) => {
      if (strip.hasPointerCapture(event.pointerId)) this.seek(this.strip.time(place(event)[0]));
    });
    document.addEventListener("keydown", (event) => this.onKey(event));
    window.addEventListener("resize", this.redraw);
    window.addEventListener("hashchange", () => this.followLink());
  }

  onKey(event) {
    const { key, shiftKey, target, altKey, ctrlKey, metaKey } = event;
    if (altKey || ctrlKey || metaKey || target.tagName === "SELECT") return;
    if (key === " " && target.tagName === "BUTTON") return;
    if (target.tagName === "INPUT" && /^(Arrow|Home|End)/.test(key)) return;  // move the slider
    const speed = this.byId("speed");
    const change = (by) => {
      speed.selectedIndex = Math.min(speed.length - 1, Math.max(0, speed.selectedIndex + by));
    };
    const actions = {
      " ": () => this.toggle(),
      ArrowLeft: () => this.seek(this.time - (shiftKey ? 10 : 1)),
      ArrowRight: () => this.seek(this.time + (shiftKey ? 10 : 1)),
      Home: () => this.seek(0), End: () => this.seek(this.seconds),
      n: () => this.step(1), p: () => this.step(-1), h: () => this.resetView(), Escape: () => this.decision.close(),
      "+": () => change(1), "=": () => change(1), "-": () => change(-1),
    };
    const action = actions[key.length === 1 ? key.toLowerCase() : key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // The address may say what to show: #time=750, or #decision=max_pressure@754.
  followLink() {
    const words = new URLSearchParams(location.hash.slice(1));
    if (words.has("time")) this.seek(Number(words.get("time")) - this.fromS);
    const [name, time] = (words.get("decision") ?? "").split("@");
    const row = this.episodes.findIndex((episode) => episode.name === name);
    const place = row < 0 ? -1 : this.episodes[row].decisions.findIndex(({ time_s }) => time_s === Number(time));
    if (place >= 0) this.openDecision(row, place);
    this.request();
  }

  toggle() {
    this.playing = !this.playing;
    if (this.playing && this.time >= this.seconds) this.time = 0;
    this.request();
  }

  seek(time) {
    this.time = Math.min(this.seconds, Math.max(0, time));
    this.request();
  }

  resetView() {
    this.view.reset();
    this.request();
  }

  openDecision(row, place) {
    const episode = this.episodes[row], decision = episode.decisions[place];
    const answers = { yes: episode.answers[2 * place], no: episode.answers[2 * place + 1] };
    this.playing = false;
    this.seek(decision.time_s - this.fromS);
    this.decision.show({ row, place, episode, decision, answers });
  }

  // The next or the previous decision: of the open one's controller, else of any.
  step(by) {
    const { open } = this.decision;
    const all = this.episodes.flatMap(({ decisions }, row) => decisions.map(({ time_s }, place) => ({ row, place, time: time_s - this.fromS })));
    const candidates = open ? all.filter(({ row, place }) => row === open.row && (place - open.place) * by > 0)
      : all.filter(({ time }) => (time - this.time) * by > 0.001);
    candidates.sort((a, b) => (a.time - b.time) * by);
    if (candidates.length) this.openDecision(candidates[0].row, candidates[0].place);
  }

  request() {
    this.requested ??= requestAnimationFrame((now) => this.frame(now));
  }

  frame(now) {
    this.requested = undefined;
    // a page that was hidden for a while does not jump
    const passed = Math.min(0.1, (now - (this.last ?? now)) / 1000) * Number(this.byId("speed").value);
    this.last = now;
    if (this.playing) this.time = Math.min(this.seconds, this.time + passed);
    if (this.time >= this.seconds) this.playing = false;
    for (const episode of this.episodes) episode.panel.draw(this.time);
    this.strip.draw(this.time, this.decision.open);
    this.decision.draw(passed);
    this.writeNumbers();
    if (this.playing || (this.decision.open && this.decision.playing)) this.request();
    else this.last = undefined;
  }

  writeNumbers() {
    this.byId("seek").value = this.time;
    this.byId("play").textContent = this.playing ? "Pause" : "Play";
    const second = Math.ceil(this.time);
    this.byId("clock").textContent = `${clockWords(this.fromS + this.time)} (${number(this.fromS + Math.floor(this.time))} s)`;
    for (const { figures, recording, queueSums, stage } of this.episodes) {
      const now = stage[Math.min(this.seconds - 1, Math.floor(this.time))];
      const mean = second ? number(queueSums[second - 1] / second, 1) : "0.0";
      figures.textContent = `queue ${queueAt(recording, this.time)} veh, mean so far ${mean} · ${now < 0 ? "between stages" : `stage ${now + 1}`}`;
    }
  }
}

function episodeOf(packed, row, arrayOf, steps) {
  const [recording] = recordings(packed.recording, arrayOf, steps);
  let sum = 0;
  return {
    name: packed.controller, description: packed.description, colour: EPISODE_COLOURS[row], recording,
    stage: arrayOf(packed.stage),
    queueSums: Array.from(recording.queue, (queue) => (sum += queue)),
    decisions: packed.decisions.map((decision) => {
      const { yes, no } = decision.outcomes;
      return { ...decision, regret: decision.outcomes[decision.decision] - Math.min(yes, no) };
    }),
    answers: recordings(packed.answers, arrayOf, steps),
  };
}

unpack(document.getElementById("data").textContent).then(({ content, arrayOf }) => new Player(content, arrayOf));
