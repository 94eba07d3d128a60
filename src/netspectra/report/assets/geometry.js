// What a layer does to space, in four views: inputs, turned by V, stretched by S, turned by U. Drawn on canvases.

const STEPS = [
  ["x", "Inputs", "The inputs as they come."],
  ["Vᵀx", "Turn", "Vᵀ turns the space until the directions that are stretched most lie along the axes. Nothing changes length."],
  ["S Vᵀx", "Stretch", "S stretches along the axes, each by its own singular value. This is the only step that changes length."],
  ["U S Vᵀx = Wx", "Turn", "U turns the stretched space into the outputs. Nothing changes length again."],
];
const REACH = 1.8;
const GLYPHS = 2;

/** A canvas with three axes that can be turned by dragging or with the arrow keys; `paint(pen, project)` draws. */
function spaceCanvas(label, paint) {
  const canvas = el("canvas", { class: "space", role: "img", tabindex: 0, "aria-label": label });
  const view = { yaw: -0.6, pitch: 0.42 };
  let held = null;

  function project([x, y, z]) {
    const [cy, sy, cp, sp] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
    const across = cy * x + sy * y;
    const away = -sy * x + cy * y;
    return [across, cp * z + sp * away, cp * away - sp * z];
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, (width * ratio) / 2, (height * ratio) / 2);
    pen.room = { width, height };
    pen.clearRect(-width / 2, -height / 2, width, height);
    paint(pen, project, Math.min(width, height) * 0.44);
  }

  function turn(yaw, pitch) {
    view.yaw += yaw;
    view.pitch = Math.max(-1.57, Math.min(1.57, view.pitch + pitch));
    draw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    held = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    turn((event.clientX - held[0]) * 0.01, (event.clientY - held[1]) * 0.01);
    held = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
  canvas.addEventListener("keydown", (event) => {
    const turns = new Map([["ArrowLeft", [-0.1, 0]], ["ArrowRight", [0.1, 0]], ["ArrowUp", [0, -0.1]], ["ArrowDown", [0, 0.1]]]);
    if (!turns.has(event.key)) return;
    turn(...turns.get(event.key));
    event.preventDefault();
  });
  new ResizeObserver(draw).observe(canvas);
  return { canvas, draw };
}

/** Where the show stands: `at` runs from 0 (inputs) to 3 (outputs). Gives the two turns and the stretch, 0 to 1 each. */
function phases(at) {
  const part = (from) => Math.max(0, Math.min(1, at - from));
  return { into: part(0), stretch: part(1), out: part(2) };
}

/** The frame at a share of the way: rows are coordinates, columns axes. */
function frameAt(frames, share) {
  const place = share * (frames.length - 1);
  const low = Math.floor(place);
  const [a, b] = [frames[low], frames[Math.min(low + 1, frames.length - 1)]];
  return a.map((row, i) => row.map((value, j) => value + (place - low) * (b[i][j] - value)));
}

/** Coordinates of a point along the axes of a frame, three of them. */
function along(point, frame) {
  const out = [0, 0, 0];
  for (let j = 0; j < frame[0].length; j += 1) {
    for (let i = 0; i < point.length; i += 1) out[j] += point[i] * frame[i][j];
  }
  return out;
}

/** Pixels a unit before and after the stretch: growth is seen up to 1.8 times, the zoom takes the rest. */
function zoom(before, after, room) {
  const growth = Math.max(1 / REACH, Math.min(REACH, after / before));
  return [(room * Math.min(1, 1 / growth)) / before, (room * Math.min(1, growth)) / after];
}

function path3(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], i) => (i ? pen.lineTo(x, -y) : pen.moveTo(x, -y)));
}

/** The three fixed axes of the picture, behind everything. */
function paintAxes(pen, project, length) {
  pen.strokeStyle = colour("line");
  pen.lineWidth = 1;
  for (const axis of [[1, 0, 0], [0, 1, 0], [0, 0, 1]]) {
    path3(pen, [-length, length].map((size) => project(axis.map((value) => value * size))));
    pen.stroke();
  }
}

/** A circle of a known length, so that a change of scale is seen. */
function paintUnit(pen, radius, text) {
  pen.strokeStyle = colour("faint");
  pen.setLineDash([4, 4]);
  pen.beginPath();
  pen.arc(0, 0, Math.max(radius, 0.5), 0, 2 * Math.PI);
  pen.stroke();
  pen.setLineDash([]);
  write(pen, `dashed: ${text}`, -pen.room.width / 2 + 4, -pen.room.height / 2 + 12, colour("muted"), "left");
}

function write(pen, text, x, y, ink, align = "center", size = 12.5) {
  pen.font = `${size}px system-ui, sans-serif`;
  pen.textAlign = align;
  pen.textBaseline = "middle";
  pen.lineWidth = 3;
  pen.strokeStyle = colour("surface");
  pen.strokeText(text, x, y);
  pen.fillStyle = ink;
  pen.fillText(text, x, y);
}

/** An arrow from the middle to a point in space, with a name at its head. */
function paintArrow(pen, project, to, ink, name) {
  const [x, y] = project(to);
  const length = Math.hypot(x, y);
  pen.strokeStyle = ink;
  pen.fillStyle = ink;
  pen.lineWidth = 2.4;
  path3(pen, [[0, 0], [x, y]]);
  pen.stroke();
  if (length < 4) return;
  const [ux, uy] = [x / length, y / length];
  path3(pen, [[x + 3 * ux, y + 3 * uy], [x - 7 * ux - 4 * uy, y - 7 * uy + 4 * ux], [x - 7 * ux + 4 * uy, y - 7 * uy - 4 * ux]]);
  pen.closePath();
  pen.fill();
  write(pen, name, x + 16 * ux, -(y + 14 * uy), ink);
}

/** Circles of longitude and latitude of the unit sphere, made once. */
const GLOBE = (() => {
  const ring = (make) => Array.from({ length: 65 }, (_, i) => make((i / 64) * 2 * Math.PI));
  const lines = [];
  for (let i = 0; i < 6; i += 1) {
    const a = (i * Math.PI) / 6;
    lines.push(ring((t) => [Math.cos(a) * Math.cos(t), Math.sin(a) * Math.cos(t), Math.sin(t)]));
  }
  for (const z of [-0.75, -0.4, 0, 0.4, 0.75]) {
    const r = Math.sqrt(1 - z * z);
    lines.push(ring((t) => [r * Math.cos(t), r * Math.sin(t), z]));
  }
  return lines;
})();

/** Axis names at a step: v before the stretch, u after it. */
function axisName(at, i) {
  return `${at < 1.5 ? "v" : "u"}${"₁₂₃"[i]}`;
}

/** The unit sphere in the space of the leading directions. */
function paintSphere(scene, at) {
  const { into, stretch, out } = phases(at);
  const sigma = scene.sigma;
  const turn = out > 0 ? frameAt(scene.sphere.out, out) : frameAt(scene.sphere.into, into);
  const sizes = sigma.map((value) => 1 + stretch * (value - 1));
  return (pen, project, room) => {
    const [first, last] = zoom(1, sigma[0] || 1, room);
    const scale = first * (last / first) ** stretch;
    const place = (point) => along(sizes.map((size, i) => size * scale * point[i]), turn);
    paintAxes(pen, project, room * 1.1);
    paintUnit(pen, scale, "length 1");
    for (const line of GLOBE) {
      const seen = line.map((point) => project(place(point)));
      for (let i = 1; i < seen.length; i += 1) {
        pen.strokeStyle = faded(dataColour(0), seen[i][2] > 0 ? 0.22 : 0.62);
        pen.lineWidth = 1;
        path3(pen, [seen[i - 1], seen[i]]);
        pen.stroke();
      }
    }
    sigma.forEach((_, i) => paintArrow(pen, project, place([0, 0, 0].map((zero, j) => (i === j ? 1 : zero))), dataColour(i + 1), axisName(at, i)));
  };
}

/** How labels are drawn: a colour for each of a few, as letters where they are short. */
function labelling(labels) {
  const kinds = labels ? [...new Set(labels)].sort((a, b) => a.localeCompare(b, "en", { numeric: true })) : [];
  const few = kinds.length > 1 && kinds.length <= 16;
  return { kinds: few ? kinds : [], letters: few && kinds.every((kind) => Array.from(kind).length <= GLYPHS), at: new Map(kinds.map((kind, i) => [kind, i])) };
}

/** Length that nine tenths of the points stay within, as seen. */
function spread(points, frame, sizes = [1, 1, 1]) {
  const lengths = Float64Array.from(points, (point) => Math.hypot(...along(point, frame).map((value, i) => value * sizes[i]))).sort();
  return lengths[Math.floor(0.95 * (lengths.length - 1))] || 1;
}

/** The largest of 1, 2, 5, 10, ... that is not above `most`. */
function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return power * ([5, 2].find((digit) => digit * power <= most) ?? 1);
}

/** Real inputs on their way to the outputs. */
function paintInputs(scene, at, marks) {
  const { into, stretch, out } = phases(at);
  const inputs = scene.inputs;
  const late = out > 0;
  const frame = late ? frameAt(inputs.out, out) : frameAt(inputs.into, into);
  const points = late ? inputs.after : inputs.before;
  const sizes = scene.sigma.map((value) => (late ? 1 : 1 + stretch * (value - 1)));
  while (sizes.length < 3) sizes.push(1);
  const axes = late ? inputs.out[0] : inputs.into.at(-1);
  return (pen, project, room) => {
    // The scale follows what is seen, so that each view fills the picture; the dashed circle tells it.
    const seen = [
      spread(inputs.before, inputs.into[0]), spread(inputs.before, inputs.into.at(-1)),
      spread(inputs.after, inputs.out[0]), spread(inputs.after, inputs.out.at(-1)),
    ];
    const step = Math.min(2, Math.floor(at));
    const scale = room / (seen[step] * (seen[step + 1] / seen[step]) ** (at - step));
    const unit = roundLength((0.8 * room) / scale);
    paintAxes(pen, project, room * 1.1);
    paintUnit(pen, scale * unit, `length ${number(unit)}`);
    const drawn = points.map((point, i) => [project(along(point, frame).map((value, j) => value * sizes[j] * scale)), i]).sort((a, b) => b[0][2] - a[0][2]);
    for (const [[x, y, away], i] of drawn) {
      const kind = marks.at.get(inputs.labels?.[i]);
      const ink = faded(dataColour(marks.kinds.length ? kind : 0), away > 0 ? 0.45 : 0.85);
      if (marks.letters) {
        pen.font = "600 12px system-ui, sans-serif";
        pen.textAlign = "center";
        pen.textBaseline = "middle";
        pen.fillStyle = ink;
        pen.fillText(visible(inputs.labels[i]), x, -y);
      } else {
        pen.fillStyle = ink;
        pen.beginPath();
        pen.arc(x, -y, 2.4, 0, 2 * Math.PI);
        pen.fill();
      }
    }
    scene.sigma.forEach((_, i) => {
      const axis = along(axes.map((row) => row[i]), frame);
      paintArrow(pen, project, axis.map((value, j) => value * (late ? 1 : sizes[j] / Math.max(...sizes)) * room * 0.92), dataColour(i + 1), axisName(at, i));
    });
  };
}

/** The geometry of one weight: canvases, the steps, the numbers. Gives the element and a way to draw it anew. */
function geometryView(data) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const marks = labelling(data.scene.inputs?.labels);
  const show = { at: 0, moving: 0, playing: false };
  const spaces = [spaceCanvas("A sphere of inputs", (pen, project, room) => paintSphere(data.scene, show.at)(pen, project, room))];
  if (data.scene.inputs) spaces.push(spaceCanvas("Real inputs", (pen, project, room) => paintInputs(data.scene, show.at, marks)(pen, project, room)));
  const said = el("p", { class: "stepsaid", role: "status" });
  const slider = el("input", { type: "range", min: 0, max: 3, step: 0.01, value: 0, "aria-label": "From the inputs to the outputs", input: () => { stop(); set(Number(slider.value)); } });
  const buttons = STEPS.map(([formula, word], i) => el("button", { type: "button", class: "step", "aria-pressed": "false", click: () => { stop(); go(i); } }, el("b", {}, formula), el("small", {}, word)));
  const play = el("button", { type: "button", class: "quiet", click: () => (show.playing ? stop() : start()) }, "Play");

  function set(at) {
    const step = Math.round(at);
    const changed = step !== show.step;
    show.at = at;
    show.step = step;
    slider.value = at;
    slider.setAttribute("aria-valuetext", `${STEPS[step][0]}: ${STEPS[step][1]}`);
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === step)));
    if (changed) {
      said.textContent = `${STEPS[step][2]}${step === 2 ? ` Here ${data.scene.sigma.map((value) => `${number(value, 3)} times`).join(", ")}; a random input ${number(data.typical, 3)} times.` : ""}`;
      spaces.forEach(({ canvas }, i) => canvas.setAttribute("aria-label", `${i ? "Real inputs" : "A sphere of inputs"} at the step ${STEPS[step][0]}. Arrow keys turn the view.`));
    }
    spaces.forEach(({ draw }) => draw());
  }

  /** Move to a step, at once where motion is not wanted; then call back. */
  function go(to, done = () => {}) {
    cancelAnimationFrame(show.moving);
    if (calm.matches || to === show.at) {
      set(to);
      done();
      return;
    }
    const from = show.at;
    const began = performance.now();
    const lasts = 1100 * Math.max(0.4, Math.abs(to - from));
    const frame = (now) => {
      const share = Math.min(1, Math.max(0, (now - began) / lasts));
      set(from + (to - from) * (share * share * (3 - 2 * share)));
      if (share < 1) show.moving = requestAnimationFrame(frame);
      else done();
    };
    show.moving = requestAnimationFrame(frame);
  }

  function start() {
    show.playing = true;
    play.textContent = "Pause";
    if (show.at >= 3) set(0);
    const next = () => {
      if (!show.playing) return;
      if (show.at >= 3) stop();
      else go(Math.floor(show.at + 1), () => { show.waiting = setTimeout(next, calm.matches ? 1600 : 650); });
    };
    next();
  }

  function stop() {
    show.playing = false;
    cancelAnimationFrame(show.moving);
    clearTimeout(show.waiting);
    play.textContent = "Play";
  }

  const captions = [
    "The unit sphere of the three input directions that are stretched most. It becomes an ellipsoid whose half axes are the singular values. Drag to turn the view.",
    inputsCaption(data),
  ];
  const node = el("div", { class: "geometry" },
    el("div", { class: "steps", role: "group", "aria-label": "Steps" }, buttons),
    el("div", { class: "slide" }, play, slider), said,
    el("div", { class: "sidebyside" }, spaces.map(({ canvas }, i) => el("figure", {}, canvas, i && marks.kinds.length && !marks.letters ? legend(marks) : null, el("figcaption", {}, captions[i])))),
    directionTable(data));
  set(0);
  return { node, redraw: () => spaces.forEach(({ draw }) => draw()), set };
}

function inputsCaption(data) {
  const share = (name) => data.shown[name];
  const percent = (value) => `${number(100 * value, 3)} %`;
  const before = share("the inputs as they are");
  return [
    `${visible(data.inputs_are)}${data.scene.inputs ? `, ${counted(data.scene.inputs.before.length, "drawn", "drawn")}` : ""}.`,
    before === undefined ? "Each token is an axis of its own, which no picture shows; where they go is exact." : `Before the first turn along their own main axes (${percent(before)} of their energy is seen), after it along v (${percent(share("the inputs along v"))}).`,
    `Outputs along u hold ${percent(share("the outputs along u"))} of the outputs' energy, along their own main axes ${percent(share("the outputs as they are"))}. The scale changes with the stretch.`,
  ].join(" ");
}

function legend(marks) {
  return el("div", { class: "chips" }, marks.kinds.map((kind, i) => el("span", { class: "key", "data-slot": (i % 8) + 1 }, el("span", { class: "swatch", "aria-hidden": "true" }), visible(kind))));
}

/** The leading directions in numbers. */
function directionTable(data) {
  const some = (key) => data.directions.some((direction) => direction[key] !== null);
  const percent = (value) => (value === null ? DASH : `${number(100 * value, 3)} %`);
  const degrees = (value) => (value === null ? DASH : `${Math.round(value)}°`);
  const strongest = (list) => list.slice(0, 2).map(([index, value]) => `${index} (${number(value, 2)})`).join(", ");
  const columns = [
    ["Direction", (_, i) => String(i + 1)], ["Stretch σ", (direction) => number(direction.sigma)],
    ["Of the weight's energy", (direction) => percent(direction.weight_energy)],
    some("input_energy") ? ["Of the inputs' energy", (direction) => percent(direction.input_energy)] : null,
    some("output_energy") ? ["Of the outputs' energy", (direction) => percent(direction.output_energy)] : null,
    some("mean_angle") ? ["v from the mean input", (direction) => degrees(direction.mean_angle)] : null,
    some("turn") ? ["u from v", (direction) => degrees(direction.turn)] : null,
    ["Strongest inputs", (direction) => strongest(direction.inputs), true], ["Strongest outputs", (direction) => strongest(direction.outputs), true],
  ].filter(Boolean);
  const cell = (tag, [, , text], content, more = {}) => el(tag, { class: text ? null : "num", ...more }, content);
  const rows = data.directions.map((direction, i) => el("tr", {}, columns.map((column) => cell("td", column, column[1](direction, i)))));
  return el("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "The leading directions" },
    el("table", { class: "comparison" }, el("thead", {}, el("tr", {}, columns.map((column) => cell("th", column, column[0], { scope: "col" })))), el("tbody", {}, rows)));
}

/** What is said of a weight in a line: sizes, the usual stretch, that of the inputs. */
function geometryLead(data) {
  const given = data.inputs_stretch === null ? "" : `; ${visible(data.inputs_are)}, ${number(data.inputs_stretch, 3)} times`;
  return `${visible(data.kind)}, ${counted(data.shape[1], data.tokens ? "token" : "input")} to ${counted(data.shape[0], "output")}. A random input is stretched ${number(data.typical, 3)} times${given} (root mean square). The three axes of the sphere hold ${number(100 * data.shown["the weight"], 3)} % of the weight's energy.`;
}
