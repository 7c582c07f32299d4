// The page: table of runs, charts, viewer, theme and keys.

const report = JSON.parse(byId("report-data").textContent);

function meanText([mean, deviation]) {
  const text = percentText(mean, 2);
  return deviation === null ? [text] : [text, element("small", {}, ` ± ${percentText(deviation, 2)}`)];
}

function overviewTable({ systems, tious }) {
  const costs = [
    ["parameters", (cost) => countText(cost.parameters)],
    ["GFLOPs/window", (cost) => numberText(cost.gflops, 2)],
    ["training", (cost) => secondsText(cost.train_sec)],
    ["peak memory", (cost) => bytesText(cost.peak_bytes)],
    ["detect, s/min", (cost) => numberText(cost.detect_sec_per_minute, 3)],
  ].filter(([, text]) => systems.some((system) => text(system.cost) !== "–"));
  const heads = [
    "run", ...tious.map((tiou) => `mAP@${tiou.toFixed(2)}`), "average",
    ...costs.map(([name]) => name),
  ];
  const best = (pick) => Math.max(...systems.map(pick));
  const bestAt = tious.map((_, i) => best((system) => system.map[i][0]));
  const bestAverage = best((system) => system.average[0]);
  const several = systems.length > 1;
  const cell = (value, top) =>
    element("td", { class: several && value[0] === top ? "best" : "" }, ...meanText(value));
  const rows = systems.map((system) => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = system.colour;
    const seeds = system.seeds.filter((seed) => seed !== null);
    const what = [system.detector, system.backbone, seeds.length && `seeds ${seeds.join(", ")}`];
    const { cost } = system;
    return element(
      "tr", {},
      element("td", {}, swatch, system.name, element("br"),
        element("small", {}, what.filter(Boolean).join("; "))),
      ...system.map.map((value, i) => cell(value, bestAt[i])),
      cell(system.average, bestAverage),
      ...costs.map(([name, text]) =>
        element("td", { title: name === "peak memory" ? cost.peak_of : "" }, text(cost))),
    );
  });
  byId("overview").append(
    element("thead", {}, element("tr", {}, ...heads.map((head) =>
      element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows),
  );
}

function notes({ systems, about }) {
  byId("about").append(...about.map((line) => element("p", { class: "note" }, line)));
  const noted = systems.filter((system) => system.notes.length);
  byId("notes").hidden = !noted.length;
  for (const system of noted) {
    byId("notes").querySelector("dl").append(
      element("dt", {}, system.name), ...system.notes.map((note) => element("dd", {}, note)),
    );
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function toggleTheme() {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  redrawCharts();
}

function onKey(event, viewer) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target, key } = event;
  if (key === "Escape") target.blur();
  if (target.matches("input, select, textarea, video")) return;
  const zoom = (by) => {
    byId("zoom").value = String(Number(byId("zoom").value) + by);
    viewer.applyZoom();
  };
  const inTimeline = target.closest(".timeline") !== null;
  const actions = {
    "/": () => byId("search").focus(),
    n: () => viewer.step(1),
    p: () => viewer.step(-1),
    d: toggleTheme,
    "+": () => zoom(3),
    "-": () => zoom(-3),
  };
  if (inTimeline) {
    actions.ArrowLeft = () => viewer.move(-1, 0);
    actions.ArrowRight = () => viewer.move(1, 0);
    actions.ArrowUp = () => viewer.move(0, -1);
    actions.ArrowDown = () => viewer.move(0, 1);
    actions.Enter = () => viewer.selected && viewer.play(viewer.selected);
    actions[" "] = () => viewer.togglePlay();
  }
  if (!(key in actions)) return;
  event.preventDefault();
  actions[key]();
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
overviewTable(report);
notes(report);
const viewer = new Viewer(report.viewer, report.systems.map((system) => system.name));
showCharts(report.charts);
byId("theme").addEventListener("click", toggleTheme);
document.addEventListener("keydown", (event) => onKey(event, viewer));
