"use strict";
// Draws the curves of the runs that were chosen in the table, and says what their schedulers decided.
(() => {
  const { make, sortable, keepers } = autolr, { MARGIN, short, span, reach, draw, drawChart } = autolr.charts;
  const byId = (id) => document.getElementById(id);
  const { runs, words, first } = JSON.parse(byId("curves").textContent);
  const MOST = 8;
  const list = byId("list"), rows = new Map([...list.tBodies[0].rows].map((row) => [Number(row.dataset.run), row]));
  const settings = { axis: "step", loss: "linear" };
  let chosen = []; // {run, colour}, in the order of choosing
  let at = null; // where the reading stands, as a share of the horizontal axis; null: at the end

  runs.forEach((run, index) => {
    let step = 0;
    run.step = run.step.map((more) => (step += more));
    run.index = index;
    run.key = JSON.stringify([run.arm, run.point, run.batch, run.seed]);
    run.name = [run.arm, run.point, `batch ${run.batch.toLocaleString("en")}`, `seed ${run.seed}`].filter(Boolean).join(", ");
  });

  // ---- reading ----------------------------------------------------------------------------------
  const plots = ["lr", "loss"].map((kind) => ({ kind, box: byId(`chart-${kind}`) }));
  const right = () => reach(chosen, settings.axis);

  function redraw() {
    plots.forEach((plot) => drawChart(plot, chosen, settings));
    read();
  }

  function nearest(run, share) {
    if (!run.step.length) return -1;
    const wanted = share * right() * span(run, settings.axis);
    let low = 0, high = run.step.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (run.step[middle] < wanted) low = middle; else high = middle;
    }
    return wanted - run.step[low] < run.step[high] - wanted ? low : high;
  }
  function read() {
    const spots = chosen.map(({ run, colour }) => ({ run, colour, i: at === null ? run.step.length - 1 : nearest(run, at) }));
    for (const plot of plots) {
      if (!plot.x) continue;
      plot.reading.replaceChildren();
      if (at === null) continue;
      const cross = plot.x(at * right());
      plot.reading.append(draw("line", { class: "cross", x1: cross, x2: cross, y1: MARGIN.top, y2: plot.floor }));
      for (const { run, colour, i } of spots) {
        const value = i < 0 ? null : run[plot.kind][i];
        if (value !== null && Number.isFinite(plot.y(value)))
          plot.reading.append(draw("circle", { class: `here c${colour}`, cx: plot.x(run.step[i] / span(run, settings.axis)), cy: plot.y(value), r: 4 }));
      }
    }
    byId("where").textContent = at === null ? "At the end of each run"
      : settings.axis === "share" ? `At ${(100 * at * right()).toFixed(0)} % of each run` : `At step ${Math.round(at * right()).toLocaleString("en")}`;
    const lines = [...byId("reading").tBodies[0].rows];
    spots.forEach(({ run, i }, n) => {
      const [, step, lr, loss] = lines[n].cells;
      step.textContent = i < 0 ? "n/a" : run.step[i].toLocaleString("en");
      lr.textContent = i < 0 ? "n/a" : short(run.lr[i]);
      loss.textContent = i < 0 ? "n/a" : short(run.loss[i]);
    });
    return spots;
  }
  function move(share, aloud = false) {
    at = share === null ? null : Math.min(1, Math.max(0, share));
    const spots = read();
    if (aloud) byId("said").textContent = spots.map(({ run, i }) =>
      i < 0 ? "" : `${run.name}: step ${run.step[i]}, LR ${short(run.lr[i])}, loss ${short(run.loss[i])}`).join("; ");
  }
  for (const plot of plots) {
    const point = (event) => {
      if (!plot.x) return;
      const box = plot.box.querySelector("svg").getBoundingClientRect();
      move((event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right));
    };
    plot.box.addEventListener("pointermove", point);
    plot.box.addEventListener("pointerdown", point);
    plot.box.addEventListener("pointerleave", () => { if (document.activeElement !== plot.box) move(null); });
    plot.box.addEventListener("blur", () => move(null));
    plot.box.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 0.1 : 0.01, from = at ?? 0;
      const to = { ArrowLeft: from - step, ArrowRight: from + step, Home: 0, End: 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      move(to, true);
    });
  }

  // ---- what was chosen --------------------------------------------------------------------------
  const cell = (text, kind = "") => make("td", { textContent: text, className: kind });
  function describe() {
    byId("reading").tBodies[0].replaceChildren(...chosen.map(({ run, colour }) => {
      const drop = make("button", { type: "button", className: "drop", textContent: "\u00d7" });
      drop.setAttribute("aria-label", `Remove ${run.name}`);
      drop.addEventListener("click", () => { toggle(run.index, false); boxOf(run.index).focus({ preventScroll: true }); });
      const name = make("th", { scope: "row" }, make("span", { className: `key c${colour}` }), run.name);
      const row = make("tr", {}, name, cell(""), cell(""), cell(""), cell(run.peak),
        cell(run.switch >= 0 ? run.switch.toLocaleString("en") : "none"), cell(run.back.map(([, to]) => to.toLocaleString("en")).join(", then ") || (run.sweep ? "not kept" : "no")),
        cell(run.validation), cell(run.test), make("td", {}, drop));
      const light = (on) => () => plots.forEach(({ box }) => {
        box.querySelector("svg").classList.toggle("calm", on);
        box.querySelector(`.run[data-run="${run.index}"]`)?.classList.toggle("hot", on);
      });
      row.addEventListener("pointerenter", light(true));
      row.addEventListener("pointerleave", light(false));
      row.addEventListener("focusin", light(true));
      row.addEventListener("focusout", light(false));
      return row;
    }));
    const open = new Map([...byId("decisions").querySelectorAll("details")].map((d) => [d.dataset.keep, d.open]));
    byId("decisions").replaceChildren(...chosen.map(({ run, colour }) => {
      if (!run.tests) return make("p", { className: "soft" }, make("span", { className: `key c${colour}` }), `${run.name}: no test took place, nothing was decided during the run.`);
      const { step, verdict } = run.tests, last = step.length - 1;
      const summary = make("summary", {}, make("span", { className: `key c${colour}` }),
        `${run.name}: ${step.length} test${last ? "s" : ""}, the last at step ${step[last].toLocaleString("en")}: ${words[verdict[last]]}`);
      const details = make("details", { className: "panel" }, summary);
      details.dataset.keep = `tests ${run.key}`;
      details.addEventListener("toggle", () => { if (details.open && !details.querySelector("table")) details.append(tests(run)); });
      details.open = open.get(details.dataset.keep) ?? false;
      return details;
    }));
  }
  const COLUMNS = ["Step", "LR", "Decision", "Reason", "Strength", "Probability", "Votes", "Minimum at step", "LR there"];
  function tests(run) {
    const t = run.tests, texts = new Set(["Decision", "Reason"]);
    const head = make("tr", {}, ...COLUMNS.map((name) => make("th", { scope: "col", textContent: name, className: texts.has(name) ? "text" : "" })));
    const body = t.step.map((step, i) => make("tr", {}, make("th", { scope: "row", textContent: step.toLocaleString("en") }),
      cell(short(t.lr[i])), cell(words[t.verdict[i]], "text"), cell(words[t.reason[i]], "text long"), cell(short(t.strength[i])),
      cell(short(t.probability[i])), cell(t.votes[i]), cell(t.lowest[i].toLocaleString("en")), cell(short(t.lowest_lr[i]))));
    const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
    sortable(table);
    const box = make("div", { className: "wide tests", tabIndex: 0 }, table);
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Tests of ${run.name}`);
    return box;
  }

  // ---- choosing ---------------------------------------------------------------------------------
  const boxOf = (index) => rows.get(index).querySelector("input");
  /** What is drawn above the list grows and shrinks; the list stays under the hand that chooses in it. */
  function steady(change) {
    const before = list.getBoundingClientRect().top;
    change();
    scrollBy({ top: list.getBoundingClientRect().top - before, behavior: "instant" });
  }
  function toggle(index, on) {
    chosen = chosen.filter(({ run }) => run.index !== index);
    if (on) {
      if (chosen.length === MOST) chosen.shift();
      const free = [...Array(MOST).keys()].find((colour) => chosen.every((c) => c.colour !== colour));
      chosen.push({ run: runs[index], colour: free });
    }
    show();
  }
  function choose(indices) {
    chosen = indices.slice(0, MOST).map((index, colour) => ({ run: runs[index], colour }));
    show();
  }
  function show() {
    const colours = new Map(chosen.map(({ run, colour }) => [run.index, colour]));
    rows.forEach((row, index) => {
      const colour = colours.get(index);
      boxOf(index).checked = colour !== undefined;
      boxOf(index).className = colour === undefined ? "" : `c${colour}`;
    });
    byId("clear").disabled = chosen.length === 0;
    at = null;
    describe();
    redraw();
  }
  rows.forEach((row, index) => {
    const box = make("input", { type: "checkbox", tabIndex: -1 });
    box.setAttribute("aria-label", `Curves of ${runs[index].name}`);
    box.addEventListener("change", () => steady(() => toggle(index, box.checked)));
    row.cells[0].append(box);
    row.addEventListener("click", (event) => {
      if (event.target === box || getSelection().type === "Range") return;
      steady(() => toggle(index, !box.checked));
    });
  });
  const visible = () => [...list.tBodies[0].rows].filter((row) => !row.hidden);
  /** One stop of the tabulator for the whole list; arrows walk on from there. */
  function stopAt(row) {
    list.querySelectorAll("input[tabindex='0']").forEach((box) => { box.tabIndex = -1; });
    const box = row?.querySelector("input");
    if (box) box.tabIndex = 0;
    return box;
  }
  list.addEventListener("focusin", (event) => { if (event.target.type === "checkbox") stopAt(event.target.closest("tr")); });
  list.addEventListener("keydown", (event) => {
    if (event.target.type !== "checkbox") return;
    const shown = visible(), place = shown.indexOf(event.target.closest("tr"));
    const to = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined && event.key !== "Enter") return;
    event.preventDefault();
    if (event.key === "Enter") event.target.click();
    else stopAt(shown[Math.min(shown.length - 1, Math.max(0, to))])?.focus();
  });

  const filter = byId("filter"), texts = new Map([...rows].map(([index, row]) => [index, row.textContent.toLowerCase()]));
  function sift() {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, index) => {
      row.hidden = !wanted.every((word) => texts.get(index).includes(word));
      count += !row.hidden;
    });
    byId("count").textContent = wanted.length ? `${count} of ${rows.size} runs` : `${rows.size} runs`;
    byId("show-filtered").textContent = count > MOST ? `Show the first ${MOST}` : count === 1 ? "Show it" : `Show these ${count}`;
    byId("show-filtered").disabled = count === 0;
    stopAt(visible()[0]);
  }
  filter.addEventListener("input", sift);
  byId("show-filtered").addEventListener("click", () => choose(visible().map((row) => Number(row.dataset.run))));
  byId("clear").addEventListener("click", () => choose([]));
  function set(name, value) {
    settings[name] = value;
    document.querySelectorAll(`[data-${name}]`).forEach((b) => b.setAttribute("aria-pressed", String(b.dataset[name] === value)));
  }
  for (const name of Object.keys(settings))
    document.querySelectorAll(`button[data-${name}]`).forEach((b) => b.addEventListener("click", () => { set(name, b.dataset[name]); redraw(); }));

  keepers.unshift({
    save: () => ({ filter: filter.value, settings: { ...settings }, chosen: chosen.map(({ run, colour }) => [run.key, colour]) }),
    load: (state) => {
      filter.value = state.filter;
      Object.entries(state.settings).forEach(([name, value]) => set(name, value));
      const byKey = new Map(runs.map((run) => [run.key, run]));
      chosen = state.chosen.filter(([key]) => byKey.has(key)).map(([key, colour]) => ({ run: byKey.get(key), colour }));
      sift();
      show();
    },
  });
  sift();
  choose(first);
  new ResizeObserver(redraw).observe(byId("charts"));
})();
