// Curves and their legend light up together.
"use strict";
(() => {
  for (const item of document.querySelectorAll(".legend li")) {
    const chart = item.closest("figure").querySelector(".chart");
    const line = chart.querySelector(`.line[data-line="${CSS.escape(item.dataset.line)}"]`);
    const light = (on) => {
      line.classList.toggle("lit", on);
      chart.classList.toggle("dim", on);
    };
    for (const name of ["mouseenter", "focusin"]) item.addEventListener(name, () => light(true));
    for (const name of ["mouseleave", "focusout"]) item.addEventListener(name, () => light(false));
  }
})();
