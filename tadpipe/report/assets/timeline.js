// One video's timeline: a lane of actions, and a lane of detections for each run.

const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
const TIOU_EDGES = [0.1, 0.3, 0.5, 0.7, 0.9]; // a colour below, between and above them
const ROW_PIXELS = 21;
const TICKS_SEC = [1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];

function tiouStep(tiou) {
  return TIOU_EDGES.filter((edge) => tiou >= edge).length;
}

// First row in which each segment (in the order given) overlaps none that is there already.
function packRows(segments) {
  const rows = [];
  return segments.map(({ start, end }) => {
    let row = rows.findIndex((taken) => taken.every((s) => end <= s.start || start >= s.end));
    if (row < 0) row = rows.push([]) - 1;
    rows[row].push({ start, end });
    return row;
  });
}

function actionSegments(video, run, labels) {
  const { s, e, l } = video.actions;
  return s.map((start, i) => ({
    lane: -1, index: i, start: start / 100, end: e[i] / 100, label: labels[l[i]],
    missed: run === null ? video.runs.every((r) => r.m[i]) : Boolean(video.runs[run].m[i]),
  }));
}

// The detections of a run that the controls let through, best first.
function shownDetections(video, run, labels, wanted) {
  const { s, e, l, p, o, k } = video.runs[run];
  const found = [];
  for (let i = 0; i < s.length && found.length < wanted.topK; i += 1) {
    if (p[i] < wanted.minScore) break;
    if (wanted.label !== "" && labels[l[i]] !== wanted.label) continue;
    if (wanted.kind !== "" && k[i] !== wanted.kind) continue;
    found.push({
      lane: run, index: i, start: s[i] / 100, end: e[i] / 100, label: labels[l[i]],
      score: p[i] / 1000, tiou: o[i] / 100, kind: Number(k[i]),
    });
  }
  return found;
}

function segmentButton(segment, row, duration, kinds) {
  const button = element("button", { type: "button", class: "seg" }, segment.label);
  const length = Math.max(segment.end - segment.start, 0);
  button.style.left = `${(100 * segment.start) / duration}%`;
  button.style.width = `${(100 * length) / duration}%`;
  button.style.top = `${row * ROW_PIXELS}px`;
  button.tabIndex = -1;
  button.setAttribute("aria-pressed", "false");
  if (segment.lane < 0) {
    button.classList.add(segment.missed ? "missed" : "truth", "truth");
    button.title = `${segment.label}${segment.missed ? ", missed" : ""}`;
  } else {
    const step = tiouStep(segment.tiou);
    button.style.background = VIRIDIS[step];
    button.style.color = step < 3 ? "#ffffff" : "#14171b";
    if (segment.kind !== 0) button.classList.add("wrong");
    button.title =
      `${segment.label}, score ${segment.score.toFixed(3)}, tIoU ${segment.tiou.toFixed(2)}, ` +
      kinds[segment.kind];
  }
  button.segment = segment;
  return button;
}

function laneElement(name, segments, duration, kinds) {
  const rows = packRows(segments);
  const buttons = segments.map((segment, i) => segmentButton(segment, rows[i], duration, kinds));
  const inner = element("div", { class: "rows" }, ...buttons);
  inner.style.height = `${(Math.max(-1, ...rows) + 1) * ROW_PIXELS + 2}px`;
  return [
    element("div", { class: "lane-name" }, name),
    element("div", { class: "lane" }, inner),
  ];
}

function axisElement(duration, pixels) {
  const axis = element("div", { class: "axis", "aria-hidden": "true" });
  const step = TICKS_SEC.find((s) => (s / duration) * pixels > 55) ?? TICKS_SEC.at(-1);
  for (let tick = 0; tick < duration; tick += step) {
    const mark = element("span", {}, clockText(tick));
    mark.style.left = `${(100 * tick) / duration}%`;
    axis.append(mark);
  }
  return axis;
}

function legendElements() {
  const entry = (icon, text) => element("span", {}, icon, text);
  const names = ["< 0.1", "0.1", "0.3", "0.5", "0.7", "≥ 0.9"];
  const colours = VIRIDIS.map((colour, i) => {
    const icon = element("i");
    icon.style.background = colour;
    return entry(icon, names[i]);
  });
  return [
    entry(element("i", { class: "truth" }), "action found"),
    entry(element("i", { class: "missed" }), "action missed"),
    element("span", {}, "Detections by tIoU with an action of their label:"),
    ...colours,
    entry(element("i", { class: "wrong" }), "error"),
  ];
}
