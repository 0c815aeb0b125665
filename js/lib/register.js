/**
 * Register an extension, unless another copy of the pack has: the page would fail on a name that is taken.
 */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { makeTexts } from "./texts.js";

const NOTICE = "LatentCLIP.InstalledTwice";
const folder = decodeURIComponent(new URL(import.meta.url).pathname.split("/extensions/").at(-1).split("/")[0]);

const registered = (name) => app.extensions.find((extension) => extension.name === name);

/**
 * @param {object} extension as app.registerExtension takes it
 */
export function register(extension) {
    const other = registered(extension.name);
    if (other === undefined) app.registerExtension({ ...extension, folder });
    else if (registered(NOTICE) === undefined) app.registerExtension({ name: NOTICE, setup: () => tell(other.folder ?? "?") });
}

/** Say once that there are two, in words. */
async function tell(other) {
    const language = app.extensionManager.setting.get("Comfy.Locale") ?? "en";
    const text = makeTexts(await api.getCustomNodesI18n(), language);
    app.extensionManager.toast.add({
        severity: "warn",
        summary: text("installedTwice"),
        detail: text("installedTwiceHelp", { first: other, second: folder }),
    });
}
