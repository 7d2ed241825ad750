// The Compare screen as an element: <visfeedback-compare>. Blind: it knows tokens and pictures, nothing about who made them.
// Questions are fetched ahead and their pictures decoded, so that an answer shows the next one at once. Styles live in a
// shadow root and neither leak out nor in.

import { colours, frame, scrolled } from "./frame.js";
import { h, button } from "./html.js";
import { listen } from "./keys.js";
import { views } from "./kinds.js";
import { fit } from "./layout.js";
import * as panels from "./panels.js";
import { ask } from "./questions.js";
import { slider } from "./slider.js";
import { Talk } from "./talk.js";
import { Zoom } from "./zoom.js";

const BASE = new URL("../", import.meta.url);

class Compare extends HTMLElement {
  connectedCallback() {
    if (this.shadowRoot) return;
    this.attachShadow({ mode: "open" });
    this.talk = new Talk(this, BASE);
    this.view = null;
    this.blurred = false; // as it is now; `hides` is what every question begins with
    this.missing = false; // a picture that cannot be had
    this.lastSaid = "";
    this.build();
    this.follow();
    this.start();
  }

  build() {
    Object.assign(this, frame({
      zoom: (factor) => (factor ? this.zoom?.by(factor) : this.zoom?.reset()),
      slide: () => this.slide(),
      skip: () => this.answer({ choice: "skip" }, "Skipped"),
      flag: () => this.answer({ choice: "flag" }, "Flagged"),
      undo: () => this.talk.undo(),
      help: () => this.showHelp(),
    }));
    const style = h("link", { rel: "stylesheet", href: new URL("screen/compare.css", BASE).href });
    style.addEventListener("load", () => this.classList.add("styled"));
    this.shadowRoot.append(style, this.screen);
  }

  follow() {
    listen(this);
    colours((theme) => this.setAttribute("theme", theme));
    const sizes = new ResizeObserver(() => this.resize());
    sizes.observe(this);
    sizes.observe(this.dock);
    window.addEventListener("resize", () => this.resize());
  }

  resize() {
    if (!this.view) return;
    scrolled(this.prompt);
    const top = this.stage.getBoundingClientRect().top + window.scrollY;
    fit(this.stage, window.innerHeight - Math.min(top, window.innerHeight / 2) - this.dock.offsetHeight - 14);
  }

  // before the first question

  async start() {
    try {
      this.state = await this.talk.state();
    } catch (error) {
      if (error.status === 401) return location.reload();
      this.instead(panels.panel("The collection cannot be reached", error.message, [button("Try again", "", () => this.start(), { class: "main" })]));
      return;
    }
    this.hides = this.state.blur;
    if (panels.greets(this.state)) this.instead(panels.welcome(this.state, () => this.agreed()));
    else this.begin();
  }

  async agreed() {
    if (this.state.consent) await this.talk.agree();
    this.begin();
  }

  begin() {
    this.instead(panels.fetching());
    this.head.hidden = false;
    this.talk.count(this.state.progress);
    this.talk.fill();
  }

  // A panel in place of a question; `aloud` when it is news. The same words again leave it, and what has the focus, alone.
  instead(panel, aloud = false) {
    if (!this.view && aloud && this.stage.textContent === panel.textContent) return;
    this.view = null;
    this.dock.hidden = true;
    this.prompt.textContent = "";
    this.criterion.textContent = "";
    this.stage.removeAttribute("style");
    this.stage.replaceChildren(panel);
    if (aloud) this.say(panel.textContent);
  }

  // questions are shown and answered

  show(question) {
    this.dock.hidden = false;
    this.blurred = this.hides;
    this.screen.classList.toggle("blurred", this.blurred);
    this.prompt.textContent = question.prompt;
    this.prompt.scrollTop = 0;
    this.criterion.textContent = ask(question, this.state.title);
    const view = views[question.kind](this, question);
    this.view = view;
    this.stage.className = `stage ${question.kind}`;
    this.answers.replaceChildren(...view.answers);
    this.answers.className = `answers ${question.kind}`;
    this.missing = question.pictures.includes(null);
    this.answers.inert = this.blurred || this.missing;
    this.askForNote(view);
    this.sliderButton.hidden = !view.overlay || this.missing;
    this.sliderButton.disabled = this.blurred; // the pictures are shown first, by a button on each
    this.sliderButton.setAttribute("aria-pressed", "false");
    this.put(view.stage, view.zoom !== false);
    this.say(`${this.lastSaid} ${question.prompt}`.trim());
  }

  askForNote(view) {
    const wish = view.needsNote ? "What you think of it" : "Your reason, if you like";
    this.noteField.value = "";
    this.noteField.blur();
    this.noteField.placeholder = wish;
    this.noteField.setAttribute("aria-label", wish);
    this.noteField.hidden = !(this.state.ask_note || view.needsNote);
  }

  // Figures on the stage, with or without zoom.
  put(figures, zooms) {
    this.stage.replaceChildren(...figures);
    this.zoomButtons.forEach((one) => { one.hidden = !zooms; });
    this.zoom = zooms ? new Zoom([...this.stage.querySelectorAll(".frame")], (scale) => this.zoomed(scale)) : null;
    this.resize();
  }

  note() {
    return this.noteField.hidden ? "" : this.noteField.value.trim();
  }

  answer(what, words = "") {
    const unseen = this.blurred || this.missing;
    if (unseen && !["skip", "flag"].includes(what.choice)) return;
    const note = this.note();
    this.talk.answer(note ? { ...what, note } : what, `${words}.`);
  }

  // looking

  slide() {
    const question = this.talk.current;
    if (!question) return;
    const on = this.sliderButton.getAttribute("aria-pressed") !== "true";
    this.sliderButton.setAttribute("aria-pressed", String(on));
    this.put(on ? [slider(...question.pictures)] : views[question.kind](this, question).stage, !on);
    if (on) this.stage.querySelector("input").focus();
  }

  zoomed(scale) {
    this.zoomButtons[1].disabled = scale <= 1;
    this.zoomButtons[2].disabled = scale <= 1;
  }

  reveal() {
    this.blurred = false;
    this.sliderButton.disabled = false;
    this.answers.inert = this.missing;
    this.screen.classList.remove("blurred");
    this.shadowRoot.querySelectorAll(".veil").forEach((veil) => veil.remove());
    this.say("Images are shown.");
  }

  // words

  count({ mine, answered, wanted }) {
    this.progress.textContent = wanted ? `${answered} of ${wanted} · ${mine} by you` : `${mine} by you`;
    this.bar.max = Math.max(1, wanted);
    this.bar.value = Math.min(answered, wanted);
  }

  say(text) {
    this.live.textContent = text;
  }

  trouble(text) {
    this.alarm.textContent = text;
  }

  failed(error) {
    if (error.status === 401) return location.reload();
    this.say(error.message);
    this.trouble(error.message);
    clearTimeout(this.forget);
    this.forget = setTimeout(() => this.trouble(""), 5000);
  }

  showHelp() {
    const keys = [...this.shadowRoot.querySelectorAll("[data-key]")].filter((one) => one.dataset.key && one.checkVisibility());
    const does = { veil: (on) => { this.hides = on; }, close: () => this.help.close(), logOut: () => this.logOut() };
    this.help.replaceChildren(...panels.help(this.state, keys, this.view?.hint, this.hides, does));
    this.help.showModal();
  }

  async logOut() {
    await this.talk.logOut();
    location.reload();
  }
}

customElements.define("visfeedback-compare", Compare);
