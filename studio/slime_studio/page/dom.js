// Makes elements, asks questions and shows messages. Everything on the page is made here, as text and never as markup.

/** Return an element; `facts`: attributes, `on…` listeners, `class`; children are elements or texts. */
export function h(tag, facts = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const shown = new WeakMap();

/** Return whether what a part of the page is made from is as it was the last time: then it is left alone. */
export function unchanged(owner, ...facts) {
  const key = JSON.stringify(facts), same = shown.get(owner) === key;
  shown.set(owner, key);
  return same;
}

/**
 * Put `children` in place of what is in `parent`. The focus stays on the element of the same id or label; what has an id
 * stays open, and scrolled as it was.
 */
export function fill(parent, ...children) {
  const focused = document.activeElement;
  const kept = [...parent.querySelectorAll("[id]")].filter((each) => each.open || each.scrollLeft).map(({ id, open, scrollLeft }) => ({ id, open, scrollLeft }));
  const key = parent.contains(focused) ? focused.id || focused.getAttribute("aria-label") : null;
  parent.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  for (const { id, open, scrollLeft } of kept) {
    const now = document.getElementById(id);
    if (now && open) now.open = true;
    if (now) now.scrollLeft = scrollLeft;
  }
  if (key) (document.getElementById(key) || parent.querySelector(`[aria-label="${CSS.escape(key)}"]`))?.focus();
}

export function button(text, onclick, facts = {}) {
  return h("button", { type: "button", onclick, ...facts }, text);
}

const line = document.getElementById("message");
line.querySelector("button").addEventListener("click", () => { line.hidden = true; });

/** Show one line at the top of the page until it is closed, or for some seconds where it is no error. */
export function say(text, error = true) {
  line.querySelector("span").textContent = text;
  line.classList.toggle("error", error);
  line.hidden = false;
  clearTimeout(say.timer);
  if (!error) say.timer = setTimeout(() => { line.hidden = true; }, 6000);
}

/** Run `work`; what it throws is shown. */
export async function trying(work) {
  try {
    return await work();
  } catch (error) {
    say(error.message);
    return undefined;
  }
}

/** Ask a question with a yes and a no; resolve to whether it was a yes. */
export function ask(question, yes) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-label": question, onclose: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); } },
      h("p", {}, question),
      h("form", { method: "dialog" },
        h("button", { value: "no" }, "Cancel"),
        h("button", { value: "yes", class: "main" }, yes)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** A place to drop files on, and a button that chooses them; `take` gets the list of files. */
export function dropping(element, take) {
  const over = (event, is) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    element.classList.toggle("over", is);
  };
  element.addEventListener("dragover", (event) => over(event, true));
  element.addEventListener("dragleave", (event) => over(event, false));
  element.addEventListener("drop", (event) => { over(event, false); take([...event.dataTransfer.files]); });
}

export function choosing(text, take, facts = {}, look = {}) {
  const input = h("input", { type: "file", hidden: true, multiple: true, ...facts,
    onchange: () => { take([...input.files]); input.value = ""; } });
  return [input, button(text, () => input.click(), look)];
}
