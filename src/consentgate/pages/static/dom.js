/** Elements, made of text: nothing here turns a string into markup. */

/** @typedef {Node | string | number | null | undefined} Child */
/** @typedef {Record<string, string | number | boolean | EventListener>} Attributes */

/**
 * A cell of a table: text, and how it looks where it is more than that.
 * `mark` is a class of a shape before the text, `share` a part of one that is drawn as a bar.
 * @typedef {string | {text: string, mark?: string, note?: string, share?: number}} Cell
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes and children; a function is an event's listener.
 * @param {string} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  assign(element, attributes);
  append(element, children);
  return element;
}

/**
 * The same for SVG.
 * @param {string} tag
 * @param {Attributes} [attributes]
 * @param {...Child} children
 * @returns {Element}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  assign(element, attributes);
  append(element, children);
  return element;
}

/** @param {Element} element @param {Attributes} attributes */
function assign(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false) element.setAttribute(name, String(value));
  }
}

/** @param {Element} element @param {Child[]} children */
function append(element, children) {
  for (const child of children) {
    if (child !== null && child !== undefined) {
      element.append(child instanceof Node ? child : String(child));
    }
  }
}

/**
 * The element that the page has under this id.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no element ${id}`);
  return element;
}

/**
 * Set a text where it differs, so that what is selected or being read stays as it is.
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * A table in a frame that scrolls where the table is too wide. `columns` that begin with `#` hold
 * numbers. Where there are no rows, a sentence stands in its place.
 * @param {string} caption What is in it; no two tables of a page have the same.
 * @param {string[]} columns
 * @param {Cell[][]} [rows]
 * @returns {{element: HTMLElement, setRows: (rows: Cell[][]) => void}}
 */
export function table(caption, columns, rows = []) {
  const numeric = columns.map((name) => name.startsWith("#"));
  const heads = columns.map((name, i) =>
    h("th", { scope: "col", class: numeric[i] ? "number" : "" }, name.replace(/^#/, "")),
  );
  const body = h("tbody");
  const filled = h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, ...heads)), body);
  const empty = h("p", { class: "empty" }, `${caption}: nothing yet.`);
  const element = h("div", { class: "scroll", role: "region", "aria-label": caption }, filled, empty);
  focusableWhereItScrolls.observe(element);
  const setRows = (/** @type {Cell[][]} */ next) => {
    filled.hidden = next.length === 0;
    empty.hidden = next.length > 0;
    fill(body, numeric, next);
  };
  setRows(rows);
  return { element, setRows };
}

const focusableWhereItScrolls = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const scrolls =
      target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
    if (scrolls) target.setAttribute("tabindex", "0");
    else target.removeAttribute("tabindex");
  }
});

/** @param {HTMLElement} body @param {boolean[]} numeric @param {Cell[][]} rows */
function fill(body, numeric, rows) {
  while (body.children.length > rows.length) body.lastElementChild?.remove();
  rows.forEach((cells, i) => {
    const row = body.children[i] ?? body.appendChild(h("tr"));
    cells.forEach((cell, j) => {
      const made = row.children[j] ?? row.appendChild(newCell(j === 0, numeric[j] ?? false));
      setCell(/** @type {HTMLElement} */ (made), cell);
    });
  });
}

/** @param {boolean} heads @param {boolean} numeric */
function newCell(heads, numeric) {
  const name = numeric ? "number" : "";
  return heads ? h("th", { scope: "row", class: name }) : h("td", { class: name });
}

/** @param {HTMLElement} element @param {Cell} cell */
function setCell(element, cell) {
  const key = JSON.stringify(cell);
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  if (typeof cell === "string") {
    element.textContent = cell;
    return;
  }
  element.replaceChildren(
    cell.mark === undefined ? cell.text : h("span", { class: `mark ${cell.mark}` }, cell.text),
  );
  if (cell.note) element.append(h("span", { class: "note" }, cell.note));
  if (cell.share !== undefined) element.append(bar(cell.share));
}

/** @param {number} share */
function bar(share) {
  const filled = h("span", { class: "bar-filled" });
  filled.style.width = `${Math.round(1000 * share) / 10}%`;
  return h("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/**
 * What can be opened to see more. It is made when it is first opened, and each time that it is
 * shown anew.
 * @param {string} summary
 * @param {() => Node} content
 * @returns {{element: HTMLElement, refresh: () => void}}
 */
export function details(summary, content) {
  const body = h("div");
  const element = /** @type {HTMLDetailsElement} */ (
    h("details", {}, h("summary", {}, summary), body)
  );
  const refresh = () => {
    if (element.open) body.replaceChildren(content());
  };
  element.addEventListener("toggle", () => {
    if (!element.open) body.replaceChildren();
    else if (body.firstChild === null) refresh();
  });
  return { element, refresh };
}

/**
 * Draw a part of the page anew, and leave open what is open, and the focus and what is scrolled
 * where they are.
 * @param {HTMLElement} part
 * @param {() => void} draw
 */
export function keeping(part, draw) {
  const all = () => /** @type {HTMLElement[]} */ ([...part.querySelectorAll("details, summary, .scroll")]);
  const before = new Map(
    all().map((each) => [
      nameOf(each),
      { open: each.hasAttribute("open"), focused: each === document.activeElement, top: each.scrollTop, left: each.scrollLeft },
    ]),
  );
  const { scrollX, scrollY } = window;
  draw();
  for (const each of all()) {
    if (each instanceof HTMLDetailsElement && before.get(nameOf(each))?.open) {
      each.open = true;
      // The browser tells of it later only, when what is in there has lost its place.
      each.dispatchEvent(new Event("toggle"));
    }
  }
  for (const each of all()) {
    const was = before.get(nameOf(each));
    if (was === undefined) continue;
    if (was.focused) {
      if (each.matches(".scroll")) each.setAttribute("tabindex", "0");
      each.focus({ preventScroll: true });
    }
    each.scrollTo(was.left, was.top);
  }
  scrollTo(scrollX, scrollY);
}

/** What is the same after it was drawn anew. @param {HTMLElement} element */
function nameOf(element) {
  const figure = element.closest("figure")?.querySelector("h3")?.textContent;
  const own = element.getAttribute("aria-label") ?? element.querySelector("summary")?.textContent ?? element.textContent;
  return JSON.stringify([element.closest("[id]")?.id, figure, element.tagName, own]);
}

/**
 * Tiles of a description list: a name, a figure and a note each.
 * @param {HTMLElement} list
 * @param {[string, string, string][]} tiles
 */
export function setTiles(list, tiles) {
  tiles.forEach((texts, i) => setTexts(list.children[i] ?? list.appendChild(newTile()), texts));
}

function newTile() {
  const parts = [h("dt"), h("dd", { class: "figure" }), h("dd", { class: "note" })];
  return h("div", { class: "tile" }, ...parts);
}

/**
 * Names and values of a description list.
 * @param {HTMLElement} list
 * @param {[string, string][]} facts
 */
export function setFacts(list, facts) {
  while (list.children.length < 2 * facts.length) list.append(h("dt"), h("dd"));
  setTexts(list, facts.flat());
}

/** @param {Element} parent @param {string[]} texts One for each of its children. */
function setTexts(parent, texts) {
  texts.forEach((text, i) => setText(/** @type {Element} */ (parent.children[i]), text));
}
