// The table: sort, filter, ranks inside the filter, columns; the state is in the address.
"use strict";
(() => {
  const table = document.getElementById("board");
  if (!table) return;
  const form = document.getElementById("filters");
  const body = table.tBodies[0];
  const status = document.getElementById("count");
  const reported = table.dataset.ranking === "reported";
  const heads = [...table.tHead.rows[0].cells];
  const ids = heads.map((cell) => /\bc-(\w+)/.exec(cell.className)[1]);
  const rankAt = ids.indexOf("rank");
  const rows = [...body.rows].map((tr, index) => {
    const cells = [...tr.cells];
    const overall = [...cells[rankAt].childNodes];
    return {
      tr, index, cells, overall, facts: { ...tr.dataset },
      text: tr.textContent.toLowerCase(), grouped: tr.classList.contains("group"), recomputed: false,
    };
  });
  let order = rows; // as they stand in the table now
  let off = new Set(); // columns that are hidden now
  const standard = { column: "rank", down: false };
  let sort = { ...standard };

  const parts = new Map();
  for (const mark of document.querySelectorAll(".scatter [data-key]")) {
    parts.set(mark.dataset.key, [...(parts.get(mark.dataset.key) || []), mark]);
  }

  // One sort button a column.
  heads.forEach((cell, i) => {
    if (ids[i] === "bracket") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const number = cell.classList.contains("num") && ids[i] !== "rank";
      sort = sort.column === ids[i] ? { column: ids[i], down: !sort.down } : { column: ids[i], down: number };
      update(true);
    });
  });

  const field = (name) => (form.elements[name] ? form.elements[name].value : "");

  function fits(row, query, want) {
    const facts = row.facts;
    if (want.arch && facts.arch !== want.arch) return false;
    if (want.extra && facts.extra !== want.extra) return false;
    if (want.kind && facts.kind !== want.kind) return false;
    if (want.division && facts.division !== want.division) return false;
    if (want.verified) {
      const level = facts.level === undefined ? -1 : Number(facts.level);
      const least = want.verified === "yes" ? 0 : Number(want.verified);
      if (want.verified === "no" ? level >= 0 : level < least) return false;
    }
    return query.every((word) => row.text.includes(word));
  }

  // The board's own rule, on what is shown: 1 + the entries whose interval lies entirely above.
  function ranks(shown) {
    const ranked = shown.filter((row) => row.facts.rank !== undefined);
    if (reported) {
      const places = ranked.map((row) => Number(row.facts.rank)).sort((a, b) => a - b);
      return new Map(ranked.map((row) => [row, 1 + places.indexOf(Number(row.facts.rank))]));
    }
    const lows = ranked.map((row) => Number(row.facts.low)).sort((a, b) => a - b);
    const above = (high) => {
      let from = 0;
      let to = lows.length;
      while (from < to) {
        const middle = (from + to) >> 1;
        if (lows[middle] > high) to = middle;
        else from = middle + 1;
      }
      return lows.length - from;
    };
    return new Map(ranked.map((row) => [row, 1 + above(Number(row.facts.high))]));
  }

  function showRank(row, place, shared, filtered) {
    const recomputed = filtered && place !== undefined;
    if (!recomputed && !row.recomputed) return;
    row.recomputed = recomputed;
    const cell = row.cells[rankAt];
    if (!recomputed) {
      cell.replaceChildren(...row.overall);
      return;
    }
    const small = document.createElement("small");
    small.textContent = `overall ${row.facts.rank}`;
    const mark = document.createElement("span");
    mark.textContent = String(place) + (shared ? "=" : "");
    cell.replaceChildren(mark, small);
  }

  function key(row) {
    const cell = row.cells[ids.indexOf(sort.column)];
    if (cell.classList.contains("num")) return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
    return cell.textContent.trim().toLowerCase() || null;
  }

  function sorted(shown) {
    if (sort.column === "rank") {
      return sort.down ? [...shown].reverse() : shown;
    }
    const keyed = shown.map((row) => ({ row, key: key(row) }));
    const sign = sort.down ? -1 : 1;
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.row.index - b.row.index;
      const less = typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key);
      return sign * less || a.row.index - b.row.index;
    });
    return keyed.map((item) => item.row);
  }

  function update(announce) {
    const query = field("q").toLowerCase().split(/\s+/).filter(Boolean);
    const want = Object.fromEntries(["arch", "extra", "kind", "verified", "division"].map((n) => [n, field(n)]));
    const shown = rows.filter((row) => fits(row, query, want));
    const filtered = shown.length < rows.length;
    const places = ranks(shown);
    const counts = new Map();
    for (const place of places.values()) counts.set(place, (counts.get(place) || 0) + 1);
    for (const row of shown) {
      const place = places.get(row);
      showRank(row, place, !reported && counts.get(place) > 1, filtered);
      row.tr.classList.toggle("group", row.grouped && !filtered && sort.column === "rank" && !sort.down);
    }
    const wanted = sorted(shown);
    if (wanted.length !== order.length || wanted.some((row, i) => row !== order[i])) {
      body.replaceChildren(...wanted.map((row) => row.tr));
      order = wanted;
    }
    const visible = new Set(shown.map((row) => row.facts.key));
    for (const [name, marks] of parts) for (const mark of marks) mark.classList.toggle("gone", !visible.has(name));
    hide(new Set([...form.querySelectorAll("[name=show]")].filter((box) => !box.checked).map((box) => box.value)));
    heads.forEach((cell, i) => {
      if (sort.column === ids[i]) cell.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
    status.textContent = filtered
      ? `${shown.length} of ${rows.length} entries shown; ranks are recomputed among them`
      : `${rows.length} entries`;
    if (announce) writeState(want);
  }

  function hide(columns) {
    ids.forEach((id, i) => {
      if (columns.has(id) === off.has(id)) return;
      heads[i].hidden = columns.has(id);
      for (const row of rows) row.cells[i].hidden = columns.has(id);
    });
    off = columns;
  }

  function writeState(want) {
    const state = new URLSearchParams();
    if (field("q").trim()) state.set("q", field("q").trim());
    for (const [name, value] of Object.entries(want)) if (value) state.set(name, value);
    if (sort.column !== standard.column || sort.down !== standard.down) {
      state.set("sort", (sort.down ? "-" : "") + sort.column);
    }
    if (off.size) state.set("hide", [...off].join(","));
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }

  function readState() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const name of ["q", "arch", "extra", "kind", "verified", "division"]) {
      if (form.elements[name]) form.elements[name].value = state.get(name) || "";
      if (form.elements[name] && form.elements[name].selectedIndex === -1) form.elements[name].value = "";
    }
    const asked = state.get("sort") || "";
    const column = asked.replace(/^-/, "");
    sort = ids.includes(column) && column !== "bracket" ? { column, down: asked.startsWith("-") } : { ...standard };
    const hideAsked = new Set((state.get("hide") || "").split(","));
    for (const box of form.querySelectorAll("[name=show]")) box.checked = !hideAsked.has(box.value);
    update(false);
  }

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => update(true));
  form.addEventListener("reset", () => setTimeout(() => { sort = { ...standard }; update(true); }));
  addEventListener("hashchange", () => { if (/^#(table|curves|main)?$/.test(location.hash) === false) readState(); });
  document.addEventListener("keydown", (event) => {
    const open = form.querySelector(".choose[open]");
    if (event.key === "Escape" && open) {
      open.open = false;
      open.querySelector("summary").focus();
    }
  });

  // A row and its point light up together.
  const light = (name, on) => {
    for (const mark of parts.get(name) || []) mark.classList.toggle("lit", on);
  };
  for (const row of rows) {
    row.tr.addEventListener("mouseenter", () => light(row.facts.key, true));
    row.tr.addEventListener("mouseleave", () => light(row.facts.key, false));
  }
  const byKey = new Map(rows.map((row) => [row.facts.key, row.tr]));
  for (const point of document.querySelectorAll(".scatter a.pt")) {
    const row = byKey.get(point.dataset.key);
    for (const name of ["mouseenter", "focus"]) point.addEventListener(name, () => row.classList.add("lit"));
    for (const name of ["mouseleave", "blur"]) point.addEventListener(name, () => row.classList.remove("lit"));
  }
  readState();
})();
