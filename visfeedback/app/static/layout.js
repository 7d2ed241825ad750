// How large the pictures can be: all of them and the buttons on one screen, side by side or one above the other.

const GAP = 12;
const ROW = 300; // pixels that a line of ratings needs
const MOST = 8; // screen pixels for one of the picture's: tiny pictures stay small
const LEAST = 130; // pixels; below that the page scrolls instead

// The best columns for `n` pictures of the aspect `a` (width / height) in a box: {columns, width}. `extra`: height of what
// stands under each; `least`: width that it needs.
export function arrange(n, a, boxWidth, boxHeight, extra = 0, least = 0, sideBySide = false) {
  let found = { columns: n, width: 0, worth: 0 };
  for (let columns = n; columns >= 1; columns -= 1) {
    if (sideBySide && columns !== n) continue;
    const rows = Math.ceil(n / columns);
    const wide = (boxWidth - GAP * (columns - 1)) / columns;
    if (wide < least && columns > 1) continue;
    const high = ((boxHeight - GAP * (rows - 1)) / rows - extra) * a;
    const width = Math.min(wide, Math.max(LEAST * Math.min(1, a), Math.min(wide, high)));
    const worth = n % columns ? width * 0.75 : width; // a row with holes in it is hard to look over
    if (worth > found.worth * 1.02) found = { columns, width, worth };
  }
  return found;
}

// Sets the sizes of all frames in `stage`, whose top is at `top` of the page, with `below` pixels of buttons under it.
export function fit(stage, room) {
  const frames = [...stage.querySelectorAll(".frame")];
  const side = stage.querySelector(".marks, .words");
  if (!frames.length) return;
  const aspects = frames.map((frame) => { const one = frame.querySelector("img"); return one ? one.naturalWidth / one.naturalHeight || 1 : 1; });
  const figure = frames[0].closest("figure");
  const extra = Math.max(0, figure.scrollHeight - frames[0].offsetHeight);
  const least = stage.querySelector(".row") ? ROW : 0;
  const wide = stage.clientWidth;
  const narrow = wide < 640;
  const beside = side && !narrow ? 300 : 0;
  const high = Math.max(LEAST, room - (side && narrow ? side.offsetHeight + GAP : 0));
  const widest = Math.max(...frames.map((frame) => frame.querySelector("img")?.naturalWidth || 0));
  const { columns, width: possible } = arrange(frames.length, Math.min(...aspects), wide - beside, high, extra, least, frames.length === 2 && !narrow);
  const width = Math.min(possible, MOST * widest || possible);
  stage.style.gridTemplateColumns = side ? (narrow ? "1fr" : `${Math.floor(width)}px minmax(12rem, ${beside}px)`) : `repeat(${columns}, ${Math.floor(Math.min(wide, Math.max(width, least)))}px)`;
  frames.forEach((frame, i) => {
    const tall = Math.min(width / Math.min(...aspects), width / aspects[i]);
    frame.style.width = `${Math.floor(tall * aspects[i])}px`;
    frame.style.height = `${Math.floor(tall)}px`;
    const image = frame.querySelector("img");
    if (image) frame.classList.toggle("pixelated", image.naturalWidth > 0 && width / image.naturalWidth > 2);
  });
}
