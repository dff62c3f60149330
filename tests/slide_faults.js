// What is wrong with a slide, by default the one that is shown: letters too small to read in a room, words beyond
// its edge, words over other words. Sizes are in pixels of the slide, which is 1280 wide.
(given) => {
  const slide = given ?? Reveal.getCurrentSlide(), edge = slide.getBoundingClientRect();
  const zoom = edge.width / 1280, faults = [], boxes = [];
  for (const part of slide.querySelectorAll('*')) {
    const own = [...part.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const out = part.closest('aside, title, desc, [hidden]') || !part.getClientRects().length;
    if (!own || out) continue;
    const box = part.getBoundingClientRect(), svg = part.closest('svg');
    let size = parseFloat(getComputedStyle(part).fontSize);
    if (svg) size *= svg.getBoundingClientRect().width / svg.viewBox.baseVal.width / zoom;
    const words = part.textContent.trim().slice(0, 40);
    if (size < 23.9) faults.push(`${size.toFixed(1)} px: ${words}`);
    const inside = box.left >= edge.left - 1 && box.right <= edge.right + 1
      && box.top >= edge.top - 1 && box.bottom <= edge.bottom + 1;
    if (!inside) faults.push(`beyond the slide: ${words}`);
    if (!svg && !part.closest('pre')) {
      for (const [other, place, said] of boxes) {
        if (other.contains(part) || part.contains(other)) continue;
        const apart = box.left >= place.right - 2 || place.left >= box.right - 2
          || box.top >= place.bottom - 2 || place.top >= box.bottom - 2;
        if (!apart) faults.push(`${words} over ${said}`);
      }
      boxes.push([part, box, words]);
    }
  }
  return faults;
}
