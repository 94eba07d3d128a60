// The colours of the theme, and the button that changes it.

const THEMES = ["auto", "light", "dark"];

/** A colour of the current theme, as the style sheet names it. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** The i-th colour for data: eight that colour-blind readers can tell apart. */
function dataColour(i) {
  return colour(`data-${(i % 8) + 1}`);
}

/** The same colour with an opacity. */
function faded(hex, opacity) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

const theme = (() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const listeners = [];
  let now = "auto";
  const apply = (value) => {
    if (value === "auto") delete root.dataset.theme;
    else root.dataset.theme = value;
    listeners.forEach((listener) => listener());
  };
  return {
    start() {
      button.addEventListener("click", () => {
        now = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
        button.firstElementChild.textContent = `Theme: ${now}`;
        button.setAttribute("aria-label", `Colour theme: ${now === "auto" ? "as the system" : now}. Press to change`);
        apply(now);
      });
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => listeners.forEach((listener) => listener()));
    },
    /** Call when the colours have changed. */
    listen: (listener) => listeners.push(listener),
    /** Light and complete on paper, as before afterwards. */
    onPaper(printing) {
      apply(printing ? "light" : now);
    },
  };
})();
