"use strict";
// Draws the plots, sorts and filters the table, opens flips, gives downloads. All numbers and sentences
// come from the JSON in the page; texts go in as text nodes and never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const make = (tag, said = {}, ...inner) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(said)) {
      if (name in made && name !== "for") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...inner);
    return made;
  };
  const GIB = 2 ** 30;
  const short = (x, digits = 4) => (x === null ? "–" : String(Number(x.toPrecision(digits))));
  for (const one of document.querySelectorAll(".themes, .controls")) one.hidden = false;

  // -- colours ----------------------------------------------------------------------------------
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let theme = "auto";
  const paint = () => {
    document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
    for (const b of document.querySelectorAll(".themes button")) {
      b.setAttribute("aria-pressed", String(b.dataset.theme === theme));
    }
  };
  dark.addEventListener("change", paint);
  for (const b of document.querySelectorAll(".themes button")) {
    b.addEventListener("click", () => { theme = b.dataset.theme; paint(); });
  }
  paint();

  // -- plots ------------------------------------------------------------------------------------
  const views = {};
  const shown = {}; // what the table beside a plot has
  const ready = [];
  const filled = (spec, said) => {
    let text = JSON.stringify(spec);
    for (const [name, value] of Object.entries(said)) {
      text = text.replaceAll(JSON.stringify("@" + name), JSON.stringify(value));
    }
    return JSON.parse(text);
  };
  const draw = (id, spec, datasets, said) => {
    const place = by(id + "-plot");
    if (!place) return Promise.resolve();
    const columns = Math.max(1, Math.floor(place.clientWidth / 170));
    const whole = { ...filled(spec, { columns, ...said }), datasets, config: data.config };
    whole.autosize = { type: "fit-x", contains: "padding" };
    views[id]?.finalize();
    const done = vegaEmbed(place, whole, {
      ast: true, actions: false, renderer: "svg", defaultStyle: false,
      tooltip: { disableDefaultStyle: true },
    }).then((result) => { views[id] = result.view; });
    ready.push(done);
    return done;
  };
  const numbers = (id, head, rows) => {
    shown[id] = [head, rows];
    const box = document.querySelector(`.numbers[data-plot="${id}"]`);
    if (box?.open) fillNumbers(box);
  };
  const fillNumbers = (box) => {
    const [head, rows] = shown[box.dataset.plot] ?? [[], []];
    const line = (tag, cells) => make("tr", {}, ...cells.map((c, i) =>
      i === 0 && tag === "td" ? make("th", { scope: "row" }, c)
        : make(tag, tag === "th" ? { scope: "col" } : {}, c)));
    box.querySelector(".scroll").replaceChildren(make("table", {},
      make("thead", {}, line("th", head)),
      make("tbody", {}, ...rows.map((r) => line("td", r)))));
  };
  for (const box of document.querySelectorAll(".numbers")) {
    box.addEventListener("toggle", () => { if (box.open) fillNumbers(box); });
  }

  // -- verdict and Pareto plot --------------------------------------------------------------------
  let verdict = data.verdicts[0];
  let choice = null;
  let budget = 0;
  const stateOf = (point, needs, dominatedBy, answer) =>
    point.why ? data.states[4]
      : point.row === answer ? data.states[0]
        : needs > budget ? data.states[3]
          : dominatedBy ? data.states[2] : data.states[1];
  const place = () => choice.budgets.findLastIndex((n) => n <= budget);
  const paretoValues = () => {
    const values = verdict.points.map(paretoValue);
    const front = values.filter((v) => v.state === data.states[1]);
    // Names only where they do not cover each other.
    if (values.length > data.series && front.length > data.series) front.forEach((v) => { v.named = v.baseline; });
    return values;
  };
  const paretoValue = (p, i) => {
    const needs = choice.needs[i];
    const state = stateOf(p, needs, choice.dominated[i], choice.answers[place()]);
    const memory = `${p.least ? "at least " : ""}${short(needs / GIB)} GiB`;
    return {
      row: p.row, needs: needs / GIB, memory, loss: p.loss, low: p.low ?? p.loss, high: p.high ?? p.loss,
      state, said: p.said, rank: p.rank === null ? "–" : String(p.rank), speed: short(p.speed),
      named: verdict.points.length <= data.series || data.states.indexOf(state) < 2 || p.baseline,
      baseline: p.baseline, label: `${p.row}: ${state}, needs ${memory}, ${p.said}`,
    };
  };
  const tell = () => {
    const said = verdict.reason ? [verdict.reason] : choice.said[place()];
    by("sentence").textContent = said[0];
    by("reasons").replaceChildren(...said.slice(1).map((line) => make("p", {}, line)));
    if (verdict.reason) return;
    by("memory-said").textContent = `${short(budget / GIB)} GiB of ${verdict.kind.toUpperCase()}`;
    by("memory").setAttribute("aria-valuetext", by("memory-said").textContent);
  };
  const paretoNumbers = (values) => numbers("pareto",
    ["row", "state", "needs", "number", "rank", "tok/s"],
    values.map((v) => [v.row, v.state, v.memory, v.said, v.rank, v.speed]));
  const drawPareto = () => {
    by("pareto-controls").hidden = by("pareto-plot").hidden = Boolean(verdict.reason);
    by("pareto-note").textContent = verdict.note;
    if (verdict.reason) { tell(); return; }
    const values = paretoValues();
    paretoNumbers(values);
    tell();
    const low = Math.min(...choice.needs) / GIB, high = Math.max(...choice.needs) / GIB;
    const room = (high - low || high) * 0.06;
    draw("pareto", verdict.spec,
      { points: values, memory: [{ gib: budget / GIB }] },
      { domain: [Math.max(0, low - room), high + 3 * room] });
  };
  const setContext = (context) => {
    choice = verdict.choices.find((c) => c.context === context);
    const slider = by("memory");
    slider.max = choice.budgets.length - 1;
    slider.value = Math.max(0, place());
    budget = choice.budgets[slider.value];
  };
  const setModel = (index) => {
    verdict = data.verdicts[index];
    if (!verdict.reason) {
      by("context").replaceChildren(...verdict.choices.map((c) => make("option", {
        value: c.context, textContent: `${c.context.toLocaleString("en")} tokens`,
        selected: c.context === verdict.context,
      })));
      budget = verdict.budget;
      setContext(verdict.context);
    }
    drawPareto();
  };
  const model = by("model");
  model.replaceChildren(...data.verdicts.map((v, i) => make("option", { value: i, textContent: v.model })));
  document.querySelector("[data-if-several]").hidden = data.verdicts.length < 2;
  model.addEventListener("change", () => setModel(Number(model.value)));
  by("context").addEventListener("change", () => { setContext(Number(by("context").value)); drawPareto(); });
  by("memory").addEventListener("input", () => {
    budget = choice.budgets[by("memory").value];
    const values = paretoValues();
    paretoNumbers(values);
    tell();
    views.pareto?.data("points", values).data("memory", [{ gib: budget / GIB }]).runAsync();
  });
  if (data.verdicts.length) setModel(0);

  // -- the table ----------------------------------------------------------------------------------
  const table = document.querySelector("#table table");
  const headers = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies];
  const original = new Map(bodies.map((b) => [b, [...b.rows]]));
  const hidden = new Set(data.more_columns);
  const isHeading = (row) => row.cells.length < headers.length;
  const key = (row, i) => {
    const cell = row.cells[i];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    return i === 0 ? cell.textContent : null;
  };
  const sort = (index, direction) => {
    for (const body of bodies) {
      const rows = original.get(body).filter((r) => !isHeading(r));
      const top = original.get(body).filter(isHeading);
      if (direction !== "none") {
        const sign = direction === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const x = key(a, index), y = key(b, index);
          if (x === null || y === null) return (x === null) - (y === null); // without a number: last
          return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
        });
      }
      body.append(...top, ...rows);
    }
    headers.forEach((h, i) => h.setAttribute("aria-sort", i === index ? direction : "none"));
    by("count").textContent = direction === "none" ? "in the spec's order"
      : `sorted by ${headers[index].innerText.replace(/\s+/g, " ").trim()}, ${direction}`;
  };
  headers.forEach((header, i) => {
    const button = make("button", { type: "button" }, ...header.childNodes);
    header.replaceChildren(button);
    header.scope = "col";
    header.setAttribute("aria-sort", "none");
    const turn = { none: "ascending", ascending: "descending", descending: "none" };
    button.addEventListener("click", () => sort(i, turn[header.getAttribute("aria-sort")]));
  });
  for (const body of bodies) for (const row of body.rows) row.cells[0].scope = isHeading(row) ? "rowgroup" : "row";
  const filter = () => {
    const words = by("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0, of = 0, at = 0;
    for (const body of bodies) {
      for (const row of original.get(body)) {
        if (isHeading(row)) continue;
        const about = data.rows[at++];
        of += 1;
        row.hidden = !(words.every((w) => about.words.includes(w))
          && (by("floors").checked || !about.floor) && (by("simulated").checked || !about.simulated));
        n += !row.hidden;
      }
    }
    by("count").textContent = n === of ? `${of} rows` : `${n} of ${of} rows`;
  };
  const chooseColumns = () => {
    const all = by("columns")?.checked ?? true;
    headers.forEach((h, i) => {
      const hide = !all && hidden.has(h.dataset.id);
      h.hidden = hide;
      for (const b of bodies) for (const r of original.get(b)) if (!isHeading(r)) r.cells[i].hidden = hide;
    });
  };
  by("filter").addEventListener("input", filter);
  for (const id of ["floors", "simulated"]) by(id).addEventListener("change", filter);
  by("columns")?.addEventListener("change", chooseColumns);
  chooseColumns();
  filter();

  // -- plots of series: which rows they show ------------------------------------------------------
  const select = (label, options, act) => {
    const made = make("select", {}, ...options.map((o, i) => make("option", { value: i, textContent: o })));
    made.addEventListener("change", () => act(Number(made.value)));
    return [make("label", options.length < 2 ? { hidden: true } : {}, label + " ", made), made];
  };
  const controls = (id) => document.querySelector(`#${id} .controls`);
  const rowsOf = (list) => [...new Set(list.map((x) => x.row))];
  const firstRows = (rows) => {
    if (rows.length <= data.series) return new Set(rows);
    const front = Object.values(data.first_rows).flat();
    const inOrder = [...rows.filter((r) => front.includes(r)), ...rows.filter((r) => !front.includes(r))];
    return new Set(inOrder.slice(0, data.series));
  };
  const series = (id, title, drawRows, extra = []) => {
    const box = controls(id);
    if (!box) return;
    const groups = [...new Set(data[id].map((x) => x.group))];
    let own = [], chosen = new Set();
    const fieldset = make("fieldset", {}, make("legend", {}, "Rows of the plot"));
    const summary = make("summary");
    const again = () => {
      summary.textContent = `Rows: ${chosen.size} of ${rowsOf(own).length}`;
      drawRows(own.filter((x) => chosen.has(x.row)), rowsOf(own).filter((r) => chosen.has(r)), own);
    };
    const setGroup = (i) => {
      own = data[id].filter((x) => x.group === groups[i]);
      const rows = rowsOf(own);
      chosen = firstRows(id === "certainty" ? rows.filter((r) => !data.baselines.includes(r)) : rows);
      fieldset.replaceChildren(fieldset.firstChild, ...rows.map((row) => {
        const tick = make("input", { type: "checkbox", checked: chosen.has(row) });
        tick.addEventListener("change", () => { chosen[tick.checked ? "add" : "delete"](row); again(); });
        return make("label", {}, tick, " " + row);
      }));
      again();
    };
    box.replaceChildren(select(title, groups, setGroup)[0], ...extra,
      make("details", { className: "rows" }, summary, fieldset));
    setGroup(0);
    return again;
  };

  series("certainty", "Protocol", (own, rows) => {
    const values = own.flatMap((c) => c.buckets.map(([low, high, kld, n]) =>
      ({ row: c.row, bucket: `${low}–${high}`, kld, n })));
    numbers("certainty", ["row", "largest probability", "KLD, nats", "tokens"],
      values.map((v) => [v.row, v.bucket, short(v.kld), v.n.toLocaleString("en")]));
    draw("certainty", data.specs.certainty, { values }, { rows });
  });

  let change = false;
  const [what, whatBox] = select("Show", ["PPL", "change from the baseline"], (i) => { change = i === 1; drawWindows?.(); });
  const drawWindows = series("windows", "Protocol", (own, rows, all) => {
    whatBox.value = change ? 1 : 0;
    const baselines = new Map(all.map((w) => [w.row, w.nll]));
    const values = own.flatMap((w) => w.nll.map((nll, i) => {
      const base = baselines.get(w.baseline)?.[i] ?? null;
      const ppl = nll === null ? null : Math.exp(nll);
      const grown = nll === null || base === null ? null : 100 * (Math.exp(nll - base) - 1);
      return {
        row: w.row, window: i + 1, ppl, change: grown, shown: change ? grown : ppl,
        said: grown === null ? "–" : `${grown >= 0 ? "+" : ""}${short(grown)}%`,
      };
    })).filter((v) => v.ppl !== null);
    numbers("windows", ["row", "window", "PPL", "from the baseline"],
      values.map((v) => [v.row, v.window, short(v.ppl, 5), v.said]));
    draw("windows", data.specs.windows, { values: values.filter((v) => v.shown !== null) },
      { rows, title: change ? "change of PPL from the baseline, %" : "PPL" });
  }, [what]);

  series("speed", "Measured as", (own, rows) => {
    const values = own.map((s) => ({ ...s, low: s.low ?? s.value, high: s.high ?? s.value }));
    numbers("speed", ["row", "sequences at once", "tok/s", "lowest", "highest"],
      values.map((v) => [v.row, v.batch, short(v.value), short(v.low), short(v.high)]));
    draw("speed", data.specs.speed, { values }, { rows });
  });

  // -- layers -------------------------------------------------------------------------------------
  const layerBox = controls("layers");
  if (layerBox) {
    let own = [], map = null;
    const groups = [...new Set(data.layers.map((x) => x.group))];
    const show = () => {
      const values = map.bands.flatMap(([tensor, cells]) => cells.map((value, layer) => ({ tensor, layer, value })))
        .filter((v) => v.value !== null && (!map.logarithmic || v.value > 0));
      numbers("layers", ["tensor", ...(map.bands[0]?.[1] ?? []).map((_, i) => `layer ${i}`)],
        map.bands.map(([tensor, cells]) => [tensor, ...cells.map((x) => short(x))]));
      by("layers-note").textContent = `${map.what}. Bright is worse.`;
      draw("layers", data.specs.heat, { values },
        { scale: map.logarithmic ? "log" : "linear", reverse: map.worse < 0, height: 22 * map.bands.length });
    };
    const whats = make("select");
    whats.addEventListener("change", () => { map = own[Number(whats.value)]; show(); });
    const setGroup = (i) => {
      own = data.layers.filter((x) => x.group === groups[i]);
      const before = map?.what;
      whats.replaceChildren(...own.map((m, j) => make("option", { value: j, textContent: m.what })));
      whats.value = Math.max(0, own.findIndex((m) => m.what === before));
      map = own[Number(whats.value)];
      show();
    };
    const [label, picked] = select("Row", groups, setGroup);
    layerBox.replaceChildren(label, make("label", {}, "Show ", whats));
    picked.value = Math.max(0, groups.indexOf(data.layers.find((m) => m.what.startsWith("loss"))?.group));
    setGroup(Number(picked.value));
  }

  // -- flips --------------------------------------------------------------------------------------
  const flipBox = controls("flips");
  if (flipBox) {
    const percent = (x) => `${Math.round(100 * x)}%`;
    const written = (name, answer) => {
      const box = make("div", {}, make("h3", {}, name));
      if (!answer) { box.append(make("p", { className: "quiet" }, "What was written is not kept.")); return box; }
      const verdict = answer.verdict || "verdict unknown";
      const error = verdict.split(": ").pop(); // which the detail may begin with, too
      const more = answer.detail.startsWith(error) ? answer.detail.slice(error.length).replace(/^[:\s]+/, "") : answer.detail;
      box.append(make("p", {}, `${verdict}${more ? `: ${more}` : ""} (sample ${answer.sample})`));
      box.append(make("pre", { tabIndex: 0, "aria-label": `Completion of ${name}` }, answer.completion));
      if (answer.left_out) {
        box.append(make("p", { className: "quiet" },
          `${answer.left_out.toLocaleString("en")} more characters are not on this page: ${data.flips_command}`));
      }
      return box;
    };
    const one = (sides, flip) => {
      const plain = [0, 1].includes(flip.share_a) && [0, 1].includes(flip.share_b);
      const box = make("details", { className: "flip" }, make("summary", {},
        make("span", {}, flip.unit),
        make("span", { className: flip.direction }, flip.direction),
        make("span", { className: "quiet" }, plain ? "" : `${percent(flip.share_a)} to ${percent(flip.share_b)} of its samples pass`)));
      box.addEventListener("toggle", () => {
        if (!box.open || box.children.length > 1) return;
        box.append(make("div", { className: "pair" }, written(sides.baseline, flip.a), written(sides.row, flip.b)));
        const test = data.tests[sides.benchmark]?.[flip.unit];
        box.append(test === undefined
          ? make("p", { className: "quiet" }, "Its test is not on this page: the benchmark's problems were not on the machine that made it.")
          : make("details", {}, make("summary", {}, "The test"), make("pre", { tabIndex: 0, "aria-label": "The test" }, test)));
      });
      return box;
    };
    const setSides = (i) => {
      const s = data.flips[i];
      const test = s.p === null ? "" : `; McNemar's exact test: p = ${short(s.p, 2)}`;
      by("flips-list").replaceChildren(
        make("p", {}, `${s.row} from ${s.baseline}, ${s.task}: of ${s.n} problems ${s.lost} lost and ${s.gained} gained${test}.`),
        ...s.flips.map((flip) => one(s, flip)));
      if (s.unlisted) by("flips-list").append(make("p", { className: "quiet" }, `${s.unlisted} more are not listed: ${data.flips_command}`));
    };
    const named = data.flips.map((s) => `${data.verdicts.length > 1 ? s.model + " · " : ""}${s.row} · ${s.task} (${s.lost} lost, ${s.gained} gained)`);
    const [label, picked] = select("Row and task", named, setSides);
    flipBox.replaceChildren(label);
    const most = data.flips.reduce((best, s, i) => (s.flips.length > data.flips[best].flips.length ? i : best), 0);
    picked.value = most;
    setSides(most);
  }

  // -- downloads ----------------------------------------------------------------------------------
  const unpacked = (file) => {
    const bytes = Uint8Array.from(atob(file.gzip), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream, { headers: { "content-type": file.kind } }).blob();
  };
  by("downloads").addEventListener("click", async (event) => {
    const index = event.target.dataset?.download;
    if (index === undefined) return;
    const file = data.downloads[index];
    const url = URL.createObjectURL(await unpacked(file));
    const link = make("a", { href: url, download: file.name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  });

  Promise.all(ready).then(() => { document.documentElement.dataset.ready = "yes"; });
})();
