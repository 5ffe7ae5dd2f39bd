/* What the players draw: a bowl or a surface, with one stop of a recorded descent on it. */
"use strict";

function add(parent, tag, attributes = {}, text = "") {
  const made = document.createElementNS(parent.namespaceURI, tag);
  set(made, attributes);
  made.textContent = text;
  parent.append(made);
  return made;
}
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}
const span = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
const wider = ([low, high], by = 0.04) => {
  const more = by * (high - low || Math.abs(low) || 1);
  return [low - more, high + more];
};
const asText = (x, digits = 9) => String(Number(x.toPrecision(digits))).replace("I", "i").replaceAll("-", "−");
const points = (xs, ys) => xs.map((x, i) => `${x.toFixed(2)},${ys[i].toFixed(2)}`).join(" ");

function ticks([low, high], most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high && found.length < 50; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

/* A number on an axis: short, where it is very large or small. */
function onAxis(value) {
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-3 && size < 1e5)) return asText(value);
  return Number(value.toPrecision(6)).toExponential().replace("e+", "e").replaceAll("-", "−");
}

/* As many round numbers as have room beside one another. */
function ticksWithin(range, pixels) {
  const close = ticks(range, pixels / 45);
  const longest = Math.max(0, ...close.map((value) => onAxis(value).length));
  return longest * 7.5 + 8 < pixels / Math.max(1, close.length) ? close : ticks(range, pixels / (longest * 8 + 24));
}

/* Axes on an empty stage, and a plot that cuts off what leaves it, with pixels for weights (x) and losses (y). */
function frame(stage, xs, ys, names, square) {
  const width = Math.max(240, Math.round(stage.clientWidth) || 480);
  const [right, top, bottom] = [8, square ? 48 : 26, 42];
  const tall = Math.round(Math.min(400, Math.max(230, 0.66 * width))) - top - bottom;
  const marks = ticks(ys, (square ? width - 60 : tall) / 36);
  const left = 14 + 7.2 * Math.max(3, ...marks.map((value) => onAxis(value).length));
  const across = width - left - right;
  const up = square ? across : tall;
  const height = top + up + bottom;
  const scales = [across / (xs[1] - xs[0]), up / (ys[1] - ys[0])];
  const held = (pixels) => Math.max(-1e5, Math.min(1e5, pixels)); // renderers lose what is further away
  const x = (value) => held(scales[0] * (value - xs[0]));
  const y = (value) => held(up - scales[1] * (value - ys[0]));
  stage.replaceChildren();
  set(stage, { viewBox: `0 0 ${width} ${height}` });
  add(stage, "path", { class: "axis", d: `M${left} ${top}v${up}h${across}` });
  for (const value of ticksWithin(xs, across)) {
    add(stage, "path", { class: "axis", d: `M${left + x(value)} ${top + up}v4` });
    add(stage, "text", { x: left + x(value), y: top + up + 18, "text-anchor": "middle" }, onAxis(value));
  }
  for (const value of marks) {
    add(stage, "path", { class: "axis", d: `M${left} ${top + y(value)}h-4` });
    add(stage, "text", { x: left - 8, y: top + y(value) + 4, "text-anchor": "end" }, onAxis(value));
  }
  add(stage, "text", { x: left + across / 2, y: height - 6, "text-anchor": "middle" }, names[0]);
  add(stage, "text", { x: 0, y: top - 14 }, names[1]);
  const plot = add(stage, "svg", { x: left, y: top, width: across, height: up });
  return { plot, x, y, across, up, scales };
}

function arrow(from, to) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = Math.hypot(dx, dy);
  if (!(length > 1)) return "";
  const head = Math.min(8, 0.5 * length) / length;
  const wing = (side) => `${to[0] - head * (dx - side * 0.6 * dy)} ${to[1] - head * (dy + side * 0.6 * dx)}`;
  return `M${from.join(" ")}L${to.join(" ")}M${wing(1)}L${to.join(" ")}L${wing(-1)}`;
}

const within = (value, limit) => Math.min(limit - 6, Math.max(6, value));

/* The bowl with one stop of the record. Returns show(i). */
function bowlScene(stage, data) {
  const [weights, losses] = data.curve;
  const [w, loss, gradient, step] = data.stops;
  const { plot, x, y, across, up, scales } = frame(stage, wider(span(weights)), wider(span(losses)), data.names);
  add(plot, "polyline", { class: "bowl", points: points(weights.map(x), losses.map(y)) });
  const seen = w.map((_, i) => Number.isFinite(w[i]) && Number.isFinite(loss[i]));
  const before = w.map((_, i) => seen[i] && add(plot, "circle", { class: "before", r: 3.5, cx: x(w[i]), cy: y(loss[i]) }));
  const tangent = add(plot, "line", { class: "tangent" });
  const next = add(plot, "circle", { class: "next", r: 4 });
  const way = add(plot, "path", { class: "arrow" });
  const dot = add(plot, "circle", { class: "dot", r: 6.5 });
  return (i) => {
    const last = i === w.length - 1;
    before.forEach((circle, k) => circle && (circle.style.display = k < i ? "" : "none"));
    for (const part of [tangent, next, way, dot]) part.style.display = seen[i] ? "" : "none";
    if (!seen[i]) return "Not finite here: there is nothing to draw.";
    const at = [x(w[i]), y(loss[i])];
    const held = [within(at[0], across), within(at[1], up)];
    const away = Math.hypot(at[0] - held[0], at[1] - held[1]) > 6;
    dot.classList.toggle("away", away);
    set(dot, { cx: held[0], cy: held[1] });
    const [dx, dy] = [scales[0], -scales[1] * gradient[i]];
    const reach = (0.3 * across) / Math.hypot(dx, dy);
    const drawn = !away && Number.isFinite(reach);
    tangent.style.display = drawn ? "" : "none";
    if (drawn) set(tangent, { x1: at[0] - reach * dx, y1: at[1] - reach * dy, x2: at[0] + reach * dx, y2: at[1] + reach * dy });
    const moves = drawn && !last && Number.isFinite(step[i]);
    way.setAttribute("d", moves ? arrow(at, [x(w[i] + step[i]), at[1]]) : "");
    const follows = !last && seen[i + 1] && data.at[i + 1] === data.at[i] + 1;
    next.style.display = follows ? "" : "none";
    if (follows) set(next, { cx: x(w[i + 1]), cy: y(loss[i + 1]) });
    if (away) return "Outside of the picture, in this direction.";
    return last ? "The last stop: no step was taken from here." : "";
  };
}

/* The colours of a surface, in bands whose edges are contours; the loss between grid points is interpolated. */
function heat(surface, colours) {
  const all = surface.flat().filter(Number.isFinite);
  const [low, high] = all.length ? span(all) : [0, 0];
  const log = low >= 0 && high > 0;
  const floor = log ? Math.max(low, high * 1e-6) : low;
  const height = log ? (v) => Math.log(Math.max(v, floor)) : (v) => v;
  const [bottom, range] = [height(floor), height(high) - height(floor) || 1];
  const heights = surface.map((column) => column.map((v) => (Number.isFinite(v) ? height(v) : NaN)));
  const canvas = document.createElement("canvas");
  const size = (canvas.width = canvas.height = 400);
  const image = canvas.getContext("2d").createImageData(size, size);
  const mix = (a, b, t) => (t ? a * (1 - t) + b * t : a);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const u = (column / (size - 1)) * (heights.length - 1);
      const v = (1 - row / (size - 1)) * (heights[0].length - 1);
      const [i, j] = [Math.floor(u), Math.floor(v)];
      const [near, far] = [heights[i], heights[Math.min(i + 1, heights.length - 1)]];
      const along = (values) => mix(values[j], values[Math.min(j + 1, values.length - 1)], v - j);
      const t = (mix(along(near), along(far), u - i) - bottom) / range;
      if (!Number.isFinite(t)) continue; // left blank
      const colour = colours[Math.min(colours.length - 1, Math.max(0, Math.floor(t * colours.length)))];
      image.data.set([...colour, 255], 4 * (row * size + column));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return { url: canvas.toDataURL(), low: floor, high, log };
}

/* The surface with the record up to one stop. Returns show(i). */
function surfaceScene(stage, data) {
  data.heat ??= heat(data.surface, data.colours);
  const { plot, x, y, across, up } = frame(stage, ...data.axes, data.names, true);
  add(plot, "image", { href: data.heat.url, width: across, height: up, preserveAspectRatio: "none" });
  const [w0, w1] = data.stops;
  const seen = w0.map((_, i) => Number.isFinite(w0[i]) && Number.isFinite(w1[i]));
  const path = (from, to) => {
    const kept = [...w0.keys()].slice(from, to).filter((i) => seen[i]);
    return points(kept.map((i) => x(w0[i])), kept.map((i) => y(w1[i])));
  };
  let place = add(stage, "text", { x: 0, y: 12 }, `loss ${asText(data.heat.low, 3)}`).getComputedTextLength() + 6;
  for (const colour of data.colours) {
    add(stage, "rect", { x: place, y: 2, width: 4.5, height: 11, fill: `rgb(${colour})` });
    place += 4;
  }
  add(stage, "text", { x: place + 6, y: 12 }, asText(data.heat.high, 3) + (data.heat.log ? ", log scale" : ""));
  add(plot, "polyline", { class: "ahead", points: path(0) });
  const trails = ["casing", "trail"].map((name) => add(plot, "polyline", { class: name }));
  const arrows = ["casing", "arrow"].map((name) => add(plot, "path", { class: name }));
  const dot = add(plot, "circle", { class: "dot on-map", r: 6.5 });
  return (i) => {
    for (const trail of trails) set(trail, { points: path(0, i + 1) });
    for (const part of [dot, ...arrows]) part.style.display = seen[i] ? "" : "none";
    if (!seen[i]) return "Not finite here: there is nothing to draw.";
    const at = [x(w0[i]), y(w1[i])];
    const step = [data.stops[3][i], data.stops[4][i]];
    const moves = step.every(Number.isFinite);
    const to = [x(w0[i] + step[0]), y(w1[i] + step[1])];
    for (const part of arrows) set(part, { d: moves ? arrow(at, to) : "" });
    const held = [within(at[0], across), within(at[1], up)];
    set(dot, { cx: held[0], cy: held[1] });
    if (Math.hypot(at[0] - held[0], at[1] - held[1]) > 6) return "Outside of the picture, in this direction.";
    return i === w0.length - 1 ? "The last stop: no step was taken from here." : "";
  };
}
