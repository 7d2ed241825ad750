// One view for each kind of question. A view has: `stage` (elements with the images), `answers` (buttons), and may have
// `key(name)` for keys that are on no button. It calls `screen.answer({...})` once.

import { h, button } from "./html.js";
import { marks } from "./marks.js";

const count = (n) => Array.from({ length: n }, (_, i) => i);

// A picture with its number; `more` goes below it.
export function figure(screen, question, position, ...more) {
  const alone = question.images.length === 1;
  const image = question.pictures[position];
  const name = alone ? "Image" : `Image ${position + 1}`;
  const frame = h("div", { class: "frame" }, image || h("p", { class: "gone" }, "This image cannot be shown. Please skip the question."));
  if (image) image.alt = `${name} drawn for: ${question.prompt}`;
  if (screen.blurred) frame.append(button("Show", "x", () => screen.reveal(), { class: "veil", "aria-label": `Show ${name.toLowerCase()}` }));
  return h("figure", { "data-position": position }, frame, alone ? null : h("figcaption", {}, String(position + 1)), ...more);
}

function figures(screen, question, more = () => []) {
  return count(question.images.length).map((position) => figure(screen, question, position, ...more(position)));
}

function pair(screen, question) {
  const say = (choice, words) => () => screen.answer({ choice }, words);
  const keys = { ArrowLeft: say("left", "Image 1"), ArrowRight: say("right", "Image 2") };
  return {
    stage: figures(screen, question),
    answers: [
      button("1 is better", "1", say("left", "Image 1"), { class: "main first", hint: "1 ←" }),
      button("Tie", "t", say("tie", "Tie"), { class: "even", title: "Equally good, or good in different ways" }),
      button("Both bad", "b", say("both_bad", "Both bad"), { class: "even", title: "Neither shows what was asked for" }),
      button("2 is better", "2", say("right", "Image 2"), { class: "main last", hint: "2 →" }),
    ],
    key: (pressed) => (keys[pressed] ? (keys[pressed](), true) : false),
    overlay: true,
  };
}

function best(screen, question) {
  const pick = (position) => () => screen.answer({ best: position }, `Image ${position + 1}`);
  return {
    stage: figures(screen, question),
    answers: count(question.images.length).map((i) => {
      const words = `${i + 1} is best`;
      const short = question.images.length > 4; // many long buttons would leave no room for the images
      return button(short ? String(i + 1) : words, name(i), pick(i), { class: short ? "main pick" : "main", "aria-label": words });
    }),
  };
}

const name = (i) => (i < 9 ? String(i + 1) : "0-="[i - 9]);

function ranking(screen, question) {
  const n = question.images.length;
  const ranks = Array(n).fill(null);
  let same = false; // the next one shares the rank of the one before
  let last = null;
  const send = button("Send this order", "Enter", () => done() && screen.answer({ ranks }, "Order"), { class: "main", hint: "↵" });
  const tie = button("Next is as good", "e", () => { same = last !== null && !done() && !same; draw(); }, { class: "even", "aria-pressed": "false" });
  const again = button("Start over", "r", () => { ranks.fill(null); same = false; last = null; draw(); }, { class: "even" });
  const picks = count(n).map((i) => button(String(i + 1), name(i), () => pick(i), { class: "pick", "aria-label": `Image ${i + 1} is next` }));
  const stage = figures(screen, question, () => [h("p", { class: "rank", "aria-live": "off" })]);
  const done = () => ranks.every((rank) => rank !== null);
  const taken = () => ranks.filter((rank) => rank !== null).length;

  function pick(i) {
    if (ranks[i] !== null) return;
    ranks[i] = same ? ranks[last] : taken();
    last = i;
    same = false;
    if (taken() === n - 1) ranks[ranks.indexOf(null)] = n - 1; // the last place is no choice
    screen.say(`Image ${i + 1}: place ${ranks[i] + 1}`);
    draw();
  }

  function draw() {
    stage.forEach((one, i) => {
      one.querySelector(".rank").textContent = ranks[i] === null ? "" : `place ${ranks[i] + 1}`;
      one.classList.toggle("chosen", ranks[i] !== null);
    });
    picks.forEach((one, i) => { one.disabled = ranks[i] !== null; });
    send.disabled = !done();
    tie.disabled = last === null || done();
    tie.setAttribute("aria-pressed", String(same));
  }

  draw();
  return { stage, answers: [...picks, tie, again, send], hint: "Press the numbers from best to worst." };
}

function rating(screen, question) {
  const [low, high] = question.scale;
  const steps = high - low <= 10 ? count(Math.floor(high - low) + 1).map((i) => low + i) : null;
  const given = Object.fromEntries(question.criteria.map((criterion) => [criterion, Array(question.images.length).fill(null)]));
  const rows = [];
  const send = button("Send ratings", "Enter", () => done() && screen.answer({ ratings: given }, "Ratings"), { class: "main", hint: "↵", disabled: true });
  const done = () => Object.values(given).every((values) => values.every((value) => value !== null));

  function put(row, value) {
    given[row.criterion][row.position] = value;
    row.mark(value);
    send.disabled = !done();
    const next = rows.find((other) => given[other.criterion][other.position] === null);
    rows.forEach((other) => other.element.classList.toggle("now", other === next));
  }

  function makeRow(criterion, position) {
    const row = { criterion, position };
    const label = `${criterion}, image ${position + 1}`;
    if (steps) {
      const dots = steps.map((value) => h("button", { type: "button", role: "radio", "aria-checked": "false", "aria-label": `${label}: ${value}`, onclick: () => put(row, value) }, String(value)));
      row.element = h("div", { class: "row", role: "radiogroup", "aria-label": label }, h("span", { class: "name" }, criterion), h("span", { class: "dots" }, dots));
      row.mark = (value) => dots.forEach((dot, i) => dot.setAttribute("aria-checked", String(steps[i] === value)));
    } else {
      const shown = h("output", {}, "–");
      const slider = h("input", { type: "range", min: String(low), max: String(high), step: String((high - low) / 100), "aria-label": label, oninput: () => put(row, Number(slider.value)) });
      row.element = h("div", { class: "row" }, h("span", { class: "name" }, criterion), slider, shown);
      row.mark = (value) => { shown.textContent = value.toFixed(1); };
    }
    rows.push(row);
    return row.element;
  }

  const stage = figures(screen, question, (position) => question.criteria.map((criterion) => makeRow(criterion, position)));
  rows[0].element.classList.add("now");
  return {
    stage,
    answers: [send],
    hint: steps ? "Press a number for the marked line." : "",
    key: (pressed) => {
      const value = steps?.find((one) => String(one) === pressed);
      const row = rows.find((one) => given[one.criterion][one.position] === null);
      if (value === undefined || !row) return false;
      put(row, value);
      return true;
    },
  };
}

function like(screen, question) {
  const no = () => screen.answer({ like: false }, "Not liked");
  const yes = () => screen.answer({ like: true }, "Liked");
  const keys = { ArrowLeft: no, ArrowRight: yes, 1: no, 2: yes };
  return {
    stage: figures(screen, question),
    answers: [button("I do not like it", "d", no, { class: "main first", hint: "d ←" }), button("I like it", "l", yes, { class: "main last", hint: "l →" })],
    key: (pressed) => (keys[pressed] ? (keys[pressed](), true) : false),
  };
}

function region(screen, question) {
  const one = figure(screen, question, 0);
  const marked = marks(one, screen);
  const send = button("Send", "Enter", () => screen.answer({ regions: marked.regions() }, "Marks"), { class: "main", hint: "↵" });
  return {
    stage: [one, marked.list],
    answers: [button("Add a mark", "a", () => marked.add(), { class: "even" }), button("Remove the last", "r", () => marked.removeLast(), { class: "even" }), send],
    hint: "Draw a box around every place that is wrong; send without any when all is well.",
    zoom: false,
  };
}

function words(screen, question) {
  const off = new Set();
  const spans = question.prompt.split(/\s+/).filter(Boolean).map((word, i) => h("button", { type: "button", class: "word", "aria-pressed": "false", onclick: (event) => {
    if (!off.delete(i)) off.add(i);
    event.currentTarget.setAttribute("aria-pressed", String(off.has(i)));
  } }, word));
  return {
    stage: [figure(screen, question, 0), h("div", { class: "words", role: "group", "aria-label": "Words that the image does not show" }, spans)],
    answers: [button("Send", "Enter", () => screen.answer({ words: [...off].sort((a, b) => a - b) }, "Words"), { class: "main", hint: "↵" })],
    hint: "Choose every word that the image does not show; send without any when it shows all.",
  };
}

function text(screen, question) {
  return {
    stage: [figure(screen, question, 0)],
    answers: [button("Send", "Enter", () => screen.note() ? screen.answer({}, "Text") : screen.say("Please write something, or skip."), { class: "main", hint: "ctrl ↵" })],
    needsNote: true,
  };
}

export const views = { pair, best, ranking, rating, like, region, words, text };
