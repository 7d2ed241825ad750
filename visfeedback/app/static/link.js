// One line to the server: calls go out one after another, in the order they were made, and survive a broken connection.
// An answer may arrive twice; the server keeps it once, because it names its question's token.

const PAUSES = [400, 800, 1600, 3200, 6400]; // milliseconds before the next try

export function pause(attempt) {
  return new Promise((done) => setTimeout(done, PAUSES[Math.min(attempt, PAUSES.length - 1)]));
}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Link {
  // `trouble(text)` is told what keeps calls waiting, and "" when they go again.
  constructor(base, trouble) {
    this.base = base;
    this.trouble = trouble;
    this.last = Promise.resolve();
  }

  // `body` may be a function: it is asked when the call goes out, not when it is made.
  send(path, body) {
    const mine = this.last.then(() => this.insist(path, body));
    this.last = mine.catch(() => {});
    return mine;
  }

  async insist(path, body) {
    for (let attempt = 0; ; attempt += 1) {
      try {
        const answer = await this.once("POST", path, typeof body === "function" ? body() : body);
        this.trouble("");
        return answer;
      } catch (error) {
        if (error instanceof Refused && error.status !== 429 && error.status < 500) throw error;
        this.trouble(error.status === 429 ? "Going a little slower…" : "No connection. Your answers are kept and sent when it is back.");
        await pause(attempt);
      }
    }
  }

  get(path) {
    return this.once("GET", path);
  }

  async once(method, path, body) {
    const options = { method, credentials: "same-origin", keepalive: method === "POST" };
    if (body !== undefined) {
      options.headers = { "content-type": "application/json" };
      options.body = JSON.stringify(body);
    }
    const answer = await fetch(new URL(path, this.base), options).catch(() => {
      throw new Error("The server does not answer. Is it still running, and are you online?");
    });
    if (answer.ok) return answer.json();
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.error || `the server answered ${answer.status}`);
  }
}
