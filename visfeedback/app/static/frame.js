// What stands around every question: prompt and count above, the bar with answers and tools below, and their colours.

import { h, button } from "./html.js";

// Elements by name. `does`: what the tools do, by name.
export function frame(does) {
  const parts = {
    prompt: h("h2", { class: "prompt", onscroll: (event) => scrolled(event.target) }),
    criterion: h("p", { class: "criterion" }),
    progress: h("p", { class: "progress" }),
    bar: h("progress", { max: "1", value: "0", "aria-label": "Answered" }),
    stage: h("div", { class: "stage" }),
    noteField: h("textarea", { class: "note", rows: "2", maxlength: "4000" }),
    answers: h("div", { class: "answers", role: "group", "aria-label": "Your answer" }),
    live: h("p", { class: "live", role: "status", "aria-live": "polite" }),
    alarm: h("p", { class: "alarm", role: "alert" }),
    help: h("dialog", { class: "help", "aria-label": "Help" }),
    ...tools(does),
  };
  parts.dock = h("div", { class: "dock" }, parts.noteField, parts.answers, parts.tools);
  parts.head = h("header", {}, h("div", { class: "titles" }, parts.criterion, parts.prompt), h("div", { class: "count" }, parts.progress, parts.bar));
  parts.screen = h("section", { class: "screen", "aria-label": "Compare images" }, parts.head, parts.stage, parts.dock, parts.alarm, parts.live, parts.help);
  parts.dock.hidden = true;
  parts.head.hidden = true;
  return parts;
}

// A prompt that does not fit fades out below, and Tab reaches it, so that the arrow keys scroll it.
export function scrolled(prompt) {
  const long = prompt.scrollHeight > prompt.clientHeight + 1;
  prompt.classList.toggle("long", long);
  prompt.classList.toggle("end", long && prompt.scrollTop + prompt.clientHeight >= prompt.scrollHeight - 1);
  if (long) prompt.setAttribute("tabindex", "0");
  else prompt.removeAttribute("tabindex");
}

function tools(does) {
  const zoomButtons = [
    button("Zoom in", "+", () => does.zoom(1.5)),
    button("Zoom out", "-", () => does.zoom(1 / 1.5)),
    button("Whole", "0", () => does.zoom(0)),
  ];
  const sliderButton = button("Slider", "v", does.slide, { "aria-pressed": "false" });
  const skip = button("Skip", "s", does.skip);
  const flag = button("Flag", "f", does.flag, { title: "Broken, offensive or otherwise not fit to be judged" });
  const group = h("div", { class: "tools", role: "group", "aria-label": "Tools" },
    h("span", { class: "cluster" }, skip, flag, button("Undo", "z", does.undo)),
    h("span", { class: "cluster look" }, sliderButton, ...zoomButtons),
    h("span", { class: "cluster" }, button("Help", "h", does.help)));
  return { zoomButtons, sliderButton, tools: group };
}

// Light and dark as the page around has it, or as the system wants it. `paint("dark")` is called at once and on changes.
export function colours(paint) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const look = () => {
    const inGradio = document.querySelector("gradio-app, .gradio-container");
    const dark = inGradio ? document.body.classList.contains("dark") : system.matches;
    paint(dark ? "dark" : "light");
  };
  system.addEventListener("change", look);
  new MutationObserver(look).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  look();
}
