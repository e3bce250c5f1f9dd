// The page's own script: colours, the plan's boxes, and the browser of samples. It loads nothing and evaluates nothing;
// every text of a model is set as text.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) put(node, text);
    return node;
  };
  // Control characters, marks that turn the direction of text around, halves of a pair: shown, not obeyed.
  const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200b\u202a-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
  const named = (c) => `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`;
  const shown = (text) => String(text).replace(HIDDEN, named);
  function put(node, text) {
    let at = 0;
    for (const found of String(text).matchAll(HIDDEN)) {
      node.append(text.slice(at, found.index));
      const mark = document.createElement("span");
      mark.className = "ctrl";
      mark.textContent = named(found[0]);
      node.append(mark);
      at = found.index + found[0].length;
    }
    node.append(String(text).slice(at));
  }

  // Colours: the system's until somebody chooses.
  const theme = $("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => {
    theme.textContent = dark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours");
  };
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  theme.hidden = false;
  label();

  // Contents: where the reader is.
  const links = new Map([...document.querySelectorAll(".contents a")].map((a) => [a.hash.slice(1), a]));
  const sections = [...document.querySelectorAll(".section")];
  const here = () => {
    const line = innerHeight * 0.3;
    const now = sections.findLast((section) => section.getBoundingClientRect().top < line) || sections[0];
    for (const [id, a] of links) {
      if (id === now.id) a.setAttribute("aria-current", "true");
      else a.removeAttribute("aria-current");
    }
  };
  let moved = 0;
  addEventListener("scroll", () => {
    if (!moved) moved = requestAnimationFrame(() => { moved = 0; here(); });
  }, { passive: true });
  here();

  // The plan: a box shows its step's details and the edges that touch it.
  for (const graph of document.querySelectorAll(".graph")) {
    const nodes = [...graph.querySelectorAll(".node")];
    const edges = [...graph.querySelectorAll(".edge")];
    const light = (node) => {
      for (const edge of edges) {
        edge.classList.toggle("on", Boolean(node) && (edge.dataset.from === node.id || edge.dataset.to === node.id));
      }
    };
    let open = null;
    const choose = (node) => {
      if (open) {
        open.setAttribute("aria-expanded", "false");
        $(`${open.id}-details`).hidden = true;
      }
      open = open === node ? null : node;
      if (open) {
        open.setAttribute("aria-expanded", "true");
        $(`${open.id}-details`).hidden = false;
      }
      light(open);
    };
    nodes.forEach((node, number) => {
      node.addEventListener("click", () => choose(node));
      node.addEventListener("mouseenter", () => light(node));
      node.addEventListener("mouseleave", () => light(open));
      node.addEventListener("focus", () => light(node));
      node.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key === "Enter" || event.key === " ") choose(node);
        else if (event.key === "Escape" && open) choose(open);
        else if (step && nodes[number + step]) nodes[number + step].focus();
        else return;
        event.preventDefault();
      });
    });
  }

  // Samples.
  const browser = $("browser");
  if (!browser) return;
  browser.hidden = false;
  const list = $("list"), spacer = $("spacer"), sample = $("sample"), count = $("count"), filters = $("filters");
  if (typeof DecompressionStream === "undefined") {
    count.textContent = "This browser cannot unpack the rows; a newer one can.";
    return;
  }
  const HEIGHT = 60, AROUND = 6, WAIT = 60;
  const [SOURCE, ID, TOPIC, NAMES, SCORES, PROMPT, EARLIER, PARTS] = [0, 1, 2, 3, 4, 5, 6, 7];
  const index = JSON.parse(atob($("index").textContent));
  const rows = [], texts = [];
  let values = index.scores.map(() => new Float32Array(0));
  let hits = new Uint32Array(0), last = null, active = -1, chosen = -1, whole = false;

  const bytes = (text) => {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  };
  async function unpack(text) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }
  function take(found) {
    for (const row of found) {
      const number = rows.push(row) - 1;
      for (let i = 0; i < row[SCORES].length; i += 2) values[row[SCORES][i]][number] = row[SCORES][i + 1];
      let text = `${row[ID]}\n${row[PROMPT]}\n${row[EARLIER]}`;
      for (const part of row[PARTS]) text += `\n${part[1]}`;
      texts.push(text.toLowerCase());
    }
  }
  async function load() {
    values = index.scores.map(() => new Float32Array(index.taken).fill(NaN));
    const chunks = [...document.querySelectorAll("script.rows")];
    for (let i = 0; i < chunks.length; i++) {
      take(await unpack(chunks[i].textContent));
      chunks[i].remove();
      if (i === 0) filter(false);
      else if (i % 8 === 0) count.textContent = `reading ... ${rows.length.toLocaleString("en")} rows so far`;
    }
    whole = true;
    filter(false);
    list.dataset.ready = "true";
  }

  const choices = (select, names) => names.forEach((name, i) => {
    if (name === "") return;
    const option = make("option", "", shown(name));
    option.value = String(i);
    select.append(option);
  });
  choices($("f-source"), index.sources);
  choices($("f-topic"), index.topics);
  choices($("f-principle"), index.principles);
  choices($("f-score"), index.scores);
  for (const [id, names] of [["f-topic", index.topics], ["f-principle", index.principles], ["f-score", index.scores]]) {
    if (!names.some(Boolean)) $(id).closest("label").hidden = true;
  }

  const picked = (id) => ($(id).value === "" ? -1 : Number($(id).value));
  function filter(reset = true) {
    const began = performance.now();
    const score = picked("f-score");
    for (const id of ["f-min", "f-max"]) $(id).disabled = score < 0;
    for (const option of $("f-sort").options) option.disabled = option.value !== "" && score < 0;
    if (score < 0) $("f-sort").value = "";
    const source = picked("f-source"), topic = picked("f-topic"), principle = picked("f-principle");
    const text = $("f-text").value.toLowerCase();
    const min = $("f-min").value === "" ? -Infinity : Number($("f-min").value);
    const max = $("f-max").value === "" ? Infinity : Number($("f-max").value);
    const own = score < 0 ? null : values[score];
    const bounded = own !== null && (min > -Infinity || max < Infinity);
    // A longer text can only be found where the shorter one was.
    const same = `${source}/${topic}/${principle}/${score}/${min}/${max}`;
    const among = last && whole && last.whole && last.same === same && text.startsWith(last.text) ? last.found : null;
    const n = among ? among.length : rows.length;
    const found = new Uint32Array(n);
    let size = 0;
    for (let k = 0; k < n; k++) {
      const i = among ? among[k] : k, row = rows[i];
      if (source >= 0 && row[SOURCE] !== source) continue;
      if (topic >= 0 && row[TOPIC] !== topic) continue;
      if (principle >= 0 && !row[NAMES].includes(principle)) continue;
      if (own !== null && Number.isNaN(own[i])) continue;
      if (bounded && (own[i] < min || own[i] > max)) continue;
      if (text !== "" && !texts[i].includes(text)) continue;
      found[size++] = i;
    }
    hits = found.slice(0, size);
    last = { same, text, whole, found: hits };
    const order = $("f-sort").value;
    if (order && own) {
      const way = order === "up" ? 1 : -1;
      hits = hits.slice().sort((a, b) => way * (own[a] - own[b]) || a - b);
    }
    const all = index.taken.toLocaleString("en");
    count.textContent = `${hits.length.toLocaleString("en")} of ${all} rows${whole ? "" : " (reading ...)"}`;
    if (reset) {
      list.scrollTop = 0;
      active = -1;
    } else if (chosen >= 0) active = hits.indexOf(chosen);
    spacer.style.height = `${hits.length * HEIGHT}px`;
    draw();
    list.dataset.ms = (performance.now() - began).toFixed(1);
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - AROUND);
    const end = Math.min(hits.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + AROUND);
    const nodes = [];
    for (let i = first; i < end; i++) nodes.push(option(i));
    spacer.replaceChildren(...nodes);
    if (active >= first && active < end) list.setAttribute("aria-activedescendant", `option-${active}`);
    else list.removeAttribute("aria-activedescendant");
  }
  function option(i) {
    const row = rows[hits[i]];
    const node = make("div", "option");
    node.id = `option-${i}`;
    node.setAttribute("role", "option");
    node.setAttribute("aria-setsize", hits.length);
    node.setAttribute("aria-posinset", i + 1);
    node.setAttribute("aria-selected", hits[i] === chosen ? "true" : "false");
    node.style.transform = `translateY(${i * HEIGHT}px)`;
    const of = make("span", "of");
    of.append(make("span", "", index.sources[row[SOURCE]]));
    if (index.topics[row[TOPIC]]) of.append(make("span", "", index.topics[row[TOPIC]]));
    const score = picked("f-score");
    const value = score >= 0 ? values[score][hits[i]] : row[SCORES][row[SCORES].length - 1];
    if (value !== undefined) of.append(make("span", "score", value.toFixed(2)));
    const prompt = make("span", "prompt", row[PROMPT].slice(0, 300).replace(/\s+/g, " "));
    prompt.dir = "auto";
    node.append(of, prompt);
    node.addEventListener("click", () => go(i));
    return node;
  }
  let waiting = 0;
  list.addEventListener("scroll", () => {
    if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; draw(); });
  }, { passive: true });
  new ResizeObserver(() => draw()).observe(list);

  function go(i) {
    if (!hits.length) return;
    active = Math.max(0, Math.min(hits.length - 1, i));
    chosen = hits[active];
    const top = active * HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
    draw();
    show(rows[chosen]);
  }
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / HEIGHT) - 1);
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: hits.length - 1 }[event.key];
    if (to !== undefined) go(to);
    else if (event.key === "Enter" || event.key === " ") {
      if (active < 0) go(0);
      sample.focus();
    } else return;
    event.preventDefault();
  });
  sample.addEventListener("keydown", (event) => {
    if (event.key === "Escape") list.focus();
  });

  function show(row) {
    sample.replaceChildren();
    sample.scrollTop = 0;
    const title = make("h3", "", row[PROMPT] || "(no prompt)");
    title.dir = "auto";
    const of = make("p", "of");
    put(of, [index.sources[row[SOURCE]], index.topics[row[TOPIC]], row[ID]].filter(Boolean).join(" \u00b7 "));
    const same = make("button", "", "same prompt elsewhere");
    same.type = "button";
    same.addEventListener("click", () => {
      filters.reset();
      $("f-text").value = row[ID].split("/")[0];
      filter();
    });
    of.append(same);
    sample.append(title, of);
    if (row[EARLIER]) {
      const before = make("details");
      const text = make("div", "text", row[EARLIER]);
      text.dir = "auto";
      before.append(make("summary", "", "earlier turns"), text);
      sample.append(before);
    }
    if (row[PARTS].some((part) => part[4] >= 0)) {
      const choice = make("label", "marks"), box = make("input");
      box.type = "checkbox";
      box.checked = !sample.classList.contains("clean");
      box.addEventListener("change", () => sample.classList.toggle("clean", !box.checked));
      choice.append(box, "mark what each revision changed");
      sample.append(choice);
    }
    const asks = index.requests[row[SOURCE]] || {};
    const asked = row[NAMES].filter((name) => row[PARTS].every((part) => part[3] !== name));
    for (const name of asked) {
      const line = make("p", "asked");
      put(line, `Judged by ${index.principles[name]}: ${(asks[name] || {}).comparison || ""}`);
      sample.append(line);
    }
    for (const part of row[PARTS]) sample.append(drawn(row, part, asks));
  }
  // What was thought is no answer: it is folded, and says what it is.
  function folded(name, text, note) {
    const part = make("section", "part thought"), fold = make("details");
    const head = make("summary", "", name);
    head.append(make("span", "note-text", note));
    const body = make("div", "text", text);
    body.dir = "auto";
    fold.append(head, body);
    part.append(fold);
    return part;
  }
  function drawn(row, [name, text, note, principle, against, share, kind], asks) {
    if (kind === "thought") return folded(name, text, note);
    const part = make("section", `part ${kind || (name === "critique" ? "critique" : "")}`);
    const head = make("h4", "", name);
    if (note) head.append(make("span", "note-text", note));
    if (principle >= 0) head.append(make("span", "tag", index.principles[principle]));
    part.append(head);
    const ask = (asks[principle] || {})[name];
    if (ask) part.append(make("p", "asked", ask));
    if (typeof share === "number") {
      const bar = make("div", "bar"), fill = make("div");
      bar.setAttribute("role", "img");
      bar.setAttribute("aria-label", `probability ${share.toFixed(2)}`);
      fill.style.width = `${100 * share}%`;
      bar.append(fill);
      part.append(bar);
    }
    const body = make("div", text === "" ? "text empty" : "text");
    body.dir = "auto";
    if (text === "") body.textContent = "(empty)";
    else if (against >= 0) compare(body, row[PARTS][against][1], text);
    else put(body, text);
    part.append(body);
    return part;
  }

  // The difference of two texts, word by word: the longest common subsequence, where the texts are not too long for it.
  const CELLS = 4000000;
  const words = (text) => text.match(/\s+|[\p{L}\p{N}_'\u2019]+|[^\s\p{L}\p{N}_]/gu) || [];
  function compare(node, before, after) {
    const a = words(before), b = words(after);
    let head = 0, tail = 0;
    while (head < a.length && head < b.length && a[head] === b[head]) head++;
    while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
    const middle = steps(a.slice(head, a.length - tail), b.slice(head, b.length - tail));
    const all = [...a.slice(0, head).map((w) => ["", w]), ...middle, ...a.slice(a.length - tail).map((w) => ["", w])];
    for (let i = 0; i < all.length;) {
      let end = i, text = "";
      while (end < all.length && all[end][0] === all[i][0]) text += all[end++][1];
      if (all[i][0]) node.append(make(all[i][0], "", text));
      else put(node, text);
      i = end;
    }
  }
  function steps(a, b) {
    if (a.length * b.length > CELLS) return [...a.map((w) => ["del", w]), ...b.map((w) => ["ins", w])];
    const wide = b.length + 1, best = new Uint32Array((a.length + 1) * wide);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        const at = i * wide + j;
        best[at] = a[i] === b[j] ? best[at + wide + 1] + 1 : Math.max(best[at + wide], best[at + 1]);
      }
    }
    const out = [];
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { out.push(["", a[i]]); i++; j++; }
      else if (i < a.length && (j === b.length || best[(i + 1) * wide + j] >= best[i * wide + j + 1])) out.push(["del", a[i++]]);
      else out.push(["ins", b[j++]]);
    }
    return tidy(out);
  }
  // A space that two changed words have in common is no island: changes that it parts read as one.
  function tidy(found) {
    const out = [];
    let del = "", ins = "";
    const flush = () => {
      if (del) out.push(["del", del]);
      if (ins) out.push(["ins", ins]);
      del = ins = "";
    };
    found.forEach(([kind, word], i) => {
      const bridge = !kind && !word.trim() && (del || ins) && i + 1 < found.length && found[i + 1][0];
      if (kind === "del") del += word;
      else if (kind === "ins") ins += word;
      else if (bridge) { del += del ? word : ""; ins += ins ? word : ""; if (!del || !ins) { flush(); out.push(["", word]); } }
      else { flush(); out.push(["", word]); }
    });
    flush();
    return out;
  }

  let timer = 0;
  const soon = () => { clearTimeout(timer); timer = setTimeout(filter, WAIT); };
  filters.addEventListener("input", soon);
  filters.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); filter(); });
  filters.addEventListener("reset", () => setTimeout(filter, 0));
  load().catch((error) => { count.textContent = `The rows could not be read: ${error.message}`; });
})();
