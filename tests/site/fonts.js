// Add, for each font that the styles of the page ask for, a probe with every character that is set in it.
(() => {
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  const characters = new Map();
  const note = (style, text) => {
    const asked = `${style.fontStyle} ${style.fontFamily}`;
    const known = characters.get(asked) ?? { style, set: new Set() };
    [...text].filter((character) => character.trim()).forEach((character) => known.set.add(character));
    characters.set(asked, known);
  };
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    if (own.length) note(getComputedStyle(element), own.map((node) => node.data).join(""));
    for (const pseudo of ["::before", "::after"]) {
      const style = getComputedStyle(element, pseudo);
      if (style.content.startsWith('"')) note(style, style.content.slice(1, -1));
    }
  }
  for (const { style, set } of characters.values()) {
    const probe = Object.assign(document.createElement("div"), { className: "probe", textContent: [...set].join("") });
    Object.assign(probe.style, { fontFamily: style.fontFamily, fontStyle: style.fontStyle });
    document.body.append(probe);
  }
})();
