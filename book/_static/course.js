// Makes handier what works without a script: the meanings of terms (book/_ext/glossary_terms.py).
(() => {
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
