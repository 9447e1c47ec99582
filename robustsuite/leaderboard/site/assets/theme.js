// Light or dark before the first paint: what the reader chose last, else what the system says.
"use strict";
(() => {
  const order = ["system", "light", "dark"];
  const read = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const keep = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* private windows keep nothing */ } };
  const apply = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  let theme = order.includes(read()) ? read() : "system";
  apply(theme);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = button.querySelector("span");
    button.hidden = false;
    name.textContent = theme;
    button.addEventListener("click", () => {
      theme = order[(order.indexOf(theme) + 1) % order.length];
      apply(theme);
      keep(theme);
      name.textContent = theme;
    });
  });
})();
