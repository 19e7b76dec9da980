"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const made = (tag, text, parent) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
};

function showHead() {
  for (const [name, value] of data.facts) {
    const pair = made("div", undefined, byId("facts"));
    made("dt", name, pair);
    made("dd", value, pair);
  }
  byId("command").textContent = data.command;
  byId("command").hidden = !data.command;
}

// Two pictures of one scene on top of each other, the upper one cut off at a line that moves.
function showScenes() {
  if (!data.scenes.length) return;
  byId("scenes").hidden = false;
  const [scene, left, right, zoom, split] = ["scene", "left", "right", "zoom", "split"].map(byId);
  const view = byId("view"), frame = byId("frame");
  const options = (select, names, chosen) => {
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  };
  const current = () => data.scenes[scene.selectedIndex];
  const place = () => {
    byId("over").style.clipPath = `inset(0 ${100 - split.value}% 0 0)`;
    byId("line").style.left = `${split.value}%`;
  };
  const size = () => {
    const {width, height} = current();
    const inner = view.clientWidth;
    const times = zoom.value === "fit" ? Math.min(inner / width, innerHeight * 0.75 / height) : Number(zoom.value);
    frame.style.width = `${width * times}px`;
    frame.style.height = `${height * times}px`;
    frame.classList.toggle("pixels", times > 1);
  };
  const show = () => {
    const pictures = current().pictures;
    const picked = [left, right].map((select) => pictures.find((p) => p.name === select.value));
    byId("over").src = picked[0].source;
    byId("over").alt = `${current().name}, ${picked[0].name}`;
    byId("under").src = picked[1].source;
    byId("under").alt = `${current().name}, ${picked[1].name}`;
    const parts = picked.map((p) => p.note ? `${p.name}: ${p.note}` : p.name);
    byId("said").textContent = [parts.join("  |  "), current().note].filter(Boolean).join(". ");
    size();
    place();
  };
  const enter = () => {
    const names = current().pictures.map((p) => p.name);
    const kept = (select, other) => names.includes(select.value) ? select.value : other;
    options(left, names, kept(left, data.left in Object.fromEntries(names.map((n) => [n, 1])) ? data.left : names[0]));
    options(right, names, kept(right, names.includes(data.right) ? data.right : names[names.length - 1]));
    show();
  };
  const drag = (event) => {
    const box = frame.getBoundingClientRect();
    split.value = 100 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    place();
  };
  options(scene, data.scenes.map((s) => s.name));
  options(zoom, ["fit", "1", "2", "4", "8"], "fit");
  scene.onchange = enter;
  left.onchange = right.onchange = show;
  zoom.onchange = size;
  split.oninput = place;
  frame.onpointerdown = (event) => {
    frame.setPointerCapture(event.pointerId);
    frame.onpointermove = drag;
    drag(event);
  };
  frame.onpointerup = frame.onpointercancel = () => { frame.onpointermove = null; };
  addEventListener("resize", size);
  enter();
}

// Columns sort by the numbers that their cells begin with, or by their texts.
function showTables() {
  for (const {title, header, rows} of data.tables) {
    const wide = made("div", undefined, byId("tables"));
    wide.className = "wide";
    const table = made("table", undefined, wide);
    made("caption", title, table);
    const head = made("tr", undefined, made("thead", undefined, table));
    const body = made("tbody", undefined, table);
    for (const row of rows) {
      const line = made("tr", undefined, body);
      for (const cell of row) made("td", cell, line);
    }
    header.forEach((name, column) => {
      const cell = made("th", undefined, head);
      cell.scope = "col";
      const button = made("button", name, cell);
      button.onclick = () => {
        const falls = cell.getAttribute("aria-sort") !== "descending";
        for (const other of head.children) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const key = (line) => line.children[column].textContent;
        const compare = (a, b) => {
          const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
          if (isNaN(x) || isNaN(y)) return isNaN(x) && isNaN(y) ? key(a).localeCompare(key(b)) : isNaN(x) ? 1 : -1;
          return falls ? y - x : x - y;
        };
        body.append(...[...body.children].sort(compare));
      };
    });
  }
}

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#2b7fd4", "#d9682b", "#3a9e4d", "#b04fc2", "#c23b4e", "#1d9c9c", "#8a7a24", "#777"];
const drawn = (tag, attributes, parent) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
};
const short = (value) => String(Number(value.toPrecision(4)));

function ticks(low, high, count) {
  const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
  const nice = [1, 2, 5, 10].map((m) => m * step).find((s) => (high - low) / s <= count) || step * 10;
  const found = [];
  for (let tick = Math.ceil(low / nice) * nice; tick <= high + 1e-9 * nice; tick += nice) found.push(tick);
  return found;
}

function showCurves() {
  if (data.curves.length) byId("curves").before(made("h2", "Course"));
  for (const {title, unit, logarithmic, lines, marks} of data.curves) {
    const figure = made("figure", undefined, byId("curves"));
    made("figcaption", title, figure);
    const [width, height, edge, foot] = [480, 260, 48, 22];
    const svg = drawn("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title}, figure);
    const up = logarithmic ? Math.log10 : (v) => v;
    const down = logarithmic ? (v) => 10 ** v : (v) => v;
    const usable = lines.map(({name, points}) => ({name, points: points.filter(([, y]) => !logarithmic || y > 0)}));
    const xs = usable.flatMap(({points}) => points.map(([x]) => x));
    const ys = [...usable.flatMap(({points}) => points.map(([, y]) => up(y))), ...marks.map(([, y]) => up(y))];
    if (!xs.length) continue;
    const span = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    const [x0, x1] = span(xs), [bottom, top] = span(ys), room = (top - bottom) * 0.05 || 1;
    const [y0, y1] = [bottom - room, top + room];
    const left = (x) => edge + (x - x0) / (x1 - x0 || 1) * (width - edge - 8);
    const above = (y) => (height - foot) - (up(y) - y0) / (y1 - y0) * (height - foot - 8);
    for (const tick of ticks(y0, y1, 5)) {
      const y = above(down(tick));
      drawn("line", {class: "grid", x1: edge, x2: width - 8, y1: y, y2: y}, svg);
      drawn("text", {x: edge - 5, y: y + 4, "text-anchor": "end"}, svg).textContent = short(down(tick));
    }
    for (const tick of ticks(x0, x1, 5)) {
      drawn("text", {x: left(tick), y: height - 5, "text-anchor": "middle"}, svg).textContent = short(tick);
    }
    for (const [name, value] of marks) {
      drawn("line", {class: "mark", x1: edge, x2: width - 8, y1: above(value), y2: above(value)}, svg);
      drawn("text", {x: width - 10, y: above(value) - 3, "text-anchor": "end"}, svg).textContent = name;
    }
    const legend = made("div", undefined, figure);
    legend.className = "legend";
    const values = usable.map(({name, points}, index) => {
      const colour = COLOURS[index % COLOURS.length];
      const path = points.map(([x, y], i) => `${i ? "L" : "M"}${left(x).toFixed(1)} ${above(y).toFixed(1)}`).join("");
      drawn("path", {d: path, fill: "none", stroke: colour, "stroke-width": 1.5}, svg);
      const entry = made("span", undefined, legend);
      made("i", undefined, entry).style.background = colour;
      made("span", name, entry);
      return made("span", "", entry);
    });
    const cursor = drawn("line", {class: "mark", y1: 8, y2: height - foot, visibility: "hidden"}, svg);
    const at = made("span", "", legend);
    svg.onpointermove = (event) => {
      const box = svg.getBoundingClientRect();
      const x = x0 + ((event.clientX - box.left) / box.width * width - edge) / (width - edge - 8) * (x1 - x0);
      const nearest = (points) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      const found = usable.map(({points}) => points.length ? nearest(points) : null);
      const step = nearest(found.filter(Boolean))[0];
      cursor.setAttribute("x1", left(step));
      cursor.setAttribute("x2", left(step));
      cursor.setAttribute("visibility", "visible");
      found.forEach((point, index) => { values[index].textContent = point ? ` ${short(point[1])}${unit}` : ""; });
      at.textContent = `step ${short(step)}`;
    };
    svg.onpointerleave = () => {
      cursor.setAttribute("visibility", "hidden");
      for (const value of [...values, at]) value.textContent = "";
    };
  }
}

showHead();
showScenes();
showTables();
showCurves();
