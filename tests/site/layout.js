// Return what on the page cannot be read at this width: text that is cut off, leaves its box or is too small, and
// what scrolls sideways where a keyboard cannot make it.
(width) => {
  const found = new Set();
  const isVisible = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const place = (element) => {
    const classes = [...element.classList].map((name) => `.${name}`).join("");
    const text = element.textContent.trim().replace(/\s+/g, " ").slice(0, 50);
    return `${element.tagName.toLowerCase()}${classes} "${text}"`;
  };
  const scrolls = (overflow) => overflow === "auto" || overflow === "scroll";
  const cuts = (overflow) => overflow === "hidden" || overflow === "clip";

  // The same boxes are around many texts: each is looked at once.
  const boxes = new Map();
  const look = (element) => {
    if (!boxes.has(element)) {
      const { display, overflowX, overflowY, position } = getComputedStyle(element);
      boxes.set(element, { display, overflowX, overflowY, position, edges: element.getBoundingClientRect() });
    }
    return boxes.get(element);
  };

  // The box that a text must stay in: its nearest block, its cell, or its figure.
  const boxOf = (element) => {
    const figure = element.closest("svg");
    if (figure) return figure;
    while (/^(inline|contents)$/.test(look(element).display)) element = element.parentElement;
    return element;
  };

  const page = document.documentElement;
  if (page.scrollWidth > width) found.add(`the page is ${page.scrollWidth} px wide, the screen ${width}`);

  const range = document.createRange();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const parent = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !isVisible(parent)) continue;
    range.selectNodeContents(texts.currentNode);
    const text = range.getBoundingClientRect();
    if (!text.width) continue;
    if (range.getClientRects()[0].height < 10) found.add(`too small to read: ${place(parent)}`);

    const box = boxOf(parent);
    const { edges } = look(box);
    const isWider = text.left < edges.left - 1 || text.right > edges.right + 1;
    // A notebook's code is scrolled by the box around its `pre`.
    const scroller = box.matches("pre") && box.closest(".highlight-ipynb") ? box.closest(".highlight-ipynb") : box;
    if (isWider && !scrolls(look(scroller).overflowX)) found.add(`wider than its box: ${place(parent)}`);

    // What a container scrolls can be reached, so only the containers within it cut anything off.
    let x = true;
    let y = true;
    for (let outer = box; outer && (x || y); outer = outer.parentElement) {
      const { overflowX, overflowY, position, edges } = look(outer);
      const { left, right, top, bottom } = edges;
      x &&= !scrolls(overflowX);
      y &&= !scrolls(overflowY);
      const isCut =
        (x && cuts(overflowX) && (text.left < left - 1 || text.right > right + 1)) ||
        (y && cuts(overflowY) && (text.top < top - 4 || text.bottom > bottom + 4)); // 4: of a low line
      if (isCut) found.add(`cut off by ${place(outer).split(" ")[0]}: ${place(parent)}`);
      if (position === "fixed") break;
    }
    if (x && text.left < -1 && text.right > 1) found.add(`cut off by the screen: ${place(parent)}`);
  }

  for (const element of document.body.querySelectorAll("*")) {
    const isScroller = element.scrollWidth > element.clientWidth && scrolls(look(element).overflowX);
    if (isScroller && isVisible(element) && !element.hasAttribute("tabindex")) {
      found.add(`scrolls sideways, and no keyboard reaches it: ${place(element)}`);
    }
  }
  return [...found];
};
