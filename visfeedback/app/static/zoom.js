// Zoom and drag that move all images of a question together, by mouse, touch and keys.

const MOST = 8;

export class Zoom {
  // `frames`: elements with one <img> each.
  constructor(frames, changed = () => {}) {
    this.frames = frames;
    this.changed = changed;
    this.pointers = new Map();
    this.reset();
    for (const frame of frames) this.listen(frame);
  }

  reset() {
    this.scale = 1;
    this.x = 0; // of the picture's middle from the frame's, in shares of the frame
    this.y = 0;
    this.apply();
  }

  // `px`, `py`: the point that stays where it is, in shares of the frame from its middle.
  by(factor, px = 0, py = 0) {
    const scale = Math.min(MOST, Math.max(1, this.scale * factor));
    this.x = px - ((px - this.x) * scale) / this.scale;
    this.y = py - ((py - this.y) * scale) / this.scale;
    this.scale = scale;
    this.apply();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.apply();
  }

  apply() {
    const reach = (this.scale - 1) / 2;
    this.x = Math.min(reach, Math.max(-reach, this.x));
    this.y = Math.min(reach, Math.max(-reach, this.y));
    for (const frame of this.frames) {
      const image = frame.querySelector("img");
      if (image) image.style.transform = this.scale === 1 ? "" : `translate(${this.x * 100}%, ${this.y * 100}%) scale(${this.scale})`;
      frame.classList.toggle("zoomed", this.scale > 1);
    }
    this.changed(this.scale);
  }

  listen(frame) {
    const place = (event) => {
      const box = frame.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width - 0.5, (event.clientY - box.top) / box.height - 0.5, box];
    };
    frame.addEventListener("dblclick", (event) => {
      const [px, py] = place(event);
      if (this.scale > 1) this.reset();
      else this.by(2.5, px, py);
    });
    frame.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && this.scale === 1) return; // plain wheels scroll the page
      event.preventDefault();
      const [px, py] = place(event);
      this.by(Math.exp(-event.deltaY / (event.ctrlKey ? 120 : 400)), px, py);
    }, { passive: false });
    frame.addEventListener("pointerdown", (event) => {
      this.pointers.set(event.pointerId, event);
      if (this.scale > 1) frame.setPointerCapture(event.pointerId);
    });
    frame.addEventListener("pointermove", (event) => this.drag(event, place));
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
      frame.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
  }

  drag(event, place) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const [px, py, box] = place(event);
    const other = [...this.pointers.values()].find((one) => one.pointerId !== event.pointerId);
    if (other) {
      const far = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
      this.by(far(event) / far(before), px, py);
    } else if (this.scale > 1) {
      this.move((event.clientX - before.clientX) / box.width, (event.clientY - before.clientY) / box.height);
    }
    this.pointers.set(event.pointerId, event);
  }
}
