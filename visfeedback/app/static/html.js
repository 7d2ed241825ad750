// h("button", { class: "big", onclick: f }, "text", child): elements without strings of markup, so that no prompt can be one.

export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && typeof value !== "string") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// A button with its key on it. `action` is what a click and the key both do.
export function button(label, key, action, more = {}) {
  const { hint = key, ...attributes } = more;
  return h("button", { type: "button", onclick: action, "aria-keyshortcuts": key, "data-key": key, ...attributes },
    h("span", { class: "label" }, label), key ? h("kbd", { "aria-hidden": "true" }, hint) : null);
}
