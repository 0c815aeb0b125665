/**
 * Copy to the clipboard; where the browser has none, as on a page that is not served from localhost or by https, save a file.
 */

import { element } from "./dom.js";

const COPIED_STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "opacity", "font", "text-anchor"];

/**
 * @param {string} content
 * @param {string} name of the file
 * @returns {Promise<"copied"|"saved">}
 */
export async function copyText(content, name) {
    if (!navigator.clipboard?.writeText) return save(new Blob([content], { type: "text/csv" }), name);
    await navigator.clipboard.writeText(content);
    return "copied";
}

/**
 * @param {Blob} blob a PNG
 * @param {string} name of the file
 * @returns {Promise<"copied"|"saved">}
 */
export async function copyPng(blob, name) {
    if (!navigator.clipboard?.write || !window.ClipboardItem) return save(blob, name);
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    return "copied";
}

function save(blob, name) {
    const link = element("a", "");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    return "saved";
}

/**
 * An SVG of the page as a picture, with the colours that it has there.
 *
 * @param {SVGElement} svg attached to the page
 * @param {{width: number, height: number}} size
 * @param {string} background
 * @returns {Promise<Blob>} a PNG, twice as large
 */
export async function toPng(svg, { width, height }, background) {
    const copy = svg.cloneNode(true);
    const copies = copy.querySelectorAll("*");
    svg.querySelectorAll("*").forEach((original, index) => {
        const style = getComputedStyle(original);
        copies[index].setAttribute("style", COPIED_STYLES.map((name) => `${name}: ${style.getPropertyValue(name)}`).join("; "));
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.removeAttribute("style");

    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
    await image.decode();
    const canvas = element("canvas", "");
    [canvas.width, canvas.height] = [2 * width, 2 * height];
    const context = canvas.getContext("2d");
    context.fillStyle = background;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
}
