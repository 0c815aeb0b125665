/**
 * Make an element.
 *
 * @param {string} tag
 * @param {string} className
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function element(tag, className, ...children) {
    const made = document.createElement(tag);
    made.className = className;
    made.append(...children);
    return made;
}

/**
 * A thumbnail, or an empty square where there is none.
 *
 * @param {string} source data URL
 * @returns {HTMLElement}
 */
export function thumbnail(source) {
    if (!source) return element("span", "latent-clip-thumbnail");
    const image = element("img", "latent-clip-thumbnail");
    image.src = source;
    image.alt = "";
    image.draggable = false;
    return image;
}

/**
 * Load a style sheet, once for all files that need it.
 *
 * @param {string} href
 */
export function addStyle(href) {
    if ([...document.querySelectorAll("link[rel=stylesheet]")].some((link) => link.href === href)) return;
    const style = element("link", "");
    style.rel = "stylesheet";
    style.href = href;
    document.head.append(style);
}

/**
 * Give a turn of the wheel to the canvas where the list cannot use it, or where it means zoom.
 *
 * @param {WheelEvent} event
 * @param {HTMLElement} list
 * @param {object} canvas the page's
 */
export function passWheelOn(event, list, canvas) {
    const room = event.deltaY < 0 ? list.scrollTop : list.scrollHeight - list.clientHeight - list.scrollTop;
    if (room >= 1 && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    canvas.processMouseWheel(event);
}

/**
 * Make a list one stop of the tab key; arrows, Home and End move inside it.
 *
 * @param {HTMLElement} list
 * @param {string} items selector of its items that can have the focus, each a `li`
 */
export function moveFocusByKeys(list, items) {
    list.addEventListener("keydown", (event) => {
        const rows = [...list.querySelectorAll(items)];
        const at = rows.indexOf(document.activeElement);
        const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
        if (at < 0 || to === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        rows[Math.min(rows.length - 1, Math.max(0, to))].focus();
    });
    list.addEventListener("focusin", ({ target }) => {
        for (const row of list.querySelectorAll("li[tabindex='0']")) row.tabIndex = -1;
        target.closest("li").tabIndex = 0;
    });
}
