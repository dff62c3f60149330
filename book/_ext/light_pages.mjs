// What light_pages.py leaves to the tools of the web: reads its task as JSON from standard input,
// writes the result as JSON to standard output.
//
//   {theme, own, words, unused, script}  ->  {sheet, script}
//
// `theme` is CSS of packages, purged of the rules for which `words` (all that stands in tags and in
// scripts) has no match, and of those for `unused` parts; `own` is CSS of this project, kept whole.

import { text } from "node:stream/consumers";
import { transform as minified } from "esbuild";
import { transform as squeezed } from "lightningcss";
import { PurgeCSS } from "purgecss";

const task = JSON.parse(await text(process.stdin));

const [purged] = await new PurgeCSS().purge({
  content: [{ raw: task.words.join(" "), extension: "html" }],
  css: [{ raw: task.theme }],
  defaultExtractor: (words) => words.split(" "),
  keyframes: true,
  variables: true,
  blocklist: task.unused.map((part) => new RegExp(`^${part}(-|$)`)),
  safelist: {
    // What Bootstrap makes out of pieces of words.
    standard: [/^(bs-)?tooltip/],
    // Attributes that scripts set by way of `dataset`.
    greedy: [/\[data-(theme|mode|popper-placement)/],
    // Ours build on the theme's.
    variables: task.own.match(/--[\w-]+/g) ?? [],
  },
});

const sheet = squeezed({
  filename: "site.css",
  code: Buffer.from(`${purged.css}\n${task.own}`),
  minify: true,
  errorRecovery: true, // themes write what browsers forgive
});

const script = await minified(task.script, {
  minify: true, // but for the names by which scripts find each other
  legalComments: "none",
  target: "es2020",
  charset: "utf8",
});

process.stdout.write(JSON.stringify({ sheet: sheet.code.toString(), script: script.code }));
