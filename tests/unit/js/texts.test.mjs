import assert from "node:assert/strict";
import { test } from "node:test";

import { makeTexts } from "../../../js/lib/texts.js";

const locales = { en: { latentClip: { count: "{count} latents", only: "English" } }, zh: { latentClip: { count: "{count} 个" } } };

test("the page's language, then its base language, then English, then the key", () => {
    assert.equal(makeTexts(locales, "zh")("count", { count: 3 }), "3 个");
    assert.equal(makeTexts(locales, "zh-TW")("count", { count: 3 }), "3 个");
    assert.equal(makeTexts(locales, "zh")("only"), "English");
    assert.equal(makeTexts(locales, "fr")("count", { count: 3 }), "3 latents");
    assert.equal(makeTexts({}, "fr")("count"), "count");
    assert.equal(makeTexts(undefined, "en")("count"), "count");
});

test("a hole without a value stays visible, and zero is a value", () => {
    const text = makeTexts(locales, "en");
    assert.equal(text("count"), "{count} latents");
    assert.equal(text("count", { count: 0 }), "0 latents");
});
