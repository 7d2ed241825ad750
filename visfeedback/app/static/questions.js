// The questions that a screen holds: those that wait with their pictures decoded, and the tokens of all that were fetched
// and whose answer has no receipt yet.

import { pause } from "./link.js";

export const AHEAD = 5; // questions that wait: as many quick answers need no waiting
const MOST_NAMED = 16; // tokens that a request may name

export class Questions {
  constructor(base) {
    this.base = base;
    this.ready = [];
    this.held = new Set();
  }

  get short() {
    return this.ready.length < AHEAD;
  }

  tokens() {
    return [...this.held].slice(-MOST_NAMED);
  }

  // The question with its pictures (null for one that cannot be had), or null when this screen has it already.
  async prepared(question) {
    if (this.held.has(question.token)) return null;
    this.held.add(question.token);
    question.ends = performance.now() + question.seconds_left * 1000;
    question.pictures = await Promise.all(question.images.map((path) => this.picture(path)));
    return question;
  }

  // Tried again while it gets lost on the way; null when the server has none, or a damaged one.
  async picture(path) {
    const address = new URL(path, this.base).href;
    let came = false;
    for (let attempt = 0; ; attempt += 1) {
      const image = new Image();
      image.draggable = false;
      image.src = address;
      try {
        await image.decode();
        return image;
      } catch {
        const status = await asked(address);
        if (came || status >= 400 && status < 500 && status !== 429) return null;
        came = status === 200; // it may have been lost the first time; if it cannot be drawn now, it is damaged
      }
      await pause(attempt);
    }
  }

  // Takes the next one out of the line; those whose time is over may have gone to others, and the server knows.
  next() {
    let found = this.ready.shift();
    while (found && found.ends < performance.now()) {
      this.held.delete(found.token);
      found = this.ready.shift();
    }
    return found;
  }

  // True when this screen had it.
  drop(token) {
    this.ready = this.ready.filter((question) => question.token !== token);
    return this.held.delete(token);
  }
}

// The server's status; 0 when it does not answer.
async function asked(address) {
  try {
    return (await fetch(address)).status;
  } catch {
    return 0;
  }
}

export function ask(question, title) {
  const criterion = question.criteria.length === 1 && question.criteria[0] !== "overall" ? ` (${question.criteria[0]})` : "";
  const words = { like: "Do you like this image?", best: "Which image is best?", ranking: "Put the images in order, the best first", rating: "Rate the images", region: "Mark what is wrong", words: "Which words does the image not show?", text: "What do you think of this image?" };
  return (words[question.kind] || title) + criterion;
}
