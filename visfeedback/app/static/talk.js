// What the screen and the server say to each other: questions come in ahead, answers go out behind, and every answer
// belongs to the token of its question, so that neither a second tab nor a broken line can double or lose one.

import { Link } from "./link.js";
import * as panels from "./panels.js";
import { Questions } from "./questions.js";

const POLL = { drawing: 700, others: 3000, done: 10000 }; // milliseconds until it looks again

export class Talk {
  constructor(screen, base) {
    this.screen = screen;
    this.link = new Link(base, (text) => screen.trouble(text));
    this.line = new Questions(base);
    this.current = null; // the question on the screen
    this.busy = false;
    this.unsent = 0; // answers whose receipt has not come
    this.others = new BroadcastChannel("visfeedback answered"); // tabs of this browser hold the same questions
    this.others.addEventListener("message", (event) => this.elsewhere(event.data));
    window.addEventListener("beforeunload", (event) => { if (this.unsent) event.preventDefault(); });
  }

  state() {
    return this.link.get("api/state");
  }

  agree() {
    return this.link.send("api/agree", { agree: true });
  }

  logOut() {
    return this.link.send("logout");
  }

  // questions come in

  async fill() {
    if (this.filling) return;
    this.filling = true;
    clearTimeout(this.timer);
    try {
      while (this.line.short) {
        const answer = await this.link.send("api/next", () => ({ have: this.line.tokens() }));
        if (!answer.question) { this.idle(answer.waiting); break; }
        await this.take(answer.question);
      }
    } catch (error) {
      this.screen.failed(error);
    } finally {
      this.filling = false;
    }
  }

  async take(question, first = false) {
    if (!await this.line.prepared(question)) return;
    if (first && this.current) this.line.ready.unshift(this.current);
    if (first || !this.current) this.show(question);
    else this.line.ready.push(question);
  }

  show(question) {
    this.current = question;
    this.screen.show(question);
    requestAnimationFrame(() => requestAnimationFrame(() => this.painted(question)));
  }

  painted(question) {
    if (this.current !== question) return;
    this.link.send("api/shown", { token: question.token }).catch(() => {}); // a refusal comes with the answer, too
    window.dispatchEvent(new CustomEvent("visfeedback:painted", { detail: { token: question.token } }));
  }

  idle(waiting) {
    clearTimeout(this.timer);
    const pause = waiting.drawing || this.busy ? POLL.drawing : waiting.others ? POLL.others : POLL.done;
    this.timer = setTimeout(() => this.fill(), pause);
    if (this.current || this.line.ready.length || this.unsent) return;
    this.screen.instead(panels.waits(waiting, this.numbers, () => this.undo()), true);
    this.refresh();
  }

  advance() {
    this.current = null;
    const next = this.line.next();
    if (next) this.show(next);
    else this.screen.instead(panels.fetching());
  }

  // answers go out

  answer(answer, words) {
    if (!this.current || this.busy) return;
    const { token } = this.current;
    this.screen.lastSaid = words;
    const sent = this.link.send("api/vote", () => ({ token, answer, have: this.line.tokens() }));
    this.unsent += 1;
    this.settle(sent.finally(() => { this.unsent -= 1; }), token);
    this.others.postMessage(token);
    this.advance();
  }

  async settle(sent, token) {
    try {
      const answer = await sent;
      this.line.held.delete(token);
      if (!answer.again) this.moved(1);
      if (this.numbers.mine % 10 === 0) this.refresh();
      if (answer.question) await this.take(answer.question);
      else if (!this.filling) this.idle(answer.waiting);
      if (this.line.short && answer.question) this.fill();
    } catch (error) {
      this.line.held.delete(token);
      this.screen.failed(error);
      this.fill();
    }
  }

  // Another tab has answered a question that this one holds, too.
  elsewhere(token) {
    if (!this.line.drop(token)) return;
    if (this.current?.token === token) {
      this.screen.lastSaid = "Answered in another tab.";
      this.advance();
    }
    this.fill();
  }

  async undo() {
    if (this.busy) return;
    this.busy = true; // keys pressed meanwhile are not meant for what is still on the screen
    try {
      const { question } = await this.link.send("api/undo", {});
      if (question) {
        this.moved(-1);
        this.screen.lastSaid = "Taken back.";
        await this.take(question, true);
      } else this.screen.say("There is nothing to take back.");
    } catch (error) {
      this.screen.failed(error);
    } finally {
      this.busy = false;
    }
  }

  // how far it is

  count(numbers) {
    this.numbers = numbers;
    this.screen.count(numbers);
  }

  // One more or one less, until the server is asked again.
  moved(by) {
    const { mine, answered } = this.numbers;
    this.count({ ...this.numbers, mine: Math.max(0, mine + by), answered: Math.max(0, answered + by) });
  }

  async refresh() {
    try {
      this.count(await this.link.get("api/progress"));
    } catch {
      // the count goes on by itself and is right again next time
    }
  }
}
