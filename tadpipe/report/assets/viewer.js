// The list of videos, the controls, the player and the timeline, as one object.

const ORDER_KEYS = {
  ap: (v, r) => v.runs[r].ap ?? 2,
  worst: (v, r) => -v.runs[r].w,
  missed: (v, r) => -v.runs[r].m.reduce((sum, missed) => sum + missed, 0),
  gap: (v) => {
    const values = v.runs.map((run) => run.ap).filter((ap) => ap !== null);
    return values.length ? Math.min(...values) - Math.max(...values) : 0;
  },
  duration: (v) => -v.duration,
};

class Viewer {
  constructor(viewer, names) {
    this.labels = viewer.labels;
    this.kinds = viewer.kinds;
    this.tiou = viewer.tiou;
    this.shown = viewer.shown;
    this.videos = viewer.videos;
    this.names = names;
    this.current = null; // the video
    this.selected = null; // the segment
    this.files = new Map(); // file name without suffix -> File picked by the user
    this.stopAt = null;
    this.fillControls();
    this.listen();
    this.refreshList();
    if (this.listed.length) this.open(this.listed[0]);
  }

  fillControls() {
    const options = (items) => items.map(([value, text]) => element("option", { value }, text));
    byId("sort-run").append(...options(this.names.map((name, i) => [String(i), name])));
    byId("label").append(...options([["", "all labels"], ...this.labels.map((l) => [l, l])]));
    byId("kind").append(
      ...options([["", "all detections"], ...this.kinds.map((k, i) => [String(i), k])]),
    );
    byId("top-k").max = String(this.shown);
    byId("top-k").value = String(Math.min(this.shown, 10));
    byId("legend").append(...legendElements());
  }

  listen() {
    for (const id of ["search", "sort", "sort-run"]) {
      byId(id).addEventListener("input", () => this.refreshList());
    }
    for (const id of ["top-k", "min-score", "label", "kind"]) {
      byId(id).addEventListener("input", () => this.drawTimeline());
    }
    byId("zoom").addEventListener("input", () => this.applyZoom());
    byId("video-list").addEventListener("click", (event) => {
      const row = event.target.closest("button");
      if (row) this.open(row.video);
    });
    byId("timeline").addEventListener("click", (event) => {
      const button = event.target.closest(".seg");
      if (button) this.select(button, true);
    });
    for (const id of ["pick-files", "pick-folder"]) {
      byId(id).addEventListener("change", (event) => this.takeFiles(event.target.files));
    }
    const player = byId("player");
    player.addEventListener("timeupdate", () => this.movePlayhead());
    player.addEventListener("error", () => this.videoFailed());
    player.addEventListener("loadedmetadata", () => this.videoReady());
    window.addEventListener("resize", () => this.drawAxis());
  }

  // List ---------------------------------------------------------------------------------------

  refreshList() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const run = Number(byId("sort-run").value) || 0;
    const order = byId("sort").value;
    const matches = (video) => {
      const labels = video.actions.l.map((l) => this.labels[l]);
      const text = [video.name, ...new Set(labels)].join("\n").toLowerCase();
      return words.every((word) => text.includes(word));
    };
    this.listed = this.videos.filter(matches);
    if (order === "name") {
      this.listed.sort((a, b) => a.name.localeCompare(b.name));
    } else {
      const key = ORDER_KEYS[order];
      this.listed.sort((a, b) => key(a, run) - key(b, run) || a.name.localeCompare(b.name));
    }
    byId("list-count").textContent = `${this.listed.length} of ${this.videos.length} videos`;
    byId("video-list").replaceChildren(...this.listed.map((video) => this.listRow(video, run)));
    this.markCurrent();
  }

  listRow(video, run) {
    const result = video.runs[run];
    const missed = result.m.reduce((sum, each) => sum + each, 0);
    const facts =
      `${video.actions.s.length} actions, ${missed} missed, ` +
      `worst error ${result.w.toFixed(2)}, ${clockText(video.duration)}`;
    const row = element(
      "button", { type: "button" },
      element("span", { class: "name", title: video.name }, video.name),
      element("span", {}, result.ap === null ? "–" : `AP ${percentText(result.ap)}`),
      element("small", {}, facts),
    );
    row.video = video;
    return element("li", {}, row);
  }

  markCurrent() {
    for (const row of byId("video-list").querySelectorAll("button")) {
      row.setAttribute("aria-current", String(row.video === this.current));
    }
  }

  step(by) {
    const place = this.listed.indexOf(this.current);
    const next = this.listed[Math.min(Math.max(place + by, 0), this.listed.length - 1)];
    if (!next || next === this.current) return;
    this.open(next);
    byId("video-list").querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  }

  // Video --------------------------------------------------------------------------------------

  open(video) {
    this.current = video;
    this.selected = null;
    this.stopAt = null;
    byId("video-name").textContent = video.name;
    const scores = video.runs
      .map((run, i) => `${this.names[i]} AP ${percentText(run.ap)}`)
      .join(", ");
    byId("video-facts").textContent =
      `${clockText(video.duration)}, ${video.actions.s.length} actions; at tIoU ` +
      `${this.tiou.toFixed(2)}: ${scores}`;
    byId("details").replaceChildren(
      element("p", { class: "note" }, "Click a segment to see it and to play it."),
    );
    this.markCurrent();
    this.showStrip();
    this.loadVideo();
    this.drawTimeline();
  }

  loadVideo() {
    const player = byId("player");
    const file = this.files.get(this.current.name.split("/").at(-1));
    if (this.objectUrl) URL.revokeObjectURL(this.objectUrl);
    this.objectUrl = file ? URL.createObjectURL(file) : null;
    this.source = this.objectUrl ?? this.current.film.source;
    this.loaded = false;
    player.pause();
    player.hidden = true;
    player.removeAttribute("src");
    player.load();
    const words = this.source
      ? "The video is loaded when a segment is clicked or space is pressed."
      : "The report does not know where this video is.";
    byId("no-video").textContent = [words, this.current.film.reason].filter(Boolean).join(" ");
  }

  ensureLoaded() {
    if (this.loaded || !this.source) return;
    this.loaded = true;
    byId("player").src = this.source;
  }

  videoReady() {
    byId("player").hidden = false;
    byId("strip").hidden = true;
    byId("no-video").textContent = "";
  }

  videoFailed() {
    if (!this.loaded) return;
    byId("player").hidden = true;
    this.showStrip();
    byId("no-video").textContent =
      "The video cannot be played from where it was when the report was written " +
      `(${this.current.film.source ?? "unknown"}). Choose the file or its folder below.`;
    this.source = null;
  }

  takeFiles(list) {
    for (const file of list) this.files.set(file.name.replace(/\.[^.]+$/, ""), file);
    this.loadVideo();
    if (this.objectUrl) {
      this.ensureLoaded();
    } else {
      byId("no-video").textContent = `None of these files is named like ${this.current.name}.`;
    }
  }

  showStrip() {
    const { strip, pictures } = this.current.film;
    const place = byId("strip");
    place.hidden = !strip;
    if (!strip) return;
    place.style.backgroundImage = `url("${strip}")`;
    place.style.backgroundSize = `${100 * pictures}% auto`;
    place.style.height = "0";
    place.style.paddingBottom = "56.25%";
    place.style.backgroundRepeat = "no-repeat";
    this.showPicture(0);
  }

  // The picture of the strip that is nearest to a time.
  showPicture(seconds) {
    const { pictures } = this.current.film;
    if (!pictures) return;
    const place = Math.floor((seconds / this.current.duration) * pictures);
    const number = Math.min(Math.max(place, 0), pictures - 1);
    byId("strip").style.backgroundPosition =
      `${pictures > 1 ? (100 * number) / (pictures - 1) : 0}% 50%`;
  }

  play(segment) {
    if (!this.source) return;
    const player = byId("player");
    this.ensureLoaded();
    this.stopAt = segment.end;
    const start = () => {
      player.currentTime = segment.start;
      player.play().catch(() => {}); // a browser may refuse to play, or a new click overtakes
    };
    if (player.readyState >= 1) start();
    else player.addEventListener("loadedmetadata", start, { once: true });
  }

  togglePlay() {
    const player = byId("player");
    this.ensureLoaded();
    this.stopAt = null;
    if (player.paused) player.play().catch(() => {});
    else player.pause();
  }

  movePlayhead() {
    const player = byId("player");
    const head = byId("timeline").querySelector(".playhead");
    if (head) head.style.left = `${(100 * player.currentTime) / this.current.duration}%`;
    if (this.stopAt !== null && player.currentTime >= this.stopAt) {
      this.stopAt = null;
      player.pause();
    }
  }

  // Timeline -----------------------------------------------------------------------------------

  wanted() {
    return {
      topK: Number(byId("top-k").value),
      minScore: Number(byId("min-score").value),
      label: byId("label").value,
      kind: byId("kind").value,
    };
  }

  drawTimeline() {
    const wanted = this.wanted();
    byId("top-k-value").textContent = String(wanted.topK);
    byId("min-score-value").textContent = (wanted.minScore / 1000).toFixed(2);
    const { current: video, labels } = this;
    const { duration } = video;
    let actions = actionSegments(video, video.runs.length === 1 ? 0 : null, labels);
    if (wanted.label !== "") actions = actions.filter((a) => a.label === wanted.label);
    const lanes = [laneElement("Ground truth", actions, duration, this.kinds)];
    video.runs.forEach((run, i) => {
      const found = shownDetections(video, i, labels, wanted);
      const title = `${this.names[i]}: ${found.length} of ${run.n} detections`;
      lanes.push(laneElement(title, found, duration, this.kinds));
    });
    this.track = element(
      "div", { class: "track" }, ...lanes.flat(), element("div", { class: "playhead" }),
    );
    byId("timeline").replaceChildren(this.track);
    this.applyZoom();
    this.restoreSelection();
  }

  applyZoom() {
    const width = 100 * 1.12 ** Number(byId("zoom").value);
    this.track.style.width = `${width}%`;
    this.drawAxis();
    this.track.querySelector('[aria-pressed="true"]')?.scrollIntoView({
      block: "nearest", inline: "center",
    });
  }

  drawAxis() {
    if (!this.track) return;
    this.track.querySelector(".axis")?.remove();
    this.track.append(axisElement(this.current.duration, this.track.clientWidth));
  }

  restoreSelection() {
    if (!this.selected) return;
    const { lane, index } = this.selected;
    const button = [...this.track.querySelectorAll(".seg")].find(
      (each) => each.segment.lane === lane && each.segment.index === index,
    );
    if (button) button.setAttribute("aria-pressed", "true");
  }

  select(button, andPlay) {
    this.track.querySelectorAll('[aria-pressed="true"]').forEach((each) => {
      each.setAttribute("aria-pressed", "false");
    });
    button.setAttribute("aria-pressed", "true");
    button.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.selected = button.segment;
    this.describe(button.segment);
    this.showPicture((button.segment.start + button.segment.end) / 2);
    if (andPlay) this.play(button.segment);
  }

  // Left and right along a lane in time order, up and down from lane to lane.
  move(along, across) {
    const buttons = [...this.track.querySelectorAll(".seg")];
    if (!buttons.length) return;
    const laneOf = (lane) => buttons
      .filter((each) => each.segment.lane === lane)
      .sort((a, b) => a.segment.start - b.segment.start || a.segment.index - b.segment.index);
    const lanes = [...new Set(buttons.map((each) => each.segment.lane))];
    const pressed = buttons.find((each) => each.getAttribute("aria-pressed") === "true");
    if (!pressed) {
      this.select(laneOf(lanes[0])[0], false);
      return;
    }
    if (along) {
      const own = laneOf(pressed.segment.lane);
      const next = own[own.indexOf(pressed) + along];
      if (next) this.select(next, false);
      return;
    }
    const lane = lanes[lanes.indexOf(pressed.segment.lane) + across];
    if (lane === undefined) return;
    const middle = (pressed.segment.start + pressed.segment.end) / 2;
    const distance = (each) => Math.abs((each.segment.start + each.segment.end) / 2 - middle);
    this.select(laneOf(lane).reduce((a, b) => (distance(b) < distance(a) ? b : a)), false);
  }

  describe(segment) {
    const times = `${clockText(segment.start)} to ${clockText(segment.end)} ` +
      `(${segment.start.toFixed(2)} to ${segment.end.toFixed(2)} s, ` +
      `${(segment.end - segment.start).toFixed(2)} s long)`;
    const facts = [["label", segment.label], ["time", times]];
    if (segment.lane < 0) {
      this.current.runs.forEach((run, i) => {
        facts.push([this.names[i], run.m[segment.index] ? "missed" : "found"]);
      });
    } else {
      facts.unshift(["run", this.names[segment.lane]]);
      facts.push(
        ["score", `${segment.score.toFixed(3)}, number ${segment.index + 1} in the video`],
        ["tIoU", `${segment.tiou.toFixed(2)} with an action of its label`],
        [`at tIoU ${this.tiou.toFixed(2)}`, this.kinds[segment.kind]],
      );
    }
    const rows = facts.map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
    byId("details").replaceChildren(element("table", {}, ...rows));
  }
}
