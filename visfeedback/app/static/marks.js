// Boxes on an image, drawn with a pointer or made and moved by keys; sizes are shares of the picture.

import { h } from "./html.js";

const LABELS = ["artifact", "misaligned", "other"];
const SMALLEST = 0.01; // a click without a drag is a point
const STEP = 0.02;

export function marks(figure, screen) {
  const frame = figure.querySelector(".frame");
  const image = frame.querySelector("img");
  const layer = h("div", { class: "layer" });
  const list = h("ol", { class: "marks", "aria-label": "Marks" });
  const all = [];
  let drawing = null;
  frame.classList.add("marking");
  frame.append(layer);

  const keep = (value) => Math.min(1, Math.max(0, value));
  const at = (event) => {
    const box = image.getBoundingClientRect();
    return [keep((event.clientX - box.left) / box.width), keep((event.clientY - box.top) / box.height)];
  };

  function place(mark) {
    const outer = frame.getBoundingClientRect();
    const inner = image.getBoundingClientRect();
    const style = mark.element.style;
    style.left = `${inner.left - outer.left + mark.x * inner.width}px`;
    style.top = `${inner.top - outer.top + mark.y * inner.height}px`;
    style.width = `${mark.width * inner.width}px`;
    style.height = `${mark.height * inner.height}px`;
    mark.element.classList.toggle("point", mark.width === 0);
  }

  function add(x = 0.4, y = 0.4, width = 0.2, height = 0.2) {
    const mark = { x, y, width, height, label: LABELS[0] };
    mark.element = h("div", { class: "mark", tabindex: "0", role: "group", onkeydown: (event) => nudge(event, mark) });
    const choose = h("select", { onchange: () => { mark.label = choose.value; } }, LABELS.map((label) => h("option", { value: label }, label)));
    const gone = h("button", { type: "button", onclick: () => remove(mark) }, "Remove");
    mark.row = h("li", {}, h("span", {}), choose, gone);
    layer.append(mark.element);
    list.append(mark.row);
    all.push(mark);
    number();
    place(mark);
    return mark;
  }

  function number() {
    all.forEach((mark, i) => {
      mark.element.setAttribute("aria-label", `Mark ${i + 1}; arrows move it, with shift they change its size`);
      mark.element.dataset.number = String(i + 1);
      mark.row.firstChild.textContent = `Mark ${i + 1}`;
      mark.row.querySelector("select").setAttribute("aria-label", `What is wrong at mark ${i + 1}`);
      mark.row.querySelector("button").setAttribute("aria-label", `Remove mark ${i + 1}`);
    });
  }

  function remove(mark) {
    mark.element.remove();
    mark.row.remove();
    all.splice(all.indexOf(mark), 1);
    number();
  }

  function nudge(event, mark) {
    const [dx, dy] = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key] || [0, 0];
    if (event.key === "Delete") remove(mark);
    else if (!dx && !dy) return;
    else if (event.shiftKey) Object.assign(mark, { width: keep(mark.width + dx), height: keep(mark.height + dy) });
    else Object.assign(mark, { x: keep(mark.x + dx), y: keep(mark.y + dy) });
    event.preventDefault();
    event.stopPropagation();
    place(mark);
  }

  frame.addEventListener("pointerdown", (event) => {
    if (!image || event.target.closest(".mark, .veil")) return;
    event.preventDefault();
    const [x, y] = at(event);
    drawing = { from: [x, y], mark: add(x, y, 0, 0) };
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    const [x, y] = at(event);
    const [fx, fy] = drawing.from;
    Object.assign(drawing.mark, { x: Math.min(x, fx), y: Math.min(y, fy), width: Math.abs(x - fx), height: Math.abs(y - fy) });
    place(drawing.mark);
  });
  const end = () => {
    if (!drawing) return;
    const mark = drawing.mark;
    if (mark.width < SMALLEST && mark.height < SMALLEST) Object.assign(mark, { width: 0, height: 0 });
    place(mark);
    drawing = null;
    screen.say(`Mark ${all.length}`);
  };
  frame.addEventListener("pointerup", end);
  frame.addEventListener("pointercancel", end);
  new ResizeObserver(() => all.forEach(place)).observe(frame);

  const round = (value) => Math.round(value * 10000) / 10000;
  return {
    list,
    add: () => { // by keys: not on top of the one before
      const shift = 0.05 * (all.length % 9);
      add(0.2 + shift, 0.2 + shift).element.focus();
    },
    removeLast: () => all.length && remove(all[all.length - 1]),
    regions: () => all.map(({ x, y, width, height, label }) => ({ x: round(x), y: round(y), width: round(width), height: round(height), label })),
  };
}
