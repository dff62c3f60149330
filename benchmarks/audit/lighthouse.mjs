// Runs Lighthouse as told by JSON on standard input, {chromium, visits: [{url, form}, …]}, in that
// order, and writes one line of JSON for each visit as soon as it is over.
//
// Each visit gets a new profile, so that nothing is in a cache. The throttling is Lighthouse's own,
// for a phone and for a desktop computer.

import { text } from "node:stream/consumers";
import { launch } from "chrome-launcher";
import lighthouse, { desktopConfig } from "lighthouse";

const task = JSON.parse(await text(process.stdin));
const flags = ["--headless=new", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
if (process.getuid?.() === 0) flags.push("--no-sandbox");

for (const visit of task.visits) {
  const chromium = await launch({ chromePath: task.chromium, chromeFlags: flags });
  try {
    const config = visit.form === "desktop" ? desktopConfig : undefined;
    const options = { port: chromium.port, logLevel: "silent", onlyCategories: ["performance", "accessibility", "best-practices", "seo"] };
    const { lhr } = await lighthouse(visit.url, options, config);
    if (lhr.runtimeError) throw new Error(`${visit.url}: ${lhr.runtimeError.message}`);
    const found = Object.values(lhr.categories);
    const missed = found.flatMap((category) =>
      category.auditRefs
        .map(({ id, weight }) => ({ weight, audit: lhr.audits[id] }))
        .filter(({ weight, audit }) => weight > 0 && audit.score !== null && audit.score < (category.id === "performance" ? 0.9 : 1))
        .map(({ audit }) => `${audit.title}${audit.displayValue ? ` (${audit.displayValue})` : ""}`));
    const requests = lhr.audits["network-requests"].details.items;
    console.log(JSON.stringify({
      scores: Object.fromEntries(found.map(({ id, score }) => [id, score])),
      bytes: requests.reduce((sum, request) => sum + request.transferSize, 0),
      requests: requests.length,
      shift: lhr.audits["cumulative-layout-shift"].numericValue,
      missed,
    }));
  } finally {
    chromium.kill();
  }
}
