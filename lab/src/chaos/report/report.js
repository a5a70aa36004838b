"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const LABELS = 84, ROW = 18, GAP = 5, HEAD = 20;
const FIRST_VIEW_MS = 30000, CLOSEST_MS = 200;

const STATES = {
  pause: "stall", client_pause: "stall", restart: "dead", forget: "dead", cut: "cut", cut_requests: "cut",
  cut_replies: "cut", mute: "cut", reset: "mark", delay: "late", slow: "late", step: "clock",
  leap: "clock", clock_rate: "clock", replace: "dead", promote: "dead", replica: "dead", flush: "mark", swap: "mark", isolate: "cut", worker_pause: "stall", worker_kill: "dead",
};
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const hue = (worker) => (worker * 137.5 + 205) % 360;
const ofWorker = (worker, depth) => {
  const light = dark.matches ? 42 + depth * 9 : 74 - depth * 13;
  return `hsl(${hue(worker)} ${dark.matches ? 45 : 55}% ${light}%)`;
};

let from = 0, until = Math.min(data.length, FIRST_VIEW_MS);

/* ---- drawing ---- */

function canvas(id, height) {
  const element = at(id), ratio = devicePixelRatio || 1, width = element.clientWidth;
  // The attribute is the height in CSS pixels only until it is set for the screen's own.
  element.dataset.height ||= element.getAttribute("height");
  height ||= Number(element.dataset.height);
  element.style.height = height + "px";
  element.width = Math.round(width * ratio);
  element.height = Math.round(height * ratio);
  const pen = element.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  return { pen, width, height };
}

const scale = (width) => (t) => LABELS + ((t - from) / (until - from)) * (width - LABELS);

function seconds(t, span) {
  const s = t / 1000, digits = span < 2000 ? 2 : span < 20000 ? 1 : 0;
  return s.toFixed(digits) + " s";
}

function axis(pen, width, height, x, top) {
  const span = until - from;
  const step = [50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 30000, 60000, 120000, 300000, 600000, 1800000]
    .find((step) => span / step <= Math.max(3, (width - LABELS) / 110)) || 3600000;
  pen.fillStyle = color("soft");
  pen.strokeStyle = color("grid");
  pen.lineWidth = 1;
  for (let t = Math.ceil(from / step) * step; t <= until; t += step) {
    const at = Math.round(x(t)) + 0.5;
    pen.beginPath(); pen.moveTo(at, top); pen.lineTo(at, height); pen.stroke();
    if (top) pen.fillText(seconds(t, step * 4), Math.min(at + 3, width - 40), top / 2);
  }
}

function bar(pen, x, a, b, y, height, fill, least = 1.5) {
  const left = Math.max(x(a), LABELS), right = Math.max(x(b), left + least);
  pen.fillStyle = fill;
  pen.fillRect(left, y, right - left, height);
}

const shown = (a, b) => b >= from && a <= until;

function timeline() {
  const rows = data.nodes + data.workers + data.locks.length;
  const total = HEAD + rows * (ROW + GAP) + 2 * GAP + 4;
  const { pen, width, height } = canvas("timeline", total);
  const x = scale(width);
  pen.clearRect(0, 0, width, height);
  axis(pen, width, height, x, HEAD);
  let y = HEAD;
  const spots = [];
  const row = (label) => {
    pen.fillStyle = color("soft");
    pen.fillText(label, 0, y + ROW / 2);
    const place = y;
    y += ROW + GAP;
    return place;
  };
  const faulty = (place, mine) => {
    bar(pen, x, from, until, place, ROW, color("well"));
    for (const fault of mine) if (shown(fault.until, fault.felt)) bar(pen, x, fault.until, fault.felt, place, ROW, color("tail"), 0);
    for (const fault of mine) {
      if (!shown(fault.from, fault.felt)) continue;
      bar(pen, x, fault.from, fault.until, place, ROW, color(STATES[fault.kind]), 3);
      spots.push({ a: fault.from, b: Math.max(fault.felt, fault.until), y: place, text: described(fault) });
    }
  };
  for (let node = 0; node < data.nodes; node++) {
    const mine = data.faults.filter((fault) => fault.worker === null && fault.nodes.includes(node) && fault.kind !== "slow");
    faulty(row("node " + (node + 1)), mine);
  }
  y += GAP;
  for (let worker = 0; worker < data.workers; worker++) {
    faulty(row("worker " + (worker + 1)), data.faults.filter((fault) => fault.worker === worker));
    pen.fillStyle = ofWorker(worker, 2);
    pen.fillRect(LABELS - 14, y - GAP - ROW + 4, 8, ROW - 8);
  }
  y += GAP;
  const places = data.locks.map((name) => row(name));
  places.forEach((place) => bar(pen, x, from, until, place, ROW, color("grid")));
  for (const [lock, worker, a, b, depth, lost] of data.bars) {
    if (!shown(a, b)) continue;
    const inset = Math.min(depth - 1, 3) * 3;
    bar(pen, x, a, b, places[lock] + inset, ROW - 2 * inset, ofWorker(worker, Math.min(depth, 4)), 0.7);
    if (lost && depth === 1) { pen.fillStyle = color("mark"); pen.fillRect(Math.max(x(b) - 2, LABELS), places[lock], 2, ROW); }
    spots.push({ a, b, y: places[lock], text: `${data.owners ? data.owners[worker] : "worker " + (worker + 1)} holds ${data.locks[lock]}${depth > 1 ? ", depth " + depth : ""}\n${seconds(a, 0)} to ${seconds(b, 0)}${lost ? ", lost" : ""}` });
  }
  at("timeline").spots = spots;
}

function described(fault) {
  const who = fault.worker !== null ? "" : " (node " + fault.nodes.map((node) => node + 1).join(", ") + ")";
  const amounts = { delay: " by up to " + fault.amount + " ms", slow: " by up to " + fault.amount + " ms",
    step: " by " + fault.amount + " ms", leap: " by " + fault.amount + " ms",
    clock_rate: " by " + fault.amount + " ppm" };
  return `${fault.words}${amounts[fault.kind] || ""}${who}\n${seconds(fault.from, 0)} to ${seconds(fault.until, 0)}` +
    (fault.majority ? "\nno majority was left" : "");
}

function shade(pen, x, top, height) {
  for (const fault of data.faults) {
    if (fault.worker !== null || !shown(fault.from, fault.until)) continue;
    bar(pen, x, fault.from, fault.until, top, height, color(fault.majority ? "shade-more" : "shade"), 2);
  }
}

function curve(pen, x, y, values, stroke, dots) {
  pen.strokeStyle = stroke;
  pen.lineWidth = 1.6;
  pen.beginPath();
  let open = false;
  values.forEach((value, i) => {
    const t = (i + 0.5) * data.step;
    if (value === null || t < from - data.step || t > until + data.step) { open = false; return; }
    const px = Math.max(x(t), LABELS), py = y(value);
    if (open) pen.lineTo(px, py); else pen.moveTo(px, py);
    open = true;
    if (dots) { pen.moveTo(px + 1.5, py); pen.arc(px, py, 1.5, 0, 7); pen.moveTo(px, py); }
  });
  pen.stroke();
}

function latency() {
  const { pen, width, height } = canvas("latency");
  const x = scale(width), all = [...data.first.slow, ...data.reentry.slow].filter((value) => value !== null);
  const most = Math.max(10, ...all), low = 0.1;
  const y = (ms) => height - 6 - (Math.log10(Math.max(ms, low) / low) / Math.log10(most / low)) * (height - 16);
  pen.clearRect(0, 0, width, height);
  shade(pen, x, 0, height);
  axis(pen, width, height, x, 0);
  pen.fillStyle = color("soft");
  for (let ms = low; ms <= most; ms *= 10) {
    pen.fillStyle = color("soft");
    pen.fillText(String(+ms.toPrecision(1)), 44, y(ms));
    pen.strokeStyle = color("grid");
    pen.beginPath(); pen.moveTo(LABELS, y(ms)); pen.lineTo(width, y(ms)); pen.stroke();
  }
  curve(pen, x, y, data.first.median, color("soft"));
  curve(pen, x, y, data.reentry.slow, color("stall"));
  curve(pen, x, y, data.reentry.median, color("cut"));
}

function rates() {
  const { pen, width, height } = canvas("rates");
  const each = 1000 / data.step, x = scale(width);
  const most = Math.max(10, ...data.grants, ...data.refused) * each;
  const y = (rate) => height - 6 - (rate / most) * (height - 16);
  pen.clearRect(0, 0, width, height);
  shade(pen, x, 0, height);
  axis(pen, width, height, x, 0);
  for (const rate of [0, most / 2, most]) {
    pen.fillStyle = color("soft");
    pen.fillText(String(Math.round(rate)), 44, Math.max(y(rate), 8));
  }
  const rated = (values) => values.map((value) => value * each);
  curve(pen, x, y, rated(data.grants), color("good"));
  curve(pen, x, y, rated(data.refused), color("stall"));
  curve(pen, x, y, rated(data.losses).map((value) => (value ? value : null)), color("mark"), true);
}

function overview() {
  const { pen, width, height } = canvas("overview");
  const x = (t) => LABELS + (t / data.length) * (width - LABELS), line = (height - 8) / data.nodes;
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = color("soft");
  pen.fillText("whole run", 0, height / 2);
  for (let node = 0; node < data.nodes; node++) {
    pen.fillStyle = color("well");
    pen.fillRect(LABELS, 4 + node * line, width - LABELS, line - 1);
    for (const fault of data.faults) {
      if (fault.worker !== null || fault.kind === "slow" || !fault.nodes.includes(node)) continue;
      pen.fillStyle = color(STATES[fault.kind]);
      pen.fillRect(x(fault.from), 4 + node * line, Math.max(x(fault.until) - x(fault.from), 1.5), line - 1);
    }
  }
  pen.strokeStyle = color("ink");
  pen.lineWidth = 2;
  pen.strokeRect(Math.max(x(from), LABELS) + 1, 1, Math.max(x(until) - x(from) - 2, 3), height - 2);
}

function legend(id, entries) {
  at(id).replaceChildren(...entries.map(([fill, text]) => {
    const span = document.createElement("span"), dot = document.createElement("i");
    dot.style.background = fill;
    span.append(dot, text);
    return span;
  }));
}

function draw() {
  overview(); timeline(); latency(); rates();
  at("window").textContent = `${seconds(from, 0)} to ${seconds(until, 0)} of ${seconds(data.length, 1e9)}`;
  legend("legend", [[color("well"), "well"], [color("stall"), "stopped"], [color("dead"), "killed"], [color("cut"), "cut or mute"],
    [color("mark"), "connections reset; the end of a lost hold"], [color("late"), "delayed"], [color("clock"), "clock set"],
    [color("tail"), "just back: in quarantine, or with old requests to do"]]);
  legend("latency-legend", [[color("cut"), "re-entry, median"], [color("stall"), "re-entry, 99 of 100 are faster"],
    [color("soft"), "first acquisition, median"]]);
  legend("rates-legend", [[color("good"), "granted"], [color("stall"), "refused"], [color("mark"), "lost"]]);
}

/* ---- moving ---- */

function show(a, b) {
  const span = Math.min(Math.max(b - a, CLOSEST_MS), data.length);
  from = Math.min(Math.max(a, 0), data.length - span);
  until = from + span;
  requestAnimationFrame(draw);
}

function zoom(factor, middle = (from + until) / 2) {
  show(middle - (middle - from) * factor, middle + (until - middle) * factor);
}

const timeAt = (event, element) => {
  const box = element.getBoundingClientRect();
  return from + (Math.max(event.clientX - box.left - LABELS, 0) / (box.width - LABELS)) * (until - from);
};

for (const button of document.querySelectorAll("[data-zoom]")) {
  button.onclick = () => ({ in: () => zoom(0.5), out: () => zoom(2), all: () => show(0, data.length) })[button.dataset.zoom]();
}
for (const id of ["timeline", "latency", "rates"]) {
  const element = at(id);
  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const by = ((event.deltaX || event.deltaY) / 800) * (until - from);
      show(from + by, until + by);
    } else zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, timeAt(event, element));
  }, { passive: false });
}
const strip = at("overview");
strip.onpointerdown = strip.onpointermove = (event) => {
  if (event.type === "pointerdown") strip.setPointerCapture(event.pointerId);
  else if (!(event.buttons & 1)) return;
  const box = strip.getBoundingClientRect(), span = until - from;
  const middle = ((event.clientX - box.left - LABELS) / (box.width - LABELS)) * data.length;
  show(middle - span / 2, middle + span / 2);
};
at("timeline").onmousemove = (event) => {
  const element = at("timeline"), box = element.getBoundingClientRect(), t = timeAt(event, element), y = event.clientY - box.top;
  const slack = ((until - from) / box.width) * 2;
  const spot = (element.spots || []).findLast((spot) => y >= spot.y && y <= spot.y + ROW && t >= spot.a - slack && t <= spot.b + slack);
  const tip = at("tip");
  tip.hidden = !spot;
  if (!spot) return;
  tip.textContent = spot.text;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - 250) + "px";
  tip.style.top = event.clientY + 16 + "px";
};
at("timeline").onmouseleave = () => { at("tip").hidden = true; };

if (data.capped !== null) {
  at("capped").textContent = `Holders are drawn until ${seconds(data.capped, 1e9)}, to keep this page small; history.jsonl has them all.`;
}
addEventListener("resize", draw);
dark.addEventListener("change", draw);
draw();
