// What the theme leaves out for readers who use a keyboard or a screen reader. No page needs it to be read.
{
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search"); // a dialog without a name

  // On a phone the navigation opens with a label, which no keyboard reaches: here with a button.
  const label = document.querySelector(".md-header__button[for=__drawer]");
  const drawer = document.querySelector("#__drawer");
  if (label && drawer) {
    const button = Object.assign(document.createElement("button"), { className: label.className, type: "button" });
    const tell = () => button.setAttribute("aria-expanded", drawer.checked);
    button.classList.add("drawer-button");
    button.setAttribute("aria-label", "Navigation");
    button.append(...label.childNodes);
    button.addEventListener("click", () => drawer.click());
    drawer.addEventListener("change", tell);
    tell();
    label.replaceWith(button);
  }

  // A table or a block of code that is wider than the screen scrolls with the arrow keys, once it can be focused.
  const updateFocus = (element) => {
    const scrolls = element.scrollWidth > element.clientWidth;
    if (scrolls === (element.tabIndex >= 0)) return;
    if (scrolls) element.setAttribute("tabindex", "0");
    else element.removeAttribute("tabindex");
  };
  // The theme takes the focus away from code on touch screens, so a change of theirs is looked at as well.
  const changes = new MutationObserver((records) => records.forEach(({ target }) => updateFocus(target)));
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => updateFocus(target)));

  const SCROLLERS = ".md-typeset__scrollwrap, pre > code, .highlight-ipynb, .jupyter-wrapper pre";
  const improve = () => {
    for (const element of document.querySelectorAll(SCROLLERS)) {
      if (element.role) continue;
      const isTable = element.matches(".md-typeset__scrollwrap");
      element.setAttribute("role", "group");
      element.setAttribute("aria-label", isTable ? "Table" : "Code");
      changes.observe(element, { attributeFilter: ["tabindex"] });
      sizes.observe(element);
    }
    // One landmark for each block of code would hide the real ones in a list of landmarks.
    for (const nav of document.querySelectorAll(".md-code__nav:not([role])")) nav.setAttribute("role", "none");
  };
  // The theme wraps tables and adds its buttons when it starts.
  new MutationObserver(improve).observe(document.body, { childList: true, subtree: true });
  improve();
  // A font that arrives late makes lines longer, and no element larger.
  const updateAll = () => document.querySelectorAll(SCROLLERS).forEach(updateFocus);
  document.fonts.addEventListener("loadingdone", updateAll);
  document.fonts.ready.then(updateAll);
  window.addEventListener("load", updateAll);
  document.addEventListener("toggle", updateAll, true);
}
