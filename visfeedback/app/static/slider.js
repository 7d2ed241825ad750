// Two pictures on top of each other with a divider that a pointer or the arrow keys move.

import { h } from "./html.js";

export function slider(first, second) {
  const top = h("div", { class: "top" }, first.cloneNode());
  const line = h("div", { class: "line", "aria-hidden": "true" });
  const range = h("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "Divider: image 1 on its left, image 2 on its right", oninput: () => cut(Number(range.value)) });
  const frame = h("div", { class: "frame sliding" }, second.cloneNode(), top, line, h("span", { class: "corner left" }, "1"), h("span", { class: "corner right" }, "2"));

  function cut(percent) {
    const share = Math.min(100, Math.max(0, percent));
    top.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
    line.style.left = `${share}%`;
    range.value = String(share);
  }

  const follow = (event) => {
    const box = frame.getBoundingClientRect();
    cut(((event.clientX - box.left) / box.width) * 100);
  };
  frame.addEventListener("pointerdown", (event) => { frame.setPointerCapture(event.pointerId); follow(event); });
  frame.addEventListener("pointermove", (event) => { if (event.buttons || event.pointerType === "mouse") follow(event); });
  cut(50);
  return h("figure", { class: "overlay" }, frame, range);
}
