"use strict";
// Sorting, filtering, colours, and watching a sweep. What must survive a reload is asked of `keepers`.
const autolr = (() => {
  const root = document.documentElement;
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // ---- sorting ----------------------------------------------------------------------------------
  const MISSING = new Set(["", "n/a", "nan", "no", "none", "not shown"]);
  const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/i;
  function valueOf(cell) {
    const text = cell.textContent.trim();
    if (MISSING.has(text.toLowerCase())) return { missing: true, text };
    const plain = text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
    const found = plain.match(NUMBER);
    if (found) return { number: Number(found[0]), text };
    if (/^[-+]?inf/i.test(plain)) return { number: plain.startsWith("-") ? -Infinity : Infinity, text };
    return { text };
  }
  const collator = new Intl.Collator(undefined, { numeric: true });

  /** Gives each column a button: ascending, descending, and as it was. */
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], original = [...body.rows];
    let column = -1, order = "none";
    function sort(newColumn, newOrder) {
      column = newColumn;
      order = newOrder;
      heads.forEach((head, i) => {
        if (i === column && order !== "none") head.setAttribute("aria-sort", order);
        else head.removeAttribute("aria-sort");
      });
      table.classList.toggle("sorted", order !== "none");
      if (order === "none") return body.append(...original);
      const rows = original.map((row, i) => ({ row, i, value: valueOf(row.cells[column]) }));
      const known = rows.filter((r) => !r.value.missing);
      const asText = heads[column].classList.contains("text") || known.some((r) => r.value.number === undefined);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        if (a.value.missing || b.value.missing) return !!a.value.missing - !!b.value.missing || a.i - b.i;
        const by = asText ? collator.compare(a.value.text, b.value.text)
          : a.value.number < b.value.number ? -1 : +(a.value.number > b.value.number);
        return sign * by || a.i - b.i;
      });
      body.append(...rows.map((r) => r.row));
    }
    heads.forEach((head, i) => {
      if (head.classList.contains("plain")) return;
      const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" };
        sort(i, next[i === column ? order : "none"]);
      });
    });
    return { sort, state: () => [column, order] };
  }
  const tables = new Map();
  document.querySelectorAll("table.sortable").forEach((t) => tables.set(t.dataset.keep, sortable(t)));

  // ---- colours ----------------------------------------------------------------------------------
  const system = matchMedia("(prefers-color-scheme: dark)"), theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const nameTheme = () => { theme.textContent = isDark() ? "Light colours" : "Dark colours"; };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("autolr-theme", root.dataset.theme); } catch { /* then for this visit only */ }
    nameTheme();
  });
  system.addEventListener("change", nameTheme);
  nameTheme();

  // ---- figures on a phone, details on paper -------------------------------------------------------
  document.querySelectorAll("figure").forEach((figure) => {
    const button = make("button", { type: "button", className: "enlarge", textContent: "Enlarge" });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const large = figure.querySelector(".picture").classList.toggle("large");
      button.setAttribute("aria-pressed", String(large));
    });
    figure.querySelector("h3").after(button);
  });
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details[data-keep]:not([open])")].filter((d) => !d.closest("#stage"));
    opened.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));

  // ---- contents ---------------------------------------------------------------------------------
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const sections = [...document.querySelectorAll("main > section[id]")].filter((s) => links.has(s.id));
  function whereAmI() {
    const here = sections.filter((s) => s.getBoundingClientRect().top < innerHeight / 3).pop() ?? sections[0];
    links.forEach((a, id) => {
      if (id === here.id) a.setAttribute("aria-current", "true");
      else a.removeAttribute("aria-current");
    });
  }
  let waiting = false;
  addEventListener("scroll", () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; whereAmI(); });
    waiting = true;
  }, { passive: true });
  whereAmI();

  // ---- watching ---------------------------------------------------------------------------------
  // The state rides on the history entry: it is there after a reload, and needs no storage.
  const keepers = [{
    save: () => ({
      y: scrollY,
      open: [...document.querySelectorAll("details[data-keep]")].map((d) => [d.dataset.keep, d.open]),
      sorts: [...tables].map(([name, table]) => [name, ...table.state()]),
      boxes: [...tables.keys()].map((name) => {
        const box = tableNamed(name).parentElement;
        return [name, box.scrollLeft, box.scrollTop];
      }),
      focus: document.activeElement?.id ?? "",
    }),
    load: (state) => {
      (state.sorts ?? []).forEach(([name, column, order]) => {
        if (order !== "none") tables.get(name)?.sort(column, order);
      });
    },
    last: (state) => {
      const open = new Map(state.open);
      document.querySelectorAll("details[data-keep]").forEach((d) => {
        if (open.has(d.dataset.keep)) d.open = open.get(d.dataset.keep);
      });
      (state.boxes ?? []).forEach(([name, left, top]) => tableNamed(name)?.parentElement.scrollTo(left, top));
      if (state.focus) document.getElementById(state.focus)?.focus({ preventScroll: true });
      history.scrollRestoration = "manual";
      scrollTo({ top: state.y, behavior: "instant" });
    },
  }];
  const tableNamed = (name) => [...document.querySelectorAll("table[data-keep]")].find((t) => t.dataset.keep === name);
  const kept = history.state?.autolr;
  const watch = document.getElementById("watch");
  let timer = 0;
  function setWatch(on) {
    clearInterval(timer);
    watch.setAttribute("aria-pressed", String(on));
    if (on) timer = setInterval(reload, 15000);
    history.replaceState(on ? { autolr: { watch: true } } : null, "");
  }
  function reload() {
    if (document.hidden) return;
    const state = Object.assign({ watch: true }, ...keepers.map((k) => k.save()));
    history.replaceState({ autolr: state }, "");
    location.reload();
  }
  watch?.addEventListener("click", () => setWatch(watch.getAttribute("aria-pressed") !== "true"));
  addEventListener("DOMContentLoaded", () => {
    if (kept?.open) {
      keepers.forEach((k) => k.load(kept));
      keepers.forEach((k) => k.last?.(kept));
    }
    if (watch) setWatch(kept?.watch === true);
  });
  return { make, sortable, tables, keepers };
})();
