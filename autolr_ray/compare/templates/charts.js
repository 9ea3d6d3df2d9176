"use strict";
// Axes, curves and marks of the explorer's charts, from the runs that were chosen and nothing else.
autolr.charts = (() => {
  const MARGIN = { left: 58, right: 22, top: 10, bottom: 40 };

  // ---- numbers ----------------------------------------------------------------------------------
  function short(value) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "n/a";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-4 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1).replace(".0e", "e").replace("e+", "e").replace("-", "\u2212");
  }
  function linearTicks(low, high, count) {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
    const ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-9); i++) ticks.push(i * step);
    return ticks;
  }
  function logTicks(low, high) {
    const ticks = [], decades = Math.log10(high / low);
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of decades > 3 ? [1] : decades > 1.2 ? [1, 3] : [1, 2, 3, 5, 7]) ticks.push(m * 10 ** e);
    return ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  }
  /** A domain as a function to [0, 1]. */
  function scale(low, high, log) {
    if (!(high > low)) [low, high] = log ? [low / 2, low * 2] : [low - 0.5, low + 0.5];
    const f = log ? Math.log : (v) => v, a = f(low), b = f(high);
    const place = (v) => (f(v) - a) / (b - a);
    return Object.assign(place, { ticks: log ? logTicks(low, high) : linearTicks(low, high, 5) });
  }

  // ---- drawing ----------------------------------------------------------------------------------
  function draw(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }
  const finite = (values) => values.filter((v) => v !== null);
  /** Steps of one unit of the horizontal axis; how far the axis reaches. */
  const span = (run, axis) => (axis === "share" ? run.steps : 1);
  const reach = (chosen, axis) => Math.max(...chosen.map(({ run }) => run.steps / span(run, axis)), 0) || 1;

  function lrScale(chosen) {
    const all = chosen.flatMap(({ run }) => run.lr.filter((v) => v > 0));
    if (!all.length) return null;
    // A decay to zero would stretch the axis without end.
    const tops = chosen.map(({ run }) => Math.max(...run.lr, 0)).filter((v) => v > 0);
    const starts = chosen.flatMap(({ run }) => run.lr.slice(0, 5).filter((v) => v > 0));
    const low = Math.max(Math.min(...all), Math.min(Math.min(...tops) / 1000, ...starts, Infinity));
    return scale(low / 1.3, Math.max(...tops) * 1.5, true);
  }
  function lossScale(chosen, log) {
    const all = chosen.flatMap(({ run }) => finite(run.loss));
    if (!all.length) return null;
    // A loss that blew up leaves the picture at 1.5 times where training began.
    const starts = chosen.map(({ run }) => Math.max(...finite(run.smooth.slice(0, 3)), -Infinity)).filter((v) => v > 0);
    const top = Math.min(Math.max(...all), starts.length ? 1.5 * Math.max(...starts) : Infinity), low = Math.min(...all);
    if (log) {
      const positive = all.filter((v) => v > 0);
      if (!positive.length) return null;
      const smooth = chosen.flatMap(({ run }) => finite(run.smooth).filter((v) => v > 0));
      return scale(Math.max(Math.min(...positive), Math.min(...smooth) / 3) / 1.1, Math.max(top, Math.min(...positive)) * 1.1, true);
    }
    const bottom = low > top / 2 ? low : Math.min(0, low);
    return scale(bottom, Math.max(top, bottom + 1e-6) * 1.04, false);
  }

  function path(run, values, axis, x, y) {
    let text = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null || !Number.isFinite(y(value))) { pen = "M"; return; }
      text += `${pen}${x(run.step[i] / span(run, axis)).toFixed(1)},${y(value).toFixed(1)}`;
      pen = "L";
    });
    return text;
  }

  /** Draws one chart anew and gives it the places (x, y) that a reading needs; none where nothing is drawn. */
  function drawChart(plot, chosen, { axis, loss }) {
    const svg = plot.box.querySelector("svg"), isLr = plot.kind === "lr";
    const place = chosen.length ? (isLr ? lrScale(chosen) : lossScale(chosen, loss === "log")) : null;
    const width = svg.clientWidth || 480, height = svg.clientHeight || 272;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    plot.x = plot.y = null;
    if (!place) {
      svg.append(draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" },
        chosen.length ? "nothing to draw" : "choose a run in the table below"));
      return;
    }
    const end = reach(chosen, axis), inner = { w: width - MARGIN.left - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom };
    const x = (v) => MARGIN.left + (v / end) * inner.w;
    const y = (v) => MARGIN.top + (1 - place(v)) * inner.h;
    const floor = MARGIN.top + inner.h, clip = `clip-${plot.box.id}`;
    for (const tick of place.ticks) svg.append(
      draw("line", { class: "gridline", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }),
      draw("text", { x: MARGIN.left - 7, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
    for (const tick of linearTicks(0, end, inner.w < 330 ? 4 : 6)) {
      const text = axis === "share" ? `${Math.round(100 * tick)} %` : Math.round(tick).toLocaleString("en");
      svg.append(draw("line", { class: "frameline", x1: x(tick), x2: x(tick), y1: floor, y2: floor + 4 }),
        draw("text", { x: x(tick), y: floor + 17, "text-anchor": "middle" }, text));
    }
    svg.append(
      draw("text", { x: MARGIN.left + inner.w / 2, y: height - 5, "text-anchor": "middle" },
        axis === "share" ? "share of the run" : "optimizer step"),
      draw("line", { class: "frameline", x1: MARGIN.left, x2: width - MARGIN.right, y1: floor, y2: floor }),
      draw("clipPath", { id: clip }, draw("rect", { x: MARGIN.left, y: MARGIN.top - 6, width: inner.w + 6, height: inner.h + 6 })));
    const curves = isLr ? [["lr", "curve"]] : [["loss", "curve raw"], ["smooth", "curve"]];
    const ink = draw("g", { "clip-path": `url(#${clip})` });
    for (const { run, colour } of chosen) {
      const group = draw("g", { class: `run c${colour}`, "data-run": run.index });
      const turn = run.switch >= 0 ? x(run.switch / span(run, axis)) : null;
      if (run.sweep) group.append(draw("rect", { class: "sweep", x: x(0), y: MARGIN.top, width: Math.max(1, x(run.sweep / span(run, axis)) - x(0)), height: inner.h }));
      for (const [at, to] of run.back) {
        const back = x(to / span(run, axis)), from = x(at / span(run, axis));
        group.append(draw("rect", { class: "back", x: back, y: MARGIN.top, width: Math.max(1, from - back), height: inner.h }),
          draw("line", { class: "back-edge", x1: back, x2: back, y1: MARGIN.top, y2: floor }),
          draw("line", { class: "back-edge", x1: from, x2: from, y1: MARGIN.top, y2: floor }));
      }
      (run.tests?.step ?? []).forEach((step, i) => {
        const positive = run.tests.votes[i] > 0, place = x(step / span(run, axis));
        group.append(draw("line", { class: positive ? "test positive" : "test", x1: place, x2: place, y1: floor, y2: floor - (positive ? 11 : 5) }));
      });
      if (turn !== null) group.append(draw("line", { class: "switch", x1: turn, x2: turn, y1: MARGIN.top, y2: floor }));
      for (const [values, kind] of curves)
        group.append(draw("path", { class: kind, d: path(run, run[values], axis, x, y) }));
      const peak = Number(run.peak);
      if (isLr && turn !== null && peak > 0)
        group.append(draw("circle", { class: "peak", cx: turn, cy: y(peak), r: 5 }));
      ink.append(group);
    }
    plot.reading = draw("g", { "clip-path": `url(#${clip})` });
    svg.append(ink, plot.reading);
    Object.assign(plot, { x, y, floor });
  }

  return { MARGIN, short, span, reach, draw, drawChart };
})();
