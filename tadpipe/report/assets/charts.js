// The charts: Vega-Lite specifications made in Python, drawn when they come into view.

const chartViews = new Map(); // place -> result of vegaEmbed

function chartConfig() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const soft = style.getPropertyValue("--soft").trim();
  const line = style.getPropertyValue("--line").trim();
  return {
    background: "transparent",
    font: "system-ui, 'DejaVu Sans', sans-serif",
    view: { stroke: line },
    axis: {
      labelColor: soft, titleColor: ink, gridColor: line, gridOpacity: 0.6, domainColor: line,
      tickColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500,
    },
    legend: {
      labelColor: ink, titleColor: soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500,
      symbolStrokeColor: soft,
    },
    header: { labelColor: ink, titleColor: ink },
    line: { strokeWidth: 2 },
    bar: { stroke: null },
  };
}

// The library stands in the page as text, so that the table and the viewer need not wait for it.
function runChartLibrary() {
  if (window.vegaEmbed) return;
  document.head.append(element("script", { textContent: byId("chart-library").textContent }));
}

async function drawChart(place) {
  runChartLibrary();
  chartViews.get(place)?.finalize();
  const result = await vegaEmbed(place, place.spec, {
    actions: false, renderer: "svg", ast: true, config: chartConfig(),
    tooltip: { theme: document.documentElement.dataset.theme === "dark" ? "dark" : "light" },
  });
  chartViews.set(place, result);
  place.dataset.drawn = "yes";
}

function chartCard(chart) {
  const place = element("div", { class: "chart", role: "img", "aria-label": chart.title });
  place.spec = chart.spec;
  return element(
    "figure", { class: chart.is_wide ? "card wide" : "card", style: "margin:0" },
    element("h3", {}, chart.title),
    element("p", { class: "note" }, chart.note),
    place,
  );
}

function showCharts(charts) {
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      drawChart(entry.target);
    }
  }, { rootMargin: "300px" });
  const sections = new Map();
  for (const chart of charts) {
    if (!sections.has(chart.section)) sections.set(chart.section, []);
    sections.get(chart.section).push(chart);
  }
  for (const [name, group] of sections) {
    const id = `charts-${name.toLowerCase().replace(/[^a-z]+/g, "-")}`;
    const cards = element("div", { class: "cards" }, ...group.map(chartCard));
    if (name === "Scores") {
      byId("score-charts").append(cards);
    } else {
      byId("charts").append(
        element("section", { id, "aria-label": name }, element("h2", {}, name), cards),
      );
      byId("chart-links").append(element("a", { href: `#${id}` }, name));
    }
    cards.querySelectorAll(".chart").forEach((place) => watcher.observe(place));
  }
}

function redrawCharts() {
  document.querySelectorAll('.chart[data-drawn="yes"]').forEach((place) => drawChart(place));
}
