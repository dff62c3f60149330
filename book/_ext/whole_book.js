// Runs on a page of the built site, in Chromium, in the light theme and as for print. Takes the
// chapter out of the page and returns it as XHTML that needs no script and no style sheet of the
// site: drawings carry their own colours, what opens and closes stands open, and every address
// inside the book is `#chapter--id`.
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

  drop("script, style, noscript, button, template, iframe, .headerlink, .copybtn, .whole-book, .screen-only, .d-print-none");
  drop(".uh-tools, .uh-hint, .uh-list, .uh-plain, .uh-panel, .term-tip");
  // A field of bytes that is closed on the page is one line in a book: its parts would fill pages.
  drop(".uh-f:not([open]) > :not(summary)");
  // One that is open shows its bytes part by part, and so not twice.
  drop(".uh-in[open] > summary :is(.uh-fh, .uh-ft)");

  // Drawings: what the style sheet says becomes attributes, which every reading system knows.
  const INHERITED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "font-family", "font-size", "font-weight", "font-style", "text-anchor", "dominant-baseline", "fill-opacity", "stroke-opacity", "visibility"];
  for (const drawing of all("svg")) {
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
    const title = drawing.querySelector(":scope > title")?.textContent;
    drawing.setAttribute("role", "img");
    if (title) drawing.setAttribute("aria-label", title); else drawing.setAttribute("aria-hidden", "true");
  }

  // What opens and closes.
  for (const box of all("details").reverse()) {
    const line = box.querySelector(":scope > summary");
    if (box.matches(".hide, .uh-table")) line?.remove();
    else if (line) { const title = rename(line, "p"); title.classList.add("admonition-title"); }
    rename(box, "div");
  }

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
  return { title: title?.textContent.trim() ?? slug, body: new XMLSerializer().serializeToString(body), images };
}
