// Two entries side by side, with their paired test; the pair is in the address (#a=..&b=..).
"use strict";
(() => {
  const holder = document.getElementById("data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const form = document.getElementById("pair");
  const byId = new Map(data.entries.map((entry) => [entry.id, entry]));
  const kept = new Map();
  for (const entry of data.entries) if (entry.kept) kept.set(entry.id, McNemar.unpack(entry.kept));
  const testable = [...kept.keys()];
  const pairs = (testable.length * (testable.length - 1)) / 2;
  const MOST_PAIRS = 500000; // beyond them Bonferroni's bound, which needs one pair only
  const logs = McNemar.logFactorials(data.n);
  let family = null; // "a b" -> adjusted p, made when the first pair is asked for

  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const percent = (share) => (100 * share).toFixed(data.digits);
  const chance = (p) => (p < 0.0001 ? p.toExponential(2) : p.toFixed(4));
  const plural = (count) => `${count} ${count === 1 ? "image" : "images"}`;

  function adjustedOf(a, b, p) {
    if (pairs > MOST_PAIRS) return { value: Math.min(1, p * pairs), method: "Bonferroni" };
    if (!family) {
      const names = [];
      const values = [];
      for (let i = 0; i < testable.length; i += 1) {
        for (let j = i + 1; j < testable.length; j += 1) {
          const s = McNemar.split(kept.get(testable[i]), kept.get(testable[j]), data.n);
          names.push(`${testable[i]} ${testable[j]}`);
          values.push(McNemar.exact(s.onlyFirst, s.onlySecond, logs));
        }
      }
      const corrected = McNemar.holm(values);
      family = new Map(names.map((name, i) => [name, corrected[i]]));
    }
    return { value: family.get(`${a} ${b}`) ?? family.get(`${b} ${a}`), method: "Holm" };
  }

  function verdict(a, b) {
    if (a === b) return { text: "These are the same entry." };
    if (!kept.has(a.id) || !kept.has(b.id)) {
      const missing = [a, b].filter((entry) => !kept.has(entry.id)).map((entry) => entry.name);
      return { text: `Nothing may be said: ${missing.join(" and ")} ${missing.length > 1 ? "are" : "is"} not ranked, or it is not known which examples hold.` };
    }
    const s = McNemar.split(kept.get(a.id), kept.get(b.id), data.n);
    const p = McNemar.exact(s.onlyFirst, s.onlySecond, logs);
    const corrected = adjustedOf(a.id, b.id, p);
    const seen = `${a.name} keeps ${plural(s.onlyFirst)} that ${b.name} loses; ${b.name} keeps ${s.onlySecond} that ${a.name} loses.`;
    const [best, other] = s.onlyFirst > s.onlySecond ? [a, b] : [b, a];
    const text = corrected.value <= 0.05
      ? `${best.name} may be called better than ${other.name}. ${seen}`
      : `Neither may be called better: chance could explain the difference. ${seen}`;
    return { text, s, p, corrected };
  }

  function cautions(a, b) {
    const marked = [a, b].filter((entry) => entry.facts.Marks);
    return marked.length ? `Mind the marks. ${marked.map((e) => `${e.name}: ${e.facts.Marks}`).join("; ")}.` : "";
  }

  function term(list, title, text, value) {
    const line = make("div");
    const said = make("dd", text);
    if (value !== undefined) said.dataset.value = String(value);
    line.append(make("dt", title), said);
    list.append(line);
  }

  function showExamples(table, result, a, b) {
    const body = table.tBodies[0];
    body.replaceChildren();
    if (!result.s) return;
    const { both, onlyFirst, onlySecond, neither } = result.s;
    const lines = [["Both keep", both], [`Only ${a.name}`, onlyFirst], [`Only ${b.name}`, onlySecond], ["Neither", neither]];
    for (const [title, count] of lines) {
      const head = make("th", title);
      head.scope = "row";
      const line = make("tr");
      line.append(head, make("td", String(count), "num"));
      body.append(line);
    }
  }

  function showTest(list, result) {
    list.replaceChildren();
    if (!result.s) {
      term(list, "p", "not available");
      return;
    }
    term(list, "p", chance(result.p), result.p);
    term(list, "Corrected p", `${chance(result.corrected.value)} (${result.corrected.method})`, result.corrected.value);
    term(list, "Pairs tested", String(pairs), pairs);
    term(list, "Level", "0.05");
  }

  const NUMBERS = [["best", "Robust, best known"], ["certified", "Certified"], ["clean", "Clean"], ["own", "Robust, own attacks"]];

  function bar(entry) {
    const n = entry.numbers;
    if (!n.best) return make("span");
    const draw = (tag, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      return node;
    };
    const svg = draw("svg", { class: "bar", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" });
    const [value, low, high] = n.best.map((share) => 100 * share);
    svg.append(draw("rect", { class: "t", y: 3, width: 100, height: 6 }));
    svg.append(draw("rect", { class: "g", y: 3, width: value, height: 6 }));
    if (n.certified) svg.append(draw("rect", { class: "c", y: 3, width: 100 * n.certified[0], height: 6 }));
    svg.append(draw("path", { class: "w", d: `M${low} 1.5V10.5M${low} 6H${high}M${high} 1.5V10.5` }));
    if (n.clean) svg.append(draw("path", { class: "k", d: `M${100 * n.clean[0]} 0V12` }));
    return svg;
  }

  function number(values) {
    const cell = make("td");
    if (!values) return cell;
    cell.append(make("strong", `${percent(values[0])} %`), " ");
    cell.append(make("span", `[${percent(values[1])}, ${percent(values[2])}]`, "ci"));
    return cell;
  }

  function showSides(table, sides) {
    const heads = table.tHead.querySelectorAll("th");
    sides.forEach((entry, i) => {
      const link = make("a", entry.name);
      link.href = `entries/${encodeURIComponent(entry.id)}.html`;
      heads[i].replaceChildren(link);
    });
    const body = table.tBodies[0];
    body.replaceChildren();
    const line = (title, cells) => {
      const head = make("th", title);
      head.scope = "row";
      const tr = make("tr");
      tr.append(head, ...cells);
      body.append(tr);
    };
    line("Bracket", sides.map((entry) => { const cell = make("td"); cell.append(bar(entry)); return cell; }));
    for (const [name, title] of NUMBERS) {
      if (sides.some((entry) => entry.numbers[name])) line(title, sides.map((entry) => number(entry.numbers[name])));
    }
    const titles = [...new Set(sides.flatMap((entry) => Object.keys(entry.facts)))];
    for (const title of titles) line(title, sides.map((entry) => make("td", entry.facts[title] || "–")));
  }

  function show() {
    const a = byId.get(form.elements.a.value);
    const b = byId.get(form.elements.b.value);
    const result = verdict(a, b);
    document.getElementById("said").textContent = result.text;
    document.getElementById("caution").textContent = cautions(a, b);
    showExamples(document.getElementById("examples"), result, a, b);
    showTest(document.getElementById("test"), result);
    showSides(document.getElementById("sides"), [a, b]);
    document.getElementById("result").hidden = false;
  }

  function read() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const first = byId.has(asked.get("a")) ? asked.get("a") : data.entries[0].id;
    const other = data.entries.find((entry) => entry.id !== first).id;
    form.elements.a.value = first;
    form.elements.b.value = byId.has(asked.get("b")) ? asked.get("b") : other;
    show();
  }

  function keep() {
    const state = new URLSearchParams({ a: form.elements.a.value, b: form.elements.b.value });
    history.replaceState(null, "", `#${state}`);
    show();
  }

  for (const select of [form.elements.a, form.elements.b]) {
    for (const entry of data.entries) {
      const option = make("option", entry.name);
      option.value = entry.id;
      select.append(option);
    }
  }
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", keep);
  document.getElementById("swap").addEventListener("click", () => {
    const { a, b } = form.elements;
    [a.value, b.value] = [b.value, a.value];
    keep();
  });
  addEventListener("hashchange", read);
  read();
})();
