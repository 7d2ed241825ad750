// What stands in place of a question: the welcome with its consent, waiting, the end; and the help.

import { h, button } from "./html.js";

const SEEN = "visfeedback welcome";

export function panel(title, text, parts = []) {
  return h("div", { class: "panel" }, title ? h("h2", {}, title) : null, text ? h("p", { class: "words-of" }, text) : null, ...parts);
}

// Whether the welcome is to be shown: always while there is something to agree to, else once for the same words.
export function greets({ judge, invitation, instructions, consent }) {
  if (consent) return true;
  if (!invitation && !instructions) return false;
  const words = `${judge}|${invitation}|${instructions}`;
  try {
    const seen = localStorage.getItem(SEEN) === words;
    localStorage.setItem(SEEN, words);
    return !seen;
  } catch {
    return true; // storage may be switched off
  }
}

export function welcome({ title, invitation, instructions, consent }, start) {
  const go = button(consent ? "I agree and want to start" : "Start", "Enter", start, { class: "main", hint: "↵" });
  const parts = [];
  if (invitation) parts.push(h("p", { class: "words-of" }, invitation));
  if (instructions) parts.push(h("h3", {}, "What to look for"), h("p", { class: "words-of" }, instructions));
  if (consent) {
    const box = h("input", { type: "checkbox", onchange: () => { go.disabled = !box.checked; } });
    parts.push(h("h3", {}, "Before you start"), h("p", { class: "words-of" }, consent), h("label", { class: "agree" }, box, "I have read this and agree"));
    go.disabled = true;
  }
  return panel(title, "", [...parts, go]);
}

export function fetching() {
  return panel("", "Fetching images…");
}

// Why there is no question. `waiting` is what the server says of it.
export function waits(waiting, { wanted, mine }, undo) {
  if (waiting.drawing) return panel("Drawing…", "New images appear here by themselves.", [h("div", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"))]);
  if (waiting.problem) return panel("No new images", "Drawing has stopped. Please tell whoever invited you.");
  if (!wanted && !mine) return panel("No questions yet", "Images to judge appear here by themselves.");
  const back = mine ? [button("Take back the last answer", "z", undo)] : [];
  if (waiting.others) {
    const them = waiting.others === 1 ? "Somebody else is answering the last question" : `Others are answering the last ${waiting.others} questions`;
    return panel(them, "If one becomes free, it appears here by itself: this page keeps looking.", back);
  }
  return panel("All done", "There is nothing left for you to judge right now. Thank you!", back);
}

// The content of the help: `keys` are the buttons on the screen, `hint` is the view's.
export function help(state, keys, hint, hides, { veil, close, logOut }) {
  const names = keys.map((one) => h("li", {}, h("kbd", {}, one.querySelector("kbd").textContent), one.ariaLabel || one.querySelector(".label").textContent));
  const parts = [h("h2", {}, state.title)];
  if (state.instructions) parts.push(h("p", { class: "words-of" }, state.instructions));
  if (hint) parts.push(h("p", { class: "words-of" }, hint));
  const box = h("input", { type: "checkbox", checked: hides, onchange: (event) => veil(event.target.checked) });
  const out = state.can_log_out ? h("button", { type: "button", onclick: logOut }, `Log out ${state.judge}`) : null;
  parts.push(h("h3", {}, "Keys"), h("ul", { class: "keys" }, names), h("label", { class: "agree" }, box, "Blur images until I ask to see them"));
  parts.push(h("div", { class: "closing" }, out, h("button", { type: "button", class: "main", onclick: close }, "Close")));
  return parts;
}
