// Makes handier what works without a script: the meanings of terms (book/_ext/glossary_terms.py),
// what scrolls, and buttons.
(() => {
  // What scrolls must be within reach of the Tab key, which not every browser sees to. All is
  // measured before any is marked: or the page would be laid out anew for each.
  const reach = root => {
    const found = [...root.querySelectorAll("pre, .cell_output > .output, .pst-scrollable-table-container")]
      .filter(box => !box.closest(".underhood") && box.checkVisibility());
    const scrolls = found.map(box => box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight);
    found.forEach((box, n) => {
      if (scrolls[n]) box.tabIndex = 0; else if (box.hasAttribute("tabindex")) box.removeAttribute("tabindex");
    });
  };
  let soon;
  addEventListener("resize", () => { clearTimeout(soon); soon = setTimeout(reach, 300, document); });
  document.addEventListener("toggle", event => reach(event.target), true);
  setTimeout(reach, 0, document);

  // The theme, and the script that copies, take the focus from a button that was pressed. Who did
  // so by the keyboard would begin anew at the top of the page.
  document.addEventListener("keydown", ({target}) => {
    if (target.matches("button")) target.blur = () => {};
  }, true);
  document.addEventListener("pointerdown", ({target}) => { delete target.closest("button")?.blur; }, true);
  document.addEventListener("click", ({target, detail}) => { if (!detail) target.closest(".copybtn")?.focus(); });

  // On a phone, the contents open from a button, which has the focus again when a heading was
  // chosen; but that is where the keyboard goes on.
  addEventListener("hashchange", () => {
    const heading = document.querySelector(":target > :is(h1, h2, h3)");
    if (heading && document.activeElement.matches(".sidebar-toggle")) {
      heading.tabIndex = -1;
      heading.focus({preventScroll: true});
    }
  });

  const meaning = link => link.nextElementSibling;

  // Below its term, but inside the paragraph, and so inside the window.
  const place = link => {
    const tip = meaning(link), around = tip.offsetParent;
    if (around) {
      const from = link.getClientRects()[0].left - around.getBoundingClientRect().left;
      tip.style.left = `${Math.max(0, Math.min(from, around.clientWidth - tip.offsetWidth))}px`;
    }
  };

  for (const link of document.querySelectorAll("a.term")) {
    for (const type of ["pointerenter", "focus"])
      link.addEventListener(type, () => place(link));
    for (const type of ["pointerleave", "blur"])
      link.addEventListener(type, () => link.classList.remove("dismissed"));
    // A first touch shows the meaning, a second follows the link.
    let touched = false;
    link.addEventListener("pointerdown", event => { touched = event.pointerType === "touch"; });
    link.addEventListener("click", event => {
      if (touched && !link.classList.contains("shown")) {
        event.preventDefault();
        link.classList.add("shown");
        place(link);
      }
    });
  }

  document.addEventListener("pointerdown", event => {
    for (const link of document.querySelectorAll("a.term.shown"))
      if (event.target !== link && !meaning(link).contains(event.target))
        link.classList.remove("shown");
  });

  document.addEventListener("keydown", event => {
    if (event.key === "Escape")
      for (const link of document.querySelectorAll("a.term:is(:hover, :focus, .shown)")) {
        link.classList.remove("shown");
        link.classList.add("dismissed");
      }
  });
})();
