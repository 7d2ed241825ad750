// Keys press the button that has them on it; what a view wants beside its buttons comes after. Keys that are typed, held
// down, meant for the browser or for something else on the page press nothing.

const TYPING = "input:not([type=range], [type=checkbox]), textarea, select, [contenteditable]";
const OF_SLIDERS = /^(Arrow|Home|End|Page)/;

export function listen(screen) {
  document.addEventListener("keydown", (event) => pressed(screen, event));
  screen.shadowRoot.addEventListener("pointerdown", (event) => { // a click leaves the keys where they were
    if (event.target.closest("button")) event.preventDefault();
  });
}

function pressed(screen, event) {
  const target = event.composedPath()[0];
  const element = target instanceof Element ? target : document.body;
  const typing = element.matches(TYPING);
  if (typing && element === screen.noteField && event.key === "Enter" && (event.ctrlKey || event.metaKey)) return press(screen, "Enter", event);
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || screen.help.open) return;
  if (!screen.checkVisibility()) return;
  if (element.matches("input[type=range]") && OF_SLIDERS.test(event.key)) return;
  if (element === screen.prompt && event.key.startsWith("Arrow")) return; // a long one scrolls
  if (event.key === "Enter" && element.closest("button:not(.word), a, summary, [role=tab]")) return;
  const outside = target !== document.body && !event.composedPath().includes(screen);
  if (outside && event.key.startsWith("Arrow")) return; // tabs and sliders of the page around us
  press(screen, event.key.length === 1 ? event.key.toLowerCase() : event.key, event);
}

function press(screen, name, event) {
  const wanted = name === "=" ? "+" : name;
  const found = [...screen.shadowRoot.querySelectorAll("[data-key]")].find((one) => one.dataset.key === wanted && !one.disabled && one.checkVisibility());
  if (found) found.click();
  else if (!screen.talk.current || !screen.view?.key?.(name)) return;
  event.preventDefault();
}
