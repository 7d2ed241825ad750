// The Compare screen as an element: <visfeedback-compare>. Blind: it knows tokens and pictures, nothing about who made them.
// Questions are fetched ahead and their pictures decoded, so that an answer shows the next one at once; answers go out in
// order behind it. Styles live in a shadow root and neither leak out nor in.

import { Link } from "./link.js";
import { h, button } from "./html.js";
import { views } from "./kinds.js";
import { Zoom } from "./zoom.js";
import { slider } from "./slider.js";
import { fit } from "./layout.js";

const BASE = new URL("../", import.meta.url);
const AHEAD = 5; // questions that wait on the screen's side: as many quick answers need no waiting
const POLL = { drawing: 700, done: 10000 }; // milliseconds
const TYPING = "input:not([type=range], [type=checkbox]), textarea, select, [contenteditable]";
const OF_SLIDERS = /^(Arrow|Home|End|Page)/;

class Compare extends HTMLElement {
  connectedCallback() {
    if (this.shadowRoot) return;
    this.attachShadow({ mode: "open" });
    this.link = new Link(BASE, (text) => this.trouble(text));
    this.current = null;
    this.ready = [];
    this.held = new Set(); // tokens on this screen, shown or waiting, and those whose answer is under way
    this.busy = false;
    this.unsent = 0; // answers whose receipt has not come
    this.blurred = false;
    this.view = null;
    this.build();
    this.follow();
    this.start();
  }

  // the frame around the questions

  build() {
    this.prompt = h("h2", { class: "prompt", tabindex: "-1" });
    this.criterion = h("p", { class: "criterion" });
    this.progress = h("p", { class: "progress" });
    this.bar = h("progress", { max: "1", value: "0", "aria-label": "Answered" });
    this.stage = h("div", { class: "stage" });
    this.noteField = h("textarea", { class: "note", rows: "2", maxlength: "4000" });
    this.answers = h("div", { class: "answers", role: "group", "aria-label": "Your answer" });
    this.tools = h("div", { class: "tools", role: "group", "aria-label": "Tools" });
    this.live = h("p", { class: "live", role: "status", "aria-live": "polite" });
    this.alarm = h("p", { class: "alarm", role: "alert" });
    this.help = h("dialog", { class: "help", "aria-label": "Help" });
    this.dock = h("div", { class: "dock" }, this.alarm, this.noteField, this.answers, this.tools);
    this.head = h("header", {}, h("div", { class: "titles" }, this.criterion, this.prompt), h("div", { class: "count" }, this.progress, this.bar));
    this.screen = h("section", { class: "screen", "aria-label": "Compare images" }, this.head, this.stage, this.dock, this.live, this.help);
    const style = h("link", { rel: "stylesheet", href: new URL("screen/compare.css", BASE).href });
    style.addEventListener("load", () => this.classList.add("styled"));
    this.shadowRoot.append(style, this.screen);
    this.dock.hidden = true;
    this.head.hidden = true;
    this.makeTools();
  }

  makeTools() {
    this.zoomButtons = [
      button("Zoom in", "+", () => this.zoom?.by(1.5)),
      button("Zoom out", "-", () => this.zoom?.by(1 / 1.5)),
      button("Whole", "0", () => this.zoom?.reset()),
    ];
    this.sliderButton = button("Slider", "v", () => this.slide(), { "aria-pressed": "false" });
    this.skipButton = button("Skip", "s", () => this.answer({ choice: "skip" }, "Skipped"));
    this.flagButton = button("Flag", "f", () => this.answer({ choice: "flag" }, "Flagged"), { title: "Broken, offensive or otherwise not fit to be judged" });
    this.undoButton = button("Undo", "z", () => this.undo());
    this.tools.append(
      h("span", { class: "cluster" }, this.skipButton, this.flagButton, this.undoButton),
      h("span", { class: "cluster look" }, this.sliderButton, ...this.zoomButtons),
      h("span", { class: "cluster" }, button("Help", "h", () => this.showHelp())),
    );
  }

  // keys, size, colours

  follow() {
    document.addEventListener("keydown", (event) => this.pressed(event));
    this.shadowRoot.addEventListener("pointerdown", (event) => { // a click leaves the keys where they were
      if (event.target.closest("button")) event.preventDefault();
    });
    new ResizeObserver(() => this.resize()).observe(this);
    new ResizeObserver(() => this.resize()).observe(this.dock);
    window.addEventListener("resize", () => this.resize());
    this.others = new BroadcastChannel("visfeedback answered"); // tabs of this browser hold the same questions
    this.others.addEventListener("message", (event) => this.elsewhere(event.data));
    window.addEventListener("beforeunload", (event) => { if (this.unsent) event.preventDefault(); });
    const colours = matchMedia("(prefers-color-scheme: dark)");
    const paint = () => {
      const inGradio = document.querySelector("gradio-app, .gradio-container");
      const dark = inGradio ? document.body.classList.contains("dark") : colours.matches;
      this.setAttribute("theme", dark ? "dark" : "light");
    };
    colours.addEventListener("change", paint);
    new MutationObserver(paint).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    paint();
  }

  pressed(event) {
    const target = event.composedPath()[0];
    const typing = target instanceof Element && target.matches(TYPING);
    if (typing && target === this.noteField && event.key === "Enter" && (event.ctrlKey || event.metaKey)) return this.click("Enter", event);
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    if (!this.checkVisibility()) return;
    if (target instanceof Element && target.matches("input[type=range]") && OF_SLIDERS.test(event.key)) return;
    if (event.key === "Enter" && target instanceof Element && target.closest("button:not(.word), a, summary, [role=tab]")) return;
    const outside = target !== document.body && !event.composedPath().includes(this);
    if (outside && event.key.startsWith("Arrow")) return; // tabs and sliders of the page around us
    this.click(event.key.length === 1 ? event.key.toLowerCase() : event.key, event);
  }

  click(name, event) {
    const wanted = name === "=" ? "+" : name;
    const found = [...this.shadowRoot.querySelectorAll("[data-key]")].find((one) => one.dataset.key === wanted && !one.disabled && one.checkVisibility());
    if (found) found.click();
    else if (!this.current || !this.view?.key?.(name)) return;
    event.preventDefault();
  }

  resize() {
    if (!this.view) return;
    const top = this.stage.getBoundingClientRect().top + window.scrollY;
    fit(this.stage, window.innerHeight - Math.min(top, window.innerHeight / 2) - this.dock.offsetHeight - 14);
  }

  // before the first question

  async start() {
    try {
      this.state = await this.link.get("api/state");
    } catch (error) {
      if (error.status === 401) return location.reload();
      this.panel("The collection cannot be reached", error.message, [button("Try again", "", () => this.start(), { class: "main" })]);
      return;
    }
    this.hides = this.state.blur;
    if (this.state.consent) this.welcome();
    else if ((this.state.invitation || this.state.instructions) && !this.seen()) this.welcome();
    else this.begin();
  }

  seen() {
    const words = `${this.state.judge}|${this.state.invitation}|${this.state.instructions}`;
    try {
      const before = localStorage.getItem("visfeedback welcome") === words;
      localStorage.setItem("visfeedback welcome", words);
      return before;
    } catch {
      return false; // storage may be switched off
    }
  }

  welcome() {
    const { title, invitation, instructions, consent } = this.state;
    const start = button(consent ? "I agree and want to start" : "Start", "Enter", () => this.agreed(), { class: "main", hint: "↵" });
    const box = h("input", { type: "checkbox", onchange: () => { start.disabled = !box.checked; } });
    const more = [];
    if (invitation) more.push(h("p", { class: "words-of" }, invitation));
    if (instructions) more.push(h("h3", {}, "What to look for"), h("p", { class: "words-of" }, instructions));
    if (consent) {
      more.push(h("h3", {}, "Before you start"), h("p", { class: "words-of" }, consent), h("label", { class: "agree" }, box, "I have read this and agree"));
      start.disabled = true;
    }
    this.panel(title, "", [...more, start]);
  }

  async agreed() {
    if (this.state.consent) await this.link.send("api/agree", { agree: true });
    this.begin();
  }

  begin() {
    this.panel("", "Fetching images…", []);
    this.head.hidden = false;
    this.count(this.state.progress);
    this.fill();
  }

  panel(title, text, parts) {
    this.view = null;
    this.current = null;
    this.dock.hidden = true;
    this.prompt.textContent = "";
    this.criterion.textContent = "";
    this.stage.removeAttribute("style");
    this.stage.replaceChildren(h("div", { class: "panel" }, title ? h("h2", {}, title) : null, text ? h("p", { class: "words-of" }, text) : null, ...parts));
  }

  // questions come in

  async fill() {
    if (this.filling) return;
    this.filling = true;
    clearTimeout(this.timer);
    try {
      while (this.ready.length < AHEAD) {
        const answer = await this.link.send("api/next", () => ({ have: this.tokens() }));
        if (!answer.question) { this.idle(answer.waiting); break; }
        await this.take(answer.question);
      }
    } catch (error) {
      this.failed(error);
    } finally {
      this.filling = false;
    }
  }

  tokens() {
    return [...this.held].slice(-16);
  }

  // A question joins the line when its pictures are decoded.
  async take(question, first = false) {
    if (this.held.has(question.token)) return;
    this.held.add(question.token);
    question.ends = performance.now() + question.seconds_left * 1000;
    question.pictures = await Promise.all(question.images.map((path) => this.picture(path)));
    if (first && this.current) this.ready.unshift(this.current.question);
    if (first || !this.current) this.show(question);
    else this.ready.push(question);
  }

  async picture(path) {
    const image = new Image();
    image.draggable = false;
    image.src = new URL(path, BASE).href;
    try {
      await image.decode();
      return image;
    } catch {
      return null;
    }
  }

  idle(waiting) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.fill(), waiting.drawing || this.busy ? POLL.drawing : POLL.done);
    if (this.current || this.ready.length || this.unsent) return;
    if (waiting.drawing) this.panel("Drawing…", "New images appear here by themselves.", [h("div", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"))]);
    else if (waiting.problem) this.panel("No new images", "Drawing has stopped. Please tell whoever invited you.", []);
    else this.panel("All done", "There is nothing left for you to judge right now. Thank you!", [this.lastUndo()]);
    this.say(this.stage.textContent);
    this.refresh();
  }

  lastUndo() {
    return button("Take back the last answer", "z", () => this.undo());
  }

  // questions are shown and answered

  show(question) {
    this.current = { question };
    this.dock.hidden = false;
    this.blurred = this.hides;
    this.noteField.value = "";
    this.noteField.blur();
    this.prompt.textContent = question.prompt;
    this.criterion.textContent = this.ask(question);
    const view = views[question.kind](this, question);
    this.view = view;
    this.stage.replaceChildren(...view.stage);
    this.stage.className = `stage ${question.kind}`;
    this.answers.replaceChildren(...view.answers);
    this.answers.className = `answers ${question.kind}`;
    const wish = view.needsNote ? "What you think of it" : "Your reason, if you like";
    this.noteField.placeholder = wish;
    this.noteField.setAttribute("aria-label", wish);
    this.noteField.hidden = !(this.state.ask_note || view.needsNote);
    this.sliderButton.hidden = !view.overlay || question.pictures.includes(null);
    this.sliderButton.setAttribute("aria-pressed", "false");
    this.screen.classList.toggle("blurred", this.blurred);
    this.zoomButtons.forEach((one) => { one.hidden = view.zoom === false; });
    this.zoom = view.zoom === false ? null : new Zoom([...this.stage.querySelectorAll(".frame")], (scale) => this.zoomed(scale));
    this.resize();
    if (this.lastShown !== question.prompt) this.say(`${this.lastSaid || ""} ${question.prompt}`.trim());
    requestAnimationFrame(() => requestAnimationFrame(() => this.painted(question)));
  }

  ask(question) {
    const criterion = question.criteria.length === 1 && question.criteria[0] !== "overall" ? ` (${question.criteria[0]})` : "";
    const words = { like: "Do you like this image?", best: "Which image is best?", ranking: "Put the images in order, the best first", rating: "Rate the images", region: "Mark what is wrong", words: "Which words does the image not show?", text: "What do you think of this image?" };
    return (words[question.kind] || this.state.title) + criterion;
  }

  painted(question) {
    if (this.current?.question !== question) return;
    this.link.send("api/shown", { token: question.token }).catch(() => {}); // a refusal comes with the answer, too
    window.dispatchEvent(new CustomEvent("visfeedback:painted", { detail: { token: question.token } }));
  }

  note() {
    return this.noteField.hidden ? "" : this.noteField.value.trim();
  }

  answer(what, words = "") {
    if (!this.current || this.busy || this.blurred && !["skip", "flag"].includes(what.choice)) return;
    const { question } = this.current;
    const { token } = question;
    const note = this.note();
    this.current = null;
    this.lastSaid = `${words}.`;
    const sent = this.link.send("api/vote", () => ({ token, answer: note ? { ...what, note } : what, have: this.tokens() }));
    this.unsent += 1;
    this.settle(sent.finally(() => { this.unsent -= 1; }), token);
    this.others.postMessage(token);
    this.advance();
  }

  // Another tab has answered a question that this one holds, too.
  elsewhere(token) {
    if (!this.held.delete(token)) return;
    this.ready = this.ready.filter((question) => question.token !== token);
    if (this.current?.question.token === token) {
      this.current = null;
      this.lastSaid = "Answered in another tab.";
      this.advance();
    }
    this.fill();
  }

  advance() {
    let next = this.ready.shift();
    while (next && next.ends < performance.now()) { // others may have got it; the server knows
      this.held.delete(next.token);
      next = this.ready.shift();
    }
    if (next) this.show(next);
    else this.panel("", "Fetching images…", []);
  }

  async settle(sent, token) {
    try {
      const answer = await sent;
      this.held.delete(token);
      if (!answer.again) this.count({ ...this.numbers, mine: this.numbers.mine + 1, answered: this.numbers.answered + 1 });
      if (this.numbers.mine % 10 === 0) this.refresh();
      if (answer.question) await this.take(answer.question);
      else if (!this.filling) this.idle(answer.waiting);
      if (this.ready.length < AHEAD && answer.question) this.fill();
    } catch (error) {
      this.held.delete(token);
      this.failed(error);
      this.fill();
    }
  }

  async undo() {
    if (this.busy) return;
    this.busy = true; // keys pressed meanwhile are not meant for what is still on the screen
    try {
      const { question } = await this.link.send("api/undo", {});
      if (question) {
        this.count({ ...this.numbers, mine: Math.max(0, this.numbers.mine - 1), answered: Math.max(0, this.numbers.answered - 1) });
        this.lastSaid = "Taken back.";
        await this.take(question, true);
      } else this.say("There is nothing to take back.");
    } catch (error) {
      this.failed(error);
    } finally {
      this.busy = false;
    }
  }

  // looking

  slide() {
    const question = this.current?.question;
    if (!question) return;
    const on = this.sliderButton.getAttribute("aria-pressed") !== "true";
    this.sliderButton.setAttribute("aria-pressed", String(on));
    const figures = on ? [slider(...question.pictures)] : views[question.kind](this, question).stage;
    this.stage.replaceChildren(...figures);
    this.zoomButtons.forEach((one) => { one.hidden = on; });
    this.zoom = on ? null : new Zoom([...this.stage.querySelectorAll(".frame")], (scale) => this.zoomed(scale));
    this.resize();
    if (on) this.stage.querySelector("input").focus();
  }

  zoomed(scale) {
    this.zoomButtons[1].disabled = scale <= 1;
    this.zoomButtons[2].disabled = scale <= 1;
  }

  reveal() {
    this.blurred = false;
    this.screen.classList.remove("blurred");
    this.shadowRoot.querySelectorAll(".veil").forEach((veil) => veil.remove());
    this.say("Images are shown.");
  }

  // words

  count(numbers) {
    this.numbers = numbers;
    const { mine, answered, wanted } = numbers;
    this.progress.textContent = wanted ? `${answered} of ${wanted} · ${mine} by you` : `${mine} by you`;
    this.bar.max = Math.max(1, wanted);
    this.bar.value = Math.min(answered, wanted);
  }

  async refresh() {
    try {
      this.count(await this.link.get("api/progress"));
    } catch {
      // the count goes on by itself and is right again next time
    }
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
    this.alarm.textContent = error.message;
    clearTimeout(this.forget);
    this.forget = setTimeout(() => { this.alarm.textContent = ""; }, 5000);
  }

  showHelp() {
    const shown = [...this.shadowRoot.querySelectorAll("[data-key]")].filter((one) => one.dataset.key && one.checkVisibility());
    const keys = shown.map((one) => h("li", {}, h("kbd", {}, one.querySelector("kbd").textContent), one.querySelector(".label").textContent));
    const close = h("button", { type: "button", class: "main", onclick: () => this.help.close() }, "Close");
    const out = this.state.can_log_out ? h("button", { type: "button", onclick: () => this.logOut() }, `Log out ${this.state.judge}`) : null;
    const parts = [h("h2", {}, this.state.title)];
    if (this.state.instructions) parts.push(h("p", { class: "words-of" }, this.state.instructions));
    if (this.view?.hint) parts.push(h("p", { class: "words-of" }, this.view.hint));
    const veil = h("label", { class: "agree" }, h("input", { type: "checkbox", checked: this.hides, onchange: (event) => { this.hides = event.target.checked; } }), "Blur images until I ask to see them");
    parts.push(h("h3", {}, "Keys"), h("ul", { class: "keys" }, keys), veil, h("div", { class: "closing" }, out, close));
    this.help.replaceChildren(...parts);
    this.help.showModal();
  }

  async logOut() {
    await this.link.send("logout");
    location.reload();
  }
}

customElements.define("visfeedback-compare", Compare);
