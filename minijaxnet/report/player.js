/* Steps through recorded descents, lets a rate be tried on a recorded curve, copies tables. Draws with scenes.js. */
"use strict";

const STEPS = 100; // of a live descent
const FLAT = 1e-3; // of the first gradient: a live descent stops there, flat

function record(panel, data, scene) {
  const find = (selector) => panel.querySelector(selector);
  const [slider, play, stage] = [find(".stop"), find("[data-act=play]"), find(".stage")];
  const [back, forward, list, remark] = [find("[data-act=back]"), find("[data-act=forward]"), find(".numbers"), find(".remark")];
  const one = data.stops.length === 4;
  const columns = one ? ["w0", "loss", "gradient", "step0"] : ["w0", "w1", "loss", "step0", "step1"];
  const last = data.at.length - 1;
  let show, timer;

  function write(key, value, text = asText(value)) {
    const cell = find(`[data-key=${key}]`);
    cell.value = value;
    cell.textContent = text;
  }
  function update() {
    const i = Number(slider.value);
    write("at", data.at[i], `${data.at[i]} of ${data.at[last]}`);
    columns.forEach((key, k) => {
      const none = key.startsWith("step") && i === last;
      write(key, none ? "" : data.stops[k][i], none ? "none" : undefined);
    });
    set(slider, { "aria-valuetext": `step ${data.at[i]} of ${data.at[last]}` });
    remark.textContent = show(i);
    back.disabled = i === 0;
    forward.disabled = i === last;
  }
  function pause() {
    clearTimeout(timer);
    timer = undefined;
    play.textContent = "Play";
    list.ariaLive = "polite";
  }
  function tick() {
    go(Number(slider.value) + 1);
    if (Number(slider.value) === last) pause();
    else timer = setTimeout(tick, Math.min(450, Math.max(16, 9000 / last)));
  }
  function go(i) {
    slider.value = i;
    update();
  }
  slider.addEventListener("input", () => (pause(), update()));
  for (const [event, on] of [["pointerdown", true], ["pointerup", false]])
    slider.addEventListener(event, () => panel.classList.toggle("dragging", on));
  back.addEventListener("click", () => (pause(), go(Number(slider.value) - 1)));
  forward.addEventListener("click", () => (pause(), go(Number(slider.value) + 1)));
  play.addEventListener("click", () => {
    if (timer !== undefined) return pause();
    if (Number(slider.value) === last) go(0);
    play.textContent = "Pause";
    list.ariaLive = "off"; // read out at its end, not at each stop
    timer = setTimeout(tick, 200);
  });
  play.disabled = slider.disabled = last === 0;
  slider.value = 0;
  whenSized(stage, () => ((show = scene(stage, data)), update()));
}

/* Loss and gradient anywhere: cubic between the recorded points, beyond the ends the parabola that they end in. */
function between([weights, losses, gradients]) {
  const n = weights.length;
  return (w) => {
    const end = w < weights[0] ? 0 : w > weights[n - 1] ? n - 1 : null;
    if (end !== null) {
      const next = end ? n - 2 : 1;
      const bend = Math.max(0, (gradients[next] - gradients[end]) / (weights[next] - weights[end]));
      const far = w - weights[end];
      return [losses[end] + far * (gradients[end] + 0.5 * bend * far), gradients[end] + bend * far];
    }
    let [i, j] = [0, n - 1];
    while (j - i > 1) {
      const middle = (i + j) >> 1;
      if (weights[middle] <= w) i = middle;
      else j = middle;
    }
    const [h, rise] = [weights[j] - weights[i], losses[j] - losses[i]];
    const [t, a, b] = [(w - weights[i]) / h, h * gradients[i] - rise, rise - h * gradients[j]];
    const loss = losses[i] + t * rise + t * (1 - t) * ((1 - t) * a + t * b);
    return [loss, (rise + (1 - 2 * t) * (a * (1 - t) + b * t) + t * (1 - t) * (b - a)) / h];
  };
}

function descend(at, start, rate, size) {
  const stops = [];
  let ended = "", overshot = false;
  for (let w = start, before = 0; !ended; ) {
    const [loss, gradient] = at(w);
    stops.push([w, loss]);
    overshot ||= gradient * before < 0;
    if (!(Math.abs(w - start) < 1e6 * size)) ended = "diverges";
    else if (Math.abs(gradient) <= FLAT * Math.abs(at(start)[1])) ended = "flat";
    else if (stops.length > STEPS) ended = loss > stops[0][1] * (1 + 1e-9) ? "diverges" : "steps";
    before = gradient;
    w -= rate * gradient;
  }
  return { stops, ended, overshot };
}

function inWords({ stops, ended, overshot }) {
  const n = stops.length - 1;
  const steps = `${n} step${n === 1 ? "" : "s"}`;
  if (ended === "diverges") return ["diverges", overshot ? ": each step overshoots, and further than the one before." : "."];
  if (ended === "flat")
    return overshot ? ["overshoots and converges", `: to and fro, less each time, flat after ${steps}.`] : ["converges", `: flat after ${steps}.`];
  return overshot ? ["overshoots", `: still to and fro after ${steps}.`] : ["crawls", `: not there yet after ${steps}.`];
}

function live(panel, data) {
  const find = (selector) => panel.querySelector(selector);
  const [slider, output, says, edges, stage] = [".rates", ".rate", ".says", ".edges", ".stage"].map(find);
  const { curve, curvature } = data;
  const start = data.stops[0].find(Number.isFinite) ?? curve[0][0];
  const at = between(curve);
  const [first, end] = span(curve[0]);
  const low = curvature ? Math.min(0.02 / curvature, data.rate / 2) : data.rate / 100;
  const high = curvature ? Math.max(8 / curvature, data.rate * 2) : data.rate * 100;
  const place = (rate) => Math.log(rate / low) / Math.log(high / low);
  let rate = data.rate;

  function draw() {
    const { plot, x, y } = frame(stage, wider([first, end]), wider(span(curve[1])), data.names);
    add(plot, "polyline", { class: "bowl", points: points(curve[0].map(x), curve[1].map(y)) });
    const found = descend(at, start, rate, end - first);
    const [xs, ys] = [found.stops.map((stop) => x(stop[0])), found.stops.map((stop) => y(stop[1]))];
    add(plot, "polyline", { class: "way", points: points(xs, ys) });
    xs.forEach((value, i) => add(plot, "circle", { class: "live-stop", r: 3.5, cx: value, cy: ys[i] }));
    add(plot, "circle", { class: "start", r: 5.5, cx: xs[0], cy: ys[0] });
    const [name, rest] = inWords(found);
    const strong = document.createElement("strong");
    strong.textContent = name;
    const beyond = found.stops.filter(([w]) => w < first || w > end).length;
    const factor = curvature ? ` Near the bottom a step multiplies the way left by 1 − rate × curvature = ${asText(1 - rate * curvature, 3)}.` : "";
    const outside = beyond ? ` ${beyond} of its stops lie beyond the recorded curve, which is continued there as a parabola.` : "";
    says.replaceChildren("It ", strong, rest + factor + outside);
    output.textContent = asText(rate, 3);
    set(slider, { "aria-valuetext": `${asText(rate, 3)}, ${name}` });
  }
  slider.addEventListener("input", () => {
    rate = low * (high / low) ** (slider.value / slider.max);
    draw();
  });
  const recorded = () => {
    rate = data.rate;
    slider.value = slider.max * place(rate);
  };
  find("[data-act=recorded]").addEventListener("click", () => (recorded(), draw()));
  for (const k of curvature ? [1, 2] : []) {
    const edge = document.createElement("span");
    edge.textContent = `${k}/curvature\n${asText(k / curvature, 3)}`;
    edge.style.left = `${100 * place(k / curvature)}%`;
    edges.append(edge);
  }
  recorded();
  whenSized(stage, draw);
}

function whenSized(stage, draw) {
  let width;
  new ResizeObserver(() => {
    if (stage.clientWidth && stage.clientWidth !== width) {
      width = stage.clientWidth;
      draw();
    }
  }).observe(stage);
  draw();
}

function csv(table) {
  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return [...table.rows].map((row) => [...row.cells].map((cell) => quoted(cell.dataset.full ?? cell.textContent)).join(",") + "\r\n").join("");
}

function copyButton(button) {
  const text = csv(button.parentElement.querySelector("table"));
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy as CSV"), 2000);
    } catch {
      const area = button.parentElement.querySelector("textarea") ?? document.createElement("textarea");
      area.readOnly = true;
      area.ariaLabel = "The table as CSV, selected: copy it by hand";
      area.value = text;
      button.after(area);
      area.select();
    }
  });
}

document.documentElement.classList.add("scripted");
for (const player of document.querySelectorAll(".player")) {
  const data = JSON.parse(player.querySelector("script").textContent);
  for (const name of ["curve", "stops", "axes", "surface"]) data[name] = data[name]?.map((values) => values.map(Number));
  record(player.querySelector(".record"), data, data.curve ? bowlScene : surfaceScene);
  if (data.curve) live(player.querySelector(".live"), data);
}
for (const button of document.querySelectorAll(".copy")) copyButton(button);
