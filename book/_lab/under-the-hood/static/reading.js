/* A chapter in JupyterLab, read as on the site.
 *
 * jupyterlab-myst renders the boxes, but does not know what cells have to do with each other: all
 * solutions would stand open, and a glued value would be shown as its name. This extension
 *
 * - keeps a solution, its prose and its cells, closed until its title is clicked;
 * - folds the cells that the site folds (hide-input) or leaves out (remove-cell, remove-input);
 * - puts the values that this run glued in the place of their names;
 * - says below "Your turn", when the last cell has been run, that it has ended what exercises need;
 * - lets a link to another chapter show that chapter's title, and open it.
 *
 * Strategy: what belongs to a solution is read from the cells' text, never from what happens to be
 * rendered, so that nothing shows for a moment that should not. Only the page is changed, by
 * attributes and style; the notebook's model is not, so saving writes nothing that the reader did
 * not write. It is plain JavaScript in the form in which JupyterLab loads prebuilt extensions, a
 * container of modules, so that it needs no build.
 */
(() => {
  "use strict";

  const GATE = /^ {0,3}(?:`{3,}|:{3,})\{solution-(start|end)\} *(.*)$/gm;
  const GLUE = /\{glue(?::\w+)?\}`([^`]+)`/g;
  const DOC = /\{doc\}`(?:([^`<]*?)\s*<)?([^`<>]+)>?`/g;
  const TURN = /^## Your turn$/m;
  const ENDED = "The last cell has been run, and has ended what this chapter had started. A number is " +
    "still judged: run its cell and the one below. If an exercise needs a kernel or a server, click " +
    "into its cell, and choose Kernel → Restart Kernel and Run up to Selected Cell.";
  const FOLDED = ["hide-input", "hide-cell", "remove-cell", "remove-input"];

  const STYLE = `
    .jp-Notebook [data-uth="closed"] { display: none !important; }
    .jp-Notebook [data-uth="gate"] { display: none !important; }
    .jp-Notebook [data-uth-glued] { font-variant-numeric: tabular-nums; }
    .jp-Notebook [data-uth-ended]::after {
      content: attr(data-uth-ended); display: block; margin: 0.5em 0 0.5em 75px; padding: 0.5em 1em;
      border-left: 4px solid var(--jp-warn-color1); background: var(--jp-layout-color2);
      color: var(--jp-content-font-color1); font-size: var(--jp-content-font-size1);
    }
  `;

  const tagsOf = (cell) => cell.model.getMetadata("tags") ?? [];
  const sourceOf = (cell) => cell.model.sharedModel.getSource();
  const isProse = (cell) => cell.model.type === "markdown";

  /** The values that cells have glued, by name, as text. */
  function gluedValues(cells) {
    const values = new Map();
    for (const cell of cells) {
      const outputs = cell.model.type === "code" ? cell.model.outputs : null;
      for (let at = 0; at < (outputs?.length ?? 0); at++) {
        const output = outputs.get(at).toJSON();
        const name = output.metadata?.scrapbook?.name;
        // Glued without being displayed, its type is hidden behind a prefix.
        const kind = Object.keys(output.data ?? {}).find((key) => key.endsWith("text/plain"));
        if (name && kind) values.set(name, String(output.data[kind]).replace(/^(['"])(.*)\1$/s, "$2"));
      }
    }
    return values;
  }

  /** One notebook, as its reader sees it. */
  class Reading {
    constructor(app, panel) {
      this.app = app;
      this.panel = panel;
      this.open = new Set(); // the labels of the exercises whose solutions are open
      this.titles = new Map(); // of other chapters, by path
      this.due = 0;
      this.watch = new MutationObserver(() => this.show());
      panel.content.node.addEventListener("toggle", (event) => this.toggled(event), true);
      panel.content.node.addEventListener("click", (event) => this.clicked(event), true);
      panel.context.ready.then(() => {
        const model = panel.context.model;
        model.contentChanged.connect(() => this.soon());
        model.cells.changed.connect(() => this.show());
        this.show();
      });
    }

    get cells() {
      return this.panel.content.widgets;
    }

    soon() {
      this.due ||= setTimeout(() => { this.due = 0; this.show(); }, 100);
    }

    show() {
      if (this.panel.isDisposed || !this.panel.content) return;
      this.watch.disconnect(); // what is changed below is no news
      const cells = [...this.cells];
      const glued = gluedValues(cells);
      const last = cells.findLast((cell) => cell.model.type === "code");
      const ended = last?.model.executionCount ? ENDED : null;
      let inside = null; // the label of the exercise whose solution we are in
      for (const cell of cells) {
        const source = isProse(cell) ? sourceOf(cell) : "";
        const gates = [...source.matchAll(GATE)];
        const closed = inside !== null && !this.open.has(inside);
        if (!gates.length) {
          mark(cell.node, closed ? "closed" : null);
        } else {
          mark(cell.node, null);
          this.showGates(cell, gates, inside);
          for (const [, end, label] of gates) inside = end === "start" ? label.trim() : null;
        }
        mark(cell.node, TURN.test(source) ? ended : null, "uthEnded");
        if (isProse(cell)) this.showWords(cell, source, glued);
        else this.fold(cell);
      }
      this.watch.observe(this.panel.content.node, { childList: true, subtree: true });
    }

    /** Close the parts of a cell of prose that belong to solutions. */
    showGates(cell, gates, inside) {
      const rendered = cell.node.querySelector(".myst");
      const left = [...gates];
      for (const part of rendered?.children ?? []) {
        const isBox = part.classList.contains("myst-exercise");
        const isEnd = isBox && part.tagName === "ASIDE" && !part.textContent.trim();
        const isStart = isBox && /^(Start of )?Solution to/.test(part.textContent.trim());
        if (isBox && isEnd) {
          mark(part, "gate"); // exercise-end and solution-end alike render as an empty box
          if (inside !== null && left[0]?.[1] === "end") { left.shift(); inside = null; }
        } else if (isStart && left[0]?.[1] === "start") {
          inside = left.shift()[2].trim();
          mark(part, null);
          if (part.dataset.uthSolution !== inside) { // rendered anew
            part.dataset.uthSolution = inside;
            part.open = this.open.has(inside);
          }
          const words = part.querySelector(".myst-exercise-title")?.firstChild;
          if (words?.data?.startsWith("Start of ")) words.data = words.data.slice(9);
        } else {
          mark(part, inside !== null && !this.open.has(inside) ? "closed" : null);
        }
      }
    }

    showWords(cell, source, glued) {
      const rendered = cell.node.querySelector(".myst");
      if (!rendered) return;
      const names = new Set([...source.matchAll(GLUE)].map((found) => found[1]));
      for (const span of names.size ? rendered.querySelectorAll("span:not([class])") : []) {
        const text = span.childNodes.length === 1 ? span.firstChild : null;
        const name = span.dataset.uthGlued ?? text?.data;
        if (!text || !names.has(name)) continue;
        const value = glued.get(name) ?? "…";
        span.dataset.uthGlued = name;
        span.title = glued.has(name) ? "" : "Run the cells of this chapter to see the number.";
        if (text.data !== value) text.data = value;
      }
      const links = new Map([...source.matchAll(DOC)].map(([, shown, target]) => [target, shown]));
      for (const link of links.size ? rendered.querySelectorAll("a") : []) {
        const target = link.dataset.uthDoc ?? link.getAttribute("href");
        if (!links.has(target)) continue;
        link.dataset.uthDoc = target;
        const words = link.querySelector(".link-text") ?? link;
        if (!links.get(target)) this.entitle(words, this.pathOf(target));
      }
    }

    /** Return the path of another chapter, seen from this one. */
    pathOf(target) {
      const base = target.startsWith("/") ? "/" : `/${this.panel.context.localPath}`;
      return new URL(`${target}.md`, `http://course${base}`).pathname.slice(1);
    }

    entitle(words, path) {
      if (!this.titles.has(path)) {
        this.titles.set(path, null);
        this.app.serviceManager.contents
          .get(path, { type: "file", format: "text", content: true })
          .then((file) => {
            this.titles.set(path, /^# (.+)$/m.exec(file.content)?.[1] ?? null);
            this.soon();
          })
          .catch(() => {}); // then its path stays
      }
      const title = this.titles.get(path);
      const text = words.firstChild;
      if (title && text?.data && text.data !== title) text.data = title;
    }

    fold(cell) {
      if (cell.uthFolded || !tagsOf(cell).some((tag) => FOLDED.includes(tag))) return;
      cell.uthFolded = true;
      cell.ready.then(() => {
        cell.syncCollapse = false; // or saving would write it
        cell.inputHidden = true;
      });
    }

    toggled(event) {
      const label = event.target.dataset?.uthSolution;
      if (label === undefined) return;
      this.open[event.target.open ? "add" : "delete"](label);
      this.show();
    }

    clicked(event) {
      const link = event.target.closest?.("a[data-uth-doc]");
      if (!link) return;
      event.preventDefault();
      event.stopPropagation();
      this.app.commands.execute("docmanager:open", { path: this.pathOf(link.dataset.uthDoc) });
    }
  }

  function mark(node, state, name = "uth") {
    if (state) node.dataset[name] = state;
    else delete node.dataset[name];
  }

  const plugin = {
    id: "under-the-hood:reading",
    description: "Lets JupyterLab show a chapter as the site does.",
    autoStart: true,
    activate: (app) => {
      document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
      const known = new WeakSet();
      const look = () => {
        for (const panel of app.shell.widgets("main")) {
          if (known.has(panel) || !panel.content?.widgets || !panel.context?.model) continue;
          if (!("cells" in panel.context.model)) continue;
          known.add(panel);
          new Reading(app, panel);
        }
      };
      (app.shell.layoutModified ?? app.shell.currentChanged).connect(look);
      app.restored.then(look);
    },
  };

  (window._JUPYTERLAB ??= {})["under-the-hood"] = {
    init: async () => {},
    get: async () => () => ({ __esModule: true, default: plugin }),
  };
})();
