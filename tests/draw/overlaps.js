// Returns sentences about texts in drawings that overlap, are cut off, or meet a line. Texts on a
// plate of their own (names, notes, heads of groups) may cover lifelines: that is what it is for.
(shrink) => {
  const faults = [];
  const apart = (a, b) => a.right - shrink <= b.left || b.right - shrink <= a.left
    || a.bottom - shrink <= b.top || b.bottom - shrink <= a.top;
  const box = (x, y, w, h) => ({left: x, top: y, right: x + w, bottom: y + h});
  // The box of a text has room above capitals and below descenders.
  const inked = (element) => {
    const b = element.getBBox();
    return box(b.x, b.y + b.height * 0.16, b.width, b.height * 0.7);
  };
  for (const svg of document.querySelectorAll('svg[role=group]')) {
    const view = svg.viewBox.baseVal;
    const texts = [...svg.querySelectorAll('text')].map((element) => ({
      element,
      box: inked(element),
      plate: !!element.closest('.u-heads') || /u-remark|u-group/.test(element.getAttribute('class')),
    }));
    const lines = [...svg.querySelectorAll('.u-busy')].map((bar) => ({kind: 'bar', box: inked(bar)}));
    for (const [selector, kind] of [['.u-life', 'lifeline'], ['.u-line', 'arrow']]) {
      for (const path of svg.querySelectorAll(selector)) {
        for (const part of path.getAttribute('d').split('M').slice(1)) {
          let [x, y] = part.split(/[HVL]/)[0].split(' ').map(Number);
          for (const [, how, to] of part.matchAll(/([HV])([-\d.]+)/g)) {
            const [nx, ny] = how === 'H' ? [+to, y] : [x, +to];
            const between = [Math.min(x, nx), Math.min(y, ny), Math.abs(nx - x), Math.abs(ny - y)];
            lines.push({kind, box: box(...between)});
            [x, y] = [nx, ny];
          }
        }
      }
    }
    const name = svg.closest('figure').dataset.capture;
    texts.forEach((one, n) => {
      const said = `${name}: "${one.element.textContent}"`;
      const {left, top, right, bottom} = one.box;
      if (left < 0 || top < 0 || right > view.width || bottom > view.height) faults.push(`${said} is cut off`);
      for (const other of texts.slice(n + 1)) {
        if (!apart(one.box, other.box)) faults.push(`${said} lies on "${other.element.textContent}"`);
      }
      for (const line of lines) {
        if (one.plate && line.kind !== 'arrow') continue;
        if (!apart(one.box, line.box)) faults.push(`${said} meets a ${line.kind}`);
      }
    });
  }
  return faults;
}
