// Where the focus is, and whether a reader sees it; `notFocused` is what can be clicked and never had it.
(() => {
  const had = new Set();
  const place = (element) => {
    const label = element.getAttribute("aria-label") || element.textContent.trim().replace(/\s+/g, " ").slice(0, 50);
    return `${element.tagName.toLowerCase()}.${element.className} "${label}"`;
  };
  const isShown = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const isOutlined = (element) => {
    const { outlineStyle, outlineWidth } = getComputedStyle(element);
    const { width, height, bottom, right } = element.getBoundingClientRect();
    const isOnScreen = width && height && bottom > 0 && right > 0;
    return isOnScreen && isShown(element) && outlineStyle !== "none" && parseFloat(outlineWidth) > 0;
  };
  const areas = {
    skip: ".md-skip",
    palette: "[name=__palette]",
    search: ".md-search",
    header: ".md-header",
    navigation: ".md-sidebar--primary, #__drawer",
    contents: ".md-sidebar--secondary",
    copy: ".md-code__button",
    page: ".md-content",
    footer: ".md-footer",
  };
  window.focused = () => {
    const element = document.activeElement;
    if (element === document.body || had.has(element)) return null;
    had.add(element);
    const area = Object.keys(areas).find((name) => element.closest(areas[name])) ?? "";
    // A box that the theme hides is shown by its label, or the one beside it; a field of text by its caret.
    const next = element.nextElementSibling;
    const shownBy = [element, ...(element.labels ?? []), ...(next?.matches("label") ? [next] : [])];
    const hasCaret = element.matches("input[type=text]") && isShown(element);
    return { place: place(element), area, is_visible: hasCaret || shownBy.some(isOutlined) };
  };
  // Of a group of radio buttons one has the focus. Boxes that the theme does not display switch what it has opened
  // already, or has another button for.
  const isCovered = (element) =>
    (element.matches(".md-toggle") && getComputedStyle(element).display === "none") ||
    (element.type === "radio" && [...had].some(({ name }) => name === element.name));
  const isClickable = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return isShown(element) && width && height && getComputedStyle(element).pointerEvents !== "none";
  };
  window.notFocused = () =>
    [...document.querySelectorAll("a[href], button, summary, input, select, textarea")]
      .filter((element) => [element, ...(element.labels ?? [])].some(isClickable))
      .filter((element) => !had.has(element) && !isCovered(element))
      .map(place);
})();
