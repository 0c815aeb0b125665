/**
 * The widgets' own words. They live in locales/<language>/main.json under `latentClip`, beside all other translations.
 */

/**
 * Make a lookup for one language, with English behind it.
 *
 * @param {object} locales what the host's /i18n route returns: language → messages
 * @param {string} language such as "en", "zh" or "zh-TW"
 * @returns {(key: string, values?: object) => string} `{name}` in a text is replaced; an unknown key comes back as it is
 */
export function makeTexts(locales, language) {
    const words = (name) => locales?.[name]?.latentClip ?? {};
    const table = { ...words("en"), ...words(language.split("-")[0]), ...words(language) };
    return (key, values = {}) => (table[key] ?? key).replace(/\{(\w+)\}/g, (hole, name) => values[name] ?? hole);
}
