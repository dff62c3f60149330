// Runs on a page of the built site, in Chromium, in the light theme and as for print. Takes the
// chapter out of the page and returns it as XHTML that needs no script and no style sheet of the
// site: drawings carry their own colours, what opens and closes stands open, and every address
// inside the book is `#chapter--id`.
//
// What only repeats is cut: the table of messages below a picture goes to the end of the chapter,
// bytes that stand beside their text to a line, and what scrolls on a page to its beginning and end.
// A tall picture comes in bands, between which a page may end.
(task) => {
  const { slug, slugs, site, published } = task;
  const article = document.querySelector("article.bd-article");
  const all = (selector, root = article) => [...root.querySelectorAll(selector)];
  const drop = (selector) => { for (const element of all(selector)) element.remove(); };
  const rename = (element, name) => {
    const made = document.createElement(name);
    for (const { name, value } of [...element.attributes]) made.setAttribute(name, value);
    made.append(...element.childNodes);
    element.replaceWith(made);
    return made;
  };

  // A page's own style sheets are needed until its drawings carry what they say.
  drop("script, noscript, button, template, iframe, .headerlink, .copybtn, .whole-book, .ways-in, .screen-only, .d-print-none");
  drop(".uh-tools, .uh-hint, .uh-list, .uh-plain, .uh-panel, .term-tip, .sd-summary-chevron-right, .sd-summary-chevron-down, .sd-summary-state-marker");
  // A field of bytes that is closed on the page is one line in a book: its parts would fill pages.
  drop(".uh-f:not([open]) > :not(summary)");
  // One that is open shows its bytes part by part, and so not twice.
  drop(".uh-in[open] > summary :is(.uh-fh, .uh-ft)");
  // Bytes and, beside them, the same bytes as text: a line of the bytes says what they are like.
  const LINE = 24;
  for (const bytes of all(".uh-fh")) {
    const pairs = bytes.textContent.trim().split(/\s+/), text = bytes.parentElement.querySelector(".uh-ft");
    if (!text || pairs.length <= 2 * LINE) continue;
    bytes.textContent = `${pairs.slice(0, LINE).join(" ")} …`;
    const said = text.textContent, unread = said.match(/[·\s]/g)?.length ?? 0;
    if (unread > said.length / 3) text.textContent = `${said.slice(0, LINE)} …`;
  }

  // What scrolls on the page, or is long: how it begins and how it ends.
  const BEGIN = 24, END = 6;
  for (const list of all(".cell_output pre")) {
    const lines = list.innerHTML.trimEnd().split("\n"), left = lines.length - BEGIN - END;
    // Tags that reach over a line's end would be torn.
    if (left < 12 || lines.some((line) => (line.match(/<\w/g) ?? []).length !== (line.match(/<\//g) ?? []).length)) continue;
    list.innerHTML = [...lines.slice(0, BEGIN), `… (${left} more lines)`, ...lines.slice(-END)].join("\n");
  }
  for (const box of all(".cell_output [style*=max-height]")) for (const table of all("table", box)) {
    const rows = all("tbody > tr", table), left = rows.length - BEGIN - END;
    if (left < 12) continue;
    for (const row of rows.slice(BEGIN + 1, -END)) row.remove();
    const gap = document.createElement("td");
    gap.colSpan = rows[0].children.length;
    gap.textContent = `… (${left} more rows)`;
    rows[BEGIN].replaceChildren(gap);
  }

  // Drawings: what the style sheet says becomes attributes, which every reading system knows.
  const INHERITED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "font-family", "font-size", "font-weight", "font-style", "text-anchor", "dominant-baseline", "fill-opacity", "stroke-opacity", "visibility"];
  const bands = new Map();
  for (const drawing of all("svg")) {
    if (drawing.closest('[data-underhood="sequence"] .uh-stage')) bands.set(drawing, between(drawing));
    for (const element of all(".u-hit, .u-veil", drawing)) element.remove();
    const looks = new Map([drawing, ...all("*", drawing)].map((element) => {
      const style = getComputedStyle(element);
      return [element, { style: Object.fromEntries([...INHERITED, "opacity", "display"].map((name) => [name, style.getPropertyValue(name)])) }];
    }));
    for (const [element, { style }] of looks) {
      const above = element === drawing ? {} : looks.get(element.parentElement)?.style ?? {};
      if (style.display === "none") { element.remove(); continue; }
      for (const name of INHERITED) if (style[name] !== above[name]) element.setAttribute(name, style[name].replace(/px\b/g, "")); else element.removeAttribute(name);
      if (style.opacity !== "1") element.setAttribute("opacity", style.opacity);
      for (const { name } of [...element.attributes]) if (/^(class|style|data-|tabindex|aria-|role|focusable|hidden|pointer-events)/.test(name)) element.removeAttribute(name);
    }
    for (const link of all("a", drawing)) {
      const group = document.createElementNS("http://www.w3.org/2000/svg", "g");
      for (const { name, value } of [...link.attributes]) if (!/href|target|title/.test(name)) group.setAttribute(name, value);
      group.append(...link.childNodes);
      link.replaceWith(group);
    }
    const box = drawing.viewBox.baseVal;
    if (box?.width) { drawing.setAttribute("width", box.width); drawing.setAttribute("height", box.height); }
    const words = ["title", "desc"].map((name) => drawing.querySelector(`:scope > ${name}`)?.textContent).filter(Boolean);
    for (const element of all("title, desc", drawing)) element.remove();
    drawing.setAttribute("role", "img");
    if (words.length) drawing.setAttribute("aria-label", words.join(": ")); else drawing.setAttribute("aria-hidden", "true");
  }
  // Words of code that have no colour of their own need no element.
  for (const word of all("pre span").reverse()) {
    const own = getComputedStyle(word), above = getComputedStyle(word.parentElement);
    if (!word.id && ["color", "fontWeight", "fontStyle", "backgroundColor"].every((name) => own[name] === above[name] || /, 0\)$/.test(own[name]))) word.replaceWith(...word.childNodes);
  }

  // The page that opens the book lends its picture to the cover.
  const first = article.querySelector('[data-underhood="sequence"] .uh-stage > svg');
  const cover = first ? new XMLSerializer().serializeToString(first) : "";
  for (const [drawing, cuts] of bands) if (cuts.length) inBands(drawing, cuts);
  // From here on, nothing is measured.
  drop("style");
  article.normalize();

  // Where a tall drawing may be cut: heights at which there is neither a message nor a word, with
  // some rows left together at the beginning and the end.
  function between(drawing) {
    const { width, height } = drawing.viewBox.baseVal;
    if (height < 360 || drawing.querySelector("[transform]")) return [];
    // A note belongs to the message above it.
    const notes = all("[class*=note]", drawing).map((element) => element.getBBox()).map(({ y, height }) => [y - 18, y + height + 1]);
    const taken = all("text, .u-hit, .u-m, .u-name-box, .u-tab, .u-note", drawing)
      .map((element) => element.getBBox()).filter((box) => box.height)
      .map(({ y, height }) => [y - 1, y + height + 1]).concat(notes).sort((a, b) => a[0] - b[0]);
    const cuts = [];
    let end = taken[0]?.[1] ?? 0;
    for (const [from, to] of taken) {
      const cut = Math.ceil(end);
      if (cut <= from) cuts.push(cut);
      end = Math.max(end, to);
    }
    const [head, ...rest] = cuts;
    const kept = [];
    for (const cut of rest) if (cut - (kept.at(-1) ?? head + 70) >= 50 && height - cut >= 100) kept.push(cut);
    return kept.length ? [head, ...kept] : [];
  }

  // Puts the bands of a drawing in its place: the heads of the lifelines, and rows of messages.
  function inBands(drawing, cuts) {
    const { width, height } = drawing.viewBox.baseVal;
    const box = document.createElement("div");
    box.className = "uh-bands";
    const boxes = new Map(all("*", drawing).map((element) => [element, element.getBBox?.()]));
    const within = (element, from, to) => {
      const { y, height } = boxes.get(element);
      if (y + height < from || y > to) return null;
      const made = element.cloneNode(element.tagName !== "g");
      if (element.tagName !== "g") return made;
      for (const child of element.children) { const part = within(child, from, to); if (part) made.append(part); }
      return made.children.length ? made : null;
    };
    [0, ...cuts].forEach((from, number, all) => {
      const to = all[number + 1] ?? height;
      const band = drawing.cloneNode(false);
      band.setAttribute("viewBox", `0 ${from} ${width} ${to - from}`);
      band.setAttribute("height", to - from);
      if (number) { band.removeAttribute("aria-label"); band.setAttribute("aria-hidden", "true"); }
      for (const child of drawing.children) { const part = within(child, from, to); if (part) band.append(part); }
      const row = document.createElement("div");
      row.className = number ? "uh-band" : "uh-heads";
      row.append(band);
      box.append(row);
    });
    drawing.replaceWith(box);
  }

  // What opens and closes.
  for (const box of all("details").reverse()) {
    const line = box.querySelector(":scope > summary");
    if (box.matches(".hide, .uh-table")) line?.remove();
    else if (line) { const title = rename(line, "p"); title.classList.add("admonition-title"); }
    rename(box, "div");
  }

  // The messages that a picture shows, as a table: at the end of the chapter, for who wants them.
  const tables = document.createElement("section");
  tables.className = "uh-tables";
  tables.innerHTML = "<h2>The messages of the pictures</h2>";
  for (const [number, table] of all("figure.underhood:has(.uh-stage) .uh-table").entries()) {
    const figure = table.closest("figure"), name = `messages-${number + 1}`;
    if (!figure.id) figure.id = `picture-${number + 1}`;
    const heading = document.createElement("h3"), way = document.createElement("p");
    heading.id = name;
    heading.innerHTML = `<a href="#${figure.id}"></a>`;
    heading.firstChild.textContent = figure.querySelector(".uh-title")?.textContent ?? "A picture";
    way.className = "uh-way";
    way.innerHTML = `<a href="#${name}">These messages as a table</a>`;
    table.replaceWith(way);
    tables.append(heading, table);
  }
  if (tables.children.length > 1) article.append(tables);

  // What a page break should not tear apart.
  for (const text of all("p")) if (/:\s*$/.test(text.textContent) || (text.querySelector(":scope > strong:only-child") && text.firstChild === text.lastChild)) text.classList.add("leads");
  for (const code of all("pre")) if (code.textContent.trim().split("\n").length > 16) (code.closest(".cell_input") ?? code.parentElement).classList.add("long");

  for (const element of all("[hidden]")) element.removeAttribute("hidden");
  // A list of links to sections that are on the next page anyway, and empty boxes.
  for (const element of all("div, span, p, ul")) if (!element.childNodes.length && !element.id) element.remove();

  // Only what a book needs.
  const KEPT = /^(id|class|href|src|alt|title|colspan|rowspan|scope|lang|width|height|start|type|role|aria-label|aria-hidden)$/;
  for (const element of all("*")) {
    if (element.closest("svg")) continue;
    for (const { name } of [...element.attributes]) if (!KEPT.test(name)) element.removeAttribute(name);
    if (element.getAttribute("role") === "group" || element.getAttribute("role") === "region") { element.removeAttribute("role"); element.removeAttribute("aria-label"); }
    if (!element.getAttribute("class")) element.removeAttribute("class");
    if (!/^(FIGURE|SECTION|A|NAV|TABLE|IMG)$/.test(element.tagName)) element.removeAttribute("aria-label");
  }

  // Addresses.
  const own = (id) => `${slug}--${id.replace(/[^\w.-]+/g, "-")}`;
  for (const element of all("[id]")) element.id = own(element.id);
  for (const element of all("svg *")) for (const { name, value } of [...element.attributes]) {
    if (/url\(["']?#/.test(value)) element.setAttribute(name, value.replace(/url\(["']?#([^)"']+)["']?\)/g, (_, id) => `url(#${own(id)})`));
    else if (/href$/.test(name) && value.startsWith("#")) element.setAttribute(name, `#${own(value.slice(1))}`);
  }
  const images = [];
  for (const image of all("img")) {
    if (image.src.startsWith("data:")) continue;
    const path = decodeURI(image.src.slice(site.length).split(/[?#]/)[0]);
    if (!image.src.startsWith(site)) { image.remove(); continue; }
    const name = path.replace(/[^\w.-]+/g, "-");
    images.push([path, name]);
    image.setAttribute("src", `images/${name}`);
    if (!image.hasAttribute("alt")) image.setAttribute("alt", "");
  }
  for (const link of all("a[href]")) {
    const address = new URL(link.href);
    const whole = address.href.split(/[?#]/)[0];
    if (!whole.startsWith(site)) continue;
    const path = decodeURI(whole.slice(site.length));
    const other = slugs[path.replace(/\.html$/, "")];
    const id = decodeURIComponent(address.hash.slice(1)).replace(/[^\w.-]+/g, "-");
    link.setAttribute("href", other ? `#${other}${id ? `--${id}` : ""}` : `${published}${path}${address.hash}`);
    link.removeAttribute("title");
  }

  const title = article.querySelector("h1");
  const body = document.createElement("section");
  body.id = slug;
  body.className = "chapter";
  body.append(...article.childNodes);
  return { title: title?.textContent.trim() ?? slug, body: new XMLSerializer().serializeToString(body), images, cover };
}
