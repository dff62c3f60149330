// Lets diagrams grow: each arrow is a fragment, and the newest arrow's message is open beside it.
(() => {
  for (const figure of document.querySelectorAll('figure.underhood')) {
    for (const arrow of figure.querySelectorAll('svg [data-message]')) arrow.classList.add('fragment');
  }
  const open = (slide) => {
    for (const figure of slide.querySelectorAll('figure.underhood')) {
      const seen = [...figure.querySelectorAll('svg .fragment.visible')];
      const newest = seen.sort((a, b) => a.dataset.fragmentIndex - b.dataset.fragmentIndex).at(-1);
      // That a kernel will be busy is not told before it is.
      for (const bar of figure.querySelectorAll('svg .u-busy')) bar.style.opacity = seen.length === figure.querySelectorAll('svg .fragment').length ? '' : 0;
      for (const said of figure.querySelectorAll('.said')) said.hidden = said.dataset.of !== newest?.dataset.message;
    }
  };
  const deck = document.querySelector('.reveal');
  Reveal.initialize({
    width: 1280, height: 720, margin: 0, minScale: 0.1, maxScale: 4,
    hash: true, controls: false, respondToHashChanges: true, slideNumber: 'c/t', center: false,
    transition: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'none' : 'fade',
    totalTime: 60 * Number(deck.dataset.minutes), pdfSeparateFragments: false,
    plugins: [RevealNotes],
  }).then(() => open(Reveal.getCurrentSlide()));
  Reveal.on('slidechanged', (event) => open(event.currentSlide));
  Reveal.on('fragmentshown', () => open(Reveal.getCurrentSlide()));
  Reveal.on('fragmenthidden', () => open(Reveal.getCurrentSlide()));
})();
